"""Atomic files, and the cache built on them."""
