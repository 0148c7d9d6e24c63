# SPDX-License-Identifier: Apache-2.0
"""Averaged decay: the rule, the lag behind a steady drift, and what memory holds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    assert_follows,
    assert_same,
    flat,
    largest_difference,
    noise,
    once,
    run,
    tree,
)

import optax_wd as wd


def averaged(rate: Any, average_decay: float = 0.9, mask: Any = wd.everything) -> Any:
    return wd.averaged_weight_decay(rate, mask, average_decay=average_decay)


def reference(x: np.ndarray, gradients: np.ndarray, rates: np.ndarray) -> list:
    average, seen = x, []
    for g, rate in zip(gradients, rates, strict=True):
        average = 0.7 * average + 0.3 * x
        x = x - 0.1 * (g + rate * (x - average))
        seen.append(x)
    return seen


def test_it_is_the_rule_in_numpy() -> None:
    def method(*arguments: Any, **options: Any) -> Any:
        return wd.averaged_weight_decay(*arguments, average_decay=0.7, **options)

    assert_follows(method, reference)


def test_under_a_steady_push_it_moves_at_its_known_speed() -> None:
    # The average lags b / (1 - b) steps behind, so v = lr * (1 - wd * v * b / (1 - b)).
    push = [jnp.asarray(-1.0)] * 400
    seen, _ = run(wd.sgdw(0.1, averaged(1.0)), jnp.asarray(0.0), push)
    speed = 0.1 / (1.0 + 0.1 * 1.0 * 0.9 / 0.1)
    assert float(seen[-1] - seen[-2]) == pytest.approx(speed, abs=1e-5)


def test_without_a_push_it_stays_where_it_is() -> None:
    params, zeros = tree(), jax.tree.map(jnp.zeros_like, tree())
    seen, _ = run(wd.sgdw(0.1, averaged(0.5)), params, [zeros] * 3)
    assert_same(seen[-1], params)


def test_an_average_without_memory_pulls_nowhere() -> None:
    start, here, (updates,) = tree(0), tree(1), noise(tree(), 1)
    tx = averaged(0.5, average_decay=0.0)
    after, state = tx.update(updates, tx.init(start), here)
    assert largest_difference(after, updates) < 1e-6
    for x, a in zip(jax.tree.leaves(here), jax.tree.leaves(state.memory), strict=True):
        np.testing.assert_allclose(a, x, atol=1e-6)


def test_everything_inexact_is_averaged_whatever_the_mask() -> None:
    params = {**tree(0, jnp.bfloat16), "steps": jnp.asarray(3), "gone": None}
    here = {**tree(1, jnp.bfloat16), "steps": jnp.asarray(9), "gone": None}
    for mask in (wd.nothing, wd.everything):
        tx = averaged(0.5, 0.75, mask)
        _, state = tx.update(here, tx.init(params), here)
        kept = flat(state.memory)
        for name in ("mlp/kernel", "norm/scale"):
            x, y = (np.asarray(flat(p)[name], np.float32) for p in (params, here))
            np.testing.assert_allclose(kept[name], 0.75 * x + 0.25 * y, atol=1e-6)
        assert kept["steps"] == 0.0


def test_the_average_of_bfloat16_moves_by_less_than_bfloat16_can() -> None:
    tx = averaged(0.5, 0.9999)
    state = tx.init(jnp.ones(1, jnp.bfloat16))
    here = jnp.full(1, 2.0, jnp.bfloat16)
    for _ in range(10):
        _, state = tx.update(here, state, here)
    assert state.memory.dtype == jnp.float32
    np.testing.assert_allclose(state.memory, 2.0 - 0.9999**10, atol=1e-6)


def test_a_rate_of_zero_touches_neither_updates_nor_memory() -> None:
    start, here, (updates,) = tree(0), tree(1), noise(tree(), 1)
    tx = averaged(0.0)
    state = tx.init(start)
    after, later = tx.update(updates, state, here)
    assert after is updates and later.memory is state.memory


def test_nan_in_a_leaf_stays_there() -> None:
    params = {"w": jnp.ones(2), "bad": jnp.asarray([jnp.nan, 1.0])}
    after = once(averaged(0.5), params, params)
    np.testing.assert_array_equal(after["w"], [1.0, 1.0])
    np.testing.assert_array_equal(after["bad"], [np.nan, 1.0])


def test_it_continues_from_its_state_under_multi_steps() -> None:
    params, gradients = tree(), noise(tree(), 3)
    inner = wd.sgdw(0.1, averaged(0.5))
    plain, _ = run(inner, params, gradients)
    doubled = [g for g in gradients for _ in range(2)]
    seen, _ = run(optax.MultiSteps(inner, 2), params, doubled)  # type: ignore
    for x, y in zip(jax.tree.leaves(seen[-1]), jax.tree.leaves(plain[-1]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_what_is_no_average_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="average_decay is less than 1, got 1.0; for"):
        averaged(0.5, 1.0)
    with pytest.raises(ValueError, match="average_decay is finite and 0 or more"):
        averaged(0.5, -0.1)
    with pytest.raises(TypeError, match="average_decay is one number, got None"):
        averaged(0.5, None)  # type: ignore


def test_with_a_cautious_gate_only_steps_towards_the_average_are_joined() -> None:
    start = jnp.asarray([1.0, 1.0, 1.0, 1.0])
    here = jnp.asarray([3.0, 3.0, -1.0, -1.0])
    step = jnp.asarray([0.5, -0.5, 0.5, -0.5])
    tx = wd.averaged_weight_decay(
        0.25, wd.everything, average_decay=0.5, gate=wd.cautious_gate
    )
    found: Any = tx.update({"x": step}, tx.init({"x": start}), {"x": here})[0]
    # The averages are 2 and 0, the distances 1 and -1.
    np.testing.assert_allclose(found["x"], [0.75, -0.5, 0.5, -0.75])
    signs = {"x": -step}
    found = tx.update({"x": step}, tx.init({"x": start}), {"x": here}, sign_of=signs)[0]
    np.testing.assert_allclose(found["x"], [0.5, -0.25, 0.25, -0.5])


def test_the_gate_is_a_function() -> None:
    with pytest.raises(TypeError, match="gate takes a function of arrays, got 'cauti"):
        wd.averaged_weight_decay(0.1, average_decay=0.5, gate="cautious")  # type: ignore[arg-type]
