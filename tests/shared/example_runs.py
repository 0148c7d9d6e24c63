# SPDX-License-Identifier: Apache-2.0
"""Runs of the language model, small and compiled once, and what they leave behind."""

import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from matplotlib.figure import Figure

import optax_wd as wd

lm = importlib.import_module("lm")
options = importlib.import_module("options")

ROOT = Path(__file__).parents[2]
TINY = "--width 8 --heads 2 --layers 2 --window 16 --batch 4 --sample 2".split()
PNG = b"\x89PNG\r\n\x1a\n"
TEXT = "".join(f"{n} green bottles, {n % 7} fall;\n" for n in range(300))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what XLA compiles, for this process and those that it starts."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def quick(compiled: Path) -> Iterator[dict[str, Any]]:
    """Compiles with little effort, and once; yields variables for other processes."""
    usual = dict(
        jax_compilation_cache_dir=None,
        jax_persistent_cache_min_compile_time_secs=1.0,
        jax_disable_most_optimizations=False,
    )
    settings = dict(zip(usual, (str(compiled), 0.0, True), strict=True))
    set_all(settings)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    said = {name.upper(): str(value) for name, value in settings.items()}
    yield os.environ | said | {"PYTHONPATH": path}
    set_all(usual)


def set_all(settings: dict[str, Any]) -> None:
    """Takes other settings of JAX, and a cache for them."""
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def plain_pictures() -> Iterator[None]:
    """Pictures without panels, in a module that imports this: drawing takes long."""
    with pytest.MonkeyPatch.context() as patch:
        empty = SimpleNamespace(figure=Figure())
        patch.setattr(wd, "plot", lambda *_: empty)
        patch.setattr(wd, "plot_metrics", lambda *_: empty.figure)
        yield


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "rhyme.txt"
    path.write_text(TEXT)
    return path


def words(*arguments: object) -> list[str]:
    """One command line of strings with spaces, paths and numbers."""
    return [word for argument in arguments for word in str(argument).split()]


def command(*arguments: object, program: str = "lm.py") -> list[str]:
    """Another process that takes warnings for errors."""
    path = str(ROOT / "examples" / program)
    return [sys.executable, "-W", "error", path, *words(*arguments)]


def train(*arguments: object) -> str:
    """A run in this process; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        lm.main(words(*TINY, *arguments))
    return printed.getvalue()


def ending(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str]:
    """Status and the one line of a run that goes wrong."""
    with pytest.raises(SystemExit) as stopped:
        options.run("lm.py", lambda: lm.main([str(x) for x in arguments]))
    said = capsys.readouterr().err
    assert said.startswith("lm.py: error: ") and said.count("\n") == 1, said
    return stopped.value.code, said


def finished(env: dict[str, str], line: Sequence[str], **more: Any) -> tuple[str, str]:
    """What another process said that has to end well."""
    done = subprocess.run(
        line, env=env, capture_output=True, text=True, timeout=500, **more
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(folder) if "step" in line]


def curve(folder: Path) -> list[dict[str, Any]]:
    """What was logged, without the time it took."""
    time = "seconds", "examples_per_second"
    return [{k: x[k] for k in sorted(x) if k not in time} for x in logged(folder)]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in logged(folder)]


def steps_kept(folder: Path) -> list[int]:
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def stopped_copy(folder: Path, to: Path, behind: int) -> Path:
    """A run as it was when the checkpoint of that step was its last."""
    shutil.copytree(folder, to)
    for step in steps_kept(to):
        if step > behind:
            shutil.rmtree(to / "checkpoints" / str(step))
    return to
