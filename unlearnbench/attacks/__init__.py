"""Attacks: prompts that restore an unlearned concept."""
