# SPDX-License-Identifier: Apache-2.0
"""L1 weight decay: a pull towards zero of the same size for all weights."""

import jax
import jax.numpy as jnp
import optax

from optax_wd._how.engine import decay_along
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.standard import standard


def l1_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull the chosen parameters towards zero by a constant, whatever their size.

    `u <- u + weight_decay * sign(x)`, with `sign(0) = 0`. Between the preconditioner
    and the learning rate every weight moves by `lr * weight_decay` towards zero per
    step, so the shrink, as a fraction, is `lr * weight_decay / |x|`: small weights go
    first. Before the preconditioner it is the gradient of an L1 penalty.

    What it does not do. It makes no exact zeros: the learning rate is not known here,
    so a weight that is nearer to zero than `lr * weight_decay` steps over it and
    stays within that distance. Prune below it. Of complex parameters the modulus is
    pulled, `sign(z) = z / |z|`.

    Args:
      weight_decay: in the unit of the parameters; multiplied by the learning rate that
        follows. A number, a schedule of the step, or a 0-d array.
      mask: as in `masked_decay`.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState` and empty memory. Updates keep their dtypes.

    Raises:
      TypeError: as `masked_decay`.
      ValueError: as `masked_decay`.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.adamw(1e-3, wd.l1_weight_decay(1e-3))

    Source: the subgradient of the lasso, Tibshirani, 1996. Soft thresholding, the
    proximal step of the same penalty, does stop at zero.
    """
    return decay_along(_sign, weight_decay, mask, multiplier=multiplier)


def _sign(update: jax.Array, param: jax.Array) -> jax.Array:
    del update
    return jnp.sign(param)
