# SPDX-License-Identifier: Apache-2.0
"""The arrays of a Flax msgpack file, without their bytes.

`flax.serialization` writes nested maps. An array is an extension that holds a shape,
the name of a dtype and bytes; beyond a gigabyte, a map of such pieces. The bytes are
skipped, so that a file of any size is read at once.
"""

import reprlib
from collections.abc import Iterator
from typing import Any

import jax

from optax_wd._see.files.headers import (
    MAX_LEAVES,
    MAX_NAME,
    CheckpointError,
    Found,
    Source,
    add,
    by_path,
    count,
    spec,
)
from optax_wd._tree.typing import Path

_MAX_DEPTH = 64  # maps within maps
_MAX_VALUES = 3 * MAX_LEAVES  # the sizes of shapes among them
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY, _SCALAR = 1, 3  # Flax's numbers for its extensions

# First byte: the kind, and the bytes that its length (or value) takes.
_TAGS = {
    **{0xC0: ("rest", 0), 0xC2: ("rest", 0), 0xC3: ("rest", 0)},  # nil, false, true
    **{0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4)},
    **{0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4)},
    **{0xCA: ("rest", 4), 0xCB: ("rest", 8)},  # floats
    **{0xCC: ("int", 1), 0xCD: ("int", 2), 0xCE: ("int", 4), 0xCF: ("int", 8)},
    **{0xD0: ("rest", 1), 0xD1: ("rest", 2), 0xD2: ("rest", 4), 0xD3: ("rest", 8)},
    **{0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4)},
    **{0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)},
}
_SHORT_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def read_msgpack(source: Source) -> Found:
    """The arrays of a file that Flax wrote; Python's own numbers are left out.

    Keys are as they are, slashes of their own included, unless none is nested: then
    they are the names of a flattened tree.

    Raises:
      CheckpointError: if it is no such file, or damaged.
    """
    tree = _Reader(source).value(())
    if not isinstance(tree, dict):
        raise CheckpointError("the file has no map of names at its top")
    if left := source.size - source.position:
        raise CheckpointError(f"{left} bytes follow the end of the tree")
    found: Found = {}
    for path, leaf in _leaves(tree, ()):
        add(found, "/".join(path), leaf)
    nested = any(isinstance(node, dict) for node in tree.values())
    return found if nested else by_path(found)


def _leaves(node: Any, path: Path) -> Iterator[tuple[Path, jax.ShapeDtypeStruct]]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _leaves(child, (*path, key))
    elif isinstance(node, jax.ShapeDtypeStruct):
        yield path, node


class _Reader:
    """Goes through the file once; what it makes has dicts for nodes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._values = 0

    def value(self, path: Path) -> Any:
        """A dict, an array's facts, a whole number, or None for anything else."""
        self._values += 1
        if self._values > _MAX_VALUES:
            raise CheckpointError(f"there are more than {_MAX_VALUES} values")
        if len(path) > _MAX_DEPTH:
            raise CheckpointError(f"the tree is more than {_MAX_DEPTH} levels deep")
        kind, number = self._head()
        if kind == "int":
            return number
        if kind == "map":
            return _joined(self._map(path, number), path)
        if kind == "list":
            return {str(n): self.value((*path, str(n))) for n in range(number)}
        if kind == "ext":
            return self._extension(path, number)
        self._source.skip(number, "a value")
        return None

    def _head(self) -> tuple[str, int]:
        """The kind of the next value, and its length; of a whole number, itself."""
        tag = self._source.read(1, "the next value")[0]
        if tag < 0x80:
            return "int", tag
        if tag < 0xC0:
            kind = "map" if tag < 0x90 else "list" if tag < 0xA0 else "str"
            return kind, tag & (0x1F if kind == "str" else 0x0F)
        if tag >= 0xE0:  # a small negative number
            return "rest", 0
        if tag in _SHORT_EXT:
            return "ext", _SHORT_EXT[tag]
        if tag not in _TAGS:
            raise CheckpointError(f"byte {self._source.position - 1} is no msgpack")
        kind, width = _TAGS[tag]
        if kind == "rest":
            return kind, width
        return kind, int.from_bytes(self._source.read(width, "a length"), "big")

    def _map(self, path: Path, length: int) -> dict[str, Any]:
        node: dict[str, Any] = {}
        for _ in range(length):
            key = self._text("a name")
            if key in node:
                raise CheckpointError(f"the name {reprlib.repr(key)} occurs twice")
            node[key] = self.value((*path, key))
        return node

    def _text(self, what: str) -> str:
        kind, length = self._head()
        if kind != "str":
            raise CheckpointError(f"{what} is a {kind}, expected text")
        if length > MAX_NAME:
            raise CheckpointError(
                f"{what} has {length} bytes; at most {MAX_NAME} are read"
            )
        try:
            return self._source.read(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{what} is not UTF-8") from None

    def _extension(self, path: Path, length: int) -> jax.ShapeDtypeStruct | None:
        code = self._source.read(1, "the kind of an extension")[0]
        if code not in (_ARRAY, _SCALAR):
            self._source.skip(length, "an extension")
            return None
        name, end = "/".join(path), self._source.position + length
        if self._head() != ("list", 3):
            raise CheckpointError(
                f"the array {reprlib.repr(name)} is not shape, dtype and bytes"
            )
        shape = self.value(path)
        if not isinstance(shape, dict):
            raise CheckpointError(f"the shape of {reprlib.repr(name)} is no list")
        leaf = spec(name, list(shape.values()), self._text("the name of a dtype"))
        kind, size = self._head()
        if kind != "bin" or size != count(leaf) * leaf.dtype.itemsize:
            raise CheckpointError(
                f"the data of {reprlib.repr(name)} is a {kind} of {size} bytes, which "
                f"is not what {leaf.dtype} of its shape takes"
            )
        self._source.skip(size, f"the data of {reprlib.repr(name)}")
        if self._source.position != end:
            raise CheckpointError(f"the length of {reprlib.repr(name)} is wrong")
        return leaf


def _joined(node: dict[str, Any], path: Path) -> Any:
    """The array that a map of pieces stands for; other maps as they are."""
    if _CHUNKED not in node:
        return node
    name = "/".join(path)
    match node:
        case {"shape": dict(shape), "chunks": dict(chunks)}:
            pieces = [x for x in chunks.values() if isinstance(x, jax.ShapeDtypeStruct)]
            if pieces and len(pieces) == len(chunks):
                leaf = spec(name, list(shape.values()), pieces[0].dtype.name)
                if count(leaf) == sum(map(count, pieces)):
                    return leaf
    raise CheckpointError(
        f"the pieces of {reprlib.repr(name)} do not make the array that it says it is"
    )
