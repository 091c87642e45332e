"""Worker processes that survive what they run: a job that fails, exhausts memory or is killed is an outcome.

A process serves several jobs, so that imports and compilation are paid once; `fresh=True` gives every job its own (costs,
whose memory would else be an earlier model's). Jobs that text cannot describe (wrapped modules) are done in this process
after the others: there memory exhaustion raised as an exception is an outcome too, but a kill is not survived.

Ctrl-C closes the workers' stdin: each saves a checkpoint and ends; a second Ctrl-C ends them at once.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orrery.compare.worker import Build, Job, attempt
from orrery.core.errors import StorageError
from orrery.runs import Run

Tell = Callable[[int, dict[str, Any]], None]
PATIENCE = 60.0  # seconds that interrupted workers get to save


@dataclass
class Task:
    """A job, and how to build its model where that is not text."""

    job: Job
    build: Build | None = field(default=None, compare=False)


class Pool:
    """`count` worker processes with `threads` threads each."""

    def __init__(self, count: int = 1, threads: int = 1, fresh: bool = False) -> None:
        self.count, self.threads, self.fresh = count, threads, fresh

    def run(self, tasks: Sequence[Task], tell: Tell) -> list[dict[str, Any]]:
        """Do all tasks; one message each, in order: {"type": "done", "result"} or {"type": "error", "status", "error"}.

        Args:
            tell: called in this thread as tell(number of the task, event) for what tasks report; a task's start is
                {"event": "begin"}, its end {"event": "finished", "message": ...}.

        Raises:
            KeyboardInterrupt: after everything has been saved.
        """
        messages: list[dict[str, Any]] = [{} for _ in tasks]

        def end(number: int, message: dict[str, Any]) -> None:
            messages[number] = message
            tell(number, {"event": "finished", "message": message})

        portable = [number for number, task in enumerate(tasks) if task.build is None]
        if portable:
            self._serve(tasks, portable, tell, end)
        for number, task in enumerate(tasks):
            if task.build is not None:
                tell(number, {"event": "begin"})
                message = attempt(task.job, lambda event, n=number: tell(n, event), task.build)  # type: ignore[misc]
                end(number, message)
                if message.get("status") == "interrupted":
                    raise KeyboardInterrupt
        return messages

    def _serve(
        self, tasks: Sequence[Task], waiting: list[int], tell: Tell, end: Callable[[int, dict[str, Any]], None]
    ) -> None:
        inbox: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        waiting = list(waiting)
        workers: dict[_Worker, int] = {}

        def give(worker: _Worker) -> None:
            number = waiting.pop(0)
            workers[worker] = number
            tell(number, {"event": "begin"})
            worker.send(tasks[number].job)

        try:
            for _ in range(min(self.count, len(waiting))):
                give(_Worker(self.threads, inbox))
            while workers:
                try:
                    worker, message = inbox.get(timeout=0.5)
                except queue.Empty:
                    continue  # wakes this thread, so that Ctrl-C is heard on Windows
                if worker not in workers:
                    continue
                number = workers[worker]
                if message is not None and message["type"] == "event":
                    tell(number, message)
                    continue
                del workers[worker]
                if message is None:
                    message = worker.death()
                    mark(tasks[number].job, message)
                end(number, message)
                reuse = worker.process.poll() is None and not self.fresh and waiting
                if not reuse:
                    worker.close()
                if waiting:
                    give(worker if reuse else _Worker(self.threads, inbox))
        except BaseException:
            _stop(workers, inbox, tasks, end)
            raise


def _stop(
    workers: dict[_Worker, int],
    inbox: queue.Queue[tuple[_Worker, dict[str, Any] | None]],
    tasks: Sequence[Task],
    end: Callable[[int, dict[str, Any]], None],
) -> None:
    """Let every worker save; kill those that do not, and on a second Ctrl-C."""
    try:
        for worker in workers:
            worker.hang_up()
        while workers:
            worker, message = inbox.get(timeout=PATIENCE)
            if worker in workers and (message is None or message["type"] != "event"):
                number = workers.pop(worker)
                found = message or {"type": "error", "status": "interrupted", "error": "interrupted"}
                if message is None:
                    mark(tasks[number].job, found)
                end(number, found)
                worker.close()
    except (queue.Empty, KeyboardInterrupt):
        for worker in workers:
            worker.process.kill()
            worker.close()


class _Worker:
    """One process and the thread that reads what it says."""

    def __init__(self, threads: int, inbox: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        source = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH", "")) if part)
        counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
        options: dict[str, Any] = {"start_new_session": True}  # the terminal's Ctrl-C reaches the parent alone
        if os.name == "nt":
            options = {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orrery.compare.worker", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": path, **counts},
                **options,
            )
        except OSError as error:
            raise StorageError(f"cannot start a worker process: {error.strerror or error}") from error
        self.reader = threading.Thread(target=self._read, args=(inbox,), name="orrery-worker", daemon=True)
        self.reader.start()

    def _read(self, inbox: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                inbox.put((self, json.loads(line)))
            except ValueError:
                continue  # a torn line: the process died while writing it
        inbox.put((self, None))

    def send(self, job: Job) -> None:
        """Hand over a job; a process that is dead already is noticed by its closed stdout."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except (BrokenPipeError, OSError):
            return

    def hang_up(self) -> None:
        """Close stdin: the worker saves and ends."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except (BrokenPipeError, OSError):
            return

    def close(self) -> None:
        """End the process and forget it."""
        self.hang_up()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()  # ends with the process, whose end closes the pipe
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()

    def death(self) -> dict[str, Any]:
        """What the end of the process says; SIGKILL is how Linux ends a process when memory runs out."""
        code = self.process.wait()
        if code < 0 and -code == getattr(signal, "SIGKILL", 9):
            return {
                "type": "error",
                "status": "oom",
                "error": "the process was killed (signal 9), as the system does when memory runs out",
            }
        self.errors.seek(0)
        lines = [line for line in self.errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return {"type": "error", "status": "failed", "error": f"the process {how}{': ' + lines[-1] if lines else ''}"}


def mark(job: Job, message: dict[str, Any]) -> None:
    """Write the outcome of a job whose process died into its run folder, where there is one."""
    out = job.get("out")
    if not out or not (Path(out) / "run.json").exists():
        return
    run = Run.open(out)
    if run.record["status"] != "running":
        return  # it had ended before its process did
    run.acquire()
    run.log("end", status=message["status"], error=message["error"])
    run.finish({"status": message["status"], "error": message["error"]}, message["status"])
