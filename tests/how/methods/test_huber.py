# SPDX-License-Identifier: Apache-2.0
"""Huber decay: the gradient form, its edge, and how near it is to the proximal step."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_follows, assert_same, noise, once, run, settled, tree

import optax_wd as wd


def huber(rate: Any, threshold: float = 1.0, mask: Any = wd.everything) -> Any:
    return wd.huber_weight_decay(rate, mask, threshold=threshold)


def reference(x: np.ndarray, gradients: np.ndarray, rates: np.ndarray) -> list:
    seen = []
    for g, rate in zip(gradients, rates, strict=True):
        x = x - 0.1 * (g + rate * np.clip(x, -0.5, 0.5))
        seen.append(x)
    return seen


def test_it_is_the_gradient_of_the_penalty_in_numpy() -> None:
    def method(*arguments: Any, **options: Any) -> Any:
        return wd.huber_weight_decay(*arguments, threshold=0.5, **options)

    assert_follows(method, reference)


def proximal(x: np.ndarray, t: float, threshold: float) -> np.ndarray:
    """The step of the paper, from the weight after the step of the optimizer."""
    linear = x - t * threshold * np.sign(x)
    return np.where(np.abs(x) <= (1 + t) * threshold, x / (1 + t), linear)


@pytest.mark.parametrize("t", [0.1, 0.01])
def test_from_one_point_it_is_the_proximal_step_but_for_the_square(t: float) -> None:
    x = np.linspace(-3.0, 3.0, 1001).astype("f4")
    tx = optax.chain(huber(t, 0.7), optax.scale(-1.0))
    found = x + np.asarray(once(tx, jnp.zeros(1001), jnp.asarray(x)))
    difference = np.max(np.abs(found - proximal(x, t, 0.7)))
    assert 0.5 * t**2 * 0.7 < difference <= t**2 * 0.7


def test_over_a_run_it_stays_near_the_papers_optimizer() -> None:
    start, gradients = tree(), noise(tree(), 40)
    schedule = optax.linear_schedule(1e-2, 0.0, 40)
    rate = wd.proportional(0.5, to=schedule)
    decay = wd.after_learning_rate(huber(rate, 0.5))
    tx = optax.chain(optax.sgd(schedule), decay)
    seen, _ = run(tx, start, gradients)
    x = np.asarray(start["mlp"]["kernel"], np.float64)
    for t, g in enumerate(gradients):
        eta = 1e-2 * (1 - t / 40)
        x = proximal(x - eta * np.asarray(g["mlp"]["kernel"]), 0.5 * eta, 0.5)
    np.testing.assert_allclose(seen[-1]["mlp"]["kernel"], x, atol=1e-3)
    plain, _ = run(optax.sgd(schedule), start, gradients)
    assert np.max(np.abs(plain[-1]["mlp"]["kernel"] - x)) > 0.04


def test_at_the_edge_and_beyond_it_pulls_no_harder() -> None:
    params = jnp.asarray([0.5, -2.0, 2.0, 2.5, jnp.inf, 0.0])
    after = once(huber(0.5, 2.0), jnp.zeros(6), params)
    np.testing.assert_array_equal(after, [0.25, -1.0, 1.0, 1.0, 1.0, 0.0])


def test_with_a_large_threshold_it_is_plain_decay() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    plain = once(wd.masked_decay(0.3), updates, params)
    assert_same(once(huber(0.3, 1e6, wd.standard), updates, params), plain)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(10.0, 2.0 / 1.5), (1.0, 2.0 - 0.5 * 1.0)],
    ids=["quadratic", "linear"],
)
def test_the_fixed_point_on_a_quadratic_has_two_regimes(
    threshold: float, expected: float
) -> None:
    tx = wd.sgdw(0.1, huber(0.5, threshold))
    assert settled(tx) == pytest.approx(expected, abs=1e-5)


def test_lion_is_not_bounded_where_the_pull_is_weaker_than_its_step() -> None:
    push = [jnp.asarray(-1.0)] * 300
    for threshold, bounded in ((0.5, False), (2.0, True)):
        seen, _ = run(wd.lion(0.1, huber(1.0, threshold)), jnp.asarray(3.0), push)
        assert (float(seen[-1]) < 3.0) == bounded


def test_of_complex_weights_the_modulus_counts() -> None:
    params = jnp.asarray([3.0 + 4.0j, 0.3 + 0.4j, 0.0j])
    after = once(huber(0.5, 1.0), 0 * params, params)
    np.testing.assert_allclose(after, [0.3 + 0.4j, 0.15 + 0.2j, 0.0], rtol=1e-6)


def test_what_is_no_threshold_is_refused() -> None:
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="threshold is a finite number above 0"):
            huber(0.5, wrong)
    with pytest.raises(TypeError, match="threshold is one number, got None"):
        huber(0.5, None)  # type: ignore
