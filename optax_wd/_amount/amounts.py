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

from optax_wd._tree.leaves import is_number
from optax_wd._where.rules import LeafFunction


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

    def along(self, steps: int) -> np.ndarray:
        """The rates of the first steps, shape=(steps,), dtype=float64."""
        if not callable(self.value):
            return np.full(steps, self.value, np.float64)
        counts = jnp.arange(steps)
        rates = jax.vmap(lambda t: jnp.asarray(self.at(t), jnp.float32))(counts)
        return np.asarray(rates, np.float64)


def check_amount(given: Any, name: str = "weight_decay") -> Amount:
    """The argument `name` as an Amount.

    Raises:
      TypeError: if it is neither a number nor a schedule nor an array.
      ValueError: if it is an array of more than one number, or if its value is known
        and negative or not finite.
    """
    if isinstance(given, LeafFunction):
        order = "; the mask comes right after it"
        raise TypeError(
            f"{name} got the rule {given!r}, where a number or a schedule belongs"
            + order * (name == "weight_decay")
        )
    if callable(given):
        return Amount(cast(optax.Schedule, given))
    if not is_number(given):
        raise TypeError(
            f"{name} takes a number, a schedule or a 0-d array, got {given!r}"
        )
    if np.shape(given) != ():
        raise ValueError(
            f"{name} is one number or a schedule, got an array of shape {given.shape}; "
            "give amounts per leaf as multiplier="
        )
    if isinstance(given, Tracer):
        return Amount(given)
    value = float(given)
    if not math.isfinite(value) or value < 0.0:
        place = (
            "; a decay that stands after the learning rate goes inside "
            "after_learning_rate(...)"
        )
        raise ValueError(
            f"{name} has to be finite and 0 or more, got {value}"
            + place * (name == "weight_decay" and value < 0.0)
        )
    return Amount(value)


def remaining_fraction(
    weight_decay: optax.ScalarOrSchedule,
    learning_rate: optax.ScalarOrSchedule,
    steps: int,
) -> float:
    """What decay alone leaves of the initial weights: the product of all shrinks.

    `prod(1 - learning_rate(t) * weight_decay(t))` for `t` of `0..steps-1`, where every
    gate is open.

    Args:
      weight_decay: the decoupled coefficient, a number or a schedule of the step.
      learning_rate: a number or a schedule of the step; 1 for a decay that stands
        after the learning rate.
      steps: how many, 0 or more.

    Returns:
      A fraction, of 0 to 1.

    Raises:
      TypeError: if an argument is of the wrong kind. A schedule has to be one that
        `jax.jit` can trace, or JAX's own error stands.
      ValueError: if a number is negative or not finite, or a shrink more than 1.

    Example:
      >>> import optax_wd as wd
      >>> print(f"{wd.remaining_fraction(0.1, 3e-4, 10_000):.3f}")
      0.741

    Source: Wang & Aitchison, arXiv:2405.13698, section 2.
    """
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise TypeError(f"steps is an integer, got {steps!r}")
    if steps < 0:
        raise ValueError(f"steps is 0 or more, got {steps}")
    decay = check_amount(weight_decay).along(int(steps))
    rate = check_amount(learning_rate, "learning_rate").along(int(steps))
    shrinks = decay * rate
    if np.any(shrinks > 1.0):
        step = int(np.argmax(shrinks > 1.0))
        raise ValueError(
            f"the shrink of step {step} is {shrinks[step]:g}, which is more than the "
            "whole weight; check the units of weight_decay and learning_rate"
        )
    return float(np.prod(1.0 - shrinks))


def check_positive(name: str, value: Any) -> None:
    """Refuse what is no finite number above 0."""
    _check_one(name, value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} is a finite number above 0, got {value!r}")


def check_all_positive(**values: float) -> None:
    """Refuse arguments that are no numbers above 0, by their names."""
    for name, value in values.items():
        check_positive(name, value)


def check_number(name: str, value: Any, *, least: float) -> None:
    """Refuse what is no finite number from `least` on."""
    _check_one(name, value)
    if not least <= value < math.inf:
        raise ValueError(f"{name} is finite and {least:g} or more, got {value!r}")


def received(name: str, value: Any) -> str:
    """The `got ...` of an error; of an array with what made it one, most often."""
    if not isinstance(value, jax.Array):
        return f"got {value!r}"
    found = "a traced array" if isinstance(value, Tracer) else f"the array {value!r}"
    return (
        f"got {found}; under optax.inject_hyperparams write static_args=(..., {name!r})"
    )


def _check_one(name: str, value: Any) -> None:
    if isinstance(value, Tracer) or not is_number(value) or np.shape(value) != ():
        raise TypeError(f"{name} is one number, {received(name, value)}")
