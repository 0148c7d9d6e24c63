# SPDX-License-Identifier: Apache-2.0
"""Recipes of language models: Hugging Face, nanoGPT, levanter, Megatron, MaxText."""

from collections.abc import Sequence

from optax_wd._where.atoms import everything, min_ndim, optional
from optax_wd._where.names import contains, regex
from optax_wd._where.owners import owned_by
from optax_wd._where.rules import Rule, Stacked, check_rule
from optax_wd._where.values import Table
from optax_wd.recipes._parts import globs, listed, not_vectors, search, substrings

_LAYER_NORM = optional(owned_by("LayerNorm"))


def hf_trainer(layer_norms: Rule = _LAYER_NORM) -> Rule:
    """Undecayed: what a LayerNorm holds, and bias, layernorm, rmsnorm or norm in names.

    Names are compared in lower case. `bias`, `layernorm` and `rmsnorm` are substrings,
    and so hit the table of T5's `relative_attention_bias`; `norm` is a whole token or
    its end after an underscore: `final_norm` and `norm`, not `normalizer` or `norm1`.
    Embeddings, tokens and scalars decay. A Flax RMSNorm called `norm1` decays, as one
    of PyTorch does.

    Args:
      layer_norms: the leaves inside of a LayerNorm. The default asks for the owners of
        leaves, so the mask is made from the model, with `mask_of`. For a tree alone
        give the names of your model, for example `contains("ln_*")`.

    Returns:
      The rule of what decays.

    Raises:
      TypeError: if `layer_norms` is no rule.
      ValueError: when asked about a leaf without an owner whose name does not decide.

    Source: huggingface/transformers, trainer.py, `Trainer.get_decay_parameter_names`,
    and `get_parameter_names` in trainer_pt_utils.py.
    """
    names = r".*(?i:bias|layernorm|rmsnorm|(^|/)norm($|/)|_norm($|/)).*"
    return ~(optional(regex(names)) | check_rule(layer_norms, "hf_trainer"))


def nanogpt(*, stacked: Stacked = None) -> Rule:
    """Undecayed: fewer than two dimensions; embeddings and the tied head decay.

    The source has no rule for biases, which have one dimension there; Flax's of two are
    left out by name.

    Args:
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Source: karpathy/nanoGPT, model.py, `GPT.configure_optimizers`.
    """
    return min_ndim(2, stacked=stacked) & ~globs("*.bias")


def levanter() -> Rule:
    """Undecayed: paths with a class of norms or embeddings in them, and biases.

    The words are LayerNorm, RMSNorm, RmsNorm and Embedding, and bias at the end. They
    are substrings, case matters and the rank does not: scalars decay. levanter looks
    for them in the class names of modules too, which a path lacks. So of Flax
    `LayerNorm_0/scale` is hit, but neither a `scale` below `ln_f` nor the leaf
    `embedding`; for an NNX module, with its types and `mask_of`, add
    `& ~owned_by(nnx.LayerNorm, nnx.RMSNorm, nnx.Embed)`.

    Returns:
      The rule of what decays.

    Source: stanford-crfm/levanter, src/levanter/optim/config.py,
    `OptimizerConfig.build_weight_decay_mask`.
    """
    words = "LayerNorm", "RMSNorm", "RmsNorm", "Embedding"
    return ~substrings(*words) & ~globs("*bias")


def megatron(*, stacked: Stacked = None) -> Rule:
    """Undecayed: exactly one dimension, and `*.bias`.

    Embeddings decay, and so do scalars. Flax models give the same decisions.

    Args:
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Source: NVIDIA/Megatron-LM, megatron/core/optimizer/__init__.py,
    `get_standard_config_overrides`, without `apply_wd_to_qk_layernorm`.
    """
    return not_vectors(stacked) & ~globs("*.bias")


def maxtext(patterns: Sequence[str] = ()) -> Rule:
    """Undecayed: paths in which a pattern is found; without patterns everything decays.

    No pattern is the default of MaxText, and of torchtitan and EasyLM, which have no
    rule at all: norms, biases and scalars decay.

    Args:
      patterns: regular expressions, searched for anywhere in `a/b/kernel`.

    Returns:
      The rule of what decays.

    Raises:
      TypeError: if `patterns` is no tuple or list of strings.
      ValueError: if a pattern is no regular expression.

    Source: AI-Hypercomputer/maxtext, maxtext/optimizers/optimizers.py,
    `get_adamw_mask`, and the option `adamw_mask`.
    """
    found = listed("maxtext", patterns)
    return ~search(*found) if found else everything


def modded_nanogpt() -> Table:
    """Factors on the rate: embed and lm_head 150, value and bigram embeds 5, or 0 or 1.

    0 is for scalars, gates and lambdas; 1 is for the rest, among it the banks of gates
    (`attn_gate_bank`). A label is a whole token of the path, in Flax too:
    `embed/embedding` gets 150, `token_embed/embedding` 1.

    Returns:
      A table for `multiplier=`, with `everything` as the mask.

    Source: KellerJordan/modded-nanogpt, train_gpt.py, `wd_mul` in `param_table`.
    """
    none = contains("scalars", "*_gate", "*_lambda", "*_lambdas")
    return Table(
        (
            (optional(contains("embed", "lm_head")), 150.0),
            (optional(contains("value_embed*", "bigram_embed*")), 5.0),
            (optional(none), 0.0),
        ),
        1.0,
    )
