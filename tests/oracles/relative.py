"""T5's buckets of relative positions, one distance at a time, written from 1910.10683 and its released code."""

from __future__ import annotations

import math


def bucket(ahead, buckets, most, both):
    """The bucket of a key `ahead` tokens ahead of its query (negative: behind)."""
    side, count = 0, buckets
    if both:
        count //= 2
        side = count if ahead > 0 else 0
        distance = abs(ahead)
    else:
        distance = max(0, -ahead)
    exact = count // 2
    if distance < exact:
        return side + distance
    far = exact + int(math.log(distance / exact) / math.log(most / exact) * (count - exact) + 1e-6)  # exact powers: float32 there
    return side + min(far, count - 1)
