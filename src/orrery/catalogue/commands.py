"""The one line that runs what a paper's name stands for."""

from __future__ import annotations

from orrery.core import registry


def run(name: str) -> str:
    """`orrery train mamba2 --out runs/mamba2` for what can be trained by its name, else the line that shows it."""
    kinds = {kind for entry in registry.entries() if entry.name == name for kind in entry.kinds}
    if kinds & {"architecture", "mixer"}:
        return f"orrery train {name} --out runs/{name}"
    return f"orrery show {name}"
