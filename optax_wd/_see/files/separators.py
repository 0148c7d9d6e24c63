# SPDX-License-Identifier: Apache-2.0
"""Flat names as paths: what separates the tokens of a file's names.

Formats without nesting hold names such as `a.b.weight`, `a/b/kernel`, `a,b,kernel` or,
written by `jax.tree_util.keystr`, `['a']['b']`. A file has one separator: the one under
which no name is both an array and a branch.
"""

import collections
import itertools
import re
from collections.abc import Callable, Iterable

from optax_wd._tree.typing import Path

# A key of a dict, of a list, or the name of a field, as `keystr` writes them.
_KEYS = re.compile(r"\['(.*?)'\]|\[\"(.*?)\"\]|\[(\d+)\]|\.(\w+)")
_HEAD = re.compile(r"\w*")  # what a tree is called may stand before: `params['a']`
_SINGLE = "/.,|"


def paths_of(names: Iterable[str]) -> dict[str, Path]:
    """The path of each name of a file.

    Args:
      names: all names of the file.

    Returns:
      The tokens of each, without empty ones: `a//b` is `("a", "b")`. Of separators that
      would do, the one after which most last tokens hold no other, then the one that
      most names hold, then the first of `/ . , |`. Dots and slashes together, as in
      `encoder/layers.0/kernel`, both separate.
    """
    names = list(names)
    if any("[" in name for name in names) and all(map(_is_keystr, names)):
        return {name: _keys(name) for name in names}
    held = collections.Counter(c for name in names for c in _SINGLE if c in name)
    clean = {c: sum(map(_ends_at(c), names)) for c in held}
    order = sorted(held, key=lambda c: (-clean[c], -held[c], _SINGLE.index(c)))
    for separator in order:
        split = _splitter(separator)
        if is_tree([split(name) for name in names]):
            return {name: split(name) for name in names}
    split = _splitter("/")
    return {name: split(name) for name in names}


def is_tree(paths: list[Path]) -> bool:
    """Whether all paths differ and none is empty or leads through another."""
    # In this order what begins with a path follows it at once.
    pairs = itertools.pairwise(sorted(paths))
    return () not in paths and not any(two[: len(one)] == one for one, two in pairs)


def _ends_at(separator: str) -> Callable[[str], bool]:
    """Whether the last token of a name holds nothing that separates elsewhere."""
    return lambda name: max(_SINGLE, key=name.rfind) == separator and separator in name


def _splitter(separator: str) -> Callable[[str], Path]:
    # Torch's dots stand beside slashes of nested dicts; no name of a layer has either.
    pattern = "[./]" if separator in "./" else re.escape(separator)
    return lambda name: tuple(filter(None, re.split(pattern, name)))


def _is_keystr(name: str) -> bool:
    return not _KEYS.sub("", _HEAD.sub("", name, count=1))


def _keys(name: str) -> Path:
    head = _HEAD.match(name)
    start = head[0] if head else ""
    tokens = (m[m.lastindex or 0] for m in _KEYS.finditer(name, len(start)))
    return tuple(x for token in (start, *tokens) for x in token.split("/") if x)
