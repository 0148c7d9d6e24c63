# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, and one clear line for everything that is wrong."""

import io
import json
import os
import pathlib
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import helpers
import jax
import numpy as np
import pytest

import optax_wd as wd
from optax_wd import __main__

ENTRY = helpers.float32((2, 3))[0]
NAMES = ("block_0/kernel", "block_1/kernel", "head/bias")


def run(*arguments: object) -> int:
    return __main__.main([str(argument) for argument in arguments])


def checkpoint(folder: pathlib.Path, name: str = "a.safetensors", **more: Any) -> Any:
    """A file with two kernels and a bias."""
    header = dict(zip(NAMES, helpers.float32((2, 3), (2, 3), (3,)), strict=True))
    path = folder / name
    path.write_bytes(helpers.safetensors({**header, **more}, 60))
    return path


def tree(*names: str) -> dict[str, Any]:
    shapes = {"kernel": (2, 3), "bias": (3,)}
    return {n: jax.ShapeDtypeStruct(shapes[n.split("/")[1]], "float32") for n in names}


# -------------------------------------------------------------------------- describe


def test_describe_prints_what_describe_prints(tmp_path: Any, capfd: Any) -> None:
    assert run("describe", checkpoint(tmp_path)) == 0
    expected = str(wd.describe(wd.standard, tree(*NAMES)))
    assert capfd.readouterr() == (f"{expected}\n", "")


@pytest.mark.parametrize(
    ("option", "text", "rule"),
    [
        ("--rule", "named('bias')", wd.named("bias")),
        ("--rule", "recipes.timm()", wd.recipes.timm()),
        ("--recipe", "nanogpt", wd.recipes.nanogpt()),
        ("--recipe", "timm", wd.recipes.timm()),
    ],
    ids=["rule", "recipe in a rule", "recipe", "recipe with optional arguments"],
)
def test_the_rule_is_given_as_text_or_as_a_recipe(
    option: str, text: str, rule: wd.Rule, tmp_path: Any, capfd: Any
) -> None:
    assert run("describe", checkpoint(tmp_path), option, text) == 0
    expected = str(wd.describe(rule, tree(*NAMES)))
    assert capfd.readouterr() == (f"{expected}\n", "")


def test_json_is_what_the_description_says(tmp_path: Any, capfd: Any) -> None:
    assert run("describe", checkpoint(tmp_path), "--json") == 0
    expected = wd.describe(wd.standard, tree(*NAMES)).to_dict()
    assert json.loads(capfd.readouterr().out) == json.loads(json.dumps(expected))


def test_html_is_a_page_that_replaces_itself(tmp_path: Any, capfd: Any) -> None:
    page = tmp_path / "page.html"
    for name in ("a&b.safetensors", "b.safetensors"):
        assert run("describe", checkpoint(tmp_path, name), "--html", page) == 0
        text = page.read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>\n")
        assert wd.describe(wd.standard, tree(*NAMES))._repr_html_() in text
        assert name.replace("&", "&amp;") in text
    assert capfd.readouterr() == ("", "")


def test_html_replaces_nothing_that_is_no_page(tmp_path: Any, capfd: Any) -> None:
    file = checkpoint(tmp_path)
    before = file.read_bytes()
    assert run("describe", file, "--html", file) == 2
    message = f"optax_wd: {file}: the file is there and is no page; name another\n"
    assert capfd.readouterr() == ("", message)
    assert file.read_bytes() == before


def test_the_name_of_the_file_is_escaped_in_the_page(tmp_path: Any) -> None:
    page = tmp_path / "page.html"
    file = checkpoint(tmp_path, "<script>\x1b[31m\n.safetensors")
    assert run("describe", file, "--html", page) == 0
    text = page.read_text(encoding="utf-8")
    assert "<script>" not in text and "\x1b" not in text and "&lt;script&gt;" in text


class Terminal(io.StringIO):
    """A standard output that says that somebody looks at it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour_is_for_terminals_only(
    no_color: str, coloured: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run("describe", checkpoint(tmp_path), "--rule", "everything") == 0
    text = terminal.getvalue()
    assert ("\x1b[32myes\x1b[0m" in text) is coloured
    assert ("\x1b[33mwarning:\x1b[0m every leaf decays" in text) is coloured
    plain = re.sub(r"\x1b\[\d+m", "", text)
    assert plain == f"{wd.describe(wd.everything, tree(*NAMES))}\n"


def test_names_are_printed_in_the_encoding_that_there_is(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert run("describe", checkpoint(tmp_path, größe=helpers.float32((0,))[0])) == 0
    out.seek(0)
    assert "gr\\xf6\\xdfe" in out.read()


# ------------------------------------------------------------------------------ diff


def test_diff_tells_what_differs_and_exits_with_1(tmp_path: Any, capfd: Any) -> None:
    one = checkpoint(tmp_path)
    two = checkpoint(tmp_path, "b.safetensors", **{"new.bias": ENTRY})
    assert run("diff", one, two) == 1
    assert capfd.readouterr().out == (
        "added new/bias: shape (2, 3), dtype float32, decays no\n"
        "0 removed, 1 added, 0 changed\n"
    )
    assert run("diff", one, two, "--json", "--rule", "everything") == 1
    data = json.loads(capfd.readouterr().out)
    assert [(row["path"], row["decays"]) for row in data["added"]] == [
        ("new/bias", True)
    ]


def test_diff_of_equal_checkpoints_exits_with_0(tmp_path: Any, capfd: Any) -> None:
    one, two = checkpoint(tmp_path), tmp_path / "b.npz"
    arrays: dict[str, Any] = {
        name: np.zeros(x.shape, x.dtype) for name, x in tree(*NAMES).items()
    }
    np.savez(two, **arrays)
    assert run("diff", one, two, "--recipe", "nanogpt") == 0
    assert capfd.readouterr() == ("no difference\n", "")


# ----------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: describe | diff; see python -m optax_wd --help"),
        (("describe",), "required: checkpoint; see python -m optax_wd describe --help"),
        (("diff", "a"), "required: after; see python -m optax_wd diff --help"),
        (("audit",), "invalid choice: 'audit'"),
        (("describe", "FILE", "--recipe", "bert"), "invalid choice: 'bert'"),
        (("describe", "FILE", "--json", "--html", "x"), "not allowed with"),
        (("describe", "FILE", "--rule", "x", "--recipe", "timm"), "not allowed with"),
        (("describe", "FILE", "\x1b[2J\n"), r"unrecognized arguments: \x1b[2J\n"),
        (
            ("describe", "FILE", "--recipe", "keras"),
            'the recipe keras takes arguments; write --rule "recipes.keras(...)"',
        ),
        (
            ("describe", "FILE", "--recipe", "modded_nanogpt"),
            "the recipe modded_nanogpt gives factors, not what decays; use it in",
        ),
        (
            ("describe", "FILE", "--recipe", "detectron2"),
            "which a file does not have; go by names: --rule",
        ),
        (
            ("describe", "FILE", "--rule", "owned_by('Dense')"),
            "which a file does not have; go by names: --rule",
        ),
        (("describe", "/nope\x1b/\n"), r"/nope\x1b/\n: No such file or directory"),
        (("describe", "FILE", "--html", "/nope/x.html"), "No such file or directory"),
        (("describe", "FILE", "--html", "FOLDER"), "FOLDER: Is a directory"),
        (
            ("diff", "FILE", "FOLDER"),
            "FOLDER: the folder holds no checkpoint; read are",
        ),
        (("describe", os.devnull), "this is neither a file nor a folder"),
    ],
    ids=helpers.label,
)
def test_wrong_usage_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Any, capfd: Any
) -> None:
    places = {"FILE": str(checkpoint(tmp_path)), "FOLDER": str(tmp_path / "folder")}
    (tmp_path / "folder").mkdir()
    assert run(*(places.get(argument, argument) for argument in arguments)) == 2
    assert_one_line(capfd, message.replace("FOLDER", places["FOLDER"]))


def assert_one_line(capfd: Any, message: str) -> None:
    """Nothing but one clear line, with nothing in it that a terminal obeys."""
    out, err = capfd.readouterr()
    assert (out, err[-1:]) == ("", "\n")
    assert err[:-1].isprintable()
    assert err.startswith("optax_wd: ") and message in err
    assert len(err) < 1000 and "Traceback" not in err


def test_a_rule_that_does_not_parse_is_pointed_at(tmp_path: Any, capfd: Any) -> None:
    given = "min_ndim(2) & nmaed('bias')"
    assert run("describe", checkpoint(tmp_path), "--rule", given) == 2
    assert capfd.readouterr().err == (
        "optax_wd: unknown name 'nmaed'; the nearest is 'named'\n"
        "  min_ndim(2) & nmaed('bias')\n"
        "                ^^^^^\n"
    )


def test_a_hostile_rule_does_nothing_to_a_terminal(tmp_path: Any, capfd: Any) -> None:
    given = "named('\x1b[2J') & \x1b[31m"
    assert run("describe", checkpoint(tmp_path), "--rule", given) == 2
    err = capfd.readouterr().err
    assert "\x1b" not in err and all(line.isprintable() for line in err.split("\n"))


# --------------------------------------------------------------- hostile safetensors


def one(name: str = "a", **changed: Any) -> bytes:
    """A file with one array, of which the entry is changed."""
    return helpers.safetensors({name: {**ENTRY, **changed}}, 24)


def named(name: str) -> bytes:
    return one(name)


SAFETENSORS = {
    "empty": (b"", "the length of the header has 8 bytes, and 0 are left"),
    "truncated length": (one()[:5], "the file ends too early"),
    "truncated header": (one()[:40], "and 32 are left; it is truncated or damaged"),
    "truncated data": (
        one()[:-1],
        "the data of 'a' is at bytes 0 to 24, and 23 follow",
    ),
    "lying length": (
        b"\xff\xff\xff\x00\x00\x00\x00\x00{}",
        "the header has 16777215 bytes, and 2 are left",
    ),
    "largest length": (
        b"\xff" * 8 + b"{}",
        "the header has 18446744073709551615 bytes by its own account, and the "
        "safetensors format allows 100000000",
    ),
    "length 0": (bytes(8), "the header is not JSON"),
    "no JSON": (helpers.safetensors(b"{]"), "the header is not JSON: Expecting"),
    "not UTF-8": (helpers.safetensors(b'{"\xff": 1}'), "the header is not JSON"),
    "list": (helpers.safetensors(b"[1, 2]"), "the header is [1, 2], expected an obj"),
    "nested lists": (helpers.safetensors(b"[" * 10**6), "is nested too deeply"),
    "nested maps": (helpers.safetensors(b'{"a":' * 10**5), "is nested too deeply"),
    "very many elements": (
        helpers.safetensors(b"[" + b"0," * 3_100_000 + b"0]"),
        "the header has more than 3000000 elements",
    ),
    "number of many digits": (
        helpers.safetensors(b'{"a": ' + b"9" * 10_000 + b"}"),
        "the header is not JSON",
    ),
    "twice": (helpers.safetensors(b'{"a": 1, "a": 2}'), "the name 'a' occurs twice"),
    "twice inside": (
        helpers.safetensors(b'{"a": {"dtype": "F32", "dtype": "F32"}}'),
        "the name 'dtype' occurs twice",
    ),
    "one path twice": (
        helpers.safetensors({"a.b": ENTRY, "a/b": ENTRY}, 24),
        "two arrays have the path 'a/b'",
    ),
    "no entry": (
        helpers.safetensors({"a": 3}),
        "the entry of 'a' is 3, expected dtype",
    ),
    "no shape": (one(shape=None), "expected dtype, shape and two data_offsets"),
    "three offsets": (one(data_offsets=[0, 1, 2]), "and two data_offsets"),
    "offsets no numbers": (one(data_offsets=["0", 24]), "and two data_offsets"),
    "unknown dtype": (one(dtype="F99"), "the dtype of 'a' is 'F99', which safetensors"),
    "negative size": (one(shape=[-2, -3]), "the shape of 'a' is [-2, -3], expected at"),
    "fraction": (one(shape=[2.0, 3]), "the shape of 'a' is [2.0, 3], expected at most"),
    "bool": (one(shape=[True, 6]), "the shape of 'a' is [True, 6], expected at most"),
    "huge size": (one(shape=[2**64]), "expected at most 64 whole numbers from 0 on"),
    "many sizes": (one(shape=[1] * 65), "expected at most 64 whole numbers from 0 on"),
    "huge shape": (one(shape=[2**62] * 64), "not what F32 of shape"),
    "other shape": (one(shape=[2, 4]), "has 24 bytes, which is not what F32 of shape "),
    "offsets outside": (
        one(data_offsets=[8, 32]),
        "is at bytes 8 to 32, and 24 follow",
    ),
    "offsets reversed": (
        one(data_offsets=[24, 0]),
        "the data of 'a' is at bytes 24 to",
    ),
    "offsets negative": (one(data_offsets=[-24, 0]), "is at bytes -24 to 0"),
    "no arrays": (helpers.safetensors({"__metadata__": {}}), "holds no arrays"),
    "long name": (named("a" * 501), "a name has 501 characters"),
    "deep name": (named("a." * 64 + "b"), "a.a.b' has more than 64 parts"),
    "control characters": (named("a\x07\r\n"), r"the name 'a\x07\r\n' holds control"),
    "null": (named("a\0b"), r"the name 'a\x00b' holds control characters"),
    "terminal escape": (named("\x1b]0;hi\x07"), r"the name '\x1b]0;hi\x07' holds con"),
    "C1 control": (named("\x9b31m"), r"the name '\x9b31m' holds control characters"),
    "bidirectional": (named("\u202eabc"), r"the name '\u202eabc' holds control char"),
    "lone surrogate": (named("\ud800"), r"the name '\ud800' holds control characters"),
    "HTML": (named("<b>x</b>"), "the name '<b>x</b>' holds control characters, <, >"),
    "folder above": (named("../../etc/passwd"), "has a part that is empty, . or .."),
    "absolute": (named("/etc/passwd"), "has a part that is empty, . or .."),
    "backslash": (named("..\\x"), "or backslashes, which the names of parameters do"),
    "no name": (named(""), "the name '' has a part that is empty, . or ..; expected"),
}

# ----------------------------------------------------------------- hostile msgpack

ARRAY = b"\x93\x92\x02\x03\xa7float32\xc4\x18" + bytes(24)  # shape, dtype, bytes


def extension(payload: bytes, length: int | None = None) -> bytes:
    """A map with one array."""
    size = len(payload) if length is None else length
    return b"\x81\xa1a\xc8" + size.to_bytes(2, "big") + b"\x01" + payload


def pieces(shape: bytes, chunks: bytes) -> bytes:
    mark = b"\xb9__msgpack_chunked_array__\xc3"
    return b"\x81\xa1a\x83" + mark + b"\xa5shape" + shape + b"\xa6chunks" + chunks


MSGPACK = {
    "truncated": (
        extension(ARRAY)[:-1],
        "the data of 'a' has 24 bytes, and 23 are left",
    ),
    "truncated head": (extension(ARRAY)[:12], "the file ends too early"),
    "map of four billion": (
        b"\xdf\xff\xff\xff\xff",
        "the next value has 1 bytes, and 0",
    ),
    "no map": (b"\x05", "the file has no map of names at its top"),
    "empty": (b"\x80", "the checkpoint holds no arrays"),
    "more after the end": (extension(ARRAY) + b"\x00", "1 bytes follow the end of the"),
    "deep": (b"\x81\xa1a" * 70 + b"\x80", "the tree is more than 64 levels deep"),
    "deep lists": (b"\x81\xa1a" + b"\x91" * 70 + b"\x80", "more than 64 levels deep"),
    "very many values": (
        b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\x80" * 1_000_000,
        "there are more than 900000 values",
    ),
    "long name": (
        b"\x81\xda\xff\xff" + b"a" * 70_000,
        "a name has 65535 bytes; at mos",
    ),
    "names too long": (b"\x81\xd9\xc8" + b"a" * 200, "the file ends too early"),
    "name no text": (b"\x81\x01\x01", "a name is a int, expected text"),
    "name not UTF-8": (b"\x81\xa1\xff\x01", "a name is not UTF-8"),
    "name twice": (b"\x82\xa1a\x01\xa1a\x01", "the name 'a' occurs twice"),
    "escape": (
        extension(ARRAY).replace(b"\xa1a", b"\xa4\x1b[2J"),
        r"the name '\x1b[2J'",
    ),
    "folder above": (extension(ARRAY).replace(b"\xa1a", b"\xa4../x"), "empty, . or .."),
    "text of four gigabytes": (
        b"\x81\xa1a\xdb\xff\xff\xff\xff",
        "a value has 4294967295 bytes, and 0 are left",
    ),
    "unknown extension": (
        b"\x81\xa1a\xc7\xff\x63",
        "an extension has 255 bytes, and 0",
    ),
    "reserved": (b"\x81\xa1a\xc1", "byte 3 is no msgpack"),
    "shorter": (extension(ARRAY, 30), "the length of 'a' is wrong"),
    "longer": (extension(ARRAY, 50) + bytes(20), "the length of 'a' is wrong"),
    "not three": (
        extension(b"\x92\x90\xa3int"),
        "the array 'a' is not shape, dtype and",
    ),
    "no shape": (
        extension(ARRAY.replace(b"\x92\x02\x03", b"\x06")),
        "of 'a' is no list",
    ),
    "shape of text": (
        extension(ARRAY.replace(b"\x92\x02\x03", b"\x92\x02\xa1x")),
        "the shape of 'a' is [2, None], expected at most 64 whole numbers",
    ),
    "other shape": (
        extension(ARRAY.replace(b"\x03\xa7", b"\x04\xa7")),
        "the data of 'a' is a bin of 24 bytes, which is not what float32 of its shape",
    ),
    "object": (
        extension(ARRAY.replace(b"float32", b"object_")),
        "'object_', which JAX",
    ),
    "no bytes": (
        extension(ARRAY[:12] + b"\x01"),
        "the data of 'a' is a int of 1 bytes",
    ),
    "pieces of nothing": (pieces(b"\x80", b"\x80"), "the pieces of 'a' do not make"),
    "pieces of text": (
        pieces(b"\x81\xa10\x02", b"\x81\xa10\xa1x"),
        "the pieces of 'a' do not make the array that it says it is",
    ),
    "pieces without shape": (pieces(b"\x02", b"\x80"), "the pieces of 'a' do not make"),
    "pieces of another shape": (
        pieces(b"\x81\xa10\x07", extension(ARRAY)),
        "the pieces of 'a' do not make the array that it says it is",
    ),
}

# -------------------------------------------------------------------- hostile archives


def npy(header: str, version: int = 1, data: int = 24) -> bytes:
    text = header.encode()
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + bytes(data)


def archive(content: bytes = b"", name: str = "a.npy", method: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        out.writestr(name, content)
    return file.getvalue()


def header(descr: str = "'<f4'", shape: str = "(2, 3)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


def encrypted() -> bytes:
    """The flag that says so stands before the content and in the directory."""
    text = bytearray(archive(npy(header())))
    text[6] |= 1
    text[text.index(b"PK\x01\x02") + 8] |= 1
    return bytes(text)


def pickled_array() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.array([{}, None], object))
    return file.getvalue()


NPZ = {
    "truncated": (
        archive(npy(header()))[:-30],
        "the zip archive is truncated or damage",
    ),
    "directory elsewhere": (
        b"PK\x03\x04" + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 9999, 0, 0),
        "the zip archive is truncated or damaged",
    ),
    "no arrays": (
        archive(name="a.txt"),
        "the zip archive holds 'a.txt', so it is not a",
    ),
    "nothing": (
        archive()[:0] + b"PK\5\6" + bytes(18),
        "the checkpoint holds no arrays",
    ),
    "no header": (archive(b""), "'a.npy' is not in NumPy's format"),
    "other content": (archive(b"x" * 100), "'a.npy' is not in NumPy's format"),
    "objects": (
        pickled_array(),
        "'a.npy' holds Python objects: this is or holds a pic",
    ),
    "torch": (archive(b"\x80\x02.", "archive/data.pkl"), "convert it to safetensors"),
    "bzip2": (
        archive(npy(header()), method=zipfile.ZIP_BZIP2),
        "is compressed otherwise",
    ),
    "lzma": (
        archive(npy(header()), method=zipfile.ZIP_LZMA),
        "is compressed otherwise",
    ),
    "encrypted": (encrypted(), "'a.npy' is encrypted"),
    "bomb": (
        archive(npy(" " * 50_000_000, 2, 0), method=zipfile.ZIP_DEFLATED),
        "the header of 'a.npy' has 50000000 bytes, and NumPy reads at most 10000",
    ),
    "no dict": (archive(npy("__import__('os')")), """'a.npy' is "__import__('os')"""),
    "no shape": (archive(npy(header(shape="x"))), "the header of 'a.npy' is"),
    "call in the shape": (
        archive(npy(header(shape="(f(),)"))),
        "the header of 'a.npy'",
    ),
    "record": (
        archive(npy(header("[('a', '<f4')]"))),
        "the dtype of 'a' is 'a record'",
    ),
    "raw bytes": (archive(npy(header("'|V4'"))), "the dtype of 'a' is 'V4', which JAX"),
    "long float": (
        archive(npy(header("'<f16'"))),
        "the dtype of 'a' is 'f16', which JAX",
    ),
    "other shape": (
        archive(npy(header(shape="(2, 4)"))),
        "is not what float32 of shape",
    ),
    "huge shape": (
        archive(npy(header(shape="(9" * 30 + ")"))),
        "the header of 'a.npy'",
    ),
    "many digits": (
        archive(npy(header(shape=f"({'9' * 5000})"))),
        "this cannot be read: ValueError: Exceeds the limit",
    ),
    "escape": (
        archive(npy(header()), "\x1b[2J.npy"),
        r"the name '\x1b[2J' holds contr",
    ),
    "folder above": (archive(npy(header()), "../a.npy"), "empty, . or .."),
}

# ------------------------------------------------------------------------ other files


class Exploit:
    """What a pickle may hold: a call, made when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("exploited",)


OTHERS = {
    "empty": (b"", "the file is empty; read are safetensors, .npz, Flax msgpack and"),
    "text": (
        b"hello, world\x1b",
        r"the file begins with b'hello, world\x1b'; read are",
    ),
    "HDF5": (
        b"\x89HDF\r\n\x1a\n",
        r"the file begins with b'\x89HDF\r\n\x1a\n'; read are",
    ),
    "one array": (npy(header()), r"\x93NUMPY"),
    "pickle": (
        pickle.dumps(Exploit()),
        "holds a pickle, which runs code when it is rea",
    ),
    "old pickle": (
        pickle.dumps({"a": 1}, 2),
        "holds a pickle, which runs code when it",
    ),
    "JSON": (b'{"a": 1}', "the file has no weight_map, so it is no index of shards"),
    "no JSON": (b'{"weight_map": ', "the index is not JSON"),
    "shard above": (
        b'{"weight_map": {"a": "../x"}}',
        "the shard '../x' is no name of a ",
    ),
    "shard anywhere": (
        b'{"weight_map": {"a": "/etc/passwd"}}',
        "'/etc/passwd' is no nam",
    ),
    "shard for DOS": (
        b'{"weight_map": {"a": "..\\\\x"}}',
        "is no name of a file in this",
    ),
    "shard no text": (b'{"weight_map": {"a": 3}}', "the shard 3 is no name of a file"),
    "shard null": (
        b'{"weight_map": {"a": "\\u0000"}}',
        r"the shard '\x00' is no name of",
    ),
    "shard is the folder": (
        b'{"weight_map": {"a": ".."}}',
        "'..' is not in the folder",
    ),
    "shard escape": (
        b'{"weight_map": {"a": "\\u001b"}}',
        r"'\x1b' is not in the folder",
    ),
    "shard missing": (
        b'{"weight_map": {"a": "b"}}',
        "the shard 'b' is not in the folder",
    ),
    "shard itself": (
        b'{"weight_map": {"a": "file"}}',
        "the header has 8388068008349082235 bytes",
    ),
    "index without arrays": (b'{"weight_map": {}}', "the checkpoint holds no arrays"),
    "many shards": (
        json.dumps({"weight_map": {f"a{n}": f"b{n}" for n in range(1001)}}).encode(),
        "the index names more than 1000 shards",
    ),
}

HOSTILE = {
    f"{ending or 'other'}: {what}": (ending, *case)
    for ending, cases in (
        (".safetensors", SAFETENSORS),
        (".msgpack", MSGPACK),
        (".npz", NPZ),
        ("", OTHERS),
    )
    for what, case in cases.items()
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_one_line(
    what: str, tmp_path: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ending, content, message = HOSTILE[what]
    path = tmp_path / f"file{ending}"
    path.write_bytes(content)
    assert run("describe", path) == 2
    assert_one_line(capfd, message)
    assert [x.name for x in tmp_path.iterdir()] == [path.name]  # nothing was run


@pytest.mark.parametrize("ending", [".pt", ".bin", ".ckpt", ".pkl"])
def test_a_pickle_of_any_protocol_is_refused(
    ending: str, tmp_path: Any, capfd: Any
) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=0))
    assert run("describe", path) == 2
    assert_one_line(capfd, "convert it to safetensors where you trust it")


def test_a_shard_without_its_array_is_refused(tmp_path: Any, capfd: Any) -> None:
    checkpoint(tmp_path)
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"head.scale": "a.safetensors"}}))
    assert run("describe", tmp_path) == 2
    assert_one_line(capfd, "a.safetensors: there is no 'head.scale' in it")


def test_headers_of_shards_are_bounded_together(tmp_path: Any, capfd: Any) -> None:
    text = json.dumps({"a": ENTRY}).encode().ljust(60_000_000)
    (tmp_path / "one").write_bytes(helpers.safetensors(text, 24))
    os.link(tmp_path / "one", tmp_path / "two")
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one", "b": "two"}}))
    assert run("describe", index) == 2
    assert_one_line(capfd, "two: headers up to here exceed 100000000 bytes")


def test_a_folder_with_several_checkpoints_asks_for_one(
    tmp_path: Any, capfd: Any
) -> None:
    for name in ("a.safetensors", "b\x1b.safetensors"):
        checkpoint(tmp_path, name)
    assert run("describe", tmp_path) == 2
    message = r"holds 2 checkpoints; name one of 'a.safetensors', 'b\x1b.safetensors'"
    assert_one_line(capfd, message)


def gigabyte_of_header(path: pathlib.Path) -> None:
    path.write_bytes((10**9).to_bytes(8, "little") + b'{"a"')
    os.truncate(path, 10**9 + 100)


def gigabyte_of_index(path: pathlib.Path) -> None:
    path.write_bytes(b'{"weight_map": {')
    os.truncate(path, 10**9)


def gigabyte_of_directory(path: pathlib.Path) -> None:
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 10**9, 0, 0)
    path.write_bytes(b"PK\x03\x04")
    with open(path, "r+b") as file:
        file.seek(10**9)
        file.write(end)


def gigabyte_of_metadata(path: pathlib.Path) -> None:
    path.mkdir()
    (path / "_METADATA").write_bytes(b"{")
    os.truncate(path / "_METADATA", 10**9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (gigabyte_of_header, "the header has 1000000000 bytes by its own account"),
        (gigabyte_of_index, "the index has more than 100000000 bytes"),
        (gigabyte_of_directory, "the directory of the archive has 1000000000 bytes"),
        (gigabyte_of_metadata, "_METADATA has more than 100000000 bytes"),
    ],
    ids=["safetensors", "index", "npz", "orbax"],
)
def test_a_gigabyte_that_is_no_weights_is_refused_unread(
    make: Callable[[pathlib.Path], None], message: str, tmp_path: Any, capfd: Any
) -> None:
    make(tmp_path / "file")
    tracemalloc.start()
    assert run("describe", tmp_path / "file") == 2
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert_one_line(capfd, message)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 10**5, b"null", b'{"tree_metadata": 3}', b"\xff\xfe"],
    ids=helpers.label,
)
def test_hostile_metadata_of_orbax_are_one_line(
    content: bytes, tmp_path: Any, capfd: Any
) -> None:
    (tmp_path / "_METADATA").write_bytes(content)
    assert run("describe", tmp_path) == 2
    assert_one_line(capfd, f"{tmp_path}: this cannot be read: ")


# -------------------------------------------------------------------- real processes


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "optax_wd", *map(str, arguments)]


def test_the_module_runs_and_exits_with_what_main_returns(tmp_path: Any) -> None:
    file = checkpoint(tmp_path)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\xff" * 100)
    for arguments, status in ((("describe", file), 0), (("diff", file, bad), 2)):
        done = subprocess.run(command(*arguments), capture_output=True, text=True)
        assert done.returncode == status
        assert "Traceback" not in done.stderr
        assert done.stdout == (
            f"{wd.describe(wd.standard, tree(*NAMES))}\n" if status == 0 else ""
        )
        assert done.stderr.count("\n") == (status == 2)


def test_a_pipe_that_is_closed_early_is_quiet(tmp_path: Any) -> None:
    header = {f"{n}.{'x' * 300}.kernel": ENTRY for n in range(2000)}
    file = tmp_path / "a.safetensors"
    file.write_bytes(helpers.safetensors(header, 24))
    process = subprocess.Popen(
        command("describe", file, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "{\n"  # as `| head -1`
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0


def test_a_full_disk_is_one_line(tmp_path: Any) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("describe", checkpoint(tmp_path)),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "optax_wd: No space left on device\n"


def test_a_closed_output_and_an_empty_path_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("describe", "") == 2
    assert capsys.readouterr().err == "optax_wd: the path of the checkpoint is empty\n"
    monkeypatch.setattr(sys, "stdout", None)
    assert run("describe", "x.safetensors") == 2
    assert capsys.readouterr().err == "optax_wd: the standard output is closed\n"
