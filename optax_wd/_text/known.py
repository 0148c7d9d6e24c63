# SPDX-License-Identifier: Apache-2.0
"""What names stand for in the text of a rule, and what to write instead of others."""

import ast
import difflib
import inspect
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

from optax_wd import recipes, roles
from optax_wd._where.atoms import everything, min_ndim, nothing, optional
from optax_wd._where.matrices import matrices
from optax_wd._where.names import contains, named, path, regex
from optax_wd._where.owners import declared, owned_by
from optax_wd._where.rules import Rule
from optax_wd._where.standard import standard, standard_with
from optax_wd._where.values import first_match

RULES = {repr(rule): rule for rule in (everything, nothing, standard, matrices)}
ROLES = {name: rule for name, rule in vars(roles).items() if isinstance(rule, Rule)}
_CALLABLE = (optional, min_ndim, named, contains, path, regex, standard_with, owned_by)
CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (*_CALLABLE, declared, first_match)
}

SATISFIES = "satisfies holds a function, which no text can; make the rule in Python"


def recipes_by_name() -> dict[str, Callable[..., Any]]:
    """The public functions of the recipes, and nothing that these import."""
    members = inspect.getmembers(recipes, inspect.isfunction)
    own = f"{recipes.__name__}."
    return {n: f for n, f in members if n[0] != "_" and f.__module__.startswith(own)}


def advice(node: ast.expr) -> str:
    """What to write instead of a piece that means nothing in a rule."""
    match node:
        case ast.Name(id="satisfies"):
            return SATISFIES
        case ast.Name(id="recipes"):
            known = " or ".join(recipes_by_name())
            return f"write recipes.NAME(...), where NAME is {known}"
        case ast.Name(id="roles"):
            return f"write roles.NAME, where NAME is {' or '.join(ROLES)}"
        case ast.Name(id=name) if name in ROLES:
            quoted = f"a name in the model is quoted, {name!r}"
            return f"write roles.{name}, with the prefix; {quoted}"
        case ast.Name(id=name) if name in CALLS:
            return f"{name} is a function; write {name}(...) with its arguments"
        case ast.Name(id=name) if name in recipes_by_name():
            return f"write recipes.{name}(...), with the prefix"
        case ast.Name(id=name):
            return _unknown("name", name, [*RULES, *CALLS, "True", "False", "None"])
        case ast.Attribute(
            value=ast.Name(id=prefix) | ast.Attribute(value=ast.Name(id=prefix))
        ) if prefix in ("wd", "optax_wd"):
            return f"write it without the prefix `{prefix}.`"
        case ast.Attribute(value=ast.Name(id="roles"), attr=name):
            if name not in ROLES:
                return _unknown("role", name, ROLES)
            return f"roles.{name} is a rule; write it without parentheses"
        case ast.Attribute(value=ast.Name(id="recipes"), attr=name):
            if name not in recipes_by_name():
                return _unknown("recipe", name, recipes_by_name())
            return f"recipes.{name} is a function; write recipes.{name}()"
        case ast.BoolOp() | ast.UnaryOp(ast.Not()):
            return "combine rules with `&`, `|`, `~`, not `and`, `or`, `not`"
    return (
        "this means nothing in a rule; write names such as standard, calls such as "
        "named('bias'), and `&`, `|`, `~`"
    )


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    near = [one for one in known if one.startswith(name)]
    near = near or difflib.get_close_matches(name, known, n=1)
    hint = f"known are {', '.join(known)}"
    if near:
        hint = f"the nearest is {' or '.join(map(repr, near))}"
    elif kind == "name":
        hint += f"; a name in the model is quoted, {reprlib.repr(name)}"
    return f"unknown {kind} {reprlib.repr(name)}; {hint}"
