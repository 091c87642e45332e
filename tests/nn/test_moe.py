"""The mixture of experts against its float64 loop and transformers' blocks; losses, bias, capacity, statistics, costs."""

import dataclasses

import pytest
import torch

from oracles.moe import moe
from orrery.core.errors import ConfigError
from orrery.nn.contract import Aux, Context, Place
from orrery.nn.grouped_moe import GroupedMoE
from orrery.nn.moe import MoE
from orrery.objectives.next_token import NextToken

VARIANTS = (
    {},
    {"normalise": False, "shared": 2.0, "router_z": 0.1},
    {"shared": 0.5, "shared_gate": True, "top_k": 3},
    {"score": "sigmoid", "bias_rate": 0.0, "scale": 2.5, "shared": 1.0},
    {"top_k": 1, "normalise": False, "gated": False},
    {"normalise": 0.3, "score": "sigmoid", "bias_rate": 0.0},
    {"experts": 6, "group_count": 3, "group_top": 2, "score": "sigmoid", "bias_rate": 0.0, "top_k": 3},
    {"experts": 6, "group_count": 2, "group_top": 1},
)


def build(width=12, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    cls = GroupedMoE if "group_count" in settings else MoE
    part = cls(cls.Config(**{"experts": 5, "hidden": 8, **settings}), Place(width=width)).to(dtype)
    with torch.no_grad():
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.add_(0.3 * torch.randn_like(tensor))
    return part


def call(part, x, *reports, segments=None):
    aux = Aux(*reports)
    return part(x, None, Context(aux=aux, segments=segments))[0], aux


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_it_is_the_loop(settings):
    part = build(balance=1.0, **{"router_z": 1.0, **settings})
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    parameters = {name: tensor.detach().numpy() for name, tensor in part.state_dict().items()}
    config = dataclasses.asdict(part.config)
    want, balance, squares = moe(parameters, config, x.numpy())
    with torch.no_grad():
        found, aux = call(part, x)
        torch.testing.assert_close(found, torch.from_numpy(want))
        torch.testing.assert_close(aux.losses["balance"].item(), balance)
        torch.testing.assert_close(aux.losses["router_z"].item(), squares * part.config.router_z)
        for t in range(3):  # the path for one token
            torch.testing.assert_close(part(x[:1, t : t + 1])[0], found[:1, t : t + 1])


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_gradients_are_those_of_differences(settings):
    part = build(width=4, experts=3, top_k=2, hidden=3, normalise=settings.get("normalise", True), gated=settings.get("gated", True))
    x = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in part.named_parameters()]

    def function(x, *values):
        return torch.func.functional_call(part, dict(zip(names, values, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(function, (x, *part.parameters()), eps=1e-7, atol=1e-5)


def test_padding_is_no_load_and_rows_stay_alone():
    part = build(balance=1.0, shared=1.0)
    x = torch.randn(3, 7, 12, dtype=torch.float64)
    segments = torch.tensor([[0] * 7, [0] * 4 + [-1] * 3, [-1] * 2 + [1] * 5])
    y, aux = call(part, x, "routing", "experts", segments=segments)
    short, other = call(part, torch.cat([x[0], x[1, :4], x[2, 2:]])[None], "routing")
    torch.testing.assert_close(torch.cat([y[0], y[1, :4], y[2, 2:]])[None], short)
    torch.testing.assert_close(aux.losses, other.losses)
    torch.testing.assert_close(aux.reports["routing"][0]["share"], other.reports["routing"][0]["share"])
    assert aux.reports["experts"][0].shape == (3, 7, 2) and not y[1, 4:].any()


def test_losses_reach_the_objective_and_the_router():
    import orrery

    model = orrery.create_model("transformer", width=32, depth=2, vocab_size=17, **{"channel.name": "moe", "hidden": 16, "router_z": 0.01})
    batch = {"tokens": torch.randint(17, (3, 9))}
    loss, metrics = NextToken()(model, batch)
    added = metrics["aux/balance"] + metrics["aux/router_z"]
    assert 2 * 0.02 * 0.99 <= metrics["aux/balance"] < 2 * 0.16  # per layer: weight times k, up to weight times k E
    torch.testing.assert_close(loss.detach(), metrics["loss"] + added)
    grads = {}
    for recompute in (False, True):  # recomputed blocks add nothing twice
        model.checkpoint_blocks = recompute
        grads[recompute] = torch.autograd.grad(NextToken()(model.train(), batch)[0], list(model.parameters()))
    for one, other in zip(*grads.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_selection_bias_follows_the_load():
    part = build(bias_rate=0.01, balance=0.0, dtype=torch.float32).train()
    part.selection_bias.zero_()
    part.load.zero_()
    x = torch.randn(1, 200, 12) + 0.5

    def spread():
        with torch.no_grad():
            return float(call(part, x, "routing")[1].reports["routing"][0]["share"].std())

    part.eval()
    before, bias = spread(), part.selection_bias.clone()
    assert torch.equal(part.selection_bias, bias)  # evaluation leaves it alone
    part.train()
    aux = Aux()
    for _ in range(2):  # a block that is recomputed sees the same Aux, and the same bias
        part(x, None, Context(aux=aux))
        assert torch.equal(part.selection_bias, bias)
    one = part.load.clone()
    part(x, None, Context(aux=Aux()))  # another micro-batch of the same step
    assert torch.equal(part.selection_bias, bias) and torch.equal(part.load, 2 * one)

    def learn():
        with torch.no_grad():
            part.router.weight.mul_(1 + 1e-6)

    learn()
    part(x, None, Context(aux=Aux()))
    step = (part.selection_bias - bias).abs()
    assert step.any() and torch.allclose(step[step > 0], torch.tensor(0.01))
    for _ in range(80):
        learn()
        part(x, None, Context(aux=Aux()))
    part.router.weight.requires_grad_(False)  # there is no step to wait for
    bias = part.selection_bias.clone()
    part(x, None, Context(aux=Aux()))
    assert not torch.equal(part.selection_bias, bias)
    part.eval()
    assert spread() < 0.6 * before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_router_is_exact_under_autocast(dtype):
    part, x = build(dtype=dtype, router_z=1.0), torch.randn(2, 9, 12, dtype=dtype)
    part.float()
    _, exact = call(part, x.float(), "experts")
    with torch.autocast("cpu", torch.bfloat16):
        _, aux = call(part, x, "experts")
    assert torch.equal(aux.reports["experts"][0], exact.reports["experts"][0])
    torch.testing.assert_close(aux.losses["router_z"], exact.losses["router_z"], rtol=1e-5, atol=0.0)


def test_capacity_drops_in_training_only():
    part = build(capacity=0.5, normalise=False, shared=0.0)
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    whole = part.eval()(x)[0]
    dropped = part.train()(x)[0]
    assert torch.equal(whole[0, :1], dropped[0, :1]) and not torch.allclose(whole, dropped)
    empty = (dropped.flatten(0, 1) == 0).all(-1).sum()
    assert 0 < empty < 40
    part.config = part.config.replace(capacity=100.0)
    torch.testing.assert_close(part(x)[0], whole)


def test_it_does_not_depend_on_the_batch_beside_it():
    part = build()
    x = torch.randn(4, 11, 12, dtype=torch.float64)
    whole = part(x)[0]
    torch.testing.assert_close(torch.cat([part(row[None])[0] for row in x]), whole)
    torch.testing.assert_close(torch.cat([part(x[:, t : t + 1])[0] for t in range(11)], 1), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 6}, "top_k must lie between"),
        ({"top_k": 1}, "without gradient"),
        ({"score": "softmin"}, "softmax or sigmoid"),
        ({"shared_gate": True}, "needs shared experts"),
        ({"capacity": 0.0}, "capacity must be positive"),
        ({"normalise": 1}, "between 0 and 1 that is added"),
        ({"experts": 0}, "experts must be positive"),
        ({"balance": -1.0}, "must be 0 or more"),
        ({"group_count": 2}, "must divide the 5 experts"),
        ({"experts": 6, "group_count": 6}, "two experts or more"),
        ({"experts": 6, "group_count": 3, "group_top": 4}, "between 1 and the 3 groups"),
        ({"experts": 6, "group_count": 3, "top_k": 3}, "fewer than the 3"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def randomised(block):
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.copy_(0.4 * torch.randn_like(tensor))
    return block


def test_transformers_blocks_and_their_balance_loss():
    pytest.importorskip("transformers")
    from transformers import DeepseekV3Config, MixtralConfig, Qwen2MoeConfig
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    sizes = {"hidden_size": 12, "num_attention_heads": 2}
    chosen = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
    mixtral = MixtralConfig(intermediate_size=8, num_local_experts=5, num_experts_per_tok=2, **sizes)
    qwen = Qwen2MoeConfig(num_experts=5, shared_expert_intermediate_size=12, norm_topk_prob=False, **chosen, **sizes)
    deep, grouped = (
        DeepseekV3Config(
            n_routed_experts=experts, n_group=groups, topk_group=min(groups, 2), n_shared_experts=2, routed_scaling_factor=1.7,
            norm_topk_prob=True, **chosen, **sizes
        )
        for experts, groups in ((5, 1), (8, 4))
    )  # fmt: skip
    cases = (
        (MixtralSparseMoeBlock(mixtral), {}),
        (Qwen2MoeSparseMoeBlock(qwen), {"normalise": False, "shared": 1.5, "shared_gate": True}),
        (DeepseekV3MoE(deep), {"score": "sigmoid", "scale": 1.7, "bias_rate": 0.0, "shared": 2.0}),
        (
            DeepseekV3MoE(grouped),
            {"experts": 8, "group_count": 4, "group_top": 2, "score": "sigmoid", "scale": 1.7, "bias_rate": 0.0, "shared": 2.0},
        ),
    )
    torch.manual_seed(3)
    for block, settings in cases:
        their = randomised(block.eval()).state_dict()
        part = build(dtype=torch.float32, balance=1.0, **settings)
        names = {"router.weight": "gate.weight", "wide": "experts.gate_up_proj", "out": "experts.down_proj"}
        names |= {"selection_bias": "gate.e_score_correction_bias", "shared_gate.weight": "shared_expert_gate.weight"}
        own = {ours: their[name] for ours, name in names.items() if name in their}
        for name in ("shared_expert", "shared_experts"):
            if f"{name}.up_proj.weight" in their:
                own["shared.wide.weight"] = torch.cat([their[f"{name}.{p}_proj.weight"] for p in ("gate", "up")])
                own["shared.out.weight"] = their[f"{name}.down_proj.weight"]
        part.load_state_dict(own)
        x = torch.randn(2, 30, 12)
        with torch.no_grad():
            found, aux = call(part, x)
            torch.testing.assert_close(found, block(x), atol=1e-5, rtol=1e-4)
            if settings.get("score") != "sigmoid":
                logits = torch.nn.functional.linear(x.flatten(0, 1), part.router.weight)
                torch.testing.assert_close(aux.losses["balance"], load_balancing_loss_func((logits,), 5, 2))
