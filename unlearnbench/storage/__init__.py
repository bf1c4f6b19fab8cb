"""Files that are complete or absent, and the cache made of them."""
