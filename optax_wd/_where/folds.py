# SPDX-License-Identifier: Apache-2.0
"""Folds: how an array of any rank is used as a matrix, or as many.

A fold has one letter per axis: `i` for an axis that the layer sums over (input), `o`
for one that it makes (output), `b` for a batch, whose every index is a matrix of its
own. Nothing is guessed from shapes: a kernel of three dimensions is `ioo` where it
makes heads, `iio` where it merges them, `bio` where it holds experts.
"""

import dataclasses
import glob
import math
from collections.abc import Callable
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp

from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import PyTree, Shape
from optax_wd._where.atoms import everything
from optax_wd._where.known_folds import Known, choices, known, unstacked
from optax_wd._where.matrices import check_matrices, is_real
from optax_wd._where.names import path
from optax_wd._where.rules import Rule, check_leaves, check_stacked, stacked_axes
from optax_wd._where.values import Table

Folds: TypeAlias = Table | Callable[[Leaf], str | None] | None
"""A table from rules to folds, or a function of a Leaf; first asked, then the names
that are known of Flax."""

_EXAMPLES = 3  # of leaves that are refused, in one message


@final
@dataclasses.dataclass(frozen=True)
class Fold:
    """A leaf as matrices: its shape, and a letter for each of its axes."""

    shape: Shape
    letters: str
    reason: str

    def axes(self, letter: str) -> tuple[int, ...]:
        """The axes with a letter."""
        return tuple(n for n, found in enumerate(self.letters) if found == letter)

    def length(self, letter: str) -> int:
        """The product of the lengths of these axes."""
        return math.prod(self.shape[axis] for axis in self.axes(letter))

    @property
    def short_and_long(self) -> tuple[int, int]:
        """The sides of each matrix, the shorter first."""
        short, long = sorted((self.length("i"), self.length("o")))
        return short, long

    @property
    def neurons(self) -> Shape:
        """The shape with 1 on the input axes: one element for each output neuron."""
        inputs = self.axes("i")
        return tuple(1 if n in inputs else d for n, d in enumerate(self.shape))

    def to_batch(self, x: jax.Array) -> jax.Array:
        """An array of the leaf's shape as (matrices, short side, long side)."""
        turned = jnp.transpose(x, self._order())
        return turned.reshape(-1, *self.short_and_long)

    def from_batch(self, batch: jax.Array) -> jax.Array:
        """The inverse of `to_batch`."""
        order = self._order()
        back = sorted(range(len(order)), key=order.__getitem__)
        turned = batch.reshape([self.shape[axis] for axis in order])
        return jnp.transpose(turned, back)

    def _order(self) -> tuple[int, ...]:
        sides = ("i", "o") if self.length("i") <= self.length("o") else ("o", "i")
        return tuple(axis for letter in ("b", *sides) for axis in self.axes(letter))


@final
@dataclasses.dataclass(frozen=True)
class Folding:
    """Which leaves are matrices, and how each is folded; made by `check_folding`."""

    matrices: Rule
    folds: Folds
    stacked: tuple[tuple[Rule, int], ...]

    def choose(self, tree: PyTree) -> PyTree:
        """The tree with True for matrices and False for all other leaves."""
        leaves = _leaves.list_leaves(tree)
        complete = not _leaves.has_holes(tree)
        for asked in (self.matrices, self.folds, *(rule for rule, _ in self.stacked)):
            if isinstance(asked, Rule | Table):
                check_leaves(asked, leaves, complete=complete)
        answers = [leaf.is_array and self.matrices.matches(leaf) for leaf in leaves]
        chosen = [leaf for leaf, answer in zip(leaves, answers, strict=True) if answer]
        self._check(chosen)
        if complete:
            self._check_rows(leaves, chosen)
        return jax.tree.structure(tree).unflatten(answers)

    def _check_rows(self, leaves: list[Leaf], chosen: list[Leaf]) -> None:
        """Refuse a row of `folds` that is only about leaves that are no matrices."""
        for rule, letters in self.folds.rows if isinstance(self.folds, Table) else ():
            named = [leaf for leaf in leaves if rule.matches(leaf)]
            if named and not any(map(rule.matches, chosen)):
                raise ValueError(
                    f"folds has ({rule!r}, {letters!r}) for {named[0].where!r}, shape "
                    f"{named[0].shape}, which {self.matrices!r} does not choose; write "
                    f"matrices={self.matrices | rule!r}, or leave that row out"
                )

    def _check(self, chosen: list[Leaf]) -> None:
        """Refuse leaves that have no fold, all in one error."""
        refused: dict[str, str] = {}
        for leaf in chosen:
            try:
                self.fold(leaf)
            except ValueError as error:
                refused[leaf.where] = str(error)
        if not refused:
            return
        (_, message), *others = refused.items()
        if others:
            names = ", ".join(repr(where) for where, _ in others[:_EXAMPLES])
            more = len(others) - _EXAMPLES
            names += f" and {more} more" * (more > 0)
            message += f"; also refused: {names}"
        raise ValueError(message)

    def others(self, tree: PyTree) -> PyTree:
        """The opposite of `choose`."""
        return jax.tree.map(lambda chosen: not chosen, self.choose(tree))

    def fold(self, leaf: Leaf) -> Fold:
        """The fold of a leaf that is chosen; an error if there is none."""
        outer = stacked_axes(leaf, self.stacked)
        inner = tuple(n for axis, n in enumerate(leaf.shape) if axis not in outer)
        if len(inner) < 2 or 0 in leaf.shape or not is_real(leaf):
            stacked = f" of which {len(outer)} stacked" if outer else ""
            raise ValueError(
                f"{self.matrices!r} chooses {leaf.where!r}, {leaf.dtype} of shape "
                f"{leaf.shape}{stacked}, which is not a matrix of real numbers; leave "
                f"it out, and it goes to AdamW: {self._without(leaf)}"
            )
        found = self._find(leaf, inner)
        letters = found.letters
        if letters is None:
            raise ValueError(self._refusal(leaf, inner, found))
        if len(letters) != len(inner):
            raise ValueError(
                f"the fold {letters!r} has {len(letters)} letters and {leaf.where!r} "
                f"of shape {leaf.shape} has {len(inner)} axes"
                f"{_besides(leaf, inner)}; write one letter for each"
            )
        rest = iter(letters)
        spread = ("b" if axis in outer else next(rest) for axis in range(leaf.ndim))
        return Fold(leaf.shape, "".join(spread), found.because)

    def _find(self, leaf: Leaf, inner: Shape) -> Known:
        """The fold without stacked axes, and where it comes from."""
        if isinstance(self.folds, Table):
            if self.folds.row(leaf) is not None or isinstance(self.folds.default, str):
                return Known(_checked(self.folds.decide(leaf)), self.folds.reason(leaf))
        elif self.folds is not None and (letters := self.folds(leaf)) is not None:
            return Known(_checked(letters), "a function says so")
        return known(leaf.path, inner)

    def _refusal(self, leaf: Leaf, inner: Shape, found: Known) -> str:
        """What to write for a leaf without a fold."""
        only = path(glob.escape(leaf.where)) if leaf.path else everything
        why = f": {found.because}" if found.because else ""
        stacked = "" if why else f"{_stacked_advice(leaf, inner)}, or "
        return (
            f"{leaf.where!r} of shape {leaf.shape} has {len(inner)} axes"
            f"{_besides(leaf, inner)} and no known use{why}; {stacked}name its fold in "
            f"folds=first_match(({only!r}, ...)): "
            f"{found.choices or choices(leaf.path, inner)}; or leave it to AdamW: "
            f"{self._without(leaf)}"
        )

    def _without(self, leaf: Leaf) -> str:
        if not leaf.path:
            return "matrices=nothing"
        narrower = self.matrices & ~path(glob.escape(leaf.where))
        return f"matrices={narrower!r}"


def check_folding(matrices: Any, folds: Folds, stacked: Any) -> Folding:
    """The arguments of a matrix optimizer that say what its matrices are."""
    axes_of = check_stacked(stacked)
    rule = check_matrices(matrices, axes_of)
    if isinstance(folds, Table):
        values = [value for _, value in folds.rows]
        values += [folds.default] * isinstance(folds.default, str)
        for value in values:
            _checked(value)
    elif folds is not None and (isinstance(folds, Rule) or not callable(folds)):
        raise TypeError(
            "folds takes a table such as first_match((contains('query'), 'ioo')), or a "
            f"function from a Leaf to such a text, got {folds!r}"
        )
    return Folding(rule, folds, axes_of)


def _checked(letters: Any) -> str:
    if not isinstance(letters, str) or set(letters) | {"b"} != {"b", "i", "o"}:
        raise ValueError(
            "a fold is a text such as 'ioo', one letter per axis, i for input, o for "
            f"output, b for batch, with at least one i and one o; got {letters!r}"
        )
    return letters


def _besides(leaf: Leaf, inner: Shape) -> str:
    return " besides the stacked ones" if len(inner) < leaf.ndim else ""


def _stacked_advice(leaf: Leaf, inner: Shape) -> str:
    """What to write for stacked axes: the rule, where one less would be known."""
    if len(inner) < leaf.ndim or unstacked(leaf.path, inner) is None:
        return "name its stacked axes in stacked="
    # The module, whose biases have the axis too: alone they would pass for matrices.
    *module, name = leaf.path or ("",)
    below = "/".join([*map(glob.escape, module), "**" if module else glob.escape(name)])
    only = path(below) if leaf.path else everything
    return f"one axis may be stacked, as stacked={only!r} says of the first"
