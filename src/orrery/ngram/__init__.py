"""The unbounded n-gram engine, and counting language models: what a table of n-grams achieves.

    index = orrery.ngram.build(tokens_or_corpus, "dir", memory="4G"); index = orrery.ngram.open("dir")
    index.count(ids); index.prob(context, id); index.next(context)

Importing this room imports none of its files: each name is fetched when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "build": "builder:build_index",
    "build_over": "parallel:build_over",
    "open": "index:open_index",
    "open_any": "homes:open_any",
    "diff": "difference:diff",
    "Index": "index:Index",
    "Difference": "difference:Difference",
    "Union": "union:Union",
    "Remote": "remote:Remote",
    "Document": "answers:Document",
    "Span": "answers:Span",
    "BackoffModel": "counts:BackoffModel",
    "read_arpa": "arpa:read_arpa",
    "write_arpa": "arpa:write_arpa",
    "Mixture": "mixing:Mixture",
    "MixedLM": "mixing:MixedLM",
    "fit_mixture": "mixing:fit_mixture",
    "evaluate_mix": "mixing:evaluate_mix",
    "contamination": "uses:contamination",
    "novelty": "uses:novelty",
    "agreement": "uses:agreement",
    "duplicates": "repeats:duplicates",
    "duplicate_report": "repeats:duplicate_report",
    "curiosities": "repeats:curiosities",
}
__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'orrery.ngram' has no attribute '{name}'")
    module, attribute = _HOME[name].split(":")
    return getattr(importlib.import_module(f"orrery.ngram.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(_HOME)
