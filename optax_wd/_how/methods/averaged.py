# SPDX-License-Identifier: Apache-2.0
"""Averaged weight decay: pull towards a moving average of the parameters themselves."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount, check_number
from optax_wd._how.engine import evolving
from optax_wd._how.leafwise import map_decayed
from optax_wd._how.step import decayed, is_inexact, wide_dtype
from optax_wd._tree.leaves import is_hole
from optax_wd._tree.typing import Gate, Mask, Multiplier, PyTree
from optax_wd._where.standard import standard


def averaged_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    average_decay: float,
    gate: Gate | None = None,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull the chosen parameters towards an exponential moving average of them.

    `a <- average_decay * a + (1 - average_decay) * x`, then
    `u <- u + weight_decay * (x - a)`, with `a` the parameters at `init` before the
    first step. At `average_decay=0` nothing is done, since `a = x`. Between the
    preconditioner and the learning rate, the distance from the average shrinks by
    `lr * weight_decay` per step. With `gate=cautious_gate` only the coordinates that
    the step moves towards the average as well are pulled.

    What it does not do. It does not keep weights small: it damps fast changes and lets
    slow ones pass. The average is that of the parameters before each step. A NaN in a
    parameter stays in its average for ever: put the decay inside
    `optax.apply_if_finite`. A constant `weight_decay` of 0 stops the average as well.

    Args:
      weight_decay: as in `masked_decay`.
      mask: as in `masked_decay`. It says what is pulled; all that is inexact is
        averaged, so that a checkpoint survives a change of mask.
      average_decay: the part of the average that a step keeps, in [0, 1); it looks back
        `1 / (1 - average_decay)` steps.
      gate: as in `decay_along`.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState` whose memory is one copy of the parameters in
      float32 (float64 for float64 leaves): an average in bfloat16 would not move.
      Updates keep their dtypes.

    Raises:
      TypeError: as `masked_decay`; if `average_decay` is no number, or `gate` no
        function.
      ValueError: as `masked_decay`; if `average_decay` is not in [0, 1).

    Example:
      >>> import optax_wd as wd
      >>> decay = wd.averaged_weight_decay(0.1, average_decay=0.999)
      >>> tx = wd.adamw(1e-3, decay)

    Source: HeavyBall's `weight_decay_to_ema`, which has the same order. Its average
    starts at zero with a bias correction, so it is that of the steps so far; here the
    initial value keeps a weight of `average_decay ** t`.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    check_number("average_decay", average_decay, least=0.0)
    if average_decay >= 1.0:
        raise ValueError(
            f"average_decay is less than 1, got {average_decay!r}; for a pull towards "
            "the initial values write anchored_weight_decay"
        )
    if gate is not None and not callable(gate):
        raise TypeError(f"gate takes a function of arrays, got {gate!r}")
    weight = 1.0 - float(average_decay)

    def apply(rate: Any, updates: Any, params: Any, memory: Any, extra: Any) -> Any:
        def average(param: Any, kept: jax.Array) -> jax.Array:
            if not is_inexact(param):
                return kept
            return kept + weight * (jnp.asarray(param, kept.dtype) - kept)

        def one(leaf: Any, factor: Any, param: Any, update: Any, *others: Any) -> Any:
            del leaf
            sign, target = others
            source = update if is_hole(sign) else sign
            scale = rate, factor
            return decayed(update, (param, target), source, scale, _away, gate)

        averages = jax.tree.map(average, params, memory)
        signs = updates if extra.get("sign_of") is None else extra["sign_of"]
        trees = updates, signs, averages
        return map_decayed(one, mask, multiplier, params, *trees), averages

    return evolving(amount, _begin, apply)


def _begin(params: optax.Params) -> PyTree:
    """A wide copy of every inexact leaf."""

    def keep(param: Any) -> jax.Array:
        if not is_inexact(param):
            return jnp.zeros([], jnp.float32)  # one structure, and nothing to average
        return jnp.array(param, wide_dtype(param.dtype), copy=True)

    return jax.tree.map(keep, params)


def _away(update: jax.Array, param: jax.Array, average: jax.Array) -> jax.Array:
    """From the average to the parameter."""
    del update
    return param - average
