# SPDX-License-Identifier: Apache-2.0
"""Gradient-gated weight decay: a control, gated by the gradient, not by the step."""

from typing import Any

import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount
from optax_wd._how.engine import evolving, towards_zero
from optax_wd._how.gates import cautious_gate
from optax_wd._how.leafwise import map_decayed, parallel, raw_gradient
from optax_wd._how.step import decayed
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, Multiplier
from optax_wd._where.standard import standard


def gradient_gated_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull towards zero where a step along the raw gradient would as well: a control.

    `u <- u + weight_decay * 1[g * x >= 0] * x`, where `g` is the raw gradient, which
    `update` takes as `grad=`. It stands where cautious decay stands, with a shrink per
    step of `lr * weight_decay` on the open coordinates. Zeros are open, NaN is closed.
    Without momentum it is `cautious_weight_decay`, for SGD and for signs of gradients.

    What it does not do: it is no method to train with. The gradient of one batch is
    mostly noise, so the gate opens nearly at random. Inside `optax.MultiSteps`
    `grad` is that of the last micro-batch: pass the mean over the whole batch with it.

    Args:
      weight_decay: as in `masked_decay`.
      mask: as in `masked_decay`.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState` and empty memory. Updates keep their dtypes.
      Its `update` needs `grad=`, a tree like the updates, and so does that of a chain
      that has it; `sign_of=` is not used.

    Raises:
      TypeError: as `masked_decay`.
      ValueError: as `masked_decay`; at update, without `grad`, or if it has no entry
        for a leaf that decays.

    Example:
      >>> import jax.numpy as jnp, optax_wd as wd
      >>> tx = wd.adamw(1e-3, wd.controls.gradient_gated_weight_decay(0.1))
      >>> params = grads = {"kernel": jnp.ones((2, 2))}
      >>> updates, state = tx.update(grads, tx.init(params), params, grad=grads)

    Source: an arm of the ablation in Cautious Weight Decay, arXiv:2510.12402, as it is
    described there.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)

    def apply(rate: Any, updates: Any, params: Any, memory: Any, extra: Any) -> Any:
        def one(leaf: Leaf, factor: Any, param: Any, update: Any, grad: Any) -> Any:
            grad = parallel("grad", grad, leaf)
            terms = grad, (rate, factor), towards_zero, cautious_gate
            return decayed(update, (param,), *terms)

        trees = updates, raw_gradient("gradient_gated_weight_decay", extra, params)
        return map_decayed(one, mask, multiplier, params, *trees), memory

    return evolving(amount, lambda params: (), apply)
