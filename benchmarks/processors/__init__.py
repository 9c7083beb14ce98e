"""What does ``vision_tokens`` do with each kind of processor? Real processors, each with a thin random model."""
