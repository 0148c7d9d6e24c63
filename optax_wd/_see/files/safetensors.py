# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file: its length in 8 bytes, then JSON.

The weights come after the header, and are not touched.
"""

import reprlib
from typing import Any

from optax_wd._see.files.headers import (
    MAX_HEADER,
    CheckpointError,
    Found,
    Source,
    add,
    count,
    parse_json,
    spec,
)

# The names of the format: the dtype in JAX, and bits for each element.
_DTYPES = {
    "BOOL": ("bool", 8),
    "F4": ("float4_e2m1fn", 4),
    "F6_E2M3": ("float6_e2m3fn", 6),
    "F6_E3M2": ("float6_e3m2fn", 6),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "BF16": ("bfloat16", 16),
    "C64": ("complex64", 64),
    **{f"F{bits}": (f"float{bits}", bits) for bits in (16, 32, 64)},
    **{f"I{bits}": (f"int{bits}", bits) for bits in (8, 16, 32, 64)},
    **{f"U{bits}": (f"uint{bits}", bits) for bits in (8, 16, 32, 64)},
}


def read_safetensors(source: Source) -> Found:
    """The arrays of one file, by the names that it has.

    Raises:
      CheckpointError: if the header is none, or does not fit the file.
    """
    length = int.from_bytes(source.read(8, "the length of the header"), "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"the header has {length} bytes by its own account, and the safetensors "
            f"format allows {MAX_HEADER}"
        )
    header = parse_json(source.read(length, "the header"), "the header")
    room = source.size - source.position
    found: Found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            _add(found, name, entry, room)
    return found


def _add(found: Found, name: str, entry: Any, room: int) -> None:
    shown = reprlib.repr(name)
    match entry:
        case {
            "dtype": str(dtype),
            "shape": [*shape],
            "data_offsets": [int(start), int(end)],
        } if not isinstance(start, bool) and not isinstance(end, bool):
            pass
        case _:
            raise CheckpointError(
                f"the entry of {shown} is {reprlib.repr(entry)}, expected dtype, shape "
                "and two data_offsets"
            )
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"the dtype of {shown} is {reprlib.repr(dtype)}, which safetensors does "
            "not have"
        )
    jax_name, bits = _DTYPES[dtype]
    leaf = spec(name, shape, jax_name)
    if not 0 <= start <= end <= room:
        raise CheckpointError(
            f"the data of {shown} is at bytes {start} to {end}, and {room} follow the "
            "header; the file is truncated or damaged"
        )
    if bits * count(leaf) != 8 * (end - start):
        raise CheckpointError(
            f"the data of {shown} has {end - start} bytes, which is not what {dtype} "
            f"of shape {reprlib.repr(shape)} takes"
        )
    add(found, name, leaf)
