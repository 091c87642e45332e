"""One fine-tuning of a comparison over a task, in a process of its own: `python -m orrery.compare.task_worker JOB.json`.

A process of its own, so that its peak memory is its own and a model that breaks, or is killed for memory, is a recorded
outcome. Everything goes through the run's folder: what fine-tuning writes there, and `predictions.json`, from which every
figure can be had again item by item. `attempt.json` says how it ended.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from orrery.compare.instruments import peak_memory, timed
from orrery.core import registry
from orrery.core.errors import OrreryError
from orrery.core.files import read_json, write_json
from orrery.core.seeds import seed_everything
from orrery.data.records import read_table
from orrery.data.tokenizer_files import load_tokenizer
from orrery.methods.finetune import FinetuneConfig, finetune
from orrery.methods.fitted import load_fitted
from orrery.runs.folder import outcome

ATTEMPT, PREDICTIONS = "attempt.json", "predictions.json"
SIDES = ("train", "validation", "test")
PREDICTION_SECONDS = 1.0  # about so long predictions are repeated to time them

Job = dict[str, Any]


def perform(job: Job) -> dict[str, Any]:
    """Fine-tune, or go on, and predict the test table.

    Args:
        job: {"source", "tables": folder of the three, "out": folder, "config": FinetuneConfig, "size", "settings",
            "tokenizer": a folder or null, "files": files of yours that register names, "seconds": of timing; "sweep": true for
            a run that chooses a rate, which is never shown the test table}.

    Returns:
        {"status": "done" | "interrupted"}; all else is in the folder.

    Raises:
        OrreryError and others: see :func:`orrery.runs.folder.outcome` for how they are recorded.
    """
    for file in job.get("files", ()):
        registry.add_file(file)
    config = FinetuneConfig.from_dict(job["config"])
    sides = SIDES[:2] if job.get("sweep") else SIDES
    tables = {side: read_table(Path(job["tables"]) / f"{side}.jsonl") for side in sides}
    tokenizer = load_tokenizer(job["tokenizer"]) if job["tokenizer"] else None
    out, idle = Path(job["out"]), peak_memory()
    seed_everything(config.seed)  # a head on a given body is drawn from here
    result = finetune(
        job["source"], tables["train"], out, config, validation=tables["validation"], test=tables.get("test"),
        tokenizer=tokenizer, size=job["size"], settings=job["settings"], compare_baseline=False, quiet=True,
    )  # fmt: skip
    if result["status"] != "done" or job.get("sweep"):
        return {"status": result["status"]}
    fitted = load_fitted(out)
    examples = fitted.encode(tables["test"], truncate=config.truncate)
    given: list[dict[str, Any]] = []
    timing = timed(lambda: given.append(fitted.outputs(examples)), float(job["seconds"]), least=1, most=5, warm=1)
    record = {
        "examples": len(tables["test"]),
        "seconds": timing.median,
        "idle_bytes": idle,
        "given": {name: _plain(value) for name, value in given[0].items()},
    }
    write_json(out / PREDICTIONS, record)
    return {"status": "done"}


def attempt(job: Job) -> dict[str, Any]:
    """:func:`perform`, with failure as a record: {"status", "error"}, also written to `attempt.json`."""
    try:
        found = perform(job)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # whatever a model does, the other runs go on
        text = (str(error).splitlines() or [""])[0]
        known = isinstance(error, OrreryError)
        found = {"status": outcome(error), "error": text if known else f"{type(error).__name__}: {text}"}
    found = {"error": "", **found}
    write_json(Path(job["out"]) / ATTEMPT, found)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


if __name__ == "__main__":
    sys.exit(0 if attempt(read_json(Path(sys.argv[1])))["status"] == "done" else 1)
