# SPDX-License-Identifier: Apache-2.0
"""Tables from rules to values: bools (a mask), numbers (factors), strings (labels)."""

import dataclasses
import enum
import numbers
from typing import Any, NoReturn, TypeAlias, final

from optax_wd._tree.leaves import Leaf
from optax_wd._where.rules import LeafFunction, NameRule, Rule

Value: TypeAlias = bool | float | str


class _Default(enum.Enum):
    """Stands for no default; one object even after copies and pickles."""

    NONE = enum.auto()


_UNSET: Any = _Default.NONE


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Table(LeafFunction):
    """Rows of `(rule, value)`, of which the first that matches a leaf gives its value.

    Called with a parameter tree, it answers with a tree of values of the same
    structure: factors for `multiplier=`, labels for `optax.partition`.
    """

    rows: tuple[tuple[Rule, Value], ...]
    default: Value = _UNSET

    def row(self, leaf: Leaf) -> int | None:
        """The position of the row that decides about a leaf; None for the default."""
        matching = (n for n, (rule, _) in enumerate(self.rows) if rule.matches(leaf))
        return next(matching, None)

    def decide(self, leaf: Leaf) -> Value:
        """The value for one leaf."""
        n = self.row(leaf)
        if n is None and self.default is _UNSET:
            raise ValueError(
                f"no row of the table matches {leaf.where!r}; add a row for it, or "
                "default=..."
            )
        return self.default if n is None else self.rows[n][1]

    def reason(self, leaf: Leaf) -> str:
        """The rule of the row that decides about a leaf, or `default`."""
        n = self.row(leaf)
        return "default" if n is None else repr(self.rows[n][0])

    def unsure(self, leaf: Leaf) -> bool:
        """Whether a row that was asked before there was an answer is unsure."""
        if not any(rule.unsure(leaf) for rule, _ in self.rows):
            return False
        n = self.row(leaf)
        asked = self.rows if n is None else self.rows[: n + 1]
        return any(rule.unsure(leaf) for rule, _ in asked)

    def written(self) -> tuple[NameRule, ...]:
        """The names and patterns of all rows; each has to match some leaf."""
        return tuple(part for rule, _ in self.rows for part in rule.written())

    def needs_path(self) -> bool:
        """Whether some row can only answer for leaves that have a path."""
        return any(rule.needs_path() for rule, _ in self.rows)

    def __repr__(self) -> str:
        parts = [f"({rule!r}, {value!r})" for rule, value in self.rows]
        parts += [] if self.default is _UNSET else [f"default={self.default!r}"]
        return f"first_match({', '.join(parts)})"

    def __bool__(self) -> NoReturn:
        raise TypeError("a table has no truth value; call it with a parameter tree")


@final
@dataclasses.dataclass(frozen=True, repr=False)
class BoolTable(Rule):
    """A table of bools, which is a rule: `&`, `|` and `~` work on it."""

    table: Table

    def matches(self, leaf: Leaf) -> bool:
        """The bool of the first row that matches."""
        return bool(self.table.decide(leaf))

    def reason(self, leaf: Leaf) -> str:
        """The rule of the row that decides about a leaf, or `default`."""
        return self.table.reason(leaf)

    def unsure(self, leaf: Leaf) -> bool:
        """Whether a row that was asked before there was an answer is unsure."""
        return self.table.unsure(leaf)

    def written(self) -> tuple[NameRule, ...]:
        """The names and patterns of all rows; each has to match some leaf."""
        return self.table.written()

    def needs_path(self) -> bool:
        """Whether some row can only answer for leaves that have a path."""
        return self.table.needs_path()

    def __repr__(self) -> str:
        return repr(self.table)


def first_match(
    *rows: tuple[Rule, Value], default: Value = _UNSET
) -> Table | BoolTable:
    """A table of rules, of which the first that matches a leaf gives its value.

    Args:
      *rows: pairs `(rule, value)`. Values are all bools (a mask), all numbers (factors
        on the amount of decay) or all strings (labels for `optax.partition`). A row
        matches leaves of every dtype; a leaf that is not inexact decays in no case.
      default: the value of leaves that no row matches. Without it, such a leaf is an
        error when the table is called.

    Returns:
      A Table; of bools, a Rule.

    Raises:
      TypeError: if a row is no pair of a rule and a value, or values are of mixed
        kinds.
      ValueError: if there is no row; when called, if a name matches no leaf, or a leaf
        has neither row nor default.

    Example:
      >>> import optax_wd as wd
      >>> factors = wd.first_match((wd.contains("head"), 3.0), default=1.0)
      >>> decay = wd.masked_decay(0.1, multiplier=factors)
    """
    if not rows:
        raise ValueError("first_match() has no row; write (rule, value) pairs")
    for row in rows:
        match row:
            case (Rule(), _):
                continue
        raise TypeError(f"a row of first_match is a pair (rule, value), got {row!r}")
    values = [value for _, value in rows] + [default] * (default is not _UNSET)
    kinds = {_kind(value) for value in values}
    if len(kinds) > 1:
        raise TypeError(
            f"values of first_match are all bools, all numbers or all strings, got "
            f"{values!r}"
        )
    table = Table(tuple((rule, value) for rule, value in rows), default)
    return BoolTable(table) if kinds == {"bool"} else table


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, numbers.Real):
        return "number"
    if isinstance(value, str):
        return "string"
    raise TypeError(
        f"values of first_match are bools, numbers or strings, got {value!r}"
    )
