"""How often are two settings put in the wrong order, and what does it cost to be right? Measured noise, replayed."""
