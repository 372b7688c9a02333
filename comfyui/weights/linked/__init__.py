"""Weights that a workflow names by link: fetched once, kept by content, leased to predictions."""
