"""One token of the diagonal recurrences between their projections, as compiled loops that are called again and again.

    Mamba (2312.00752):    u = silu(conv(u));  then, once step size, B and C are known:  h = exp(delta A) h + delta u B;
                           y = (C . h + D u) silu(z)
    RG-LRU (2402.19427):   u = conv(u);  i, r = sigmoid(W_i u), sigmoid(W_r u), block-diagonal;  log a = -8 r p;
                           h = a h + sqrt(1 - a^2) i u;  y = gelu(g) h

Each function looks its arrays up once and returns a function of no arguments, which reads and writes them in place (for
:mod:`orrery.ops.steps.row_linear`, which says why). Float32 on a CPU, no gradient.

B batch, E channels, N state size of a channel, K taps, H blocks of the gates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, expm1, prepare_blocks, sigmoid, softplus, tanh

_LANES = 64  # channels that the loops take together
_ONE, _HALF = np.float32(1.0), np.float32(0.5)  # in a kernel, a Python 1 would turn float32 into float64
_CUBE, _ROOT = np.float32(0.044715), np.float32((2 / np.pi) ** 0.5)
_SHARPNESS = np.float32(8.0)


def conv_step(
    p: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, begin: int, silu: bool
) -> Callable[[], None]:
    """The convolution of one token.

    Args:
        p: (B,*), whose columns from `begin` on hold the new inputs. window: (B,K-1,E), the last ones; moved on by every call.
        weight: (E,K); bias: (E,) or None; u: (B,E), what comes out. silu: behind the sum.
    """
    columns = weight.detach().t().contiguous()
    shift = u.new_zeros(u.shape[1]) if bias is None else bias.detach()
    arrays = [t.numpy() for t in (p, window, columns, shift, u)]
    return prepare_blocks(_conv, len(u), 2 * weight.numel(), *arrays, begin, silu)


def selective_step(
    u: Tensor,
    dt: Tensor,
    selected: Tensor,
    z: Tensor,
    begin: int,
    rates: Tensor,
    skip: Tensor,
    state: Tensor,
    y: Tensor,
) -> Callable[[], None]:
    """The selective scan of one token.

    Args:
        u, dt: (B,E), dt with its bias. selected: (B,2N), B and C. z: (B,*), the gate from column `begin` on.
        rates: A (E,N). skip: D (E,). state: (B,N,E), overwritten. y: (B,E), what comes out.
    """
    pace = rates.detach().t().contiguous()
    arrays = [t.detach().numpy() for t in (u, dt, selected, z, pace, skip, state, y)]
    return prepare_blocks(_selective, len(u) * -(-u.shape[1] // _LANES), 2 * state.numel(), *arrays, begin)


def rg_lru_step(
    u: Tensor, gate: Tensor, input_gate: Tensor, input_bias: Tensor, recurrence_gate: Tensor, recurrence_bias: Tensor,
    pace: Tensor, state: Tensor, y: Tensor,
) -> Callable[[], None]:  # fmt: skip
    """RG-LRU and its output gate for one token that is not the first of its document.

    Args:
        u: (B,R). gate: (B,*), g in the first R columns. input_gate, recurrence_gate: (H,R/H,R/H), their biases (H,R/H).
        pace: p, (R,). state: h (B,R), overwritten. y: (B,R), what comes out.
    """
    gates = (input_gate, input_bias, recurrence_gate, recurrence_bias)
    arrays = [t.detach().contiguous().numpy() for t in (*gates, pace)]
    own = [t.numpy() for t in (u, gate)]
    return prepare_blocks(
        _rg_lru, len(u) * len(input_gate), 2 * input_gate.numel(), *own, *arrays, state.numpy(), y.numpy()
    )


@compiled
def _conv(first, last, p, window, columns, bias, u, begin, silu):  # type: ignore[no-untyped-def]
    kept, width = window.shape[1], u.shape[1]
    for b in range(first, last):
        new, out = p[b, begin : begin + width], u[b]
        for i in range(width):
            out[i] = bias[i] + columns[kept, i] * new[i]
        for j in range(kept):
            for i in range(width):
                out[i] += columns[j, i] * window[b, j, i]
        for j in range(kept - 1):
            for i in range(width):
                window[b, j, i] = window[b, j + 1, i]
        if kept:
            window[b, kept - 1] = new
        if silu:
            for i in range(width):
                out[i] = out[i] * sigmoid(out[i])


@compiled
def _selective(first, last, u, dt, selected, z, rates, skip, state, y, begin):  # type: ignore[no-untyped-def]
    size, width = rates.shape
    columns = -(-width // _LANES)
    delta, inputs = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32)
    total, less = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32)
    for block in range(first, last):
        b, low = block // columns, (block % columns) * _LANES
        high = min(low + _LANES, width)
        given, raw, past, passed = u[b, low:high], dt[b, low:high], skip[low:high], z[b, begin + low : begin + high]
        for i in range(high - low):
            delta[i] = softplus(raw[i])
            inputs[i] = delta[i] * given[i]
            total[i] = past[i] * given[i]
        for n in range(size):
            h, pace, write, read = state[b, n, low:high], rates[n, low:high], selected[b, n], selected[b, size + n]
            for i in range(high - low):
                less[i] = expm1(delta[i] * pace[i])
            for i in range(high - low):
                h[i] = (h[i] + less[i] * h[i]) + inputs[i] * write
                total[i] += read * h[i]
        out = y[b, low:high]
        for i in range(high - low):
            out[i] = total[i] * passed[i] * sigmoid(passed[i])


@compiled
def _rg_lru(first, last, u, gate, input_gate, input_bias, recurrence_gate, recurrence_bias, pace, state, y):  # type: ignore[no-untyped-def]
    heads, size = input_bias.shape
    i_gate, r_gate = np.empty(size, np.float32), np.empty(size, np.float32)
    for block in range(first, last):
        b, head = block // heads, block % heads
        low, high = head * size, (head + 1) * size
        given, g, h, out, p = u[b, low:high], gate[b, low:high], state[b, low:high], y[b, low:high], pace[low:high]
        i_gate[:], r_gate[:] = input_bias[head], recurrence_bias[head]
        for j in range(size):
            to_input, to_recurrence, value = input_gate[head, j], recurrence_gate[head, j], given[j]
            for k in range(size):
                i_gate[k] += value * to_input[k]
                r_gate[k] += value * to_recurrence[k]
        for k in range(size):
            a_log = -_SHARPNESS * sigmoid(r_gate[k]) * p[k]
            room = np.sqrt(-expm1(a_log + a_log))
            h[k] = (h[k] + expm1(a_log) * h[k]) + room * (sigmoid(i_gate[k]) * given[k])
            out[k] = h[k] * (_HALF * g[k] * (_ONE + tanh(_ROOT * (g[k] + _CUBE * g[k] * g[k] * g[k]))))
