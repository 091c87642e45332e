"""Training with a carried state: what is carried, where its history ends, and exact resume with the state in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import orrery
from orrery.core.errors import ConfigError
from orrery.core.registry import entries
from orrery.models.carry import check_streams
from orrery.nn.state import state_tensors
from orrery.optim.adamw import AdamW
from orrery.runs import Run
from orrery.train import CheckpointSpec, DataSpec, ModelSpec, OptimSpec, TrainConfig, ValidationSpec, train
from orrery.train.engine import Engine, Pair

DEATHS = Path(__file__).with_name("deaths.py")
V, STEPS = 31, 9
SETTINGS = {"transformer": {"window": 7}, "gpt2": {"window": 7, "positions": "none"}}  # what bounds their caches


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name="mamba2", width=32, depth=2, **settings):
    return orrery.create_model(name, width=width, depth=depth, vocab_size=V, seed=0, **settings)


def engine(model, rate=0.0, **options):
    pair = Pair(model, orrery.create_objective("next-token"))
    return Engine(pair, AdamW(pair, 1e-3), lambda step: rate, clip=0.0, carry=True, **options)


def text(rows=4, length=48, seed=0):
    return torch.randint(1, V, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


def window(tokens, start, stop):
    return {"tokens": tokens[:, start : stop + 1], "segments": torch.zeros(len(tokens), stop + 1 - start, dtype=torch.int64)}


NAMES = [entry.name for entry in entries("architecture")]


def streaming(name):
    """A small model of an architecture; the test ends here for one that is refused, and says why."""
    model = build(name, width=64, depth=1, **SETTINGS.get(name, {})).double()
    try:
        check_streams(model)
    except ConfigError as error:
        assert "endless stream" in str(error) or "no state" in str(error)  # noqa: PT017
        pytest.skip(str(error))
    model.requires_grad_(False).embed.requires_grad_(True)  # one gradient is enough to take a step
    return model


@pytest.mark.parametrize("name", NAMES)
def test_windows_with_a_carried_state_have_the_loss_of_the_whole(name):
    """At rate 0 the weights stay, so three windows in a row must score what one long sequence scores.

    And `init_state` has the form of the state after a window, which a checkpoint relies on.
    """
    model, tokens = streaming(name), text(rows=2)
    taken = engine(model)
    losses = [taken.step(number, window(tokens, 16 * number, 16 * number + 16)).loss for number in range(2)]
    resumed = engine(model)
    resumed.resume({key: tensor.clone() for key, tensor in taken.carried().items()}, model, 2)
    last = [each.step(2, window(tokens, 32, 48)) for each in (taken, resumed)]
    assert last[0] == last[1]
    whole = orrery.create_objective("next-token")(model, {"tokens": tokens})[1]["loss"]
    assert (sum(losses) + last[0].loss) / 3 == pytest.approx(float(whole), rel=1e-6)
    assert all(not tensor.requires_grad for tensor in state_tensors(taken.states[0]))


@pytest.mark.parametrize("name", ["mamba2", "lstm", "gru", "rwkv4", "gated-deltanet", "transformer", "transformer-xl"])
def test_what_has_to_stream_does(name):
    streaming(name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_span_cuts_gradients_and_nothing_else(accumulate):
    """The gradient of a window in spans is the mean of the spans' own, each from a detached state."""
    tokens = text()
    model = build("lstm").double()
    taken = engine(model, accumulate=accumulate, span=12)
    loss = taken.step(0, window(tokens, 0, 30)).loss
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    state, total = None, 0.0
    for start, stop in ((0, 12), (12, 24), (24, 30)):
        out = model(tokens[:, start:stop], state=state)
        nats = nn.functional.cross_entropy(out.logits.flatten(0, 1), tokens[:, start + 1 : stop + 1].flatten(), reduction="sum")
        (nats / (30 * len(tokens))).backward()
        state, total = out.state.detach(), total + nats.item()
    assert loss == pytest.approx(total / (30 * len(tokens)), rel=1e-9)
    for name, p in model.named_parameters():
        assert torch.allclose(ours[name], p.grad, rtol=1e-7, atol=1e-12), name


def test_documents_reset_the_carried_state():
    model, tokens = build().double(), text(rows=2)
    taken = engine(model)
    taken.step(0, window(tokens, 0, 16))
    second = window(tokens, 16, 32)
    second["segments"] += torch.tensor([[0], [1]])  # row 1 begins a document exactly at the cut, row 0 goes on
    loss = taken.step(1, second).loss
    objective = orrery.create_objective("next-token")
    alone = objective(model, {"tokens": tokens[1:, 16:33]})[1]["loss"]
    whole = [objective(model, {"tokens": tokens[:1, :stop]})[1] for stop in (17, 33)]
    onward = float(whole[1]["loss"]) * 32 - float(whole[0]["loss"]) * 16
    assert loss == pytest.approx((onward / 16 + float(alone)) / 2, rel=1e-9)


def test_a_step_that_is_not_taken_keeps_the_state():
    model = build("lstm")
    taken = engine(model)
    taken.step(0, window(text(), 0, 16))
    before = taken.states[0]
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(orrery.core.errors.NonFiniteError):
        taken.step(1, window(text(), 16, 32))
    assert taken.states[0] is before


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus")
    for number in range(10):
        words = ["alpha", "beta", "gamma", "delta"][number % 4 :] + ["omega"]
        (path / f"{number}.txt").write_text(" ".join(words * 30))
    return path


def configure(corpus, name="mamba2", **changes):
    base = TrainConfig(
        model=ModelSpec(name=name, size=None, width=32, depth=1, settings={**SETTINGS.get(name, {}), "dropout": 0.1}),
        data=DataSpec(corpus=str(corpus), length=24, batch=4, stream=True, span=10),
        optim=OptimSpec(lr=3e-3, warmup=2),
        validation=ValidationSpec(bytes=1000),
        checkpoint=CheckpointSpec(every=3),
        budget=f"{STEPS}steps",
        seed=5,
    )
    return base.replace(**changes)


JOBS = [("mamba2", 2), ("transformer", 1)]


def test_killed_again_and_again_equals_uninterrupted(corpus, tmp_path):
    """SIGKILL at chosen moments, the same call again, until it is done: weights bit for bit, the state among what is kept."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    jobs = [
        {"config": configure(corpus, name, **{"system.accumulate": parts}).to_dict(), "folder": str(tmp_path / name), "mode": "kill", "seed": 3}
        for name, parts in JOBS
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(DEATHS), str(tmp_path / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    resumed = 0
    for (name, _), job, deaths in zip(JOBS, jobs, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert deaths >= 1
        whole = train(TrainConfig.from_dict(job["config"]), tmp_path / f"{name}-whole", quiet=True)
        a, b = (tmp_path / folder / "weights" / "model.safetensors" for folder in (name, f"{name}-whole"))
        assert a.read_bytes() == b.read_bytes(), name
        assert whole["validation"]["rule"] == "carried state"
        resumed += len(Run.open(tmp_path / name).events("resume"))
    assert resumed >= 1


def test_without_its_state_a_checkpoint_would_go_on_differently(corpus, tmp_path):
    """The carried state matters: the same run that forgets it at step 3 ends elsewhere."""
    config = configure(corpus)
    train(config, tmp_path / "whole", quiet=True)
    step = Engine.step

    def forgetful(self, number, batch):
        if number == 3:
            self.states = [None] * self.accumulate
        return step(self, number, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", forgetful)
        train(config, tmp_path / "forgetful", quiet=True)
    a, b = (tmp_path / folder / "weights" / "model.safetensors" for folder in ("whole", "forgetful"))
    assert a.read_bytes() != b.read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.name": "transformer", "model.settings": {}}, "keeps a cache that grows with the text.*model.window=256"),
        ({"model.name": "gpt2", "model.settings": {"window": 8}}, "1024 learned positions"),
        ({"data.stream": False}, "needs data.stream=true"),
        ({"data.span": 25}, "must be 0 .the window. to 24"),
    ],
)
def test_what_cannot_stream_says_so_in_one_sentence(corpus, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        train(configure(corpus).replace(**changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_module_without_a_state_says_so(corpus, tmp_path):
    given = orrery.wrap(nn.Embedding(257, 257), vocab_size=257, name="mine")
    with pytest.raises(ConfigError, match="'mine' has no state of its own"):
        train(configure(corpus), tmp_path / "run", model=given, quiet=True)
