"""Parameters that layers have in common: counted and stored once, gradients summed over uses, states apart."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file

import orrery
from orrery.core.errors import ConfigError
from orrery.methods.forget_more import forget_more

TOKENS = torch.randint(0, 61, (2, 15), generator=torch.Generator().manual_seed(0))
EVERYTHING = {"common": "all"}


def build(name="transformer", depth=3, **settings):
    return orrery.create_model(name, width=32, depth=depth, vocab_size=61, seed=0, **settings)


def inner(model):
    return sum(parameter.numel() for parameter in model.blocks.parameters())


@pytest.mark.parametrize("name", ["transformer", "mamba2", "rwkv7", "lightning"])
def test_one_layer_read_over_and_over_costs_one_layer(name):
    shared, single, apart = build(name, **EVERYTHING), build(name, depth=1), build(name)
    of_later = sum(p.numel() for p in apart.blocks[1].parameters()) - sum(p.numel() for p in apart.blocks[0].parameters())
    assert inner(shared) == inner(single) + max(0, of_later)  # RWKV-7's first layer lacks what the others have
    assert shared.blocks[0].mixer is not shared.blocks[2].mixer
    assert shared(TOKENS).logits.shape == (2, 15, 61)


@pytest.mark.parametrize("name", ["transformer", "zamba2", "mamba2*2 + attention"])
def test_the_ladder_counts_them_once(name):
    model = orrery.create_model(name, size="nano", vocab_size=61, **EVERYTHING)
    assert model.num_parameters() == pytest.approx(300_000, rel=0.02)


def test_layers_of_another_kind_have_their_own():
    model = build("mamba2 + attention", depth=4, **EVERYTHING)
    assert inner(model) == inner(build("mamba2 + attention", depth=2))
    assert model.blocks[0].mixer.A_log is model.blocks[2].mixer.A_log


def test_gradients_are_the_sum_over_uses():
    shared = build(common="mixer.* channel.wide.*").double()
    apart = build(common=()).double()
    apart.load_state_dict(shared.state_dict())
    for model in (shared, apart):
        torch.nn.functional.cross_entropy(model(TOKENS).logits.flatten(0, 1), TOKENS.roll(-1, 1).flatten()).backward()
    for name, parameter in shared.blocks[0].named_parameters():
        uses = [block.get_parameter(name).grad for block in apart.blocks]
        common = name.startswith(("mixer.", "channel.wide"))
        torch.testing.assert_close(parameter.grad, sum(uses) if common else uses[0], rtol=1e-10, atol=1e-14)
        assert all((block.get_parameter(name) is parameter) == common for block in shared.blocks[1:])


def test_they_are_stored_once_and_come_back(tmp_path):
    model = build(**EVERYTHING).eval()
    orrery.save(model, tmp_path / "m")
    assert not any(name.startswith("blocks.1.") for name in load_file(tmp_path / "m" / "model.safetensors"))
    again = orrery.load(tmp_path / "m")
    assert again.blocks[2].mixer.out.weight is again.blocks[0].mixer.out.weight
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_they_stay_one_through_copies_and_types():
    for model in (copy.deepcopy(build(**EVERYTHING)), build(**EVERYTHING).double()):
        assert model.blocks[2].mixer.out.weight is model.blocks[0].mixer.out.weight


def test_an_optimizer_steps_them_once():
    model = build(**EVERYTHING)
    weight = model.blocks[0].mixer.out.weight
    before = weight.detach().clone()
    model(TOKENS).logits.sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(weight, before - 0.1 * weight.grad)


def test_a_recurrence_forgets_more_once():
    shared = build("mamba2", common="mixer.A_log mixer.out.*")
    changed = forget_more(shared, decay=1.5, insertion=0.5)
    for block, before in zip(changed.blocks, shared.blocks, strict=True):
        torch.testing.assert_close(block.mixer.A_log, before.mixer.A_log + math.log(1.5))
        torch.testing.assert_close(block.mixer.D, before.mixer.D / 0.5)


@torch.no_grad()
def test_states_are_every_layers_own():
    model = build("mamba2 + attention", depth=4, **EVERYTHING).eval()
    whole, state, found = model(TOKENS), None, []
    for t in range(15):
        out = model(TOKENS[:, t : t + 1], state=state)
        state = out.state
        found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole.logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(state.blocks[0][1].ssm, state.blocks[2][1].ssm)


def test_encoders_share_too():
    model = orrery.create_model("bert", width=32, depth=4, vocab_size=61, **EVERYTHING)
    assert inner(model) == inner(orrery.create_model("bert", width=32, depth=1, vocab_size=61))


def test_a_pattern_that_names_nothing_is_an_error():
    with pytest.raises(ConfigError, match="no parameter of the layer is called 'attention"):
        build(common=("attention.*",))


def test_a_layer_of_a_pattern_may_be_the_one_that_is_shared():
    model = orrery.create_model("mamba2 + transformer(common=all)", width=32, depth=4, vocab_size=61)
    assert model.blocks[1].mixer.out.weight is model.blocks[3].mixer.out.weight
    assert model.blocks[0].mixer.out.weight is not model.blocks[2].mixer.out.weight
