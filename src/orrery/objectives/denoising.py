"""Denoising: an encoder-decoder writes a text as it was before spans were masked and sentences shuffled.

Paper: BART (1910.13461, section 2.2): text infilling and sentence permutation, the mixture it was trained with.

Equation: spans of Poisson(`mean`) tokens become one mask each until `share` of the tokens is gone; sentences are put in a
random order; the answer is the document, then the end; ``loss = mean over the answer of -log p``.

Shapes: B batch, T time of the text, S of the source, U of the answer.

Cost: source and answer together are about (2 - share) T tokens.

Differs: a span that would touch another is drawn anew, so spans never join; sentences end at tokens that end with a full stop, a
question mark or an exclamation mark, and are only shuffled where a tokenizer tells which those are.

Oracle: counts and order of tokens in tests/objectives/test_pretext.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.registry import register
from orrery.models.corruption import Marks, infill, marks_of, shifted
from orrery.models.reading import Reading, report
from orrery.models.scoring import score
from orrery.nn.contract import Aux, Context
from orrery.ops.losses.cross_entropy import IGNORE


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig(Config):
    """share: of the tokens that are masked. mean: length of a span. shuffle: whether sentences are put in a random order."""

    share: float = 0.3
    mean: float = 3.0
    shuffle: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.share < 1, f"share must lie in [0, 1), not {self.share}")
        require(self.mean > 0, f"mean must be above 0, not {self.mean}")


class Denoising:
    """`objective(model, batch) -> (loss, metrics)`. Without a tokenizer the vocabulary's last id is the mask."""

    Config = DenoisingConfig

    def __init__(self, config: DenoisingConfig | None = None) -> None:
        self.config = config or DenoisingConfig()
        self.mask: int | None = None
        self.breaks: Tensor | None = None
        self.around = Marks()

    def meet(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Take the mask, and what ends a sentence, from a tokenizer.

        Raises:
            ConfigError: it has no mask.
        """
        if tokenizer is not None:
            require(
                "mask" in tokenizer.marks,
                f"the tokenizer '{tokenizer.name}' has no mask; write it as {tokenizer.name}+mask",
            )
            self.mask, self.around = tokenizer.marks["mask"], marks_of(tokenizer)
            if self.config.shuffle:
                ends = [
                    tokenizer.decode([number]).rstrip().endswith((".", "?", "!"))
                    for number in range(tokenizer.vocab_size)
                ]
                self.breaks = torch.tensor(ends)

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss of a batch: "tokens" (B,T) int64, "segments" (B,T) or absent."""
        tokens: Tensor = batch["tokens"]
        config: Any = model.config
        segments = batch.get("segments")
        segments = torch.zeros_like(tokens) if segments is None else segments
        mask = int(model.vocab_size) - 1 if self.mask is None else self.mask  # type: ignore[arg-type]
        pairs = infill(tokens, segments, self.config.share, self.config.mean, mask, config.stop, breaks=self.breaks, around=self.around)
        target, wanted = shifted(pairs.answer, pairs.answer_segments, config.start)
        aux = Aux()
        out = model(pairs.source, target, pairs.source_segments, pairs.answer_segments, ctx=Context(aux=aux))
        return report(Reading(out, wanted, IGNORE, aux, False), score(model, out, wanted))


register(
    "denoising",
    objective="Denoising",
    summary="undo masked spans and shuffled sentences (BART)",
    paper="1910.13461",
    year=2019,
    tags=("encoder-decoder", "stochastic"),
)
