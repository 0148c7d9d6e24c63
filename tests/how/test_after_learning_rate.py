# SPDX-License-Identifier: Apache-2.0
"""A decay where updates are final: signs turned, learning rate applied."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    DECAYS,
    adam_chain,
    assert_same,
    every_decay,
    flat,
    largest_difference,
    noise,
    once,
    run,
    tree,
    variables,
)

import optax_wd as wd

KERNELS = wd.named("kernel")


def final(decay: Any, learning_rate: Any = 0.01) -> optax.GradientTransformation:
    return optax.chain(optax.adam(learning_rate), wd.after_learning_rate(decay))


@pytest.mark.parametrize("learning_rate", [0.0, 0.01, optax.linear_schedule(1, 0, 3)])
def test_after_the_learning_rate_the_shrink_is_the_coefficient(
    learning_rate: Any,
) -> None:
    params = tree()
    zeros = [jax.tree.map(jnp.zeros_like, params)] * 4
    seen, _ = run(
        final(wd.masked_decay(0.25, wd.everything), learning_rate), params, zeros
    )
    assert largest_difference(seen[-1], jax.tree.map(lambda x: 0.75**4 * x, params)) < (
        1e-6
    )


def test_after_the_learning_rate_is_exact() -> None:
    params, updates = tree(), tree(1)
    for decay in DECAYS.values():
        tx = decay(0.3, wd.everything)
        turned = jax.tree.map(jnp.negative, updates)
        expected = jax.tree.map(jnp.negative, once(tx, turned, params))
        assert_same(once(wd.after_learning_rate(tx), updates, params), expected)


def test_after_the_learning_rate_twice_is_refused() -> None:
    last = wd.after_learning_rate(wd.masked_decay(0.1))
    message = "after_learning_rate stands inside of another, which turns the signs back"
    with pytest.raises(ValueError, match=message):
        wd.after_learning_rate(last)
    for hidden in (optax.chain(last), optax.partition({"a": last}, lambda _: "a")):
        with pytest.raises(ValueError, match=message):
            once(wd.after_learning_rate(hidden), tree(1), tree())


CONSTRAINTS: dict[str, Callable[[], Any]] = {
    "keep_norms": wd.keep_norms,
    "max_norms": lambda: wd.max_norms(1.0),
    "pin_norms": lambda: wd.pin_norms(0.1),
}
INSIDE: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "chain": lambda part: optax.chain(optax.sgd(0.1), wd.after_learning_rate(part)),
    "ready chain": lambda part: wd.adamw(0.01, wd.after_learning_rate(part)),
    "among others": lambda part: wd.after_learning_rate(
        optax.chain(wd.masked_decay(0.1), optax.masked(part, KERNELS))
    ),
    "apply_if_finite": lambda part: wd.after_learning_rate(
        optax.apply_if_finite(part, 9)
    ),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
def test_after_the_learning_rate_what_constrains_norms_stands_bare(
    inside: Any, name: str
) -> None:
    """Inside, it would let norms grow: 5, 9, 17, 33 under a limit of 1."""
    tx = inside(CONSTRAINTS[name]())
    message = (
        rf"^{name} stands last, bare: optax.chain\(..., {name}\(...\)\); inside af"
    )
    with pytest.raises(ValueError, match=message):
        once(tx, tree(1), tree())


@every_decay
def test_after_the_learning_rate_undecayed_leaves_are_the_same_objects(
    decay: Any,
) -> None:
    params, updates = tree(), tree(1)
    after = flat(once(wd.after_learning_rate(decay(0.3, KERNELS)), updates, params))
    same = {path: after[path] is update for path, update in flat(updates).items()}
    assert same == {path: not path.endswith("kernel") for path in same}
    pairs = variables(wd.after_learning_rate(decay(0.3, KERNELS)), updates, params)
    assert [a is b for a, b in pairs] == list(same.values())


def test_after_the_learning_rate_leaves_of_other_kinds_pass() -> None:
    hole = optax.MaskedNode()
    params: Any = {"w": jnp.ones(2), "n": jnp.asarray([3]), "a": None, "b": hole}
    updates: Any = {"w": -jnp.ones(2), "n": jnp.asarray([4]), "a": None, "b": hole}
    after = once(
        wd.after_learning_rate(wd.masked_decay(0.5, wd.everything)), updates, params
    )
    np.testing.assert_array_equal(after["w"], [-1.5, -1.5])
    assert after["n"] is updates["n"] and after["a"] is None
    assert isinstance(after["b"], optax.MaskedNode)


def test_after_the_learning_rate_it_mends_add_decayed_weights() -> None:
    params = {"w": jnp.full((2, 2), 2.0)}
    zeros = {"w": jnp.zeros((2, 2))}
    bare = optax.add_decayed_weights(0.25)
    grown, mended = (
        once(tx, zeros, params) for tx in (bare, wd.after_learning_rate(bare))
    )
    np.testing.assert_array_equal(grown["w"], np.full((2, 2), 0.5))
    np.testing.assert_array_equal(mended["w"], np.full((2, 2), -0.5))


def test_after_the_learning_rate_a_bare_decay_grows_the_weights() -> None:
    params = {"w": jnp.ones((2, 2))}
    tx = optax.chain(optax.sgd(0.1), wd.masked_decay(0.25, wd.everything))
    updates = once(tx, {"w": jnp.zeros((2, 2))}, params)
    np.testing.assert_array_equal(updates["w"], np.full((2, 2), 0.25))


def test_after_the_learning_rate_the_gate_sees_the_step() -> None:
    params = {"w": jnp.asarray([1.0, -1.0, 1.0])}
    grads = {"w": jnp.asarray([1.0, 1.0, 0.0])}
    tx = optax.chain(
        optax.sgd(0.5),
        wd.after_learning_rate(wd.cautious_weight_decay(0.25, wd.everything)),
    )
    updates = once(tx, grads, params)
    np.testing.assert_array_equal(updates["w"], [-0.75, -0.5, -0.25])


def test_after_a_learning_rate_of_zero_every_gate_is_open() -> None:
    params = tree()
    rates = optax.piecewise_constant_schedule(0.0, {})
    for learning_rate in (0.0, rates):
        tx = final(wd.cautious_weight_decay(0.25, wd.everything), learning_rate)
        seen, _ = run(tx, params, noise(params, 2))
        expected = jax.tree.map(lambda x: 0.75**2 * x, params)
        assert largest_difference(seen[-1], expected) < 1e-6
    before = adam_chain(wd.cautious_weight_decay(0.25, wd.everything), 0.0)
    assert_same(run(before, params, noise(params, 2))[0][-1], params)


WRAPPERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 4).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 9),
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_after_the_learning_rate_it_belongs_inside_wrappers_that_skip_steps(
    wrapper: Any,
) -> None:
    """Of eight steps two are real: every fourth, or the two without a NaN."""
    params = {"w": jnp.ones((2, 2))}
    zeros = {"w": jnp.zeros((2, 2))}
    bad = zeros if wrapper is WRAPPERS["MultiSteps"] else {"w": zeros["w"] + jnp.nan}
    last = wd.after_learning_rate(wd.masked_decay(0.01))
    inside = wrapper(optax.chain(optax.sgd(0.1), last))
    outside = optax.chain(wrapper(optax.sgd(0.1)), last)
    for tx, shrinks in ((inside, 2), (outside, 8)):
        seen, _ = run(tx, params, [bad, bad, bad, zeros] * 2)
        assert seen[-1]["w"][0, 0] == pytest.approx(0.99**shrinks, abs=1e-6)


def test_after_the_learning_rate_sign_of_is_refused() -> None:
    tx = wd.after_learning_rate(wd.cautious_weight_decay(0.1))
    message = (
        "after_learning_rate stands before the learning rate, where it would grow the "
        "weights; pass it to the ready chain as the whole decay"
    )
    with pytest.raises(ValueError, match=message):
        once(tx, tree(1), tree(), sign_of=tree(1))


def test_after_the_learning_rate_other_extra_arguments_reach_the_inside() -> None:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return jax.tree.map(lambda u: u + extra["value"], updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    after = once(wd.after_learning_rate(inner), {"w": jnp.ones(1)}, None, value=3.0)
    np.testing.assert_array_equal(after["w"], [-2.0])


@pytest.mark.parametrize("given", [0.1, None, wd.standard, lambda: 0])
def test_after_the_learning_rate_only_a_transformation_is_taken(given: Any) -> None:
    message = r"takes a transformation, got .*; write after_learning_rate\(masked_decay"
    with pytest.raises(TypeError, match=message):
        wd.after_learning_rate(given)


def test_after_the_learning_rate_the_state_is_that_of_the_decay() -> None:
    for decay in DECAYS.values():
        assert_same(
            wd.after_learning_rate(decay(0.1)).init(tree()), decay(0.1).init(tree())
        )
