# SPDX-License-Identifier: Apache-2.0
"""Recipes of libraries for any model, and of a tutorial: scenic, Keras, Detectron2."""

from collections.abc import Sequence

from optax_wd._where.atoms import everything, optional
from optax_wd._where.names import regex
from optax_wd._where.owners import owned_by
from optax_wd._where.rules import Rule, check_rule
from optax_wd.recipes._parts import listed, search, substrings

# The types in the source, then what Flax calls the same.
_NORMS = optional(
    owned_by(
        *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"),
        *("NaiveSyncBatchNorm", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d"),
        *("InstanceNorm3d", "LayerNorm", "LocalResponseNorm"),
        *("BatchNorm", "InstanceNorm"),
    )
)


def scenic() -> Rule:
    """Undecayed: everything but paths with `kernel` in them.

    A substring of the whole path, not its last token: the bias of a module called
    `kernel_net` decays. These are Flax names; of PyTorch names nothing decays.

    Returns:
      The rule of what decays.

    Source: google-research/scenic, scenic/train_lib/optax.py, `make`, where the weight
    decay is a number. The older optimizers.py goes by `ndim != 1`.
    """
    return optional(regex(".*kernel.*"))


def keras(exclude: Sequence[str]) -> Rule:
    """Undecayed: paths in which a pattern of `exclude` is found; without any, nothing.

    A pattern is found anywhere: `bias` hits `relative_position_bias_table`. Searched is
    the whole path, as in the names of Keras 2 (`dense/kernel:0`). Keras 3 searches in
    `variable.name`, which is the last token alone, so there a layer's name hits
    nothing; for that write `(^|/)gamma$`.

    Args:
      exclude: regular expressions, as for the argument `var_names` of
        `exclude_from_weight_decay`.

    Returns:
      The rule of what decays.

    Raises:
      TypeError: if `exclude` is no tuple or list of strings.
      ValueError: if a pattern is no regular expression.

    Source: keras-team/keras, keras/src/optimizers/base_optimizer.py,
    `exclude_from_weight_decay` and `_use_weight_decay`.
    """
    found = listed("keras", exclude)
    return ~search(*found) if found else everything


def detectron2(norms: Rule = _NORMS) -> Rule:
    """Undecayed: what normalization layers hold; biases of other layers decay.

    So do tokens, embeddings and scalars. Types count by name: BatchNorm, GroupNorm,
    InstanceNorm, LayerNorm and their PyTorch variants. RMSNorm is not in the list of
    the source and decays, in Flax too.

    Args:
      norms: the leaves of normalization layers. The default asks for the owners of
        leaves, so the mask is made from the model, with `mask_of`. For a tree alone
        give the names of your model, for example `contains("BatchNorm_*")`.

    Returns:
      The rule of what decays.

    Raises:
      TypeError: if `norms` is no rule.
      ValueError: when asked about a leaf without an owner.

    Source: facebookresearch/detectron2, detectron2/solver/build.py,
    `get_default_optimizer_params` with `weight_decay_norm=0`.
    """
    return ~check_rule(norms, "detectron2")


def amnl() -> Rule:
    """Undecayed: names with bias or a spelling of a norm in them.

    The words are bias, LayerNorm, layer_norm, BatchNorm, batch_norm, ln_ and bn_. They
    are substrings and hit too much: `ln_` any `kln_proj`, `bias` any
    `relative_position_bias_table`. The rank does not count: tokens and scalars decay.
    Of Flax `LayerNorm_0/scale` is hit, `norm1/scale` decays, as `norm1.weight` does.

    Returns:
      The rule of what decays.

    Source: the tutorial of AMNL on remaining useful life.
    """
    return ~substrings(
        *("bias", "LayerNorm", "layer_norm", "BatchNorm", "batch_norm", "ln_", "bn_")
    )
