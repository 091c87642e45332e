"""Prefix language modelling: an encoder-decoder reads the beginning of a text and writes the rest.

Paper: T5 (1910.10683, section 3.1.4, the baseline "prefix language modeling").

Equation: every document is cut at a uniformly drawn place; ``loss = mean over the rest of -log p(token | beginning, rest so far)``.

Shapes: B batch, T time of the text.

Cost: that of T tokens, each in one of the two stacks.

Differs: nothing known (the end stands behind source and answer, as in its code).

Oracle: source and answer put together are the text (tests/objectives/test_pretext.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import Config
from orrery.core.registry import register
from orrery.models.corruption import Marks, marks_of, shifted, split_rows
from orrery.models.reading import Reading, report
from orrery.models.scoring import score
from orrery.nn.contract import Aux, Context
from orrery.ops.losses.cross_entropy import IGNORE


@dataclass(frozen=True, kw_only=True)
class PrefixLMConfig(Config):
    """Nothing to set."""


class PrefixLM:
    """`objective(model, batch) -> (loss, metrics)`."""

    Config = PrefixLMConfig

    def __init__(self, config: PrefixLMConfig | None = None) -> None:
        self.config = config or PrefixLMConfig()
        self.around = Marks()

    def meet(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Take from a tokenizer what stands before texts."""
        if tokenizer is not None:
            self.around = marks_of(tokenizer)

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss of a batch: "tokens" (B,T) int64, "segments" (B,T) or absent."""
        tokens: Tensor = batch["tokens"]
        config: Any = model.config
        segments = batch.get("segments")
        segments = torch.zeros_like(tokens) if segments is None else segments
        pairs = split_rows(tokens, segments, config.stop, around=self.around)
        target, wanted = shifted(pairs.answer, pairs.answer_segments, config.start)
        aux = Aux()
        out = model(pairs.source, target, pairs.source_segments, pairs.answer_segments, ctx=Context(aux=aux))
        return report(Reading(out, wanted, IGNORE, aux, False), score(model, out, wanted))


register(
    "prefix-lm",
    objective="PrefixLM",
    summary="read the beginning, write the rest (encoder-decoder)",
    paper="1910.10683",
    year=2019,
    tags=("encoder-decoder", "stochastic"),
)
