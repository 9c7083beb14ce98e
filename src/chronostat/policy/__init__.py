"""What is frozen after training: from an observation and a budget to a setting; numpy alone."""
