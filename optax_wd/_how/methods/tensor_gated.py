# SPDX-License-Identifier: Apache-2.0
"""Tensor-gated weight decay: a control, one cautious decision for a whole tensor."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount
from optax_wd._how.engine import evolving, towards_zero
from optax_wd._how.leafwise import inner_axes, map_decayed
from optax_wd._how.step import decayed, wide_dtype
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.rules import Stacked, check_stacked
from optax_wd._where.standard import standard


def tensor_gated_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    stacked: Stacked = None,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull a whole tensor towards zero where the step shrinks its norm: a control.

    `u <- u + weight_decay * 1[<u, x> >= 0] * x`, one decision per tensor, where `u` is
    the final direction. An inner product of 0 is open, NaN is closed. It stands where
    cautious decay stands, with a shrink per step of `lr * weight_decay` on the open
    tensors.

    What it does not do: it is no method to train with, but shows what the choice of
    single coordinates adds. The inner product needs the magnitudes of the direction, so
    `sign_of=` is not used, and on sharded tensors it adds a sum over devices.

    Args:
      weight_decay: as in `masked_decay`.
      mask: as in `masked_decay`.
      stacked: leaves that hold several tensors: a rule, for axis 0, or pairs
        `(rule, axis)`. Each has a decision of its own.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState` and empty memory. Updates keep their dtypes.

    Raises:
      TypeError: as `masked_decay`; if `stacked` is of the wrong kind.
      ValueError: as `masked_decay`; at update, if a leaf lacks an axis of `stacked`.

    Example:
      >>> import optax_wd as wd
      >>> blocks = wd.contains("blocks")
      >>> decay = wd.controls.tensor_gated_weight_decay(0.1, stacked=blocks)
      >>> tx = wd.adamw(1e-3, decay)

    Source: Cautious Weight Decay, arXiv:2510.12402, with the product of its gate summed
    over the tensor.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    outer = check_stacked(stacked)

    def apply(rate: Any, updates: Any, params: Any, memory: Any, extra: Any) -> Any:
        del extra

        def one(leaf: Leaf, factor: Any, param: Any, update: Any) -> Any:
            agrees = _inner(update, param, inner_axes(leaf, outer)) >= 0.0

            def gate(sign_source: jax.Array, direction: jax.Array) -> jax.Array:
                del sign_source
                return jnp.broadcast_to(agrees, direction.shape)

            terms = update, (rate, factor), towards_zero, gate
            return decayed(update, (param,), *terms)

        pulled = map_decayed(one, mask, multiplier, params, updates, stacked=outer)
        return pulled, memory

    return evolving(amount, lambda params: (), apply)


def _inner(update: jax.Array, param: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The real inner product over some axes, which are kept with length 1; wide."""
    wide = wide_dtype(update.dtype, param.dtype)
    products = jnp.conj(jnp.asarray(update, wide)) * jnp.asarray(param, wide)
    return jnp.sum(jnp.real(products), axis=axes, keepdims=True)
