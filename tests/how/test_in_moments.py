# SPDX-License-Identifier: Apache-2.0
"""NovoGrad and FAdam: against Optax, the authors' figures, and loops in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    DATA,
    assert_same,
    largest_difference,
    noise,
    once,
    run,
    small_tree,
    tree,
)
from helpers import quick_compiles as quick_compiles

import optax_wd as wd

SCHEDULE = optax.linear_schedule(0.02, 0.0, 6)
READY: dict[str, Any] = {"novograd": wd.novograd, "fadam": wd.fadam}
both = pytest.mark.parametrize("ready", READY.values(), ids=READY)


# NovoGrad


@pytest.mark.parametrize(
    "options",
    [{}, {"b1": 0.5, "b2": 0.75, "eps": 1e-2, "eps_root": 1e-1}],
    ids=["defaults", "others"],
)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_novograd_is_optaxs_with_its_decay(rate: float, options: Any) -> None:
    params, gradients = tree(), noise(tree(), 6)
    decay = wd.masked_decay(rate, wd.everything)
    seen, _ = run(wd.novograd(SCHEDULE, decay, **options), params, gradients)
    other = optax.novograd(SCHEDULE, weight_decay=rate, **options)
    expected, _ = run(other, params, gradients)
    assert max(map(largest_difference, seen, expected)) < 1e-6


def test_novograds_decay_goes_through_the_momentum() -> None:
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx: Any = wd.novograd(1.0, wd.masked_decay(0.25), b1=0.5)
    state, seen = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update(zeros, state, params)
        seen.append(float(updates["kernel"][0, 0]))
        np.testing.assert_array_equal(updates["bias"], np.zeros(2))
    assert seen == [-0.5, -0.75, -0.875]


def test_novograd_keeps_one_number_for_each_tensor() -> None:
    state: Any = wd.novograd(0.1, optax.identity()).init(tree())
    norms = optax.tree.get(state, "squared_norm")
    assert all(x.size == 1 for x in jax.tree.leaves(norms))


# FAdam


def test_fadam_follows_the_figures_of_another_code_base() -> None:
    with np.load(DATA / "fadam.npz", allow_pickle=False) as data:
        columns = [
            [data[f"fadam/{kind}/{n}"] for n in range(2)]
            for kind in ("params0", "grads", "params")
        ]
    start, grads, known = columns
    params = list(map(jnp.asarray, start))
    steps = [list(map(jnp.asarray, step)) for step in zip(*grads, strict=True)]
    for decay, least, most in (
        (wd.natural_weight_decay(0.3, wd.everything), 0.0, 1e-5),
        (wd.masked_decay(0.3, wd.everything), 1e-4, 1.0),
        (optax.identity(), 1e-4, 1.0),
    ):
        seen, _ = run(wd.fadam(0.02, decay), params, steps)
        worst = max(
            float(np.max(np.abs(found - expected[t])))
            for t, now in enumerate(seen)
            for found, expected in zip(now, known, strict=True)
        )
        assert len(seen) == 10 and least <= worst < most


def fadam(
    x: np.ndarray, gradients: np.ndarray, options: dict[str, float]
) -> list[np.ndarray]:
    """Algorithm 1 of arXiv:2405.12807 in float64 for one tensor."""
    b1, b2, eps, rate = (options[k] for k in ("b1", "b2", "eps", "rate"))
    m, f, seen = np.zeros_like(x), np.zeros_like(x), []

    def clipped(value: np.ndarray) -> np.ndarray:
        return value / max(1.0, np.sqrt(np.mean(value**2)))

    for t, g in enumerate(gradients, start=1):
        b = b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        f = b * f + (1 - b) * g**2
        metric = np.sqrt(f) + eps
        m = b1 * m + (1 - b1) * clipped(g / metric)
        x = x - rate * (m + 0.3 * clipped(x / metric))
        seen.append(x)
    return seen


@pytest.mark.parametrize("scale", [1e-3, 30.0], ids=["clipped", "not clipped"])
def test_fadam_is_algorithm_1_in_numpy(scale: float) -> None:
    options: dict[str, Any] = {"b1": 0.8, "b2": 0.9, "eps": 1e-2}
    params = tree()
    gradients = [jax.tree.map(lambda g: scale * g, g) for g in noise(params, 6)]
    decay = wd.natural_weight_decay(0.3, wd.everything, eps=1e-2)
    seen, _ = run(wd.fadam(0.02, decay, **options), params, gradients)
    for path in (("attn", "kernel"), ("mlp", "bias")):
        x, *gs = (
            np.asarray(t[path[0]][path[1]], np.float64) for t in (params, *gradients)
        )
        expected = fadam(x, np.stack(gs), {**options, "rate": 0.02})
        for now, then in zip(seen, expected, strict=True):
            np.testing.assert_allclose(now[path[0]][path[1]], then, atol=2e-6)


def test_fadams_second_moment_is_the_mean_of_all_squares_at_first() -> None:
    gradients = noise({"w": jnp.ones(3)}, 3)
    _, state = run(wd.fadam(0.1, optax.identity()), {"w": jnp.ones(3)}, gradients)
    mean = np.mean([np.square(g["w"]) for g in gradients], axis=0)
    np.testing.assert_allclose(optax.tree.get(state, "nu")["w"], mean, rtol=1e-3)
    assert optax.tree.get(state, "count") == 3


def test_fadam_hands_its_direction_and_second_moment_to_the_decay() -> None:
    seen = {}

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.update(extra, updates=updates)
        return updates, state

    probe = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params = {"w": jnp.ones(3)}
    once(wd.fadam(1.0, probe), params, params, grad=params)
    assert sorted(seen) == ["fisher", "grad", "sign_of", "updates"]
    assert_same(seen["sign_of"], seen["updates"])
    np.testing.assert_allclose(seen["fisher"]["w"], np.ones(3))


def test_a_cautious_decay_in_fadam_is_gated_by_its_momentum() -> None:
    params = {"w": jnp.asarray([[1.0, -1.0]])}
    grads = {"w": jnp.asarray([[2.0, 2.0]])}
    plain = once(wd.fadam(1.0, optax.identity()), grads, params)
    decay = wd.cautious_weight_decay(0.5, wd.everything)
    updates = once(wd.fadam(1.0, decay), grads, params)
    np.testing.assert_array_equal(updates["w"] - plain["w"], [[-0.5, 0.0]])


def test_fadam_leaves_zero_gradients_and_empty_leaves_finite() -> None:
    params = {"zero": jnp.ones((2, 2)), "empty": jnp.ones((0, 3))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    decay = wd.natural_weight_decay(0.5, wd.everything)
    updates = once(wd.fadam(0.125, decay), zeros, params)
    np.testing.assert_array_equal(updates["zero"], np.full((2, 2), -0.0625))
    assert updates["empty"].shape == (0, 3)


def test_mu_dtype_is_that_of_fadams_momentum_alone() -> None:
    tx = wd.fadam(0.1, optax.identity(), mu_dtype=jnp.bfloat16)
    _, state = run(tx, tree(), noise(tree(), 2))
    assert {x.dtype.name for x in jax.tree.leaves(optax.tree.get(state, "mu"))} == {
        "bfloat16"
    }
    assert {x.dtype.name for x in jax.tree.leaves(optax.tree.get(state, "nu"))} == {
        "float32"
    }


def test_fadams_second_moment_follows_gradients_that_fall_in_bfloat16() -> None:
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    gradients = [1.0] * 1000 + [0.125] * 1000
    expected, b2 = 0.0, 0.999
    for t, g in enumerate(gradients, start=1):
        b = b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        expected = b * expected + (1 - b) * g * g
    grads = [{"w": jnp.full(2, g, jnp.bfloat16)} for g in gradients]
    _, state = run(wd.fadam(1e-3, optax.identity()), params, grads)
    np.testing.assert_allclose(optax.tree.get(state, "nu")["w"], expected, rtol=1e-3)


def test_novograd_leaves_integers_as_they_are() -> None:
    params = {"w": jnp.ones((2, 2)), "table": jnp.arange(3)}
    tx = wd.novograd(0.1, wd.masked_decay(0.1))
    before = tx.init(params)
    updates: Any
    updates, state = tx.update(params, before, params)
    assert_same(updates["table"], params["table"])
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, before)


def test_eps_of_fadam_is_above_0() -> None:
    with pytest.raises(ValueError, match="eps is a finite number above 0, got 0"):
        wd.fadam(0.1, optax.identity(), eps=0.0)


# Both


@both
def test_the_decay_has_a_mask_and_may_be_any(ready: Any) -> None:
    params = small_tree()
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = once(ready(0.5, wd.masked_decay(0.25)), zeros, params)
    np.testing.assert_allclose(
        updates["mlp"]["kernel"], -0.125 * params["mlp"]["kernel"], rtol=1e-6
    )
    np.testing.assert_array_equal(updates["mlp"]["bias"], zeros["mlp"]["bias"])


@both
def test_stacked_layers_step_as_the_layers_do(ready: Any) -> None:
    layers = [tree(seed)["mlp"] for seed in (1, 2, 3)]
    gradients = [  # of layers and steps
        [
            jax.tree.map(lambda g, n=n, t=t: n * t**n * g, layers[n - 1])
            for t in (1.0, 3.0)
        ]
        for n in (1, 2, 3)
    ]

    def stack(trees: list[Any]) -> Any:
        return {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *trees)}

    stacked = wd.contains("blocks")
    decay = wd.masked_decay(0.25, wd.everything)
    both = [stack([of_layer[t] for of_layer in gradients]) for t in range(2)]
    whole, _ = run(ready(0.5, decay, stacked=stacked), stack(layers), both)
    for n in range(3):
        alone, _ = run(ready(0.5, decay), layers[n], gradients[n])
        found = jax.tree.map(lambda u, n=n: u[n], whole[-1]["blocks"])
        assert largest_difference(found, alone[-1]) < 1e-6
    pooled, _ = run(ready(0.5, decay), stack(layers), both)
    assert largest_difference(pooled[-1], whole[-1]) > 1e-3


@both
def test_a_decay_for_after_the_learning_rate_is_placed_last(ready: Any) -> None:
    last = wd.after_learning_rate(wd.masked_decay(0.25, wd.everything))
    params = {"w": jnp.ones((2, 2))}
    updates = once(ready(0.0, last), params, params)
    np.testing.assert_array_equal(updates["w"], np.full((2, 2), -0.25))
    nested = ready(0.1, optax.chain(last))
    with pytest.raises(ValueError, match="after_learning_rate stands before the learn"):
        once(nested, params, params)


@both
def test_what_is_no_transformation_is_refused(ready: Any) -> None:
    with pytest.raises(TypeError, match="decay takes a transformation, got 0.1"):
        ready(1e-3, 0.1)
    with pytest.raises(TypeError, match="stacked takes a rule, for axis 0, or pairs"):
        ready(1e-3, optax.identity(), stacked="blocks")


@both
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_stay_and_one_compilation_is_enough(ready: Any, dtype: str) -> None:
    params = small_tree(0, dtype)
    tx = ready(SCHEDULE, wd.masked_decay(0.1), eps=1e-3)
    traces = []

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    for grads in noise(params, 3):
        params, state = step(params, state, grads)
    assert kinds == jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    assert len(traces) == 1


@both
def test_leaves_that_are_no_numbers_or_missing_are_passed_on(ready: Any) -> None:
    params = {"w": jnp.ones((2, 2)), "steps": jnp.asarray(3), "none": None}
    tx = ready(0.5, wd.masked_decay(0.25, wd.everything))
    grads = {"w": jnp.ones((2, 2)), "steps": jnp.asarray(0), "none": None}
    updates = once(tx, grads, params)
    assert updates["none"] is None and updates["steps"] == 0
    labels = {"w": "a", "steps": "b", "none": None}
    parts = optax.partition({"a": tx, "b": optax.set_to_zero()}, labels)
    assert_same(once(parts, grads, params)["w"], updates["w"])


@both
def test_the_audit_sees_the_decay(ready: Any) -> None:
    found = wd.audit(ready(0.125, wd.masked_decay(0.25)), tree())
    decays = {row.path for row in found.rows if row.kind != "none"}
    assert decays == {"attn/kernel", "mlp/kernel"}


@both
def test_counters_are_found_by_name(ready: Any) -> None:
    _, state = run(ready(0.1, wd.masked_decay(0.1)), tree(), noise(tree(), 2))
    assert optax.tree.get(state, "count") == (2 if ready is wd.fadam else None)
    assert optax.tree.get(state, "learning_rate_count") == 2


def test_novograd_keeps_the_dtypes_of_its_state_beside_integer_leaves() -> None:
    params = {"k": jnp.ones((2, 2)), "step": jnp.zeros((), jnp.int32)}
    tx = optax.masked(
        wd.novograd(1e-2, wd.masked_decay(0.1)), {"k": True, "step": True}
    )
    state = tx.init(params)
    _, after = tx.update(params, state, params)
    norms = [optax.tree.get(s, "squared_norm")["step"].dtype for s in (state, after)]
    assert norms == ["float32", "float32"]
