"""Float64 loops of distillation's terms: soft targets with labels, cosines, layers, relations."""

from __future__ import annotations

import numpy as np


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def soft_targets(student, teacher, labels, temperature, hard, soft):
    """(N,V) logits of both, (N,) labels (negative: none) -> values (N,), nats (N,), s^2 KL (N,), gradient of the sum (N,V)."""
    values, nats, divergences, gradients = [], [], [], []
    for z, u, label in zip(student, teacher, labels, strict=True):
        q, p, q_one = softmax(z / temperature), softmax(u / temperature), softmax(z)
        divergence = temperature**2 * sum(p[k] * (np.log(p[k]) - np.log(q[k])) for k in range(len(z)))
        slope = soft * temperature * (q - p)
        nat = 0.0
        if label >= 0:
            nat = -np.log(q_one[label])
            one = np.zeros_like(z)
            one[label] = 1.0
            slope = slope + hard * (q_one - one)
        values.append(hard * nat + soft * divergence)
        nats.append(nat)
        divergences.append(divergence)
        gradients.append(slope)
    return np.array(values), np.array(nats), np.array(divergences), np.array(gradients)


def cosine(student, teacher, places):
    """Mean of 1 - cos over (row, token) places of (B,T,D)."""
    found = []
    for b, t in places:
        u, v = student[b, t], teacher[b, t]
        found.append(1 - u @ v / np.sqrt((u @ u) * (v @ v)))
    return float(np.mean(found))


def layers(student, teacher, pairs, places, normalise):
    """Summed over pairs of layers: mean squared difference, of vectors or of unit vectors (not divided by their width)."""
    total = 0.0
    for own, theirs in pairs:
        found = []
        for b, t in places:
            u, v = student[own][b, t], teacher[theirs][b, t]
            if normalise:
                u, v = u / np.sqrt(u @ u), v / np.sqrt(v @ v)
            difference = (u - v) @ (u - v)
            found.append(difference if normalise else difference / len(u))
        total += float(np.mean(found))
    return total


def relations(student, teacher, heads, segments, places, causal):
    """Mean over heads and places of KL(teacher's relation || student's); (B,T,E) and (B,T,F) projections."""
    total = []
    for head in range(heads):
        for b, t in places:
            seen = [s for s in range(segments.shape[1]) if segments[b, s] == segments[b, t] and (s <= t or not causal)]
            rows = []
            for x in (student, teacher):
                size = x.shape[-1] // heads
                part = x[b, :, head * size : (head + 1) * size]
                rows.append(softmax(np.array([part[t] @ part[s] / np.sqrt(size) for s in seen])))
            own, theirs = rows
            total.append(sum(theirs[i] * (np.log(theirs[i]) - np.log(own[i])) for i in range(len(seen))))
    return float(np.mean(total))
