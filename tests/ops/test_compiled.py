"""What kernels call instead of the C library: close to 80-bit values everywhere, and right at the ends of the range."""

from __future__ import annotations

import numpy as np
import pytest

from orrery.ops import compiled as ops
from orrery.ops.compiled import compiled, exp, expm1, sigmoid, softplus, split_exp, tanh


@compiled
def _all(first, last, x, exps, sigmoids, tanhs, expm1s, softpluses, parts, scales):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        exps[i], sigmoids[i], tanhs[i] = exp(x[i]), sigmoid(x[i]), tanh(x[i])
        expm1s[i], softpluses[i] = expm1(x[i]), softplus(x[i])
        parts[i], scales[i] = split_exp(x[i])


def values(x):
    """What the compiled functions make of x: exp, sigmoid, tanh, expm1, softplus and the two parts of an exponential."""
    found = [np.empty(len(x), np.float64), *(np.empty_like(x) for _ in range(6))]
    _all(0, len(x), x, *found)
    return found


@pytest.mark.parametrize(("kind", "most", "bounds"), [
    (np.float32, 85.0, (2e-16, 2e-7, 2e-7, 2e-7, 3e-7)),
    (np.float64, 700.0, (2e-16, 4e-16, 4e-16, 4e-16, 4e-16)),
])  # fmt: skip
def test_relative_errors(kind, most, bounds):
    draw = np.random.default_rng(0)
    small = 10.0 ** draw.uniform(-20, 0, 10_000) * draw.choice([-1.0, 1.0], 10_000)
    x = np.concatenate([draw.uniform(-most, most, 20_000), draw.uniform(-1, 1, 20_000), small]).astype(kind)
    wide = x.astype(np.longdouble)
    wanted = (
        np.exp(wide), 1 / (1 + np.exp(-wide)), np.tanh(wide), np.expm1(wide),
        np.maximum(wide, 0) + np.log1p(np.exp(-abs(wide))),
    )  # fmt: skip
    *found, part, scale = values(x)
    for got, want, bound in zip(found, wanted, bounds, strict=True):
        assert np.abs(got / want - 1).max() <= bound
    split = scale.astype(np.longdouble) * part + scale
    assert np.abs(split / np.exp(wide) - 1).max() <= bounds[3]
    near = np.abs(x) < 0.34
    assert (scale[near] == 1).all() and np.abs(part / np.expm1(wide) - 1)[near].max() <= bounds[3]


@pytest.mark.parametrize(("kind", "low"), [(np.float32, -88.0), (np.float64, -709.0)])
def test_ends_of_the_range(kind, low):
    x = np.array([-np.inf, -1e4, low, np.inf, 1e4, np.nan, 0.0], kind)
    exps, sigmoids, tanhs, expm1s, softpluses, parts, scales = values(x)
    assert not exps[:2].any() and np.isinf(exps[3:5]).all()
    assert (expm1s[:3] == -1).all() and (tanhs[:2] == -1).all() and (tanhs[3:5] == 1).all()
    assert (sigmoids[:3] < 2e-38).all() and (sigmoids[3:5] == 1).all() and (softpluses[:2] < 2e-38).all()
    assert softpluses[3] == np.inf and softpluses[4] == 1e4
    assert not scales[:3].any() and not (scales[:3] * parts[:3]).any()  # an exponential that small is exactly 0
    assert all(np.isnan(each[5]) for each in (exps, sigmoids, tanhs, expm1s, softpluses, parts))
    assert (exps[6], sigmoids[6], tanhs[6], expm1s[6], parts[6], scales[6]) == (1, 0.5, 0, 0, 0, 1)


@pytest.mark.parametrize("x", [-30.0, -0.3, 0.0, 0.3, 5.0])
def test_outside_of_kernels_they_mean_the_same(x):
    found = [each[0] for each in values(np.array([x]))]
    part, scale = ops.split_exp(x)
    outside = [np.exp(x), ops.sigmoid(x), ops.tanh(x), ops.expm1(x), ops.softplus(x), part, scale]
    np.testing.assert_allclose(found, outside, rtol=1e-12)
