# SPDX-License-Identifier: Apache-2.0
"""Closed forms: where decay comes to rest, computed on paper and found by training.

Fixed points on quadratics, boxes, and the size of weights under pure noise, each for
several curvatures or amounts at once: an array of factors gives every row its own
decay. One amount of each, and cautious decay, are in test_cautious.py.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_wd as wd


def plain(rate: float, rows: Any = None) -> optax.GradientTransformation:
    """Decay of everything, row i by `rate * rows[i]`."""
    multiplier = None if rows is None else jnp.asarray(rows)[:, None]
    return wd.masked_decay(rate, wd.everything, multiplier=multiplier)


def cautious(rate: float, rows: Any = None) -> optax.GradientTransformation:
    """The same, where the step agrees."""
    multiplier = None if rows is None else jnp.asarray(rows)[:, None]
    return wd.cautious_weight_decay(rate, wd.everything, multiplier=multiplier)


def descend(
    tx: optax.GradientTransformation,
    gradient: Callable[[jax.Array, jax.Array], jax.Array],
    start: Any,
    steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The last parameter, and the mean square of each row over the last quarter."""

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        x, state = carry
        updates, state = tx.update(gradient(x, key), state, x)
        x = x + jnp.asarray(updates)
        return (x, state), jnp.mean(x**2, axis=-1)

    @jax.jit
    def loop(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.key(7), steps)
        (x, _), squares = jax.lax.scan(step, (x, tx.init(x)), keys)
        return x, jnp.mean(squares[-steps // 4 :], axis=0)

    x, square = loop(jnp.asarray(start, jnp.float32))
    return np.asarray(x), np.asarray(square)


# ------------------------------------------------------------------- fixed points

RATE, C, MU = 0.02, 2.0, 0.9
LAM = np.asarray([0.1, 0.4, 2.0])  # one row each
H = np.asarray([0.25, 1.0, 3.0])  # one column each: h (x - c)^2 / 2


def quadratic(x: jax.Array, key: jax.Array) -> jax.Array:
    del key
    return jnp.asarray(H, jnp.float32) * (x - C)


def resting(lam: Any) -> np.ndarray:
    """Where `h (x - c) + lam x` is zero, for every amount and curvature."""
    return H * C / (H + np.asarray(lam)[:, None])


QUADRATICS: dict[str, tuple[Any, np.ndarray]] = {
    "sgd": (wd.sgdw(RATE, plain(1.0, LAM)), resting(LAM)),
    # Momentum makes the step 1 / (1 - mu) times as long, and not the decay.
    "heavy ball, decoupled": (
        wd.sgdw(RATE, plain(1.0, LAM), momentum=MU),
        resting((1 - MU) * LAM),
    ),
    "heavy ball, corrected": (
        wd.sgdw(RATE, plain(1.0 / (1 - MU), LAM), momentum=MU),
        resting(LAM),
    ),
    "heavy ball, L2": (
        optax.chain(plain(1.0, LAM), optax.sgd(RATE, MU)),
        resting(LAM),
    ),
    "heavy ball, after the learning rate": (
        optax.chain(optax.sgd(RATE, MU), wd.after_learning_rate(plain(RATE, LAM))),
        resting((1 - MU) * LAM),
    ),
}


@pytest.mark.parametrize("name", QUADRATICS)
def test_plain_decay_rests_where_it_balances_the_gradient(name: str) -> None:
    tx, expected = QUADRATICS[name]
    x, _ = descend(tx, quadratic, np.zeros((3, 3)), 3000)
    np.testing.assert_allclose(x, expected, atol=2e-5)


def test_l2_inside_adam_rests_where_it_does_without_adam() -> None:
    tx = optax.chain(plain(1.0, LAM), optax.adam(0.003, b2=0.9))
    x, _ = descend(tx, quadratic, np.zeros((3, 3)), 3000)
    np.testing.assert_allclose(x, resting(LAM), atol=5e-3)


@pytest.mark.parametrize("momentum", [0.0, MU])
def test_cautious_decay_of_any_amount_rests_in_the_minimum(momentum: float) -> None:
    tx = wd.sgdw(0.002, cautious(1.0, LAM), momentum=momentum)
    x, _ = descend(tx, quadratic, np.zeros((3, 3)), 20_000)
    np.testing.assert_allclose(x, np.full((3, 3), C), rtol=0.01)  # chatter


# -------------------------------------------------------------------------- boxes

READY: dict[str, Callable[..., Any]] = {
    "adamw": lambda rate, decay: wd.adamw(rate, decay, b2=0.99),
    "lion": wd.lion,
}
both_ready = pytest.mark.parametrize("ready", READY.values(), ids=READY)


@both_ready
def test_the_minimum_is_reached_if_it_is_in_the_box_of_its_row(ready: Any) -> None:
    x, _ = descend(ready(0.002, plain(1.0, LAM)), quadratic, np.ones((3, 3)), 6000)
    box = np.minimum(C, 1.0 / LAM)[:, None] * np.ones(3)
    np.testing.assert_allclose(x, box, atol=0.02)  # ten steps of chatter


@both_ready
def test_cautious_decay_has_no_box(ready: Any) -> None:
    x, _ = descend(ready(0.002, cautious(1.0, LAM)), quadratic, np.ones((3, 3)), 6000)
    np.testing.assert_allclose(x, np.full((3, 3), C), atol=0.02)


def push(x: jax.Array, key: jax.Array) -> jax.Array:
    """A gradient that pushes upwards for ever."""
    del key
    return jnp.full_like(x, -1.0)


def test_lion_under_a_push_goes_to_its_box_as_the_formula_says() -> None:
    start, steps, rate = np.asarray([[-3.0, 0.0, 3.0]] * 3), 300, 0.01
    x, _ = descend(wd.lion(rate, plain(1.0, LAM)), push, start, steps)
    left = (1 - rate * LAM[:, None]) ** steps
    np.testing.assert_allclose(x, left * start + (1 - left) / LAM[:, None], rtol=1e-5)
    free, _ = descend(wd.lion(rate, cautious(1.0, LAM)), push, start[:, 1:], steps)
    np.testing.assert_allclose(free, start[:, 1:] + rate * steps, rtol=1e-5)


def test_the_box_behind_the_learning_rate_is_as_wide_as_the_learning_rate() -> None:
    shrink, rates = 0.01, (0.002, 0.01)
    for rate in rates:
        tx = wd.lion(rate, wd.after_learning_rate(plain(shrink)))
        x, _ = descend(tx, push, np.zeros((1, 1)), 2000)
        assert x[0, 0] == pytest.approx(rate / shrink, rel=1e-5)


# -------------------------------------------------------------------- pure noise


def noise(x: jax.Array, key: jax.Array) -> jax.Array:
    return jax.random.normal(key, x.shape)


def size(eta: float, lam: Any, correlation: Any) -> np.ndarray:
    """The RMS of `x <- (1 - a) x - eta u` for a stationary u, with `a = eta lam`.

    Its square is `eta^2 / (1 - (1-a)^2) sum_k (1-a)^|k| E[u_0 u_k]`, over all k. For
    small a that is `eta S / (2 lam)`, with S the sum of all correlations.
    """
    keep = 1 - eta * np.asarray(lam)[..., None]
    k = np.arange(len(correlation))
    total = 2 * np.sum(keep**k * correlation, axis=-1) - correlation[0]
    return np.sqrt(eta**2 * total / (1 - keep[..., 0] ** 2))


def of_momentum(mu: float, terms: int = 3000) -> np.ndarray:
    """E[m_0 m_k] of `m <- mu m + g`, for white g."""
    return mu ** np.arange(terms) / (1 - mu**2)


def of_lion(b1: float, b2: float, terms: int = 3000) -> np.ndarray:
    """E[u_0 u_k] of Lion's signs: 2/pi arcsin of the correlation before the sign."""
    # b1 m + (1-b1) g, m an average by b2, is white noise filtered by these weights.
    tail = b1 * (1 - b2) * b2 ** np.arange(terms)
    weights = np.concatenate([[1 - b1], tail])
    first = weights[0] ** 2 + np.sum(tail**2)
    # A lag of k multiplies the tail by b2^k, but for the newest gradient.
    later = weights[0] * tail + np.sum(tail**2) * b2 ** np.arange(1, terms + 1)
    rho = np.concatenate([[1.0], later / first])
    return 2 / math.pi * np.arcsin(rho)


def test_the_noise_of_lions_signs_adds_up_to_its_known_sum() -> None:
    correlation = of_lion(0.9, 0.99)
    assert 2 * np.sum(correlation) - 1 == pytest.approx(45.9, abs=0.05)
    assert size(1e-6, 1e-3, correlation) == pytest.approx(
        math.sqrt(1e-6 * 45.9 / (2 * 1e-3)), rel=1e-3
    )


AMOUNTS = np.asarray([0.5, 1.0, 2.0])
NOISES: dict[str, tuple[Callable[..., Any], np.ndarray]] = {
    "sgd": (wd.sgdw, of_momentum(0.0)),
    "heavy ball": (
        lambda rate, decay: wd.sgdw(rate, decay, momentum=0.9),
        of_momentum(0.9),
    ),
    "lion": (wd.lion, of_lion(0.9, 0.99)),
    "lion, other betas": (
        lambda rate, decay: wd.lion(rate, decay, b1=0.95, b2=0.98),
        of_lion(0.95, 0.98),
    ),
}


@pytest.mark.parametrize("name", NOISES)
def test_under_noise_weights_have_their_known_size(name: str) -> None:
    ready, correlation = NOISES[name]
    tx = ready(0.01, plain(1.0, AMOUNTS))
    _, square = descend(tx, noise, np.zeros((3, 10_000)), 1000)
    # 10 000 coordinates alone tell a root mean square to 0.7 %.
    expected = size(0.01, AMOUNTS, correlation)
    np.testing.assert_allclose(np.sqrt(square), expected, rtol=0.02)


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_under_noise_adamw_has_its_known_size_at_every_amount(b1: float) -> None:
    tx = wd.adamw(0.01, plain(0.2, AMOUNTS), b1=b1)
    _, square = descend(tx, noise, np.zeros((3, 10_000)), 3000)
    correlation = (1 - b1) ** 2 * of_momentum(b1)
    expected = size(0.01, 0.2 * AMOUNTS, correlation)
    np.testing.assert_allclose(np.sqrt(square), expected, rtol=0.015)
    # Whatever b1 is, that is the root of eta / (2 lam) for small shrinks.
    simple = np.sqrt(0.01 / (2 * 0.2 * AMOUNTS))
    np.testing.assert_allclose(expected, simple, rtol=0.02)
    assert size(1e-5, 1.0, correlation) == pytest.approx(math.sqrt(5e-6), rel=1e-3)


def test_under_noise_cautious_sgd_has_twice_the_mean_square_and_a_little_more() -> None:
    # Half of the coordinates decay, but they are those that move inwards. With Gaussian
    # steps and weights: r = 2 + 4/pi sqrt(r a / 2), for a shrink of a.
    shrink, ratio = 0.01 * AMOUNTS, np.full(3, 2.0)
    for _ in range(20):
        ratio = 2 + 4 / math.pi * np.sqrt(ratio * shrink / 2)
    tx = wd.sgdw(0.01, cautious(1.0, AMOUNTS))
    _, square = descend(tx, noise, np.zeros((3, 20_000)), 1500)
    found = square / size(0.01, AMOUNTS, of_momentum(0.0)) ** 2
    np.testing.assert_allclose(found, ratio, rtol=0.03)
    assert np.all(np.diff(ratio) > 0.03)


# ------------------------------------------------------------------ low precision


@pytest.mark.parametrize("shrink", [1e-5, 1e-4, 1e-3])
def test_bfloat16_weights_of_one_do_not_shrink(shrink: float) -> None:
    tx = wd.after_learning_rate(wd.masked_decay(shrink, wd.everything))

    def after(dtype: Any) -> float:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            x, state = carry
            updates, state = tx.update(jnp.zeros_like(x), state, x)
            return (optax.apply_updates(x, updates), state), None

        start = jnp.ones((2, 2), dtype)
        (x, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=1000)
        return float(x[0, 0])

    assert after(jnp.float32) == pytest.approx((1 - shrink) ** 1000, abs=2e-4)
    assert after(jnp.bfloat16) == 1.0


# -------------------------------------------------- weights whose size does not matter


@pytest.mark.parametrize(("eta", "lam"), [(0.1, 0.05), (0.05, 0.2)])
def test_scale_invariant_weights_under_sgd_have_their_known_norm_and_angle(
    eta: float, lam: float
) -> None:
    size = 2.0  # of the gradient on the unit sphere; at norm n it is 1 / n of that

    def step(carry: Any, key: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        x, state = carry
        across = jax.random.normal(key, x.shape)
        across -= x * jnp.vdot(across, x) / jnp.vdot(x, x)
        g = size * across / (jnp.linalg.norm(across) * jnp.linalg.norm(x))
        updates, state = tx.update(g, state, x)
        after = x + jnp.asarray(updates)
        norms = jnp.linalg.norm(x), jnp.linalg.norm(after)
        chord = jnp.linalg.norm(after / norms[1] - x / norms[0])
        return (after, state), (norms[1], 2.0 * jnp.arcsin(chord / 2.0))

    tx = wd.sgdw(eta, plain(lam))
    start = jnp.ones(100)
    keys = jax.random.split(jax.random.key(3), 3000)
    _, (norms, angles) = jax.jit(
        lambda keys: jax.lax.scan(step, (start, tx.init(start)), keys)
    )(keys)
    expected = (eta * size**2 / (2 * lam)) ** 0.25
    assert float(norms[-1]) == pytest.approx(expected, rel=0.01)
    assert float(angles[-1]) == pytest.approx(math.sqrt(2 * eta * lam), rel=0.01)
