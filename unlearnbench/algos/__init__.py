"""Unlearning algorithms, one file each; `base` holds the loop they share."""
