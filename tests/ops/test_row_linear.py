"""The compiled passes of a decode step against torch in float64: every norm and activation, ragged sizes, several rows."""

import pytest
import torch
from torch.nn import functional as F

from orrery.nn.rotary import cached_table, rotary_table, rotate
from orrery.ops.steps.attention import attention_step
from orrery.ops.steps.row_linear import ACTIVATIONS, RowNorm, row_linear, row_norm

TORCH = {
    "": lambda z: z,
    "silu": F.silu,
    "gelu-tanh": lambda z: F.gelu(z, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda z: F.relu(z).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "swiglu": lambda z: F.silu(z.chunk(2, -1)[0]) * z.chunk(2, -1)[1],
    "geglu": lambda z: F.gelu(z.chunk(2, -1)[0], approximate="tanh") * z.chunk(2, -1)[1],
}


def normed(x, norm):
    x = x.double()
    if norm is None or not norm.kind:
        return x
    weight, bias = (None if t is None else t.double() for t in (norm.weight, norm.bias))
    if norm.kind == "rmsnorm":
        return F.rms_norm(x, x.shape[-1:], weight, norm.eps)
    return F.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("batch", "inputs", "outputs"), [(1, 32, 48), (3, 17, 21)])
def test_map_equals_torch(activation, batch, inputs, outputs):
    torch.manual_seed(0)
    rows = 2 * outputs if activation in ("swiglu", "geglu") else outputs
    w, b, gain, shift = torch.randn(rows, inputs), torch.randn(rows), torch.randn(inputs), torch.randn(inputs)
    norms = (None, RowNorm("rmsnorm", gain, None, 1e-5), RowNorm("rmsnorm", None, None, 1e-3), RowNorm("layernorm", gain, shift, 1e-5))
    for norm in norms:
        for bias in (None, b):
            for add in (False, True):
                x, y = torch.empty(batch, inputs), torch.empty(batch, outputs)
                run = row_linear(x, w, bias, y, norm, activation, add)
                for _ in range(2):  # prepared once, run again on other numbers
                    x.copy_(torch.randn(batch, inputs) + 0.3)
                    y.copy_(torch.randn(batch, outputs))
                    wanted = TORCH[activation](F.linear(normed(x, norm), w.double(), None if bias is None else bias.double()))
                    wanted = wanted + y.double() if add else wanted
                    run()
                    assert torch.allclose(y.double(), wanted, rtol=1e-5, atol=2e-5 * (1 + wanted.abs().max()))


def test_norm_gives_tensors_of_its_own():
    x = torch.randn(2, 19) * 3 + 1
    norm = RowNorm("layernorm", torch.randn(19), torch.randn(19), 1e-5)
    run = row_norm(x, norm)
    first = run()
    assert torch.allclose(first.double(), normed(x, norm), atol=1e-5)
    kept = first.clone()
    x.add_(torch.randn(2, 19))
    assert not torch.equal(run(), kept) and torch.equal(first, kept)


def test_one_thread_and_two_agree():
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    x, w, ys = torch.randn(1, 256), torch.randn(512, 256), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            y = torch.empty(1, 512)
            row_linear(x, w, None, y)()
            ys.append(y)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*ys)


@pytest.mark.parametrize("heads, groups, size, slots, rotated, norms, gate", [
    (4, 4, 8, 40, 8, "", False), (4, 2, 6, 5, 2, "head", True), (6, 1, 4, 7, 0, "whole", False),
])  # fmt: skip
def test_attention_over_a_ring(heads, groups, size, slots, rotated, norms, gate):
    """Rows at positions of their own; where there are fewer slots than positions, the last `slots` keys count."""
    torch.manual_seed(2)
    batch, steps, inner, eps = 2, 12, heads * size, 1e-5
    p, y = torch.empty(batch, (heads + 2 * groups) * size + (inner if gate else 0)), torch.empty(batch, inner)
    k, v = (torch.full((batch, groups, size, slots), float("nan")) for _ in range(2))  # what was never written is never read
    positions = torch.tensor([0, 0])
    q_gain, k_gain = (torch.randn(size * (n if norms == "whole" else 1)) for n in (heads, groups))
    table = cached_table(torch.arange(64), 64, rotated, 100.0, torch.float32)
    step = attention_step(p, k, v, positions, table, y, (q_gain, k_gain, eps) if norms else None)
    seen = [[], []]
    for t in range(steps):
        p.copy_(torch.randn_like(p))
        for row in range(batch):
            if row == 1 and t <= 3:  # the second row starts three tokens later
                seen[1] = []
            q, key, value, z = p[row].double().split([inner, groups * size, groups * size, inner if gate else 0])
            if norms:
                shape = (-1,) if norms == "whole" else (-1, size)
                q, key = (F.rms_norm(a.view(shape), g.shape, g.double(), eps).flatten() for a, g in ((q, q_gain), (key, k_gain)))
            turn = rotary_table(positions[row : row + 1], rotated, 100.0, double=True)
            q, key = (rotate(a.view(1, 1, -1, size), turn)[0, 0] if rotated else a.view(-1, size) for a in (q, key))
            seen[row].append((key, value.view(-1, size)))
            keys, values = (torch.stack(part[-slots:], 1) for part in zip(*seen[row], strict=True))
            share = heads // groups
            scores = torch.einsum("hk,hsk->hs", q, keys.repeat_interleave(share, 0)) / size**0.5
            out = torch.einsum("hs,hsk->hk", scores.softmax(-1), values.repeat_interleave(share, 0)).flatten()
            wanted = out * torch.sigmoid(z) if gate else out
            if row == 0:
                step()
            assert torch.allclose(y[row].double(), wanted, atol=1e-5)
        positions += 1
        if t < 3:
            positions[1] = 0
