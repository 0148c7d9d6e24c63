# SPDX-License-Identifier: Apache-2.0
"""The bounds that all readers of checkpoints share."""

import io

import jax
import pytest

from optax_wd._see.files import headers as _headers


def test_no_more_arrays_are_read_than_the_bound_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_headers, "MAX_LEAVES", 3)
    found: _headers.Found = {}
    for name in "abc":
        _headers.add(found, name, _headers.spec(name, [2], "float32"))
    with pytest.raises(ValueError, match="there are more than 3 arrays"):
        _headers.add(found, "d", found["a"])
    assert list(found) == ["a", "b", "c"]


def test_a_source_reads_exactly_and_never_past_the_end() -> None:
    source = _headers.Source(io.BytesIO(b"abcdef"))
    assert (source.read(2, "it"), source.size) == (b"ab", 6)
    source.skip(3, "it")
    assert (source.read(0, "it"), source.position) == (b"", 5)
    message = "the file ends too early: it has 2 bytes, and 1 are left"
    for take in (source.read, source.skip):
        with pytest.raises(_headers.CheckpointError, match=message):
            take(2, "it")
    assert source.read(1, "it") == b"f"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.b.weight", "a/b/weight"),
        ("a/b.weight", "a/b/weight"),
        (".a[0]..b", "a[0]/b"),
        ("weight", "weight"),
    ],
)
def test_names_are_split_at_dots_and_slashes(name: str, path: str) -> None:
    leaf = jax.ShapeDtypeStruct((2,), "float32")
    assert list(_headers.by_path({name: leaf})) == [path]


def test_a_name_of_dots_alone_is_refused() -> None:
    with pytest.raises(_headers.CheckpointError, match="has a part that is empty"):
        _headers.by_path({"...": jax.ShapeDtypeStruct((2,), "float32")})
