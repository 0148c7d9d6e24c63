# SPDX-License-Identifier: Apache-2.0
"""Conversions of "how much": numbers by hand, round trips, and what they claim, run."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
import pytest
from helpers import label

import optax_wd as wd
from optax_wd import conversions

BUDGET = {"batch_size": 128, "dataset_size": 51_200, "epochs": 100}

# Every function with arguments that it takes, and the number by hand.
CASES: dict[str, tuple[dict[str, float], float]] = {
    "steps_from_decoupled": ({"weight_decay": 0.1, "learning_rate": 3e-4}, 1e5 / 3),
    "epochs_from_decoupled": (
        {"weight_decay": 0.05, "learning_rate": 1e-3, "steps_per_epoch": 400},
        50.0,
    ),
    "decoupled_from_steps": ({"timescale_steps": 2000, "learning_rate": 2e-3}, 0.25),
    "decoupled_from_epochs": (
        {"timescale_epochs": 5, "learning_rate": 1e-3, "steps_per_epoch": 400},
        0.5,
    ),
    "independent_from_decoupled": (
        {"weight_decay": 0.1, "peak_learning_rate": 2e-3},
        2e-4,
    ),
    "decoupled_from_independent": (
        {"independent": 1e-4, "peak_learning_rate": 4e-3},
        0.025,
    ),
    # sqrt(128 / (51 200 * 100)) = sqrt(1 / 40 000) = 1 / 200
    "decoupled_from_normalized": ({"normalized": 0.05, **BUDGET}, 0.00025),
    "normalized_from_decoupled": ({"weight_decay": 0.00025, **BUDGET}, 0.05),
    # 2**20 tokens in steps of 2**10 are 1024 steps; 1 / (0.01 * 0.1) of these are 1000
    "fraction_from_decoupled": (
        {
            "weight_decay": 0.1,
            "learning_rate": 0.01,
            "batch_size": 2**10,
            "tokens": 2**20,
        },
        1000 / 1024,
    ),
    "decoupled_from_fraction": (
        {"fraction": 0.5, "learning_rate": 0.01, "batch_size": 2**10, "tokens": 2**20},
        100 / 512,
    ),
    # the number whose power of 0.527 is 2
    "best_fraction": ({"tokens_per_parameter": 2 ** (1 / 0.527)}, 0.542),
    "at_equal_timescale": (
        {
            "weight_decay": 0.1,
            "batch_size_ratio": 4.0,
            "tokens_ratio": 2.0,
            "width_ratio": 3.0,
            "learning_rate_ratio": 0.5,
        },
        1.2,
    ),
}
ARGUMENTS = [(name, key) for name, (given, _) in CASES.items() for key in given]


def convert(name: str, **given: Any) -> float:
    return getattr(wd.conversions, name)(**given)


def test_every_function_of_the_module_is_tried() -> None:
    names = [
        name
        for name, thing in vars(conversions).items()
        if callable(thing) and name not in ("check_all_positive", "_root")
    ]
    assert sorted(names) == sorted(CASES)


# ----------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", CASES)
def test_the_number_by_hand(name: str) -> None:
    given, expected = CASES[name]
    found = convert(name, **given)
    assert isinstance(found, float)
    assert found == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [np.float64, np.asarray], ids=["float64", "0-d array"])
def test_numbers_of_numpy_are_numbers(name: str, kind: Callable[[float], Any]) -> None:
    given, expected = CASES[name]
    found = convert(name, **{key: kind(value) for key, value in given.items()})
    assert found == pytest.approx(expected, rel=1e-14)


def test_at_equal_timescale_changes_nothing_where_nothing_changes() -> None:
    assert wd.conversions.at_equal_timescale(0.3) == 0.3


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ("batch_size_ratio", 0.4),
        ("tokens_ratio", 0.1),
        ("width_ratio", 0.4),
        ("learning_rate_ratio", 0.1),
    ],
)
def test_each_ratio_alone_by_hand(ratio: str, expected: float) -> None:
    found = convert("at_equal_timescale", weight_decay=0.2, **{ratio: 2.0})
    assert found == pytest.approx(expected, rel=1e-14)


# ------------------------------------------------------------------------- round trips

ROUND_TRIPS = {
    "steps": ("steps_from_decoupled", "decoupled_from_steps", {"learning_rate": 7e-4}),
    "epochs": (
        "epochs_from_decoupled",
        "decoupled_from_epochs",
        {"learning_rate": 7e-4, "steps_per_epoch": 390.625},
    ),
    "fraction": (
        "fraction_from_decoupled",
        "decoupled_from_fraction",
        {"learning_rate": 7e-4, "batch_size": 500, "tokens": 1e6},
    ),
    "independent": (
        "independent_from_decoupled",
        "decoupled_from_independent",
        {"peak_learning_rate": 7e-4},
    ),
    "normalized": ("normalized_from_decoupled", "decoupled_from_normalized", BUDGET),
}


@pytest.mark.parametrize("there, back, run", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
@pytest.mark.parametrize("amount", [1e-6, 0.037, 12.0])
def test_there_and_back_is_the_number_itself(
    there: str, back: str, run: dict[str, float], amount: float
) -> None:
    first = functools.partial(getattr(wd.conversions, there), **run)
    second = functools.partial(getattr(wd.conversions, back), **run)
    assert second(first(amount)) == pytest.approx(amount, rel=1e-14)
    assert first(second(amount)) == pytest.approx(amount, rel=1e-14)
    assert first(amount) != pytest.approx(amount, rel=1e-3)


def test_epochs_are_steps_in_another_unit() -> None:
    steps = wd.conversions.steps_from_decoupled(0.1, 1e-3)
    assert wd.conversions.epochs_from_decoupled(0.1, 1e-3, 1) == steps
    assert wd.conversions.epochs_from_decoupled(0.1, 1e-3, 8) == steps / 8
    assert wd.conversions.decoupled_from_epochs(steps / 8, 1e-3, 8) == pytest.approx(
        0.1, rel=1e-14
    )


def test_at_equal_timescale_two_changes_are_one_change() -> None:
    at = wd.conversions.at_equal_timescale
    twice = at(at(0.1, batch_size_ratio=4, width_ratio=2), tokens_ratio=8)
    assert at(0.1, batch_size_ratio=4, width_ratio=2, tokens_ratio=8) == twice
    back = at(at(0.1, learning_rate_ratio=3.0), learning_rate_ratio=1 / 3.0)
    assert back == pytest.approx(0.1, rel=1e-14)


# ----------------------------------------------------------------- what they claim, run


def test_after_one_timescale_one_over_e_is_left() -> None:
    rate = 1e-2
    for steps in (1_000, 10_000):
        amount = wd.conversions.decoupled_from_steps(steps, rate)
        left = wd.remaining_fraction(amount, rate, steps)
        assert left == pytest.approx(math.exp(-1), rel=1 / steps)
        assert wd.remaining_fraction(amount, rate, steps // 2) > 1.6 * left


def test_after_one_timescale_in_epochs_one_over_e_is_left() -> None:
    amount = wd.conversions.decoupled_from_epochs(4, 1e-2, 500)
    left = wd.remaining_fraction(amount, 1e-2, 4 * 500)
    assert left == pytest.approx(math.exp(-1), rel=1 / 2000)


def test_independent_decay_leaves_what_decoupled_decay_leaves() -> None:
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.02, 50, 300)
    independent = wd.conversions.independent_from_decoupled(0.1, 0.02)
    relative = wd.proportional(independent, to=schedule, peak=0.02)
    left = wd.remaining_fraction(0.1, schedule, 300)
    assert left < 0.9
    assert wd.remaining_fraction(relative, 1.0, 300) == pytest.approx(left, rel=1e-6)
    # and the same with the learning rate in the coefficient and not beside it
    assert wd.remaining_fraction(independent, 1.0, 300) != pytest.approx(left, rel=1e-2)


@pytest.mark.parametrize("epochs", [1, 4, 100])
def test_the_longer_the_training_the_less_decay_by_its_root(epochs: int) -> None:
    budget = {"batch_size": 64, "dataset_size": 6_400}
    once = wd.conversions.decoupled_from_normalized(0.5, **budget, epochs=1)
    long = wd.conversions.decoupled_from_normalized(0.5, **budget, epochs=epochs)
    assert once == pytest.approx(0.05, rel=1e-14)
    assert long == pytest.approx(once / math.sqrt(epochs), rel=1e-14)


# Of each change of a run: the ratios, and the new run over the old by hand.
CHANGES: dict[str, tuple[dict[str, float], float, float]] = {
    # ratios, number of steps, learning rate of the matrices
    "batch": ({"batch_size_ratio": 4.0}, 1 / 4, 1.0),
    "tokens": ({"tokens_ratio": 2.0}, 2.0, 1.0),
    "batch and tokens": ({"batch_size_ratio": 4.0, "tokens_ratio": 2.0}, 1 / 2, 1.0),
    "width": ({"width_ratio": 8.0}, 1.0, 1 / 8),
    "learning rate": ({"learning_rate_ratio": 0.25}, 1.0, 1 / 4),
    "width and learning rate": (
        {"width_ratio": 8.0, "learning_rate_ratio": 2.0},
        1.0,
        2 / 8,
    ),
    "all": (
        {
            "batch_size_ratio": 2.0,
            "tokens_ratio": 8.0,
            "width_ratio": 4.0,
            "learning_rate_ratio": 2.0,
        },
        4.0,
        2 / 4,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_at_equal_timescale_as_much_of_the_training_is_remembered(change: str) -> None:
    ratios, more_steps, rate_ratio = CHANGES[change]
    amount, rate, steps = 0.1, 1e-3, 8_000
    new = convert("at_equal_timescale", weight_decay=amount, **ratios)
    new_rate, new_steps = rate * rate_ratio, round(steps * more_steps)
    of_training = wd.conversions.steps_from_decoupled(amount, rate) / steps
    of_new = wd.conversions.steps_from_decoupled(new, new_rate) / new_steps
    assert of_new == pytest.approx(of_training, rel=1e-14)
    # and so over the whole training as much is left of the first weights, up to what a
    # product of n shrinks differs from an exponential: half of 0.8**2 / n
    left = wd.remaining_fraction(amount, rate, steps)
    error = 0.8**2 / min(steps, new_steps)
    assert wd.remaining_fraction(new, new_rate, new_steps) == pytest.approx(
        left, rel=error
    )
    unchanged = wd.remaining_fraction(amount, new_rate, new_steps)
    assert unchanged != pytest.approx(left, rel=100 * error)


def test_at_equal_timescale_and_equal_passes_the_timescale_in_epochs_is_kept() -> None:
    """Three times the data set, twice the batch: tokens grow as the data set does."""
    new = wd.conversions.at_equal_timescale(0.1, batch_size_ratio=2, tokens_ratio=3)
    before = wd.conversions.epochs_from_decoupled(0.1, 1e-3, 1200)
    after = wd.conversions.epochs_from_decoupled(new, 1e-3, 1200 * 3 / 2)
    assert after == pytest.approx(before, rel=1e-14)


def test_a_fraction_is_epochs_where_the_training_is_one_epoch() -> None:
    run = {"batch_size": 512, "tokens": 512_000}
    fraction = wd.conversions.fraction_from_decoupled(0.1, 0.02, **run)
    assert fraction == wd.conversions.epochs_from_decoupled(0.1, 0.02, 1000) == 0.5
    # so that after the training exp(-1 / fraction) of the first weights is left
    left = wd.remaining_fraction(0.1, 0.02, 1000)
    assert left == pytest.approx(math.exp(-1 / fraction), rel=3e-3)


def test_the_best_fraction_is_the_law_of_power_lines() -> None:
    best = wd.conversions.best_fraction
    assert best(1) == 1.084  # of the paper, as is the slope in logarithms
    for ratio in (2.0, 10.0):
        slope = math.log(best(20 * ratio) / best(20)) / math.log(ratio)
        assert slope == pytest.approx(-0.527, rel=1e-12)
    # The batch changes the coefficient in proportion, and the fraction not at all.
    run = {"learning_rate": 3e-3, "tokens": 10e9}
    once, twice = (
        wd.conversions.decoupled_from_fraction(best(20), **run, batch_size=batch)
        for batch in (2**18, 2**19)
    )
    assert twice == pytest.approx(2 * once, rel=1e-14)


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
@pytest.mark.parametrize(
    "value", [None, True, "0.1", [0.1], np.ones(1), 1j, wd.standard], ids=label
)
def test_what_is_no_number_is_named(name: str, argument: str, value: Any) -> None:
    with pytest.raises(TypeError) as error:
        convert(name, **{**CASES[name][0], argument: value})
    assert str(error.value) == f"{argument} is one number, got {value!r}"


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
@pytest.mark.parametrize("value", [0, 0.0, -0.1, math.nan, math.inf, -math.inf])
def test_what_is_not_above_zero_is_named(
    name: str, argument: str, value: float
) -> None:
    message = f"^{argument} is a (finite )?number above 0, got {value}$"
    with pytest.raises(ValueError, match=message):
        convert(name, **{**CASES[name][0], argument: value})


@pytest.mark.parametrize(
    "name", ["decoupled_from_normalized", "normalized_from_decoupled"]
)
def test_the_sizes_of_a_budget_have_to_be_named(name: str) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        getattr(wd.conversions, name)(0.1, 128, 51_200, 100)
    with pytest.raises(TypeError, match="positional argument"):
        wd.conversions.at_equal_timescale(0.1, 4.0)  # pyright: ignore[reportCallIssue]
    for name in ("fraction_from_decoupled", "decoupled_from_fraction"):
        with pytest.raises(TypeError, match="positional argument"):
            getattr(wd.conversions, name)(0.1, 1e-3, 128, 51_200)
