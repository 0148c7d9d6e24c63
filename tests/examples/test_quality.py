# SPDX-License-Identifier: Apache-2.0
"""The study of quality: its statistics, that it goes on, and a whole small one."""

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from example_runs import compiled as compiled
from example_runs import plain_pictures as plain_pictures
from example_runs import quick as quick
from helpers import ROOT

import optax_wd as wd

sys.path.append(str(ROOT / "benchmarks"))

quality = importlib.import_module("quality")
report = importlib.import_module("quality_report")
study = importlib.import_module("quality_study")


def run_of(arm: str, amount: float, seed: int, loss: float, **more: float) -> Any:
    point = dict(step=20, loss=1.0, gradient_norm=1.0, weight_rms=0.5)
    point |= dict(open_fraction=0.25, condition=9.0, held_out_loss=loss) | more
    key = dict(task="lm", arm=arm, weight_decay=amount, seed=seed)
    return key | dict(fraction=1.0, curve=[point | dict(step=10), point], seconds=1.0)


def runs_of(arm: str, amount: float, *losses: float) -> list[Any]:
    return [run_of(arm, amount, seed, loss) for seed, loss in enumerate(losses)]


def test_interval_is_that_of_students_t() -> None:
    # 4.303 is the 97.5% quantile of t with 2 degrees of freedom.
    mean, half = report.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert report.interval([1.0]) == (1.0, math.inf)


def test_each_way_stands_at_its_own_best_coefficient() -> None:
    runs = runs_of("full", 0.1, 3.0, 5.0) + runs_of("full", 0.5, 3.5, 4.0)
    assert report.best(runs + runs_of("none", 0.0, 1.0)) == {"full": 0.5, "none": 0.0}


def test_differences_are_taken_seed_by_seed(tmp_path: Path) -> None:
    # The seeds differ by far more than the ways do, and by the same in both.
    runs = runs_of("full", 0.1, 1.0, 2.0, 3.0)
    runs += runs_of("cautious", 0.1, 0.9, 1.9, 2.901)
    runs += runs_of("none", 0.0, 0.5, 2.5, 3.1)
    runs += runs_of("random", 0.1, 1.9, 2.9, 3.901)
    report.write_report(tmp_path, runs)
    text = (tmp_path / "quality.md").read_text()
    assert "* `cautious` at 0.1: -0.0997 ± 0.0014, significant" in text
    assert "* `none` at 0: +0.0333 ± 1.2503, not significant" in text
    _, controls = text.split("Less than `random` at the same coefficient:")
    assert "* `cautious` at 0.1: -1.0000 ± 0.0000, significant" in controls
    assert "Best at an end of the grid: `full` at 0.1, `cautious` at 0.1" in controls
    assert "| cautious | 0.1 | 1.9003 ± 2.4854 | 0.5000 | 0.250 | 3 |" in text
    for picture in ("quality-loss.png", "quality-steps.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


def test_random_fraction_is_what_cautious_runs_had_open() -> None:
    runs = [run_of("cautious", 0.5, 0, 1.0), run_of("full", 0.5, 0, 1.0)]
    runs.append(run_of("cautious", 0.5, 1, 1.0, open_fraction=0.75))
    runs.append(run_of("cautious", 2.0, 1, 1.0, open_fraction=0.9))
    assert quality.open_fraction(runs, "lm", 0.5) == 0.5


def test_condition_is_that_of_matrices_as_they_are_used() -> None:
    task: Any = SimpleNamespace(mask=wd.standard, stacked=wd.contains("blocks"))
    rng = np.random.default_rng(0)
    query, blocks = rng.normal(size=(6, 2, 4)), rng.normal(size=(3, 5, 4))
    params = {
        "query": {"kernel": query, "bias": np.ones((2, 4))},
        "blocks": {"kernel": blocks},
    }
    matrices = [query.reshape(6, 8), *blocks]
    expected = float(np.median([np.linalg.cond(x) for x in matrices]))
    assert quality.condition(task, params) == pytest.approx(expected)


@pytest.fixture(scope="module")
def small() -> Any:
    plan = study.smoke()
    return plan._replace(coefficients={"lm": (0.5,)}, seeds=range(2))


@pytest.fixture(scope="module")
def made(quick: Any, small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "quality.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "ARMS", ("cautious", "random"))
        quality.complete(small, path)
    return path


def test_whole_study_has_a_line_for_each_run(made: Path) -> None:
    head, *runs = map(json.loads, made.read_text().splitlines())
    assert head["settings"]["lm"]["width"] == 8
    arms = [(run["arm"], run["weight_decay"], run["seed"]) for run in runs]
    assert arms == [(x, 0.5, seed) for x in ("cautious", "random") for seed in (0, 1)]
    for run in runs:
        assert [point["step"] for point in run["curve"]] == list(range(1, 21))
        first, last = run["curve"][0], run["curve"][-1]
        assert last["held_out_loss"] < first["held_out_loss"]
        assert last["condition"] > 1
    fraction = {run["arm"]: run["fraction"] for run in runs}
    opened = {arm: [] for arm, *_ in arms}
    for run in runs:
        opened[run["arm"]] += [point["open_fraction"] for point in run["curve"]]
    mean = {arm: sum(found) / len(found) for arm, found in opened.items()}
    assert 0.3 < mean["cautious"] < 0.7
    assert fraction["random"] == pytest.approx(mean["cautious"], abs=1e-3)
    assert mean["random"] == pytest.approx(fraction["random"], abs=0.03)


def test_study_goes_on_where_it_was_stopped(
    small: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "ARMS", ("cautious", "random"))
    path, lines = tmp_path / "quality.jsonl", made.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:50]]))
    learned = []

    class Learner:
        def __init__(self, *told: Any) -> None:
            self.arm = told[0]

        def run(self, amount: float, seed: int, task: Any) -> Any:
            learned.append((self.arm, seed))
            return run_of(self.arm, amount, seed, 1.0)["curve"]

    monkeypatch.setattr(quality, "Learner", Learner)
    assert len(quality.complete(small, path)) == 4
    assert learned == [("cautious", 1), ("random", 0), ("random", 1)]
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert len(whole) == 1 + 4
    learned.clear()
    quality.complete(small, path)
    assert learned == []


def test_results_of_another_study_are_left_alone(small: Any, made: Path) -> None:
    before = made.read_text()
    wider = {"lm": dataclasses.replace(small.settings["lm"], width=16)}
    with pytest.raises(SystemExit, match="results of another study; write another --o"):
        quality.complete(small._replace(settings=wider), made)
    assert made.read_text() == before
