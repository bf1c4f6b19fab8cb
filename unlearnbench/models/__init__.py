"""Text-to-image models, one file per family."""
