# SPDX-License-Identifier: Apache-2.0
"""Sensitivity-gated decay: the raw gradient says how much of the decay there is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_follows, assert_same, noise, once, tree, with_grad

import optax_wd as wd


def gated(rate: Any = 0.5, mask: Any = wd.everything) -> Any:
    return wd.sensitivity_gated_weight_decay(rate, mask)


def reference(x: np.ndarray, gradients: np.ndarray, rates: np.ndarray) -> list:
    momentum, seen = np.zeros_like(x), []
    for g, rate in zip(gradients, rates, strict=True):
        momentum = g + 0.9 * momentum
        x = x - 0.1 * (momentum + rate * x * np.maximum(0.0, 1.0 - np.abs(g)))
        seen.append(x)
    return seen


def test_behind_a_momentum_it_is_the_rule_in_numpy() -> None:
    method = wd.sensitivity_gated_weight_decay
    assert_follows(method, reference, before=optax.trace(0.9))


def test_at_the_papers_place_the_learning_rate_does_not_count() -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    tx = with_grad(optax.chain(optax.sgd(0.25), wd.after_learning_rate(gated(0.01))))
    after = once(tx, grads, params)
    for x, g, u in zip(*map(jax.tree.leaves, (params, grads, after)), strict=True):
        kept = 1.0 - 0.01 * np.maximum(0.0, 1.0 - np.abs(g))
        np.testing.assert_allclose(x + u, kept * x - 0.25 * g, atol=1e-6)


def test_gradients_of_one_and_more_and_nan_close_it() -> None:
    grad = jnp.asarray([0.0, -0.25, 1.0, -1.0, jnp.inf, jnp.nan, 2.0])
    params = jnp.asarray([4.0, 4.0, 4.0, 4.0, 4.0, 4.0, jnp.inf])
    after = once(gated(), jnp.zeros(7), params, grad=grad)
    np.testing.assert_array_equal(after, [2.0, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0])


def test_it_is_computed_in_float32_and_rounded_once() -> None:
    grad = jnp.asarray([0.3, 0.6], jnp.bfloat16)
    params = jnp.asarray([1.7, -0.9], jnp.bfloat16)
    after = once(gated(), jnp.ones(2, jnp.bfloat16), params, grad=grad)
    x, g = (np.asarray(a, np.float32) for a in (params, grad))
    expected = jnp.asarray(1.0 + 0.5 * x * (1.0 - np.abs(g)), jnp.bfloat16)
    assert_same(after, expected)


def test_of_complex_gradients_the_modulus_counts() -> None:
    params = jnp.asarray([2.0 + 4.0j, 1.0j])
    grad = jnp.asarray([0.3 + 0.4j, 1.0 + 1.0j])
    after = once(gated(), 0 * params, params, grad=grad)
    np.testing.assert_allclose(after, [0.5 + 1.0j, 0.0])


@pytest.mark.parametrize("ready", [wd.adamw, wd.sgdw, wd.lion])
def test_ready_chains_and_partitions_pass_the_gradient_on(ready: Any) -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    whole = ready(0.1, gated(mask=wd.named("kernel")))
    labels = wd.first_match((wd.named("kernel"), "decay"), default="rest")
    branches: Any = {"decay": ready(0.1, gated()), "rest": ready(0.1, optax.identity())}
    parted = optax.partition(branches, labels)
    after = once(whole, grads, params, grad=grads)
    assert_same(once(parted, grads, params, grad=grads), after)
    none = once(ready(0.1, optax.identity()), grads, params)
    assert np.any(after["mlp"]["kernel"] != none["mlp"]["kernel"])
    assert_same(after["mlp"]["bias"], none["mlp"]["bias"])


def test_without_the_gradient_it_says_how_to_pass_it() -> None:
    params = tree()
    message = r"needs the raw gradient, got none; call tx.update\(grads, state, params"
    with pytest.raises(ValueError, match=message):
        once(gated(), params, params)


def test_a_gradient_that_lacks_a_leaf_is_refused_only_if_it_decays() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    grad = {"a": jnp.zeros(2), "b": None}
    after = once(gated(mask=wd.named("a")), params, params, grad=grad)
    assert after["b"] is params["b"]
    with pytest.raises(
        ValueError, match="grad has no array of shape .* at 'b', which decays"
    ):
        once(gated(), params, params, grad=grad)
