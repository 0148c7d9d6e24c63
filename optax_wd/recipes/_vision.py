# SPDX-License-Identifier: Apache-2.0
"""Recipes of vision: timm and what grew out of it, MAE, BEiT, DeiT, DINO."""

from collections.abc import Sequence

from optax_wd._where.atoms import min_ndim
from optax_wd._where.rules import Rule, Stacked
from optax_wd.recipes._parts import globs, listed, not_vectors, substrings


def timm(no_weight_decay: Sequence[str] = (), *, stacked: Stacked = None) -> Rule:
    """Undecayed: fewer than two dimensions, `*.bias`, and the names of a list.

    Globs are anchored and `*` crosses dots: `pos_embed.*` is not `trunk.pos_embed.x`.
    Tokens and position tables decay unless the list names them. Flax models give the
    same decisions; where they call a token otherwise (`cls`), so must the list.

    Args:
      no_weight_decay: names or globs, those of timm's `model.no_weight_decay()`, with
        tokens separated by dots or slashes.
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Raises:
      TypeError: if `no_weight_decay` is no tuple or list of strings.

    Source: huggingface/pytorch-image-models, timm/optim/_param_groups.py,
    `param_groups_weight_decay`.
    """
    names = listed("timm", no_weight_decay)
    return min_ndim(2, stacked=stacked) & ~globs("*.bias", *names)


def timm_layer_decay(
    no_weight_decay: Sequence[str] = (), *, stacked: Stacked = None
) -> Rule:
    """Undecayed: fewer than two dimensions, and the names of a list; no rule for bias.

    This is the one recipe whose Flax spelling differs: attention biases of shape
    (heads, head_dim) decay, until `no_weight_decay=("*.bias",)` names them. timm scales
    the learning rate of layer l by `max(min_scale, rate ** (layer_max - l))` as well:
    that is `scale_per_leaf(layerwise(rate, layer_of, minimum=min_scale))`.

    Args:
      no_weight_decay: names or globs, as in `timm`.
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Raises:
      TypeError: if `no_weight_decay` is no tuple or list of strings.

    Source: huggingface/pytorch-image-models, timm/optim/_param_groups.py,
    `param_groups_layer_decay`.
    """
    names = listed("timm_layer_decay", no_weight_decay)
    weights = min_ndim(2, stacked=stacked)
    return weights & ~globs(*names) if names else weights


def mae_finetune(
    no_weight_decay: Sequence[str] = ("pos_embed", "cls_token"),
    *,
    stacked: Stacked = None,
) -> Rule:
    """Undecayed: exactly one dimension, and the names of a list.

    Scalars decay. Names are compared with the whole name, so `encoder.pos_embed`
    decays. The source knows no rule for biases, which have one dimension there; Flax's
    of two are left out by name.

    Args:
      no_weight_decay: names, tokens separated by dots or slashes; globs are allowed.
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Raises:
      TypeError: if `no_weight_decay` is no tuple or list of strings.

    Source: facebookresearch/mae, util/lr_decay.py, `param_groups_lrd`, with the list of
    its models_vit.py.
    """
    names = listed("mae_finetune", no_weight_decay)
    return not_vectors(stacked) & ~globs("*.bias", *names)


def mae_pretrain(*, stacked: Stacked = None) -> Rule:
    """Undecayed: exactly one dimension, and `*.bias`.

    No list: cls_token and mask_token decay, and so do scalars. Flax models give the
    same decisions.

    Args:
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Source: facebookresearch/mae, main_pretrain.py, which calls `add_weight_decay` of
    timm 0.3.2 without its list.
    """
    return not_vectors(stacked) & ~globs("*.bias")


def beit(
    no_weight_decay: Sequence[str] = ("pos_embed", "cls_token"),
    *,
    stacked: Stacked = None,
) -> Rule:
    """Undecayed: exactly one dimension, `*.bias`, and the names of a list.

    Scalars decay, and so do relative_position_bias_table and mask_token: only timm's
    BEiT lists the former. Flax models give the same decisions.

    Args:
      no_weight_decay: names, tokens separated by dots or slashes; globs are allowed.
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Raises:
      TypeError: if `no_weight_decay` is no tuple or list of strings.

    Source: microsoft/unilm, beit/optim_factory.py, `get_parameter_groups`.
    """
    names = listed("beit", no_weight_decay)
    return not_vectors(stacked) & ~globs("*.bias", *names)


def deit(*, stacked: Stacked = None) -> Rule:
    """Undecayed: as `timm`, with pos_embed, cls_token and dist_token.

    Those three are whole names: deeper in a model they decay. Flax models give the same
    decisions where they keep the names.

    Args:
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Source: facebookresearch/deit, main.py, which leaves the grouping to timm, and the
    `no_weight_decay` of its models.
    """
    return timm(("pos_embed", "cls_token", "dist_token"), stacked=stacked)


def dino(*, stacked: Stacked = None) -> Rule:
    """Undecayed: exactly one dimension, and `*.bias`.

    Tokens, position tables and scalars decay. Flax models give the same decisions.

    Args:
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Source: facebookresearch/dino, utils.py, `get_params_groups`.
    """
    return not_vectors(stacked) & ~globs("*.bias")


def dinov2() -> Rule:
    """Undecayed: `*.bias`, and whatever has `norm` or `gamma` in its name.

    The rank does not count: tokens and position tables decay, scalars too. `norm` hits
    `normalizer.weight`, and case matters, so in Flax it hits `norm1/scale`, but not
    `LayerNorm_0/scale`, which decays: name the norms as DINOv2 does.

    Returns:
      The rule of what decays.

    Source: facebookresearch/dinov2, dinov2/utils/param_groups.py,
    `get_params_groups_with_decay`.
    """
    return ~globs("*.bias") & ~substrings("norm", "gamma")
