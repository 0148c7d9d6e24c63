# SPDX-License-Identifier: Apache-2.0
"""Huber weight decay: in proportion for small weights, constant for large ones."""

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount.amounts import check_positive
from optax_wd._how.engine import decay_along
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.standard import standard


def huber_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    threshold: float,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull towards zero in proportion to the weight, up to a threshold, then no harder.

    `u <- u + weight_decay * x` where `|x| <= threshold`, and
    `u <- u + weight_decay * threshold * sign(x)` beyond: the gradient of the Huber
    penalty. It stands where decoupled decay stands, with a shrink per step of
    `lr * weight_decay` up to the threshold and `lr * weight_decay * threshold / |x|`
    beyond it. As `threshold` grows it becomes `masked_decay`.

    Why a gradient and no proximal step. With `t = lr * weight_decay` the paper maps the
    weight *after* the step to `x / (1 + t)` if `|x| <= (1 + t) * threshold`, else to
    `x - t * threshold * sign(x)`. Where the learning rate is not known yet that cannot
    be done, and it need not: from the same point the two differ by less than
    `t**2 * threshold`, 1e-8 of the threshold at `t = 1e-4`. So this one works at every
    place and in every chain. Inside `after_learning_rate`, `t` is `weight_decay`, and
    `proportional(weight_decay, to=schedule)` makes it follow the learning rate.

    What it does not do. It bounds the pull, not the weights: under AdamW or Lion, whose
    steps are of size 1, a push wins for ever where `weight_decay * threshold < 1`. Of
    complex parameters the modulus counts.

    Args:
      weight_decay: as in `masked_decay`.
      mask: as in `masked_decay`.
      threshold: the size from which on the pull is constant, in the unit of the
        parameters; more than 0.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState` and empty memory. Updates keep their dtypes.

    Raises:
      TypeError: as `masked_decay`; if `threshold` is no number.
      ValueError: as `masked_decay`; if `threshold` is not a finite number above 0.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.adamw(1e-3, wd.huber_weight_decay(0.1, threshold=0.05))

    Source: AdamHD, arXiv:2511.14721. There the step is proximal, see above, and each
    layer's threshold follows an average of the magnitudes of its weights; here it is
    given, and per group of leaves by a decay for each.
    """
    check_positive("threshold", threshold)

    def direction(update: jax.Array, param: jax.Array) -> jax.Array:
        del update
        edge = float(threshold) * jnp.sign(param)
        return jnp.where(jnp.abs(param) <= float(threshold), param, edge)

    return decay_along(direction, weight_decay, mask, multiplier=multiplier)
