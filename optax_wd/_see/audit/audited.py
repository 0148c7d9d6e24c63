# SPDX-License-Identifier: Apache-2.0
"""An audit as a value: what was measured of each leaf; as text, as HTML, as data."""

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from optax_wd._tree import fold as _fold
from optax_wd._tree.typing import Shape

_HEAD = "leaf", "shape", "parameters", "kind", "shrink", "target", "open"


class AuditRow(NamedTuple):
    """What was measured of one leaf.

    Attributes:
      path: the leaf's path, tokens separated by slashes.
      shape: the shape of the whole leaf.
      dtype: the name of the dtype.
      size: the number of elements.
      kind: one of the kinds that `audit` names.
      shrink: the fraction of the distance from the target that a step takes away, on
        coordinates that are open; negative where it adds to it. None if not known.
      target: `zero`, `initial value` or `other`; None where there is no pull.
      open: the fraction of coordinates that a step shrinks; None if not known.
    """

    path: str
    shape: Shape
    dtype: str
    size: int
    kind: str
    shrink: float | None
    target: str | None
    open: float | None


@dataclasses.dataclass(frozen=True)
class Audit:
    """What an optimizer does to each leaf, measured; made by `audit`.

    Attributes:
      rows: one AuditRow for each array of an inexact dtype.
      notes: sentences about how it was measured, and what could not be told.
    """

    rows: tuple[AuditRow, ...]
    notes: tuple[str, ...]

    def summary(self) -> str:
        """A line for each kind: how many tensors and parameters, and their shrinks."""
        kinds: dict[tuple[str, str], list[AuditRow]] = {}
        for row in self.rows:
            kinds.setdefault((row.kind, _number(row.shrink)), []).append(row)
        lines = [
            (
                kind,
                f"shrink {shrink}",
                f"{len(rows):,} tensors",
                f"{sum(row.size for row in rows):,} parameters",
            )
            for (kind, shrink), rows in kinds.items()
        ]
        return _fold.align(lines, right=(2, 3))

    def table(self, *, fold: bool = True) -> str:
        """The rows as plain text.

        Args:
          fold: whether repeated layers become one line, `block_{0..11}/mlp/kernel`,
            with the parameters of all of them.

        Returns:
          Text without trailing newline.
        """
        return _fold.align(self._lines(fold), right=(2,))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data that `json.dumps` takes."""
        return {
            "rows": [row._asdict() for row in self.rows],
            "notes": list(self.notes),
        }

    def _lines(self, fold: bool) -> list[Sequence[str]]:
        names = [_fold.printable(row.path) for row in self.rows]
        facts = [
            (row.shape, row.dtype, row.kind, *_cells(row)[1:]) for row in self.rows
        ]
        groups = [(name, [n]) for n, name in enumerate(names)]
        if fold:
            groups = _fold.fold(list(zip(names, facts, strict=True)))
        lines: list[Sequence[str]] = [_HEAD]
        for name, where in groups:
            row = self.rows[where[0]]
            size = f"{row.size * len(where):,}"
            lines.append((name, str(row.shape), size, *_cells(row)))
        return lines

    def _tail(self) -> list[str]:
        return [f"note: {_fold.printable(note)}" for note in self.notes]

    def __str__(self) -> str:
        return "\n".join([self.table(), self.summary(), *self._tail()])

    def _repr_html_(self) -> str:
        """The same for a notebook, with every name escaped."""
        table = _fold.html_table(self._lines(fold=True), right=(2,))
        tail = "\n".join([self.summary(), *self._tail()])
        return f"{table}<pre>{html.escape(tail)}</pre>"


def _cells(row: AuditRow) -> tuple[str, str, str, str]:
    is_open = "-" if row.open is None else f"{row.open:.2f}"
    return row.kind, _number(row.shrink), row.target or "-", is_open


def _number(value: float | None) -> str:
    """Three digits, so that layers that shrink alike make one line."""
    return "?" if value is None or math.isnan(value) else f"{value:.3g}"
