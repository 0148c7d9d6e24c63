# SPDX-License-Identifier: Apache-2.0
"""Layer-wise factors: other code bases' figures, training, stacks, partial trees."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import forms
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_wd as wd


def ones(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


def model(seed: int = 0) -> dict[str, Any]:
    """Two blocks between an embedding and a head, of random numbers."""
    rng = np.random.default_rng(seed)
    block = {"kernel": (3, 2), "bias": (2,)}
    shapes = {"embed": (2, 2), "blocks": {"0": block, "1": block}, "head": (2, 2)}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


LAYERS = wd.numbered_layers(
    "blocks/#", 2, first=wd.contains("embed"), last=wd.everything
)
HALVES = wd.layerwise(0.5, LAYERS)
DEPTHS = {"embed": 3, "blocks/0": 2, "blocks/1": 1, "head": 0}


def depth(path: str) -> int:
    return next(n for start, n in DEPTHS.items() if path.startswith(start))


def refused(given: Any, tree: Any) -> str:
    """The text of the error for a tree."""
    with pytest.raises(ValueError) as caught:
        given(tree)
    return str(caught.value)


def scaled(given: Any, updates: Any) -> Any:
    return helpers.once(wd.scale_per_leaf(given), updates, None)


# ----------------------------------------------------------------- figures of the field


def vit(tokens: wd.Rule) -> Any:
    """timm's twelve blocks, of which the last has the final norm with it."""
    blocks = [wd.path(f"blocks/{n}/**") for n in range(12)]
    last = blocks[-1] | wd.path("norm/*")
    return wd.ordered_layers(tokens, *blocks[:-1], last, wd.everything)


def mae(num_layers: int) -> Any:
    return wd.numbered_layers(
        "blocks/#",
        num_layers,
        first=wd.optional(wd.contains("cls_token", "pos_embed", "patch_embed")),
        last=wd.everything,
    )


def cait(leaf: wd.Leaf) -> int:
    """The blocks of tokens alone share the ids of the last blocks."""
    match leaf.path:
        case ("blocks", number, *_):
            return int(number) + 1
        case ("blocks_token_only", number, *_):
            return int(number) + 23
        case (("norm" | "head") as top, *_):
            return 24 if top == "norm" else 25
    return 0


def stages(outer: str, depths: tuple[int, ...], stem: str, norm: str) -> Any:
    """The reduction in front of a stage goes with the first block of it."""
    rows: list[wd.Rule] = []
    for i, n in enumerate(depths):
        blocks = [wd.path(f"{outer}/{i}/blocks/{j}/**") for j in range(n)]
        reduction = wd.optional(wd.path(f"{outer}/{i}/downsample/**"))
        rows += [blocks[0] | reduction, *blocks[1:]]
    rows[-1] |= wd.optional(wd.path(norm))
    return wd.ordered_layers(wd.path(stem), *rows, wd.everything)


def xcit() -> Any:
    rows = [wd.path(f"blocks/{n}/**") for n in range(12)]
    rows += [wd.path("cls_attn_blocks/0/**")]
    rows += [wd.path("cls_attn_blocks/1/**", "norm/*")]
    first = wd.contains("cls_token", "pos_embed", "patch_embed")
    return wd.ordered_layers(first, *rows, wd.everything)


TOKENS = wd.contains("cls_token", "pos_embed", "patch_embed")
LAYER_OF: dict[str, Any] = {
    "dinov2__vit_base_patch14_dinov2": mae(12),
    "mae_finetune__vit_base_patch16_224": mae(12),
    "timm__beit_base_patch16_224": mae(12),
    "timm__cait_s24_224": cait,
    "timm__convnext_tiny": stages("stages", (3, 3, 9, 3), "stem/**", "norm/*"),
    "timm__deit_base_distilled_patch16_224": vit(TOKENS | wd.named("dist_token")),
    "timm__mixer_b16_224": vit(wd.contains("stem")),
    "timm__resnet50": wd.numbered_layers(
        "layer#/#",
        (0, 3, 4, 6, 3),
        first=wd.path("conv1/*", "bn1/*"),
        last=wd.contains("fc"),
    ),
    "timm__swin_tiny_patch4_window7_224": stages(
        "layers", (2, 2, 6, 2), "patch_embed/**", "norm/*"
    ),
    # It has no head, and timm counts the layers that there are.
    "timm__vit_base_patch14_dinov2": lambda leaf: vit(TOKENS)(leaf),
    "timm__vit_base_patch16_224": vit(TOKENS),
    "timm__xcit_tiny_12_p16_224": xcit(),
}
GROUPS = {k: v for k, v in helpers.groups().items() if "layer_decay" in v}


def tree_of(group: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a model by path, abstract."""
    return {
        entry["name"].replace(".", "/"): jax.ShapeDtypeStruct(
            tuple(entry["shape"]), jnp.float32
        )
        for entry in group["params"]
    }


def figures(group: dict[str, Any]) -> dict[str, float]:
    scales = group["layer_decay"]["lr_scale"]
    return {name.replace(".", "/"): scale for name, scale in scales.items()}


def test_every_model_with_layer_wise_figures_is_checked() -> None:
    assert list(LAYER_OF) == sorted(GROUPS)
    assert len(GROUPS) == 12
    for group in GROUPS.values():
        assert len(figures(group)) == len(group["params"])


@pytest.mark.parametrize("name", LAYER_OF)
def test_factors_are_exactly_those_of_the_code_base(name: str) -> None:
    group = GROUPS[name]
    decay = group["layer_decay"]
    found = wd.layerwise(decay["rate"], LAYER_OF[name])(tree_of(group))
    extra = decay.get("patch_embed_lr_mult", 1.0)
    for path in found:
        if path.startswith("patch_embed"):
            found[path] *= extra
    assert found == figures(group)


def test_dinov2_multiplies_twice() -> None:
    group = GROUPS["dinov2__vit_base_patch14_dinov2"]
    updates = {path: jnp.ones(1) for path in tree_of(group)}
    factors = wd.layerwise(0.9, mae(12))
    patches = wd.first_match((wd.contains("patch_embed"), 0.2), default=1.0)
    chained = optax.chain(wd.scale_per_leaf(factors), wd.scale_per_leaf(patches))

    def product(tree: Any) -> Any:
        return jax.tree.map(lambda a, b: a * b, factors(tree), patches(tree))

    twice, once = helpers.once(chained, updates, None), scaled(product, updates)
    for path, scale in figures(group).items():
        assert float(once[path][0]) == np.float32(scale)
        assert float(twice[path][0]) == pytest.approx(scale, rel=1e-7)


@pytest.mark.parametrize("name", ["timm__cait_s24_224", "timm__convnext_tiny"])
def test_updates_are_scaled_by_the_figures_of_the_code_base(name: str) -> None:
    group = GROUPS[name]
    updates = {path: jnp.ones(1) for path in tree_of(group)}
    after = scaled(wd.layerwise(0.75, LAYER_OF[name]), updates)
    for path, scale in figures(group).items():
        assert float(after[path][0]) == np.float32(scale)


# -------------------------------------------------------------------- factors of a tree


def test_factors_fall_from_the_top_to_the_bottom() -> None:
    factors = forms.answers(HALVES(model()))
    assert factors == {path: 0.5 ** depth(path) for path in factors}
    assert jax.tree.structure(HALVES(model())) == jax.tree.structure(model())
    assert all(type(factor) is float for factor in factors.values())


def test_no_factor_is_below_the_minimum() -> None:
    factors = wd.layerwise(0.5, LAYERS, minimum=0.3)(model())
    assert (factors["embed"], factors["blocks"]["0"]["bias"]) == (0.3, 0.3)
    assert (factors["blocks"]["1"]["bias"], factors["head"]) == (0.5, 1.0)


@pytest.mark.parametrize(("rate", "bottom"), [(0, 0.0), (1, 1.0), (2.0, 8.0)])
def test_a_rate_may_be_0_or_1_or_more(rate: float, bottom: float) -> None:
    factors = wd.layerwise(rate, LAYERS)(model())
    assert (factors["embed"], factors["head"]) == (bottom, 1.0)


def test_a_rate_of_0_trains_the_top_alone() -> None:
    after = scaled(wd.layerwise(0, LAYERS), model())
    top = after.pop("head")
    assert top is not None and bool(jnp.all(top != 0))
    assert all(not np.any(np.asarray(u)) for u in jax.tree.leaves(after))


def test_the_highest_layer_is_stated_or_that_of_the_tree() -> None:
    tree = model()
    del tree["head"]
    assert HALVES(tree)["blocks"]["1"]["bias"] == 0.5
    own = wd.layerwise(0.5, lambda leaf: LAYERS(leaf))
    assert own(tree)["blocks"]["1"]["bias"] == 1.0
    assert own(tree)["embed"] == 0.25
    assert own({}) == {}


def test_a_numpy_integer_is_an_id() -> None:
    ids = {"a": np.int64(0), "b": np.uint8(1)}
    given = wd.layerwise(0.5, lambda leaf: ids[leaf.name])
    assert given(ones(a=(2,), b=(2,))) == {"a": 0.5, "b": 1.0}


def test_leaves_that_are_not_inexact_need_no_layer() -> None:
    tree = {**model(), "count": jnp.asarray(3), "name": jax.nn.relu}
    layers = wd.numbered_layers("blocks/#", 2, first=wd.contains("embed", "head"))
    factors = wd.layerwise(0.5, layers)(tree)
    assert (factors["count"], factors["name"]) == (1.0, 1.0)

    def asked(leaf: wd.Leaf) -> int | None:
        assert leaf.is_inexact
        return layers(leaf)

    assert wd.layerwise(0.5, asked)(tree)["count"] == 1.0


@pytest.mark.parametrize("form", forms.single())
def test_every_form_of_a_model_has_the_same_factors(form: str) -> None:
    tree = forms.single()[form]
    given = wd.layerwise(
        0.5, wd.ordered_layers(wd.contains("norm"), wd.contains("attn"), wd.everything)
    )
    answer = given(tree)
    assert jax.tree.structure(answer) == jax.tree.structure(tree)
    by_module = {"norm": 0.25, "attn": 0.5, "mlp": 1.0}
    expected = {path: by_module[path.split("/")[0]] for path in forms.WEIGHTS}
    assert forms.answers(answer) == expected


# ----------------------------------------------------------------------------- training


def chain(*parts: Any) -> Any:
    return optax.chain(optax.scale_by_adam(), *parts)


def adam_in_numpy(tree: Any, gradients: Any, step: Callable[..., Any]) -> Any:
    """`step(path, direction, parameter)` for each leaf, at Adam's first step."""
    result = {}
    for path, g in forms.answers(gradients).items():
        g64 = np.asarray(g, np.float64)
        direction = g64 / (np.abs(g64) + 1e-8)
        result[path] = step(
            path, direction, np.asarray(forms.answers(tree)[path], np.float64)
        )
    return result


def assert_close(found: Any, expected: dict[str, Any]) -> None:
    answers = forms.answers(found)
    assert list(answers) == list(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(answers[path], value, rtol=0, atol=2e-6)


def test_one_step_is_one_of_adamw_with_a_learning_rate_per_leaf() -> None:
    params, (grads,) = model(), helpers.noise(model(), 1)
    tx = chain(
        wd.masked_decay(0.05, wd.named("kernel")),
        wd.scale_per_leaf(HALVES),
        optax.scale_by_learning_rate(0.1),
    )

    def step(path: str, u: Any, p: Any) -> Any:
        decay = 0.05 if path.endswith("kernel") else 0.0
        return p - 0.1 * 0.5 ** depth(path) * (u + decay * p)

    assert_close(
        helpers.run(tx, params, [grads])[0][0], adam_in_numpy(params, grads, step)
    )


def test_scaling_both_squares_the_factor_of_the_decay() -> None:
    params, (grads,) = model(), helpers.noise(model(), 1)
    tx = chain(
        wd.masked_decay(0.05, wd.everything, multiplier=HALVES),
        wd.scale_per_leaf(HALVES),
        optax.scale_by_learning_rate(0.1),
    )

    def step(path: str, u: Any, p: Any) -> Any:
        k = depth(path)
        return p - 0.1 * (0.5**k * u + 0.5 ** (2 * k) * 0.05 * p)

    assert_close(
        helpers.run(tx, params, [grads])[0][0], adam_in_numpy(params, grads, step)
    )


def test_before_the_decay_the_step_alone_is_scaled() -> None:
    params, (grads,) = model(), helpers.noise(model(), 1)
    tx = chain(
        wd.scale_per_leaf(HALVES),
        wd.masked_decay(0.05, wd.everything),
        optax.scale_by_learning_rate(0.1),
    )

    def step(path: str, u: Any, p: Any) -> Any:
        return p - 0.1 * (0.5 ** depth(path) * u + 0.05 * p)

    assert_close(
        helpers.run(tx, params, [grads])[0][0], adam_in_numpy(params, grads, step)
    )


def test_as_a_multiplier_the_decay_alone_is_scaled() -> None:
    params, (grads,) = model(), helpers.noise(model(), 1)
    decay = wd.masked_decay(0.05, wd.everything, multiplier=HALVES)
    tx = chain(decay, optax.scale_by_learning_rate(0.1))

    def step(path: str, u: Any, p: Any) -> Any:
        return p - 0.1 * (u + 0.5 ** depth(path) * 0.05 * p)

    assert_close(
        helpers.run(tx, params, [grads])[0][0], adam_in_numpy(params, grads, step)
    )


@helpers.every_decay
def test_in_a_ready_chain_it_does_what_the_chain_written_out_does(decay: Any) -> None:
    params, grads = model(), helpers.noise(model(), 3)
    parts = optax.chain(decay(0.05, wd.everything), wd.scale_per_leaf(HALVES))
    ready = helpers.run(wd.adamw(0.1, parts), params, grads)[0][-1]
    written = helpers.run(
        chain(parts, optax.scale_by_learning_rate(0.1)), params, grads
    )
    assert helpers.largest_difference(ready, written[0][-1]) < 1e-6


def test_the_shrink_of_each_leaf_is_measured_as_asked() -> None:
    tx = chain(
        wd.masked_decay(0.5, wd.everything),
        wd.scale_per_leaf(HALVES),
        optax.scale_by_learning_rate(0.5),
    )
    params = jax.tree.map(jnp.ones_like, model())
    updates = helpers.once(tx, jax.tree.map(jnp.zeros_like, params), params)
    for path, update in forms.answers(updates).items():
        assert set(np.ravel(update)) == {-0.25 * 0.5 ** depth(path)}


# ----------------------------------------------------------------------- stacked layers

STACK = wd.contains("blocks")


def test_a_stacked_leaf_has_an_array_of_its_rank() -> None:
    tree = ones(embed=(2,), blocks=(3, 2, 5), head=(2, 2))
    layers = wd.ordered_layers(wd.contains("embed"), (STACK, 3), wd.everything)
    factors = wd.layerwise(0.5, layers, stacked=STACK)(tree)
    assert (factors["embed"], factors["head"]) == (0.0625, 1.0)
    assert factors["blocks"].shape == (3, 1, 1)
    assert factors["blocks"].ravel().tolist() == [0.125, 0.25, 0.5]


def test_layers_may_be_stacked_along_axis_1() -> None:
    tree = ones(blocks=(2, 3, 5), head=(2,))
    layers = wd.ordered_layers((STACK, 3), wd.everything)
    factors = wd.layerwise(0.5, layers, stacked=((STACK, 1),))(tree)
    assert factors["blocks"].shape == (1, 3, 1)
    assert factors["blocks"].ravel().tolist() == [0.125, 0.25, 0.5]
    after = scaled(wd.layerwise(0.5, layers, stacked=((STACK, 1),)), tree)["blocks"]
    for n, factor in enumerate([0.125, 0.25, 0.5]):
        assert set(np.ravel(after[:, n])) == {factor}


@pytest.mark.parametrize(
    ("axes", "shape", "places"),
    [
        ((0, 0), (2, 3, 4), (0, 1)),
        ((0, 1), (2, 4, 3), (0, 2)),
        ((1, 0), (3, 2, 4), (1, 0)),
        ((2, 0), (3, 4, 2), (2, 0)),
        ((2, 1), (4, 3, 2), (2, 1)),
        ((1, 1), (4, 2, 3), (1, 2)),
    ],
)
def test_of_two_stacked_axes_the_outer_is_named_first(
    axes: tuple[int, int], shape: tuple[int, ...], places: tuple[int, int]
) -> None:
    outer, inner = axes
    layers = wd.ordered_layers((STACK, 6), wd.everything)
    given = wd.layerwise(0.5, layers, stacked=((STACK, outer), (STACK, inner)))
    factors = given(ones(blocks=shape, head=(2,)))["blocks"]
    assert factors.shape == tuple(n if n < 4 else 1 for n in shape)
    for i in range(2):
        for j in range(3):
            index = [0, 0, 0]
            index[places[0]], index[places[1]] = i, j
            assert factors[tuple(index)] == 0.5 ** (6 - (3 * i + j))


def test_three_stacked_axes_nest() -> None:
    layers = wd.ordered_layers((STACK, 24))
    pairs = ((STACK, 2), (STACK, 0), (STACK, 0))
    factors = wd.layerwise(0.5, layers, stacked=pairs)(ones(blocks=(3, 4, 2)))["blocks"]
    ids = np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0)
    np.testing.assert_array_equal(factors, 0.5 ** (23.0 - ids))


def test_a_function_of_your_own_gives_the_first_of_a_stack() -> None:
    first = {"embed": 0, "blocks": 1, "head": 4}
    given = wd.layerwise(0.5, lambda leaf: first[leaf.path[0]], stacked=STACK)
    tree = ones(embed=(2,), blocks=(3, 2), head=(2,))
    assert given(tree)["blocks"].ravel().tolist() == [0.125, 0.25, 0.5]
    del tree["head"]  # the last of the stack is the top
    assert given(tree)["blocks"].ravel().tolist() == [0.25, 0.5, 1.0]
    assert given(tree)["embed"] == 0.125


def test_numbers_and_stacks_may_be_combined() -> None:
    given = wd.layerwise(
        0.5,
        lambda leaf: 1 + 2 * int(leaf.path[0][-1]) if "stage" in leaf.path[0] else 0,
        stacked=wd.contains("stage_*"),
    )
    factors = given(ones(stem=(2,), stage_0=(2, 3), stage_1=(2, 3)))
    assert factors["stem"] == 0.0625
    assert factors["stage_0"].ravel().tolist() == [0.125, 0.25]
    assert factors["stage_1"].ravel().tolist() == [0.5, 1.0]


def rolled(tree: Any, axis: int = 0) -> Any:
    """The tree with its blocks in one stack, as `nn.scan` makes it."""
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves, axis), *tree["blocks"].values()
    )
    return {**tree, "blocks": stacked}


PLACES: dict[str, Callable[[Any], Any]] = {
    "plain decay": lambda m: wd.masked_decay(0.1, wd.everything, multiplier=m),
    "cautious decay": lambda m: wd.cautious_weight_decay(
        0.1, wd.everything, multiplier=m
    ),
    "anchored decay": lambda m: helpers.DECAYS["anchored"](
        0.1, wd.everything, multiplier=m
    ),
    "scale_per_leaf": wd.scale_per_leaf,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("axis", "rate"), [(0, 0.75), (1, 0.75), (0, 0)])
def test_a_scanned_model_is_scaled_as_the_same_model_unrolled(
    place: Any, axis: int, rate: float
) -> None:
    params, (grads,) = model(), helpers.noise(model(), 1)
    one = place(wd.layerwise(rate, LAYERS))
    layers = wd.ordered_layers(wd.contains("embed"), (STACK, 2), wd.everything)
    two = place(wd.layerwise(rate, layers, stacked=((STACK, axis),)))
    start = jax.tree.map(jnp.zeros_like, params)  # what an anchored decay remembers
    expected = one.update(grads, one.init(start), params)[0]
    state = two.init(rolled(start, axis))
    found = two.update(rolled(grads, axis), state, rolled(params, axis))[0]
    helpers.assert_same(found, rolled(expected, axis))
    assert helpers.largest_difference(found, rolled(grads, axis)) > 0.02


@pytest.mark.parametrize("form", forms.stacked())
def test_every_form_of_a_scanned_model_has_the_same_factors(form: str) -> None:
    tree = forms.stacked()[form]
    given = wd.layerwise(
        0.5, wd.ordered_layers((wd.everything, 3)), stacked=wd.everything
    )
    answer = given(tree)
    assert jax.tree.structure(answer) == jax.tree.structure(tree)
    shapes = forms.answers(forms.linen_scanned())
    answers = forms.answers(answer)
    assert list(answers) == list(forms.WEIGHTS)
    for path, factor in answers.items():
        assert factor.shape == (3, *[1] * (shapes[path].ndim - 1))
        assert factor.ravel().tolist() == [0.25, 0.5, 1.0]


def test_a_row_and_the_stack_have_to_agree_about_the_number() -> None:
    tree = ones(blocks=(4, 2), head=(2,))
    row = "write (rule, 4) in ordered_layers, or another axis in stacked="
    pass_it = "pass stacked= with a rule for it"
    for n, stacked, held, advice in (
        (3, STACK, 4, row),
        (1, STACK, 4, row),
        (4, None, 1, pass_it),
        (4, wd.contains("head"), 1, pass_it),
    ):
        rule = STACK if n == 1 else (STACK, n)
        layers = wd.ordered_layers(rule, wd.everything)
        shown = None if held == 1 else stacked
        assert refused(wd.layerwise(0.5, layers, stacked=stacked), tree) == (
            f"'blocks' of shape (4, 2) holds {held} layers by stacked={shown!r}, but "
            f"{n} by {layers!r}; {advice}"
        )


def test_what_the_error_about_a_stack_advises_helps() -> None:
    tree = ones(blocks=(4, 2), head=(2,))
    rows = wd.ordered_layers((STACK, 4), wd.everything)
    answer = wd.layerwise(0.5, rows, stacked=STACK)(tree)
    assert answer["blocks"].ravel().tolist() == [0.0625, 0.125, 0.25, 0.5]
    two = ones(blocks=(2, 4), head=(2,))
    for_axis_0 = wd.layerwise(0.5, rows, stacked=STACK)
    assert "holds 2 layers by stacked=contains('blocks'), but 4" in (
        refused(for_axis_0, two)
    )
    answer = wd.layerwise(0.5, rows, stacked=((STACK, 1),))(two)
    assert answer["blocks"].shape == (1, 4)


def test_a_stack_below_a_number_is_refused() -> None:
    layers = wd.numbered_layers("block_#", 2)
    given = wd.layerwise(0.5, layers, stacked=wd.contains("block_1"))
    assert refused(given, ones(block_0=(2,), block_1=(3, 2))) == (
        "'block_1' of shape (3, 2) holds 3 layers by stacked=contains('block_1'), but "
        f"1 by {layers!r}; write (rule, 3) in ordered_layers, or another axis in "
        "stacked="
    )
    one = wd.layerwise(0.5, layers, stacked=wd.contains("block_1"))
    answer = one(ones(block_0=(2,), block_1=(1, 2)))
    assert answer["block_1"].tolist() == [[0.5]]


def test_stacked_leaves_of_the_ends_of_numbered_layers_are_refused() -> None:
    ends = {"first": wd.contains("embed"), "last": wd.everything}
    layers = wd.numbered_layers("block_#", 1, **ends)
    tree = ones(embed=(2, 3), block_0=(2, 2), head=(4, 2))
    for name, held in (("embed", 2), ("head", 4)):
        given = wd.layerwise(0.5, layers, stacked=wd.contains(name))
        assert f"holds {held} layers by stacked=contains('{name}'), but 1 by" in (
            refused(given, tree)
        )


def test_a_stacked_rule_has_to_fit_the_rank() -> None:
    given = wd.layerwise(0.5, lambda leaf: 0, stacked=((STACK, 1),))
    text = refused(given, ones(blocks=(4,)))
    assert text == (
        "'blocks' of shape (4,) has no axis 1 to take off; make the stacked rule "
        "contains('blocks') narrower"
    )


def test_a_name_in_the_stacked_rule_has_to_match_some_leaf() -> None:
    given = wd.layerwise(0.5, lambda leaf: 0, stacked=wd.contains("block"))
    assert refused(given, ones(blocks=(4,))).startswith("contains('block') matches no")


# ------------------------------------------------------------------------ partial trees


def test_a_masked_part_is_scaled_as_in_the_whole() -> None:
    updates = model()
    whole = scaled(HALVES, updates)
    for keep in ("embed", "blocks", "head"):
        mask = {name: name == keep for name in updates}
        tx = optax.masked(wd.scale_per_leaf(HALVES), mask)
        part: Any = helpers.once(tx, updates, updates)
        helpers.assert_same(part[keep], whole[keep])
        for hole in (None, forms.MASKED):
            holes = {name: x if name == keep else hole for name, x in updates.items()}
            helpers.assert_same(scaled(HALVES, holes)[keep], whole[keep])


@pytest.mark.parametrize(
    "layers",
    [
        LAYERS,
        wd.ordered_layers(
            wd.contains("embed"),
            wd.path("blocks/0/*"),
            wd.path("blocks/1/*"),
            wd.contains("head"),
        ),
    ],
    ids=["numbered", "ordered"],
)
def test_the_groups_of_a_partition_are_scaled_as_the_whole(layers: Any) -> None:
    updates, given = model(), wd.layerwise(0.5, layers)
    labels = wd.first_match(
        (wd.named("bias"), "b"), (wd.contains("head"), "c"), default="a"
    )
    groups: dict[Any, Any] = {label: wd.scale_per_leaf(given) for label in "abc"}
    found = helpers.once(optax.partition(groups, labels), updates, updates)
    helpers.assert_same(found, scaled(given, updates))


def own_layers(leaf: wd.Leaf) -> int | None:
    return LAYERS(leaf)


def test_a_function_of_your_own_is_refused_for_a_part_of_a_tree() -> None:
    given = wd.layerwise(0.5, own_layers)
    text = (
        f"how many layers {own_layers!r} tells apart is not known from a part of a "
        "tree; make it with numbered_layers or ordered_layers, which say so"
    )
    for hole in (None, forms.MASKED):
        assert refused(given, {**model(), "head": hole}) == text
    mask = {"embed": True, "blocks": True, "head": False}
    tx = optax.masked(wd.scale_per_leaf(given), mask)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        helpers.once(tx, model(), model())
    helpers.assert_same(scaled(given, model()), scaled(HALVES, model()))


# ---------------------------------------------------------------------- what is refused


def test_a_leaf_without_a_layer_is_an_error_that_names_it() -> None:
    layers = wd.numbered_layers("blocks/#", 2, first=wd.contains("embed"))
    assert refused(wd.layerwise(0.5, layers), model()) == (
        f"'head' has no layer; {layers!r} found layers 0..2 of 0..3 in other leaves, "
        "and has to name one for each leaf that is scaled"
    )


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([0, 1, 2, 3, 7], "0..3, 7 of 0..7"),
        ([2], "2 of 0..2"),
        ([5, 0, 1, 3], "0..1, 3, 5 of 0..5"),
        ([], "none of 0..0"),
    ],
    ids=str,
)
def test_the_ids_that_were_found_are_told(ids: list[int], found: str) -> None:
    tree = {**{f"l{n}": jnp.ones(2) for n in ids}, "odd": jnp.ones(2)}

    def layer_of(leaf: wd.Leaf) -> int | None:
        return None if leaf.name == "odd" else int(leaf.name[1:])

    text = refused(wd.layerwise(0.5, layer_of), tree)
    assert text.startswith("'odd' has no layer; ")
    assert f" found layers {found} in other leaves" in text


def test_a_leaf_that_does_not_decay_needs_no_layer() -> None:
    given = wd.layerwise(0.5, wd.numbered_layers("blocks/#", 2))
    params = jax.tree.map(jnp.ones_like, model())
    zeros = jax.tree.map(jnp.zeros_like, params)
    decay = wd.masked_decay(1.0, wd.contains("blocks"), multiplier=given)
    updates = helpers.once(decay, zeros, params)
    assert updates["head"] is zeros["head"] and updates["embed"] is zeros["embed"]
    assert set(np.ravel(updates["blocks"]["0"]["kernel"])) == {0.25}
    with pytest.raises(ValueError, match="^'embed' has no layer; numbered_layers"):
        helpers.once(
            wd.masked_decay(1.0, wd.everything, multiplier=given), zeros, params
        )
    with pytest.raises(ValueError, match="^'embed' has no layer; numbered_layers"):
        scaled(given, zeros)


@pytest.mark.parametrize(
    "value", [True, np.bool_(False), "1", 1.0, [1], jnp.asarray(1)]
)
def test_a_layer_is_an_integer(value: Any) -> None:
    text = (
        f"layer_of returned {value!r} for 'a/w'; return the id of its layer, an "
        "integer from 0 on, or None"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        wd.layerwise(0.5, lambda leaf: value)({"a": ones(w=(2,))})


@pytest.mark.parametrize("value", [-1, np.int64(-3)], ids=str)
def test_a_layer_is_not_negative(value: Any) -> None:
    given = wd.layerwise(0.5, lambda leaf: value)
    text = f"layer_of returned {value} for 'a/w'; ids start at 0"
    assert refused(given, {"a": ones(w=(2,))}) == text


@pytest.mark.parametrize(
    "layer_of",
    [wd.contains("blocks"), wd.first_match((wd.everything, 1)), HALVES, 12, "blocks/#"],
    ids=helpers.label,
)
def test_layer_of_is_a_function_of_a_leaf(layer_of: Any) -> None:
    text = (
        "layer_of is a function from a Leaf to an integer or None, got "
        f"{layer_of!r}; write numbered_layers('blocks/#', 12)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        wd.layerwise(0.5, layer_of)


def made_with(name: str, value: Any) -> Any:
    return wd.layerwise(**{"rate": 0.5, "layer_of": LAYERS, name: value})


@pytest.mark.parametrize("name", ["rate", "minimum"])
@pytest.mark.parametrize("value", [-0.5, -1, float("nan"), float("inf")])
def test_rate_and_minimum_are_finite_and_0_or_more(name: str, value: float) -> None:
    with pytest.raises(
        ValueError, match=f"^the {name} of layerwise is 0 or more, got {value}$"
    ):
        made_with(name, value)


@pytest.mark.parametrize("name", ["rate", "minimum"])
@pytest.mark.parametrize("value", [True, "0.5", None, 1j, LAYERS], ids=helpers.label)
def test_rate_and_minimum_are_numbers(name: str, value: Any) -> None:
    text = f"the {name} of layerwise is a number, got {value!r}"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        made_with(name, value)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5)], ids=repr)
def test_numbers_of_numpy_are_numbers(number: Any) -> None:
    given = wd.layerwise(number, LAYERS, minimum=number / 2)
    assert given == wd.layerwise(0.5, LAYERS, minimum=0.25)
    assert eval(repr(given), dict(vars(wd))) == given


@pytest.mark.parametrize("stacked", ["blocks", ((STACK, -1),), ((STACK,),)], ids=str)
def test_stacked_is_a_rule_or_pairs(stacked: Any) -> None:
    with pytest.raises(TypeError, match="^stacked takes a rule, for axis 0, or pairs"):
        wd.layerwise(0.5, LAYERS, stacked=stacked)


def test_factors_are_no_mask() -> None:
    mask: Any = HALVES
    with pytest.raises(TypeError, match=r"^mask is layerwise\(.*pass factors as multi"):
        wd.masked_decay(0.1, mask)


def test_an_array_without_a_path_has_no_layer() -> None:
    text = refused(HALVES, jnp.ones((2, 2)))
    assert "was asked about a single array, which has no path" in text


def test_a_step_count_is_refused_and_static_args_help() -> None:
    with pytest.raises(TypeError, match="^got a step count, expected a parameter tree"):
        HALVES(jnp.asarray(0))
    updates = model()
    inject: Any = optax.inject_hyperparams
    with pytest.raises(TypeError) as caught:
        inject(wd.scale_per_leaf)(multiplier=HALVES).init(updates)
    advised = re.findall('pass static_args="(.*?)"', str(caught.value))
    assert advised == ["multiplier"]
    tx = inject(wd.scale_per_leaf, static_args=advised[0])(multiplier=HALVES)
    helpers.assert_same(helpers.once(tx, updates, updates), scaled(HALVES, updates))
    decay = inject(wd.masked_decay, static_args=("mask", "multiplier"))(
        weight_decay=0.5, mask=wd.everything, multiplier=HALVES
    )
    plain = wd.masked_decay(0.5, wd.everything, multiplier=HALVES)
    helpers.assert_same(
        helpers.once(decay, updates, updates), helpers.once(plain, updates, updates)
    )


# --------------------------------------------------------------------------- as a value

CODE = (
    "layerwise(0.75, numbered_layers('blocks/#', 12))",
    "layerwise(0.5, numbered_layers('blocks/#', 12))",
    "layerwise(0.75, numbered_layers('blocks/#', 12), minimum=0.1)",
    "layerwise(0.75, numbered_layers('layer#/#', (3, 4)), stacked=contains('a'))",
    "layerwise(0.75, numbered_layers('layer#/#', (3, 4)), stacked=((named('a'), 1),))",
    "layerwise(1.0, ordered_layers(named('a'), (everything, 2)), stacked="
    "((everything, 0), (named('b') & everything, 1)), minimum=0.1)",
)


def made(code: str) -> Any:
    return eval(code, dict(vars(wd)))


@pytest.mark.parametrize("code", CODE)
def test_it_prints_as_the_code_that_makes_it(code: str) -> None:
    assert repr(made(code)) == code
    assert made(repr(made(code))) == made(code)


@pytest.mark.parametrize("code", CODE)
def test_equal_ones_hash_alike_and_survive_copies(code: str) -> None:
    one, two = made(code), made(code)
    assert one is not two and one == two and hash(one) == hash(two)
    assert copy.deepcopy(one) == one and pickle.loads(pickle.dumps(one)) == one


def test_different_ones_are_not_equal() -> None:
    assert len({made(code) for code in CODE}) == len(CODE)
    assert wd.layerwise(0.5, own_layers) == wd.layerwise(0.5, own_layers)
    assert wd.layerwise(0.5, own_layers) != HALVES


def test_a_rule_and_the_pair_of_axis_0_are_one_and_the_same() -> None:
    one = wd.layerwise(0.5, LAYERS, stacked=STACK)
    assert one == wd.layerwise(0.5, LAYERS, stacked=((STACK, 0),))
