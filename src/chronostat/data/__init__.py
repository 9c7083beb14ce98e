"""What we run on: samples, the bundled task, own data, and how good an answer is."""
