# SPDX-License-Identifier: Apache-2.0
"""More ready chains: one call of another, under the name that the literature has."""

from typing import Any

import jax
import optax

from optax_wd._amount.schedules import proportional
from optax_wd._how.chains.optimizers import adamw, sgdw
from optax_wd._how.chains.ready import takes_decay
from optax_wd._how.engine import masked_decay
from optax_wd._how.methods.momentum_corrected import momentum_corrected_weight_decay
from optax_wd._tree.typing import Mask
from optax_wd._where.standard import standard


@takes_decay
def nadamw(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.GradientTransformation,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with Nesterov momentum and a decay of your choice: `adamw(nesterov=True)`.

    Args:
      learning_rate: as in `adamw`.
      decay: as in `adamw`.
      b1: as in `adamw`.
      b2: as in `adamw`.
      eps: as in `adamw`.
      eps_root: as in `adamw`.
      mu_dtype: as in `adamw`.

    Returns:
      A transformation whose state is the chain's.

    Raises:
      TypeError: as `adamw`.
      ValueError: as `adamw`.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.nadamw(1e-3, wd.cautious_weight_decay(0.1))

    Source: defaults and arithmetic of `optax.nadamw`, without its own decay.
    """
    betas = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    return adamw(learning_rate, decay, **betas, mu_dtype=mu_dtype, nesterov=True)


def adamc(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    peak: float,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with a corrected decay, which falls with the learning rate.

    `x <- x - lr_t * (u + (lr_t / peak) * weight_decay * x)`, a shrink per step of
    `lr_t**2 / peak * weight_decay`. Under plain decay the norm of weights ahead of a
    normalisation goes with the root of `lr_t / weight_decay`, so gradients grow where
    the learning rate falls; under this one the norm stays where it is.

    Args:
      learning_rate: a number up to `peak`, or a schedule of the step. What a schedule
        will reach cannot be known: where it is above `peak`, so is the coefficient
        above `weight_decay`, by the same factor.
      weight_decay: dimensionless, the coefficient where the learning rate is at `peak`.
      mask: as in `masked_decay`. The paper means weights whose output is normalised.
      peak: the highest value of `learning_rate`, more than 0.
      b1: decay rate of the first moment, in [0, 1), and so on: as in `adamw`.
      b2: as in `adamw`.
      eps: as in `adamw`.
      eps_root: as in `adamw`.
      mu_dtype: as in `adamw`.
      nesterov: whether to use Nesterov momentum.

    Returns:
      A transformation whose state is that of `adamw`.

    Raises:
      TypeError: as `masked_decay` and `proportional`.
      ValueError: as `masked_decay` and `proportional`, and if `learning_rate` is a
        number above `peak`.

    Example:
      >>> import optax, optax_wd as wd
      >>> schedule = optax.cosine_decay_schedule(1e-3, 1000)
      >>> tx = wd.adamc(schedule, 0.1, peak=1e-3)

    Source: Why Gradients Rapidly Increase Near the End of Training, arXiv:2506.02285,
    Algorithm 2, which decays all other weights plainly; timm and levanter correct every
    decayed leaf, as here. Another decay is corrected in the same way by `proportional`.
    """
    corrected = proportional(weight_decay, to=learning_rate, peak=peak)
    rate: Any = learning_rate
    if isinstance(rate, int | float) and isinstance(peak, int | float) and rate > peak:
        raise ValueError(
            f"learning_rate is {learning_rate}, above its highest value, peak={peak}; "
            "write the highest value of the learning rate as peak"
        )
    betas = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    rest = {"mu_dtype": mu_dtype, "nesterov": nesterov}
    return adamw(learning_rate, masked_decay(corrected, mask), **betas, **rest)


def sgds(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    momentum: float,
    nesterov: bool = False,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum and a decay that is corrected for it.

    `x <- x - lr * (m + weight_decay / (1 - momentum) * x)`, `m <- g + momentum * m`.
    The sum of all steps that a gradient takes is `1 / (1 - momentum)` times its own
    size, and here the decay is as well: on a quadratic it ends where SGD with L2
    regularisation ends, so a coefficient tuned for that can be kept.

    Args:
      learning_rate: a number or a schedule of the step.
      weight_decay: dimensionless, as for L2 regularisation; the shrink per step is
        `lr * weight_decay / (1 - momentum)`.
      mask: as in `masked_decay`.
      momentum: decay rate of the accumulated gradient, in [0, 1).
      nesterov: whether to use Nesterov momentum.
      accumulator_dtype: dtype of the momentum; by default that of the parameters.

    Returns:
      A transformation whose state is that of `sgdw`.

    Raises:
      TypeError: as `momentum_corrected_weight_decay`.
      ValueError: as `momentum_corrected_weight_decay`.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.sgds(0.1, 5e-4, momentum=0.9)

    Source: Xie et al., Stable Weight Decay, arXiv:2011.11152 (SGDS), without dampening,
    as `optax.sgd` has none.
    """
    decay = momentum_corrected_weight_decay(weight_decay, mask, momentum=momentum)
    rest = {"nesterov": nesterov, "accumulator_dtype": accumulator_dtype}
    return sgdw(learning_rate, decay, momentum=momentum, **rest)
