# SPDX-License-Identifier: Apache-2.0
"""Selective weight decay: the rule of SPD in NumPy, and when it does not act."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    assert_same,
    largest_difference,
    noise,
    small_tree,
    tree,
    with_grad,
)

import optax_wd as wd


def chain(decay: Any) -> optax.GradientTransformation:
    return optax.chain(optax.sgd(0.1, momentum=0.9), wd.after_learning_rate(decay))


def train(tx: Any, params: Any, gradients: Any) -> list[Any]:
    """Parameters after each step, with the gradient as extra argument."""

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, grad=grads)
        return optax.apply_updates(params, updates), state

    state, seen = tx.init(params), []
    for grads in gradients:
        params, state = step(params, state, grads)
        seen.append(params)
    return seen


def reference(x0: Any, gradients: Any, rate: float) -> tuple[np.ndarray, list[float]]:
    """SPD after SGD with momentum, one tensor, float64; all ratios that were used."""
    x0 = x = np.asarray(x0, np.float64)
    m, used = 0.0, []
    for g in gradients:
        g = np.asarray(g, np.float64)
        m = g + 0.9 * m
        new = x - 0.1 * m
        if -np.sum(g * (x - x0)) < 0.0:
            far, before = np.linalg.norm(new - x0), np.linalg.norm(x - x0)
            used.append(float(np.clip((far - before) / far, 0.0, 1.0)))
            new = new - rate * used[-1] * (new - x0)
        x = new
    return x, used


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_momentum_with_it_is_the_rule_in_numpy(rate: float) -> None:
    params, gradients = small_tree(), noise(small_tree(), 12)
    seen = train(
        chain(wd.selective_weight_decay(rate, wd.everything)), params, gradients
    )
    found = jax.tree.map(lambda x, *g: reference(x, g, rate), params, *gradients)
    expected = jax.tree.map(lambda pair: pair[0], found, is_leaf=is_pair)
    assert largest_difference(seen[-1], expected) < 2e-6
    used = [len(ratios) for _, ratios in jax.tree.leaves(found, is_leaf=is_pair)]
    assert 0 < min(used) and max(used) < len(gradients)  # both sides of the condition


def is_pair(x: Any) -> bool:
    return isinstance(x, tuple)


def one_step(u: Any, grad: Any, x: Any, rate: float = 1.0) -> np.ndarray:
    """The result of a step of `-u` at `x`, with a start at 0."""
    tx = wd.after_learning_rate(wd.selective_weight_decay(rate, wd.everything))
    state = tx.init(jnp.zeros_like(x))
    updates: Any = tx.update(-u, state, x, grad=grad)[0]
    return np.asarray(x + updates)


X = jnp.asarray([3.0, 4.0])


def test_with_rate_1_an_overshoot_ends_at_the_old_distance() -> None:
    landed = one_step(-X, X, X)  # 10 from the start, whereas 5 before
    np.testing.assert_allclose(landed, X, rtol=1e-6)
    np.testing.assert_allclose(one_step(-X, X, X, 0.5), 1.5 * X, rtol=1e-6)


@pytest.mark.parametrize(
    ("u", "grad"),
    [(-X, -X), (-X, jnp.asarray([4.0, -3.0])), (0.5 * X, X), (0.0 * X, X)],
    ids=["gradient outwards", "gradient across", "step inwards", "no step"],
)
def test_other_steps_are_left_alone(u: Any, grad: Any) -> None:
    np.testing.assert_array_equal(one_step(u, grad, X), np.asarray(X - u))


def test_at_the_start_and_in_empty_tensors_nothing_is_nan() -> None:
    zero = jnp.zeros((2, 2))
    np.testing.assert_array_equal(one_step(zero, zero, zero), zero)
    assert one_step(jnp.zeros((0, 2)), jnp.zeros((0, 2)), jnp.zeros((0, 2))).size == 0


def test_it_decides_for_each_stacked_layer() -> None:
    layers = [small_tree(n)["mlp"] for n in range(3)]
    gradients = [noise(layer, 8, seed=n) for n, layer in enumerate(layers)]

    def stack(trees: Any) -> Any:
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    kernels = wd.named("kernel")
    seen = train(
        chain(wd.selective_weight_decay(1.0, kernels, stacked=wd.everything)),
        stack(layers),
        [stack(step) for step in zip(*gradients, strict=True)],
    )
    for n, layer in enumerate(layers):
        alone = train(
            chain(wd.selective_weight_decay(1.0, kernels)), layer, gradients[n]
        )
        found = jax.tree.map(lambda x, n=n: x[n], seen[-1])
        assert largest_difference(found, alone[-1]) < 1e-6


def test_mask_multiplier_and_schedule_act_as_everywhere() -> None:
    params, gradients = small_tree(), noise(small_tree(), 10)
    plain = train(chain(optax.identity()), params, gradients)[-1]
    half = train(chain(wd.selective_weight_decay(0.5)), params, gradients)[-1]
    for decay in (
        wd.selective_weight_decay(0.25, multiplier=2.0),
        wd.selective_weight_decay(lambda t: 0.5 + 0.0 * t),
    ):
        assert largest_difference(train(chain(decay), params, gradients)[-1], half) < (
            1e-6
        )
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), half, plain)
    assert moved == wd.standard(params)


def test_nan_in_a_masked_leaf_stays_there() -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    params["norm"]["scale"] = jnp.full(4, jnp.nan)
    after = train(chain(wd.selective_weight_decay(1.0)), params, [grads])[-1]
    del after["norm"]
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(after))


def test_memory_is_a_copy_and_bfloat16_stays() -> None:
    params = tree(dtype=jnp.bfloat16)
    tx = wd.selective_weight_decay(1.0)
    state: Any = tx.init(params)
    assert_same(state.memory, params)
    assert state.memory["mlp"]["kernel"] is not params["mlp"]["kernel"]
    after = train(chain(tx), params, noise(params, 2))[-1]
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(after))


def test_without_the_gradient_it_says_how_to_pass_it() -> None:
    params = tree()
    tx = chain(wd.selective_weight_decay(1.0))
    text = r"got none; call tx\.update\(grads, state, params, grad=grads\)"
    with pytest.raises(ValueError, match=text):
        tx.update(params, tx.init(params), params)


CHAINS: dict[str, Any] = {"adamw": wd.adamw, "sgdw": wd.sgdw, "lion": wd.lion}


@pytest.mark.parametrize("name", CHAINS)
def test_a_ready_chain_takes_it_last_and_says_so(name: str) -> None:
    params, (grads,) = small_tree(), noise(small_tree(), 1)
    decay = wd.selective_weight_decay(1.0, wd.everything)
    wrong = CHAINS[name](0.1, decay)
    message = (
        r"^selective_weight_decay stands before the learning rate, where updates are "
        r"not final; pass the ready chain after_learning_rate\(selective_weight_decay"
        r"\(\.\.\.\)\), which it places last$"
    )
    with pytest.raises(ValueError, match=message):
        wrong.update(grads, wrong.init(params), params)
    last = wd.after_learning_rate(decay)
    # Away from the start, and back again by a longer step, which goes beyond it.
    gradients = [jax.tree.map(lambda g: -0.25 * g, grads), grads]

    def longer(step: Any) -> Any:
        return 0.1 * (1.0 + 9.0 * step)

    base = CHAINS[name](longer, optax.identity())
    ready, written, free = (
        train(tx, params, gradients)[-1]
        for tx in (CHAINS[name](longer, last), optax.chain(base, last), base)
    )
    assert largest_difference(ready, written) < 1e-6
    assert largest_difference(ready, free) > 1e-2


@pytest.mark.parametrize("rate", [1.0, 0.05])
def test_the_audit_does_not_take_it_for_nothing(rate: float) -> None:
    params = small_tree()
    decay = wd.selective_weight_decay(rate, wd.named("kernel"))
    for base in (optax.adam(1e-3), optax.sgd(0.1, momentum=0.9)):
        found = wd.audit(
            with_grad(optax.chain(base, wd.after_learning_rate(decay))), params
        )
        assert {row.path: row.kind for row in found.rows} == {
            "attn/kernel": "unknown",
            "mlp/kernel": "unknown",
            "mlp/bias": "none",
        }


def test_a_wrong_stack_is_refused() -> None:
    wrong: Any = "blocks"
    with pytest.raises(TypeError, match="stacked takes a rule, for axis 0, or pairs"):
        wd.selective_weight_decay(0.1, stacked=wrong)


def test_every_leaf_that_decays_needs_its_gradient() -> None:
    params = {"k": jnp.ones((2, 2))}
    tx = wd.selective_weight_decay(0.5, wd.everything)
    for grad in ({"k": None}, {"k": jnp.ones((2, 1))}, {}):
        with pytest.raises(ValueError, match=r"grad has no array of shape \(2, 2\) at"):
            tx.update(params, tx.init(params), params, grad=grad)
