# SPDX-License-Identifier: Apache-2.0
"""Runs that stop and go on: the same losses, refusals, checkpoints that are kept."""

import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from example_runs import (
    ROOT,
    TEXT,
    TINY,
    curve,
    ending,
    lines_of,
    lm,
    logged,
    losses,
    options,
    steps_kept,
    stopped_copy,
    train,
    words,
)
from example_runs import compiled as compiled
from example_runs import plain_pictures as plain_pictures
from example_runs import quick as quick
from example_runs import text_file as text_file
from test_trainer import fitted, line_task

Event: Any = importlib.import_module("tensorboardX.proto.event_pb2").Event
trainer = importlib.import_module("trainer")
checkpoints = importlib.import_module("checkpoints")
# A limit on the size of files fails as a full disk does: within a write.
FULL_AT_4 = """
import resource, sys, checkpoints, lm, options
save = checkpoints.Checkpoints.save
def limited(self, step, *rest):
    if step == 4:
        self.manager.wait_until_finished()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save(self, step, *rest)
checkpoints.Checkpoints.save = limited
options.run("lm.py", lambda: lm.main(sys.argv[1:]))
"""
PACKED = "--pack --accumulate 2 --batch 8 --clip 1"
STEPS = "--steps 8 --save-every 2 --keep 9 --learning-rate 0.02"


class Whole(NamedTuple):
    """A run that was never stopped, and what it was told."""

    folder: Path
    given: tuple[object, ...]


@pytest.fixture(scope="module")
def whole(
    quick: Any, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    folder = tmp_path_factory.mktemp("whole") / "run"
    second = text_file.with_name("second.txt")  # for there is no packing of one
    second.write_text(TEXT[::-1])
    given = STEPS, PACKED, "--data", text_file, second
    train(*given, "--out", folder)
    return Whole(folder, given)


@pytest.fixture(scope="module")
def line(quick: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run of the linear model; not to be written to."""
    folder = tmp_path_factory.mktemp("line")
    fitted(folder, steps=4, save_every=2)
    return folder


def events(folder: Path) -> list[tuple[int, str, float]]:
    """Steps, names and values in the event files of a run, in order of time."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, checksum, record, checksum
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            found += [(event.step, x.tag, x.simple_value) for x in event.summary.value]
            at += size + 16
    return found


# ------------------------------------------------------------------ the same losses


def test_resumed_run_has_the_losses_of_one_that_was_never_stopped(
    whole: Whole, tmp_path: Path
) -> None:
    assert steps_kept(whole.folder) == [2, 4, 6, 8]
    again = stopped_copy(whole.folder, tmp_path / "run", behind=4)
    printed = train(*whole.given, "--out", again, "--resume")
    assert "resumed behind step 4\n" in printed
    assert curve(again) == curve(whole.folder)  # bit for bit, each step once
    assert len(set(losses(again))) == 8
    assert lines_of(again)[-1]["summary"]["steps"] == 8
    assert [x["step"] for x in lines_of(again)[:-1]] == list(range(1, 9))
    assert steps_kept(again) == [2, 4, 6, 8]


def test_finished_run_is_judged_again_and_ends(whole: Whole, tmp_path: Path) -> None:
    again = shutil.copytree(whole.folder, tmp_path / "run")
    printed = train(*whole.given, "--out", again, "--resume")
    assert "resumed behind step 8\n" in printed and "\nstep " not in printed
    assert curve(again) == curve(whole.folder)
    before, now = (lines_of(x)[-1]["summary"] for x in (whole.folder, again))
    assert now["bits_per_byte"] == before["bits_per_byte"]
    weights = f"weight RMS    {logged(again)[-1]['weight_rms']:.4f}"
    assert weights in printed


def test_events_for_tensorboard_say_what_the_lines_do(line: Path) -> None:
    expected = [
        (entry["step"], name, np.float32(value))
        for entry in logged(line)
        for name, value in entry.items()
        if name not in ("step", "seconds")
    ]
    assert len(expected) > 12
    assert sorted(events(line)) == sorted(expected)


def test_resume_in_an_empty_folder_begins_anew_and_says_so(
    line: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(tmp_path, steps=4, save_every=2, resume=True)
    assert "no checkpoint to resume from: beginning anew\n" in capsys.readouterr().out
    assert curve(tmp_path) == curve(line)


def test_resumed_run_drops_cut_lines_and_steps_done_again_and_adds_events(
    line: Path, tmp_path: Path
) -> None:
    again = stopped_copy(line, tmp_path / "run", behind=2)
    with (again / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    fitted(again, steps=4, save_every=2, resume=True)
    assert curve(again) == curve(line)
    assert len(list((again / "tensorboard").iterdir())) == 2
    added = [event for event in events(again) if event[1] == "loss"][4:]
    assert [step for step, _, _ in added] == [3, 4]


# ------------------------------------------------------------------- told to stop


Stopped = Callable[..., str]


@pytest.fixture
def stopped(
    quick: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Stopped]:
    """Runs of the linear model in `tmp_path` to which signals are sent in a step."""
    is_due = checkpoints.Checkpoints.is_due
    monkeypatch.setattr(options.os, "_exit", sys.exit)
    # A process started in the background of a script ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(step: int, *signals: signal.Signals, **told: Any) -> str:
        def noisy(self: Any, now: int) -> bool:
            for number in signals if now == step else ():
                signal.raise_signal(number)
            return is_due(self, now)

        with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
            patched.setattr(checkpoints.Checkpoints, "is_due", noisy)
            options.run("lm.py", lambda: fitted(tmp_path, **told))
        assert ended.value.code == 128 + signals[-1]
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
        return capsys.readouterr().err

    yield run
    signal.signal(signal.SIGINT, before)


def kept_behind(folder: Path, step: int) -> str:
    kept = f"the last checkpoint is {folder}/checkpoints/{step}"
    return f"{kept}; write --resume and the same --out to go on\n"


def test_run_that_is_told_to_stop_keeps_its_step_and_goes_on_with_the_same_losses(
    stopped: Stopped, tmp_path: Path
) -> None:
    told = dict(steps=200, save_every=50, keep=1)  # every 2nd step is logged
    said = stopped(103, signal.SIGTERM, **told)
    assert said == f"lm.py: terminated; {kept_behind(tmp_path, 103)}"
    said = stopped(150, signal.SIGINT, **told, resume=True)
    assert said == f"lm.py: interrupted; {kept_behind(tmp_path, 150)}"
    fitted(tmp_path, **told, resume=True)
    fitted(tmp_path / "whole", **told)
    assert curve(tmp_path) == curve(tmp_path / "whole")
    assert lines_of(tmp_path)[-1]["summary"]["steps"] == 200


def test_checkpoint_that_nobody_judged_is_never_the_best_and_goes_as_others_do(
    stopped: Stopped, tmp_path: Path
) -> None:
    told = dict(steps=6, save_every=2, keep=1)
    stopped(3, signal.SIGTERM, **told)
    assert steps_kept(tmp_path) == [2, 3]
    like = {"kernel": np.zeros([4, 4]), "bias": np.zeros(4)}
    best, last = (checkpoints.read_params(tmp_path, like, x) for x in (True, False))
    assert (best["kernel"] != last["kernel"]).all()
    shutil.rmtree(tmp_path / "checkpoints/2")
    said = re.escape(f"{str(tmp_path)!r} has no judged checkpoint; write no --best, or")
    with pytest.raises(options.InputError, match=said):
        checkpoints.read_params(tmp_path, like, best=True)
    fitted(tmp_path, **told, resume=True)
    assert steps_kept(tmp_path) == [6]


def test_run_of_which_no_checkpoint_was_judged_has_no_best(
    stopped: Stopped, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(3, signal.SIGTERM, steps=1000)
    done = fitted(tmp_path, steps=3, resume=True, allow_change=True)
    assert np.isfinite(done.found["loss"])
    assert "best checkpoint" not in capsys.readouterr().out
    assert steps_kept(tmp_path) == [3]


def test_run_that_is_told_to_stop_does_not_keep_what_is_not_finite(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, asked = line_task(), iter([False, True])
    nan_behind_step_1 = lambda model, batch: {  # noqa: E731
        name: jnp.where(jnp.any(model.bias[...] != 0), jnp.nan, x)
        for name, x in task.score(model, batch).items()
    }
    monkeypatch.setattr(options.Stop, "asked", lambda _: next(asked))
    with pytest.raises(FloatingPointError, match="^loss is nan at step 2$"):
        # Of 1000 steps the 1st and the 10th are logged.
        fitted(tmp_path, task._replace(score=nan_behind_step_1), steps=1000)
    assert steps_kept(tmp_path) == []


def test_second_signal_ends_at_once_as_does_one_before_a_step_is_done(
    stopped: Stopped, tmp_path: Path
) -> None:
    told = dict(steps=4, save_every=2)
    assert stopped(1, signal.SIGTERM, **told) == "lm.py: terminated\n"
    assert steps_kept(tmp_path) == []
    said = stopped(3, signal.SIGTERM, signal.SIGINT, **told, resume=True)
    assert said == f"lm.py: interrupted; {kept_behind(tmp_path, 2)}"


# -------------------------------------------------------------------- other options


def test_resume_with_other_options_is_refused_with_the_difference(line: Path) -> None:
    changed = dict(steps=4, save_every=2, resume=True, learning_rate=0.5, seed=3)
    said = (
        r"--resume of a run with other options or data: learning_rate 0.05 -> 0.5, "
        r"seed 0 -> 3; write those it began with, or --allow-change too"
    )
    with pytest.raises(options.InputError, match=said):
        fitted(line, **changed)
    said = f"--steps is 3; {line} is already at step 4; write --steps above 4"
    with pytest.raises(options.InputError, match=re.escape(said)):
        fitted(line, steps=3, resume=True, allow_change=True)
    assert len(losses(line)) == 4  # nothing is lost


def test_resume_with_other_data_is_refused_unless_that_is_allowed(
    line: Path, tmp_path: Path
) -> None:
    again, task = stopped_copy(line, tmp_path / "run", behind=2), line_task()
    other = task._replace(held_out=task.held_out | {"x": 2 * task.held_out["x"]})
    said = r"options or data: checksum of held-out data '\w{8}' -> '\w{8}'; write "
    given = dict(steps=4, save_every=2, resume=True)
    with pytest.raises(options.InputError, match=said):
        fitted(again, other, **given)
    fitted(again, other, **given, allow_change=True)
    assert losses(again) == losses(line)
    assert logged(again)[-1]["held_out_loss"] != logged(line)[-1]["held_out_loss"]


def test_resume_with_other_options_goes_on_if_that_is_allowed(
    line: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = stopped_copy(line, tmp_path / "run", behind=2)
    changed = dict(weight_decay=0.0, learning_rate=0.01, allow_change=True)
    fitted(again, steps=4, save_every=2, resume=True, **changed)
    assert "learning rate of step 3: 0.0262 before, 0.00525 now\n" in (
        capsys.readouterr().out
    )
    assert losses(again)[:3] == losses(line)[:3]
    assert losses(again)[3] != losses(line)[3]
    fitted(
        again, steps=4, save_every=2, resume=True, **changed | dict(allow_change=False)
    )
    assert "learning rate of" not in capsys.readouterr().out


def test_what_only_says_where_and_how_often_may_change(
    line: Path, tmp_path: Path
) -> None:
    again = stopped_copy(line, tmp_path / "run", behind=2)
    mesh = "data=2,model=2"
    often = dict(save_every=1, keep=1, log_every=1, eval_every=1)
    fitted(again, steps=4, mesh=mesh, resume=True, **often)
    np.testing.assert_allclose(losses(again), losses(line), rtol=1e-5)


def test_what_changes_no_losses_is_not_compared(tmp_path: Path) -> None:
    with checkpoints.Checkpoints(lm.Settings(), tmp_path, {}) as kept:
        assert {"width", "warmup"} <= kept.config.keys()
        assert not {"sample", "remat", "out"} & kept.config.keys()


# ------------------------------------------------------------------- what is kept


def judged_as(monkeypatch: pytest.MonkeyPatch, given: list[float]) -> None:
    scripted = iter(given)
    found = lambda *_: {"loss": next(scripted)}  # noqa: E731
    monkeypatch.setattr(trainer.Trainer, "judge", found)


def test_last_ones_are_kept_and_the_best_stays_when_later_ones_are_worse(
    quick: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judged_as(monkeypatch, [3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    done = fitted(tmp_path, steps=6, save_every=1, keep=2)
    assert steps_kept(tmp_path) == [2, 5, 6]
    said = "best checkpoint: step 2, held-out loss 1.0000\n"
    assert said in capsys.readouterr().out
    last = checkpoints.read_params(tmp_path, done.params)
    best = checkpoints.read_params(tmp_path, done.params, best=True)
    np.testing.assert_array_equal(last["kernel"], done.params["kernel"])
    assert not np.allclose(best["kernel"], last["kernel"], atol=1e-3)
    judged_as(monkeypatch, [0.5])
    shutil.rmtree(tmp_path / "checkpoints/6")
    fitted(tmp_path, steps=6, save_every=1, keep=2, resume=True)
    assert steps_kept(tmp_path) == [5, 6]  # the best is the last
    assert "best checkpoint" not in capsys.readouterr().out


def test_what_is_kept_with_a_checkpoint_was_measured_at_its_step(
    quick: Any, tmp_path: Path
) -> None:
    # Of 40 steps every 4th is judged anyway.
    fitted(tmp_path, steps=40, save_every=7, keep=9)
    assert steps_kept(tmp_path) == [7, 14, 21, 28, 35, 40]
    logged_at = {x["step"]: x.get("held_out_loss") for x in logged(tmp_path)}
    for step in steps_kept(tmp_path):
        path = tmp_path / "checkpoints" / str(step) / "metrics/metrics"
        assert json.loads(path.read_text())["loss"] == logged_at[step] is not None


def test_interrupt_names_the_last_checkpoint(line: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as interrupt:
        with checkpoints.Checkpoints(lm.Settings(), line, {}):
            raise KeyboardInterrupt
    assert interrupt.value.__notes__ == [
        f"the last checkpoint is {line}/checkpoints/4",
        "write --resume and the same --out to go on",
    ]


# ------------------------------------------------------------------------- failures


def test_corrupted_checkpoint_is_named_in_one_line_and_the_one_before_is_of_use(
    line: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(line, tmp_path / "run")
    last = broken / "checkpoints/4"
    for path in last.rglob("*"):
        if path.is_file() and "params" in path.parts:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(options.InputError) as refused:
        fitted(broken, steps=4, save_every=2, resume=True)
    said = str(refused.value)
    assert said.startswith(f"cannot read the checkpoint {last}: ") and "\n" not in said
    assert said.endswith("write --resume when it is deleted, to use the one before")
    shutil.rmtree(last)
    fitted(broken, steps=4, save_every=2, resume=True)
    assert curve(broken) == curve(line)


def test_full_disk_ends_the_run_in_one_line_and_spares_what_is_there(
    whole: Whole, quick: dict[str, str], tmp_path: Path
) -> None:
    more = {"JAX_NUM_CPU_DEVICES": "4"}
    path = {"PYTHONPATH": f"{ROOT / 'examples'}:{quick['PYTHONPATH']}"}
    given = words(*TINY, *whole.given, "--out", tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", FULL_AT_4, *given],
        env=quick | more | path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("lm.py: error: ") and done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert f"{tmp_path}/run/checkpoints" in done.stderr
    assert "; write --resume once there is room for it, or another --out" in done.stderr
    assert steps_kept(tmp_path / "run") == [2]
    train(*whole.given, "--out", tmp_path / "run", "--resume")
    assert curve(tmp_path / "run") == curve(whole.folder)


def test_loss_that_is_not_finite_ends_the_run_and_is_not_written_or_kept(
    quick: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = line_task()
    nan_soon = lambda model, batch: {  # noqa: E731
        name: jnp.where(jnp.abs(model.bias[...]).max() > 0.15, jnp.nan, x)
        for name, x in task.score(model, batch).items()
    }
    with pytest.raises(SystemExit) as stopped:
        options.run(
            "lm.py",
            lambda: fitted(
                tmp_path, task._replace(score=nan_soon), steps=40, save_every=1
            ),
        )
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert "is nan at step" in said.err and "write a smaller --learn" in said.err
    kept = losses(tmp_path)
    assert 1 < len(kept) < 40 and np.isfinite(kept).all()
    assert max(steps_kept(tmp_path)) <= len(kept)
    assert (tmp_path / "curves.png").exists()


def test_file_in_the_place_of_the_checkpoints_is_one_line(
    quick: Any, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").write_text("precious")
    given = "--width 8 --heads 2 --window 16 --batch 4 --resume".split()
    status, said = ending(capsys, *given, "--data", text_file, "--out", tmp_path)
    assert status == 2
    assert f"cannot use {tmp_path}/checkpoints: " in said
    assert said.endswith("; write another --out\n")
    assert (tmp_path / "checkpoints").read_text() == "precious"
