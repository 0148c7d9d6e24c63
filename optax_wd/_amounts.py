# SPDX-License-Identifier: Apache-2.0
"""How much: what a `weight_decay` argument may be, and its value at a step."""

import dataclasses
import math
from typing import Any, cast, final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from optax_wd._leaves import is_number
from optax_wd._rules import LeafFunction


@final
@dataclasses.dataclass(frozen=True)
class Amount:
    """A checked `weight_decay`: a number, a schedule or a 0-d array."""

    value: optax.ScalarOrSchedule

    @property
    def is_zero(self) -> bool:
        """Whether it is the constant 0, which means that nothing is touched."""
        return isinstance(self.value, float) and self.value == 0.0

    def at(self, count: jax.Array) -> float | jax.Array:
        """The rate at a step: a float if it is constant, else a 0-d array."""
        if not callable(self.value):
            return (
                self.value if isinstance(self.value, float) else jnp.asarray(self.value)
            )
        given = self.value(count)
        if not is_number(given):
            kind = getattr(given, "dtype", type(given).__name__)
            raise TypeError(
                f"the schedule {self.value!r} returned {kind}; return one number"
            )
        rate = jnp.asarray(given)
        if rate.shape != ():
            raise ValueError(
                f"the schedule {self.value!r} returned an array of shape {rate.shape}; "
                "return one number"
            )
        return rate


def check_amount(weight_decay: Any) -> Amount:
    """`weight_decay` as an Amount.

    Raises:
      TypeError: if it is neither a number nor a schedule nor an array.
      ValueError: if it is an array of more than one number, or if its value is known
        and negative or not finite.
    """
    if isinstance(weight_decay, LeafFunction):
        raise TypeError(
            f"weight_decay got the rule {weight_decay!r}; the order of arguments is "
            "(weight_decay, mask)"
        )
    if callable(weight_decay):
        return Amount(cast(optax.Schedule, weight_decay))
    if not is_number(weight_decay):
        raise TypeError(
            "weight_decay takes a number, a schedule or a 0-d array, got "
            f"{weight_decay!r}"
        )
    if np.shape(weight_decay) != ():
        raise ValueError(
            "weight_decay is one number or a schedule, got an array of shape "
            f"{weight_decay.shape}; give amounts per leaf as multiplier="
        )
    if isinstance(weight_decay, Tracer):
        return Amount(weight_decay)
    return Amount(_check_range(float(weight_decay)))


def _check_range(value: float) -> float:
    if not math.isfinite(value) or value < 0.0:
        raise ValueError(
            f"weight_decay has to be finite and 0 or more, got {value}; a decay that "
            "stands after the learning rate goes inside after_learning_rate(...)"
        )
    return value
