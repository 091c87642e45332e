"""What exists of a paper in this code: computed from the registry, the parity record, measurements and claims, never typed.

A paper is a *working model* when something registered under one of its names is of the kind that the paper is about (an
architecture for a paper on architectures, an objective for one on losses ...), a *part* when something else of it is
registered, *planned* when there is a system in it to build and nothing is, a *survey* or *reading* otherwise. Its names
are those of the shipped data that the registry knows, and every registered name that carries the paper's arXiv id.
"""

from __future__ import annotations

import functools
import json
import re
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orrery.catalogue import merge
from orrery.catalogue.events import Event, Unchanged
from orrery.catalogue.record import Paper
from orrery.core import registry
from orrery.core.errors import DataError, OrreryError

if TYPE_CHECKING:
    from orrery.catalogue.store import Store

STATES = ("working model", "part", "planned", "survey", "reading")
_MODELS = ("mixer", "architecture", "model", "channel")
WHOLE = {  # kind of a paper -> kinds of registered things that are the whole of it
    "architecture": _MODELS,
    "objective": ("objective", "optimizer", "schedule", "method"),
    "embedding": ("objective", "model", "method"),
    "adaptation": ("method",),
    "compression": ("method",),
    "inference": ("method",),
    "retrieval": ("method", "model"),
    "search": ("method",),
    "n-gram": ("model",),
    "agents": ("method",),
    "data": ("corpus", "task", "method"),
    "evaluation": ("task", "method"),
    "application": ("task", "model", "method"),
    None: (*_MODELS, "objective", "optimizer", "schedule", "method", "task", "corpus", "tokenizer"),  # imported: no kind is known
}
VERDICTS = (
    "reproduced at this scale",
    "weaker",
    "no difference",
    "opposite at this scale",
    "inconclusive",
    "not testable here",
    "not run",
)
_SOURCE = Path(__file__).resolve().parents[3]  # of a checkout; an installed package has no benchmarks beside it
_RUNS_SECONDS = 30.0


@dataclass(frozen=True)
class Parity:
    """The worst difference to an independent oracle in float64, and how many contract checks ran and failed."""

    oracle: str
    forward: float
    checks: int
    failed: int

    def __str__(self) -> str:
        contract = f"; {self.checks} contract checks, {self.failed} failed" if self.checks else ""
        return f"{self.forward:.1e} from its oracle in float64{contract}"


@dataclass(frozen=True)
class Measured:
    """When and in what a model was last measured."""

    date: str
    where: str

    def __str__(self) -> str:
        return f"{self.date}: {self.where}"


@dataclass(frozen=True)
class Status:
    """What exists of a paper. `names`: registered ones, those that build a model first."""

    state: str
    names: tuple[str, ...] = ()
    parity: Parity | None = None
    measured: Measured | None = None
    verdict: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        return {
            "state": self.state,
            "names": list(self.names),
            "parity": str(self.parity) if self.parity else None,
            "measured": str(self.measured) if self.measured else None,
            "verdict": self.verdict,
        }


def of(paper: Paper, *, store: Store | None = None, runs: str | Path = "runs") -> Status:
    """The status of a paper.

    Args:
        store: where its latest verdict is looked up; None leaves the verdict out (a state alone needs no question).
        runs: folder of the runs whose dates count as measurements, beside those that ship with orrery.
    """
    return _of(paper, verdicts(store, [paper.slug]).get(paper.slug) if store is not None else None, runs)


def of_all(papers: Sequence[Paper], store: Store, runs: str | Path = "runs") -> list[Status]:
    """The status of each of some papers; the verdicts are one question, whatever their number."""
    found = verdicts(store, [paper.slug for paper in papers])
    return [_of(paper, found.get(paper.slug), runs) for paper in papers]


def _of(paper: Paper, verdict: str | None, runs: str | Path) -> Status:
    names = names_of(paper)
    if not names:
        state = "planned" if paper.core else "survey" if paper.kind == "survey" else "reading"
        return Status(state, verdict=verdict)
    kinds = frozenset().union(*(_registered()[name] for name in names))
    whole = bool(kinds & set(WHOLE.get(paper.kind, WHOLE[None])))
    parities = [_parity()[name] for name in names if name in _parity()]
    dates = [found for name in names if (found := _measured(name, str(runs)))]
    return Status(
        "working model" if whole else "part",
        names,
        max(parities, key=lambda each: each.forward) if parities else None,
        max(dates, key=lambda each: each.date) if dates else None,
        verdict,
    )


def names_of(paper: Paper) -> tuple[str, ...]:
    """Registered names of a paper, those that build a model first."""
    known = _registered()
    found = dict.fromkeys(name for name in paper.names if name in known)
    if paper.arxiv:
        found |= dict.fromkeys(_by_paper().get(paper.arxiv, ()))
    return tuple(sorted(found, key=lambda name: (not known[name] & {"architecture", "model"}, not known[name] & {"mixer"})))


def forget() -> None:
    """Read registry, parity record and shipped measurements anew when they are next asked for."""
    for cached in (_registered, _by_paper, _parity, _shipped_measurements):
        cached.cache_clear()
    _runs_seen.clear()


@functools.cache
def _registered() -> dict[str, frozenset[str]]:
    """Every registered name and its kinds."""
    return {entry.name: frozenset(entry.kinds) for entry in registry.entries()}


@functools.cache
def _by_paper() -> dict[str, tuple[str, ...]]:
    """arXiv id -> names registered with it."""
    found: dict[str, list[str]] = {}
    for entry in registry.entries():
        found.setdefault(entry.paper, []).append(entry.name)
    return {paper: tuple(names) for paper, names in found.items() if paper}


@functools.cache
def _parity() -> dict[str, Parity]:
    """The parity record by name, from the benchmarks of a checkout; empty in an installed package."""
    try:
        text = (_SOURCE / "benchmarks" / "PARITY.md").read_text(encoding="utf-8")
    except OSError:
        return {}
    checks = {name: (int(run), int(failed)) for name, run, failed in re.findall(r"^\| `([\w.-]+)` \| (\d+) \| (\d+) \|", text, re.MULTILINE)}
    found: dict[str, Parity] = {}
    for name, oracle, error in re.findall(r"^\| `([\w.-]+)(?:\([^`]*\))?` \| (\S+\.py) \| ([\d.e+-]+) \|", text, re.MULTILINE):
        worst = max(float(error), found[name].forward if name in found else 0.0)
        found[name] = Parity(oracle, worst, *checks.get(name, (0, 0)))
    return found


def _measured(name: str, runs: str) -> Measured | None:
    found = [each for each in (_run_dates(runs).get(name), _shipped_measurements().get(name)) if each]
    return max(found, key=lambda each: each.date) if found else None


@functools.cache
def _shipped_measurements() -> dict[str, Measured]:
    """Architectures of the comparisons that ship with orrery."""
    found: dict[str, Measured] = {}
    for file in sorted((Path(__file__).parents[1] / "compare" / "reference").glob("*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            measured = Measured(result["created"][:10], f"reference comparison '{file.stem}'")
            specs = [architecture["spec"] for architecture in result["architectures"] if architecture["status"] == "done"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged reference result is compare's to complain about
        found |= {spec: measured for spec in specs if spec not in found or found[spec].date < measured.date}
    return found


_runs_seen: dict[str, tuple[float, dict[str, Measured]]] = {}


def _run_dates(root: str) -> dict[str, Measured]:
    """Models of finished runs and the date of the last; asked of the runs' index at most every half minute."""
    now = time.monotonic()
    if root in _runs_seen and now - _runs_seen[root][0] < _RUNS_SECONDS:
        return _runs_seen[root][1]
    found: dict[str, Measured] = {}
    if Path(root).is_dir():
        from orrery.runs import RunStore

        try:
            records = RunStore(root).list(status="done")
        except OrreryError:
            records = []
        for run in records:
            model = run.config.get("model")
            name = model.get("name") if isinstance(model, dict) else model
            date = (run.finished or run.created)[:10]
            if isinstance(name, str) and (name not in found or found[name].date < date):
                found[name] = Measured(date, f"run '{run.folder}'")
    _runs_seen[root] = (now, found)
    return found


# ---------------------------------------------------------------- verdicts of claims


def verdicts(store: Store, slugs: Sequence[str]) -> dict[str, str]:
    """The last verdict on the claim of each of some papers; those whose claim was never run are left out."""
    if not slugs:
        return {}

    def question(connection: sqlite3.Connection) -> dict[str, str]:
        found = {}
        for start in range(0, len(slugs), 500):
            part = list(slugs[start : start + 500])
            marks = ", ".join("?" * len(part))
            query = f"SELECT slug, new FROM verdicts JOIN papers ON papers.id = paper WHERE slug IN ({marks}) ORDER BY verdicts.id"
            found.update({str(row[0]): str(row[1]) for row in connection.execute(query, part)})  # the last one stays
        return found

    return store.ask(question)


def set_verdict(store: Store, key: str, verdict: str, at: str | None = None) -> bool:
    """Write down what a claim came to; whether that is news.

    Raises:
        DataError: when `verdict` is none of :data:`VERDICTS`.
        UnknownNameError: when no paper is called `key`.
    """
    return bool(store.record("verdict", {"paper": key, "new": verdict}, at=at))


def apply_verdict(connection: sqlite3.Connection, event: Event) -> bool:
    """Handler of `verdict`: `facts` are the paper and the new verdict; the old one is looked up."""
    new = event.facts["new"]
    if new not in VERDICTS:
        raise DataError(f"'{new}' is no verdict; there are {', '.join(VERDICTS)}")
    paper = merge.paper_id(connection, event.facts["paper"])
    row = connection.execute("SELECT new FROM verdicts WHERE paper = ? ORDER BY id DESC LIMIT 1", (paper,)).fetchone()
    old = row[0] if row else None
    if old == new:
        raise Unchanged(False)
    connection.execute("INSERT INTO verdicts (id, paper, at, old, new) VALUES (?, ?, ?, ?, ?)", (event.seq, paper, event.at, old, new))
    return True
