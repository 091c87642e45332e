"""Frames that turn architectures into models: build, save, load, exchange, wrap."""
