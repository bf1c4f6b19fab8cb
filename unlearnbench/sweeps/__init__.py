"""Sweeps: their progress, retries, settings and search spaces."""
