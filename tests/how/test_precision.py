# SPDX-License-Identifier: Apache-2.0
"""Stochastic rounding: what it must not change, and what it is on average.

Tolerances of means are five standard errors, from the gap `e` between two numbers: one
rounding has a variance of at most `e**2 / 4`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same

import optax_wd as wd

LOW = pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
MANY = 40_000
KEY = jax.random.key(7)
add = jax.jit(wd.apply_updates)


def neighbours(total: float, dtype: Any) -> tuple[float, float]:
    """The numbers of a dtype below and above, by a search in all its finite numbers."""
    bits = jnp.arange(2**16, dtype=jnp.uint16)
    every = jax.lax.bitcast_convert_type(bits, dtype)
    every = np.asarray(every[jnp.isfinite(every)]).astype(np.float64)
    return float(every[every <= total].max()), float(every[every >= total].min())


# -------------------------------------------------------------- one weight, many times


TOTALS = {
    "near 1": 1.003,
    "below 1, where gaps are half": 0.9987,
    "negative": -1.003,
    "large": -41_234.5,
    "rarely": 1.0 + 2.0**-16,
    "tiny": 3.33e-7,
}


@LOW
@pytest.mark.parametrize("total", TOTALS.values(), ids=TOTALS)
def test_the_mean_is_the_sum_and_values_are_its_two_neighbours(
    total: float, dtype: Any
) -> None:
    low, high = neighbours(float(np.float32(total)), dtype)
    start = jnp.full(MANY, total, dtype)
    update = jnp.full(MANY, np.float32(total) - np.float32(start[0]))
    found = np.asarray(add(start, update, KEY)).astype(np.float64)
    assert set(found) == {low, high} and found.dtype == np.float64
    share = (float(np.float32(total)) - low) / (high - low)
    error = 5.0 * np.sqrt(share * (1.0 - share) / MANY)
    assert np.mean(found == high) == pytest.approx(share, abs=error)


SUBNORMAL = {
    "float16, between two subnormals": (jnp.float16, -3.3 * 2.0**-24),
    "float16, between 0 and the smallest": (jnp.float16, 0.2 * 2.0**-24),
    "float16, at the end of the normal": (jnp.float16, 2.0**-14 - 0.3 * 2.0**-24),
    "bfloat16, at the end of the normal": (
        jnp.bfloat16,
        -(2.0**-126) * (1 + 2.3 / 2**7),
    ),
}


@pytest.mark.parametrize(("dtype", "total"), SUBNORMAL.values(), ids=SUBNORMAL)
def test_near_the_end_of_the_range_the_mean_is_still_the_sum(
    dtype: Any, total: float
) -> None:
    total = float(np.float32(total))
    low, high = neighbours(total, dtype)
    found = add(jnp.zeros(MANY, dtype), jnp.full(MANY, total, jnp.float32), KEY)
    found = np.asarray(found).astype(np.float64)
    assert set(found) == {low, high}
    share = (total - low) / (high - low)
    error = 5.0 * np.sqrt(share * (1.0 - share) / MANY)
    assert np.mean(found == high) == pytest.approx(share, abs=error)


@LOW
def test_random_weights_of_both_signs_and_all_sizes_are_right_on_average(
    dtype: Any,
) -> None:
    rng = np.random.default_rng(3)
    signs, sizes = rng.choice([-1.0, 1.0], 300), 2.0 ** rng.uniform(-13, 13, 300)
    start = jnp.asarray(signs * sizes, dtype)
    update = jnp.asarray(rng.normal(size=300) * 0.01 * sizes, jnp.float32)
    keys = jax.random.split(jax.random.key(4), 2_000)
    found = jax.vmap(functools.partial(wd.apply_updates, start, update))(keys)
    total = np.asarray(start, np.float64) + np.asarray(update, np.float64)
    gap = np.asarray(jnp.nextafter(jnp.abs(start), jnp.asarray(np.inf, dtype)))
    gap = 2.0 * (gap.astype(np.float64) - np.abs(np.asarray(start, np.float64)))
    error = (np.asarray(found, np.float64).mean(0) - total) / gap
    assert np.abs(error).max() < 5.0 * 0.5 / np.sqrt(2_000)
    assert abs(error.mean()) < 5.0 * 0.5 / np.sqrt(2_000 * 300)


# ------------------------------------------------------------------ what does not move


@LOW
def test_a_sum_that_is_a_number_of_the_dtype_never_moves(dtype: Any) -> None:
    bits = jnp.arange(2**16, dtype=jnp.uint16)
    every = jax.lax.bitcast_convert_type(bits, dtype)
    normal = jnp.abs(every) >= jnp.finfo(dtype).smallest_normal
    every = jnp.where(jnp.isfinite(every) & normal, every, jnp.ones([], dtype))
    assert_same(add(every, jnp.zeros_like(every), KEY), every)
    assert_same(add(jnp.zeros_like(every), every, KEY), every)


@LOW
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_stay(zero: float, dtype: Any) -> None:
    start = jnp.full(100, zero, dtype)
    found = add(start, jnp.full(100, zero, jnp.float32), KEY)
    assert_same(found, start)
    assert bool(jnp.all(jnp.signbit(found) == np.signbit(zero)))


@LOW
def test_what_is_not_finite_or_overflows_is_what_plain_rounding_makes_of_it(
    dtype: Any,
) -> None:
    largest = float(jnp.finfo(dtype).max)
    beyond = np.float32(largest * (1 + 2.0**-13)), np.float32(largest * (1 + 2.0**-8.5))
    start = np.array([np.inf, -np.inf, np.nan, largest, -largest, largest, 1.0, np.inf])
    ends = np.array([np.inf, -np.inf, np.nan, *beyond, np.inf, -np.inf, np.nan])
    with np.errstate(invalid="ignore", over="ignore"):
        update = jnp.asarray(ends - start, jnp.float32).at[4].set(-largest * 2.0**-8.5)
    repeated = jnp.tile(jnp.asarray(start, dtype), (500, 1))
    found = add(repeated, jnp.tile(update, (500, 1)), KEY)
    with np.errstate(over="ignore"):
        plain = optax.apply_updates(jnp.asarray(start, jnp.float32), update)
        plain = np.asarray(plain).astype(dtype)
    np.testing.assert_array_equal(
        np.asarray(found, np.float64), np.tile(plain, (500, 1)).astype(np.float64)
    )
    assert float(plain[3]) == largest  # nearer to it than to what follows


def test_other_leaves_are_what_optax_makes_of_them() -> None:
    params = {
        "float32": jnp.asarray([0.1, -3e7]),
        "complex": jnp.asarray([1.0 + 2.0j]),
        "int": jnp.asarray([3, 4]),
        "number": 2.0,
        "hole": None,
        "masked": optax.MaskedNode(),
        "none": {"a": None},
    }
    updates = {**params, "int": jnp.asarray([0.9, -0.9]), "hole": jnp.ones(2)}
    found = wd.apply_updates(params, updates, KEY)
    assert_same(found, optax.apply_updates(params, updates))
    with jax.enable_x64(True):
        double = jnp.asarray([1.0 + 1e-12])
        assert_same(wd.apply_updates(double, double, KEY), 2.0 * double)


@LOW
def test_structure_shapes_and_dtypes_are_those_of_the_parameters(dtype: Any) -> None:
    params = {"a": jnp.ones((2, 3), dtype), "b": [jnp.ones([], dtype)]}
    updates = jax.tree.map(lambda x: jnp.full(x.shape, 0.001), params)
    found = add(params, updates, KEY)
    shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert shapes(found) == shapes(params)


# ---------------------------------------------------------------------------- the keys


def test_leaves_steps_and_coordinates_are_rounded_apart() -> None:
    params = {"a": jnp.ones(64, jnp.bfloat16), "b": jnp.ones(64, jnp.bfloat16)}
    updates = jax.tree.map(lambda x: jnp.full(64, 0.004), params)
    first, again, other = (
        add(params, updates, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert_same(first, again)
    assert not np.array_equal(np.asarray(first["a"]), np.asarray(first["b"]))
    assert not np.array_equal(np.asarray(first["a"]), np.asarray(other["a"]))
    assert len(np.unique(np.asarray(first["a"], np.float32))) == 2


def test_keys_of_the_old_kind_are_keys() -> None:
    params, update = jnp.ones(64, jnp.bfloat16), jnp.full(64, 0.004)
    old = wd.apply_updates(params, update, jax.random.PRNGKey(7))
    assert_same(old, wd.apply_updates(params, update, jax.random.key(7)))


# --------------------------------------------------------------------- while training


def after_1000_steps(shrink: float, dtype: Any, plain: bool, size: int) -> np.ndarray:
    """Weights of 1 after that many steps of decay, without a gradient."""
    tx = wd.after_learning_rate(wd.masked_decay(shrink, wd.everything))

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(jnp.zeros(size), state, params)
        if plain:
            return (optax.apply_updates(params, updates), state), None
        return (wd.apply_updates(params, updates, key), state), None

    start = jnp.ones(size, dtype)
    keys = jax.random.split(jax.random.key(1), 1000)
    (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), keys)
    assert params.dtype == dtype
    return np.asarray(params, np.float64)


SHRINKS = pytest.mark.parametrize(
    ("shrink", "left"), [(1e-5, 0.990), (1e-4, 0.905), (1e-3, 0.368)]
)


@SHRINKS
def test_plain_rounding_undoes_a_decay_in_bfloat16(shrink: float, left: float) -> None:
    assert set(after_1000_steps(shrink, jnp.bfloat16, True, 4)) == {1.0}
    found = after_1000_steps(shrink, jnp.float32, True, 4)
    np.testing.assert_allclose(found, left, atol=5e-4)


@LOW
@SHRINKS
def test_stochastic_rounding_decays_as_float32_does_on_average(
    shrink: float, left: float, dtype: Any
) -> None:
    size = 4_000
    found = after_1000_steps(shrink, dtype, False, size)
    # A step moves a weight by a gap of at most 2**-8 (below 1), at a rate of
    # shrink / gap: over 1000 steps a variance of at most 1000 * shrink * gap.
    gap = float(jnp.finfo(dtype).eps) / 2
    error = 5.0 * np.sqrt(1000 * shrink * gap / size)
    assert error < 0.005
    assert found.mean() == pytest.approx((1.0 - shrink) ** 1000, abs=error)
    assert found.mean() == pytest.approx(left, abs=error + 5e-4)
    assert found.std() > 0.0


def test_donated_parameters_are_updated_in_a_jitted_step() -> None:
    tx = wd.sgdw(0.1, wd.masked_decay(0.1))
    params = {"kernel": jnp.ones((40, 40), jnp.bfloat16), "bias": jnp.ones(40)}

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, count: jax.Array) -> tuple[Any, Any]:
        grads = jax.tree.map(jnp.sin, params)
        updates, state = tx.update(grads, state, params)
        key = jax.random.fold_in(KEY, count)
        return wd.apply_updates(params, updates, key), state

    state, start = tx.init(params), jax.tree.map(np.array, params)
    donated = params
    for count in range(3):
        params, state = step(params, state, jnp.asarray(count))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
    moved = jax.tree.map(lambda x, y: bool(np.any(np.asarray(x) != y)), params, start)
    assert all(jax.tree.leaves(moved))


def test_the_metrics_say_what_plain_rounding_would_do() -> None:
    """The monitor is asked before the updates are applied, so it cannot know."""
    tx = wd.with_metrics(wd.after_learning_rate(wd.masked_decay(1e-5)), every=1)
    params = {"kernel": jnp.ones((100, 100), jnp.bfloat16)}
    updates, state = tx.update(
        {"kernel": jnp.zeros((100, 100))}, tx.init(params), params
    )
    assert wd.metrics(state)["all"]["changed"] == 0.0
    new: Any = wd.apply_updates(params, updates, KEY)
    assert 10 < int(jnp.sum(new["kernel"] != params["kernel"])) < 45


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("key", [None, 0, [1, 2]])
def test_what_is_no_key_is_refused(key: Any) -> None:
    message = r"key takes a key of jax.random, got .*; write jax.random.fold_in\("
    with pytest.raises(TypeError, match=message):
        wd.apply_updates(jnp.ones(2), jnp.ones(2), key)


@pytest.mark.parametrize(
    "dtype",
    [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float4_e2m1fn],
    ids=lambda d: d.__name__,
)
def test_dtypes_too_small_for_weights_are_refused_by_name(dtype: Any) -> None:
    params = {"dense": {"kernel": jnp.ones(2).astype(dtype)}}
    name = jnp.dtype(dtype).name
    message = f"^the parameter 'dense/kernel' is {name}, .*; keep it in bfloat16"
    with pytest.raises(TypeError, match=message):
        wd.apply_updates(params, params, KEY)
