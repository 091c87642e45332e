"""Counting language models: what a table of n-grams achieves, beside which every neural model is measured."""
