"""Worker processes: outcomes of every kind, reuse, interruption, and the run folders they leave."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from orrery.compare import pool, worker
from orrery.compare.candidates import candidates
from orrery.compare.pool import Pool, Task
from orrery.runs import Run
from orrery.train import CheckpointSpec, DataSpec, ModelSpec, TrainConfig, ValidationSpec

SETTING = {"task": "mqar(pairs=1, length=4, vocab=8)", "title": "t", "question": "q", "steps": 4, "batch": 4, "every": 2}


class Tiny(nn.Module):
    """The smallest causal model: it looks at one token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(257, 4), nn.Linear(4, 257)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(tokens))


class Broken(Tiny):
    """Runs out of memory once it trains."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[0] > 1:
            raise MemoryError("no room")
        return super().forward(tokens)


def capability(folder: Path, **changes: object) -> Task:
    job = {"kind": "capability", "name": "gpt2", "setting": SETTING, "rate": 1e-3, "seed": 1, "out": str(folder)}
    return Task({**job, "command": ["test"], **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        (folder / f"{number}.txt").write_text("".join(f"{number} to the {i} is {number**i % 97}\n" for i in range(40)))
    return str(folder)


def text(folder: Path, corpus: str, steps: int = 4, init: int = 1, name: str = "gpt2") -> Task:
    config = TrainConfig(
        model=ModelSpec(name=name, size=None, width=16, depth=1),
        data=DataSpec(corpus=corpus, length=16, batch=2),
        validation=ValidationSpec(every=2, bytes=2000),
        checkpoint=CheckpointSpec(every=2),
        budget=f"{steps}steps",
        seed=1,
    )
    job = {"kind": "text", "config": config.to_dict(), "out": str(folder), "init": init, "vocab_size": 257}
    model = {"name": name, "size": None, "settings": {"width": 16, "depth": 1}}
    return Task({**job, **model, "command": ["test"]})


def test_jobs_of_all_kinds_and_outcomes(tmp_path, corpus):
    tasks = [
        text(tmp_path / "a", corpus),
        capability(tmp_path / "b"),
        text(tmp_path / "c", corpus, name="no-such-model"),
        capability(tmp_path / "d"),
    ]
    events: list[tuple[int, str]] = []
    messages = Pool(2, 1).run(tasks, lambda number, event: events.append((number, event["event"])))
    assert [message["type"] for message in messages] == ["done", "done", "error", "done"]
    assert messages[2]["status"] == "failed" and "no-such-model" in messages[2]["error"]
    result = messages[0]["result"]
    assert result["status"] == "done" and result["steps"] == 4 and len(result["validation"]["per_document"]) > 0
    assert Run.open(tmp_path / "a").result()["bits_per_byte"] == result["bits_per_byte"]
    assert [e for n, e in events if n == 0 and e in ("validation", "finished")] == ["validation"] * 2 + ["finished"]
    assert events.count((1, "test")) == 2 and Run.open(tmp_path / "b").status == "done"
    assert messages[1]["result"]["accuracy"] == messages[3]["result"]["accuracy"]  # equal seeds, other folders
    again = Pool(1, 1).run(tasks[:2], lambda number, event: None)
    assert [message["result"] for message in again] == [message["result"] for message in messages[:2]]


def test_other_initial_weights_under_the_same_tokens(tmp_path, corpus):
    def none(number: int, event: dict) -> None:
        return

    class InProcess(Pool):
        def _serve(self, tasks, waiting, tell, end):
            for number in waiting:
                end(number, worker.attempt(tasks[number].job, lambda event: None))

    tasks = [text(tmp_path / name, corpus, init=init) for name, init in (("a", 1), ("b", 1), ("c", 2))]
    messages = InProcess().run(tasks, none)
    assert all(message["type"] == "done" for message in messages), messages
    values = [message["result"]["bits_per_byte"] for message in messages]
    assert values[0] == values[1] != values[2]


def test_a_killed_process_is_an_outcome_and_the_rest_goes_on(tmp_path, corpus):
    started: list[int] = []

    def tell(number: int, event: dict) -> None:
        if event["event"] == "step" and number == 0 and not started:
            started.append(number)
            holder = Run.open(tmp_path / "a").record["process"]
            os.kill(holder, signal.SIGKILL)

    messages = Pool(1, 1).run([text(tmp_path / "a", corpus, steps=100_000), capability(tmp_path / "b")], tell)
    assert messages[0]["status"] == "oom" and "signal 9" in messages[0]["error"] and messages[1]["type"] == "done"
    run = Run.open(tmp_path / "a")
    assert run.status == "oom" and "signal 9" in run.result()["error"]


def test_interruption_saves_and_the_next_call_resumes_exactly(tmp_path, corpus):
    steps, interrupted = 60, threading.Event()

    def interrupt(number: int, event: dict) -> None:
        if event["event"] == "step" and event["step"] >= 5 and not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pool(1, 1).run([text(tmp_path / "a", corpus, steps)], interrupt)
    run = Run.open(tmp_path / "a")
    assert run.status == "interrupted" and run.result()["steps"] >= 5 and (tmp_path / "a" / "checkpoint").is_dir()
    messages = Pool(1, 1).run(
        [text(tmp_path / "a", corpus, steps), text(tmp_path / "b", corpus, steps)], lambda number, event: None
    )
    resumed, whole = (message["result"] for message in messages)
    assert resumed["bits_per_byte"] == whole["bits_per_byte"] and resumed["validation"] == whole["validation"]
    assert Run.open(tmp_path / "a").events("resume")


def test_errors_become_sentences():
    assert worker.attempt({"kind": "text"}, lambda event: None)["status"] == "failed"
    message = worker.attempt({"kind": "costs", "files": ["/nowhere/x.py"]}, lambda event: None)
    assert message["error"].startswith("no file")


def test_modules_run_in_this_process_and_their_failure_is_an_outcome(tmp_path, corpus):
    good, bad = candidates([Tiny, Broken])
    one, two = text(tmp_path / "a", corpus), text(tmp_path / "b", corpus)
    one.build, two.build = good.module, bad.module
    messages = Pool(1, 1).run([one, two], lambda number, event: None)
    assert messages[0]["type"] == "done" and messages[1] == {
        "type": "error",
        "status": "oom",
        "error": "MemoryError: no room",
    }
    assert Run.open(tmp_path / "b").status == "oom"


def test_a_worker_that_cannot_start_says_its_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    begin = time.perf_counter()
    (message,) = Pool(1, 1).run([capability(tmp_path / "a")], lambda number, event: None)
    assert message["status"] == "failed" and "ended with code 1" in message["error"] and time.perf_counter() - begin < 5
