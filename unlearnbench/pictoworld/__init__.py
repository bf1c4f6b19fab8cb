"""Pictoworld: scenes, captions, the classifier and the untrained networks of the embedded model."""
