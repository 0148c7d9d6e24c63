# SPDX-License-Identifier: Apache-2.0
"""Bounded norms: the projection in NumPy, filter by filter, along any axis."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same, largest_difference, noise, once, run, tree

import optax_wd as wd


def projected(x: Any, axes: tuple[int, ...], limit: float) -> np.ndarray:
    """`x_k * min(1, limit / ||x_k||)`, with the norm over some axes."""
    x = np.asarray(x, np.float64)
    norms = np.sqrt(np.sum(x**2, axis=axes, keepdims=True))
    return x * np.minimum(1.0, limit / norms)


@pytest.mark.parametrize(
    ("axis", "within"), [(-1, (0, 1)), (0, (1, 2)), ((0, 1), (2,)), ((), (0, 1, 2))]
)
def test_sgd_with_it_is_the_rule_in_numpy(axis: Any, within: tuple[int, ...]) -> None:
    params = {"kernel": tree()["attn"]["kernel"]}
    gradients = noise(params, 5)
    tx = optax.chain(optax.sgd(0.3), wd.max_norms(2.0, axis=axis))
    seen, _ = run(tx, params, gradients)
    expected = np.asarray(params["kernel"], np.float64)
    for g in gradients:
        expected = projected(expected - 0.3 * np.asarray(g["kernel"]), within, 2.0)
    np.testing.assert_allclose(seen[-1]["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_filters_up_to_the_limit_keep_their_update_exactly() -> None:
    params = {"kernel": jnp.asarray([[3.0, 0.0, 30.0], [0.0, 0.0, 40.0]])}
    updates = {"kernel": jnp.asarray([[0.0, 0.1, 0.0], [4.0, 0.0, 0.0]])}
    after = once(wd.max_norms(5.0), updates, params)["kernel"]
    np.testing.assert_array_equal(after[:, :2], updates["kernel"][:, :2])
    np.testing.assert_allclose(after[:, 2], [-27.0, -36.0], rtol=1e-6)


def test_under_a_push_outwards_norms_end_at_the_limit() -> None:
    params = {"kernel": tree()["mlp"]["kernel"]}
    tx = optax.chain(optax.adam(0.1), wd.max_norms(1.5))
    seen, _ = run(tx, params, [jax.tree.map(lambda x: -x, params)] * 100)
    norms = np.linalg.norm(np.asarray(seen[-1]["kernel"], np.float64), axis=0)
    np.testing.assert_allclose(norms, 1.5, rtol=1e-6)


def test_the_mask_chooses_and_the_others_come_back_as_they_were() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    after = once(wd.max_norms(1e-3, wd.contains("mlp")), updates, params)
    assert after["attn"]["kernel"] is updates["attn"]["kernel"]
    assert float(jnp.max(jnp.abs(after["mlp"]["bias"] + params["mlp"]["bias"]))) < 2e-3


def test_stacked_layers_have_their_own_filters() -> None:
    layers = [tree(n)["mlp"]["kernel"] for n in range(2)]
    rule = wd.contains("blocks")
    for place in (0, 1):
        stack = {"blocks": jnp.stack(layers, axis=place)}
        zeros = jax.tree.map(jnp.zeros_like, stack)
        for axis in (0, -1, 1):
            tx = wd.max_norms(0.5, wd.everything, axis=axis, stacked=((rule, place),))
            found = jnp.moveaxis(once(tx, zeros, stack)["blocks"], place, 0)
            alone = wd.max_norms(0.5, wd.everything, axis=axis)
            for n, layer in enumerate(layers):
                expected = once(alone, jnp.zeros_like(layer), layer)
                assert largest_difference(found[n], expected) < 1e-6


def test_zeros_empty_integer_and_missing_leaves_pass() -> None:
    params = {
        "zero": jnp.zeros((2, 2)),
        "empty": jnp.zeros((0, 3)),
        "int": jnp.asarray([3]),
        "none": None,
    }
    assert_same(once(wd.max_norms(1.0, wd.everything), params, params), params)


def test_bfloat16_and_complex_stay_what_they_are() -> None:
    params = tree(dtype=jnp.bfloat16)
    after = once(wd.max_norms(0.5), params, params)
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(after))
    x = jnp.asarray([[3.0 + 4.0j], [0.0]])
    after = once(wd.max_norms(1.0, wd.everything), jnp.zeros_like(x), x)
    np.testing.assert_allclose(x + after, x / 5.0, rtol=1e-6)


def test_its_state_counts_and_holds_no_norms() -> None:
    params = tree()
    _, state = run(wd.max_norms(1.0), params, noise(params, 2))
    assert type(state).__name__ == "NormsState"
    assert state.norms_count == 2 and state.norms == ()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"limit": 0.0}, ValueError, "limit is a finite number above 0, got 0.0"),
        ({"limit": wd.standard}, TypeError, "limit is one number, got"),
        ({"limit": 1.0, "axis": 1.0}, TypeError, "axis takes an integer or a tuple of"),
        ({"limit": 1.0, "axis": (0, True)}, TypeError, "axis takes an integer or a tu"),
        ({"limit": 1.0, "stacked": "x"}, TypeError, "stacked takes a rule"),
        ({"limit": 1.0, "mask": None}, TypeError, "mask"),
    ],
    ids=["zero", "swapped", "axis", "bool", "stacked", "mask"],
)
def test_wrong_arguments_are_refused(arguments: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        wd.max_norms(**arguments)


def test_an_axis_that_a_tensor_lacks_is_refused() -> None:
    tx, params = wd.max_norms(1.0, axis=2), tree()
    text = r"'mlp/kernel' of shape \(3, 5\) has no axis 2 of filters"
    with pytest.raises(ValueError, match=text):
        tx.update(params, tx.init(params), params)


def test_it_needs_the_parameters() -> None:
    tx, params = wd.max_norms(1.0), tree()
    with pytest.raises(ValueError, match="max_norms needs the parameters, got params"):
        tx.update(params, tx.init(params))
