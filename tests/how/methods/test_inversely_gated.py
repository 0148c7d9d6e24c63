# SPDX-License-Identifier: Apache-2.0
"""Inversely gated decay: exactly what cautious decay leaves out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_follows, assert_same, noise, once, tree

import optax_wd as wd


def inverse(rate: Any = 0.5) -> Any:
    return wd.controls.inversely_gated_weight_decay(rate, wd.everything)


def reference(x: np.ndarray, gradients: np.ndarray, rates: np.ndarray) -> list:
    seen = []
    for g, rate in zip(gradients, rates, strict=True):
        x = x - 0.1 * (g + rate * (g * x < 0) * x)
        seen.append(x)
    return seen


def test_it_is_the_rule_in_numpy() -> None:
    assert_follows(wd.controls.inversely_gated_weight_decay, reference)


def test_with_cautious_decay_it_makes_full_decay() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    shut, open_, full = (
        once(tx, updates, params)
        for tx in (
            inverse(0.3),
            wd.cautious_weight_decay(0.3, wd.everything),
            wd.masked_decay(0.3, wd.everything),
        )
    )
    both = jax.tree.map(lambda u, a, b: jnp.where(a != u, a, b), updates, open_, shut)
    assert_same(both, full)
    assert np.any(shut["mlp"]["kernel"] != updates["mlp"]["kernel"])


SPECIAL = [0.0, 1e-40, 1e-4, 1.0, np.inf]  # one of them subnormal
VALUES = np.asarray([*SPECIAL, *(-x for x in SPECIAL), np.nan], np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_opposite_signs_open_it_and_zeros_and_nan_do_not(dtype: str) -> None:
    # XLA takes a subnormal weight for zero when it scales it, so none is among these.
    weights = VALUES[np.abs(VALUES) != np.float32(1e-40)]
    u, x = (jnp.asarray(v, dtype) for v in np.meshgrid(VALUES, weights))
    after = once(inverse(4.0), jnp.zeros_like(u), x, sign_of=u)
    signs = [np.sign(np.asarray(v, np.float64)) for v in (u, x)]
    expected = signs[0] * signs[1] < 0
    np.testing.assert_array_equal(np.asarray(after, np.float64) != 0, expected)


def test_without_a_step_nothing_decays() -> None:
    params = jnp.asarray([1.0, -1.0])
    for zero in (0.0, -0.0):
        after = once(inverse(), jnp.full(2, zero), params)
        np.testing.assert_array_equal(after, [0.0, 0.0])


def test_nan_does_not_spread() -> None:
    u, x = jnp.asarray([1.0, jnp.nan, 1.0]), jnp.asarray([jnp.nan, 1.0, -1.0])
    np.testing.assert_array_equal(once(inverse(), u, x), [1.0, jnp.nan, 0.5])
