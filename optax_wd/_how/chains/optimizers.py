# SPDX-License-Identifier: Apache-2.0
"""Ready chains: an optimizer and a decay in the right order, at full speed.

Each is the chain `scale_by_..., decay, scale_by_learning_rate`. What they add is the
place of the decay, and signs to gate by that cost nothing: a gate on the direction
makes XLA write the direction to memory for its second use, a gate on Adam's numerator
does not.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_wd._how.chains.ready import check_decay, scale_by_learning_rates, takes_decay
from optax_wd._how.placement import AfterLearningRate


@takes_decay
def adamw(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.GradientTransformation,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam with a decay of your choice between preconditioner and learning rate.

    `x <- x - lr * (m / (sqrt(v) + eps) + decay)`. The result is that of the chain
    written out; a cautious decay costs no more memory traffic than `optax.adamw`. Gates
    read the signs of Adam's direction, also where `decay` is a chain of several parts
    of which an earlier one changes the update.

    Args:
      learning_rate: a number or a schedule of the step. A number is held as a constant
        schedule, so that the state has one structure.
      decay: a decay, such as `masked_decay(0.1)`, or any transformation that works on
        directions to be subtracted; `optax.identity()` for none. One made by
        `after_learning_rate` is placed last.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of the second moment. Float16 rounds anything below 3e-8
        to 0, and 0/0 is NaN: give float16 parameters a larger one.
      eps_root: added to the second moment inside the root.
      mu_dtype: dtype of the first moment; by default that of the parameters. With
        another one, gates read the direction itself, at the price of a temporary.
      nesterov: whether to use Nesterov momentum (NAdam).

    Returns:
      A transformation whose state is the chain's: Adam's, the decay's, and a
      `LearningRateState`.

    Raises:
      TypeError: if `decay` is no transformation, or `learning_rate` neither one number
        nor a schedule.
      ValueError: at update, if `decay` belongs in another place, which the message
        then names.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.adamw(1e-3, wd.cautious_weight_decay(0.1), b2=0.95)

    Source: Loshchilov & Hutter, arXiv:1711.05101; defaults and arithmetic of
    `optax.adamw`, without its own decay.
    """

    def signs(gradients: Any, direction: Any, state: Any) -> Any:
        numerator = state.mu
        if nesterov:
            step = state.count
            ahead = optax.tree.bias_correction(state.mu, b1, optax.safe_increment(step))
            here = optax.tree.bias_correction(gradients, b1, step)
            numerator = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, ahead, here)
        return jax.tree.map(  # a moment kept in another dtype may have lost its sign
            lambda n, m, d: n if m.dtype == d.dtype else d,
            *(numerator, state.mu, direction),
        )

    adam = optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return ready_chain(adam, decay, learning_rate, signs)


@takes_decay
def sgdw(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.GradientTransformation,
    *,
    momentum: jax.typing.ArrayLike | None = None,
    nesterov: bool = False,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD, with momentum or without, and a decay that does not go through the momentum.

    `x <- x - lr * (m + decay)`, with `m <- g + momentum * m`, or `m = g`. With
    momentum, the step is `1 / (1 - momentum)` times that of plain SGD and the shrink is
    not, so a coefficient tuned for L2 regularisation is too small here by that factor.

    Args:
      learning_rate: as in `adamw`.
      decay: as in `adamw`.
      momentum: decay rate of the accumulated gradient, in [0, 1); None for plain SGD.
      nesterov: whether to use Nesterov momentum.
      accumulator_dtype: dtype of the momentum; by default that of the parameters.

    Returns:
      A transformation whose state is the chain's.

    Raises:
      TypeError: as `adamw`.
      ValueError: as `adamw`.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.sgdw(0.1, wd.masked_decay(5e-4), momentum=0.9)

    Source: Loshchilov & Hutter, arXiv:1711.05101, Algorithm 1 (SGDW), without its
    schedule multiplier; arithmetic of `optax.sgd`.
    """
    if momentum is None:
        return ready_chain(optax.identity(), decay, learning_rate, final_direction)
    trace = optax.trace(momentum, nesterov, accumulator_dtype)
    return ready_chain(trace, decay, learning_rate, final_direction)


@takes_decay
def lion(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.GradientTransformation,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion with a decay of your choice between the sign and the learning rate.

    `x <- x - lr * (sign(b1 * m + (1 - b1) * g) + decay)`. Under plain decay the weights
    end inside the box `|x| <= 1/weight_decay`; under cautious decay they do not.

    Args:
      learning_rate: as in `adamw`.
      decay: as in `adamw`.
      b1: weight of the momentum in the step, in [0, 1).
      b2: decay rate of the momentum, in [0, 1).
      mu_dtype: dtype of the momentum; by default that of the parameters.

    Returns:
      A transformation whose state is the chain's.

    Raises:
      TypeError: as `adamw`.
      ValueError: as `adamw`.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.lion(1e-4, wd.masked_decay(1.0))

    Source: Chen et al., arXiv:2302.06675, Algorithm 2; defaults and arithmetic of
    `optax.lion`, without its own decay.
    """
    return ready_chain(
        optax.scale_by_lion(b1, b2, mu_dtype), decay, learning_rate, final_direction
    )


def final_direction(gradients: Any, direction: Any, state: Any) -> Any:
    del gradients, state
    return direction


def ready_chain(
    scale: optax.GradientTransformation,
    decay: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    signs: Callable[[Any, Any, Any], Any],
) -> optax.GradientTransformationExtraArgs:
    """The chain, where `signs(gradients, direction, scale state)` has `sign_of`."""
    check_decay("decay", decay)
    rate = scale_by_learning_rates({"learning_rate": learning_rate})
    if isinstance(decay, AfterLearningRate):
        return optax.chain(scale, rate, decay)
    inner = optax.with_extra_args_support(decay)

    def init(params: optax.Params) -> Any:
        return scale.init(params), inner.init(params), rate.init(params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        direction, scaled = scale.update(updates, state[0], params)
        extra_args["sign_of"] = signs(updates, direction, scaled)
        total, decayed = inner.update(direction, state[1], params, **extra_args)
        final, rated = rate.update(total, state[2], params)
        return final, (scaled, decayed, rated)

    return optax.GradientTransformationExtraArgs(init, update)
