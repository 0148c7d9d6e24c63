# SPDX-License-Identifier: Apache-2.0
"""Which layer a leaf belongs to: by the numbers in its path, or by rules."""

import copy
import pickle
import re
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import pytest

import optax_wd as wd


def leaf(path: str, *shape: int, dtype: str = "float32") -> wd.Leaf:
    return wd.Leaf(tuple(path.split("/")), shape, dtype)


def blocks(*numbers: int, **others: Any) -> dict[str, Any]:
    """A tree of blocks with these numbers, and what else is given."""
    return {"blocks": {str(n): {"kernel": jnp.ones((2, 2))} for n in numbers}, **others}


def refused(layer_of: Any, tree: Any) -> str:
    """The text of the error for a tree."""
    with pytest.raises(ValueError) as caught:
        wd.layerwise(0.5, layer_of)(tree)
    return str(caught.value)


# ------------------------------------------------------------------ numbers in the path

VIT = wd.numbered_layers(
    "blocks/#", 12, first=wd.contains("cls_token", "patch_embed"), last=wd.everything
)


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("cls_token", 0),
        ("patch_embed/proj/kernel", 0),
        ("blocks/0/attn/kernel", 1),
        ("blocks/11/attn/kernel", 12),
        ("norm/scale", 13),
        ("head/kernel", 13),
    ],
)
def test_first_is_0_block_i_is_i_plus_1_and_last_comes_on_top(
    path: str, layer: int
) -> None:
    assert VIT(leaf(path, 2)) == layer


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("blocks/3", 4),
        ("blocks/3/kernel", 4),
        ("model/encoder/blocks/3/kernel", 4),
        ("blocks/blocks/3/kernel", 4),
        ("myblocks/3/kernel", None),
        ("my/blocks_old/1/kernel", None),
        ("blocks_old/1/kernel", None),
        ("blocks/3x/kernel", None),
        ("blocks/x3/kernel", None),
        ("blocks/3_1/kernel", None),
        ("blocks/a/3/kernel", None),
        ("blocks/-1/kernel", None),
        ("Blocks/3/kernel", None),
        ("blocks", None),
        ("3/blocks", None),
        ("blocks//3", None),
    ],
)
def test_the_pattern_matches_whole_tokens_anywhere_in_the_path(
    path: str, layer: int | None
) -> None:
    assert wd.numbered_layers("blocks/#", 12)(leaf(path, 2)) == layer


@pytest.mark.parametrize(
    ("pattern", "path", "layer"),
    [
        ("encoderblock_#", "Transformer/encoderblock_3/mlp/kernel", 4),
        ("encoderblock_#", "encoderblock_3", 4),
        ("encoderblock_#", "my_encoderblock_3/kernel", None),
        ("encoderblock_#", "encoderblock_3b/kernel", None),
        ("encoderblock_#", "encoderblock_/kernel", None),
        ("#", "model/3/kernel", 4),
        ("#", "model/kernel3", None),
        ("h#x", "h3x/kernel", 4),
        ("layers/#/mlp", "layers/3/mlp/kernel", 4),
        ("layers/#/mlp", "layers/3/mlp2/kernel", None),
        ("a.b/#", "a.b/3", 4),
        ("a.b/#", "axb/3", None),
        ("a+(b)/#", "a+(b)/3", 4),
    ],
)
def test_all_but_the_number_and_globs_is_literal(
    pattern: str, path: str, layer: int | None
) -> None:
    assert wd.numbered_layers(pattern, 12)(leaf(path, 2)) == layer


@pytest.mark.parametrize(
    ("pattern", "path", "layer"),
    [
        ("*_#", "encoderblock_3/kernel", 4),
        ("*_#", "a/decoder_layer_3/kernel", 4),
        ("*_#", "3/kernel", None),
        ("layers/*/#", "layers/mlp/3/kernel", 4),
        ("layers/*/#", "layers/a/b/3/kernel", None),
        ("layer?/#", "layers/3/kernel", 4),
        ("layer?/#", "layer/3/kernel", None),
        ("layer?/#", "layer//3/kernel", None),
    ],
)
def test_a_glob_stays_within_one_token(
    pattern: str, path: str, layer: int | None
) -> None:
    assert wd.numbered_layers(pattern, 12)(leaf(path, 2)) == layer


@pytest.mark.parametrize("path", ["block12/kernel", "a/block12/kernel"])
def test_a_glob_before_the_number_takes_no_digit_from_it(path: str) -> None:
    assert wd.numbered_layers("block*#", 24)(leaf(path, 2)) == 13


@pytest.mark.parametrize("start", ["", "model/"])
def test_of_several_matches_the_first_counts(start: str) -> None:
    path = f"{start}blocks/1/mlp/blocks/2/kernel"
    assert wd.numbered_layers("blocks/#", 12)(leaf(path, 2)) == 2


def test_tokens_may_hold_any_characters() -> None:
    odd = wd.Leaf(("a\nb", "blocks", "3", "c\n"), (2,), "float32")
    assert wd.numbered_layers("blocks/#", 12)(odd) == 4


def test_the_pattern_decides_before_first_and_first_before_last() -> None:
    layer_of = wd.numbered_layers(
        "blocks/#", 2, first=wd.contains("embed", "kernel"), last=wd.everything
    )
    assert layer_of(leaf("blocks/1/embed/kernel", 2)) == 2
    assert layer_of(leaf("embed/bias", 2)) == 0
    assert layer_of(leaf("bias", 2)) == 3
    all_first = wd.numbered_layers("blocks/#", 2, first=wd.everything)
    assert [all_first(leaf(p, 2)) for p in ("blocks/0", "head")] == [1, 0]
    ends = wd.numbered_layers("blocks/#", 2, last=wd.contains("head"))
    assert [ends(leaf(p, 2)) for p in ("head", "embed")] == [3, None]


@pytest.mark.parametrize("digit", ["٣", "³", "Ⅲ", "３", "三"])  # noqa: RUF001
def test_digits_of_other_scripts_are_no_numbers(digit: str) -> None:
    assert wd.numbered_layers("blocks/#", 12)(leaf(f"blocks/{digit}/kernel")) is None


def test_leading_zeros_do_not_matter() -> None:
    assert wd.numbered_layers("block_#", 12)(leaf("block_007/kernel")) == 8


@pytest.mark.parametrize("number", ["12", "13", "9" * 40])
def test_a_number_that_is_too_high_is_an_error(number: str) -> None:
    layer_of = wd.numbered_layers("block_#", 12, last=wd.everything)
    text = (
        f"layer {number} found at 'block_{number}/mlp/kernel', but num_layers=12 "
        "(layers are 0..11)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        layer_of(leaf(f"block_{number}/mlp/kernel", 2, 2))
    tree = {f"block_{n}": {"mlp": {"kernel": jnp.ones(2)}} for n in ("11", number)}
    assert refused(layer_of, tree) == text
    assert refused(layer_of, {**tree, "gone": None}) == text


SWIN = wd.numbered_layers("layers/#/blocks/#", (2, 2, 6, 2))


def test_two_numbers_count_through_the_outer_ones() -> None:
    paths = [
        f"layers/{i}/blocks/{j}/kernel"
        for i, n in enumerate((2, 2, 6, 2))
        for j in range(n)
    ]
    assert [SWIN(leaf(path, 2)) for path in paths] == list(range(1, 13))


def test_where_the_outer_numbers_start_at_1_the_first_count_is_0() -> None:
    resnet = wd.numbered_layers("layer#/#", (0, 3, 4, 6, 3))
    assert resnet(leaf("layer1/0/conv1/kernel", 2)) == 1
    assert resnet(leaf("layer2/0/conv1/kernel", 2)) == 4
    assert resnet(leaf("layer4/2/conv3/kernel", 2)) == 16
    with pytest.raises(ValueError, match=r"^layer 0/0 found at 'layer0/0/kernel', but"):
        resnet(leaf("layer0/0/kernel", 2))


def test_three_numbers_nest() -> None:
    counts = ((2, 1), (3,), (1, 1))
    layer_of = wd.numbered_layers("a#/b#/c#", counts)
    found = [
        layer_of(leaf(f"a{i}/b{j}/c{k}", 2))
        for i, outer in enumerate(counts)
        for j, n in enumerate(outer)
        for k in range(n)
    ]
    assert found == list(range(1, 9))
    assert layer_of.top == 9


@pytest.mark.parametrize("numbers", ["4/0", "0/2", "3/2", "9/9"])
def test_each_of_several_numbers_may_be_too_high(numbers: str) -> None:
    outer, inner = numbers.split("/")
    path = f"layers/{outer}/blocks/{inner}/kernel"
    with pytest.raises(
        ValueError,
        match=rf"^layer {numbers} found at '{path}', but "
        r"num_layers=\(2, 2, 6, 2\)$",
    ):
        SWIN(leaf(path, 2))


def test_too_many_layers_are_an_error_on_a_complete_tree() -> None:
    tree = blocks(0, 1, 2, head=jnp.ones(2))
    layer_of = wd.numbered_layers("blocks/#", 4, last=wd.everything)
    own = "; for a part of a model give a function of your own as layer_of"
    assert refused(layer_of, tree) == (
        "no leaf has the number 3 of 'blocks/#', the highest by num_layers=4; the "
        f"numbers found are 0, 1, 2, in paths such as 'blocks/0/kernel'{own}"
    )
    assert refused(layer_of, {"head": jnp.ones(2)}) == (
        "no leaf has the number 3 of 'blocks/#', the highest by num_layers=4; the "
        f"numbers found are none, in paths such as 'head'{own}"
    )
    assert refused(SWIN, {"layers": {"0": {"blocks": {"1": jnp.ones(2)}}}}) == (
        "no leaf has the number 1/1 of 'layers/#/blocks/#', the highest by "
        "num_layers=(2, 2, 6, 2); the numbers found are 0/1, in paths such as "
        f"'layers/0/blocks/1'{own}"
    )


def nested(*counts: int) -> dict[str, Any]:
    """A tree of stages with as many blocks each."""
    return {
        "layers": {
            str(stage): {"blocks": {str(n): jnp.ones(2) for n in range(count)}}
            for stage, count in enumerate(counts)
            if count
        }
    }


@pytest.mark.parametrize(
    ("stated", "there", "missing"),
    [
        ((2, 2, 18, 2), (2, 2, 6, 2), "2/17"),
        ((1, 5, 1), (1, 2, 1), "1/4"),
        ((2, 1), (1, 1), "0/1"),
        ((1, 2), (1, 1), "1/1"),
        ((1, 1, 1), (1, 0, 1), "1/0"),
        ((1, 1), (1,), "1/0"),
    ],
)
def test_each_group_needs_its_highest_number(
    stated: tuple[int, ...], there: tuple[int, ...], missing: str
) -> None:
    layer_of = wd.numbered_layers("layers/#/blocks/#", stated)
    numbers = ", ".join(f"{i}/{j}" for i, n in enumerate(there) for j in range(n))
    assert refused(layer_of, nested(*there)) == (
        f"no leaf has the number {missing} of 'layers/#/blocks/#', the highest by "
        f"num_layers={stated}; the numbers found are {numbers}, in paths such as "
        "'layers/0/blocks/0'; for a part of a model give a function of your own as "
        "layer_of"
    )
    assert (
        wd.describe(
            wd.everything, nested(*there), multiplier=wd.layerwise(0.5, layer_of)
        )
        .warnings[-1]
        .startswith(f"no leaf has the number {missing} of ")
    )
    right = wd.numbered_layers("layers/#/blocks/#", there)
    total = sum(there)
    factors = wd.layerwise(0.5, right)(nested(*there))
    assert jax.tree.leaves(factors) == [0.5 ** (total - n) for n in range(total)]


def test_groups_of_groups_need_their_highest_numbers_too() -> None:
    tree = {"a0": {"b0": {"c0": jnp.ones(2)}, "b1": {"c0": jnp.ones(2)}}}
    fine = wd.numbered_layers("a#/b#/c#", ((1, 1),))
    assert jax.tree.leaves(wd.layerwise(0.5, fine)(tree)) == [0.25, 0.5]
    wrong = wd.numbered_layers("a#/b#/c#", ((2, 1),))
    assert refused(wrong, tree).startswith("no leaf has the number 0/0/1 of 'a#/b#/c#'")


def test_a_group_without_layers_needs_none() -> None:
    layer_of = wd.numbered_layers("layers/#/blocks/#", (0, 2))
    assert jax.tree.leaves(wd.layerwise(0.5, layer_of)(nested(0, 2))) == [0.25, 0.5]


def test_a_part_of_a_tree_need_not_hold_the_highest_number() -> None:
    layer_of = wd.numbered_layers("blocks/#", 4, last=wd.everything)
    factors = wd.layerwise(0.5, layer_of)({**blocks(0, 1), "head": None})
    assert jax.tree.leaves(factors) == [0.0625, 0.125]


def test_a_name_in_first_or_last_has_to_match_some_leaf() -> None:
    tree = blocks(0, 1, head=jnp.ones(2))
    for ends in ({"first": wd.contains("heads")}, {"last": wd.contains("heads")}):
        layer_of = wd.numbered_layers("blocks/#", 2, **ends)
        assert refused(layer_of, tree).startswith("contains('heads') matches no leaf")
    fine = wd.numbered_layers(
        "blocks/#", 2, first=wd.optional(wd.contains("heads")), last=wd.everything
    )
    assert wd.layerwise(0.5, fine)(tree)["head"] == 1.0


@pytest.mark.parametrize("pattern", ["blocks", "", None, 3, b"blocks/#"])
def test_a_pattern_without_a_number_is_refused(pattern: Any) -> None:
    with pytest.raises(
        TypeError,
        match="^the pattern of numbered_layers is a string with # for the number, such "
        f"as 'blocks/#', got {pattern!r}$",
    ):
        wd.numbered_layers(pattern, 12)


@pytest.mark.parametrize(
    ("pattern", "num_layers"),
    [
        ("blocks/#", (2, 2)),
        ("blocks/#", 0),
        ("blocks/#", -1),
        ("a/#/b/#", 12),
        ("a/#/b/#", ()),
        ("a/#/b/#", (0, 0)),
        ("a/#/b/#", (2, -1)),
        ("a/#/b/#", (2, (2,))),
        ("a/#/b/#", (2, None)),
        ("a/#/b/#", ((2,), (2,))),
        ("a#/b#/c#", (2, 2)),
    ],
    ids=helpers.label,
)
def test_num_layers_counts_as_many_numbers_as_the_pattern_has(
    pattern: str, num_layers: Any
) -> None:
    text = (
        f"num_layers={num_layers!r} does not count the numbers of {pattern!r}; write "
        "12 for one #, (2, 2, 6, 2) for two"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        wd.numbered_layers(pattern, num_layers)


@pytest.mark.parametrize("pattern", ["blocks/#", "a/#/b/#"])
@pytest.mark.parametrize(
    "num_layers", [True, 12.0, "12", None, [2, 2]], ids=helpers.label
)
def test_num_layers_is_a_number_or_a_tuple(pattern: str, num_layers: Any) -> None:
    text = f"num_layers is 12, or a tuple such as (2, 2, 6, 2), got {num_layers!r}"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        wd.numbered_layers(pattern, num_layers)


@pytest.mark.parametrize("end", ["first", "last"])
@pytest.mark.parametrize(
    "value", ["head", True, 3, lambda leaf: True], ids=helpers.label
)
def test_first_and_last_are_rules(end: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{end} takes a rule such as min_ndim\(2\)"):
        wd.numbered_layers("blocks/#", 12, **{end: value})


# ----------------------------------------------------------------------------- by rules


def test_the_first_row_that_matches_is_the_layer() -> None:
    layer_of = wd.ordered_layers(
        wd.contains("embed"), wd.path("a/**"), wd.path("a/**", "b/**"), wd.named("bias")
    )
    paths = ["embed/kernel", "a/embed", "a/kernel", "b/bias", "c/bias", "c/kernel"]
    assert [layer_of(leaf(path, 2)) for path in paths] == [0, 0, 1, 2, 3, None]


def test_a_row_of_n_layers_lifts_the_next_by_n() -> None:
    a, b, c = (wd.contains(token) for token in "abc")
    layer_of = wd.ordered_layers((a, 3), b, (c, 2), wd.everything)
    found = [layer_of(leaf(path, 6)) for path in "abcd"]
    assert found == [0, 3, 4, 6]
    assert layer_of.top == 6


def test_a_name_in_a_row_has_to_match_some_leaf() -> None:
    tree = blocks(0, 1)
    rows = wd.contains("block"), wd.everything
    assert refused(wd.ordered_layers(*rows), tree).startswith(
        "contains('block') matches no leaf; the nearest are"
    )
    fine = wd.ordered_layers(wd.optional(rows[0]), rows[1])
    assert jax.tree.leaves(wd.layerwise(0.5, fine)(tree)) == [1.0, 1.0]
    partial = {**tree, "head": None}
    answer = wd.layerwise(0.5, wd.ordered_layers(*rows))(partial)
    assert jax.tree.leaves(answer) == [1.0, 1.0]


def test_no_row_is_an_error() -> None:
    text = r"^ordered_layers\(\) has no row; write rules, the lowest first$"
    with pytest.raises(ValueError, match=text):
        wd.ordered_layers()


@pytest.mark.parametrize("n", [0, -1])
def test_a_row_holds_at_least_one_layer(n: int) -> None:
    text = rf"^a row of ordered_layers holds {n} layers: \(contains\('a'\), {n}\)$"
    with pytest.raises(ValueError, match=text):
        wd.ordered_layers((wd.contains("a"), n))


@pytest.mark.parametrize(
    "row",
    [
        "blocks",
        None,
        (wd.everything,),
        (3, wd.everything),
        (wd.everything, 2.0),
        (wd.everything, True),
        (wd.everything, "2"),
        (wd.everything, 2, 3),
        ("blocks", 2),
        wd.first_match((wd.everything, 0.5)),
        wd.numbered_layers("blocks/#", 12),
    ],
    ids=helpers.label,
)
def test_a_row_is_a_rule_or_a_pair(row: Any) -> None:
    text = (
        "a row of ordered_layers is a rule, or a pair (rule, number of stacked "
        f"layers), got {row!r}"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        wd.ordered_layers(wd.everything, row)


# ---------------------------------------------------------------------------- as values

CODE = (
    "numbered_layers('blocks/#', 12)",
    "numbered_layers('blocks/#', 11)",
    "numbered_layers('block_#', 12)",
    "numbered_layers('blocks/#', 12, first=contains('cls_token', 'pos_embed'))",
    "numbered_layers('blocks/#', 12, last=everything)",
    "numbered_layers('blocks/#', 12, first=named('a') & ~named('b'), last=everything)",
    "numbered_layers('layer#/#', (0, 3, 4, 6, 3))",
    "numbered_layers('a#/b#/c#', ((1, 2), (3,)))",
    "ordered_layers(everything)",
    "ordered_layers(contains('embed'), everything)",
    "ordered_layers(contains('embed'), (contains('blocks'), 12), everything)",
    "ordered_layers((contains('embed') | named('bias'), 2))",
)


def made(code: str) -> Any:
    return eval(code, dict(vars(wd)))


@pytest.mark.parametrize("code", CODE)
def test_layers_print_as_the_code_that_makes_them(code: str) -> None:
    assert repr(made(code)) == code
    assert made(repr(made(code))) == made(code)


@pytest.mark.parametrize("code", CODE)
def test_equal_layers_hash_alike_and_survive_copies(code: str) -> None:
    one, two = made(code), made(code)
    assert one is not two and one == two and hash(one) == hash(two)
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one


def test_other_layers_are_not_equal() -> None:
    assert len({made(code) for code in CODE}) == len(CODE)
    swapped = wd.ordered_layers(wd.everything, wd.contains("embed"))
    assert swapped != made("ordered_layers(contains('embed'), everything)")


def test_a_pair_of_one_layer_is_the_rule_alone() -> None:
    rule = wd.contains("a")
    assert wd.ordered_layers((rule, 1)) == wd.ordered_layers(rule)
    assert repr(wd.ordered_layers((rule, 1))) == "ordered_layers(contains('a'))"
