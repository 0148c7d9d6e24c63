# SPDX-License-Identifier: Apache-2.0
"""What all ready chains have: a decay that is one, and a learning rate at the end."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_wd._how.step import is_inexact
from optax_wd._tree.leaves import is_number
from optax_wd._tree.typing import PyTree

P = ParamSpec("P")


class LearningRateState(NamedTuple):
    """State of the learning rate in a ready chain, constant or scheduled.

    The name is not `count`, so that `optax.tree.get(state, "count")` is not ambiguous.
    """

    learning_rate_count: jax.Array  # shape=(), dtype=int32: updates so far


def check_decay(name: str, tx: Any) -> None:
    """Refuse a decay that is no transformation."""
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"{name} takes a transformation, got {tx!r}; write masked_decay(0.1), or "
            "optax.identity() for no decay"
        )


def takes_decay(
    chain: Callable[P, optax.GradientTransformationExtraArgs],
) -> Callable[P, optax.GradientTransformationExtraArgs]:
    """A ready chain that answers the keywords of `optax.adamw` with what to write."""

    @functools.wraps(chain)
    def checked(
        *args: P.args, **kwargs: P.kwargs
    ) -> optax.GradientTransformationExtraArgs:
        if foreign := sorted({"weight_decay", "mask"} & set(kwargs)):
            raise TypeError(
                f"{chain.__name__} takes a decay, got {' and '.join(foreign)}; write "
                f"{chain.__name__}(learning_rate, masked_decay(0.1, mask))"
            )
        return chain(*args, **kwargs)

    return checked


def scale_by_learning_rates(
    rates: Mapping[str, optax.ScalarOrSchedule],
    which: Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformation:
    """Minus the learning rate of each leaf times its update, with one counter.

    Args:
      rates: learning rates by the names of their arguments.
      which: from a tree to a tree of the same structure with the position of the rate
        that each leaf has; by default all have the first.

    Returns:
      A transformation whose state has one structure, whatever the rates are.

    Raises:
      TypeError: if a rate is neither one number nor callable.
    """
    for name, rate in rates.items():
        if not callable(rate) and not (is_number(rate) and np.shape(rate) == ()):
            raise TypeError(
                f"{name} takes a number or a schedule, got {rate!r}; write 1e-3, or a "
                "function of the step such as optax.cosine_decay_schedule(1e-3, 1000)"
            )

    def init(params: optax.Params) -> Any:
        del params
        return LearningRateState(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        del params
        count = state.learning_rate_count
        negative = [
            -jnp.asarray(rate(count) if callable(rate) else rate)
            for rate in rates.values()
        ]

        def scaled(u: Any, position: int = 0) -> Any:
            return negative[position].astype(u.dtype) * u if is_inexact(u) else u

        positions = () if which is None else (which(updates),)
        updates = jax.tree.map(scaled, updates, *positions)
        return updates, LearningRateState(jnp.asarray(optax.safe_increment(count)))

    return optax.GradientTransformation(init, update)
