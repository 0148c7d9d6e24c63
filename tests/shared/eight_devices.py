# SPDX-License-Identifier: Apache-2.0
"""Run on 8 fake devices by test_mesh.py: prints what XLA makes of a step, as JSON.

Takes the command line of a small run; for each kind of decay it counts the collectives
of `Trainer.step`, without the metrics, which gather what they measure, and the arrays
that hold the whole batch; and says how parameters and moments lie on the mesh.
"""

import importlib
import json
import re
import sys
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np

data = importlib.import_module("data")
lm = importlib.import_module("lm")
mesh = importlib.import_module("mesh")
options = importlib.import_module("options")
tasks = importlib.import_module("tasks")
trainer = importlib.import_module("trainer")

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)"
    r"(?:-start)?\("
)


def built(argv: list[str]) -> Any:
    """The trainer of a command line."""
    settings = options.parse(lm.Settings, argv, "")
    tokens = data.read_tokens(settings.data, window=settings.window)
    task = lm.make_task(settings, tokens)
    place = mesh.Place(settings, task.rows, task.stacked)
    tx = tasks.make_optimizer(settings, task)
    return trainer.Trainer(task, settings, place, tx)


class Step(NamedTuple):
    """What XLA has made of a step, on each device."""

    collectives: dict[str, int]
    whole: list[str]  # types of arrays of floats for the whole batch, but embeddings


def compiled(made: Any) -> Step:
    """The step, read."""
    batch, window = made.options.batch, made.options.window
    tokens = {"tokens": np.zeros((batch, window + 1), np.int32)}
    put = made.place.put(tokens, batch)
    text = made.step.lower(made.like, put).compile().as_text()
    whole = re.findall(rf"f32\[(?:{batch}|{batch * window}),[\d,]*\]", text)
    # Each device looks up some features of all tokens, as the table lies.
    looked_up = f",{made.options.width // made.place.sizes['data']}]"
    whole = {x for x in whole if not x.endswith(looked_up)}
    return Step(dict(Counter(COLLECTIVE.findall(text))), sorted(whole))


def layout(made: Any) -> dict[str, str]:
    """For each array of the state that is made, its path and how it is split."""
    pairs = jax.tree.leaves_with_path(made.begin())
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): str(x.sharding.spec)
        for path, x in pairs
    }


def main() -> None:
    """Prints one object."""
    lying = layout(built(sys.argv[1:]))
    trainer.wd.with_metrics = lambda tx, **_: tx
    found = {
        decay: compiled(built([*sys.argv[1:], "--decay", decay]))._asdict()
        for decay in ("none", "full", "cautious")
    }
    print(json.dumps({"steps": found, "layout": lying}))


if __name__ == "__main__":
    main()
