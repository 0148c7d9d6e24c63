# SPDX-License-Identifier: Apache-2.0
"""What changed between two reports about parameters: in words, and as data.

A refactoring, a new checkpoint or another recipe should change what it means to change
and nothing else. Reports are compared leaf by leaf, by path.
"""

import collections
import dataclasses
import html
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from optax_wd._tree import fold as _fold

# The clause of a rule is no fact about the weights, and the size follows the shape.
_NOT_COMPARED = ("path", "because", "size", "unsure")


class Change(NamedTuple):
    """One fact that is told otherwise of one leaf.

    Attributes:
      path: the leaf's path.
      field: the name of the fact, as in the rows of the reports.
      before: its value in the first report.
      after: its value in the second.
    """

    path: str
    field: str
    before: Any
    after: Any


@dataclasses.dataclass(frozen=True)
class Difference:
    """What differs between two reports; made by `diff`, and true if anything does.

    Attributes:
      added: rows of the second report whose paths the first does not have.
      removed: rows of the first whose paths the second does not have.
      changed: a Change for each fact of a leaf that is in both.
    """

    added: tuple[Any, ...]
    removed: tuple[Any, ...]
    changed: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data that `json.dumps` takes."""
        return {
            "added": [row._asdict() for row in self.added],
            "removed": [row._asdict() for row in self.removed],
            "changed": [change._asdict() for change in self.changed],
        }

    def _lines(self) -> Iterator[tuple[str, str, str]]:
        """What happened, the folded name of the leaves, and the facts."""
        for what, rows in (("removed", self.removed), ("added", self.added)):
            facts = [(row.path, _words_of_row(row)) for row in rows]
            yield from ((what, *line) for line in _folded(facts))
        words = collections.defaultdict[str, list[str]](list)
        for path, field, before, after in self.changed:
            words[path].append(f"{field} {_words(before, after)}")
        facts = [(path, ", ".join(told)) for path, told in words.items()]
        yield from (("changed", *line) for line in _folded(facts))

    def _summary(self) -> str:
        if not self:
            return "no difference"
        changed = len({change.path for change in self.changed})
        return (
            f"{len(self.removed)} removed, {len(self.added)} added, {changed} changed"
        )

    def __str__(self) -> str:
        lines = [f"{what} {name}: {facts}" for what, name, facts in self._lines()]
        return "\n".join([*lines, self._summary()])

    def _repr_html_(self) -> str:
        """The same for a notebook, with every name escaped."""
        lines = [("", "leaf", "facts"), *self._lines()]
        table = _fold.html_table(lines) if self else ""
        return f"{table}<pre>{html.escape(self._summary())}</pre>"


def diff(before: Any, after: Any, *, rtol: float = 1e-3) -> Difference:
    """Compare two Descriptions, or two Audits, leaf by leaf.

    The clause that decides (`because`) is not compared: two rules that decay the same
    leaves do not differ. Neither are warnings and notes, nor, of Descriptions, a number
    with None, which says that the number does not apply; `decays` says so too.

    Args:
      before: a report with `rows` that are NamedTuples and have a `path`.
      after: another of the same kind.
      rtol: how much two numbers may differ, as a fraction of the larger one, because
        what is measured has noise. 0 compares exactly.

    Returns:
      A Difference: `print` it, ask whether it is true, or read `added`, `removed`,
      `changed`, `to_dict()`.

    Raises:
      TypeError: if one of the two is no report, or they are of different kinds.
      ValueError: if `rtol` is negative or not finite.

    Example:
      >>> import jax.numpy as jnp, optax_wd as wd
      >>> params = {f"block_{n}": {"kernel": jnp.ones((2, 2))} for n in range(12)}
      >>> before = wd.describe(wd.standard, params)
      >>> print(wd.diff(before, wd.describe(wd.nothing, params)))
      changed block_{0..11}/kernel: decays yes -> no
      0 removed, 0 added, 12 changed
    """
    for report in (before, after):
        if not hasattr(report, "rows"):
            raise TypeError(
                f"diff got a {type(report).__name__}; pass what describe or audit "
                "returns"
            )
    if type(before) is not type(after):
        raise TypeError(
            f"diff got a {type(before).__name__} and a {type(after).__name__}; compare "
            "two reports of one kind"
        )
    if not (math.isfinite(rtol) and rtol >= 0):
        raise ValueError(f"rtol is a fraction such as 1e-3, 0 or more, got {rtol!r}")
    old, new = _by_path(before.rows), _by_path(after.rows)
    pairs = ((old[key], new[key]) for key in old if key in new)
    return Difference(
        added=tuple(row for key, row in new.items() if key not in old),
        removed=tuple(row for key, row in old.items() if key not in new),
        changed=tuple(change for pair in pairs for change in _changes(*pair, rtol)),
    )


def _by_path(rows: Iterable[Any]) -> dict[tuple[str, int], Any]:
    """Rows by path, and by how often the path has occurred: some leaves share one."""
    seen = collections.Counter[str]()
    found = {}
    for row in rows:
        found[row.path, seen[row.path]] = row
        seen[row.path] += 1
    return found


def _changes(old: Any, new: Any, rtol: float) -> Iterator[Change]:
    # Of a leaf that does not decay a description has no numbers; `decays` says so.
    applies = "decays" not in old._fields
    for field in old._fields:
        before, after = getattr(old, field), getattr(new, field)
        if field not in _NOT_COMPARED and not _agree(before, after, rtol, applies):
            yield Change(old.path, field, before, after)


def _agree(before: Any, after: Any, rtol: float, applies: bool) -> bool:
    old, new = _ends(before), _ends(after)
    if applies and (before is None) != (after is None):
        return False
    if (old and after is None) or (new and before is None):
        return True
    if not (old and new):
        return bool(before == after)
    return all(
        math.isclose(x, y, rel_tol=rtol) or (math.isnan(x) and math.isnan(y))
        for x, y in zip(old, new, strict=True)
    )


def _ends(value: Any) -> tuple[float, float] | None:
    """The least and the largest of what a report tells as a number or a range."""
    if isinstance(value, float):
        return value, value
    match value:
        case (float(low), float(high)):
            return low, high
    return None


def _folded(facts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    pairs = [(_fold.printable(path), words) for path, words in facts]
    return [(name, pairs[where[0]][1]) for name, where in _fold.fold(pairs)]


def _words_of_row(row: Any) -> str:
    told = [
        f"{field} {_word(value)}"
        for field, value in row._asdict().items()
        if field not in _NOT_COMPARED and value is not None
    ]
    return ", ".join(told)


def _words(before: Any, after: Any) -> str:
    old, new = _word(before), _word(after)
    if old == new:  # numbers that differ beyond the digits shown
        old, new = repr(before), repr(after)
    return f"{old} -> {new}"


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if ends := _ends(value):
        return "..".join(f"{end:.4g}" for end in dict.fromkeys(ends))
    return _fold.printable(str(value))
