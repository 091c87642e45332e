"""Float64 loops of the token losses that reweigh cross-entropy or add the earth mover's distance. Constants stay constant:
gradients are returned with the coefficients taken as numbers."""

from __future__ import annotations

import numpy as np


def _token(logits, label):
    shifted = logits - logits.max()
    q = np.exp(shifted) / np.exp(shifted).sum()
    hot = np.zeros_like(q)
    hot[label] = 1.0
    return q, hot, -np.log(q[label]), q - hot


def emo(logits, labels, costs, emphasis="mle", adaptive=False, cap=0.0, epsilon=1e-10):
    """(N,V) logits, (N,) labels, (V,D) costs -> (values (N,), nats (N,), gradient of the sum (N,V))."""
    unit = np.array([row / np.sqrt((row**2).sum()) for row in np.asarray(costs, dtype=np.float64)])
    values, nats, gradients = [], [], []
    for z, t in zip(np.asarray(logits, dtype=np.float64), labels, strict=True):
        q, hot, c, dc = _token(z, t)
        carried = q - (q * hot if adaptive else 0.0)
        m = 1.0 - sum(carried[k] * (unit[t] @ unit[k]) for k in range(len(q)))
        jacobian = np.diag(q) - np.outer(q, q)  # dq / dz
        dm = -jacobian @ (unit @ unit[t])
        ratio = c / (m + epsilon) if emphasis == "mle" else m / (c + epsilon)
        if cap:
            ratio = min(ratio, cap)
        if emphasis == "mle":
            values.append(0.5 * (c + ratio * m))
            gradients.append(0.5 * (dc + ratio * dm))
        else:
            values.append(m + ratio * c)
            gradients.append(dm + ratio * dc)
        nats.append(c)
    return np.array(values), np.array(nats), np.array(gradients)


def mixce(logits, labels, mix):
    """MixCE with the model's probability of the target held constant."""
    return _weighed(logits, labels, lambda q: mix + (1 - mix) * q)


def tailr(logits, labels, gamma, floor, mix=0.0):
    """TaiLr with the weight held constant."""
    return _weighed(logits, labels, lambda q: mix + (1 - mix) * max(floor, q / (gamma + (1 - gamma) * q)))


def _weighed(logits, labels, weigh):
    values, nats, gradients = [], [], []
    for z, t in zip(np.asarray(logits, dtype=np.float64), labels, strict=True):
        q, _, c, dc = _token(z, t)
        values.append(weigh(q[t]) * c)
        gradients.append(weigh(q[t]) * dc)
        nats.append(c)
    return np.array(values), np.array(nats), np.array(gradients)
