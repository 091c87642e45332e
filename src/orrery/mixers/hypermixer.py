"""HyperMixer: an MLP over time whose weights the tokens make themselves; an encoder of linear cost without attention.

Paper: HyperMixer: An MLP-based Low Cost Alternative to Transformers (arXiv 2203.03691).

Equation: for each head, X (T,D/H) its features and P sinusoids of the positions,
    W1 = gelu((X + P) A1) B1,   W2 = gelu((X + P) A2) B2   (T,M/H; W2 = W1 where tied)
    Y = W2 gelu(W1^T X);   y = LN([Y_1 .. Y_H])
    block:  x = x + hypermixing(LN(x));  x = x + MLP(LN(x))

Shapes: B batch, T time, D width, M hidden size of the mixing MLP, H heads.

Cost: O(T (D^2 + D M) / H) for the weights and O(T D M / H) for mixing, linear in T; no state. Padding costs nothing:
    documents are packed (nn/packing.py) and mixed length by length. Without gradients a long one is read a piece at a time.

Differs from the paper: one head by default, as there; the released code multiplies the input of the weight makers by sqrt(D),
    starts positions at 1 and lets the sinusoids' frequencies fall twice as fast: here positions begin at 0, frequencies are
    those of 1706.03762, and X is what the block's norm gives, of unit variance already.

Oracle: tests/oracles/hypermixer.py (float64 loops).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.norms import LayerNorm
from orrery.nn.packing import pack_timeline
from orrery.nn.pieces import in_pieces, pieces

POSITIONS = ("sinusoid", "none")
BASE = 10000.0


@dataclass(frozen=True, kw_only=True)
class HyperMixingConfig(PartConfig):
    """mixing: M; None: 2 D. heads: groups of features that are mixed apart. tied: one set of weights for both layers of the
    mixing MLP. positions: "sinusoid" (added where the weights are made) or "none": the mixing knows no order."""

    mixing: int | None = None
    heads: int = 1
    tied: bool = True
    positions: str = "sinusoid"

    def __post_init__(self) -> None:
        require(self.mixing is None or self.mixing > 0, f"mixing must be positive, not {self.mixing}")
        require(self.heads > 0, f"heads must be positive, not {self.heads}")
        require(self.positions in POSITIONS, f"positions '{self.positions}' must be one of {', '.join(POSITIONS)}")


class WeightMaker(nn.Module):
    """The hypernetwork: a small MLP per head that turns each token into a row of the mixing MLP's weights."""

    def __init__(self, heads: int, width: int, mixing: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.empty(heads, width, width))
        self.outer = nn.Parameter(torch.empty(heads, width, mixing))

    def forward(self, x: Tensor) -> Tensor:
        """X (H,N,D/H) -> (H,N,M/H)."""
        return F.gelu(x @ self.inner) @ self.outer

    def reset_parameters(self) -> None:
        """Uniform as Xavier's with gain sqrt(2)."""
        for weight in (self.inner, self.outer):
            bound = (12.0 / (weight.shape[1] + weight.shape[2])) ** 0.5
            nn.init.uniform_(weight, -bound, bound)


class HyperMixing(Mixer):
    """Mixing over a whole document by an MLP that the document makes; no state."""

    Config = HyperMixingConfig
    config: HyperMixingConfig
    packs = True
    examples = ({"mixing": 24}, {"heads": 4, "tied": False}, {"mixing": 20, "heads": 2, "positions": "none"})

    def __init__(self, config: HyperMixingConfig, place: Place) -> None:
        super().__init__(config, place)
        width, heads = place.width, config.heads
        mixing = config.mixing or 2 * width
        require(width % heads == 0, f"width {width} is not a multiple of heads {heads}")
        require(mixing % heads == 0, f"mixing {mixing} is not a multiple of heads {heads}")
        self.heads, self.mixing = heads, mixing
        self.into = WeightMaker(heads, width // heads, mixing // heads)
        self.back = None if config.tied else WeightMaker(heads, width // heads, mixing // heads)
        self.norm = LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.into.reset_parameters()
        if self.back is not None:
            self.back.reset_parameters()
        self.norm.reset_parameters()

    def mix(self, x: Tensor, state: Any, ctx: Context) -> tuple[Tensor, None]:
        time = ctx.timeline
        if time.groups is None and (time.starts is not None or time.lengths is not None):
            packing, packed = pack_timeline(time, len(x), x.shape[1])
            y, _ = self.mix(packing.gather(x), None, ctx.replace(time=packed))
            return packing.spread(y), None
        batch, length, width = x.shape
        places = self._places(x, ctx)
        if in_pieces(length) and (time.groups is None or len(time.groups) == 1 == time.groups[0][0]):
            return self._long(x, places), None
        known = x if places is None else x + places
        features = x.unflatten(-1, (self.heads, -1)).permute(2, 0, 1, 3)  # (H,B,T,D/H)
        known = known.unflatten(-1, (self.heads, -1)).permute(2, 0, 1, 3).flatten(1, 2)
        into = self.into(known).unflatten(1, (batch, length))
        back = into if self.back is None else self.back(known).unflatten(1, (batch, length))
        groups = time.groups or ((batch, length),)
        found, begin = [], 0
        for count, size in groups:
            parts = [features, into, back]
            if time.groups is not None:
                stop = begin + count * size
                parts = [part[:, 0, begin:stop].unflatten(1, (count, size)) for part in parts]
                begin = stop
            values, first, second = parts
            y = second @ F.gelu(first.transpose(-1, -2) @ values)  # (H,documents,T,D/H)
            found.append(y.flatten(1, 2))
        y = torch.cat(found, 1) if len(found) > 1 else found[0]
        return self.norm(y.permute(1, 0, 2).reshape(batch, length, width)), None

    def _places(self, x: Tensor, ctx: Context) -> Tensor | None:
        """The sinusoids of the positions, made by the first layer for all."""
        if self.config.positions != "sinusoid":
            return None
        shared, name = ctx.shared if ctx.shared is not None else {}, f"sinusoids {x.shape[-1]} {x.dtype}"
        if name not in shared:
            shared[name] = sinusoids(ctx.timeline.positions, x.shape[-1], x.dtype)
        return shared[name]

    def _long(self, x: Tensor, places: Tensor | None) -> Tensor:
        """Long documents x (B,T,D), one a row, a piece at a time: of all tokens only the weights are held, and only where tied."""
        batch, length, _ = x.shape

        def parts(piece: slice) -> tuple[Tensor, Tensor]:
            """Features and what weights are made of, (H,B,t,D/H)."""
            values = x[:, piece]
            known = values if places is None else values + places[..., piece, :]
            return cast("tuple[Tensor, Tensor]", tuple(each.unflatten(-1, (self.heads, -1)).permute(2, 0, 1, 3) for each in (values, known)))

        def make(maker: WeightMaker, known: Tensor) -> Tensor:
            return maker(known.flatten(1, 2)).unflatten(1, known.shape[1:3])

        sums, held = x.new_zeros(self.heads, batch, self.mixing // self.heads, x.shape[-1] // self.heads), []
        for piece in pieces(length):
            values, known = parts(piece)
            into = make(self.into, known)
            sums += into.transpose(-1, -2) @ values
            if self.back is None:
                held.append(into)
        mixed, found = F.gelu(sums), torch.empty_like(x)
        for place, piece in enumerate(pieces(length)):
            back = held[place] if self.back is None else make(self.back, parts(piece)[1])
            found[:, piece] = self.norm((back @ mixed).permute(1, 2, 0, 3).flatten(2))
        return found

    def flops(self, length: int) -> int:
        """The makers' products, and those of the mixing itself."""
        width, heads = self.place.width, self.heads
        makers = 1 if self.back is None else 2
        making = 2 * makers * length * (width * width + width * self.mixing) // heads
        return making + 4 * length * width * self.mixing // heads


def sinusoids(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """[sin(p f_0), .., cos(p f_0), ..] (...,D) of positions (...), f_i = 10000^(-2i/D) (1706.03762)."""
    half = (width + 1) // 2
    rates = BASE ** (-2 * torch.arange(half, device=positions.device, dtype=torch.float64) / width)
    angles = positions[..., None].double() * rates
    return torch.cat([angles.sin(), angles[..., : width - half].cos()], -1).to(dtype)


ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "hypermixer"},
        channel={"name": "mlp", "activation": "gelu", "bias": True},
        norm="layernorm",
        eps=1e-5,
    ),
    kind="encoder",
    frame={"norm": "layernorm", "eps": 1e-5, "final_norm": True, "embedding.norm": True},
    heads={
        "masked-lm": {"transform": "gelu", "norm": True},
        "classification": {"pool": "mean"},
        "multi-label": {"pool": "mean"},
        "regression": {"pool": "mean"},
        "ordinal": {"pool": "mean"},
    },
    width_step=32,
    fine_ratio=4.0,
    presets={"hypermixer-256": {"width": 256, "depth": 8, "mixing": 512}},
)

register(
    "hypermixer",
    mixer="HyperMixing",
    architecture="ARCHITECTURE",
    summary="HyperMixer: the tokens make the weights of an MLP over time; an encoder of linear cost without attention",
    paper="2203.03691",
    year=2022,
    tags=("bidirectional", "parallel", "positions", "encoder"),
    presets=("hypermixer-256",),
)
