"""`orrery doctor`: what this machine offers, and what is missing."""

from __future__ import annotations

import typer

from orrery.cli import output


def doctor(as_json: bool = typer.Option(False, "--json", help="For machines.")) -> None:
    """Versions, machine, backends and caches, with a remark on whatever would surprise you later.

    Example:  orrery doctor
    """
    import importlib.util

    import torch

    from orrery.core.environment import environment
    from orrery.core.files import cache_dir

    facts = environment()
    facts["torch_threads"] = torch.get_num_threads()
    facts["compiled_loops"] = "numba" if importlib.util.find_spec("numba") else "none: pip install numba for faster recurrences"
    facts["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts["cache"] = str(cache_dir())
    facts["cache_bytes"] = sum(f.stat().st_size for f in cache_dir().rglob("*") if f.is_file()) if cache_dir().exists() else 0
    optional = {"transformers": "exchange with Hugging Face (pip install 'orrery-lm[hf]')"}
    facts["missing"] = {name: why for name, why in optional.items() if importlib.util.find_spec(name) is None}
    facts["remarks"] = _remarks(facts)
    if as_json:
        output.say_json(facts)
        return
    for key, value in facts.items():
        if key not in ("remarks", "missing"):
            print(f"{key:16} {value}")
    for name, why in facts["missing"].items():
        print(f"{'not installed':16} {name}: {why}")
    for line in facts["remarks"]:
        print(f"{'remark':16} {line}")


def _remarks(facts: dict[str, object]) -> list[str]:
    remarks = []
    threads, cores = facts["torch_threads"], facts["cores_allowed"]
    if isinstance(threads, int) and isinstance(cores, int) and threads > cores:
        remarks.append(f"torch uses {threads} threads on {cores} cores, which is slow; set OMP_NUM_THREADS={cores}")
    return remarks
