# SPDX-License-Identifier: Apache-2.0
"""Tables: the first row that matches gives a bool, a factor or a label."""

import copy
import pickle
from typing import Any

import forms
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_wd as wd


def leaf(path: str, *shape: int, dtype: str = "float32") -> wd.Leaf:
    return wd.Leaf(tuple(path.split("/")), shape, dtype)


TREE = {
    "body": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
}


def test_the_first_row_that_matches_gives_the_value() -> None:
    table = wd.first_match(
        (wd.named("bias"), 0.0), (wd.contains("head"), 3.0), default=1.0
    )
    assert table(TREE) == {
        "body": {"kernel": 1.0, "bias": 0.0},
        "head": {"kernel": 3.0, "bias": 0.0},
    }


def test_the_order_of_rows_matters() -> None:
    rows = (wd.named("bias"), 0.0), (wd.contains("head"), 3.0)
    assert wd.first_match(*rows, default=1.0)(TREE)["head"]["bias"] == 0.0
    assert wd.first_match(*reversed(rows), default=1.0)(TREE)["head"]["bias"] == 3.0


def test_values_come_back_as_they_were_given() -> None:
    half: Any = np.float32(0.5)
    table = wd.first_match((wd.named("bias"), 2), default=half)
    answer = table(TREE)
    assert answer["head"]["bias"] == 2 and type(answer["head"]["bias"]) is int
    assert answer["head"]["kernel"] == 0.5
    labels = wd.first_match((wd.named("bias"), "no_decay"), default="decay")
    assert labels(TREE)["body"] == {"kernel": "decay", "bias": "no_decay"}


def test_a_leaf_without_row_or_default_is_an_error_that_names_it() -> None:
    table = wd.first_match((wd.named("bias"), 0.0))
    with pytest.raises(
        ValueError,
        match=r"^no row of the table matches 'body/kernel'; add a row for it, or "
        r"default=\.\.\.$",
    ):
        table(TREE)


def test_rows_that_cover_every_leaf_need_no_default() -> None:
    table = wd.first_match((wd.named("bias"), 0.0), (wd.everything, 1.0))
    assert table(TREE)["body"] == {"kernel": 1.0, "bias": 0.0}


def test_a_copy_of_a_table_without_default_has_none_either() -> None:
    table = wd.first_match((wd.named("bias"), 0.0))
    for copied in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert copied == table
        with pytest.raises(ValueError, match="^no row of the table matches"):
            copied(TREE)


def test_a_table_names_the_row_that_decides() -> None:
    table = wd.first_match((wd.named("bias"), 0.0), (wd.contains("head"), 3.0))
    assert table.reason(leaf("head/bias", 3)) == "named('bias')"
    assert table.reason(leaf("head/kernel", 2, 3)) == "contains('head')"
    assert table.reason(leaf("body/kernel", 2, 3)) == "default"


def test_a_table_of_bools_is_a_rule_and_others_are_none() -> None:
    row: Any = wd.named("bias")
    table: Any = wd.first_match((row, False), default=True)
    assert isinstance(table, wd.Rule)
    assert not isinstance(table, wd.Table)
    for other in (
        wd.first_match((row, 0), default=1),
        wd.first_match((row, "a"), default="b"),
    ):
        assert isinstance(other, wd.Table)
        assert not isinstance(other, wd.Rule)


def test_operators_work_on_a_table_of_bools() -> None:
    table: Any = wd.first_match(
        (wd.named("bias"), False), (wd.contains("head"), True), default=False
    )
    head = {"body": {"kernel": False, "bias": False}}
    assert table(TREE) == {**head, "head": {"kernel": True, "bias": False}}
    assert (~table)(TREE)["body"] == {"kernel": True, "bias": True}
    assert (table | wd.named("bias"))(TREE)["head"] == {"kernel": True, "bias": True}
    assert not any(jax.tree.leaves((table & wd.named("bias"))(TREE)))
    assert table.reason(leaf("head/bias", 3)) == "named('bias')"
    assert table.reason(leaf("body/kernel", 3)) == "default"


def test_a_table_of_bools_never_chooses_what_is_not_inexact() -> None:
    table = wd.first_match((wd.named("a"), True), default=True)
    tree = {"a": jnp.ones(2, jnp.int32), "b": jnp.ones(2), "c": "text"}
    assert table(tree) == {"a": False, "b": True, "c": False}


def test_a_table_of_bools_without_default_is_asked_about_inexact_leaves_only() -> None:
    table = wd.first_match((wd.named("b"), True))
    assert table({"a": jnp.ones(2, jnp.int32), "b": jnp.ones(2)}) == {
        "a": False,
        "b": True,
    }
    with pytest.raises(ValueError, match="^no row of the table matches 'c'"):
        table({"b": jnp.ones(2), "c": jnp.ones(2)})


def test_a_table_is_a_mask_of_optax() -> None:
    table: Any = wd.first_match((wd.named("bias"), False), default=True)
    tx = optax.add_decayed_weights(0.5, mask=table)
    zeros = jax.tree.map(jnp.zeros_like, TREE)
    updates = helpers.once(tx, zeros, TREE)
    assert float(updates["head"]["kernel"][0, 0]) == 0.5
    assert float(updates["head"]["bias"][0]) == 0.0


def test_a_table_of_labels_splits_a_model_for_partition() -> None:
    labels = wd.first_match(
        (wd.contains("head"), "frozen"), (wd.standard, "decay"), default="rest"
    )
    tx = optax.partition(
        {
            "frozen": optax.set_to_zero(),
            "decay": optax.chain(optax.sgd(1.0), optax.add_decayed_weights(-0.5)),
            "rest": optax.sgd(2.0),
        },
        labels,
    )
    (params,), _ = helpers.run(tx, TREE, [jax.tree.map(jnp.ones_like, TREE)])
    values = jax.tree.map(lambda x: float(x.ravel()[0]), params)
    assert values == {
        "body": {"kernel": -0.5, "bias": -1.0},
        "head": {"kernel": 1.0, "bias": 1.0},
    }


def test_a_table_of_factors_is_a_multiplier() -> None:
    table = wd.first_match((wd.contains("head"), 3.0), default=0.5)
    tx = wd.masked_decay(1.0, wd.everything, multiplier=table)
    zeros = jax.tree.map(jnp.zeros_like, TREE)
    updates = helpers.once(tx, zeros, TREE)
    values = jax.tree.map(lambda x: float(x.ravel()[0]), updates)
    assert values == {
        "body": {"kernel": 0.5, "bias": 0.5},
        "head": {"kernel": 3.0, "bias": 3.0},
    }


@pytest.mark.parametrize("form", {**forms.single(), **forms.stacked()})
def test_a_table_gives_the_same_factors_in_every_form_of_a_model(form: str) -> None:
    tree = {**forms.single(), **forms.stacked()}[form]
    table = wd.first_match(
        (wd.path("attn/**"), 2.0), (wd.named("scale"), 0.0), default=1
    )
    factors = forms.answers(table(tree))
    assert jax.tree.structure(table(tree)) == jax.tree.structure(tree)
    assert factors == {
        path: 2.0 if path.startswith("attn") else 0.0 if path.endswith("scale") else 1
        for path in forms.WEIGHTS
    }


def test_a_table_answers_for_leaves_that_are_no_arrays() -> None:
    tree = {"blocks": {"kernel": jnp.ones((3, 2, 2)), "activation": jax.nn.relu}}
    labels = wd.first_match(
        (wd.min_ndim(2, stacked=wd.contains("blocks")), "matrix"), default="rest"
    )
    assert labels(tree) == {"blocks": {"kernel": "matrix", "activation": "rest"}}


def test_a_name_in_a_row_has_to_match_some_leaf() -> None:
    table = wd.first_match((wd.named("bias"), 0.0), (wd.named("kernels"), 1.0))
    with pytest.raises(
        ValueError, match=r"^named\('kernels'\) matches no leaf; the ne"
    ):
        table(TREE)
    optional = wd.first_match((wd.optional(wd.named("kernels")), 0.0), default=1.0)
    assert set(jax.tree.leaves(optional(TREE))) == {1.0}


def test_a_table_is_a_value() -> None:
    def make(factor: float) -> Any:
        return wd.first_match((wd.named("bias"), factor), default=1.0)

    assert make(0.5) == make(0.5)
    assert hash(make(0.5)) == hash(make(0.5))
    assert make(0.5) != make(0.25)
    assert make(1.0) != wd.first_match((wd.named("bias"), 1.0))
    assert repr(make(0.5)) == "first_match((named('bias'), 0.5), default=1.0)"
    assert jax.tree.leaves(make(0.5)) == [make(0.5)]


def test_a_row_may_be_a_list_and_the_table_is_a_value_still() -> None:
    row: Any = [wd.named("bias"), 0.5]
    table = wd.first_match(row, default=1.0)
    assert table == wd.first_match((wd.named("bias"), 0.5), default=1.0)
    assert hash(table) == hash(wd.first_match((wd.named("bias"), 0.5), default=1.0))


def test_a_table_has_no_truth_value() -> None:
    with pytest.raises(
        TypeError, match="^a table has no truth value; call it with a parameter tree$"
    ):
        bool(wd.first_match((wd.everything, 1.0)))


def test_no_row_is_an_error() -> None:
    for default in ({}, {"default": 1.0}):
        with pytest.raises(
            ValueError, match=r"^first_match\(\) has no row; write \(rule, value\) pai"
        ):
            wd.first_match(**default)


@pytest.mark.parametrize(
    "row",
    [
        ("head", 3.0),
        (wd.standard,),
        (wd.standard, 1.0, 2.0),
        (3.0, wd.standard),
        wd.standard,
        3.0,
        None,
    ],
    ids=helpers.label,
)
def test_a_row_is_a_pair_of_a_rule_and_a_value(row: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^a row of first_match is a pair \(rule, value\), got "
    ):
        wd.first_match((wd.everything, 1.0), row)


@pytest.mark.parametrize(
    "values",
    [(True, 1.0), (0, False), (1.0, "a"), ("a", True)],
    ids=helpers.label,
)
def test_values_of_different_kinds_are_refused(values: tuple[Any, Any]) -> None:
    one, two = values
    for make in (
        lambda: wd.first_match((wd.named("a"), one), (wd.named("b"), two)),
        lambda: wd.first_match((wd.named("a"), one), default=two),
    ):
        with pytest.raises(
            TypeError, match="^values of first_match are all bools, all numbers or all"
        ):
            make()


@pytest.mark.parametrize(
    "value", [None, [1.0], (0.5,), jnp.ones(2), 1j, wd.everything], ids=helpers.label
)
def test_values_are_bools_numbers_or_strings(value: Any) -> None:
    message = "^values of first_match are bools, numbers or strings, got "
    with pytest.raises(TypeError, match=message):
        wd.first_match((wd.everything, value))
    with pytest.raises(TypeError, match=message):
        wd.first_match((wd.everything, 1.0), default=value)
