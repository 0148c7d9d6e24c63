# SPDX-License-Identifier: Apache-2.0
"""Pictures: every way to store them, what is wrong with files, augmentation."""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from PIL import Image

data = importlib.import_module("data")
images = importlib.import_module("images")
picture_files = importlib.import_module("picture_files")

RED, BLUE = (255, 0, 0), (0, 0, 255)


def save(path: Path, colour: Any = RED, mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, options.pop("size", (6, 6)), colour).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten red and twenty blue pictures."""
    for n in range(10):
        save(tmp_path / f"red/{n}.png")
    for n in range(20):
        save(tmp_path / f"blue/inner/{n}.png", BLUE)
    return tmp_path


def pixels(pictures: Any) -> np.ndarray:
    return np.stack([pictures[i]["image"] for i in range(len(pictures))])


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(data.InputError) as error:
        images.read_images(*map(str, arguments), **options)
    assert "\n" not in str(error.value) and "; write " in str(error.value)
    return str(error.value)


# --------------------------------------------------------------------------- digits


def test_digits_are_split_evenly_and_always_alike() -> None:
    digits, again = images.read_images(), images.read_images()
    assert digits.classes == tuple("0123456789") and digits.skipped == ()
    assert (len(digits.train), len(digits.held_out)) == (1437, 360)
    assert digits.train.shape == (8, 8, 1)
    assert set(np.bincount(digits.held_out.y_N)) <= set(range(34, 38))
    np.testing.assert_array_equal(digits.held_out.x_N, again.held_out.x_N)
    both = np.concatenate([digits.train.x_N, digits.held_out.x_N])
    first = digits.train[0]
    assert first["image"].dtype == np.float32 and first["label"].dtype == np.int32
    # The 17 shades of the original, 0 to 16, are still told apart.
    assert len(np.unique(both)) == 17 and (both.min(), both.max()) == (0, 255)
    assert first["image"].max() <= 1


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    x_NxHxW, y_N = load_digits(return_X_y=True)
    digits = images.read_images()
    known = {
        tuple(x): y for x, y in zip(x_NxHxW.astype(int).tolist(), y_N, strict=True)
    }
    for part in (digits.train, digits.held_out):
        shade_NxHW = np.rint(pixels(part) * 16).astype(int).reshape(len(part), -1)
        labels = [known[tuple(shade)] for shade in shade_NxHW.tolist()]
        np.testing.assert_array_equal(labels, part.y_N)


# --------------------------------------------------------------------------- folders


def test_folder_has_a_class_for_each_folder_and_holds_a_tenth_of_each_out(
    folder: Path,
) -> None:
    found, again = (images.read_images(str(folder), size=4) for _ in range(2))
    assert found.classes == ("blue", "red")
    assert np.bincount(found.train.y_N).tolist() == [18, 9]
    assert np.bincount(found.held_out.y_N).tolist() == [2, 1]
    assert found.train.shape == (4, 4, 3)
    for part in (found.train, found.held_out):
        for label, colour in enumerate((BLUE, RED)):
            same = pixels(part)[part.y_N == label] * 255
            np.testing.assert_array_equal(same, np.broadcast_to(colour, same.shape))
    np.testing.assert_array_equal(found.train.y_N, again.train.y_N)


def test_same_pictures_are_held_out_whether_in_memory_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(40):
        save(tmp_path / f"{'ab'[n % 2]}/{n}.png", (n, 2 * n, 3 * n))
    save(tmp_path / "a/grey.png", 77, "L")
    (tmp_path / "a/broken.png").write_bytes(b"\x89PNG")
    held = images.read_images(str(tmp_path), size=5)
    monkeypatch.setattr(images, "IN_MEMORY", 10)
    monkeypatch.setattr(images.os, "cpu_count", lambda: 4)
    lazy = images.read_images(str(tmp_path), size=5)
    assert held.train.x_N.ndim == 4 and lazy.train.x_N.ndim == 1
    assert len(lazy.skipped) == 1
    assert (held.train.threads, lazy.train.threads) == (1, 4)
    for a, b in ((held.train, lazy.train), (held.held_out, lazy.held_out)):
        np.testing.assert_array_equal(pixels(a), pixels(b))
        np.testing.assert_array_equal(a.y_N, b.y_N)


@pytest.mark.parametrize("judge", ["val", "test"])
@pytest.mark.parametrize("train", ["", "train/"])
def test_folders_set_aside_are_held_out(train: str, judge: str, tmp_path: Path) -> None:
    for n in range(12):
        save(tmp_path / f"{train}a/{n}.png", 10, "L")
        save(tmp_path / f"{train}b/{n}.png", 20, "L")
    save(tmp_path / f"{judge}/b/0.png", 30, "L")
    found = images.read_images(str(tmp_path), size=2)
    assert found.classes == ("a", "b")
    assert np.bincount(found.train.y_N).tolist() == [12, 12]
    assert found.held_out.y_N.tolist() == [1]
    np.testing.assert_allclose(pixels(found.held_out), 30 / 255)
    save(tmp_path / f"{judge}/c/0.png")
    assert f"{judge}' has class 'c', " in refused(tmp_path)


def test_first_of_several_folders_set_aside_is_held_out_and_the_others_named(
    tmp_path: Path,
) -> None:
    root, unread = str(tmp_path), []
    for kind in "ab":
        save(tmp_path / f"train/{kind}/0.png", 0, "L")
    for shade, name in enumerate(["test", "validation", "valid", "val"], start=1):
        for kind in "ab":
            save(tmp_path / f"{name}/{kind}/0.png", shade, "L")
        found = images.read_images(root, strict=True)
        np.testing.assert_allclose(pixels(found.train), 0)
        np.testing.assert_allclose(pixels(found.held_out), shade / 255)
        said = [f"{other}: not read, as {root}/{name} is held out" for other in unread]
        assert list(found.skipped) == said
        unread.insert(0, f"{root}/{name}")


def test_no_more_pictures_are_held_out_than_are_judged_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(30):
        save(folder / f"val/{'blue' if n < 20 else 'red'}/{n}.png")
    (folder / "red/text.png").write_text("no picture")
    whole = images.read_images(str(folder), size=4)
    assert len(whole.held_out) == 30 and len(whole.skipped) == 1
    for name, limit in (("JUDGED", 6), ("JUDGED_BYTES", 6 * 4 * 4 * 4 * 3 + 1)):
        with monkeypatch.context() as patch:
            patch.setattr(images, name, limit)
            found = images.read_images(str(folder), size=4)
        assert np.bincount(found.held_out.y_N).tolist() == [4, 2]
        said = f"{folder}: 6 of 30 held-out pictures are taken, evenly spread"
        assert found.skipped == (said, *whole.skipped)
        assert len(found.train) == len(whole.train)


def test_class_may_be_called_val(tmp_path: Path) -> None:
    for n in range(2):
        save(tmp_path / f"val/{n}.png")
        save(tmp_path / f"other/{n}.png")
    assert images.read_images(str(tmp_path)).classes == ("other", "val")


def test_broken_files_are_named_and_skipped_or_refused(folder: Path) -> None:
    whole = save(folder / "red/long.jpg", size=(60, 60)).read_bytes()
    (folder / "red/long.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "red/text.png").write_text("no picture")
    (folder / "red/.hidden").write_text("not looked at")
    (folder / "red/.thumbnails").mkdir()
    (folder / "red/.thumbnails/0.txt").write_text("not looked at")
    save(folder / "red/range.tiff", 0.5, "F")
    found = images.read_images(str(folder))
    assert len(found.train) + len(found.held_out) == 30
    assert [line.split(": ")[0] for line in found.skipped] == [
        str(folder / f"red/{name}") for name in ("long.jpg", "range.tiff", "text.png")
    ]
    assert "Truncated" in found.skipped[0] and "no known range" in found.skipped[1]
    assert "cannot read" in (said := refused(folder, strict=True))
    assert "long.jpg: " in said


def test_bomb_is_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder / "red/big.png", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    found = images.read_images(str(folder))
    assert len(found.skipped) == 1 and "big.png: Image size (400 " in found.skipped[0]


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ([], "has no folders of pictures; write a folder for each class"),
        (["lone.png"], "has no folders of pictures"),
        (["a/0.png", "a/1.png"], "has one class, a; write data of two or more"),
        (["a/0.png", "b/1.png"], "has no picture to hold out; write data with two"),
        (["a/0.png", "a/1.png", "b/.hidden.png"], "class folder '.*b' is empty"),
        (["a/0.png", "a/1.png", "b/0.png"], "class 'b' has no picture that can be"),
    ],
    ids=["nothing", "no folder", "one class", "too few", "empty", "unreadable"],
)
def test_folder_that_cannot_be_learned_from_is_refused(
    paths: list[str], said: str, tmp_path: Path
) -> None:
    for path in paths:
        save(tmp_path / path)
    if "b/0.png" in paths:
        (tmp_path / "b/0.png").write_text("text")
    with pytest.raises(data.InputError, match=said):
        images.read_images(str(tmp_path))


@pytest.mark.parametrize("path", ["missing", "", "a.txt"])
def test_path_of_nothing_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    given = str(tmp_path / path) if path else ""
    assert "is no folder and no .npz file; write the path of one" in refused(given)


# --------------------------------------------------------------------------- formats


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((6, 6), 0x80FF, np.uint16)).save(path)


def palette(path: Path) -> None:
    Image.new("RGB", (6, 6), RED).convert("P").save(path)


def clear_palette(path: Path) -> None:
    paletted = Image.new("P", (6, 6), 1)
    paletted.putpalette([9, 9, 9, *RED])
    paletted.save(path, transparency=b"\xff\x00")


def turned(path: Path) -> None:
    # The left half is red as stored; orientation 6 turns it clockwise, so the top is.
    image = Image.new("RGB", (6, 6), BLUE)
    image.paste(RED, (0, 0, 3, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def plain(mode: str, colour: Any) -> Callable[[Path], Any]:
    return lambda path: save(path, colour, mode)


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("rgb.png", plain("RGB", RED), RED),
        ("rgb.bmp", plain("RGB", RED), RED),
        ("rgb.gif", plain("RGB", RED), RED),
        ("grey.png", plain("L", 9), (9,)),
        ("bit.png", plain("1", 1), (255,)),
        ("clear.png", plain("RGBA", (*RED, 0)), (255, 255, 255)),
        ("opaque.png", plain("RGBA", (*RED, 255)), RED),
        ("half.png", plain("LA", (0, 127)), (128,)),
        ("cmyk.tiff", plain("CMYK", (0, 255, 255, 0)), RED),
        ("deep.png", sixteen_bits, (0x80,)),
        ("wide.tiff", plain("I", 0x40FF), (0x40,)),
        ("palette.png", palette, RED),
        ("clear_palette.png", clear_palette, (255, 255, 255)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_picture_of_any_mode_is_read_as_it_is_seen(
    name: str, write: Callable[[Path], Any], expected: tuple[int, ...], tmp_path: Path
) -> None:
    write(tmp_path / name)
    [(_, picture)] = picture_files.decode_all([str(tmp_path / name)], 4)
    assert picture.shape == (4, 4, len(expected)) and picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_picture_is_turned_as_its_camera_was(tmp_path: Path) -> None:
    turned(tmp_path / "a.png")
    picture = picture_files.decode(str(tmp_path / "a.png"), 6)
    assert picture[0, 5].tolist() == list(RED)
    assert picture[5, 0].tolist() == list(BLUE)


def test_square_is_cut_from_the_middle_and_scaled(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10), BLUE)
    image.paste(RED, (10, 0, 20, 10))
    image.save(tmp_path / "a.png")
    picture = picture_files.decode(str(tmp_path / "a.png"), 10)
    np.testing.assert_array_equal(picture, np.broadcast_to(RED, (10, 10, 3)))
    small = picture_files.decode(str(tmp_path / "a.png"), 2)
    assert small.shape == (2, 2, 3) and np.abs(small - np.array(RED)).max() < 40


# ---------------------------------------------------------------------- arrays, CIFAR

GOOD = {"x": np.zeros((20, 5, 4), np.uint8), "y": np.arange(20) % 2}
TEST = {"x_test": GOOD["x"][:3], "y_test": GOOD["y"][:3]}


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "a.npz"
    np.savez(path, **arrays)
    return path


def test_arrays_are_read_and_a_tenth_of_each_class_is_held_out(tmp_path: Path) -> None:
    x_N = np.arange(20, dtype=np.uint8).repeat(20).reshape(20, 5, 4)
    found = images.read_images(str(npz(tmp_path, x=x_N, y=GOOD["y"])))
    assert found.classes == ("0", "1") and found.train.shape == (5, 4, 1)
    assert np.bincount(found.train.y_N).tolist() == [9, 9]
    assert np.bincount(found.held_out.y_N).tolist() == [1, 1]
    shade_N = np.rint(255 * pixels(found.train)[:, 0, 0, 0]).astype(int)
    np.testing.assert_array_equal(shade_N % 2, found.train.y_N)


def test_arrays_set_aside_are_held_out_and_floats_stay_as_they_are(
    tmp_path: Path,
) -> None:
    x_N = np.random.default_rng(0).uniform(-1, 1, (20, 5, 4, 3))
    path = npz(tmp_path, x=x_N, y=GOOD["y"], x_test=x_N[:3], y_test=GOOD["y"][:3])
    found = images.read_images(str(path))
    assert (len(found.train), len(found.held_out)) == (20, 3)
    np.testing.assert_array_equal(pixels(found.train), x_N.astype(np.float32))


def test_arrays_may_have_the_names_that_keras_gives_them(tmp_path: Path) -> None:
    keras = {"x_train": GOOD["x"], "y_train": GOOD["y"]}
    found = images.read_images(str(npz(tmp_path, **keras, **TEST)))
    assert (len(found.train), len(found.held_out)) == (20, 3)
    said = "a.npz' has both x and x_train; write one of them"
    assert said in refused(npz(tmp_path, **GOOD, **keras))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": None}, "a.npz' has x, but no y; write x and y, and"),
        (TEST | {"y_test": None}, "has x, y, x_test, but no y_test"),
        (
            {"x": GOOD["x"][0]},
            r"x of '.*a.npz' is uint8 of shape \(5, 4\); write uint8",
        ),
        ({"x": GOOD["x"].astype(int)}, r"x of '.*' is int64 of shape"),
        ({"x": np.full((20, 5, 4), np.nan)}, r"x of '.*' is float64 of shape"),
        (
            {"x": np.linspace(0, 255, 400).reshape(20, 5, 4)},
            "x of '.*' goes from 0 to 255; write uint8, or floats from 0 to 1 or from",
        ),
        (TEST | {"x_test": GOOD["x"][:3] - 1.5}, "x_test of '.*' goes from -1.5 to -1"),
        ({"x": np.zeros((20, 5, 4, 2), np.uint8)}, r"\(20, 5, 4, 2\); write"),
        (
            {"x": GOOD["x"][:0], "y": GOOD["y"][:0]},
            r"x of '.*' is uint8 of .* \(0, 5, 4",
        ),
        ({"y": GOOD["y"][:9]}, r"y of '.*' is int64 of shape \(9,\); write 20 whole"),
        ({"y": GOOD["y"] / 2}, r"y of '.*' is float64 of shape \(20,\)"),
        ({"y": GOOD["y"] - 1}, "y of '.*' goes from -1 to 0; write labels from 0"),
        ({"y": GOOD["y"] * 10**9}, "y of '.*' goes from 0 to 1000000000"),
        ({"y": GOOD["y"] * 2}, "y of '.*' goes up to 2 without 1; write labels 0, 1"),
        ({"y": GOOD["y"] * 0}, "has one class, 0"),
        (
            TEST | {"y_test": np.array([0, 1, 2])},
            "x_test or y_test of '.*' is unlike x",
        ),
        (TEST | {"x_test": GOOD["x"][:3, 1:]}, r"write pictures of \(5, 4, 1\)"),
        (TEST | {"x_test": GOOD["x"][:3] * 1.5j}, "x_test of '.*' is complex128"),
        ({"x": np.array([None])}, "cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_cannot_be_learned_from_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    given = {name: x for name, x in (GOOD | changes).items() if x is not None}
    with pytest.raises(data.InputError, match=said):
        images.read_images(str(npz(tmp_path, **given)))


def test_file_that_is_no_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    whole = npz(tmp_path, **GOOD).read_bytes()
    flipped = bytearray(whole)
    flipped[200] ^= 1
    for content in (b"", b"text", whole[:100], bytes(flipped)):
        (tmp_path / "a.npz").write_bytes(content)
        assert "a.npz' cannot be read: " in refused(tmp_path / "a.npz")
    np.save((tmp_path / "b.npy"), GOOD["x"])
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    assert "b.npz' cannot be read: " in refused(tmp_path / "b.npz")


def cifar(folder: Path) -> np.ndarray:
    """Two batches and a test batch of two records each, which are returned."""
    record_6x3073 = np.random.default_rng(0).integers(0, 256, (6, 3073), np.uint8)
    record_6x3073[:, 0] = [0, 9, 3, 3, 1, 2]
    names = "data_batch_1", "data_batch_2", "test_batch"
    for n, name in enumerate(names):
        record_6x3073[2 * n : 2 * n + 2].tofile(folder / f"{name}.bin")
    return record_6x3073


def test_records_of_cifar_are_label_red_green_blue(tmp_path: Path) -> None:
    record_6x3073 = cifar(tmp_path)
    found = images.read_images(str(tmp_path))
    assert found.train.y_N.tolist() == [0, 9, 3, 3]
    assert found.held_out.y_N.tolist() == [1, 2]
    assert found.classes == tuple("0123456789") and found.train.shape == (32, 32, 3)
    for channel in range(3):
        at = 1 + 1024 * channel + 32 * 7 + 5
        shade_N = pixels(found.train)[:, 7, 5, channel] * 255
        np.testing.assert_allclose(shade_N, record_6x3073[:4, at], rtol=1e-6)


def test_names_of_cifar_are_read_where_they_are(tmp_path: Path) -> None:
    cifar(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert images.read_images(str(tmp_path)).classes == tuple("abcdefghij")


def test_records_of_cifar_that_are_wrong_are_refused(tmp_path: Path) -> None:
    record_6x3073 = cifar(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(record_6x3073.tobytes()[:-1])
    said = refused(tmp_path)
    assert "data_batch_2.bin' has 18437 bytes, no records of 3073" in said
    (tmp_path / "data_batch_2.bin").write_bytes(b"")
    assert "data_batch_2.bin' has 0 bytes" in refused(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(b"\x0a" + bytes(3072))
    assert "data_batch_2.bin' has label 10" in refused(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    assert "has no test_batch.bin; write a whole CIFAR-10" in refused(tmp_path)


# ------------------------------------------------------------- classes, augmentation


def test_some_classes_are_numbered_as_they_are_given() -> None:
    digits = images.read_images()
    some = images.only_classes(digits, ["7", "2"])
    assert some.classes == ("7", "2")
    for before, after in (
        (digits.train, some.train),
        (digits.held_out, some.held_out),
    ):
        for number, label in enumerate((7, 2)):
            old = before.x_N[before.y_N == label]
            np.testing.assert_array_equal(after.x_N[after.y_N == number], old)
        assert set(after.y_N) == {0, 1} and after[0]["label"].dtype == np.int32


@pytest.mark.parametrize(
    "classes", [[], ["3"], ["3", "3"], ["3", "ten"]], ids=["0", "1", "twice", "unknown"]
)
def test_classes_that_are_not_two_known_ones_are_refused(classes: list[str]) -> None:
    said = ", ".join(classes) or "none"
    match = f"--classes are {said}; write two or more different ones of 0, 1, 2"
    with pytest.raises(data.InputError, match=match):
        images.only_classes(images.read_images(), classes)


def augmented(**options: Any) -> list[np.ndarray]:
    """What becomes of one picture, whose pixels are all different, in 200 draws."""
    picture = {"image": np.arange(1, 37, dtype=np.float32).reshape(6, 6, 1), "label": 3}
    draws = (
        images.augment(picture, np.random.default_rng(seed), **options)
        for seed in range(200)
    )
    return [drawn["image"][..., 0] for drawn in draws if drawn["label"] == 3]


def test_augmentation_that_is_off_changes_nothing() -> None:
    plain_6x6 = np.arange(1, 37).reshape(6, 6)
    assert all((drawn == plain_6x6).all() for drawn in augmented())


def test_shifted_pictures_are_within_reach_and_black_outside() -> None:
    plain_6x6 = np.arange(1, 37).reshape(6, 6)
    wide = np.pad(plain_6x6, 2)
    places = [(i, j) for i in range(5) for j in range(5)]
    seen = [
        [place for place in places if (wide[place[0] :, place[1] :][:6, :6] == x).all()]
        for x in augmented(shift=2)
    ]
    assert {place for [place] in seen} == set(places)


def test_flipped_pictures_are_half_of_them() -> None:
    plain_6x6 = np.arange(1, 37).reshape(6, 6)
    mirrored = [(x == plain_6x6[:, ::-1]).all() for x in augmented(flip=True)]
    straight = [(x == plain_6x6).all() for x in augmented(flip=True)]
    assert sum(mirrored) + sum(straight) == 200 and 70 < sum(mirrored) < 130


def test_cut_out_squares_are_whole_and_anywhere() -> None:
    corners = set()
    for drawn in augmented(cutout=4):
        rows, columns = np.nonzero(drawn == 0)
        assert len(rows) == 16 and np.ptp(rows) == np.ptp(columns) == 3
        corners.add((rows.min(), columns.min()))
    assert corners == {(i, j) for i in range(3) for j in range(3)}


def test_augmented_batches_are_of_the_seed_and_other_each_epoch() -> None:
    digits = images.only_classes(images.read_images(), ["0", "1"]).train.take(
        np.arange(8)
    )
    source = grain.MapDataset.source(digits)
    change = functools.partial(images.augment, shift=1, cutout=2)

    def epochs(seed: int) -> list[np.ndarray]:
        drawn = iter(data.batches(data.shuffled(source, seed, change), 8))
        got = [next(drawn) for _ in range(2)]
        assert got[0]["image"].shape == (8, 8, 8, 1) and got[0]["label"].shape == (8,)
        return [np.sort(batch["image"].sum(axis=(1, 2, 3))) for batch in got]

    first, again, other = epochs(0), epochs(0), epochs(1)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any() and (first[0] != other[0]).any()
