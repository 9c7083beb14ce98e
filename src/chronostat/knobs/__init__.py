"""What can change in a model, each change a context manager; the action space of all settings."""
