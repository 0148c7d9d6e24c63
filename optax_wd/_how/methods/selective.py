# SPDX-License-Identifier: Apache-2.0
"""Selective weight decay (SPD): back towards the start, where a step overshoots."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount
from optax_wd._how.engine import evolving
from optax_wd._how.leafwise import inner_axes, map_decayed, norm, parallel, raw_gradient
from optax_wd._how.norms import ratio
from optax_wd._how.step import decayed, is_inexact
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.rules import Stacked, check_stacked
from optax_wd._where.standard import standard


def selective_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    stacked: Stacked = None,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Take back part of a step away from the start that the gradient does not ask for.

    With `x0` the tensor at `init`, `d = x - x0`, and `e = x - u - x0`, what the step
    alone would make of `d`: where `<grad, d> > 0`, that is where plain gradient descent
    would come nearer to `x0`, `u <- u + weight_decay * r * e`, with
    `r = clip((||e|| - ||d||) / ||e||, 0, 1)`. A step that comes nearer has `r = 0`, and
    so has a product of exactly 0. It stands where updates are final, inside
    `after_learning_rate`; elsewhere `e` is not the result of the step. So a ready chain
    takes it inside `after_learning_rate` only, and places it last. The shrink of `e`
    per step is `weight_decay * r` there. At 1 the step ends at the old distance from
    `x0`, and beyond 1 inside of it.

    What it does not do: at rest nothing decays, and without a step nothing does. It
    acts where momentum or a preconditioner carries a tensor outwards against the
    gradient; plain SGD with small steps never meets its condition. Inside
    `optax.MultiSteps` `grad` is that of the last micro-batch: pass the mean over the
    whole batch with that one.

    Args:
      weight_decay: dimensionless, of the order of 1; not multiplied by a learning rate.
        A number, a schedule of the step, or a 0-d array.
      mask: as in `masked_decay`.
      stacked: leaves that hold several tensors along an axis (of `nn.scan`,
        `nnx.vmap`): a rule for axis 0, or pairs `(rule, axis)`.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState`, whose memory is one copy of the parameters.
      Updates keep their dtypes. Its `update` needs `grad=`, the gradient.

    Raises:
      TypeError: as `masked_decay`; if `stacked` is no rule.
      ValueError: as `masked_decay`; at update also without `grad`, or if it has
        no entry for a leaf that decays, or with `sign_of`, which says that it stands
        before the learning rate.

    Example:
      >>> import jax.numpy as jnp, optax, optax_wd as wd
      >>> decay = wd.selective_weight_decay(1.0)
      >>> tx = optax.chain(optax.adam(1e-3), wd.after_learning_rate(decay))
      >>> params = grads = {"kernel": jnp.ones((2, 3))}
      >>> updates, state = tx.update(grads, tx.init(params), params, grad=grads)

    Source: Tian, Huang & Kira, Rethinking Weight Decay for Robust Fine-Tuning of
    Foundation Models (SPD), arXiv:2411.01713. Known code adds 1e-12 to the denominator
    of `r`, where `e = 0` is told apart here.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    pairs = check_stacked(stacked)

    def apply(rate: Any, updates: Any, params: Any, memory: Any, extra: Any) -> Any:
        if extra.get("sign_of") is not None:  # as a ready chain passes it
            raise ValueError(
                "selective_weight_decay stands before the learning rate, where updates "
                "are not final; pass the ready chain "
                "after_learning_rate(selective_weight_decay(...)), which it places last"
            )
        grad = raw_gradient("selective_weight_decay", extra, params)

        def one(leaf: Any, factor: Any, param: Any, update: Any, *rest: Any) -> Any:
            parallel("grad", rest[-1], leaf)
            axes = inner_axes(leaf, pairs)

            def back(u: Any, x: Any, start: Any, g: Any) -> jax.Array:
                return _overshoot(u, x - start, g, axes)

            values = param, *rest
            return decayed(update, values, update, (rate, factor), back, None)

        trees = updates, memory, grad
        pulled = map_decayed(one, mask, multiplier, params, *trees, stacked=pairs)
        return pulled, memory

    return evolving(amount, lambda params: jax.tree.map(_kept, params), apply)


def _overshoot(
    u: jax.Array, before: jax.Array, grad: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """`r * e` where the gradient points home, else 0."""
    after = before - u
    far = norm(after, axes)
    share = jnp.clip(ratio(far - norm(before, axes), far, 0.0), 0.0, 1.0)
    inner = jnp.sum(jnp.real(jnp.conj(grad) * before), axis=axes, keepdims=True)
    return jnp.where(inner > 0, share * after, 0.0)


def _kept(param: Any) -> jax.Array:
    """A copy, whose buffer is not that of the parameter, which may be donated."""
    if not is_inexact(param):
        return jnp.zeros([], jnp.float32)
    return jnp.array(param, copy=True)
