"""`orrery.compare`: from a list of architectures to a saved, judged, recommended result; interrupted, it goes on later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orrery.compare.candidates import candidates
from orrery.compare.conduct import Parts, Session
from orrery.compare.events import Observer
from orrery.compare.protocol import Settings
from orrery.compare.recommend import Limits
from orrery.compare.result import ComparisonResult
from orrery.core.errors import ConfigError, suggest
from orrery.train.budget import parse_budget

DEFAULT = ("transformer", "transformer(canon=abcd)", "lstm", "mamba2", "gated-deltanet")


def compare(
    architectures: Iterable[Any] = DEFAULT,
    corpus: str = "stdlib",
    budget: str = Settings.budget,
    seeds: int | Sequence[int] = 3,
    size: str | None = "nano",
    *,
    baseline: str | None = None,
    max_params: float | None = None,
    max_state: float | None = None,
    max_ms_per_token: float | None = None,
    jobs: int | None = None,
    tune: bool = False,
    root: str | Path = "runs",
    out: str | Path | None = None,
    observer: Observer | None = None,
    command: str = "",
    parts: Parts | None = None,
    **settings: Any,
) -> ComparisonResult:
    """Compare language-model architectures fairly on this machine.

    Args:
        architectures: names, patterns, files of yours, `nn.Module`s (see :mod:`orrery.compare.candidates`).
        corpus: a registered corpus, a file, a folder, a pattern.
        budget: of each run: "1Mtok", "1e13flop", "2min" (turned into steps once, from a calibration).
        seeds: how many, or which. A verdict needs six or more (see `Protocol.needed_seeds`).
        size: rung of the ladder; every architecture gets as many parameters.
        baseline: whom the others are held against; default: transformer, else the first.
        max_params, max_state, max_ms_per_token: limits for the recommendation: all parameters, bytes of state per
            sequence, milliseconds per decoded token, at the longest length measured.
        jobs: worker processes; None: measured which way is faster.
        tune: sweep every architecture's learning rate now, in place of the recorded one.
        root: folder of run folders; the comparison is saved in `root/comparison-HASH` unless `out` is given.
        observer: is told what happens (see :class:`orrery.compare.events.Observer`).
        command: recorded as the way to repeat this; made up from the settings by default.
        parts: leaves parts out, or changes their settings; its places and switches give way to the arguments here.
        **settings: tokenizer, length, batch, margin, sample, noise, rates, overrides: see :class:`Settings`.

    Returns:
        The result, also saved. After Ctrl-C it is what there is, with status "partial"; the same call goes on.

    Raises:
        OrreryError: in one sentence, before anything long has begun: unknown names, impossible settings, no corpus.
    """
    known = Settings.__dataclass_fields__
    if unknown := [key for key in settings if key not in known]:
        raise ConfigError(f"compare has no setting '{unknown[0]}'.{suggest(unknown[0], known)}")
    numbers = tuple(range(1, seeds + 1)) if isinstance(seeds, int) else tuple(int(seed) for seed in seeds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ConfigError("give at least one seed, and each only once")
    asked = Settings(corpus=str(corpus), budget=budget, seeds=numbers, size=size, baseline=baseline or "", **settings)
    parse_budget(asked.budget)
    base = parts or Parts()
    made = replace(
        base,
        root=Path(root),
        out=Path(out) if out is not None else base.out,
        tune=tune or base.tune,
        jobs=jobs if jobs is not None else base.jobs,
        command=command or base.command,
    )
    session = Session(asked, candidates(architectures), made, observer or Observer())
    return session.run(Limits(max_params, max_state, max_ms_per_token))
