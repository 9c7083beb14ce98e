"""Benchmarks: run by hand on a quiet machine; results are kept with their conditions and commit."""
