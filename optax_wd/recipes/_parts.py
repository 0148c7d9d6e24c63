# SPDX-License-Identifier: Apache-2.0
"""What the recipes have in common: other dialects of matching, as regular expressions.

All patterns are optional: a list that names tokens which a model lacks is no error.
"""

import fnmatch
import re
import reprlib

from optax_wd._where.atoms import min_ndim, optional
from optax_wd._where.names import regex
from optax_wd._where.rules import Rule, Stacked

_STAR_OR_SET = re.compile(r"(\*|\[!?\]?[^]]*\])")
_FLAGS = re.compile(r"((?:\(\?[aimsux]+\))?)(.*)", re.DOTALL)


def listed(what: str, given: object) -> tuple[str, ...]:
    """`given` itself, if it is a tuple or list of strings.

    Args:
      what: the name of the recipe in the message.
      given: what the caller wrote.

    Returns:
      A tuple.

    Raises:
      TypeError: if `given` is anything else, a single string for example.
    """
    if isinstance(given, tuple | list):
        if all(isinstance(name, str) and name for name in given):
            return tuple(given)
    example = (given,) if isinstance(given, str) and given else ("bias",)
    raise TypeError(
        f"{what} takes a tuple of strings, got {reprlib.repr(given)}; write a tuple "
        f"such as {reprlib.repr(example)}"
    )


def globs(*patterns: str) -> Rule:
    """Leaves whose dotted name matches one of `patterns` as `fnmatch` understands it.

    Anchored at both ends; `*` crosses dots. Dots and slashes both separate tokens.
    """
    return optional(regex(*map(_translated, patterns)))


def _translated(glob: str) -> str:
    # Piece by piece, as the translation of several stars at once is hard to read. Each
    # is framed by "(?s:" and ")\Z".
    pieces = _STAR_OR_SET.split(glob.replace(".", "/"))
    return "".join(fnmatch.translate(piece)[4:-3] for piece in pieces)


def substrings(*words: str) -> Rule:
    """Leaves with one of `words` anywhere in their path, within tokens too."""
    return optional(regex(f".*({'|'.join(words)}).*"))


def search(*patterns: str) -> Rule:
    """Leaves in whose path `re.search` finds one of `patterns`.

    Raises:
      ValueError: if a pattern is no regular expression.
    """
    regex(*patterns)  # each on its own: within a group `a)(b` would be well-formed
    found = (_FLAGS.fullmatch(pattern) for pattern in patterns)
    pairs = (match.groups() for match in found if match is not None)
    return optional(regex(*(f"{flags}.*(?:{rest}).*" for flags, rest in pairs)))


def not_vectors(stacked: Stacked) -> Rule:
    """Leaves that have not exactly one dimension: scalars are among them."""
    return min_ndim(2, stacked=stacked) | ~min_ndim(1, stacked=stacked)
