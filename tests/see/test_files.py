# SPDX-License-Identifier: Apache-2.0
"""Every format gives the names, shapes and dtypes that were saved, and no more is read.

Files that are broken or hostile stand in test_main.py.
"""

import json
import logging
import pathlib
import sys
import tracemalloc
import zipfile
from typing import Any, NamedTuple

import flax.serialization
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import core, nnx
from flax.training import train_state

import optax_wd as wd
from optax_wd._see.files import files as _files

GIGABYTE = 10**9


def facts(found: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype by path."""
    return {path: (x.shape, x.dtype.name) for path, x in found.items()}


def saved(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return facts(helpers.flat(tree))


def written(folder: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
    path = folder / name
    path.write_bytes(content)
    return path


def params(dtype: Any = jnp.bfloat16) -> dict[str, Any]:
    """A tree of several dtypes and ranks."""
    return {
        **helpers.tree(),
        "head": {"kernel": jnp.ones((2, 3), dtype), "count": jnp.zeros((), jnp.int32)},
        "empty": jnp.zeros((0, 3)),
    }


# ----------------------------------------------------------------------- safetensors

DTYPES = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16"},
    **{"U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{"C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
    **{"F8_E8M0": "float8_e8m0fnu", "F4": "float4_e2m1fn"},
    **{"F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn"},
}
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_safetensors_is_known(tmp_path: Any, dtype: str) -> None:
    bits = BITS.get(dtype, 8 * np.dtype(DTYPES[dtype]).itemsize)
    entry = {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, bits]}
    file = written(tmp_path, "a.safetensors", helpers.safetensors({"a": entry}, bits))
    assert facts(_files.read(file)) == {"a": ((2, 4), DTYPES[dtype])}
    assert len(wd.describe(wd.standard, _files.read(file)).rows) == 1


def test_names_of_safetensors_are_split_at_dots_and_slashes(tmp_path: Any) -> None:
    names = ("blocks.0.attn.weight", "params/head/kernel", ".layers[1].bias", "scale")
    header: dict[str, Any] = dict(
        zip(names, helpers.float32((2, 3), (3,), (), (0,)), strict=True)
    )
    header["__metadata__"] = {"format": "pt"}
    file = written(tmp_path, "a.safetensors", helpers.safetensors(header, 40))
    assert facts(_files.read(file)) == {
        "blocks/0/attn/weight": ((2, 3), "float32"),
        "params/head/kernel": ((3,), "float32"),
        "layers[1]/bias": ((), "float32"),
        "scale": ((0,), "float32"),
    }
    rows = wd.describe(wd.named("weight"), _files.read(file)).rows
    assert [row.path for row in rows if row.decays] == ["blocks/0/attn/weight"]


@pytest.mark.parametrize("length", [0x80, 0x280, 0x8280])
def test_a_length_that_looks_like_another_format_is_no_matter(
    tmp_path: Any, length: int
) -> None:
    # 0x280 as bytes begins as a pickle does, 0x80 as a msgpack map.
    text = json.dumps({"a": helpers.float32((2,))[0]}).encode().ljust(length)
    file = written(tmp_path, "no_ending", helpers.safetensors(text, 8))
    assert facts(_files.read(file)) == {"a": ((2,), "float32")}


def shards(folder: pathlib.Path, weight_map: dict[str, str]) -> pathlib.Path:
    """Two shards, with one array each, and an index."""
    for name, shape in (("one", (2, 3)), ("two", (3,))):
        header = {f"{name}.weight": helpers.float32(shape)[0]}
        content = helpers.safetensors(header, 4 * int(np.prod(shape)))
        written(folder, f"{name}.safetensors", content)
    text = json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map})
    return written(folder, "model.safetensors.index.json", text.encode())


def test_shards_are_read_by_their_index_or_by_their_folder(tmp_path: Any) -> None:
    index = shards(
        tmp_path,
        {"one.weight": "one.safetensors", "two.weight": "two.safetensors"},
    )
    expected = {"one/weight": ((2, 3), "float32"), "two/weight": ((3,), "float32")}
    assert facts(_files.read(index)) == expected
    assert facts(_files.read(tmp_path)) == expected
    assert facts(_files.read(str(tmp_path))) == expected


def test_a_folder_with_one_file_of_safetensors_stands_for_it(tmp_path: Any) -> None:
    content = helpers.safetensors({"a": helpers.float32((2,))[0]}, 8)
    written(tmp_path, "model.safetensors", content)
    written(tmp_path, "config.json", b"{}")
    assert facts(_files.read(tmp_path)) == {"a": ((2,), "float32")}


def packed_shards(folder: pathlib.Path) -> dict[str, str]:
    """Two shards of msgpack as Hugging Face cuts them; which array is in which."""
    parts = (
        {"wte": {"embedding": jnp.ones((4, 2))}},
        {"h": {"0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}},
    )
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"flax_model-0000{number}-of-00002.msgpack"
        written(folder, name, flax.serialization.to_bytes(part))
        weight_map |= dict.fromkeys(helpers.flat(part), name)
    return weight_map


def test_folders_of_hugging_face_are_read_in_flax_too(tmp_path: Any) -> None:
    tree = params()
    file = written(
        tmp_path, "flax_model.msgpack", flax.serialization.msgpack_serialize(tree)
    )
    written(tmp_path, "config.json", b"{}")
    assert facts(_files.read(tmp_path)) == facts(_files.read(file)) == saved(tree)


@pytest.mark.parametrize("by", ["index", "folder", "numbers"])
def test_shards_of_msgpack_are_read(tmp_path: Any, by: str) -> None:
    weight_map = packed_shards(tmp_path)
    path = tmp_path
    if by != "numbers":
        text = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        index = written(tmp_path, "flax_model.msgpack.index.json", text)
        path = index if by == "index" else tmp_path
    assert facts(_files.read(path)) == {
        "wte/embedding": ((4, 2), "float32"),
        "h/0/kernel": ((2, 3), "float32"),
        "h/0/bias": ((3,), "float32"),
    }


def test_of_two_formats_in_a_folder_safetensors_are_read(tmp_path: Any) -> None:
    packed_shards(tmp_path)
    content = helpers.safetensors({"a": helpers.float32((2,))[0]}, 8)
    written(tmp_path, "model.safetensors", content)
    assert facts(_files.read(tmp_path)) == {"a": ((2,), "float32")}


def test_numbered_shards_have_to_be_complete_where_no_index_says(tmp_path: Any) -> None:
    packed_shards(tmp_path)
    (tmp_path / "flax_model-00001-of-00002.msgpack").unlink()
    with pytest.raises(ValueError, match="1 shards such as 'flax_model-00002-of-00002"):
        _files.read(tmp_path)


def test_a_step_of_the_old_flax_is_a_file(tmp_path: Any) -> None:
    for step in (9, 10):
        tree = {"a": np.ones(step)}
        written(tmp_path, f"checkpoint_{step}", flax.serialization.to_bytes(tree))
    assert facts(_files.read(tmp_path)) == {"a": ((10,), "float64")}


# --------------------------------------------------------------------------- .npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["as is", "zip"])
def test_npz_gives_what_was_saved(tmp_path: Any, save: Any) -> None:
    flat = {k: np.asarray(v) for k, v in helpers.flat(params()).items()}
    save(tmp_path / "a.npz", **flat)  # NumPy writes bfloat16 as raw bytes
    assert facts(_files.read(tmp_path / "a.npz")) == saved(params())


@pytest.mark.parametrize(
    "dtype",
    [
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
        *("uint64", "float16", "float32", "float64", "complex64", "complex128"),
        *(">f4", ">i8"),
    ],
)
def test_npz_gives_every_dtype_of_numpy(tmp_path: Any, dtype: str) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3), dtype, order="F"), b=np.zeros(3))
    found = facts(_files.read(tmp_path / "a.npz"))
    assert found == {"a": ((2, 3), np.dtype(dtype).name), "b": ((3,), "float64")}


def test_npz_leaves_out_text_and_times(tmp_path: Any) -> None:
    times = np.array(["2020-01-01"], "M8[D]")
    given: dict[str, Any] = {
        "a.weight": np.zeros(()),
        "text": np.array("x"),
        "t": times,
    }
    np.savez(tmp_path / "a.npz", b=np.array(b"bytes"), d=times - times, **given)
    assert facts(_files.read(tmp_path / "a.npz")) == {"a/weight": ((), "float64")}


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)], ids=helpers.label)
def test_npz_reads_all_versions_of_its_headers(
    tmp_path: Any, version: tuple[int, int]
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        with archive.open("a.npy", "w") as member:
            file: Any = member
            np.lib.format.write_array(file, np.zeros((4, 5)), version=version)
    assert facts(_files.read(tmp_path / "a.npz")) == {"a": ((4, 5), "float64")}


# -------------------------------------------------------------------------- msgpack


def packed(folder: pathlib.Path, tree: Any) -> pathlib.Path:
    return written(folder, "a.msgpack", flax.serialization.to_bytes(tree))


@pytest.mark.parametrize(
    "tree",
    [
        params(),
        params(jnp.float8_e4m3fn),
        core.freeze(params()),
        {"n": np.ones(70_000)},
    ],
    ids=["dict", "float8", "FrozenDict", "long"],
)
def test_msgpack_gives_what_was_saved(tmp_path: Any, tree: Any) -> None:
    assert facts(_files.read(packed(tmp_path, tree))) == saved(tree)


def test_msgpack_of_a_train_state_has_the_optimizer_too(tmp_path: Any) -> None:
    tx = optax.adam(1e-3)
    state = train_state.TrainState.create(
        apply_fn=lambda: None, params={"kernel": jnp.ones((2, 3))}, tx=tx
    )
    found = facts(_files.read(packed(tmp_path, state)))
    assert found == {
        "params/kernel": ((2, 3), "float32"),
        "opt_state/0/count": ((), "int32"),
        "opt_state/0/mu/kernel": ((2, 3), "float32"),
        "opt_state/0/nu/kernel": ((2, 3), "float32"),
    }


@pytest.mark.parametrize("separator", "/.,|")
def test_msgpack_of_a_flattened_tree_is_read_as_paths(
    tmp_path: Any, separator: str
) -> None:
    flat = {
        path.replace("/", separator): x for path, x in helpers.flat(params()).items()
    }
    assert facts(_files.read(packed(tmp_path, flat))) == saved(params())


def test_keys_of_nested_msgpack_are_not_split(tmp_path: Any) -> None:
    keys = ("Dense_0/kernel/scale", "a,b", "c,d")
    tree = {"WeightNorm_0": {key: np.ones(2) for key in keys}}
    found = _files.read(packed(tmp_path, tree))
    assert list(found) == [f"WeightNorm_0/{key}" for key in keys]
    rows = wd.describe(wd.standard, found).rows
    assert rows == wd.describe(wd.standard, tree).rows


def test_msgpack_leaves_out_what_is_no_array_whatever_it_is(tmp_path: Any) -> None:
    others = [
        None,
        True,
        False,
        0,
        127,
        200,
        70_000,
        2**40,
        -1,
        -100,
        -40_000,
        -(2**40),
    ]
    texts = ["", "x" * 31, "x" * 200, "x" * 70_000, b"y", b"y" * 70_000, 1.5, 2 + 3j]
    tree = {
        "others": others + texts,
        "scalar": np.float32(1.0),
        "list": [np.ones(2), {"a": np.ones(3)}],
        "many": {str(n): n for n in range(70_000)},
    }
    file = written(tmp_path, "a", flax.serialization.msgpack_serialize(tree))
    assert facts(_files.read(file)) == {
        "scalar": ((), "float32"),
        "list/0": ((2,), "float64"),
        "list/1/a": ((3,), "float64"),
    }


def test_msgpack_joins_the_pieces_of_a_large_array(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
    tree = {"a": {"kernel": np.ones((5, 7), np.float32)}, "b": np.ones(3)}
    file = packed(tmp_path, tree)
    assert file.read_bytes().count(b"chunked") == 1
    assert facts(_files.read(file)) == saved(tree)


# ---------------------------------------------------------------------------- Orbax


def managed(root: pathlib.Path, steps: tuple[int, ...], **items: Any) -> pathlib.Path:
    """A root of a CheckpointManager whose items grow with the step."""
    names = (*items, "config")
    with ocp.CheckpointManager(root, item_names=names) as manager:
        for step in steps:
            grown = {
                name: ocp.args.StandardSave({"kernel": jnp.ones((step, width))})
                for name, width in items.items()
            }
            config = ocp.args.JsonSave({"step": step})
            manager.save(step, args=ocp.args.Composite(config=config, **grown))
        manager.wait_until_finished()
    return root


def test_orbax_gives_what_was_saved(tmp_path: Any) -> None:
    tree = {
        **params(),
        "empty": jnp.ones(1),
        "layers": [jnp.ones(2), {"a": jnp.ones(3)}],
        "none": None,
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", tree)
    del tree["none"]  # which has no leaf
    assert facts(_files.read(tmp_path / "a")) == saved(tree)


def test_orbax_leaves_out_text_and_lists_python_numbers(tmp_path: Any) -> None:
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    checkpointer.save(tmp_path / "a", {"a": np.ones(2), "n": 3, "text": "hello"})
    found = facts(_files.read(tmp_path / "a"))
    assert found == {"a": ((2,), "float64"), "n": ((), "int64")}


def test_orbax_reads_the_last_step_a_given_step_or_an_item(tmp_path: Any) -> None:
    root = managed(tmp_path / "run", (2, 10), state=3)
    written(root, "20.orbax-checkpoint-tmp-1", b"")  # was being written
    last, first = {"kernel": ((10, 3), "float32")}, {"kernel": ((2, 3), "float32")}
    assert facts(_files.read(root)) == last
    assert facts(_files.read(root / "10")) == last
    assert facts(_files.read(root / "2")) == first
    assert facts(_files.read(root / "2" / "state")) == first


def test_orbax_with_several_items_asks_for_one(tmp_path: Any) -> None:
    root = managed(tmp_path / "run", (2,), state=3, ema=4)
    with pytest.raises(ValueError, match="2: the folder holds 2 checkpoints; name one"):
        _files.read(root)
    assert facts(_files.read(root / "2" / "ema")) == {"kernel": ((2, 4), "float32")}


def test_orbax_says_nothing_of_its_own(
    tmp_path: Any, capfd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root = managed(tmp_path / "run", (2,), state=3)
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.WARNING):
        _files.read(root)
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


def test_without_orbax_its_folders_are_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "_METADATA", b"{}")
    monkeypatch.setitem(sys.modules, "orbax", None)
    with pytest.raises(
        ValueError, match="to read a folder of Orbax, install orbax-che"
    ):
        _files.read(tmp_path)


# ----------------------------------------------------------------------- any format


class Attention(NamedTuple):
    """Fields that are called as the boxes of Flax call theirs."""

    key: Any
    value: Any


def test_the_value_of_a_saved_nnx_state_is_left_out(tmp_path: Any) -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    state = {"dense": nnx.to_pure_dict(nnx.state(model))}
    expected = saved(state)
    boxed = jax.tree.map(lambda x: {"value": x}, state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", nnx.state(model))
    orbax = {
        f"dense/{path}": x for path, x in facts(_files.read(tmp_path / "a")).items()
    }
    assert orbax == facts(_files.read(packed(tmp_path, boxed))) == expected


def test_a_field_that_is_called_value_is_kept(tmp_path: Any) -> None:
    tree = {"attn": Attention(jnp.ones(2), jnp.ones(3)), "value": jnp.ones(4)}
    found = facts(_files.read(packed(tmp_path, tree)))
    assert set(found) == {"attn/key", "attn/value", "value"}


def test_a_value_below_an_array_is_kept(tmp_path: Any) -> None:
    header = dict(zip(("a.b", "a.b.value"), helpers.float32((2,), (3,)), strict=True))
    file = written(tmp_path, "a.safetensors", helpers.safetensors(header, 20))
    assert set(facts(_files.read(file))) == {"a/b", "a/b/value"}


def test_formats_are_told_apart_without_endings(tmp_path: Any) -> None:
    tree = {"a": {"kernel": np.ones((2, 3), np.float32)}}
    header = {"a.kernel": helpers.float32((2, 3))[0]}
    one = written(tmp_path, "one", helpers.safetensors(header, 24))
    two = written(tmp_path, "two", flax.serialization.to_bytes(tree))
    with open(tmp_path / "three", "wb") as file:
        flat: dict[str, Any] = helpers.flat(tree)
        np.savez(file, **flat)
    for path in (one, two, tmp_path / "three"):
        assert facts(_files.read(path)) == saved(tree)


def test_what_is_read_is_described_as_the_tree_is(tmp_path: Any) -> None:
    tree = params()
    found = wd.describe(wd.standard, _files.read(packed(tmp_path, tree)))
    assert found.rows == wd.describe(wd.standard, tree).rows


def sparse(path: pathlib.Path, head: bytes, size: int) -> pathlib.Path:
    """A file that begins so, and goes on with zeros that take no place on the disk."""
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def hundred_gigabytes_of_safetensors(folder: pathlib.Path) -> pathlib.Path:
    header = helpers.safetensors({"a.kernel": helpers.float32((25, GIGABYTE))[0]})
    return sparse(folder / "a.safetensors", header, len(header) + 100 * GIGABYTE)


def hundred_gigabytes_of_msgpack(folder: pathlib.Path) -> pathlib.Path:
    """As Flax writes it: pieces of a gigabyte, within one map."""
    pieces, size = 100, GIGABYTE
    shape = bytes([0x91, 0xCE]) + size.to_bytes(4, "big")
    head = b"\x93" + shape + b"\xa4int8" + b"\xc6" + size.to_bytes(4, "big")
    piece = b"\xc9" + (len(head) + size).to_bytes(4, "big") + b"\x01" + head
    whole = {"__msgpack_chunked_array__": True, "shape": {"0": size, "1": pieces}}
    start = flax.serialization.msgpack_serialize(whole)
    with open(folder / "a.msgpack", "wb") as file:
        file.write(b"\x81\xa1a\x83" + start[1:] + b"\xa6chunks")
        file.write(b"\xde" + pieces.to_bytes(2, "big"))
        for n in range(pieces):
            file.write(b"\xa3" + f"{n:03}".encode() + piece)
            file.seek(size, 1)
        file.truncate()
    return folder / "a.msgpack"


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (hundred_gigabytes_of_safetensors, (25, GIGABYTE)),
        (hundred_gigabytes_of_msgpack, (GIGABYTE, 100)),
    ],
    ids=["safetensors", "msgpack"],
)
def test_a_hundred_gigabytes_of_weights_are_not_read(
    tmp_path: Any, make: Any, shape: tuple[int, ...]
) -> None:
    path = make(tmp_path)
    assert path.stat().st_size > 99 * GIGABYTE
    tracemalloc.start()
    [leaf] = _files.read(path).values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert leaf.shape == shape
    assert peak < 1_000_000


def test_an_archive_is_not_unpacked(tmp_path: Any) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros((100, 1_000_000), np.int8))
    tracemalloc.start()
    found = facts(_files.read(tmp_path / "a.npz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {"a": ((100, 1_000_000), "int8")}
    assert peak < 1_000_000


def test_offsets_are_numbers_and_no_truth_values(tmp_path: pathlib.Path) -> None:
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ValueError, match="expected dtype, shape and two data_offsets"):
        _files.read(path)
