"""Optimizers and learning-rate schedules, one file per family, each by its registered name."""
