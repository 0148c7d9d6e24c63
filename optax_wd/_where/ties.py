# SPDX-License-Identifier: Apache-2.0
"""Tied parameters: one array under several names, of which one may exempt it.

A tied embedding is a table under one name and the kernel of a head under another. Where
the module is at hand all names count, and one that exempts the array wins. An optimizer
sees one name only, the alphabetically first.
"""

import dataclasses
from collections.abc import Mapping
from typing import final

from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Path
from optax_wd._where.rules import NameRule, Rule


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Tied(Rule):
    """A rule that asks about all names of a leaf.

    Attributes:
      rule: the rule that is asked.
      others: of each path that is shared, the leaf under its other names.
    """

    rule: Rule
    others: Mapping[Path, tuple[Leaf, ...]]

    def matches(self, leaf: Leaf) -> bool:
        """Whether the rule matches under every name."""
        return all(map(self.rule.matches, self._names(leaf)))

    def reason(self, leaf: Leaf) -> str:
        """The clause that exempts the leaf, under the name where it does."""
        for name in self._names(leaf):
            if not self.rule.matches(name):
                said = self.rule.reason(name)
                return said if name is leaf else f"{said}, shared as {name.where}"
        return self.rule.reason(leaf)

    def unsure(self, leaf: Leaf) -> bool:
        """Whether no name decides for sure."""
        names = self._names(leaf)
        exempt = [name for name in names if not self.rule.matches(name)]
        return all(map(self.rule.unsure, exempt or names))

    def written(self) -> tuple[NameRule, ...]:
        """The names and patterns of the rule."""
        return self.rule.written()

    def needs_path(self) -> bool:
        """As the rule."""
        return self.rule.needs_path()

    def _names(self, leaf: Leaf) -> tuple[Leaf, ...]:
        return (leaf, *self.others.get(leaf.path, ()))

    def __repr__(self) -> str:
        return repr(self.rule)
