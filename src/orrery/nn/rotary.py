"""Rotary position embedding (RoFormer, arXiv 2104.09864), and its scaling to texts longer than those trained on.

    (q_{2i}, q_{2i+1})_t  is turned by the angle  t w_i,  w_i = theta^(-2i/R),  i = 0 .. R/2-1;  dimensions from R on stay

Pairs are neighbours, as in the paper, so that a turn is one complex product; models that pair i with i + R/2 (Llama's
code) differ by a fixed permutation of the projection's rows, which the exchange maps apply.

Scaling by a factor s from N trained tokens, with n_i = N w_i / 2 pi turns of pair i over them:

    linear     w_i / s                                                               (position interpolation, 2306.15595)
    dynamic    w_i of the base theta (s L/N - s + 1)^(R/(R-2)) for a text of L > N tokens; as trained up to N
    yarn       r_i w_i + (1 - r_i) w_i / s, r a ramp over i from `fast` turns (1) to `slow` turns (0); a = 0.1 ln s + 1   (2309.00071)
    llama3     the same with r_i = (n_i - slow) / (fast - slow), cut to [0, 1]; a = 1                    (Llama 3.1, 2407.21783)
    longrope   w_i / short_i for texts of up to N tokens, w_i / long_i for longer ones; a = sqrt(1 + ln s / ln N)        (2402.13753)

Queries and keys are multiplied by a as they are turned (scores by a^2). DeepSeek's form of YaRN, with its two numbers
m and m', has a = (0.1 m ln s + 1) / (0.1 m' ln s + 1), and its latent attention multiplies all scores by (0.1 m' ln s + 1)^2.

`dynamic` and `longrope` depend on how long a text is. It is the document that counts, as far as the call has read it; keys in a
cache stay as they were turned. So a text read in two calls, or written token by token, differs from one read at once beyond N
tokens, as it does in transformers; a document never depends on those beside it.

B batch, T time, H heads, K head dimension, R rotated dimensions, N trained length.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orrery.core.config import Config, require
from orrery.core.errors import ConfigError, suggest
from orrery.nn.kept import kept
from orrery.ops.fused.rotation import turn

KINDS = ("linear", "dynamic", "yarn", "llama3", "longrope")
_FAST = {"yarn": 32.0, "llama3": 4.0}


@dataclass(frozen=True, kw_only=True)
class RopeScaling(Config):
    """A scaling of rotary positions; also written as text, "yarn(factor=4, original=4096)".

    kind: one of linear, dynamic, yarn, llama3, longrope. factor: s. original: N (linear has no use for it). part: the rotated part of
    each head. attention: a, where it is not what the kind says. slow, fast: turns of yarn and llama3 (fast None: 32 and 4).
    mscale, mscale_all: m and m'. truncate: yarn's ramp begins and ends at whole pairs. short, long: R/2 divisors of longrope each.
    """

    NOUN = 'a scaling such as "yarn(factor=4, original=4096)"'

    kind: str
    factor: float = 1.0
    original: int | None = None
    part: float = 1.0
    attention: float | None = None
    slow: float = 1.0
    fast: float | None = None
    mscale: float | None = None
    mscale_all: float | None = None
    truncate: bool = True
    short: tuple[float, ...] | None = None
    long: tuple[float, ...] | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any] | str, where: str = "") -> RopeScaling:
        """From a mapping of settings, or from text "kind(setting=value, ...)"."""
        return super().from_dict(spelled_scaling(data) if isinstance(data, str) else data, where)

    def __post_init__(self) -> None:
        require(self.kind in KINDS, f"unknown scaling of positions '{self.kind}'.{suggest(self.kind, KINDS)} Known: {', '.join(KINDS)}")
        require(math.isfinite(self.factor) and self.factor >= 1, f"the factor of a scaling must be 1 or more, not {self.factor:g}")
        named = self.kind == "linear" or (self.original or 0) > 1
        require(named, f"'{self.kind}' needs the trained length: {self.kind}(..., original=4096); it is {self.original}")
        require(0 <= self.part <= 1, f"part is the rotated part of a head, in [0, 1], not {self.part:g}")
        require(0 < self.slow < self.turns < math.inf, f"slow and fast turns must ascend from above 0, not {self.slow:g} and {self.turns:g}")
        require(self.attention is None or 0 < self.attention < math.inf, f"attention must be positive and finite, not {self.attention}")
        weights = [weight for weight in (self.mscale, self.mscale_all) if weight is not None]
        require(all(0 <= weight < math.inf for weight in weights), f"mscale and mscale_all must be finite and 0 or more, not {weights}")
        both = self.short is not None and self.long is not None and len(self.short) == len(self.long)
        require(both or self.kind != "longrope", "longrope needs as many divisors `short` as `long`, one for each rotated pair")
        divisors = (*(self.short or ()), *(self.long or ()))
        require(all(0 < divisor < math.inf for divisor in divisors), "divisors of longrope must be positive and finite")

    @property
    def turns(self) -> float:
        """Turns over the trained length from which on a pair stays as it is."""
        return _FAST.get(self.kind, 32.0) if self.fast is None else self.fast

    @property
    def grows(self) -> bool:
        """Whether a text's length decides."""
        return self.kind in ("dynamic", "longrope")

    @property
    def gain(self) -> float:
        """a, by which queries and keys are multiplied."""
        if self.attention is not None:
            return self.attention
        if self.kind == "yarn" and self.mscale and self.mscale_all:
            return _magnitude(self.factor, self.mscale) / _magnitude(self.factor, self.mscale_all)
        if self.kind == "yarn":
            return _magnitude(self.factor, 1.0)
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original or 2)) if self.kind == "longrope" else 1.0

    @property
    def score_gain(self) -> float:
        """What latent attention multiplies all scores by."""
        return _magnitude(self.factor, self.mscale_all) ** 2 if self.kind == "yarn" and self.mscale_all else 1.0

    def given(self) -> dict[str, Any]:
        """The settings that are not the defaults, as plain data."""
        plain = {**{field.name: field.default for field in dataclasses.fields(self)}, "kind": None}
        plain["fast"] = None if self.fast is None else _FAST.get(self.kind)
        return {key: value for key, value in self.to_dict().items() if value != plain[key]}


def _magnitude(factor: float, weight: float) -> float:
    """0.1 m ln s + 1 (2309.00071 eq. 22)."""
    return 0.1 * weight * math.log(factor) + 1.0


def spelled_scaling(text: str) -> dict[str, Any]:
    """The settings of "kind(setting=value, ...)"."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        named, pairs = (call.func, call.keywords) if isinstance(call, ast.Call) and not call.args else (call, [])
        once = len({pair.arg for pair in pairs}) == len(pairs)
        if isinstance(named, ast.Name) and once and all(pair.arg for pair in pairs):
            found = {"kind": named.id, **{str(pair.arg): _literal(pair.value) for pair in pairs}}
            scales = named.id not in KINDS or named.id == "longrope" or "factor" in found
            require(scales, f"'{named.id}' needs a factor: {named.id}(factor=4)")
            return found
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    raise ConfigError(f"cannot read the scaling of positions '{text}'; write kind(setting=value, ...), as yarn(factor=4, original=4096)")


def _literal(node: ast.expr) -> Any:
    known = {"true": True, "false": False, "none": None}
    return known[node.id.lower()] if isinstance(node, ast.Name) and node.id.lower() in known else ast.literal_eval(node)


Rope = RopeScaling | float  # the setting `rope` of a mixer: the rotated part of a head, or how positions are scaled


def rotated_size(rope: Rope, size: int) -> int:
    """R of a head of `size` dimensions. Raises ConfigError where a scaling does not fit it."""
    scaling, rotated = scaling_of(rope), 2 * int(part_of(rope) * size / 2)
    if scaling is not None and scaling.kind == "longrope":
        found = len(scaling.short or ())
        require(found == rotated // 2, f"longrope has {found} divisors for {rotated // 2} rotated pairs of a head")
    require(scaling is None or scaling.kind != "dynamic" or rotated != 2, "dynamic scaling needs more than one rotated pair in a head")
    return rotated


def part_of(rope: Rope) -> float:
    """The rotated part of a head."""
    return rope.part if isinstance(rope, RopeScaling) else float(rope)


def check_turns(rope: Rope, theta: float) -> None:
    """Raise unless positions can be turned so: `rope` a scaling or a part of a head in [0, 1], theta the base of the angles."""
    part, scaling = part_of(rope), scaling_of(rope)
    require(0 <= part <= 1, f"rope is the rotated part of a head, in [0, 1], not {part}")
    require(0 < theta < math.inf, f"rope_theta must be positive and finite, not {theta:g}")
    require(theta > 1 or scaling is None or scaling.kind != "yarn", f"yarn needs a rope_theta above 1, not {theta:g}")


def scaling_of(rope: Rope) -> RopeScaling | None:
    """The scaling, if there is one."""
    return rope if isinstance(rope, RopeScaling) else None


def rotary_rates(rotated: int, theta: float, scaling: RopeScaling | None = None, lengths: Tensor | None = None) -> Tensor:
    """Angles per token (R/2,), float64; where a text's length decides, of texts of `lengths` (...) tokens: (...,R/2).

    Without `lengths` they are those of a text no longer than the trained length.
    """
    device = None if lengths is None else lengths.device
    exponents = torch.arange(0, rotated, 2, dtype=torch.float64, device=device) / max(rotated, 1)
    rates = theta**-exponents
    if scaling is None or not rotated:
        return rates
    factor, original = scaling.factor, float(scaling.original or 1)
    if scaling.kind == "linear":
        return rates / factor
    if scaling.kind == "dynamic":
        if lengths is None:
            return rates
        stretch = factor * lengths.to(torch.float64).clamp(min=original) / original - (factor - 1)
        return rates * stretch[..., None] ** (-exponents * rotated / (rotated - 2))
    if scaling.kind == "longrope":
        short, long = (rates / torch.tensor(each, dtype=torch.float64, device=device) for each in (scaling.short, scaling.long))
        return short if lengths is None else torch.where((lengths > original)[..., None], long, short)
    if scaling.kind == "llama3":
        share = ((original * rates / (2 * math.pi) - scaling.slow) / (scaling.turns - scaling.slow)).clamp(0, 1)
    else:
        share = 1 - _ramp(scaling, rotated, theta).to(rates)
    return share * rates + (1 - share) * rates / factor


def _ramp(scaling: RopeScaling, rotated: int, theta: float) -> Tensor:
    """How far pairs are interpolated (R/2,): 0 to 1 between those of `fast` and `slow` turns (2309.00071 section 3.2)."""

    def pair(turns: float) -> float:
        return rotated * math.log((scaling.original or 1) / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.turns), pair(scaling.slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotated - 1)
    last += 0.001 if first == last else 0.0
    return ((torch.arange(rotated // 2, dtype=torch.float64) - first) / (last - first)).clamp(0, 1)


def rotary_table(
    positions: Tensor, rotated: int, theta: float, double: bool = False, scaling: RopeScaling | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Complex numbers of magnitude a for positions (T,) or (B,T): (T,R/2) or (B,T,R/2), computed in float64.

    They are kept in single precision unless `double`. `lengths`: of the texts that the positions are of, as :func:`rotary_rates`.
    """
    rates = rotary_rates(rotated, theta, scaling, lengths).to(positions.device)
    angles = positions.to(torch.float64)[..., None] * rates
    magnitude = torch.full_like(angles, 1.0 if scaling is None else scaling.gain)
    return torch.polar(magnitude, angles).to(torch.complex128 if double else torch.complex64)


LONGEST = 1 << 16  # positions that a table is kept for beyond those of the call's own tokens


@kept(16)
def _table(length: int, rotated: int, theta: float, device: torch.device, double: bool, scaling: RopeScaling | None) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        pieces = torch.arange(length, device=device).split(1 << 14)  # angles are in float64: of a few positions at a time
        return torch.cat([rotary_table(piece, rotated, theta, double, scaling) for piece in pieces])


def cached_table(
    positions: Tensor, length: int, rotated: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None = None
) -> Tensor:
    """The same as :func:`rotary_table`, looked up: one table per size serves all layers and calls, up to `LONGEST` positions.

    Args:
        positions: (T,) counting from 0, or (B,T).
        length: a bound: every position is below it. Where a text's length decides, that of all texts.
        dtype: of what will be rotated; float64 gets a table in double precision.
    """
    double = dtype == torch.float64
    if outgrown(scaling, length):
        return rotary_table(positions, rotated, theta, double, scaling, torch.tensor(length, device=positions.device))
    if positions.dim() > 1 and length > max(LONGEST, positions.shape[1]):  # a state far on in a stream costs what its tokens cost
        return rotary_table(positions, rotated, theta, double, scaling)
    size = 1 << max(6, (length - 1).bit_length())
    table = _table(size, rotated, theta, positions.device, double, scaling)
    return table[: len(positions)] if positions.dim() == 1 else table[positions]


def outgrown(scaling: RopeScaling | None, length: int) -> bool:
    """Whether a text of this length is turned otherwise than a short one, by its length."""
    return scaling is not None and scaling.grows and length > (scaling.original or 0)


def step_table(capacity: int, rotated: int, theta: float, scaling: RopeScaling | None = None, begin: int = 0) -> Tensor:
    """What one token after the other is turned by, in single precision: positions p from `begin` to capacity - 1, L of them.

    Returns:
        (L,R/2): row p mod L is of position p, as the last of a text of p + 1 tokens; (1,0) where nothing turns.
    """
    if not rotated:
        return torch.zeros(1, 0, dtype=torch.complex64)
    places = torch.arange(begin, capacity)
    if begin:
        lengths = places + 1 if scaling is not None and scaling.grows else None
        return rotary_table(places, rotated, theta, scaling=scaling, lengths=lengths).roll(begin % len(places), 0)
    if outgrown(scaling, capacity):
        return rotary_table(places, rotated, theta, scaling=scaling, lengths=places + 1)
    return cached_table(places, capacity, rotated, theta, torch.float32, scaling)


def rotate(x: Tensor, table: Tensor, heads: int | None = None) -> Tensor:
    """Turn the first R of K dimensions of x (B,T,H,K) by table (T,R/2) or (B,T,R/2); with `heads`, of the first so many only."""
    return turn(x, table, x.shape[2] if heads is None else heads)


def rotate_by_reals(
    x: Tensor, positions: Tensor, rotated: int, theta: float, heads: int, scaling: RopeScaling | None = None
) -> Tensor:
    """:func:`rotate` in operations that every runtime has (no complex numbers, no table of a fixed length), for exported graphs.

    Args:
        x: (B,T,H,K). positions: (T,) or (B,T). rotated: R. heads: the first so many are turned.

    Raises:
        ConfigError: for a scaling that depends on a text's length, which a graph does not know.
    """
    require(scaling is None or not scaling.grows, f"'{scaling and scaling.kind}' scaling depends on a text's length and cannot be exported")
    angles = positions.to(torch.float64)[..., None] * rotary_rates(rotated, theta, scaling).to(positions.device)
    gain = 1.0 if scaling is None else scaling.gain
    cos, sin = ((part * gain).to(x.dtype)[..., None, :] for part in (angles.cos(), angles.sin()))
    even, odd = x[:, :, :heads, :rotated].unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    turned = torch.cat([turned, x[:, :, :heads, rotated:]], -1)
    return torch.cat([turned, x[:, :, heads:]], 2)
