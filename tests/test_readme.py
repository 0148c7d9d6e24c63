# SPDX-License-Identifier: Apache-2.0
"""Every block of the README runs, and its two commands are the ones that are tested.

A python block runs in a namespace of its own, unless its first line is the comment
`# continues`; then it goes on from the block before. Blocks of `>>>` lines are
doctests.
"""

import doctest
import pathlib
import re
import sys
import types
from typing import Any, NamedTuple

import pytest

import optax_wd as wd

ROOT = pathlib.Path(__file__).parent.parent
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


PYTHON = chains(blocks(TEXT, "python"))


@pytest.mark.parametrize("chain", PYTHON, ids=[f"line {c[0].line}" for c in PYTHON])
def test_every_python_block_runs(
    chain: list[Block], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = module("readme_block", monkeypatch)
    for block in chain:
        run(block, names)
    assert names["wd"] is wd


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
