# SPDX-License-Identifier: Apache-2.0
"""Leaves: the same static facts from every form of a tree, and never a value."""

import dataclasses
import subprocess
import sys
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import forms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import core, nnx, struct

import optax_wd as wd
from optax_wd._tree import leaves as _leaves


class Projections(NamedTuple):
    """A container with a real field of the name of a box's array."""

    query: Any
    key: Any
    value: Any


class Holder(eqx.Module):
    """An Equinox module with a callable, a static field and a hole."""

    weight: Any
    bias: Any
    activation: Any
    width: int = eqx.field(static=True)
    missing: Any = None


def paths(tree: Any) -> list[str]:
    return [leaf.where for leaf in _leaves.list_leaves(tree)]


@pytest.mark.parametrize("form", forms.single())
def test_a_path_is_the_same_in_every_form_of_a_model(form: str) -> None:
    assert paths(forms.single()[form]) == list(forms.WEIGHTS)


@pytest.mark.parametrize("form", forms.stacked())
def test_a_stacked_model_has_the_paths_of_its_layer(form: str) -> None:
    leaves = _leaves.list_leaves(forms.stacked()[form])
    assert [leaf.where for leaf in leaves] == list(forms.WEIGHTS)
    assert {leaf.shape[0] for leaf in leaves} == {forms.LAYERS}


@pytest.mark.parametrize("form", forms.single())
def test_shape_and_dtype_are_the_same_in_every_form_of_a_model(form: str) -> None:
    facts = {
        leaf.where: (leaf.shape, leaf.dtype)
        for leaf in _leaves.list_leaves(forms.single()[form])
    }
    assert facts["attn/query/kernel"] == ((6, 2, 2), jnp.float32)
    assert facts["attn/query/bias"] == ((2, 2), jnp.float32)
    assert facts["norm/scale"] == ((6,), jnp.float32)


def test_leaves_come_in_the_order_of_jax_tree_leaves() -> None:
    layers = [{"kernel": jnp.zeros((n + 1, 2))} for n in range(12)]
    tree = {"layers": layers, "head": (jnp.zeros(3), [jnp.zeros(4)])}
    shapes = [leaf.shape for leaf in _leaves.list_leaves(tree)]
    assert shapes == [x.shape for x in jax.tree.leaves(tree)]
    assert paths(tree)[:3] == ["head/0", "head/1/0", "layers/0/kernel"]
    assert paths(tree)[-1] == "layers/11/kernel"


def test_integer_keys_are_tokens_too() -> None:
    assert _leaves.list_leaves({3: [jnp.zeros(2)]})[0].path == ("3", "0")


def test_a_field_named_value_is_kept_unless_a_flax_box_made_it() -> None:
    fields = Projections(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))
    assert paths({"attn": fields}) == ["attn/query", "attn/key", "attn/value"]
    assert paths({"attn": {"value": jnp.zeros(2)}}) == ["attn/value"]


def test_a_field_named_value_is_kept_inside_of_boxes_and_around_them() -> None:
    boxed = {"value": nn.Partitioned(jnp.zeros(2), (None,))}
    assert paths(boxed) == ["value"]
    assert paths(nnx.State({"value": nnx.Param(jnp.zeros(2))})) == ["value"]
    inside = nn.Partitioned({"value": jnp.zeros(2)}, (None,))
    assert paths({"box": inside}) == ["box/value"]


def test_a_variable_of_several_arrays_gives_one_path_to_each() -> None:
    fields = Projections(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))
    state = nnx.State({"attn": nnx.Param(fields)})
    assert paths(state) == ["attn/query", "attn/key", "attn/value"]


def test_a_box_inside_of_a_box_is_seen_through() -> None:
    inner = nn.Partitioned(jnp.zeros(2), (None,))
    boxed = {"kernel": nn.LogicallyPartitioned(inner, (None,))}
    assert paths(boxed) == ["kernel"]


def test_a_bare_tree_has_what_the_boxes_hold_in_the_same_order() -> None:
    x, y = jnp.ones(2), jnp.zeros(3)
    inner = nn.Partitioned({"b": x}, (None,))
    boxed = nn.LogicallyPartitioned(inner, (None,))
    fields = nnx.Param(Projections(x, None, y))
    tree = {"a": boxed, "c": nn.Partitioned(None, ()), "d": [fields, y]}
    expected = {"a": {"b": x}, "c": None, "d": [Projections(x, None, y), y]}
    found = _leaves.bare(tree)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    leaves = (jax.tree.leaves(t) for t in (found, expected, tree))
    assert all(f is e is t for f, e, t in zip(*leaves, strict=True))
    assert _leaves.bare(boxed) == {"b": x}
    assert _leaves.is_boxed(tree) and not _leaves.is_boxed(found)
    assert not _leaves.is_boxed([x, None])


def test_a_box_of_your_own_is_seen_through() -> None:
    @struct.dataclass
    class Box(core.meta.AxisMetadata[Any]):
        value: Any

        def unbox(self) -> Any:
            return self.value

        def replace_boxed(self, val: Any) -> Any:
            return Box(val)

        def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
            return self

        def remove_axis(self, index: int, params: dict[Any, Any]) -> Any:
            return self

    assert paths({"a": {"kernel": Box(jnp.zeros(2))}}) == ["a/kernel"]


def test_an_array_that_stands_alone_has_no_path() -> None:
    lone = nn.Partitioned(jnp.zeros(2), (None,)), nnx.Param(jnp.zeros(2)), jnp.zeros(2)
    for tree in lone:
        (leaf,) = _leaves.list_leaves(tree)
        assert (leaf.path, leaf.name, leaf.where) == ((), "", "")


def test_equinox_fields_are_tokens_and_what_is_no_array_has_no_dtype() -> None:
    module: Any = Holder(jnp.zeros((2, 3)), jnp.zeros(2), jax.nn.relu, width=3)
    facts = {x.where: (x.shape, x.is_array) for x in _leaves.list_leaves(module)}
    assert facts == {
        "weight": ((2, 3), True),
        "bias": ((2,), True),
        "activation": ((), False),
    }


def test_keys_that_are_whole_paths_become_tokens() -> None:
    (leaf,) = _leaves.list_leaves({("attn", "query", 0): jnp.zeros(2)})
    assert leaf.path == ("attn", "query", "0")


def test_abstract_values_and_tracers_have_the_facts_of_arrays() -> None:
    seen = []

    def look(tree: Any) -> Any:
        seen.extend(_leaves.list_leaves(tree))
        return tree

    tree = {"kernel": jnp.zeros((2, 3), jnp.bfloat16)}
    jax.eval_shape(look, tree)
    abstract = {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}
    assert seen == _leaves.list_leaves(tree) == _leaves.list_leaves(abstract)
    assert seen == [wd.Leaf(("kernel",), (2, 3), jnp.bfloat16)]


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "bfloat16", "float16", "float8_e4m3fn", "complex64"],
)
def test_real_and_complex_floating_point_leaves_are_inexact(dtype: str) -> None:
    leaf = wd.Leaf(("a",), (2,), dtype)
    assert leaf.is_inexact and leaf.is_array


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int4", "bool"])
def test_integer_and_bool_leaves_are_not_inexact(dtype: str) -> None:
    leaf = wd.Leaf(("a",), (2,), dtype)
    assert leaf.is_array and not leaf.is_inexact


def test_keys_float0_strings_and_numbers_are_not_inexact() -> None:
    tree = [jax.random.key(0), np.zeros(2, jax.dtypes.float0), "text", 1.5, 2, print]
    leaves = _leaves.list_leaves(tree)
    assert not any(leaf.is_inexact for leaf in leaves)
    assert [leaf.is_array for leaf in leaves] == [True, True] + [False] * 4


def test_a_leaf_counts_its_dimensions_and_elements() -> None:
    leaf = wd.Leaf(("block", "kernel"), (2, 3, 4), "float32")
    assert (leaf.ndim, leaf.size) == (3, 24)
    assert (leaf.name, leaf.where) == ("kernel", "block/kernel")
    assert wd.Leaf((), (), "float32").size == 1


def test_leaves_compare_and_hash_by_their_facts() -> None:
    path: Any = ["a", "b"]
    shape: Any = [2, 3]
    leaf = wd.Leaf(path, shape, "bfloat16")
    assert leaf == wd.Leaf(("a", "b"), (2, 3), jnp.bfloat16)
    assert leaf == wd.Leaf(("a", "b"), (2, 3), np.dtype(jnp.bfloat16))
    assert hash(leaf) == hash(wd.Leaf(("a", "b"), (2, 3), jnp.bfloat16))
    assert leaf != wd.Leaf(("a", "b"), (2, 3), "float32")
    assert leaf != dataclasses.replace(leaf, owner="LayerNorm")


def test_a_leaf_with_metadata_can_be_hashed() -> None:
    leaf = wd.Leaf(("a",), (2,), "float32", metadata={"axes": ["x"]})
    assert leaf in {leaf}
    assert leaf != wd.Leaf(("a",), (2,), "float32")


def test_a_leaf_cannot_be_changed() -> None:
    leaf: Any = wd.Leaf(("a",), (2,), "float32")
    with pytest.raises(dataclasses.FrozenInstanceError):
        leaf.path = ("b",)


@pytest.mark.parametrize(
    ("tree", "partial"),
    [
        ({"a": 1}, False),
        ({}, False),
        ({"a": None}, True),
        ({"a": {"b": optax.MaskedNode()}, "c": 1}, True),
        ([1, (2, None)], True),
        (None, True),
    ],
)
def test_a_tree_with_none_or_masked_node_is_partial(tree: Any, partial: bool) -> None:
    assert _leaves.has_holes(tree) is partial


def test_answers_are_found_by_path_whatever_the_containers() -> None:
    answers = core.freeze({"a": {"b": 1}, "c": 2})
    leaves = _leaves.list_leaves({"c": jnp.zeros(2), "a": {"b": jnp.zeros(3)}})
    assert _leaves.spread(answers, leaves, partial=False, what="mask") == [1, 2]


def test_one_answer_of_a_prefix_holds_for_all_below_it() -> None:
    tree = {"a": {"b": jnp.zeros(2), "c": jnp.zeros(2)}, "d": [jnp.zeros(2)]}
    leaves = _leaves.list_leaves(tree)
    found = _leaves.spread({"a": 1, "d": 2}, leaves, partial=False, what="mask")
    assert found == [1, 1, 2]
    assert _leaves.spread(7, leaves, partial=False, what="mask") == [7, 7, 7]


def test_the_longest_prefix_gives_the_answer() -> None:
    answers = {("a",): 1, ("a", "b"): 2}
    leaves = _leaves.list_leaves({"a": {"b": jnp.zeros(2), "c": jnp.zeros(2)}})
    assert _leaves.spread(answers, leaves, partial=False, what="mask") == [2, 1]


def test_a_leaf_without_an_answer_is_an_error() -> None:
    leaves = _leaves.list_leaves({"a": {"b": jnp.zeros(2), "c": jnp.zeros(2)}})
    with pytest.raises(
        ValueError, match="^mask is a tree that has no entry for 'a/c'; make it with a"
    ):
        _leaves.spread({"a": {"b": 1}}, leaves, partial=True, what="mask")


def test_an_answer_without_a_leaf_is_an_error_on_a_complete_tree_only() -> None:
    leaves = _leaves.list_leaves({"a": jnp.zeros(2)})
    answers = {"a": 1, "b": {"c": 2}}
    with pytest.raises(
        ValueError, match="^multiplier is a tree with an entry for 'b/c', where the "
    ):
        _leaves.spread(answers, leaves, partial=False, what="multiplier")
    assert _leaves.spread(answers, leaves, partial=True, what="multiplier") == [1]


def test_a_callable_tree_of_bools_is_no_function() -> None:
    class Called(Holder):
        def __call__(self, x: Any) -> Any:
            return x

    answers = Called(True, np.bool_(False), True, width=3)
    assert callable(answers) and not _leaves.is_function(answers)
    assert _leaves.is_function(Called(jnp.zeros(2), True, True, width=3))
    assert _leaves.is_function(print)
    assert not _leaves.is_function({"a": True})


def test_rules_work_where_flax_was_never_imported() -> None:
    code = """
import sys, jax.numpy as jnp, optax_wd as wd
tree = {"a": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
assert wd.standard(tree) == {"a": {"kernel": True, "bias": False}}
try:
    wd.mask_of(tree, wd.standard)
except TypeError:
    assert not any(name.split(".")[0] == "flax" for name in sys.modules)
    print("no flax")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "no flax\n"
