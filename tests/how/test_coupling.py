# SPDX-License-Identifier: Apache-2.0
"""Coupling is place and schedule: each row of the table, made of parts, and its loop.

The loops are written here in NumPy, in float64: what other code bases do, step by step.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import DATA, assert_same, largest_difference, noise, run

import optax_wd as wd

STEPS, WARM_UP, PEAK = 12, 3, 0.2
LAM = 0.4  # one coefficient in all rows, so that rows differ by their coupling alone
B1, B2, EPS, MOMENTUM = 0.9, 0.95, 1e-8, 0.7
# Twelve steps in float32 on values of order 1; float32 has 1.2e-7 around 1.
TOLERANCE = 2e-6
KERNELS = wd.named("kernel")

SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, PEAK, WARM_UP, STEPS)
ETA = [
    PEAK * t / WARM_UP
    if t < WARM_UP
    else PEAK * (1 + np.cos(np.pi * (t - WARM_UP) / (STEPS - WARM_UP))) / 2
    for t in range(STEPS)
]

PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32),
    "bias": jnp.asarray(np.random.default_rng(1).normal(size=4), jnp.float32),
}
GRADS = noise(PARAMS, STEPS, seed=2)


# ------------------------------------------------------------- the rows, made of parts


def decay(weight_decay: Any = LAM) -> optax.GradientTransformation:
    return wd.masked_decay(weight_decay, KERNELS)


RATE = optax.scale_by_learning_rate(SCHEDULE)
RELATIVE = wd.proportional(LAM, to=SCHEDULE, peak=PEAK)

ROWS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "L2": lambda scale: optax.chain(decay(), scale, RATE),
    "decoupled": lambda scale: optax.chain(scale, decay(), RATE),
    "independent": lambda scale: optax.chain(
        scale, RATE, wd.after_learning_rate(decay(RELATIVE))
    ),
    "no learning rate": lambda scale: optax.chain(
        scale, RATE, wd.after_learning_rate(decay())
    ),
    "corrected": lambda scale: optax.chain(scale, decay(RELATIVE), RATE),
    "squared": lambda scale: optax.chain(
        scale, decay(wd.proportional(LAM, to=SCHEDULE)), RATE
    ),
    "momentum-corrected": lambda scale: optax.chain(
        scale, decay(LAM / (1 - MOMENTUM)), RATE
    ),
}
SCALES = {
    "adam": optax.scale_by_adam(B1, B2, EPS),
    "sgd": optax.trace(MOMENTUM),
}
# Adam's first moment is damped by what momentum adds, so it needs no correction.
CASES = [
    (optimizer, row)
    for optimizer in SCALES
    for row in ROWS
    if (optimizer, row) != ("adam", "momentum-corrected")
]


# --------------------------------------------------------------- the rows, as in NumPy

# What a step takes away from a weight, as a fraction of it.
SHRINKS: dict[str, Callable[[float], float]] = {
    "L2": lambda eta: 0.0,
    "decoupled": lambda eta: eta * LAM,
    "independent": lambda eta: (eta / PEAK) * LAM,
    "no learning rate": lambda eta: LAM,
    "corrected": lambda eta: (eta**2 / PEAK) * LAM,
    "squared": lambda eta: eta**2 * LAM,
    "momentum-corrected": lambda eta: eta * LAM / (1 - MOMENTUM),  # dampening 0
}


def adam_loop(x: np.ndarray, grads: list[np.ndarray], l2: float, shrink: Any) -> Any:
    seen, m, v = [], np.zeros_like(x), np.zeros_like(x)
    for t, (eta, gradient) in enumerate(zip(ETA, grads, strict=True), start=1):
        g = gradient + l2 * x
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * g * g
        u = (m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + EPS)
        x = x - eta * u - shrink(eta) * x
        seen.append(x)
    return seen


def sgd_loop(x: np.ndarray, grads: list[np.ndarray], l2: float, shrink: Any) -> Any:
    seen, m = [], np.zeros_like(x)
    for eta, gradient in zip(ETA, grads, strict=True):
        m = MOMENTUM * m + gradient + l2 * x
        x = x - eta * m - shrink(eta) * x
        seen.append(x)
    return seen


LOOPS = {"adam": adam_loop, "sgd": sgd_loop}


def expected(optimizer: str, row: str) -> list[dict[str, np.ndarray]]:
    """The parameters after each step; the bias does not decay."""
    found = {}
    for name, x in PARAMS.items():
        decays = name == "kernel"
        grads = [np.asarray(g[name], np.float64) for g in GRADS]
        found[name] = LOOPS[optimizer](
            np.asarray(x, np.float64),
            grads,
            LAM if decays and row == "L2" else 0.0,
            SHRINKS[row] if decays else lambda eta: 0.0,
        )
    return [
        {name: x[t] for name, x in found.items()} for t in range(len(found["bias"]))
    ]


def steps_of(tx: Any) -> list[Any]:
    return run(tx, PARAMS, GRADS)[0]


@functools.cache
def made(optimizer: str, row: str) -> list[Any]:
    """The parameters after each step, by our parts."""
    return steps_of(ROWS[row](SCALES[optimizer]))


@functools.cache
def free(optimizer: str) -> list[Any]:
    """The parameters after each step without a decay."""
    return steps_of(optax.chain(SCALES[optimizer], RATE))


# ----------------------------------------------------------------------- they are equal


def test_the_learning_rate_varies_and_starts_at_zero() -> None:
    np.testing.assert_allclose(jax.vmap(SCHEDULE)(jnp.arange(STEPS)), ETA, atol=1e-7)
    assert ETA[0] == 0.0 and max(ETA) == PEAK and len(set(np.round(ETA, 6))) > 8


@pytest.mark.parametrize(("optimizer", "row"), CASES)
def test_a_row_made_of_parts_is_its_loop_in_numpy(optimizer: str, row: str) -> None:
    for found, wanted in zip(
        made(optimizer, row), expected(optimizer, row), strict=True
    ):
        assert largest_difference(found, wanted) < TOLERANCE


@pytest.mark.parametrize(("optimizer", "row"), CASES)
def test_no_other_row_is_within_the_tolerance(optimizer: str, row: str) -> None:
    last = made(optimizer, row)[-1]
    for other in (r for o, r in CASES if o == optimizer and r != row):
        difference = largest_difference(last, expected(optimizer, other)[-1])
        assert difference > 1000 * TOLERANCE, other


@pytest.mark.parametrize(("optimizer", "row"), CASES)
def test_a_row_leaves_what_the_mask_leaves_out(optimizer: str, row: str) -> None:
    for found, wanted in zip(made(optimizer, row), free(optimizer), strict=True):
        assert_same(found["bias"], wanted["bias"])


@pytest.mark.parametrize("row", ROWS)
def test_only_decay_without_the_learning_rate_acts_where_it_is_zero(row: str) -> None:
    first = made("sgd", row)[0]["kernel"]
    kept = 1.0 - LAM if row == "no learning rate" else 1.0
    np.testing.assert_allclose(first, kept * PARAMS["kernel"], rtol=1e-6)


@pytest.mark.parametrize("row", ["decoupled", "corrected", "squared"])
def test_rows_before_the_learning_rate_fit_the_ready_chains(row: str) -> None:
    weight_decay: Any = {
        "decoupled": LAM,
        "corrected": RELATIVE,
        "squared": wd.proportional(LAM, to=SCHEDULE),
    }[row]
    ready = {
        "adam": wd.adamw(SCHEDULE, decay(weight_decay), b1=B1, b2=B2, eps=EPS),
        "sgd": wd.sgdw(SCHEDULE, decay(weight_decay), momentum=MOMENTUM),
    }
    for optimizer, tx in ready.items():
        found = steps_of(tx)[-1]
        assert largest_difference(found, expected(optimizer, row)[-1]) < TOLERANCE


def test_rows_after_the_learning_rate_fit_the_ready_chains() -> None:
    after = wd.after_learning_rate(decay(RELATIVE))
    found = steps_of(wd.adamw(SCHEDULE, after, b1=B1, b2=B2, eps=EPS))[-1]
    assert largest_difference(found, expected("adam", "independent")[-1]) < TOLERANCE


# ------------------------------------------------------------------------------- laws


def adam(*parts: Any, rate: Any = SCHEDULE, after: Any = None) -> Any:
    """Adam with decays before and after a learning rate."""
    scale = optax.scale_by_learning_rate(rate)
    last = optax.identity() if after is None else wd.after_learning_rate(after)
    return optax.chain(SCALES["adam"], *parts, scale, last)


@pytest.mark.parametrize(
    "rate", [optax.constant_schedule(PEAK), SCHEDULE], ids=["constant", "scheduled"]
)
def test_independent_decay_is_decoupled_decay_with_the_converted_number(
    rate: Any,
) -> None:
    independent = wd.conversions.independent_from_decoupled(LAM, PEAK)
    relative = wd.proportional(independent, to=rate, peak=PEAK)
    found = steps_of(adam(rate=rate, after=decay(relative)))
    for a, b in zip(found, steps_of(adam(decay(), rate=rate)), strict=True):
        assert largest_difference(a, b) < TOLERANCE


def test_after_the_learning_rate_proportional_decay_is_coupled_decay() -> None:
    coupled = decay(wd.conversions.decoupled_from_independent(LAM, PEAK))
    for a, b in zip(made("adam", "independent"), steps_of(adam(coupled)), strict=True):
        assert largest_difference(a, b) < TOLERANCE


def test_another_peak_changes_decoupled_decay_and_not_independent_decay() -> None:
    still = [jax.tree.map(jnp.zeros_like, PARAMS)] * STEPS

    def doubled(step: Any) -> Any:
        return 2.0 * SCHEDULE(step)

    def last(tx: Any) -> Any:
        return run(tx, PARAMS, still)[0][-1]

    relative = wd.proportional(LAM, to=doubled, peak=2.0 * PEAK)
    before = last(adam(after=decay(RELATIVE)))
    after = last(adam(rate=doubled, after=decay(relative)))
    assert largest_difference(before, after) < TOLERANCE
    before, after = last(adam(decay())), last(adam(decay(), rate=doubled))
    assert largest_difference(before, after) > 1000 * TOLERANCE


def test_at_a_constant_peak_corrected_decay_is_decoupled_decay() -> None:
    relative = wd.proportional(LAM, to=optax.constant_schedule(PEAK), peak=PEAK)
    found = steps_of(adam(decay(relative), rate=PEAK))
    for a, b in zip(found, steps_of(adam(decay(), rate=PEAK)), strict=True):
        assert largest_difference(a, b) < TOLERANCE


def test_squared_decay_is_corrected_decay_with_the_peak_divided_out() -> None:
    squared = decay(wd.proportional(LAM / PEAK, to=SCHEDULE))
    for a, b in zip(steps_of(adam(squared)), made("adam", "corrected"), strict=True):
        assert largest_difference(a, b) < TOLERANCE


def test_damped_momentum_needs_no_correction() -> None:
    """With dampening equal to momentum the factor is 1: plain decoupled decay."""
    rate = optax.constant_schedule(PEAK)
    damped = optax.chain(
        optax.ema(MOMENTUM, debias=False), decay(), optax.scale_by_learning_rate(rate)
    )
    undamped = optax.chain(
        optax.trace(MOMENTUM),
        decay(LAM / (1 - MOMENTUM)),
        optax.scale_by_learning_rate(PEAK * (1 - MOMENTUM)),
    )
    for a, b in zip(steps_of(damped), steps_of(undamped), strict=True):
        assert largest_difference(a, b) < TOLERANCE


def test_adafactor_decays_without_its_learning_rate() -> None:
    own = optax.adafactor(SCHEDULE, weight_decay_rate=0.01, weight_decay_mask=KERNELS)
    ours = optax.chain(optax.adafactor(SCHEDULE), wd.after_learning_rate(decay(0.01)))
    for a, b in zip(steps_of(own), steps_of(ours), strict=True):
        assert largest_difference(a, b) < TOLERANCE


# --------------------------------------------------------------- figures of other code


def test_timms_corrected_decay_is_proportional_to_the_learning_rate() -> None:
    path = DATA / "adamc.npz"
    with np.load(path, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files if key != "meta"}
    rates = jnp.asarray(data["lrs"], jnp.float32)
    params = [jnp.asarray(data[f"params0/{n}"]) for n in (0, 1)]
    grads = [
        [jnp.asarray(data[f"grads/{n}"][t]) for n in (0, 1)] for t in range(len(rates))
    ]

    def learning_rate(step: Any) -> Any:
        return rates[step]

    corrected = wd.proportional(0.3, to=learning_rate, peak=0.02)
    tx = wd.adamw(
        learning_rate, wd.masked_decay(corrected, wd.everything), b1=0.9, b2=0.95
    )
    seen, _ = run(tx, params, grads)
    assert len(seen) == 15
    for t, found in enumerate(seen):
        wanted = [data[f"adamw_corrected/params/{n}"][t] for n in (0, 1)]
        assert largest_difference(found, wanted) < TOLERANCE
