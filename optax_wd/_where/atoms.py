# SPDX-License-Identifier: Apache-2.0
"""Rules that need no names: everything, nothing, by rank, by your own predicate."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, final

import numpy as np

from optax_wd._tree.leaves import Leaf
from optax_wd._where.rules import (
    NameRule,
    Rule,
    Stacked,
    check_rule,
    check_stacked,
    inner_shape,
    stacked_repr,
)


def documented(rule: Rule, text: str) -> Rule:
    """The rule with a text of its own, which `help` shows instead of its class's."""
    object.__setattr__(rule, "__doc__", inspect.cleandoc(text))
    return rule


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Constant(Rule):
    answer: bool

    def matches(self, leaf: Leaf) -> bool:
        return self.answer

    def reason(self, leaf: Leaf) -> str:
        return repr(self)

    def needs_path(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "everything" if self.answer else "nothing"


everything: Rule = documented(
    _Constant(True),
    """Every leaf of an inexact dtype: biases, norms, scalars and all.""",
)
"""Every leaf of an inexact dtype: biases, norms, scalars and all."""

nothing: Rule = documented(_Constant(False), """No leaf.""")
"""No leaf."""


def optional(rule: Rule) -> Rule:
    """The same rule, whose names and patterns need not match any leaf.

    Args:
      rule: the rule, for example `named("pos_embed")` for models that may lack one.

    Returns:
      A rule that chooses the same leaves.

    Raises:
      TypeError: if `rule` is no rule.
    """
    return _Optional(check_rule(rule, "optional"))


def min_ndim(n: int, *, stacked: Stacked = None) -> Rule:
    """Leaves with at least `n` dimensions, stacked axes not counted.

    The rank alone never tells a weight from a bias: the biases of Flax attention have
    two dimensions. Combine it with names, or use `standard`.

    Args:
      n: number of dimensions, 1 or more.
      stacked: the leaves that carry a stacked axis (of `nn.scan`, `nnx.vmap`): a rule
        for axis 0, or pairs `(rule, axis)`, outermost first; a leaf that two pairs
        match loses two axes.

    Returns:
      A rule.

    Raises:
      TypeError: if `n` is no integer or `stacked` is neither a rule nor pairs.
      ValueError: if `n` is less than 1; when called, if a leaf lacks a stacked axis.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"min_ndim takes an integer such as 2, got {n!r}")
    if n < 1:
        raise ValueError(f"min_ndim takes 1 or more, got {n}; write `everything` for 0")
    return _MinNdim(n, check_stacked(stacked))


def satisfies(predicate: Callable[[Leaf], bool | np.bool_], reason: str) -> Rule:
    """Leaves for which your own predicate is true.

    Args:
      predicate: from a Leaf (path, shape, dtype) to a bool.
      reason: what the predicate asks for, in a few words, for tables and reprs.

    Returns:
      A rule. It equals another one only if both hold the same function object.

    Raises:
      TypeError: if `predicate` is not callable or `reason` is not a string; when
        called, if the predicate returns something else than a bool.
    """
    if not callable(predicate) or isinstance(predicate, Rule):
        raise TypeError(f"satisfies takes a function of a Leaf, got {predicate!r}")
    if not isinstance(reason, str):
        raise TypeError(f"the reason of satisfies is a string, got {reason!r}")
    return _Satisfies(predicate, reason)


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Optional(Rule):
    rule: Rule

    def matches(self, leaf: Leaf) -> bool:
        return self.rule.matches(leaf)

    def reason(self, leaf: Leaf) -> str:
        return self.rule.reason(leaf)

    def unsure(self, leaf: Leaf) -> bool:
        return self.rule.unsure(leaf)

    def written(self) -> tuple[NameRule, ...]:
        return ()

    def needs_path(self) -> bool:
        return self.rule.needs_path()

    def __repr__(self) -> str:
        return f"optional({self.rule!r})"


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _MinNdim(Rule):
    n: int
    stacked: tuple[tuple[Rule, int], ...]

    def matches(self, leaf: Leaf) -> bool:
        return len(inner_shape(leaf, self.stacked)) >= self.n

    def reason(self, leaf: Leaf) -> str:
        ndim = len(inner_shape(leaf, self.stacked))
        taken = leaf.ndim - ndim
        return f"ndim {ndim}" + (f" without {taken} stacked" if taken else "")

    def written(self) -> tuple[NameRule, ...]:
        return tuple(part for rule, _ in self.stacked for part in rule.written())

    def __repr__(self) -> str:
        if not self.stacked:
            return f"min_ndim({self.n})"
        return f"min_ndim({self.n}, stacked={stacked_repr(self.stacked)})"


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Satisfies(Rule):
    predicate: Callable[[Leaf], Any]
    said: str

    def matches(self, leaf: Leaf) -> bool:
        answer = self.predicate(leaf)
        if not isinstance(answer, bool | np.bool_):
            raise TypeError(
                f"the predicate of {self!r} returned {answer!r} for {leaf.where!r}; "
                "return a bool"
            )
        return bool(answer)

    def reason(self, leaf: Leaf) -> str:
        return self.said if self.matches(leaf) else f"not: {self.said}"

    def __repr__(self) -> str:
        return f"satisfies({self.predicate!r}, {self.said!r})"
