"""The HTTP service under load: requests a second and latencies, the client on the same machine.

    python benchmarks/ngram_serve.py stdlib                     # an index of `orrery ngram build`, or a folder
    python benchmarks/ngram_serve.py stdlib --connections 8 --seconds 5

The service is `orrery ngram serve` in a process of its own; this process is the client. Queries are n-grams of 1 to 8 tokens
drawn from the corpus; every answer is compared with the engine's. Two clients: one that keeps `--connections` open and
sends the next request on each when it has the answer (asyncio, written down here), and one as users write it
(`orrery.ngram.remote.Remote`, one connection, one request after the other). Latencies are seen by the client, from the
request's first byte to the answer's last. Rows go to `NGRAM.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROWS = HERE / "NGRAM.md"
TITLE = "## The service"


def queries(index: Any, number: int) -> list[list[int]]:
    """n-grams that stand in the corpus, or nearly: the last id of every other one is a random one."""
    rng = np.random.default_rng(7)
    found = []
    for k in range(number):
        length = int(rng.integers(1, 9))
        start = int(rng.integers(0, max(1, index.tokens - length)))
        ids = index.read(start, min(start + length, index.tokens)).tolist()
        if k % 2:
            ids[-1] = int(rng.integers(0, index.vocab_size))
        found.append(ids)
    return found


async def one_line(host: str, port: int, jobs: Any, times: list[float], answers: dict[int, Any]) -> None:
    """One connection: a request, its answer, the next request."""
    reader, writer = await asyncio.open_connection(host, port)
    for number, data in jobs:
        started = time.perf_counter()
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        times.append(time.perf_counter() - started)
        answers[number] = body
    writer.close()


def load(port: int, bodies: list[bytes], connections: int, seconds: float) -> tuple[list[float], float, dict[int, Any]]:
    """Send for so many seconds: latencies, seconds that it took, and the last answer to each query."""
    requests = [b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(b) + b for b in bodies]
    times: list[float] = []
    answers: dict[int, Any] = {}
    until = time.perf_counter() + seconds

    def jobs():  # type: ignore[no-untyped-def]
        k = 0
        while time.perf_counter() < until:
            yield k % len(requests), requests[k % len(requests)]
            k += 1

    shared = jobs()

    async def main() -> None:
        await asyncio.gather(*(one_line("127.0.0.1", port, shared, times, answers) for _ in range(connections)))

    started = time.perf_counter()
    asyncio.run(main())
    return times, time.perf_counter() - started, answers


def row(label: str, times: list[float], took: float) -> tuple[str, ...]:
    low, high = np.percentile(times, [50, 99]) * 1000
    return label, f"{len(times) / took:,.0f}", f"{low:.2f}", f"{high:.2f}", f"{max(times) * 1000:.1f}"


def write(lines: list[str]) -> None:
    """Put the section into the file, in place of an older one."""
    text = ROWS.read_text(encoding="utf-8") if ROWS.is_file() else "# n-grams, measured\n"
    before, found, after = text.partition(TITLE)
    later = after.partition("\n## ")
    rest = f"\n## {later[2]}" if found and later[1] else ""
    ROWS.write_text(before.rstrip() + "\n\n" + TITLE + "\n\n" + "\n".join(lines) + "\n" + rest, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index")
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--note", default="", help="A sentence about the machine's state, for the section.")
    arguments = parser.parse_args()
    from orrery.ngram.homes import locate, open_steady
    from orrery.ngram.remote import Remote

    folder = locate(arguments.index)
    index = open_steady(folder)
    asked = queries(index, 2000)
    want = [index.count(ids) for ids in asked]
    command = [sys.executable, "-m", "orrery", "ngram", "serve", f"bench={folder}", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    rows = []
    try:
        line = server.stdout.readline()  # type: ignore[union-attr]
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        kinds = {"count": asked, "prob": asked, "infgram_prob": asked}
        for kind in ("ntd", "infgram_ntd"):  # with what the public service looks at most at, and whole
            kinds.update({f"{kind} of 1,000": asked[:200], kind: asked[:200]})
        load(port, [_body("count", ids) for ids in asked[:50]], 1, 0.3)
        for kind, chosen in kinds.items():
            for connections in arguments.connections if kind == "count" else arguments.connections[-1:]:
                bodies = [_body(kind, ids) for ids in chosen]
                times, took, answers = load(port, bodies, connections, arguments.seconds)
                found = {k: json.loads(v) for k, v in answers.items()}
                assert not any("error" in answer for answer in found.values())
                if kind == "count":
                    assert all(answer["count"] == want[k] for k, answer in found.items())
                rows.append(row(f"{kind}, {connections} connection{'s' * (connections > 1)}", times, took))
        far = Remote(f"http://127.0.0.1:{port}/bench")
        times, started = [], time.perf_counter()
        while time.perf_counter() - started < arguments.seconds:
            k = len(times) % len(asked)
            begun = time.perf_counter()
            assert far.count(asked[k]) == want[k]
            times.append(time.perf_counter() - begun)
        rows.append(row("count, Remote, one after the other", times, time.perf_counter() - started))
        begun = time.perf_counter()
        assert far.count_batch(asked).tolist() == want
        rows.append(("2,000 counts in one batch (n-grams/s)", f"{len(asked) / (time.perf_counter() - begun):,.0f}", "", "", ""))
        far.close()
    finally:
        server.terminate()
        server.wait(10)
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"`python benchmarks/ngram_serve.py {arguments.index}`: {index.tokens:,} tokens, {cores} cores that server and client share,"
        f" Python {platform.python_version()}, {arguments.seconds:g} s a row, all counts compared with the engine's. {arguments.note}".rstrip(),
        "",
        "| request | a second | p50 ms | p99 ms | longest ms |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(cells) + " |" for cells in rows),
    ]
    write(lines)
    print("\n".join(lines))


def _body(kind: str, ids: list[int]) -> bytes:
    name, some, _ = kind.partition(" of 1,000")
    return json.dumps({"index": "bench", "query_type": name, "query_ids": ids, **({"max_support": 1000} if some else {})}).encode()


if __name__ == "__main__":
    main()
