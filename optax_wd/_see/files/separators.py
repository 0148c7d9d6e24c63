# SPDX-License-Identifier: Apache-2.0
"""Flat names as paths: what separates the tokens of a file's names.

Formats without nesting hold names such as `a.b.weight`, `a/b/kernel`, `a,b,kernel` or,
written by `jax.tree_util.keystr`, `['a']['b']`. A file has one separator: the one under
which no name is both an array and a branch.
"""

import collections
import re
from collections.abc import Callable, Iterable

from optax_wd._tree.leaves import prefixes
from optax_wd._tree.typing import Path

# A key of a dict, of a list, or the name of a field, as `keystr` writes them.
_KEYS = re.compile(r"\['(.*?)'\]|\[\"(.*?)\"\]|\[(\d+)\]|\.(\w+)")
_SINGLE = "/.,|"


def paths_of(names: Iterable[str]) -> dict[str, Path]:
    """The path of each name of a file.

    Args:
      names: all names of the file.

    Returns:
      The tokens of each, without empty ones: `a//b` is `("a", "b")`. Of separators that
      would do, the one that most names hold, and of these the first of `/ . , |`.
      Dots and slashes together, as in `encoder/layers.0/kernel`, both separate.
    """
    names = list(names)
    if names and all(map(_is_keystr, names)):
        return {name: _keys(name) for name in names}
    held = collections.Counter(c for name in names for c in _SINGLE if c in name)
    for separator in sorted(held, key=lambda c: (-held[c], _SINGLE.index(c))):
        split = _splitter(separator)
        if _is_tree([split(name) for name in names]):
            return {name: split(name) for name in names}
    split = _splitter("/")
    return {name: split(name) for name in names}


def _splitter(separator: str) -> Callable[[str], Path]:
    # Torch's dots stand beside slashes of nested dicts; no name of a layer has either.
    pattern = "[./]" if separator in "./" else re.escape(separator)
    return lambda name: tuple(filter(None, re.split(pattern, name)))


def _is_tree(paths: list[Path]) -> bool:
    """Whether all paths differ and none leads through another."""
    leaves = set(paths)
    if len(leaves) < len(paths) or () in leaves:
        return False
    inner = (prefix for path in paths for prefix in prefixes(path[:-1]))
    return leaves.isdisjoint(inner)


def _is_keystr(name: str) -> bool:
    return name[:1] in ("[", ".") and not _KEYS.sub("", name)


def _keys(name: str) -> Path:
    tokens = (m[m.lastindex or 0] for m in _KEYS.finditer(name))
    return tuple(part for token in tokens for part in token.split("/") if part)
