"""Configuration: from words on the command line to checked objects."""
