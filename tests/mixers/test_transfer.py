"""Transfer matrices of the diagonal and the gated recurrences: times what they act on, they are what the layer computes."""

import pytest
import torch
import torch.nn.functional as F

from orrery.core.registry import load
from orrery.nn.contract import Context, Place
from orrery.nn.timeline import plan
from orrery.ops.decay_matrix import decay_matrix
from orrery.ops.diagonal_scan import diagonal_scan_reference

SEGMENTS = torch.tensor([[1] * 4 + [2] * 7, [5] * 9 + [6] * 2])


def build(name, **settings):
    """The mixer with noise on every parameter, an input, and the context of two documents a row."""
    torch.manual_seed(0)
    cls = load(name, "mixer")
    mixer = cls(cls.Config(**settings), Place(width=16, layer=1, depth=2)).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.randn(2, 11, 16, dtype=torch.float64)
    return mixer, x, Context(segments=SEGMENTS, time=plan(SEGMENTS, None, 2, 11, x.device)[0])


def close(found, wanted):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-10


def applied(matrix, values):
    """Channel by channel: (B,D,T,T) times (B,T,D)."""
    return torch.einsum("bdts,bsd->btd", matrix, values)


def test_the_decay_matrix_is_the_scan():
    torch.manual_seed(0)
    a_log, b = -torch.rand(2, 9, 3, dtype=torch.float64), torch.randn(2, 9, 3, dtype=torch.float64)
    a_log[0, 4], starts = -torch.inf, torch.rand(2, 9) < 0.3
    close(applied(decay_matrix(a_log, starts), b), diagonal_scan_reference(a_log, b, starts=starts)[0])


@pytest.mark.parametrize(
    "settings", [{"window": 3, "pooling": "ifo"}, {"pooling": "fo", "hidden": 12}, {"pooling": "f", "hidden": 12}]
)
@torch.no_grad()
def test_qrnn(settings):
    mixer, x, context = build("qrnn", **settings)
    from orrery.ops.fused.windows import windows

    p = mixer.inputs(windows(x, mixer.config.window, None, context.time.starts, None)[0])
    h = applied(mixer.transfer(x, context), torch.tanh(p[..., : mixer.hidden]))
    close(h if mixer.out is None else mixer.out(h), mixer(x, None, context)[0])


@pytest.mark.parametrize("settings", [{"hidden": 24}, {"cell": "lstm", "conv": 1}])
@torch.no_grad()
def test_mingru(settings):
    mixer, x, context = build("mingru", **settings)
    v = mixer._gates(x, None, context)[0]
    values = torch.where(v >= 0, v + 0.5, torch.sigmoid(v))
    close(mixer.out(applied(mixer.transfer(x, context), values)), mixer(x, None, context)[0])


@torch.no_grad()
def test_rg_lru():
    mixer, x, context = build("rg-lru", head_dim=8)
    g, u = mixer.inputs.linear(x).chunk(2, -1)
    h = applied(mixer.transfer(x, context), mixer.conv(u, None, context)[0])
    close(mixer.out(F.gelu(g, approximate="tanh") * h), mixer(x, None, context)[0])


@torch.no_grad()
def test_hgrn_in_complex_numbers():
    mixer, x, context = build("hgrn", hidden=6)
    parts = mixer.inputs(x, None, context)[0]
    c, g = F.silu(parts[..., :12]), parts[..., 18:]
    h = applied(mixer.transfer(x, context), torch.complex(c[..., :6], c[..., 6:]))
    y = mixer.norm(torch.sigmoid(g) * torch.cat([h.real, h.imag], -1))
    close(mixer.out(y), mixer(x, None, context)[0])


@torch.no_grad()
def test_mlstm():
    mixer, x, context = build("mlstm", inner=24, heads=2, block=4)
    u, z = mixer.inputs(x, None, context)[0].chunk(2, -1)
    c, _ = mixer.conv(u, None, context)
    h = torch.einsum("bhts,bshv->bthv", mixer.transfer(x, context), mixer._memory(u, c)[2])
    h = F.layer_norm(h, (12,), eps=mixer.config.norm_eps).flatten(2)
    close(mixer.out(torch.addcmul(h * mixer.norm, c, mixer.skip) * F.silu(z)), mixer(x, None, context)[0])


@torch.no_grad()
def test_xlstm_large():
    mixer, x, context = build("xlstm-large", head_dim=8, key_dim=4)
    _, _, v, o, _, _ = mixer._split(mixer.inputs(x, None, context)[0])
    h = torch.einsum("bhts,bshv->bthv", mixer.transfer(x, context), v)
    close(mixer.out(mixer._read(h, o, mixer.norm)), mixer(x, None, context)[0])


@torch.no_grad()
def test_slstm_given_its_gates():
    mixer, x, context = build("slstm", heads=2)
    from orrery.ops.slstm import slstm_reference

    raw, _ = mixer._gates(x, None, context)
    h, _ = slstm_reference(raw, mixer.recurrent, None, context.time.starts)
    heard = F.pad(h[:, :-1], (0, 0, 0, 0, 1, 0)).masked_fill(context.time.starts[..., None, None], 0.0)
    z = (raw + torch.einsum("bthk,hkg->bthg", heard, mixer.recurrent)).chunk(4, -1)[2]
    close(applied(mixer.transfer(x, context), torch.tanh(z).flatten(2)), h.flatten(2))
