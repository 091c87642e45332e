"""Accuracy by length: a model that is right by construction, one that guesses, and windows that change nothing."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.data import create_task
from orrery.evaluate.recall import accuracy_by_length


def test_windows_change_nothing_and_chance_is_stated():
    task = create_task("passkey(length=24)")
    model = orrery.create_model("lstm", width=16, depth=1, vocab_size=40, seed=0)
    runs = [accuracy_by_length(model, task, [24, 60], 32, 16, window) for window in (7, 60)]
    assert runs[0] == runs[1]
    for row in runs[0]:
        assert row["chance"] == 0.1 and row["examples"] == 32 and row["low"] <= row["accuracy"] <= row["high"]
        assert row["accuracy"] < 0.35 and row["whole"] == 0
    batch = task.test_batch(0, 16)
    with torch.no_grad():
        chosen = model(batch["tokens"]).logits[..., :32].argmax(-1)
    scored = batch["targets"] >= 0
    alone = accuracy_by_length(model, task, [24], 16, 16)[0]["accuracy"]
    assert alone == pytest.approx(float((chosen == batch["targets"])[scored].float().mean()))


def test_a_right_answer_is_counted_and_the_batches_are_the_tasks_own():
    """The targets are put where the model's head must find them: an example whose answers it gives scores one."""
    task = create_task("passkey(length=11, digits=5, distance=0)")
    model = orrery.create_model("lstm", width=16, depth=1, vocab_size=32, seed=0)

    class Knows(torch.nn.Module):
        head = torch.nn.Identity()

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        init_state = state_bytes = model.init_state

        def forward(self, tokens, state=None, ctx=None):
            key = tokens[:, 1:6]
            key = torch.where(torch.arange(len(key))[:, None] % 2 == 0, key, (key + 1) % 10)  # every other row is wrong
            logits = torch.nn.functional.one_hot(torch.cat([tokens[:, :6], key], 1)[:, : tokens.shape[1]], 32).float()
            return orrery.models.output.Output(logits, None)

    (row,) = accuracy_by_length(Knows(), task, [11], 32, 16)
    assert row["accuracy"] == row["whole"] == 0.5


def test_a_model_without_a_state_says_so():
    with pytest.raises(ConfigError, match="no state of its own"):
        accuracy_by_length(orrery.wrap(torch.nn.Embedding(40, 40), 40, "mine"), create_task("passkey"), [64])
