# SPDX-License-Identifier: Apache-2.0
"""Rules by name: the last token, any token, globs over tokens, regular expressions.

A token is one component of a path. It is matched whole and case-sensitively, and is not
split at underscores: `contains("norm")` hits neither `normalizer` nor `LayerNorm_0`.
Keys and globs are taken apart at slashes and dots, so that no token has either.
"""

import dataclasses
import difflib
import fnmatch
import functools
import re
from typing import final

from optax_wd._tree.leaves import Leaf, path_of
from optax_wd._tree.typing import Path
from optax_wd._where.rules import NameRule

# Suggestions are searched among this many distinct names: messages must not take
# seconds on trees of a hundred thousand leaves.
_MAX_CANDIDATES = 5000


def named(*names: str) -> NameRule:
    """Leaves whose own name, the last token of the path, is one of `names`.

    Args:
      *names: whole tokens, case-sensitive; a glob may stand inside: `named("*_bias")`.

    Returns:
      A rule. Called with a complete tree, it requires each name to match some leaf.

    Raises:
      TypeError: if a name is not a string.
      ValueError: if there is no name; when called, if a name matches no leaf.
    """
    return _Named(_check_patterns("named", names))


def contains(*tokens: str) -> NameRule:
    """Leaves with one of `tokens` anywhere in their path.

    Args:
      *tokens: whole tokens, case-sensitive; a glob may stand inside:
        `contains("LayerNorm_*")`.

    Returns:
      A rule. Called with a complete tree, it requires each token to match some leaf.

    Raises:
      TypeError: if a token is not a string.
      ValueError: if there is no token; when called, if a token matches no leaf.
    """
    return _Contains(_check_patterns("contains", tokens))


def path(*globs: str) -> NameRule:
    """Leaves whose whole path matches one of `globs`.

    Args:
      *globs: tokens separated by slashes or dots. `*` stands for any characters within
        one token, `**` for any number of tokens, none included:
        `path("**/attn/*/kernel")`.

    Returns:
      A rule. Called with a complete tree, it requires each glob to match some leaf.

    Raises:
      TypeError: if a glob is not a string.
      ValueError: if there is no glob; when called, if a glob matches no leaf.
    """
    return _Path(_check_patterns("path", globs))


def regex(*patterns: str) -> NameRule:
    """Leaves whose whole path, written `a/b/kernel`, matches one of `patterns`.

    Args:
      *patterns: regular expressions in the syntax of `re`, matched against the whole
        path (`re.fullmatch`): `regex(".*/kernel")`.

    Returns:
      A rule. Called with a complete tree, it requires each pattern to match some leaf.

    Raises:
      TypeError: if a pattern is not a string.
      ValueError: if there is no pattern or one does not compile; when called, if a
        pattern matches no leaf.
    """
    checked = _check_patterns("regex", patterns)
    for pattern in checked:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            shown = pattern if len(pattern) < 200 else f"{pattern[:200]}..."
            raise ValueError(
                f"regex({shown!r}) is no regular expression: {error}; escape special "
                "characters, or write a glob with path(...)"
            ) from None
    return _Regex(checked)


def _check_patterns(what: str, patterns: tuple[object, ...]) -> tuple[str, ...]:
    if not patterns:
        raise ValueError(f"{what}() has nothing to match; write `nothing` for no leaf")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise TypeError(
                f"{what} takes strings, each an argument of its own: {what}('a', 'b'); "
                f"got {pattern!r}"
            )
    return tuple(str(pattern) for pattern in patterns)


def _nearest(pattern: str, texts: list[str]) -> list[str]:
    """Up to three texts that hold or resemble a pattern, whatever their case."""
    folded: dict[str, str] = {}
    for text in texts:
        folded.setdefault(text.casefold(), text)
    wanted = pattern.casefold()
    holding = sorted((text for text in folded if wanted in text), key=len)
    close = difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)
    found = list(dict.fromkeys(holding + close)) or list(folded)
    return [folded[text] for text in found[:3]]


@functools.cache
def _glob(pattern: str) -> re.Pattern[str] | None:
    """A pattern compiled; None for one without special characters."""
    is_plain = not set(pattern) & set("*?[")
    return None if is_plain else re.compile(fnmatch.translate(pattern))


def _is_match(pattern: str, text: str) -> bool:
    glob = _glob(pattern)
    return pattern == text if glob is None else glob.match(text) is not None


def _matches_globs(globs: Path, tokens: Path) -> bool:
    if not globs:
        return not tokens
    if globs[0] == "**":
        return any(
            _matches_globs(globs[1:], tokens[n:]) for n in range(len(tokens) + 1)
        )
    if not tokens or not _is_match(globs[0], tokens[0]):
        return False
    return _matches_globs(globs[1:], tokens[1:])


@dataclasses.dataclass(frozen=True, repr=False)
class _ByName(NameRule):
    patterns: tuple[str, ...]

    def candidates(self, leaf: Leaf) -> tuple[str, ...]:
        """The strings of a leaf that a pattern is compared with."""
        return (leaf.where,)

    def fits(self, pattern: str, leaf: Leaf) -> bool:
        """Whether one pattern matches a leaf."""
        return any(_is_match(pattern, text) for text in self.candidates(leaf))

    def matches(self, leaf: Leaf) -> bool:
        return any(self.fits(pattern, leaf) for pattern in self.patterns)

    def reason(self, leaf: Leaf) -> str:
        found = [pattern for pattern in self.patterns if self.fits(pattern, leaf)]
        return repr(type(self)(tuple(found[:1]))) if found else f"not {self!r}"

    def written(self) -> tuple[NameRule, ...]:
        return tuple(type(self)((pattern,)) for pattern in self.patterns)

    def hint(self, leaves: list[Leaf]) -> str:
        texts = dict.fromkeys(text for leaf in leaves for text in self.candidates(leaf))
        near = _nearest(self.patterns[0], list(texts)[:_MAX_CANDIDATES])
        nearest = ", ".join(map(repr, near))
        return (
            f"{self!r} matches no leaf; the nearest are {nearest}; "
            f"write optional({self!r}) if that is meant"
        )

    def __repr__(self) -> str:
        function = type(self).__name__.removeprefix("_").lower()
        return f"{function}({', '.join(map(repr, self.patterns))})"


@final
class _Named(_ByName):
    def candidates(self, leaf: Leaf) -> tuple[str, ...]:
        return (leaf.name,)


@final
class _Contains(_ByName):
    def candidates(self, leaf: Leaf) -> tuple[str, ...]:
        return leaf.path


@final
class _Path(_ByName):
    def fits(self, pattern: str, leaf: Leaf) -> bool:
        return _matches_globs(path_of((pattern,)), leaf.path)


@final
class _Regex(_ByName):
    def fits(self, pattern: str, leaf: Leaf) -> bool:
        return re.fullmatch(pattern, leaf.where) is not None
