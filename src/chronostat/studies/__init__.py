"""What a person asks of a model or a machine."""
