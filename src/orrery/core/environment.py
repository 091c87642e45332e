"""What a result was made with: versions, machine, threads, source revision. Recorded in every run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("orrery-lm", "torch", "numpy", "numba", "safetensors", "tokenizers", "transformers")


def environment() -> dict[str, Any]:
    """A JSON-able record of the software and the machine. Imports torch only if the caller already has."""
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := version(name))},
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "source": source_revision(),
        "variables": {k: v for k, v in os.environ.items() if k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ORRERY_CACHE")},
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        record["threads"] = torch.get_num_threads()
        record["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        record["deterministic"] = torch.are_deterministic_algorithms_enabled()
    return record


def version(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor as its maker names it, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text(errors="replace").splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
        if name := fields.get("model name"):
            detail = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields and "model" in fields else ""
            return name + detail
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Physical memory in bytes, or None where it cannot be read."""
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().total)


def source_revision() -> dict[str, Any] | None:
    """Commit and dirty flag when orrery runs from a git checkout; None for an installed wheel."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=folder, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
