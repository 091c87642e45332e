"""Seeds, progress, environment."""

import io
import sys

import numpy as np
import torch

from orrery.core import progress as progress_module
from orrery.core.environment import environment
from orrery.core.progress import duration, progress
from orrery.core.seeds import derive, generator, numpy_generator, seed_everything


def test_streams_are_named_by_their_keys():
    draw = [torch.rand(4, generator=generator(7, *keys)) for keys in [("a", 1), ("a", 1), ("a", 2), ("b", 1)]]
    assert torch.equal(draw[0], draw[1])
    assert not any(torch.equal(draw[0], other) for other in draw[2:])
    assert numpy_generator(1, "x").integers(1 << 40) == numpy_generator(1, "x").integers(1 << 40)
    assert len({derive(seed, "k") for seed in range(1000)}) == 1000
    assert derive(1, 23) != derive(12, 3)


def test_streams_are_the_same_everywhere():
    assert derive(0, "init") == derive(0, "init") == 6767970929478544064


def test_seed_everything_covers_all_three():
    drawn = []
    for _ in range(2):
        seed_everything(3)
        drawn.append((torch.rand(1).item(), np.random.rand(), __import__("random").random()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


def test_progress_speaks_plainly_when_not_on_a_terminal(monkeypatch):
    monkeypatch.setattr(progress_module, "PLAIN_EVERY", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(10, "reading", "tok") as bar:
        bar.update(5, loss="2.0")
    assert "reading:" in sys.stderr.getvalue() and "50 %" in sys.stderr.getvalue() and "loss 2.0" in sys.stderr.getvalue()
    sys.stderr = io.StringIO()
    with progress(10, "reading", quiet=True) as bar:
        bar.update(10)
    assert sys.stderr.getvalue() == ""


def test_durations_read_well():
    assert [duration(s) for s in (5, 75, 3700)] == ["5 s", "1 min 15 s", "1 h 1 min"]


def test_environment_names_versions_and_machine():
    facts = environment()
    assert facts["packages"]["torch"] == torch.__version__ and facts["cpu"] and facts["threads"] == torch.get_num_threads()
