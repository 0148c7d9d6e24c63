# SPDX-License-Identifier: Apache-2.0
"""Rules by name: whole tokens, globs, regular expressions, and typos."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import forms
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import optax_wd as wd

KINDS = [wd.named, wd.contains, wd.path, wd.regex]


def leaf(path: str) -> wd.Leaf:
    return wd.Leaf(tuple(path.split("/")), (2, 2), "float32")


class Normalised(nn.Module):
    """Two layers under WeightNorm, one of whose scales has two dimensions."""

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        heads = nn.DenseGeneral((2, 3))
        x_BxHxK = nn.WeightNorm(heads, feature_axes=(-2, -1), name="heads")(x_BxD)
        return nn.WeightNorm(nn.Dense(3))(x_BxHxK)


def weight_norm() -> Any:
    """Parameters of `Normalised`, whose keys contain slashes."""
    return jax.eval_shape(
        lambda: Normalised().init(jax.random.key(0), jnp.ones((1, 4)))
    )["params"]


@pytest.mark.parametrize(
    ("rule", "path", "matches"),
    [
        (wd.named("bias"), "a/bias", True),
        (wd.named("bias"), "bias", True),
        (wd.named("bias"), "bias/a", False),
        (wd.named("bias"), "a/Bias", False),
        (wd.named("bias"), "a/q_bias", False),
        (wd.named("bias"), "a/biases", False),
        (wd.named("bias", "scale"), "a/scale", True),
        (wd.named("*_bias"), "a/q_bias", True),
        (wd.named("*_bias"), "a/bias", False),
        (wd.named("bias?"), "a/bias2", True),
        (wd.named("[bc]ias"), "a/cias", True),
        (wd.named("[!b]ias"), "a/bias", False),
        (wd.contains("norm"), "a/norm/scale", True),
        (wd.contains("norm"), "norm", True),
        (wd.contains("norm"), "a/LayerNorm_0/scale", False),
        (wd.contains("norm"), "a/normalizer/kernel", False),
        (wd.contains("norm"), "a/layer_norm/scale", False),
        (wd.contains("norm"), "a/Norm/scale", False),
        (wd.contains("LayerNorm_*"), "a/LayerNorm_12/scale", True),
        (wd.contains("LayerNorm_*"), "a/layernorm_12/scale", False),
        (wd.contains("LayerNorm_*"), "a/MyLayerNorm_12/scale", False),
        (wd.contains("*norm*"), "a/normalizer/kernel", True),
        (wd.contains("0"), "blocks/0/kernel", True),
        (wd.contains("0"), "blocks/10/kernel", False),
        (wd.contains("a.b"), "a.b/kernel", True),
        (wd.contains("a.b"), "axb/kernel", False),
        (wd.path("a/b"), "a/b", True),
        (wd.path("a/b"), "a/b/c", False),
        (wd.path("a/b"), "x/a/b", False),
        (wd.path("a/*/b"), "a/x/b", True),
        (wd.path("a/*/b"), "a/b", False),
        (wd.path("a/*/b"), "a/x/y/b", False),
        (wd.path("a/x_*/b"), "a/x_1/b", True),
        (wd.path("a/**/b"), "a/b", True),
        (wd.path("a/**/b"), "a/x/y/b", True),
        (wd.path("a/**"), "a/x/y", True),
        (wd.path("a/**"), "a", True),
        (wd.path("a/**"), "b/a", False),
        (wd.path("**/b"), "b", True),
        (wd.path("**/b"), "x/y/b", True),
        (wd.path("**/b"), "x/y/cb", False),
        (wd.path("**"), "x/y", True),
        (wd.path("**/a/**/b"), "x/a/y/z/b", True),
        (wd.path("**/a/**/b"), "x/b/y/a", False),
        (wd.path("**/attn/*/kernel"), "blocks/0/attn/query/kernel", True),
        (wd.path("a**"), "ax/y", False),
        (wd.path("A/b"), "a/b", False),
        (wd.regex(".*/kernel"), "a/b/kernel", True),
        (wd.regex(".*/kernel"), "kernel", False),
        (wd.regex("kernel"), "a/kernel", False),
        (wd.regex(".*kernel"), "a/kernel_2", False),
        (wd.regex(".*(bias|scale)"), "a/scale", True),
        (wd.regex("a|b/kernel"), "a/kernel", False),
        (wd.regex(".*/KERNEL"), "a/kernel", False),
        (wd.regex("(?i).*/KERNEL"), "a/kernel", True),
        (wd.regex("x", r"a/\w+"), "a/kernel", True),
    ],
    ids=helpers.label,
)
def test_patterns_match_whole_tokens_case_sensitively(
    rule: wd.Rule, path: str, matches: bool
) -> None:
    assert rule.matches(leaf(path)) is matches


@pytest.mark.parametrize("kind", KINDS)
def test_several_patterns_are_alternatives(kind: Callable[..., wd.Rule]) -> None:
    tree = {name: jnp.ones(2) for name in ("a", "b", "c")}
    assert kind("a", "c")(tree) == {"a": True, "b": False, "c": True}


def test_a_rule_names_the_pattern_that_matches() -> None:
    rule = wd.named("scale", "*bias", "q_bias")
    assert rule.reason(leaf("a/q_bias")) == "named('*bias')"
    assert rule.reason(leaf("a/kernel")) == "not named('scale', '*bias', 'q_bias')"
    assert wd.contains("a", "b").reason(leaf("b/kernel")) == "contains('b')"
    assert wd.path("**/b", "a/*").reason(leaf("a/c")) == "path('a/*')"
    assert wd.regex("x", "a/.").reason(leaf("a/c")) == "regex('a/.')"


@pytest.mark.parametrize("kind", KINDS)
def test_no_pattern_is_an_error(kind: Callable[..., wd.Rule]) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^{kind.__name__}\(\) has nothing to match; write `nothing` for no lea",
    ):
        kind()


@pytest.mark.parametrize(
    "pattern", [["a", "b"], ("a",), None, 3, b"a", ""], ids=helpers.label
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pattern_is_a_string(kind: Callable[..., wd.Rule], pattern: Any) -> None:
    name = kind.__name__
    with pytest.raises(
        TypeError,
        match=rf"^{name} takes strings, each an argument of its own: "
        rf"{name}\('a', 'b'\); got {re.escape(repr(pattern))}$",
    ):
        kind("a", pattern)


@pytest.mark.parametrize(
    "pattern", ["*/kernel", "(kernel", "[a", "a{99999999999999999999}"]
)
def test_what_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^regex\({re.escape(repr(pattern))}\) is no regular expression: .*; "
        r"escape special characters, or write a glob with path\(\.\.\.\)$",
    ):
        wd.regex("kernel", pattern)


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_are_plain_strings_whatever_strings_they_came_from(
    kind: Callable[..., wd.Rule],
) -> None:
    assert repr(kind(np.str_("a"))) == f"{kind.__name__}('a')"
    assert kind(np.str_("a")) == kind("a")


TREE = {
    "block_0": {"attn": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
    "LayerNorm_0": {"scale": jnp.ones(2)},
}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            wd.named("biass"),
            "named('biass') matches no leaf; the nearest are 'bias'; write "
            "optional(named('biass')) if that is meant",
        ),
        (
            wd.contains("layernorm_0"),
            "contains('layernorm_0') matches no leaf; the nearest are 'LayerNorm_0'; "
            "write optional(contains('layernorm_0')) if that is meant",
        ),
        (
            wd.contains("atn", "LayerNorm_0"),
            "contains('atn') matches no leaf; the nearest are 'attn'; write "
            "optional(contains('atn')) if that is meant",
        ),
        (
            wd.path("block_0/atn/kernel"),
            "path('block_0/atn/kernel') matches no leaf; the nearest are "
            "'block_0/attn/kernel', 'block_0/attn/bias'; write "
            "optional(path('block_0/atn/kernel')) if that is meant",
        ),
        (
            wd.regex("block_0/attn/kernels"),
            "regex('block_0/attn/kernels') matches no leaf; the nearest are "
            "'block_0/attn/kernel', 'block_0/attn/bias'; write "
            "optional(regex('block_0/attn/kernels')) if that is meant",
        ),
        (
            wd.named("zzz"),
            "named('zzz') matches no leaf; the nearest are 'scale', 'bias', 'kernel'; "
            "write optional(named('zzz')) if that is meant",
        ),
    ],
    ids=helpers.label,
)
def test_a_name_that_matches_nothing_is_an_error_with_the_nearest_names(
    rule: wd.Rule, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rule(TREE)


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("norm", "LayerNormalisation_0"),
        ("LAYERNORM", "LayerNormalisation_0"),
        ("DENES_0", "Dense_0"),
        ("conv", "Conv_0"),
    ],
)
def test_the_nearest_names_hold_or_resemble_the_pattern_whatever_their_case(
    pattern: str, nearest: str
) -> None:
    kinds = ("Conv_0", "Dense_0", "Embed_0", "LayerNormalisation_0")
    with pytest.raises(ValueError, match=f"; the nearest are '{nearest}'"):
        wd.contains(pattern)({kind: jnp.ones(2) for kind in kinds})


@pytest.mark.parametrize(
    "make",
    [
        lambda rule: rule,
        lambda rule: ~rule,
        lambda rule: rule | wd.named("bias"),
        lambda rule: wd.named("bias") & rule,
        lambda rule: wd.nothing & rule,
        lambda rule: wd.min_ndim(2, stacked=rule),
        lambda rule: wd.standard_with(stacked=rule),
        lambda rule: wd.first_match((rule, True), default=False),
        lambda rule: wd.first_match((wd.everything, 1.0), (rule, 2.0)),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_matches_nothing_is_found_wherever_it_stands(
    kind: Callable[..., wd.Rule], make: Callable[[wd.Rule], Any]
) -> None:
    with pytest.raises(ValueError, match=rf"^{kind.__name__}\('atnn'\) matches no lea"):
        make(kind("atnn"))(TREE)
    make(wd.optional(kind("atnn")))(TREE)


@pytest.mark.parametrize("form", {**forms.single(), **forms.stacked()})
def test_a_typo_is_an_error_in_every_form_of_a_model(form: str) -> None:
    tree = {**forms.single(), **forms.stacked()}[form]
    with pytest.raises(ValueError, match="no leaf; the nearest are 'kernel'; write"):
        wd.named("kernels")(tree)


def test_each_of_several_names_has_to_match() -> None:
    with pytest.raises(ValueError, match=r"^named\('bais'\) matches no leaf"):
        wd.named("kernel", "bais")(TREE)


def test_a_name_may_match_leaves_that_do_not_decay() -> None:
    tree = {"kernel": jnp.ones((2, 2)), "table": jnp.ones((2, 2), jnp.int32)}
    assert wd.named("table")(tree) == {"kernel": False, "table": False}


@pytest.mark.parametrize("hole", [None, optax.MaskedNode()], ids=helpers.label)
def test_a_partial_tree_is_exempt(hole: Any) -> None:
    partial = {**TREE, "block_0": {"attn": hole}}
    rule = wd.named("kernel") | wd.named("scale")
    assert rule(partial)["LayerNorm_0"] == {"scale": True}
    assert rule(partial)["block_0"] == {"attn": hole}


def test_standard_is_exempt_and_what_is_added_to_it_is_not() -> None:
    tree = {"weight": jnp.ones((2, 2))}
    assert wd.standard(tree) == {"weight": True}
    with pytest.raises(ValueError, match=r"^contains\('router'\) matches no leaf"):
        wd.standard_with(also=("router",))(tree)


def test_an_empty_tree_is_exempt() -> None:
    assert wd.named("kernel")({}) == {}


def test_a_typo_inside_of_partition_is_no_error_and_on_the_whole_tree_is_one() -> None:
    labels = wd.first_match((wd.contains("LayerNorm_0"), "norms"), default="rest")
    groups: dict[Any, Any] = {
        "norms": optax.identity(),
        "rest": optax.add_decayed_weights(0.1, mask=~wd.named("scale")),
    }
    tx = optax.partition(groups, labels)
    updates = helpers.once(tx, TREE, TREE)
    assert float(updates["block_0"]["attn"]["bias"][0]) == pytest.approx(1.1)
    typo = optax.add_decayed_weights(0.1, mask=~wd.named("scales"))
    with pytest.raises(ValueError, match=r"^named\('scales'\) matches no leaf"):
        helpers.once(typo, TREE, TREE)


def test_a_key_with_slashes_is_matched_by_the_text_of_its_path() -> None:
    tree = weight_norm()
    keys = {key for module in tree.values() for key in module if "/" in key}
    assert keys == {"Dense_0/kernel/scale", "DenseGeneral_0/kernel/scale"}
    for rule in (wd.regex, wd.path):
        answer = rule("heads/DenseGeneral_0/kernel/scale")(tree)
        assert answer["heads"] == {"DenseGeneral_0/kernel/scale": True}
        assert sum(jax.tree.leaves(answer)) == 1
    answer = wd.path("**/kernel/scale")(tree)
    assert sum(jax.tree.leaves(answer)) == 2


def test_a_key_with_slashes_has_the_same_path_in_a_flattened_tree() -> None:
    flat = traverse_util.flatten_dict(weight_norm())
    answer = wd.path("**/kernel/scale")(flat)
    assert {keys[-1] for keys, found in answer.items() if found} == {
        "Dense_0/kernel/scale",
        "DenseGeneral_0/kernel/scale",
    }


def test_a_tree_that_is_keyed_by_whole_paths_is_asked_by_path() -> None:
    params = forms.single()["linen dict"]
    flat = traverse_util.flatten_dict(params, sep="/")
    assert wd.path("attn/*/kernel")(flat) == {
        name: name.startswith("attn") and name.endswith("kernel") for name in flat
    }
    assert wd.regex(".*/bias")(flat) == {name: name.endswith("bias") for name in flat}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pattern_is_matched_in_abstract_trees(kind: Callable[..., wd.Rule]) -> None:
    tree = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32), "bias": jnp.ones(2)}
    assert kind("kernel")(tree) == {"kernel": True, "bias": False}
