"""Trains in forked processes that are killed at chosen moments, and runs the same call again until it is done.

    python deaths.py JOBS.json      a list of {"config", "folder", "mode", "seed"}; prints a list of answers

A moment is the n-th of these calls: a training step, the writing of a weights file (which is left half written), and
everything that makes a file durable or moves it (fsync, rename, replace, removal of a tree). The mode "count" answers how
many there are in an undisturbed run; "kill" kills with SIGKILL again and again, each time after a number of moments drawn
from the seed, until the run ends by itself, and answers how often; "interrupt" sends SIGINT once, during step `seed`.
The parent has trained each kind of model once, in a folder that nobody sees again, so that children need not import and load
kernels, which takes several times as long as their training; on one thread, so that forking it is safe.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading

import torch

import orrery.models.storage
import orrery.train.checkpoint
from orrery.train import TrainConfig, train
from orrery.train.engine import Engine

MOMENTS = (
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (shutil, "rmtree"),
    (Engine, "step"),
    (orrery.train.checkpoint, "save_file"),
    (orrery.models.storage, "save_file"),
)


class Clock:
    """Counts moments and kills this process at the chosen one."""

    def __init__(self, fatal: int | None) -> None:
        self.count, self.fatal = 0, fatal

    def watch(self, place, name) -> None:
        function = getattr(place, name)

        def watched(*arguments, **options):
            self.count += 1
            if self.count == self.fatal:
                if name == "save_file":
                    function(*arguments, **options)
                    os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        setattr(place, name, watched)


def attempt(config: TrainConfig, folder: str, fatal: int | None, report: int) -> bool:
    """One process; whether it lived to the end. The number of moments goes to the file descriptor `report`."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        clock = Clock(fatal)
        for place, name in MOMENTS:
            clock.watch(place, name)
        train(config, folder, quiet=True)
        os.write(report, str(clock.count).encode())
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"the training process ended with {code}")
    return code == 0


def interrupted(config: TrainConfig, folder: str, moment: int) -> int:
    """One process that is sent SIGINT during step `moment` and must end by itself; its exit status."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        step = Engine.step

        def interrupting(self, number, batch):
            if number == moment:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, number, batch)

        Engine.step = interrupting
        result = train(config, folder, quiet=True)
        os._exit(0 if (result["status"], result["steps"]) == ("interrupted", moment + 1) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def perform(config: TrainConfig, folder: str, mode: str, seed: int) -> int:
    """The answer to one job."""
    if mode == "interrupt":
        return interrupted(config, folder, seed)
    reading, writing = os.pipe()
    if mode == "count":
        attempt(config, folder, None, writing)
        return int(os.read(reading, 100))
    draw, deaths = random.Random(seed), 0
    while not attempt(config, folder, draw.randint(1, 60), writing):
        deaths += 1
    return deaths


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    configs = [TrainConfig.from_dict(job["config"]) for job in jobs]
    torch.set_num_threads(1)
    for config in {config.model.name: config for config in configs}.values():
        with tempfile.TemporaryDirectory() as folder:
            train(config, folder, quiet=True)
    assert threading.active_count() == 1
    answers = [perform(config, j["folder"], j["mode"], j["seed"]) for config, j in zip(configs, jobs, strict=True)]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
