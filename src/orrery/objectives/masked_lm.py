"""Masked language modelling: an encoder finds out which tokens were hidden.

Paper: BERT (1810.04805, section 3.1); dynamic masking: RoBERTa (1907.11692, section 4.1); whole words: BERT's release of 2019.

Equation: of every row `share` of the tokens are chosen (0.15); of these 80 % become the mask, 10 % a random token, 10 % stay;
``loss = mean over the chosen of -log p(token | what is left)``.

Shapes: B batch, T time, V vocabulary.

Cost: that of the encoder; logits are made for the chosen tokens only.

Differs: exactly the share of each row is chosen (rounded, at least one; of whole words what comes nearest), where the original
draws every token by itself.

Oracle: a loop over tokens in tests/objectives/test_pretext.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.registry import register
from orrery.models.corruption import choose, hide, word_numbers
from orrery.models.reading import Reading, report
from orrery.models.scoring import score
from orrery.nn.contract import Aux, Context
from orrery.ops.losses.cross_entropy import IGNORE


@dataclass(frozen=True, kw_only=True)
class MaskedLMConfig(Config):
    """share: of the tokens that are chosen. masked, random: of the chosen ones. whole_words: words are chosen, not tokens (needs a
    tokenizer). static: a row is masked alike whenever it comes, from its own ids; else anew each time.
    """

    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    whole_words: bool = False
    static: bool = False

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"share must lie between 0 and 1, not {self.share}")
        require(
            self.masked >= 0 and self.random >= 0 and self.masked + self.random <= 1,
            "masked and random are shares of the chosen tokens",
        )


class MaskedLM:
    """`objective(model, batch) -> (loss, metrics)`. Without a tokenizer the vocabulary's last id is the mask."""

    Config = MaskedLMConfig

    def __init__(self, config: MaskedLMConfig | None = None) -> None:
        self.config = config or MaskedLMConfig()
        self.mask: int | None = None
        self.spared: tuple[int, ...] = ()  # marks are never hidden, and never put in
        self.edges: tuple[Tensor, Tensor] | None = None

    def meet(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Take the mask and the marks from a tokenizer.

        Raises:
            ConfigError: it has no mask, or words are asked for and there is no tokenizer.
        """
        if tokenizer is not None:
            require(
                "mask" in tokenizer.marks,
                f"the tokenizer '{tokenizer.name}' has no mask; write it as {tokenizer.name}+mask",
            )
            self.mask = tokenizer.marks["mask"]
            self.spared = (tokenizer.doc_id, *tokenizer.marks.values())
            if self.config.whole_words:
                first, last = tokenizer.word_edges()
                self.edges = torch.from_numpy(first), torch.from_numpy(last)
        require(
            not self.config.whole_words or self.edges is not None,
            "whole words need a tokenizer, which says where words begin",
        )

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss of a batch: "tokens" (B,T) int64, "segments" (B,T) or absent."""
        tokens: Tensor = batch["tokens"]
        marks: Tensor | None = batch.get("segments")
        hidden, targets = self.corrupt(tokens, marks, int(model.vocab_size))  # type: ignore[arg-type]
        aux = Aux()
        out = model(hidden, ctx=Context(aux=aux), segments=marks)
        return report(Reading(out, targets, IGNORE, aux, False), score(model, out, targets))

    def corrupt(self, tokens: Tensor, segments: Tensor | None, vocabulary: int) -> tuple[Tensor, Tensor]:
        """What the model reads, and what it is asked for (IGNORE where nothing), both (B,T)."""
        config, mask = self.config, vocabulary - 1 if self.mask is None else self.mask
        eligible = torch.ones_like(tokens, dtype=torch.bool) if segments is None else segments >= 0
        for spared in self.spared:
            eligible &= tokens != spared
        draws = _static(tokens) if config.static else torch.rand(3, *tokens.shape, device=tokens.device)
        words = None
        if config.whole_words and self.edges is not None:
            held = torch.zeros_like(tokens) if segments is None else segments
            words = word_numbers(tokens, held, *(edge.to(tokens.device) for edge in self.edges))
        chosen = choose(eligible, config.share, draws[0], words)
        random = (draws[2] * vocabulary).long().clamp(max=vocabulary - 1)
        for spared in (mask, *self.spared):
            random = torch.where(random == spared, tokens, random)
        hidden = hide(tokens, chosen, mask, random, draws[1], (config.masked, config.random))
        return hidden, tokens.masked_fill(~chosen, IGNORE)


def _static(tokens: Tensor) -> Tensor:
    """Numbers (3,B,T) in [0, 1) that depend on a row's ids alone: a multiplicative hash of their running sum."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    row = ((tokens + 1) * (place * 2654435761 + 40503) % 4294967291).sum(1, keepdim=True)
    found = []
    for number in range(3):
        x = (row * 1103515245 + (place + 1) * 2246822519 + number * 3266489917) % 4294967296
        x = ((x ^ (x >> 15)) * 2246822519) % 4294967296
        x = ((x ^ (x >> 13)) * 3266489917) % 4294967296
        found.append((x ^ (x >> 16)).double() / 4294967296)
    return torch.stack(found).float().clamp(max=1 - 2**-24)


register(
    "masked-lm",
    objective="MaskedLM",
    summary="find the hidden tokens (BERT, RoBERTa)",
    paper="1810.04805",
    year=2018,
    tags=("bidirectional", "stochastic"),
)
