# SPDX-License-Identifier: Apache-2.0
"""Schedules of the weight decay: their values, as a weight decay, and what they refuse.

Values by hand, and the formulas of other code bases as NumPy arrays of their own.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import label

import optax_wd as wd

PEAK, STEPS = 1e-3, 8
LEARNING_RATE = optax.cosine_decay_schedule(PEAK, STEPS)
PARAMS = {"kernel": jnp.full((2, 3), 2.0, "f4"), "bias": jnp.full(3, 2.0, "f4")}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
ULPS = 1e-6  # a few roundings of float32, relative

# A schedule of each kind, and the same in NumPy.
SCHEDULES: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {
    "rising cosine": (
        wd.cosine_schedule(0.04, 0.4, 6),
        lambda t: 0.22 - 0.18 * np.cos(np.pi * np.minimum(t, 6) / 6),
    ),
    "falling cosine": (
        wd.cosine_schedule(0.5, 0.1, 6),
        lambda t: 0.3 + 0.2 * np.cos(np.pi * np.minimum(t, 6) / 6),
    ),
    "log-time": (wd.log_time_schedule(0.4, 3.0), lambda t: 1.2 / (3.0 + t)),
    "proportional": (
        wd.proportional(0.3, to=LEARNING_RATE, peak=PEAK),
        lambda t: 0.15 + 0.15 * np.cos(np.pi * np.minimum(t, 8) / 8),
    ),
    "proportional to a number": (
        wd.proportional(wd.log_time_schedule(0.4, 3.0), to=0.5, peak=2.0),
        lambda t: 0.3 / (3.0 + t),
    ),
    "linear warm-up": (
        optax.linear_schedule(0.0, 0.1, 4),
        lambda t: 0.025 * np.minimum(t, 4),
    ),
    "linear rise": (
        optax.linear_schedule(0.01, 0.1, 6),
        lambda t: 0.01 + 0.015 * np.minimum(t, 6),
    ),
}
OURS = [name for name in SCHEDULES if not name.startswith("linear")]


def values(schedule: Any, steps: int) -> np.ndarray:
    return np.asarray([schedule(jnp.int32(t)) for t in range(steps)], np.float64)


# ------------------------------------------------------------------------------ values


@pytest.mark.parametrize("name", SCHEDULES)
def test_values_are_those_of_numpy(name: str) -> None:
    schedule, formula = SCHEDULES[name]
    np.testing.assert_allclose(
        values(schedule, 12), formula(np.arange(12.0)), rtol=ULPS, atol=1e-8
    )


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (0, 0.04),
        (250, 0.22 - 0.18 / math.sqrt(2)),
        (500, 0.22),
        (1000, 0.4),
        (1001, 0.4),
        (2**31 - 1, 0.4),
    ],
)
def test_half_a_cosine_by_hand(step: int, value: float) -> None:
    rising: Any = wd.cosine_schedule(0.04, 0.4, 1000)
    assert float(rising(step)) == pytest.approx(value, rel=ULPS)


@pytest.mark.parametrize(("start", "end"), [(0.04, 0.4), (0.4, 0.04), (0.2, 0.0)])
def test_half_a_cosine_is_the_array_that_dino_makes(start: float, end: float) -> None:
    epochs, steps_per_epoch = 5, 8
    iters = np.arange(epochs * steps_per_epoch)
    array = end + 0.5 * (start - end) * (1 + np.cos(np.pi * iters / len(iters)))
    found = values(wd.cosine_schedule(start, end, len(iters)), len(iters))
    np.testing.assert_allclose(found, array, rtol=ULPS, atol=1e-8)


def test_half_a_cosine_downwards_is_that_of_optax() -> None:
    ours = wd.cosine_schedule(0.5, 0.05, 30)
    theirs = optax.cosine_decay_schedule(0.5, 30, alpha=0.1)
    np.testing.assert_allclose(values(ours, 40), values(theirs, 40), rtol=ULPS)


def test_half_a_cosine_may_start_at_zero_where_that_of_optax_stays_there() -> None:
    rising = values(wd.cosine_schedule(0.0, 0.2, 10), 13)
    assert rising[0] == 0.0 and np.all(np.diff(rising[:11]) > 0)
    np.testing.assert_array_equal(rising[10:], np.float32(0.2))
    assert np.all(values(optax.cosine_decay_schedule(0.0, 10, alpha=0.2), 13) == 0.0)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.1), (0.1, 0.0), (0.3, 0.3)])
def test_half_a_cosine_ends_exactly_and_stays_between(start: float, end: float) -> None:
    found = values(wd.cosine_schedule(start, end, 97), 100)
    np.testing.assert_array_equal(found[97:], np.float32(end))
    low, high = np.float32(min(start, end)), np.float32(max(start, end))
    assert np.all((low <= found) & (found <= high))


def test_one_step_is_a_transition() -> None:
    found = values(wd.cosine_schedule(0.5, 0.25, 1), 3)
    np.testing.assert_array_equal(found, [0.5, 0.25, 0.25])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_from_start_to_end_as_megatron_has_it(kind: str) -> None:
    start, end, steps = 0.01, 0.1, 20
    ratio = np.minimum(np.arange(25.0) / steps, 1.0)
    share = {"linear": ratio, "cosine": 0.5 * (np.cos(np.pi * (1 - ratio)) + 1.0)}
    schedule = {
        "linear": optax.linear_schedule(start, end, steps),
        "cosine": wd.cosine_schedule(start, end, steps),
    }
    np.testing.assert_allclose(
        values(schedule[kind], 25), start + share[kind] * (end - start), rtol=ULPS
    )


@pytest.mark.parametrize(
    ("step", "value"), [(0, 0.4), (100, 0.2), (300, 0.1), (900, 0.04)]
)
def test_one_over_time_by_hand(step: int, value: float) -> None:
    falling: Any = wd.log_time_schedule(0.4, 100)
    assert float(falling(step)) == pytest.approx(value, rel=ULPS)


def test_the_sum_of_one_over_time_grows_as_the_logarithm_of_time() -> None:
    timescale = 50.0
    total = np.cumsum(values(wd.log_time_schedule(0.4, timescale), 800))
    ends = np.asarray([100, 200, 400, 800])
    integral = 0.4 * timescale * np.log1p(ends / timescale)
    # A sum of a falling function is above its integral, by the first term at most.
    assert np.all((integral < total[ends - 1]) & (total[ends - 1] < integral + 0.4))


def test_under_one_over_time_old_data_are_forgotten_by_a_power_law() -> None:
    falling = wd.log_time_schedule(1.0, 100.0)
    for steps in (1_000, 10_000):
        left = wd.remaining_fraction(falling, 5e-3, steps)
        power_law = (1.0 + steps / 100.0) ** -(5e-3 * 1.0 * 100.0)
        assert left == pytest.approx(power_law, rel=5e-3)


def test_proportional_to_the_learning_rate_by_hand() -> None:
    rate = optax.piecewise_constant_schedule(0.5, {1: 0.5, 2: 0.5})
    np.testing.assert_array_equal(
        values(wd.proportional(0.25, to=rate, peak=0.5), 3), [0.25, 0.125, 0.0625]
    )
    np.testing.assert_array_equal(
        values(wd.proportional(0.25, to=rate), 3), [0.125, 0.0625, 0.03125]
    )


HALVES = {
    "number": 0.5,
    "schedule": lambda step: 0.5,
    "NumPy scalar": np.float32(0.5),
    "NumPy array": np.asarray(0.5),
    "JAX array": jnp.asarray(0.5),
    "bfloat16 array": jnp.asarray(0.5, jnp.bfloat16),
}


@pytest.mark.parametrize("weight_decay", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("to", HALVES.values(), ids=HALVES)
def test_amount_and_scale_may_be_written_in_any_way(weight_decay: Any, to: Any) -> None:
    schedule: Any = wd.proportional(weight_decay, to=to, peak=0.25)
    for step in (0, jnp.int32(7)):
        rate = schedule(step)
        assert rate == 1.0
        assert (rate.shape, rate.dtype) == ((), jnp.float32)


@pytest.mark.parametrize("peak", [2, 2.0, np.float32(2), np.asarray(2.0), jnp.array(2)])
def test_peak_may_be_any_number(peak: Any) -> None:
    assert wd.proportional(0.5, to=lambda step: 1.0, peak=peak)(0) == 0.25


# --------------------------------------------------------- counts, dtypes, compilation


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("count", [3, np.int32(3), jnp.int32(3), jnp.uint32(3)])
def test_any_count_gives_one_number_in_float32(name: str, count: Any) -> None:
    schedule, formula = SCHEDULES[name]
    rate = schedule(count)
    assert isinstance(rate, jax.Array)
    assert (rate.shape, rate.dtype) == ((), jnp.float32)
    assert float(rate) == pytest.approx(formula(np.asarray(3.0)), rel=ULPS)


@pytest.mark.parametrize("name", OURS)
def test_compiled_and_batched_it_is_the_same(name: str) -> None:
    schedule = SCHEDULES[name][0]
    alone = values(schedule, 12)
    batched = jax.jit(jax.vmap(schedule))(jnp.arange(12, dtype=jnp.int32))
    assert batched.dtype == jnp.float32
    np.testing.assert_allclose(batched, alone, rtol=ULPS, atol=1e-8)
    compiled = jax.jit(schedule)
    np.testing.assert_allclose(values(compiled, 12), alone, rtol=ULPS, atol=1e-8)


STRICT: dict[str, Any] = {
    "rising cosine": lambda: wd.cosine_schedule(0.04, 0.4, 6),
    "from integers": lambda: wd.cosine_schedule(0, 1, 6),
    "log-time": lambda: wd.log_time_schedule(0.4, 3),
    "proportional": lambda: wd.proportional(0.3, lambda step: 0.5, PEAK),
    "of arrays": lambda: wd.proportional(jnp.asarray(0.3), jnp.asarray(0.5), 2.0),
    "of strong float32": lambda: wd.proportional(jnp.float32(0.3), jnp.float32(0.5)),
    "of bfloat16": lambda: wd.proportional(
        jnp.asarray(0.5, jnp.bfloat16), lambda step: jnp.asarray(0.5, jnp.bfloat16)
    ),
    "of whole numbers": lambda: wd.proportional(1, lambda step: step, 3),
}


@pytest.mark.parametrize("name", STRICT)
def test_under_strict_promotion_it_is_strong_float32(name: str) -> None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        schedule = STRICT[name]()
        for rate in (schedule(jnp.int32(3)), jax.jit(schedule)(jnp.int32(3))):
            assert rate.dtype == jnp.float32 and not rate.weak_type
            # so it meets other float32, and nothing else, without a promotion
            assert (rate * jnp.float32(2)).dtype == jnp.float32


# ------------------------------------------------------------------- as a weight decay


@pytest.mark.parametrize("name", SCHEDULES)
def test_as_a_weight_decay_it_is_the_shrink_of_its_step(name: str) -> None:
    schedule, formula = SCHEDULES[name]
    tx: Any = wd.after_learning_rate(wd.masked_decay(schedule))
    traces = []

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traces.append(1)
        updates, state = tx.update(ZEROS, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    structure = jax.tree.structure(wd.masked_decay(0.1).init(PARAMS))
    for t in range(10):
        before = params["kernel"]
        params, state = step(params, state)
        rate = formula(np.asarray(float(t)))
        shrink = 1.0 - np.asarray(params["kernel"] / before, np.float64)
        np.testing.assert_allclose(shrink, np.full((2, 3), rate), atol=3e-7)
        assert float(state.decay_rate) == pytest.approx(rate, rel=ULPS, abs=3e-8)
        assert state.decay_rate.dtype == jnp.float32
        assert jax.tree.structure(state) == structure
    np.testing.assert_array_equal(params["bias"], PARAMS["bias"])
    assert len(traces) == 1


def test_a_zero_of_a_schedule_is_not_the_end_of_decay() -> None:
    tx: Any = wd.masked_decay(optax.linear_schedule(0.0, 0.5, 2))
    state, seen = tx.init(PARAMS), []
    for _ in range(4):
        updates, state = tx.update(ZEROS, state, PARAMS)
        seen.append(float(updates["kernel"][0, 0]) / 2.0)
    assert seen == [0.0, 0.25, 0.5, 0.5]


def test_in_a_chain_it_counts_the_steps_of_the_learning_rate() -> None:
    corrected = wd.proportional(0.5, to=LEARNING_RATE, peak=PEAK)
    tx: Any = wd.adamw(LEARNING_RATE, wd.masked_decay(corrected))
    state = tx.init(PARAMS)
    for t in range(STEPS):
        updates, state = tx.update(ZEROS, state, PARAMS)
        shrink = -float(updates["kernel"][0, 0]) / 2.0
        rate = PEAK * (1 + math.cos(math.pi * t / STEPS)) / 2
        assert shrink == pytest.approx(0.5 * rate**2 / PEAK, rel=1e-5)


def relative_decay(
    weight_decay: Any, peak: Any = PEAK
) -> optax.GradientTransformationExtraArgs:
    return wd.masked_decay(wd.proportional(weight_decay, to=LEARNING_RATE, peak=peak))


def test_under_inject_hyperparams_it_can_be_read_and_set() -> None:
    tx = optax.inject_hyperparams(relative_decay)(weight_decay=0.5, peak=PEAK)
    state: Any = tx.init(PARAMS)
    assert state.hyperparams.keys() == {"weight_decay", "peak"}
    traces = []

    @jax.jit
    def update(state: Any) -> Any:
        traces.append(1)
        return tx.update(ZEROS, state, PARAMS)

    for t, (amount, peak) in enumerate([(0.5, PEAK), (0.25, PEAK), (0.5, 2 * PEAK)]):
        state.hyperparams["weight_decay"] = jnp.asarray(amount, jnp.float32)
        state.hyperparams["peak"] = jnp.asarray(peak, jnp.float32)
        updates, state = update(state)
        rate = amount * values(LEARNING_RATE, 3)[t] / peak
        assert float(state.inner_state.decay_rate) == pytest.approx(rate, rel=ULPS)
        np.testing.assert_allclose(updates["kernel"], 2.0 * rate, rtol=ULPS)
    assert len(traces) == 1


def test_its_coefficient_can_be_batched_and_differentiated() -> None:
    def rate(weight_decay: jax.Array) -> Any:
        return wd.proportional(weight_decay, to=lambda step: 0.5, peak=0.25)(0)

    np.testing.assert_array_equal(jax.vmap(rate)(jnp.asarray([0.5, 1.0])), [1.0, 2.0])
    assert jax.grad(rate)(jnp.asarray(0.5)) == 2.0


# ------------------------------------------------------------------------------- value


def rate_of_the_run(step: Any) -> Any:
    return PEAK / (1 + step)


def test_proportional_prints_as_the_code_that_made_it() -> None:
    schedule = wd.proportional(0.1, to=rate_of_the_run, peak=PEAK)
    assert label(schedule) == (
        "proportional(0.1, to=<function rate_of_the_run>, peak=0.001)"
    )
    again = wd.proportional(wd.proportional(0.1, to=2.0), to=3.0, peak=4.0)
    text = "proportional(proportional(0.1, to=2.0, peak=1.0), to=3.0, peak=4.0)"
    assert repr(again) == text
    assert eval(text, {"proportional": wd.proportional}) == again


def test_proportional_is_a_frozen_value() -> None:
    schedule: Any = wd.proportional(0.1, to=rate_of_the_run, peak=PEAK)
    assert schedule == wd.proportional(0.1, to=rate_of_the_run, peak=PEAK)
    assert hash(schedule) == hash(wd.proportional(0.1, to=rate_of_the_run, peak=PEAK))
    assert schedule != wd.proportional(0.1, to=rate_of_the_run)
    with pytest.raises(AttributeError, match="cannot assign to field 'peak'"):
        schedule.peak = 2.0


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_numbers_in_arrays_are_held_as_numbers(array: Any) -> None:
    schedule = wd.proportional(array(0.5), to=array(2.0), peak=array(4.0))
    assert schedule == wd.proportional(0.5, to=2.0, peak=4.0)
    assert repr(schedule) == "proportional(0.5, to=2.0, peak=4.0)"
    assert jax.jit(schedule)(0) == 0.25  # jit looks functions up by their hash


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "peak", [0, 0.0, -1e-3, math.nan, math.inf, np.float32(0.0), jnp.asarray(-1.0)]
)
def test_a_peak_that_is_not_above_zero_is_refused(peak: Any) -> None:
    with pytest.raises(
        ValueError, match="peak is the highest value of `to`, above 0"
    ) as e:
        wd.proportional(0.1, to=LEARNING_RATE, peak=peak)
    assert str(e.value).endswith((f"got {peak}", f"got {float(peak)}"))


@pytest.mark.parametrize(
    "peak",
    [
        True,
        None,
        "1e-3",
        [1.0],
        np.ones(1),
        jnp.ones(2),
        1j,
        wd.standard,
        LEARNING_RATE,
    ],
    ids=label,
)
def test_a_peak_that_is_no_number_is_refused(peak: Any) -> None:
    with pytest.raises(TypeError, match="peak is one number, got") as error:
        wd.proportional(0.1, to=LEARNING_RATE, peak=peak)
    assert repr(peak) in str(error.value)


@pytest.mark.parametrize("to", [None, True, "1e-3", [1.0], {}, 1j], ids=label)
def test_a_scale_that_is_no_schedule_is_refused(to: Any) -> None:
    with pytest.raises(TypeError, match="to (is|takes) a .*schedule.*, got") as error:
        wd.proportional(0.1, to=to)
    assert repr(to) in str(error.value)


@pytest.mark.parametrize(
    "rule",
    [wd.standard, wd.first_match((wd.named("kernel"), 2.0), default=1.0)],
    ids=["rule", "table"],
)
def test_a_rule_as_the_scale_is_refused(rule: Any) -> None:
    with pytest.raises(TypeError, match="to .*got") as error:
        wd.proportional(0.1, to=rule)
    assert repr(rule) in str(error.value)


@pytest.mark.parametrize("zeros", [np.zeros, jnp.zeros])
def test_several_numbers_as_the_scale_are_refused(zeros: Any) -> None:
    with pytest.raises(ValueError, match=r"to is one number .*shape \(3,\)"):
        wd.proportional(0.1, to=zeros(3))


@pytest.mark.parametrize("to", [-1e-3, math.nan, math.inf])
def test_a_scale_that_is_known_to_be_wrong_is_refused(to: float) -> None:
    with pytest.raises(ValueError, match=f"to .*finite and 0 or more, got {to}"):
        wd.proportional(0.1, to=to)


@pytest.mark.parametrize(
    ("weight_decay", "error", "message"),
    [
        (-0.1, ValueError, "weight_decay has to be finite and 0 or more, got -0.1"),
        (math.nan, ValueError, "weight_decay has to be finite and 0 or more, got nan"),
        (True, TypeError, "weight_decay takes a number, a schedule or .* got True"),
        ("0.1", TypeError, "weight_decay takes a number, a schedule or .* got '0.1'"),
        (wd.standard, TypeError, "weight_decay got the rule standard"),
        (np.ones(2), ValueError, r"weight_decay is one number .* shape \(2,\)"),
    ],
    ids=label,
)
def test_the_amount_is_checked_as_everywhere(
    weight_decay: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        wd.proportional(weight_decay, to=LEARNING_RATE, peak=PEAK)


def vector(step: Any) -> Any:
    return np.ones(3, np.float32)


def text(step: Any) -> Any:
    return "1e-3"


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (vector, ValueError, r"<function vector .*> returned an array of shape \(3,\)"),
        (text, TypeError, "<function text .*> returned str"),
    ],
    ids=["vector", "text"],
)
def test_a_schedule_inside_that_returns_no_number_is_named(
    wrong: Any, error: Any, said: str
) -> None:
    for schedule in (wd.proportional(0.1, to=wrong), wd.proportional(wrong, to=1.0)):
        with pytest.raises(error, match=f"the schedule {said}; return one number"):
            wd.masked_decay(schedule).init(PARAMS)


COSINE = {"init_value": 0.1, "end_value": 0.2, "transition_steps": 10}
LOG_TIME = {"init_value": 0.1, "timescale_steps": 10}


@pytest.mark.parametrize("name", COSINE)
@pytest.mark.parametrize(
    "value", [None, True, "0.1", [0.1], np.ones(1), 1j, wd.standard], ids=label
)
def test_half_a_cosine_is_of_numbers(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} is one number, got") as error:
        wd.cosine_schedule(**{**COSINE, name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", COSINE)
def test_half_a_cosine_has_no_wrong_numbers(name: str, value: float) -> None:
    least = 1 if name == "transition_steps" else 0
    with pytest.raises(ValueError) as error:
        wd.cosine_schedule(**{**COSINE, name: value})
    assert str(error.value) == f"{name} is finite and {least} or more, got {value}"


@pytest.mark.parametrize("steps", [0, 0.5, -1])
def test_half_a_cosine_takes_a_step_at_least(steps: Any) -> None:
    with pytest.raises(ValueError, match=f"steps is finite and 1 or more, got {steps}"):
        wd.cosine_schedule(0.1, 0.2, steps)


@pytest.mark.parametrize("name", LOG_TIME)
@pytest.mark.parametrize(
    "value", [None, True, "0.1", [0.1], np.ones(1), 1j, wd.standard], ids=label
)
def test_one_over_time_is_of_numbers(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} is one number, got") as error:
        wd.log_time_schedule(**{**LOG_TIME, name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_one_over_time_starts_at_a_rate(value: float) -> None:
    with pytest.raises(ValueError, match=f"value is finite and 0 or more, got {value}"):
        wd.log_time_schedule(value, 10)
    assert wd.log_time_schedule(0.0, 10)(5) == 0.0


@pytest.mark.parametrize("value", [0, 0.0, -3, math.nan, math.inf])
def test_one_over_time_needs_a_time(value: float) -> None:
    message = f"timescale_steps is a (finite )?number above 0, got {value}"
    with pytest.raises(ValueError, match=message):
        wd.log_time_schedule(0.1, value)
