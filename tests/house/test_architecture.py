# SPDX-License-Identifier: Apache-2.0
"""The package keeps its own rules: layers, files, limits, documentation.

What is checked is source text, so that the checks themselves can be tested on bad text.
"""

import ast
import doctest
import importlib.metadata
import inspect
import pathlib
import pkgutil
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

import optax_wd as wd

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "optax_wd"
SPDX = "# SPDX-License-Identifier: Apache-2.0"

# Each folder, and each public module, with what it may import besides its own folder.
WHERE, AMOUNT = {"_tree", "_where"}, {"_tree", "_where", "_amount"}
HOUSE: dict[str, set[str]] = {
    "_tree": set(),
    "_where": {"_tree"},
    "_amount": WHERE,
    "recipes": WHERE,
    "roles": {"_where"},
    "conversions": {"_amount"},
    "_how": AMOUNT,
    "_how.methods": AMOUNT | {"_how"},
    "_how.chains": AMOUNT | {"_how", "_how.methods"},
    "_how.matrix": AMOUNT | {"_how", "_how.chains"},
    "controls": {"_how.methods"},
    "_see": AMOUNT,
    "_see.audit": {"_tree"},  # the auditor does not know the audited
    "_see.files": {"_tree"},
    "_see.monitor": {"_tree"},
    "_text": WHERE | {"recipes", "roles"},
    "__main__": {"__init__", "_tree", "_see.files"},
}
SURFACE = set(HOUSE) - {"__main__"}  # what `__init__` shows
STRANGERS = {"_how.methods"}  # files here do not know one another
OUTSIDE = {"jax", "optax", "numpy"}  # numpy is what jax itself depends on
OPTIONAL = {"flax", "matplotlib", "orbax"}  # inside functions that need them
MAX_LINES, MAX_BODY, MAX_PARAMETERS = 300, 40, 6
MANY_PARAMETERS = {"_how.chains", "_how.matrix"}  # they have the arguments of Optax's
MANY_PARAMETERS |= {"_see.audit.assertion"}  # what to assert, and what `audit` takes


def read(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8")


def sources() -> dict[str, str]:
    """The text of every module of the package, by name: `_how.methods.cautious`."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {name_of(path.relative_to(PACKAGE)): read(path) for path in paths}


def name_of(path: pathlib.Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


# -------------------------------------------------------------------------- imports


def with_functions(tree: ast.AST, inside: bool = False) -> Iterator[tuple[Any, bool]]:
    """All nodes, each with whether it stands inside a function."""
    for node in ast.iter_child_nodes(tree):
        yield node, inside
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from with_functions(node, inside or function)


def imports(text: str, package: str = "optax_wd") -> Iterator[tuple[str, bool]]:
    """Full names of what a module imports, and whether inside of a function."""
    for node, inside in with_functions(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            start = ".".join(
                [*parents * (node.level > 0), *filter(None, [node.module])]
            )
            yield from ((f"{start}.{alias.name}", inside) for alias in node.names)


def inner(imported: str, files: Iterable[str]) -> str | None:
    """The module of the package that is imported; None for others."""
    head, *rest = imported.split(".")
    if head != "optax_wd":
        return None
    longest = (".".join(rest[:n]) for n in range(len(rest), 0, -1))
    return next((name for name in longest if name in files), "__init__")


def room(module: str, house: Iterable[str]) -> str | None:
    """The folder of a module; modules beside the folders are rooms of their own."""
    parts = module.split(".")
    longest = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in longest if name in house), None)


def wrong_imports(modules: dict[str, str]) -> Iterator[str]:
    """Every import that the house does not allow, as a sentence."""
    house = HOUSE | {"__init__": SURFACE}
    files = [*modules, *house]
    for module, text in modules.items():
        if (own := room(module, house)) is None:
            yield f"{module} is in no folder of HOUSE"
            continue
        for imported, inside in imports(text, package_of(module, modules)):
            root, target = imported.split(".")[0], inner(imported, files)
            if target is not None:
                yield from wrong_target(module, own, target, house)
            elif root in OPTIONAL:
                if not inside:
                    yield f"{module} imports {root} outside of a function"
            elif root not in OUTSIDE | set(sys.stdlib_module_names):
                yield f"{module} imports {root}"
            if root in ("logging", "warnings") and own != "_text":
                yield f"{module} imports {root}: nothing speaks under a trace"


def package_of(module: str, modules: Iterable[str]) -> str:
    """The package that relative imports of a module start from."""
    is_folder = any(name.startswith(f"{module}.") for name in modules)
    parts = module.split(".") if is_folder else module.split(".")[:-1]
    return ".".join(["optax_wd", *parts])


def wrong_target(
    module: str, own: str, target: str, house: dict[str, set[str]]
) -> Iterator[str]:
    there = room(target, house)
    if there != own and there not in house[own]:
        allowed = ", ".join(sorted(house[own])) or "nothing"
        yield f"{module} imports {target}; {own} may import {allowed}"
    if there == own in STRANGERS:
        yield f"{module} imports {target}; files of {own} do not know one another"


def circles(modules: dict[str, str]) -> list[str]:
    """Modules that import themselves by way of others."""
    graph = {
        module: {
            inner(imported, modules)
            for imported, _ in imports(text, package_of(module, modules))
        }
        - {None}
        for module, text in modules.items()
    }
    while free := [m for m, to in graph.items() if not to & set(graph)]:
        for module in free:
            del graph[module]
    return sorted(graph)


def test_every_module_imports_what_its_folder_may() -> None:
    assert list(wrong_imports(sources())) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(sources()) == []


def test_every_folder_of_the_house_has_files_and_stands_on_a_lower_floor() -> None:
    rooms = {room(name, HOUSE) for name in sources() if name != "__init__"}
    assert rooms == set(HOUSE)
    rows = list(HOUSE)
    for number, (name, allowed) in enumerate(HOUSE.items()):
        below = {*rows[:number], "__init__"} if name == "__main__" else {*rows[:number]}
        assert allowed <= below, f"{name} imports what stands above it"
    how, see = (
        {name for name in HOUSE if name.split(".")[0] == top}
        for top in ("_how", "_see")
    )
    for one, other in ((how, see), (see, how)):
        assert not any(HOUSE[name] & other for name in one)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("_tree.leaves", "from optax_wd._where.rules import Rule"),
        ("_tree.leaves", "from optax_wd._where import rules"),
        ("_tree.leaves", "from optax_wd import _where"),
        ("_tree.leaves", "import optax_wd._where.rules"),
        ("_tree.leaves", "from .._where.rules import Rule"),
        ("_tree.leaves", "from .._where import rules as r"),
        ("_tree.leaves", "def f():\n  import optax_wd._where.rules"),
        ("_tree.leaves", "class A:\n  from optax_wd._where import rules"),
        ("_where.rules", "import optax_wd as wd"),
        ("_where.rules", "from optax_wd import Rule"),
        ("_where.rules", "from optax_wd._amount.masks import x"),
        ("recipes._a", "from optax_wd._amount.masks import x"),
        ("recipes._a", "from optax_wd._text.parse import x"),
        ("_amount.masks", "from optax_wd import conversions"),
        ("_how.engine", "from optax_wd._how.methods import cautious"),
        ("_how.engine", "from optax_wd._see.describe import x"),
        ("_how.methods.a", "from .b import x"),
        ("_how.methods.a", "from . import b"),
        ("_how.methods.a", "from optax_wd._how.methods.b import x"),
        ("_how.methods.a", "from optax_wd._how.methods import b"),
        ("_how.methods.a", "from ..chains.optimizers import x"),
        ("_how.chains.a", "from optax_wd._how.matrix.optimizers import muon"),
        ("_see.describe", "from optax_wd._how.engine import x"),
        ("_see.describe", "from optax_wd._see.audit import audit"),
        ("_see.audit.audit", "from optax_wd._where.rules import Rule"),
        ("_see.audit.audit", "from optax_wd._see import report"),
        ("_see.monitor.a", "from optax_wd._see.audit.audit import x"),
        ("_text.parse", "from optax_wd._amount.masks import x"),
        ("__init__", "from optax_wd.__main__ import main"),
        ("controls", "from optax_wd._how.engine import x"),
    ],
)
def test_the_checker_of_imports_knows_the_house(module: str, text: str) -> None:
    modules = dict.fromkeys(("_how.methods.b", "_where.rules", "_see.report"), "")
    found = list(wrong_imports(modules | {module: text}))
    assert len(found) == 1 and found[0].startswith(f"{module} imports ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import flax", "_where.rules imports flax outside of a function"),
        ("if 1:\n  from flax import nnx", "_where.rules imports flax outside of"),
        ("def f():\n  import chex", "_where.rules imports chex"),
        ("import logging", "_where.rules imports logging: nothing speaks"),
        ("import warnings", "_where.rules imports warnings: nothing speaks"),
    ],
)
def test_the_checker_of_imports_knows_what_is_outside(text: str, expected: str) -> None:
    found = list(wrong_imports({"_where.rules": text}))
    assert len(found) == 1 and found[0].startswith(expected)


def test_a_file_in_no_folder_is_found() -> None:
    assert list(wrong_imports({"_new": ""})) == ["_new is in no folder of HOUSE"]


def test_circles_are_found() -> None:
    a, b = "from optax_wd._tree.b import x", "def f():\n  from . import a"
    assert circles({"_tree.a": a, "_tree.b": b}) == ["_tree.a", "_tree.b"]
    assert circles({"_tree.a": a, "_tree.b": "import jax"}) == []


def test_the_checker_of_imports_passes_what_is_right() -> None:
    right = {
        "_see.audit.audit": "from optax_wd._tree import fold\nimport math, jax.numpy",
        "_see.audit.a": "from .audit import x\nfrom optax_wd._see.audit import audit",
        "_how.methods.a": "from ..engine import x\nfrom optax_wd._where.a import y",
        "_where.modules": "def f():\n  if 1:\n    from flax import nnx",
        "recipes": "from optax_wd.recipes._a import x as x",
        "recipes._a": "from optax_wd.recipes._parts import x",
        "__init__": "from ._see.audit.audit import x\nfrom optax_wd import recipes",
        "_tree.leaves": "import numpy as np\nfrom collections.abc import Mapping",
    }
    assert list(wrong_imports(right)) == []


# ------------------------------------------------------------- public names elsewhere


def private_uses(stem: str, text: str) -> Iterator[str]:
    """Private parts of the package that a test, example or benchmark knows.

    The test of a file may know that file: `test_engine` knows `_how.engine`.
    """
    own = stem.removeprefix("test_") if stem.startswith("test_") else "nothing"
    tree = ast.parse(text)
    aliases = {"optax_wd"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {
                a.asname for a in node.names if a.name == "optax_wd" and a.asname
            }
    named = [name for name, _ in imports(text) if name.split(".")[0] == "optax_wd"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in aliases:
                named.append(f"optax_wd.{node.attr}")
    for name in named:
        parts = name.split(".")[1:]
        private = any(p.startswith("_") and not p.startswith("__") for p in parts)
        if private and own not in parts[1:]:
            yield f"{stem} knows {name}"


def users() -> list[pathlib.Path]:
    folders = ("tests", "examples", "benchmarks", "tools")
    return [
        path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def test_tests_examples_and_benchmarks_use_public_names_only() -> None:
    found = [use for path in users() for use in private_uses(path.stem, read(path))]
    assert found == []
    assert {path.stem for path in users()} > {"test_fold", "test_audit", "lm"}


@pytest.mark.parametrize(
    ("stem", "text"),
    [
        ("test_rules", "from optax_wd._tree.leaves import x"),
        ("test_rules", "from optax_wd._tree import leaves"),
        ("test_rules", "import optax_wd._tree.leaves as hidden"),
        ("test_rules", "import optax_wd as wd\nwd._tree.leaves.list_leaves"),
        ("test_rules", "import optax_wd\noptax_wd._tree"),
        ("test_cautious", "from optax_wd._how.methods.anchored import x"),
        ("test_cautious", "from optax_wd._how import methods"),
        ("lm", "from optax_wd._how.engine import x"),
        ("overhead", "import optax_wd as o\no._how"),
        ("helpers", "from optax_wd._where import rules"),
    ],
)
def test_the_checker_of_public_names_can_fail(stem: str, text: str) -> None:
    assert list(private_uses(stem, text))


@pytest.mark.parametrize(
    ("stem", "text"),
    [
        ("test_rules", "from optax_wd._where.rules import x"),
        ("test_rules", "from optax_wd._where import rules"),
        ("test_cautious", "from optax_wd._how.methods.cautious import x"),
        ("test_cautious", "from optax_wd._how.methods import cautious"),
        ("lm", "import optax_wd as wd\nwd.adamw\nwd.__file__\nwd.Leaf"),
        ("lm", "import optax\noptax._src"),
    ],
)
def test_the_checker_of_public_names_passes_what_is_right(stem: str, text: str) -> None:
    assert list(private_uses(stem, text)) == []


# ---------------------------------------------------------------- files and functions


def broken_limits(module: str, text: str) -> Iterator[str]:
    """Every limit of the house that a module breaks, as a sentence."""
    tree = ast.parse(text)
    if text.split("\n")[0] != SPDX:
        yield f"{module} does not start with the SPDX line"
    if not ast.get_docstring(tree):
        yield f"{module} has no docstring"
    if (count := len(text.splitlines())) > MAX_LINES:
        yield f"{module} has {count} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from broken_by_function(module, node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "print":
                yield f"{module} prints"


def broken_by_function(
    module: str, node: ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[str]:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if body:
        lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
        if lines > MAX_BODY:
            yield f"{module}.{node.name} has a body of {lines} lines"
    given = node.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [a.arg for a in (given.vararg, given.kwarg) if a is not None]
    count = len([name for name in names if name not in ("self", "cls")])
    if count > MAX_PARAMETERS and room(module, MANY_PARAMETERS) is None:
        yield f"{module}.{node.name} has {count} parameters"


def test_every_module_keeps_to_the_limits_of_the_house() -> None:
    broken = (
        b for module, text in sources().items() for b in broken_limits(module, text)
    )
    assert list(broken) == []


HEAD = f'{SPDX}\n"""What it is."""\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"""What it is."""\n', "m does not start with the SPDX line"),
        (f"\n{HEAD}", "m does not start with the SPDX line"),
        (f"{SPDX}\nx = 1\n", "m has no docstring"),
        (HEAD + "x = 1\n" * 299, "m has 301 lines"),
        (HEAD + "def f():\n" + "  x = 1\n" * 41, "m.f has a body of 41 lines"),
        (
            HEAD + 'def f():\n  """Doc."""\n\n  x = (\n' + "\n" * 39 + ")\n",
            "m.f has a body of 41 lines",
        ),
        (
            HEAD + "class A:\n  async def f(self):\n" + "    x = 1\n" * 41,
            "m.f has a body of 41 lines",
        ),
        (HEAD + "def f(a, b, /, c, d, *, e, g, h): ...\n", "m.f has 7 parameters"),
        (HEAD + "def f(a, b, c, d, e, *f, **g): ...\n", "m.f has 7 parameters"),
        (HEAD + "def f(x):\n  print(x)\n", "m prints"),
    ],
)
def test_the_checker_of_limits_can_fail(text: str, expected: str) -> None:
    assert list(broken_limits("m", text)) == [expected]


def test_the_checker_of_limits_passes_what_is_right() -> None:
    long = '"""Doc.\n' + "\n" * 50 + '  """\n'
    text = HEAD + "class A:\n  def f(self, a, b, c, d, e, g):\n    " + long
    assert list(broken_limits("m", text + "    x = 1\n" * 40)) == []
    assert (
        list(broken_limits("_how.chains.a", HEAD + "def f(a,b,c,d,e,g,h): ...\n")) == []
    )


def test_tests_and_examples_carry_the_licence_and_say_what_they_are() -> None:
    for path in users():
        text = read(path)
        shebang = text.startswith("#!")
        assert text.split("\n")[shebang] == SPDX, path
        assert ast.get_docstring(ast.parse(text)), path


# ---------------------------------------------------------------------- the surface


def wrong_surface(text: str) -> Iterator[str]:
    """Every statement that is neither the version nor `from module import a as a`."""
    for node in ast.parse(text).body[1:]:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "__version__"
        ):
            continue
        if not isinstance(node, ast.ImportFrom):
            yield f"line {node.lineno} is no `from module import name as name`"
            continue
        for alias in node.names:
            if alias.asname != alias.name or alias.name.startswith("_"):
                yield f"line {node.lineno} imports {alias.name} as {alias.asname}"


def test_the_surface_is_imports_and_nothing_else() -> None:
    assert list(wrong_surface(sources()["__init__"])) == []
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize(
    "line",
    [
        "x = 1",
        "import jax",
        "from a import b",
        "from a import b as c",
        "from a import *",
    ],
)
def test_the_checker_of_the_surface_can_fail(line: str) -> None:
    assert list(wrong_surface(f'"""Doc."""\nfrom a import b as b\n{line}'))


def public_functions() -> dict[str, Any]:
    found = vars(wd) | vars(wd.controls)
    return {name: f for name, f in found.items() if inspect.isfunction(f)}


def test_the_surface_is_small_and_says_its_version() -> None:
    names = [name for name in vars(wd) if not name.startswith("_")]
    modules = {name for name in names if inspect.ismodule(getattr(wd, name))}
    assert modules == {"controls", "conversions", "recipes", "roles"}
    assert len(names) - len(modules) <= 74
    assert wd.__version__ == importlib.metadata.version("optax_wd")


@pytest.mark.parametrize("name", ["standard", "everything", "nothing", "matrices"])
def test_help_shows_what_a_rule_is_and_no_private_class(name: str) -> None:
    text = pydoc.plain(pydoc.render_doc(getattr(wd, name)))
    assert str(getattr(wd, name).__doc__).split("\n")[0] in text
    assert "dataclass" not in text and "Methods" not in text
    assert "Method resolution order" not in text


def test_every_public_object_is_documented() -> None:
    for name, thing in vars(wd).items():
        if name.startswith("_") or inspect.ismodule(thing):
            continue
        assert inspect.getdoc(thing), name
        if not inspect.isfunction(thing) or name == "cautious_gate":
            continue
        for section in ("Args:", "Returns:", "Raises:"):
            void = section == "Returns:" and name.startswith("assert_")
            assert void or section in str(thing.__doc__), (name, section)


# --------------------------------------------------------------------- the methods


def methods() -> list[str]:
    """Decays, and what constrains norms instead: it has no rate, so no contract."""
    endings = ("_weight_decay", "_norms")
    return [name for name in public_functions() if name.endswith(endings)]


def stem_of(method: str) -> str:
    return method.removesuffix("_weight_decay")


def keys_of(text: str, name: str) -> set[str]:
    """The keys of the dict that a module assigns to a name."""
    for node in ast.walk(ast.parse(text)):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(node, ast.Assign | ast.AnnAssign) and any(
            isinstance(target, ast.Name) and target.id == name for target in targets
        ):
            assert isinstance(node.value, ast.Dict)
            keys = (key for key in node.value.keys if isinstance(key, ast.Constant))
            return {str(key.value) for key in keys}
    return set()


def missing(method: str, files: Iterable[str], texts: dict[str, str]) -> Iterator[str]:
    """What a method still lacks, as sentences."""
    stem, decays = stem_of(method), method.endswith("_weight_decay")
    places = f"optax_wd/_how/methods/{stem}.py", f"tests/how/methods/test_{stem}.py"
    for file in places:
        if file not in files:
            yield f"{method} has no {file}"
    contract = keys_of(texts["tests/how/test_contract.py"], "METHODS")
    if decays and method not in contract:
        yield f"{method} is no key of METHODS in tests/how/test_contract.py"
    if not re.search(rf"^\| `{method}` \|", texts["docs/methods.md"], re.MULTILINE):
        yield f"{method} has no row in the table of docs/methods.md"
    if f"`{method}`" not in texts["CHANGELOG.md"]:
        yield f"{method} has no line in CHANGELOG.md"


def test_every_method_has_file_test_contract_row_and_line() -> None:
    paths = [*PACKAGE.rglob("*.py"), *users()]
    files = {path.relative_to(ROOT).as_posix() for path in paths}
    names = ("tests/how/test_contract.py", "docs/methods.md", "CHANGELOG.md")
    texts = {name: read(ROOT / name) for name in names}
    assert methods()
    assert [m for method in methods() for m in missing(method, files, texts)] == []


def test_every_file_of_a_method_is_exported() -> None:
    inside = "_how.methods."
    stems = [name.removeprefix(inside) for name in sources() if inside in name]
    assert sorted(stems) == sorted(map(stem_of, methods()))
    for name in methods():
        method = public_functions()[name]
        assert method.__module__ == f"optax_wd._how.methods.{stem_of(name)}"
        first = list(inspect.signature(method).parameters)[:2]
        if name.endswith("_weight_decay"):
            assert first == ["weight_decay", "mask"]
        assert "mask" in first
        for section in (
            "Args:",
            "Returns:",
            "Raises:",
            "Example:\n  >>>",
            "Source: ",
        ):
            assert section in str(inspect.getdoc(method)), section


FILES = {"optax_wd/_how/methods/huber.py", "tests/how/methods/test_huber.py"}
TEXTS = {
    "tests/how/test_contract.py": 'METHODS: dict = {"huber_weight_decay": 1}',
    "docs/methods.md": "# A\n| `huber_weight_decay` | rule |\n",
    "CHANGELOG.md": "* `huber_weight_decay`\n",
}


@pytest.mark.parametrize("lost", [*sorted(FILES), *TEXTS])
def test_the_checker_of_methods_can_fail(lost: str) -> None:
    assert list(missing("huber_weight_decay", FILES, TEXTS)) == []
    found = list(missing("huber_weight_decay", FILES - {lost}, {**TEXTS, lost: ""}))
    assert len(found) == 1 and lost in found[0]


# ------------------------------------------------------------------- import, doctests

IMPORT = """
import sys, jax, jax.numpy, optax
before = set(sys.modules)
import optax_wd
print(*sorted(set(sys.modules) - before))
jax.config.update("jax_num_cpu_devices", 3)  # an error once devices are in use
print(len(jax.devices("cpu")))
"""


def test_import_is_silent_uses_no_device_and_loads_nothing_else() -> None:
    command = [sys.executable, "-W", "error", "-c", IMPORT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    loaded, devices = done.stdout.split("\n")[:2]
    roots = {name.split(".")[0] for name in loaded.split()}
    assert roots - set(sys.stdlib_module_names) <= {
        "optax_wd",
        "jax",
        "jaxlib",
        "optax",
    }
    assert "optax_wd" in roots and devices == "3"


def doctests() -> dict[str, doctest.DocTest]:
    """Every docstring with an example, to be run without the names of its module."""
    modules = [wd, *map(pkgutil.resolve_name, map("optax_wd.{}".format, sources()))]
    finder = doctest.DocTestFinder()
    found = [t for m in modules[1:] for t in finder.find(m, globs={}) if t.examples]
    return {test.name.removeprefix("optax_wd."): test for test in found}


DOCTESTS = doctests()


@pytest.mark.parametrize("name", DOCTESTS)
def test_the_examples_of_a_docstring_run_as_they_stand(name: str) -> None:
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=0)
    assert runner.run(DOCTESTS[name], out=told.append).failed == 0, "".join(told)


def test_everything_that_decays_or_watches_has_an_example() -> None:
    shown = {name.split(".")[-1] for name in DOCTESTS}
    wanted = {*methods(), "masked_decay", "decay_along", "after_learning_rate"}
    wanted |= {"adamw", "sgdw", "lion", "describe", "assert_decays", "first_match"}
    assert wanted <= shown
