"""Blocks of a kernel share nothing that one of them writes, wherever a training step or a prompt of some architecture calls it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import orrery
from apart import check_apart
from orrery.core import registry
from orrery.ops import compiled

pytest.importorskip("numba")

ARCHITECTURES = [entry.name for entry in registry.entries("architecture") if not {"encoder", "encoder-decoder"} & set(entry.tags)]
SEEN = set()  # kernels with the kinds of their arguments, each asked once


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_blocks_are_independent(name, monkeypatch):
    prepare = compiled.prepare_blocks

    def checked(kernel, blocks, work, *args):
        kinds = (blocks > 1, *(getattr(arg, "dtype", type(arg)) for arg in args))
        if (kernel, kinds) not in SEEN:
            SEEN.add((kernel, kinds))
            check_apart(kernel, blocks, args)
        return prepare(kernel, blocks, work, *args)

    monkeypatch.setattr(compiled, "prepare_blocks", checked)
    model = orrery.create_model(name, width=64, depth=2, vocab_size=61, seed=1)
    tokens = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(0))
    objective = orrery.create_objective("next-token")
    loss, _ = objective(model, {"tokens": tokens})
    loss.backward()
    with torch.inference_mode():
        model.eval()(tokens)


def test_a_kernel_that_shares_its_scratch_is_seen():
    @compiled.compiled
    def shares(first, last, x, scratch, y):
        for i in range(first, last):
            scratch[0] = x[i]
            y[i] = scratch[0]

    @compiled.compiled
    def looks(first, last, y):
        for i in range(first, last):
            y[i] = y[i - 1] + 1

    with pytest.raises(AssertionError, match="write the same memory"):
        check_apart(shares, 4, (np.arange(4.0) + 1, np.zeros(1), np.zeros(4)))
    with pytest.raises(AssertionError, match="reads what another writes"):
        check_apart(looks, 4, (np.arange(4.0),))
