"""Several runs at once: their progress, their launchers, their search spaces."""
