# SPDX-License-Identifier: Apache-2.0
"""Top-k gated decay: few weights learn in a step, all decay."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount, check_number
from optax_wd._how.engine import evolving, towards_zero
from optax_wd._how.leafwise import map_decayed
from optax_wd._how.step import decayed, is_inexact, wide_dtype
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, Multiplier, PyTree
from optax_wd._where.standard import standard


def topk_gated_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    keep: float,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Let only the most salient weights learn in a step, and all of them decay.

    `g <- g * 1[|x * g| >= t] + weight_decay * x`, where `t` is the `Q`-th largest value
    of `|x * g|` over all coordinates of all leaves that decay, taken together, and
    `Q = floor(keep * number of these coordinates)`. Ties with the `Q`-th keep their
    gradients too: with all gradients 0 nothing changes but the decay. A NaN gradient
    counts as the largest, so it is not hidden; infinities are what they are.

    It stands first, before the momentum, where updates are raw gradients; the decay
    goes through the momentum. With momentum `mu` the shrink per step comes to
    `lr * weight_decay / (1 - mu)`. Weights that are seldom chosen fade to zero, which
    prunes the network without a loss in the end; weights that are 0 have `|x * g| = 0`
    and so are not chosen. Leaves that do not decay keep their whole gradient and take
    no part in the choice; a constant `weight_decay` of 0 switches everything off.

    It may stand inside a ready chain too, and in `sgdw` without momentum that is the
    same rule. In `adamw` and others it chooses among the directions, with `u` for `g`,
    and the decay is decoupled: the shrink per step is `lr * weight_decay`. Sizes are
    compared there and no signs, so `sign_of=` is not used.

    The choice is global and exact: all `|x * g|` are gathered and sorted, which takes
    a temporary of the size of the decayed parameters, in float32, and across shards a
    gather.

    Args:
      weight_decay: dimensionless; multiplied by what follows. A number, a schedule of
        the step, or a 0-d array.
      mask: as in `masked_decay`.
      keep: the fraction of coordinates that learn in a step, above 0 and at most 1; one
        over the factor by which the network is to be compressed.
      multiplier: as in `masked_decay`; of the decay, not of the choice. Leaves with 0
        are as leaves that do not decay.

    Returns:
      A transformation with a `DecayState` and empty memory. Updates keep their dtypes.

    Raises:
      TypeError: as `masked_decay`; also if `keep` is no number.
      ValueError: as `masked_decay`; also if `keep` is not in (0, 1], or at update if
        it is less than one coordinate.

    Example:
      >>> import optax, optax_wd as wd
      >>> tx = optax.chain(
      ...     wd.topk_gated_weight_decay(5e-4, keep=0.05),
      ...     optax.sgd(0.01, momentum=0.98),
      ... )

    Source: Ding et al., Global Sparse Momentum SGD, arXiv:1909.12778, equations 4-6.
    The authors' code chooses among all leaves of two or four dimensions; here the mask
    says.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    check_number("keep", keep, least=0.0)
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep is a fraction above 0 and at most 1, got {keep!r}")

    def apply(rate: Any, updates: PyTree, params: PyTree, memory: Any, extra: Any):
        del extra
        scores: list[jax.Array] = []

        def score(leaf: Leaf, factor: Any, param: Any, update: Any) -> Any:
            del leaf, factor
            scores.append(jnp.ravel(_salience(param, update)))
            return update

        map_decayed(score, mask, multiplier, params, updates)
        least = _threshold(scores, keep)

        def one(leaf: Leaf, factor: Any, param: Any, update: Any) -> Any:
            del leaf
            chosen = jnp.where(_salience(param, update) >= least, update, 0)
            scale = (rate, factor)
            return decayed(
                chosen.astype(update.dtype), (param,), update, scale, towards_zero, None
            )

        return map_decayed(one, mask, multiplier, params, updates), memory

    return evolving(amount, lambda params: (), apply)


def _salience(param: Any, update: Any) -> jax.Array:
    """`|x * g|`, in float32 or wider; of NaN infinity."""
    if not is_inexact(param):
        return jnp.zeros(jnp.shape(update), jnp.float32)
    wide = wide_dtype(param.dtype, update.dtype)
    product = jnp.abs(jnp.asarray(param, wide) * jnp.asarray(update, wide))
    return jnp.where(jnp.isnan(product), jnp.inf, product)


def _threshold(scores: list[jax.Array], keep: float) -> jax.Array:
    size = sum(score.size for score in scores)
    if not size:
        return jnp.zeros([])
    chosen = math.floor(keep * size + 1e-9)  # 0.29 of 100 is 29
    if not chosen:
        raise ValueError(
            f"keep={keep!r} of the {size} coordinates that decay is less than one; "
            f"write keep=1/{size} or more"
        )
    wide = jnp.result_type(*scores)
    together = jnp.concatenate([score.astype(wide) for score in scores])
    return jnp.sort(together)[size - chosen]
