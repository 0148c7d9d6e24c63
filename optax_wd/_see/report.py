# SPDX-License-Identifier: Apache-2.0
"""A description as a value: rows, totals and warnings; as text, as HTML, as data."""

import dataclasses
import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from optax_wd._tree import fold as _fold
from optax_wd._tree.typing import Shape

Range = float | tuple[float, float]


class Row(NamedTuple):
    """What is asked for one leaf.

    Attributes:
      path: the leaf's path, tokens separated by slashes.
      shape: the shape of the whole leaf.
      dtype: the name of the dtype.
      size: the number of elements.
      decays: whether the leaf decays.
      multiplier: the factor on the rate, or the least and the largest factor of an
        array; None if the leaf does not decay.
      shrink: the fraction of the leaf that a step takes away where every gate is open,
        or the least and the largest of an array; None if the leaf does not decay, or no
        `weight_decay` was given.
      because: the clause of the mask that decides.
      unsure: whether that clause goes by shape alone, or by a name that may mislead.
        The table marks it with a question mark.
    """

    path: str
    shape: Shape
    dtype: str
    size: int
    decays: bool
    multiplier: Range | None
    shrink: Range | None
    because: str
    unsure: bool = False


@dataclasses.dataclass(frozen=True)
class Description:
    """Rows, totals and warnings about a mask on a parameter tree; made by `describe`.

    Attributes:
      mask: the mask as text.
      amount: what the shrink is the product of, as text; empty if there is none.
      rows: one Row for each array, in the order of `jax.tree.leaves`.
      warnings: sentences about what looks unintended.
      notes: sentences about what is not shown.
    """

    mask: str
    amount: str
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """How many tensors and parameters decay, do not, and are marked as unsure."""
        parts = [
            ("decays", [row for row in self.rows if row.decays]),
            ("does not decay", [row for row in self.rows if not row.decays]),
        ]
        if unsure := [row for row in self.rows if row.unsure]:
            parts.append(("unsure, marked ?", unsure))
        whole = _totals(self.rows)
        lines = [
            (
                title,
                *(f"{n:,} of {whole[key]:,} {key}" for key, n in _totals(rows).items()),
            )
            for title, rows in parts
        ]
        return _fold.align(lines, right=(1, 2))

    def table(self, *, fold: bool = True) -> str:
        """The rows as plain text.

        Args:
          fold: whether repeated layers become one line, `block_{0..11}/mlp/kernel`,
            with the parameters of all of them.

        Returns:
          Text without trailing newline.
        """
        return _fold.align(self._lines(fold), right=(3,))

    def _lines(self, fold: bool) -> list[Sequence[str]]:
        """The cells of the table, its head first."""
        names = [_fold.printable(row.path) for row in self.rows]
        groups = [(name, [n]) for n, name in enumerate(names)]
        if fold:
            groups = _groups(names, self.rows)
        lines = [_HEAD] + [
            _cells(name, [self.rows[n] for n in where]) for name, where in groups
        ]
        left_out = set()
        if all(row.multiplier in (None, 1.0) for row in self.rows):
            left_out.add(_HEAD.index("factor"))
        if not self.amount:
            left_out.add(_HEAD.index("shrink"))
        return [
            [cell for n, cell in enumerate(line) if n not in left_out] for line in lines
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data that `json.dumps` takes."""
        return {
            "mask": self.mask,
            "amount": self.amount,
            "rows": [row._asdict() for row in self.rows],
            "decays": _totals([row for row in self.rows if row.decays]),
            "does_not_decay": _totals([row for row in self.rows if not row.decays]),
            "unsure": _totals([row for row in self.rows if row.unsure]),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def _head(self) -> list[str]:
        lines = [f"mask: {self.mask}"]
        lines += [f"shrink per step: {self.amount}"] if self.amount else []
        return [_fold.printable(line) for line in lines]

    def _tail(self) -> list[str]:
        warnings = (f"warning: {text}" for text in self.warnings)
        return [_fold.printable(text) for text in (*self.notes, *warnings)]

    def __str__(self) -> str:
        return "\n".join([*self._head(), self.table(), self.summary(), *self._tail()])

    def _repr_html_(self) -> str:
        """The same for a notebook, with every name escaped."""
        table = _fold.html_table(self._lines(fold=True), right=(3,))
        head, tail = "\n".join(self._head()), "\n".join([self.summary(), *self._tail()])
        return f"<pre>{html.escape(head)}</pre>{table}<pre>{html.escape(tail)}</pre>"


def _totals(rows: Sequence[Row]) -> dict[str, int]:
    return {"tensors": len(rows), "parameters": sum(row.size for row in rows)}


_HEAD = (
    *("leaf", "shape", "dtype", "parameters", "decays"),
    *("factor", "shrink", "because"),
)


def _groups(names: list[str], rows: Sequence[Row]) -> list[tuple[str, list[int]]]:
    """Lines of the table: a folded name each, and the positions of its rows.

    Layers whose factors rise or fall steadily with their numbers make one line too.
    """
    facts = [
        (row.shape, row.dtype, row.decays, row.unsure, row.because) for row in rows
    ]
    groups = []
    for name, where in _fold.fold(list(zip(names, facts, strict=True))):
        if _is_steady([rows[n].multiplier for n in _fold.by_number(where, names)]):
            groups.append((name, where))
            continue
        parts = _fold.fold([(names[n], rows[n].multiplier) for n in where])
        groups += [(part, [where[k] for k in chosen]) for part, chosen in parts]
    return sorted(groups, key=lambda group: group[1][0])


def _is_steady(factors: list[Range | None]) -> bool:
    if len(set(factors)) == 1:
        return True
    numbers = [factor for factor in factors if isinstance(factor, float)]
    rising = sorted(numbers)
    return factors in (rising, rising[::-1])


def _cells(name: str, rows: list[Row]) -> tuple[str, ...]:
    row = rows[0]
    return (
        *(name, str(row.shape), row.dtype, f"{row.size * len(rows):,}"),
        ("yes" if row.decays else "no") + "?" * row.unsure,
        _ends([row.multiplier for row in rows]),
        _ends([row.shrink for row in rows]),
        _fold.printable(row.because),
    )


def _ends(values: list[Range | None]) -> str:
    """`0.5`, `0.1..0.5` for what lies between, or `-` for none."""
    ends: list[float] = []
    for value in values:
        if value is None:
            return "-"
        ends += value if isinstance(value, tuple) else (value,)
    return "..".join(f"{end:.4g}" for end in dict.fromkeys((min(ends), max(ends))))
