# SPDX-License-Identifier: Apache-2.0
"""Does the way in which weights decay change how well a model ends?

    python benchmarks/quality.py

The example models learn with AdamW and six ways of decay, for a grid of coefficients
and several seeds. Each run is a line of the results, written when it has ended; the
same command goes on where it was stopped, and then writes the report:

    none           no decay
    full           plain decoupled decay of all coordinates
    cautious       of those where step and weight agree
    random         of as many, drawn anew in each step: the control for "less decay"
    inverted       of those where they disagree: the control for "which ones"
    cautious+adamc cautious, with decay in proportion to the schedule as well

The random arm's fraction is what the cautious runs of the same coefficient had open on
average, and so comes after them. All arms of a seed see the same data and start from
the same weights. Under an hour on two cores by default; `--preset h100` trains a
language model of 85 million parameters on the source of Python's standard library.

Results go to `quality.jsonl`, `quality.md` and two pictures, beside this file or in
`--out`.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from quality_report import write_report
from quality_study import POINTS, PRESETS, Options, Study, Task, make_task
from schedules import make_schedule
from tasks import WEIGHT
from tqdm import tqdm

import optax_wd as wd

HERE = Path(__file__).parent
ARMS = "none", "full", "cautious", "random", "inverted", "cautious+adamc"
Run = dict[str, Any]  # a line of the results


# ------------------------------------------------------------------------- one run


def make_optimizer(
    arm: str, amount: Any, fraction: float, task: Task, settings: Options
) -> optax.GradientTransformationExtraArgs:
    """AdamW with the decay of an arm, measured where its curve has points."""
    schedule = make_schedule(settings)
    corrected = wd.proportional(1.0, to=schedule, peak=settings.learning_rate)
    mask = task.mask
    decays: dict[str, Callable[[], optax.GradientTransformation]] = {
        "none": optax.identity,
        "full": lambda: wd.masked_decay(amount, mask),
        "cautious": lambda: wd.cautious_weight_decay(amount, mask),
        "random": lambda: wd.controls.randomly_gated_weight_decay(
            amount, mask, fraction=fraction, seed=0
        ),
        "inverted": lambda: wd.controls.inversely_gated_weight_decay(amount, mask),
        "cautious+adamc": lambda: wd.cautious_weight_decay(
            lambda step: amount * corrected(step), mask
        ),
    }
    tx = wd.adamw(schedule, decays[arm](), b2=0.98)
    groups = wd.first_match((mask, "decayed"), default="rest")
    return wd.with_metrics(tx, groups=groups, every=settings.steps // POINTS)


class Learner:
    """One arm of one task: compiled once for all coefficients and seeds."""

    def __init__(self, arm: str, fraction: float, task: Task, settings: Options):
        model = nnx.eval_shape(lambda: task.make_model(nnx.Rngs(0)))
        self.graphdef, _ = nnx.split(model, nnx.Param)
        self.task, self.settings = task, settings
        self.optimizer = functools.partial(
            make_optimizer, arm, fraction=fraction, task=task, settings=settings
        )
        self.part = jax.jit(self._part, donate_argnums=0)
        self.judged = jax.jit(lambda params, batch: self._loss(params, batch)[1])

    def _loss(self, params: Any, batch: Any) -> tuple[jax.Array, Any]:
        scores = self.task.score(nnx.merge(self.graphdef, params), batch)
        scores.pop(WEIGHT, None)  # without packing all windows count the same
        return scores["loss"].mean(), scores

    def _part(self, state: Any, amount: jax.Array, batches: Any) -> tuple[Any, Any]:
        """The steps between two points of the curve."""
        tx = self.optimizer(amount)

        def step(state: Any, batch: Any) -> tuple[Any, Any]:
            params, opt_state = state
            (loss, _), grads = jax.value_and_grad(self._loss, has_aux=True)(
                params, batch
            )
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), (loss, optax.tree.norm(grads))

        return jax.lax.scan(step, state, batches)

    def run(self, amount: float, seed: int, task: Task) -> Iterator[dict[str, float]]:
        """Yields the points of the curve; `task` has the data of the seed."""
        model = task.make_model(nnx.Rngs(seed))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        state = params, self.optimizer(amount).init(params)
        batches = task.batches(np.arange(self.settings.batch))
        each = self.settings.steps // POINTS
        for point in range(1, POINTS + 1):
            part = [next(batches) for _ in range(each)]
            stacked = jax.tree.map(lambda *x: np.stack(x), *part)
            state, (losses, norms) = self.part(state, jnp.float32(amount), stacked)
            found = wd.metrics(state[1])["decayed"]
            yield {
                "step": point * each,
                "loss": float(losses.mean()),
                "gradient_norm": float(norms.mean()),
                "weight_rms": found["weight_rms"],
                "open_fraction": found["open_fraction"],
                "condition": condition(self.task, state[0]),
                **self.held_out(state[0]),
            }

    def held_out(self, params: Any) -> dict[str, float]:
        """Means of the scores over all held-out examples."""
        size = self.settings.batch
        whole = self.task.held_out
        count = len(next(iter(whole.values())))
        totals: dict[str, float] = {}
        for start in range(0, count, size):
            part = {name: x[start : start + size] for name, x in whole.items()}
            for name, x in self.judged(params, part).items():
                totals[name] = totals.get(name, 0.0) + float(x.sum())
        return {f"held_out_{name}": x / count for name, x in totals.items()}


def condition(task: Task, params: Any) -> float:
    """Median over the decayed matrices of largest over smallest singular value.

    Kernels of more than two axes are as many matrices as their use says: those of
    attention are one, with all heads.
    """
    read = wd.describe_matrices(params, matrices=task.mask, stacked=task.stacked)
    found = []
    for x, row in zip(jax.tree.leaves(params), read.rows, strict=True):
        if row.fold:
            values = np.linalg.svd(_as_matrices(x, row.fold), compute_uv=False)
            found += list(values[:, 0] / values[:, -1])
    return statistics.median(found)


def _as_matrices(x: jax.Array, fold: str) -> np.ndarray:
    """An array as (matrices, inputs, outputs)."""
    order = sorted(range(x.ndim), key=lambda axis: "bio".index(fold[axis]))
    sides = (
        math.prod(x.shape[axis] for axis in order if fold[axis] == side)
        for side in "io"
    )
    return np.asarray(x, np.float64).transpose(order).reshape(-1, *sides)


# ----------------------------------------------------------------------- all of them


def grid(plan: Study) -> Iterator[tuple[str, str, float, int]]:
    """Task, arm, coefficient and seed of every run; `random` behind `cautious`."""
    for task, coefficients in plan.coefficients.items():
        for arm in ARMS:
            for amount in (0.0,) if arm == "none" else coefficients:
                for seed in plan.seeds:
                    yield task, arm, amount, seed


def open_fraction(runs: list[Run], task: str, amount: float) -> float:
    """What the cautious runs of a coefficient had open, over steps and seeds."""
    found = [
        point["open_fraction"]
        for run in runs
        if (run["task"], run["arm"], run["weight_decay"]) == (task, "cautious", amount)
        for point in run["curve"]
    ]
    return round(statistics.mean(found), 3)


def complete(plan: Study, path: Path) -> list[Run]:
    """Makes the runs that the file does not have; returns all."""
    _, *known = _read(path, plan)
    runs = {tuple(run[x] for x in KEYS): run for run in known}
    learners: dict[tuple[str, str, float], Learner] = {}
    for key in tqdm(list(grid(plan)), unit="run", disable=not sys.stderr.isatty()):
        if key in runs:
            continue
        name, arm, amount, seed = key
        settings = dataclasses.replace(plan.settings[name], seed=seed)
        task, fraction = make_task(name, settings), 1.0
        if arm == "random":
            fraction = open_fraction(list(runs.values()), name, amount)
        if (kind := (name, arm, fraction)) not in learners:
            learners = {kind: Learner(arm, fraction, task, settings)}
        start = time.perf_counter()
        curve = list(learners[kind].run(amount, seed, task))
        seconds = round(time.perf_counter() - start, 1)
        run = dict(zip(KEYS, key, strict=True), fraction=fraction, curve=curve)
        runs[key] = run | {"seconds": seconds}
        _append(path, runs[key])
    return list(runs.values())


def _read(path: Path, plan: Study) -> list[Run]:
    """The lines there are; the first says what was studied, and where."""
    sizes = {name: dataclasses.asdict(x) for name, x in plan.settings.items()}
    for found in sizes.values():
        found["data"] = len(found["data"] or ())  # files: their paths say nothing here
    study = json.loads(json.dumps({"settings": sizes}))
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):  # it was cut short
        with path.open("a") as lines:
            lines.write("\n")
    if not text:
        device = jax.devices()[0]
        versions = {"jax": jax.__version__, "optax": optax.__version__}
        _append(path, study | {"device": device.device_kind, **versions})
    lines = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # the last may have been cut short
            lines.append(json.loads(line))
    before = lines[0].get("settings", {}) if lines else {}
    if before.keys() != sizes.keys() or any(
        now.get(name, told) != told  # options may have come and gone since
        for task, now in study["settings"].items()
        for name, told in before[task].items()
    ):
        sys.exit(f"{path} has results of another study; write another --out")
    return lines


def _append(path: Path, line: Run) -> None:
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


KEYS = "task", "arm", "weight_decay", "seed"


def main() -> None:
    """Reads the command line, makes what is missing, writes the report."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--out", type=Path, default=HERE, help="folder (benchmarks)")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    plan = PRESETS[asked.preset]()
    write_report(asked.out, complete(plan, asked.out / "quality.jsonl"))


if __name__ == "__main__":
    main()
