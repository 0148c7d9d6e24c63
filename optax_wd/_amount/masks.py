# SPDX-License-Identifier: Apache-2.0
"""What `mask` and `multiplier` arguments mean for the leaves of a tree.

Both may be given as a rule or table, as a function of the tree, or as a tree. Here they
become one list: for each leaf None, which means untouched, or a factor on the rate.
"""

from typing import Any, TypeAlias

import jax
import numpy as np
import optax
from jax.core import Tracer

from optax_wd._amount.layers import Layers
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, Multiplier, PyTree
from optax_wd._where.rules import LeafFunction, Rule, check_leaves

Factor: TypeAlias = float | jax.Array | np.ndarray
"""A factor on the rate of one leaf: one number, or an array of the rank of the leaf."""


def check_mask(mask: Any, place: str = "right after weight_decay") -> None:
    """Refuse what can be no mask, before there are any parameters.

    Args:
      mask: what was given.
      place: where the mask comes among the arguments, for the error about a number.

    Raises:
      TypeError: if `mask` is None, a string, a number, or a table that is no rule.
    """
    if mask is None:
        raise TypeError(
            "mask=None is ambiguous; write mask=everything for all parameters or "
            "mask=standard for weight matrices only"
        )
    if isinstance(mask, optax.GradientTransformation):
        raise TypeError(
            f"mask is the optimizer {mask!r}; to see what an optimizer does write "
            "assert_decays(tx, params, mask)"
        )
    _refuse_recipe(mask, "mask")
    if isinstance(mask, Layers):
        raise TypeError(f"mask is {mask!r}, which says which layer; write `standard`")
    if isinstance(mask, type):
        raise TypeError(f"mask is the class {mask!r}; write a rule such as `standard`")
    if isinstance(mask, str):
        raise TypeError(
            f"mask is the string {mask!r}, which as a truth value would mean every "
            f"leaf; write regex({mask!r}), path({mask!r}) or named({mask!r})"
        )
    if isinstance(mask, LeafFunction) and not isinstance(mask, Rule):
        raise TypeError(
            f"mask is {mask!r}, a table of factors or labels; pass factors as "
            "multiplier=, and a rule such as `standard` as the mask"
        )
    if _leaves.is_number(mask) or isinstance(mask, jax.Array | np.ndarray):
        raise TypeError(
            f"mask is {mask!r}; a mask is a rule, a function or a tree of bools, and "
            f"comes {place}"
        )
    if not _leaves.is_function(mask):
        _check_bools(_leaves.leaves_with_paths(mask))


def check_multiplier(multiplier: Any) -> None:
    """Refuse what can be no multiplier, before there are any parameters.

    Raises:
      TypeError: if `multiplier` is a rule, a string or a bool.
      ValueError: if it is a negative number, or one that is not finite.
    """
    if isinstance(multiplier, Rule | str | bool):
        raise TypeError(
            f"multiplier takes factors, got {multiplier!r}; pass a choice of leaves as "
            "the mask, or factors as first_match((rule, 0.5), default=1.0)"
        )
    _refuse_recipe(multiplier, "multiplier")
    if isinstance(multiplier, optax.GradientTransformation):
        raise TypeError(f"multiplier takes factors, got the optimizer {multiplier!r}")
    if isinstance(multiplier, Layers):
        raise TypeError(
            f"multiplier takes factors, got {multiplier!r}, which says which layer; "
            "write layerwise(0.75, layer_of)"
        )
    if _leaves.is_number(multiplier) and np.shape(multiplier) == ():
        _checked_factor(multiplier, Leaf((), (), None))


def _refuse_recipe(given: Any, what: str) -> None:
    """A recipe that was not called is a function of a tree, as it seems."""
    home = getattr(given, "__module__", None)
    if _leaves.is_function(given) and str(home).startswith("optax_wd.recipes"):
        name = f"recipes.{given.__name__}"
        raise TypeError(f"{what} is the function {name}; write {name}()")


def factors_of(
    mask: Mask,
    multiplier: Multiplier | None,
    tree: PyTree,
    leaves: list[Leaf],
    *,
    strict: bool = True,
    stacked: tuple[tuple[Rule, int], ...] = (),
) -> list[Factor | None]:
    """The factor on the rate of each leaf; None for leaves that are not touched.

    Args:
      mask: the leaves that decay.
      multiplier: the factors; None for 1.
      tree: the parameters.
      leaves: the leaves of `tree`.
      strict: whether each name in a rule has to match some leaf of a complete tree.
      stacked: the rules for stacked axes, of which that holds as well.

    Returns:
      A list as long as `leaves`.

    Raises:
      TypeError: if mask or multiplier hold values of the wrong kind.
      ValueError: if they do not fit the tree, or a factor is negative or not finite.
    """
    partial = _leaves.has_holes(tree)
    for rule, _ in stacked:
        check_leaves(rule, leaves, complete=strict and not partial)

    def per_leaf(given: Any, what: str, wanted: list[bool]) -> list[Any]:
        if not isinstance(given, LeafFunction):
            return _given_for(given, tree, leaves, partial=partial, what=what)
        check_leaves(given, leaves, complete=strict and not partial)
        decide = given.decider(leaves, complete=not partial)
        pairs = zip(leaves, wanted, strict=True)
        return [decide(leaf) if want else None for leaf, want in pairs]

    chosen = per_leaf(mask, "mask", [leaf.is_inexact for leaf in leaves])
    decays = [bool(x) and y.is_inexact for x, y in zip(chosen, leaves, strict=True)]
    if multiplier is None:
        return [1.0 if choice else None for choice in decays]
    values = per_leaf(multiplier, "multiplier", decays)
    return [
        _checked_factor(value, leaf) if choice else None
        for choice, value, leaf in zip(decays, values, leaves, strict=True)
    ]


def _given_for(
    given: Any, tree: PyTree, leaves: list[Leaf], *, partial: bool, what: str
) -> list[Any]:
    """What a function of the tree, or a tree, holds for each leaf."""
    result = given(tree) if _leaves.is_function(given) else given
    if what == "mask":
        _check_bools(_leaves.leaves_with_paths(result))
    if jax.tree.structure(result) == jax.tree.structure(tree):
        return jax.tree.leaves(result)
    return _leaves.spread(result, leaves, partial=partial, what=what)


def _check_bools(entries: list[tuple[tuple[str, ...], Any]]) -> None:
    for path, value in entries:
        if not isinstance(value, bool | np.bool_):
            where = f"at {'/'.join(path)!r}" if path else "as a whole"
            raise TypeError(
                f"the mask is {value!r} {where}, where a bool belongs; write a rule "
                "such as `standard` or named('kernel'), or a tree of bools"
            )


def _checked_factor(value: Any, leaf: Leaf) -> Factor | None:
    """A factor that fits a leaf; None for one that is zero throughout."""
    if isinstance(value, float) and value == 1.0:
        return value
    where = f" at {leaf.where!r}" if leaf.path else ""
    if not _leaves.is_number(value):
        raise TypeError(
            f"the multiplier is {value!r}{where}; write a number, or an array of the "
            "rank of the leaf"
        )
    shape = np.shape(value)
    if shape and (
        len(shape) != leaf.ndim
        or any(n not in (1, size) for n, size in zip(shape, leaf.shape, strict=True))
    ):
        raise ValueError(
            f"the multiplier has shape {shape}{where}, where the leaf has "
            f"{leaf.shape}; give it the rank of the leaf, with 1 for axes that it does "
            "not vary on"
        )
    if isinstance(value, Tracer):
        return value
    known = np.asarray(value, np.float64)
    if not np.all(np.isfinite(known)) or np.any(known < 0.0):
        raise ValueError(
            f"the multiplier is {value!r}{where}; factors are finite and 0 or more"
        )
    if not np.any(known):
        return None
    return known if shape else float(known)
