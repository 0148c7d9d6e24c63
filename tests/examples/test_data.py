# SPDX-License-Identifier: Apache-2.0
"""What trainers read: text, tokens and tokenizers, windows of them, and batches."""

import dataclasses
import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tokenizers

data = importlib.import_module("data")
pipelines = importlib.import_module("pipelines")
token_files = importlib.import_module("token_files")

MAGIC = 20240520


def write_tokens(path: Path, tokens: Any, header: Any = None) -> Path:
    """A .bin file; with a header of its magic number, version and number of tokens."""
    words = np.zeros(256 if header else 0, "<i4")
    words[: len(header or ())] = header or ()
    path.write_bytes(words.tobytes() + np.asarray(tokens, "<u2").tobytes())
    return path


def with_header(path: Path, tokens: Any) -> Path:
    return write_tokens(path, tokens, [MAGIC, 1, len(tokens)])


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with an end token, saved while it cuts and pads."""
    trained: Any = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer: Any = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(["green bottles fall; "] * 9, trainer)
    trained.enable_truncation(4)
    trained.enable_padding(length=7)
    path = tmp_path_factory.mktemp("bpe") / "bpe.json"
    trained.save(str(path))
    return path


def read(*paths: Path, window: int = 8, **options: Any) -> Any:
    return data.read_tokens([str(path) for path in paths], window=window, **options)


# ----------------------------------------------------------------------------- text


def test_folders_are_read_in_order_and_the_last_tenth_is_held_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/2.txt").write_text("two " * 50)
    (tmp_path / "c.txt").write_text("three " * 50)
    (tmp_path / "a.txt").write_text("one " * 50)
    tokens = read(tmp_path, pack=True)
    whole = b"\n".join((b"one " * 50, b"two " * 50, b"three " * 50))
    assert tokens.train_N.tobytes() == whole[:632]
    assert tokens.start_M.tolist() == [0, 201, 402]
    assert read(tmp_path).start_M.tolist() == [0]
    assert tokens.held_out_KxT1.shape == (8, 9)
    assert tokens.decode(tokens.held_out_KxT1[0]).encode() == whole[632:641]
    assert tokens.decode(tokens.held_out_KxT1[-1]).encode() == whole[-9:]
    assert (tokens.vocabulary, tokens.bytes_per_token) == (256, 1.0)
    assert tokens.unit == "bits per byte"


def test_held_out_windows_are_few_and_do_not_overlap(tmp_path: Path) -> None:
    # Held out are 9000 letters; three of them in a row tell where they stand.
    letters = np.random.default_rng(0).integers(97, 123, 90_000).astype(np.uint8)
    (tmp_path / "text").write_bytes(letters.tobytes())
    tokens = read(tmp_path, window=100)
    held_out = letters[-9000:].tobytes()
    windows = tokens.held_out_KxT1.astype(np.uint8)
    starts = [held_out.index(window.tobytes()) for window in windows]
    assert len(starts) == 64
    assert (starts[0], starts[-1]) == (0, 9000 - 101)
    assert min(np.diff(starts)) >= 100
    for wanted, got in ((1, 1), (80, 80), (1000, 89)):  # there is no text for more
        found = read(tmp_path, window=100, windows=wanted).held_out_KxT1
        assert found.shape == (got, 101)


def test_text_to_be_judged_by_can_be_given_and_is_not_trained_on(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("a" * 100)
    (tmp_path / "b.txt").write_text("b" * 30)
    tokens = read(tmp_path / "a.txt", held_out=[str(tmp_path / "b.txt")])
    assert tokens.train_N.tobytes() == b"a" * 100
    assert set(tokens.held_out_KxT1.ravel()) == {ord("b")}


def test_file_that_is_held_out_of_a_folder_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 100)
    (tmp_path / "b.txt").write_text("b" * 30)
    judge = str(tmp_path / "b.txt")
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        assert read(folder, held_out=[judge]).train_N.tobytes()[:100] == b"a" * 100
    tokens = read(tmp_path, held_out=[judge])
    assert tokens.train_N.tobytes() == b"a" * 100
    said = "--held-out has all files of --data; write some of them only"
    with pytest.raises(data.InputError, match=said):
        read(tmp_path, held_out=[str(tmp_path)])


def test_last_tenth_does_not_start_within_a_character(tmp_path: Path) -> None:
    # 111 bytes less 11 are 100: one, 49 times two, and half a letter.
    (tmp_path / "a.txt").write_text("a" + "é" * 55)
    tokens = read(tmp_path / "a.txt")
    assert len(tokens.train_N) == 99
    assert tokens.decode(tokens.held_out_KxT1[0]).startswith("éé")
    (tmp_path / "a.txt").write_text("é" * 50)
    assert len(read(tmp_path / "a.txt").train_N) == 90


def test_documentation_of_python_is_read_in_the_order_of_its_topics() -> None:
    from pydoc_data import topics

    first = topics.topics[min(topics.topics)].encode()
    tokens = data.read_tokens(pack=True)
    assert tokens.train_N[: len(first)].tobytes() == first
    assert tokens.start_M[1] == len(first) + 1
    assert len(tokens.train_N) > 300_000 and tokens.held_out_KxT1.shape == (64, 129)


def test_python_without_its_documentation_is_told_to_bring_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    with pytest.raises(data.InputError, match=r"pydoc_data.topics; write --data PATH"):
        data.read_tokens()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "is no file and no folder; write the path of one"),
        ("new\nline.txt", None, r"new\nline.txt' is no file and no folder"),
        ("latin.txt", "café".encode("latin-1") * 9, "is not UTF-8 at byte 3; write"),
        ("zeros.txt", b"text\0" * 9, "is not text: it has NUL bytes; write"),
        ("short.txt", b"ab" * 40, "72 bytes to train on, 8 held out; --window 8 takes"),
        ("empty.txt", b"", "too little text: 0 bytes"),
        ("odd.bin", b"abc", "odd.bin' has 3 bytes, which are no tokens of two bytes"),
        ("empty.bin", b"", "empty.bin' has 0 bytes, which are no tokens"),
        ("few.bin", b"a\0" * 20, "18 tokens to train on, 2 held out"),
        ("high.bin", b"a\0\0\1" * 20, "high.bin' has token 256, vocabulary is 256"),
    ],
)
def test_file_that_cannot_be_learned_from_is_refused_by_name(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(data.InputError) as refused:
        read(tmp_path / name)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_hidden_files_and_caches_of_a_folder_are_not_read(tmp_path: Path) -> None:
    for name in ("a.txt", ".hidden", ".git/objects", "__pycache__/a.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name * 40)
    below = tmp_path / ".notes"  # a folder that is itself named may be hidden
    below.mkdir()
    (below / "b.txt").write_text("b" * 90)
    tokens = read(tmp_path)
    assert tokens.train_N.tobytes() == b"a.txt" * 36 and tokens.skipped == ()
    assert read(below).train_N.tobytes() == b"b" * 81


def test_files_of_a_folder_that_are_no_text_are_skipped_and_named(
    tmp_path: Path,
) -> None:
    folder, learned = tmp_path / "folder", tmp_path / "text.txt"
    folder.mkdir()
    (folder / "latin.txt").write_bytes("café".encode("latin-1") * 9)
    (folder / "zeros.dat").write_bytes(b"text\0" * 9)
    with pytest.raises(data.InputError, match=r"no file is text: '.*latin.txt' is not"):
        read(folder)
    learned.write_text("text " * 40)
    (folder / "judge.txt").write_text("judge " * 40)
    tokens = read(learned, held_out=[str(folder)])
    assert tokens.train_N.tobytes() == b"text " * 40
    assert tokens.skipped == (
        f"'{folder}/latin.txt' is not UTF-8 at byte 3",
        f"'{folder}/zeros.dat' is not text: it has NUL bytes",
    )
    assert read(folder).skipped == tokens.skipped


def test_folder_without_files_and_empty_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty/inner").mkdir(parents=True)
    (tmp_path / "empty/.hidden").write_text("not looked at")
    with pytest.raises(data.InputError, match="--data '.*empty' has no file in it"):
        read(tmp_path / "empty")
    with pytest.raises(data.InputError, match="--held-out '' is no file and no folder"):
        data.read_tokens(held_out=[""])


# --------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("write", [write_tokens, with_header])
def test_token_file_stays_on_the_disk_and_its_last_tenth_is_held_out(
    write: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    ids = np.arange(2000) % 1000
    tokens = read(write(tmp_path / "a.bin", ids), vocabulary=1000)
    assert isinstance(tokens.train_N, np.memmap)
    np.testing.assert_array_equal(tokens.train_N, ids[:1800])
    np.testing.assert_array_equal(tokens.held_out_KxT1[0], ids[1800:1809])
    assert tokens.held_out_KxT1.dtype == np.int32
    assert (tokens.vocabulary, tokens.bytes_per_token) == (1000, None)
    assert tokens.unit == "bits per token" and tokens.bits(math.log(2)) == 1
    assert tokens.decode(ids[7:9]) == "7 8"


def test_several_token_files_are_one_text_without_being_copied(tmp_path: Path) -> None:
    ids = np.arange(100)
    cuts = 0, 20, 50, 100
    for n, (low, high) in enumerate(zip(cuts, cuts[1:], strict=False)):
        with_header(tmp_path / f"{n}.bin", ids[low:high])
    tokens = read(tmp_path)
    assert isinstance(tokens.train_N, token_files.Shards) and len(tokens.train_N) == 90
    for low, high in ((0, 90), (15, 55), (20, 50), (49, 51), (85, 99), (30, 31)):
        got = tokens.train_N[low:high]
        np.testing.assert_array_equal(got, ids[low : min(high, 90)])


def test_token_files_named_val_are_held_out(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train.bin", [1] * 50)
    write_tokens(tmp_path / "fineweb_val_000000.bin", [2] * 50)
    write_tokens(tmp_path / "values.bin", [3] * 50)
    tokens = read(tmp_path)
    assert tokens.train_N[:].tolist() == [1] * 50 + [3] * 50
    assert set(tokens.held_out_KxT1.ravel()) == {2}
    named = read(tmp_path / "train.bin", tmp_path / "fineweb_val_000000.bin")
    assert set(named.held_out_KxT1.ravel()) == {2}
    judged = read(tmp_path / "train.bin", held_out=[str(tmp_path / "values.bin")])
    assert set(judged.held_out_KxT1.ravel()) == {3}


@pytest.mark.parametrize(
    ("learned", "judged"),
    [
        ("train.bin", "validation.bin"),
        ("train.bin", "valid.bin"),
        ("train.bin", "Test-0.bin"),
        ("train/0.bin", "val/0.bin"),
        ("a/train/0.bin", "a/wiki.val/0.bin"),
        ("latest.bin", "fineweb_test_0.bin"),
        ("train_test.bin", "val.bin"),
        ("test/train_0.bin", "test/val_0.bin"),
        ("val/train/0.bin", "train/val/0.bin"),
    ],
)
def test_token_files_set_aside_by_their_names_are_not_trained_on(
    learned: str, judged: str, tmp_path: Path
) -> None:
    root = tmp_path / "test"  # what the given folder is called tells nothing
    for n, name in enumerate((learned, judged), start=1):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_tokens(root / name, [n] * 50)
    tokens = read(root)
    assert tokens.train_N[:].tolist() == [1] * 50
    assert set(tokens.held_out_KxT1.ravel()) == {2} and tokens.skipped == ()


def test_first_word_that_sets_aside_is_held_out_and_the_others_are_named(
    tmp_path: Path,
) -> None:
    for n, name in enumerate(["train", "test", "val"]):
        write_tokens(tmp_path / f"{name}.bin", [n] * 50)
    tokens = read(tmp_path)
    assert tokens.train_N.tolist() == [0] * 50
    assert set(tokens.held_out_KxT1.ravel()) == {2}
    said = f"{tmp_path}/test.bin: not read, as {tmp_path}/val.bin is held out"
    assert tokens.skipped == (said,)
    (tmp_path / "train.bin").unlink()
    with pytest.raises(
        data.InputError, match="test.bin' is set aside by its name, and"
    ):
        read(tmp_path)
    judge = str(tmp_path / "val.bin")
    assert read(tmp_path, held_out=[judge]).train_N.tolist() == [1] * 50


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ([MAGIC, 2, 50], rf"starts {MAGIC}, 2; write .* starts {MAGIC}, 1"),
        ([20240801, 7, 50], r"a.bin' has a header that starts 20240801, 7"),
        ([MAGIC, 1, 51], "a.bin' has 50 tokens, its header 51: it is not whole"),
        ([MAGIC, 1, 49], "a.bin' has 50 tokens, its header 49"),
    ],
    ids=["version", "magic", "truncated", "longer"],
)
def test_token_file_with_a_wrong_header_is_refused(
    header: list[int], said: str, tmp_path: Path
) -> None:
    write_tokens(tmp_path / "a.bin", [1] * 50, header)
    with pytest.raises(data.InputError, match=said):
        read(tmp_path)


def test_text_and_tokens_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 99)
    binary = write_tokens(tmp_path / "b.bin", [1] * 50)
    text, said = tmp_path / "a.txt", "b.bin' has tokens, but {} is text; write --data"
    for other, mixed in (
        ("'.*a.txt'", lambda: read(text, binary)),
        ("'.*a.txt'", lambda: read(text, held_out=[str(binary)])),
        ("'.*a.txt'", lambda: read(binary, held_out=[str(text)])),
        ("Python's manual", lambda: read(held_out=[str(binary)])),
    ):
        with pytest.raises(data.InputError, match=said.format(other)):
            mixed()


def test_token_files_of_a_folder_are_taken_without_what_lies_beside_them(
    tmp_path: Path,
) -> None:
    write_tokens(tmp_path / "train.bin", [1] * 50)
    write_tokens(tmp_path / "val.bin", [2] * 50)
    for name in ("prepare.py", "readme.md"):
        (tmp_path / name).write_text("text " * 99)
    (tmp_path / "meta.pkl").write_bytes(b"\x80\x04")
    tokens = read(tmp_path)
    assert tokens.train_N.tolist() == [1] * 50
    assert set(tokens.held_out_KxT1.ravel()) == {2}


def test_documents_of_token_files_start_after_the_end_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "SLICE", 7)  # documents end in any place of a slice
    ids = np.tile([5, 6, 9, 7, 9], 20)
    path = write_tokens(tmp_path / "a.bin", ids)
    starts = np.sort(np.concatenate([np.arange(0, 90, 5), np.arange(3, 90, 5)]))
    assert read(path, end=9, pack=True).start_M.tolist() == starts.tolist()
    assert read(path, pack=True).start_M.tolist() == [0]
    assert read(path, end=9).start_M.tolist() == [0]


def test_held_out_windows_know_where_documents_begin(tmp_path: Path) -> None:
    ids = np.tile([5, 6, 9, 7, 9], 20)
    path = write_tokens(tmp_path / "a.bin", ids)
    tokens = read(path, window=4, end=9, pack=True)
    assert tokens.held_out_KxT1.tolist() == [[5, 6, 9, 7, 9]] * 2
    assert tokens.segment_KxT1.tolist() == [[1, 1, 1, 2, 2]] * 2
    assert read(path, window=4, end=9).segment_KxT1.tolist() == [[1] * 5] * 2
    for name in ("x", "y", "z"):
        (tmp_path / f"{name}.txt").write_text(name * 4)
    judges = [str(tmp_path / f"{name}.txt") for name in ("x", "y", "z")]
    (tmp_path / "train.txt").write_text("train " * 4)
    learned = tmp_path / "train.txt"
    tokens = read(learned, held_out=judges, window=6, pack=True)
    texts = [tokens.decode(window_T1) for window_T1 in tokens.held_out_KxT1]
    assert texts == ["xxxx\nyy", "yy\nzzzz"]
    segments = [[1, 1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2, 2]]
    assert tokens.segment_KxT1.tolist() == segments
    assert tokens.segment_KxT1.dtype == np.int32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vocabulary": 255}, "--vocabulary 255 is too small for --tokenizer bytes;"),
        ({"end": 256}, "--end 256 is no token; write one from 0 to 255"),
        ({"end": -1}, "--end -1 is no token"),
        ({"tokenizer": "none.json"}, "--tokenizer 'none.json' is no file; write bytes"),
    ],
    ids=["vocabulary", "high", "low", "tokenizer"],
)
def test_wrong_option_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(data.InputError, match=said):
        data.read_tokens(**options)


def test_bytes_can_have_an_end_token_beyond_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 40)
    (tmp_path / "b.txt").write_text("b" * 60)
    tokens = read(tmp_path, vocabulary=257, end=256, pack=True)
    assert tokens.train_N.tolist() == [97] * 40 + [10, 256] + [98] * 50
    assert tokens.start_M.tolist() == [0, 42]
    assert tokens.decode(tokens.train_N[38:44]) == "aa\nbb"
    assert tokens.vocabulary == 257


# ----------------------------------------------------------------------- tokenizers


def test_tokenizer_codes_whole_documents_with_an_end_between_them(
    bpe: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("green bottles fall; " * 20)
    (tmp_path / "b.txt").write_text("bottles é " * 40)
    tokens = read(tmp_path, tokenizer=str(bpe), pack=True)
    starts = tokens.start_M.tolist()
    first = tokens.decode(tokens.train_N[: starts[1]])
    assert first == "green bottles fall; " * 20 + "\n<|endoftext|>"
    assert len(starts) == 2 and 0 not in tokens.train_N[starts[1] :]
    assert tokens.vocabulary <= 300 and len(tokens.train_N) < 400


def test_bits_per_byte_count_the_bytes_of_the_held_out_text(
    bpe: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("green bottles fall; " * 20)
    judges = [tmp_path / "b.txt", tmp_path / "c.txt"]
    judges[0].write_text("s")
    judges[1].write_text("bottles fall; " * 10 + "é " * 10)
    coder: Any = tokenizers.Tokenizer.from_file(str(bpe))
    coder.no_truncation()
    coder.no_padding()
    parts = "s\n", judges[1].read_text()
    counts = [len(coder.encode(part).ids) for part in parts]
    window = sum(counts)  # with the end token, all there is: one window
    tokens = read(
        tmp_path / "a.txt",
        tmp_path / "a.txt",
        tokenizer=str(bpe),
        held_out=[*map(str, judges)],
        window=window,
    )
    assert tokens.held_out_KxT1.shape == (1, window + 1)
    size = len("".join(parts).encode()) - 1  # "s" is not predicted
    assert tokens.bytes_per_token == pytest.approx(size / window)
    assert tokens.bits(3.0) == pytest.approx(3.0 / math.log(2) * window / size)


def test_bytes_per_token_are_those_of_the_windows_alone(
    bpe: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("green bottles fall; " * 20)
    judge = tmp_path / "b.txt"
    judge.write_text("x" * 20 + "green bottles " * 20 + "x" * 20)
    tokens = read(
        tmp_path / "a.txt", tokenizer=str(bpe), held_out=[str(judge)], windows=2
    )
    # The first and the last: 'x's.
    assert tokens.decode(tokens.held_out_KxT1.ravel()) == "x" * 18
    assert tokens.bytes_per_token == 1


def test_tokenizer_that_loses_characters_has_no_bits_per_byte(tmp_path: Path) -> None:
    words: Any = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "?": 1, "b": 5}, unk_token="?")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    (tmp_path / "a.txt").write_text("a b c " * 50)
    tokens = read(tmp_path / "a.txt", tokenizer=str(tmp_path / "words.json"), window=5)
    assert (tokens.vocabulary, tokens.unit) == (6, "bits per token")


def test_token_files_with_their_tokenizer_have_bits_per_byte(
    bpe: Path, tmp_path: Path
) -> None:
    coder: Any = tokenizers.Tokenizer.from_file(str(bpe))
    coder.no_truncation()
    coder.no_padding()
    ids = coder.encode("green bottles ").ids
    path = write_tokens(tmp_path / "a.bin", ids * 100)
    tokens = read(path, tokenizer=str(bpe), vocabulary=512, window=len(ids))
    assert tokens.bytes_per_token == pytest.approx(14 / len(ids))
    assert tokens.vocabulary == 512
    assert tokens.decode(ids) == "green bottles "


def test_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a":\n 1}')
    with pytest.raises(data.InputError, match="a.json' is not one: .*JSON") as refused:
        read(tokenizer=str(tmp_path / "a.json"))
    assert "\n" not in str(refused.value)


def test_bits_per_byte_are_of_the_tokens_that_count_where_documents_are_apart(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("a" * 60)
    for name in ("x", "y", "z"):
        (tmp_path / f"{name}.txt").write_text(name * 2)
    judges = [str(tmp_path / f"{name}.txt") for name in ("x", "y", "z")]
    together, apart = (
        read(
            *(tmp_path / "a.txt", tmp_path / "a.txt"),
            **{"vocabulary": 257, "end": 256, "window": 9, "held_out": judges},
            pack=pack,
        )
        for pack in (False, True)
    )
    # xx n E yy n E zz: 7 of 9 are bytes; but the first y and z follow nothing.
    assert together.bytes_per_token == pytest.approx(7 / 9)
    assert apart.bytes_per_token == pytest.approx(5 / 7)
    assert data.predicted(apart.segment_KxT1).tolist() == [[1, 1, 1, 0, 1, 1, 1, 0, 1]]


def test_documents_of_which_no_token_counts_are_refused(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "a.bin", [7] * 100)
    said = "no held-out token follows another of its document; write another --end, or"
    with pytest.raises(data.InputError, match=said):
        read(path, end=7, pack=True)


# -------------------------------------------------------------------------- counting


def tokens_of(train: bytes, held_out: bytes) -> Any:
    train_N = np.frombuffer(train, np.uint8)
    window_1xT1 = np.frombuffer(held_out, np.uint8)[None].astype(np.int32)
    start_M, segment_1xT1 = np.zeros(1, int), np.ones_like(window_1xT1)
    return data.Tokens(train_N, start_M, window_1xT1, segment_1xT1, 256, 1.0, str)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_unigram_and_bigram_agree_with_counting_by_hand(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "SLICE", size)
    tokens = tokens_of(b"aab", b"abz")
    # a 2 times, b once, in 3 bytes; one pseudo-count for each of 256.
    b, z = 2 / 259, 1 / 259
    assert data.unigram_bits(tokens) == pytest.approx(-math.log2(b * z) / 2)
    # After a came a and b; after b came nothing, so z is as likely as anywhere.
    b_after_a, z_after_b = (1 + b) / (2 + 1), z
    by_hand = -math.log2(b_after_a * z_after_b) / 2
    assert data.bigram_bits(tokens) == pytest.approx(by_hand)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_counting_leaves_out_what_a_model_does_not_predict(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "SLICE", size)
    tokens = dataclasses.replace(
        tokens_of(b"aabb", b"abzab\0\0"),
        start_M=np.array([0, 2]),
        segment_KxT1=np.array([[1, 1, 2, 2, 2, 0, 0]], np.int32),
    )
    # Of the pairs ab, bz, za, ab, b0, 00 the first, third and fourth are within
    # documents; and of those in training ab is not.
    a = b = 3 / 260
    b_after_a, a_after_z = b / (1 + 1), a
    unigram = -math.log2(b * a * b) / 3
    assert data.unigram_bits(tokens) == pytest.approx(unigram)
    bigram = -math.log2(b_after_a * a_after_z * b_after_a) / 3
    assert data.bigram_bits(tokens) == pytest.approx(bigram)


def test_no_more_training_tokens_are_counted_than_is_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, long = tokens_of(b"aab", b"abz"), tokens_of(b"aab" + b"z" * 99, b"abz")
    bits = [(data.unigram_bits(x), data.bigram_bits(x)) for x in (short, long)]
    assert bits[0][0] != bits[1][0] and bits[0][1] != bits[1][1]
    monkeypatch.setattr(data, "COUNTED", 3)
    assert (data.unigram_bits(long), data.bigram_bits(long)) == bits[0]


# ------------------------------------------------------------------ windows, batches


def following(iterator: Any, count: int) -> list[dict[str, np.ndarray]]:
    return [next(iterator) for _ in range(count)]


def assert_same(some: Any, others: Any) -> None:
    for a, b in zip(some, others, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def example(n: int, rng: np.random.Generator) -> dict[str, Any]:
    return {"n": n, "drawn": rng.integers(2**60)}


def windows() -> grain.MapDataset:
    return data.token_windows(np.arange(50, dtype=np.uint8), 8, seed=3)


def packed() -> grain.IterDataset:
    token_N, start_M = np.arange(90), np.array([0, 3, 40, 41, 50])
    return data.packed_windows(token_N, start_M, 8, seed=3)


def numbers() -> grain.MapDataset:
    return data.shuffled(grain.MapDataset.range(10), 3, example)


DATASETS = {"windows": windows, "packed": packed, "numbers": numbers}


def test_training_windows_are_of_seed_and_index_and_reach_both_ends() -> None:
    token_N = np.arange(20, dtype=np.uint8)
    first, again, other = (
        np.stack([data.token_windows(token_N, 16, seed)[i]["tokens"] for i in order])
        for seed, order in ((0, range(50)), (0, [*range(50)][::-1]), (1, range(50)))
    )
    assert first.shape == (50, 17) and first.dtype == np.int32
    np.testing.assert_array_equal(first, again[::-1])
    assert (first != other).any()
    assert (np.diff(first) == 1).all()
    assert (first.min(), first.max()) == (0, 19)


@pytest.mark.parametrize("kind", DATASETS)
def test_rows_of_two_processes_are_the_batches_of_one(kind: str) -> None:
    dataset = DATASETS[kind]()
    rows = slice(None), slice(0, 3), slice(3, 6)
    whole, first, second = (
        following(iter(data.batches(dataset, 6, share)), 4) for share in rows
    )
    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(first, second, strict=True)
    ]
    assert_same(whole, joined)
    assert {len(x) for x in whole[0].values()} == {6}
    assert any((whole[0][name] != whole[1][name]).any() for name in whole[0])


@pytest.mark.parametrize("kind", DATASETS)
def test_rows_of_a_process_need_not_lie_side_by_side(kind: str) -> None:
    dataset, some = DATASETS[kind](), np.array([0, 1, 6])
    whole, share = (
        following(iter(data.batches(dataset, 8, rows)), 4) for rows in (slice(8), some)
    )
    assert_same([{name: x[some] for name, x in tree.items()} for tree in whole], share)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(2, 4), [2, 3, 10, 11]),
        (np.array([0, 1, 6]), [0, 1, 6, 8, 9, 14]),
    ],
    ids=["slice", "numbers"],
)
def test_examples_of_other_processes_are_not_read(
    rows: slice | np.ndarray, expected: list[int]
) -> None:
    read_N = []

    def counted(n: int) -> dict[str, int]:
        read_N.append(n)
        return {"n": n}

    dataset = grain.MapDataset.range(16).map(counted)
    got = [batch["n"].tolist() for batch in data.batches(dataset, 8, rows)]
    assert sum(got, []) == expected and sorted(read_N) == expected


@pytest.mark.parametrize("kind", DATASETS)
def test_iterator_goes_on_where_its_state_was_saved(kind: str, tmp_path: Path) -> None:
    dataset = data.batches(DATASETS[kind](), 4)
    iterator = iter(dataset)
    following(iterator, 7)
    state = json.loads(json.dumps(iterator.get_state()))
    with ocp.CheckpointManager(tmp_path, item_names=("data",)) as manager:
        saved = ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator))
        manager.save(7, args=saved)
        manager.wait_until_finished()
        rest = following(iterator, 9)
        by_state, by_orbax = iter(dataset), iter(dataset)
        by_state.set_state(state)
        asked = grain.checkpoint.CheckpointRestore(by_orbax)
        manager.restore(7, args=ocp.args.Composite(data=asked))
    assert_same(rest, following(by_state, 9))
    assert_same(rest, following(by_orbax, 9))


def test_state_of_one_process_serves_another_number_of_processes() -> None:
    one, half = (
        iter(data.batches(numbers(), 4, rows)) for rows in (slice(4), slice(2))
    )
    following(one, 5)
    half.set_state(one.get_state())
    assert_same([{n: x[:2] for n, x in next(one).items()}], following(half, 1))


def test_threads_change_nothing() -> None:
    alone, one, two = (iter(data.batches(numbers(), 4, threads=n)) for n in (0, 1, 2))
    first = following(alone, 9)
    assert_same(first, following(one, 9))
    assert_same(first, following(two, 9))
    assert alone.get_state() == one.get_state() == two.get_state()
    alone.set_state(one.get_state())
    assert_same(following(alone, 2), following(one, 2))


def test_examples_come_once_an_epoch_in_another_order_and_drawn_anew() -> None:
    dataset: Any = numbers()
    drawn = [dataset[i] for i in range(30)]
    orders = [[x["n"] for x in drawn[at : at + 10]] for at in (0, 10, 20)]
    assert all(sorted(order) == [*range(10)] for order in orders)
    assert orders[0] != orders[1] and orders[1] != orders[2]
    assert len({x["drawn"] for x in drawn}) == 30


def test_batches_of_a_dataset_that_ends_are_whole() -> None:
    dataset = grain.MapDataset.range(11).map(lambda n: {"n": n})
    got = [batch["n"].tolist() for batch in data.batches(dataset, 4, slice(1, 3))]
    assert got == [[1, 2], [5, 6]]


def test_packed_windows_have_every_token_of_an_epoch_once_in_its_document(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipelines, "BINS", 2)
    starts = np.array([0, 3, 40, 41, 50])
    pair_E, drawn = [], iter(packed())
    expected = [n for n in range(90) if n + 1 not in {3, 40, 41, 50, 90}]
    epochs = 5
    while len(pair_E) < epochs * len(expected):
        window = next(drawn)
        token, segment, place = (
            window[n] for n in ("tokens", "tokens_segment_ids", "tokens_positions")
        )
        assert token.shape == (9,)
        same = (segment[:-1] == segment[1:]) & (segment[1:] > 0)
        assert (np.diff(token)[same] == 1).all() and (np.diff(place)[same] == 1).all()
        document = np.searchsorted(starts, token, side="right")
        assert (np.diff(document)[same] == 0).all()
        pair_E += token[:-1][same].tolist()
    # The last windows hold pieces of neighbouring epochs.
    count = np.bincount(pair_E, minlength=90)
    assert np.flatnonzero(count).tolist() == expected
    assert set(count[expected]) <= {epochs - 1, epochs, epochs + 1}


def test_short_documents_share_a_window() -> None:
    dataset = data.packed_windows(np.arange(40), np.arange(0, 40, 4), 8, seed=0)
    for window in following(iter(dataset), 6):
        assert window["tokens_segment_ids"].tolist() == [1] * 4 + [2] * 4 + [0]
        assert window["tokens_positions"].tolist() == [0, 1, 2, 3] * 2 + [0]


def test_packing_of_a_single_document_is_refused() -> None:
    said = "--pack has one document; write --end TOKEN for .bin files, or several files"
    with pytest.raises(data.InputError, match=said):
        data.packed_windows(np.arange(40), np.zeros(1, int), 8, seed=0)
