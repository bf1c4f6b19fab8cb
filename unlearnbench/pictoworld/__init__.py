"""The embedded model, the world it paints, and the recipe that made both."""
