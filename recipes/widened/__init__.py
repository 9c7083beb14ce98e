"""A model that answers as the bundled one does, at the cost of one with many times its weights."""
