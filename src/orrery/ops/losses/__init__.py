"""Losses over a vocabulary or between two models, without holding what is larger than their inputs."""
