# SPDX-License-Identifier: Apache-2.0
"""Constrained weight decay: the rule of the paper's code in NumPy, and its rest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same, largest_difference, noise, once, run, small_tree

import optax_wd as wd


def chain(decay: Any, learning_rate: float = 0.1) -> optax.GradientTransformation:
    return optax.chain(optax.sgd(learning_rate), wd.after_learning_rate(decay))


def reference(
    x: Any, gradients: Any, mu: float, limit: float, after: int | None
) -> np.ndarray:
    """The l2 branch of the paper's code after SGD, one tensor, float64."""
    x = np.asarray(x, np.float64)
    kappa = limit if after is None else np.inf if after else limit * np.mean(x**2)
    pressure = 0.0
    for t, g in enumerate(gradients, start=1):
        x = x - 0.1 * np.asarray(g)
        pressure = max(0.0, pressure + mu / x.size * (np.sum(x**2) - kappa * x.size))
        x = x - 2 * x * pressure
        if t == after:
            kappa = limit * np.mean(x**2)
    return x


@pytest.mark.parametrize(
    ("mu", "limit", "after"),
    [(0.05, 0.3, None), (0.3, 0.8, 0), (0.3, 1.0, 3), (0.05, 0.7, 1)],
)
def test_sgd_with_it_is_the_rule_in_numpy(
    mu: float, limit: float, after: int | None
) -> None:
    params, gradients = small_tree(), noise(small_tree(), 8)
    decay = wd.constrained_weight_decay(mu, wd.everything, limit=limit, after=after)
    seen, _ = run(chain(decay), params, gradients)
    expected = jax.tree.map(
        lambda x, *g: reference(x, g, mu, limit, after), params, *gradients
    )
    assert largest_difference(seen[-1], expected) < 5e-6


def test_a_push_outwards_ends_at_the_bound_with_the_pull_that_balances_it() -> None:
    x = jnp.ones((2, 2))
    decay = wd.constrained_weight_decay(0.05, wd.everything, limit=1.0)
    seen, state = run(chain(decay), x, [-x] * 600)
    # mean(y^2) = 1 at rest, so y = 1 and x = 0.9: the step adds 0.1, 2 l y removes it.
    np.testing.assert_allclose(seen[-1], 0.9, rtol=1e-4)
    pressure = optax.tree.get(state, "pressure")
    assert float(np.squeeze(pressure)) == pytest.approx(0.05, rel=1e-3)


def test_inside_the_bound_nothing_decays() -> None:
    params, (updates,) = small_tree(), noise(small_tree(), 1)
    tx = wd.constrained_weight_decay(1.0, wd.everything, limit=1e3, after=None)
    assert_same(once(tx, updates, params), updates)


def test_before_the_warm_start_nothing_decays() -> None:
    params, gradients = small_tree(), noise(small_tree(), 4)
    free, _ = run(chain(optax.identity()), params, gradients)
    decay = wd.constrained_weight_decay(5.0, wd.everything, limit=0.1, after=3)
    seen, _ = run(chain(decay), params, gradients)
    for a, b in zip(seen[:3], free[:3], strict=True):
        assert largest_difference(a, b) < 1e-6
    assert largest_difference(seen[3], free[3]) > 0.1


def test_stacked_layers_have_a_multiplier_and_a_bound_each() -> None:
    layers = [small_tree(n)["mlp"] for n in range(3)]
    gradients = [noise(layer, 6, seed=n) for n, layer in enumerate(layers)]

    def stack(trees: Any) -> Any:
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    options: Any = {"limit": 0.9, "after": 2}
    seen, state = run(
        chain(
            wd.constrained_weight_decay(
                0.5, wd.named("kernel"), stacked=wd.everything, **options
            )
        ),
        stack(layers),
        [stack(step) for step in zip(*gradients, strict=True)],
    )
    for n, layer in enumerate(layers):
        decay = wd.constrained_weight_decay(0.5, wd.named("kernel"), **options)
        alone, _ = run(chain(decay), layer, gradients[n])
        found = jax.tree.map(lambda x, n=n: x[n], seen[-1])
        assert largest_difference(found, alone[-1]) < 1e-6
    assert optax.tree.get(state, "pressure")["kernel"].shape == (3, 1, 1)


def test_a_factor_is_one_on_the_rate() -> None:
    params, gradients = small_tree(), noise(small_tree(), 5)
    twice = wd.constrained_weight_decay(0.2, limit=0.5, multiplier=2.0)
    plain = wd.constrained_weight_decay(0.4, limit=0.5)
    (seen, _), (expected, _) = (
        run(chain(decay), params, gradients) for decay in (twice, plain)
    )
    assert largest_difference(seen[-1], expected[-1]) < 1e-6


def test_the_rate_may_be_a_schedule() -> None:
    params, gradients = small_tree(), noise(small_tree(), 3)
    decay = wd.constrained_weight_decay(lambda t: jnp.where(t == 2, 0.5, 0.0))
    late, state = run(chain(decay), params, gradients)
    free, _ = run(chain(optax.identity()), params, gradients)
    assert largest_difference(late[1], free[1]) < 1e-6
    assert largest_difference(late[2], free[2]) > 1e-3
    assert optax.tree.get(state, "constrained_count") == 3


def test_bounds_are_known_of_masked_leaves_too() -> None:
    params, gradients = small_tree(), noise(small_tree(), 3)
    states = [
        run(chain(wd.constrained_weight_decay(1e-9, mask, after=2)), params, gradients)
        for mask in (wd.everything, wd.nothing)
    ]
    a, b = (optax.tree.get(state, "squares") for _, state in states)
    assert largest_difference(a, b) < 1e-6


def test_empty_tensors_and_missing_updates_pass() -> None:
    params = {
        "empty": jnp.zeros((0, 3)),
        "kernel": jnp.ones((2, 2)),
        "int": jnp.asarray(1),
    }
    updates = {"empty": params["empty"], "kernel": None, "int": params["int"]}
    tx = wd.constrained_weight_decay(1.0, wd.everything, after=1)
    after = once(tx, updates, params)
    assert after["kernel"] is None and after["int"] is updates["int"]
    assert after["empty"].shape == (0, 3)


def test_it_compiles_once_and_keeps_bfloat16() -> None:
    params = small_tree(dtype=jnp.bfloat16)
    tx = chain(wd.constrained_weight_decay(1.0, limit=0.5, after=2))
    traces = []

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traces.append(1)
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    assert len(traces) == 1
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
    squares = optax.tree.get(state, "squares")
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(squares))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"limit": -1.0}, ValueError, "limit is finite and 0 or more, got -1.0"),
        ({"limit": None}, TypeError, "limit is one number, got None"),
        ({"after": -1}, ValueError, "after is 0 or more steps, got -1"),
        (
            {"after": 0.5},
            TypeError,
            "after takes a number of steps such as 1000, got 0",
        ),
        ({"after": True}, TypeError, "after takes a number of steps"),
        ({"stacked": "x"}, TypeError, "stacked takes a rule"),
    ],
)
def test_wrong_arguments_are_refused(options: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        wd.constrained_weight_decay(1.0, **options)


CHAINS: dict[str, Any] = {"adamw": wd.adamw, "sgdw": wd.sgdw, "lion": wd.lion}


@pytest.mark.parametrize("name", CHAINS)
def test_a_ready_chain_takes_it_last_and_says_so(name: str) -> None:
    params, gradients = small_tree(), noise(small_tree(), 3)
    decay = wd.constrained_weight_decay(0.3, limit=0.5)
    wrong = CHAINS[name](0.1, decay)
    message = (
        r"^constrained_weight_decay stands before the learning rate, where updates are "
        r"not final; pass the ready chain after_learning_rate\(constrained_weight_decay"
        r"\(\.\.\.\)\), which it places last$"
    )
    with pytest.raises(ValueError, match=message):
        once(wrong, gradients[0], params)
    last = wd.after_learning_rate(decay)
    ready, _ = run(CHAINS[name](0.1, last), params, gradients)
    base = CHAINS[name](0.1, optax.identity())
    written, _ = run(optax.chain(base, last), params, gradients)
    free, _ = run(base, params, gradients)
    assert largest_difference(ready[-1], written[-1]) < 1e-6
    assert largest_difference(ready[-1], free[-1]) > 1e-2


def test_the_audit_does_not_take_it_for_plain_decay() -> None:
    decay = wd.constrained_weight_decay(0.25, wd.named("kernel"), limit=0.0)
    found = {row.path: row.kind for row in wd.audit(chain(decay), small_tree()).rows}
    assert found["mlp/kernel"] == "unknown" and found["mlp/bias"] == "none"
