"""One self-contained page and one picture of a run."""
