"""Data: corpora, tokenizers, token files, the loader, and synthetic tasks.

    data = prepare("stdlib", "bytes")                              # Dataset(train, validation, tokenizer, info)
    batch = Loader(data.train, batch_size=8, length=512, seed=1).batch(step)
    windows = validation_windows(data.validation, length=512, batch_size=8)
    task = create_task("mqar(pairs=8, length=48)"); task.batch(step, 32, seed=1)

Importing this room imports none of its files: each name is fetched when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Corpus": "corpora",
    "MemoryCorpus": "corpora",
    "open_corpus": "corpora",
    "Dataset": "dataset",
    "build_tokenizer": "dataset",
    "prepare": "dataset",
    "Loader": "loader",
    "StreamLoader": "stream",
    "TokenFile": "shards",
    "write_tokens": "shards",
    "Task": "task",
    "create_task": "task",
    "Tokenizer": "tokenizers",
    "load_tokenizer": "tokenizer_files",
    "ValidationWindows": "validation",
    "validation_windows": "validation",
}
__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'orrery.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f"orrery.data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
