"""An installed package that Orrery has never heard of takes part in everything: an entry point is all it needs.

The package lies in a temporary folder with the metadata that an installer would write; a fresh interpreter sees it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MIXER = '''"""Leaky average over time: h_t = a h_{t-1} + (1 - a) W x_t with one learned a per channel. B batch, T time, D width."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.registry import register
from orrery.nn.contract import Mixer, PartConfig
from orrery.nn.state import state
from orrery.nn.timeline import fresh_clock


@dataclass(frozen=True, kw_only=True)
class EchoConfig(PartConfig):
    keep: float = 0.9


@state
class EchoState(NamedTuple):
    h: Tensor
    clock: Tensor


class Echo(Mixer):
    Config, State = EchoConfig, EchoState

    def __init__(self, config, place):
        super().__init__(config, place)
        self.into = nn.Linear(place.width, place.width, bias=False)
        self.rate = nn.Parameter(torch.empty(place.width))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.into.weight, std=self.place.width**-0.5)
        nn.init.constant_(self.rate, math.log(self.config.keep / (1 - self.config.keep)))

    def mix(self, x, state, ctx):
        time, a, u = ctx.timeline, torch.sigmoid(self.rate), self.into(x)
        h = u.new_zeros(len(x), x.shape[-1]) if state is None else state.h.to(u.dtype)
        valid, found = time.valid(x.shape[1]), []
        for t in range(x.shape[1]):
            if time.starts is not None:
                h = torch.where(time.starts[:, t, None], torch.zeros_like(h), h)
            after = a * h + (1 - a) * u[:, t]
            h = after if valid is None else torch.where(valid[:, t, None], after, h)
            found.append(h)
        return torch.stack(found, 1), EchoState(h, time.clock)

    def init_state(self, batch, device=None, dtype=None):
        return EchoState(torch.zeros(batch, self.place.width, device=device, dtype=dtype), fresh_clock(batch, device))

    def state_bytes(self, length):
        return 4 * self.place.width

    def flops(self, length):
        return (2 * self.place.width**2 + 3 * self.place.width) * length


register("echo", mixer="Echo", summary="Leaky average", tags=("causal", "recurrent", "sequential"))
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a package and its dist-info, as site-packages does."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "orrery_echo").mkdir()
    (folder / "orrery_echo" / "__init__.py").write_text(MIXER)
    info = folder / "orrery_echo-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: orrery-echo\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[orrery.mixers]\necho = orrery_echo\n")
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(folder), str(ROOT / "src")])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=240)


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-c", "import sys; from orrery.cli import main; sys.exit(main())", *arguments)


def test_listed_without_being_imported(installed: Path) -> None:
    code = "import sys, orrery; print('echo' in orrery.list_models('*'), 'torch' in sys.modules, 'orrery_echo' in sys.modules)"
    done = python(installed, "-c", code)
    assert done.stdout.split() == ["True", "False", "False"], done.stderr
    listed = cli(installed, "list", "ech*", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "echo" in json.dumps(json.loads(listed.stdout))


def test_built_trained_and_checked(installed: Path) -> None:
    code = """
import torch, orrery
from orrery.testing import check_mixer, check_model
model = orrery.create_model("echo", size="nano", vocab_size=31)
assert abs(model.num_parameters() / 300_000 - 1) < 0.02, model.num_parameters()
hybrid = orrery.create_model("echo*2 + transformer", width=32, depth=3, vocab_size=31)
loss, metrics = orrery.create_objective("next-token")(hybrid, {"tokens": torch.randint(31, (2, 17))})
loss.backward()
ran = check_mixer("echo")
assert sum(not c.disabled for c in ran) >= 23, [c.name for c in ran if c.disabled]
check_model("echo")
print("all passed")
"""
    done = python(installed, "-c", code)
    assert done.stdout.strip() == "all passed", done.stdout + done.stderr[-3000:]


def test_a_name_that_is_taken_is_refused(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "thief").mkdir()
    (tmp_path / "thief" / "__init__.py").write_text('register("attention", mixer="Echo", summary="not mine")\n')
    info = tmp_path / "thief-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thief\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[orrery.mixers]\nthief = thief\n")
    done = cli(tmp_path, "list")
    assert done.returncode == 2
    assert "'attention' is registered twice" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_compared(installed: Path, tmp_path: Path) -> None:
    """The shortest comparison: two steps of training in worker processes, which must know the package too."""
    code = f"""
import orrery
from orrery.compare.conduct import Parts

if __name__ == "__main__":
    parts = Parts(costs=False, capabilities=(), floors=False)
    result = orrery.compare(
        ["echo"], corpus={str(ROOT / "README.md")!r}, budget="1ktok", seeds=1, length=64, batch=8,
        sample=8192, out={str(tmp_path / "out")!r}, root={str(tmp_path / "runs")!r}, jobs=1, parts=parts,
    )
    print(result.status, [run.status for run in result.runs])
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    done = python(installed, str(script))
    assert done.stdout.split("\n")[-2].startswith("complete"), done.stdout[-2000:] + done.stderr[-3000:]
