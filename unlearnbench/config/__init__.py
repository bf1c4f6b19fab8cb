"""Configuration: from overrides on the command line to checked objects."""
