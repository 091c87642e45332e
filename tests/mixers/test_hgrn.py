"""HGRN beyond the first layer, whose forget gates have bounds; the contract checks run with the first one's."""

from __future__ import annotations

import torch

from oracles.hgrn import hgrn as oracle
from orrery.mixers.hgrn import HGRN, HGRNConfig
from orrery.models.build import create_model
from orrery.nn.contract import Context, Place


def layer(number, depth=4, **settings):
    torch.manual_seed(0)
    return HGRN(HGRNConfig(**settings), Place(width=16, layer=number, depth=depth)).double()


def test_bounds_rise_with_depth():
    bounds = [0.0 if layer(n).bound is None else torch.sigmoid(layer(n).bound)[0].item() for n in range(4)]
    assert torch.allclose(torch.tensor(bounds), torch.tensor([0.0, 0.25, 0.5, 0.75]))
    assert layer(2, bound=False).bound is None


def test_a_bounded_layer_is_the_oracle_s_and_cuts_do_not_matter():
    mixer = layer(2, hidden=12, theta=30.0)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        x = torch.randn(2, 25, 16, dtype=torch.float64)
        segments = torch.tensor([[1] * 9 + [2] * 16, [3] * 20 + [-1] * 5])
        parameters = {name: value.numpy() for name, value in mixer.named_parameters()}
        for given in (None, segments):
            context = None if given is None else Context(segments=given)
            y, _ = mixer(x, None, context)
            want = oracle(parameters, {"norm_eps": 1e-5}, x.numpy(), None if given is None else given.numpy())
            torch.testing.assert_close(y, torch.as_tensor(want))
        left, state = mixer(x[:, :11])
        right, _ = mixer(x[:, 11:], state)
        torch.testing.assert_close(torch.cat([left, right], 1), mixer(x)[0])


def test_angles_keep_their_meaning_over_64k_tokens():
    """A gate that never forgets turns a state by 65,536 angles; in float32 steps that would drift."""
    mixer = layer(0, hidden=2).float()
    time = 1 << 16
    with torch.no_grad():
        mixer.inputs.linear.weight.zero_()
        mixer.inputs.linear.bias.copy_(torch.tensor([0.0] * 4 + [200.0] * 2 + [0.0] * 4))
        state = mixer.init_state(1)._replace(h=torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
        _, after = mixer(torch.zeros(1, time, 16), state)
    angles = mixer.angle.double() * time
    torch.testing.assert_close(after.h[0].double(), torch.cat([angles.cos(), angles.sin()]), rtol=0, atol=1e-6)


def test_it_builds_with_bounds_in_all_layers_but_the_first():
    model = create_model("hgrn", width=32, depth=3, vocab_size=11)
    assert [block.mixer.bound is None for block in model.blocks] == [True, False, False]
