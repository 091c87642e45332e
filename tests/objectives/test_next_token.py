"""Next-token prediction: the value, the targets that count, models with and without a head, extra losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import orrery
from orrery.core.errors import ConfigError, DataError, UnknownNameError
from orrery.models.output import Output
from orrery.models.scoring import nats, score
from orrery.ops.losses.cross_entropy import IGNORE

V = 19


class Tiny(nn.Module):
    """A frame of the least kind: an embedding, a causal mean, a head."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(0)
        self.vocab_size = V
        self.embed = nn.Embedding(V, 8)
        if head == "linear":
            self.head = nn.Linear(8, V)
        elif head == "module":
            self.head = nn.Sequential(nn.Linear(8, V))
            self.head[0].load_state_dict(nn.Linear(8, V).state_dict())
        else:
            self.out = nn.Linear(8, V)
        self.seen = None

    def forward(self, tokens, state=None, ctx=None, segments=None):
        self.seen = segments
        h = self.embed(tokens).cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        if ctx is not None and ctx.aux is not None:
            ctx.aux.add_loss("balance", 0.5 * h.square().mean())
        return Output(h, None, None, getattr(self, "head", None) or self.out)


def batch(seed=0):
    return {"tokens": torch.randint(0, V, (3, 13), generator=torch.Generator().manual_seed(seed))}


@pytest.mark.parametrize("head", ["linear", "module", "logits"])
def test_loss_and_gradients_are_torch_s(head):
    model, data = Tiny(head), batch()
    loss, metrics = orrery.create_objective("next-token")(model, data)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    out = model(data["tokens"][:, :-1])
    plain = F.cross_entropy(out.logits.flatten(0, 1), data["tokens"][:, 1:].flatten())
    balance = 0.5 * out.hidden.square().mean()
    (plain + balance).backward()
    torch.testing.assert_close(loss, plain + balance)
    torch.testing.assert_close(metrics["loss"], plain.detach())
    torch.testing.assert_close(metrics["aux/balance"], balance.detach())
    assert float(metrics["tokens"]) == 36
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("head", ["linear", "module", "logits"])
def test_padding_counts_for_nothing(head):
    model, data = Tiny(head), batch()
    segments = torch.zeros(3, 13, dtype=torch.int64)
    segments[0, 6:] = 1
    segments[1, 4:] = -1
    data["segments"] = segments
    _, metrics = orrery.create_objective("next-token")(model, data)
    assert torch.equal(model.seen, segments[:, :-1])
    targets = data["tokens"][:, 1:].masked_fill(segments[:, 1:] < 0, IGNORE)
    out = model(data["tokens"][:, :-1])
    each = F.cross_entropy(out.logits.transpose(1, 2), targets, reduction="none").detach()
    torch.testing.assert_close(metrics["loss"], each.sum() / 27)
    assert float(metrics["tokens"]) == 12 + 3 + 12
    torch.testing.assert_close(nats(model, out, targets), each)


def test_given_targets_and_z_loss():
    model, data = Tiny("linear"), batch()
    targets = torch.full((3, 13), IGNORE)
    targets[:, 5] = 4
    data["targets"] = targets
    loss, metrics = orrery.create_objective("next-token", z_loss=0.1)(model, data)
    out = model(data["tokens"])
    logits = out.logits[:, 5]
    plain = F.cross_entropy(logits, targets[:, 5])
    torch.testing.assert_close(metrics["loss"], plain.detach())
    z = 0.1 * logits.logsumexp(-1).square().mean()
    assert float(metrics["tokens"]) == 3
    torch.testing.assert_close(loss, plain + z + 0.5 * out.hidden.square().mean())


def test_soft_cap_of_a_head_is_honoured():
    model, data = Tiny("linear"), batch()
    model.head.softcap = 0.3
    out = model(data["tokens"][:, :-1])
    capped = 0.3 * torch.tanh(out.logits / 0.3)
    wanted = F.cross_entropy(capped.flatten(0, 1), data["tokens"][:, 1:].flatten())
    torch.testing.assert_close(score(model, out, data["tokens"][:, 1:]).loss, wanted)


def test_a_wrapped_module_and_a_registered_model_train():
    stranger = orrery.wrap(nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V)), vocab_size=V)
    named = orrery.create_model("transformer", width=16, depth=1, vocab_size=V)
    for model in (stranger, named):
        loss, _ = orrery.create_objective("next-token")(model, batch())
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())


def test_impossible_input():
    with pytest.raises(DataError, match=r"\(3, 1\)"):
        orrery.create_objective("next-token")(Tiny("linear"), {"tokens": torch.zeros(3, 1, dtype=torch.int64)})
    with pytest.raises(UnknownNameError, match="next-token"):
        orrery.create_objective("next-tokn")
    with pytest.raises(ConfigError, match="z_loss"):
        orrery.create_objective("next-token", zloss=0.1)
    headless = Tiny("logits")
    headless.forward = lambda tokens, ctx=None, segments=None: Output(torch.zeros(3, 12, 8), None)
    with pytest.raises(ConfigError, match="no head"):
        orrery.create_objective("next-token")(headless, batch())
