"""What is known of quality and latency from everything that a run has measured; numpy alone."""
