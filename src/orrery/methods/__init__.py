"""Procedures that act on a model: what it can do is changed after, or beside, its training."""
