"""fla's own kernels, run on a CPU by Triton's interpreter, beside our references: `TRITON_INTERPRET=1 python fla_interpreted.py`

Prints a line of JSON for every case: name, and the largest error of y, of the state and of every gradient, relative to the
largest number. For test_fla.py, in a process of its own: the interpreter must be chosen before Triton is imported.

Triton's interpreter lacks three things that the kernels use, and they are supplied here: loop counters that know `.to`, masks
that are integers, and `gather` under a name bound at import. Autotuning takes the first configuration, unmeasured.
"""

from __future__ import annotations

import json
import operator
import sys
import warnings
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import triton.language as tl
from triton.runtime import autotuner, interpreter

from orrery.ops import fla
from orrery.ops.delta_rule import delta_rule_reference
from orrery.ops.diagonal_scan import diagonal_scan_reference
from orrery.ops.dplr import dplr_reference
from orrery.ops.scalar_decay import scalar_decay_reference
from orrery.ops.vector_decay import vector_decay_reference
from orrery.ops.wkv4 import wkv4_reference

BATCH, TIME, HEADS, KEY, VALUE = 2, 67, 2, 16, 8


class Counter(int):
    """A loop counter of the interpreter, with the conversion that a compiled one has."""

    def to(self, dtype, *_, **__):
        kind = np.int64 if dtype == tl.int64 else np.int32
        return tl.core.tensor(interpreter.TensorHandle(np.array([int(self)], kind), dtype), dtype)


def counting(name):
    def result(self, other):
        found = getattr(operator, name)(int(self), other if not isinstance(other, int) else int(other))
        return Counter(found) if type(found) is int else found

    return result


for name in ("add", "sub", "mul", "floordiv"):
    setattr(Counter, f"__{name}__", counting(name))


def boolean_mask(method, place):
    def call(self, *arguments):
        mask = arguments[place]
        mask = interpreter.TensorHandle(mask.data.astype(bool), tl.int1)
        return method(self, *arguments[:place], mask, *arguments[place + 1 :])

    return call


def prepare() -> None:
    """Import the kernels and let the interpreter run them."""
    autotuner.Autotuner._bench = lambda self, *_, **__: [0.0, 0.0, 0.0]
    builder = interpreter.InterpreterBuilder
    builder.create_masked_load = boolean_mask(builder.create_masked_load, 1)
    builder.create_masked_store = boolean_mask(builder.create_masked_store, 2)
    for name in fla._KERNELS:
        fla.kernel(name)
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops"):
            module.range = lambda *ends: [Counter(i) for i in range(*map(int, ends))]
            if hasattr(module, "gather"):
                module.gather = lambda *a, **k: tl.gather(*a, **k)


def vector_delta_reference(q, k, v, beta, g_log, **more):
    written = k * beta[..., None]
    return dplr_reference(q, written, v, k * g_log.exp(), -written, g_log, **more)


def flat_wkv4(function):
    return lambda k, v, w_log, u, **state: function(k, v, w_log, u, tuple(state.values()))


def results(function, inputs, dtype, more):
    """y, the state, and the gradients of one functional of both."""
    inputs = {name: x.detach().to(dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    y, state = function(**inputs, **more)
    state = torch.stack(state) if isinstance(state, tuple) else state
    rng, total = torch.Generator().manual_seed(9), 0.0
    for x in (y, state):
        total = total + (x * torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x)).sum()
    slopes = torch.autograd.grad(total, list(inputs.values()), materialize_grads=True)
    return {"y": y, "state": state, **{f"d{name}": x for name, x in zip(inputs, slopes, strict=True)}}


def compare(name, ours, reference, inputs, **more):
    got = results(ours, inputs, torch.float32, more)
    wanted = results(reference, inputs, torch.float64, more)
    errors = {}
    for part, right in wanted.items():
        error = (got[part].double() - right).abs().max() / right.abs().max().clamp(min=1e-30)
        errors[part] = error.item() if torch.isfinite(right).all() else -1.0
    print(json.dumps({"name": name, "errors": errors}), flush=True)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gates(*shape, extreme=False):
    """Logs of decays; `extreme` ones forget all, or nearly all, or 1e-7, among ordinary ones."""
    g, draw = -0.3 * torch.rand(*shape, dtype=torch.float64), torch.rand(*shape)
    if extreme:
        g[draw < 0.05], g[(draw > 0.05) & (draw < 0.1)], g[(draw > 0.1) & (draw < 0.2)] = -torch.inf, -70.0, -1e-7
    return g


def main(chosen: list[str]) -> None:
    prepare()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    keys = (BATCH, TIME, HEADS, KEY)
    starts = torch.rand(BATCH, TIME) < 0.06
    starts[0, 0] = True
    base = {"q": normal(*keys), "k": F.normalize(normal(*keys), dim=-1), "v": normal(*keys[:3], VALUE)}
    state, beta = {"state": normal(BATCH, HEADS, KEY, VALUE)}, {"beta": torch.rand(*keys[:3], dtype=torch.float64)}
    low = {"a": base["k"], "b": -base["k"] * torch.rand(*keys)}
    grouped = {"q": normal(BATCH, TIME, 1, KEY), "k": normal(BATCH, TIME, 1, KEY), "v": base["v"]}
    for case in chosen:
        op, *how = case.split("-")
        marks, extreme = starts if "starts" in how else None, "extreme" in how
        g, gk = {"g_log": gates(*keys[:3], extreme=extreme)}, {"g_log": gates(*keys, extreme=extreme)}
        more = {"starts": marks}
        if op == "scalar":
            inputs = {**grouped, **g, **state, **beta, "skip": normal(HEADS)}
            compare(case, fla.scalar_decay, scalar_decay_reference, inputs, scale=0.5, **more)
        elif op == "fixed":
            fixed = torch.tensor([-0.01, -0.3])  # no operand: its gradient is not asked for
            ours = partial(fla.scalar_decay, g_log=fixed)
            reference = partial(scalar_decay_reference, g_log=fixed.double().expand(keys[:3]))
            compare(case, ours, reference, {**base, **state}, **more)
        elif op == "vector":
            compare(case, fla.vector_decay, vector_decay_reference, {**base, **gk, **state}, scale=0.5, **more)
        elif op == "bonus":
            compare(
                case,
                fla.vector_decay,
                vector_decay_reference,
                {**base, **gk, **state, "bonus": normal(HEADS, KEY)},
                **more,
            )
        elif op == "delta":
            compare(case, fla.delta_rule, delta_rule_reference, {**base, **beta, **state}, l2_eps=1e-6, **more)
        elif op == "gated":
            compare(case, fla.delta_rule, delta_rule_reference, {**base, **beta, **g, **state}, l2_eps=1e-3, **more)
        elif op == "kda":
            compare(
                case, fla.vector_delta_rule, vector_delta_reference, {**base, **beta, **gk, **state}, scale=0.5, **more
            )
        elif op == "dplr":
            compare(case, fla.dplr, dplr_reference, {**base, **low, **gk, **state}, scale=0.5, **more)
        elif op == "scan":
            inputs = {
                "a_log": gates(BATCH, TIME, 24, extreme=extreme),
                "b": normal(BATCH, TIME, 24),
                "state": normal(BATCH, 24),
            }
            compare(case, fla.diagonal_scan, diagonal_scan_reference, inputs)
        elif op == "wkv4":
            held = {"num": normal(BATCH, 16), "den": normal(BATCH, 16).abs() + 1, "peak": normal(BATCH, 16)}
            inputs = {
                "k": normal(BATCH, TIME, 16),
                "v": normal(BATCH, TIME, 16),
                "w_log": gates(16),
                "u": normal(16),
                **held,
            }
            compare(case, flat_wkv4(fla.wkv4), flat_wkv4(wkv4_reference), inputs)


if __name__ == "__main__":
    main(sys.argv[1:])
