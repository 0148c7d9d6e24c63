# SPDX-License-Identifier: Apache-2.0
"""A learning rate per leaf: exact factors, untouched leaves, dtypes, containers."""

import re
from typing import Any

import forms
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_wd as wd

UPDATES = {
    "body": {"kernel": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.ones(2)},
    "head": {"kernel": jnp.asarray([[4.0, -1.0]])},
}
HEAD = wd.first_match((wd.contains("head"), 2.0), default=0.5)


def scaled(multiplier: Any, updates: Any, params: Any = None) -> Any:
    """The updates of the first step, made without parameters if need be."""
    return helpers.once(wd.scale_per_leaf(multiplier), updates, params)


def leaf_of(multiplier: Any, update: Any) -> Any:
    """The same of one leaf called w."""
    return scaled(multiplier, {"w": update})["w"]


def test_updates_are_multiplied_by_their_factors() -> None:
    helpers.assert_same(
        scaled(HEAD, UPDATES),
        {
            "body": {
                "kernel": jnp.asarray([[0.5, -1.0], [1.5, 0.25]]),
                "bias": jnp.full(2, 0.5),
            },
            "head": {"kernel": jnp.asarray([[8.0, -2.0]])},
        },
    )


@pytest.mark.parametrize(
    "multiplier",
    [
        {"body": {"kernel": 0.5, "bias": 0.5}, "head": {"kernel": 2.0}},
        {"body": 0.5, "head": 2},
        {"body": np.float32(0.5), "head": jnp.asarray(2.0)},
        {"body": 0.5, "head": {"kernel": np.asarray([[2.0, 2.0]])}},
        {"body": 0.5, "head": {"kernel": jnp.asarray([[2.0]])}},
        lambda tree: {"body": 0.5, "head": jax.tree.map(lambda x: 2.0, tree["head"])},
    ],
    ids=["tree", "prefix", "0-d arrays", "array", "broadcast", "function"],
)
def test_factors_may_be_a_tree_a_prefix_or_a_function(multiplier: Any) -> None:
    helpers.assert_same(scaled(multiplier, UPDATES), scaled(HEAD, UPDATES))


@pytest.mark.parametrize("number", [0.5, np.float32(0.5), jnp.asarray(0.5)], ids=str)
def test_one_number_scales_all_leaves(number: Any) -> None:
    helpers.assert_same(
        scaled(number, UPDATES), jax.tree.map(lambda u: 0.5 * u, UPDATES)
    )
    assert leaf_of(3, jnp.ones(2)).tolist() == [3.0, 3.0]


def test_an_array_scales_along_its_axes() -> None:
    factors = np.asarray([[0.5], [0.0], [2.0]])
    after = leaf_of({"w": factors}, jnp.ones((3, 2)))
    assert after.tolist() == [[0.5, 0.5], [0.0, 0.0], [2.0, 2.0]]


@pytest.mark.parametrize("one", [1.0, 1, np.float32(1.0), jnp.asarray(1.0)], ids=str)
def test_a_factor_of_1_returns_the_same_object(one: Any) -> None:
    after = scaled({"body": one, "head": 0.5}, UPDATES)
    for name in ("kernel", "bias"):
        assert after["body"][name] is UPDATES["body"][name]
    assert after["head"]["kernel"] is not UPDATES["head"]["kernel"]


def test_a_factor_of_1_does_nothing_in_compiled_code() -> None:
    tx = wd.scale_per_leaf({"body": 1.0, "head": 0.5})
    pairs = helpers.variables(tx, UPDATES, UPDATES)
    assert [before is after for before, after in pairs] == [True, True, False]


SPECIAL = [1.0, -1.0, jnp.inf, -jnp.inf, jnp.nan]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_a_factor_of_0_makes_zeros_of_everything(dtype: str) -> None:
    after = leaf_of(0.0, jnp.asarray(SPECIAL, dtype))
    assert after.dtype == dtype and after.tolist() == [0.0] * 5


def test_a_factor_of_0_on_a_part_makes_zeros_of_that_part() -> None:
    update = jnp.asarray([SPECIAL, SPECIAL])
    after = leaf_of({"w": np.asarray([[0.0], [1.0]])}, update)
    np.testing.assert_array_equal(after, [[0.0] * 5, SPECIAL])
    whole = leaf_of({"w": np.zeros((2, 1))}, update)
    np.testing.assert_array_equal(whole, np.zeros((2, 5)))


def test_a_factor_of_0_makes_zeros_also_where_it_is_known_at_run_time_only() -> None:
    @jax.jit
    def step(factor: jax.Array) -> Any:
        return leaf_of(factor, jnp.asarray(SPECIAL))

    np.testing.assert_array_equal(step(jnp.asarray(0.0)), [0.0] * 5)
    np.testing.assert_array_equal(step(jnp.asarray(1.0)), SPECIAL)


def test_without_a_factor_of_0_infinities_and_nan_stay() -> None:
    np.testing.assert_array_equal(leaf_of(0.5, jnp.asarray(SPECIAL))[2:], SPECIAL[2:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(), (7, 1)], ids=["number", "array"])
def test_the_product_is_taken_in_float32_and_rounded_once(
    dtype: str, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    update = jnp.asarray(rng.normal(size=(7, 5)), dtype)
    factor = rng.uniform(0.1, 2.0, shape)
    after = leaf_of({"w": factor} if shape else float(factor), update)
    wide = np.asarray(factor, np.float32) * np.asarray(update, np.float32)
    helpers.assert_same(after, jnp.asarray(wide).astype(dtype))


def test_float64_is_scaled_in_float64() -> None:
    rng = np.random.default_rng(0)
    values, factor = rng.normal(size=(3, 2)), 1 / 3
    with jax.enable_x64(True):
        after = leaf_of(factor, jnp.asarray(values))
        assert after.dtype == jnp.float64
        np.testing.assert_array_equal(after, factor * values)
        parts = leaf_of({"w": np.full((3, 1), factor)}, jnp.asarray(values))
        np.testing.assert_array_equal(parts, factor * values)
        both = leaf_of(factor, jnp.asarray(values + 1j * values[::-1]))
        assert both.dtype == jnp.complex128
        np.testing.assert_array_equal(both.imag, factor * values[::-1])
        half = leaf_of(factor, jnp.ones(2, jnp.bfloat16))
        assert half.dtype == jnp.bfloat16


def test_complex_updates_are_scaled_in_both_parts() -> None:
    update = jnp.asarray([1 - 2j, 3 + 4j], jnp.complex64)
    helpers.assert_same(
        leaf_of(0.5, update), jnp.asarray([0.5 - 1j, 1.5 + 2j], jnp.complex64)
    )
    parts = leaf_of({"w": np.asarray([0.0, 2.0])}, update)
    helpers.assert_same(parts, jnp.asarray([0, 6 + 8j], jnp.complex64))


@pytest.mark.parametrize("factor", [0.0, 0.5, np.asarray([0.5, 0.0])], ids=str)
def test_what_is_not_inexact_is_never_touched(factor: Any) -> None:
    updates = {
        "count": jnp.asarray([3, 4]),
        "flags": jnp.asarray([True, False]),
        "float0": np.zeros(2, jax.dtypes.float0),
        "key": jax.random.split(jax.random.key(0), 2),
        "number": 3.0,
        "w": jnp.ones(2),
    }
    factors = {name: factor if name == "w" else 0.5 for name in updates}
    after = scaled(factors, updates)
    assert all(after[name] is updates[name] for name in updates if name != "w")
    assert after["w"] is not updates["w"]
    labelled = wd.layerwise(0.5, wd.ordered_layers(wd.named("w"), wd.named("count")))
    after = scaled(labelled, updates)
    assert after["count"] is updates["count"] and after["w"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "multiplier", [0.5, wd.first_match((wd.contains("body"), 0.5), default=1.0)]
)
@pytest.mark.parametrize("hole", [None, forms.MASKED], ids=["None", "MaskedNode"])
def test_absent_leaves_stay_absent(multiplier: Any, hole: Any) -> None:
    updates = {"body": {"kernel": jnp.ones(2), "bias": hole}, "head": hole}
    after = scaled(multiplier, updates)
    assert jax.tree.structure(after) == jax.tree.structure(updates)
    assert after["body"]["kernel"].tolist() == [0.5, 0.5]


def test_the_parameters_are_not_needed() -> None:
    with_params = scaled(HEAD, UPDATES, jax.tree.map(jnp.zeros_like, UPDATES))
    helpers.assert_same(scaled(HEAD, UPDATES), with_params)


def test_there_is_no_state() -> None:
    tx = wd.scale_per_leaf(HEAD)
    state = tx.init(UPDATES)
    assert state == optax.EmptyState() and isinstance(state, optax.EmptyState)
    assert tx.update(UPDATES, state)[1] is state
    optax.tree_map_params(tx, lambda x: x, state)  # calls init with a placeholder


@pytest.mark.parametrize(
    "multiplier", [HEAD, {"body": 0.3, "head": {"kernel": np.asarray([[0.0, 1.5]])}}]
)
def test_compiled_it_does_what_it_does_eagerly(multiplier: Any) -> None:
    tx = wd.scale_per_leaf(multiplier)
    compiled = jax.jit(tx.update)(UPDATES, tx.init(UPDATES))[0]
    helpers.assert_same(compiled, scaled(multiplier, UPDATES))


def test_it_compiles_once_over_many_steps() -> None:
    tx, traces = wd.scale_per_leaf(HEAD), []

    @jax.jit
    def step(updates: Any, state: Any) -> Any:
        traces.append(1)
        return tx.update(updates, state)

    updates, state = UPDATES, tx.init(UPDATES)
    for _ in range(4):
        updates, state = step(updates, state)
    assert len(traces) == 1
    assert updates["head"]["kernel"].tolist() == [[64.0, -16.0]]


def test_under_vmap_every_seed_is_scaled_alike() -> None:
    layers = wd.ordered_layers(wd.contains("body"), (wd.contains("head"), 3))
    tx = wd.scale_per_leaf(wd.layerwise(0.5, layers, stacked=wd.contains("head")))
    seeds = {"body": jnp.ones((2, 4)), "head": jnp.arange(24.0).reshape(2, 3, 4)}
    together = jax.vmap(lambda u: tx.update(u, tx.init(u))[0])(seeds)
    for n in range(2):
        alone = helpers.once(tx, jax.tree.map(lambda x, n=n: x[n], seeds), None)
        helpers.assert_same(jax.tree.map(lambda x, n=n: x[n], together), alone)


@pytest.mark.parametrize("form", {**forms.single(), **forms.stacked()})
def test_every_form_of_a_model_is_scaled_alike(form: str) -> None:
    tree = {**forms.single(), **forms.stacked()}[form]
    updates = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), tree)
    table = wd.first_match((wd.contains("attn"), 0.5), default=2.0)
    after = scaled(table, updates)
    assert jax.tree.structure(after) == jax.tree.structure(updates)
    found = forms.answers(after)
    for path in forms.WEIGHTS:
        expected = 0.5 if path.startswith("attn") else 2.0
        assert np.unique(np.asarray(found[path])).tolist() == [expected]


def test_before_or_behind_the_learning_rate_is_the_same() -> None:
    parts = wd.scale_per_leaf(HEAD), optax.scale_by_learning_rate(0.25)
    one = helpers.once(optax.chain(*parts), UPDATES, None)
    helpers.assert_same(one, helpers.once(optax.chain(*parts[::-1]), UPDATES, None))


def test_two_in_a_chain_multiply() -> None:
    twice = optax.chain(wd.scale_per_leaf(HEAD), wd.scale_per_leaf(0.5))
    helpers.assert_same(
        helpers.once(twice, UPDATES, None),
        scaled({"body": 0.25, "head": 1.0}, UPDATES),
    )


def test_a_frozen_leaf_does_not_move() -> None:
    frozen = wd.first_match((wd.contains("head"), 1.0), default=0.0)
    tx = optax.chain(
        optax.scale_by_adam(),
        wd.masked_decay(0.1, wd.everything),
        wd.scale_per_leaf(frozen),
        optax.scale_by_learning_rate(0.1),
    )
    params = helpers.run(tx, UPDATES, helpers.noise(UPDATES, 2))[0][-1]
    helpers.assert_same(params["body"], UPDATES["body"])
    assert np.all(params["head"]["kernel"] != UPDATES["head"]["kernel"])


def test_the_factor_can_be_injected_and_set() -> None:
    inject: Any = optax.inject_hyperparams(wd.scale_per_leaf)
    tx = inject(multiplier=0.5)
    state = tx.init({"w": jnp.ones(2)})
    assert tx.update({"w": jnp.ones(2)}, state)[0]["w"].tolist() == [0.5, 0.5]
    state.hyperparams["multiplier"] = jnp.asarray(0.25)
    assert tx.update({"w": jnp.ones(2)}, state)[0]["w"].tolist() == [0.25, 0.25]


# ---------------------------------------------------------------------- what is refused


def test_no_factors_are_refused() -> None:
    nothing: Any = None
    text = (
        "scale_per_leaf takes factors, got None; write layerwise(0.75, layer_of), or "
        "first_match((rule, 0.5), default=1.0)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        wd.scale_per_leaf(nothing)


@pytest.mark.parametrize(
    "given",
    [wd.standard, wd.named("bias"), wd.first_match((wd.everything, True)), "0.5", True],
    ids=helpers.label,
)
def test_a_choice_of_leaves_is_no_factor(given: Any) -> None:
    with pytest.raises(TypeError, match="^multiplier takes factors, got "):
        wd.scale_per_leaf(given)


@pytest.mark.parametrize("number", [-0.5, float("nan"), float("inf"), -1])
def test_a_number_is_finite_and_0_or_more(number: float) -> None:
    with pytest.raises(ValueError, match="^the multiplier is .*; factors are finite"):
        wd.scale_per_leaf(number)


@pytest.mark.parametrize(
    ("multiplier", "text"),
    [
        ({"body": 0.5}, "^multiplier is a tree that has no entry for 'head/kernel'"),
        ({"body": 1, "head": 1, "x": 1}, "^multiplier is a tree with an entry for 'x'"),
        (
            {"body": 1, "head": -1},
            "^the multiplier is -1 at 'head/kernel'; factors are",
        ),
        (
            {"body": 1, "head": np.ones(2)},
            r"^the multiplier has shape \(2,\) at 'head/kernel', where the leaf has",
        ),
        (wd.first_match((wd.contains("heads"), 0.5), default=1.0), "matches no leaf"),
        (wd.first_match((wd.contains("body"), 0.5)), "^no row of the table matches"),
    ],
    ids=["missing", "left over", "negative", "rank", "name", "no row"],
)
def test_factors_have_to_fit_the_updates(multiplier: Any, text: str) -> None:
    tx = wd.scale_per_leaf(multiplier)
    state = tx.init(UPDATES)  # not before
    with pytest.raises(ValueError, match=text):
        tx.update(UPDATES, state)


def test_labels_are_no_factors() -> None:
    with pytest.raises(TypeError, match="^the multiplier is 'a' at 'body/bias'; write"):
        scaled(wd.first_match((wd.everything, "a")), UPDATES)
