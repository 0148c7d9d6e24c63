# SPDX-License-Identifier: Apache-2.0
"""The README and the pages under `docs/`: their blocks of code and their tables."""

import doctest
import re
from typing import Any, NamedTuple

from helpers import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
"""The text of each page, by its path."""


class Block(NamedTuple):
    """One fenced block: its language, its text, the line of its first character."""

    language: str
    text: str
    line: int


def blocks(text: str, language: str) -> list[Block]:
    """All fenced blocks of a language, in order."""
    found, opened = [], None
    for number, line in enumerate(text.split("\n"), start=1):
        fence = re.match(r"(`{3,})\s*(\w*)", line)
        if opened is None and fence:
            opened = fence[1], fence[2], number + 1, []
        elif opened is not None and line.strip() == opened[0]:
            found.append(Block(opened[1], "\n".join(opened[3]) + "\n", opened[2]))
            opened = None
        elif opened is not None:
            opened[3].append(line)
    assert opened is None, f"the block of line {opened} is not closed"
    return [block for block in found if block.language == language]


def chains(found: list[Block]) -> list[list[Block]]:
    """Blocks that go on from one another, together."""
    together: list[list[Block]] = []
    for block in found:
        if block.text.startswith("# continues") and together:
            together[-1].append(block)
        else:
            together.append([block])
    return together


def run(block: Block, names: dict[str, Any], page: str = "README.md") -> None:
    """Runs a block, as a doctest if it is one, with the line numbers of its page."""
    if not re.search("^>>> ", block.text, re.MULTILINE):
        exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)
        return
    told: list[str] = []
    parse = doctest.DocTestParser().get_doctest
    test = parse(block.text, names, page, page, block.line - 1)
    runner = doctest.DocTestRunner(optionflags=0)
    result = runner.run(test, out=told.append, clear_globs=False)
    assert result.failed == 0, "".join(told)
    names.update(test.globs)


def lines_of(table: str) -> list[list[str]]:
    """The lines of a printed table as cells, which two or more spaces set apart."""
    return [re.split(" {2,}", line.strip()) for line in table.strip().split("\n")]


def without(columns: tuple[str, ...], table: str) -> list[list[str]]:
    """All lines; of a table, whose head starts with `leaf`, without these columns."""
    lines = lines_of(table)
    first = next((n for n, line in enumerate(lines) if line[0] == "leaf"), None)
    if first is None:
        return lines
    left_out = [lines[first].index(column) for column in columns]
    return [
        [cell for n, cell in enumerate(line) if n not in left_out]
        for line in lines[first:]
    ]


def rows_of(header: str, text: str) -> list[str]:
    """The lines of the table in Markdown whose first line starts with `header`."""
    lines = text.split("\n")
    starts = [n for n, line in enumerate(lines) if line.startswith(header)]
    assert len(starts) == 1, f"{len(starts)} tables start with {header!r}"
    rest = lines[starts[0] :]
    ends = [n for n, line in enumerate(rest) if not line.startswith("|")]
    return rest[: ends[0]]


def columns_of(header: str, text: str) -> list[dict[str, str]]:
    """The rows of that table, by the names of its columns."""
    split = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in rows_of(header, text)
    ]
    return [dict(zip(split[0], row, strict=True)) for row in split[2:]]
