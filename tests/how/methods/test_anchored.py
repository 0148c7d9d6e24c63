# SPDX-License-Identifier: Apache-2.0
"""Anchored decay: where the anchor comes from, its closed form, and what is refused."""

from typing import Any

import forms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import assert_follows, assert_same, flat, noise, once, settled, tree

import optax_wd as wd

KERNELS = wd.named("kernel")
ONE = {"w": jnp.asarray([1.0, 2.0]), "b": jnp.asarray(3.0)}
ZERO = jax.tree.map(jnp.zeros_like, ONE)


def anchored(rate: Any, **options: Any) -> Any:
    return wd.anchored_weight_decay(rate, wd.everything, **options)


# The rule


def reference(x: np.ndarray, gradients: np.ndarray, rates: np.ndarray) -> list:
    start, seen = x, []
    for g, rate in zip(gradients, rates, strict=True):
        x = x - 0.1 * (g + rate * (x - start))
        seen.append(x)
    return seen


def test_it_is_the_rule_in_numpy() -> None:
    assert_follows(wd.anchored_weight_decay, reference)


def cautious_reference(x: np.ndarray, gradients: np.ndarray, rates: np.ndarray) -> list:
    start, seen = x, []
    for g, rate in zip(gradients, rates, strict=True):
        x = x - 0.1 * (g + rate * (g * (x - start) >= 0) * (x - start))
        seen.append(x)
    return seen


def test_with_the_cautious_gate_it_is_the_cautious_rule_in_numpy() -> None:
    def method(*arguments: Any, **options: Any) -> Any:
        gate = wd.cautious_gate
        return wd.anchored_weight_decay(*arguments, gate=gate, **options)

    assert_follows(method, cautious_reference)


@pytest.mark.parametrize("to", [None, 0.0, 8.0], ids=str)
def test_the_fixed_point_on_a_quadratic_lies_between_minimum_and_anchor(
    to: Any,
) -> None:
    anchor = 5.0 if to is None else to
    expected = (1.0 * 2.0 + 0.5 * anchor) / (1.0 + 0.5)
    tx = wd.sgdw(0.1, anchored(0.5, to=to))
    assert settled(tx) == pytest.approx(expected, abs=1e-5)


def test_the_cautious_form_leaves_the_minimum_where_it_is() -> None:
    tx = wd.sgdw(0.01, anchored(0.5, gate=wd.cautious_gate))
    assert settled(tx, 3000) == pytest.approx(2.0, abs=0.02)


def test_gate_and_opposite_gate_make_full_decay() -> None:
    start, here, (updates,) = tree(0), tree(3), noise(tree(), 1)

    def closed(s: jax.Array, d: jax.Array) -> jax.Array:
        return ~wd.cautious_gate(s, d)

    open_, shut, full = (
        anchored(0.3, gate=gate) for gate in (wd.cautious_gate, closed, None)
    )
    a, b, c = (
        tx.update(updates, tx.init(start), here)[0] for tx in (open_, shut, full)
    )
    both = jax.tree.map(lambda u, a, b: jnp.where(a != u, a, b), updates, a, b)
    assert_same(both, c)
    pairs = zip(*map(jax.tree.leaves, (a, updates)), strict=True)
    moved = [np.mean(x != u) for x, u in pairs]
    assert 0.0 < np.mean(moved) < 1.0


def test_the_gate_reads_sign_of_where_it_is_given() -> None:
    tx = anchored(0.5, to=0.0, gate=wd.cautious_gate)
    signs = {"w": jnp.asarray([-1.0, 1.0]), "b": None}
    after = once(tx, ZERO, ONE, sign_of=signs)
    np.testing.assert_array_equal(after["w"], [0.0, 1.0])
    assert after["b"] == 1.5  # where there are no signs, those of the update


def test_to_zero_it_is_plain_decay() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    plain = once(wd.masked_decay(0.3), updates, params)
    assert_same(once(wd.anchored_weight_decay(0.3, to=0.0), updates, params), plain)


# Where the anchor comes from


FORMS = [
    "linen FrozenDict",
    "linen Partitioned",
    "linen flattened, keys are tuples",
    "nnx module",
    "nnx State of Param",
    "nnx pure dict",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_tree_is_read_by_path_whatever_its_containers(form: str) -> None:
    params = jax.tree.map(lambda x: x + 4.0, forms.single()["linen dict"])
    zeros = jax.tree.map(jnp.zeros_like, params)
    after = once(anchored(0.5, to=forms.single()[form]), zeros, params)
    assert_same(after, jax.tree.map(lambda x: 0.5 * x, params))


def test_entries_may_be_numbers_and_stand_for_all_below_them() -> None:
    params = tree()
    zeros = jax.tree.map(jnp.zeros_like, params)
    to = {"norm": 1, "mlp": 0.5, "attn": {**params["attn"], "bias": np.float32(2.0)}}
    state = anchored(0.5, to=to).init(params)
    kept = flat(state.memory)
    for name, number in {"norm/scale": 1.0, "mlp/bias": 0.5, "attn/bias": 2.0}.items():
        np.testing.assert_array_equal(kept[name], np.full(kept[name].shape, number))
    after = once(anchored(0.5, to=to), zeros, params)
    assert not np.any(after["attn"]["kernel"]) and np.any(after["norm"]["scale"])


def test_what_the_tree_lacks_may_not_decay_and_what_it_has_too_much_is_let_be() -> None:
    params = {"body": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}}
    to = {"body": {"kernel": np.zeros(2)}, "old_head": {"kernel": np.zeros(7)}}
    fits = wd.anchored_weight_decay(0.5, ~wd.contains("head"), to=to)
    after = once(fits, params, params)
    np.testing.assert_array_equal(after["body"]["kernel"], [1.5, 1.5])
    assert after["head"]["kernel"] is params["head"]["kernel"]
    message = "to has no entry for 'head/kernel', which decays; add one, or exclude"
    with pytest.raises(ValueError, match=message):
        once(anchored(0.5, to=to), params, params)


def test_the_state_has_one_structure_and_one_copy_of_the_parameters() -> None:
    params = {**tree(0, jnp.bfloat16), "steps": jnp.asarray(3), "gone": None}
    given = tree(1)  # in float32
    states: list[Any] = [
        wd.anchored_weight_decay(rate, mask, to=to, gate=gate).init(params)
        for rate, mask, to, gate in (
            (0.1, KERNELS, None, None),
            (optax.constant_schedule(0.1), wd.everything, 1.0, wd.cautious_gate),
            (0.0, wd.nothing, given, None),
        )
    ]
    facts = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in states]
    assert facts[0] == facts[1] == facts[2]
    assert flat(states[0].memory)["mlp/kernel"].dtype == jnp.bfloat16
    assert flat(states[0].memory)["steps"].shape == ()
    assert_same(states[2].memory["mlp"], tree(1, jnp.bfloat16)["mlp"])


@pytest.mark.parametrize("to", [None, ONE], ids=["init", "tree"])
def test_the_memory_is_no_buffer_of_the_caller(to: Any) -> None:
    kept = anchored(0.5, to=to).init(ONE).memory["w"]
    assert kept.unsafe_buffer_pointer() != ONE["w"].unsafe_buffer_pointer()


def test_a_number_is_kept_with_the_sharding_of_the_parameters() -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.NamedSharding(mesh, jax.P("x"))
    params = {"w": jax.device_put(jnp.ones((8, 2)), place)}
    kept = anchored(0.5, to=1.0).init(params).memory["w"]
    assert kept.sharding.is_equivalent_to(place, 2)


def test_maps_over_the_state_find_the_memory() -> None:
    tx = anchored(0.5, to=ONE)
    state: Any = optax.tree.map_params(tx, lambda x: 2.0 * x, tx.init(ONE))
    assert_same(state.memory, jax.tree.map(lambda x: 2.0 * x, ONE))


def test_an_nnx_optimizer_comes_back_to_pretrained_weights() -> None:
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    pretrained = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model)))
    tx = wd.sgdw(1.0, anchored(0.5, to=pretrained))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    kernel = pretrained["kernel"]
    model.kernel[...] = kernel + 1.0
    zeros = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    for left in (0.5, 0.25):
        nnx.jit(lambda m, o, g: o.update(m, g))(model, optimizer, zeros)
        np.testing.assert_allclose(model.kernel[...], kernel + left, atol=1e-6)


def test_bad_numbers_elsewhere_stay_there() -> None:
    params = {"w": jnp.ones(2), "other": jnp.asarray([jnp.nan, jnp.inf])}
    tx = wd.anchored_weight_decay(0.5, wd.named("w"), to=0.0)
    after = once(tx, params, params)
    np.testing.assert_array_equal(after["w"], [1.5, 1.5])
    assert after["other"] is params["other"]


# What is refused


@pytest.mark.parametrize(
    ("to", "kind", "message"),
    [
        (wd.standard, TypeError, "to takes a number or a tree of arrays, got"),
        ("init", TypeError, "to takes a number or a tree of arrays, got 'init'"),
        (True, TypeError, "to is True; write a number or an array"),
        ({"w": "x"}, TypeError, "to is 'x' at 'w'; write a number or an array"),
        (float("nan"), ValueError, "to is nan; write a finite number"),
        ({"b": float("inf")}, ValueError, "to is inf at 'b'; write a finite number"),
    ],
    ids=["rule", "string", "bool", "string in a tree", "nan", "inf in a tree"],
)
def test_what_is_no_anchor_is_refused_at_once(to: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        anchored(0.5, to=to)


def test_a_shape_that_differs_is_refused_with_its_path() -> None:
    message = r"to has shape \(3,\) at 'w', where the parameter has \(2,\); give it"
    with pytest.raises(ValueError, match=message):
        anchored(0.5, to={"w": jnp.ones(3), "b": 0.0}).init(ONE)


def test_a_gate_that_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="gate takes a function of arrays, got 0.5"):
        anchored(0.5, gate=0.5)
