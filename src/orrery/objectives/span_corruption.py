"""Span corruption: an encoder-decoder spells out what was cut out of a text.

Paper: T5 (1910.10683, section 3.1.4).

Equation: about `share` of a document's tokens, in spans of mean length `mean`, are replaced by one sentinel each; the answer is
every sentinel with the tokens it stands for; the end stands behind both; ``loss = mean over the answer of -log p``.

Shapes: B batch, T time of the text, S of the source, U of the answer.

Cost: source and answer together are about (1 + 2 share / mean) T tokens.

Differs: sentinels are numbered upwards and begin anew in every document of a packed row; T5 numbers them from the last id
downwards, one text to a row.

Oracle: text put together again from source and answer (tests/objectives/test_pretext.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.registry import register
from orrery.models.corruption import Marks, fold_spans, marks_of, shifted, span_noise
from orrery.models.reading import Reading, report
from orrery.models.scoring import score
from orrery.nn.contract import Aux, Context
from orrery.ops.losses.cross_entropy import IGNORE


@dataclass(frozen=True, kw_only=True)
class SpanCorruptionConfig(Config):
    """share: of the tokens that are cut out. mean: length of a span. sentinels: how many, where no tokenizer says."""

    share: float = 0.15
    mean: float = 3.0
    sentinels: int = 8

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"share must lie between 0 and 1, not {self.share}")
        require(self.mean >= 1, f"mean must be 1 or more, not {self.mean}")
        require(self.sentinels >= 1, f"sentinels must be 1 or more, not {self.sentinels}")


class SpanCorruption:
    """`objective(model, batch) -> (loss, metrics)`. Without a tokenizer the vocabulary's last ids are the sentinels."""

    Config = SpanCorruptionConfig

    def __init__(self, config: SpanCorruptionConfig | None = None) -> None:
        self.config = config or SpanCorruptionConfig()
        self.sentinels: tuple[int, ...] = ()
        self.around = Marks()

    def meet(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Take the sentinels from a tokenizer.

        Raises:
            ConfigError: it has none.
        """
        if tokenizer is not None:
            numbered = {int(role[5:]): number for role, number in tokenizer.marks.items() if role.startswith("span-")}
            self.sentinels, self.around = tuple(numbered[key] for key in sorted(numbered)), marks_of(tokenizer)
            require(
                bool(self.sentinels),
                f"the tokenizer '{tokenizer.name}' has no sentinels; write it as {tokenizer.name}+spans-100",
            )

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss of a batch: "tokens" (B,T) int64, "segments" (B,T) or absent."""
        tokens: Tensor = batch["tokens"]
        config: Any = model.config
        segments = batch.get("segments")
        segments = torch.zeros_like(tokens) if segments is None else segments
        last = int(model.vocab_size)  # type: ignore[arg-type]
        sentinels = self.sentinels or tuple(range(last - self.config.sentinels, last))
        noise = span_noise(segments.cpu(), self.config.share, self.config.mean)
        pairs = fold_spans(tokens, segments, noise, sentinels, config.stop, self.around)
        target, wanted = shifted(pairs.answer, pairs.answer_segments, config.start)
        aux = Aux()
        out = model(pairs.source, target, pairs.source_segments, pairs.answer_segments, ctx=Context(aux=aux))
        return report(Reading(out, wanted, IGNORE, aux, False), score(model, out, wanted))


register(
    "span-corruption",
    objective="SpanCorruption",
    summary="spell out what was cut out (T5)",
    paper="1910.10683",
    year=2019,
    tags=("encoder-decoder", "stochastic"),
)
