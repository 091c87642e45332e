"""Sweeps of the learning rate, by the rule of :mod:`orrery.compare.rates`, with the runs of the comparison itself.

    tune("mamba2", size="nano", budget="1Mtok")                 -> Sweep
    tune(..., record=True)                                        puts it into the committed table
    tune_task("mamba2", capability.SETTINGS[0])                   the same for a capability task

The seed of a sweep (0) is none of a comparison's, so the choice is not made on the runs that are judged; the validation
sample is the same, which favours every architecture alike.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from orrery.compare import capability, machine, protocol, rates
from orrery.compare.candidates import Candidate, candidates, describe
from orrery.compare.pool import Pool, Task
from orrery.compare.protocol import Settings
from orrery.compare.rates import Sweep
from orrery.core.environment import environment
from orrery.data import Dataset, prepare
from orrery.runs import Run
from orrery.train.budget import parse_budget

SEED = 0


def tune(
    architecture: Any,
    size: str = "nano",
    budget: str = Settings.budget,
    corpus: str = "stdlib",
    *,
    start: float = rates.DEFAULT,
    root: str | Path = "runs",
    record: bool = False,
    table: Path = rates.FILE,
    say: Callable[[str], None] = print,
    overrides: dict[str, Any] | None = None,
) -> Sweep:
    """Sweep one architecture's learning rate.

    Args:
        architecture: as in `compare`.
        budget: of each run, tokens or FLOPs.
        start: centre of the first three rates.
        record: put the result into `table` with its protocol, date and machine.

    Raises:
        OrreryError: for unknown names and impossible settings, or when nothing finished and it should be recorded.
    """
    settings = Settings(corpus=corpus, size=size, budget=budget, seeds=(SEED,), overrides=overrides or {})
    (candidate,) = candidates([architecture])
    data = prepare(corpus, settings.tokenizer, quiet=True)
    row = describe(candidate, size, data.tokenizer.vocab_size, settings.length, settings.overrides)

    def steps(label: str) -> int:
        return protocol.steps_of(settings, row, parse_budget(budget))

    found = sweep(candidate, settings, data, Path(root), Pool, say, steps, start)
    if record:
        about = {
            "corpus": corpus,
            "corpus_hash": data.hash,
            "tokenizer": settings.tokenizer,
            "budget": budget,
            "batch": settings.batch,
            "length": settings.length,
            "seed": SEED,
            "rule": f"factor {rates.FACTOR:g} grid around the start, extended until the best is inside",
            "schedule": "cosine to a tenth, warm-up 5 %",
            "machine": environment()["cpu"],
        }
        rates.record(found, about, table)
    return found


def tune_task(
    architecture: str,
    setting: capability.Setting,
    *,
    start: float = capability.RATE,
    root: str | Path = "runs",
    record: bool = False,
    table: Path = rates.FILE,
    say: Callable[[str], None] = print,
) -> Sweep:
    """Sweep one architecture's learning rate on a capability task; a rate is judged by its mean error over the curve,
    so that solving a task early counts."""
    tried: dict[float, float | None] = {}
    count = 1 if machine.on_gpu() else machine.cores()
    while todo := rates.next_rates(tried, start):
        tasks = []
        for rate in todo:
            folder = Path(root) / capability.folder(architecture, setting, rate, SEED)
            job = {"kind": "capability", "name": architecture, "setting": setting.to_dict(), "rate": rate, "seed": SEED}
            tasks.append(Task({**job, "out": str(folder), "command": ["orrery", "tune", architecture]}))
        messages = Pool(min(count, len(tasks)), max(1, machine.cores() // count)).run(tasks, lambda number, event: None)
        for rate, message in zip(todo, messages, strict=True):
            done = message["type"] == "done"
            tried[rate] = capability.mean_error(message["result"], setting) if done else None
            what = f"mean error {tried[rate]:.3f}" if done else f"{message['status']}: {message['error']}"
            say(f"{architecture} on {setting.name} at {rate:g}: {what}")
    found = Sweep(architecture, setting.name, tried, capability.WIDTH, datetime.now(timezone.utc).date().isoformat())
    if record:
        about = {**setting.to_dict(), "seed": SEED, "judged_by": "mean error over the curve", "machine": environment()["cpu"]}
        rates.record(found, about, table)
    return found


def sweep(
    candidate: Candidate,
    settings: Settings,
    data: Dataset,
    root: Path,
    pool: Callable[..., Pool],
    say: Callable[[str], None],
    steps_of: Callable[[str], int],
    start: float = rates.DEFAULT,
) -> Sweep:
    """Run the sweep of one architecture; finished runs are found again, unfinished ones go on."""
    row = describe(candidate, settings.size, data.tokenizer.vocab_size, settings.length, settings.overrides)
    steps, tried = steps_of(candidate.label), dict[float, float | None]()
    count = 1 if machine.on_gpu() else machine.cores()
    while todo := rates.next_rates(tried, start):
        tasks = []
        for rate in todo:
            config = protocol.train_config(settings, candidate, rate, steps, SEED, max(1, machine.cores() // count))
            folder = root / protocol.run_folder(config, data.hash, row.config, SEED)
            if (folder / "run.json").exists():
                config = config.replace(**{"system.threads": Run.open(folder).config["system"]["threads"]})
            job = {"kind": "text", "config": config.to_dict(), "out": str(folder), "init": SEED}
            model = {"name": candidate.name, "size": settings.size, "vocab_size": data.tokenizer.vocab_size}
            files = {"files": [candidate.file] if candidate.file else [], "settings": settings.overrides}
            tasks.append(Task({**job, **model, **files, "command": ["orrery", "tune", candidate.spec]}, candidate.module))
        messages = pool(min(count, len(tasks)), max(1, machine.cores() // count)).run(tasks, lambda number, event: None)
        for rate, message in zip(todo, messages, strict=True):
            value = message["result"].get("bits_per_byte") if message["type"] == "done" else None
            tried[rate] = value
            what = f"{value:.4f} bits per byte" if value is not None else f"{message.get('status')}: {message.get('error')}"
            say(f"{candidate.label} at {rate:g}: {what}")
    width = row.config.get("width")
    return Sweep(candidate.label, settings.size or "own", tried, width, datetime.now(timezone.utc).date().isoformat())
