"""LaMaTE: the encoder of an encoder-decoder is a decoder language model, fused, narrowed, and read by a small decoder.

Paper: Beyond Decoder-only: Large Language Models Can be Good Encoders for Machine Translation (arXiv 2503.06594).

Equation:  h_1 .. h_L the language model's layers on the source;  H = RMSNorm( 1/G sum_g sigmoid(w_g) h_{g L/G} )
    memory = stack(W2 gelu(W1 H)),  a bidirectional stack of width D;  target: a decoder of width D that reads the memory

The cache of decoding is that of the small decoder: 2 D (S + U) numbers a layer of it, where the language model by itself keeps
2 D_lm (S + U) in each of its own. `frozen` leaves the language model as it was trained (the paper's first stage).

Differs from the paper: any language model of this house takes part, not Llama alone, and its state is dropped.

B batch, S source, U target, D width, D_lm the language model's, L its layers, G groups of layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.registry import register
from orrery.models.build import resolve
from orrery.models.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from orrery.models.decoder import DecoderLM
from orrery.models.encoder_decoder import EncoderDecoder, Memory
from orrery.models.frame import check_input
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context
from orrery.nn.norms import RMSNorm
from orrery.nn.timeline import gather_time, plan, spread_time


def _language_model(vocab_size: int = 257) -> DecoderConfig:
    config = resolve("transformer", width=64, depth=4, vocab_size=vocab_size)
    assert isinstance(config, DecoderConfig)
    return config


@dataclass(frozen=True, kw_only=True)
class LaMaTEConfig(Config):
    """lm: the language model. width, heads: of the stack and the decoder; encoder_depth, decoder_depth: their layers. group:
    layers of the language model that one tensor stands for. frozen: its weights take no gradient. vocab_size: of the target.
    start, stop: as of every encoder-decoder."""

    vocab_size: int = 257
    lm: DecoderConfig = field(default_factory=_language_model)
    width: int = 32
    head_dim: int = 16
    encoder_depth: int = 1
    decoder_depth: int = 2
    group: int = 2
    frozen: bool = False
    start: int = 0
    stop: int | None = 1

    def __post_init__(self) -> None:
        require(1 <= self.group <= self.lm.depth, f"group {self.group} must lie between 1 and the language model's {self.lm.depth} layers")
        require(self.width % self.head_dim == 0, f"width {self.width} is not a multiple of head_dim {self.head_dim}")

    def pair(self) -> EncoderDecoderConfig:
        """The stack and the decoder as an encoder-decoder; the stack reads vectors, so its table has one row."""
        channel, head = {"name": "glu"}, {"head_dim": self.head_dim}
        reading = BlockConfig(mixer={"name": "bidirectional-attention", **head}, channel=channel)
        writing = BlockConfig(mixer={"name": "attention", **head}, cross={"name": "cross-attention", **head}, channel=channel)
        return EncoderDecoderConfig(
            architecture="lamate",
            encoder=EncoderConfig(
                architecture="lamate", vocab_size=1, width=self.width, blocks=(reading,), layout=(0,) * self.encoder_depth, norm="rmsnorm"
            ),
            decoder=DecoderConfig(
                architecture="lamate", vocab_size=self.vocab_size, width=self.width, blocks=(writing,), layout=(0,) * self.decoder_depth,
                tied=False,
            ),
            shared=False,
            start=self.start,
            stop=self.stop,
        )  # fmt: skip


class LaMaTE(EncoderDecoder):
    """`model(source, target) -> Output`, as every encoder-decoder; the source is in the language model's vocabulary."""

    Config = LaMaTEConfig
    registered_name = "lamate"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"lm": _language_model(61).to_dict()},)

    def __init__(self, config: LaMaTEConfig) -> None:
        super().__init__(config.pair())
        self.settings = config
        self.lm = DecoderLM(config.lm).requires_grad_(not config.frozen)
        self.gates = nn.Parameter(torch.empty(-(-config.lm.depth // config.group)))
        self.fused = RMSNorm(config.lm.width)
        self.narrow = nn.Sequential(
            nn.Linear(config.lm.width, config.width, bias=False), nn.GELU(), nn.Linear(config.width, config.width, bias=False)
        )
        self.encoder.embed.requires_grad_(False)
        self.lm.norm.requires_grad_(False)  # layers are fused as they are
        if not config.lm.tied:
            self.lm.head.requires_grad_(False)
        nn.init.normal_(self.gates)
        self.config: Any = config  # what is saved; `pair()` of it is the encoder-decoder's

    @property
    def layers(self) -> list[int]:
        """The language model's layers (counted from 1) that are fused: the last of every group."""
        depth, group = self.settings.lm.depth, self.settings.group
        return [min(stop, depth) for stop in range(group, depth + group, group)]

    def encode(self, source: Tensor, segments: Tensor | None = None, ctx: Context | None = None) -> Memory:
        """What the decoder reads of source (B,S): the language model's layers, fused, narrowed, and through the stack."""
        lm = self.lm
        batch, length, _ = check_input(source, None, lm.vocab_size, lm.config.width)
        time, order = plan(segments, None, batch, length, source.device)
        tokens = source if order is None else gather_time(source, order)
        inner = Context(time=time, tokens=tokens, shared={})
        h, begin, total = lm._embed(tokens, None, inner), 0, None
        for gate, stop in zip(torch.sigmoid(self.gates), self.layers, strict=True):
            h, _ = lm.run(h, begin, stop, None, inner)
            total, begin = gate * h if total is None else total + gate * h, stop
        assert total is not None
        fused = self.narrow(self.fused(total / len(self.layers)))
        fused = fused if order is None else spread_time(fused, order)
        own = Context(aux=None if ctx is None else ctx.aux)
        return Memory(self.encoder(embeds=fused, ctx=own, segments=segments).hidden, segments)

    def cache_saving(self, length: int) -> float:
        """Share of the bytes that the language model alone would keep, saved when source and target have `length` tokens each."""
        return 1 - self.decoder.state_bytes(length) / self.lm.state_bytes(2 * length)

    def flops(self, length: int, head: bool = True) -> int:
        linear = sum(m.weight.numel() for m in self.narrow if isinstance(m, nn.Linear))
        return super().flops(length, head) + self.lm.flops(length, head=False) + 2 * linear * length

    @torch.no_grad()
    def take(self, model: DecoderLM) -> None:
        """Copy the weights of a trained language model of the same config."""
        self.lm.load_state_dict(model.state_dict())

    def reset_parameters(self) -> None:
        """Draw everything anew but the language model."""
        super().reset_parameters()
        nn.init.normal_(self.gates)
        self.fused.reset_parameters()
        for part in self.narrow:
            if isinstance(part, nn.Linear):
                part.reset_parameters()


register(
    "lamate",
    model="LaMaTE",
    summary="An encoder-decoder whose encoder is a decoder language model, fused and narrowed",
    paper="2503.06594",
    year=2025,
    tags=("encoder-decoder", "parallel"),
)
