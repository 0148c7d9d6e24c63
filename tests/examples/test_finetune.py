# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: two runs from one checkpoint, and checkpoints that do not fit."""

import contextlib
import importlib
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from example_runs import compiled as compiled
from example_runs import losses, stopped_copy, words
from example_runs import plain_pictures as plain_pictures
from example_runs import quick as quick

import optax_wd as wd

vit = importlib.import_module("vit")
finetune = importlib.import_module("finetune")
options = importlib.import_module("options")
tasks = importlib.import_module("tasks")
trainer = importlib.import_module("trainer")

OLD = "--classes 3 1 0 2 4"
TINY = "--width 16 --heads 2 --depth 1 --registers 1 --shift 0 --steps 20"
TUNED = "--steps 20 --batch 32 --learning-rate 0.02 --weight-decay 5"
SPLIT = "--mesh data=2,model=2"


@pytest.fixture(scope="module")
def half(quick: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of vit.py on half of the digits."""
    folder = tmp_path_factory.mktemp("vit") / "half"
    with contextlib.redirect_stdout(io.StringIO()):
        given = "--batch 32 --learning-rate 0.02 --out"
        vit.main(words(TINY, OLD, SPLIT, given, folder))
    return folder


@pytest.fixture(scope="module")
def tuned(half: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and what it printed."""
    folder = tmp_path_factory.mktemp("finetune") / "tuned"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        finetune.main(words("--from", half, TUNED, SPLIT, "--out", folder))
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def start(half: Path) -> Any:
    return finetune.read_start(finetune.Settings(from_=str(half)))


def results(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((folder / "comparison.json").read_text())


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the program ends with, before it makes a folder."""
    with pytest.raises(SystemExit) as stopped:
        options.run("finetune.py", lambda: finetune.main(words(*arguments)))
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.err.startswith("finetune.py: error: ") and said.err.count("\n") == 1
    return said.err


def test_the_anchored_run_ends_nearer_to_the_start(tuned: tuple[Path, str]) -> None:
    found = results(tuned[0])
    assert list(found) == ["start", "anchored", "free"]
    for quantity in ("distance, RMS", "distance / norm"):
        start, anchored, free = (figures[quantity] for figures in found.values())
        assert start == 0 < anchored < 0.8 * free


def test_new_classes_are_learned(tuned: tuple[Path, str]) -> None:
    assert results(tuned[0])["start"]["accuracy, new classes"] < 0.1
    for arm in ("anchored", "free"):
        before, *_, after = losses(tuned[0] / arm)
        assert after < 0.6 * before


def test_the_table_says_what_the_file_says(tuned: tuple[Path, str]) -> None:
    folder, said = tuned
    for quantity in results(folder)["start"]:
        (line,) = [x for x in said.splitlines() if x.startswith(f"  {quantity}")]
        cells = [f"{figures[quantity]:.4f}" for figures in results(folder).values()]
        assert line.removeprefix(f"  {quantity}").split() == cells


def test_each_run_proves_what_it_does(tuned: tuple[Path, str]) -> None:
    said = tuned[1]
    assert said.index("exactly these decay") < said.index("nothing decays")
    for arm in ("anchored", "free"):
        assert (tuned[0] / arm / "metrics.jsonl").is_file()


def test_a_finished_run_gives_the_same_table_again(
    half: Path, tuned: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(tuned[0])
    finetune.main(words("--from", half, TUNED, "--resume --out", tuned[0]))
    assert results(tuned[0]) == before
    assert capsys.readouterr().out.count("resumed behind step 20") == 2


def test_it_begins_where_the_checkpoint_ends(half: Path, start: Any) -> None:
    accuracy = json.loads((half / "metrics.jsonl").read_text().splitlines()[-1])
    task = finetune.make_task(start, 0.5)
    found = finetune.compare(start, task, start.params)
    said = accuracy["summary"]["held_out_accuracy"]
    assert found["accuracy, old classes"] == pytest.approx(said)
    assert start.images.classes == tuple("3102456789") and start.known == 5
    assert set(task.held_out["label"].tolist()) == {5, 6, 7, 8, 9}
    assert set(next(task.batches(slice(None)))["label"].tolist()) <= {5, 6, 7, 8, 9}


def test_best_checkpoint_is_taken_if_asked_for(
    half: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def read_params(_: Path, like: Any, best: bool) -> Any:
        asked.append(best)
        return start.params

    monkeypatch.setattr(finetune, "read_params", read_params)
    for best in (False, True):
        finetune.read_start(finetune.Settings(from_=str(half), best=best))
    assert asked == [False, True]


def test_layers_learn_more_slowly_the_lower_they_are(start: Any) -> None:
    factors = finetune.make_task(start, 0.5).multiplier(start.params)
    low = "patch_embed", "class_token", "pos_embed", "register_tokens"
    assert {x for name in low for x in jax.tree.leaves(factors[name])} == {0.25}
    assert set(jax.tree.leaves(factors["blocks"])) == {0.5}
    high = factors["norm"], factors["head"]
    assert set(jax.tree.leaves(high)) == {1.0}


@pytest.mark.parametrize("decay", ["full", "cautious"])
def test_the_pull_is_towards_the_checkpoint(start: Any, decay: str) -> None:
    settings = finetune.Settings(decay=decay, schedule="constant", steps=10)
    task = finetune.make_task(start, 1.0)
    tx = tasks.make_optimizer(settings, task)
    state, zeros = tx.init(start.params), jax.tree.map(np.zeros_like, start.params)
    update = jax.jit(tx.update)
    still, _ = update(zeros, state, start.params)
    assert all(not np.any(x) for x in jax.tree.leaves(still))
    away = jax.tree.map(lambda x: x + 1, start.params)
    pulled, _ = update(zeros, state, away)
    shrink = settings.learning_rate * settings.weight_decay
    for x in jax.tree.leaves(pulled):
        np.testing.assert_allclose(x, -shrink, rtol=1e-4)
    wd.assert_decays(tx, start.params, task.mask)


# ---------------------------------------------------------------------- wrong input


def checkpoint(folder: Path, config: dict[str, Any], params: Any) -> Path:
    """A run with one checkpoint, as checkpoints.py would write it."""
    place = folder / "checkpoints"
    with ocp.CheckpointManager(place.absolute()) as manager:
        items = dict(
            config=ocp.args.JsonSave(config), params=ocp.args.StandardSave(params)
        )
        manager.save(1, args=ocp.args.Composite(**items))
    return folder


def test_a_folder_without_a_checkpoint_is_refused(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "--from", tmp_path)
    instead = "the folder of a run, made by python examples/vit.py --classes 0 1 2 3 4"
    assert f"--from {str(tmp_path)!r} has no checkpoints; write {instead}" in said
    assert said.endswith(f" --out {finetune.Settings().from_}\n")
    emptied = stopped_copy(half, tmp_path / "emptied", behind=0)
    said = refusal(capsys, "--from", emptied)
    assert "emptied' has no whole checkpoint; write the folder of a run" in said


def test_the_run_of_another_trainer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = checkpoint(tmp_path / "lm", {"window": 128}, {"kernel": np.ones(2)})
    said = refusal(capsys, "--from", other)
    assert "lm' is no run of vit.py; write the folder of one" in said


def test_parameters_of_another_model_are_refused(
    half: Path, start: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = importlib.import_module("checkpoints").read_options(half)
    wide = checkpoint(tmp_path / "wide", told | {"width": 32}, start.params)
    said = refusal(capsys, "--from", wide)
    assert "wide' has parameters of other shapes than its options say; write" in said
    deep = checkpoint(tmp_path / "deep", told | {"depth": 2}, start.params)
    said = refusal(capsys, "--from", deep)
    assert f"cannot read a checkpoint in {deep / 'checkpoints'}: " in said
    assert "; write the folder of another run" in said


def test_a_run_that_knows_all_classes_is_refused(
    half: Path, start: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = importlib.import_module("checkpoints").read_options(half)
    done = checkpoint(tmp_path / "all", told | {"classes": []}, start.params)
    said = refusal(capsys, "--from", done)
    assert "all' has learned 10 classes of 10; write a run of vit.py whose" in said


@pytest.mark.parametrize("rate", ["0", "1.5", "nan"])
def test_a_layer_rate_that_cannot_be_is_refused(
    rate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "--layer-rate", rate)
    assert f"--layer-rate is {float(rate)}; write more than 0, at most 1" in said


def test_without_a_decay_there_is_nothing_to_compare(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "invalid choice: 'none'" in refusal(capsys, "--decay none")
