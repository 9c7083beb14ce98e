"""The model: loading it, and the only place that knows how a vision-language model is built."""
