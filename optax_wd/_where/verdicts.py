# SPDX-License-Identifier: Apache-2.0
"""What is decided about a leaf: its role, the evidence, and whether it is sure."""

from typing import NamedTuple

from optax_wd._tree.typing import Path


class Verdict(NamedTuple):
    """A role and what it is known from.

    Attributes:
      role: the name of a role, as in `roles`; `vector` for one axis without a name that
        is known.
      says: the evidence in words; `{!r}` stands for the token that gives it.
      at: the position of that token in the path, from the end; 0 if there is none.
      unsure: whether names did not tell it: by shape alone, or from a name of which not
        every word is understood.
    """

    role: str
    says: str
    at: int = 0
    unsure: bool = False

    def text(self, path: Path) -> str:
        """The evidence, with the token of a path that has given it."""
        return self.says.format(path[self.at]) if self.at else self.says
