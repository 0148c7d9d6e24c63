# SPDX-License-Identifier: Apache-2.0
"""Tied parameters: one array under several names, of which one may exempt it.

A tied embedding is a table under one name and the kernel of a head under another. Where
the module is at hand all names count: what a user names is named under any of them, and
to `standard` and its like one name that exempts the array is enough. An optimizer sees
one name only, the alphabetically first.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, final

from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Path
from optax_wd._where.rules import NameRule, Rule
from optax_wd._where.values import Table


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Tied(Rule):
    """A rule that asks about all names of a leaf.

    Attributes:
      rule: the rule that is asked, without rules inside.
      others: of each path that is shared, the leaf under its other names.
      decisive: the answer for which one name is enough.
    """

    rule: Rule
    others: Mapping[Path, tuple[Leaf, ...]]
    decisive: bool

    def matches(self, leaf: Leaf) -> bool:
        """Whether the rule matches, under one name or under every name."""
        return self.decisive if self._enough(leaf) else not self.decisive

    def reason(self, leaf: Leaf) -> str:
        """The clause that decides, and the name under which it does."""
        for name in self._enough(leaf):
            said = self.rule.reason(name)
            return said if name is leaf else f"{said}, shared as {name.where}"
        return self.rule.reason(leaf)

    def unsure(self, leaf: Leaf) -> bool:
        """Whether no name decides for sure."""
        return all(map(self.rule.unsure, self._enough(leaf) or self._names(leaf)))

    def written(self) -> tuple[NameRule, ...]:
        """The names and patterns of the rule."""
        return self.rule.written()

    def needs_path(self) -> bool:
        """As the rule."""
        return self.rule.needs_path()

    def _names(self, leaf: Leaf) -> list[Leaf]:
        return [leaf, *self.others.get(leaf.path, ())]

    def _enough(self, leaf: Leaf) -> list[Leaf]:
        """The names under which the answer is the one that decides."""
        names = self._names(leaf)
        return [name for name in names if self.rule.matches(name) is self.decisive]

    def __repr__(self) -> str:
        return repr(self.rule)


def tie(part: Any, others: Mapping[Path, tuple[Leaf, ...]]) -> Any:
    """A rule in which every part that has no rules inside asks about all names."""
    if type(part) is tuple:
        return tuple(tie(inner, others) for inner in part)
    if not isinstance(part, Rule | Table):
        return part
    fields = {
        field.name: getattr(part, field.name) for field in dataclasses.fields(part)
    }
    told = {name: tie(value, others) for name, value in fields.items()}
    if told != fields:
        return dataclasses.replace(part, **told)
    is_leaf = isinstance(part, Rule)
    return Tied(part, others, isinstance(part, NameRule)) if is_leaf else part
