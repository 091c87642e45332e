"""Cross-entropy that never holds the logits of a whole batch.

Equation (one row n, class v): ``z_nv = h_n . W_v + b_v``, capped ``c_nv = s tanh(z_nv / s)`` when a soft-cap s is set,
``lse_n = log sum_v exp c_nv``, ``nats_n = lse_n - c_{n,t(n)}``; the loss is ``sum_n w_n (nats_n + zeta lse_n^2) / sum_n w_n``.
``d loss / d c_nv = w_n (p_nv (1 + 2 zeta lse_n) - [v = t(n)])``, and the soft-cap multiplies it by ``1 - (c_nv / s)^2``.

Method: the rows are taken in chunks. A chunk's logits are made in one small buffer, turned into their own gradient in
place, and multiplied at once into the gradients of h and W, all in the *forward* pass. So the work is the three matrix
products of the plain way (none is recomputed) and memory holds ``chunk x V`` numbers instead of ``N x V``; the backward
pass only scales. The softmax, the sums and the accumulated gradients are float32 when h is bfloat16 or float16.
On a CPU in float32 the softmax and its gradient are a compiled loop (:mod:`orrery.ops.losses.cross_entropy_rows`).
What a chunk's logits are scored by is a :class:`RowLoss`; others than cross-entropy are in :mod:`orrery.ops.losses.row_losses`.
The z-loss is that of PaLM (2204.02311, section 5), the soft-cap that of Gemma 2 (2408.00118, section 2).

Shapes: N rows (any leading shape is flattened), D width, V classes. hidden (..., D), weight (V, D), bias (V,), targets (...,).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from orrery.ops.losses.cross_entropy_rows import can_score, score_rows

IGNORE = -100  # the label torch's own cross-entropy ignores

# A chunk's logits hold about this many numbers, in at least so many rows. Measured on two CPU cores (D 256; V 256, 8192,
# 50257): time is flat from 1 to 4 million numbers and rises on both sides (call overhead below, cache misses above), and
# below 128 rows the traffic of the weight and its gradient, once per chunk, shows.
_CPU_CHUNK = 2 << 20
_GPU_CHUNK = 64 << 20
_LEAST_ROWS = 256


class CrossEntropy(NamedTuple):
    """What :func:`linear_cross_entropy` returns."""

    loss: Tensor  # (), differentiable: what to minimise
    nats: Tensor  # (), detached: the weighted sum of the plain cross-entropy over all rows that count, in nats
    weight: Tensor  # (), detached: the sum of the weights of those rows (their number when no weights are given)


class RowLoss(Protocol):
    """A loss that is a sum over rows, each a function of that row's logits and label alone."""

    def value(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(nats, loss) of every row, each (C,); `scores` (C,V) may be overwritten."""
        ...

    def gradient(self, scores: Tensor, labels: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and `scores` becomes its own gradient of ``sum_n factors_n loss_n``; factors (C,1)."""
        ...


def chunk_rows(rows: int, classes: int, device: torch.device) -> int:
    """Rows per chunk so that a chunk's logits stay in the range where the products are fastest; chunks are near equal."""
    limit = max(_LEAST_ROWS, (_GPU_CHUNK if device.type == "cuda" else _CPU_CHUNK) // max(1, classes))
    if rows <= limit:
        return max(1, rows)
    return -(-rows // -(-rows // limit))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
    ignore_index: int | None = IGNORE,
    rows: int | None = None,
    loss: RowLoss | None = None,
) -> CrossEntropy:
    """Cross-entropy of the linear head `weight` on `hidden`, without the logits of the batch.

    Args:
        hidden: (..., D), any floating dtype; under autocast it and `weight` are used in autocast's dtype.
        weight: (V, D) head.
        targets: (...) int64 class indices; rows whose target is `ignore_index` count for nothing.
        bias: (V,) or None.
        weights: (...) float, a constant weight per row, or None. (Class weights: pass `class_weights[targets]`.)
        z_loss: zeta of the equation above.
        softcap: s of the equation above, or None.
        reduction: "mean" (divide by the sum of the weights; 0 when no row counts) or "sum".
        ignore_index: None promises that every target counts, which saves a scan of the targets.
        rows: rows per chunk; None chooses by measurement.
        loss: what takes the place of cross-entropy plus z-loss in `loss`; `nats` stay those of the cross-entropy.

    Returns:
        CrossEntropy(loss, nats, weight). Gradients flow to hidden, weight and bias; there is no second derivative.

    Raises:
        IndexError: a target outside 0..V-1 (checked on CPU).
        ValueError: shapes that do not fit.
    """
    flat, labels, factors, _ = _rows(hidden, weight, targets, weights, ignore_index)
    total, scale = _scale(flat, factors, reduction)
    size = rows or chunk_rows(len(flat), len(weight), flat.device)
    setting = _Setting(_compute_dtype(flat), _row_loss(loss, z_loss, softcap), size)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias)):
        value, nats = _Fused.apply(flat, weight, bias, labels, factors, scale, setting)
    else:
        value, nats, *_ = _forward(flat, weight, bias, labels, factors, scale, setting, (False, False, False))
    return CrossEntropy(value, nats, total)


def linear_nats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    ignore_index: int | None = IGNORE,
    rows: int | None = None,
) -> Tensor:
    """Nats of every row, shaped like `targets`; 0 where the target is `ignore_index`. No gradient; logits in chunks.

    Evaluation's form: float32 sums (float64 for float64 input), so that totals over a corpus can be added up.
    """
    with torch.no_grad():
        flat, labels, _, kept = _rows(hidden, weight, targets, None, ignore_index)
        size = rows or chunk_rows(len(flat), len(weight), flat.device)
        dtype = _compute_dtype(flat)
        exact = torch.promote_types(flat.dtype, torch.float32)
        nats = torch.empty(len(flat), device=flat.device, dtype=exact)
        with torch.autocast(flat.device.type, enabled=False):
            head = weight.to(dtype)
            for start in range(0, len(flat), size):
                part = slice(start, start + size)
                scores = _logits(flat[part].to(dtype), head, bias, exact)
                nats[part] = _score(scores, labels[part], softcap)[0]
        return _spread(nats, kept, targets.numel()).view(targets.shape)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
    ignore_index: int | None = IGNORE,
    rows: int | None = None,
    loss: RowLoss | None = None,
) -> CrossEntropy:
    """The same loss for a model that only gives logits (..., V): one gradient of their size is held, nothing else.

    Arguments as in :func:`linear_cross_entropy`.
    """
    flat, labels, factors, _ = _rows(logits, None, targets, weights, ignore_index)
    total, scale = _scale(flat, factors, reduction)
    rows = rows or chunk_rows(len(flat), flat.shape[-1], flat.device)
    value, nats = _Given.apply(flat, labels, factors, scale, _row_loss(loss, z_loss, None), rows)
    return CrossEntropy(value, nats, total)


def logit_nats(
    logits: Tensor, targets: Tensor, *, ignore_index: int | None = IGNORE, rows: int | None = None
) -> Tensor:
    """Nats of every row of given logits (..., V), shaped like `targets`; 0 where ignored. No gradient."""
    with torch.no_grad():
        flat, labels, _, kept = _rows(logits, None, targets, None, ignore_index)
        exact = torch.promote_types(flat.dtype, torch.float32)
        rows = rows or chunk_rows(len(flat), flat.shape[-1], flat.device)
        parts = [
            _score(flat[i : i + rows].to(exact, copy=True), labels[i : i + rows], None)[0]
            for i in range(0, len(flat), rows)
        ]
        nats = torch.cat(parts) if parts else flat.new_zeros(0, dtype=exact)
        return _spread(nats, kept, targets.numel()).view(targets.shape)


class _Setting(NamedTuple):
    dtype: torch.dtype  # of the three matrix products
    loss: RowLoss
    rows: int


class _Plain(NamedTuple):
    """Cross-entropy, with the z-loss and the soft-cap."""

    z_loss: float
    softcap: float | None

    def value(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._sum(*_score(scores, labels, self.softcap))

    def gradient(self, scores: Tensor, labels: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        return self._sum(*_score_gradient(scores, labels, factors, self.z_loss, self.softcap))

    def _sum(self, nats: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        return nats, nats + self.z_loss * lse.square() if self.z_loss else nats


class _Capped(NamedTuple):
    """Another loss, of logits that are bounded by a soft-cap."""

    loss: RowLoss
    softcap: float

    def value(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss.value(scores.div_(self.softcap).tanh_().mul_(self.softcap), labels)

    def gradient(self, scores: Tensor, labels: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        slope = scores.div_(self.softcap).tanh_().square().neg_().add_(1)  # 1 - tanh^2, before it is overwritten
        result = self.loss.gradient(scores.mul_(self.softcap), labels, factors)
        scores.mul_(slope)
        return result


def _row_loss(loss: RowLoss | None, z_loss: float, softcap: float | None) -> RowLoss:
    if loss is None:
        return _Plain(z_loss, softcap)
    if z_loss:
        raise ValueError("z_loss is added to cross-entropy, not to another loss")
    return loss if softcap is None else _Capped(loss, softcap)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _rows(
    hidden: Tensor, weight: Tensor | None, targets: Tensor, weights: Tensor | None, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Flatten to rows and drop the ignored ones: hidden (N,D), labels (N,), weights (N,) or None, kept indices or None."""
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(f"hidden or logits {tuple(hidden.shape)} and targets {tuple(targets.shape)} do not fit")
    if weight is not None and hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(f"hidden has width {hidden.shape[-1]}, the head's weight {tuple(weight.shape)}")
    if weights is not None and weights.shape != targets.shape:
        raise ValueError(f"weights {tuple(weights.shape)} and targets {tuple(targets.shape)} do not fit")
    flat, labels = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    factors = None if weights is None else weights.detach().reshape(-1)
    kept = None
    if ignore_index is not None:
        counted = labels != ignore_index
        if not bool(counted.all()):
            kept = counted.nonzero().squeeze(1)
            flat, labels = flat.index_select(0, kept), labels.index_select(0, kept)
            factors = None if factors is None else factors.index_select(0, kept)
    classes = hidden.shape[-1] if weight is None else weight.shape[0]
    if labels.device.type == "cpu" and labels.numel():
        low, high = torch.aminmax(labels)
        if int(low) < 0 or int(high) >= classes:
            raise IndexError(f"a target is {int(low) if int(low) < 0 else int(high)}, but there are {classes} classes")
    return flat, labels, factors, kept


def _scale(rows: Tensor, factors: Tensor | None, reduction: str) -> tuple[Tensor, Tensor]:
    """(sum of the rows' weights, what the summed loss is multiplied by), both () in the dtype of the sums."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not '{reduction}'; linear_nats gives one number per row")
    exact = torch.promote_types(rows.dtype, torch.float32)
    if factors is None:
        total = torch.full((), float(len(rows)), device=rows.device, dtype=exact)
    else:
        total = factors.sum(dtype=exact)
    return total, torch.where(total > 0, 1 / total, 0.0) if reduction == "mean" else torch.ones_like(total)


def _spread(nats: Tensor, kept: Tensor | None, total: int) -> Tensor:
    return nats if kept is None else nats.new_zeros(total).index_copy_(0, kept, nats)


def _logits(rows: Tensor, head: Tensor, bias: Tensor | None, exact: torch.dtype, out: Tensor | None = None) -> Tensor:
    """(C,V) logits in `exact`; the product itself in the dtype of its inputs."""
    if rows.dtype == exact:
        scores = torch.mm(rows, head.t(), out=None if out is None else out[: len(rows)])
    else:
        scores = torch.mm(rows, head.t()).to(exact)
    return scores if bias is None else scores.add_(bias.to(exact))


def _score(scores: Tensor, labels: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """(nats, lse) of a chunk, each (C,). `scores` is overwritten."""
    if can_score(scores):
        return score_rows(scores, labels, None, 0.0, softcap)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    wanted = scores.gather(1, labels[:, None])
    peak = scores.amax(-1, keepdim=True)
    lse = peak + scores.sub_(peak).exp_().sum(-1, keepdim=True).log_()
    return (lse - wanted).squeeze(1), lse.squeeze(1)


def _score_gradient(
    scores: Tensor, labels: Tensor, factors: Tensor, z_loss: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """:func:`_score`, and `scores` (C,V) becomes d loss / d scores; `factors` (C,1) is each row's weight in the loss."""
    if can_score(scores):
        return score_rows(scores, labels, factors[:, 0], z_loss, softcap)
    labels = labels[:, None]
    slope = None
    if softcap is not None:
        slope = scores.div_(softcap).tanh_().square().neg_().add_(1)  # 1 - tanh^2, before the chunk is overwritten
        scores.mul_(softcap)
    wanted = scores.gather(1, labels)
    peak = scores.amax(-1, keepdim=True)
    mass = scores.sub_(peak).exp_().sum(-1, keepdim=True)
    lse = peak + mass.log()
    scores.mul_((factors * (1 + 2 * z_loss * lse) if z_loss else factors) / mass)
    scores.scatter_(1, labels, scores.gather(1, labels) - factors)
    if slope is not None:
        scores.mul_(slope)
    return (lse - wanted).squeeze(1), lse.squeeze(1)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    factors: Tensor | None,
    scale: Tensor,
    setting: _Setting,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss, nats, and the gradients of hidden, weight and bias that are wanted. hidden (N,D), labels and factors (N,)."""
    exact = scale.dtype
    total, total_nats = torch.zeros_like(scale), torch.zeros_like(scale)
    d_hidden = torch.empty_like(hidden) if wanted[0] else None
    d_weight = torch.zeros(weight.shape, device=weight.device, dtype=exact) if wanted[1] else None
    d_bias = torch.zeros(len(weight), device=weight.device, dtype=exact) if wanted[2] else None
    with torch.autocast(hidden.device.type, enabled=False):
        head = weight.detach().to(setting.dtype)
        buffer = None
        if setting.dtype == exact:
            buffer = torch.empty(min(setting.rows, len(hidden)), len(weight), device=hidden.device, dtype=exact)
        for start in range(0, len(hidden), setting.rows):
            part = slice(start, start + setting.rows)
            rows = hidden[part].detach().to(setting.dtype)
            scores = _logits(rows, head, bias, exact, buffer)
            row_weight = None if factors is None else factors[part].to(exact)
            if not any(wanted):
                nats, value = setting.loss.value(scores, labels[part])
            else:
                each = scale.expand(len(rows)) if row_weight is None else row_weight * scale
                nats, value = setting.loss.gradient(scores, labels[part], each[:, None])
                _multiply(scores, rows, head, part, d_hidden, d_weight, d_bias)
            total_nats += _weighed(nats, row_weight)
            total += _weighed(value, row_weight)
    return total * scale, total_nats, d_hidden, d_weight, d_bias


def _weighed(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.sum() if weights is None else (values * weights).sum()


def _multiply(
    scores: Tensor,
    rows: Tensor,
    head: Tensor,
    part: slice,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
) -> None:
    """Put one chunk's d loss / d logits (C,V) into the gradients that are wanted."""
    if d_bias is not None:
        d_bias += scores.sum(0)
    low = scores.to(rows.dtype)
    if d_hidden is not None:
        if d_hidden.dtype == rows.dtype:
            torch.mm(low, head, out=d_hidden[part])
        else:
            d_hidden[part] = torch.mm(low, head)
    if d_weight is not None:
        if d_weight.dtype == rows.dtype:
            d_weight.addmm_(low.t(), rows)
        else:
            d_weight += torch.mm(low.t(), rows)


def _times(gradient: Tensor | None, upstream: Tensor, like: torch.dtype) -> Tensor | None:
    """`gradient * upstream`, in place unless autograd keeps the graph (then the held gradient must stay as it is)."""
    if gradient is None:
        return None
    if torch._C._autograd._get_current_graph_task_keep_graph():
        return (gradient * upstream).to(like)
    return gradient.mul_(upstream).to(like)


class _Fused(torch.autograd.Function):
    """Gradients are made in forward and held; backward scales them by the incoming number."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        factors: Tensor | None,
        scale: Tensor,
        setting: _Setting,
    ) -> tuple[Tensor, Tensor]:
        loss, nats, *gradients = _forward(
            hidden, weight, bias, labels, factors, scale, setting, ctx.needs_input_grad[:3]
        )
        ctx.save_for_backward(*gradients)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(nats)
        return loss, nats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _nats: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (_times(g, upstream, d) for g, d in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return (*gradients, None, None, None, None)


class _Given(torch.autograd.Function):
    """:class:`_Fused` for logits that are already there."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, factors: Tensor | None, scale: Tensor, loss: RowLoss, rows: int
    ) -> tuple[Tensor, Tensor]:
        exact = scale.dtype
        total, total_nats = torch.zeros_like(scale), torch.zeros_like(scale)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            scores = logits[part].to(exact, copy=True)
            row_weight = None if factors is None else factors[part].to(exact)
            each = scale.expand(len(scores)) if row_weight is None else row_weight * scale
            if gradient is None:
                nats, value = loss.value(scores, labels[part])
            else:
                nats, value = loss.gradient(scores, labels[part], each[:, None])
                gradient[part] = scores
            total_nats += _weighed(nats, row_weight)
            total += _weighed(value, row_weight)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(total_nats)
        return total * scale, total_nats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _nats: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return _times(gradient, upstream, gradient.dtype), None, None, None, None, None
