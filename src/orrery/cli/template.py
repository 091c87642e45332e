"""The file that `orrery new mixer NAME` writes: a decaying average, whole enough to train, test and compare."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from orrery.core import registry
from orrery.core.errors import ConfigError
from orrery.core.files import write_text

MIXER = '''"""{title}: one sentence on what it is for.

Paper: yours (arXiv id).

Equation:  h_t = a * h_(t-1) + (1 - a) * W_in x_t,   a = sigmoid(p) per channel;   y_t = W_out (h_t * silu(W_gate x_t))

Shapes: B batch, T time, D width.

Cost: train O(T D^2), linear in T; decode O(D^2) a token; state D numbers.

Differs from the paper: nothing yet.

Oracle: the loop of the test beside this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.state import state
from orrery.nn.timeline import fresh_clock
from orrery.ops.diagonal_scan import diagonal_scan


@dataclass(frozen=True, kw_only=True)
class {cls}Config(PartConfig):
    """slowest: the longest memory at initialisation, in tokens."""

    slowest: float = 64.0

    def __post_init__(self) -> None:
        require(self.slowest > 1, f"slowest must be above 1 token, not {{self.slowest}}")


@state
class {cls}State(NamedTuple):
    """h (B,D), and the clock (B,2) that every state carries last."""

    h: Tensor
    clock: Tensor


class {cls}(Mixer):
    """A gated decaying average."""

    Config = {cls}Config
    State = {cls}State
    config: {cls}Config

    def __init__(self, config: {cls}Config, place: Place) -> None:
        super().__init__(config, place)
        self.inputs = nn.Linear(place.width, 2 * place.width, bias=False)
        self.out = nn.Linear(place.width, place.width, bias=False)
        self.p = nn.Parameter(torch.empty(place.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Memories spread evenly, on a logarithmic scale, from 2 tokens to `slowest`."""
        self.inputs.reset_parameters()
        self.out.reset_parameters()
        memory = torch.logspace(1, math.log2(self.config.slowest), len(self.p), base=2.0)
        with torch.no_grad():
            self.p.copy_(torch.logit(1 - 1 / memory))

    def mix(self, x: Tensor, state: {cls}State | None, ctx: Context) -> tuple[Tensor, {cls}State]:
        """x (B,T,D) -> y (B,T,D). Padding is trailing here, and `ctx.timeline` knows where documents start."""
        value, gate = self.inputs(x).chunk(2, -1)
        a_log = F.logsigmoid(self.p).expand_as(value)
        inputs = value * torch.sigmoid(-self.p)  # 1 - a
        time = ctx.timeline
        h, last = diagonal_scan(a_log, inputs, None if state is None else state.h, time.starts, time.lengths)
        return self.out(h * F.silu(gate)), {cls}State(last, time.clock)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> {cls}State:
        """Nothing seen."""
        return {cls}State(torch.zeros(batch, self.place.width, device=device), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length; float32."""
        return 4 * self.place.width

    def flops(self, length: int) -> int:
        """The two projections; the scan is a thousandth of them."""
        return 2 * 3 * self.place.width**2 * length


ARCHITECTURE = Architecture(block=BlockConfig(mixer={{"name": "{name}"}}, channel={{"name": "glu"}}), width_step=16)

{register}(
    "{name}",
    mixer="{cls}",
    architecture="ARCHITECTURE",
    summary="A gated decaying average",
    paper="",
    year={year},
    tags=("causal", "recurrent", "parallel"),
)
'''

TEST = '''"""Contract checks of {name}: run with `python -m pytest {test}`."""

from pathlib import Path

import numpy as np
import pytest

import orrery.testing
from orrery.core.registry import add_file

add_file(Path(__file__).with_name("{file}"))


def oracle(parameters, config, x, segments):
    """The equation as a loop in float64: parameters by name, x (B,T,D), segments (B,T) or None -> y (B,T,D)."""
    a = 1 / (1 + np.exp(-parameters["p"]))
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        h, document = np.zeros(x.shape[2]), None
        for t in range(x.shape[1]):
            if segments is not None and segments[b, t] < 0:
                continue  # padding: nothing happens
            if segments is not None and segments[b, t] != document:
                h, document = np.zeros(x.shape[2]), segments[b, t]
            value, gate = np.split(parameters["inputs.weight"] @ x[b, t], 2)
            h = a * h + (1 - a) * value
            y[b, t] = parameters["out.weight"] @ (h * gate / (1 + np.exp(-gate)))
    return y


@pytest.mark.parametrize("check", orrery.testing.checks_for("{name}", oracle=oracle), ids=str)
def test_contract(check):
    """Causal, equal in every form, blind to padding, and all else that the contract asks."""
    check()
'''


def write_mixer(name: str, folder: Path) -> tuple[Path, Path]:
    """Write the mixer and its test.

    Raises:
        ConfigError: when the name is taken or malformed, or a file is there already.
    """
    stem = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(stem):
        raise ConfigError(f"'{name}' cannot be a name; use lower-case words joined by hyphens, such as my-mixer")
    if name in registry.names():
        raise ConfigError(f"'{name}' exists already; choose another name")
    file, test = folder / f"{stem}.py", folder / f"test_{stem}.py"
    for path in (file, test):
        if path.exists():
            raise ConfigError(f"'{path}' exists already; nothing was written")
    words = name.split("-")
    facts = {
        "register": "register",  # spelled out, the line would register the template itself
        "name": name,
        "title": " ".join(words).capitalize(),
        "cls": "".join(word.capitalize() for word in words),
        "file": file.name,
        "test": test.name,
        "year": _year(),
    }
    write_text(file, MIXER.format(**facts))
    write_text(test, TEST.format(**facts))
    return file, test


def _year() -> int:
    from datetime import datetime, timezone

    return datetime.now(timezone.utc).year
