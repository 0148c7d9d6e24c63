# SPDX-License-Identifier: Apache-2.0
"""Pinned norms: Hyperball in NumPy, and the learning rate as an angle."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same, largest_difference, noise, once, run, small_tree, tree

import optax_wd as wd


def lengths(tree: Any) -> np.ndarray:
    """The norm of each leaf, in double precision."""
    leaves = jax.tree.leaves(tree)
    return np.asarray([np.linalg.norm(np.asarray(x, np.complex128)) for x in leaves])


def reference(x: Any, *gradients: Any) -> np.ndarray:
    """Hyperball with momentum as the direction; one tensor, float64."""
    x, m = np.asarray(x, np.float64), 0.0
    radius = np.linalg.norm(x)
    for g in gradients:
        m = np.asarray(g, np.float64) + 0.9 * m
        x = x - 0.1 * radius * m / np.linalg.norm(m)
        x = radius * x / np.linalg.norm(x)
    return x


def test_momentum_with_it_is_the_rule_in_numpy() -> None:
    params, gradients = small_tree(), noise(small_tree(), 7)
    tx = optax.chain(optax.trace(0.9), wd.pin_norms(0.1, wd.everything))
    seen, _ = run(tx, params, gradients)
    expected = jax.tree.map(reference, params, *gradients)
    assert largest_difference(seen[-1], expected) < 1e-6


def test_with_adam_norms_stay_what_they_are_at_init() -> None:
    params, gradients = small_tree(), noise(small_tree(), 200)
    tx = optax.chain(optax.scale_by_adam(), wd.pin_norms(0.01, wd.everything))
    seen, _ = run(tx, params, gradients)
    drift = [np.max(np.abs(lengths(x) / lengths(params) - 1)) for x in seen]
    assert max(drift) < 1e-6
    assert largest_difference(seen[-1], params) > 0.1


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_size_of_the_direction_does_not_matter(size: float) -> None:
    params = {"kernel": jnp.asarray([[3.0, 4.0]])}
    across = {"kernel": size * jnp.asarray([[4.0, -3.0]])}
    after = once(wd.pin_norms(0.2), across, params)["kernel"] + params["kernel"]
    angle = math.acos(float(jnp.sum(after * params["kernel"])) / 25.0)
    assert angle == pytest.approx(math.atan(0.2), rel=1e-4)


def test_other_leaves_get_the_learning_rate() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    after = once(wd.pin_norms(0.25, wd.named("kernel")), updates, params)
    np.testing.assert_array_equal(
        after["norm"]["scale"], -0.25 * updates["norm"]["scale"]
    )
    free = once(wd.pin_norms(0.25, wd.nothing), updates, params)
    assert_same(free, jax.tree.map(lambda u: -0.25 * u, updates))


def test_a_schedule_is_followed() -> None:
    params = {"bias": jnp.zeros(2)}
    tx = wd.pin_norms(lambda t: 1.0 / (1.0 + t))
    seen, state = run(tx, params, [{"bias": jnp.ones(2)}] * 3)
    assert float(seen[-1]["bias"][0]) == pytest.approx(-(1 + 1 / 2 + 1 / 3))
    assert type(state).__name__ == "NormsState" and state.norms_count == 3


def test_tensors_of_zeros_are_free_and_no_direction_means_no_step() -> None:
    params = {"zero": jnp.zeros((2, 2)), "empty": jnp.zeros((0, 3)), "x": jnp.ones(4)}
    updates = {"zero": jnp.ones((2, 2)), "empty": jnp.zeros((0, 3)), "x": jnp.zeros(4)}
    after = once(wd.pin_norms(0.5, wd.everything), updates, params)
    assert_same(after, jax.tree.map(lambda u: -0.5 * u, updates))


def test_stacked_layers_have_a_sphere_each() -> None:
    params = {"blocks": jnp.stack([jnp.ones((2, 3)), 5.0 * jnp.ones((2, 3))])}
    rule = wd.contains("blocks")
    gradients = noise(params, 5)
    tx = optax.chain(
        optax.scale_by_adam(), wd.pin_norms(0.1, wd.everything, stacked=rule)
    )
    seen, _ = run(tx, params, gradients)
    tx = optax.chain(optax.scale_by_adam(), wd.pin_norms(0.1, wd.everything))
    for n in range(2):
        alone, _ = run(tx, *jax.tree.map(lambda x, n=n: x[n], (params, gradients)))
        np.testing.assert_allclose(
            seen[-1]["blocks"][n], alone[-1]["blocks"], rtol=1e-5
        )


def test_a_cautious_decay_after_it_acts_and_the_next_step_is_on_the_sphere() -> None:
    params = {"kernel": jnp.asarray([[3.0, 4.0]])}
    decay = wd.after_learning_rate(wd.cautious_weight_decay(0.1))
    tx = optax.chain(wd.pin_norms(0.0), decay)
    seen, state = run(tx, params, [params])
    np.testing.assert_allclose(lengths(seen[-1]), 4.5, rtol=1e-6)
    pinned: Any = wd.pin_norms(0.1)
    back = pinned.update(params, state[0], seen[-1])[0]["kernel"] + seen[-1]["kernel"]
    np.testing.assert_allclose(lengths(back), 5.0, rtol=1e-6)


def test_dtypes_stay_and_complex_tensors_have_a_sphere() -> None:
    params = tree(dtype=jnp.bfloat16)
    after = once(wd.pin_norms(lambda t: 0.1 + 0 * t), params, params)
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(after))
    x = jnp.asarray([[3.0 + 1.0j, 2.0 - 2.0j]])
    moved = x + once(wd.pin_norms(0.3, wd.everything), 1.0j * x + 1.0, x)
    np.testing.assert_allclose(lengths(moved), lengths(x), rtol=1e-6)


def test_integers_and_missing_leaves_pass() -> None:
    params = {"int": jnp.asarray(3), "none": None, "x": jnp.ones(2)}
    after = once(wd.pin_norms(0.5), params, params)
    assert after["int"] is params["int"] and after["none"] is None


def test_a_real_update_of_a_complex_tensor_is_refused() -> None:
    x = jnp.asarray([1.0 + 1.0j])
    with pytest.raises(ValueError, match="real update for a complex parameter; make"):
        once(wd.pin_norms(0.1, wd.everything), jnp.ones(1), x)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((-1.0,), ValueError, "learning_rate has to be finite and 0 or more, got -1.0"),
        ((wd.standard,), TypeError, "learning_rate got the rule"),
        ((0.1, None), TypeError, "mask"),
    ],
    ids=["negative", "swapped", "no mask"],
)
def test_wrong_arguments_are_refused(arguments: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        wd.pin_norms(*arguments)


def test_it_needs_the_parameters() -> None:
    tx, params = wd.pin_norms(0.1), small_tree()
    with pytest.raises(ValueError, match="pin_norms needs the parameters, got params"):
        tx.update(params, tx.init(params))
