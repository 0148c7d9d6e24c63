# SPDX-License-Identifier: Apache-2.0
"""The vision transformer: small runs, wrong input, its parts and what decays."""

import contextlib
import importlib
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from example_runs import PNG, command, curve, finished, lines_of, stopped_copy, words
from example_runs import compiled as compiled
from example_runs import quick as quick
from flax import nnx
from PIL import Image

import optax_wd as wd

vit = importlib.import_module("vit")
options = importlib.import_module("options")
tasks = importlib.import_module("tasks")
trainer = importlib.import_module("trainer")

TINY = "--width 16 --heads 2 --depth 1 --registers 1 --batch 32 --shift 0"
TRAINED = "--steps 60 --save-every 50 --learning-rate 0.02 --decay full"
HALF_WAY = 50


def small_settings(**changes: Any) -> Any:
    sizes = dict(width=8, heads=2, depth=2, registers=3, patch=2)
    return vit.Settings(**sizes | changes)


def small_model(
    shape: tuple[int, int, int] = (4, 6, 3), outputs: int = 5, **changes: Any
) -> Any:
    settings = small_settings(**changes)
    return vit.VisionTransformer(settings, shape, outputs, nnx.Rngs(0))


def params_of(model: Any) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def decayed(params: Any, mask: Any = wd.standard) -> set[str]:
    return {row.path for row in wd.describe(mask, params).rows if row.decays}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the program ends with, before it makes a folder."""
    with pytest.raises(SystemExit) as stopped:
        options.run("vit.py", lambda: vit.main(words(*arguments)))
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.err.startswith("vit.py: error: ") and said.err.count("\n") == 1
    return said.err


@pytest.fixture(scope="module")
def trained(quick: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """The folder of a whole run on digits, and what it printed."""
    folder = tmp_path_factory.mktemp("vit") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        vit.main(words(TINY, TRAINED, "--out", folder))
    return folder, printed.getvalue()


# ---------------------------------------------------------------------- whole runs


def test_a_small_run_learns_to_read_digits(trained: tuple[Any, str]) -> None:
    summary = lines_of(trained[0])[-1]["summary"]
    assert summary["held_out_accuracy"] > 0.3  # chance is 0.1
    assert summary["held_out_loss"] < np.log(10)


def test_it_shows_that_biases_of_two_dimensions_do_not_decay(
    trained: tuple[Any, str],
) -> None:
    lines = trained[1].splitlines()
    for name in ("key", "query", "value"):
        (row,) = [x for x in lines if x.startswith(f"blocks/0/attention/{name}/bias")]
        assert row.split()[1:6] == ["(2,", "8)", "float32", "16", "no"]
    assert "measured: exactly these decay" in lines


def test_it_ends_with_what_was_judged_wrongly(trained: tuple[Any, str]) -> None:
    folder, said = trained
    accuracy = lines_of(folder)[-1]["summary"]["held_out_accuracy"]
    assert f"  accuracy      {accuracy:.4f} of 360" in said
    named = [x.split() for x in said.splitlines() if "was taken for" in x]
    assert len(named) == vit.NAMED
    labels = vit.read_images().held_out.y_N
    for _, _, index, _, true, *_, taken in named:
        assert int(true.rstrip(",")) == labels[int(index)] != int(taken)


def test_it_leaves_pictures_of_the_run(trained: tuple[Any, str]) -> None:
    for name in ("curves.png", "decay.png"):
        assert (trained[0] / name).read_bytes().startswith(PNG)


def test_a_resumed_run_has_the_losses_of_one_that_never_stopped(
    trained: tuple[Any, str], tmp_path: Path
) -> None:
    stopped = stopped_copy(trained[0], tmp_path / "stopped", behind=HALF_WAY)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        vit.main(words(TINY, TRAINED, "--resume --out", stopped))
    assert f"resumed behind step {HALF_WAY}" in printed.getvalue()
    assert curve(stopped) == curve(trained[0])
    assert lines_of(stopped)[-1]["summary"]["held_out_accuracy"] > 0.3


@pytest.mark.parametrize("process", [0, 1])
def test_all_processes_end_together_and_the_first_alone_speaks(
    process: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def predict(*told: Any) -> Any:
        asked.append(told)
        return np.zeros(len(told[2]), int)

    done = trainer.Done({}, {"accuracy": 0.5}, {})
    monkeypatch.setattr(vit, "fit", lambda *_: done)
    monkeypatch.setattr(vit, "make_folder", lambda *_: tmp_path)
    monkeypatch.setattr(vit, "predict", predict)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    vit.main(words(TINY))
    assert len(asked) == 1  # what takes long is done by all of them
    assert ("accuracy" in capsys.readouterr().out) == (process == 0)


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Two classes of ten pictures, dark and bright, one of them not a picture."""
    rng = np.random.default_rng(0)
    for label, low in (("dark", 0), ("bright", 155)):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for number in range(10):
            x_HxWxC = rng.integers(low, low + 100, (9, 8, 3)).astype(np.uint8)
            Image.fromarray(x_HxWxC).save(folder / f"{number}.png")
    (tmp_path / "pictures" / "dark" / "broken.png").write_bytes(PNG)
    return tmp_path / "pictures"


def test_a_file_that_is_no_picture_is_left_out_and_counted(
    quick: object,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = []

    def no_training(task: Any, *_: object) -> Any:
        batches = task.batches(slice(None))
        seen.append((next(batches)["image"].shape, task.held_out["image"].shape))
        raise KeyboardInterrupt

    monkeypatch.setattr(vit, "fit", no_training)
    line = words(TINY, "--size 4 --data", picture_folder, "--out", tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        vit.main(line)
    assert seen == [((32, 4, 4, 3), (2, 4, 4, 3))]
    said = capsys.readouterr().out
    assert said.startswith("files skipped: 1; first: ") and "dark/broken.png: " in said


def test_it_is_refused_where_nothing_may_be_left_out(
    picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, TINY, "--strict --data", picture_folder)
    assert "broken.png" in said and "pictures only, or no --strict" in said


# --------------------------------------------------------------------- wrong input


WRONG = {
    "--patch 3": "pictures of 8 x 8 cannot be cut into --patch 3; write a size that",
    "--width 10 --heads 4": "--width 10 cannot be split over --heads 4; write a multi",
    "--depth 0": "--depth is 0; write a whole number from 1",
    "--registers -1": "--registers is -1; write a whole number from 0",
    "--shift -1": "--shift is -1; write a whole number from 0",
    "--classes 3 cat": "--classes are 3, cat; write two or more different ones of 0,",
    "--data nowhere": "--data 'nowhere' is no folder and no .npz file",
    "--mesh data=0": "--mesh 'data=0' has 'data=0'",
}


@pytest.mark.parametrize("given", WRONG, ids="{}".format)
def test_what_cannot_work_is_refused_before_a_folder_is_made(
    given: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert WRONG[given] in refusal(capsys, given)
    assert not list(tmp_path.iterdir())


def test_it_runs_without_warnings_as_a_program(quick: dict[str, str]) -> None:
    said, _ = finished(quick, command("--help", program="vit.py"))
    assert "--registers" in said


# ------------------------------------------------------------------ model and decay


@pytest.mark.parametrize("registers", [0, 3])
def test_shapes_of_the_model(registers: int) -> None:
    model = small_model(registers=registers)
    assert model(jnp.zeros((2, 4, 6, 3))).shape == (2, 5)
    params = params_of(model)
    assert params["pos_embed"].shape == (1, 7, 8)
    assert params["patch_embed"]["kernel"].shape == (12, 8)
    assert params["blocks"][1]["attention"]["query"]["bias"].shape == (2, 4)
    found = params.get("register_tokens")
    assert found is None if registers == 0 else found.shape == (1, 3, 8)


def test_patches_are_squares_row_by_row() -> None:
    x_BxHxWxC = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    found = vit.patches_of(x_BxHxWxC, 2)
    assert found.shape == (2, 6, 12)
    np.testing.assert_array_equal(found[1, 4].reshape(2, 2, 3), x_BxHxWxC[1, 2:, 2:4])


def test_bfloat16_is_for_computing_only() -> None:
    model = small_model(bfloat16=True)
    assert {x.dtype for x in jax.tree.leaves(params_of(model))} == {
        jnp.dtype("float32")
    }
    assert model(jnp.zeros((1, 4, 6, 3))).dtype == jnp.bfloat16


def test_no_parameter_is_of_a_weak_type() -> None:
    # Else the step, which makes them strong, is compiled once more, and yet again.
    params = jax.tree.leaves(params_of(small_model()))
    assert not any(jax.typeof(x).weak_type for x in params)


def test_only_kernels_decay() -> None:
    params = params_of(small_model(depth=1))
    attention = [f"blocks/0/attention/{x}" for x in ("key", "out", "query", "value")]
    others = ["blocks/0/mlp/down", "blocks/0/mlp/up", "head", "patch_embed"]
    assert decayed(params) == {f"{x}/kernel" for x in (*attention, *others)}
    by_rank = decayed(params, wd.min_ndim(2)) - decayed(params)
    tokens = {"class_token", "pos_embed", "register_tokens"}
    assert by_rank == tokens | {
        f"blocks/0/attention/{x}/bias" for x in ("key", "query", "value")
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "normuon"])
def test_the_optimizer_decays_what_the_mask_says(optimizer: str) -> None:
    settings = small_settings(optimizer=optimizer, depth=1)
    task = vit.make_task(settings, vit.read_images(), 10)
    tx = tasks.make_optimizer(settings, task)
    assert isinstance(tx, optax.GradientTransformation)
    wd.assert_decays(tx, params_of(small_model(depth=1)), task.mask)


def test_a_class_that_is_not_learned_has_an_output_all_the_same() -> None:
    images = vit.only_classes(vit.read_images(), ["7", "2"])
    task = vit.make_task(small_settings(), images, 10)
    assert set(task.held_out["label"].tolist()) == {0, 1}
    head = nnx.eval_shape(lambda: task.make_model(nnx.Rngs(0)).head.bias)
    assert head.shape == (10,)


def test_predictions_are_those_of_the_model() -> None:
    model = small_model()
    image_KxHxWxC = np.random.default_rng(0).normal(size=(70, 4, 6, 3))
    found = vit.predict(lambda _: small_model(), params_of(model), image_KxHxWxC)
    logits_KxO = model(jnp.asarray(image_KxHxWxC))
    np.testing.assert_array_equal(found, logits_KxO.argmax(axis=-1))
