"""Attacks: prompts that bring a forgotten concept back."""
