# SPDX-License-Identifier: Apache-2.0
"""Schedules of the weight decay that Optax has not.

Any of Optax's schedules is a weight decay: `linear_schedule` for a warm-up, a linear
rise or fall, `cosine_decay_schedule` for a fall to a fraction.
"""

import dataclasses
import math
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from optax_wd._amount.amounts import Amount, check_amount, check_number, check_positive
from optax_wd._tree.leaves import is_number


def proportional(
    weight_decay: optax.ScalarOrSchedule,
    to: optax.ScalarOrSchedule,
    peak: float = 1.0,
) -> optax.Schedule:
    """A weight decay in proportion to another schedule, such as the learning rate.

    `weight_decay * to(t) / peak` at step `t`. With the learning rate as `to` and its
    highest value as `peak`, this is, by place,

    * between preconditioner and learning rate: the corrected decay of AdamC, with a
      shrink per step of `lr**2 / peak * weight_decay`; with `peak=1`, decay by `lr**2`;
    * inside `after_learning_rate`: independent decay, with a shrink per step of
      `lr / peak * weight_decay`.

    Args:
      weight_decay: dimensionless, the value where `to` is at `peak`; a number or a
        schedule of the step.
      to: a number or a schedule of the step, in the unit of `peak`. It has to count the
        same steps as the decay: both in one chain do.
      peak: more than 0; usually the highest value of `to`.

    Returns:
      A schedule: from a step to a 0-d float32 array.

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if `peak` is not a finite number above 0, or `weight_decay` or `to` is
        negative or not finite.

    Example:
      >>> import optax, optax_wd as wd
      >>> schedule = optax.cosine_decay_schedule(1e-3, 1000)
      >>> corrected = wd.proportional(0.1, to=schedule, peak=1e-3)
      >>> print(f"{corrected(0):.3f} {corrected(500):.3f} {corrected(1000):.3f}")
      0.100 0.050 0.000
      >>> tx = wd.adamw(schedule, wd.masked_decay(corrected))

    Source: Why Gradients Rapidly Increase Near the End of Training, arXiv:2506.02285,
    Algorithm 2 (AdamC); Wortsman et al., arXiv:2309.14322 (independent decay).
    """
    if not is_number(peak) or np.shape(peak) != ():
        raise TypeError(f"peak is one number, got {peak!r}")
    if not isinstance(peak, Tracer):
        peak = float(peak)
        if not 0.0 < peak < math.inf:
            raise ValueError(f"peak is the highest value of `to`, above 0, got {peak}")
    return _Proportional(check_amount(weight_decay), check_amount(to, "to"), peak)


def cosine_schedule(
    init_value: float, end_value: float, transition_steps: int
) -> optax.Schedule:
    """Half a cosine from one value to another, up or down, then constant.

    `end_value + (init_value - end_value) * (1 + cos(pi * t / T)) / 2` at step `t` of
    `T`. DINO's decay rises so from 0.04 to 0.4; nanochat's falls.

    Args:
      init_value: the value at step 0, 0 or more.
      end_value: the value from step `transition_steps` on, 0 or more.
      transition_steps: how many steps the change takes, 1 or more.

    Returns:
      A schedule: from a step to a 0-d float32 array.

    Raises:
      TypeError: if an argument is no number.
      ValueError: if a value is negative or not finite, or there are no steps.

    Example:
      >>> import optax_wd as wd
      >>> rising = wd.cosine_schedule(0.04, 0.4, 1000)
      >>> print(f"{rising(0):.2f} {rising(500):.2f} {rising(2000):.2f}")
      0.04 0.22 0.40

    Source: Caron et al., arXiv:2104.14294, section 3 (DINO). As
    `optax.cosine_decay_schedule`, which cannot start at 0.
    """
    check_number("init_value", init_value, least=0.0)
    check_number("end_value", end_value, least=0.0)
    check_number("transition_steps", transition_steps, least=1.0)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        passed = jnp.asarray(count, jnp.float32) / float(transition_steps)
        left = (1.0 + jnp.cos(jnp.pi * jnp.clip(passed, 0.0, 1.0))) / 2.0
        return float(end_value) + float(init_value - end_value) * left

    return schedule


def log_time_schedule(init_value: float, timescale_steps: float) -> optax.Schedule:
    """A value that falls as one over time: `init_value / (1 + t / timescale_steps)`.

    The sum over steps, and with it the logarithm of the shrink so far, grows as the
    logarithm of time: old data are forgotten by a power law, at no fixed timescale.

    Args:
      init_value: the value at step 0, 0 or more.
      timescale_steps: after how many steps the value is half, more than 0.

    Returns:
      A schedule: from a step to a 0-d float32 array.

    Raises:
      TypeError: if an argument is no number.
      ValueError: if `init_value` is negative, or `timescale_steps` not above 0.

    Example:
      >>> import optax_wd as wd
      >>> falling = wd.log_time_schedule(0.4, 100)
      >>> print(f"{falling(0):.2f} {falling(100):.2f} {falling(300):.2f}")
      0.40 0.20 0.10

    Source: arXiv:2602.05298.
    """
    check_number("init_value", init_value, least=0.0)
    check_positive("timescale_steps", timescale_steps)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        passed = jnp.asarray(count, jnp.float32) / float(timescale_steps)
        return float(init_value) / (1.0 + passed)

    return schedule


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Proportional:
    """A schedule that prints as the code that made it."""

    weight_decay: Amount
    to: Amount
    peak: float

    def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count)
        ratio = jnp.asarray(self.to.at(step), jnp.float32) / self.peak
        return jnp.asarray(self.weight_decay.at(step), jnp.float32) * ratio

    def __repr__(self) -> str:
        amount, to = self.weight_decay.value, self.to.value
        return f"proportional({amount!r}, to={to!r}, peak={self.peak!r})"
