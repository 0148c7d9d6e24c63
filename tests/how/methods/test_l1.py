# SPDX-License-Identifier: Apache-2.0
"""L1 decay: the same pull on all weights, and how near to zero it can bring them."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_follows, once, run, settled

import optax_wd as wd


def reference(x: np.ndarray, gradients: np.ndarray, rates: np.ndarray) -> list:
    seen = []
    for g, rate in zip(gradients, rates, strict=True):
        x = x - 0.1 * (g + rate * np.sign(x))
        seen.append(x)
    return seen


def test_it_is_the_rule_in_numpy() -> None:
    assert_follows(wd.l1_weight_decay, reference)


def test_large_and_small_weights_are_pulled_alike_and_zeros_are_not() -> None:
    params = jnp.asarray([100.0, 1e-30, -1e-3, 0.0, -0.0, jnp.inf])
    after = once(wd.l1_weight_decay(0.5, wd.everything), jnp.zeros(6), params)
    np.testing.assert_array_equal(after, [0.5, 0.5, -0.5, 0.0, 0.0, 0.5])


def test_the_fixed_point_on_a_quadratic_is_that_of_the_lasso() -> None:
    tx = wd.sgdw(0.1, wd.l1_weight_decay(0.5, wd.everything))
    assert settled(tx) == pytest.approx(2.0 - 0.5 / 1.0, abs=1e-5)


def test_it_steps_over_zero_and_stays_within_one_step_of_it() -> None:
    tx = wd.sgdw(0.1, wd.l1_weight_decay(0.3, wd.everything))
    seen, _ = run(tx, jnp.asarray([1.0, -0.1]), [jnp.zeros(2)] * 60)
    tail = np.abs(np.stack(seen[40:]))
    assert np.all(tail <= 0.1 * 0.3 + 1e-6) and np.all(tail > 0.0)


def test_of_complex_weights_the_modulus_is_pulled() -> None:
    params = jnp.asarray([3.0 + 4.0j, 0.0j])
    tx = wd.l1_weight_decay(0.5, wd.everything)
    np.testing.assert_allclose(once(tx, 0 * params, params), [0.3 + 0.4j, 0.0])
