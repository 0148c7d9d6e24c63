# SPDX-License-Identifier: Apache-2.0
"""Step by step the figures of other code bases, from their own functions.

The data were written by dion, modded-nanogpt, pytorch_optimizer and timm in float32 on
a CPU: start values, gradients, and the values after each step. All leaves decay.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import DATA, run

import optax_wd as wd

LEARNING_RATE, WEIGHT_DECAY, TOLERANCE = 0.02, 0.5, 2e-6


def load(file: str, **keys: str) -> dict[str, list[np.ndarray]]:
    """The arrays of a file whose keys are `<key>/<number>`."""
    with np.load(DATA / file, allow_pickle=False) as data:
        found = {
            name: [data[k] for k in data.files if k.rpartition("/")[0] == key]
            for name, key in keys.items()
        }
    assert all(found.values())
    return found


def differences(tx: Any, data: dict[str, list[np.ndarray]]) -> list[float]:
    """Of each step the largest difference to the recorded parameters."""
    params = [jnp.asarray(x) for x in data["start"]]
    gradients = [
        [jnp.asarray(g) for g in step] for step in zip(*data["grads"], strict=True)
    ]
    seen, _ = run(tx, params, gradients)
    recorded = list(zip(*data["params"], strict=True))
    return [
        max(float(np.max(np.abs(a - b))) for a, b in zip(*pair, strict=True))
        for pair in zip(seen, recorded, strict=True)
    ]


def cautious(weight_decay: Any = WEIGHT_DECAY) -> optax.GradientTransformation:
    return wd.cautious_weight_decay(weight_decay, wd.everything)


def strict(weight_decay: Any) -> optax.GradientTransformation:
    """The gate of modded-nanogpt's Adam: closed where the step is zero."""

    def gate(sign_source: jax.Array, direction: jax.Array) -> jax.Array:
        return sign_source * direction > 0

    return wd.decay_along(lambda u, p: p, weight_decay, wd.everything, gate=gate)


def adam_chain(decay: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(0.9, 0.95, 1e-8),
        decay,
        optax.scale_by_learning_rate(LEARNING_RATE),
    )


RECORDED: dict[str, Callable[[Any], Any]] = {
    "dion_adamw": adam_chain,
    "dion_lion": lambda decay: wd.lion(LEARNING_RATE, decay, b1=0.9, b2=0.95),
    "modded_adam": adam_chain,
    "pytorch_optimizer_sgd": lambda decay: wd.sgdw(LEARNING_RATE, decay, momentum=0.9),
}
SQUARED = optax.constant_schedule(LEARNING_RATE * WEIGHT_DECAY)  # lr**2 * wd in all
DECAYS = {name: cautious() for name in RECORDED} | {"modded_adam": strict(SQUARED)}


def recorded(case: str) -> dict[str, list[np.ndarray]]:
    return load(
        "cautious.npz",
        start=f"{case}/params0",
        grads=f"{case}/grads",
        params=f"{case}/params",
    )


@pytest.mark.parametrize("case", RECORDED)
def test_cautious_decay_follows_other_code_bases(case: str) -> None:
    found = differences(RECORDED[case](DECAYS[case]), recorded(case))
    assert len(found) == 12 and max(found) < TOLERANCE


def test_the_ready_adamw_follows_dion_too() -> None:
    tx = wd.adamw(LEARNING_RATE, cautious(), b1=0.9, b2=0.95)
    assert max(differences(tx, recorded("dion_adamw"))) < TOLERANCE


@pytest.mark.parametrize("case", RECORDED)
@pytest.mark.parametrize("other", ["plain", "none"])
def test_another_decay_does_not_follow_them(case: str, other: str) -> None:
    rate = SQUARED if case == "modded_adam" else WEIGHT_DECAY
    decays = {"plain": wd.masked_decay(rate, wd.everything), "none": optax.identity()}
    found = differences(RECORDED[case](decays[other]), recorded(case))
    assert max(found) > 10 * TOLERANCE


def adamc(case: str) -> dict[str, list[np.ndarray]]:
    return load("adamc.npz", start="params0", grads="grads", params=f"{case}/params")


def rates() -> jax.Array:
    with np.load(DATA / "adamc.npz", allow_pickle=False) as data:
        return jnp.asarray(data["lrs"], jnp.float32)


def scheduled(decay: Any) -> optax.GradientTransformation:
    return wd.adamw(lambda step: rates()[step], decay, b1=0.9, b2=0.95)


@pytest.mark.parametrize(
    ("case", "schedule"),
    [
        ("adamw_plain", lambda step: 0.3),
        ("adamw_corrected", lambda step: 0.3 * rates()[step] / 0.02),
    ],
)
def test_timms_adamw_is_followed_and_corrected_is_a_schedule(
    case: str, schedule: Any
) -> None:
    found = differences(
        scheduled(wd.masked_decay(schedule, wd.everything)), adamc(case)
    )
    assert len(found) == 15 and max(found) < TOLERANCE


def test_corrected_and_plain_decay_differ() -> None:
    tx = scheduled(wd.masked_decay(0.3, wd.everything))
    assert max(differences(tx, adamc("adamw_corrected"))) > 10 * TOLERANCE
