# SPDX-License-Identifier: Apache-2.0
"""The headers of the arrays in a NumPy `.npz`, a zip archive of `.npy` files.

Of each file only the header is unpacked. It is the text of a Python dict, which is
taken apart by patterns: to evaluate it, even as a literal, is to trust it.
"""

import re
import reprlib
import zipfile
from typing import IO, Any

from optax_wd._see.files.headers import (
    DTYPES,
    CheckpointError,
    Found,
    Source,
    add,
    by_path,
    count,
    spec,
)

_MAX_DIRECTORY = 20_000_000  # bytes; the names of some 150 000 arrays
_MAX_NPY_HEADER = 10_000  # characters, as in NumPy

_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([\d\s,L]*)\)""")
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*(?:['"][<>|=]?([\w\[\]]+)['"]|(\[))""")
_NOT_NUMBERS = re.compile(r"[SU]\d+|[Mm]8(\[\w+\])?")  # text and times

# By what a .npy file calls them. NumPy has no name for bfloat16 and writes 2 raw bytes.
_CODES = {x.str[1:]: name for name, x in DTYPES.items() if x.isbuiltin == 1}
_CODES["V2"] = "bfloat16"

PICKLE = (
    "this is or holds a pickle, which runs code when it is read; convert it to "
    "safetensors where you trust it"
)


class _Bounded:
    """The part of a file's interface that zipfile uses, with bounded reads.

    A zip archive says itself how long its directory is, and zipfile believes it.
    """

    def __init__(self, source: Source) -> None:
        self._file, self._size = source.file, source.size
        self.seek, self.tell = self._file.seek, self._file.tell
        self.seekable = self._file.seekable

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self.tell())
        size = left if size < 0 else min(size, left)
        if size > _MAX_DIRECTORY:
            raise CheckpointError(
                f"the directory of the archive has {size} bytes, and at most "
                f"{_MAX_DIRECTORY} are read"
            )
        return self._file.read(size)


def read_npz(source: Source) -> Found:
    """The arrays of an archive, by path.

    Text and times are left out, as no arrays of numbers.

    Raises:
      CheckpointError: if it is not an archive of plain arrays.
    """
    file: Any = _Bounded(source)
    found: Found = {}
    try:
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith(".pkl") for name in archive.namelist()):
                raise CheckpointError(PICKLE)
            for info in archive.infolist():
                _add(found, archive, info)
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"the zip archive is truncated or damaged: {error}"
        ) from None
    return by_path(found)


def _add(found: Found, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    shown = reprlib.repr(info.filename)
    if not info.filename.endswith(".npy"):
        raise CheckpointError(f"the zip archive holds {shown}, so it is not an .npz")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(f"{shown} is compressed otherwise than NumPy does")
    if info.flag_bits & 1:
        raise CheckpointError(f"{shown} is encrypted")
    with archive.open(info) as member:
        text = _header(member, shown)
        length = member.tell()
    shape, code = _SHAPE.search(text), _DESCR.search(text)
    if shape is None or code is None:
        raise CheckpointError(f"the header of {shown} is {reprlib.repr(text)}")
    if code[1] == "O":
        raise CheckpointError(f"{shown} holds Python objects: {PICKLE}")
    if code[1] is not None and _NOT_NUMBERS.fullmatch(code[1]):
        return
    name = info.filename.removesuffix(".npy")
    sizes = [int(size) for size in re.findall(r"\d+", shape[1])]
    leaf = spec(name, sizes, _CODES.get(code[1], code[1] or "a record"))
    if info.file_size != length + count(leaf) * leaf.dtype.itemsize:
        raise CheckpointError(
            f"{shown} has {info.file_size} bytes, which is not what {leaf.dtype} of "
            f"shape {reprlib.repr(sizes)} takes"
        )
    add(found, name, leaf)


def _header(member: IO[bytes], shown: str) -> str:
    """The header's text; the member is left where the data begins."""
    magic = member.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY":
        raise CheckpointError(f"{shown} is not in NumPy's format")
    length = int.from_bytes(member.read(2 if magic[6] == 1 else 4), "little")
    if length > _MAX_NPY_HEADER:
        raise CheckpointError(
            f"the header of {shown} has {length} bytes, and NumPy reads at most "
            f"{_MAX_NPY_HEADER}"
        )
    return member.read(length).decode("latin-1")
