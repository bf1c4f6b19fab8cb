"""The training of the embedded model, and the measurement of its quality."""
