"""A run from beginning to end: what it works on, its session, training, and the store."""
