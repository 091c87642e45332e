"""One step: against a plain loop, accumulation, clipping, what is not finite, recomputation, bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import orrery
from orrery.core.errors import ConfigError, NonFiniteError
from orrery.optim.adamw import AdamW
from orrery.train.engine import Engine, Pair
from orrery.train.system import autocast, compile_blocks, recompute_blocks

V = 31


def make(clip=1.0, accumulate=1, dropout=0.0, dtype="float32", lr=1e-2, double=False):
    model = orrery.create_model("transformer", width=32, depth=2, vocab_size=V, seed=0, dropout=dropout)
    if double:
        model.double()
    pair = Pair(model, orrery.create_objective("next-token"))
    cpu = torch.device("cpu")
    optimizer = AdamW(pair, lr)
    return model, Engine(pair, optimizer, lambda step: lr, clip, accumulate, lambda: autocast(cpu, dtype))


def batch(seed, rows=4, padded=False):
    g = torch.Generator().manual_seed(seed)
    data = {"tokens": torch.randint(0, V, (rows, 17), generator=g)}
    if padded:
        data["segments"] = torch.zeros(rows, 17, dtype=torch.int64)
        data["segments"][0, 3:] = -1
        data["segments"][2, 9:] = 1
    return data


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gap(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_micro_batches_move_a_selection_bias_as_the_whole_batch_does():
    found = []
    for accumulate in (1, 4):
        moe = {"channel.name": "moe", "hidden": 8, "bias_rate": 0.01, "balance": 0.0}
        model = orrery.create_model("transformer", width=32, depth=2, vocab_size=V, seed=0, **moe).double()
        pair = Pair(model, orrery.create_objective("next-token"))
        engine = Engine(pair, AdamW(pair, 1e-3), lambda step: 1e-3, 1.0, accumulate)
        for step in range(4):
            engine.step(step, batch(step))
        found.append(torch.stack([block.channel.selection_bias for block in model.blocks]))
    assert 0.015 < float(found[0].abs().max()) <= 0.0301  # three steps behind it
    torch.testing.assert_close(found[0], found[1])


def test_equals_a_plain_loop():
    model, engine = make(clip=0.5)
    twin = orrery.create_model("transformer", width=32, depth=2, vocab_size=V, seed=0)
    optimizer = AdamW(twin, 1e-2)
    for step in range(4):
        data = batch(step)
        ours = engine.step(step, data)
        optimizer.zero_grad()
        loss = F.cross_entropy(twin(data["tokens"][:, :-1]).logits.flatten(0, 1), data["tokens"][:, 1:].flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        assert ours.loss == pytest.approx(loss.item(), rel=1e-5)
        assert ours.norm == pytest.approx(float(norm), rel=1e-4)
        assert ours.norm > 0.5
        assert ours.tokens == 64
    assert gap(weights(model), weights(twin)) < 1e-4


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_the_big_batch(accumulate, padded):
    whole, one = make(double=True)
    parts, many = make(double=True, accumulate=accumulate)
    for step in range(3):
        a, b = one.step(step, batch(step, padded=padded)), many.step(step, batch(step, padded=padded))
        assert a.tokens == b.tokens == (50 if padded else 64)
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert a.norm == pytest.approx(b.norm, rel=1e-12)
    assert gap(weights(whole), weights(parts)) < 1e-10


def test_no_clipping():
    _, engine = make(clip=0.0)
    _, clipped = make(clip=1e-3)
    assert engine.step(0, batch(0)).norm == pytest.approx(clipped.step(0, batch(0)).norm)
    norm = torch.nn.utils.get_total_norm([p.grad for p in engine.parameters])
    small = torch.nn.utils.get_total_norm([p.grad for p in clipped.parameters])
    assert float(norm) > 0.1
    assert float(small) == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("what", ["loss", "gradient", "addition"])
def test_what_is_not_finite_stops_before_the_step(what, accumulate):
    model, engine = make(accumulate=accumulate)
    engine.step(0, batch(0))
    if what == "loss":
        with torch.no_grad():
            model.blocks[1].mixer_norm.weight[3] = float("nan")
    elif what == "gradient":
        model.blocks[0].mixer_norm.weight.register_hook(lambda g: g * float("inf"))
    else:
        inner = engine.pair.objective
        engine.pair.objective = lambda m, b: ((r := inner(m, b))[0] + float("inf"), r[1])
    before, moments = weights(model), [engine.optimizer.state[p]["exp_avg"].clone() for p in engine.parameters]
    with pytest.raises(NonFiniteError, match="at step 7 on batch 7"):
        engine.step(7, batch(1))
    after = weights(model)
    assert all(torch.equal(before[n], after[n]) or n == "blocks.1.mixer_norm.weight" for n in before)
    assert all(
        torch.equal(m, engine.optimizer.state[p]["exp_avg"]) for m, p in zip(moments, engine.parameters, strict=True)
    )


def test_the_complaint_names_parameters():
    model, engine = make()
    model.blocks[0].mixer_norm.weight.register_hook(lambda g: g * float("nan"))
    with pytest.raises(NonFiniteError, match=r"the gradient's norm is nan .* in the gradient of blocks.0.mixer_norm.weight"):
        engine.step(3, batch(0))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputation_changes_nothing(dropout):
    plain_model, plain = make(dropout=dropout)
    model, engine = make(dropout=dropout)
    recompute_blocks(model)
    for number in range(3):
        for each in (plain, engine):
            torch.manual_seed(number)
            each.step(number, batch(number))
    assert gap(weights(plain_model), weights(model)) == 0
    with pytest.raises(ConfigError, match="no blocks"):
        recompute_blocks(nn.Linear(2, 2))


def test_bfloat16_keeps_float32_parameters_and_is_near():
    exact_model, exact = make()
    model, engine = make(dtype="bfloat16")
    for number in range(3):
        a, b = exact.step(number, batch(number)), engine.step(number, batch(number))
        assert b.loss == pytest.approx(a.loss, rel=2e-2)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert 0 < gap(weights(exact_model), weights(model)) < 5e-2


def test_tasks_with_targets_train():
    task = orrery.data.create_task("mqar(pairs=2, length=8, vocab=16)")
    model = orrery.create_model("transformer", width=32, depth=1, vocab_size=task.vocab_size, seed=0)
    pair = Pair(model, orrery.create_objective("next-token"))
    engine = Engine(pair, AdamW(pair, 1e-2), lambda step: 1e-2)
    losses = [engine.step(step, task.batch(step, 16, seed=0)) for step in range(30)]
    assert losses[0].tokens == 32
    assert losses[-1].loss < losses[0].loss - 0.5


def test_compiled_blocks_train_alike(capsys):
    plain_model, plain = make()
    model, engine = make()
    assert compile_blocks(model, "aot_eager") == "aot_eager"
    plain.step(0, batch(0))
    engine.step(0, batch(0))
    assert gap(weights(plain_model), weights(model)) < 1e-4
    assert capsys.readouterr().err == ""


def test_a_compiler_that_fails_is_said_aloud(capsys, monkeypatch):
    def broken(function, backend):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    model, engine = make()
    assert compile_blocks(model, "inductor") == "off: RuntimeError: no C++ compiler"
    assert "torch.compile is not used: RuntimeError: no C++ compiler" in capsys.readouterr().err
    engine.step(0, batch(0))
