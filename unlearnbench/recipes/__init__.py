"""How the embedded model was made and how good it is."""
