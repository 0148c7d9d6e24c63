# SPDX-License-Identifier: Apache-2.0
"""Norm-targeted weight decay: the rule in NumPy, and where the norm ends."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same, largest_difference, noise, once, run, tree

import optax_wd as wd


def whole(x: Any) -> float:
    """The norm of a leaf as one tensor, in float64."""
    return float(np.linalg.norm(np.asarray(x, np.float64)))


@pytest.mark.parametrize("norm", [None, 0.0, 1.5])
def test_sgd_with_it_is_the_rule_in_numpy(norm: float | None) -> None:
    params, gradients = tree(), noise(tree(), 6)
    decay = wd.norm_targeted_weight_decay(0.5, wd.everything, norm=norm)
    seen, _ = run(wd.sgdw(0.1, decay), params, gradients)

    def reference(x: Any, *grads: Any) -> np.ndarray:
        x = np.asarray(x, np.float64)
        r = np.linalg.norm(x) if norm is None else norm
        for g in grads:
            x = x - 0.1 * (np.asarray(g) + 0.5 * (1 - r / np.linalg.norm(x)) * x)
        return x

    assert largest_difference(seen[-1], jax.tree.map(reference, params, *gradients)) < (
        2e-6
    )


@pytest.mark.parametrize("start", [0.1, 7.0])
def test_without_gradient_the_norm_goes_to_the_target_from_both_sides(
    start: float,
) -> None:
    x = jnp.full((4, 4), start / 4.0)
    zeros = [jnp.zeros_like(x)] * 40
    decay = wd.norm_targeted_weight_decay(0.5, wd.everything, norm=2.0)
    seen, _ = run(wd.sgdw(0.2, decay), x, zeros)
    left = (1 - 0.2 * 0.5) ** np.arange(1, 41)
    expected = 2.0 + left * (start - 2.0)
    np.testing.assert_allclose([whole(y) for y in seen], expected, rtol=1e-5)


def test_after_the_learning_rate_the_distance_shrinks_by_the_rate_itself() -> None:
    x = {"kernel": jnp.full((2, 2), 2.0)}
    decay = wd.norm_targeted_weight_decay(0.25, norm=2.0)
    tx = optax.chain(optax.sgd(0.01), wd.after_learning_rate(decay))
    (after,), _ = run(tx, x, [jax.tree.map(jnp.zeros_like, x)])
    assert whole(after["kernel"]) == 4.0 - 0.25 * (4.0 - 2.0)


def test_a_target_of_zero_is_plain_decay() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    targeted = wd.norm_targeted_weight_decay(0.3, norm=0)
    assert_same(
        once(targeted, updates, params), once(wd.masked_decay(0.3), updates, params)
    )


def test_by_default_nothing_moves_at_init() -> None:
    params = tree()
    zeros = jax.tree.map(jnp.zeros_like, params)
    after = once(wd.norm_targeted_weight_decay(0.3, wd.everything), zeros, params)
    assert largest_difference(after, zeros) < 1e-6


def test_tensors_of_zeros_and_empty_ones_stay() -> None:
    params = {"zero": jnp.zeros((2, 2)), "empty": jnp.zeros((0, 3))}
    tx = wd.norm_targeted_weight_decay(0.5, wd.everything, norm=1.0)
    assert_same(once(tx, params, params), params)


def test_stacked_layers_have_a_norm_each() -> None:
    layers = [3.0 * jnp.ones((2, 2)), jnp.ones((2, 2))]
    stack = {"blocks": jnp.stack(layers, axis=1)}
    zeros = jax.tree.map(jnp.zeros_like, stack)
    pairs = ((wd.contains("blocks"), 1),)
    tx = wd.norm_targeted_weight_decay(0.5, wd.everything, norm=2.0, stacked=pairs)
    after = once(tx, zeros, stack)["blocks"]
    alone = wd.norm_targeted_weight_decay(0.5, wd.everything, norm=2.0)
    for n, layer in enumerate(layers):
        expected = once(alone, jnp.zeros((2, 2)), layer)
        np.testing.assert_allclose(after[:, n], expected, rtol=1e-6)
    state: Any = tx.init(stack)
    assert state.memory["blocks"].shape == (1, 2, 1)


def test_nan_in_a_masked_leaf_stays_there() -> None:
    params = tree()
    params["norm"]["scale"] = jnp.full(4, jnp.nan)
    tx = wd.norm_targeted_weight_decay(0.5, norm=1.0)
    after = once(tx, noise(params, 1)[0], params)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(after))


def test_complex_tensors_have_the_norm_of_their_moduli() -> None:
    x = jnp.asarray([[3.0 + 4.0j, 0.0]])
    tx = wd.norm_targeted_weight_decay(0.5, wd.everything, norm=1.0)
    after = once(tx, jnp.zeros_like(x), x)
    np.testing.assert_allclose(after, 0.5 * (1 - 1 / 5) * x, rtol=1e-6)


def test_bfloat16_is_rounded_once() -> None:
    params = tree(dtype=jnp.bfloat16)
    tx = wd.norm_targeted_weight_decay(0.3, wd.everything, norm=1.0)
    after = once(tx, params, params)
    exact = once(
        tx, *[jax.tree.map(lambda x: x.astype(jnp.float32), params) for _ in range(2)]
    )
    assert_same(after, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact))


@pytest.mark.parametrize(
    ("norm", "error", "text"),
    [
        (-1.0, ValueError, "norm is finite and 0 or more, got -1.0"),
        ("init", TypeError, "norm is one number, got 'init'"),
    ],
)
def test_a_wrong_norm_is_refused(norm: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        wd.norm_targeted_weight_decay(0.1, norm=norm)


def test_a_wrong_stack_is_refused() -> None:
    wrong: Any = "blocks"
    with pytest.raises(TypeError, match="stacked takes a rule, for axis 0, or pairs"):
        wd.norm_targeted_weight_decay(0.1, stacked=wrong)
