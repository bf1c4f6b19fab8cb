"""One run from its settings to its numbers, and what is done with finished ones."""
