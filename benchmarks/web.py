"""The pages under load: 200 readers with one second of think time, over a store of 100,000 papers.

    python benchmarks/web.py --folder DIR [--papers 100000] [--readers 200] [--seconds 30] [--write]

`orrery serve` runs as a process of its own over the store in DIR (made by `benchmarks/papers.py` when it is empty). Each
reader keeps one connection and, with exponential think time of one second on average, opens a page: the day's papers (a
quarter), a paper (a third; a tenth of those one of the ten best), a search (a fifth; queries of `benchmarks/papers.py`),
trending, a topic, a day, the style sheet. Times are from the first byte of the request to the last of the answer, by this
process, on the same machine. The first five seconds fill caches and are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import re
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlencode

import psutil
from papers import fill, queries, synthetic, table, write_section

from orrery.catalogue import search
from orrery.catalogue.store import Store
from orrery.core.environment import cpu_name

WARM = 5.0  # seconds
KINDS = (("today", 0.25), ("paper", 0.33), ("search", 0.2), ("trending", 0.07), ("topic", 0.07), ("day", 0.05), ("style", 0.03))
TOPICS = ("recurrence", "attention", "embeddings", "retrieval", "compression", "data", "graphs", "vision")


class Reader:
    """One reader on one connection."""

    def __init__(self, number: int, port: int, paths: dict[str, list[str]], until: float, found: list[tuple[float, str, float, int]]) -> None:
        self.rng = random.Random(number)
        self.port, self.paths, self.until, self.found = port, paths, until, found

    async def read(self) -> None:
        """Open pages until the time is over."""
        await asyncio.sleep(self.rng.random())
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        names, weights = zip(*KINDS, strict=True)
        while time.perf_counter() < self.until:
            kind = self.rng.choices(names, weights)[0]
            path = self.rng.choice(self.paths[kind])
            began = time.perf_counter()
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept: text/html\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
            await reader.readexactly(size)
            status = int(head.split(b" ", 2)[1])
            self.found.append((began, kind if status == 200 else f"status {status}", 1e3 * (time.perf_counter() - began), size))
            await asyncio.sleep(min(8.0, self.rng.expovariate(1.0)))
        writer.close()


async def load(port: int, paths: dict[str, list[str]], readers: int, seconds: float) -> list[tuple[float, str, float, int]]:
    """All readers at once; (moment, kind, milliseconds, bytes) of every answer after the warm-up."""
    begin = time.perf_counter()
    found: list[tuple[float, str, float, int]] = []
    await asyncio.gather(*(Reader(n, port, paths, begin + WARM + seconds, found).read() for n in range(readers)))
    return [each for each in found if each[0] > begin + WARM]


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def addresses(store: Store, papers: int) -> dict[str, list[str]]:
    """What readers open, by kind."""
    rng = random.Random(0)
    ask = store.connection().execute
    best = [row[0] for row in ask("SELECT slug FROM papers ORDER BY upvotes DESC LIMIT 10")]
    slugs = [row[0] for row in ask("SELECT slug FROM papers ORDER BY id")]
    some = rng.sample(slugs, min(900, len(slugs)))
    days = [row[0] for row in ask("SELECT DISTINCT date FROM papers WHERE date IS NOT NULL ORDER BY date DESC LIMIT 400")]
    asked = queries(list(synthetic(min(papers, 2000))), count=300)
    return {
        "today": ["/"],
        "paper": [f"/paper/{slug}" for slug in some + best * 10],
        "search": [f"/search?{urlencode({'q': text, **options})}" for text, options in asked],
        "trending": ["/trending", "/trending?page=2"],
        "topic": [f"/topic/{slug}" for slug in TOPICS],
        "day": [f"/day/{day}" for day in days],
        "style": ["/static/style.css"],
    }


def serve(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """`orrery serve` on a free port."""
    command = [sys.executable, "-m", "orrery", "serve", "--port", "0", "--no-open", "--store", str(folder)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    line = running.stdout.readline()
    found = re.search(r":(\d+)/", line)
    assert found, line
    return running, int(found[1])


def main() -> None:
    """Measure, print, and with `--write` keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="the store; filled when it is empty")
    parser.add_argument("--papers", type=int, default=100_000)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--fill", action="store_true", help="only make the store")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/PAPERS.md")
    options = parser.parse_args()
    with Store.open(options.folder) as store:
        if store.count() < options.papers:
            fill(store, list(synthetic(options.papers)))
            search.prepare(store)
        if options.fill:
            return
        paths, count = addresses(store, options.papers), store.count()
    running, port = serve(options.folder)
    try:
        process = psutil.Process(running.pid)
        before = process.cpu_times()
        found = asyncio.run(load(port, paths, options.readers, options.seconds))
        after, memory = process.cpu_times(), process.memory_info().rss / 1e6
    finally:
        running.terminate()
        running.wait(10)
    times = [each[2] for each in found]
    worked = after.user + after.system - before.user - before.system
    name = f"{options.readers} readers, think time 1 s"
    shown = [f"{quantile(times, part):.0f}" for part in (0.5, 0.95, 0.99, 1.0)]
    refused = sum(each[1].startswith("status") for each in found)
    rows = [
        (f"{name}: p50 / p95 / p99 / worst", " / ".join(shown) + " ms", "p99 < 300 ms"),
        ("answers", f"{len(found):,} ({len(found) / options.seconds:.0f} a second), {refused} not 200", ""),
    ]
    for kind, _ in KINDS:
        own = [each[2] for each in found if each[1] == kind]
        if own:
            sizes = statistics.median(each[3] for each in found if each[1] == kind) / 1e3
            rows.append((f"{kind}: p50 / p99", f"{quantile(own, 0.5):.0f} / {quantile(own, 0.99):.0f} ms, {sizes:.0f} kB", ""))
    share = worked / (options.seconds + WARM)
    rows.append(("the server", f"{share:.2f} cores, {memory:.0f} MB", ""))
    day = datetime.now(timezone.utc).date().isoformat()
    text = f"{count:,} papers; server and readers on one machine: {cpu_name()}, {os.cpu_count()} cores; {day}.\n\n{table(rows)}"
    print(text)
    if options.write:
        write_section("Pages under load", text)


if __name__ == "__main__":
    main()
