# SPDX-License-Identifier: Apache-2.0
"""Rules from text, for configuration files and command lines.

The text is the code that makes the rule, which is also what a rule prints. It is not
run: Python's parser makes a syntax tree of it, and of the tree only what is listed here
means anything. Errors point at the piece of the text that they are about.
"""

import ast
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from optax_wd._text.known import CALLS, ROLES, RULES, SATISFIES, advice, recipes_by_name
from optax_wd._text.pointed import pointed
from optax_wd._where.owners import owned_by
from optax_wd._where.rules import Rule

_MAX_LENGTH = 100_000  # characters; hostile text of this length is refused in 0.2 s
_MAX_DEPTH = 100  # levels of calls, brackets and operators; a row of `&` is one level

# What the parser refuses without saying where: null bytes, lone surrogates, and whole
# numbers of very many digits.
_UNREADABLE = re.compile("[\0\ud800-\udfff]|[0-9][0-9_]{400,}")


def parse_rule(text: str) -> Rule:
    r"""Read a rule from text, such as a line of a YAML file or of a command.

    Nothing in the text is ever evaluated. It is written as in Python:

        rule    everything, nothing, standard, matrices, or a role: roles.bias
                rule & rule, rule | rule, ~rule, (rule)
                call(value, ..., name=value, ...)
        call    optional, min_ndim, named, contains, path, regex, standard_with,
                owned_by, declared, first_match, or a recipe: recipes.timm
        value   a rule, a string, a number, True, False, None, tuples, lists

    What a rule prints reads back as an equal rule, `parse_rule(repr(rule)) == rule`, if
    no function, type or unusual constant is inside, such as infinity. A backslash that
    is no escape of Python stands for itself: write `regex('block_\d+/.*')`.

    Everything else is refused: types (write `owned_by('LayerNorm')`) and functions
    (`satisfies` belongs in Python); tables of numbers or labels, which are no rules;
    other names, attributes, operators and syntax; more than 100 000 characters or 100
    levels, or more operators in a row than Python's parser takes, some 2000. Regular
    expressions are compiled, and may be slow where a stranger writes them.

    Args:
      text: the rule. One of several lines stands in parentheses.

    Returns:
      The rule, the same as if the text were code.

    Raises:
      TypeError: if `text` is no string.
      ValueError: if it is no rule. The message shows the piece that is wrong.

    Example:
      >>> import optax_wd as wd
      >>> config = {"weight_decay": 0.1, "mask": "min_ndim(2) & ~contains('norm')"}
      >>> wd.parse_rule(config["mask"])
      min_ndim(2) & ~contains('norm')
      >>> wd.parse_rule("min_ndim(2) & ~nmaed('bias')")
      Traceback (most recent call last):
        ...
      ValueError: unknown name 'nmaed'; the nearest is 'named'
        min_ndim(2) & ~nmaed('bias')
                       ^^^^^
    """
    if not isinstance(text, str):
        raise TypeError(f"parse_rule takes a string such as 'standard', got {text!r}")
    if len(text) > _MAX_LENGTH:
        raise ValueError(
            f"the text of a rule has at most {_MAX_LENGTH} characters, got {len(text)};"
            " write names with globs, or make the rule in Python"
        )
    # Lines end as they do for the parser, whose positions count them.
    clean = text.strip().replace("\r\n", "\n").replace("\r", "\n")
    if not clean:
        raise ValueError("the text is empty; write a rule such as standard or nothing")
    try:
        return _rule(_parse(clean), 0)
    except _Refused as refused:
        raise ValueError(refused.shown_in(clean)) from None


class _Refused(Exception):
    """A sentence about a piece of the text."""

    def __init__(self, sentence: str, piece: ast.expr | ast.keyword) -> None:
        self.sentence, self.piece = sentence, piece

    def shown_in(self, text: str) -> str:
        """The sentence, the line of the piece, and carets under it."""
        piece = self.piece
        line = text.split("\n")[piece.lineno - 1].encode()
        is_cut = piece.end_lineno != piece.lineno
        ends = (piece.col_offset, len(line) if is_cut else piece.end_col_offset)
        # The columns of a syntax tree count bytes of UTF-8.
        start, end = (len(line[:column].decode()) for column in ends)
        return pointed(self.sentence, text, piece.lineno, (start, end))


def _parse(text: str) -> ast.expr:
    """The syntax tree of a text."""
    if found := _UNREADABLE.search(text):
        lines = text[: found.start()].split("\n")
        span = (len(lines[-1]), len(lines[-1]) + len(found[0]))
        what = "no null byte, no lone surrogate, no number of 400 digits"
        raise ValueError(pointed(f"a rule holds {what}", text, len(lines), span))
    try:
        with warnings.catch_warnings():
            # The text is no source code: the `\d` of a pattern is meant as it stands.
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(_syntax_error(text, error)) from None
    except (RecursionError, MemoryError):  # of the parser, which has limits of its own
        raise ValueError(
            "the text has too many levels or operators; make the rule in Python"
        ) from None


def _syntax_error(text: str, error: SyntaxError) -> str:
    lines = text.split("\n")
    number = min(max(error.lineno or 1, 1), len(lines))
    # The parser counts columns from 1; 0 stands for the end of the line.
    start = (error.offset or len(lines[number - 1]) + 1) - 1
    end = max(start + 1, (error.end_offset or 0) - 1)
    sentence = f"this does not parse: {error.msg}"
    if "satisfies(<" in text:  # as such a rule prints
        sentence = SATISFIES
    elif number > 1:
        sentence += "; a rule of several lines stands in parentheses"
    return pointed(sentence, text, number, (start, end))


def _rule(node: ast.expr, depth: int) -> Rule:
    """The rule that a piece of the text stands for."""
    value = _value(node, depth)
    if not isinstance(value, Rule):
        raise _Refused("this is no rule; write one such as named('bias')", node)
    return value


def _value(node: ast.expr, depth: int) -> Any:
    """What a piece of the text stands for: a rule, a constant, a tuple or a list."""
    if depth > _MAX_DEPTH:
        raise _Refused(f"this is more than {_MAX_DEPTH} levels deep", node)
    match node:
        case ast.Name(id=name) if name in RULES:
            return RULES[name]
        case ast.Attribute(value=ast.Name(id="roles"), attr=name) if name in ROLES:
            return ROLES[name]
        case ast.Call():
            return _called(node, depth)
        case ast.BinOp():
            return _joined(node, depth)
        case ast.UnaryOp(ast.Invert()):
            return ~_rule(node.operand, depth + 1)
        case ast.UnaryOp(ast.USub(), ast.Constant(n)) if type(n) in (int, float):
            return -_value(node.operand, depth + 1)
        case ast.Constant(value=int() | float() as number):
            if abs(number) > sys.float_info.max:
                raise _Refused("this number is too large to mean anything", node)
            return number
        case ast.Constant(value=str() | None as value):
            return value
        case ast.Tuple():
            return tuple(_value(element, depth + 1) for element in node.elts)
        case ast.List():
            return [_value(element, depth + 1) for element in node.elts]
    raise _Refused(advice(node), node)


def _joined(node: ast.BinOp, depth: int) -> Rule:
    """Rules with operators between, however many in a row."""
    links: list[ast.BinOp] = []
    left: ast.expr = node
    while isinstance(left, ast.BinOp):
        if not isinstance(left.op, ast.BitAnd | ast.BitOr):
            raise _Refused("combine rules with `&`, `|`, `~`, nothing else", left)
        links.append(left)
        left = left.left
    rule = _rule(left, depth + 1)
    for link in reversed(links):
        other = _rule(link.right, depth + 1)
        rule = rule & other if isinstance(link.op, ast.BitAnd) else rule | other
    return rule


def _called(node: ast.Call, depth: int) -> Rule:
    """The rule that a call makes."""
    function = _function(node.func)
    for argument in node.args:
        if function is owned_by and isinstance(argument, ast.Name | ast.Attribute):
            name = argument.id if isinstance(argument, ast.Name) else argument.attr
            raise _Refused(
                f"types go by name here; write owned_by({name!r}), a string", argument
            )
    values = [_value(argument, depth + 1) for argument in node.args]
    options: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in options:
            raise _Refused("write each argument by its name, and once", keyword)
        options[keyword.arg] = _value(keyword.value, depth + 1)
    try:
        made = function(*values, **options)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _Refused(str(error), _culprit(node, str(error))) from None
    if not isinstance(made, Rule):
        raise _Refused("this is no rule; a table is one if its values are bools", node)
    return made


def _culprit(node: ast.Call, error: str) -> ast.expr | ast.keyword:
    """The piece of a call that an error is about, as far as it can be told."""
    for keyword in node.keywords:
        if f"unexpected keyword argument {keyword.arg!r}" in error:
            return keyword
    pieces = [*node.args, *node.keywords]
    return pieces[0] if len(pieces) == 1 and "required" not in error else node


def _function(node: ast.expr) -> Callable[..., Any]:
    """The function that the name in front of parentheses stands for."""
    match node:
        case ast.Name(id=name) if name in CALLS:
            return CALLS[name]
        case ast.Name(id=name) if name in RULES:
            raise _Refused(f"{name} is a rule; write it without parentheses", node)
        case ast.Attribute(value=ast.Name(id="recipes"), attr=name) if (
            name in recipes_by_name()
        ):
            return recipes_by_name()[name]
    raise _Refused(advice(node), node)
