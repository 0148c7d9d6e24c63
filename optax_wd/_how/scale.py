# SPDX-License-Identifier: Apache-2.0
"""A learning rate per leaf: updates times the factors that decays take as well."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._how.step import is_inexact, wide_dtype
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.typing import Multiplier
from optax_wd._where.atoms import everything


def scale_per_leaf(multiplier: Multiplier) -> optax.GradientTransformation:
    """Multiply the update of each leaf by its factor: a learning rate per leaf.

    `u <- factor * u`. Between a decay and the learning rate it scales both the step and
    the decay of the leaf, as the layer-wise learning rates of BEiT, MAE and timm do,
    with a shrink per step of `lr * factor * weight_decay`. Before a decay it scales the
    step alone. A factor of 0 makes updates zeros: the leaf is frozen.

    Args:
      multiplier: a number, `layerwise(...)`, a Table, or a tree of numbers or of arrays
        that broadcast against their leaf at equal rank; dimensionless, 0 or more.

    Returns:
      A transformation with an `optax.EmptyState`. Updates keep their dtypes; the
      product is taken in float32 (float64 for float64 leaves) and rounded once. A leaf
      whose factor is 1 is not touched.

    Raises:
      TypeError: if `multiplier` is no multiplier, but a rule or None, say.
      ValueError: at update, if the multiplier does not fit the updates.

    Example:
      >>> import optax, optax_wd as wd
      >>> layer_of = wd.numbered_layers("blocks/#", 12, last=wd.everything)
      >>> tx = optax.chain(
      ...     optax.scale_by_adam(),
      ...     wd.masked_decay(0.05),
      ...     wd.scale_per_leaf(wd.layerwise(0.75, layer_of)),
      ...     optax.scale_by_learning_rate(1e-3),
      ... )

    Source: `lr_scale` of timm's and MAE's parameter groups.
    """
    if multiplier is None:
        raise TypeError(
            "scale_per_leaf takes factors, got None; write layerwise(0.75, layer_of), "
            "or first_match((rule, 0.5), default=1.0)"
        )
    _masks.check_multiplier(multiplier)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        del params
        leaves = _leaves.list_leaves(updates)
        factors = _masks.factors_of(everything, multiplier, updates, leaves)
        arrays, treedef = jax.tree.flatten(updates)
        scaled = map(_scaled, arrays, factors)
        return treedef.unflatten(scaled), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _scaled(update: Any, factor: _masks.Factor | None) -> Any:
    if not is_inexact(update) or (isinstance(factor, float) and factor == 1.0):
        return update
    if factor is None:  # 0 throughout; 0 times infinity would be NaN
        return jnp.zeros_like(update)
    wide = wide_dtype(update.dtype)
    scale = jnp.asarray(factor, jnp.finfo(wide).dtype)
    scaled = scale * jnp.asarray(update, wide)
    if not isinstance(factor, float):  # 0 on a part, or known at run time only
        scaled = jnp.where(scale == 0, 0, scaled)
    return scaled.astype(update.dtype)
