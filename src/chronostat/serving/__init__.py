"""An OpenAI-compatible endpoint that keeps a latency budget; one model, one request at a time."""
