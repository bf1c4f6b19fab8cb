"""A run's numbers and settings on disk."""
