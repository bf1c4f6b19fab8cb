"""Metrics, one file each, and the networks they look with."""
