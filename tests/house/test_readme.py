# SPDX-License-Identifier: Apache-2.0
"""Every block of the README runs, and its two commands are the ones that are tested.

A python block runs in a namespace of its own, unless its first line is the comment
`# continues`; then it goes on from the block before. Blocks of `>>>` lines are
doctests. Tables and output that are copied into it are those that are measured.
"""

import doctest
import inspect
import math
import pathlib
import re
import sys
import types
from typing import Any, NamedTuple

import helpers
import jax.numpy as jnp
import optax
import pytest
from helpers import ROOT
from test_coupling import ROWS

import optax_wd as wd

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
# What .ci/run looks for, each in exactly one line of the README.
TRAIN, TEST = r"^python3 -m venv .*examples/lm.py$", r"^python3 -m venv .*-m pytest"


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


def run(block: Block, names: dict[str, Any]) -> None:
    """Runs a block, as a doctest if it is one, with the line numbers of the README."""
    if not re.search("^>>> ", block.text, re.MULTILINE):
        exec(compile("\n" * (block.line - 1) + block.text, "README.md", "exec"), names)
        return
    told: list[str] = []
    parse = doctest.DocTestParser().get_doctest
    test = parse(block.text, names, "README.md", "README.md", block.line - 1)
    runner = doctest.DocTestRunner(optionflags=0)
    result = runner.run(test, out=told.append, clear_globs=False)
    assert result.failed == 0, "".join(told)
    names.update(test.globs)


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of a new module, which classes made there can be found in."""
    made = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    return vars(made)


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


PYTHON = chains(blocks(TEXT, "python"))


def shown_behind(number: int) -> list[Block]:
    """The blocks of text between a chain of python blocks and the next one."""
    start = PYTHON[number][-1].line
    end = [*(chain[0].line for chain in PYTHON[number + 1 :]), math.inf][0]
    return [block for block in blocks(TEXT, "text") if start < block.line < end]


@pytest.mark.parametrize(
    "number", range(len(PYTHON)), ids=[f"line {c[0].line}" for c in PYTHON]
)
def test_every_python_block_runs_and_prints_what_is_shown_behind_it(
    number: int,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = module("readme_block", monkeypatch)
    for block in PYTHON[number]:
        run(block, names)
    assert names["wd"] is wd
    printed = capsys.readouterr().out
    for shown in shown_behind(number):
        table = without(("dtype", "because"), printed)
        assert [line for line in lines_of(shown.text) if line not in table] == []


def test_the_fine_tuning_recipe_shows_a_part_of_what_it_prints() -> None:
    shown = {n: found for n in range(len(PYTHON)) if (found := shown_behind(n))}
    ((number, (text,)), (_, (other,))) = shown.items()
    assert "changed dense/kernel: kind decoupled -> cautious" in other.text
    heads = [line for line in TEXT.split("\n")[: text.line] if line.startswith("## ")]
    assert heads[-1] == "## A fine-tuning recipe, end to end"
    assert "recipes.mae_finetune()" in PYTHON[number][-1].text
    assert len(lines_of(text.text)) > 3 and lines_of(text.text)[0][0] == "leaf"


def test_there_are_python_blocks_and_they_use_the_package() -> None:
    assert len(PYTHON) >= 1
    assert any("import optax_wd as wd" in chain[0].text for chain in PYTHON)


def test_every_name_of_the_package_that_is_mentioned_exists() -> None:
    mentioned = set(re.findall(r"\bwd\.([A-Za-z_]\w*)", TEXT))
    assert "adamw" in mentioned and len(mentioned) > 5
    assert [name for name in mentioned if not hasattr(wd, name)] == []


def test_files_that_are_linked_exist() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", TEXT)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_each_of_the_two_commands_is_the_last_line_of_a_bash_block() -> None:
    last = [block.text.strip().split("\n")[-1] for block in blocks(TEXT, "bash")]
    train, test = (re.findall(p, TEXT, re.MULTILINE) for p in (TRAIN, TEST))
    assert len(train) == len(test) == 1
    assert last[0].endswith("examples/lm.py") and re.match(TRAIN, last[0])
    assert [line for line in last[1:] if re.match(TEST, line)]


def test_the_gate_runs_these_two_commands() -> None:
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    asked = re.findall(r"command_with '([^']+)'", gate)
    lines = [
        line
        for pattern in asked
        for line in TEXT.split("\n")
        if re.search(f"^python3 -m venv .*{pattern}", line)
    ]
    assert len(asked) == len(lines) == 2
    assert re.match(TRAIN, lines[0]) and re.match(TEST, lines[1])


# ----------------------------------------------------- tables say what is measured


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


def test_the_table_of_recipes_is_the_one_that_is_measured() -> None:
    measured = (ROOT / "benchmarks" / "recipes.md").read_text(encoding="utf-8")
    rows = rows_of("| recipe |", measured)
    assert len(rows) > 20
    for shown, row in zip(rows_of("| recipe |", TEXT), rows, strict=True):
        assert shown == row


COUPLING = columns_of("| place |", TEXT)


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_places_has_each_row_that_is_tested(row: str) -> None:
    name = {"no learning rate": "without learning rate"}.get(row, row)
    known = [line["known as"] for line in COUPLING]
    assert [bool(re.match(rf"{name}\b", text)) for text in known].count(True) == 1


# What stands between the decay of a row and the parameters.
BEHIND = {"between": 0.01, "after": 1.0, "after, bare": -1.0}
NUMBERS = {"lr": BEHIND["between"], "peak": 0.02, "wd": 0.1, "momentum": 0.9}


def rate_of(row: dict[str, str]) -> float:
    """What the decay of a row, written as it stands there, adds to an update of 0."""
    code = row["decay"].removeprefix("`").removesuffix("`")
    params = {"kernel": jnp.ones((1, 1))}
    made = eval(code, {**vars(wd), **NUMBERS})
    updates = helpers.once(made, {"kernel": jnp.zeros((1, 1))}, params)
    return float(updates["kernel"][0, 0])


@pytest.mark.parametrize("row", COUPLING, ids=[row["known as"] for row in COUPLING])
def test_each_decay_in_the_table_of_places_is_made_as_it_is_written(
    row: dict[str, str],
) -> None:
    assert rate_of(row) > 0.0


SHRINKS = [row for row in COUPLING if row["shrink per step"].startswith("`")]


@pytest.mark.parametrize("row", SHRINKS, ids=[row["known as"] for row in SHRINKS])
def test_each_shrink_in_the_table_of_places_follows_from_decay_and_place(
    row: dict[str, str],
) -> None:
    place = re.match("between|after, bare|after", row["place"])
    assert place is not None
    shrink = eval(row["shrink per step"].split("`")[1], dict(NUMBERS))
    assert rate_of(row) * BEHIND[place[0]] == pytest.approx(shrink, rel=1e-6)


def test_of_eight_places_seven_have_a_shrink() -> None:
    assert (len(COUPLING), len(SHRINKS)) == (8, 7)


# ------------------------------------------------------- which decay should I use?

CHOOSING = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")


def ready_chains() -> list[str]:
    """The optimizers of the package: what takes a learning rate first."""
    functions = {n: f for n, f in vars(wd).items() if inspect.isfunction(f)}
    return [
        name
        for name, function in functions.items()
        if [*inspect.signature(function).parameters][:1] == ["learning_rate"]
    ]


METHODS = [row["name"].strip("`") for row in columns_of("| name |", TEXT)]


@pytest.mark.parametrize("name", [*METHODS, *ready_chains(), "alpha_decay_factors"])
def test_every_method_and_ready_chain_is_in_the_page_on_choosing(name: str) -> None:
    assert re.search(rf"`(wd\.)?{name}\b", CHOOSING)


def test_methods_and_chains_are_found() -> None:
    assert {"masked_decay", "max_norms", "decay_along"} < set(METHODS)
    assert {"adamw", "lion", "adamc", "novograd", "muon"} < set(ready_chains())


def test_every_name_on_the_page_on_choosing_exists() -> None:
    mentioned = re.findall(r"\bwd\.(?:conversions\.)?([A-Za-z_]\w*)", CHOOSING)
    spelled = re.findall(r"`([a-z0-9_]+)[`(]", CHOOSING)
    known = {*vars(wd), *vars(wd.conversions), *vars(wd.controls)}
    known |= {"grad", "multiplier", "chain"}
    assert [name for name in (*mentioned, *spelled) if name not in known] == []
    assert "adamw" in mentioned and "keep_norms" in spelled


def test_files_that_the_page_on_choosing_links_exist() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", CHOOSING)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


@pytest.mark.parametrize("name", ["anchored_weight_decay", "muon", "chain"])
def test_every_call_on_the_page_on_choosing_runs(name: str) -> None:
    text = " ".join(CHOOSING.split())
    (code,) = re.findall(rf"`((?:wd\.)?{name}\([^`]+\))`", text)
    params = {"kernel": jnp.ones((3, 3)), "head": {"kernel": jnp.ones((3, 3))}}
    names = {**vars(wd), "wd": wd, "chain": optax.chain, "adam": optax.adam}
    tx = eval(code, {**names, "lr": 0.01, "mask": wd.standard})
    updates = helpers.once(tx, params, params, grad=params)
    assert bool(jnp.all(jnp.isfinite(updates["kernel"])))


# ----------------------------------------------------------- that the tests can fail

SAMPLE = """# Title

```python
x = 1
```

```python
# continues
y = x + 1
```

````python
x = "```"
````

```bash
one
two
```

```python
>>> 1 + 1
3
```
"""


def test_blocks_are_found_with_their_lines() -> None:
    found = blocks(SAMPLE, "python")
    assert [(b.line, b.text.split("\n")[0]) for b in found] == [
        (4, "x = 1"),
        (8, "# continues"),
        (13, 'x = "```"'),
        (22, ">>> 1 + 1"),
    ]
    assert [len(chain) for chain in chains(found)] == [2, 1, 1]
    assert blocks(SAMPLE, "bash")[0].text == "one\ntwo\n"
    with pytest.raises(AssertionError, match="is not closed"):
        blocks("```python\nx = 1\n", "python")


def test_blocks_that_go_on_share_their_names() -> None:
    names: dict[str, Any] = {}
    for block in chains(blocks(SAMPLE, "python"))[0]:
        run(block, names)
    assert names["y"] == 2
    with pytest.raises(NameError, match="'x' is not defined"):
        run(blocks(SAMPLE, "python")[1], {})


def test_wrong_output_and_errors_are_found() -> None:
    with pytest.raises(AssertionError, match=r"Expected:\s+3\s+Got:\s+2"):
        run(blocks(SAMPLE, "python")[3], {})
    with pytest.raises(ZeroDivisionError) as caught:
        run(Block("python", "x = 1\n1 / 0\n", 41), {})
    assert caught.traceback[-1].lineno == 41  # counted from 0: line 42 of the README
    names: dict[str, Any] = {}
    run(Block("python", ">>> a = 1\n>>> a\n1\n", 1), names)
    assert names["a"] == 1


TABLES = """
| a | b |
| --- | --- |
| 1 | `x` |
| 2 | y |

| c |
| --- |
"""


def test_tables_are_found_by_their_first_line() -> None:
    assert rows_of("| a |", TABLES)[2:] == ["| 1 | `x` |", "| 2 | y |"]
    assert columns_of("| a |", TABLES) == [{"a": "1", "b": "`x`"}, {"a": "2", "b": "y"}]
    assert columns_of("| c |", TABLES) == []
    for header, found in (("| d |", 0), ("| --- |", 2)):
        with pytest.raises(AssertionError, match=f"^{found} tables start with "):
            rows_of(header, TABLES)


def test_columns_are_left_out_of_printed_tables() -> None:
    table = "mask: a  b\nleaf  dtype   shape\na     int32   (2, 3)\nin all: 1"
    assert without(("dtype",), table) == [
        ["leaf", "shape"],
        ["a", "(2, 3)"],
        ["in all: 1"],
    ]


def test_every_method_has_a_row_with_its_rule_shrink_use_and_source() -> None:
    lines = [line for line in TEXT.split("\n") if line.startswith("| `")]
    rows = {line.split("`")[1]: line.strip("| ").split(" | ") for line in lines}
    ends = "_weight_decay", "_norms"
    methods = {name for name in dir(wd) if name.endswith(ends) and name[0] != "_"}
    assert len(methods) > 15
    for name in sorted(methods | {"masked_decay"}):
        assert len(rows[name]) == 5, name
        assert all(cell.strip() for cell in rows[name]), name
