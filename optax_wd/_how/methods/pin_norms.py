# SPDX-License-Identifier: Apache-2.0
"""Pin norms from the start, and let the learning rate be an angle (Hyperball)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount
from optax_wd._how.leafwise import inner_axes, map_decayed, norm
from optax_wd._how.norms import constraining, norms_of, ratio
from optax_wd._how.step import is_inexact, wide_dtype
from optax_wd._tree.typing import Mask, PyTree
from optax_wd._where.rules import Stacked, check_stacked
from optax_wd._where.standard import standard


def pin_norms(
    learning_rate: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    """Move each tensor on the sphere that it starts on, by steps of one relative size.

    With `R` the norm of a tensor at `init`, and `u` the direction that is to be
    subtracted: `y = x - learning_rate * R * u / ||u||`, and `x <- R * y / ||y||`. It
    stands in the place of `optax.scale_by_learning_rate`, bare: what it returns is
    final. A learning rate after it would turn the sign, so that every step goes uphill,
    and would leave the sphere; nothing in a chain can see that. The other leaves get
    `-learning_rate * u` as well, and so do tensors whose norm is 0 at `init`, which
    have no sphere to move on.

    What it does not do: it leaves a decay no effect on the norm, because a decay before
    it turns into part of the direction. A cautious decay goes after it, inside
    `after_learning_rate`; the next step then starts from the decayed tensor, and ends
    on the sphere again.

    Args:
      learning_rate: dimensionless, about the angle per step in radians; for the other
        leaves the usual. A number, a schedule of the step, or a 0-d array.
      mask: the leaves whose norms are pinned: a rule, a function from the tree to a
        tree of bools, or such a tree (or a prefix of it).
      stacked: leaves that hold several tensors along an axis (of `nn.scan`,
        `nnx.vmap`): a rule for axis 0, or pairs `(rule, axis)`.

    Returns:
      A transformation with a `NormsState`: one number per tensor. Updates keep their
      dtypes; the norm is exact up to the rounding of parameters and updates, and errors
      do not add up.

    Raises:
      TypeError: if an argument is of the wrong kind; swapped arguments are.
      ValueError: if a constant rate is negative or not finite; at update, if there are
        no `params`, the mask does not fit them, or it stands inside of something.

    Example:
      >>> import optax, optax_wd as wd
      >>> tx = optax.chain(optax.scale_by_adam(), wd.pin_norms(5e-3))

    Source: Wen et al., Hyperball, arXiv:2606.16899 (AdamH and MuonH, by the direction
    that comes before), where a tensor that starts at 0 would stay there.
    """
    rate = check_amount(learning_rate, "learning_rate")
    _masks.check_mask(mask, "right after learning_rate")
    pairs = check_stacked(stacked)

    def apply(count: Any, updates: Any, params: Any, norms: PyTree) -> Any:
        now = rate.at(count)

        def free(update: Any) -> Any:
            return _stepped(update, now) if is_inexact(update) else update

        def one(leaf: Any, _: Any, param: Any, __: Any, u: Any, radius: Any) -> Any:
            return _pinned(param, u, radius, now, inner_axes(leaf, pairs))

        trees = jax.tree.map(free, updates), updates, norms
        return map_decayed(one, mask, None, params, *trees, stacked=pairs), norms

    return constraining("pin_norms", lambda params: norms_of(pairs, params), apply)


def _stepped(update: jax.Array, rate: Any) -> jax.Array:
    wide = wide_dtype(update.dtype)
    step = -jnp.asarray(rate, jnp.finfo(wide).dtype) * jnp.asarray(update, wide)
    return step.astype(update.dtype)


def _pinned(
    param: jax.Array,
    update: jax.Array,
    radius: jax.Array,
    rate: Any,
    axes: tuple[int, ...],
) -> jax.Array:
    """The final update of one leaf."""
    if jnp.iscomplexobj(param) and not jnp.iscomplexobj(update):
        raise ValueError(
            "got a real update for a complex parameter; make the dtypes agree, or the "
            "imaginary part of the step would be lost"
        )
    wide = wide_dtype(update.dtype, param.dtype)
    x, u = jnp.asarray(param, wide), jnp.asarray(update, wide)
    length = jnp.asarray(rate, jnp.finfo(wide).dtype) * radius
    step = -u * ratio(length, norm(u, axes), 0.0)
    landed = x + step
    step = step + (ratio(radius, norm(landed, axes), 1.0) - 1.0) * landed
    final = jnp.where(radius == 0, -jnp.asarray(rate, x.real.dtype) * u, step)
    return final.astype(update.dtype)
