"""Maps, attention and ends of one short text, compiled: equal to the equations in float64, at odd sizes, and within their memory."""

import pytest
import torch
from torch.nn import functional as F

from orrery.ops.backend import installed
from orrery.ops.fused.row_tiles import SPARE, blocked, tile_linear
from orrery.ops.fused.short_attention import short_attention
from orrery.ops.fused.short_ends import embed_text, embed_text_reference, gate_text, mean_text

pytestmark = pytest.mark.skipif(not installed("numba"), reason="numba is not installed")

FUNCTIONS = {"": lambda z: z, "gelu": F.gelu, "silu": F.silu, "gelu-tanh": lambda z: F.gelu(z, approximate="tanh"), "relu": F.relu}


def roomy(rows, width, value=None):
    """A buffer and its first rows; behind them lie rows that a tile may use, and one that it must not."""
    whole = torch.randn(rows + SPARE + 1, width) if value is None else torch.full((rows + SPARE + 1, width), value)
    return whole, whole[:rows]


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 7, 5), (2, 64, 64), (4, 33, 70), (9, 16, 32), (21, 40, 96), (29, 5, 33)])
def test_a_map_equals_the_equation(rows, inputs, outputs, activation):
    torch.manual_seed(0)
    (_, x), (whole, y) = roomy(rows, inputs), roomy(rows, outputs, 7.0)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs) if rows > 1 else None
    step = tile_linear(x, *blocked(weight, bias), y, activation)
    for _ in range(2):
        x.normal_()
        step()
        expected = FUNCTIONS[activation](F.linear(x.double(), weight.double(), None if bias is None else bias.double()))
        torch.testing.assert_close(y, expected.float(), atol=1e-5, rtol=1e-5)
    assert (whole[-1] == 7.0).all(), "it wrote beyond its spare rows"


def test_a_map_without_memory_behind_its_rows_is_refused():
    weight, bias = blocked(torch.randn(4, 4), None)
    with pytest.raises(RuntimeError):
        tile_linear(torch.zeros(3, 4), weight, bias, torch.zeros(3 + SPARE, 4)[:3])


@pytest.mark.parametrize(
    "rows, heads, groups, size, window, rotated, biased",
    [
        (1, 2, 2, 8, None, 0, False), (21, 4, 4, 64, None, 0, False), (40, 4, 2, 16, 5, 8, True),
        (67, 2, 1, 80, None, 80, False), (5, 1, 1, 32, 1, 0, True),
    ],
)
def test_attention_equals_the_equation(rows, heads, groups, size, window, rotated, biased):
    torch.manual_seed(0)
    given, (whole, y) = torch.randn(rows, heads + 2 * groups, size), roomy(rows, heads * size, 7.0)
    bias = torch.randn(heads, rows, rows) if biased else None
    angles = torch.rand(rows, rotated // 2, dtype=torch.float64) * 6
    turns = torch.polar(torch.ones_like(angles), angles) if rotated else None
    short_attention(given, groups, y, bias, None if turns is None else turns.to(torch.complex64), window)()
    own = given.double()
    if turns is not None:
        pairs = torch.view_as_complex(own[:, : heads + groups, :rotated].unflatten(-1, (-1, 2)).contiguous()) * turns[:, None]
        own[:, : heads + groups, :rotated] = torch.view_as_real(pairs).flatten(-2)
    q, k, v = own.split((heads, groups, groups), 1)
    k, v = (each.repeat_interleave(heads // groups, 1) for each in (k, v))
    scores = torch.einsum("thk,shk->hts", q, k) / size**0.5 + (0 if bias is None else bias)
    place = torch.arange(rows)
    scores = scores.masked_fill((place[:, None] - place).abs() > (rows if window is None else window), -torch.inf)
    expected = torch.einsum("hts,shk->thk", scores.softmax(-1), v).flatten(1)
    torch.testing.assert_close(y, expected.float(), atol=1e-5, rtol=1e-5)
    assert (whole[-1] == 7.0).all(), "it wrote beyond its spare rows"


def test_embedding_mean_and_gate():
    torch.manual_seed(0)
    ids, table, added, x, plain = torch.randint(0, 20, (9,)), torch.randn(20, 70), torch.randn(9, 70), torch.empty(9, 70), torch.empty(9, 70)
    for places in (added, None):
        embed_text(ids, table, places, x)()
        embed_text_reference(ids, table, places, plain)
        torch.testing.assert_close(x, plain)
    mean = torch.empty(70)
    mean_text(x, mean)()
    torch.testing.assert_close(mean, x.mean(0))
    for name, act in FUNCTIONS.items():
        y = torch.empty(9, 35)
        gate_text(x, y, name)()
        torch.testing.assert_close(y, act(x[:, :35]) * x[:, 35:], atol=1e-6, rtol=1e-5)
