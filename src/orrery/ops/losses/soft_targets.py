"""Cross-entropy with a label and with another model's distribution at once, for the fused head.

Equation (one row, classes k, label y, student's logits z, teacher's u, temperature s): with ``q^s = softmax(z / s)`` and
``p^s = softmax(u / s)``

    v = a [-log q_y] + b s^2 sum_k p^s_k (log p^s_k - log q^s_k);     dv/dz_k = a (q_k - [k = y]) + b s (q^s_k - p^s_k)

Hinton et al. (1503.02531, section 2.1): the factor s^2 keeps the soft part's gradient of one size whatever s is.

Method: the teacher's logits are asked for a chunk of rows at a time, when the chunk's own logits stand in their buffer; neither
is ever held for a whole batch, and the student's head runs once for both parts.

Shapes: C rows of a chunk, V classes. scores (C,V), labels (N,) of all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from orrery.ops.losses.cross_entropy import IGNORE

Teach = Callable[[int, int], Tensor]
"""(first row, row behind the last) -> the teacher's logits (C,V) of these rows, without gradient."""


class SoftTargets:
    """A :class:`orrery.ops.losses.cross_entropy.RowLoss` for one pass over N rows, whose chunks come in order.

    Args:
        teach: see :data:`Teach`.
        labels: (N,) int64, IGNORE where a row has no label and only the teacher is listened to.
        temperature: s. hard, soft: a of a row with a label, b of every row.
    """

    def __init__(self, teach: Teach, labels: Tensor, temperature: float, hard: float | Tensor, soft: float | Tensor) -> None:
        self.teach, self.labels, self.temperature, self.hard, self.soft = teach, labels, temperature, hard, soft
        self.place = 0
        self.divergence: Tensor = torch.zeros((), device=labels.device)  # sum over rows of s^2 KL, after the pass

    def value(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`orrery.ops.losses.cross_entropy.RowLoss`; nats are 0 where there is no label."""
        nats, divergence, *_ = self._measure(scores)
        return nats, self.hard * nats + self.soft * divergence

    def gradient(self, scores: Tensor, labels: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`orrery.ops.losses.cross_entropy.RowLoss`."""
        nats, divergence, slope, wanted, asked = self._measure(scores)
        slope.exp_().sub_(wanted.exp_()).mul_(self.temperature * self.soft)
        scores.sub_(torch.logsumexp(scores, -1, keepdim=True)).exp_()
        scores.scatter_add_(1, asked.clamp(min=0)[:, None], -torch.ones_like(nats)[:, None])
        scores.mul_(((asked != IGNORE).to(scores.dtype) * self.hard)[:, None]).add_(slope).mul_(factors)
        return nats, self.hard * nats + self.soft * divergence

    def _measure(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Nats and s^2 KL (C,), log q^s and log p^s (C,V), labels (C,)."""
        first, self.place = self.place, self.place + len(scores)
        asked = self.labels[first : self.place]
        nats = torch.logsumexp(scores, -1) - scores.gather(1, asked.clamp(min=0)[:, None])[:, 0]
        nats = nats.masked_fill(asked == IGNORE, 0.0)
        own, wanted = (
            torch.log_softmax(z / self.temperature, -1) for z in (scores, self.teach(first, self.place).to(scores.dtype))
        )
        divergence = self.temperature**2 * (wanted.exp() * (wanted - own)).sum(-1)
        self.divergence = self.divergence + divergence.sum()
        return nats, divergence, own, wanted, asked
