"""Scores of an answer against references, each in [0, 1]; ``chronostat.data.quality`` knows them by name."""
