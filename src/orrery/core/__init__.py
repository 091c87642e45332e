"""Core: registry, configs, seeds, files, environment and progress. Imports neither torch nor any other room."""
