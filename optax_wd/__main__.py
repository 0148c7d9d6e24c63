# SPDX-License-Identifier: Apache-2.0
"""The command line: which arrays of a checkpoint decay, and what two of them differ in.

    python -m optax_wd describe CHECKPOINT [--rule EXPR | --recipe NAME]
    python -m optax_wd diff BEFORE AFTER [--rule EXPR | --recipe NAME]

Reads names, shapes and dtypes, never weights, and runs nothing that a file contains.
Of a whole train state the parameters are shown, and what is left out is named; `--all`
shows everything, `--only PATH` one branch. `describe --strict` exits with 1 if there is
a warning; `diff` has no warnings, and exits with 1 if anything differs.
"""

import argparse
import dataclasses
import html
import inspect
import json
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import optax_wd as wd
from optax_wd._see.files import files as _files
from optax_wd._see.files import states as _states
from optax_wd._tree import fold as _fold

_RECIPES = [name for name, _ in inspect.getmembers(wd.recipes, inspect.isfunction)]
_CHECKPOINT = (
    "safetensors or Flax msgpack, or the folder or index of their shards; NumPy .npz; "
    "or a folder of Orbax"
)
_DOCTYPE = "<!doctype html>"
_STYLE = "body { font-family: monospace } td, th { padding: 0 1em 0 0 }"
_GREEN, _YELLOW, _PLAIN = "\033[32m", "\033[33m", "\033[0m"


class _Parser(argparse.ArgumentParser):
    """Wrong usage is told in one line, as all other errors are."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


class _RuleError(ValueError):
    """A rule that does not parse, in several lines that point at the place."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      arguments: those after the name of the program; None for those of the process.

    Returns:
      The exit status: 0; 1 if `diff` finds a difference, or `describe --strict` has a
      warning; 2 after an error, which is one line on the standard error, or three if a
      rule does not parse.
    """
    try:
        if sys.stdout is None:
            raise OSError("the standard output is closed")
        given = _parser().parse_args(arguments)
        return given.run(given)
    except _RuleError as error:
        lines = str(error).split("\n")
    except OSError as error:
        where = f"{os.fspath(error.filename)}: " if error.filename else ""
        lines = [f"{where}{error.strerror or error}"]
    except (TypeError, ValueError) as error:
        lines = [str(error)]
    _complain(*lines)
    return 2


def _complain(*lines: str) -> None:
    told = "\n".join(map(_fold.printable, lines))
    if sys.stderr is not None:
        sys.stderr.write(f"optax_wd: {told}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m optax_wd",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"optax_wd {wd.__version__}"
    )
    commands = parser.add_subparsers(required=True, metavar="describe | diff")
    describe = commands.add_parser("describe", help="show which arrays decay, and why")
    describe.set_defaults(run=_describe)
    describe.add_argument("checkpoint", help=_CHECKPOINT)
    _add_rule(describe)
    _add_part(describe)
    describe.add_argument(
        "--strict", action="store_true", help="exit with 1 if there is a warning"
    )
    form = describe.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print it as JSON")
    form.add_argument(
        "--html",
        metavar="FILE",
        help="write it to a page, which replaces another page but no other file",
    )
    diff = commands.add_parser(
        "diff", help="show what differs between two; exit with 1 if anything does"
    )
    diff.set_defaults(run=_diff)
    diff.add_argument("before", help=_CHECKPOINT)
    diff.add_argument("after", help="the same")
    _add_rule(diff)
    _add_part(diff)
    diff.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def _add_rule(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--rule",
        default="standard",
        metavar="EXPR",
        help="what decays, as in Python: \"min_ndim(2) & ~named('bias')\"",
    )
    group.add_argument(
        "--recipe", choices=_RECIPES, metavar="NAME", help=", ".join(_RECIPES)
    )


def _add_part(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--only", metavar="PATH", help="the arrays below this path")
    group.add_argument(
        "--all", action="store_true", help="also what is left out of a train state"
    )


def _rule(given: argparse.Namespace) -> wd.Rule:
    if given.recipe is None:
        try:
            return wd.parse_rule(given.rule)
        except ValueError as error:
            raise _RuleError(str(error)) from None
    recipe = getattr(wd.recipes, given.recipe)
    needed = inspect.signature(recipe).parameters.values()
    if any(p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in needed):
        raise ValueError(
            f"the recipe {given.recipe} takes arguments; write "
            f'--rule "recipes.{given.recipe}(...)"'
        )
    rule = recipe()
    if not isinstance(rule, wd.Rule):
        raise ValueError(
            f"the recipe {given.recipe} gives factors, not what decays; "
            "use it in Python, as a multiplier"
        )
    return rule


def _description(given: argparse.Namespace, checkpoint: str) -> wd.Description:
    """What is asked for of the arrays that are meant; its warnings name the others."""
    rule, found = _rule(given), _files.read(checkpoint)
    left: dict[str, Any] = {}
    if given.only is not None:
        found = _states.subtree(found, given.only)
    elif not given.all:
        found, left = _states.parameters(found)
    try:
        described = wd.describe(rule, found)
    except ValueError as error:
        if "mask_of" not in str(error):
            raise
        raise ValueError(_by_names(rule, given)) from None
    notes = (_states.told(left),) if left else ()
    return dataclasses.replace(described, notes=notes)


def _by_names(rule: wd.Rule, given: argparse.Namespace) -> str:
    """What to write where a rule asks the model, which no file has."""
    asked = re.search(r"(owned_by|declared)\((.*?)\)", repr(rule))
    kinds = re.findall(r"\w+", asked[2]) if asked and asked[1] == "owned_by" else []
    if len(kinds) > 2 and all("Norm" in kind for kind in kinds):
        kinds = ["*Norm"]  # rather than a line for each spelling
    globs = ", ".join(f"'{kind}_*'" for kind in kinds)
    names = f"contains({globs})" if kinds else "named('scale')"
    if given.recipe is not None:
        names = f"recipes.{given.recipe}({names})"
    return (
        f"{given.recipe or rule!r} asks for modules or their metadata, which a file "
        f'does not have; go by names: --rule "{names}", with those of this file'
    )


def _describe(given: argparse.Namespace) -> int:
    found = _description(given, given.checkpoint)
    if given.html is not None:
        _write_page(pathlib.Path(given.html), given.checkpoint, found)
    else:
        _write(_json(found) if given.json else _coloured(str(found)))
    if not (given.strict and found.warnings):
        return 0
    number = len(found.warnings)
    _complain(f"{number} warning{'s' if number > 1 else ''}, and --strict was given")
    return 1


def _diff(given: argparse.Namespace) -> int:
    files = given.before, given.after
    before, after = (_description(given, file) for file in files)
    found = wd.diff(before, after)
    pairs = zip(files, (before.notes, after.notes), strict=True)
    notes = [f"{file}: {note}" for file, told in pairs for note in told]
    text = "\n".join([str(found), *map(_fold.printable, notes)])
    _write(_json(found, **({"notes": notes} if notes else {})) if given.json else text)
    return 1 if found else 0


def _json(report: Any, **more: Any) -> str:
    # JSON in ASCII escapes every control character but this one.
    text = json.dumps({**report.to_dict(), **more}, indent=1)
    return text.replace("\x7f", "\\u007f")


def _coloured(text: str) -> str:
    """The text, with colours if a terminal shows it and nobody minds."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    text = re.sub(r"(?<=  )(yes\??)(?=  )", rf"{_GREEN}\1{_PLAIN}", text)
    return re.sub(r"(?m)^warning:", f"{_YELLOW}warning:{_PLAIN}", text)


def _write(text: str) -> None:
    """To the standard output, in whatever encoding it has; a closed pipe is quiet."""
    encoding = sys.stdout.encoding
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as error:
        # Python would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _write_page(file: pathlib.Path, title: str, found: wd.Description) -> None:
    if file.is_file() and file.stat().st_size:
        with open(file, "rb") as old:
            if old.read(len(_DOCTYPE)) != _DOCTYPE.encode():
                raise ValueError(
                    f"{file}: the file is there and is no page; name another"
                )
    title = html.escape(_fold.printable(title))
    page = (
        f'{_DOCTYPE}\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n{found._repr_html_()}\n"
    )
    file.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
