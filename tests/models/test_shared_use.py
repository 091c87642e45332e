"""One model in many hands: threads at once, copies, lower precision, autocast around a step, states made in inference mode."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

import orrery

NAMES = ["mamba2", "gated-deltanet", "rwkv7", "transformer-xl", "gtrxl", "egru", "transformer"]
V = 50


def build(name):
    return orrery.create_model(name, width=64, depth=2, vocab_size=V, seed=0).eval()


def tokens(seed, batch=2, length=12):
    return torch.randint(0, V, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_threads_meet_in_one_model(name):
    model, texts = build(name), [tokens(n, 1 + n % 2, 5 + 3 * n) for n in range(4)]

    def answers(text):
        with torch.no_grad():
            return model(text).hidden, orrery.generate(model, text, 5, temperature=0)

    wanted, wrong = [answers(text) for text in texts], []

    def work(number):
        for _ in range(3):
            hidden, written = answers(texts[number])
            if not torch.allclose(hidden, wanted[number][0], atol=1e-5) or not torch.equal(written, wanted[number][1]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_stands_apart_and_writing_leaves_nothing_behind(name):
    model, text = build(name), tokens(0)
    with torch.no_grad():
        want = model(text).hidden
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.add_(0.1)
        orrery.generate(model, text, 4, temperature=0)
        assert torch.equal(model(text).hidden, want) and torch.equal(copy.deepcopy(model)(text).hidden, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"], ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "egru"])  # rounding moves values over its thresholds
def test_lower_precision_reads_steps_and_writes(name, dtype):
    model, text = build(name), tokens(0)
    low = copy.deepcopy(model)
    low = low if dtype == "autocast" else low.to(dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        before = low(text[:, :-1])
        step, whole = low(text[:, -1:], state=before.state).hidden[:, 0].float(), low(text).hidden[:, -1].float()
        assert (step - whole).norm() <= 0.1 * whole.norm()
        assert orrery.generate(low, text, 3, temperature=0).shape == (2, 15)
    with torch.no_grad():
        want = model(text).hidden[:, -1]
    assert (whole - want).norm() <= 0.1 * want.norm()


@pytest.mark.parametrize("name", NAMES)
def test_training_within_autocast_takes_its_gradients_there_too(name):
    model = build(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens(0)).logits.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_inference_mode_goes_on_without_gradients(name):
    model, text = build(name), tokens(0)
    with torch.inference_mode():
        state = model(text[:, :7]).state
    with torch.no_grad():
        assert torch.allclose(model(text[:, 7:], state=state).hidden, model(text).hidden[:, 7:], atol=1e-5)
