"""The kernels of fla-core behind our operations: layouts, documents, states, gradients, without a GPU as far as that goes.

Three levels. Stand-ins with their signatures, which are loops over our references, show that the layouts, documents, states
and gradients of every call are right, everywhere. Where fla-core and Triton are installed, the kernels themselves run on the CPU in
Triton's interpreter (fla_interpreted.py) and must be the float64 references. Where a GPU is present, they run on it.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import orrery
from orrery.core.errors import ConfigError
from orrery.ops import backend, fla
from orrery.ops.delta_rule import delta_rule, delta_rule_reference
from orrery.ops.diagonal_scan import diagonal_scan, diagonal_scan_reference
from orrery.ops.dplr import dplr, dplr_reference, vector_delta_rule
from orrery.ops.kda import kda
from orrery.ops.mlstm import mlstm, mlstm_reference
from orrery.ops.scalar_decay import scalar_decay, scalar_decay_reference
from orrery.ops.vector_decay import vector_decay, vector_decay_reference
from orrery.ops.wkv4 import wkv4, wkv4_reference

PACKAGES = all(importlib.util.find_spec(name) for name in ("fla", "triton"))
BATCH, TIME, HEADS, KEY, VALUE = 2, 9, 2, 4, 6


def sequences(reference):
    """A kernel over `cu_seqlens` from a reference over one sequence; scale's default is theirs."""

    def run(state, cu_seqlens, output_final_state, scale, key, **operands):
        assert output_final_state and scale is not None
        count = len(next(iter(operands.values()))) if cu_seqlens is None else len(cu_seqlens) - 1
        assert state is None or (len(state) == count and state.dtype == torch.float32)
        given = operands[next(iter(operands))].dtype
        operands = {k: x.float() for k, x in operands.items()}  # as their sums are
        rows, found = [], []
        for n in range(count):
            part = {
                k: x[n : n + 1] if cu_seqlens is None else x[:, cu_seqlens[n] : cu_seqlens[n + 1]]
                for k, x in operands.items()
            }
            first = None if state is None else state[n : n + 1]
            y, after = reference(**part, state=first, scale=scale)
            rows.append(y.to(given))
            found.append(after)
        return torch.cat(rows, 0 if cu_seqlens is None else 1), torch.cat(found)

    return run


def chunk_simple_gla(
    q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None
):
    assert q.shape[:3] == v.shape[:3] and (g is None) != (g_gamma is None)
    g = g_gamma.expand(v.shape[:3]) if g is None else g
    run = sequences(scalar_decay_reference)
    return run(initial_state, cu_seqlens, output_final_state, scale, KEY, q=q, k=k, v=v, g_log=g)


def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    return sequences(vector_decay_reference)(
        initial_state, cu_seqlens, output_final_state, scale, KEY, q=q, k=k, v=v, g_log=g
    )


def chunk_rwkv6(r, k, v, w, u, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    def reference(**more):
        return vector_decay_reference(**more, bonus=u)

    return sequences(reference)(initial_state, cu_seqlens, output_final_state, scale, KEY, q=r, k=k, v=v, g_log=w)


def chunk_delta_rule(q, k, v, beta, **more):
    assert v.dtype != torch.float32
    return chunk_gated_delta_rule(q, k, v, torch.zeros_like(beta), beta, **more)


def chunk_gated_delta_rule(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
):
    def reference(**more):
        return delta_rule_reference(**more, l2_eps=1e-6 if use_qk_l2norm_in_kernel else None)

    return sequences(reference)(
        initial_state, cu_seqlens, output_final_state, scale, KEY, q=q, k=k, v=v, beta=beta, g_log=g
    )


def chunk_kda(q, k, v, g, beta, **more):
    written = k * beta[..., None]
    return chunk_dplr_delta_rule(q, written, v, k * g.exp(), -written, g, **more)


def chunk_dplr_delta_rule(q, k, v, a, b, gk, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    run = sequences(dplr_reference)
    return run(initial_state, cu_seqlens, output_final_state, scale, KEY, q=q, k=k, v=v, a=a, b=b, g_log=gk)


def fused_recurrent_hgrn(x, g, initial_state=None, output_final_state=False, cu_seqlens=None):
    return diagonal_scan_reference(g, x, initial_state)


def fused_recurrent_rwkv4(w, u, k, v, state):
    y, after = wkv4_reference(k, v, -w.exp(), u, tuple(state[:, :, 0].unbind(1)))
    return y, torch.stack(after, 1)[:, :, None]


STAND_INS = {name: globals()[name] for name in fla._KERNELS}


@pytest.fixture
def stand_ins(monkeypatch):
    """`backend="fla"` runs on the CPU, on stand-ins."""
    monkeypatch.setattr(fla, "kernel", STAND_INS.__getitem__)
    monkeypatch.setitem(backend.DEVICES, "fla", None)
    monkeypatch.setattr(backend, "installed", lambda name: True)


def normal(*shape):
    return torch.randn(*shape)


def operations():
    """name -> (operation, inputs with gradients, other arguments)."""
    torch.manual_seed(0)
    keys = (BATCH, TIME, HEADS, KEY)
    base = {"q": normal(*keys), "k": F.normalize(normal(*keys), dim=-1), "v": normal(*keys[:3], VALUE)}
    state = {"state": normal(BATCH, HEADS, KEY, VALUE)}
    beta, g, gk = {"beta": torch.rand(keys[:3])}, {"g_log": -torch.rand(keys[:3])}, {"g_log": -torch.rand(keys)}
    grouped = {"q": normal(BATCH, TIME, 1, KEY), "k": normal(BATCH, TIME, 1, KEY), "v": base["v"], **state}
    low = {"a": base["k"], "b": -base["k"] * torch.rand(keys)}
    return {
        "scalar_decay": (scalar_decay, {**grouped, **g, **beta, "skip": normal(HEADS)}, {"scale": 0.5}),
        "fixed decay": (scalar_decay, {**base, **state}, {"g_log": torch.tensor([-0.1, -0.5])}),
        "learned decay": (scalar_decay, {**base, **state, "g_log": torch.tensor([-0.1, -0.5])}, {}),
        "without state": (scalar_decay, {**base, **g}, {}),
        "vector_decay": (vector_decay, {**base, **gk, **state}, {"scale": 0.5}),
        "bonus": (vector_decay, {**base, **gk, **state, "bonus": normal(HEADS, KEY)}, {}),
        "delta_rule": (delta_rule, {**base, **beta, **state}, {"l2_eps": 1e-6}),
        "gated_delta_rule": (delta_rule, {**base, **beta, **g, **state}, {"l2_eps": 1e-2, "scale": 0.5}),
        "vector_delta_rule": (vector_delta_rule, {**base, **beta, **gk, **state}, {"scale": 0.5}),
        "dplr": (dplr, {**base, **low, **gk, **state}, {}),
        "diagonal_scan": (
            diagonal_scan,
            {"a_log": -torch.rand(BATCH, TIME, 5), "b": normal(BATCH, TIME, 5), "state": normal(BATCH, 5)},
            {},
        ),
    }


def results(operation, inputs, **more):
    """Outputs and gradients of one functional of both."""
    inputs = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    y, state = operation(**inputs, **more)
    rng = torch.Generator().manual_seed(9)
    total = sum((x * torch.randn(x.shape, generator=rng)).sum() for x in (y, state))
    return [y, state, *torch.autograd.grad(total, list(inputs.values()), materialize_grads=True)]


STARTS = torch.tensor([[1, 0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0, 1]]).bool()


@pytest.mark.parametrize("marks", [None, STARTS, STARTS & False], ids=["whole", "documents", "one document"])
@pytest.mark.parametrize("name", list(operations()))
def test_every_operation_is_itself_over_their_signatures(stand_ins, name, marks):
    operation, inputs, more = operations()[name]
    found = results(operation, inputs, **more, starts=marks, backend="fla")
    wanted = results(operation, inputs, **more, starts=marks, backend="torch")
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("marks", [None, STARTS], ids=["whole", "documents"])
def test_kda_from_its_projections_is_one_kernel(stand_ins, monkeypatch, marks):
    torch.manual_seed(0)
    asked: list[str] = []
    monkeypatch.setattr(fla, "kernel", lambda name: asked.append(name) or STAND_INS[name])
    wide = HEADS * KEY
    inputs = {
        "mixed": normal(BATCH, TIME, 3 * wide), "strength": normal(BATCH, TIME, HEADS), "decay": normal(BATCH, TIME, wide),
        "rate_log": normal(HEADS), "bias": normal(wide), "state": normal(BATCH, HEADS, KEY, KEY),
    }  # fmt: skip
    more = {"most": 2.0, "valid": torch.arange(TIME) < torch.tensor([[TIME], [TIME - 2]]), "starts": marks}
    found = results(kda, inputs, **more, backend="fla")
    assert asked == ["chunk_kda"]
    for a, b in zip(found, results(kda, inputs, **more, backend="torch"), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_mixer_kda_takes_that_kernel(stand_ins, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(fla, "kernel", lambda name: asked.append(name) or STAND_INS[name])
    model = orrery.create_model("kda", width=16, depth=1, head_dim=8, vocab_size=11, seed=0)
    tokens = torch.arange(22).view(2, 11) % 11
    wanted = model(tokens).logits
    with backend.use_backend("fla"):
        found = model(tokens).logits
    assert asked == ["chunk_kda"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_padding_leaves_the_state(stand_ins):
    operation, inputs, more = operations()["fixed decay"]
    lengths = torch.tensor([9, 4])
    found = operation(**inputs, **more, lengths=lengths, starts=STARTS, backend="fla")
    wanted = operation(**inputs, **more, lengths=lengths, starts=STARTS, backend="torch")
    torch.testing.assert_close(found[1], wanted[1])
    torch.testing.assert_close(found[0][1, :4], wanted[0][1, :4])


def test_wkv4_and_mlstm(stand_ins):
    torch.manual_seed(0)
    k, v, w_log, u = normal(2, 9, 4), normal(2, 9, 4), -torch.rand(4), normal(4)
    for a, b in zip(wkv4(k, v, w_log, u, backend="fla")[1], wkv4(k, v, w_log, u, backend="torch")[1], strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ConfigError, match="no backend 'fla'"):
        wkv4(k, v, w_log, u, starts=STARTS, backend="fla")
    q, k, v, gate = normal(2, 9, 2, 4), normal(2, 9, 2, 4), normal(2, 9, 2, 6), normal(2, 9, 2)
    found = mlstm(q, k, v, gate, F.logsigmoid(gate), starts=STARTS, backend="fla")
    wanted = mlstm_reference(q, k, v, gate, F.logsigmoid(gate), starts=STARTS)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1][0], wanted[1][0], rtol=1e-4, atol=1e-5)


def test_gates_that_forget_all_stay_numbers(stand_ins):
    operation, inputs, _ = operations()["vector_decay"]
    inputs["g_log"][:, 3] = -torch.inf
    for a, b in zip(
        results(operation, inputs, backend="fla"), results(operation, inputs, backend="torch"), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_halves_go_there_as_halves(stand_ins):
    operation, inputs, more = operations()["delta_rule"]
    y, state = operation(
        **{k: x if k == "state" else x.bfloat16() for k, x in inputs.items()}, **more, starts=STARTS, backend="fla"
    )
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32


def test_wide_keys_are_refused_by_name_and_told_once_of_a_gpu(stand_ins):
    x = normal(1, 3, 1, 257)
    with pytest.raises(ConfigError, match="no backend 'fla'"):
        delta_rule(x, x, x, torch.rand(1, 3, 1), backend="fla")
    fla._told.clear()
    with pytest.warns(RuntimeWarning, match="runs on its torch backend: too wide"):
        assert fla.offered("an op", "too wide") == ("numba", "torch")
    assert fla.offered("an op", "too wide") == ("numba", "torch")  # said once: a second warning would be an error here
    assert fla.offered("an op", None, ("torch",)) == ("fla", "torch")


def test_documents_of_one_tensor_are_worked_out_once():
    marks = STARTS.clone()
    found = fla.documents(marks)
    assert (
        found.offsets.tolist() == [0, 3, 4, 9, 11, 17, 18]
        and found.first.tolist() == [0, 3]
        and found.last.tolist() == [2, 5]
    )
    assert fla.documents(marks) is found
    marks[1, 1] = True
    assert fla.documents(marks).offsets.tolist() == [0, 3, 4, 9, 10, 11, 17, 18]


def test_without_a_gpu_the_choice_stays_as_it_was():
    x = normal(1, 3, 1, 4)
    with pytest.raises(ConfigError, match=r"package of that name|cannot run on the device cpu"):
        delta_rule(x, x, x, torch.rand(1, 3, 1), backend="fla")
    assert backend.choose(None, x, op="delta_rule", offered=("fla", "torch")) == "torch"


@pytest.mark.skipif(not PACKAGES, reason="fla-core and triton are not installed")
@pytest.mark.parametrize("name", fla._KERNELS)
def test_their_signatures_take_what_we_give(name):
    theirs = inspect.signature(fla.kernel(name))
    ours = inspect.signature(STAND_INS[name])
    given = [p.name for p in ours.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if name in ("chunk_delta_rule", "chunk_kda"):
        given += ["scale", "initial_state", "output_final_state", "cu_seqlens"]
    theirs.bind(**dict.fromkeys(given))
    assert set(given) <= {p.name for p in theirs.parameters.values() if p.kind is not p.VAR_KEYWORD}, (
        "taken by **kwargs, so unread"
    )


CASES = [
    "scalar-starts",
    "scalar-extreme",
    "fixed-starts",
    "vector-starts",
    "vector-extreme",
    "bonus-starts",
    "bonus-extreme",
    "delta-starts",
    "gated-starts",
    "gated-extreme",
    "kda-starts",
    "dplr-starts",
    "dplr-extreme",
    "scan",
    "scan-extreme",
    "wkv4",
]


@pytest.mark.skipif(not PACKAGES, reason="fla-core and triton are not installed")
def test_their_kernels_are_our_references_in_the_interpreter():
    script = Path(__file__).with_name("fla_interpreted.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, script, *CASES], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [case["name"] for case in found] == CASES
    for case in found:
        limit = 5e-5 if "extreme" in case["name"] else 5e-6  # sums of strong gates in float32 are theirs
        for part, error in case["errors"].items():
            assert 0 <= error <= limit, (case["name"], part, error)


@pytest.mark.skipif(not torch.cuda.is_available() or not PACKAGES, reason="no GPU with fla-core and triton")
@pytest.mark.parametrize("marks", [None, STARTS], ids=["whole", "documents"])
@pytest.mark.parametrize("name", list(operations()))
def test_on_a_gpu_every_operation_is_its_cpu_form(name, marks):
    operation, inputs, more = operations()[name]
    wanted = results(operation, inputs, **more, starts=marks, backend="torch")

    def on_gpu(**arguments):
        moved = {k: x.cuda() if torch.is_tensor(x) else x for k, x in arguments.items()}
        return tuple(x.cpu() for x in operation(**moved, backend="fla"))

    found = results(on_gpu, inputs, **more, starts=marks)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 5e-3 * b.abs().max()  # tensor-float-32


def test_the_benchmark_says_in_one_sentence_what_is_missing():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, on which the benchmark would run")
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("benchmarks/gpu.py measured nothing: no CUDA device")
