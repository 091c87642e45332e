"""The papers' room at 100,000 papers: import, size, semantic index, search, first page, cold command.

    python benchmarks/papers.py [--papers 100000] [--folder DIR] [--stage all|import|search] [--write]

The papers are synthetic and the same in every run. Each has two papers of the reading list as parents (chosen with a heavy
tail) and is made of runs of words of their titles and sentences, of phrases that every abstract has, of runs of any paper,
and of invented words whose frequencies fall like Zipf's law, so that common words are in most papers, a topic's words in a
few per cent, and most words in a handful. `--folder` keeps the store, so that `--stage search` can measure it again. With
`--write` the rows go into the section "Finding" of benchmarks/PAPERS.md; other sections of that file are left as they are
(:func:`write_section`).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from orrery.catalogue import days, ranking, search, shipped, topics, trending
from orrery.catalogue.store import Store
from orrery.core.environment import cpu_name

REPORT = Path(__file__).with_name("PAPERS.md")
TITLE = "# The papers' room: speed, size and ranking\n\nWritten by `benchmarks/papers.py` and its neighbours; each owns a section.\n"
NOW = datetime(2026, 3, 10, 12, tzinfo=timezone.utc)
BATCH = 2000  # papers of one import
_PHRASES = (
    "in this paper|we propose|we introduce|we present|we show that|experiments show that|the results show that|compared with|"
    "state of the art|a novel approach to|to address this problem|our method|our approach|outperforms|significantly|on a wide range of|"
    "tasks|of the|in the|and the|for the|to the|with the|from the|by the|we find that|which is|that are|can be|has been|have been|"
    "however|moreover|furthermore|in addition|as well as|such as|based on|language models|large language models|natural language processing|"
    "deep learning|neural networks|training data|pre-trained|the model|models|performance|accuracy|recent work|recently|existing methods|"
    "we evaluate|extensive experiments|demonstrate|the effectiveness of|is available at|code|human|quality|information|knowledge|context|"
    "tokens|parameters|computational cost|a new|the first|a large|different|several|important|challenging|approach|method|framework|system|"
    "analysis|problem|study|work|results|show|using|used|while|where|these|this|it|is|are|be|a|an|the|of|and|to|in|for"
)
PHRASES = _PHRASES.split("|")
_SYLLABLES = (
    "ba be bi bo da de di do fa fe ga go ka ke ki ko la le li lo ma me mi mo na ne ni no pa pe po ra re ri ro sa se si so ta te ti to va "
    "ve vi vo xa za zo qui tra ster lum nor gen dex plex tron"
)
SYLLABLES = _SYLLABLES.split()
_GIVEN = "Ana Wei Jun Maria Ivan Lena Omar Priya Kofi Yuki Sara Tom Eva Luca Nils Aisha Chen Dmitri Elif Hugo"
GIVEN = _GIVEN.split()


def _zipf(count: int, shift: int) -> list[float]:
    """Cumulative weights 1 / (rank + shift)."""
    total, found = 0.0, []
    for rank in range(count):
        total += 1 / (rank + shift)
        found.append(total)
    return found


def synthetic(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` papers as an import has them; see the file's docstring."""
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))

    tail = list(dict.fromkeys(word() for _ in range(120_000)))
    families = [word().capitalize() for _ in range(20_000)]
    runs = []
    for paper in shipped.papers():
        words = f"{paper['title']} {paper.get('sentence', '')}".split()
        runs.append(
            [" ".join(words[i : i + n]) for i in range(len(words)) for n in (1, 1, 2, 2, 3, 4) if i + n <= len(words)]
        )
    every = [run for own in runs for run in own]
    order = rng.sample(range(len(runs)), len(runs))
    phrases = rng.sample(PHRASES, len(PHRASES))
    weights = {"parents": _zipf(len(order), 8), "phrases": _zipf(len(phrases), 12), "tail": _zipf(len(tail), 30)}
    weights["families"] = _zipf(len(families), 10)
    for number in range(count):
        first, second = rng.choices(order, cum_weights=weights["parents"], k=2)
        own, length = runs[first] + runs[second], int(rng.lognormvariate(3.95, 0.35))
        parts = rng.choices(own, k=int(0.38 * length) + 1)
        parts += rng.choices(phrases, cum_weights=weights["phrases"], k=int(0.34 * length) + 1)
        parts += rng.choices(every, k=int(0.12 * length) + 1)
        parts += rng.choices(tail, cum_weights=weights["tail"], k=int(0.16 * length) + 1)
        rng.shuffle(parts)
        title = (
            rng.choices(own, k=rng.randint(2, 4))
            + rng.choices(tail, cum_weights=weights["tail"], k=rng.randint(0, 2))
            + [word()]
        )
        if rng.random() < 0.3:
            title.insert(0, f"{word().capitalize()}Net:")
        day = date(2014, 1, 1) + timedelta(days=int(4440 * math.sqrt(rng.random())))
        yield {
            "title": f"{' '.join(title)} {number}",
            "abstract": " ".join(parts).capitalize() + ".",
            "authors": [
                f"{rng.choice(GIVEN)} {name}"
                for name in rng.choices(families, cum_weights=weights["families"], k=rng.randint(1, 7))
            ],
            "date": day.isoformat(),
            "year": day.year,
            "kind": rng.choice(("architecture", "application", "data", "evaluation", "survey", "objective")),
            "upvotes": int(rng.paretovariate(1.1)) - 1,
        }


def queries(papers: list[dict[str, Any]], count: int = 400, seed: int = 1) -> list[tuple[str, dict[str, Any]]]:
    """The judged queries, and as many random ones: words of papers, mistyped ones, phrases, prefixes, fields, filters."""
    rng = random.Random(seed)
    found: list[tuple[str, dict[str, Any]]] = [(entry.query, {}) for entry in ranking.judged()]
    for number in range(count):
        paper = rng.choice(papers)
        words = [
            w
            for w in f"{paper['title']} {paper['abstract']}".replace(":", "").replace(".", "").replace('"', "").split()
            if w
        ]
        start = rng.randrange(max(1, len(words) - 4))
        some = rng.sample(words, rng.randint(1, 4)) if number % 2 else words[start : start + rng.randint(1, 4)]
        sort = number % 10
        if sort == 0:  # mistyped
            some = [w[: len(w) // 2] + w[len(w) // 2 + 1 :] if len(w) > 5 else w for w in some]
        text, options = " ".join(some), {}
        if sort == 1:
            text = f'"{text}"'
        elif sort == 2:
            text = some[0][:4] + "* " + text
        elif sort == 3:
            text = f"author:{paper['authors'][0].split()[-1]}"
        elif sort == 4:
            options = {"year": paper["year"]}
        elif sort == 5:
            options = {"kind": paper["kind"]}
        elif sort == 6:
            text = f"{text} -{rng.choice(words).replace('-', '')}"
        found.append((text, options))
    rng.shuffle(found)
    return found


def fill(store: Store, papers: list[dict[str, Any]]) -> float:
    """Papers per second of importing them, in batches of `BATCH`."""
    began = time.perf_counter()
    for start in range(0, len(papers), BATCH):
        store.record(
            "import", {"source": "synthetic", "papers": papers[start : start + BATCH]}, at="2026-03-10T08:00:00Z"
        )
    return len(papers) / (time.perf_counter() - began)


def timed(calls: Sequence[Callable[[], Any]]) -> tuple[float, float]:
    """Median and 99th percentile of the calls, in milliseconds."""
    spent = []
    for call in calls:
        began = time.perf_counter()
        call()
        spent.append(1e3 * (time.perf_counter() - began))
    return statistics.median(spent), sorted(spent)[min(len(spent) - 1, math.ceil(0.99 * len(spent)) - 1)]


def cold(folder: Path, query: str, repeats: int = 5) -> float:
    """Median seconds of `orrery papers search QUERY` as a process of its own."""
    command = [sys.executable, "-m", "orrery", "papers", "search", query, "--store", str(folder), "--json"]
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        spent.append(time.perf_counter() - began)
        assert json.loads(done.stdout)[0]["title"]
    return statistics.median(spent)


def measure(store: Store, papers: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Rows of (what, figure, limit) of everything a reader waits for."""
    mix = queries(papers)
    rows = []
    for mode in search.MODES:
        calls = [functools.partial(search.search, store, query, mode=mode, **more) for query, more in mix]
        timed(calls[:40])
        median, slowest = timed(calls)
        rows.append(
            (
                f"search, {mode}: {len(mix)} queries, p50 / p99",
                f"{median:.1f} / {slowest:.1f} ms",
                "p99 < 50 ms" if mode == "hybrid" else "",
            )
        )
    slug = store.connection().execute("SELECT slug FROM papers ORDER BY id DESC LIMIT 1").fetchone()[0]
    pages: dict[str, Callable[[], Any]] = {
        "first page (today, trending, topics)": lambda: (
            days.today(store, NOW),
            trending.trending(store, at=NOW, limit=20),
            topics.topics(store),
        ),
        "archive of days": lambda: days.archive(store),
        "a topic with its trend": lambda: topics.topic(store, "recurrence"),
        "related papers": lambda: search.related(store, slug),
        "newest of a filter, no words": lambda: search.search(store, "", kind="survey"),
    }
    for name, call in pages.items():
        median, slowest = timed([call] * 30)
        rows.append(
            (
                f"{name}, p50 / p99",
                f"{median:.1f} / {slowest:.1f} ms",
                "< 100 ms" if name.startswith("first page") else "",
            )
        )
    return rows


def peak_megabytes() -> float:
    """This process' high-water mark (Linux)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


def write_section(name: str, text: str, report: Path = REPORT) -> None:
    """Replace the section `## name` of the report (or add it), and leave the others."""
    whole = report.read_text(encoding="utf-8") if report.exists() else TITLE
    head, *sections = ("\n" + whole).split("\n## ")
    kept = {section.split("\n", 1)[0].strip(): section.split("\n", 1)[1].strip() for section in sections}
    kept[name] = text.strip()
    report.write_text(
        head.strip() + "\n" + "".join(f"\n## {title}\n\n{body}\n" for title, body in kept.items()), encoding="utf-8"
    )


def table(rows: list[tuple[str, str, str]]) -> str:
    """A table in Markdown."""
    return "\n".join(["| what | measured | limit |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def ranking_rows() -> list[tuple[str, str, str]]:
    """nDCG@10 on both halves of the judged queries, over the shipped catalogue."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, Store.open(folder) as store:
        ways = {"plain FTS5": ranking.plain(store)} | {
            mode: ranking.finder(store, mode) for mode in ("text", "semantic", "hybrid")
        }
        for name, find in ways.items():
            halves = [statistics.mean(ranking.evaluate(find, ranking.judged(half))) for half in ranking.HALVES]
            rows.append((f"nDCG@10, {name}: tuning half / test half", f"{halves[0]:.3f} / {halves[1]:.3f}", ""))
    return rows


def main() -> None:
    """Measure, print, and with `--write` keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="keep the store here")
    parser.add_argument("--stage", choices=("all", "import", "search"), default="all")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/PAPERS.md")
    options = parser.parse_args()
    papers = list(synthetic(options.papers))
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() if options.folder is None else nullcontext(str(options.folder)) as folder:
        with Store.open(folder) as store:
            kept = Path(folder) / "measured.json"
            if options.stage != "search":
                rows.append(
                    (f"import of {len(papers):,} papers", f"{fill(store, papers):,.0f} papers/s", ">= 2,000 papers/s")
                )
                began = time.perf_counter()
                search.prepare(store)
                rows.append(
                    (
                        "semantic index and words, made once",
                        f"{time.perf_counter() - began:.1f} s, peak {peak_megabytes():.0f} MB",
                        "",
                    )
                )
                kept.write_text(json.dumps(rows), encoding="utf-8")
            elif kept.exists():
                rows = [tuple(row) for row in json.loads(kept.read_text(encoding="utf-8"))]
            sizes = {
                "index": "papers.sqlite",
                "journal": "journal.jsonl",
            }
            figures = [f"{name} {(Path(folder) / file).stat().st_size / 1e6:.0f} MB" for name, file in sizes.items()]
            for what, part in (("vectors", "semantic"), ("words", "postings")):
                files = (Path(folder) / part).glob("*")
                figures.append(f"{what} {sum(file.stat().st_size for file in files) / 1e6:.0f} MB")
            rows.append(("size", ", ".join(figures), ""))
            if options.stage != "import":
                rows += measure(store, papers)
        if options.stage != "import":
            rows.append(
                (
                    "cold `orrery papers search` over them",
                    f"{cold(Path(folder), 'recurrent speech models'):.2f} s",
                    "< 0.6 s",
                )
            )
            with tempfile.TemporaryDirectory() as own:
                cold(Path(own), "earth mover distance", 1)
                rows.append(
                    (
                        "cold `orrery papers search`, shipped catalogue",
                        f"{cold(Path(own), 'earth mover distance'):.2f} s",
                        "< 0.6 s",
                    )
                )
            rows += ranking_rows()
    day = datetime.now(timezone.utc).date().isoformat()
    text = f"{len(papers):,} synthetic papers; {cpu_name()}, {os.cpu_count()} cores; {day}.\n\n{table(rows)}"
    print(text)
    if options.write:
        write_section("Finding", text)


if __name__ == "__main__":
    main()
