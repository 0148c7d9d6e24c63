# SPDX-License-Identifier: Apache-2.0
"""Sensitivity-gated weight decay: decay what the loss does not depend on."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount
from optax_wd._how.engine import evolving
from optax_wd._how.leafwise import map_decayed, parallel, raw_gradient
from optax_wd._how.step import decayed
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.standard import standard


def sensitivity_gated_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull towards zero the weights that the loss is insensitive to.

    `u <- u + weight_decay * x * max(0, 1 - |g|)`, where `g` is the raw gradient, which
    `update` takes as `grad=`. A gradient of 0 decays in full, one of size 1 or more not
    at all, nor does NaN. The paper's place is inside `after_learning_rate`, with a
    shrink per step of up to `weight_decay`; before the learning rate it is up to
    `lr * weight_decay`.

    What it does not do. It compares the gradient with 1, so the scale of the loss
    matters: where gradients are small, as in most large models, this is plain decay.
    Unused embedding rows decay in full. Inside `optax.MultiSteps` `grad` is that of
    the last micro-batch: pass the mean over the whole batch with that one.

    Args:
      weight_decay: dimensionless; multiplied by the learning rate that follows, if one
        does. A number, a schedule of the step, or a 0-d array.
      mask: as in `masked_decay`.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState` and empty memory. Updates keep their dtypes.
      Its `update` needs `grad=`, a tree like the updates, and so does that of a chain
      that has it.

    Raises:
      TypeError: as `masked_decay`.
      ValueError: as `masked_decay`; at update, without `grad`, or if it has no entry
        for a leaf that decays.

    Example:
      >>> import jax.numpy as jnp, optax, optax_wd as wd
      >>> decay = wd.sensitivity_gated_weight_decay(1e-4)
      >>> tx = optax.chain(optax.sgd(0.1), wd.after_learning_rate(decay))
      >>> params = grads = {"kernel": jnp.ones((2, 2))}
      >>> updates, state = tx.update(grads, tx.init(params), params, grad=grads)

    Source: LOBSTER, arXiv:2011.09905, whose code multiplies by `lambda` alone, without
    the learning rate. Its options, a gradient divided by the largest of its tensor or
    by Adam's denominator, are left to the caller: pass such a tree as `grad`.
    arXiv:2204.04977 has the same idea; its exact expression was not at hand.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)

    def apply(rate: Any, updates: Any, params: Any, memory: Any, extra: Any) -> Any:
        def one(leaf: Leaf, factor: Any, param: Any, update: Any, grad: Any) -> Any:
            grad = parallel("grad", grad, leaf)
            terms = update, (rate, factor), _insensitive, None
            return decayed(update, (param, grad), *terms)

        trees = updates, raw_gradient("sensitivity_gated_weight_decay", extra, params)
        return map_decayed(one, mask, multiplier, params, *trees), memory

    return evolving(amount, lambda params: (), apply)


def _insensitive(update: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
    """The parameter, times what its gradient lacks to size 1."""
    del update
    size = jnp.abs(grad)
    return jnp.where(size < 1.0, param * (1.0 - size), jnp.zeros_like(param))
