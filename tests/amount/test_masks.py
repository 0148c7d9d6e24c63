# SPDX-License-Identifier: Apache-2.0
"""The arguments `mask` and `multiplier` in all their forms, and what is refused."""

import fractions
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import forms
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import core, nnx

import optax_wd as wd

PARAMS = {
    "attn": {"bias": jnp.ones((2, 3)), "kernel": jnp.ones((4, 2, 3))},
    "mlp": {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))},
}
KERNELS = {
    "attn": {"bias": False, "kernel": True},
    "mlp": {"bias": False, "kernel": True},
}


def decayed(mask: Any, params: Any, multiplier: Any = None) -> dict[str, Any]:
    """What a decay of rate 1 adds to updates of zero; None where it returns them."""
    tx = wd.masked_decay(1.0, mask, multiplier=multiplier)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = helpers.once(tx, zeros, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    before, after = forms.answers(zeros), forms.answers(updates)
    return {
        path: None if after[path] is u else after[path] for path, u in before.items()
    }


def chosen(mask: Any, params: Any) -> set[str]:
    return {path for path, u in decayed(mask, params).items() if u is not None}


def factors(multiplier: Any, params: Any = PARAMS) -> dict[str, Any]:
    """The factor of each leaf that all of its elements have; None where untouched."""
    added = decayed(wd.everything, params, multiplier)
    values = {k: u if u is None else set(np.ravel(u)) for k, u in added.items()}
    return {k: v if v is None else float(*v) for k, v in values.items()}


def equinox_model() -> Any:
    """Two layers of zeros, their activations, and a `__call__`."""
    abstract = eqx.filter_eval_shape(eqx.nn.MLP, 2, 2, 3, 1, key=jax.random.key(0))
    arrays, rest = eqx.partition(abstract, lambda x: hasattr(x, "dtype"))
    return eqx.combine(forms.zeros(arrays), rest)


MASKS = {
    "rule": wd.named("kernel"),
    "table of bools": wd.first_match((wd.named("kernel"), True), default=False),
    "function": lambda tree: wd.named("kernel")(tree),
    "tree": KERNELS,
    "tree of np.bool_": jax.tree.map(np.bool_, KERNELS),
    "FrozenDict": core.freeze(KERNELS),
    "boxes": jax.tree.map(lambda x: nn.Partitioned(x, ()), KERNELS),
    "State": nnx.State(KERNELS),
    "State of Variables": nnx.State(jax.tree.map(nnx.Param, KERNELS)),
    "keyed by whole paths": {("attn", "kernel"): True, ("mlp", "kernel"): True}
    | {("attn", "bias"): False, ("mlp", "bias"): False},
}
FORMS = {
    "dict": PARAMS,
    "FrozenDict": core.freeze(PARAMS),
    "boxes": jax.tree.map(lambda x: nn.Partitioned(x, (None,) * x.ndim), PARAMS),
    "pure State": nnx.State(PARAMS),
    "State of Param": nnx.State(jax.tree.map(nnx.Param, PARAMS)),
}


@pytest.mark.parametrize("params", FORMS)
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_of_any_form_fits_parameters_of_any_form(mask: str, params: str) -> None:
    assert chosen(MASKS[mask], FORMS[params]) == {"attn/kernel", "mlp/kernel"}


def test_a_function_is_called_with_the_tree() -> None:
    seen = []

    def mask(tree: Any) -> Any:
        seen.append(tree)
        return jax.tree.map(lambda x: x.ndim > 2, tree)

    assert chosen(mask, PARAMS) == {"attn/kernel"}
    assert seen and all(tree is PARAMS for tree in seen)


def test_a_function_may_return_a_prefix_or_another_container() -> None:
    assert chosen(lambda tree: True, PARAMS) == chosen(wd.everything, PARAMS)
    assert chosen(lambda tree: core.freeze(KERNELS), PARAMS) == {
        "attn/kernel",
        "mlp/kernel",
    }


@pytest.mark.parametrize(
    "prefix",
    [
        {"attn": True, "mlp": False},
        {"attn": np.bool_(True), "mlp": np.bool_(False)},
        {"attn": True, "mlp": {"bias": False, "kernel": False}},
        core.freeze({"attn": True, "mlp": False}),
    ],
    ids=helpers.label,
)
@pytest.mark.parametrize("params", FORMS)
def test_a_prefix_of_the_tree_holds_for_all_below_it(prefix: Any, params: str) -> None:
    assert chosen(prefix, FORMS[params]) == {"attn/bias", "attn/kernel"}


@pytest.mark.parametrize("kind", [bool, np.bool_])
def test_one_bool_holds_for_all_leaves(kind: Callable[[bool], Any]) -> None:
    assert chosen(kind(True), PARAMS) == chosen(wd.everything, PARAMS)
    assert chosen(kind(False), PARAMS) == set()


def test_an_equinox_tree_of_bools_with_a_call_is_a_tree() -> None:
    model = equinox_model()
    params = eqx.filter(model, eqx.is_inexact_array)
    mask = wd.named("weight")(model)
    assert callable(mask)
    assert chosen(mask, params) == {"layers/0/weight", "layers/1/weight"}
    assert chosen(wd.named("weight")(params), params) == chosen(mask, params)
    of_numpy = jax.tree.map(np.bool_, mask)
    assert chosen(of_numpy, params) == chosen(mask, params)


def test_an_equinox_model_with_what_is_no_array_is_described_as_its_arrays() -> None:
    model = equinox_model()
    mask = wd.standard(model)
    assert all(type(leaf) is bool for leaf in jax.tree.leaves(mask))
    for given in (mask, wd.standard):
        rows = {row.path: row.decays for row in wd.describe(given, model).rows}
        assert rows == {
            "layers/0/weight": True,
            "layers/0/bias": False,
            "layers/1/weight": True,
            "layers/1/bias": False,
        }


def test_a_named_tuple_keeps_its_field_named_value() -> None:
    class Projections(NamedTuple):
        query: Any
        key: Any
        value: Any

    params = {"attn": Projections(*[jnp.ones((2, 2)) for _ in range(3)])}
    tx = wd.masked_decay(1.0, wd.named("value"))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = helpers.once(tx, zeros, params)
    assert updates["attn"].query is zeros["attn"].query
    assert float(updates["attn"].value[0, 0]) == 1.0
    tree = {"attn": Projections(False, True, False)}
    updates = helpers.once(wd.masked_decay(1.0, tree), zeros, params)
    assert updates["attn"].value is zeros["attn"].value
    assert float(updates["attn"].key[0, 0]) == 1.0


@pytest.mark.parametrize("hole", [None, optax.MaskedNode()], ids=helpers.label)
@pytest.mark.parametrize(
    "mask",
    [KERNELS, {"attn": True, "mlp": False}, wd.named("kernel") | wd.named("bias")],
)
def test_a_mask_of_the_whole_fits_a_part_of_the_tree(mask: Any, hole: Any) -> None:
    params = {"attn": PARAMS["attn"], "mlp": hole}
    tx = wd.masked_decay(1.0, mask)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = helpers.once(tx, zeros, params)
    assert float(updates["attn"]["kernel"][0, 0, 0]) == 1.0
    assert updates["mlp"] == hole


def test_a_mask_inside_of_partition_may_be_that_of_the_whole_tree() -> None:
    tx = optax.partition(
        {"a": wd.masked_decay(1.0, KERNELS), "b": optax.identity()},
        {"attn": "a", "mlp": "b"},
    )
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates = helpers.once(tx, zeros, PARAMS)
    assert jax.tree.map(lambda u: float(u.sum()), updates) == {
        "attn": {"bias": 0.0, "kernel": 24.0},
        "mlp": {"bias": 0.0, "kernel": 0.0},
    }


@pytest.mark.parametrize(
    ("mask", "path"),
    [
        ({"attn": True}, "mlp/bias"),
        ({"attn": True, "mlp": {"kernel": True}}, "mlp/bias"),
        ({"attn": True, "mlp": {"kernel": True, "bias": None}}, "mlp/bias"),
        ({}, "attn/bias"),
        (lambda tree: {"attn": True}, "mlp/bias"),
    ],
    ids=helpers.label,
)
def test_a_mask_without_an_entry_for_a_leaf_is_an_error(mask: Any, path: str) -> None:
    with pytest.raises(
        ValueError,
        match=f"^mask is a tree that has no entry for '{path}'; make it with a rule, "
        r"which answers for every tree: rule\(params\), or with mask_of and the wrt= "
        "of the optimizer$",
    ):
        decayed(mask, PARAMS)


@pytest.mark.parametrize(
    ("mask", "path"),
    [
        ({**KERNELS, "head": True}, "head"),
        ({"attn": True, "mlp": {**KERNELS["mlp"], "gate": {"w": True}}}, "mlp/gate/w"),
        (lambda tree: {**KERNELS, "head": True}, "head"),
    ],
    ids=helpers.label,
)
def test_a_mask_with_an_entry_too_many_is_an_error(mask: Any, path: str) -> None:
    with pytest.raises(
        ValueError,
        match=f"^mask is a tree with an entry for '{path}', where the parameters have "
        r"no leaf; make it with a rule: rule\(params\)$",
    ):
        decayed(mask, PARAMS)


def test_none_as_a_mask_is_refused_with_what_to_write() -> None:
    with pytest.raises(
        TypeError,
        match="^mask=None is ambiguous; write mask=everything for all parameters or "
        "mask=standard for weight matrices only$",
    ):
        wd.masked_decay(0.1, None)


@pytest.mark.parametrize("text", [".*/kernel", "kernel", ""])
def test_a_string_as_a_mask_is_refused_with_the_rules_to_write(text: str) -> None:
    with pytest.raises(TypeError) as caught:
        wd.masked_decay(0.1, text)
    assert str(caught.value) == (
        f"mask is the string {text!r}, which as a truth value would mean every leaf; "
        f"write regex({text!r}), path({text!r}) or named({text!r})"
    )


@pytest.mark.parametrize(
    "mask",
    [
        0,
        1,
        0.1,
        np.float32(0.1),
        np.int64(1),
        jnp.ones(2),
        jnp.asarray(True),
        np.ones(2),
    ],
    ids=helpers.label,
)
def test_a_number_or_array_as_a_mask_is_refused(mask: Any) -> None:
    with pytest.raises(
        TypeError,
        match="; a mask is a rule, a function or a tree of bools, and comes right "
        "after weight_decay$",
    ):
        wd.masked_decay(0.1, mask)


PLACES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "decay_along": (
        lambda mask: wd.decay_along(lambda u, p: p, 0.1, mask),
        "right after weight_decay",
    ),
    "keep_norms": (wd.keep_norms, "first; the free steps are after="),
    "max_norms": (lambda mask: wd.max_norms(0.1, mask), "right after limit"),
    "pin_norms": (lambda mask: wd.pin_norms(0.1, mask), "right after learning_rate"),
    "describe": (lambda mask: wd.describe(mask, PARAMS), "first, before the param"),
    "alpha_decay_factors": (
        lambda mask: wd.alpha_decay_factors(PARAMS, mask),
        "right after the parameters",
    ),
}


@pytest.mark.parametrize(("ask", "place"), PLACES.values(), ids=PLACES)
def test_a_number_as_a_mask_is_told_where_the_mask_comes(
    ask: Callable[[Any], Any], place: str
) -> None:
    with pytest.raises(TypeError, match=f"^mask is 5; .* and comes {place}"):
        ask(5)


def test_swapped_arguments_are_refused() -> None:
    swapped: Any = wd.standard
    for make in (wd.masked_decay, wd.cautious_weight_decay):
        with pytest.raises(
            TypeError,
            match="^weight_decay got the rule standard, where a number or a schedule "
            "belongs; the mask comes right after it$",
        ):
            make(swapped, 0.1)


ASKED: dict[str, Callable[[Any], Any]] = {
    "masked_decay": lambda mask: wd.masked_decay(0.1, mask),
    "cautious_weight_decay": lambda mask: wd.cautious_weight_decay(0.1, mask),
    "describe": lambda mask: wd.describe(mask, PARAMS),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("name", ["timm", "nanogpt", "big_vision", "open_clip"])
def test_a_recipe_that_was_not_called_is_refused(
    ask: Callable[[Any], Any], name: str
) -> None:
    recipe = getattr(wd.recipes, name)
    with pytest.raises(
        TypeError,
        match=rf"^mask is the function recipes\.{name}; write recipes\.{name}\(\)$",
    ):
        ask(recipe)
    ask(recipe())
    ask(lambda params: recipe()(params))


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(
    "tx",
    [optax.sgd(0.1), optax.identity(), wd.adamw(0.1, wd.masked_decay(0.1))],
    ids=["sgd", "identity", "adamw"],
)
def test_an_optimizer_as_a_mask_is_refused(
    ask: Callable[[Any], Any], tx: optax.GradientTransformation
) -> None:
    with pytest.raises(
        TypeError,
        match=r"^mask is the optimizer GradientTransformation.*; to see what an "
        r"optimizer does write assert_decays\(tx, params, mask\)$",
    ):
        ask(tx)


@pytest.mark.parametrize(
    "table",
    [
        wd.first_match((wd.standard, 1.0), default=0.0),
        wd.first_match((wd.standard, "decay"), default="no_decay"),
    ],
    ids=helpers.label,
)
def test_a_table_of_factors_or_labels_as_a_mask_is_refused(table: Any) -> None:
    with pytest.raises(
        TypeError,
        match=r"^mask is first_match\(.*, a table of factors or labels; pass factors "
        "as multiplier=, and a rule such as `standard` as the mask$",
    ):
        wd.masked_decay(0.1, table)


@pytest.mark.parametrize(
    ("leaf", "shown"),
    [
        ("no_decay", "'no_decay'"),
        (1, "1"),
        (0.0, "0.0"),
        (jnp.asarray(True), "Array"),
        (np.asarray(True), "array"),
        (wd.standard, "standard"),
        (print, "<built-in function print>"),
    ],
    ids=helpers.label,
)
def test_a_leaf_that_is_no_bool_is_refused_with_its_path(leaf: Any, shown: str) -> None:
    tree = {"attn": {"kernel": True, "bias": leaf}, "mlp": False}
    message = (
        rf"^the mask is {shown}.* at 'attn/bias', where a bool belongs; write a rule "
        r"such as `standard` or named\('kernel'\), or a tree of bools$"
    )
    with pytest.raises(TypeError, match=message):
        wd.masked_decay(0.1, tree)
    with pytest.raises(TypeError, match=message):
        decayed(lambda params: tree, PARAMS)
    with pytest.raises(TypeError, match=message):
        wd.describe(tree, PARAMS)


@pytest.mark.parametrize("answer", ["kernel", 1, jnp.asarray(True)], ids=helpers.label)
def test_a_function_that_returns_no_tree_of_bools_is_refused(answer: Any) -> None:
    with pytest.raises(
        TypeError, match="^the mask is .* as a whole, where a bool belon"
    ):
        decayed(lambda params: answer, PARAMS)


def test_a_wrong_mask_is_refused_before_there_are_parameters() -> None:
    wrong: list[Any] = [None, "a", 1, {"a": "b"}, {"a": 1.0}]
    for mask in wrong:
        for make in (
            wd.masked_decay,
            wd.cautious_weight_decay,
            lambda rate, mask: wd.decay_along(lambda u, p: p, rate, mask),
        ):
            with pytest.raises(TypeError, match="mask"):
                make(0.1, mask)


def test_leaves_that_are_not_inexact_never_decay_whatever_the_mask() -> None:
    params = {
        "kernel": jnp.ones((2, 2)),
        "table": jnp.full((2, 2), 3, jnp.int32),
        "flag": jnp.asarray(True),
    }
    for mask in (wd.everything, True, dict.fromkeys(params, True), ~wd.nothing):
        assert chosen(mask, params) == {"kernel"}
        rows = {row.path: row.decays for row in wd.describe(mask, params).rows}
        assert rows == {"kernel": True, "table": False, "flag": False}


# Multipliers.


@pytest.mark.parametrize(
    "number",
    [
        0.5,
        np.float32(0.5),
        np.float64(0.5),
        np.asarray(0.5),
        jnp.asarray(0.5),
        fractions.Fraction(1, 2),
    ],
    ids=helpers.label,
)
def test_one_number_multiplies_all_leaves(number: Any) -> None:
    assert set(factors(number).values()) == {0.5}
    assert set(factors({"attn": number, "mlp": number}).values()) == {0.5}


def test_without_a_multiplier_the_factor_is_one() -> None:
    assert set(factors(None).values()) == {1.0}
    assert factors(1) == factors(1.0) == factors(None)


@pytest.mark.parametrize(
    "multiplier",
    [
        {"attn": 2.0, "mlp": {"bias": 0.0, "kernel": 3}},
        core.freeze({"attn": 2.0, "mlp": {"bias": 0, "kernel": 3.0}}),
        {"attn": {"bias": 2, "kernel": 2}, "mlp": {"bias": 0, "kernel": 3}},
        wd.first_match(
            (wd.contains("attn"), 2.0), (wd.named("bias"), 0.0), default=3.0
        ),
        lambda tree: {"attn": 2.0, "mlp": {"bias": 0.0, "kernel": 3.0}},
        {
            "attn": {"bias": np.full((1, 1), 2.0), "kernel": jnp.full((4, 2, 3), 2.0)},
            "mlp": {"bias": np.zeros(3), "kernel": np.full((2, 1), 3)},
        },
    ],
    ids=["prefix", "FrozenDict", "tree", "table", "function", "arrays"],
)
@pytest.mark.parametrize("params", FORMS)
def test_a_multiplier_of_any_form_fits_parameters_of_any_form(
    multiplier: Any, params: str
) -> None:
    assert factors(multiplier, FORMS[params]) == {
        "attn/bias": 2.0,
        "attn/kernel": 2.0,
        "mlp/bias": None,
        "mlp/kernel": 3.0,
    }


@pytest.mark.parametrize("library", [np, jnp], ids=["numpy", "jax"])
def test_an_array_gives_each_layer_of_a_stack_its_factor(library: Any) -> None:
    params = {"blocks": {"kernel": jnp.ones((3, 2, 2)), "scale": jnp.ones((3, 2))}}
    by_layer = library.asarray([0.25, 0.5, 1.0])
    added = decayed(
        wd.everything,
        params,
        {"blocks": {"kernel": by_layer[:, None, None], "scale": by_layer[:, None]}},
    )
    np.testing.assert_array_equal(added["blocks/kernel"][:, 1, 1], [0.25, 0.5, 1.0])
    np.testing.assert_array_equal(added["blocks/scale"][:, 1], [0.25, 0.5, 1.0])


def test_an_array_of_the_whole_shape_gives_each_element_its_factor() -> None:
    params = {"kernel": jnp.ones((2, 2))}
    array = np.asarray([[0.0, 1.0], [2.0, 3.0]])
    added = decayed(wd.everything, params, {"kernel": array})
    np.testing.assert_array_equal(added["kernel"], array)


def test_zero_on_a_part_of_a_leaf_does_nothing_there_even_to_infinity() -> None:
    params = {"kernel": jnp.asarray([[jnp.inf, 1.0], [jnp.nan, 2.0]])}
    added = decayed(wd.everything, params, {"kernel": np.asarray([[0.0, 1.0]])})
    np.testing.assert_array_equal(added["kernel"], [[0.0, 1.0], [0.0, 2.0]])


@pytest.mark.parametrize(
    "zero",
    [0, 0.0, -0.0, np.float32(0), jnp.zeros(()), np.zeros((1, 1))],
    ids=helpers.label,
)
def test_a_factor_of_zero_leaves_the_update_untouched(zero: Any) -> None:
    params = {"kernel": jnp.full((2, 2), jnp.inf), "other": jnp.ones((2, 2))}
    added = decayed(wd.everything, params, {"kernel": zero, "other": 1.0})
    assert added["kernel"] is None
    assert added["other"] is not None


def test_zero_for_all_leaves_is_the_identity() -> None:
    assert set(factors(0.0).values()) == {None}
    assert set(factors(wd.first_match((wd.everything, 0))).values()) == {None}


def test_factors_count_on_the_leaves_of_the_mask_only() -> None:
    added = decayed(KERNELS, PARAMS, {"attn": 2.0, "mlp": 3.0})
    assert {path for path, u in added.items() if u is not None} == {
        "attn/kernel",
        "mlp/kernel",
    }
    assert float(added["mlp/kernel"][0, 0]) == 3.0


def test_a_traced_multiplier_is_multiplied_with() -> None:
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def update(column: jax.Array, number: jax.Array) -> Any:
        tree = {"kernel": column, "bias": number}
        tx = wd.masked_decay(1.0, wd.everything, multiplier=tree)
        return helpers.once(tx, zeros, params)

    updates = update(jnp.asarray([[0.5], [2.0]]), jnp.asarray(3.0))
    np.testing.assert_array_equal(updates["kernel"], [[0.5, 0.5], [2.0, 2.0]])
    np.testing.assert_array_equal(updates["bias"], [3.0, 3.0])


@pytest.mark.parametrize(
    ("value", "shape", "at", "leaf"),
    [
        (np.ones(4), (4,), "attn/kernel", (4, 2, 3)),
        (np.ones(3), (3,), "attn/kernel", (4, 2, 3)),
        (jnp.ones((4, 1)), (4, 1), "attn/kernel", (4, 2, 3)),
        (np.ones((4, 1, 2)), (4, 1, 2), "attn/kernel", (4, 2, 3)),
        (np.ones((3, 1, 1)), (3, 1, 1), "attn/kernel", (4, 2, 3)),
        (np.ones((1, 4, 2, 3)), (1, 4, 2, 3), "attn/kernel", (4, 2, 3)),
        (np.ones((0, 1, 1)), (0, 1, 1), "attn/kernel", (4, 2, 3)),
    ],
)
def test_an_array_that_does_not_have_the_rank_and_axes_of_its_leaf_is_refused(
    value: Any, shape: tuple[int, ...], at: str, leaf: tuple[int, ...]
) -> None:
    tree = {"attn": {"bias": 1.0, "kernel": value}, "mlp": 1.0}
    with pytest.raises(ValueError) as caught:
        decayed(wd.everything, PARAMS, tree)
    said = f"the multiplier has shape {shape} at {at!r}, where the leaf has {leaf}; "
    assert str(caught.value).startswith(said + "give it the rank of the leaf, with 1 ")


def test_a_bare_vector_is_refused_even_where_it_would_broadcast() -> None:
    params = {"blocks": jnp.ones((3, 2, 3))}
    with pytest.raises(
        ValueError, match=r"shape \(3,\) at 'blocks', where the leaf has"
    ):
        decayed(wd.everything, params, {"blocks": np.ones(3)})
    with pytest.raises(
        ValueError, match=r"shape \(3,\) at 'blocks', where the leaf has"
    ):
        decayed(wd.everything, params, np.ones(3))


@pytest.mark.parametrize(
    "number", [-1, -0.5, np.float32(-1), np.nan, np.inf, -np.inf], ids=helpers.label
)
def test_negative_and_not_finite_numbers_are_refused_at_once(number: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^the multiplier is .*; factors are finite and 0 or more$"
    ):
        wd.masked_decay(0.1, multiplier=number)


@pytest.mark.parametrize(
    "value",
    [
        -1.0,
        np.nan,
        jnp.asarray(-1.0),
        np.asarray([[[1.0]], [[1.0]], [[1.0]], [[-1e-9]]]),
        jnp.full((4, 1, 1), jnp.inf),
    ],
)
def test_negative_and_not_finite_factors_in_a_tree_are_refused_with_their_path(
    value: Any,
) -> None:
    tree = {"attn": {"bias": 1.0, "kernel": value}, "mlp": 1.0}
    for multiplier in (tree, lambda params: tree):
        with pytest.raises(
            ValueError,
            match=r"(?s)^the multiplier is .* at 'attn/kernel'; factors are finite and "
            "0 or more$",
        ):
            decayed(wd.everything, PARAMS, multiplier)
    if isinstance(value, float):
        table = wd.first_match((wd.path("attn/kernel"), value), default=1.0)
        with pytest.raises(ValueError, match="at 'attn/kernel'; factors are finite"):
            decayed(wd.everything, PARAMS, table)


@pytest.mark.parametrize(
    "multiplier",
    [
        True,
        "2.0",
        wd.named("kernel"),
        wd.first_match((wd.named("kernel"), True), default=False),
    ],
    ids=helpers.label,
)
def test_a_rule_string_or_bool_as_a_multiplier_is_refused(multiplier: Any) -> None:
    with pytest.raises(
        TypeError,
        match=r"^multiplier takes factors, got .*; pass a choice of leaves as the "
        r"mask, or factors as first_match\(\(rule, 0\.5\), default=1\.0\)$",
    ):
        wd.masked_decay(0.1, multiplier=multiplier)


@pytest.mark.parametrize(
    "value",
    [
        "a",
        True,
        np.bool_(True),
        1j,
        print,
        jnp.full((4, 1, 1), 1j),
        np.full((4, 1, 1), 1j),
        np.full((4, 1, 1), "a"),
    ],
)
def test_an_entry_that_is_no_number_is_refused_with_its_path(value: Any) -> None:
    tree = {"attn": {"bias": 1.0, "kernel": value}, "mlp": 1.0}
    with pytest.raises(
        TypeError,
        match=r"(?s)^the multiplier is .* at 'attn/kernel'; write a number, or an "
        "array of the rank of the leaf$",
    ):
        decayed(wd.everything, PARAMS, tree)


@pytest.mark.parametrize(
    "layers",
    [
        wd.numbered_layers("blocks/#", 12),
        wd.ordered_layers(wd.contains("attn"), wd.everything),
    ],
    ids=helpers.label,
)
@pytest.mark.parametrize(
    "ask",
    [
        lambda multiplier: wd.masked_decay(0.1, multiplier=multiplier),
        lambda multiplier: wd.cautious_weight_decay(0.1, multiplier=multiplier),
        lambda multiplier: wd.scale_per_leaf(multiplier),
        lambda multiplier: wd.describe(wd.standard, PARAMS, multiplier=multiplier),
    ],
    ids=["masked_decay", "cautious_weight_decay", "scale_per_leaf", "describe"],
)
def test_layers_as_a_multiplier_are_refused(
    ask: Callable[[Any], Any], layers: Any
) -> None:
    text = (
        f"multiplier takes factors, got {layers!r}, which says which layer; write "
        "layerwise(0.75, layer_of)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        ask(layers)


def test_a_table_of_labels_as_a_multiplier_is_refused() -> None:
    table: Any = wd.first_match((wd.named("kernel"), "a"), default="b")
    with pytest.raises(
        TypeError, match="^the multiplier is 'b' at 'attn/bias'; write a"
    ):
        decayed(wd.everything, PARAMS, table)


def test_a_multiplier_that_does_not_fit_the_tree_is_an_error() -> None:
    with pytest.raises(
        ValueError, match="^multiplier is a tree that has no entry for 'mlp/bias'; make"
    ):
        decayed(wd.everything, PARAMS, {"attn": 1.0})
    with pytest.raises(
        ValueError, match="^multiplier is a tree with an entry for 'head', where the pa"
    ):
        decayed(wd.everything, PARAMS, {"attn": 1.0, "mlp": 1.0, "head": 1.0})


def test_a_name_in_a_mask_or_multiplier_has_to_match_some_leaf() -> None:
    with pytest.raises(ValueError, match=r"^named\('kernels'\) matches no leaf"):
        decayed(wd.named("kernels"), PARAMS)
    table = wd.first_match((wd.contains("head"), 3.0), default=1.0)
    with pytest.raises(ValueError, match=r"^contains\('head'\) matches no leaf"):
        decayed(wd.everything, PARAMS, table)
    for given in ((wd.named("kernels"), None), (wd.everything, table)):
        shown = wd.describe(given[0], PARAMS, multiplier=given[1])
        assert any("matches no leaf" in text for text in shown.warnings)
    partial = {**PARAMS, "mlp": None}
    assert set(factors(table, partial).values()) == {1.0}


def test_a_mask_is_not_asked_in_init() -> None:
    tx = wd.masked_decay(0.1, wd.named("kernels"), multiplier={"nowhere": 1.0})
    state: Any = tx.init({"kernel": jnp.ones(2)})
    assert state.memory == ()
    optax.tree_map_params(tx, lambda x: x, state)


def recorder(seen: list[str]) -> wd.Rule:
    """A rule that chooses every leaf and writes down which it was asked about."""

    def predicate(leaf: wd.Leaf) -> bool:
        seen.append(leaf.where)
        return True

    return wd.satisfies(predicate, "recorded")


@pytest.mark.parametrize(
    ("mask", "asked"),
    [
        (wd.everything, ["attn/bias", "attn/kernel", "mlp/bias", "mlp/kernel"]),
        (wd.named("kernel"), ["attn/kernel", "mlp/kernel"]),
        (KERNELS, ["attn/kernel", "mlp/kernel"]),
        ({"attn": True, "mlp": False}, ["attn/bias", "attn/kernel"]),
        (lambda tree: KERNELS, ["attn/kernel", "mlp/kernel"]),
        (wd.nothing, []),
    ],
    ids=["everything", "rule", "tree", "prefix", "function", "nothing"],
)
def test_a_table_is_asked_about_the_chosen_leaves_only(
    mask: Any, asked: list[str]
) -> None:
    seen: list[str] = []
    added = decayed(mask, PARAMS, wd.first_match((recorder(seen), 2.0)))
    assert seen == asked
    assert [path for path, u in added.items() if u is not None] == asked


def test_a_table_needs_no_row_for_leaves_that_do_not_decay() -> None:
    table = wd.first_match((wd.named("kernel"), 2.0))
    added = decayed(wd.named("kernel"), PARAMS, table)
    assert added["attn/bias"] is None and float(jnp.max(added["mlp/kernel"])) == 2.0
    with pytest.raises(ValueError, match="^no row of the table matches 'attn/bias'; "):
        decayed(wd.everything, PARAMS, table)


def test_factors_by_layer_are_made_of_all_leaves_and_asked_of_the_chosen() -> None:
    ids = {"attn/kernel": 0, "mlp/bias": 1, "mlp/kernel": 1}
    by_layer = wd.layerwise(0.5, lambda leaf: ids.get(leaf.where))
    added = decayed(wd.path("attn/kernel"), PARAMS, by_layer)
    assert set(np.ravel(added["attn/kernel"])) == {0.5}  # the top does not decay
    with pytest.raises(ValueError, match="^'attn/bias' has no layer; "):
        decayed(wd.contains("attn"), PARAMS, by_layer)


def test_a_name_in_a_multiplier_may_belong_to_a_leaf_that_does_not_decay() -> None:
    table = wd.first_match((wd.named("bias"), 3.0), default=2.0)
    added = decayed(wd.named("kernel"), PARAMS, table)
    assert set(np.ravel(added["mlp/kernel"])) == {2.0} and added["mlp/bias"] is None


def test_rules_and_tables_are_asked_about_inexact_leaves_only() -> None:
    seen: list[str] = []
    decayed(recorder(seen), {**PARAMS, "count": jnp.asarray([3])})
    assert seen == ["attn/bias", "attn/kernel", "mlp/bias", "mlp/kernel"]
    seen.clear()
    table = wd.first_match((recorder(seen), 2.0))
    decayed(wd.everything, {"count": jnp.asarray([3]), "w": jnp.ones(2)}, table)
    assert seen == ["w"]


@pytest.mark.parametrize("make", [wd.masked_decay, wd.cautious_weight_decay])
def test_layers_are_no_mask_and_optimizers_and_recipes_no_multiplier(make: Any) -> None:
    layers = wd.numbered_layers("block_#", 3)
    with pytest.raises(
        TypeError, match=r"mask is numbered_layers\('block_#', 3\), whi"
    ):
        make(0.1, layers)
    with pytest.raises(TypeError, match="multiplier takes factors, got the optimizer"):
        make(0.1, multiplier=wd.masked_decay(0.1))
    recipe = wd.recipes.big_vision_multiplier
    with pytest.raises(
        TypeError, match=r"multiplier is the function recipes.big_visio"
    ):
        make(0.1, multiplier=recipe)


def _updated(make: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Of a transformation by its `stacked=`: what its first update does to a tree."""

    def ask(stacked: Any, params: Any) -> Any:
        extra: dict[str, Any] = {"grad": params, "fisher": params}
        tx = optax.with_extra_args_support(make(stacked=stacked))
        return tx.update(params, tx.init(params), params, **extra)

    return ask


def _decay(make: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    return _updated(lambda stacked: make(0.1, wd.everything, stacked=stacked))


def _ready(make: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    return _updated(lambda stacked: make(0.1, optax.identity(), stacked=stacked))


def _no_matrices(make: Callable[..., Any], stacked: Any) -> Any:
    return make(0.1, optax.identity(), matrices=wd.nothing, stacked=stacked)


STACKED: dict[str, Callable[[Any, Any], Any]] = {
    "alpha_decay_factors": lambda s, p: wd.alpha_decay_factors(p, stacked=s),
    "constrained_weight_decay": _updated(
        lambda stacked: wd.constrained_weight_decay(0.1, limit=1.0, stacked=stacked)
    ),
    "fadam": _ready(wd.fadam),
    "keep_norms": _updated(wd.keep_norms),
    "layerwise": lambda s, p: wd.layerwise(0.5, lambda leaf: 0, stacked=s)(p),
    "max_norms": _decay(wd.max_norms),
    "min_ndim": lambda s, p: wd.min_ndim(2, stacked=s)(p),
    "natural_weight_decay": _decay(wd.natural_weight_decay),
    "norm_targeted_weight_decay": _decay(wd.norm_targeted_weight_decay),
    "novograd": _ready(wd.novograd),
    "pin_norms": _decay(wd.pin_norms),
    "selective_weight_decay": _decay(wd.selective_weight_decay),
    "standard_with": lambda s, p: wd.standard_with(stacked=s)(p),
    "tensor_gated_weight_decay": _decay(wd.controls.tensor_gated_weight_decay),
    "muon": lambda s, p: _no_matrices(wd.muon, s).init(p),
    "normuon": lambda s, p: _no_matrices(wd.normuon, s).init(p),
}
LAYERS: Any = {"blocks": {"kernel": jnp.ones((2, 3, 4))}, "head": {"bias": jnp.ones(2)}}


def test_everything_that_takes_stacked_axes_is_asked_below() -> None:
    surface = vars(wd) | vars(wd.controls)
    public = {k: given for k, given in surface.items() if inspect.isfunction(given)}
    takes = {k for k in public if "stacked" in inspect.signature(public[k]).parameters}
    assert takes - {"describe_matrices"} == STACKED.keys()  # it warns, below


def test_describe_matrices_warns_of_a_stacked_rule_that_matches_nothing() -> None:
    shown = wd.describe_matrices(LAYERS, stacked=wd.contains("block"))
    assert "contains('block') matches no leaf; the nearest are 'blocks'" in str(shown)


@pytest.mark.parametrize("name", STACKED)
def test_a_stacked_rule_that_matches_nothing_is_an_error_with_a_hint(name: str) -> None:
    misspelt = wd.contains("block")
    for stacked in (misspelt, ((wd.contains("blocks"), 0), (misspelt, 0))):
        with pytest.raises(ValueError, match="'block'. matches no leaf.*'blocks'"):
            STACKED[name](stacked, LAYERS)
    STACKED[name](wd.contains("blocks"), LAYERS)
    STACKED[name](wd.optional(misspelt) & wd.min_ndim(3), LAYERS)


@pytest.mark.parametrize("name", [n for n in STACKED if n.endswith(("norms", "decay"))])
def test_a_stacked_rule_may_match_nothing_in_a_part_of_a_tree(name: str) -> None:
    partial = {**LAYERS, "experts": optax.MaskedNode()}
    assert STACKED[name](wd.contains("experts"), partial) is not None
