"""What holds for every operation: what it cannot run on is said in one sentence, before a compiled loop reads memory by sizes that
are not there; cuts, single tokens and documents change nothing; hard gates leave finite numbers."""

from __future__ import annotations

import inspect

import pytest
import torch

from orrery.core.errors import OrreryError, StateError
from orrery.ops.delta_rule import delta_rule
from orrery.ops.diagonal_scan import diagonal_scan
from orrery.ops.dplr import dplr, vector_delta_rule
from orrery.ops.egru import egru_sequence
from orrery.ops.gru import gru_layer, gru_sequence
from orrery.ops.linked_sums import linked_sums
from orrery.ops.lstm import lstm_layer, lstm_sequence
from orrery.ops.mlstm import mlstm
from orrery.ops.rg_lru import rg_lru
from orrery.ops.scalar_decay import scalar_decay
from orrery.ops.selective_scan import selective_scan
from orrery.ops.slstm import slstm
from orrery.ops.vector_decay import vector_decay
from orrery.ops.wkv4 import wkv4

# Letters: b batch, t time, h heads, g groups of heads, k key, v value, w value and one, d width, n states, f and s and r: four,
# three and four-k gates. "state" may be several.
FORMS = {
    scalar_decay: "q btgk, k btgk, v bthv, g_log bth, beta bth, skip h, state bhkv",
    vector_decay: "q bthk, k bthk, v bthv, g_log bthk, bonus hk, state bhkv",
    delta_rule: "q bthk, k bthk, v bthv, beta bth, g_log bth, state bhkv",
    dplr: "q bthk, k bthk, v bthv, a bthk, b bthk, g_log bthk, state bhkv",
    vector_delta_rule: "q bthk, k bthk, v bthv, beta bth, g_log bthk, state bhkv",
    diagonal_scan: "a_log btd, b btd, state bd",
    rg_lru: "x btd, input_gate btd, recurrence_gate btd, pace d, first t, state bd",
    selective_scan: "x btd, dt btd, A dn, B btn, C btn, D d, z btd, dt_bias d, state bnd",
    wkv4: "k btd, v btd, w_log d, u d, state bd bd bd",
    mlstm: "q bthk, k bthk, v bthv, i_log bth, f_log bth, state bhkw bh",
    slstm: "gates_x bthr, weight hkr, state bhk bhk bhk bhk",
    lstm_sequence: "gates_x btf, weight_hh fd, bias f, state bd bd",
    lstm_layer: "x btv, weight_ih fv, weight_hh fd, bias f, state bd bd",
    gru_sequence: "gates_x bts, weight_hh sd, bias s, state bd",
    gru_layer: "x btv, weight_ih sv, weight_hh sd, bias s, bias_hh s, state bd",
    egru_sequence: "gates_x bts, weight_hh sd, theta d, bias s, state bd bd",
}
SIZES = {"b": 3, "t": 7, "h": 4, "g": 2, "k": 3, "v": 5, "w": 6, "d": 5, "n": 3, "f": 20, "s": 15, "r": 12}
OPS = pytest.mark.parametrize("op", FORMS, ids=lambda op: op.__name__)


def operands(op, dtype=torch.float32, **sizes):
    """Numbers of every shape: logarithms and what else may be are below 0, strengths and states above."""
    torch.manual_seed(0)
    made = {}
    for part in FORMS[op].split(", "):
        name, *forms = part.split(" ")
        sign = 1 if name in ("state", "beta", "pace", "first") else -1
        tensors = [(sign * torch.rand([{**SIZES, **sizes}[letter] for letter in form])).to(dtype) for form in forms]
        made[name] = tensors[0] if len(tensors) == 1 else tuple(tensors)
        if name == "first":
            made[name] = tensors[0] > 1
    return made


def refused(call, *words):
    with pytest.raises(OrreryError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300 and all(word in text for word in words), text


@OPS
def test_an_operand_of_another_size_is_refused(op):
    """Every dimension of every operand, one smaller and one larger; but the time of the only one that has any."""
    given = operands(op)
    alone = "".join(FORMS[op].split(" ")[1::2]).count("t") == 1
    op(**given)
    for name, value in given.items():
        parts = value if isinstance(value, tuple) else (value,)
        for number, part in enumerate(parts):
            for axis in range(part.dim()):
                if name == "first" or (alone and part.dim() >= 3 and axis == 1 and part.shape[1] == SIZES["t"]):
                    continue
                for other in (part.narrow(axis, 0, part.shape[axis] - 1), torch.cat([part, part.narrow(axis, 0, 1)], axis)):
                    changed = (*parts[:number], other, *parts[number + 1 :])
                    refused(lambda n=name, c=changed: op(**{**given, n: c[0] if len(c) == 1 else c}), "was given")


@OPS
def test_nothing_is_read_of_nothing(op):
    for sizes in ({"t": 0}, {"b": 0}):
        refused(lambda s=sizes: op(**operands(op, **s)), "is empty; pass at least one token")


@OPS
def test_whole_numbers_are_refused_and_half_precision_is_not(op):
    given, halves = operands(op), operands(op, torch.float16)
    for name, value in given.items():
        if name not in ("state", "first"):
            refused(lambda n=name, v=value: op(**{**given, n: (v * 9).long()}), "in torch.int64", "floating-point")
    y, _ = op(**{**halves, "state": given["state"]})
    want, _ = op(**given)
    assert y.dtype == torch.float16 and (y - want).abs().max() < 0.01 * want.abs().max()


@OPS
def test_starts_lengths_and_chunks_that_cannot_be_are_refused(op):
    given, known = operands(op), inspect.signature(op).parameters
    if "starts" in known:
        for starts in (torch.zeros(3, 6) > 0, torch.zeros(1, 7) > 0, torch.zeros(3, 7, dtype=torch.int64)):
            refused(lambda s=starts: op(**given, starts=s), "starts of shape", "torch.bool")
    if "lengths" in known:
        for lengths in (torch.tensor([3]), torch.tensor([3, 4]), torch.tensor([3.0, 4.0, 5.0]), torch.tensor([True, False, True])):
            refused(lambda n=lengths: op(**given, lengths=n), "lengths of shape")
        for lengths, words in ((torch.tensor([3, 8, 1]), "a length of 8"), (torch.tensor([-1, 3, 7]), "a length of -1")):
            refused(lambda n=lengths: op(**given, lengths=n), words, "7 tokens")
    if "chunk" in known:
        for chunk in (0, -3):
            refused(lambda c=chunk: op(**given, chunk=c), f"a chunk of {chunk} tokens")
        torch.testing.assert_close(op(**given, chunk=10**9)[0], op(**given)[0])


@OPS
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_memory_in_another_order_changes_nothing(op, backend):
    if op is delta_rule and backend == "numba":
        return
    given = operands(op)
    turned = {
        name: value if isinstance(value, tuple) or value.dim() < 2 else value.transpose(0, -1).contiguous().transpose(0, -1)
        for name, value in given.items()
    }
    torch.testing.assert_close(op(**turned, backend=backend)[0], op(**given, backend=backend)[0])


@OPS
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_gradient_of_one_operand_alone_is_that_of_all(op, backend):
    """And without gradients, in inference mode, the values are the same."""
    if op is delta_rule and backend == "numba":
        return
    given = {name: value for name, value in operands(op).items() if not isinstance(value, tuple)}
    leaves = {name: value.clone().requires_grad_() for name, value in given.items() if name != "first"}
    y, _ = op(**{**given, **leaves}, backend=backend)
    want = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    for (name, leaf), gradient in zip(leaves.items(), want, strict=True):
        alone, _ = op(**{**given, name: leaf}, backend=backend)
        torch.testing.assert_close(torch.autograd.grad(alone.square().sum(), leaf)[0], gradient)
    with torch.inference_mode():
        torch.testing.assert_close(op(**given, backend=backend)[0], y)


@OPS
@pytest.mark.parametrize(("backend", "dtype"), [("torch", torch.float64), ("numba", torch.float32)])
def test_cuts_single_tokens_and_documents(op, backend, dtype):
    """Run on after cuts, one token at a time among them, with a document that begins at a cut, after one, and within a piece."""
    if op is delta_rule and backend == "numba":
        return
    forms = dict(part.split(" ", 1) for part in FORMS[op].split(", "))
    given = operands(op, dtype)
    starts = torch.zeros(3, 7, dtype=torch.bool)
    starts[0, 3] = starts[1, 4] = starts[2, 5] = True
    for marks in (None, starts):
        whole, end = op(**given, starts=marks, backend=backend)
        state, rows = given["state"], []
        for low, high in ((0, 3), (3, 4), (4, 5), (5, 7)):
            timed = {name: forms[name][:2] == "bt" or name == "first" for name in given}
            piece = {
                name: value if not timed[name] else value[low:high] if name == "first" else value[:, low:high]
                for name, value in given.items()
            }
            row, state = op(**{**piece, "state": state}, starts=None if marks is None else marks[:, low:high], backend=backend)
            rows.append(row)
        tolerance = 1e-11 if dtype == torch.float64 else 2e-5
        for got, want in zip((torch.cat(rows, 1), *parts_of(state)), (whole, *parts_of(end)), strict=True):
            assert (got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1)
        assert all(part.dtype == dtype for part in parts_of(end))


@OPS
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_backward_pass_within_autocast_is_as_exact_as_without(op, backend):
    """Autocast would round products of the gradient, whose operands have been brought to the type they are meant to have."""
    if op is delta_rule and backend == "numba":
        return
    given, found = operands(op), []
    for inside in (False, True):
        leaves = {name: value.clone().requires_grad_() for name, value in given.items() if name not in ("state", "first")}
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            y, _ = op(**{**given, **leaves}, backend=backend)
            y.float().square().sum().backward()
        found.append([y.detach(), *(leaf.grad for leaf in leaves.values())])
    exact = op not in (lstm_layer, gru_layer)  # these hold a projection, which autocast is there for
    for got, want in zip(*found, strict=True):
        assert (got - want).norm() <= (1e-6 if exact else 0.03) * want.norm()


def parts_of(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("op", [lstm_sequence, gru_sequence, egru_sequence], ids=lambda op: op.__name__)
@pytest.mark.parametrize("gate", [-1e4, -69.0, 16.118, 1e4])
def test_shut_and_open_gates_of_cells(op, gate, backend):
    """Sigmoids of 0, 1e-30, 1 - 1e-7 and 1, everywhere and in some places, against float64; gradients are finite."""
    given = operands(op)
    for share in (1.0, 0.3):
        hard = torch.rand(given["gates_x"].shape, generator=torch.Generator().manual_seed(1)) < share
        pressed = {**given, "gates_x": torch.where(hard, gate, given["gates_x"])}
        leaves = {name: value.clone().requires_grad_() for name, value in pressed.items() if name != "state"}
        y, after = op(**leaves, state=given["state"], backend=backend)
        double = {name: tuple(x.double() for x in v) if isinstance(v, tuple) else v.double() for name, v in pressed.items()}
        want, end = op(**double)
        for got, right in zip((y, *parts_of(after)), (want, *parts_of(end)), strict=True):
            assert (got - right).abs().max() <= 2e-6 * right.abs().max().clamp(min=1)
        slopes = torch.autograd.grad(y.sum() + sum(x.sum() for x in parts_of(after)), list(leaves.values()))
        assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_what_a_gru_keeps_does_not_drift(backend):
    """An update gate of 1 for 65,536 tokens (8,192 in torch's loop): h is what it was, whatever the candidates."""
    time, h = (1 << 16) if backend == "numba" else (1 << 13), torch.tensor([[0.3, -0.7]])
    gates = torch.randn(1, time, 6)
    gates[..., 2:4] = 200.0
    y, after = gru_sequence(gates, torch.zeros(6, 2), None, h, backend=backend)
    assert torch.equal(after, h) and torch.equal(y[:, -1], h)


def test_links_lead_backwards():
    x = torch.ones(1, 3, 2)
    for link in (torch.tensor([[-1, 1, 0]]), torch.tensor([[-1, 5, 0]]), torch.tensor([[-2, 0, 0]])):
        with pytest.raises(StateError, match="no earlier token"):
            linked_sums(x, link)
    refused(lambda: linked_sums(x, torch.zeros(1, 3)), "int64")
