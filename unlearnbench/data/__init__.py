"""Concepts, prompts and images of a run."""
