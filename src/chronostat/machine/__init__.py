"""What else the machine does: its conditions, what disturbs, and what can be kept still."""
