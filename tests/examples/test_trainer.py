# SPDX-License-Identifier: Apache-2.0
"""The loop that trainers share, on a linear model: proof, parts of batches, journal."""

import importlib
import io
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from example_runs import compiled as compiled
from example_runs import logged, losses, options
from example_runs import plain_pictures as plain_pictures
from example_runs import quick as quick
from flax import nnx

import optax_wd as wd

tasks = importlib.import_module("tasks")
trainer = importlib.import_module("trainer")
journal = importlib.import_module("journal")
pipelines = importlib.import_module("pipelines")
mesh = importlib.import_module("mesh")
schedules = importlib.import_module("schedules")


def line_task(width: int = 4, batch: int = 8, seed: int = 0) -> Any:
    """Learns a linear map, whose kernel decays."""
    rng = np.random.default_rng(0)
    map_DxD = rng.normal(size=(width, width)) / width**0.5
    x_NxD = rng.normal(size=(44, width)).astype(np.float32)
    y_NxD = (x_NxD @ map_DxD).astype(np.float32)
    examples = [{"x": x, "y": y} for x, y in zip(x_NxD[:32], y_NxD[:32], strict=True)]
    dataset = pipelines.shuffled(grain.MapDataset.source(examples), seed)

    def score(model: Any, batch: Any) -> Any:
        return {"loss": jnp.square(model(batch["x"]) - batch["y"]).mean(axis=1)}

    return tasks.Task(
        make_model=lambda rngs: nnx.Linear(width, width, rngs=rngs),
        score=score,
        batches=lambda rows: iter(pipelines.batches(dataset, batch, rows)),
        held_out={"x": x_NxD[32:], "y": y_NxD[32:]},
        mask=wd.standard,
        rows=wd.nothing,
    )


def told(**changes: Any) -> Any:
    return options.Options(**dict(learning_rate=0.05, steps=6) | changes)


def fitted(folder: Path, task: Any = None, *, width: Any = 4, **changes: Any) -> Any:
    """A run of the linear model in a folder."""
    given = told(out=str(folder), **changes)
    folder.mkdir(parents=True, exist_ok=True)
    task = task or line_task(width, given.batch, given.seed)
    return trainer.fit(task, given, folder)


def test_loss_falls_and_all_held_out_examples_are_judged_with_what_comes_back(
    quick: Any, tmp_path: Path
) -> None:
    done = fitted(tmp_path, steps=60, weight_decay=0.0)
    assert losses(tmp_path)[-1] < 0.1 * losses(tmp_path)[0]
    assert done.found["loss"] < 0.2
    assert {type(x) for x in jax.tree.leaves(done.params)} == {np.ndarray}
    assert done.params["kernel"].shape == (4, 4)
    # Of the 12 held out, in batches of 8, the second is filled up: each counts once.
    task = line_task()
    x, y = task.held_out["x"], task.held_out["y"]
    found = x @ done.params["kernel"] + done.params["bias"]
    assert done.found["loss"] == pytest.approx(np.square(found - y).mean(), rel=1e-5)


def test_parts_of_a_batch_one_after_another_make_the_same_step(
    quick: Any, tmp_path: Path
) -> None:
    for parts in (1, 2):
        fitted(tmp_path / str(parts), accumulate=parts, clip=0.1)
    one, two = (losses(tmp_path / str(parts)) for parts in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_examples_count_for_what_they_weigh_in_training_and_held_out(
    parts: int, quick: Any
) -> None:
    task, given = line_task(), told(batch=8, accumulate=parts)

    def score(model: Any, batch: Any) -> Any:
        weight_B = jnp.where(batch["x"][:, 0] > 0, 3.0, 1.0)
        return task.score(model, batch) | {tasks.WEIGHT: weight_B}

    place = mesh.Place(given, task.rows)
    weighed = task._replace(score=score)
    made = trainer.Trainer(weighed, given, place, tasks.make_optimizer(given, task))
    state = made.begin()
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    nnx.update(model, state["params"])

    def expected(batch: Any) -> float:
        score_B = np.asarray(score(model, batch)["loss"])
        weight_B = np.where(batch["x"][:, 0] > 0, 3.0, 1.0)
        return float(np.average(score_B, weights=weight_B))

    found = made.judge(state["params"])
    assert set(found) == {"loss"}
    assert found["loss"] == pytest.approx(expected(task.held_out), rel=1e-5)
    batch = next(task.batches(place.share(8)))
    loss = expected(batch)
    _, seen = made.step(state, place.put(batch, 8))
    assert float(seen["loss"]) == pytest.approx(loss, rel=1e-5)


def test_decay_that_does_not_happen_is_found_before_training(
    quick: Any, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="expected decay, measured shrink 0 "):
        given = told(out=str(tmp_path))
        trainer.fit(line_task(), given, tmp_path, optax.adam(1e-3))
    assert losses(tmp_path) == []


def test_optimizer_of_ones_own_is_taken(quick: Any, tmp_path: Path) -> None:
    tx = wd.adamw(0.0, wd.masked_decay(0.5))
    with pytest.raises(AssertionError, match="expected decay"):
        trainer.fit(line_task(), told(out=str(tmp_path)), tmp_path, tx)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_rises_for_a_twentieth_of_the_steps_to_its_peak(
    schedule: str,
) -> None:
    rate = trainer.make_schedule(told(steps=100, schedule=schedule))
    rates = np.array([rate(step) for step in range(101)])
    assert (np.diff(rates[:6]) > 0).all() and rates[0] > 0
    assert rates.max() == rates[5] == pytest.approx(0.05)
    assert (np.diff(rates[5:]) <= 1e-9).all()
    assert rates[100] == pytest.approx(0.05 if schedule == "constant" else 0.0025)


def test_learning_rate_rises_for_as_many_steps_as_told() -> None:
    rate = trainer.make_schedule(told(steps=100, warmup=20))
    rates = np.array([rate(step) for step in range(101)])
    assert (np.diff(rates[:21]) > 0).all() and (np.diff(rates[20:]) < 0).all()
    assert rates[20] == pytest.approx(0.05) and rates[100] == pytest.approx(0.0025)


def test_warmup_that_leaves_no_step_at_the_peak_is_refused() -> None:
    assert told(steps=6, warmup=5).warmup == 5
    said = (
        "^--warmup is 6, of 6 steps; write 0 for a twentieth, or less than --steps 6$"
    )
    with pytest.raises(options.InputError, match=said):
        told(steps=6, warmup=6)
    for name in ("warmup", "log_every", "eval_every"):
        said = f"^--{name.replace('_', '-')} is -1; write a whole number from 0 to "
        with pytest.raises(options.InputError, match=said):
            told(**{name: -1})


def test_corrected_decay_follows_the_schedule(quick: Any, tmp_path: Path) -> None:
    shrinks = {}
    for corrected in (False, True):
        folder = tmp_path / str(corrected)
        given = dict(decay="full", corrected=corrected, schedule="linear", steps=20)
        shrinks[corrected] = fitted(folder, **given).last["shrink"]
    # In the last step the rate is 0.05 + 0.95 / 19 of its peak.
    peak, share = 0.05 * 0.5, 0.05 + 0.95 / 19
    assert shrinks[False] == pytest.approx(peak * share, rel=0.01)
    assert shrinks[True] == pytest.approx(peak * share**2, rel=0.01)


def test_change_of_the_learning_rate_is_told_where_there_is_one() -> None:
    before = dict(learning_rate=0.05, warmup=0, schedule="constant", steps=20)
    said = schedules.rate_change(before, told(steps=40, schedule="constant"), 10)
    assert said is None
    changed = told(steps=40, schedule="linear", learning_rate=0.1)
    said = schedules.rate_change(before, changed, 39)
    # In the last of 40 steps the rate is 0.05 + 0.95 / 38 of its peak.
    assert said == "learning rate of step 40: 0.05 before, 0.0075 now"
    said = schedules.rate_change(before, told(schedule="constant", warmup=4), 0)
    assert said == "learning rate of step 1: 0.025 before, 0.01 now"


def test_table_of_what_decays_shows_the_shrink_at_the_peak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for corrected in (False, True):
        given, task = told(steps=100, corrected=corrected), line_task()
        place = mesh.Place(given, task.rows)
        tx = tasks.make_optimizer(given, task)
        with journal.Journal(given, tmp_path) as kept:
            trainer.Trainer(task, given, place, tx).prove(kept)
        said = capsys.readouterr().out
        assert "learning_rate 0.05 * weight_decay 0.5, at step 5\n" in said


def test_model_with_state_that_would_be_lost_is_refused(tmp_path: Path) -> None:
    def make_model(rngs: nnx.Rngs) -> nnx.Module:
        noisy = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
        return nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), *noisy)

    said = (
        r"^the model has state that this trainer would not keep \(BatchStat, RngCount, "
        r"RngKey\); write it without dropout and batch statistics$"
    )
    with pytest.raises(options.InputError, match=said):
        fitted(tmp_path, line_task()._replace(make_model=make_model))


def test_sigterm_ends_a_run_as_an_interrupt_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(number: int) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            error.add_note("all is well")
            raise

    monkeypatch.setattr(options.os, "_exit", sys.exit)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        options.run("lm.py", lambda: stopped(signal.SIGTERM))
    assert ended.value.code == 143
    assert capsys.readouterr().err == "lm.py: terminated; all is well\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_axis_of_layers_is_whole_in_the_proof_and_others_are_cut() -> None:
    whole = jax.ShapeDtypeStruct((12, 16, 4), jnp.float32)
    assert trainer._cut(whole, True).shape == (12, 8, 4)
    assert trainer._cut(whole, False).shape == (8, 8, 4)


def test_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with options.Stop() as stop:
        assert not stop.asked()
        signal.raise_signal(signal.SIGINT)
        assert not stop.asked()
    assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN


def test_second_run_of_a_process_stops_where_all_agree(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    agreed: list[int] = []

    def reached(number: int) -> bool:
        asked.append(number)
        return [number] == agreed

    says = "reached_preemption_sync_point"
    monkeypatch.setattr(options.multihost_utils, says, reached)
    fitted(tmp_path / "one", save_every=2)
    # JAX agrees on the number behind the last: others, by Orbax, would mislead it.
    assert len(asked) == 6 and set(np.diff(asked)) == {1}
    agreed.append(asked[-1] + 1)
    with pytest.raises(options.Terminated):
        fitted(tmp_path / "two", save_every=2)
    assert asked[-1] == agreed[0]


# ------------------------------------------------------------------------- journal


def test_pace_of_a_resumed_run_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dict(step=2, loss=3.0, seconds=1000.0)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(before) + "\n")
    clock = SimpleNamespace(perf_counter=iter((50.0, 60.0, 62.0)).__next__)
    monkeypatch.setattr(journal, "time", clock)
    with journal.Journal(told(steps=10), tmp_path, start=2) as kept:
        kept.log(3, {}, loss=2.0)
        kept.log(5, {"bits": 3.0}, loss=2.0)
    assert "  1.0 steps/s  5 s left\n" in capsys.readouterr().out
    first, second = kept.history[1:]
    assert (first["seconds"], second["seconds"]) == (1010.0, 1012.0)
    assert "examples_per_second" not in first  # whose time is that of compiling
    assert second["examples_per_second"] == 8.0


def test_steps_are_logged_and_judged_as_often_as_told(tmp_path: Path) -> None:
    def chosen(**changes: int) -> list[list[int]]:
        with journal.Journal(told(steps=200, **changes), tmp_path, leads=False) as kept:
            both = kept.is_logged, kept.is_evaluated
            return [[x for x in range(1, 201) if chooses(x)] for chooses in both]

    hundredth, tenth = [1, *range(2, 201, 2)], list(range(20, 201, 20))
    assert chosen() == [hundredth, tenth]
    assert chosen(log_every=60) == [[1, 60, 120, 180, 200], tenth]
    assert chosen(eval_every=70) == [hundredth, [70, 140, 200]]


def test_weights_are_measured_in_each_step_that_is_logged_as_told(
    quick: Any, tmp_path: Path
) -> None:
    fitted(tmp_path, steps=6, save_every=6, log_every=2, eval_every=3)
    shown = logged(tmp_path)
    assert [x["step"] for x in shown] == [1, 2, 3, 4, 6]
    assert [x["step"] for x in shown if "weight_rms" in x] == [2, 4, 6]
    assert [x["step"] for x in shown if "held_out_loss" in x] == [3, 6]


def test_first_line_of_a_run_says_nothing_about_a_pace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dict(step=2, loss=3.0, seconds=1000.0)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(before) + "\n")
    with journal.Journal(told(steps=10), tmp_path, start=2) as kept:
        kept.log(3, {"bits": 3.0}, loss=2.0)
        kept.log(4, {"bits": 3.0}, loss=2.0)
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == "step 3/10  loss 2.000  bits 3.000"
    assert second.startswith(f"step 4{first[6:]}  ") and second.endswith(" s left")


def test_curves_that_were_not_drawn_are_not_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with journal.Journal(told(steps=5), tmp_path):
        pass
    assert capsys.readouterr().out == f"results: {tmp_path}/metrics.jsonl\n"


def test_terminal_gets_a_progress_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with journal.Journal(told(steps=5), tmp_path) as kept:
        for step in kept.follow(range(1, 6)):
            kept.log(step, {"bits": 3.5}, loss=2.0, weight_rms=0.1)
    last = terminal.getvalue().rpartition("\r")[2]
    assert "5/5" in last and "step/s" in last and "loss=2.000" in last
    assert "steps/s" not in capsys.readouterr().out


def test_bar_of_a_resumed_run_begins_where_that_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with journal.Journal(told(steps=5), tmp_path, start=3) as kept:
        assert list(kept.follow(range(4, 6))) == [4, 5]
    assert "3/5" in terminal.getvalue() and "5/5" in terminal.getvalue()


def test_processes_that_do_not_lead_write_and_print_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with journal.Journal(told(steps=5), tmp_path, leads=False) as kept:
        for step in kept.follow(range(1, 6)):
            kept.log(step, {"bits": 3.5}, loss=2.0)
        kept.say("hello")
        kept.write({"summary": 1})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_figure_that_is_not_finite_is_named_in_every_process(tmp_path: Path) -> None:
    for leads in (True, False):
        with journal.Journal(told(steps=5), tmp_path, leads=leads) as kept:
            with pytest.raises(FloatingPointError, match="^bits is inf at step 2$"):
                kept.log(2, {"bits": float("inf")}, loss=2.0)
            with pytest.raises(FloatingPointError, match="^loss is nan at step 3$"):
                kept.check(3, {"loss": jnp.array(jnp.nan)})
            kept.check(4, {"loss": jnp.array(2.0)})


def test_overwrite_replaces_results_and_nothing_else(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "curves.png", "decay.png", "notes.txt"):
        (tmp_path / name).write_text("old")
    for name in ("checkpoints", "tensorboard"):
        (tmp_path / name / "8").mkdir(parents=True)
    given = told(out=str(tmp_path), overwrite=True)
    assert journal.make_folder(given, "lm") == tmp_path
    assert [x.name for x in tmp_path.iterdir()] == ["notes.txt"]


def test_first_free_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [str(journal.make_folder(told(), "lm")) for _ in range(3)]
    assert names == ["runs/lm", "runs/lm-2", "runs/lm-3"]
