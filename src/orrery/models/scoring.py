"""Targets scored by a model's head without the logits of a whole batch: what objectives and evaluation stand on.

A head that ends in a linear layer goes through the fused operation of :mod:`orrery.ops.losses.cross_entropy`, which computes only the
rows that are asked for. Any other head that is a module is
applied to a chunk of rows at a time (and once more in the backward pass, so that its logits need not be kept). A model
without a head of its own gives logits; then only their gradient is held beside them.

B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from orrery.core.errors import ConfigError
from orrery.models.output import Output
from orrery.ops.losses.cross_entropy import (
    IGNORE,
    CrossEntropy,
    RowLoss,
    chunk_rows,
    cross_entropy,
    linear_cross_entropy,
    linear_nats,
    logit_nats,
)


def score(
    model: nn.Module,
    out: Output,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
    ignore_index: int | None = IGNORE,
    loss: RowLoss | None = None,
) -> CrossEntropy:
    """Differentiable cross-entropy of `targets` (B,T) under the model's head.

    Args:
        model: whose `head` is used; `out`: what it returned.
        targets: (B,T) int64; `ignore_index` counts for nothing (None promises that there are none).
        weights, z_loss, reduction, loss: as in :func:`orrery.ops.losses.cross_entropy.linear_cross_entropy`.

    Raises:
        ConfigError: for a model that has no head.
    """
    options: dict[str, Any] = {
        "weights": weights,
        "z_loss": z_loss,
        "reduction": reduction,
        "ignore_index": ignore_index,
        "loss": loss,
    }
    head = getattr(model, "head", None)
    if (last := last_layer(head)) is not None:
        hidden = out.hidden
        if last is not head and ignore_index is not None:  # what nobody is asked for is not transformed either
            asked = targets != ignore_index
            hidden, targets = hidden[asked], targets[asked]
            options["weights"] = None if weights is None else weights[asked]
        return linear_cross_entropy(
            before_last(head, hidden), last.weight, targets, bias=last.bias, softcap=softcap(last), **options
        )
    if isinstance(head, nn.Module):
        return _by_rows(model, out.hidden, targets, **options)
    return cross_entropy(_logits(model, out), targets, **options)


@torch.no_grad()
def nats(model: nn.Module, out: Output, targets: Tensor, ignore_index: int | None = IGNORE) -> Tensor:
    """Nats of every target, (B,T) float32, 0 where ignored; without gradients."""
    head = getattr(model, "head", None)
    if (last := last_layer(head)) is not None:
        options: dict[str, Any] = {"bias": last.bias, "softcap": softcap(last), "ignore_index": ignore_index}
        if last is head or ignore_index is None:
            return linear_nats(before_last(head, out.hidden), last.weight, targets, **options)
        asked = targets != ignore_index
        found = out.hidden.new_zeros(targets.shape, dtype=torch.float32)
        found[asked] = linear_nats(before_last(head, out.hidden[asked]), last.weight, targets[asked], **options)
        return found
    if not isinstance(head, nn.Module):
        return logit_nats(_logits(model, out), targets, ignore_index=ignore_index)
    rows, labels = out.hidden.flatten(0, -2), targets.flatten()
    size = _chunk(model, rows)
    parts = [
        logit_nats(head(rows[None, i : i + size])[0], labels[i : i + size], ignore_index=ignore_index)
        for i in range(0, len(rows), size)
    ]
    return torch.cat(parts).view(targets.shape)


def last_layer(head: Any) -> nn.Linear | None:
    """The linear layer that a head of the vocabulary ends in: the head itself, or a masked LM's; None for any other."""
    if isinstance(head, nn.Linear):
        return head
    last = getattr(head, "out", None) if getattr(head, "level", "") == "vocabulary" else None
    return last if isinstance(last, nn.Linear) else None


def before_last(head: Any, hidden: Tensor) -> Tensor:
    """What that layer gets of hidden states (...,D)."""
    return hidden if isinstance(head, nn.Linear) else head.transform(hidden)


def softcap(head: nn.Module) -> float | None:
    """The bound s of a head whose logits are ``s tanh(z / s)`` (its attribute `softcap`), or None."""
    value = getattr(head, "softcap", None)
    return None if value is None else float(value)


def _by_rows(
    model: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    z_loss: float,
    reduction: str,
    ignore_index: int | None,
    loss: RowLoss | None,
) -> CrossEntropy:
    head: Any = model.head
    rows, labels = hidden.flatten(0, -2), targets.flatten()
    factors = None if weights is None else weights.flatten()
    size = _chunk(model, rows)

    def part(chunk: Tensor, start: int) -> CrossEntropy:
        here = slice(start, start + size)
        factor = None if factors is None else factors[here]
        return cross_entropy(
            head(chunk[None])[0],
            labels[here],
            weights=factor,
            z_loss=z_loss,
            reduction="sum",
            ignore_index=ignore_index,
            loss=loss,
        )

    results = []
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        if torch.is_grad_enabled():
            results.append(CrossEntropy(*checkpoint(part, chunk, start, use_reentrant=False)))
        else:
            results.append(part(chunk, start))
    value, total, mass = (torch.stack(column).sum() for column in zip(*results, strict=True))
    if reduction == "mean":
        value = value * torch.where(mass > 0, 1 / mass, 0.0)
    return CrossEntropy(value, total, mass)


def _chunk(model: nn.Module, rows: Tensor) -> int:
    return chunk_rows(len(rows), int(getattr(model, "vocab_size", 1 << 15)), rows.device)


def _logits(model: nn.Module, out: Output) -> Tensor:
    if out.logits is None:
        raise ConfigError(f"{type(model).__name__} has no head, so it cannot predict tokens")
    return out.logits
