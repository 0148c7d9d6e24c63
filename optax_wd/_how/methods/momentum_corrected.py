# SPDX-License-Identifier: Apache-2.0
"""Momentum-corrected weight decay: as strong as the momentum makes the step."""

import jax
import optax

from optax_wd._amount.amounts import check_number
from optax_wd._how.engine import decay_along
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.standard import standard


def momentum_corrected_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    momentum: float,
    dampening: float = 0.0,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull towards zero with the coefficient that was tuned for L2 regularisation.

    `u <- u + weight_decay * (1 - dampening) / (1 - momentum) * x`. Momentum makes the
    steps of SGD `(1 - dampening) / (1 - momentum)` times as long, and decoupled decay
    stays behind by that factor; here it does not, so the fixed point is that of L2
    regularisation. It stands between the momentum and the learning rate, with a shrink
    per step of `lr * weight_decay * (1 - dampening) / (1 - momentum)`. Without momentum
    it is `masked_decay`.

    What it does not do. It does not read the momentum from the optimizer: give the same
    number to both. Adam and Lion, whose moments are averages, need no correction;
    neither does `optax.ema`.

    Args:
      weight_decay: as in `masked_decay`.
      mask: as in `masked_decay`.
      momentum: that of the optimizer, in [0, 1).
      dampening: that of the optimizer, in [0, 1); Optax's `trace` has none.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState` and empty memory; its `decay_rate` is
      `weight_decay` as given. Updates keep their dtypes.

    Raises:
      TypeError: as `masked_decay`; if `momentum` or `dampening` is no number.
      ValueError: as `masked_decay`; if one of these is not in [0, 1).

    Example:
      >>> import optax_wd as wd
      >>> decay = wd.momentum_corrected_weight_decay(5e-4, momentum=0.9)
      >>> tx = wd.sgdw(0.1, decay, momentum=0.9)

    Source: Stable Weight Decay, arXiv:2011.11152 (SGDS); the factor as in its code,
    which shrinks the weight before the step, with the same result.
    """
    for name, value in (("momentum", momentum), ("dampening", dampening)):
        check_number(name, value, least=0.0)
        if value >= 1.0:
            raise ValueError(f"{name} is less than 1, got {value!r}")
    correction = (1.0 - float(dampening)) / (1.0 - float(momentum))

    def direction(update: jax.Array, param: jax.Array) -> jax.Array:
        del update
        return correction * param

    return decay_along(direction, weight_decay, mask, multiplier=multiplier)
