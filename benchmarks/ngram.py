"""The n-gram engine beside the `infini-gram` package, in one run on one corpus: building, every query, batches.

    python benchmarks/ngram.py --corpus web.jsonl --tokenizer bpe:16384 --tokens 30900000 --work /tmp/ngram

Both engines index the same tokens. Queries are drawn from the corpus: a context of 1 to 8 tokens at a random place and
the token that follows it, or, every other time, a random one. Both answer the same 2,000 of each kind (the slowest of
infini-gram fewer), all answers are compared, and every call is timed from Python. Its next-token distributions are
estimates where the context occurs more than 1,000 times (exact ones start a thread for every halving and abort), and
are compared where they are exact; ours always are. Building is timed from tokens on disk
to a finished index in a process of its own, whose memory (resident, with all its children and with mapped pages of
files) is looked at every 20 ms. Rows go to `NGRAM.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROWS = HERE / "NGRAM.md"
SEED = 20250


def tokens_of(corpus: str, tokenizer: str, folder: Path, limit: int) -> Any:
    """The corpus as a token file of at most `limit` tokens, made once. Of bytes 0xFF, which is none of UTF-8, is the mark."""
    from orrery.data import TokenFile, write_tokens
    from orrery.ngram.sources import open_source

    if not folder.is_dir():
        source = open_source(corpus, tokenizer, quiet=True)

        def documents():  # type: ignore[no-untyped-def]
            held: list[np.ndarray] = []
            size = 0
            for piece in source.pieces():
                held.append(piece.ids)
                if piece.last:
                    size += 1 + sum(map(len, held))
                    if size > limit:
                        return
                    yield np.concatenate(held), 0
                    held = []

        bounds = (256, 255) if tokenizer == "bytes" else (source.vocab_size, source.doc_id)
        write_tokens(folder, documents(), *bounds)
    return TokenFile(folder, verify=False)


def stored(tokens: Any, limit: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The first documents of at most `limit` tokens, and all of them as infini-gram stores them, 0xFFFF before each."""
    last = int(np.searchsorted(tokens.offsets, limit, side="right")) - 1
    stop = int(tokens.offsets[last])
    stream = tokens.read(0, stop).astype(np.uint16)
    starts = np.asarray(tokens.offsets[:last])
    documents = [stream[a + 1 : b] for a, b in zip(starts, [*starts[1:], stop], strict=True)]
    marked = stream.copy()
    marked[starts] = 0xFFFF
    return documents, marked


def measured(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds that a program says it took, and the most memory that it and its children held at once, in MB."""
    import psutil

    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        with contextlib.suppress(psutil.Error):
            for each in [watched, *watched.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += each.memory_info().rss
        peak = max(peak, total)
        time.sleep(0.02)
    out = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"a build ended with exit code {process.returncode}")
    return float(out.split()[-1]), peak / 1e6


OURS = """
import json, sys, time, numpy as np
import orrery
from orrery.data import TokenFile
from orrery.ngram import suffixes, shard, search
suffixes.suffix_array(np.arange(4000, dtype=np.uint16) % 97, 65536)  # compiled or read from the cache before the clock runs
start = time.perf_counter()
orrery.ngram.build(TokenFile(sys.argv[1]), sys.argv[2], memory=sys.argv[3], quiet=True, **json.loads(sys.argv[4]))
print(time.perf_counter() - start)
"""

THEIRS = """
import sys, time, argparse, contextlib, io
from infini_gram import indexing
where, cpus = sys.argv[1], int(sys.argv[2])
arguments = argparse.Namespace(save_dir=where, temp_dir=where, shards=1, workers=1, worker_id=0, mem=4, cpus=cpus, token_width=2)
start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    indexing.build_sa(arguments)
print(time.perf_counter() - start)
"""


def build_ours(documents: list[np.ndarray], vocab_size: int, doc_id: int, work: Path, memory: str, **more: Any) -> dict[str, float]:
    from orrery.data import write_tokens

    tokens = work / "part"
    write_tokens(tokens, ((d, 0) for d in documents), vocab_size, doc_id)
    seconds, peak = measured(OURS, str(tokens), str(work / "ours"), memory, json.dumps(more))
    size = sum(f.stat().st_size for f in (work / "ours").rglob("*") if f.is_file())
    return {"seconds": seconds, "peak": peak, "bytes": size}


def build_theirs(marked: np.ndarray, documents: list[np.ndarray], work: Path) -> dict[str, float]:
    folder = work / "theirs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.0"):
        old.unlink()
    marked.tofile(folder / "tokenized.0")
    offsets = np.cumsum([0, *(len(d) + 1 for d in documents)])[:-1]
    (2 * offsets).astype(np.uint64).tofile(folder / "offset.0")
    seconds, peak = measured(THEIRS, str(folder), str(len(os.sched_getaffinity(0))))
    size = sum((folder / name).stat().st_size for name in ("tokenized.0", "table.0"))
    return {"seconds": seconds, "peak": peak, "bytes": size}


def queries(marked: np.ndarray, count: int) -> tuple[list[list[int]], list[int]]:
    """Contexts of 1 to 8 tokens within a document, and a next token: the true one or a random one of the corpus."""
    rng = np.random.default_rng(SEED)
    contexts, ids = [], []
    while len(contexts) < count:
        length = int(rng.integers(1, 9))
        start = int(rng.integers(0, len(marked) - 9))
        window = marked[start : start + length + 1]
        if (window == 0xFFFF).any():
            continue
        token = int(window[-1]) if len(contexts) % 2 else int(marked[rng.integers(0, len(marked))])
        if token != 0xFFFF:
            contexts.append(window[:-1].tolist())
            ids.append(token)
    return contexts, ids


def clock(call: Any, arguments: list[tuple[Any, ...]]) -> tuple[list[Any], list[float]]:
    """Answers, and p50 and p99 in microseconds."""
    answers, times = [], []
    for each in arguments:
        start = time.perf_counter_ns()
        answers.append(call(*each))
        times.append((time.perf_counter_ns() - start) / 1e3)
    return answers, [float(np.percentile(times, p)) for p in (50, 99)]


def same_distribution(ours: Any, theirs: dict[str, Any]) -> bool:
    """infini-gram's are estimates where the context occurs more than 1,000 times; only totals are compared there."""
    if theirs["approx"]:
        return bool(int(ours.counts.sum()) == theirs["prompt_cnt"])
    found = {int(k): int(v["cont_cnt"]) for k, v in theirs["result_by_token_id"].items()}
    return dict(zip(ours.ids.tolist(), ours.counts.tolist(), strict=True)) == found


def compare_queries(work: Path, marked: np.ndarray, count: int) -> tuple[list[list[Any]], dict[str, Any]]:
    from infini_gram.engine import InfiniGramEngine

    import orrery

    orrery.ngram.open(work / "ours")  # imports
    start = time.perf_counter()
    index = orrery.ngram.open(work / "ours")
    opened = 1e3 * (time.perf_counter() - start)
    theirs = InfiniGramEngine(index_dir=str(work / "theirs"), eos_token_id=index.doc_id, vocab_size=65535)
    contexts, ids = queries(marked, count)
    pairs = list(zip(contexts, ids, strict=True))
    few = pairs[: max(200, count // 4)]
    kinds: list[tuple[str, Any, Any, list[Any], Any]] = [
        ("count", lambda c, i: index.count([*c, i]), lambda c, i: theirs.count([*c, i])["count"], pairs, lambda a, b: a == b),
        ("prob", index.prob_info, theirs.prob, pairs,
         lambda a, b: (a.hits, a.total) == (b["cont_cnt"], b["prompt_cnt"])),
        ("next", lambda c, i: index.next(c), lambda c, i: theirs.ntd(c), few,
         same_distribution),
        ("inf_prob", index.inf_prob_info, theirs.infgram_prob, pairs,
         lambda a, b: (a.hits, a.total, a.n) == (b["cont_cnt"], b["prompt_cnt"], b["suffix_len"])),
        ("inf_next", lambda c, i: index.inf_next(c), lambda c, i: theirs.infgram_ntd(c), few,
         same_distribution),
    ]  # fmt: skip
    rows = []
    for name, ours, other, arguments, same in kinds:
        clock(ours, arguments[-20:])
        b, slow = clock(other, arguments)
        a, quick = clock(ours, arguments)
        _, again = clock(ours, arguments)
        different = sum(not same(x, y) for x, y in zip(a, b, strict=True))
        rows.append([name, len(arguments), different, *quick, *again, *slow])
    return rows, {"open_ms": opened, **batches(index, marked)}


def batches(index: Any, marked: np.ndarray) -> dict[str, Any]:
    """Queries a second, singly and 10,000 at once (all of them different draws), and positions a second of whole texts.

    Both in turn, three rounds, the best of each.
    """
    many, tokens = queries(marked, 10_000)
    grams = [[*c, i] for c, i in zip(many, tokens, strict=True)]
    found: dict[str, Any] = {}
    arrays = [np.array(g) for g in grams]
    width = max(map(len, grams))
    padded, lengths = np.zeros((len(grams), width), np.int64), np.array(list(map(len, grams)))
    for row, gram in enumerate(grams):
        padded[row, : len(gram)] = gram
    for name, single, batch in (
        ("count", lambda: [index.count(g) for g in grams], lambda: index.count_batch(grams)),
        ("count, padded array", lambda: [index.count(g) for g in arrays], lambda: index.count_batch(padded, lengths=lengths)),
        ("prob", lambda: [index.prob(c, i) for c, i in zip(many, tokens, strict=True)], lambda: index.prob_batch(many, tokens)),
        ("inf_prob", lambda: [index.inf_prob(c, i) for c, i in zip(many, tokens, strict=True)],
         lambda: index.inf_prob_batch(many, tokens)),
    ):  # fmt: skip
        rates = [0.0, 0.0]
        for _ in range(3):
            for which, call in enumerate((single, batch)):
                start = time.perf_counter()
                call()
                rates[which] = max(rates[which], 10_000 / (time.perf_counter() - start))
        found[name] = rates
    text = marked[1000:101_000].astype(np.int64)
    text = text[text != 0xFFFF]
    mixed = np.random.default_rng(0).permutation(text.reshape(-1)[: len(text) // 10 * 10].reshape(-1, 10)).reshape(-1)
    index.score(mixed[:100])  # compiled or read from the cache before the clock runs
    start = time.perf_counter()
    index.score(mixed)
    found["score"] = len(mixed) / (time.perf_counter() - start)
    return found


def report(sizes: dict[str, Any], builds: dict[str, dict[str, float]], rows: list[list[Any]], more: dict[str, Any]) -> str:
    n = sizes["tokens"]
    lines = [f"## {n / 1e6:.1f} M tokens, {sizes['documents']:,} documents", "", sizes["machine"], ""]
    lines += ["| build | s | M tokens/s | peak MB | bytes/token |", "|---|---|---|---|---|"]
    for name, built in builds.items():
        numbers = f"{built['seconds']:.1f} | {n / built['seconds'] / 1e6:.2f} | {built['peak']:.0f} | {built['bytes'] / n:.2f}"
        lines.append(f"| {name} | {numbers} |")
    lines += ["", "| query, us | asked | different | p50 | p99 | p50 warm | p99 warm | infini-gram p50 | p99 | p50 ratio | p99 ratio |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, asked, different, *t in rows:
        numbers = " | ".join(f"{x:,.1f}" for x in t)
        lines.append(f"| {name} | {asked} | {different} | {numbers} | {t[4] / t[0]:.0f}x | {t[5] / t[1]:.0f}x |")
    lines += ["", "Infini-gram's `next` and `inf_next` are estimates where a context occurs more than 1,000 times; ours are exact."]
    lines += ["", "| batches of 10,000 | singly/s | batch/s | ratio |", "|---|---|---|---|"]
    for name in ("count", "count, padded array", "prob", "inf_prob"):
        a, b = more[name]
        lines.append(f"| {name} | {a:,.0f} | {b:,.0f} | {b / a:.1f}x |")
    lines += ["", f"Scoring whole texts: {more['score']:,.0f} positions/s. Opening: {more['open_ms']:.2f} ms.", ""]
    return "\n".join(lines)


def shown(times: list[float]) -> str:
    """p50 / p99."""
    return f"{times[0]:.1f} / {times[1]:.1f}"


def curve(tokens: Any, work: Path, points: list[tuple[float, str]]) -> str:
    """Building and latency over the size of the corpus and the memory given; p50 / p99 of 1,000 warm queries."""
    import orrery

    lines = ["| tokens | memory | shards | build s | M tokens/s | peak MB | bytes/token | count us | inf_prob us | next us |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    found: list[list[float]] = []
    for limit, memory in points:
        documents, marked = stored(tokens, int(limit))
        built, n = build_ours(documents, tokens.vocab_size, tokens.doc_id, work, memory), len(marked)
        del documents
        index = orrery.ngram.open(work / "ours")
        contexts, ids = queries(marked, 1000)
        pairs = list(zip(contexts, ids, strict=True))
        kinds = (
            (index.count, [([*c, i],) for c, i in pairs]),
            (index.inf_prob, pairs),
            (index.next, [(c,) for c in contexts[:300]]),
        )
        times = [[clock(call, arguments) for _ in range(2)][1][1] for call, arguments in kinds]
        numbers = f"{built['seconds']:.2f} | {n / built['seconds'] / 1e6:.2f} | {built['peak']:.0f} | {built['bytes'] / n:.2f}"
        row = f"| {n / 1e6:.1f} M | {memory} | {len(index.shards)} | {numbers} | {' | '.join(map(shown, times))} |"
        print(row, file=sys.stderr, flush=True)
        lines.append(row)
        if len(index.shards) == 1 and memory == points[0][1]:
            found.append([n, built["seconds"], *(t for each in times for t in each)])
    return "\n".join(["## Size of the corpus and memory", "", *lines, "", *slopes(np.array(found))])


def slopes(rows: np.ndarray) -> list[str]:
    """Least squares of log time over log size, with 95 % intervals (Student), of sizes (rows[:, 0]) from 3 million tokens on."""
    rows = rows[rows[:, 0] > 2.5e6] if rows.size else rows
    if len(rows) < 3:
        return []
    student = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31]
    x = np.log(rows[:, 0]) - np.log(rows[:, 0]).mean()
    said = []
    for name, times in zip(("build", "count p50", "p99", "inf_prob p50", "p99", "next p50", "p99"), rows[:, 1:].T, strict=True):
        y = np.log(times) - np.log(times).mean()
        slope = float((x * y).sum() / (x * x).sum())
        error = float(np.sqrt(((y - slope * x) ** 2).sum() / (len(x) - 2) / (x * x).sum()))
        said.append(f"{name} {slope:.2f} +- {student[min(len(x) - 3, 7)] * error:.2f}")
    return [f"Slopes of log time over log size from {rows[0, 0] / 1e6:.1f}M tokens on: {', '.join(said)}.", ""]


def parts(tokens: Any, work: Path, limit: int, counts: list[int]) -> str:
    """The same tokens in more and more shards: opening, and p50 / p99 of 1,000 warm queries."""
    import orrery

    lines = ["| shards | open ms | count us | inf_prob us | next us | count_batch /s |", "|---|---|---|---|---|---|"]
    documents, marked = stored(tokens, limit)
    contexts, ids = queries(marked, 1000)
    pairs = list(zip(contexts, ids, strict=True))
    grams = [[*c, i] for c, i in pairs]
    for count in counts:
        build_ours(documents, tokens.vocab_size, tokens.doc_id, work, "4G", shards=count)
        opened = []
        for _ in range(5):
            start = time.perf_counter()
            index = orrery.ngram.open(work / "ours")
            opened.append(1e3 * (time.perf_counter() - start))
        kinds = ((index.count, [(g,) for g in grams]), (index.inf_prob, pairs), (index.next, [(c,) for c in contexts[:300]]))
        times = [[clock(call, arguments) for _ in range(2)][1][1] for call, arguments in kinds]
        index.count_batch(grams)
        start = time.perf_counter()
        index.count_batch(grams)
        rate = len(grams) / (time.perf_counter() - start)
        lines.append(f"| {len(index.shards)} | {min(opened):.2f} | {' | '.join(map(shown, times))} | {rate:,.0f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join([f"## {len(marked) / 1e6:.1f} M tokens in many shards", "", *lines, ""])


def sampled(tokens: Any, work: Path, limit: int, distances: list[int]) -> str:
    """Indexes that keep every K-th place (0: all): size, building, and p50 / p99 of warm queries."""
    import orrery

    head = "| K | bytes/token | build s | peak MB | count us | prob us | next us | inf_prob us | inf_next us |"
    lines = [head + " documents us | document us | count_batch /s |", "|" + "---|" * 12]
    documents, marked = stored(tokens, limit)
    contexts, ids = queries(marked, 1000)
    pairs, some = list(zip(contexts, ids, strict=True)), [(c,) for c in contexts[:300]]
    grams = [[*c, i] for c, i in pairs]
    for k in distances:
        built = build_ours(documents, tokens.vocab_size, tokens.doc_id, work, "4G", **({"sample": k} if k else {}))
        index = orrery.ngram.open(work / "ours")
        rare = [(c,) for c in contexts if index.count(c) <= 1000][:100]
        numbers = [(d,) for d in range(0, index.documents_total, max(1, index.documents_total // 50))]
        kinds: list[tuple[Any, list[Any]]] = [
            (index.count, [(g,) for g in grams]), (index.prob_info, pairs), (index.next, some), (index.inf_prob_info, pairs),
            (index.inf_next, some), (lambda c, index=index: index.documents(c, 10, context=20), rare), (index.document, numbers),
        ]  # fmt: skip
        times = [[clock(call, arguments) for _ in range(2)][1][1] for call, arguments in kinds]
        index.count_batch(grams)
        start = time.perf_counter()
        index.count_batch(grams)
        rate = len(grams) / (time.perf_counter() - start)
        size = f"{built['bytes'] / len(marked):.2f} | {built['seconds']:.1f} | {built['peak']:.0f}"
        lines.append(f"| {k or 'all places'} | {size} | {' | '.join(map(shown, times))} | {rate:,.0f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join([f"## Sampled suffix arrays, {len(marked) / 1e6:.1f} M tokens", "", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="stdlib", help="a name, file, folder or .jsonl")
    parser.add_argument("--tokenizer", default="bpe:16384")
    parser.add_argument("--tokens", type=float, default=30.9e6, help="how many to index at most")
    parser.add_argument(
        "--points", nargs="+", default=["1e6:4G", "3e6:4G", "10e6:4G", "30e6:4G", "30e6:300M"], help="of the curve: TOKENS:MEMORY"
    )
    parser.add_argument("--distances", type=int, nargs="+", default=[0, 4, 8, 16, 32, 64, 256], help="of sampled places; 0: all")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4, 16, 64, 256], help="for --stage parts")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--work", type=Path, default=Path("ngram-benchmark"))
    parser.add_argument("--token-file", type=Path, help="a token file made before, instead of --corpus")
    stages = ["all", "build", "query", "curve", "sampled", "parts"]
    parser.add_argument("--stage", choices=stages, default="all", help="do one part; state is in --work")
    parser.add_argument("--dry", action="store_true", help="print; do not append to NGRAM.md")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    folder = options.token_file or options.work / "tokens"
    tokens = tokens_of(options.corpus, options.tokenizer, folder, int(options.tokens))
    if options.stage in ("curve", "sampled", "parts"):
        if options.stage == "curve":
            points = [(float(size), memory) for size, memory in (point.split(":") for point in options.points)]
            text = curve(tokens, options.work, points)
        elif options.stage == "sampled":
            text = sampled(tokens, options.work, int(options.tokens), options.distances)
        else:
            text = parts(tokens, options.work, int(options.tokens), options.shards)
        print(text)
        if not options.dry:
            with open(ROWS, "a", encoding="utf-8") as file:
                file.write(text + "\n")
        return
    documents, marked = stored(tokens, int(options.tokens))
    state = options.work / "builds.json"
    if options.stage != "query":
        builds = {
            "infini-gram": build_theirs(marked, documents, options.work),
            "orrery": build_ours(documents, tokens.vocab_size, tokens.doc_id, options.work, options.memory),
        }
        state.write_text(json.dumps(builds))
        print(builds, file=sys.stderr)
    if options.stage == "build":
        return
    builds = json.loads(state.read_text())
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    rows, more = compare_queries(options.work, marked, options.queries)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} processors, Python {platform.python_version()}."
    text = report({"tokens": len(marked), "documents": len(documents), "machine": machine}, builds, rows, more)
    print(text)
    if not options.dry:
        with open(ROWS, "a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
