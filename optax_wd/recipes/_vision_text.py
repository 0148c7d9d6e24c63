# SPDX-License-Identifier: Apache-2.0
"""Recipes of vision and language together: OpenCLIP, big_vision, SigLIP, OneVision."""

import math
from collections.abc import Sequence

from optax_wd._where.atoms import min_ndim, optional
from optax_wd._where.names import regex
from optax_wd._where.rules import Rule, Stacked
from optax_wd._where.values import BoolTable, Table
from optax_wd.recipes._parts import globs, listed, substrings

_KERNELS = ((".*/kernel", 1.0),)


def open_clip_legacy(*, stacked: Stacked = None) -> Rule:
    """Undecayed: fewer than two dimensions, or bn, ln, bias or logit_scale in the name.

    The words are substrings and hit too much: `ln` any `kln_proj`, `bias` any
    `relative_position_bias_table`. Class and position embeddings decay. Flax models
    give the same decisions.

    Args:
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Source: mlfoundations/open_clip, src/open_clip_train/main.py before 2026, `exclude`.
    """
    quirks = substrings("bn", "ln", "bias", "logit_scale")
    return min_ndim(2, stacked=stacked) & ~quirks


def open_clip(no_weight_decay: Sequence[str] = (), *, stacked: Stacked = None) -> Rule:
    """Undecayed: fewer than two dimensions, and what the submodules of a model declare.

    A declaration counts below the module that makes it, so its path stands in front:
    `*rel_pos` of the module `visual` is `visual.*rel_pos`. There is no rule for biases
    in the source, where they have one dimension; Flax's of two are left out by name.

    Args:
      no_weight_decay: the declared names or globs, with the path of the submodule;
        tokens separated by dots or slashes.
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Raises:
      TypeError: if `no_weight_decay` is no tuple or list of strings.

    Source: mlfoundations/open_clip, src/open_clip_train/optim.py, `make_wd_exclude`,
    since 2026.
    """
    names = listed("open_clip", no_weight_decay)
    return min_ndim(2, stacked=stacked) & ~globs("*.bias", *names)


def big_vision(wd_mults: Sequence[tuple[str, float]] = _KERNELS) -> Rule:
    """Undecayed: everything but `.*/kernel`, or what `wd_mults` gives no factor.

    The first pattern that matches the whole path decides. Tokens, position tables and
    the embedding of tokens never decay; a patch convolution `embedding/kernel` does.
    These are Flax names: of PyTorch names, which hold no `kernel`, nothing decays
    unless `wd_mults` says `.*/weight`, which decays norms.

    Args:
      wd_mults: pairs of a regular expression and a factor on the rate. A factor other
        than 1 has an effect through `big_vision_multiplier` only.

    Returns:
      The rule of what decays: leaves whose factor is not 0.

    Raises:
      TypeError: if `wd_mults` is no sequence of pairs.
      ValueError: if a pattern is no regular expression.

    Source: google-research/big_vision, big_vision/optax.py, `make`.
    """
    rows = ((rule, factor != 0.0) for rule, factor in _rows(wd_mults))
    return BoolTable(Table(tuple(rows), False))


def big_vision_multiplier(wd_mults: Sequence[tuple[str, float]] = _KERNELS) -> Table:
    """The factors of `wd_mults`, 0 for leaves that no pattern matches.

    Args:
      wd_mults: pairs of a regular expression and a factor on the rate, 0 or more; the
        first pattern that matches the whole path decides.

    Returns:
      A table for `multiplier=`, with `everything` as the mask.

    Raises:
      TypeError: if `wd_mults` is no sequence of pairs.
      ValueError: if a pattern is no regular expression.

    Source: google-research/big_vision, big_vision/optax.py, `make`.
    """
    return Table(_rows(wd_mults), 0.0)


def siglip() -> Rule:
    """Undecayed: everything but `.*/kernel`, as in `big_vision`.

    The temperature `t` and the bias `b` of the loss do not decay.

    Returns:
      The rule of what decays.

    Source: google-research/big_vision, the configurations of SigLIP, which leave
    `wd_mults` at its default.
    """
    return big_vision()


def onevision(*, stacked: Stacked = None) -> Rule:
    """Undecayed: fewer than two dimensions, `*.bias`, and learned tokens.

    A learned token has probe, pos_embed, cls_token, mask_token, query_tokens or latents
    in its name. The words are substrings: `probe` hits every kernel of a
    `linear_probe`. Flax models give the same decisions where they keep the names.

    Args:
      stacked: the leaves with a stacked axis, as in `min_ndim`.

    Returns:
      The rule of what decays.

    Source: EvolvingLMMs-Lab, OneVision-Encoder.
    """
    tokens = "probe", "pos_embed", "cls_token", "mask_token", "query_tokens", "latents"
    weights = min_ndim(2, stacked=stacked)
    return weights & ~globs("*.bias") & ~substrings(*tokens)


def _rows(wd_mults: object) -> tuple[tuple[Rule, float], ...]:
    rows = []
    for pair in wd_mults if isinstance(wd_mults, tuple | list) and wd_mults else [None]:
        match pair:
            case (str(pattern), int() | float() as factor) if 0 <= factor < math.inf:
                rows.append((optional(regex(pattern)), float(factor)))
            case _:
                raise TypeError(
                    "wd_mults takes pairs of a pattern and a factor, 0 or more, such "
                    f"as {_KERNELS!r}, got {wd_mults!r}"
                )
    return tuple(rows)
