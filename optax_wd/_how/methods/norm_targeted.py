# SPDX-License-Identifier: Apache-2.0
"""Norm-targeted weight decay (AdamWN): decay towards a norm instead of towards zero."""

from typing import Any

import jax
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount, check_number
from optax_wd._how.engine import evolving
from optax_wd._how.leafwise import inner_axes, map_decayed
from optax_wd._how.leafwise import norm as norm_over
from optax_wd._how.norms import norms_of, ratio
from optax_wd._how.step import decayed
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.rules import Stacked, check_stacked
from optax_wd._where.standard import standard


def norm_targeted_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    norm: float | None = None,
    stacked: Stacked = None,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull the norm of each tensor towards a target, from above and from below.

    `u <- u + weight_decay * (1 - r / ||x||) * x`, where `r` is the target and the norm
    is that of the whole tensor. A tensor that is all zeros has no direction and stays.
    Between the preconditioner and the learning rate the distance to the target,
    `||x|| - r`, shrinks per step by `lr * weight_decay`; inside `after_learning_rate`
    by `weight_decay` itself. `r = 0` is plain decay.

    What it does not do: smaller weights than the target *grow*. It does not hold the
    norm either, which moves with the gradient; `pin_norms` and `keep_norms` hold it.

    Args:
      weight_decay: as in `masked_decay`.
      mask: as in `masked_decay`.
      norm: the target, in the units of the parameters, 0 or more; by default the norm
        that each tensor has at `init`.
      stacked: leaves that hold several tensors along an axis (of `nn.scan`,
        `nnx.vmap`): a rule for axis 0, or pairs `(rule, axis)`.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState`, whose memory is the norm at `init` of every
      tensor, one number each. Updates keep their dtypes.

    Raises:
      TypeError: as `masked_decay`; if `norm` is no number or `stacked` no rule.
      ValueError: as `masked_decay`; if `norm` is negative or not finite.

    Example:
      >>> import optax, optax_wd as wd
      >>> tx = optax.chain(
      ...     optax.scale_by_adam(),
      ...     wd.norm_targeted_weight_decay(0.1),
      ...     optax.scale_by_learning_rate(1e-3),
      ... )

    Source: Loshchilov, Weight Norm Control, arXiv:2311.11446 (AdamWN). Here norms are
    those of single tensors, and the rate goes with the learning rate unless the decay
    stands inside `after_learning_rate`.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    if norm is not None:
        check_number("norm", norm, least=0)
    pairs = check_stacked(stacked)

    def apply(rate: Any, updates: Any, params: Any, memory: Any, extra: Any) -> Any:
        del extra

        def one(leaf: Any, factor: Any, param: Any, update: Any, start: Any) -> Any:
            axes = inner_axes(leaf, pairs)

            def towards_norm(u: jax.Array, x: jax.Array, kept: jax.Array) -> jax.Array:
                del u
                target = kept if norm is None else norm
                return (1.0 - ratio(target, norm_over(x, axes), 0.0)) * x

            values = param, start
            return decayed(update, values, update, (rate, factor), towards_norm, None)

        trees = updates, memory
        pulled = map_decayed(one, mask, multiplier, params, *trees, stacked=pairs)
        return pulled, memory

    return evolving(amount, lambda params: norms_of(pairs, params), apply)
