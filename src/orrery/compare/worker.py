"""The work of a comparison, one job at a time, in a process of its own: `python -m orrery.compare.worker`.

The parent writes one JSON job per line to stdin and reads JSON messages from stdout:

    {"type": "event", "event": "validation", ...}   while it works
    {"type": "done", "result": {...}}               then the next job is read
    {"type": "error", "status": "failed" | "oom" | "interrupted", "error": "one sentence"}

When stdin closes (the parent stops, or is gone) the job in hand is interrupted as by Ctrl-C: training saves a checkpoint
and ends. So no signal has to be sent, on any system, and no orphan goes on computing.

Jobs are plain data. `files` are the user's own files whose names take part; nothing else in a job can name code.
"""

from __future__ import annotations

import _thread
import json
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from orrery.compare import capability, costs, instruments
from orrery.compare.result import to_plain
from orrery.core import registry
from orrery.core.errors import OrreryError
from orrery.models.build import create_model
from orrery.runs import Run
from orrery.runs.folder import finite, outcome
from orrery.train import TrainConfig, train

Job = dict[str, Any]
Tell = Callable[[dict[str, Any]], None]
Build = Callable[[int], nn.Module]  # seed -> a model with fresh weights, for what text cannot describe


def perform(job: Job, tell: Tell, build: Build | None = None) -> dict[str, Any]:
    """Do one job in this process and return its result.

    Args:
        job: {"kind": "text" | "capability" | "costs" | "speed", ...}, see the functions below.
        tell: receives events.
        build: makes the model in place of the job's name (a wrapped module).

    Raises:
        OrreryError and others: see :func:`outcome` for how they are recorded.
    """
    work = {"text": _text, "capability": _capability, "costs": _costs, "speed": _speed}[job["kind"]]
    return work(job, tell, build)


def _text(job: Job, tell: Tell, build: Build | None) -> dict[str, Any]:
    """Train on text: {"config": TrainConfig, "out": folder, "init": seed of the initial weights, "command": [...], and
    what :func:`_model` needs}."""
    config = TrainConfig.from_dict(job["config"])
    model = None
    if build is not None or job["init"] != config.seed:  # the baseline against itself: same tokens, other initial weights
        model = _model(job, build, job["init"])

    def observe(event: str, fields: dict[str, Any]) -> None:
        tell({"event": event, **fields})

    return train(config, job["out"], observe, model, quiet=True, command=job.get("command"))


def _capability(job: Job, tell: Tell, build: Build | None) -> dict[str, Any]:
    """Train on a task: {"name", "setting": Setting, "rate", "seed", "out", "command"}; a finished one is returned."""
    folder = Path(job["out"])
    setting = capability.Setting(**job["setting"])
    config = {key: job[key] for key in ("name", "setting", "rate", "seed")}
    if (known := capability.finished(folder)) is not None:
        return known
    if (folder / "run.json").exists():
        run = Run.open(folder)
        run.acquire()
    else:
        run = Run.create(folder, {"kind": "capability", **config}, f"{job['name']} {setting.name}", job["seed"], job.get("command"))

    def point(step: int, value: float) -> None:
        run.log("test", step=step, accuracy=value)
        tell({"event": "test", "step": step, "accuracy": value})

    with run:
        model = build(job["seed"]) if build is not None else capability.build(job["name"], setting, job["seed"])
        result = capability.train(model, setting, job["rate"], job["seed"], point)
        run.finish(result)
    return result


def _costs(job: Job, tell: Tell, build: Build | None) -> dict[str, Any]:
    """Measure: {"plan": CostPlan, and what :func:`_model` needs}."""
    plan = costs.CostPlan.from_dict(job["plan"])
    return dict(to_plain(costs.measure(lambda: _model(job, build, 0), plan)))


def _speed(job: Job, tell: Tell, build: Build | None) -> dict[str, Any]:
    """Speed of training steps with this process's threads: {"batch", "length", "seconds", and what `_model` needs}."""
    model = _model(job, build, 0)
    step = costs.train_step(model, costs.random_batch(job["vocab_size"], job["batch"], job["length"]))
    tell({"event": "ready"})
    timing = instruments.timed(step, job["seconds"], least=2, warm=2)
    return {"steps_per_second": 1.0 / timing.median, "steps": timing.count}


def _model(job: Job, build: Build | None, seed: int) -> nn.Module:
    """The model of a job: {"name", "size", "vocab_size", "settings"}, or what `build` makes."""
    if build is not None:
        return build(seed)
    return create_model(job["name"], job["size"], vocab_size=job["vocab_size"], seed=seed, **job.get("settings", {}))


def attempt(job: Job, tell: Tell, build: Build | None = None) -> dict[str, Any]:
    """:func:`perform`, with failure as a message: {"type": "done", "result"} or {"type": "error", "status", "error"}."""
    try:
        for file in job.get("files", ()):
            registry.add_file(file)
        result = perform(job, tell, build)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # whatever a model does, the other runs go on
        text = (str(error).splitlines() or [""])[0]
        known = isinstance(error, OrreryError)
        return {"type": "error", "status": outcome(error), "error": text if known else f"{type(error).__name__}: {text}"}
    if result.get("status") == "interrupted":
        return {"type": "error", "status": "interrupted", "error": f"interrupted at step {result.get('steps')}"}
    return {"type": "done", "result": finite(result)[0]}


def main() -> None:
    """Serve jobs from stdin until it closes."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    if threads:
        import torch

        torch.set_num_threads(threads)
    out = sys.stdout
    sys.stdout = sys.stderr  # what a model prints must not mix with messages
    jobs: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(line)
        jobs.put(None)
        if busy.is_set():
            _thread.interrupt_main()

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(finite(message)[0]) + "\n")
        out.flush()

    threading.Thread(target=read, name="orrery-jobs", daemon=True).start()
    while (line := jobs.get()) is not None:
        busy.set()
        message = attempt(json.loads(line), lambda event: tell({"type": "event", **event}))
        busy.clear()
        tell(message)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)

