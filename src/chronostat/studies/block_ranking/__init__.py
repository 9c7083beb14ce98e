"""Decoder blocks ordered by what is lost without them: chronostat rank-blocks."""
