# SPDX-License-Identifier: Apache-2.0
"""The engine: what is touched, what is refused, and where a decay can stand."""

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
    tree,
    variables,
)

import optax_wd as wd

KERNELS = wd.named("kernel")


# Untouched


@every_decay
def test_undecayed_leaves_are_the_same_objects(decay: Any) -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    after = flat(once(decay(0.1, KERNELS), grads, params))
    same = {path: after[path] is update for path, update in flat(grads).items()}
    assert same == {path: not path.endswith("kernel") for path in same}


@every_decay
def test_undecayed_leaves_are_the_same_variables_of_a_jaxpr(decay: Any) -> None:
    pairs = variables(decay(0.1, KERNELS), tree(1), tree())
    same = [before is after for before, after in pairs]
    assert same == [not path.endswith("kernel") for path in flat(tree())]


@every_decay
@pytest.mark.parametrize(
    ("rate", "options"),
    [
        (0, {}),
        (0.0, {}),
        (np.float32(0.0), {}),
        (0.1, {"multiplier": 0}),
        (0.1, {"multiplier": 0.0}),
        (0.1, {"multiplier": wd.first_match((wd.everything, 0.0))}),
        (lambda step: 0.1, {"multiplier": 0.0}),
        (0.1, {"mask": wd.nothing}),
        (lambda step: 0.1, {"mask": False}),
    ],
)
def test_zero_means_untouched(decay: Any, rate: Any, options: Any) -> None:
    params = jax.tree.map(lambda x: x.at[0].set(jnp.inf).at[1].set(jnp.nan), tree())
    tx = decay(rate, **{"mask": wd.everything, **options})
    state = tx.init(params)
    updates, state = tx.update(grads := tree(1), state, params)
    for after, before in zip(
        jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True
    ):
        assert after is before
    assert all(before is after for before, after in variables(tx, grads, params))
    assert state.decay_count == 1


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@every_decay
def test_zero_in_an_array_of_factors_leaves_that_part_alone(
    decay: Any, array: Any
) -> None:
    params = {"w": jnp.asarray([[jnp.inf, jnp.nan], [2.0, 3.0]])}
    tx = decay(0.5, wd.everything, multiplier={"w": array([[0.0], [1.0]])})
    start = {"w": jnp.zeros((2, 2))}  # what an anchored decay remembers
    updates, _ = jax.jit(tx.update)({"w": jnp.ones((2, 2))}, tx.init(start), params)
    np.testing.assert_array_equal(updates["w"], [[1.0, 1.0], [2.0, 2.5]])


def test_minus_zero_stays_where_nothing_decays() -> None:
    minus = jnp.full((2,), -0.0)
    tx = wd.masked_decay(0.5, wd.everything, multiplier=jnp.asarray([0.0, 1.0]))
    updates = once(tx, minus, jnp.ones(2))
    assert bool(jnp.signbit(updates[0])) and updates[1] == 0.5


def test_minus_zero_stays_where_the_gate_is_closed() -> None:
    def closed(sign_source: jax.Array, direction: jax.Array) -> jax.Array:
        return jnp.zeros(sign_source.shape, bool)

    tx = wd.decay_along(lambda u, p: p, 0.5, wd.everything, gate=closed)
    u = jnp.asarray([-0.0, 0.0, 1.0])
    after = once(tx, u, jnp.asarray([1.0, jnp.inf, jnp.nan]))
    np.testing.assert_array_equal(after, u)
    np.testing.assert_array_equal(jnp.signbit(after), [True, False, False])


def test_leaves_of_other_dtypes_are_never_touched() -> None:
    params: dict[str, Any] = {
        "w": jnp.ones((2, 2)),
        "steps": jnp.asarray(3),
        "flags": jnp.asarray([True, False]),
        "key": jax.random.key(0),
        "scalar": 2.0,
        "float0": np.zeros(2, jax.dtypes.float0),
    }
    for decay in DECAYS.values():
        after = once(decay(0.5, wd.everything), params, params)
        assert after["w"] is not params["w"]
        for name in ("steps", "flags", "key", "scalar", "float0"):
            assert after[name] is params[name]


@every_decay
def test_float0_gradients_of_whole_numbers_pass(decay: Any) -> None:
    params = {"w": jnp.ones((2, 2)), "steps": jnp.asarray([3, 4])}
    grads = jax.grad(lambda p: jnp.sum(p["w"]), allow_int=True)(params)
    after = once(decay(0.5, wd.everything), grads, params)
    assert after["steps"] is grads["steps"]


@every_decay
def test_a_gradient_of_another_kind_passes_on_an_inexact_parameter(decay: Any) -> None:
    counts = jnp.asarray([1, 2])
    assert (
        once(decay(0.5, wd.everything), {"w": counts}, {"w": jnp.ones(2)})["w"]
        is counts
    )


@every_decay
def test_what_is_given_is_not_changed(decay: Any) -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    tx = decay(0.5, wd.everything)
    state = tx.init(params)
    before = jax.tree.map(np.array, (params, grads, state))
    tx.update(grads, state, params)
    assert_same(jax.tree.map(jnp.asarray, before), (params, grads, state))


# Errors


@every_decay
def test_missing_params_are_named(decay: Any) -> None:
    tx = decay(0.1)
    message = (
        r"weight decay needs the parameters, got params=None; call "
        r"tx\.update\(grads, state, params\)"
    )
    for arguments in ((), (None,)):
        with pytest.raises(ValueError, match=message):
            tx.update(tree(), tx.init(tree()), *arguments)
    with pytest.raises(ValueError, match=message):
        wd.after_learning_rate(tx).update(tree(), tx.init(tree()))
    with pytest.raises(ValueError, match=message):
        adam_chain(tx).update(tree(), adam_chain(tx).init(tree()))


@pytest.mark.parametrize(
    "returned", [jnp.ones(()), jnp.ones((4,)), jnp.ones((1, 3)), 1.0]
)
def test_a_direction_of_another_shape_is_refused(returned: Any) -> None:
    tx = wd.decay_along(lambda u, p: returned, 0.1, wd.everything)
    message = (
        rf"the direction returned shape {np.shape(returned)} for a leaf of shape "
        r"(2, 3); return one element for each of the leaf's"
    )
    with pytest.raises(ValueError) as error:
        once(tx, {"w": jnp.ones((2, 3))}, {"w": jnp.ones((2, 3))})
    assert str(error.value) == message


@pytest.mark.parametrize("returned", [jnp.asarray(True), jnp.ones((1, 3), bool), True])
def test_a_gate_of_another_shape_is_refused(returned: Any) -> None:
    tx = wd.decay_along(lambda u, p: p, 0.1, wd.everything, gate=lambda s, d: returned)
    with pytest.raises(ValueError, match="the gate returned shape .* for a leaf of"):
        once(tx, {"w": jnp.ones((2, 3))}, {"w": jnp.ones((2, 3))})


def test_a_gate_that_returns_no_bools_is_refused() -> None:
    tx = wd.decay_along(lambda u, p: p, 0.1, wd.everything, gate=lambda s, d: s * d)
    with pytest.raises(TypeError, match="the gate returned float32; return bools"):
        once(tx, jnp.ones((2, 3)), jnp.ones((2, 3)))


@every_decay
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "mask=None is ambiguous; write mask=everything for all parameters or"),
        ("kernel", r"mask is the string 'kernel', which as a truth value would mean"),
        ({"kernel": "yes"}, "the mask is 'yes' at 'kernel', where a bool belongs"),
        ({"kernel": 1}, "the mask is 1 at 'kernel', where a bool belongs"),
    ],
)
def test_what_is_no_mask_is_refused_at_once(
    decay: Any, mask: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        decay(0.1, mask)


@every_decay
@pytest.mark.parametrize(
    ("multiplier", "kind", "message"),
    [
        (KERNELS, TypeError, r"multiplier takes factors, got named\('kernel'\)"),
        ("2", TypeError, "multiplier takes factors, got '2'; pass a choice of leaves"),
        (True, TypeError, "multiplier takes factors, got True; pass a choice of"),
        (-1.0, ValueError, "the multiplier is -1.0; factors are finite and 0 or more"),
        (float("nan"), ValueError, "the multiplier is nan; factors are finite and 0"),
    ],
)
def test_what_is_no_multiplier_is_refused_at_once(
    decay: Any, multiplier: Any, kind: Any, message: str
) -> None:
    with pytest.raises(kind, match=message):
        decay(0.1, multiplier=multiplier)


# Holes


def test_gradients_of_none_pass() -> None:
    params = tree()
    grads: Any = tree(1)
    grads["mlp"]["kernel"] = None
    for decay in DECAYS.values():
        after = once(decay(0.5, wd.everything), grads, params)
        assert after["mlp"]["kernel"] is None
        assert after["mlp"]["bias"] is not grads["mlp"]["bias"]


def test_params_of_none_pass() -> None:
    params: Any = {"a": None, "b": jnp.ones(2)}
    for decay in DECAYS.values():
        after = once(decay(0.5, wd.everything), params, params)
        assert after["a"] is None and after["b"] is not params["b"]


@every_decay
def test_partition_hands_each_decay_its_own_leaves(decay: Any) -> None:
    params = tree()
    # Leaves that another branch has are MaskedNodes here; no name can be missed.
    tx = optax.partition(
        {
            "a": decay(0.5, KERNELS & ~wd.contains("embedding")),
            "b": optax.chain(decay(0.25, wd.everything), optax.scale(1.0)),
        },
        wd.first_match((wd.contains("mlp"), "a"), default="b"),
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    state: Any = tx.init(jax.tree.map(jnp.zeros_like, params))
    updates: Any = tx.update(zeros, state, params)[0]
    factors = {"attn": 0.25, "norm": 0.25}
    for name, factor in factors.items():
        expected = jax.tree.map(lambda p, f=factor: f * p, params[name])
        assert largest_difference(updates[name], expected) < 1e-7
    assert updates["mlp"]["bias"] is zeros["mlp"]["bias"]
    np.testing.assert_allclose(
        updates["mlp"]["kernel"], 0.5 * params["mlp"]["kernel"], rtol=1e-6
    )


@every_decay
def test_masked_inside_masked_decays_what_both_choose(decay: Any) -> None:
    params, zeros = tree(), jax.tree.map(jnp.zeros_like, tree())
    inner = optax.masked(decay(0.5, wd.everything), wd.contains("mlp", "norm"))
    tx: Any = optax.masked(inner, ~wd.named("bias"))
    updates = tx.update(zeros, tx.init(zeros), params)[0]
    moved = {k for k, u in flat(updates).items() if float(jnp.max(jnp.abs(u))) > 0}
    assert moved == {"mlp/kernel", "norm/scale"}


@every_decay
def test_a_prefix_tree_of_bools_is_a_mask(decay: Any) -> None:
    params = tree()
    prefix = {"attn": False, "mlp": {"kernel": np.bool_(True), "bias": False}}
    prefix["norm"] = True
    full = wd.contains("norm") | wd.path("mlp/kernel")
    assert_same(
        once(decay(0.5, prefix), tree(1), params),
        once(decay(0.5, full), tree(1), params),
    )


# sign_of


def test_sign_of_says_where_the_gate_is_open() -> None:
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    updates = {"a": jnp.full(3, -1.0), "b": jnp.full(2, -1.0)}
    signs = {"a": jnp.asarray([1.0, -1.0, 0.0]), "b": jnp.asarray([-1.0, 1e-30])}
    tx = wd.cautious_weight_decay(0.5, wd.everything)
    after = once(tx, updates, params, sign_of=signs)
    np.testing.assert_array_equal(after["a"], [-0.5, -1.0, -0.5])
    np.testing.assert_array_equal(after["b"], [-1.0, -0.5])


def test_sign_of_may_have_holes_and_another_dtype() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
    signs = {"a": optax.MaskedNode(), "b": jnp.ones(2, jnp.bfloat16), "c": None}
    updates = {"a": jnp.full(2, -1.0), "b": jnp.full(2, -1.0), "c": jnp.ones(2)}
    tx = wd.cautious_weight_decay(0.5, wd.everything)
    after = once(tx, updates, params, sign_of=signs)
    np.testing.assert_array_equal(after["a"], [-1.0, -1.0])  # by the update itself
    np.testing.assert_array_equal(after["b"], [-0.5, -0.5])
    np.testing.assert_array_equal(after["c"], [1.5, 1.5])


def test_sign_of_is_aligned_with_partial_params() -> None:
    hole = optax.MaskedNode()
    params = {"a": hole, "b": jnp.ones(2), "c": None, "d": jnp.ones(2)}
    updates = {"a": hole, "b": jnp.full(2, -1.0), "c": None, "d": jnp.full(2, -1.0)}
    signs = {"a": hole, "b": jnp.ones(2), "c": None, "d": jnp.full(2, -1.0)}
    after = once(
        wd.cautious_weight_decay(0.5, wd.everything), updates, params, sign_of=signs
    )
    np.testing.assert_array_equal(after["b"], [-0.5, -0.5])
    assert_same(after["d"], updates["d"])
    assert after["a"] is hole and after["c"] is None


def test_sign_of_changes_nothing_without_a_gate() -> None:
    params, updates = tree(), tree(1)
    for name in ("masked", "anchored"):
        tx = DECAYS[name](0.5, wd.everything)
        signs = jax.tree.map(jnp.negative, updates)
        assert_same(once(tx, updates, params, sign_of=signs), once(tx, updates, params))


def test_other_extra_arguments_are_let_through() -> None:
    for decay in DECAYS.values():
        assert_same(
            once(decay(0.5), tree(1), tree(), value=1.0, grad=tree()),
            once(decay(0.5), tree(1), tree()),
        )


def test_three_places_are_three_amounts_of_decay() -> None:
    """Before the preconditioner, behind it, and after the learning rate."""
    params = {"w": jnp.full((2,), 4.0)}
    zeros, decay = {"w": jnp.zeros(2)}, wd.masked_decay(0.25, wd.everything)
    scale = optax.stateless(lambda u, p: jax.tree.map(lambda x: 8.0 * x, u))
    rate = optax.scale_by_learning_rate(0.5)
    shrinks = {
        "l2": (optax.chain(decay, scale, rate), 0.5 * 8.0 * 0.25),
        "decoupled": (optax.chain(scale, decay, rate), 0.5 * 0.25),
        "no learning rate": (
            optax.chain(scale, rate, wd.after_learning_rate(decay)),
            0.25,
        ),
    }
    for tx, shrink in shrinks.values():
        np.testing.assert_array_equal(
            once(tx, zeros, params)["w"], np.full(2, -4.0 * shrink)
        )


@pytest.mark.parametrize("direction", [0.1, None, wd.standard])
def test_a_direction_is_a_function(direction: Any) -> None:
    with pytest.raises(TypeError, match=r"is \(direction, weight_decay, mask\)$"):
        wd.decay_along(direction, 0.1)


@pytest.mark.parametrize("name", ["gate", "remember"])
def test_gate_and_remember_are_functions(name: str) -> None:
    given: Any = {name: True}
    with pytest.raises(
        TypeError, match=f"^{name} takes a function of arrays, got True"
    ):
        wd.decay_along(lambda u, p: p, 0.1, **given)


def test_a_class_is_no_mask() -> None:
    with pytest.raises(TypeError, match="^mask is the class .*Rule.*; write a rule"):
        wd.masked_decay(0.1, wd.Rule)


def test_a_real_update_of_a_complex_parameter_is_refused() -> None:
    params = {"w": jnp.ones((2, 2), jnp.complex64)}
    with pytest.raises(ValueError, match="^got a real update for a complex parameter"):
        once(wd.masked_decay(0.1), {"w": jnp.ones((2, 2))}, params)
