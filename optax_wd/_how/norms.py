# SPDX-License-Identifier: Apache-2.0
"""What methods that look at whole tensors share: numbers per tensor, and a frame.

A tensor is a leaf without its stacked axes. Numbers per tensor keep all axes of the
leaf, those within the tensor with length 1, so that they broadcast against it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount.amounts import received
from optax_wd._how.leafwise import inner_axes, norm
from optax_wd._how.step import is_inexact, wide_dtype
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.typing import PyTree
from optax_wd._where.rules import Rule


class NormsState(NamedTuple):
    """State of the transformations that constrain norms."""

    norms_count: jax.Array  # shape=(), dtype=int32: updates so far
    norms: PyTree  # like the bare parameters, one number per tensor; () for none


def per_tensor(
    function: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    stacked: tuple[tuple[Rule, int], ...],
    params: PyTree,
) -> PyTree:
    """`function(x, axes of one tensor)` of every inexact leaf, which arrives wide.

    Bare; leaves of other dtypes get a 0-d zero, so that there is one structure.
    """
    nodes, treedef = jax.tree.flatten(_leaves.bare(params))

    def one(leaf: _leaves.Leaf, x: Any) -> jax.Array:
        if not is_inexact(x):
            return jnp.zeros([], jnp.float32)
        wide = jnp.asarray(x, wide_dtype(x.dtype))
        return function(wide, inner_axes(leaf, stacked))

    return treedef.unflatten(map(one, _leaves.list_leaves(params), nodes))


def norms_of(stacked: tuple[tuple[Rule, int], ...], params: PyTree) -> PyTree:
    """The 2-norm of every tensor; see `per_tensor`."""
    return per_tensor(norm, stacked, params)


def mean_square(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The mean of |x|^2 over some axes, kept with length 1; 0 for an empty array."""
    total = jnp.sum(jnp.square(jnp.abs(x)), axis=axes, keepdims=True)
    return total / max(x.size // max(total.size, 1), 1)


def ratio(a: jax.typing.ArrayLike, b: jax.Array, otherwise: float) -> jax.Array:
    """`a / b`, and `otherwise` where `b` is 0."""
    return jnp.where(b == 0, otherwise, a / jnp.where(b == 0, 1, b))


def constraining(
    name: str,
    begin: Callable[[optax.Params], PyTree],
    apply: Callable[[jax.Array, PyTree, PyTree, PyTree], tuple[Any, Any]],
) -> optax.GradientTransformationExtraArgs:
    """The transformation around a constraint: counter, norms, `params` required.

    Args:
      name: of the public function, for its errors.
      begin: from the parameters to the norms, at `init`.
      apply: from the count, updates, parameters and norms to updates and norms.

    Returns:
      A transformation with a `NormsState`.
    """

    def init(params: optax.Params) -> Any:
        return NormsState(jnp.zeros([], jnp.int32), begin(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        if "sign_of" in extra_args:  # as a ready chain passes it to its decay
            raise ValueError(
                f"{name} is no decay and cannot stand inside of a ready chain; its "
                "docstring says where it stands"
            )
        if "inside_after_learning_rate" in extra_args:
            raise ValueError(
                f"{name} stands last, bare: optax.chain(..., {name}(...)); inside "
                "after_learning_rate, which turns signs, it would do the opposite"
            )
        if params is None:
            raise ValueError(
                f"{name} needs the parameters, got params=None; call "
                "tx.update(grads, state, params)"
            )
        count = state.norms_count
        updates, norms = apply(count, updates, params, state.norms)
        return updates, NormsState(jnp.asarray(optax.safe_increment(count)), norms)

    return optax.GradientTransformationExtraArgs(init, update)


def check_steps(name: str, steps: Any) -> None:
    """Refuse what is no whole number from 0 on."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(
            f"{name} takes a number of steps such as 1000, {received(name, steps)}"
        )
    if steps < 0:
        raise ValueError(f"{name} is 0 or more steps, got {steps}")
