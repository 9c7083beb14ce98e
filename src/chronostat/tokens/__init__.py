"""Which image tokens go on: chosen after the projector, or taken out between two decoder blocks."""
