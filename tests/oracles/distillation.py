"""Float64 loops of distillation's terms: soft targets with labels, cosines, layers, relations, attention matrices."""

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


def attention(student, teacher, form, segments, places, causal, window=None):
    """Of matrices of scores (B,H,T,T) before the softmax, of both models: TinyBERT's, MobileBERT's, or that of the mean over heads."""
    total = []
    for b, t in places:
        seen = [s for s in range(segments.shape[1]) if segments[b, s] == segments[b, t] and (s <= t or not causal)]
        seen = [s for s in seen if window is None or abs(s - t) <= window]
        own, theirs = ([row[t][seen] for row in x[b]] for x in (student, teacher))
        if form == "scores":
            total += [(u - v) ** 2 for a, c in zip(own, theirs, strict=True) for u, v in zip(a, c, strict=True)]
            continue
        own, theirs = ([softmax(row) for row in rows] for rows in (own, theirs))
        if form == "mean":
            own, theirs = ([sum(rows) / len(rows)] for rows in (own, theirs))
        total += [sum(p * (np.log(p) - np.log(q)) for p, q in zip(c, a, strict=True)) for a, c in zip(own, theirs, strict=True)]
    return float(np.mean(total))


def scores(x, weight, shift, heads):
    """Scores (B,H,T,T) of hidden states (B,T,D) by the rows of a projection to queries and keys, (2D..,D)."""
    p, size = x @ weight.T + shift, x.shape[-1] // heads
    found = np.zeros((len(x), heads, x.shape[1], x.shape[1]))
    for b in range(len(x)):
        for h in range(heads):
            q, k = (p[b, :, start + h * size : start + (h + 1) * size] for start in (0, x.shape[-1]))
            found[b, h] = q @ k.T / np.sqrt(size)
    return found
