# SPDX-License-Identifier: Apache-2.0
"""Rules without names: everything, nothing, optional, min_ndim, satisfies."""

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


def test_everything_chooses_every_leaf_and_nothing_none() -> None:
    for shape in [(), (3,), (2, 3)]:
        assert wd.everything.decide(leaf("a/bias", *shape))
        assert not wd.nothing.decide(leaf("a/kernel", *shape))
    assert wd.everything.reason(leaf("a")) == "everything"
    assert wd.nothing.reason(leaf("a")) == "nothing"


def test_everything_and_nothing_are_each_others_negation_in_effect() -> None:
    one, two = leaf("a", 2), leaf("a", 2, dtype="int32")
    assert [(~wd.nothing).decide(x) for x in (one, two)] == [True, False]
    assert [(~wd.everything).decide(x) for x in (one, two)] == [False, False]


@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
def test_min_ndim_counts_dimensions(ndim: int) -> None:
    shapes: list[tuple[int, ...]] = [(), (1,), (1, 1), (3, 1, 1), (2, 2, 2, 2)]
    chosen = [wd.min_ndim(ndim).decide(leaf("a", *shape)) for shape in shapes]
    assert chosen == [len(shape) >= ndim for shape in shapes]


def test_min_ndim_2_leaves_scalars_alone() -> None:
    tree = {"temperature": jnp.asarray(1.0), "kernel": jnp.ones((2, 2))}
    assert wd.min_ndim(2)(tree) == {"temperature": False, "kernel": True}


def test_a_stacked_axis_does_not_count() -> None:
    rule = wd.min_ndim(2, stacked=wd.contains("blocks"))
    assert not rule.matches(leaf("blocks/scale", 12, 4))
    assert rule.matches(leaf("blocks/kernel", 12, 4, 4))
    assert rule.matches(leaf("head/kernel", 4, 4))
    assert not rule.matches(leaf("head/bias", 4))


def test_the_reason_of_min_ndim_says_what_was_taken_off() -> None:
    rule = wd.min_ndim(2, stacked=((wd.contains("a"), 0), (wd.contains("b"), 0)))
    assert rule.reason(leaf("head/kernel", 4, 4)) == "ndim 2"
    assert rule.reason(leaf("a/kernel", 3, 4, 4)) == "ndim 2 without 1 stacked"
    assert rule.reason(leaf("a/b/scale", 3, 5, 4)) == "ndim 1 without 2 stacked"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pairs_take_off_the_axis_that_they_name(axis: int) -> None:
    rule = wd.min_ndim(2, stacked=((wd.contains("blocks"), axis),))
    assert rule.matches(leaf("blocks/kernel", 2, 3, 4))
    assert rule.matches(leaf("head/kernel", 2, 3))
    with pytest.raises(ValueError, match=f"has no axis {axis} to take off"):
        rule.matches(leaf("blocks/scale", *[2] * axis))


def test_a_leaf_that_two_pairs_match_loses_two_axes() -> None:
    stacked = ((wd.contains("stages"), 0), (wd.contains("blocks"), 0))
    rule = wd.min_ndim(2, stacked=stacked)
    tree = {
        "stages": {
            "blocks": {"kernel": jnp.ones((2, 3, 4, 5)), "norm": jnp.ones((2, 3, 4))},
            "down": {"kernel": jnp.ones((2, 4, 4)), "norm": jnp.ones((2, 4))},
        },
        "head": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
    }
    assert rule(tree) == {
        "stages": {
            "blocks": {"kernel": True, "norm": False},
            "down": {"kernel": True, "norm": False},
        },
        "head": {"kernel": True, "bias": False},
    }


def test_axes_of_pairs_count_after_the_outer_ones_are_taken_off() -> None:
    # Axis 0 first; what was axis 2 is then axis 1, and there is no axis 2 any more.
    rules = [
        wd.min_ndim(1, stacked=((wd.everything, 0), (wd.everything, axis)))
        for axis in (1, 2)
    ]
    assert rules[0].matches(leaf("a", 2, 3, 4))
    with pytest.raises(ValueError, match="has no axis 2 to take off"):
        rules[1].matches(leaf("a", 2, 3, 4))


def test_a_leaf_without_the_stacked_axis_is_an_error_that_names_it() -> None:
    rule = wd.min_ndim(2, stacked=((wd.contains("blocks"), 1),))
    with pytest.raises(
        ValueError,
        match=r"^'blocks/scale' of shape \(4,\) has no axis 1 to take off; make the "
        r"stacked rule contains\('blocks'\) narrower$",
    ):
        rule({"blocks": {"scale": jnp.ones(4)}})


def test_the_stacked_rule_may_be_any_rule() -> None:
    rule = wd.min_ndim(2, stacked=wd.contains("blocks") & ~wd.named("shared"))
    assert not rule.matches(leaf("blocks/scale", 12, 4))
    assert rule.matches(leaf("blocks/shared", 12, 4))


def test_a_name_inside_stacked_has_to_match_some_leaf() -> None:
    rule = wd.min_ndim(2, stacked=wd.contains("block"))
    with pytest.raises(ValueError, match=r"contains\('block'\) matches no leaf"):
        rule({"blocks": {"kernel": jnp.ones((2, 2))}})
    answer = wd.min_ndim(2, stacked=wd.optional(wd.contains("block")))(
        {"blocks": {"kernel": jnp.ones((2, 2))}}
    )
    assert answer == {"blocks": {"kernel": True}}


def test_rank_alone_decays_the_biases_of_flax_attention() -> None:
    answer = forms.answers(wd.min_ndim(2)(forms.linen_abstract()))
    wrong = [path for path, decays in answer.items() if decays != forms.WEIGHTS[path]]
    assert wrong == ["attn/key/bias", "attn/query/bias", "attn/value/bias"]


@pytest.mark.parametrize("n", [2.0, "2", None, True, np.int32(2)], ids=helpers.label)
def test_min_ndim_takes_an_integer(n: Any) -> None:
    with pytest.raises(TypeError, match="^min_ndim takes an integer such as 2, got "):
        wd.min_ndim(n)


@pytest.mark.parametrize("n", [0, -1])
def test_min_ndim_takes_one_or_more(n: int) -> None:
    with pytest.raises(
        ValueError, match=f"^min_ndim takes 1 or more, got {n}; write `everything`"
    ):
        wd.min_ndim(n)


@pytest.mark.parametrize(
    "stacked",
    [
        "blocks",
        0,
        True,
        ["blocks"],
        (wd.contains("blocks"), 1),
        ((wd.contains("blocks"),),),
        ((wd.contains("blocks"), -1),),
        ((wd.contains("blocks"), True),),
        ((wd.contains("blocks"), 1.0),),
        (("blocks", 0),),
        {"blocks": 0},
        lambda leaf: True,
    ],
    ids=helpers.label,
)
@pytest.mark.parametrize("make", [lambda s: wd.min_ndim(2, stacked=s)])
def test_stacked_takes_a_rule_or_pairs(make: Any, stacked: Any) -> None:
    with pytest.raises(
        TypeError,
        match=r"^stacked takes a rule, for axis 0, or pairs such as \(\(contains\('blo"
        r"cks'\), 1\),\), got ",
    ):
        make(stacked)


def test_stacked_takes_a_list_of_pairs_and_compares_as_a_tuple_of_them() -> None:
    pairs: Any = [[wd.contains("blocks"), 0]]
    rule = wd.min_ndim(2, stacked=pairs)
    assert rule == wd.min_ndim(2, stacked=wd.contains("blocks"))
    assert hash(rule) == hash(wd.min_ndim(2, stacked=wd.contains("blocks")))


def test_no_pairs_are_no_stacked_axes() -> None:
    assert wd.min_ndim(2, stacked=()) == wd.min_ndim(2)


def test_optional_chooses_the_same_leaves_and_need_not_match() -> None:
    tree = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    assert wd.optional(wd.named("bias"))(tree) == {"kernel": False, "bias": True}
    missing = wd.named("pos_embed", "cls_token")
    assert wd.optional(missing)(tree) == {"kernel": False, "bias": False}
    assert (~wd.optional(missing) & wd.named("bias"))(tree)["bias"]


def test_optional_exempts_no_more_than_what_is_inside() -> None:
    rule = wd.optional(wd.named("pos_embed")) | wd.named("bais")
    with pytest.raises(ValueError, match=r"^named\('bais'\) matches no leaf"):
        rule({"kernel": jnp.ones(2), "bias": jnp.ones(2)})


def test_optional_reasons_as_the_rule_inside() -> None:
    rule = wd.named("bias")
    for each in (leaf("a/bias"), leaf("a/kernel")):
        assert wd.optional(rule).reason(each) == rule.reason(each)


@pytest.mark.parametrize(
    "given", ["pos_embed", None, lambda tree: tree], ids=helpers.label
)
def test_optional_takes_a_rule(given: Any) -> None:
    with pytest.raises(TypeError, match=r"^optional takes a rule such as min_ndim\(2"):
        wd.optional(given)


def test_satisfies_asks_about_path_shape_and_dtype() -> None:
    rule = wd.satisfies(lambda x: x.size > 4 and x.path[0] == "a", "large, in a")
    tree = {"a": {"b": jnp.ones((2, 3)), "c": jnp.ones(2)}, "d": jnp.ones(9)}
    assert rule(tree) == {"a": {"b": True, "c": False}, "d": False}


def test_a_predicate_may_return_a_bool_of_numpy() -> None:
    rule = wd.satisfies(lambda leaf: np.prod(leaf.shape) > 3, "large")
    answer = rule(helpers.tree())
    assert answer["norm"]["scale"] is True and answer["mlp"]["bias"] is True
    assert not any(jax.tree.leaves((~rule)(helpers.tree())))


def test_satisfies_says_its_reason_and_its_negation() -> None:
    rule = wd.satisfies(lambda x: x.ndim > 1, "a matrix")
    assert rule.reason(leaf("a", 2, 2)) == "a matrix"
    assert rule.reason(leaf("a", 2)) == "not: a matrix"
    assert repr(rule).startswith("satisfies(<function ")
    assert repr(rule).endswith(", 'a matrix')")


def test_satisfies_is_equal_where_the_function_object_is() -> None:
    def small(leaf: wd.Leaf) -> bool:
        return leaf.size < 4

    assert wd.satisfies(small, "small") == wd.satisfies(small, "small")
    assert hash(wd.satisfies(small, "small")) == hash(wd.satisfies(small, "small"))
    assert wd.satisfies(small, "small") != wd.satisfies(lambda x: x.size < 4, "small")
    assert wd.satisfies(small, "small") != wd.satisfies(small, "tiny")


@pytest.mark.parametrize(
    "predicate", ["kernel", None, 2, wd.standard], ids=helpers.label
)
def test_satisfies_takes_a_function(predicate: Any) -> None:
    with pytest.raises(TypeError, match="^satisfies takes a function of a Leaf, got "):
        wd.satisfies(predicate, "why")


@pytest.mark.parametrize("reason", [None, 2, print], ids=helpers.label)
def test_satisfies_takes_a_reason_in_words(reason: Any) -> None:
    with pytest.raises(TypeError, match="^the reason of satisfies is a string, got "):
        wd.satisfies(lambda x: True, reason)


@pytest.mark.parametrize("answer", [None, 1, "yes"], ids=helpers.label)
def test_a_predicate_that_returns_no_bool_is_an_error(answer: Any) -> None:
    rule = wd.satisfies(lambda leaf: answer, "why")
    with pytest.raises(
        TypeError, match=r"^the predicate of satisfies\(.* for 'a/b'; return a bool$"
    ):
        rule({"a": {"b": jnp.ones(2)}})


def test_atoms_are_exempt_from_having_to_match() -> None:
    tree = {"bias": jnp.ones(2)}
    for rule in (wd.nothing, wd.min_ndim(7), wd.satisfies(lambda x: False, "never")):
        assert rule(tree) == {"bias": False}


def test_stacked_layers_of_a_model_are_told_by_one_rule() -> None:
    rule = wd.min_ndim(2, stacked=wd.everything)
    for form, tree in forms.stacked().items():
        answer = forms.answers(rule(tree))
        assert answer["norm/scale"] is False, form
        assert answer["mlp/kernel"] is True, form
        assert answer["attn/query/bias"] is True, form  # two dimensions in a layer


def test_a_rule_with_stacked_axes_works_on_partial_trees() -> None:
    params = forms.linen_scanned()
    partial = forms.without(params, "norm", optax.MaskedNode())
    answer = wd.min_ndim(2, stacked=wd.contains("attn"))(partial)
    assert answer["norm"] == {"bias": True, "scale": True}
