# SPDX-License-Identifier: Apache-2.0
"""Natural weight decay: the decay goes through the metric of the natural gradient."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount, check_positive
from optax_wd._how.engine import evolving
from optax_wd._how.leafwise import aligned, inner_axes, map_decayed, parallel
from optax_wd._how.step import decayed
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, Multiplier, PyTree
from optax_wd._where.rules import Stacked, check_stacked
from optax_wd._where.standard import standard


def natural_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    eps: float = 1e-8,
    multiplier: Multiplier | None = None,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull towards zero in the geometry of the loss: insensitive weights decay more.

    `u <- u + weight_decay * w / max(1, RMS(w))` with `w = x / (sqrt(f) + eps)`, where
    `f` is the diagonal of the Fisher information, a running mean of squared gradients,
    and RMS the root of the mean square over the tensor. A tensor whose RMS is at most 1
    is not clipped. It stands between the preconditioner and the learning rate. There is
    no one shrink per step: a coordinate loses `lr * weight_decay / (sqrt(f) + eps)` of
    itself, over the RMS where that is above 1.

    `f` is the extra argument `fisher` of `update`, which the ready chain
    `optax_wd.fadam` passes to a decay between preconditioner and learning rate; what
    stands inside `after_learning_rate` gets it only from the caller. Gradients are
    usually far smaller than weights, so nearly every tensor is clipped: the decay then
    has an RMS of `weight_decay`, however large the weights are, and `f` says only how
    it is shared out. It does not bound a step: a coordinate with `f = 0` may be carried
    past zero.

    Args:
      weight_decay: multiplied by the learning rate that follows. In the unit of the
        direction, not dimensionless, where clipping acts. A number, a schedule of the
        step, or a 0-d array.
      mask: as in `masked_decay`.
      eps: added to the root of `f`, more than 0.
      multiplier: as in `masked_decay`.
      stacked: which leaves are several tensors along an axis, clipped one by one: a
        rule, for axis 0, or pairs `(rule, axis)`.

    Returns:
      A transformation with a `DecayState` and empty memory. Updates keep their dtypes.
      Its `update` needs `fisher=`, a tree like the parameters of arrays of 0 or more.

    Raises:
      TypeError: as `masked_decay`; also if `eps` is no number or `stacked` no rule.
      ValueError: as `masked_decay`; also if `eps` is not above 0, or at update if there
        is no `fisher`, or it has no entry for a leaf that decays.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.fadam(1e-3, wd.natural_weight_decay(0.1))

    Source: Hwang, FAdam, arXiv:2405.12807, Algorithm 1, with its exponent 1/2 and
    clipping threshold 1, and without its adaptive epsilon: here `eps` is constant.
    """
    amount, axes_of = check_amount(weight_decay), check_stacked(stacked)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    check_positive("eps", eps)

    def apply(rate: Any, updates: PyTree, params: PyTree, memory: Any, extra: Any):
        if extra.get("fisher") is None:
            raise ValueError(
                "natural_weight_decay needs the Fisher diagonal, got no fisher; use "
                "the ready chain fadam, with the decay bare, since nothing hands it "
                "over inside after_learning_rate, or call "
                "tx.update(grads, state, params, fisher=squared_gradients), and audit "
                'or assert_decays with extra_args={"fisher": squared_gradients}'
            )

        def one(leaf: Leaf, factor: Any, param: Any, update: Any, fisher: Any) -> Any:
            fisher = parallel("fisher", fisher, leaf)
            axes = inner_axes(leaf, axes_of)

            def direction(u: jax.Array, x: jax.Array) -> jax.Array:
                del u
                return clipped_natural(x, fisher, eps, axes)

            return decayed(update, (param,), update, (rate, factor), direction, None)

        trees = updates, aligned(extra["fisher"], params)
        pulled = map_decayed(one, mask, multiplier, params, *trees, stacked=axes_of)
        return pulled, memory

    return evolving(amount, lambda params: (), apply)


def clipped_natural(
    x: jax.Array, fisher: jax.Array, eps: Any, axes: tuple[int, ...]
) -> jax.Array:
    """`x / (sqrt(fisher) + eps)`, scaled down to an RMS of 1 over `axes`."""
    natural = x / (jnp.sqrt(jnp.abs(fisher).astype(jnp.finfo(x.dtype).dtype)) + eps)
    size = max(1, math.prod(x.shape[axis] for axis in axes))
    square = jnp.sum(jnp.square(jnp.abs(natural)), axis=axes, keepdims=True) / size
    return natural / jnp.maximum(1.0, jnp.sqrt(square))
