# SPDX-License-Identifier: Apache-2.0
"""The engine's arithmetic: in which precision, and to which dtype it is rounded."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import adam_chain, assert_same, every_decay, noise, once, run, tree

import optax_wd as wd


@every_decay
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
@pytest.mark.parametrize(
    "rate",
    [0.1, lambda n: jnp.float32(0.1) * n, lambda n: np.float64(0.1), jnp.float32(0.1)],
    ids=["number", "schedule", "float64 schedule", "array"],
)
def test_updates_keep_their_dtype(decay: Any, dtype: str, rate: Any) -> None:
    params = tree(dtype=dtype)
    tx = decay(rate, wd.everything, multiplier=np.float64(0.5))
    state = tx.init(params)
    shapes = jax.eval_shape(tx.update, tree(1, dtype), state, params)
    assert {x.dtype for x in jax.tree.leaves(shapes[0])} == {jnp.dtype(dtype)}
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_dtype_of_the_update_counts_not_that_of_the_parameter(
    dtypes: tuple[str, str],
) -> None:
    update, param = dtypes
    after = once(
        wd.masked_decay(0.5, wd.everything), jnp.ones(2, update), jnp.ones(2, param)
    )
    assert after.dtype == update and after[0] == 1.5


@pytest.mark.parametrize(
    ("update", "param", "wide"),
    [
        ("bfloat16", "bfloat16", "float32"),
        ("float16", "bfloat16", "float32"),
        ("bfloat16", "float32", "float32"),
        ("float32", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float64", "float32", "float64"),
        ("float64", "float64", "float64"),
        ("complex64", "float32", "complex64"),
        ("complex64", "complex64", "complex64"),
        ("complex64", "float64", "complex128"),
        ("complex128", "complex64", "complex128"),
    ],
)
def test_directions_get_arrays_that_are_wide_enough_for_both(
    update: str, param: str, wide: str
) -> None:
    seen = []

    def direction(u: jax.Array, p: jax.Array) -> jax.Array:
        seen.extend([u.dtype.name, p.dtype.name])
        return p

    with jax.enable_x64(True):
        tx = wd.decay_along(direction, 0.5, wd.everything)
        after = once(tx, jnp.ones(2, update), jnp.ones(2, param))
        assert after.dtype == update and after[0] == 1.5
    assert seen == [wide, wide]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_sum_is_taken_in_float32_and_rounded_once(dtype: Any) -> None:
    params, (grads,) = tree(dtype=dtype), noise(tree(dtype=dtype), 1)

    def reference(u: jax.Array, p: jax.Array) -> jax.Array:
        wide = np.asarray(u, "f4") + np.float32(0.1 * 0.3) * np.asarray(p, "f4")
        return jnp.asarray(wide.astype(dtype))

    tx = wd.masked_decay(0.1, wd.everything, multiplier=0.3)
    assert_same(once(tx, grads, params), jax.tree.map(reference, grads, params))


def test_a_shrink_that_bf16_products_would_lose_is_kept_in_the_sum() -> None:
    # 1.0 + 0.00195 * 1.0 in bf16 steps of 2**-7 is nearer to 1.0; 255/128 is not.
    u, p = jnp.asarray([1.0], jnp.bfloat16), jnp.asarray([4.0], jnp.bfloat16)
    after = once(wd.masked_decay(0.00125, wd.everything), u, p)  # 1.005
    assert after[0] == jnp.asarray(1.0078125, jnp.bfloat16)
    after = once(wd.masked_decay(0.0009, wd.everything), u, p)  # 1.0036
    assert after[0] == jnp.asarray(1.0, jnp.bfloat16)


def test_float64_leaves_are_summed_in_float64() -> None:
    with jax.enable_x64(True):
        params = {"w": jnp.asarray([1.0 / 3.0])}
        for rate in (0.1, lambda step: 0.1, jnp.asarray(0.1)):
            for decay in (wd.masked_decay, wd.cautious_weight_decay):
                after = once(decay(rate, wd.everything), {"w": jnp.ones(1)}, params)
                assert after["w"].dtype == jnp.float64
                assert float(after["w"][0]) == 1.0 + 0.1 * (1.0 / 3.0)


def test_float32_leaves_are_summed_in_float32_under_x64() -> None:
    with jax.enable_x64(True):
        params = {"w": jnp.full(2, 1.0 / 3.0, jnp.float32)}
        tx = wd.masked_decay(lambda step: jnp.asarray(0.1), wd.everything)
        after = once(tx, {"w": jnp.ones(2, jnp.float32)}, params)["w"]
        assert after.dtype == jnp.float32
        expected = np.float32(1.0) + np.float32(0.1) * np.float32(1.0 / 3.0)
        np.testing.assert_array_equal(after, np.full(2, expected))


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_leaves_decay_as_numbers(dtype: str) -> None:
    with jax.enable_x64(True):
        u, p = jnp.asarray([1 + 2j], dtype), jnp.asarray([2 - 4j], dtype)
        after = once(wd.masked_decay(0.5, wd.everything), u, p)
        assert after.dtype == dtype and after[0] == 2.0 + 0.0j


def test_the_parts_of_complex_leaves_are_gated_separately() -> None:
    u = jnp.asarray([1 + 1j, 1 + 1j, 1 + 1j, 0 + 1j], jnp.complex64)
    p = jnp.asarray([2 + 2j, 2 - 2j, -2 + 2j, -2 - 2j], jnp.complex64)
    after = once(wd.cautious_weight_decay(0.5, wd.everything), u, p)
    np.testing.assert_array_equal(after, [2 + 2j, 2 + 1j, 1 + 2j, -1 + 1j])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("learning_rate", [0.01, optax.linear_schedule(0.01, 0.0, 8)])
def test_with_an_all_true_mask_it_is_optax_adamw_exactly(
    dtype: Any, learning_rate: Any
) -> None:
    with jax.enable_x64(dtype is jnp.float64):
        params = tree(dtype=dtype)
        mine = adam_chain(wd.masked_decay(0.3, wd.everything), learning_rate)
        theirs = optax.adamw(learning_rate, weight_decay=0.3)
        gradients = noise(params, 6)
        ours, optaxs = run(mine, params, gradients), run(theirs, params, gradients)
        assert_same(ours[0], optaxs[0])
        assert ours[0][-1]["mlp"]["kernel"].dtype == dtype


def unit_in_last_place(*operands: Any) -> np.ndarray:
    """The spacing of bf16 numbers at the largest of some arrays."""
    sizes = np.maximum.reduce([np.abs(np.asarray(x, np.float64)) for x in operands])
    return 2.0 ** (np.floor(np.log2(sizes)) - 7)


@pytest.mark.parametrize("compiled", [False, True])
def test_in_bf16_it_is_within_one_unit_in_the_last_place_of_optax(
    compiled: bool,
) -> None:
    rng = np.random.default_rng(0)
    u, p = (jnp.asarray(rng.normal(size=4096), jnp.bfloat16) for _ in range(2))
    transformations = (
        wd.masked_decay(0.3, wd.everything),
        optax.add_decayed_weights(0.3),
    )
    mine, theirs = (
        (jax.jit(update) if compiled else update)(u, p)
        for update in (lambda u, p, tx=tx: once(tx, u, p) for tx in transformations)
    )
    assert mine.dtype == theirs.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(mine, float) - np.asarray(theirs, float))
    units = difference / unit_in_last_place(mine, u, 0.3 * p)
    assert 0.0 < np.max(units) <= 1.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@every_decay
def test_leafwise_code_is_clean_under_strict_promotion(decay: Any, dtype: str) -> None:
    params = tree(dtype=dtype)
    factors = {
        "attn": {"kernel": jnp.ones((4, 1, 1)), "bias": 0.0},
        "mlp": {"kernel": np.float64(0.5), "bias": np.ones((5,), np.float64)},
        "norm": {"scale": 1},
    }
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for rate in (0.1, lambda step: jnp.float32(0.1), lambda step: 0.1):
            tx = decay(rate, wd.everything, multiplier=factors)
            update = wd.after_learning_rate(tx).update
            for function in (tx.update, update):
                state = tx.init(params)
                updates, state = jax.eval_shape(function, tree(1, dtype), state, params)
                assert jax.tree.structure(updates) == jax.tree.structure(params)
