# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in several files: by an index that lists them, or by their numbers.

Hugging Face cuts large models into shards of safetensors or of Flax msgpack, and writes
an index beside them: which array is in which file. Nothing outside of the folder is
opened, whatever the index says.
"""

import pathlib
import re
import reprlib
from collections.abc import Iterable

from optax_wd._see.files.headers import (
    MAX_HEADER,
    CheckpointError,
    Found,
    Source,
    about,
    add,
    by_path,
    parse_json,
)
from optax_wd._see.files.msgpack import read_msgpack
from optax_wd._see.files.safetensors import read_safetensors

_MAX_SHARDS = 1000
_NUMBERED = re.compile(r"(.*)-([0-9]{1,9})-of-([0-9]{1,9})(\.\w+)")


def read_shards(index: pathlib.Path) -> Found:
    """The arrays that an index lists, each from the file it names.

    Raises:
      CheckpointError: if the index is none, or a file or an array is missing.
    """
    with open(index, "rb") as file, about(index):
        shards = _shards(Source(file))
    for shard in shards:
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index}: the shard {shard!r} is not in the folder")
    return _joined(index, shards)


def set_of_shards(names: Iterable[str]) -> bool:
    """Whether all files are numbered shards of one checkpoint: `a-1-of-3.msgpack`."""
    found = map(_NUMBERED.fullmatch, names)
    sets = {m and (m[1], m[3], m[4]) for m in found}
    return len(sets) == 1 and None not in sets


def read_set(folder: pathlib.Path, names: list[str]) -> Found:
    """The arrays of numbered shards without an index.

    Raises:
      CheckpointError: if there are more or fewer files than their names say.
    """
    last = _NUMBERED.fullmatch(names[-1])
    if last is None or len(names) != int(last[3]) or len(names) > _MAX_SHARDS:
        raise CheckpointError(
            f"{folder}: {len(names)} shards such as {names[-1]!r} are in the folder, "
            f"and there is no index; expected as many as that says, to {_MAX_SHARDS}"
        )
    return _joined(folder, dict.fromkeys(names))


def _joined(
    where: pathlib.Path, shards: dict[str, list[str]] | dict[str, None]
) -> Found:
    """All arrays, of each shard those that are asked for; None for all of them."""
    folder = where if where.is_dir() else where.parent
    found: Found = {}
    total = 0
    for shard, names in shards.items():
        path = folder / shard
        nested = shard.endswith(".msgpack")
        with open(path, "rb") as file, about(path):
            source = Source(file)
            part = (read_msgpack if nested else read_safetensors)(source)
            total += 0 if nested else source.position
            if total > MAX_HEADER:
                raise CheckpointError(f"headers up to here exceed {MAX_HEADER} bytes")
            for name in part if names is None else names:
                if name not in part:
                    raise CheckpointError(f"there is no {reprlib.repr(name)} in it")
                add(found, name, part[name])
    if all(shard.endswith(".msgpack") for shard in shards):
        return found  # paths already
    with about(where):
        return by_path(found)


def _shards(source: Source) -> dict[str, list[str]]:
    """Files, and the names of the arrays that each should hold."""
    if source.size > MAX_HEADER:
        raise CheckpointError(f"the index has more than {MAX_HEADER} bytes")
    index = parse_json(source.read(source.size, "the index"), "the index")
    shards: dict[str, list[str]] = {}
    weights = index.get("weight_map")
    if not isinstance(weights, dict):
        raise CheckpointError("the file has no weight_map, so it is no index of shards")
    for name, shard in weights.items():
        # Nothing outside of the folder is opened, on any system.
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\:\0]+", shard):
            raise CheckpointError(
                f"the shard {reprlib.repr(shard)} is no name of a file in this folder"
            )
        shards.setdefault(shard, []).append(name)
    if len(shards) > _MAX_SHARDS:
        raise CheckpointError(f"the index names more than {_MAX_SHARDS} shards")
    return shards
