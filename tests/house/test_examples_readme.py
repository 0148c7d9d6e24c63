# SPDX-License-Identifier: Apache-2.0
"""The page on the examples: its commands can be given, and it names every file."""

import importlib
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

FOLDER = ROOT / "examples"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
TRAINERS = "lm", "vit", "finetune"


def commands() -> list[str]:
    found = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for block in found for line in block.splitlines()]
    return [re.sub(" +#.*", "", line) for line in lines]


def check(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads a command line of one of the examples, as the example itself does."""
    file, *arguments = words
    assert (FOLDER.parent / file).is_file()
    module = importlib.import_module(Path(file).stem)
    if module.__name__ in TRAINERS:
        importlib.import_module("options").parse(module.Settings, arguments, "")
    elif module.__name__ == "grokking":
        module.parse(arguments)
    elif module.__name__ == "launch":
        check(launched(module, arguments, monkeypatch), monkeypatch)
    else:
        assert not arguments


def launched(
    module: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What launch.py would start."""

    class Process:
        commands: list[list[str]] = []

        def __init__(self, command: list[str], **_: object) -> None:
            self.commands.append(command)

        def poll(self) -> int:
            return 0

        def kill(self) -> None:
            pass

    monkeypatch.setattr(module.subprocess, "Popen", Process)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    assert module.main(arguments) == 0
    program, *rest = Process.commands[-1]
    assert program == sys.executable
    return rest


@pytest.mark.parametrize("line", commands())
def test_a_command_can_be_given(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *words = shlex.split(line)
    assert program == "python"
    check(words, monkeypatch)


def test_every_command_has_beside_it_what_it_ends_with_and_its_time() -> None:
    lines = re.findall("^python .*", PAGE, re.MULTILINE)
    assert len(lines) == len(commands())
    for line in lines:
        assert re.search(r" # .*\b\d+ (s|min)$", line), line


def test_small_data_to_try_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FOLDER.parent / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(code, {})
    data, images = map(importlib.import_module, ("data", "images"))
    bpe = "runs/own/tokenizer.json"
    tokens = data.read_tokens(["runs/own/tokens"], window=128, vocabulary=512, end=0)
    said = data.read_tokens(["docs"], bpe, 128)
    assert said.decode(tokens.train_N[:9].tolist()).startswith("# Which decay")
    assert len(images.read_images("runs/own/pictures", 8).classes) == 10


def test_a_command_with_an_unknown_option_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = importlib.import_module("options").InputError
    for line in ("examples/vit.py --no-such", "examples/lm.py --registers 2"):
        with pytest.raises(error, match="unrecognized"):
            check(line.split(), monkeypatch)
        with pytest.raises(error, match="unrecognized"):
            check(["examples/launch.py", "--", *line.split()], monkeypatch)


def test_installation_asks_for_extras_that_there_are() -> None:
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    asked = re.findall(r'^pip install -e "\.\[(\w+)\]"$', PAGE, re.MULTILINE)
    assert asked and set(asked) <= set(extras)


@pytest.mark.parametrize(
    "option",
    [
        *("--data", "--held-out", "--tokenizer", "--vocabulary", "--end", "--pack"),
        *("--resume", "--bfloat16", "--remat", "--accumulate", "--clip"),
    ],
)
def test_option_for_text_of_ones_own_is_shown(option: str) -> None:
    shown = [line for line in commands() if "examples/lm.py" in line]
    assert any(option in shlex.split(line) for line in shown)


def test_every_file_is_named_and_every_link_leads_to_one() -> None:
    linked = set(re.findall(r"\[([^\]]*)\]\(\1\)", PAGE))
    assert linked == {file.name for file in FOLDER.glob("*.py")}


def test_every_program_is_run_by_a_command() -> None:
    programs = [
        file.name
        for file in FOLDER.glob("*.py")
        if '\nif __name__ == "__main__"' in file.read_text(encoding="utf-8")
    ]
    said = {word for line in commands() for word in shlex.split(line)}
    assert {f"examples/{name}" for name in programs} <= said
