"""Text-to-image models, one file a family."""
