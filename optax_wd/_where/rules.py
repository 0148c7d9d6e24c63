# SPDX-License-Identifier: Apache-2.0
"""Rules say which parameters decay, by path, shape and dtype.

A rule is a value: it compares, hashes, prints as the code that made it, and explains
each leaf. Called with a parameter tree it answers with a tree of bools of the same
structure, so it is a mask for every Optax transformation that takes one. It is not a
pytree itself, and it never looks at the values of parameters.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, TypeAlias, final

import jax

from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import PyTree, Shape


class LeafFunction(abc.ABC):
    """A function of a leaf that answers for whole trees: a mask, factors or labels."""

    @abc.abstractmethod
    def decide(self, leaf: Leaf) -> Any:
        """The answer for one leaf: a bool, a number or a label."""

    @abc.abstractmethod
    def reason(self, leaf: Leaf) -> str:
        """Which clause decides about a leaf, in a few words."""

    def unsure(self, leaf: Leaf) -> bool:
        """Whether the answer rests on shape alone, or on a name that may mislead."""
        del leaf
        return False

    def written(self) -> "tuple[NameRule, ...]":
        """The names and patterns inside; each has to match some leaf."""
        return ()

    def needs_path(self) -> bool:
        """Whether it can only answer for leaves that have a path."""
        return True

    def decider(self, leaves: list[Leaf], *, complete: bool) -> Callable[[Leaf], Any]:
        """`decide`, with what has to be known of the whole tree filled in.

        Args:
          leaves: all leaves of a tree.
          complete: whether none was taken out.
        """
        del leaves, complete
        return self.decide

    def __call__(self, tree: PyTree) -> PyTree:
        """The answer for each leaf of a parameter tree.

        Args:
          tree: parameters or updates, arrays or abstract, in any container: a dict, a
            Linen or NNX tree with or without boxes, a module, a partial tree.

        Returns:
          A tree of answers with exactly the structure of `tree`. Of a rule they are
          Python bools, False for every leaf that is not of an inexact dtype.

        Raises:
          TypeError: if called with a step count, as `optax.inject_hyperparams` does.
          ValueError: if the tree is one array without a path, or if a name or pattern
            matches no leaf of a complete tree.
        """
        _leaves.refuse_count(tree, "mask" if isinstance(self, Rule) else "multiplier")
        leaves = _leaves.list_leaves(tree)
        complete = not _leaves.has_holes(tree)
        check_leaves(self, leaves, complete=complete)
        decide = self.decider(leaves, complete=complete)
        return jax.tree.structure(tree).unflatten(map(decide, leaves))


@dataclasses.dataclass(frozen=True, repr=False)
class Rule(LeafFunction):
    """A choice of leaves: combine with `&`, `|` and `~`, call with a tree."""

    @abc.abstractmethod
    def matches(self, leaf: Leaf) -> bool:
        """Whether the rule chooses a leaf, whatever the dtype of the leaf."""

    @final
    def decide(self, leaf: Leaf) -> bool:
        """Whether the leaf decays: it is of an inexact dtype, and the rule matches."""
        return leaf.is_inexact and self.matches(leaf)

    def __and__(self, other: "Rule") -> "Rule":
        """The leaves that both rules choose."""
        return _And(_flat(_And, self, other))

    def __or__(self, other: "Rule") -> "Rule":
        """The leaves that either rule chooses."""
        return _Or(_flat(_Or, self, other))

    def __invert__(self) -> "Rule":
        """The leaves that the rule does not choose."""
        return self.rule if isinstance(self, _Not) else _Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError("combine rules with `&`, `|`, `~`, not `and`, `or`, `not`")


class NameRule(Rule):
    """A rule of names or patterns that the user wrote."""

    patterns: tuple[str, ...]

    def misses(self, leaves: list[Leaf]) -> bool:
        """Whether the leaves show that what was written is a mistake."""
        return not any(map(self.matches, leaves))

    @abc.abstractmethod
    def hint(self, leaves: list[Leaf]) -> str:
        """The error for the case that it misses."""


Stacked: TypeAlias = Rule | tuple[tuple[Rule, int], ...] | None
"""Which leaves carry a stacked axis (of `nn.scan`, `nnx.vmap`), and where: a rule for
axis 0, or pairs `(rule, axis)`, the outermost first. As in a mask, names in it that
match no leaf of a complete tree are an error."""


def check_leaves(asked: LeafFunction, leaves: list[Leaf], *, complete: bool) -> None:
    """Refuse leaves that `asked` cannot answer for.

    Args:
      asked: a rule or a table.
      leaves: all leaves of a tree.
      complete: whether none was taken out, so that every name has to match some leaf.

    Raises:
      ValueError: if there is one leaf without a path, or a name matches nothing.
    """
    if asked.needs_path() and [leaf.path for leaf in leaves] == [()]:
        raise ValueError(
            f"{asked!r} was asked about a single array, which has no path; call it "
            "with the tree of parameters (outside optax.flatten), or use `everything`"
        )
    for message in unmatched(asked, leaves) if complete else ():
        raise ValueError(message)


def unmatched(asked: LeafFunction, leaves: list[Leaf]) -> list[str]:
    """A message for each written name or pattern that matches none of the leaves."""
    return [
        part.hint(leaves) for part in asked.written() if leaves and part.misses(leaves)
    ]


def check_rule(rule: object, what: str) -> Rule:
    """`rule` itself, if it is a rule."""
    if not isinstance(rule, Rule):
        raise TypeError(
            f"{what} takes a rule such as min_ndim(2) or named('bias'), got {rule!r}"
        )
    return rule


def check_stacked(stacked: Any) -> tuple[tuple[Rule, int], ...]:
    """`stacked` as pairs of a rule and an axis, the outermost axis first."""
    if stacked is None:
        return ()
    pairs = ((stacked, 0),) if isinstance(stacked, Rule) else stacked
    for pair in pairs if isinstance(pairs, tuple | list) else (None,):
        match pair:
            case (Rule(), int(axis)) if axis >= 0 and not isinstance(axis, bool):
                continue
        raise TypeError(
            "stacked takes a rule, for axis 0, or pairs such as "
            f"((contains('blocks'), 1),), got {stacked!r}"
        )
    return tuple((rule, axis) for rule, axis in pairs)


def stacked_axes(leaf: Leaf, stacked: tuple[tuple[Rule, int], ...]) -> tuple[int, ...]:
    """The stacked axes of a leaf, as positions in its shape, the outermost first."""
    found, left = [], list(range(leaf.ndim))
    for rule, axis in stacked if leaf.is_array else ():
        if not rule.matches(leaf):
            continue
        if axis >= len(left):
            raise ValueError(
                f"{leaf.where!r} of shape {leaf.shape} has no axis {axis} to take off; "
                f"make the stacked rule {rule!r} narrower"
            )
        found.append(left.pop(axis))
    return tuple(found)


def inner_shape(leaf: Leaf, stacked: tuple[tuple[Rule, int], ...]) -> Shape:
    """The shape of a leaf without its stacked axes."""
    if not stacked:  # leaves are many
        return leaf.shape
    axes = stacked_axes(leaf, stacked)
    return tuple(n for axis, n in enumerate(leaf.shape) if axis not in axes)


def stacked_repr(stacked: tuple[tuple[Rule, int], ...]) -> str:
    """`stacked` as it is written in code."""
    if [axis for _, axis in stacked] == [0]:
        return repr(stacked[0][0])
    return repr(stacked)


def _flat(kind: "type[_Combined]", *rules: object) -> tuple[Rule, ...]:
    parts: list[Rule] = []
    for rule in rules:
        checked = check_rule(rule, "an operator between rules")
        parts.extend(checked.rules if isinstance(checked, kind) else (checked,))
    return tuple(parts)


def _operand(rule: Rule) -> str:
    return f"({rule!r})" if isinstance(rule, _Combined) else repr(rule)


@dataclasses.dataclass(frozen=True, repr=False)
class _Combined(Rule):
    rules: tuple[Rule, ...]
    decisive: ClassVar[bool]  # the answer for which one rule is enough

    def written(self) -> tuple[NameRule, ...]:
        return tuple(part for rule in self.rules for part in rule.written())

    def needs_path(self) -> bool:
        return any(rule.needs_path() for rule in self.rules)

    def unsure(self, leaf: Leaf) -> bool:
        """Whether every rule that is enough for the answer is unsure, or else any."""
        if not any(rule.unsure(leaf) for rule in self.rules):
            return False
        return all(rule.unsure(leaf) for rule in self._enough(leaf))

    def reason(self, leaf: Leaf) -> str:
        """Of the first rule that is enough for the answer, a sure one, or else all."""
        enough = sorted(self._enough(leaf), key=lambda rule: rule.unsure(leaf))
        reasons = [rule.reason(leaf) for rule in enough[:1] or self.rules]
        return "; ".join(dict.fromkeys(reasons))

    def _enough(self, leaf: Leaf) -> list[Rule]:
        """The rules whose answer, of one alone, is the answer of all together."""
        return [rule for rule in self.rules if rule.matches(leaf) is self.decisive]


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _And(_Combined):
    decisive = False

    def matches(self, leaf: Leaf) -> bool:
        return all(rule.matches(leaf) for rule in self.rules)

    def __repr__(self) -> str:
        return " & ".join(map(_operand, self.rules))


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Or(_Combined):
    decisive = True

    def matches(self, leaf: Leaf) -> bool:
        return any(rule.matches(leaf) for rule in self.rules)

    def __repr__(self) -> str:
        return " | ".join(map(_operand, self.rules))


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Not(Rule):
    rule: Rule

    def matches(self, leaf: Leaf) -> bool:
        return not self.rule.matches(leaf)

    def reason(self, leaf: Leaf) -> str:
        return self.rule.reason(leaf)

    def unsure(self, leaf: Leaf) -> bool:
        return self.rule.unsure(leaf)

    def written(self) -> tuple[NameRule, ...]:
        return self.rule.written()

    def needs_path(self) -> bool:
        return self.rule.needs_path()

    def __repr__(self) -> str:
        return f"~{_operand(self.rule)}"
