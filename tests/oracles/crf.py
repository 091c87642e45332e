"""A linear-chain CRF by enumeration of all tag sequences, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np


def crf(emissions, transitions, begin, end):
    """Scores of all tag sequences of emissions (L,C), as {tags: score}."""
    length, tags = emissions.shape
    found = {}
    for path in itertools.product(range(tags), repeat=length):
        score = begin[path[0]] + end[path[-1]] + sum(emissions[t, tag] for t, tag in enumerate(path))
        found[path] = score + sum(transitions[a, b] for a, b in itertools.pairwise(path))
    return found


def log_partition(emissions, transitions, begin, end):
    """Log of the sum of exp(score) over all of them."""
    scores = np.array(list(crf(emissions, transitions, begin, end).values()))
    return float(scores.max() + math.log(np.exp(scores - scores.max()).sum()))
