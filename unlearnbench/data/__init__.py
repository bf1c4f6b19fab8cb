"""Concepts, prompts and images."""
