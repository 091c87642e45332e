"""The results store: run folders are the truth, an SQLite index over them answers questions."""

from orrery.runs.folder import Run
from orrery.runs.index import Problem
from orrery.runs.store import ImportReport, RunRecord, RunStore

__all__ = ["ImportReport", "Problem", "Run", "RunRecord", "RunStore"]
