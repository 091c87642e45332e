"""Replaced-token detection: a small generator fills in masked tokens, and the model tells which ones are not the original's.

Paper: ELECTRA (2003.10555); gradient-disentangled embeddings: DeBERTaV3 (2111.09543, section 3.2), CamemBERTa (2306.01497).

Equation: chosen tokens (`share` of each row) become the mask, the generator G draws x' ~ p_G there, and the model D reads x':

    ``loss = mean over the chosen of -log p_G(x) + weight * mean over all tokens of -log p_D(x'_t is x_t, or is not)``

Drawing is no part of the gradient. embeddings: "shared": both have the same tables, which learn from both losses (ELECTRA);
"disentangled": ``E_D = stop(E_G) + E_delta``, E_delta = 0 at first: the generator's table learns from its loss alone, and the
model's follows it and adds what its own loss says (DeBERTaV3); "own": nothing is shared.

Shapes: B batch, T time, V vocabulary.

Cost: the model's, and that of a generator whose layers are `width_share` as wide and `depth_share` as many; the generator's
    logits are made for the chosen tokens only.

Differs: all chosen tokens become the mask, as the paper says; its code leaves 15 % of them. "shared" are the tables; its code shares the
    norm behind them, too. Both means are sums divided by the expected numbers of tokens, so that micro-batches add up to their
    batch. The model's table holds E_D itself: at every call it first takes the step that the generator's has taken since the last
    (:meth:`ReplacedTokens.settle` after the last step), which is the same as keeping E_delta, as tables have no weight decay.

Oracle: a loop in tests/objectives/test_replaced_tokens.py; transformers' ElectraForPreTraining has the same loss on the same x'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import Config, require
from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.models.build import build
from orrery.models.config import EncoderConfig
from orrery.models.corruption import choose
from orrery.models.encoder import Encoder
from orrery.models.heads import ReplacedTokens as Head
from orrery.nn.contract import Aux, Context
from orrery.ops.losses.cross_entropy import IGNORE

EMBEDDINGS = ("shared", "disentangled", "own")
_TABLES = ("embed", "position_embed", "type_embed")


@dataclass(frozen=True, kw_only=True)
class ReplacedTokensConfig(Config):
    """share: of the tokens that are masked. weight: of the model's own loss. width_share, depth_share: the generator's size, relative
    to the model's. embeddings: how the tables of both hang together.
    """

    share: float = 0.15
    weight: float = 50.0
    width_share: float = 0.25
    depth_share: float = 1.0
    embeddings: str = "shared"

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"share must lie between 0 and 1, not {self.share}")
        require(self.weight >= 0, f"weight must be 0 or more, not {self.weight}")
        for name in ("width_share", "depth_share"):
            require(0 < getattr(self, name) <= 1, f"{name} must lie in (0, 1], not {getattr(self, name)}")
        require(self.embeddings in EMBEDDINGS, f"embeddings must be one of {', '.join(EMBEDDINGS)}, not '{self.embeddings}'")


class ReplacedTokens(nn.Module):
    """`objective(model, batch) -> (loss, metrics)`; a module, because it trains a generator, made when it meets the model."""

    Config = ReplacedTokensConfig

    def __init__(self, config: ReplacedTokensConfig | None = None) -> None:
        super().__init__()
        self.config = config or ReplacedTokensConfig()
        self.generator: Encoder | None = None
        self.mask: int | None = None
        self.spared: tuple[int, ...] = ()  # marks are never masked

    def meet(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Make the generator for a model that is not trained yet, and take the mask and the marks from a tokenizer.

        Raises:
            ConfigError: a model that is no encoder with the head "replaced-tokens", or a tokenizer without a mask.
        """
        if tokenizer is not None:
            require("mask" in tokenizer.marks, f"the tokenizer '{tokenizer.name}' has no mask; write it as {tokenizer.name}+mask")
            self.mask = tokenizer.marks["mask"]
            self.spared = (tokenizer.doc_id, *tokenizer.marks.values())
        if self.generator is not None:
            return
        if not isinstance(model, Encoder) or not isinstance(model.head, Head):
            raise ConfigError("replaced-token detection trains an encoder with the head 'replaced-tokens', as `electra` has it")
        made = cast(Encoder, build(generator_config(model.config, self.config), seed=0))
        self.generator = made.to(device=model.embed.weight.device, dtype=model.embed.weight.dtype)
        for name in _TABLES if self.config.embeddings != "own" else ():
            ours, theirs = getattr(self.generator, name), getattr(model, name)
            if ours is None:
                continue
            if self.config.embeddings == "shared":
                ours.weight = theirs.weight
            else:
                with torch.no_grad():
                    ours.weight.copy_(theirs.weight)
                self.register_buffer(f"seen_{name}", ours.weight.detach().clone())
        self.generator.tie()

    @torch.no_grad()
    def settle(self, model: Any) -> None:
        """Let the model's tables take the steps that the generator's have taken, where embeddings are disentangled."""
        for name in _TABLES if self.config.embeddings == "disentangled" else ():
            seen = getattr(self, f"seen_{name}", None)
            if seen is not None:
                now = getattr(self.generator, name).weight
                getattr(model, name).weight.add_(now - seen)
                seen.copy_(now)

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss of a batch: "tokens" (B,T) int64, "segments" (B,T) or absent."""
        self.meet(model)
        self.settle(model)
        tokens: Tensor = batch["tokens"]
        segments: Tensor | None = batch.get("segments")
        valid = torch.ones_like(tokens, dtype=torch.bool) if segments is None else segments >= 0
        changed, nats = self.replace(tokens, segments, valid, int(model.vocab_size))  # type: ignore[arg-type]
        aux = Aux()
        out = model(changed, ctx=Context(aux=aux), segments=segments)
        scores, replaced = out.logits[valid], (changed != tokens)[valid]
        own = F.binary_cross_entropy_with_logits(_wide(scores), replaced.to(_wide(scores).dtype), reduction="sum")
        count = valid.sum()
        generated, detected = nats / count / self.config.share, own / count
        loss = generated + self.config.weight * detected
        metrics: dict[str, Any] = {
            "loss": loss.detach(),
            "tokens": count,
            "generator": generated.detach(),
            "detector": detected.detach(),
            "replaced": replaced.float().mean(),
            "right": ((scores.detach() > 0) == replaced).float().mean(),
        }
        for name, value in aux.losses.items():
            loss = loss + value
            metrics[f"aux/{name}"] = value.detach()
        return loss, metrics

    def replace(self, tokens: Tensor, segments: Tensor | None, valid: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
        """What the model reads (B,T), and the generator's nats of the masked tokens, summed."""
        generator = cast(Encoder, self.generator)
        eligible = valid.clone()
        for spared in self.spared:
            eligible &= tokens != spared
        chosen = choose(eligible, self.config.share, torch.rand(tokens.shape, device=tokens.device))
        hidden = generator(tokens.masked_fill(chosen, vocabulary - 1 if self.mask is None else self.mask), segments=segments).hidden
        logits = cast(nn.Module, generator.head)(hidden[chosen][None])[0]
        logits = _wide(logits)
        noise = -torch.log(-torch.log(torch.rand(logits.shape, device=logits.device).clamp(1e-20, 1 - 1e-7)))  # Gumbel
        drawn = (logits.detach() + noise).argmax(-1)
        return tokens.masked_scatter(chosen, drawn), F.cross_entropy(logits, tokens[chosen], reduction="sum", ignore_index=IGNORE)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def generator_config(model: EncoderConfig, config: ReplacedTokensConfig) -> EncoderConfig:
    """The generator for a model: the same layers, narrower and fewer, behind tables of the model's width."""
    data = model.to_dict()
    sizes = [block["mixer"].get("head_dim", 1) for block in data["blocks"]]
    width = max(1, round(config.width_share * model.width / max(sizes))) * max(sizes)
    tables = model.embedding.width or model.width
    data["embedding"]["width"] = None if tables == width else tables
    data["width"] = width
    data["layout"] = data["layout"][: max(1, round(config.depth_share * model.depth))]
    for block in data["blocks"]:
        for part, name in ((block["mixer"], "heads"), (block["mixer"], "kv_heads")):
            if part.get(name):
                part[name] = None
        if block["channel"] and block["channel"].get("hidden"):
            block["channel"]["hidden"] = max(8, round(block["channel"]["hidden"] * width / model.width / 8) * 8)
    data["head"] = {"name": "masked-lm", "transform": "gelu", "norm": True}
    return EncoderConfig.from_dict(data)


register(
    "replaced-tokens",
    objective="ReplacedTokens",
    summary="find the tokens that a small generator has put in (ELECTRA, DeBERTaV3)",
    paper="2003.10555",
    year=2020,
    tags=("discriminator", "bidirectional", "stochastic"),
)
