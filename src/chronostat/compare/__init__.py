"""Which is faster, and how sure: judging, repeats, intervals."""
