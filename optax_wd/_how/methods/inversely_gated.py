# SPDX-License-Identifier: Apache-2.0
"""Inversely gated weight decay: a control, open where cautious decay is closed."""

import jax
import optax

from optax_wd._how.engine import decay_along, towards_zero
from optax_wd._how.gates import cautious_gate
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.standard import standard


def inversely_gated_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull towards zero the coordinates that the step moves away from zero: a control.

    `u <- u + weight_decay * 1[u * x < 0] * x`, where `u` is the final direction. Zeros
    and NaN are closed. In parallel with `cautious_weight_decay` it makes full decay. It
    stands where cautious decay stands, with a shrink per step of `lr * weight_decay` on
    the open coordinates.

    What it does not do: it is no method to train with. It only ever works against the
    step, and is here to show that the choice of coordinates matters.

    Args:
      weight_decay: as in `masked_decay`.
      mask: as in `masked_decay`.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation as that of `cautious_weight_decay`, which takes `sign_of=` too.

    Raises:
      TypeError: as `masked_decay`.
      ValueError: as `masked_decay`.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.adamw(1e-3, wd.controls.inversely_gated_weight_decay(0.1))

    Source: the complement of Cautious Weight Decay, arXiv:2510.12402.
    """
    return decay_along(
        towards_zero, weight_decay, mask, gate=_opposed, multiplier=multiplier
    )


def _opposed(sign_source: jax.Array, direction: jax.Array) -> jax.Array:
    """Open where the two have opposite signs; exact, as `cautious_gate` is."""
    opposite_or_zero = cautious_gate(sign_source, -direction)
    return opposite_or_zero & ~cautious_gate(sign_source, direction)
