# SPDX-License-Identifier: Apache-2.0
"""Cautious weight decay: Algorithm 1 in NumPy, and what it does in closed form.

The figures are fixed points and equilibria of small problems that one can solve on
paper, for plain and for cautious decay.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same, largest_difference, noise, once, run, tree

import optax_wd as wd


def plain(rate: Any) -> optax.GradientTransformation:
    return wd.masked_decay(rate, wd.everything)


def cautious(rate: Any) -> optax.GradientTransformation:
    return wd.cautious_weight_decay(rate, wd.everything)


# Algorithm 1


def reference(
    params: np.ndarray, gradients: np.ndarray, rate: float, weight_decay: float
) -> list[np.ndarray]:
    """Algorithm 1 of arXiv:2510.12402 with Adam, in float64, one leaf."""
    x, m, v, seen = params.astype(float), 0.0, 0.0, []
    b1, b2, eps = 0.9, 0.95, 1e-8
    for t, g in enumerate(gradients.astype(float), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        x = x - rate * (u + weight_decay * (u * x >= 0) * x)
        seen.append(x)
    return seen


@pytest.mark.parametrize("ready", [False, True])
def test_adam_with_it_is_algorithm_1_in_numpy(ready: bool) -> None:
    params, gradients = tree(), noise(tree(), 8)
    tx = wd.adamw(0.02, cautious(0.5), b2=0.95)
    if not ready:
        tx = optax.chain(
            optax.scale_by_adam(b2=0.95),
            cautious(0.5),
            optax.scale_by_learning_rate(0.02),
        )
    seen, _ = run(tx, params, gradients)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *gradients)
    expected = jax.tree.map(
        lambda p, g: reference(np.asarray(p), g, 0.02, 0.5), params, stacked
    )
    for t, found in enumerate(seen):
        at_t = jax.tree.map(lambda _, leaf, t=t: leaf[t], params, expected)
        assert largest_difference(found, at_t) < 2e-6


def test_a_step_by_hand() -> None:
    params = {
        "matrix": jnp.asarray([[1.0, -2.0], [4.0, -8.0]]),
        "vector": jnp.asarray([16.0, -32.0]),
    }
    updates = {
        "matrix": jnp.asarray([[0.5, 0.5], [-0.5, -0.5]]),
        "vector": jnp.asarray([1.0, 1.0]),
    }
    tx = optax.chain(
        wd.cautious_weight_decay(0.25, wd.named("matrix")),
        optax.scale_by_learning_rate(0.5),
    )
    after = once(tx, updates, params)
    # -0.5 * (u + 0.25 x) where u and x agree, -0.5 u elsewhere
    np.testing.assert_array_equal(after["matrix"], [[-0.375, -0.25], [0.25, 1.25]])
    np.testing.assert_array_equal(after["vector"], [-0.5, -0.5])


def test_without_a_step_everything_decays() -> None:
    params = {"w": jnp.asarray([[3.0, -3.0, 0.0]])}
    for zero in (0.0, -0.0):
        zeros = {"w": jnp.full((1, 3), zero)}
        after = once(cautious(0.5), zeros, params)
        np.testing.assert_array_equal(after["w"], [[1.5, -1.5, 0.0]])


def test_a_weight_of_zero_stays_at_its_step() -> None:
    u = jnp.asarray([1.0, -1.0, 0.0])
    np.testing.assert_array_equal(once(cautious(0.5), u, jnp.zeros(3)), u)


def test_nan_in_the_step_stays_nan_and_nan_in_the_weight_does_not_spread() -> None:
    u, x = jnp.asarray([jnp.nan, 1.0, 1.0]), jnp.asarray([1.0, jnp.nan, 1.0])
    np.testing.assert_array_equal(once(cautious(0.5), u, x), [jnp.nan, 1.0, 1.5])


def test_infinite_weights_and_steps_are_numbers_with_a_sign() -> None:
    u = jnp.asarray([jnp.inf, -jnp.inf, 1.0, -1.0])
    x = jnp.asarray([2.0, 2.0, jnp.inf, jnp.inf])
    after = once(cautious(0.5), u, x)
    np.testing.assert_array_equal(after, [jnp.inf, -jnp.inf, jnp.inf, -1.0])


def test_it_and_the_opposite_gate_make_full_decay() -> None:
    params, (updates,) = tree(), noise(tree(), 1)

    def closed(s: jax.Array, d: jax.Array) -> jax.Array:
        return ~wd.cautious_gate(s, d)

    opposite = wd.decay_along(lambda u, p: p, 0.3, wd.everything, gate=closed)
    # In parallel, not in a chain, where the second would see the first's sum.
    open_, shut, full = (
        once(tx, updates, params) for tx in (cautious(0.3), opposite, plain(0.3))
    )
    both = jax.tree.map(lambda u, a, b: jnp.where(a != u, a, b), updates, open_, shut)
    assert_same(both, full)
    share = [float(jnp.mean(a != u)) for a, u in _leaves(open_, updates)]
    assert 0.0 < np.mean(share) < 1.0


def _leaves(*trees: Any) -> list[Any]:
    return list(zip(*map(jax.tree.leaves, trees), strict=True))


def test_it_is_decay_along_with_its_gate() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    own = wd.decay_along(lambda u, p: p, 0.3, wd.standard, gate=wd.cautious_gate)
    assert_same(
        once(wd.cautious_weight_decay(0.3), updates, params),
        once(own, updates, params),
    )


# Closed forms


def descend(
    tx: optax.GradientTransformation,
    gradient: Callable[[jax.Array, jax.Array], jax.Array],
    start: Any,
    steps: int,
) -> np.ndarray:
    """The parameter after each step of `gradient(x, key)`, as one compiled loop."""

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        x, state = carry
        updates, state = tx.update(gradient(x, key), state, x)
        x = x + jnp.asarray(updates)
        return (x, state), x

    @jax.jit
    def loop(x: jax.Array, keys: jax.Array) -> jax.Array:
        return jax.lax.scan(step, (x, tx.init(x)), keys)[1]

    keys = jax.random.split(jax.random.key(0), steps)
    return np.asarray(loop(jnp.asarray(start), keys))


def quadratic(x: jax.Array, key: jax.Array) -> jax.Array:
    """The gradient of (x - 2)^2 / 2."""
    del key
    return x - 2.0


def after_sgd(
    decay: Any, momentum: float = 0.0, rate: float = 0.1
) -> optax.GradientTransformation:
    return wd.sgdw(rate, decay, momentum=momentum)


L2 = optax.chain(plain(0.5), optax.trace(0.9), optax.scale_by_learning_rate(0.1))


@pytest.mark.parametrize(
    ("tx", "fixed_point"),
    [
        (after_sgd(plain(0.5)), 1.0 * 2.0 / (1.0 + 0.5)),
        (after_sgd(plain(0.5), 0.9), 10.0 * 2.0 / (10.0 + 0.5)),
        (after_sgd(plain(0.5 / (1 - 0.9)), 0.9), 2.0 / 1.5),  # momentum-corrected
        (L2, 2.0 / 1.5),
    ],
    ids=["sgd", "heavy ball, decoupled", "heavy ball, corrected", "heavy ball, L2"],
)
def test_plain_decay_has_its_fixed_point_on_a_quadratic(
    tx: Any, fixed_point: float
) -> None:
    assert descend(tx, quadratic, 0.0, 1000)[-1] == pytest.approx(fixed_point, abs=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_cautious_decay_leaves_the_minimum_of_a_quadratic_where_it_is(
    momentum: float,
) -> None:
    seen = descend(after_sgd(cautious(0.5), momentum, 0.01), quadratic, 0.0, 3000)
    assert np.max(np.abs(seen[-500:] - 2.0)) < 0.01 * 2.0


READY: dict[str, Callable[..., Any]] = {
    "adamw": functools.partial(wd.adamw, b2=0.99),
    "lion": wd.lion,
}
both_ready = pytest.mark.parametrize("ready", READY.values(), ids=READY)


@both_ready
def test_plain_decay_stops_at_the_box_and_cautious_decay_does_not(ready: Any) -> None:
    ends = {
        name: descend(ready(0.01, decay), quadratic, 0.5, 3000)[-500:]
        for name, decay in {"plain": plain(1.0), "cautious": cautious(1.0)}.items()
    }
    assert np.max(np.abs(ends["plain"] - 1.0)) < 1e-4
    assert np.max(np.abs(ends["cautious"] - 2.0)) < 0.03  # three steps of chatter


def constant(x: jax.Array, key: jax.Array) -> jax.Array:
    """A gradient that pushes upwards for ever."""
    del key
    return jnp.full_like(x, -1.0)


@both_ready
def test_the_box_holds_under_a_constant_push_and_is_gone_when_cautious(
    ready: Any,
) -> None:
    full = descend(ready(0.01, plain(1.0)), constant, 3.0, 2000)
    gated = descend(ready(0.01, cautious(1.0)), constant, 3.0, 2000)
    assert full[-1] == pytest.approx(1.0, abs=1e-4)
    assert gated[-1] == pytest.approx(3.0 + 0.01 * 2000, abs=2e-3)


@pytest.mark.parametrize("weight_decay", [0.5, 2.0])
def test_lion_never_leaves_its_bound(weight_decay: float) -> None:
    def gradient(x: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.normal(key, x.shape) - 0.5

    start, eta, steps = jnp.asarray([3.0, -1.0, 0.1]), 0.01, 500
    seen = descend(wd.lion(eta, plain(weight_decay)), gradient, start, steps)
    left = (1.0 - eta * weight_decay) ** np.arange(1, steps + 1)[:, None]
    box = 1.0 / weight_decay
    bound = np.maximum(box, left * np.abs(start) + (1.0 - left) * box)
    assert np.all(np.abs(seen) <= bound * (1.0 + 1e-5))
    # Under a push in one direction the bound is reached.
    pushed = descend(wd.lion(eta, plain(weight_decay)), constant, start, steps)
    exact = left * np.asarray(start) + (1.0 - left) * box
    np.testing.assert_allclose(pushed, exact, rtol=2e-5, atol=2e-5)


@functools.cache
def equilibrium(kind: str, b1: float = 0.9) -> tuple[float, float]:
    """Mean square of weights under pure noise, and the share of them that decays."""
    decay = {"plain": plain, "cautious": cautious}[kind](0.1)
    tx = wd.adamw(1e-2, decay, b1=b1)
    scale = optax.scale_by_adam(b1)
    start = jnp.zeros(2000)

    def step(carry: Any, key: jax.Array) -> tuple[Any, Any]:
        x, state, adam = carry
        g = jax.random.normal(key, x.shape)
        updates, state = tx.update(g, state, x)
        direction, adam = scale.update(g, adam)
        facts = jnp.mean(x**2), jnp.mean(jnp.asarray(direction) * x >= 0)
        return (x + jnp.asarray(updates), state, adam), facts

    @jax.jit
    def loop(keys: jax.Array) -> Any:
        carry = start, tx.init(start), scale.init(start)
        return jax.lax.scan(step, carry, keys)[1]

    squares, share = loop(jax.random.split(jax.random.key(1), 8000))
    return float(np.mean(squares[3000:])), float(np.mean(share[3000:]))


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_under_noise_adamw_has_its_known_size(b1: float) -> None:
    square, _ = equilibrium("plain", b1)
    expected = math.sqrt(1e-2 / (2 * 0.1))
    assert math.sqrt(square) == pytest.approx(expected, rel=0.015)


def test_under_noise_cautious_weights_are_larger_and_half_of_them_decay() -> None:
    square, share = equilibrium("cautious")
    assert 2.0 <= square / (1e-2 / (2 * 0.1)) <= 2.45
    assert 0.47 <= share <= 0.50


def test_under_noise_lion_has_its_known_size() -> None:
    def gradient(x: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.normal(key, x.shape)

    tx = wd.lion(1e-3, plain(1.0))
    seen = descend(tx, gradient, jnp.zeros(300), 6000)[3000::10]
    expected = math.sqrt(1e-3 * 45.9 / (2 * 1.0))
    assert math.sqrt(np.mean(seen**2)) == pytest.approx(expected, rel=0.05)


def toy(point: jax.Array) -> jax.Array:
    """The loss of the paper's first figure: zero on a circle around (3, 3)."""
    return (jnp.sum((point - 3.0) ** 2) - 1.0) ** 2


@pytest.mark.parametrize(
    ("decay", "end", "loss"),
    [
        # On the circle where it is met, at the corner of the box with half-width 2,
        # and on the point of the circle next to the origin, 3 - sqrt(1/2).
        (optax.identity(), (4.000, 3.007), 0.0),
        (plain(0.5), (2.001, 2.001), 0.99),
        (cautious(0.5), (2.298, 2.298), 2e-4),
    ],
    ids=["none", "plain", "cautious"],
)
def test_the_toy_of_the_paper_ends_where_it_should(
    decay: Any, end: tuple[float, float], loss: float
) -> None:
    gradient = jax.grad(toy)
    tx = wd.adamw(1e-2, decay, b2=0.99)
    seen = descend(tx, lambda x, key: gradient(x), [4.5, 2.8], 10000)
    np.testing.assert_allclose(seen[-1], end, atol=0.01)
    assert float(toy(jnp.asarray(seen[-1]))) == pytest.approx(loss, abs=0.01)
