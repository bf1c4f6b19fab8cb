"""The values and settings of runs, on disk and compared."""
