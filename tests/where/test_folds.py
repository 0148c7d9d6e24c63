# SPDX-License-Identifier: Apache-2.0
"""Folds: what is a matrix, what is known by name, what is refused, what is shown."""

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import forms
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from helpers import quick_compiles as quick_compiles

import optax_wd as wd
from optax_wd._where import folds as _folds


def shapes(tree: Any) -> Any:
    """A tree of tuples as a tree of abstract arrays."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def nested(path: str, leaf: Any) -> dict[str, Any]:
    for token in reversed(path.split("/")):
        leaf = {token: leaf}
    return leaf


def shown(path: str, shape: tuple[int, ...], **options: Any) -> Any:
    """The one row of a tree of one leaf."""
    (row,) = wd.describe_matrices(shapes(nested(path, shape)), **options).rows
    return row


# ------------------------------------------------------------------- known by name

KNOWN = {
    ("mlp/kernel", (6, 4)): ("io", 1, 6, 4),
    ("mlp/weight", (4, 6)): ("oi", 1, 6, 4),
    ("attn/query/kernel", (6, 2, 5)): ("ioo", 1, 6, 10),
    ("attn/key/kernel", (6, 2, 5)): ("ioo", 1, 6, 10),
    ("attn/value/kernel", (6, 2, 5)): ("ioo", 1, 6, 10),
    ("attn/query/kernel", (6, 4)): ("io", 1, 6, 4),
    ("attn/out/kernel", (2, 5, 6)): ("iio", 1, 10, 6),
    ("attn/qkv/kernel", (6, 3, 2, 5)): ("iboo", 3, 6, 10),
    ("Conv_0/kernel", (3, 4, 8)): ("iio", 1, 12, 8),
    ("conv1/kernel", (3, 3, 4, 8)): ("iiio", 1, 36, 8),
    ("down/preconv/kernel", (3, 3, 3, 2, 8)): ("iiiio", 1, 54, 8),
    ("patch_embed/kernel", (16, 3, 8)): ("iio", 1, 48, 8),
    ("patch_embed/kernel", (4, 4, 3, 8)): ("iiio", 1, 48, 8),
    ("patch_embed/proj/kernel", (4, 4, 3, 8)): ("iiio", 1, 48, 8),
    ("embedding/kernel", (4, 4, 3, 8)): ("iiio", 1, 48, 8),  # of patches
    ("conv/weight", (8, 4, 3, 3)): ("oiii", 1, 36, 8),
    ("conv/weight", (8, 4, 1)): ("oii", 1, 4, 8),
    ("conv/weight", (1, 1, 3, 3)): ("oiii", 1, 9, 1),
    ("conv/kernel", (3, 3, 1, 1)): ("iiio", 1, 9, 1),
    ("patch_embed/kernel", (4, 4, 1, 8)): ("iiio", 1, 16, 8),  # of grey images
    ("patch_embed/conv/kernel", (4, 4, 1, 8)): ("iiio", 1, 16, 8),
    ("ConvTranspose_0/kernel", (3, 3, 4, 8)): ("iiio", 1, 36, 8),
    ("ConvTranspose_0/kernel", (3, 3, 1, 8)): ("iiio", 1, 9, 8),  # has no groups
    ("deconv1/kernel", (3, 4, 8)): ("iio", 1, 12, 8),
    ("ConvLocal_0/kernel", (5, 12, 8)): ("bio", 5, 12, 8),
    ("ConvLocal_0/kernel", (5, 6, 12, 8)): ("bbio", 30, 12, 8),
    ("convlocal/weight", (8, 4, 3)): ("oii", 1, 12, 8),
    ("block/moe/wi", (5, 6, 4)): ("bio", 5, 6, 4),
    ("Experts/kernel", (5, 6, 4)): ("bio", 5, 6, 4),
    ("block_sparse_moe/wo_1", (5, 6, 4)): ("bio", 5, 6, 4),
    ("MoeBlock_0/wi_0", (5, 6, 4)): ("bio", 5, 6, 4),
    ("DeepSeekMoeBlock_0/MoeBlock_0/wo", (5, 6, 4)): ("bio", 5, 6, 4),
    ("moe_layers/self_attention/out/kernel", (2, 5, 6)): ("iio", 1, 10, 6),
    ("moe/attn/query/kernel", (6, 2, 5)): ("ioo", 1, 6, 10),
    ("moe/out/kernel", (5, 6, 4)): ("bio", 5, 6, 4),
    ("moe/value/kernel", (5, 6, 4)): ("bio", 5, 6, 4),
    ("experts/q_proj/kernel", (5, 6, 4)): ("bio", 5, 6, 4),
    ("experts/conv/kernel", (5, 6, 4)): ("bio", 5, 6, 4),
    ("experts/conv/weight", (5, 4, 6)): ("boi", 5, 6, 4),
    ("experts/0/conv/kernel", (3, 4, 8)): ("iio", 1, 12, 8),
    ("expert_1/out/kernel", (2, 5, 6)): ("iio", 1, 10, 6),
    ("moe/experts/0/attn/out/kernel", (2, 5, 6)): ("iio", 1, 10, 6),
    ("experts_0/Conv_0/kernel", (3, 4, 8)): ("iio", 1, 12, 8),  # of a list in Linen
    ("experts_0/mlp/out/kernel", (2, 5, 6)): ("iio", 1, 10, 6),
    ("vit_moe/block_0/mha/query/kernel", (6, 2, 5)): ("ioo", 1, 6, 10),
    ("mlp/experts_wi", (5, 6, 4)): ("bio", 5, 6, 4),
    ("moe/dw1/kernel", (5, 6, 4)): ("bio", 5, 6, 4),
    ("expert/w3", (5, 6, 4)): ("bio", 5, 6, 4),
    ("moe/fc/weight", (5, 6, 4)): ("boi", 5, 4, 6),
    ("rnn/weight_ih", (4, 6)): ("oi", 1, 6, 4),
    ("attn/in_proj_weight", (4, 6)): ("oi", 1, 6, 4),
    ("a.conv1.weight", (8, 4, 3, 3)): ("oiii", 1, 36, 8),
    ("a.attn.query.kernel", (6, 2, 5)): ("ioo", 1, 6, 10),
    ("a.q_proj.weight", (4, 6)): ("oi", 1, 6, 4),
}


@pytest.mark.parametrize(("leaf", "expected"), KNOWN.items(), ids=helpers.label)
def test_kernels_of_known_layers_are_folded_as_their_layers_use_them(
    leaf: Any, expected: Any
) -> None:
    row = shown(*leaf)
    assert (row.fold, row.matrices, row.inputs, row.outputs) == expected


UNKNOWN: list[tuple[str, tuple[int, ...]]] = [
    ("mlp/kernel", (3, 6, 4)),  # stacked layers, perhaps
    ("attn/q_proj/kernel", (3, 6, 6)),
    ("attn/query/scale_w", (6, 2, 5)),
    ("attn/query/kernel", (3, 6, 2, 5)),
    ("attn/qkv/kernel", (6, 2, 5, 5)),
    ("convnext/mix/kernel", (3, 6, 4)),
    ("conv/kernel", (2, 3, 3, 3, 4, 8)),
    ("moe/wi", (2, 5, 6, 4)),
    ("w", (2, 3, 4)),
    ("moe/attn/o_proj/kernel", (2, 5, 6)),
    ("moe/out/mix/kernel", (2, 5, 6)),
    ("moe/router_stack", (2, 5, 6)),
    ("moe/attn/wo", (2, 5, 6)),
    ("experts/0/w1/kernel", (3, 6, 4)),
    ("expert_0/fc/kernel", (3, 6, 4)),
    ("dwconv/kernel", (2, 3, 3, 3, 1, 8)),
    ("conv/kernel", (2, 3, 3, 3, 1, 8)),
    ("patch_embed/mix/kernel", (3, 6, 4)),
]


@pytest.mark.parametrize(("path", "shape"), UNKNOWN)
def test_what_no_name_tells_is_refused_and_not_guessed(
    path: str, shape: tuple[int, ...]
) -> None:
    found = wd.describe_matrices(shapes(nested(path, shape)))
    assert found.rows[0].fold == "" and "no known use" in found.warnings[0]
    with pytest.raises(ValueError, match=f"'{path}' of shape .* and no known use"):
        wd.muon(0.1, optax.identity()).init(forms.zeros(shapes(nested(path, shape))))


TWO_USES: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {
    ("experts/attn/out/kernel", (2, 5, 6)): ("'out' merges heads", "'iio' or 'bio'"),
    ("attn/experts/key/kernel", (6, 2, 5)): ("'key' makes heads", "'ioo' or 'bio'"),
    ("moe_block_1/query/kernel", (6, 2, 5)): ("'query' makes heads", "'ioo' or 'bio'"),
    ("MoeBlock_0/conv/kernel", (3, 4, 8)): ("convolution", "'iio' or 'bio'"),
    ("moe_block/conv/weight", (8, 4, 3)): ("convolution", "'oii' or 'boi'"),
    ("conv_moe/kernel", (3, 4, 8)): ("convolution", "'iio' or 'bio'"),
    ("soft_moe/stem/conv/kernel", (3, 4, 8)): ("convolution", "'iio' or 'bio'"),
    ("experts/mlp/out/kernel", (2, 5, 6)): ("'out' merges heads", "'iio' or 'bio'"),
}
DEPTHWISE = "a depthwise or grouped convolution is no matrix and belongs to AdamW"
ONE_CHANNEL = (
    "a convolution of one input channel may be depthwise, which is no matrix and "
    "belongs to AdamW, or dense, as over grey images"
)
TORCH = "transposed, it is (in, out, window) in torch, (out, in, window) in Equinox"
DOUBTFUL: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {
    leaf: (f"its name says one ({said}), its path another (experts)", choice)
    for leaf, (said, choice) in TWO_USES.items()
} | {
    ("dwconv/kernel", (3, 3, 1, 8)): (DEPTHWISE, "'iiio' only where it is dense"),
    ("conv_dw/kernel", (3, 3, 1, 8)): (DEPTHWISE, "'iiio' only where it is dense"),
    ("depthwise_conv/kernel", (3, 1, 8)): (DEPTHWISE, "'iio' only where it is dense"),
    ("group_conv_0/kernel", (3, 4, 8)): (DEPTHWISE, "'iio' only where it is dense"),
    ("a/ConvGroup/weight", (8, 4, 3)): (DEPTHWISE, "'oii' only where it is dense"),
    ("experts/dwconv/kernel", (5, 6, 4)): (DEPTHWISE, "'iio' only where it is dense"),
    ("Conv_1/kernel", (7, 7, 1, 8)): (ONE_CHANNEL, "'iiio' where it is dense"),
    ("mixer/conv1d/kernel", (4, 1, 8)): (ONE_CHANNEL, "'iio' where it is dense"),
    ("conv1d/weight", (8, 1, 4)): (ONE_CHANNEL, "'oii' where it is dense"),
    ("conv/weight", (8, 1, 3, 3)): (ONE_CHANNEL, "'oiii' where it is dense"),
    ("deconv/weight", (4, 8, 3, 3)): (
        TORCH,
        "'ioii' for torch's, 'oiii' for Equinox's",
    ),
    ("ConvTranspose1d/weight", (4, 8, 3)): (
        TORCH,
        "'ioi' for torch's, 'oii' for Equinox's",
    ),
    ("conv2_d_transpose/w", (3, 3, 8, 4)): (
        "transposed, its last axes are (in, out) or (out, in)",
        "'iiio' or 'iioi' accordingly",
    ),
}


@pytest.mark.parametrize(("leaf", "expected"), DOUBTFUL.items(), ids=helpers.label)
def test_what_names_tell_twice_or_not_enough_is_refused_with_each_reading(
    leaf: Any, expected: Any
) -> None:
    (path, shape), (why, choice) = leaf, expected
    message = (
        f"{path!r} of shape {shape} has {len(shape)} axes and no known use: {why}; "
        f"name its fold in folds=first_match((path({path!r}), ...)): {choice}; or "
        f"leave it to AdamW: matrices=matrices & ~path({path!r})"
    )
    params = shapes(nested(path, shape))
    assert wd.describe_matrices(params).warnings == (message,)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        wd.muon(0.1, optax.identity()).init(forms.zeros(params))
    letters = choice.split("'")[1]  # what is offered is taken
    folds = wd.first_match((wd.path(path), letters))
    assert shown(path, shape, folds=folds).fold == letters


STACKED: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {
    ("blocks/attn/query/kernel", (3, 8, 2, 4)): ("'bioo'", "ioo"),
    ("params/blocks/0/qkv/kernel", (4, 8, 3, 2, 5)): ("'biboo'", "iboo"),
    ("layers/moe/wi", (2, 5, 6, 4)): ("'bbio'", "bio"),
    ("model/b[1]/mlp/kernel", (3, 6, 4)): ("'bio'", "io"),
    ("w", (3, 6, 4)): ("'bio'", "io"),
}


@pytest.mark.parametrize(("leaf", "expected"), STACKED.items(), ids=helpers.label)
def test_a_use_that_is_known_with_an_axis_less_is_offered_with_its_stacked_axis(
    leaf: Any, expected: Any
) -> None:
    choice, letters = expected
    # Of its module: the biases beside it have the axis too.
    module, _, name = leaf[0].replace("[", "[[]").rpartition("/")
    rule = f"path({module + '/**' if module else name!r})"
    (warning,) = wd.describe_matrices(shapes(nested(*leaf))).warnings
    assert (
        f"axes and no known use; one axis may be stacked, as stacked={rule} says of "
        "the first, or name its fold in folds=first_match((path("
    ) in warning
    assert f"...)): {choice}" in warning
    assert shown(*leaf, stacked=wd.parse_rule(rule)).fold == f"b{letters}"


def test_axes_besides_the_stacked_ones_are_counted_where_a_leaf_is_refused() -> None:
    options: dict[str, Any] = {"stacked": ((wd.contains("layers"), 1),)}
    params = shapes(nested("layers/Mix_0/wi_0", (4, 3, 8, 16)))
    (warning,) = wd.describe_matrices(params, **options).warnings
    assert warning.startswith(
        "'layers/Mix_0/wi_0' of shape (4, 3, 8, 16) has 3 axes besides the stacked "
        "ones and no known use; name its stacked axes in stacked=, or name its fold in"
    )
    row = shown("layers/MoeBlock_0/wi_0", (4, 3, 8, 16), **options)
    assert row[2:6] == ("bbio", 12, 8, 16)


def test_an_array_that_stands_alone_is_refused_with_rules_that_accept_it() -> None:
    message = (
        r"^'' of shape \(2, 3, 4\) has .* as stacked=everything says of the first, or "
        r"name its fold in folds=first_match\(\(everything, ...\)\): .*=nothing$"
    )
    with pytest.raises(ValueError, match=message):
        wd.muon(0.1, optax.identity(), matrices=wd.everything).init(jnp.ones((2, 3, 4)))


class Expert(nnx.Module):
    """An expert whose layers are called as those of attention and convolutions are."""

    def __init__(self, rngs: nnx.Rngs):
        self.key = nnx.Linear(6, 10, rngs=rngs)
        self.conv = nnx.Linear(10, 10, rngs=rngs)
        self.out = nnx.Linear(10, 6, rngs=rngs)


@nnx.split_rngs(splits=5)
@nnx.vmap
def make_experts(rngs: nnx.Rngs) -> Expert:
    return Expert(rngs)


class Layers(nnx.Module):
    """Layers of Flax as Flax makes them."""

    def __init__(self, rngs: nnx.Rngs):
        self.experts = make_experts(rngs)
        self.conv1 = nnx.Conv(4, 8, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(8, 8, (7, 7), feature_group_count=8, rngs=rngs)
        self.conv_transpose = nnx.ConvTranspose(4, 8, (3, 3), rngs=rngs)


def test_layers_made_by_flax_are_folded_as_they_use_their_kernels() -> None:
    found = wd.describe_matrices(nnx.eval_shape(lambda: Layers(nnx.Rngs(0))))
    rows = {row.path: tuple(row[2:6]) for row in found.rows if "kernel" in row.path}
    assert rows == {
        "experts/key/kernel": ("bio", 5, 6, 10),
        "experts/conv/kernel": ("bio", 5, 10, 10),
        "experts/out/kernel": ("bio", 5, 10, 6),
        "conv1/kernel": ("iiio", 1, 36, 8),
        "conv2/kernel": ("", 0, 0, 0),
        "conv_transpose/kernel": ("iiio", 1, 36, 8),
    }
    (warning,) = found.warnings
    assert warning.startswith("'conv2/kernel' of shape (7, 7, 1, 8) has 4 axes")


def test_the_axes_that_errors_and_pages_tell_are_those_of_the_libraries() -> None:
    key, x = jax.random.key(0), jnp.ones((1, 7, 4))
    local: Any = nn.ConvLocal(8, (3,)).init(key, x)["params"]
    assert local["kernel"].shape == (7, 12, 8)  # positions, window by inputs, outputs
    turned: Any = nn.ConvTranspose(8, (3,), transpose_kernel=True).init(key, x)
    assert turned["params"]["kernel"].shape == (3, 8, 4)
    assert eqx.nn.ConvTranspose1d(4, 8, 3, key=key).weight.shape == (8, 4, 3)


@pytest.mark.parametrize("name", forms.single())
def test_every_form_of_a_model_has_the_same_folds(name: str) -> None:
    rows = wd.describe_matrices(forms.single()[name]).rows
    assert {row.path: bool(row.fold) for row in rows} == forms.WEIGHTS
    folds = {row.path: row.fold for row in rows if row.fold}
    assert folds == {
        "attn/key/kernel": "ioo",
        "attn/out/kernel": "iio",
        "attn/query/kernel": "ioo",
        "attn/value/kernel": "ioo",
        "mlp/kernel": "io",
    }


@pytest.mark.parametrize("name", forms.stacked())
def test_stacked_layers_are_matrices_each_for_itself(name: str) -> None:
    model = forms.stacked()[name]
    found = wd.describe_matrices(model, stacked=wd.everything)
    assert {row.path: bool(row.fold) for row in found.rows} == forms.WEIGHTS
    rows = {row.path: row for row in found.rows}
    assert rows["attn/out/kernel"][2:6] == ("biio", forms.LAYERS, 4, 6)
    assert rows["mlp/kernel"][2:6] == ("bio", forms.LAYERS, 6, 6)
    assert found.warnings == ()


def test_a_stacked_axis_may_be_anywhere_and_there_may_be_two() -> None:
    at_one = ((wd.contains("mlp"), 1),)
    assert shown("mlp/kernel", (6, 3, 4), stacked=at_one).fold == "ibo"
    twice = ((wd.everything, 0), (wd.everything, 2))
    row = shown("query/kernel", (3, 6, 2, 4, 5), stacked=twice)
    assert row[2:6] == ("biobo", 12, 6, 10)


def test_an_unusual_name_with_a_stacked_axis_is_a_vector_and_no_matrix() -> None:
    row = shown("blocks/xyz", (3, 6), stacked=wd.contains("blocks"))
    assert row.fold == "" and row.because.endswith(", without 1 stacked")
    assert shown("blocks/xyz", (3, 6)).fold == "io"


COMPOSED = {
    "and": wd.matrices & ~wd.optional(wd.contains("zz")),
    "or": wd.matrices | wd.nothing,
    "optional": wd.optional(wd.matrices),
    "not": ~(~wd.everything | ~wd.matrices),
    "table": wd.first_match((wd.matrices, True), default=False),
}


@pytest.mark.parametrize("kind", COMPOSED)
def test_stacked_axes_are_taken_off_inside_of_a_composed_rule(kind: str) -> None:
    options: dict[str, Any] = {"matrices": COMPOSED[kind], "stacked": wd.everything}
    params = {"gain": jnp.ones((3, 6)), "kernel": jnp.ones((3, 6, 4))}
    found = wd.describe_matrices(params, **options)
    assert [row.fold for row in found.rows] == ["", "bio"]
    assert found.warnings == () and found.matrices == repr(COMPOSED[kind])


# -------------------------------------------------------------------- said by folds


def test_a_table_is_asked_before_the_names_that_are_known() -> None:
    folds = wd.first_match((wd.contains("query"), "iio"), (wd.contains("mix"), "bio"))
    assert shown("query/kernel", (6, 2, 5), folds=folds).fold == "iio"
    row = shown("mix/kernel", (3, 4, 5), folds=folds)
    assert row[2:] == ("bio", 3, 4, 5, "contains('mix')")
    assert shown("value/kernel", (6, 2, 5), folds=folds).fold == "ioo"


def test_a_default_of_the_table_is_for_all_other_leaves() -> None:
    folds = wd.first_match((wd.contains("mix"), "bio"), default="oi")
    row = shown("mlp/kernel", (4, 5), folds=folds)
    assert (row.fold, row.because) == ("oi", "default")


def test_a_function_of_a_leaf_is_asked_first_and_may_not_know() -> None:
    def folds(leaf: wd.Leaf) -> str | None:
        return "oii" if leaf.name == "w" else None

    row = shown("mix/w", (3, 4, 5), folds=folds)
    assert row[2:] == ("oii", 1, 20, 3, "a function says so")
    assert shown("query/kernel", (6, 2, 5), folds=folds).fold == "ioo"


def test_folds_leave_stacked_axes_out() -> None:
    folds = wd.first_match((wd.contains("mix"), "iio"))
    options: dict[str, Any] = {"folds": folds, "stacked": wd.contains("mix")}
    assert shown("mix/w", (3, 4, 5, 6), **options)[2:6] == ("biio", 3, 20, 6)


@pytest.mark.parametrize("letters", ["ioo", "oio", "iboo", "obi", "bbio", "oibib"])
def test_a_batch_of_matrices_is_the_array_and_back(letters: str) -> None:
    shape = (2, 3, 4, 5, 6)[: len(letters)]
    fold = _folds.Fold(shape, letters, "")
    x = np.arange(np.prod(shape)).reshape(shape)
    batch = np.asarray(fold.to_batch(jnp.asarray(x)))
    assert batch.shape == (fold.length("b"), *fold.short_and_long)
    np.testing.assert_array_equal(fold.from_batch(jnp.asarray(batch)), x)
    # The first row of the first matrix: the axes of the longer side run, all else is 0.
    longer = "o" if fold.length("o") >= fold.length("i") else "i"
    first = x[tuple(slice(None) if c == longer else 0 for c in letters)]
    np.testing.assert_array_equal(batch[0, 0], first.reshape(-1))


# ------------------------------------------------------------------ the default rule


@pytest.mark.parametrize(
    "path",
    [
        "Embed_0/w",
        "embed/w",
        "embed_tokens/kernel",
        "embedding/kernel",
        "wte/weight",
        "tok_embeddings/weight",
        "lm_head/kernel",
        "head/kernel",
        "heads/0/kernel",
        "policy_head/kernel",
        "unembed/w",
        "logits_dense/kernel",
        "Classifier/kernel",
        "blocks/0/pos_embed",
        "norm/scale",
        "emb/weight",
        "time_embed/kernel",
        "type_embeddings/w",
        "word_embedding/weight",
        "shared/embedding",
        "shared/weight",
        "output/weight",
        "params/fc_out/kernel",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "encoder.pos_embed",
        "model.shared.weight",
    ],
)
def test_tables_and_output_layers_are_no_matrices(path: str) -> None:
    row = shown(path, (6, 4))
    assert row.fold == "" and row.because.startswith("matrices: ")
    assert jax.tree.leaves(wd.matrices(nested(path, jnp.zeros((6, 4))))) == [False]


@pytest.mark.parametrize(
    "path",
    [
        "header/kernel",
        "multiheaded/kernel",
        "attn/out/kernel",
        "output/dense/kernel",
        "patch_embed/kernel",
        "fc/kernel",
        "pre_logits/kernel",
        "multi_head/kernel",
        "patch_embedding/kernel",
        "shared/kernel",
        "shared/mlp/kernel",
        "mlp/fc_out/kernel",
        "model.layers.0.self_attn.q_proj.kernel",
    ],
)
def test_hidden_layers_of_like_names_are_matrices(path: str) -> None:
    assert shown(path, (6, 4)).fold == "io"


def test_patches_called_embedding_are_a_matrix_and_tables_are_not() -> None:
    kernel = wd.Leaf(("stem", "embedding", "kernel"), (4, 4, 3, 8), "float32")
    assert wd.matrices.matches(kernel) and wd.standard.matches(kernel)
    row = shown("a/embedding/kernel", (2, 4, 4, 3, 8), stacked=wd.contains("a"))
    assert (row.fold, row.matrices) == ("biiio", 2)
    tables = (
        ("embedding", (9, 6)),
        ("embedding/kernel", (9, 6)),
        ("embedding/w", (9, 6)),
    )
    others = ("embedding/kernel", (3, 9, 6)), ("head/embedding/kernel", (4, 4, 3, 8))
    assert [shown(*leaf).fold for leaf in (*tables, *others)] == [""] * 5


def test_the_rule_is_a_value_that_prints_as_it_is_written() -> None:
    assert repr(wd.matrices) == "matrices"
    rule = wd.matrices & ~wd.contains("fc")
    assert repr(rule) == "matrices & ~contains('fc')"
    assert wd.parse_rule(repr(rule)) == rule
    params = {"fc": {"kernel": jnp.zeros((2, 3))}, "head": {"w": jnp.zeros((2, 3))}}
    assert wd.matrices(params) == {"fc": {"kernel": True}, "head": {"w": False}}
    leaf = wd.Leaf(("head", "kernel"), (2, 3), "float32")
    assert wd.matrices.reason(leaf) == "matrices: in 'head'"
    for dtype in ("int32", "complex64"):
        other = wd.Leaf(("w",), (2, 3), dtype)
        assert not wd.matrices.matches(other)
        assert wd.matrices.reason(other) == f"matrices: {dtype}"
    empty = wd.Leaf(("w",), (0, 3), "float32")
    assert not wd.matrices.matches(empty)
    assert wd.matrices.reason(empty) == "matrices: empty"


def test_what_no_matrix_can_be_made_of_goes_to_adamw() -> None:
    params = {"c": jnp.ones((2, 3), jnp.complex64), "e": jnp.ones((0, 3))}
    tx = wd.muon(0.1, optax.identity())
    state: Any = tx.init(params)
    assert optax.tree.get(state, "mu")["c"].shape == (2, 3)


def test_the_docstring_of_the_rule_has_every_name() -> None:
    module: Any = inspect.getmodule(type(wd.matrices))
    said = set(re.findall(r"\w+", str(wd.matrices.__doc__)))
    names = [*sorted(module.OUTPUTS), *sorted(module.OUTERMOST)]
    assert names and [name for name in names if name not in said] == []


# ------------------------------------------------------------------------- refusals

ALL = {"a": {"w": jnp.ones((2, 3))}, "b": {"w": jnp.ones((3, 2, 2))}}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a vector": (
        {"norm": {"scale": jnp.ones(4)}},
        {"matrices": wd.everything},
        r"everything chooses 'norm/scale', float32 of shape \(4,\), which is not a "
        r"matrix of real numbers; leave it out, and it goes to AdamW: "
        r"matrices=everything & ~path\('norm/scale'\)$",
    ),
    "a scalar": (
        {"t": jnp.ones(())},
        {"matrices": wd.named("t") | wd.named("t")},
        r"AdamW: matrices=\(named\('t'\) \| named\('t'\)\) & ~path\('t'\)",
    ),
    "a stacked vector": (
        {"s": jnp.ones((3, 4))},
        {"matrices": wd.everything, "stacked": wd.named("s")},
        r"'s', float32 of shape \(3, 4\) of which 1 stacked, which is not a matrix",
    ),
    "a vector alone": (
        jnp.ones(4),
        {"matrices": wd.everything},
        "everything chooses '', .* goes to AdamW: matrices=nothing",
    ),
    "an empty array": (
        {"w": jnp.ones((0, 4))},
        {"matrices": wd.everything},
        r"'w', float32 of shape \(0, 4\), which is not a matrix of real numbers",
    ),
    "integers": (
        {"ids": jnp.ones((2, 3), jnp.int32)},
        {"matrices": wd.everything},
        "everything chooses 'ids', int32 of shape",
    ),
    "complex numbers": (
        {"w": jnp.ones((2, 3), jnp.complex64)},
        {"matrices": wd.everything},
        "everything chooses 'w', complex64 of shape",
    ),
    "no fold": (
        ALL,
        {},
        r"^'b/w' of shape \(3, 2, 2\) has 3 axes and no known use; one axis may be "
        r"stacked, as stacked=path\('b/\*\*'\) says of the first, or name its fold in "
        r"folds=first_match\(\(path\('b/w'\), ...\)\): 'bio' for experts, 'ioo' where "
        "it makes heads, 'iio' where it merges them or is a convolution; or leave it "
        r"to AdamW: matrices=matrices & ~path\('b/w'\)$",
    ),
    "no fold, of torch": (
        {"w[1]*": {"weight": jnp.ones((3, 2, 2))}},
        {},
        re.escape("path('w[[]1][*]/weight'), ...)): 'boi' for experts, 'oii' for a ")
        + re.escape(
            "convolution; or leave it to AdamW: "
            "matrices=matrices & ~path('w[[]1][*]/weight')"
        ),
    ),
    "no fold, of four axes": (
        {"w": jnp.ones((2, 3, 2, 2))},
        {},
        r"no known use; name its stacked axes in stacked=, or .*path\('w'\), ...\)\): "
        "'iiio' for a convolution, or one letter per axis, i input, o output, b batch; "
        "or leave",
    ),
    "no fold, of many": (
        {f"w{n}": jnp.ones((2, 2, 2)) for n in range(6)},
        {},
        r"^'w0' of shape .* also refused: 'w1', 'w2', 'w3' and 2 more$",
    ),
    "a fold too short": (
        ALL,
        {"folds": wd.first_match((wd.contains("b"), "io"))},
        r"the fold 'io' has 2 letters and 'b/w' of shape \(3, 2, 2\) has 3 axes; write "
        "one letter for each",
    ),
    "a fold with the stacked axis": (
        ALL,
        {
            "folds": wd.first_match((wd.contains("b"), "bio")),
            "stacked": wd.contains("b"),
        },
        r"'bio' has 3 letters and .* has 2 axes besides the stacked ones",
    ),
    "a function that is wrong": (
        ALL,
        {"folds": lambda leaf: "ix"},
        r"a fold is a text such as 'ioo', one letter per axis, .*; got 'ix'",
    ),
    "a function that has no text": (ALL, {"folds": lambda leaf: 3}, "; got 3"),
    "a name that matches nothing, of matrices": (
        ALL,
        {"matrices": wd.contains("c")},
        r"contains\('c'\) matches no leaf",
    ),
    "a name that matches nothing, of folds": (
        {"a": ALL["a"]},
        {"folds": wd.first_match((wd.contains("bb"), "io"))},
        r"contains\('bb'\) matches no leaf",
    ),
    "a fold for what is no matrix": (
        {"a": ALL["a"], "table": {"embedding": jnp.ones((4, 2))}},
        {"folds": wd.first_match((wd.named("embedding"), "oi"))},
        r"^folds has \(named\('embedding'\), 'oi'\) for 'table/embedding', shape "
        r"\(4, 2\), which matrices does not choose; write matrices=matrices \| "
        r"named\('embedding'\), or leave that row out$",
    ),
}


@pytest.mark.parametrize("make", [wd.muon, wd.normuon], ids=["muon", "normuon"])
@pytest.mark.parametrize("case", REFUSED)
def test_leaves_that_are_no_matrices_are_refused_at_init_and_at_update(
    case: str, make: Callable[..., Any]
) -> None:
    params, options, message = REFUSED[case]
    tx = make(0.1, optax.identity(), **options)
    with pytest.raises(ValueError, match=message):
        tx.init(params)
    small = make(0.1, optax.identity(), matrices=wd.nothing)
    with pytest.raises(ValueError, match=message):
        tx.update(params, small.init(params), params)


@pytest.mark.parametrize("letters", ["", "ii", "oo", "b", "IO", "i o"])
def test_a_table_of_wrong_folds_is_refused_at_once(letters: str) -> None:
    rows = wd.first_match((wd.contains("a"), letters))
    with pytest.raises(ValueError, match="a fold is a text such as 'ioo'"):
        wd.muon(0.1, optax.identity(), folds=rows)
    with pytest.raises(ValueError, match="at least one i and one o; got"):
        wd.describe_matrices(
            ALL, folds=wd.first_match((wd.contains("a"), "io"), default=letters)
        )


@pytest.mark.parametrize("folds", ["io", {"a": "io"}, wd.everything], ids=helpers.label)
def test_folds_of_another_kind_are_refused(folds: Any) -> None:
    with pytest.raises(TypeError, match="folds takes a table such as first_match"):
        wd.normuon(0.1, optax.identity(), folds=folds)


KINDS: dict[str, tuple[Any, str]] = {
    "function": (
        lambda leaf: True,
        r"matrices takes a rule, got the function .*; write satisfies\(function",
    ),
    "tree": (
        {"w": True, "b": False},
        "matrices takes a rule and no tree of bools; types of modules, which mask_of",
    ),
    "table": (
        wd.first_match((wd.everything, "io")),
        "matrices takes a rule such as .*, got first_match",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_rule_is_refused_with_what_to_write(kind: str) -> None:
    given, message = KINDS[kind]
    with pytest.raises(TypeError, match=message):
        wd.describe_matrices(ALL, matrices=given)


def test_the_written_advice_takes_exactly_the_leaf_out() -> None:
    """Special characters of a glob in a path stand for themselves."""
    params = {"w[1]": jnp.ones((2, 2, 2)), "w1": jnp.ones((2, 3))}
    (warning,) = wd.describe_matrices(params).warnings
    advice = warning.rsplit("matrices=", 1)[1]
    rule = wd.parse_rule(advice)
    found = wd.describe_matrices(params, matrices=rule)
    assert [row.fold for row in found.rows] == ["io", ""] and found.warnings == ()


def test_matrices_and_stacked_of_another_kind_are_refused() -> None:
    bad: Any = "kernel"
    with pytest.raises(TypeError, match="matrices takes a rule such as"):
        wd.muon(0.1, optax.identity(), matrices=bad)
    with pytest.raises(TypeError, match="stacked takes a rule"):
        wd.muon(0.1, optax.identity(), stacked=bad)


# ------------------------------------------------------------------------- the table


def model() -> Any:
    block = {
        "attn": {"query": {"kernel": (8, 2, 4), "bias": (2, 4)}},
        "mlp": {"kernel": (8, 32)},
    }
    blocks = {f"block_{n}": block for n in range(12)}
    return shapes({**blocks, "head": {"w": (8, 50)}})


TABLE = """\
matrices: matrices
leaf                             shape      fold  matrices   because
block_{0..11}/attn/query/bias    (2, 4)     -     AdamW      matrices: named 'bias'
block_{0..11}/attn/query/kernel  (8, 2, 4)  ioo   12 8 x 8   'query' makes heads
block_{0..11}/mlp/kernel         (8, 32)    io    12 8 x 32  2-D
head/w                           (8, 50)    -     AdamW      matrices: in 'head'"""


def test_the_table_shows_folds_and_matrices_and_repeated_layers_once() -> None:
    found = wd.describe_matrices(model())
    assert str(found) == TABLE
    assert len(found.table(fold=False).split("\n")) == 1 + len(found.rows) == 38


def test_what_is_refused_is_told_and_not_raised() -> None:
    params = shapes({f"w{n}": (2, 3, 4) for n in range(5)} | {"v": (2, 3)})
    matrices = wd.everything | wd.contains("typo")
    found = wd.describe_matrices(params, matrices=matrices)
    assert [row.fold for row in found.rows] == ["io"] + [""] * 5
    assert "w{0..4}  (2, 3, 4)  -     refused   see the warnings" in str(found)
    first, _, _, more, typo = found.warnings
    assert first.startswith("'w0' of shape (2, 3, 4) has 3 axes and no known use")
    assert more == "and 2 more are refused"
    assert typo.startswith("contains('typo') matches no leaf")
    assert str(found).count("warning: ") == 5


def test_the_description_is_plain_data_and_escaped_html() -> None:
    found = wd.describe_matrices(shapes({"<b>": {"w": (2, 3)}, "x": (2, 2, 2)}))
    data = json.loads(json.dumps(found.to_dict()))
    assert data["matrices"] == "matrices" and len(data["warnings"]) == 1
    assert data["rows"][0] == {
        "path": "<b>/w",
        "shape": [2, 3],
        "fold": "io",
        "matrices": 1,
        "inputs": 2,
        "outputs": 3,
        "because": "2-D",
    }
    html = found._repr_html_()
    assert "&lt;b&gt;/w" in html and "<b>" not in html and "1 2 x 3" in html


def test_a_tree_without_arrays_is_refused() -> None:
    with pytest.raises(
        TypeError, match="describe_matrices found no arrays in the dict"
    ):
        wd.describe_matrices({})


def test_leaves_that_are_no_arrays_have_no_row() -> None:
    params = {"f": jnp.tanh, "w": jnp.ones((2, 3)), "none": None}
    assert [row.path for row in wd.describe_matrices(params).rows] == ["w"]


def test_the_advice_for_a_stack_leaves_no_bias_of_it_a_matrix() -> None:
    kernel, bias = jnp.ones((6, 8, 16)), jnp.ones((6, 16))
    params = {"blocks": {"proj_in": {"w": kernel, "offsets_of": bias}}}
    (said,) = wd.describe_matrices(params).warnings
    advised = re.search(r"stacked=(path\('[^']+'\))", said)
    assert advised is not None
    rows = wd.describe_matrices(params, stacked=wd.parse_rule(advised[1])).rows
    assert {row.path: row.fold for row in rows} == {
        "blocks/proj_in/offsets_of": "",
        "blocks/proj_in/w": "bio",
    }
