# SPDX-License-Identifier: Apache-2.0
"""Every block of README and pages runs, and its two commands are those that are tested.

A python block runs in a namespace of its own, unless its first line is the comment
`# continues`; then it goes on from the block before. Blocks of `>>>` lines are
doctests. Tables and output that are copied into a page are those that are measured.
"""

import inspect
import math
import pathlib
import re
import sys
import types
from typing import Any

import helpers
import jax.numpy as jnp
import optax
import pytest
from helpers import ROOT
from pages import (
    PAGES,
    Block,
    blocks,
    chains,
    columns_of,
    lines_of,
    rows_of,
    run,
    without,
)
from test_coupling import ROWS

import optax_wd as wd

TEXT = PAGES["README.md"]
# What .ci/run looks for, each in exactly one line of the README.
TRAIN, TEST = r"^python3 -m venv .*examples/lm.py$", r"^python3 -m venv .*-m pytest"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of a new module, which classes made there can be found in."""
    made = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    return vars(made)


# Their blocks have a test of their own, which gives them what they leave out.
ELSEWHERE = {"docs/preconditioners.md", "docs/muon.md"}
PYTHON = {
    page: chains(blocks(text, "python"))
    for page, text in PAGES.items()
    if page not in ELSEWHERE
}
CASES = [(page, n) for page, found in PYTHON.items() for n in range(len(found))]


def shown_behind(page: str, number: int) -> list[Block]:
    """The blocks of text between a chain of python blocks and the next one."""
    found = PYTHON[page]
    start = found[number][-1].line
    end = [*(chain[0].line for chain in found[number + 1 :]), math.inf][0]
    return [block for block in blocks(PAGES[page], "text") if start < block.line < end]


@pytest.mark.parametrize(
    ("page", "number"), CASES, ids=[f"{p}-{PYTHON[p][n][0].line}" for p, n in CASES]
)
def test_every_python_block_runs_and_prints_what_is_shown_behind_it(
    page: str,
    number: int,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = module("page_block", monkeypatch)
    for block in PYTHON[page][number]:
        run(block, names, page)
    assert names["wd"] is wd
    printed = capsys.readouterr().out
    for shown in shown_behind(page, number):
        table = without(("dtype", "because"), printed)
        assert [line for line in lines_of(shown.text) if line not in table] == []


def test_the_readme_is_one_screen() -> None:
    assert len(TEXT.split("\n")) <= 250


def test_the_pages_show_parts_of_what_they_print() -> None:
    shown = {case: found for case in CASES if (found := shown_behind(*case))}
    by_page = {page: texts for (page, _), texts in shown.items()}
    (changes,) = by_page["docs/instruments.md"]
    assert "changed dense/kernel: kind decoupled -> cautious" in changes.text
    (table,) = by_page["docs/fine_tuning.md"]
    assert PAGES["docs/fine_tuning.md"].startswith("# A fine-tuning recipe, end to end")
    assert "recipes.mae_finetune()" in PYTHON["docs/fine_tuning.md"][-1][-1].text
    assert len(lines_of(table.text)) > 3 and lines_of(table.text)[0][0] == "leaf"
    names = "instruments fine_tuning zoo".split()
    assert set(by_page) == {"README.md", *(f"docs/{name}.md" for name in names)}


def test_there_are_python_blocks_and_they_use_the_package() -> None:
    assert len(CASES) == 20
    first = [chain[0].text for chain in PYTHON["README.md"]]
    assert len(first) == 4 and all("import optax_wd as wd" in text for text in first)


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_the_package_that_is_mentioned_exists(page: str) -> None:
    mentioned = re.findall(r"\bwd\.(?:controls\.)?([A-Za-z_]\w*)", PAGES[page])
    known = {*vars(wd), *vars(wd.controls)}
    assert [name for name in mentioned if name not in known] == []


def test_names_of_the_package_are_mentioned() -> None:
    mentioned = set(re.findall(r"\bwd\.([A-Za-z_]\w*)", TEXT))
    assert "adamw" in mentioned and len(mentioned) > 5


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_linked_exist(page: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[)#]", PAGES[page])
    folder = (ROOT / page).parent
    assert [link for link in links if not (folder / link).exists()] == []
    assert links or page == "docs/zoo.md"


def anchors(text: str) -> set[str]:
    """What GitHub lets a link point to: the headings, small and with hyphens."""
    headings = re.findall(r"^#+ (.*)", re.sub("(?ms)^```.*?^```", "", text), re.M)
    small = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in small}


@pytest.mark.parametrize("page", PAGES)
def test_headings_that_are_linked_exist(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", PAGES[page])
    for file, heading in links:
        target = (ROOT / page).parent / file if file else ROOT / page
        assert heading in anchors(target.read_text("utf-8")), f"{file}#{heading}"


def test_anchors_are_the_headings_outside_of_blocks() -> None:
    text = "# A `b_c`: d\n\n```python\n# no\n```\n\n## What's it?\n"
    assert anchors(text) == {"a-b_c-d", "whats-it"}


def test_the_readme_leads_to_every_page() -> None:
    links = set(re.findall(r"\]\((docs/\w+\.md)\)", TEXT))
    assert links == set(PAGES) - {"README.md"}


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_private_path(page: str) -> None:
    assert re.findall(r"optax_wd[./]_\w+", PAGES[page]) == []


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


def test_the_table_of_recipes_is_the_one_that_is_measured() -> None:
    measured = (ROOT / "benchmarks" / "recipes.md").read_text(encoding="utf-8")
    rows = rows_of("| recipe |", measured)
    assert len(rows) > 20
    page = rows_of("| recipe |", PAGES["docs/recipes.md"])
    for shown, row in zip(page, rows, strict=True):
        assert shown == row


COUPLING = columns_of("| place |", PAGES["docs/placement.md"])


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

CHOOSING = PAGES["docs/choosing.md"]


def ready_chains() -> list[str]:
    """The optimizers of the package: what takes a learning rate first."""
    functions = {n: f for n, f in vars(wd).items() if inspect.isfunction(f)}
    return [
        name
        for name, function in functions.items()
        if [*inspect.signature(function).parameters][:1] == ["learning_rate"]
    ]


TABLE = columns_of("| name |", PAGES["docs/methods.md"])
METHODS = [row["name"].strip("`") for row in TABLE]


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
    text = PAGES["docs/methods.md"]
    lines = [line for line in text.split("\n") if line.startswith("| `")]
    rows = {line.split("`")[1]: line.strip("| ").split(" | ") for line in lines}
    ends = "_weight_decay", "_norms"
    methods = {name for name in dir(wd) if name.endswith(ends) and name[0] != "_"}
    assert len(methods) > 15
    for name in sorted(methods | {"masked_decay"}):
        assert len(rows[name]) == 5, name
        assert all(cell.strip() for cell in rows[name]), name
