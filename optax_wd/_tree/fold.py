# SPDX-License-Identifier: Apache-2.0
"""Tables: repeated layers folded into one line, as plain text and as HTML."""

import html
import re
from collections.abc import Hashable, Sequence

_NUMBER = re.compile(r"(\d+)")


def fold(rows: Sequence[tuple[str, Hashable]]) -> list[tuple[str, list[int]]]:
    """Group names that differ in numbers only and have equal facts.

    Args:
      rows: pairs of a name and all that is told about it.

    Returns:
      For each group its folded name and the positions of its rows, in the order in
      which the groups first occur. Only a full grid of numbers is folded, so each
      folded name stands for exactly the names it seems to stand for.
    """
    groups: dict[Hashable, list[tuple[int, tuple[str, ...]]]] = {}
    for n, (name, facts) in enumerate(rows):
        parts = tuple(_NUMBER.split(name))  # texts at even positions, numbers at odd
        groups.setdefault((parts[::2], facts), []).append((n, parts))
    folded = [entry for group in groups.values() for entry in _fold_group(group)]
    return sorted(folded, key=lambda entry: entry[1][0])


def by_number(where: list[int], names: Sequence[str]) -> list[int]:
    """Positions in the order of the numbers in their names: 2 before 10."""

    def key(n: int) -> list[int]:
        return [int(number) for number in _NUMBER.findall(names[n])]

    return sorted(where, key=key)


def _fold_group(
    group: list[tuple[int, tuple[str, ...]]],
) -> list[tuple[str, list[int]]]:
    first = group[0][1]
    columns = {c: {parts[c] for _, parts in group} for c in range(1, len(first), 2)}
    varying = [c for c, numbers in columns.items() if len(numbers) > 1]
    grid = 1
    for c in varying:
        grid *= len(columns[c])
    if not varying:  # the very same name
        return [("".join(parts), [n]) for n, parts in group]
    if grid == len(group) == len({parts for _, parts in group}):
        parts = list(first)
        for c in varying:
            parts[c] = _braces(columns[c])
        return [("".join(parts), [n for n, _ in group])]
    subgroups: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for n, parts in group:
        subgroups.setdefault(parts[varying[0]], []).append((n, parts))
    return [entry for sub in subgroups.values() for entry in _fold_group(sub)]


def _braces(numbers: set[str]) -> str:
    """`{0..11}` for consecutive numbers, `{0,2,5}` for others."""
    ordered = sorted(numbers, key=lambda text: (int(text), text))
    first, last = int(ordered[0]), int(ordered[-1])
    if ordered == [str(n) for n in range(first, last + 1)] and len(ordered) > 2:
        return f"{{{first}..{last}}}"
    return f"{{{','.join(ordered)}}}"


def printable(text: str) -> str:
    """The text with control characters escaped, so that a terminal obeys none."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def align(lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lines of cells as a plain table: columns padded, those in `right` to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def pad(c: int, cell: str) -> str:
        return cell.rjust(widths[c]) if c in right else cell.ljust(widths[c])

    padded = ("  ".join(pad(c, cell) for c, cell in enumerate(line)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def html_table(lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lines of cells as an HTML table, the first as its head, every cell escaped."""
    rows = []
    for n, line in enumerate(lines):
        sides = ("right" if c in right else "left" for c in range(len(line)))
        name = "td" if n else "th"
        cells = (
            f'<{name} style="text-align: {side}">{html.escape(cell)}</{name}>'
            for cell, side in zip(line, sides, strict=True)
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join(["<table>", *rows, "</table>"])
