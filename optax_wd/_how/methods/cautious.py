# SPDX-License-Identifier: Apache-2.0
"""Cautious weight decay: decay only where the step shrinks the weight already."""

import optax

from optax_wd._how.engine import decay_along, towards_zero
from optax_wd._how.gates import cautious_gate
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.standard import standard


def cautious_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull towards zero the coordinates that the step moves towards zero as well.

    `u <- u + weight_decay * 1[u * x >= 0] * x`, where `u` is the final direction, which
    will be subtracted: that of Adam, Lion, SGD with momentum. It stands where decoupled
    decay stands, between the preconditioner and the learning rate, with a shrink per
    step of `lr * weight_decay` on the open coordinates. Reuse the coefficient that was
    tuned for plain decay; the gate is not compensated for.

    The gate compares exact signs. `u = 0` is open, so unused embedding rows and
    parameters behind `stop_gradient` decay in full: exclude them by a rule. NaN is
    closed. Of complex parameters both parts are gated separately.

    What it does not do. It removes the bound on the weights, `|x| <= 1/weight_decay`,
    that decoupled decay gives AdamW and Lion. On separable cross-entropy, where growing
    weights lower the loss for ever, the gate closes and there is hardly any
    regularisation left. And it is not the C-Optim family (`caution` in timm and
    levanter), which masks the update with the gradient.

    Gating reads the direction a second time. The ready chain `optax_wd.adamw` does so
    without extra memory traffic; a chain of your own writes the direction to memory
    once more.

    Args:
      weight_decay: as in `masked_decay`.
      mask: as in `masked_decay`.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState` and empty memory. Updates keep their dtypes.
      Its `update` takes `sign_of=`, a tree of the signs of the updates to gate by.

    Raises:
      TypeError: as `masked_decay`.
      ValueError: as `masked_decay`.

    Example:
      >>> import optax, optax_wd as wd
      >>> tx = optax.chain(
      ...     optax.scale_by_lion(),
      ...     wd.cautious_weight_decay(0.1),
      ...     optax.scale_by_learning_rate(1e-4),
      ... )

    Source: Cautious Weight Decay, arXiv:2510.12402, Algorithm 1. modded-nanogpt's Adam
    differs in a strict gate, `u * x > 0`, and a decay that goes with `lr**2`.
    """
    return decay_along(
        towards_zero, weight_decay, mask, gate=cautious_gate, multiplier=multiplier
    )
