# SPDX-License-Identifier: Apache-2.0
"""Kept norms: the two phases of LAWN in NumPy, and that nothing drifts."""

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


def reference(x: Any, gradients: Any, after: int) -> np.ndarray:
    """Free SGD, then along the sphere; one tensor, float64."""
    x, radius = np.asarray(x, np.float64), 0.0
    for t, g in enumerate(gradients):
        u = -0.1 * np.asarray(g, np.float64)
        if t < after:
            x = x + u
            continue
        if t == after:
            radius = np.linalg.norm(x)
        x = x + u - x * np.sum(x * u) / np.sum(x * x)
        x = radius * x / np.linalg.norm(x)
    return x


@pytest.mark.parametrize("after", [0, 3])
def test_sgd_with_it_is_the_rule_in_numpy(after: int) -> None:
    params, gradients = small_tree(), noise(small_tree(), 7)
    tx = optax.chain(optax.sgd(0.1), wd.keep_norms(wd.everything, after=after))
    seen, _ = run(tx, params, gradients)
    expected = jax.tree.map(lambda x, *g: reference(x, g, after), params, *gradients)
    assert largest_difference(seen[-1], expected) < 1e-6


def test_with_adam_norms_stay_what_they_are_after_the_free_steps() -> None:
    params, gradients = small_tree(), noise(small_tree(), 200)
    tx = optax.chain(optax.adam(0.01), wd.keep_norms(wd.everything, after=50))
    seen, _ = run(tx, params, gradients)
    drift = [np.max(np.abs(lengths(x) / lengths(seen[49]) - 1)) for x in seen]
    assert max(drift[49:]) < 1e-6 and min(drift[:40]) > 1e-5
    assert largest_difference(seen[-1], seen[49]) > 0.1


def test_what_something_else_takes_of_the_norm_comes_back_with_the_next_step() -> None:
    params = {"kernel": jnp.asarray([[3.0, 4.0]])}
    (updates,) = noise(params, 1)
    tx: Any = wd.keep_norms()
    _, state = tx.update(updates, tx.init(params), params)
    shrunk = jax.tree.map(lambda x: 0.5 * x, params)
    after, _ = tx.update(updates, state, shrunk)
    np.testing.assert_allclose(lengths([after["kernel"] + shrunk["kernel"]]), 5.0, 1e-6)


def test_a_step_along_the_weights_does_nothing() -> None:
    params = {"kernel": jnp.asarray([[3.0, 4.0]])}
    after = once(wd.keep_norms(), jax.tree.map(lambda x: 0.5 * x, params), params)
    np.testing.assert_allclose(after["kernel"], 0.0, atol=1e-6)


def test_the_mask_chooses_and_the_others_come_back_as_they_were() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    after = once(wd.keep_norms(wd.named("kernel")), updates, params)
    assert after["norm"]["scale"] is updates["norm"]["scale"]
    assert after["mlp"]["bias"] is updates["mlp"]["bias"]
    moved = {k: after[k]["kernel"] + params[k]["kernel"] for k in ("attn", "mlp")}
    start = {k: params[k]["kernel"] for k in moved}
    np.testing.assert_allclose(lengths(moved), lengths(start), rtol=1e-6)


def test_a_tensor_of_zeros_stays_free_and_an_empty_one_passes() -> None:
    params = {"zero": jnp.zeros((2, 2)), "empty": jnp.zeros((0, 3))}
    (updates,) = noise(params, 1)
    assert_same(once(wd.keep_norms(wd.everything), updates, params), updates)


def test_stacked_layers_have_a_norm_each() -> None:
    params = {"blocks": jnp.stack([jnp.ones((2, 3)), 5.0 * jnp.ones((2, 3))])}
    tx = optax.chain(
        optax.adam(0.1), wd.keep_norms(wd.everything, stacked=wd.contains("blocks"))
    )
    seen, _ = run(tx, params, noise(params, 5))
    found = np.linalg.norm(np.asarray(seen[-1]["blocks"]), axis=(1, 2))
    np.testing.assert_allclose(found, [np.sqrt(6), 5 * np.sqrt(6)], rtol=1e-6)


def test_norms_are_known_of_masked_leaves_too() -> None:
    params, gradients = small_tree(), noise(small_tree(), 3)
    states: Any = [
        run(optax.chain(optax.sgd(0.1), wd.keep_norms(mask, after=2)), *args)[1][1]
        for mask in (wd.everything, wd.nothing)
        for args in [(params, gradients)]
    ]
    assert type(states[0]).__name__ == "NormsState" and states[0].norms_count == 3
    assert largest_difference(states[0], states[1]) < 1e-6


def test_complex_tensors_keep_the_norm_of_their_moduli() -> None:
    x = jnp.asarray([[3.0 + 1.0j, 2.0 - 2.0j]])
    after = once(wd.keep_norms(wd.everything), jnp.full((1, 2), 0.3 - 0.4j), x)
    np.testing.assert_allclose(lengths(x + after), lengths(x), rtol=1e-6)


def test_bfloat16_does_not_drift() -> None:
    params = {"kernel": jnp.ones((8, 8), jnp.bfloat16)}
    tx = optax.chain(optax.sgd(0.05), wd.keep_norms())
    seen, _ = run(tx, params, noise(params, 100))
    assert seen[-1]["kernel"].dtype == jnp.bfloat16
    assert lengths(seen[-1])[0] == pytest.approx(8.0, rel=0.01)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"after": -1}, ValueError, "after is 0 or more steps, got -1"),
        (
            {"after": 1.5},
            TypeError,
            "after takes a number of steps such as 1000, got 1",
        ),
        ({"stacked": "blocks"}, TypeError, "stacked takes a rule"),
        ({"mask": None}, TypeError, "mask"),
    ],
)
def test_wrong_arguments_are_refused(options: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        wd.keep_norms(**options)


def test_it_needs_the_parameters() -> None:
    tx, params = wd.keep_norms(), small_tree()
    with pytest.raises(ValueError, match="keep_norms needs the parameters, got param"):
        tx.update(params, tx.init(params))


def test_it_is_no_decay_of_a_ready_chain() -> None:
    params = {"k": jnp.ones((2, 2))}
    for part in (wd.keep_norms(), wd.max_norms(1.0), wd.pin_norms(0.1)):
        tx = wd.adamw(1e-2, part)
        with pytest.raises(
            ValueError, match="is no decay and cannot stand inside of a"
        ):
            tx.update(params, tx.init(params), params)
