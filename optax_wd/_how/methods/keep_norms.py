# SPDX-License-Identifier: Apache-2.0
"""Keep norms where training has brought them (LAWN)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._how.leafwise import inner_axes, map_decayed, norm
from optax_wd._how.norms import check_steps, constraining, norms_of, ratio
from optax_wd._how.step import decayed, wide_dtype
from optax_wd._tree.typing import Mask, PyTree
from optax_wd._where.atoms import everything
from optax_wd._where.rules import Stacked, check_stacked
from optax_wd._where.standard import standard


def keep_norms(
    mask: Mask = standard, *, after: int = 0, stacked: Stacked = None
) -> optax.GradientTransformationExtraArgs:
    """Train freely for some steps, then keep the norm that each tensor has by then.

    With `c = ||x||` after `after` steps, and `u` the final update, which will be added:
    `v = u - x * <u, x> / ||x||^2`, the part of the step along the sphere, and
    `u <- c * (x + v) / ||x + v|| - x`. Stands last in a chain, after the learning rate,
    bare; a decay that stands before it turns into part of the step, and its pull on the
    norm is undone. A tensor whose norm is 0 by then has no direction to keep and stays
    free.

    What it does not do: gradients are not projected before they enter the moments.

    Args:
      mask: the leaves whose norms are kept: a rule, a function from the tree to a tree
        of bools, or such a tree (or a prefix of it).
      after: free steps before that; 0 keeps the norms of the first parameters.
      stacked: leaves that hold several tensors along an axis (of `nn.scan`,
        `nnx.vmap`): a rule for axis 0, or pairs `(rule, axis)`.

    Returns:
      A transformation with a `NormsState`: one number per tensor. Updates keep their
      dtypes; the norm is exact up to the rounding of parameters and updates, and errors
      do not add up.

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if `after` is negative; at update, if there are no `params`, the mask
        does not fit them, or it stands inside of something.

    Example:
      >>> import optax, optax_wd as wd
      >>> tx = optax.chain(optax.adam(1e-3), wd.keep_norms(after=1000))

    Source: Gupta et al., Logit Attenuating Weight Normalization (LAWN),
    arXiv:2108.05839, which constrains the layers of the last homogeneous part of a
    network; here the mask says which.
    """
    _masks.check_mask(mask, "first; the free steps are after=")
    check_steps("after", after)
    pairs = check_stacked(stacked)

    def apply(count: Any, updates: Any, params: Any, norms: PyTree) -> Any:
        def read(leaf: Any, _: Any, param: Any, kept: Any) -> jax.Array:
            wide = jnp.asarray(param, wide_dtype(param.dtype))
            return jnp.where(count == after, norm(wide, inner_axes(leaf, pairs)), kept)

        norms = map_decayed(read, everything, None, params, norms)

        def one(leaf: Any, _: Any, param: Any, update: Any, kept: Any) -> jax.Array:
            axes = inner_axes(leaf, pairs)

            def correction(u: Any, x: Any, kept: Any) -> jax.Array:
                found = jnp.where(count < after, 0.0, _along(u, x, kept, axes))
                return jnp.where(kept == 0, 0.0, found)

            values = param, kept
            return decayed(update, values, update, (1.0, 1.0), correction, None)

        kept = map_decayed(one, mask, None, params, updates, norms, stacked=pairs)
        return kept, norms

    return constraining("keep_norms", lambda params: norms_of(pairs, params), apply)


def _along(
    u: jax.Array, x: jax.Array, kept: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """What a step lacks to go along the sphere and end on it."""
    inner = jnp.sum(jnp.real(jnp.conj(x) * u), axis=axes, keepdims=True)
    inwards = -x * ratio(inner, norm(x, axes) ** 2, 0.0)
    landed = x + u + inwards
    return inwards + (ratio(kept, norm(landed, axes), 1.0) - 1.0) * landed
