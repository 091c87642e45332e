"""A small correct mixer, and mixers that each break the contract in one way. Material of test_checks_bite.py.

Good: h_t = a_t h_{t-1} + b_t, a = sigmoid(Wa x), b = Wb x, y = Wo h + c.   B batch, T time, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.state import state
from orrery.nn.timeline import fresh_clock


@dataclass(frozen=True, kw_only=True)
class GoodConfig(PartConfig):
    """scale: of the output."""

    scale: float = 1.0


@state
class GoodState(NamedTuple):
    """h (B,D) and the clock."""

    h: Tensor
    clock: Tensor


class Good(Mixer):
    """Keeps the whole contract."""

    Config = GoodConfig
    State = GoodState
    tags = ("causal", "recurrent", "sequential")

    def __init__(self, config: GoodConfig, place: Place) -> None:
        super().__init__(config, place)
        width = place.width
        self.gate, self.into, self.out = nn.Linear(width, width), nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.gate, self.into, self.out):
            nn.init.normal_(linear.weight, std=self.place.width**-0.5)
        nn.init.zeros_(self.out.bias)
        nn.init.ones_(self.gate.bias)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(self.gate(x)), self.into(x)

    def start(self, given: GoodState | None, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), x.shape[-1], dtype=_wide(x)) if given is None else given.h

    def scan(self, a: Tensor, b: Tensor, h: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        time, found = ctx.timeline, []
        valid = time.valid(a.shape[1])
        for t in range(a.shape[1]):
            if time.starts is not None:
                h = torch.where(time.starts[:, t, None], torch.zeros_like(h), h)
            after = a[:, t].to(h.dtype) * h + b[:, t].to(h.dtype)
            h = after if valid is None else torch.where(valid[:, t, None], after, h)
            found.append(h)
        return torch.stack(found, 1), h

    def mix(self, x: Tensor, state: GoodState | None, ctx: Context) -> tuple[Tensor, Any]:
        a, b = self.gates(x)
        h, last = self.scan(a, b, self.start(state, x), ctx)
        return self.config.scale * self.out(h.to(x.dtype)), GoodState(last, ctx.timeline.clock)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> GoodState:
        return GoodState(torch.zeros(batch, self.place.width, device=device, dtype=dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        return 4 * self.place.width

    def flops(self, length: int) -> int:
        return (6 * self.place.width**2 + 4 * self.place.width) * length


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def good_oracle(parameters: dict[str, Any], config: dict[str, Any], x: Any, segments: Any) -> Any:
    """The equation in numpy, one row and one token at a time."""
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        h = np.zeros(x.shape[2])
        for t in range(x.shape[1]):
            if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                h = np.zeros(x.shape[2])
            a = 1 / (1 + np.exp(-(parameters["gate.weight"] @ x[b, t] + parameters["gate.bias"])))
            h = a * h + parameters["into.weight"] @ x[b, t]
            y[b, t] = config["scale"] * (parameters["out.weight"] @ h + parameters["out.bias"])
    return y


class WrongEquation(Good):
    def gates(self, x):
        a, b = super().gates(x)
        return a, b * 1.000001


class LeaksFuture(Good):
    def gates(self, x):
        a, b = super().gates(x)
        return a, b + 1e-4 * torch.roll(b, -1, 1)


class CarriesNaNBack(Good):
    def mix(self, x, state, ctx):
        y, after = super().mix(x, state, ctx)
        mask = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
        return y + torch.einsum("ts,bsd->btd", mask, x), after


class WrongStep(Good):
    def mix(self, x, state, ctx):
        y, after = super().mix(x, state, ctx)
        return (y * 1.001 if x.shape[1] == 1 and state is not None else y), after


class DropsTail(Good):
    def mix(self, x, state, ctx):
        y, after = super().mix(x, state, ctx)
        if x.shape[1] == 63:
            y = torch.cat([y[:, :-1], torch.zeros_like(y[:, -1:])], 1)
        return y, after


class ForgetsAtCut(Good):
    def start(self, given, x):
        return super().start(None if x.shape[1] > 1 else given, x)


class DetachesState(Good):
    def start(self, given, x):
        return super().start(given, x).detach()


class IgnoresSegments(Good):
    def scan(self, a, b, h, ctx):
        return super().scan(a, b, h, ctx.replace(time=ctx.time._replace(starts=None)))


class PaddingMovesState(Good):
    def scan(self, a, b, h, ctx):
        return super().scan(a, b, h, ctx.replace(time=ctx.time._replace(lengths=None)))


class WritesState(Good):
    def start(self, given, x):
        h = super().start(given, x)
        return h if given is None else h.mul_(1.0).add_(0.01)


class SharesState(Good):
    buffer: Tensor | None = None

    def mix(self, x, state, ctx):
        y, after = super().mix(x, state, ctx)
        if self.buffer is None or self.buffer.shape != after.h.shape or after.h.requires_grad:
            self.buffer = after.h.detach().clone()
        self.buffer.copy_(after.h.detach())
        return y, after._replace(h=self.buffer)


class DonationLosesState(Good):
    def start(self, given, x):
        return super().start(given, x)

    def mix(self, x, state, ctx):
        y, after = super().mix(x, state, ctx)
        return y, (after._replace(h=after.h * 0.9) if ctx.donate else after)


class MixesRows(Good):
    def gates(self, x):
        a, b = super().gates(x)
        return a, b - 0.01 * b.mean(0, keepdim=True)


class ReadsUnfilledMemory(Good):
    def mix(self, x, state, ctx):
        y, after = super().mix(x, state, ctx)
        unfilled = torch.empty(x.shape[-1], dtype=x.dtype)
        return y + 0 * unfilled, after


class WrongGradient(Good):
    def gates(self, x):
        a, b = super().gates(x)
        return a + 0.01 * (a - a.detach()), b


class IgnoresInitialGradient(Good):
    def start(self, given, x):
        h = super().start(given, x)
        return h + 0.5 * (h.detach() - h)


class DeadParameter(Good):
    def __init__(self, config, place):
        super().__init__(config, place)
        self.idle = nn.Parameter(torch.zeros(place.width))


class Overflows(Good):
    def gates(self, x):
        grown = torch.exp(self.gate(x))
        return grown / (1 + grown), self.into(x)


class RoundsState(Good):
    def scan(self, a, b, h, ctx):
        y, last = super().scan(a, b, h, ctx)
        return y, ((last * 4).round() / 4 if a.dtype == torch.bfloat16 else last)


class ComputesInFloat16(Good):
    def gates(self, x):
        a, b = super().gates(x)
        return a, (b.bfloat16().to(b.dtype) if b.dtype == torch.float32 else b)


class ForgetsReset(Good):
    def reset_parameters(self):
        bias = self.gate.bias.detach().clone()
        super().reset_parameters()
        with torch.no_grad():
            self.gate.bias.copy_(bias)


class HugeInit(Good):
    def reset_parameters(self):
        super().reset_parameters()
        nn.init.normal_(self.out.weight, std=50.0)


class ResetsDifferently(Good):
    def __init__(self, config, place):
        super().__init__(config, place)
        nn.init.normal_(self.into.weight, std=0.5)


class Rolls(Good):
    def mix(self, x, state, ctx):
        y, after = super().mix(x, state, ctx)
        return y * (1 + 1e-3 * np.random.default_rng().standard_normal()), after


class OverstatesFlops(Good):
    def flops(self, length):
        return 2 * super().flops(length)


class UnderstatesFlops(Good):
    def flops(self, length):
        return super().flops(length) // 2


class UnderstatesBytes(Good):
    def state_bytes(self, length):
        return 2 * self.place.width


class HiddenBuffer(Good):
    def __init__(self, config, place):
        super().__init__(config, place)
        self.register_buffer("hidden", torch.randn(place.width), persistent=False)

    def mix(self, x, state, ctx):
        y, after = super().mix(x, state, ctx)
        return y + self.hidden, after


class CompilesToAnother(Good):
    def mix(self, x, state, ctx):
        y, after = super().mix(x, state, ctx)
        return (y * 1.01 if torch.compiler.is_compiling() else y), after


class IgnoresContext(Good):
    def check_honoured(self, ctx):
        return


class WritesInput(Good):
    def mix(self, x, state, ctx):
        with torch.no_grad():
            x.mul_(1.5)
        return super().mix(x, state, ctx)


class TakesAnyState(Good):
    def check_state(self, state, batch):
        return

    def start(self, given, x):
        return super().start(given if isinstance(given, GoodState) and len(given.h) == len(x) else None, x)


class SelectsNothing(Good):
    """Its state selects the wrong rows."""

    @state
    class OtherState(NamedTuple):
        h: Tensor
        clock: Tensor

    OtherState.select = lambda self, index: type(self)(self.h[: len(index)], self.clock[: len(index)])
    State = OtherState

    def mix(self, x, state, ctx):
        y, after = super().mix(x, state, ctx)
        return y, self.OtherState(*after)

    def init_state(self, batch, device=None, dtype=None):
        return self.OtherState(*super().init_state(batch, device, dtype))


class SeesFutureInTransfer(Good):
    def transfer(self, x, ctx):
        return torch.ones(len(x), 1, x.shape[1], x.shape[1])


class UpdatesHalf(Good):
    def update(self, x, state, ctx):
        return self.mix(x[:, :2], state, ctx)[1]


EXPECTED = {
    WrongEquation: "oracle",
    LeaksFuture: "causality",
    CarriesNaNBack: "nan_future",
    WrongStep: "steps",
    DropsTail: "lengths",
    ForgetsAtCut: "split",
    DetachesState: "split",
    IgnoresSegments: "packing",
    PaddingMovesState: "padding",
    WritesState: "state_twice",
    SharesState: "state_twice",
    SelectsNothing: "state_select",
    DonationLosesState: "donated",
    MixesRows: "batch",
    ReadsUnfilledMemory: "uninitialised_memory",
    WrongGradient: "gradients",
    IgnoresInitialGradient: "gradients",
    DeadParameter: "every_parameter",
    Overflows: "extremes",
    RoundsState: "precision",
    ComputesInFloat16: "precision",
    ForgetsReset: "initialisation",
    HugeInit: "initialisation",
    ResetsDifferently: "initialisation",
    Rolls: "determinism",
    OverstatesFlops: "flops",
    UnderstatesFlops: "flops",
    UnderstatesBytes: "state_bytes",
    HiddenBuffer: "save_load",
    CompilesToAnother: "compile",
    IgnoresContext: "interface",
    WritesInput: "interface",
    TakesAnyState: "interface",
    SeesFutureInTransfer: "transfer",
    UpdatesHalf: "update",
}
"""Broken mixer -> the check that must fail for it."""
