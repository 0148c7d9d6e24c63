# SPDX-License-Identifier: Apache-2.0
"""Go through the leaves that decay, with updates and whatever else is parallel to them.

Masks, factors, missing leaves and leaves of other dtypes are dealt with here, once for
all methods. A method is a function of one leaf.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_wd._amount import masks as _masks
from optax_wd._how.step import is_inexact
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, Multiplier, PyTree
from optax_wd._where.rules import Rule, stacked_axes


def map_decayed(
    function: Callable[..., Any],
    mask: Mask,
    multiplier: Multiplier | None,
    params: PyTree,
    *trees: PyTree,
    stacked: tuple[tuple[Rule, int], ...] = (),
) -> PyTree:
    """A tree like the first of `trees`, changed on the leaves that decay.

    Args:
      function: of the facts of a leaf, its factor, the parameter and the values that
        `trees` have for it, to the new value of the first of them.
      mask: the leaves that decay.
      multiplier: their factors.
      params: the parameters.
      *trees: parallel to `params`, with its boxes or bare; what is missing in one is
        passed on as it is.
      stacked: the rules that `function` takes off axes by. Names that match no leaf are
        an error, as they are in `mask`.

    Returns:
      A tree with the structure of `params`, bare if the first of `trees` is. Values of
      leaves that do not decay are the same objects as before.
    """
    leaves = _leaves.list_leaves(params)
    factors = _masks.factors_of(mask, multiplier, params, leaves, stacked=stacked)
    facts = zip(leaves, factors, strict=True)
    nodes, treedef = jax.tree.flatten(params, is_leaf=_leaves.is_hole)
    plain = jax.tree.structure(_leaves.bare(params), is_leaf=_leaves.is_hole)
    columns = [plain.flatten_up_to(_leaves.bare(tree)) for tree in trees]
    results = []
    for node, *values in zip(nodes, *columns, strict=True):
        leaf, factor = (None, None) if _leaves.is_hole(node) else next(facts)
        if factor is not None and is_inexact(values[0]):
            results.append(function(leaf, factor, node, *values))
        else:
            results.append(values[0])
    return (treedef if _leaves.is_boxed(trees[0]) else plain).unflatten(results)


def raw_gradient(method: str, extra_args: dict[str, Any], params: PyTree) -> PyTree:
    """The extra argument `grad` of a method that cannot do without, see `aligned`."""
    if extra_args.get("grad") is None:
        raise ValueError(
            f"{method} needs the raw gradient, got none; call "
            "tx.update(grads, state, params, grad=grads), and audit or assert_decays "
            'with extra_args={"grad": grads}'
        )
    return aligned(extra_args["grad"], params)


def aligned(tree: PyTree, params: PyTree) -> PyTree:
    """An extra argument as a tree like the parameters, with None for what it lacks."""
    treedef = jax.tree.structure(params)
    if jax.tree.structure(tree) == treedef:
        return tree
    given = dict(_leaves.leaves_with_paths(tree))
    return treedef.unflatten(
        [given.get(p) for p, _ in _leaves.leaves_with_paths(params)]
    )


def parallel(name: str, value: Any, leaf: Leaf) -> Any:
    """What an aligned argument has for a leaf, which is of the shape of the leaf."""
    if getattr(value, "shape", None) != leaf.shape:
        raise ValueError(
            f"{name} has no array of shape {leaf.shape} at {leaf.where!r}, which "
            "decays; pass a tree like the parameters, with all leaves"
        )
    return value


def inner_axes(leaf: Leaf, stacked: tuple[tuple[Rule, int], ...]) -> tuple[int, ...]:
    """The axes of one tensor within a leaf: all but the stacked ones."""
    outer = stacked_axes(leaf, stacked)
    return tuple(axis for axis in range(leaf.ndim) if axis not in outer)


def norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The 2-norm over some axes, which are kept with length 1; real and wide."""
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x)), axis=axes, keepdims=True))
