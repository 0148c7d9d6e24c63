# SPDX-License-Identifier: Apache-2.0
"""Top-k gated decay: the rule in NumPy, what is global about it, and what it prunes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same, largest_difference, noise, once, run, tree

import optax_wd as wd


def gated(rate: Any, keep: float, mask: Any = wd.everything, **options: Any) -> Any:
    return wd.topk_gated_weight_decay(rate, mask, keep=keep, **options)


def reference(params: Any, grads: Any, rate: float, keep: float) -> Any:
    """The rule in float64 over all leaves together."""
    leaves, structure = jax.tree.flatten(params)
    leaves = [np.asarray(x, np.float64) for x in leaves]
    gs = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
    scores = np.concatenate(
        [np.abs(x * g).ravel() for x, g in zip(leaves, gs, strict=True)]
    )
    least = np.sort(scores)[::-1][int(keep * scores.size) - 1]
    return structure.unflatten(
        np.where(np.abs(x * g) >= least, g, 0.0) + rate * x
        for x, g in zip(leaves, gs, strict=True)
    )


@pytest.mark.parametrize("keep", [0.03, 0.5, 1.0])
def test_it_is_the_rule_in_numpy_through_the_momentum(keep: float) -> None:
    params = tree()
    gradients = noise(params, 5)
    tx = optax.chain(
        gated(0.1, keep), optax.trace(0.9), optax.scale_by_learning_rate(0.1)
    )
    seen, _ = run(tx, params, gradients)
    x = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    m = jax.tree.map(np.zeros_like, x)
    for now, grads in zip(seen, gradients, strict=True):
        total = reference(x, grads, 0.1, keep)
        m = jax.tree.map(lambda m, u: 0.9 * m + u, m, total)
        x = jax.tree.map(lambda x, m: x - 0.1 * m, x, m)
        assert largest_difference(now, x) < 5e-6


def test_a_step_by_hand_and_the_choice_is_global() -> None:
    params = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray([[4.0, 0.0]])}
    grads = {"a": jnp.asarray([1.0, 1.0]), "b": jnp.asarray([[1.0, 9.0]])}
    found = once(gated(0.5, 0.5), grads, params)  # |x g| = 1, 2 and 4, 0
    np.testing.assert_array_equal(found["a"], [0.5, 1.0 + 1.0])
    np.testing.assert_array_equal(found["b"], [[1.0 + 2.0, 0.0]])
    fewer = once(gated(0.5, 0.25), grads, params)
    np.testing.assert_array_equal(fewer["a"], [0.5, 1.0])


def test_all_of_them_is_plain_l2() -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    plain = once(wd.masked_decay(0.3, wd.everything), grads, params)
    assert_same(once(gated(0.3, 1.0), grads, params), plain)


def test_ties_are_kept_and_zero_gradients_change_nothing() -> None:
    ones = {"w": jnp.ones(4)}
    np.testing.assert_array_equal(once(gated(0.5, 0.25), ones, ones)["w"], [1.5] * 4)
    zeros = {"w": jnp.zeros(4)}
    np.testing.assert_array_equal(once(gated(0.5, 0.25), zeros, ones)["w"], [0.5] * 4)


def test_leaves_that_do_not_decay_keep_their_gradient_and_take_no_part() -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    found = once(gated(0.3, 0.5, wd.named("kernel")), grads, params)
    for path in (("mlp", "bias"), ("attn", "bias"), ("norm", "scale")):
        assert found[path[0]][path[1]] is grads[path[0]][path[1]]
    kernels: Any = [
        {n: t[n]["kernel"] for n in ("attn", "mlp")} for t in (params, grads)
    ]
    expected = reference(kernels[0], kernels[1], 0.3, 0.5)
    alone = {n: found[n]["kernel"] for n in ("attn", "mlp")}
    assert largest_difference(alone, expected) < 1e-6


def test_a_multiplier_scales_the_decay_and_not_the_choice() -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    once_, twice = (once(gated(0.25, 0.5, multiplier=m), grads, params) for m in (1, 2))
    added = jax.tree.map(lambda a, b, p: b - a - 0.25 * p, once_, twice, params)
    assert largest_difference(added, jax.tree.map(jnp.zeros_like, added)) < 1e-6


def test_a_nan_is_not_hidden_and_does_not_spread() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    grads = {"a": jnp.asarray([jnp.nan, 1.0]), "b": jnp.asarray([3.0, 2.0])}
    found = once(gated(0.5, 0.5), grads, params)
    np.testing.assert_array_equal(found["a"], [jnp.nan, 0.5])
    np.testing.assert_array_equal(found["b"], [3.5, 0.5])
    masked = once(gated(0.5, 0.5, wd.named("b")), grads, params)
    np.testing.assert_array_equal(masked["b"], [3.5, 0.5])


def test_seldom_chosen_weights_fade_and_chosen_ones_stay() -> None:
    """Of two weights that a quadratic pulls to 2, the sharper one is kept."""
    sharp = jnp.asarray([1.0, 0.1])
    tx = optax.chain(gated(0.01, 0.5), optax.sgd(0.05, momentum=0.9))

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        # The noise of batches keeps gradients from vanishing: here a constant push.
        updates, state = tx.update(sharp * jnp.asarray([-2.0, -0.2]), state, x)
        return (x + updates, state), None

    x: Any = jnp.asarray([1.0, 1.0])
    (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=3000)
    assert x[0] == pytest.approx(200.0, rel=0.01)  # 2 / 0.01
    assert abs(x[1]) < 1e-3


SCALES: dict[str, tuple[Any, Any]] = {
    "adamw": (wd.adamw, optax.scale_by_adam()),
    "sgdw, momentum": (
        lambda lr, decay: wd.sgdw(lr, decay, momentum=0.9),
        optax.trace(0.9),
    ),
    "lion": (wd.lion, optax.scale_by_lion()),
}


@pytest.mark.parametrize("name", SCALES)
def test_in_a_ready_chain_it_chooses_among_directions(name: str) -> None:
    make, scale = SCALES[name]
    params, gradients = tree(), noise(tree(), 3)
    seen, _ = run(make(0.1, gated(0.25, 0.5)), params, gradients)
    x: Any = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    state = scale.init(params)
    for now, grads in zip(seen, gradients, strict=True):
        direction, state = scale.update(grads, state)
        step = reference(x, direction, 0.25, 0.5)
        x = jax.tree.map(lambda x, u: x - 0.1 * u, x, step)
        assert largest_difference(now, x) < 5e-6


def test_in_sgdw_without_momentum_it_is_the_rule_of_the_paper() -> None:
    params, gradients = tree(), noise(tree(), 3)
    ready, _ = run(wd.sgdw(0.1, gated(0.25, 0.5)), params, gradients)
    first, _ = run(optax.chain(gated(0.25, 0.5), optax.sgd(0.1)), params, gradients)
    assert largest_difference(ready[-1], first[-1]) < 1e-6


def test_signs_of_the_step_change_nothing() -> None:
    params, (grads, others) = tree(), noise(tree(), 2)
    found = once(gated(0.25, 0.5), grads, params, sign_of=others)
    assert_same(found, once(gated(0.25, 0.5), grads, params))


def test_schedules_dtypes_and_empty_trees() -> None:
    params = tree(0, jnp.bfloat16)
    tx = gated(lambda t: 0.5 / (1.0 + t), 0.5)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for t in range(3):
        found, state = update(params, state, params)
        alone = once(gated(0.5 / (1.0 + t), 0.5), params, params)
        assert_same(found, alone)
    empty = {"w": jnp.zeros((0, 3))}
    assert once(gated(0.5, 0.5), empty, empty)["w"].shape == (0, 3)
    assert once(gated(0.0, 0.5), params, params) is params


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_a_fraction_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="keep is a fraction above 0 and at most 1"):
        gated(0.1, keep)


def test_errors_say_what_to_write() -> None:
    params = tree()
    with pytest.raises(TypeError, match="keep is one number, got '5%'"):
        wd.topk_gated_weight_decay(0.1, keep="5%")  # pyright: ignore
    with pytest.raises(ValueError, match="keep is finite and 0 or more, got -1"):
        gated(0.1, -1)
    message = (
        r"keep=0.001 of the 54 coordinates that decay is less than one; write keep"
    )
    with pytest.raises(ValueError, match=message):
        once(gated(0.1, 0.001), params, params)
    with pytest.raises(TypeError, match="mask=None is ambiguous"):
        gated(0.1, 0.5, mask=None)


def test_the_audit_says_what_it_comes_to_before_the_momentum() -> None:
    decay = wd.topk_gated_weight_decay(0.25, keep=0.5)
    found = wd.audit(optax.chain(decay, optax.sgd(0.125, momentum=0.9)), tree())
    kinds = {row.path: row.kind for row in found.rows}
    assert {path for path, kind in kinds.items() if kind != "none"} == {
        "attn/kernel",
        "mlp/kernel",
    }
