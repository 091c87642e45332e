"""DC-BiLSTM: bidirectional LSTMs, each of which reads the words and what all layers below it made of them.

Paper: Densely Connected Bidirectional LSTM with Applications to Sentence Classification (arXiv 1802.00889).

Equation: x^1 = e;  h^l = [forward LSTM(x^l); backward LSTM(x^l)];  x^{l+1} = [x^l; h^l]   for l = 1 .. L
    y = h^{L+1}, a last and wider such layer over x^{L+1};  score = W mean_t(y_t) + b

Shapes: B batch, T time, D width of the embedding, U units of a layer and direction, H those of the last layer, L layers.

Cost: train and read O(T), one token after another, 2 (L + 1) recurrences; 8 U (D + 2 U l) multiply-adds a token in layer l;
    no state is carried between calls.

Differs from the paper: the whole stack is one mixer in a block without residual, norm or channel mixer. Embeddings are
    learnt here, not GloVe's. Where 2 H is not D, a linear map brings the last layer to the width of the frame. The forget
    gates' biases start at 1. The released code averages over padding too; here padding counts for nothing.

Oracle: tests/oracles/dc_bilstm.py (float64 loops); a stack of torch's nn.LSTM with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.reversal import reversal
from orrery.nn.timeline import gather_time
from orrery.ops.lstm import lstm_layer


@dataclass(frozen=True, kw_only=True)
class DenseBiLSTMConfig(PartConfig):
    """layers: L, below the last. hidden: U; None: 13 for a width of 300, as there, in proportion. last: H, with a linear map
    2 H -> D; None: D / 2 without one."""

    layers: int = 15
    hidden: int | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        require(self.layers >= 0, f"layers must be 0 or more, not {self.layers}")
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")
        require(self.last is None or self.last > 0, f"last must be positive, not {self.last}")


class DirectedLSTM(nn.Module):
    """The weights of one layer in one direction."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight = nn.Parameter(torch.empty(4 * hidden, width))
        self.recurrent = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias = nn.Parameter(torch.empty(4 * hidden))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """X (B,T,W) in the order it is read -> (B,T,U)."""
        time = ctx.timeline
        return lstm_layer(x, self.weight, self.recurrent, self.bias, None, time.starts, time.lengths)[0]

    def reset_parameters(self) -> None:
        """Matrices uniform +-1/sqrt(fan-in); biases 0, the forget gate's 1."""
        for weight in (self.weight, self.recurrent):
            nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.bias[self.hidden : 2 * self.hidden])

    def flops(self, length: int) -> int:
        """Both products with the gates."""
        return 2 * length * (self.weight.numel() + self.recurrent.numel())


class DenseBiLSTM(Mixer):
    """The whole stack of layers; no state."""

    Config = DenseBiLSTMConfig
    config: DenseBiLSTMConfig
    examples = ({"layers": 0}, {"layers": 2, "hidden": 4, "last": 9})

    def __init__(self, config: DenseBiLSTMConfig, place: Place) -> None:
        super().__init__(config, place)
        width = place.width
        require(config.last is not None or width % 2 == 0, f"width {width} is odd, so that two directions cannot share it; set last")
        self.hidden = config.hidden or max(1, round(13 * width / 300))
        sizes = [self.hidden] * config.layers + [config.last or width // 2]
        widths = [width + 2 * self.hidden * layer for layer in range(config.layers + 1)]
        self.ahead = nn.ModuleList(DirectedLSTM(w, size) for w, size in zip(widths, sizes, strict=True))
        self.back = nn.ModuleList(DirectedLSTM(w, size) for w, size in zip(widths, sizes, strict=True))
        self.out = nn.Linear(2 * config.last, width, bias=False) if config.last else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (*self.ahead, *self.back):
            layer.reset_parameters()
        if self.out is not None:
            nn.init.uniform_(self.out.weight, -(self.out.in_features**-0.5), self.out.in_features**-0.5)

    def mix(self, x: Tensor, state: Any, ctx: Context) -> tuple[Tensor, None]:
        order = reversal(ctx.timeline, x.shape[1])

        def turn(value: Tensor) -> Tensor:
            return value.flip(1) if order is None else gather_time(value, order)

        forward, backward = x, turn(x)  # x^l in both reading orders
        for ahead, back in zip(self.ahead[:-1], self.back[:-1], strict=True):
            f, b = ahead(forward, ctx), back(backward, ctx)
            forward = torch.cat([forward, f, turn(b)], -1)
            backward = torch.cat([backward, turn(f), b], -1)
        y = torch.cat([self.ahead[-1](forward, ctx), turn(self.back[-1](backward, ctx))], -1)
        return (y if self.out is None else self.out(y)), None

    def flops(self, length: int) -> int:
        out = 0 if self.out is None else 2 * length * self.out.weight.numel()
        return out + sum(layer.flops(length) for layer in (*self.ahead, *self.back))


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "dc-bilstm"}, norm="none", placement="normed", scales=(0.0, 1.0, 1.0, 1.0)),
    kind="encoder",
    frame={"norm": "layernorm", "final_norm": False, "embedding.std": 0.5},
    heads={
        "classification": {"pool": "mean", "dropout": 0.5},
        "multi-label": {"pool": "mean", "dropout": 0.5},
        "regression": {"pool": "mean", "dropout": 0.5},
        "ordinal": {"pool": "mean", "dropout": 0.5},
        "masked-lm": {},
    },
    depth_factor=1e-3,  # one block, which is the whole stack
    width_step=4,
    fine="mixer.last",
    fine_step=1,
    fine_ratio=1 / 3,
    presets={"dc-bilstm-15": {"width": 300, "depth": 1, "hidden": 13, "last": 100}},
)

register(
    "dc-bilstm",
    mixer="DenseBiLSTM",
    architecture="ARCHITECTURE",
    summary="DC-BiLSTM: fifteen narrow bidirectional LSTMs, each reading all layers below, averaged over the sentence",
    paper="1802.00889",
    year=2018,
    tags=("bidirectional", "sequential", "encoder"),
    presets=("dc-bilstm-15",),
)
