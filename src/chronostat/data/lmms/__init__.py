"""Tasks of lmms-eval on local files, exported once, so that nothing of the harness runs while latency is measured."""
