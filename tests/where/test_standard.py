# SPDX-License-Identifier: Apache-2.0
"""The default mask on the models of the field: what decays, and what does not."""

import functools
import re
from typing import Any

import equinox as eqx
import flax.linen as nn
import forms
import helpers
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import optax_wd as wd

LAST = ("bias", "b", "scale", "gamma", "beta", "embedding", "input_embedding")
LEAF_NAMES = ("A_log", "D", "dt_bias", "cls", "probe", "latents")
TOKENS = (
    "cls_token class_token class_embedding rel_embedding pos_emb pos_embed_spatial "
    "pos_embed_temporal dist_token reg_token reg_tokens register_tokens "
    "storage_tokens mask_token query_tokens pos_embed pos_embed_win "
    "pos_embed_window pos_embed_abs absolute_pos_embed pos_embedding "
    "position_embedding position_embeddings positional_embedding "
    "position_embedding_table pixel_pos patch_pos relative_position_bias_table "
    "relative_attention_bias attention_biases rel_pos_h rel_pos_w freqs temperature "
    "logit_scale logit_bias layer_scale lambda_1 lambda_2"
).split()


def leaf(path: str, *shape: int, dtype: str = "float32") -> wd.Leaf:
    return wd.Leaf(tuple(path.split("/")), shape, dtype)


def decays(path: str, *shape: int, rule: wd.Rule = wd.standard) -> bool:
    return rule.decide(leaf(path, *shape))


def chosen(tree: Any, rule: wd.Rule = wd.standard) -> set[str]:
    answers = forms.answers(rule(tree))
    return {path for path, decays in answers.items() if decays}


def init(module: Any, *inputs: Any) -> Any:
    """Shapes and dtypes of the parameters of a Linen module."""
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return variables["params"]


@pytest.mark.parametrize("ndim", [0, 1, 2, 3, 4])
def test_two_or_more_dimensions_decay(ndim: int) -> None:
    assert decays("head/kernel", *[3] * ndim) is (ndim >= 2)
    assert decays("head/weight", *[3] * ndim) is (ndim >= 2)
    assert decays("a", *[3] * ndim) is (ndim >= 2)
    assert wd.standard.unsure(leaf("a", *[3] * ndim)) is (ndim >= 2)
    assert wd.standard.reason(leaf("a", *[3] * ndim)).startswith(f"standard: {ndim} ax")


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8"])
def test_only_inexact_leaves_decay(dtype: str) -> None:
    assert not wd.standard.decide(leaf("head/kernel", 3, 3, dtype=dtype))
    assert wd.standard.decide(leaf("head/kernel", 3, 3, dtype="bfloat16"))
    assert wd.standard.decide(leaf("head/kernel", 3, 3, dtype="complex64"))


@pytest.mark.parametrize("name", [*LAST, "Bias", "BIAS", "Gamma", "Scale"])
def test_a_last_token_that_is_no_matrix_does_not_decay_at_any_rank(name: str) -> None:
    for shape in [(), (3,), (3, 4), (2, 3, 4)]:
        assert not decays(f"block/{name}", *shape)
        assert not decays(name, *shape)
    assert wd.standard.reason(leaf(f"a/{name}", 2, 2)) == f"standard: named {name!r}"


@pytest.mark.parametrize("name", ["q_bias", "in_proj_bias", "Q_Bias", "_bias"])
def test_a_last_token_that_ends_in_bias_does_not_decay(name: str) -> None:
    assert not decays(f"attn/{name}", 3, 4)
    said = f"standard: named {name!r}"
    assert wd.standard.reason(leaf(f"attn/{name}", 3, 4)) == said


@pytest.mark.parametrize("name", LAST)
def test_these_names_count_as_the_last_token_only(name: str) -> None:
    assert decays(f"{name}/kernel", 3, 4)


@pytest.mark.parametrize("name", ["biases", "pre_bias", "scales", "bias_", "B_bias"])
def test_words_are_known_in_other_forms_and_among_others(name: str) -> None:
    assert not decays(f"block/{name}", 3, 4)


@pytest.mark.parametrize("name", ["B", "C", "embed", "unbiased", "rescaled"])
def test_what_only_looks_like_a_word_decays_and_is_marked(name: str) -> None:
    assert decays(f"block/{name}", 3, 4)
    assert wd.standard.unsure(leaf(f"block/{name}", 3, 4))


@pytest.mark.parametrize("name", LEAF_NAMES)
def test_leaves_of_short_names_do_not_decay(name: str) -> None:
    assert not decays(f"mixer/{name}", 3, 4)
    assert wd.standard.reason(leaf(f"a/{name}", 2, 2)).startswith("standard: ")


@pytest.mark.parametrize(
    "path", ["cls/predictions/transform/dense/kernel", "probe/kernel", "latents/mlp/w"]
)
def test_modules_of_such_names_decay(path: str) -> None:
    assert decays(path, 3, 4)  # the head of FlaxBert, a linear probe


def test_a_discriminator_named_d_decays_and_a_leaf_named_d_does_not() -> None:
    gan = {"D": {"conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}}}
    assert chosen(gan) == {"D/conv/kernel"}
    assert decays("A_log/kernel", 3, 4)
    assert not decays("mixer/D", 3, 4)
    assert decays("mixer/d", 3, 4)  # exactly `D`
    assert not decays("mixer/A_log", 3, 4)


@pytest.mark.parametrize("token", TOKENS)
def test_learned_tokens_positions_and_factors_do_not_decay(token: str) -> None:
    assert not decays(f"encoder/{token}", 1, 5, 3)
    assert not decays(token, 5, 3)
    assert wd.standard.reason(leaf(f"a/{token}", 2, 2)).startswith("standard: ")


@pytest.mark.parametrize("name", [*LAST, *LEAF_NAMES, *TOKENS])
def test_the_default_mask_of_0_1_still_answers_as_it_did(name: str) -> None:
    old = wd.roles.standard_0_1
    assert not decays(f"block/{name}", 3, 4, rule=old)
    assert decays(f"{name}/kernel", 3, 4, rule=old) is (name not in TOKENS)
    assert decays("block/gating_b", 3, 4, rule=old)
    assert not decays("block/kernel", 3, rule=old)
    assert wd.parse_rule(repr(old)) == old


@pytest.mark.parametrize("token", [t for t in TOKENS if t.startswith("pos")])
def test_a_module_of_positions_does_not_decay(token: str) -> None:
    assert not decays(f"encoder/{token}/weight", 5, 3)
    assert repr(token) in wd.standard.reason(leaf(f"a/{token}/weight", 5, 3))


@pytest.mark.parametrize("token", ["Cls", "clsx", "my_cls", "pos_embed_2", "Probe"])
def test_tokens_anywhere_are_whole_and_case_sensitive(token: str) -> None:
    assert decays(f"{token}/kernel", 3, 4)


@pytest.mark.parametrize("token", ["query", "key", "value", "mask", "embed"])
def test_query_key_value_mask_and_embed_alone_count_for_nothing(token: str) -> None:
    for path in (token, f"attn/{token}", f"{token}/kernel", f"attn/{token}/kernel"):
        assert decays(path, 3, 4)
        assert not decays(path, 3)


def test_attention_in_flax_decays_its_kernels_and_no_bias() -> None:
    for tree in (forms.linen_abstract(), forms.nnx_abstract()):
        assert chosen(tree) == {k for k, decays in forms.WEIGHTS.items() if decays}


def test_flat_names_with_dots_decay_as_the_nested_ones_do() -> None:
    names = {
        "blocks.0.attn.qkv.weight": True,
        "blocks.0.attn.qkv.bias": False,
        "blocks.0.attn.relative_position_bias_table": False,
        "embed.pos_embed": False,
        "head.scale": False,
    }
    flat: dict[str, Any] = {name: jnp.ones((2, 2)) for name in names}
    assert wd.standard(flat) == names
    for glob in ("blocks/0/**/weight", "blocks.0.**.weight"):
        assert wd.path(glob)(flat)["blocks.0.attn.qkv.weight"]
    assert not wd.contains("head")(flat)["embed.pos_embed"]


def test_a_patch_convolution_named_embedding_decays() -> None:
    patches = init(nn.Conv(4, (2, 2), name="embedding"), jnp.ones((1, 4, 4, 3)))
    assert chosen({"embedding": patches}) == {"embedding/kernel"}


def test_a_norm_over_several_axes_does_not_decay() -> None:
    norm = nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1))
    params = init(norm, jnp.ones((2, 3, 4)))
    assert {leaf.shape for leaf in jax.tree.leaves(params)} == {(3, 4)}
    assert chosen(params) == set()


def test_biases_of_general_layers_do_not_decay() -> None:
    general = {
        "general": init(nn.DenseGeneral((2, 3)), jnp.ones((1, 4))),
        "einsum": init(nn.Einsum((4, 2, 3), "ab,bcd->acd"), jnp.ones((1, 4))),
        "local": init(nn.ConvLocal(3, (2,)), jnp.ones((1, 4, 2))),
    }
    assert len(general["general"]["bias"].shape) == 2
    assert len(general["local"]["bias"].shape) == 2
    assert chosen(general) == {"general/kernel", "einsum/kernel", "local/kernel"}


class Normalised(nn.Module):
    """WeightNorm over two features, and over one."""

    @nn.compact
    def __call__(self, x_BxD: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        heads = nn.DenseGeneral((2, 3), name="heads")
        x_BxHxK = nn.WeightNorm(heads, feature_axes=(-2, -1), name="norm")(x_BxD)
        x_BxHxD = nn.WeightNorm(nn.Dense(4, name="out"), name="norm_out")(x_BxHxK)
        return x_BxHxD.mean(1), None


def test_weight_norm_decays_its_directions_and_not_its_scales() -> None:
    params = init(Normalised(), jnp.ones((1, 4)))
    assert params["norm"]["heads/kernel/scale"].shape == (2, 3)
    assert chosen(params) == {"heads/kernel", "out/kernel"}


def test_scanned_weight_norm_does_not_decay_its_scales() -> None:
    scanned: Any = nn.scan(
        Normalised, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )
    params = init(scanned(), jnp.ones((1, 4)))
    assert params["norm_out"]["out/kernel/scale"].shape == (3, 4)
    assert chosen(params) == {"heads/kernel", "out/kernel"}


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell])
def test_an_lstm_in_linen_decays_its_kernels(cell: Any) -> None:
    carry = (jnp.ones((1, 4)), jnp.ones((1, 4)))
    params = init(cell(4), carry, jnp.ones((1, 3)))
    assert "if" in params
    assert chosen(params) == {f"{gate}/kernel" for gate in params}


def test_an_lstm_in_nnx_decays_its_kernels() -> None:
    cell = nnx.eval_shape(lambda: nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
    gates = ("hf", "hg", "hi", "ho", "if_", "ig", "ii", "io")
    assert chosen(cell) == {f"{gate}/kernel" for gate in gates}


def test_factors_of_lora_decay_and_describe_warns_of_it() -> None:
    model = nnx.eval_shape(lambda: nnx.LoRALinear(3, 4, lora_rank=2, rngs=nnx.Rngs(0)))
    assert chosen(model) == {"kernel", "lora/lora_a", "lora/lora_b"}
    assert any(
        "LoRA decay" in text for text in wd.describe(wd.standard, model).warnings
    )


def test_gemma_style_names_are_known() -> None:
    gemma = {
        "embedder": {"input_embedding": jnp.ones((7, 4))},
        "layer_0": {
            "attn": {
                "q_einsum": {"w": jnp.ones((2, 4, 2))},
                "kv_einsum": {"w": jnp.ones((2, 1, 4, 2))},
                "attn_vec_einsum": {"w": jnp.ones((2, 2, 4))},
            },
            "mlp": {"gating_einsum": jnp.ones((2, 4, 8)), "linear": jnp.ones((8, 4))},
            "pre_attention_norm": {"scale": jnp.ones(4)},
        },
        "final_norm": {"scale": jnp.ones(4)},
    }
    assert chosen(gemma) == {
        "layer_0/attn/q_einsum/w",
        "layer_0/attn/kv_einsum/w",
        "layer_0/attn/attn_vec_einsum/w",
        "layer_0/mlp/gating_einsum",
        "layer_0/mlp/linear",
    }


def test_haiku_names_are_known() -> None:
    haiku = {"mlp/~/linear_0": {"w": jnp.ones((2, 2)), "b": jnp.ones((3, 2))}}
    assert wd.standard(haiku) == {"mlp/~/linear_0": {"w": True, "b": False}}


def test_equinox_layers_decay_their_weights() -> None:
    key = jax.random.key(0)
    model = eqx.filter_eval_shape(
        lambda: [
            eqx.nn.MLP(2, 3, 4, 1, key=key),
            eqx.nn.Conv2d(2, 3, 3, key=key),
            eqx.nn.LayerNorm(4),
        ]
    )
    assert model[1].bias.shape == (3, 1, 1)
    assert chosen(model) == {"0/layers/0/weight", "0/layers/1/weight", "1/weight"}


def test_token_embeddings_do_not_decay_and_the_documented_line_decays_them() -> None:
    tree = {
        "wte": init(nn.Embed(7, 4), jnp.ones((1,), jnp.int32)),
        "head": init(nn.Dense(3), jnp.ones((1, 4))),
    }
    assert chosen(tree) == {"head/kernel"}
    text = " ".join(str(wd.standard.__doc__).split())
    line = re.search(r"`(standard \| [^`]*)`", text)
    assert line is not None
    rule = eval(line[1], {"standard": wd.standard, "roles": wd.roles})
    assert chosen(tree, rule) == {"head/kernel", "wte/embedding"}


class Encoder(nn.Module):
    """A block of the ViT of Flax's examples and of Vision Transformer's code."""

    @nn.compact
    def __call__(self, x_BxNxD: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        y_BxNxD = nn.LayerNorm(name="LayerNorm_0")(x_BxNxD)
        attend = nn.MultiHeadDotProductAttention(12, name="attention")
        x_BxNxD = x_BxNxD + attend(y_BxNxD)
        y_BxNxD = nn.LayerNorm(name="LayerNorm_2")(x_BxNxD)
        y_BxNxF = nn.gelu(nn.Dense(3072, name="Dense_0")(y_BxNxD))
        return x_BxNxD + nn.Dense(768, name="Dense_1")(y_BxNxF), None


class ViT(nn.Module):
    """ViT-B/16 with 200 tensors, of which 74 are weight matrices."""

    scanned: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        x = nn.Conv(768, (16, 16), (16, 16), name="embedding")(x_BxHxWxC)
        x = x.reshape(x.shape[0], -1, 768)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, 768))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], 1)
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, *x.shape[1:]))
        if self.scanned:
            layers: Any = nn.scan(
                Encoder,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=12,
            )
            x, _ = layers(name="blocks")(x)
        else:
            for n in range(12):
                x, _ = Encoder(name=f"encoderblock_{n}")(x)
        x = nn.LayerNorm(name="encoder_norm")(x)
        return nn.Dense(1000, name="head")(x[:, 0])


@functools.cache
def vit(scanned: bool) -> Any:
    return init(ViT(scanned), jnp.ones((1, 224, 224, 3)))


def test_a_vit_b_16_decays_74_of_200_tensors_where_its_rank_says_112() -> None:
    params = vit(False)
    by_rank = chosen(params, wd.min_ndim(2))
    assert len(jax.tree.leaves(params)) == 200
    assert len(chosen(params)) == 74
    assert len(by_rank - chosen(params)) == 38
    assert chosen(params) < by_rank
    assert {path.rsplit("/", 1)[-1] for path in chosen(params)} == {"kernel"}
    assert {path.rsplit("/", 1)[-1] for path in by_rank - chosen(params)} == {
        "bias",
        "cls",
        "pos_embedding",
    }


def test_a_scanned_vit_b_16_decays_8_of_24_tensors_where_its_rank_says_20() -> None:
    params = vit(True)
    by_rank = chosen(params, wd.min_ndim(2))
    assert len(jax.tree.leaves(params)) == 24
    assert len(chosen(params)) == 8
    assert len(by_rank - chosen(params)) == 12
    assert len(jax.tree.leaves(params)) - len(chosen(params)) == 16


def test_the_same_parameters_decay_scanned_or_not() -> None:
    rules = (wd.standard, wd.standard_with(stacked=wd.contains("blocks")))
    sizes = [
        sum(
            leaf.size
            for leaf, decays in zip(
                jax.tree.leaves(params), jax.tree.leaves(rule(params)), strict=True
            )
            if decays
        )
        for params, rule in (
            (vit(False), wd.standard),
            *[(vit(True), rule) for rule in rules],
        )
    ]
    assert sizes[0] == sizes[1] == sizes[2]


def test_a_stacked_scale_under_an_unusual_name_needs_standard_with() -> None:
    tree = {
        "blocks": {"kernel": jnp.ones((12, 4, 4)), "xyz": jnp.ones((12, 4))},
        "head": {"kernel": jnp.ones((4, 3))},
    }
    assert chosen(tree) == {"blocks/kernel", "blocks/xyz", "head/kernel"}
    assert wd.standard.unsure(leaf("blocks/xyz", 12, 4))
    rule = wd.standard_with(stacked=wd.contains("blocks"))
    assert chosen(tree, rule) == {"blocks/kernel", "head/kernel"}
    said = "standard: 1 axes longer than one, without 1 stacked"
    assert rule.reason(leaf("blocks/xyz", 12, 4)) == said


def test_stacked_axes_of_standard_may_stand_anywhere() -> None:
    rule = wd.standard_with(stacked=((wd.contains("layers"), 1),))
    assert not decays("layers/g", 4, 12, rule=rule)
    assert decays("layers/kernel", 4, 12, 4, rule=rule)
    two = wd.standard_with(stacked=((wd.contains("a"), 0), (wd.contains("b"), 0)))
    assert not decays("a/b/g", 3, 12, 4, rule=two)
    assert decays("a/b/kernel", 3, 12, 4, 4, rule=two)
    with pytest.raises(ValueError, match=r"^'layers/g' of shape \(4,\) has no axis 1"):
        decays("layers/g", 4, rule=rule)


@pytest.mark.parametrize("form", forms.stacked())
def test_standard_gives_a_stacked_model_the_answer_of_its_layer(form: str) -> None:
    for rule in (wd.standard, wd.standard_with(stacked=wd.everything)):
        assert forms.answers(rule(forms.stacked()[form])) == forms.WEIGHTS


def test_more_names_are_left_undecayed_anywhere_in_a_path() -> None:
    rule = wd.standard_with(also=("router", "gate_*"))
    tree = {
        "router": {"kernel": jnp.ones((2, 2))},
        "mlp": {"gate_proj": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2))},
    }
    assert chosen(tree, rule) == {"mlp/kernel"}
    said = "standard: also contains('router')"
    assert rule.reason(leaf("router/kernel", 2, 2)) == said


def test_what_standard_leaves_out_stays_out_with_more_names() -> None:
    rule = wd.standard_with(also=("router",), stacked=wd.contains("blocks"))
    for path in ("blocks/q_bias", "blocks/pos_embed", "blocks/scale"):
        assert not decays(path, 12, 4, 4, rule=rule)


@pytest.mark.parametrize(
    "also", ["router", wd.contains("router"), None], ids=helpers.label
)
def test_also_takes_a_tuple_of_tokens(also: Any) -> None:
    with pytest.raises(TypeError, match=r"^also takes a tuple of tokens such as \('ro"):
        wd.standard_with(also=also)


def test_also_takes_strings_and_stacked_a_rule() -> None:
    bad: Any = (3,)
    with pytest.raises(TypeError, match="takes strings, each an argument of its own"):
        wd.standard_with(also=bad)
    text: Any = "blocks"
    with pytest.raises(TypeError, match="^stacked takes a rule, for axis 0, or pairs"):
        wd.standard_with(stacked=text)


def test_standard_is_the_mask_of_a_decay_by_default() -> None:
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = wd.masked_decay(0.5)
    updates = helpers.once(tx, zeros, params)
    assert float(updates["kernel"][0, 0]) == 0.5
    assert updates["bias"] is zeros["bias"]
