"""Evaluation: bits per byte, tasks, and the statistics of comparisons."""
