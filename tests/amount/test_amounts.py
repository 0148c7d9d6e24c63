# SPDX-License-Identifier: Apache-2.0
"""How much: what `weight_decay` may be, what it is refused for, and its values."""

import dataclasses
import fractions
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import once

import optax_wd as wd
from optax_wd._amount import amounts as _amounts

PARAMS = {"kernel": jnp.full((2, 3), 2.0)}
ZEROS = {"kernel": jnp.zeros((2, 3))}

DECAYS: dict[str, Callable[..., Any]] = {
    "masked_decay": wd.masked_decay,
    "cautious_weight_decay": wd.cautious_weight_decay,
    "decay_along": lambda weight_decay, mask=wd.standard: wd.decay_along(
        lambda u, p: p, weight_decay, mask
    ),
}


def applied(weight_decay: Any) -> float:
    """The rate that reaches the parameters in the first step."""
    updates = once(wd.masked_decay(weight_decay), ZEROS, PARAMS)
    return float(updates["kernel"][0, 0]) / 2.0


@pytest.mark.parametrize(
    "given",
    [
        0.5,
        np.float32(0.5),
        np.float64(0.5),
        np.float16(0.5),
        np.asarray(0.5),
        fractions.Fraction(1, 2),
        jnp.asarray(0.5),
        jnp.asarray(0.5, jnp.bfloat16),
        jnp.float32(0.5),
        lambda step: 0.5,
        lambda step: np.float64(0.5),
        lambda step: jnp.asarray(0.5, jnp.bfloat16),
        optax.constant_schedule(0.5),
    ],
)
def test_every_way_to_write_one_half_decays_by_one_half(given: Any) -> None:
    assert applied(given) == 0.5


@pytest.mark.parametrize("given", [2, np.int32(2), np.asarray(2), lambda step: 2])
def test_whole_numbers_are_rates(given: Any) -> None:
    assert applied(given) == 2.0


@pytest.mark.parametrize("given", [0, 0.0, -0.0, np.float32(0.0), np.asarray(0)])
def test_constant_zero_is_recognised(given: Any) -> None:
    assert _amounts.check_amount(given).is_zero


@pytest.mark.parametrize("given", [jnp.asarray(0.0), jnp.float32(0.0)])
def test_zero_in_a_concrete_jax_array_is_a_constant_zero_too(given: Any) -> None:
    assert _amounts.check_amount(given).is_zero


@pytest.mark.parametrize("given", [1e-30, 0.1, lambda step: 0.0])
def test_small_rates_and_schedules_are_not_constant_zero(given: Any) -> None:
    assert not _amounts.check_amount(given).is_zero


def test_a_rate_that_float32_holds_exactly_reaches_the_weights_exactly() -> None:
    for rate in (2.0**-20, 0.75, 3.0):
        assert applied(rate) == rate


def test_an_amount_is_a_frozen_value() -> None:
    amount = _amounts.check_amount(0.1)
    assert amount == _amounts.check_amount(np.float64(0.1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        amount.value = 0.2  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize(
    "given",
    [-0.1, -1, float("nan"), float("inf"), -float("inf"), np.float32("nan"), -1e-30],
)
def test_negative_and_not_finite_rates_are_refused(name: str, given: Any) -> None:
    message = f"weight_decay has to be finite and 0 or more, got {float(given)}"
    place = "; a decay that stands after the learning rate goes inside after_learn"
    with pytest.raises(ValueError, match=message) as error:
        DECAYS[name](given)
    assert (place in str(error.value)) == (given < 0)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_known_arrays_are_checked_as_numbers_are(array: Any, value: float) -> None:
    with pytest.raises(ValueError, match="has to be finite and 0 or more, got"):
        wd.masked_decay(array(value))


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize(
    "given", [True, False, np.bool_(True), "0.1", None, [0.1], (0.1,), {}, 1j]
)
def test_other_kinds_are_refused(name: str, given: Any) -> None:
    message = "weight_decay takes a number, a schedule or a 0-d array, got "
    with pytest.raises(TypeError, match=message) as error:
        DECAYS[name](given)
    assert repr(given) in str(error.value)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("value", [True, False, 1j])
def test_arrays_of_other_kinds_are_refused(array: Any, value: Any) -> None:
    with pytest.raises(TypeError, match="takes a number, a schedule or a 0-d array"):
        wd.masked_decay(array(value))


def test_an_array_of_strings_is_refused() -> None:
    with pytest.raises(TypeError, match="takes a number, a schedule or a 0-d array"):
        wd.masked_decay(np.asarray("0.1"))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("zeros", [np.zeros, jnp.zeros])
def test_arrays_of_several_numbers_are_refused(
    name: str, shape: tuple[int, ...], zeros: Any
) -> None:
    with pytest.raises(ValueError, match="weight_decay is one number or a sch") as e:
        DECAYS[name](zeros(shape))
    assert f"array of shape {shape}; give amounts per leaf as mult" in str(e.value)


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize(
    "rule",
    [
        wd.standard,
        wd.named("kernel"),
        wd.everything & ~wd.named("bias"),
        wd.first_match((wd.named("kernel"), True), default=False),
        wd.first_match((wd.named("kernel"), 0.5), default=1.0),
    ],
)
def test_a_rule_as_the_amount_names_the_order_of_arguments(
    name: str, rule: Any
) -> None:
    with pytest.raises(TypeError, match="weight_decay got the rule") as error:
        DECAYS[name](rule)
    assert repr(rule) in str(error.value)
    assert "belongs; the mask comes right after it" in str(error.value)


@pytest.mark.parametrize("name", DECAYS)
def test_swapped_arguments_are_refused_whichever_is_looked_at_first(name: str) -> None:
    with pytest.raises(TypeError, match="belongs; the mask comes right after it$"):
        DECAYS[name](wd.standard, 0.1)


@pytest.mark.parametrize("amount", [0.1, 1, np.float32(0.1), jnp.asarray(0.1)])
def test_a_number_as_the_mask_names_the_order_of_arguments(amount: Any) -> None:
    with pytest.raises(TypeError, match="tree of bools, and comes right after weight_"):
        wd.masked_decay(0.1, amount)


@pytest.mark.parametrize(
    ("returned", "error", "said"),
    [
        (np.ones(3, np.float32), ValueError, r"an array of shape \(3,\)"),
        (jnp.ones((1,)), ValueError, r"an array of shape \(1,\)"),
        ([0.1, 0.2], TypeError, "list"),
        (True, TypeError, "bool"),
        (jnp.asarray(False), TypeError, "bool"),
        (1j, TypeError, "complex"),
        (jnp.asarray(1j), TypeError, "complex64"),
        (None, TypeError, "NoneType"),
        ("0.1", TypeError, "str"),
        ({"rate": 0.1}, TypeError, "dict"),
    ],
)
@pytest.mark.parametrize("when", ["init", "update"])
def test_a_schedule_that_returns_no_number_is_named(
    returned: Any, error: Any, said: str, when: str
) -> None:
    tx = wd.masked_decay(0.1)
    state = tx.init(PARAMS)

    def strange(step: Any) -> Any:
        return returned

    tx = wd.masked_decay(strange)
    message = f"the schedule .*strange.* returned {said}; return one number"
    with pytest.raises(error, match=message):
        tx.init(PARAMS) if when == "init" else tx.update(ZEROS, state, PARAMS)


def test_a_schedule_gets_the_number_of_updates_so_far() -> None:
    tx: Any = wd.masked_decay(lambda step: 0.5 + step)
    state, rates = tx.init(PARAMS), []
    for _ in range(3):
        updates, state = tx.update(ZEROS, state, PARAMS)
        rates.append(float(updates["kernel"][0, 0]) / 2.0)
    assert rates == [0.5, 1.5, 2.5]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (optax.linear_schedule(0.0, 1.0, 2), [0.0, 0.5, 1.0, 1.0]),
        (optax.piecewise_constant_schedule(0.5, {2: 0.5}), [0.5, 0.5, 0.25, 0.25]),
        (
            optax.join_schedules([lambda n: 0.25, lambda n: 2.0], [2]),
            [0.25] * 2 + [2.0] * 2,
        ),
    ],
)
def test_schedules_of_optax_are_amounts(schedule: Any, rates: list[float]) -> None:
    tx: Any = wd.masked_decay(schedule)

    def step(state: Any, _: None) -> tuple[Any, jax.Array]:
        updates, state = tx.update(ZEROS, state, PARAMS)
        return state, updates["kernel"][0, 0] / 2.0

    _, found = jax.lax.scan(step, tx.init(PARAMS), length=4)
    np.testing.assert_array_equal(found, rates)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_a_traced_number_is_an_amount(dtype: Any) -> None:
    traces = []

    @jax.jit
    def updated(weight_decay: jax.Array) -> tuple[jax.Array, Any]:
        traces.append(weight_decay)
        tx: Any = wd.masked_decay(weight_decay)
        updates, state = tx.update(ZEROS, tx.init(PARAMS), PARAMS)
        return updates["kernel"], state

    for rate in (2, 0, 3):
        update, state = updated(jnp.asarray(rate, dtype))
        np.testing.assert_array_equal(update, np.full((2, 3), 2.0 * rate))
        assert state.decay_rate == rate and state.decay_rate.dtype == jnp.float32
    assert len(traces) == 1


def test_a_traced_array_of_several_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got an array of shape \(2,\)"):
        jax.jit(lambda rates: wd.masked_decay(rates).init(PARAMS))(jnp.ones(2))


def test_amounts_can_be_batched_and_differentiated() -> None:
    def update(rate: jax.Array) -> jax.Array:
        return once(wd.masked_decay(rate), ZEROS, PARAMS)["kernel"]

    batched = jax.vmap(update)(jnp.asarray([0.5, 1.0]))
    np.testing.assert_array_equal(batched[:, 0, 0], [1.0, 2.0])
    assert jax.grad(lambda rate: jnp.sum(update(rate)))(jnp.asarray(0.1)) == 12.0


def test_the_rate_times_the_factor_is_rounded_once() -> None:
    assert np.float32(0.1) * np.float32(0.3) != np.float32(0.1 * 0.3)
    ones = {"kernel": jnp.ones((2, 3))}
    updates = once(wd.masked_decay(0.1, multiplier=0.3), ZEROS, ones)
    np.testing.assert_array_equal(updates["kernel"], np.full((2, 3), 0.1 * 0.3, "f4"))


# What decay alone leaves

COSINE = optax.cosine_decay_schedule(0.02, 60)
WARM_UP = optax.linear_schedule(0.0, 0.5, 20)


def numpy_cosine(steps: int) -> np.ndarray:
    return 0.01 * (1 + np.cos(np.pi * np.minimum(np.arange(steps), 60) / 60))


def numpy_warm_up(steps: int) -> np.ndarray:
    return 0.5 * np.minimum(np.arange(steps), 20) / 20


def test_only_a_weight_decay_is_told_of_order_and_place() -> None:
    order = "; the mask comes right after it"
    place = (
        "; a decay that stands after the learning rate goes inside "
        r"after_learning_rate\(\.\.\.\)"
    )
    rule = "got the rule standard, where a number or a schedule belongs"
    low = "has to be finite and 0 or more, got -1.0"
    for name, more, last in (("weight_decay", order, place), ("learning_rate", "", "")):
        with pytest.raises(TypeError, match=f"^{name} {rule}{more}$"):
            _amounts.check_amount(wd.standard, name)
        with pytest.raises(ValueError, match=f"^{name} {low}{last}$"):
            _amounts.check_amount(-1.0, name)
    given: Any = wd.standard
    for amounts in ((0.1, given, 1), (0.1, -1.0, 1)):
        with pytest.raises(
            (TypeError, ValueError), match=f"^learning_rate .*({rule}|{low})$"
        ):
            wd.remaining_fraction(*amounts)


def test_what_is_left_by_hand() -> None:
    assert f"{wd.remaining_fraction(0.1, 3e-4, 10_000):.3f}" == "0.741"
    assert wd.remaining_fraction(0.5, 1.0, 3) == 0.125
    assert wd.remaining_fraction(0.5, 0.5, 2) == 0.5625
    assert wd.remaining_fraction(1.0, 1.0, 1) == 0.0


@pytest.mark.parametrize(
    ("weight_decay", "learning_rate", "step", "shrink"),
    [
        (3.0, 1.0, 0, "3"),
        (1.5, 1.0, 0, "1.5"),
        (lambda step: 0.5 * step, 1.0, 3, "1.5"),
        (0.5, lambda step: 0.5 * step, 5, "1.25"),
        (lambda step: step, lambda step: step, 2, "4"),
    ],
    ids=["3", "1.5", "schedule of the decay", "schedule of the rate", "both"],
)
def test_more_than_all_of_a_weight_cannot_go(
    weight_decay: Any, learning_rate: Any, step: int, shrink: str
) -> None:
    assert wd.remaining_fraction(weight_decay, learning_rate, step) >= 0.0
    text = (
        f"the shrink of step {step} is {shrink}, which is more than the whole weight; "
        "check the units of weight_decay and learning_rate"
    )
    for steps in (step + 1, step + 5):
        with pytest.raises(ValueError, match=f"^{text}$"):
            wd.remaining_fraction(weight_decay, learning_rate, steps)


@pytest.mark.parametrize("weight_decay", [0.1, WARM_UP], ids=["number", "schedule"])
@pytest.mark.parametrize("learning_rate", [0.1, COSINE], ids=["number", "schedule"])
def test_without_steps_all_is_left(weight_decay: Any, learning_rate: Any) -> None:
    assert wd.remaining_fraction(weight_decay, learning_rate, 0) == 1.0


@pytest.mark.parametrize(
    ("weight_decay", "learning_rate"), [(0, 0.1), (0.1, 0.0), (lambda step: 0.0, 0.1)]
)
def test_without_a_shrink_all_is_left(weight_decay: Any, learning_rate: Any) -> None:
    assert wd.remaining_fraction(weight_decay, learning_rate, 1000) == 1.0


@pytest.mark.parametrize(
    ("weight_decay", "learning_rate", "shrinks"),
    [
        (0.3, COSINE, lambda n: 0.3 * numpy_cosine(n)),
        (WARM_UP, 0.02, lambda n: numpy_warm_up(n) * 0.02),
        (WARM_UP, COSINE, lambda n: numpy_warm_up(n) * numpy_cosine(n)),
    ],
    ids=["of the learning rate", "of the decay", "of both"],
)
def test_what_schedules_leave_is_their_product_in_numpy(
    weight_decay: Any, learning_rate: Any, shrinks: Any
) -> None:
    for steps in (10, 100):
        expected = np.prod(1.0 - shrinks(steps))
        found = wd.remaining_fraction(weight_decay, learning_rate, steps)
        assert type(found) is float
        assert found == pytest.approx(expected, rel=1e-6)
    assert expected < 0.95


def test_what_is_left_is_what_training_without_gradients_leaves() -> None:
    tx: Any = wd.adamw(COSINE, wd.masked_decay(WARM_UP))

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(ZEROS, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=50)
    left = wd.remaining_fraction(WARM_UP, COSINE, 50)
    assert left < 0.9
    np.testing.assert_allclose(params["kernel"], 2.0 * left, rtol=1e-5)


@pytest.mark.parametrize("steps", [3, np.int32(3), np.int64(3), np.uint8(3)])
def test_steps_are_any_integer(steps: Any) -> None:
    assert wd.remaining_fraction(0.5, 1.0, steps) == 0.125
    assert wd.remaining_fraction(lambda step: 0.5, 1.0, steps) == 0.125


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (-1, ValueError, "steps is 0 or more, got -1"),
        (np.int64(-2), ValueError, "steps is 0 or more, got -2"),
        (True, TypeError, "steps is an integer, got True"),
        (10.0, TypeError, "steps is an integer, got 10.0"),
        ("10", TypeError, "steps is an integer, got '10'"),
        (None, TypeError, "steps is an integer, got None"),
    ],
)
def test_steps_that_cannot_be_counted_are_refused(
    steps: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        wd.remaining_fraction(0.1, 1e-3, steps)


@pytest.mark.parametrize("name", ["weight_decay", "learning_rate"])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (-0.1, ValueError, "has to be finite and 0 or more, got -0.1"),
        (float("nan"), ValueError, "has to be finite and 0 or more, got nan"),
        ("0.1", TypeError, "takes a number, a schedule or a 0-d array, got '0.1'"),
        (True, TypeError, "takes a number, a schedule or a 0-d array, got True"),
        (wd.standard, TypeError, "got the rule standard"),
        (np.ones(2), ValueError, r"is one number or a schedule, got an array of sha"),
    ],
    ids=["negative", "nan", "string", "bool", "rule", "vector"],
)
def test_the_amount_that_is_wrong_is_named(
    name: str, given: Any, error: Any, message: str
) -> None:
    arguments: dict[str, Any] = {"weight_decay": 0.1, "learning_rate": 0.1}
    with pytest.raises(error, match=f"^{name} {message}"):
        wd.remaining_fraction(**{**arguments, name: given}, steps=3)


@pytest.mark.parametrize("name", ["weight_decay", "learning_rate"])
def test_a_schedule_of_no_numbers_is_named(name: str) -> None:
    def strange(step: Any) -> Any:
        return "0.1"

    arguments: dict[str, Any] = {"weight_decay": 0.1, "learning_rate": 0.1}
    with pytest.raises(TypeError, match="the schedule .*strange.* returned str; retur"):
        wd.remaining_fraction(**{**arguments, name: strange}, steps=3)


def test_a_schedule_that_cannot_be_traced_is_refused_as_under_jit() -> None:
    def branching(step: Any) -> float:
        return 0.1 if step < 5 else 0.2

    with pytest.raises(jax.errors.TracerBoolConversionError):
        wd.remaining_fraction(branching, 1e-3, 10)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(lambda n: _amounts.check_amount(branching).at(n))(jnp.int32(3))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.int32])
def test_rates_along_the_steps_are_float64(dtype: Any) -> None:
    def schedule(step: Any) -> Any:
        return jnp.asarray(2 * step, dtype)

    for given, expected in ((schedule, [0.0, 2.0, 4.0]), (0.1, [0.1] * 3)):
        rates = _amounts.check_amount(given).along(3)
        assert (rates.shape, rates.dtype) == ((3,), np.float64)
        np.testing.assert_array_equal(rates, expected)
    assert _amounts.check_amount(schedule).along(0).shape == (0,)
