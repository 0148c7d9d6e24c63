# SPDX-License-Identifier: Apache-2.0
"""Bound the norms of filters by projection (MaxNorm)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_positive, received
from optax_wd._how.leafwise import inner_axes, map_decayed, norm
from optax_wd._how.norms import constraining, ratio
from optax_wd._how.step import decayed
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, PyTree
from optax_wd._where.rules import Stacked, check_stacked
from optax_wd._where.standard import standard


def max_norms(
    limit: float,
    mask: Mask = standard,
    *,
    axis: int | tuple[int, ...] = -1,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    """Bring the filters whose norm a step would leave too large back to the limit.

    With `u` the final update, which will be added, and `y_k = x_k + u_k` of each output
    filter `k`: `u_k <- min(1, limit / ||y_k||) * y_k - x_k`. Filters within the limit
    keep their update, up to and including the limit itself. Stands last in a chain,
    after the learning rate, bare.

    What it does not do: it is no decay, filters within the limit do not shrink. Of a
    vector each element is a filter of its own.

    Args:
      limit: the largest norm, in the units of the parameters, above 0.
      mask: the leaves that are bounded: a rule, a function from the tree to a tree of
        bools, or such a tree (or a prefix of it).
      axis: the axis, or axes, along which a tensor has its output filters, stacked axes
        not counted: the last in Flax, 0 where weights are (out, in), as in Equinox.
      stacked: leaves that hold several tensors along an axis (of `nn.scan`,
        `nnx.vmap`): a rule for axis 0, or pairs `(rule, axis)`.

    Returns:
      A transformation with a `NormsState` without norms. Updates keep their dtypes.

    Raises:
      TypeError: if an argument is of the wrong kind; swapped arguments are.
      ValueError: if `limit` is not finite and above 0; at update, if there are no
        `params`, the mask does not fit them, a tensor has no such axis, or it stands
        inside of something.

    Example:
      >>> import optax, optax_wd as wd
      >>> tx = optax.chain(optax.adam(1e-3), wd.max_norms(1.0, wd.contains("head")))

    Source: Alshammari et al., Long-Tailed Recognition via Weight Balancing, CVPR 2022.
    Their code sets one limit per layer, `min + 0.1 * (max - min)` of the norms of its
    filters before the second stage, and exempts vectors.
    """
    check_positive("limit", limit)
    _masks.check_mask(mask, "right after limit")
    pairs = check_stacked(stacked)
    wanted = _checked_axes(axis)

    def apply(count: Any, updates: Any, params: Any, norms: PyTree) -> Any:
        del count

        def one(leaf: Leaf, _: Any, param: Any, update: Any) -> jax.Array:
            axes = _within_filter(leaf, inner_axes(leaf, pairs), wanted)

            def correction(u: jax.Array, x: jax.Array) -> jax.Array:
                landed = x + u
                share = ratio(jnp.asarray(limit), norm(landed, axes), 1.0)
                return (jnp.minimum(1.0, share) - 1.0) * landed

            return decayed(update, (param,), update, (1.0, 1.0), correction, None)

        return map_decayed(one, mask, None, params, updates, stacked=pairs), norms

    return constraining("max_norms", lambda params: (), apply)


def _checked_axes(axis: Any) -> tuple[int, ...]:
    axes = axis if isinstance(axis, tuple) else (axis,)
    if any(isinstance(a, bool) or not isinstance(a, int) for a in axes):
        raise TypeError(
            f"axis takes an integer or a tuple of integers, {received('axis', axis)}"
        )
    return axes


def _within_filter(
    leaf: Leaf, inner: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[int, ...]:
    """The axes of a leaf that lie within one filter."""
    for axis in wanted:
        if not -len(inner) <= axis < len(inner):
            raise ValueError(
                f"{leaf.where!r} of shape {leaf.shape} has no axis {axis} of filters; "
                "choose another axis, or a mask without it"
            )
    filters = {inner[axis] for axis in wanted}
    return tuple(axis for axis in inner if axis not in filters)
