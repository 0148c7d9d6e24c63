# SPDX-License-Identifier: Apache-2.0
"""What the readers of checkpoints share: bounds, exact reads, one-sentence errors.

A checkpoint may come from a stranger. Nothing that it says about itself is believed
before it is checked, nothing in it is run, and no more of it is held than the bounds
allow. Weights are skipped, never read.
"""

import contextlib
import json
import math
import os
import pathlib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np

from optax_wd._see.files.separators import paths_of

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself
MAX_LEAVES = 300_000  # a mixture of hundreds of experts has some 100 000
MAX_NAME = 500  # characters of a path
_MAX_DEPTH = 64  # tokens of a path; as many as maps within maps of msgpack
_MAX_NDIM = 64  # as in NumPy
_MAX_COMMAS = 10 * MAX_LEAVES  # a tensor of a header has some eight

_NOT_IN_NAMES = set("<>\\")

_NAMES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bfloat16", "complex64", "complex128"),
    *("int2", "int4", "uint2", "uint4", "float4_e2m1fn", "float6_e2m3fn"),
    *("float6_e3m2fn", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    "float8_e8m0fnu",
)
DTYPES = {name: np.dtype(name) for name in _NAMES}  # JAX has registered its own

Found = dict[str, jax.ShapeDtypeStruct]
"""What a checkpoint holds: `a/b/kernel` -> shape and dtype."""


class CheckpointError(ValueError):
    """A file or folder that is no checkpoint, or not a sound one."""


@contextlib.contextmanager
def about(path: pathlib.Path) -> Iterator[None]:
    """Errors name the file. zipfile and Orbax raise whatever bad content leads to."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:
        told = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(f"{path}: this cannot be read: {told}") from None


class Source:
    """A file that is read exactly, never past its end, and only where asked."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = file.seek(0, os.SEEK_END)
        self.position = file.seek(0)  # bytes from the start

    def read(self, count: int, what: str) -> bytes:
        """Just `count` bytes; an error that says `what` they are if there are fewer."""
        self._advance(count, what)
        return self.file.read(count)

    def skip(self, count: int, what: str) -> None:
        """Go past `count` bytes without reading them."""
        self._advance(count, what)
        self.file.seek(self.position)

    def _advance(self, count: int, what: str) -> None:
        left = self.size - self.position
        if count > left:
            raise CheckpointError(
                f"the file ends too early: {what} has {count} bytes, and {left} are "
                "left; it is truncated or damaged"
            )
        self.position += count


def spec(name: str, shape: Sequence[Any], dtype: str) -> jax.ShapeDtypeStruct:
    """The static facts of one array, checked.

    Args:
      name: the array's name, tokens separated by slashes.
      shape: sizes as the file has them, of any type.
      dtype: a name as in NumPy and JAX.

    Raises:
      CheckpointError: if the name is hostile, or the shape or the dtype is none.
    """
    _check_name(name)
    if len(shape) > _MAX_NDIM or not all(
        type(size) is int and 0 <= size < 2**63 for size in shape
    ):
        raise CheckpointError(
            f"the shape of {reprlib.repr(name)} is {reprlib.repr(list(shape))}, "
            f"expected at most {_MAX_NDIM} whole numbers from 0 on"
        )
    if dtype not in DTYPES:
        raise CheckpointError(
            f"the dtype of {reprlib.repr(name)} is {reprlib.repr(dtype)}, which JAX "
            "does not have"
        )
    return jax.ShapeDtypeStruct(tuple(shape), DTYPES[dtype])


def _check_name(name: str) -> None:
    """What a name could do to a terminal, a page or a folder is not waited for."""
    if len(name) > MAX_NAME:
        raise CheckpointError(
            f"a name has {len(name)} characters, {reprlib.repr(name)}; at most "
            f"{MAX_NAME} are read"
        )
    if not name.isprintable() or set(name) & _NOT_IN_NAMES:
        raise CheckpointError(
            f"the name {reprlib.repr(name)} holds control characters, <, > or "
            "backslashes, which the names of parameters do not"
        )
    if sum(map(name.count, "/.,|[")) >= _MAX_DEPTH:
        raise CheckpointError(
            f"the name {reprlib.repr(name)} has more than {_MAX_DEPTH} parts"
        )
    parts = name.split("/")
    if not (parts[0] and parts[-1]) or {".", ".."} & set(parts):
        raise CheckpointError(
            f"the name {reprlib.repr(name)} has a part that is empty, . or ..; "
            "expected one such as 'a/b/kernel'"
        )


def by_path(found: Mapping[str, jax.ShapeDtypeStruct]) -> Found:
    """Arrays under flat names, each under its path."""
    paths: Found = {}
    for name, tokens in paths_of(found).items():
        path = "/".join(tokens)
        _check_name(path)  # `...` has no token at all
        add(paths, path, found[name])
    return paths


def add(found: Found, path: str, leaf: jax.ShapeDtypeStruct) -> None:
    """Put an array under its path, which has to be new."""
    if path in found:
        raise CheckpointError(f"two arrays have the path {reprlib.repr(path)}")
    if len(found) == MAX_LEAVES:
        raise CheckpointError(f"there are more than {MAX_LEAVES} arrays")
    found[path] = leaf


def count(leaf: jax.ShapeDtypeStruct) -> int:
    """The number of elements, which a hostile shape may make very large."""
    return math.prod(leaf.shape)


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """An object of JSON in UTF-8, in which no name occurs twice.

    Args:
      text: at most MAX_HEADER bytes.
      what: the name of the text in messages.

    Raises:
      CheckpointError: if the text is anything else, or would fill the memory.
    """
    # Every element costs some fifty bytes of memory, whatever it takes in the file.
    if text.count(b",") > _MAX_COMMAS:
        raise CheckpointError(f"{what} has more than {_MAX_COMMAS} elements")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is {reprlib.repr(value)}, expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise CheckpointError(f"the name {reprlib.repr(twice)} occurs twice")
    return found
