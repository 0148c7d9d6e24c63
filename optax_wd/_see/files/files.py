# SPDX-License-Identifier: Apache-2.0
"""Which arrays a checkpoint on disk holds: names, shapes and dtypes, never weights.

Files of safetensors, NumPy `.npz` and Flax msgpack are told apart by what they contain.
Folders are those of Hugging Face, with shards or without, or Orbax, which reads its own
metadata.
"""

import os
import pathlib
import re
import stat
from collections.abc import Callable
from typing import Any

from optax_wd._see.files.headers import (
    MAX_HEADER,
    CheckpointError,
    Found,
    Source,
    about,
    add,
    by_path,
    spec,
)
from optax_wd._see.files.msgpack import read_msgpack
from optax_wd._see.files.npz import PICKLE, read_npz
from optax_wd._see.files.safetensors import read_safetensors
from optax_wd._see.files.shards import read_set, read_shards, set_of_shards
from optax_wd._see.files.states import OPTIMIZERS
from optax_wd._tree import leaves as _leaves

# Of several kinds in one folder the first is read: Hugging Face has both at times.
_ENDINGS = (
    *(".safetensors.index.json", ".safetensors"),
    *(".msgpack.index.json", ".msgpack"),
)
_ITEM = "_METADATA"  # a file that Orbax leaves beside every tree
_READS = "read are safetensors, .npz, Flax msgpack and folders of Orbax"

_HDF5 = b"\x89HDF"  # which could be a map of nine
_MAP = re.compile(rb"[\x80-\x8f\xde\xdf]")
_PICKLED = re.compile(rb"\x80[\x02-\x05]")
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib")
_BY_ENDING = {
    ".safetensors": read_safetensors,
    ".npz": read_npz,
    ".msgpack": read_msgpack,
}


def read(path: str | os.PathLike[str]) -> Found:
    """The arrays of a checkpoint, by path: a tree that `describe` takes.

    Args:
      path: a file; an index of shards; a folder with one checkpoint of safetensors or
        else msgpack, in one file or in shards; or a folder of Orbax: an item, a step
        with one item, or a root, of which the last step is read.

    Returns:
      Shapes and dtypes by path, `a/b/kernel`, in the order of the file. The `value` in
      which a saved `nnx.State` ends is left out.

    Raises:
      CheckpointError: if there is no sound checkpoint, with the file and the reason.
      OSError: if the file cannot be opened.
    """
    if not os.fspath(path):
        raise CheckpointError("the path of the checkpoint is empty")
    path = pathlib.Path(path)
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        found = _read_folder(path)
    elif stat.S_ISREG(mode):
        found = _read_file(path)
    else:  # to open a pipe would wait for its other end
        raise CheckpointError(f"{path}: this is neither a file nor a folder")
    if not found:
        raise CheckpointError(f"{path}: the checkpoint holds no arrays")
    return _without_value(found)


def _read_file(path: pathlib.Path) -> Found:
    with open(path, "rb") as file:
        head = file.read(16)
    with about(path):
        reader = _reader_of(head, path.name)
    return read_shards(path) if reader is None else _read_with(reader, path)


def _reader_of(head: bytes, name: str) -> Callable[[Source], Found] | None:
    """What reads a file that begins so; None for an index of shards."""
    ending = pathlib.PurePath(name).suffix.lower()
    # A header of less than a terabyte, then JSON. The length may look like a pickle.
    if head[8:9] == b"{" and not any(head[5:8]):
        return read_safetensors
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return read_npz
    if _PICKLED.match(head):
        raise CheckpointError(PICKLE)
    if ending in _BY_ENDING:
        return _BY_ENDING[ending]
    if head.lstrip().startswith(b"{"):
        return None
    if _MAP.match(head) and not head.startswith(_HDF5):
        return read_msgpack
    if ending in _PICKLES:
        raise CheckpointError(PICKLE)
    begins = f"begins with {head!r}" if head else "is empty"
    raise CheckpointError(f"the file {begins}; {_READS}")


def _read_with(reader: Callable[[Source], Found], path: pathlib.Path) -> Found:
    with open(path, "rb") as file, about(path):
        found = reader(Source(file))
        return by_path(found) if reader is read_safetensors else found


def _without_value(found: Found) -> Found:
    """Paths without the `value` of an `nnx.State`, which stands alone in its node."""
    if not any(path.endswith("/value") for path in found):
        return found
    # In this order all paths below a node stand together.
    ordered = sorted(tuple(path.split("/")) for path in found)
    around = [(), *ordered, ()]
    alone = {
        "/".join(path)
        for before, path, after in zip(around, ordered, around[2:], strict=False)
        if path[-1] == "value" and len(path) > 1
        if path[:-1] not in (before[: len(path) - 1], after[: len(path) - 1])
    }
    return {
        path.removesuffix("/value") if path in alone else path: leaf
        for path, leaf in found.items()
    }


# --------------------------------------------------------------------------- folders


def _read_folder(folder: pathlib.Path) -> Found:
    names = sorted(os.listdir(folder))
    if _ITEM in names:
        return _read_orbax(folder)
    for ending in _ENDINGS:
        files = [name for name in names if name.endswith(ending)]
        if set_of_shards(files):
            return read_set(folder, files)
        if files:
            return _read_file(folder / _only(folder, files))
    items = _items(folder)
    steps = [name for name in names if re.fullmatch(r"(.*_)?[0-9]{1,18}", name)]
    if not items and steps:
        folder /= max(steps, key=lambda name: int(name.rpartition("_")[2]))
        if folder.is_file():  # as `flax.training.checkpoints` writes them
            return _read_file(folder)
        items = _items(folder)
    if not items:
        raise CheckpointError(f"{folder}: the folder holds no checkpoint; {_READS}")
    if len([item for item in items if item not in OPTIMIZERS]) == 1:
        return {  # the items of one state, as for NNX's model and optimizer
            f"{item}/{path}" if len(items) > 1 else path: leaf
            for item in items
            for path, leaf in _read_orbax(folder / item).items()
        }
    return _read_orbax(folder / _only(folder, items))


def _only(folder: pathlib.Path, names: list[str]) -> str:
    if len(names) > 1:
        raise CheckpointError(
            f"{folder}: the folder holds {len(names)} checkpoints; name one of "
            f"{', '.join(map(repr, names[:5]))}"
        )
    return names[0]


def _items(step: pathlib.Path) -> list[str]:
    """The items in a step of Orbax that are trees."""
    if not step.is_dir():
        return []
    return sorted(x.name for x in step.iterdir() if (x / _ITEM).is_file())


def _read_orbax(folder: pathlib.Path) -> Found:
    with about(folder):
        for file in (folder / _ITEM, *(folder / "array_metadatas").glob("*")):
            if file.stat().st_size > MAX_HEADER:
                raise CheckpointError(f"{file.name} has more than {MAX_HEADER} bytes")
        try:
            from orbax import checkpoint
        except ImportError:
            raise CheckpointError(
                "to read a folder of Orbax, install orbax-checkpoint"
            ) from None
        handler: Any = checkpoint.PyTreeCheckpointHandler()
        found: Found = {}
        tree = handler.metadata(folder.absolute()).tree
        for path, facts in _leaves.leaves_with_paths(tree):
            shape, dtype = getattr(facts, "shape", None), getattr(facts, "dtype", None)
            if shape is not None and dtype is not None:  # text has neither
                name = "/".join(path)
                add(found, name, spec(name, shape, str(dtype)))
        return found
