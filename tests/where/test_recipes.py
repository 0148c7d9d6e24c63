# SPDX-License-Identifier: Apache-2.0
"""Recipes decay what the code bases decay that they are named after.

Whole sets are compared with the figures of those code bases; hand-made leaves stand for
the oddities that no recorded model notices; and the same model is spelled in Flax.
"""

import fnmatch
import math
import re
import runpy
from collections.abc import Callable
from typing import Any

import forms
import helpers
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from helpers import ROOT

import optax_wd as wd

recipes = wd.recipes
TOKENS = "pos_embed", "cls_token"

# Every public name, called as a user may call it. The first is the usual call.
CALLS: dict[str, list[Any]] = {
    "amnl": [recipes.amnl()],
    "beit": [recipes.beit(), recipes.beit(()), recipes.beit(stacked=wd.named("w"))],
    "big_vision": [
        recipes.big_vision(),
        recipes.big_vision([(".*/bias", 0), (".*", 2)]),
    ],
    "big_vision_multiplier": [recipes.big_vision_multiplier()],
    "deit": [recipes.deit(), recipes.deit(stacked=((wd.contains("b"), 1),))],
    "detectron2": [recipes.detectron2(), recipes.detectron2(wd.contains("bn_*"))],
    "dino": [recipes.dino()],
    "dinov2": [recipes.dinov2()],
    "hf_trainer": [recipes.hf_trainer(), recipes.hf_trainer(wd.contains("ln_*"))],
    "keras": [recipes.keras(("bias",)), recipes.keras(()), recipes.keras(["(?i)A|b"])],
    "levanter": [recipes.levanter()],
    "mae_finetune": [recipes.mae_finetune(), recipes.mae_finetune(("a.b",))],
    "mae_pretrain": [recipes.mae_pretrain()],
    "maxtext": [recipes.maxtext(), recipes.maxtext((r"bias$", "(^|/)x"))],
    "megatron": [recipes.megatron(), recipes.megatron(stacked=wd.contains("h"))],
    "modded_nanogpt": [recipes.modded_nanogpt()],
    "nanogpt": [recipes.nanogpt(), recipes.nanogpt(stacked=wd.everything)],
    "onevision": [recipes.onevision()],
    "open_clip": [recipes.open_clip(), recipes.open_clip(("visual.*rel_pos",))],
    "open_clip_legacy": [recipes.open_clip_legacy()],
    "scenic": [recipes.scenic()],
    "siglip": [recipes.siglip()],
    "timm": [recipes.timm(TOKENS), recipes.timm(("a?[!b]*", "x.*")), recipes.timm()],
    "timm_layer_decay": [
        recipes.timm_layer_decay(("*.bias",)),
        recipes.timm_layer_decay(),
    ],
}
PUBLIC = sorted(name for name in vars(recipes) if not name.startswith("_"))


def leaf(name: str, *shape: int, owner: str | None = None) -> wd.Leaf:
    """A leaf by its PyTorch or its Flax name."""
    return wd.Leaf(
        tuple(name.replace("/", ".").split(".")), shape, "float32", owner=owner
    )


# ---------------------------------------------------------------------- every recipe


def test_every_public_name_is_called_in_these_tests() -> None:
    assert sorted(CALLS) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_recipe_prints_as_the_code_that_made_it(name: str) -> None:
    for made in CALLS[name]:
        again = eval(repr(made), dict(vars(wd)))
        assert again == made and hash(again) == hash(made)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_recipe_is_a_rule_or_a_table_of_factors(name: str) -> None:
    tables = {"modded_nanogpt", "big_vision_multiplier"}
    kind = wd.Table if name in tables else wd.Rule
    assert all(isinstance(made, kind) for made in CALLS[name])


@pytest.mark.parametrize("name", PUBLIC)
def test_a_recipe_says_where_it_comes_from(name: str) -> None:
    said = str(getattr(recipes, name).__doc__)
    assert "\n    Returns:\n" in said or "\nReturns:\n" in said
    assert "Source: " in said


def test_a_recipe_reads_as_english() -> None:
    assert repr(recipes.nanogpt()) == "min_ndim(2) & ~optional(regex('.*/bias'))"
    assert repr(recipes.timm(("pos_embed.*",))) == (
        "min_ndim(2) & ~optional(regex('.*/bias', 'pos_embed/.*'))"
    )
    assert repr(recipes.open_clip_legacy()) == (
        "min_ndim(2) & ~optional(regex('.*(bn|ln|bias|logit_scale).*'))"
    )


def test_a_recipe_explains_each_leaf() -> None:
    rule = recipes.timm(TOKENS)
    assert rule.reason(leaf("cls_token", 1, 1, 4)) == "regex('cls_token')"
    assert rule.reason(leaf("norm.weight", 4)) == "ndim 1"


def test_names_that_a_model_lacks_are_no_error() -> None:
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    expected = {"dense": {"kernel": True, "bias": False}}
    for name in ("timm", "beit", "deit", "onevision", "open_clip", "big_vision"):
        assert CALLS[name][0](params) == expected, name
    assert recipes.keras(("bias", "nowhere"))(params) == expected


# -------------------------------------------------------- what other code bases decay

GROUPS = helpers.groups()
OF_FILE: dict[str, Callable[[dict[str, Any]], wd.Rule]] = {
    "big_vision": lambda data: recipes.big_vision(),
    "dinov2": lambda data: recipes.dinov2(),
    "hf_trainer": lambda data: recipes.hf_trainer(),
    "mae_finetune": lambda data: recipes.mae_finetune(data["no_weight_decay"]),
    "nanogpt": lambda data: recipes.nanogpt(),
    "open_clip_legacy": lambda data: recipes.open_clip_legacy(),
    "timm": lambda data: recipes.timm(data["no_weight_decay"]),
}
WITH_LAYERS = sorted(
    file for file, data in GROUPS.items() if "no_decay" in data.get("layer_decay", {})
)


def undecayed(rule: wd.Rule, data: dict[str, Any]) -> set[str]:
    """The names that a rule leaves undecayed in a recorded model."""
    separator = data.get("separator", ".")
    return {
        entry["name"]
        for entry in data["params"]
        if not rule.decide(
            wd.Leaf(
                tuple(entry["name"].split(separator)),
                tuple(entry["shape"]),
                "float32",
                owner=entry.get("owner"),
            )
        )
    }


def test_every_recorded_file_has_its_recipe() -> None:
    assert len(GROUPS) == 20
    assert {file.split("__")[0] for file in GROUPS} == set(OF_FILE)
    assert len(WITH_LAYERS) == 10
    assert {file.split("__")[0] for file in WITH_LAYERS} == {"timm"}


@pytest.mark.parametrize("file", GROUPS)
def test_a_recipe_leaves_undecayed_what_its_code_base_does(file: str) -> None:
    data = GROUPS[file]
    names = {entry["name"] for entry in data["params"]}
    expected = set(data["no_decay"])
    assert undecayed(OF_FILE[file.split("__")[0]](data), data) == expected
    assert expected and expected < names and len(names) == len(data["params"])


@pytest.mark.parametrize("file", WITH_LAYERS)
def test_timms_other_function_is_followed_too(file: str) -> None:
    data = GROUPS[file]
    rule = recipes.timm_layer_decay(data["no_weight_decay"])
    assert undecayed(rule, data) == set(data["layer_decay"]["no_decay"])


# -------------------------------------------------- oddities that no recorded model has

ODDITIES: list[tuple[wd.Rule, str, tuple[int, ...], bool]] = [
    # timm: anchored globs that cross dots, biases of any rank
    (recipes.timm(), "attn.bias", (2, 3), False),
    (recipes.timm_layer_decay(), "attn.bias", (2, 3), True),
    (recipes.timm_layer_decay(("*.bias",)), "attn.bias", (2, 3), False),
    (recipes.timm(), "temperature", (), False),
    (recipes.timm_layer_decay(), "temperature", (), False),
    (recipes.timm(), "cls_token", (1, 1, 4), True),
    (recipes.timm(("pos_embed",)), "pos_embed", (1, 9, 4), False),
    (recipes.timm(("pos_embed",)), "trunk.pos_embed", (1, 9, 4), True),
    (recipes.timm(("pos_embed",)), "pos_embed.proj.weight", (4, 4), True),
    (recipes.timm(("pos_embed.*",)), "pos_embed.proj.weight", (4, 4), False),
    (recipes.timm(("pos_embed.*",)), "pos_embed", (1, 9, 4), True),
    (recipes.timm(("pos_embed/*",)), "pos_embed.proj.weight", (4, 4), False),
    (recipes.timm(("*.rel_pos",)), "blocks.0.attn.rel_pos", (4, 4), False),
    (recipes.timm(("pos.embed",)), "posxembed", (4, 4), True),
    (recipes.timm(("block?.w[!0-8]",)), "block1.w9", (4, 4), False),
    (recipes.timm(("block?.w[!0-8]",)), "block1.w8", (4, 4), True),
    # one dimension exactly: scalars decay
    (recipes.mae_finetune(), "scale", (), True),
    (recipes.mae_finetune(), "norm.weight", (4,), False),
    (recipes.mae_finetune(), "mask_token", (1, 1, 4), True),
    (recipes.mae_finetune(), "cls_token", (1, 1, 4), False),
    (recipes.mae_finetune(), "encoder.cls_token", (1, 1, 4), True),
    (recipes.mae_finetune(()), "cls_token", (1, 1, 4), True),
    (recipes.mae_pretrain(), "scale", (), True),
    (recipes.mae_pretrain(), "cls_token", (1, 1, 4), True),
    (recipes.mae_pretrain(), "mask_token", (1, 1, 4), True),
    (recipes.mae_pretrain(), "attn.bias", (2, 3), False),
    (recipes.beit(), "scale", (), True),
    (recipes.beit(), "attn.bias", (2, 3), False),
    (recipes.beit(), "pos_embed", (1, 9, 4), False),
    (recipes.beit(), "attn.relative_position_bias_table", (9, 2), True),
    (recipes.deit(), "scale", (), False),
    (recipes.deit(), "dist_token", (1, 1, 4), False),
    (recipes.deit(), "mask_token", (1, 1, 4), True),
    (recipes.dino(), "scale", (), True),
    (recipes.dino(), "attn.bias", (2, 3), False),
    (recipes.dino(), "cls_token", (1, 1, 4), True),
    (recipes.megatron(), "scale", (), True),
    (recipes.megatron(), "attn.bias", (2, 3), False),
    (recipes.megatron(), "embedding.word_embeddings.weight", (9, 4), True),
    (recipes.nanogpt(), "scale", (), False),
    (recipes.nanogpt(), "transformer.wte.weight", (9, 4), True),
    # substrings that hit too much, whatever the rank
    (recipes.dinov2(), "ls1.gamma", (2, 2), False),
    (recipes.dinov2(), "normalizer.weight", (2, 2), False),
    (recipes.dinov2(), "cls_token", (1, 1, 4), True),
    (recipes.dinov2(), "register_tokens", (1, 4, 4), True),
    (recipes.dinov2(), "pos_embed", (1, 9, 4), True),
    (recipes.dinov2(), "scale", (), True),
    (recipes.dinov2(), "bias", (4,), True),
    (recipes.dinov2(), "LayerNorm_0/scale", (4,), True),
    (recipes.open_clip_legacy(), "kln_proj.weight", (4, 4), False),
    (recipes.open_clip_legacy(), "subnet.weight", (4, 4), False),
    (recipes.open_clip_legacy(), "relative_position_bias_table", (9, 2), False),
    (recipes.open_clip_legacy(), "logit_scale_head.weight", (4, 4), False),
    (recipes.open_clip_legacy(), "positional_embedding", (9, 4), True),
    (recipes.open_clip(), "kln_proj.weight", (4, 4), True),
    (recipes.open_clip(), "positional_embedding", (9, 4), True),
    (recipes.open_clip(), "logit_scale", (), False),
    (recipes.open_clip(("visual.*rel_pos",)), "visual.a.b.rel_pos", (9, 4), False),
    (recipes.open_clip(("visual.*rel_pos",)), "text.a.b.rel_pos", (9, 4), True),
    (recipes.onevision(), "linear_probe.weight", (4, 4), False),
    (recipes.onevision(), "head.latents", (1, 4, 4), False),
    (recipes.onevision(), "x.query_tokens.y", (4, 4), False),
    (recipes.onevision(), "dist_token", (1, 1, 4), True),
    (recipes.onevision(), "scale", (), False),
    (recipes.onevision(), "attn.bias", (2, 3), False),
    (recipes.amnl(), "kln_proj.weight", (4, 4), False),
    (recipes.amnl(), "relative_position_bias_table", (9, 2), False),
    (recipes.amnl(), "norm1.weight", (4,), True),
    (recipes.amnl(), "LayerNorm_0/scale", (4,), False),
    (recipes.amnl(), "batch_norm.weight", (4,), False),
    (recipes.amnl(), "scale", (), True),
    (recipes.levanter(), "MyLayerNormish.weight", (4, 4), False),
    (recipes.levanter(), "RmsNorm.weight", (4,), False),
    (recipes.levanter(), "RMSNorm_0/scale", (4,), False),
    (recipes.levanter(), "Embedding.weight", (9, 4), False),
    (recipes.levanter(), "embed/embedding", (9, 4), True),
    (recipes.levanter(), "ln_f/scale", (4,), True),
    (recipes.levanter(), "bias", (4,), False),
    (recipes.levanter(), "attn.in_proj_bias", (2, 3), False),
    (recipes.levanter(), "bias_net.weight", (4, 4), True),
    # kernels alone
    (recipes.big_vision(), "Dense_0/kernel", (4, 4), True),
    (recipes.big_vision(), "Dense_0/kernel_ema", (4, 4), False),
    (recipes.big_vision(), "kernel", (4, 4), False),
    (recipes.big_vision(), "head.weight", (4, 4), False),
    (recipes.big_vision(((".*/kernel$", 1.0),)), "a/kernel", (4, 4), True),
    (recipes.siglip(), "txt/Embed_0/embedding", (9, 4), False),
    (recipes.siglip(), "t", (1,), False),
    (recipes.scenic(), "Dense_0/kernel_ema", (4, 4), True),
    (recipes.scenic(), "kernel_net/bias", (4,), True),
    (recipes.scenic(), "head.weight", (4, 4), False),
    # regular expressions, searched
    (recipes.maxtext(), "bias", (), True),
    (recipes.maxtext(), "norm/scale", (4,), True),
    (recipes.maxtext(("norm",)), "prenormal/kernel", (4, 4), False),
    (recipes.maxtext(("/bias$",)), "bias_net/kernel", (4, 4), True),
    (recipes.keras(("bias",)), "relative_position_bias_table", (9, 2), False),
    (recipes.keras(("^bias$",)), "dense/bias", (4,), True),
    (recipes.keras(("layer_norm",)), "layer_norm_1/gamma", (4,), False),
    (recipes.keras(("(^|/)gamma$",)), "gamma_net/kernel", (4, 4), True),
    (recipes.keras(()), "dense/bias", (4,), True),
]


@pytest.mark.parametrize(
    ("rule", "name", "shape", "expected"),
    ODDITIES,
    ids=[f"{n}-{name}" for n, (_, name, _, _) in enumerate(ODDITIES)],
)
def test_an_oddity_is_kept(
    rule: wd.Rule, name: str, shape: tuple[int, ...], expected: bool
) -> None:
    assert rule.decide(leaf(name, *shape)) is expected


@pytest.mark.parametrize(
    ("name", "owner", "expected"),
    [
        ("normalizer.weight", "Linear", True),
        ("norm1.weight", "RMSNorm", True),
        ("norm1.weight", "LayerNorm", False),
        ("norm.weight", "RMSNorm", False),
        ("norm", "Model", False),
        ("a.norm", "Model", False),
        ("final_norm.weight", "RMSNorm", False),
        ("final_norm2.weight", "RMSNorm", True),
        ("normed_norm", "Model", False),
        ("enorm.weight", "RMSNorm", True),
        ("Input_LayerNorm_0.weight", "RMSNorm", False),
        ("MyRMSNorm.weight", "RMSNorm", False),
        ("attn.relative_attention_bias.weight", "Embedding", False),
        ("in_proj_Bias", "MultiheadAttention", False),
        ("embed.weight", "Embedding", True),
        ("cls_token", "Model", True),
        ("gamma", "LayerNormish", True),
    ],
)
def test_hf_trainer_goes_by_names_and_by_layer_norms(
    name: str, owner: str, expected: bool
) -> None:
    assert recipes.hf_trainer().matches(leaf(name, 4, 4, owner=owner)) is expected


@pytest.mark.parametrize(
    ("name", "owner", "expected"),
    [
        ("conv.bias", "Conv2d", True),
        ("conv.weight", "Conv2d", True),
        ("bn1.weight", "BatchNorm2d", False),
        ("bn1.bias", "SyncBatchNorm", False),
        ("bn1.bias", "NaiveSyncBatchNorm", False),
        ("gn.weight", "GroupNorm", False),
        ("ln.bias", "LayerNorm", False),
        ("bn1/scale", "BatchNorm", False),
        ("rms/scale", "RMSNorm", True),
        ("pos_embed", "ViT", True),
        ("BatchNorm_0.weight", "Linear", True),
    ],
)
def test_detectron2_goes_by_the_type_of_layer_alone(
    name: str, owner: str, expected: bool
) -> None:
    assert recipes.detectron2().matches(leaf(name, 4, owner=owner)) is expected


def test_the_first_pattern_of_wd_mults_wins() -> None:
    wd_mults = ((".*/head/kernel", 0.0), (".*/kernel", 2.0), (".*head.*", 3.0))
    names = ("a/head/kernel", "a/kernel", "head/bias", "a/bias")
    leaves = [leaf(name, 4, 4) for name in names]
    rule, factors = (
        recipes.big_vision(wd_mults),
        recipes.big_vision_multiplier(wd_mults),
    )
    assert [rule.decide(x) for x in leaves] == [False, True, True, False]
    assert [factors.decide(x) for x in leaves] == [0.0, 2.0, 3.0, 0.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embed.weight", 150.0),
        ("embed/embedding", 150.0),
        ("lm_head.weight", 150.0),
        ("lm_head/kernel", 150.0),
        ("value_embeds", 5.0),
        ("value_embeds/1/embedding", 5.0),
        ("bigram_embed.weight", 5.0),
        ("scalars", 0.0),
        ("smear_gate.weight", 0.0),
        ("skip_gate/kernel", 0.0),
        ("x0_lambdas", 0.0),
        ("resid_lambdas", 0.0),
        ("attn_gate_bank", 1.0),
        ("attn_bank", 1.0),
        ("token_embed/embedding", 1.0),
    ],
)
def test_modded_nanogpt_is_a_table_of_factors(name: str, expected: float) -> None:
    assert recipes.modded_nanogpt().decide(leaf(name, 4, 4)) == expected


def test_factors_multiply_the_rate() -> None:
    params = {"embed": {"embedding": jnp.ones((2, 2))}, "scalars": jnp.ones(3)}
    tx = wd.masked_decay(0.01, wd.everything, multiplier=recipes.modded_nanogpt())
    updates = helpers.once(tx, jax.tree.map(jnp.zeros_like, params), params)
    assert float(updates["embed"]["embedding"][0, 0]) == pytest.approx(1.5)
    assert float(updates["scalars"][0]) == 0.0


# ----------------------------------------------------- globs and searches of others

NAMES = [
    "cls_token",
    "pos_embed",
    "pos_embed.proj.weight",
    "trunk.pos_embed",
    "blocks.0.attn.bias",
    "blocks.10.attn.qkv.weight",
    "blocks.0.attn.rel-pos",
    "bias",
    "a[b].c",
    "x^y.z!",
]


@pytest.mark.parametrize(
    "glob",
    [
        "cls_token",
        "pos_embed.*",
        "*pos_embed",
        "*.bias",
        "*.attn.*",
        "blocks.?.*",
        "blocks.[0-9].attn.*",
        "blocks.[!1]*.bias",
        "[!b]*",
        "[]c]*",
        "*[!]s]",
        "a[[]b].c",
        "a[b.c",
        "x[^!]y*",
        "blocks?0*",
        "blocks.[!x]",
        "*rel[-]pos",
        "**.weight",
        "*[*]*",
        "blocks.(0).*",
        "[c-a]*",
    ],
)
def test_globs_match_as_those_of_fnmatch_do(glob: str) -> None:
    rule = recipes.timm_layer_decay((glob,))
    found = [name for name in NAMES if not rule.matches(leaf(name, 4, 4))]
    assert found == [name for name in NAMES if fnmatch.fnmatchcase(name, glob)]


PATHS = [
    "norm",
    "norm/scale",
    "a/norm/scale",
    "prenorm/x",
    "a/norm",
    "normal",
    "x/kernel",
]


@pytest.mark.parametrize(
    "pattern",
    [
        "(^|/)norm($|/)",
        ".*/kernel$",
        "^norm",
        "norm$",
        "^norm$",
        "norm",
        "a|x",
        "^a|le$",
        r"\Anorm|kernel\Z",
        "(?i)NORM/",
        "(?i:X/)KERN|kern",
        r"(n)or\w*(l)|(r)m/s",
        r"(/)norm\1",
        "(?<!e)norm(?!al)",
    ],
)
def test_patterns_are_found_as_by_search(pattern: str) -> None:
    for rule in (recipes.keras((pattern,)), recipes.maxtext([pattern, "never"])):
        found = [path for path in PATHS if not rule.matches(leaf(path, 4))]
        assert found == [path for path in PATHS if re.search(pattern, path)]


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "name",
    [
        "timm",
        "timm_layer_decay",
        "mae_finetune",
        "beit",
        "open_clip",
        "keras",
        "maxtext",
    ],
)
def test_a_bare_string_is_refused(name: str) -> None:
    message = rf"{name} takes a tuple of strings, got 'pos_embed'; write a tuple such "
    with pytest.raises(TypeError, match=message + r"as \('pos_embed',\)$"):
        getattr(recipes, name)("pos_embed")


@pytest.mark.parametrize("given", [None, {"pos_embed"}, ("a", 3), ("",), ""], ids=repr)
def test_what_is_no_tuple_of_strings_is_refused(given: Any) -> None:
    message = (
        r"timm takes a tuple of strings, got .*; write a tuple such as \('bias',\)"
    )
    with pytest.raises(TypeError, match=message):
        recipes.timm(given)


def test_what_is_long_is_cut_where_it_is_refused() -> None:
    long: tuple[Any, ...] = ("a" * 10_000, 3), (*range(1000),), {"a" * 10_000: 1}
    for given in long:
        with pytest.raises(TypeError, match=r"got .*\.\.\..*; write") as caught:
            recipes.timm(given)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("pattern", ["*.bias", "a)(b", "(?:a"])
@pytest.mark.parametrize("make", [recipes.keras, recipes.maxtext])
def test_a_malformed_pattern_is_named_as_it_was_written(
    make: Any, pattern: str
) -> None:
    message = rf"regex\({re.escape(repr(pattern))}\) is no regular expression"
    with pytest.raises(ValueError, match=message):
        make((pattern,))


@pytest.mark.parametrize(
    "wd_mults",
    [
        ".*",
        (),
        (".*/kernel", 1.0),
        ((".*", "1"),),
        (("a", 1.0, 2.0),),
        3.0,
        ((".*", math.nan),),
        ((".*", math.inf),),
        ((".*", -0.5),),
        ((".*", -1),),
        (("a", 1.0), ("b", -math.inf)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["big_vision", "big_vision_multiplier"])
def test_wd_mults_are_pairs(name: str, wd_mults: Any) -> None:
    message = (
        "wd_mults takes pairs of a pattern and a factor, 0 or more, such as "
        f"(('.*/kernel', 1.0),), got {wd_mults!r}"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        getattr(recipes, name)(wd_mults)


def test_wd_mults_with_a_malformed_pattern_are_refused() -> None:
    with pytest.raises(ValueError, match=r"regex\('\(a'\) is no regular expression"):
        recipes.big_vision((("(a", 1.0),))


@pytest.mark.parametrize("name", ["hf_trainer", "detectron2"])
def test_norms_are_a_rule(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} takes a rule such as .* got 'ln_\*'"):
        getattr(recipes, name)("ln_*")


def test_stacked_is_checked_as_everywhere() -> None:
    with pytest.raises(TypeError, match="stacked takes a rule"):
        recipes.nanogpt(stacked="blocks")  # pyright: ignore[reportArgumentType]


# --------------------------------------------------------------- owners, and without


class Model(nnx.Module):
    """A norm whose name tells nothing, and one whose name tells."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.ln_1 = nnx.LayerNorm(4, rngs=rngs)
        self.norm = nnx.RMSNorm(4, rngs=rngs)
        self.fc = nnx.Linear(4, 4, rngs=rngs)


def model() -> Model:
    return nnx.eval_shape(lambda: Model(nnx.Rngs(0)))


def test_hf_trainer_asks_the_model_for_owners() -> None:
    assert forms.answers(wd.mask_of(model(), recipes.hf_trainer())) == {
        "fc/bias": False,
        "fc/kernel": True,
        "ln_1/bias": False,
        "ln_1/scale": False,
        "norm/scale": False,
    }


def test_detectron2_asks_the_model_for_owners() -> None:
    assert forms.answers(wd.mask_of(model(), recipes.detectron2())) == {
        "fc/bias": True,
        "fc/kernel": True,
        "ln_1/bias": False,
        "ln_1/scale": False,
        "norm/scale": True,  # an RMSNorm
    }


@pytest.mark.parametrize("name", ["hf_trainer", "detectron2"])
def test_a_tree_alone_has_no_owners(name: str) -> None:
    params = nnx.to_pure_dict(nnx.state(model()))
    with pytest.raises(ValueError, match=r"make the mask with mask_of\(model, rule\)"):
        getattr(recipes, name)()(params)


def test_a_name_that_decides_needs_no_owner() -> None:
    assert not recipes.hf_trainer().matches(leaf("fc/bias", 4))


def test_a_tree_alone_does_with_names() -> None:
    params = nnx.to_pure_dict(nnx.state(model()))
    by_name = recipes.hf_trainer(wd.contains("ln_*"))
    assert by_name(params) == nnx.to_pure_dict(
        wd.mask_of(model(), recipes.hf_trainer())
    )
    assert recipes.detectron2(wd.contains("ln_*"))(params)["ln_1"]["bias"] is False


def test_names_that_the_caller_wrote_have_to_match() -> None:
    params = {"fc": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match=r"contains\('ln_\*'\) matches no leaf"):
        recipes.hf_trainer(wd.contains("ln_*"))(params)
    with pytest.raises(ValueError, match=r"contains\('blocks'\) matches no leaf"):
        recipes.nanogpt(stacked=wd.contains("blocks"))(params)


# ------------------------------------------------------------------ the Flax spelling

D, H, K, F = 8, 2, 4, 16  # width, heads, width of a head, width of the hidden layer
Spelling = tuple[str, tuple[int, ...], str, tuple[int, ...], str]


def norm(torch: str, flax: str) -> list[Spelling]:
    return [
        (f"{torch}.weight", (D,), f"{flax}/scale", (D,), "LayerNorm"),
        (f"{torch}.bias", (D,), f"{flax}/bias", (D,), "LayerNorm"),
    ]


def linear(torch: str, flax: str, n: int, m: int) -> list[Spelling]:
    return [
        (f"{torch}.weight", (m, n), f"{flax}/kernel", (n, m), "Linear"),
        (f"{torch}.bias", (m,), f"{flax}/bias", (m,), "Linear"),
    ]


def heads(torch: str, flax: str, m: int = D) -> list[Spelling]:
    """A projection to heads, in PyTorch one matrix for one or for all three."""
    return [
        (f"{torch}.weight", (m, D), f"{flax}/kernel", (D, H, K), "Linear"),
        (f"{torch}.bias", (m,), f"{flax}/bias", (H, K), "Linear"),
    ]


def out(torch: str, flax: str) -> list[Spelling]:
    return [
        (f"{torch}.weight", (D, D), f"{flax}/kernel", (H, K, D), "Linear"),
        (f"{torch}.bias", (D,), f"{flax}/bias", (D,), "Linear"),
    ]


def table(torch: str, flax: str, rows: int) -> list[Spelling]:
    """Of embeddings."""
    return [(f"{torch}.weight", (rows, D), f"{flax}/embedding", (rows, D), "Embedding")]


def same(name: str, *shape: int) -> list[Spelling]:
    """A parameter that is no layer."""
    return [(name, shape, name.replace(".", "/"), shape, "Model")]


VIT = [
    *same("cls_token", 1, 1, D),
    *same("mask_token", 1, 1, D),
    *same("pos_embed", 1, 17, D),
    *same("logit_scale"),
    ("patch_embed.proj.weight", (D, 3, 4, 4), "patch_embed/proj/kernel", (4, 4, 3, D))
    + ("Conv2d",),
    ("patch_embed.proj.bias", (D,), "patch_embed/proj/bias", (D,), "Conv2d"),
    *norm("blocks.0.norm1", "blocks/0/norm1"),
    *heads("blocks.0.attn.qkv", "blocks/0/attn/query", 3 * D),
    *heads("blocks.0.attn.qkv", "blocks/0/attn/key", 3 * D),
    *heads("blocks.0.attn.qkv", "blocks/0/attn/value", 3 * D),
    *out("blocks.0.attn.proj", "blocks/0/attn/out"),
    *same("blocks.0.ls1.gamma", D),
    *norm("blocks.0.norm2", "blocks/0/norm2"),
    *linear("blocks.0.mlp.fc1", "blocks/0/mlp/fc1", D, F),
    *linear("blocks.0.mlp.fc2", "blocks/0/mlp/fc2", F, D),
    *norm("norm", "norm"),
    *linear("head", "head", D, 10),
]
BERT = [
    *table("embeddings.word_embeddings", "embeddings/word_embeddings", 50),
    *table("embeddings.position_embeddings", "embeddings/position_embeddings", 9),
    *norm("embeddings.LayerNorm", "embeddings/LayerNorm"),
    *heads("layer.0.attention.self.query", "layer/0/attention/self/query"),
    *heads("layer.0.attention.self.key", "layer/0/attention/self/key"),
    *heads("layer.0.attention.self.value", "layer/0/attention/self/value"),
    *out("layer.0.attention.output.dense", "layer/0/attention/output/dense"),
    *norm("layer.0.attention.output.LayerNorm", "layer/0/attention/output/LayerNorm"),
    *linear("layer.0.intermediate.dense", "layer/0/intermediate/dense", D, F),
    *linear("layer.0.output.dense", "layer/0/output/dense", F, D),
    *norm("layer.0.output.LayerNorm", "layer/0/output/LayerNorm"),
    *same("cls.predictions.bias", 50),
]
GPT = [
    *table("transformer.wte", "transformer/wte", 50),
    *table("transformer.wpe", "transformer/wpe", 9),
    *norm("transformer.h.0.ln_1", "transformer/h/0/ln_1"),
    *heads("transformer.h.0.attn.c_attn", "transformer/h/0/attn/query", 3 * D),
    *heads("transformer.h.0.attn.c_attn", "transformer/h/0/attn/key", 3 * D),
    *heads("transformer.h.0.attn.c_attn", "transformer/h/0/attn/value", 3 * D),
    *out("transformer.h.0.attn.c_proj", "transformer/h/0/attn/out"),
    *norm("transformer.h.0.ln_2", "transformer/h/0/ln_2"),
    *linear("transformer.h.0.mlp.c_fc", "transformer/h/0/mlp/c_fc", D, F),
    *linear("transformer.h.0.mlp.c_proj", "transformer/h/0/mlp/c_proj", F, D),
    *norm("transformer.ln_f", "transformer/ln_f"),
    *linear("lm_head", "lm_head", D, 50),
]
MODELS = {"ViT": VIT, "BERT": BERT, "GPT": GPT}
FLAX_TYPES = {"Conv2d": "Conv", "Embedding": "Embed"}

# Those that know Flax names only, and the one without a rule for biases.
FLAX_ONLY = {"big_vision", "big_vision_multiplier", "scenic", "siglip"}
SPELLED = [name for name in PUBLIC if name not in FLAX_ONLY | {"timm_layer_decay"}]
WITH_STACKED: list[Callable[..., wd.Rule]] = [
    *(recipes.beit, recipes.deit, recipes.dino, recipes.mae_finetune),
    *(recipes.mae_pretrain, recipes.megatron, recipes.nanogpt, recipes.onevision),
    *(recipes.open_clip, recipes.open_clip_legacy, recipes.timm),
]


def leaves(spelling: Spelling, depth: str = "/0/") -> tuple[wd.Leaf, wd.Leaf]:
    """The leaf of PyTorch and that of Flax."""
    torch, shape, flax, flax_shape, owner = spelling
    flax = flax.replace("/0/", depth)
    return (
        leaf(torch, *shape, owner=owner),
        leaf(flax, *flax_shape, owner=FLAX_TYPES.get(owner, owner)),
    )


@pytest.mark.parametrize("depth", ["/0/", "_0/"], ids=["nnx", "linen"])
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", SPELLED)
def test_flax_names_get_the_decisions_of_pytorch_names(
    name: str, model_name: str, depth: str
) -> None:
    rule = CALLS[name][0]
    pairs = [leaves(spelling, depth) for spelling in MODELS[model_name]]
    found = {flax.where: rule.decide(flax) for _, flax in pairs}
    assert found == {flax.where: rule.decide(torch) for torch, flax in pairs}


@pytest.mark.parametrize("model_name", MODELS)
def test_timm_layer_decay_decays_the_biases_of_flax_attention(model_name: str) -> None:
    pairs = [leaves(spelling) for spelling in MODELS[model_name]]
    literal = recipes.timm_layer_decay(TOKENS)
    named = recipes.timm_layer_decay((*TOKENS, "*.bias"))
    differing = [flax for t, flax in pairs if literal.decide(flax) != literal.decide(t)]
    assert [(x.path[-2], x.name) for x in differing] == [
        (projection, "bias") for projection in ("query", "key", "value")
    ]
    assert all(named.decide(flax) == literal.decide(t) for t, flax in pairs)


@pytest.mark.parametrize("name", ["big_vision", "scenic", "siglip"])
def test_rules_of_kernels_decay_nothing_of_pytorch(name: str) -> None:
    pairs = [leaves(spelling) for spelling in VIT + BERT + GPT]
    rule = CALLS[name][0]
    assert not any(rule.decide(torch) for torch, _ in pairs)
    assert [rule.decide(x) for _, x in pairs] == [x.name == "kernel" for _, x in pairs]


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("make", WITH_STACKED, ids=lambda make: make.__name__)
def test_scanned_layers_decay_as_single_ones(
    make: Callable[..., wd.Rule], model_name: str
) -> None:
    rule, layers = make(), wd.contains("blocks", "layer", "h")
    for axis in (0, 1):
        scanned_rule = make(stacked=((layers, axis),))
        for spelling in MODELS[model_name]:
            _, flax = leaves(spelling, "/")
            if layers.matches(flax):
                shape = (*flax.shape[:axis], 12, *flax.shape[axis:])
                scanned = wd.Leaf(flax.path, shape, "float32")
                assert scanned_rule.decide(scanned) is rule.decide(flax), scanned
            else:
                assert scanned_rule.decide(flax) is rule.decide(flax), flax


def test_without_stacked_the_norms_of_scanned_layers_decay() -> None:
    scale = leaf("blocks/norm1/scale", 12, D)
    assert recipes.nanogpt().decide(scale)
    assert not recipes.nanogpt(stacked=wd.contains("blocks")).decide(scale)


BY_RANK = ["timm", "mae_finetune", "mae_pretrain", "beit", "deit", "dino", "nanogpt"]
BY_RANK += ["megatron", "open_clip", "open_clip_legacy", "onevision", "big_vision"]
BY_RANK += ["siglip", "scenic", "dinov2"]


@pytest.mark.parametrize("name", BY_RANK)
def test_every_form_of_a_flax_block_gets_one_answer(name: str) -> None:
    for form, params in forms.single().items():
        found = forms.answers(CALLS[name][0](params))
        assert {path: found[path] for path in forms.WEIGHTS} == forms.WEIGHTS, form


@pytest.mark.parametrize("make", WITH_STACKED, ids=lambda make: make.__name__)
def test_every_form_of_scanned_flax_blocks_gets_one_answer(
    make: Callable[..., wd.Rule],
) -> None:
    rule = make(stacked=wd.everything)
    for form, params in forms.stacked().items():
        assert forms.answers(rule(params)) == forms.WEIGHTS, form


def test_the_shapes_above_are_those_of_flax() -> None:
    shapes = {
        path: x.shape for path, x in forms.answers(forms.linen_abstract()).items()
    }
    assert len(shapes["attn/query/bias"]) == len((H, K))
    assert len(shapes["attn/query/kernel"]) == len((D, H, K))
    assert len(shapes["attn/out/kernel"]) == len((H, K, D))
    assert len(shapes["attn/out/bias"]) == 1


# --------------------------------------------------------------- the table of conflicts

BENCHMARKS = ROOT / "benchmarks"
SCRIPT = runpy.run_path(str(BENCHMARKS / "recipes.py"))


def cells() -> dict[str, dict[str, str]]:
    """The marks of the table by recipe and kind of leaf."""
    text = (BENCHMARKS / "recipes.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {
        row[0].split("`")[1]: dict(zip(rows[0][1:], row[1:], strict=True))
        for row in rows[2:]
    }


def test_the_table_is_what_its_script_makes_now() -> None:
    text = (BENCHMARKS / "recipes.md").read_text(encoding="utf-8")
    assert text == SCRIPT["table"]()


def test_the_table_has_every_recipe() -> None:
    found = cells()
    assert list(found)[0] == "standard"
    assert sorted(found) == sorted({*PUBLIC, "standard"} - {"big_vision_multiplier"})
    assert all(len(row) <= 12 for row in found.values())


def test_recipes_disagree_about_every_kind_but_kernels() -> None:
    found = cells()
    assert {row["kernels"] for row in found.values()} == {"x"}
    for kind in found["standard"]:
        marks = {row[kind] for row in found.values()}
        assert marks == {"x", "."} or kind == "kernels", kind
    assert len({tuple(row.values()) for row in found.values()}) >= 12


@pytest.mark.parametrize(
    ("recipe", "kind", "expected"),
    [
        ("standard", "embedding", "."),
        ("nanogpt", "embedding", "x"),
        ("timm", "query/bias", "."),
        ("timm_layer_decay", "query/bias", "x"),
        ("mae_pretrain", "logit_scale", "x"),
        ("deit", "logit_scale", "."),
        ("mae_finetune", "cls_token", "."),
        ("mae_pretrain", "cls_token", "x"),
        ("dinov2", "LayerNorm_0", "x"),
        ("levanter", "LayerNorm_0", "."),
        ("levanter", "ln_f", "x"),
        ("detectron2", "mlp/bias", "x"),
        ("detectron2", "ln_f", "."),
        ("onevision", "mask_token", "."),
        ("hf_trainer", "gamma", "x"),
    ],
)
def test_a_cell_of_the_table(recipe: str, kind: str, expected: str) -> None:
    assert cells()[recipe][kind] == expected


def test_the_table_refuses_a_kind_that_is_none() -> None:
    with pytest.raises(ValueError, match="disagrees with itself about 'kernels'"):
        SCRIPT["mark"](~wd.contains("head"), "kernels")
