"""Shards sorted at once: by a pool of processes on this machine, or by the machines of a Ray cluster.

    build_over("web.jsonl", "web.idx", memory="16G", processes=4)
    build_over("web.jsonl", "web.idx", shards=64, ray="ray://head:10001")      # pip install 'orrery-lm[cluster]'

Encoding and sealing stay with this process, which also holds the builder's lock; what is sorted elsewhere is one shard at a
time per worker, so the budget is divided among them. Processes of this machine share the folder. Ray's workers need not:
they are sent tokens and send back the finished file. Shards that were finished are kept if the build is killed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orrery.core.config import config_hash
from orrery.core.errors import ConfigError, StorageError
from orrery.core.files import publish_directory, write_json
from orrery.core.progress import progress
from orrery.ngram import builder
from orrery.ngram import memory as process
from orrery.ngram.index import FORMAT, Index, open_index
from orrery.ngram.sampled import SampledLayout, check_sample
from orrery.ngram.shard import Layout, token_type
from orrery.ngram.sources import Source, open_source

_RAY = 96 << 20  # bytes that a worker of Ray occupies more than another process


class Job(NamedTuple):
    """A shard to be made: its tokens begin at `start` in the stream of the folder `work`."""

    work: str
    number: int
    start: int
    documents: int
    layout: Layout | SampledLayout
    room: int


def build_over(
    source: Any,
    folder: str | Path,
    *,
    memory: str | int = "4G",
    tokenizer: Any = None,
    shards: int | None = None,
    split: str = "all",
    vocab_size: int | None = None,
    processes: int = 1,
    ray: str | None = None,
    sample: int | None = None,
    quiet: bool = False,
) -> Index:
    """:func:`orrery.ngram.build` with several shards at once.

    Args:
        memory: for all processes of this machine together; with Ray, for each worker.
        shards: at least one for each process.
        processes: that sort. With Ray: tasks that are in flight; 1 stands for as many as the cluster has processors.
        ray: the cluster's address, or `local` for one that is started here.
        sample: as :func:`orrery.ngram.build`.

    Raises:
        ConfigError: ray is not installed; fewer than one process; no such sample.
        StorageError, DataError, BudgetError: as :func:`orrery.ngram.build`; a worker was killed.
    """
    if processes < 1:
        raise ConfigError(f"processes must be 1 or more, not {processes}")
    if processes == 1 and ray is None:
        return builder.build_index(
            source, folder, memory=memory, tokenizer=tokenizer, shards=shards, split=split, vocab_size=vocab_size,
            sample=sample, quiet=quiet,
        )  # fmt: skip
    if shards is not None and shards < 1:
        raise ConfigError(f"shards must be 1 or more, not {shards}")
    cluster = None if ray is None else _Cluster(ray, processes)
    try:
        flight = processes if cluster is None else cluster.workers
        budget = builder.parse_size(memory)
        target = Path(folder).expanduser()
        opened = open_source(source, tokenizer, split, vocab_size, quiet=quiet)
        check_sample(sample, opened.vocab_size)
        parts = max(shards or 0, flight)
        with builder.only_builder(target):
            work = target.with_name(f".{target.name}.build")
            key = config_hash([FORMAT, opened.key, opened.width, opened.vocab_size, opened.doc_id, parts, *builder.told(sample)])
            stage = builder._resume(work, key)
            if stage is None:
                stage = builder._spool(opened, work, key, quiet)
            each = process.started(opened.encodes)
            if cluster is None:
                room = builder._room(budget, opened, workers=processes, each=each, beside=max(process.LEAST, process.occupied()))
            else:
                room = builder._room(budget, opened, each=each + _RAY)
            jobs = _jobs(opened, work, stage, room, parts, cluster is not None, sample)
            made = _on_processes(jobs, processes) if cluster is None else cluster.run(jobs)
            _gather(jobs, made, work, stage, quiet)
            builder._describe(opened, work, stage, sample)
            publish_directory(work, target)
    finally:
        if cluster is not None:
            cluster.close()
    return open_index(target)


def _jobs(
    source: Source, work: Path, stage: dict[str, Any], room: int, parts: int, sent: bool, sample: int | None
) -> list[Job]:
    """The shards that are not done yet; those that are sent to other machines whole are made to fit into their memory."""
    capacity = builder._capacity(room, source, sample)
    if sent:  # the tokens come as one array, and the file leaves as two: in the worker, and where Ray keeps what is sent
        capacity = min(builder._inside(room, source.width, source.vocab_size), int(room / (3 * source.width + 9)))
    edges = builder.planned(work, stage, capacity, parts)
    builder.check_space(work, stage, source, edges, room, sample)
    for number in range(len(stage["shards"])):
        shutil.rmtree(builder.pieces_folder(work, number), ignore_errors=True)
    jobs = []
    for number in range(len(stage["shards"]), len(edges) - 1):
        first, last = edges[number], edges[number + 1]
        layout = builder.layout_of(source, last.token - first.token, sample)
        jobs.append(Job(str(work), number, first.token, last.document - first.document, layout, room))
    return jobs


def _gather(jobs: list[Job], made: Iterator[tuple[int, Layout | SampledLayout]], work: Path, stage: dict[str, Any], quiet: bool) -> None:
    """Note shards as they are finished; those before the first that is missing are kept by a build that is killed."""
    known, finished = {job.number: job for job in jobs}, {}
    with progress(stage["tokens"], "sorting suffixes", "tok", quiet=quiet) as bar:
        bar.start_at(sum(entry["tokens"] for entry in stage["shards"]))
        for number, layout in made:
            finished[number] = {**layout.entry(), "documents": known[number].documents}
            bar.update(layout.n)
            while len(stage["shards"]) in finished:
                stage["shards"].append(finished.pop(len(stage["shards"])))
                write_json(work / builder._STAGE, stage)
                shutil.rmtree(builder.pieces_folder(work, len(stage["shards"]) - 1), ignore_errors=True)


def sort_shard(job: Job) -> Layout | SampledLayout:
    """Make a shard in a folder that is shared."""
    with progress(None, "", quiet=True) as bar:
        return builder.make_shard(Path(job.work), job.number, False, job.start, job.documents, job.layout, bar, job.room)


def sort_tokens(
    tokens: np.ndarray, documents: int, layout: Layout | SampledLayout, room: int
) -> tuple[Layout | SampledLayout, np.ndarray]:
    """Make a shard of tokens (n + 1,) anywhere: its layout, and the bytes of its file."""
    with tempfile.TemporaryDirectory(prefix="orrery-shard-") as name, progress(None, "", quiet=True) as bar:
        tokens.tofile(Path(name) / "stream.bin")
        done = builder.make_shard(Path(name), 0, True, 0, documents, layout, bar, room)
        return done, np.fromfile(Path(name) / "shard-00000.bin", dtype=np.uint8)


def _on_processes(jobs: list[Job], processes: int) -> Iterator[tuple[int, Layout | SampledLayout]]:
    """Shards as they are finished."""
    if not jobs:
        return
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn"))
    try:
        pending = {pool.submit(sort_shard, job): job.number for job in jobs}
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool as error:
        raise StorageError(
            "a process that sorted a shard was killed (too little memory?); run the build again, and it goes on where it stood"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Cluster:
    """Ray, while a build needs it."""

    def __init__(self, address: str, processes: int) -> None:
        from importlib.util import find_spec

        if find_spec("ray") is None:
            raise ConfigError("a Ray cluster needs ray: pip install 'orrery-lm[cluster]'")
        import ray

        self._ray, self._ours = ray, not ray.is_initialized()
        if self._ours:
            try:
                if address == "local":
                    ray.init(num_cpus=processes, include_dashboard=False, log_to_driver=False, logging_level="error")
                else:
                    ray.init(address=address, log_to_driver=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"no Ray cluster at '{address}': {str(error)[:200]}") from error
        self.workers = processes if processes > 1 else max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self, jobs: list[Job]) -> Iterator[tuple[int, Layout | SampledLayout]]:
        """Shards as they are finished; as many in flight as there are workers, so that memory is bounded here too."""
        ray = self._ray
        task = ray.remote(num_cpus=1, max_retries=2)(sort_tokens)
        waiting = list(reversed(jobs))
        flying: dict[Any, Job] = {}
        while waiting or flying:
            while waiting and len(flying) < self.workers:
                job = waiting.pop()
                kind = token_type(job.layout.width)
                tokens = np.fromfile(
                    Path(job.work) / "stream.bin", dtype=kind, count=job.layout.n + 1, offset=job.start * job.layout.width
                )
                flying[task.remote(tokens, job.documents, job.layout, job.room)] = job
            ready, _ = ray.wait(list(flying), num_returns=1)
            job = flying.pop(ready[0])
            try:
                layout, data = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                raise StorageError(f"a worker of the cluster failed at shard {job.number}: {str(error)[:300]}") from error
            path = Path(job.work) / f"shard-{job.number:05d}.bin"
            try:
                data.tofile(path)
            except OSError as error:
                raise StorageError(f"cannot write '{path}': {error.strerror or error}; free some space and run again") from error
            yield job.number, layout

    def close(self) -> None:
        """End what was started here."""
        if self._ours:
            self._ray.shutdown()
