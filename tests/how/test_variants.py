# SPDX-License-Identifier: Apache-2.0
"""Chains that are one call of another: equal to it, and the decays they are named for.

Also what one writes oneself where a code base has a form of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import DATA, assert_same, noise, once, run, small_tree, tree

import optax_wd as wd

SCHEDULE: Any = optax.linear_schedule(0.02, 0.0, 6)
BETAS: dict[str, Any] = {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "eps_root": 1e-5}


def assert_equal_runs(a: Any, b: Any) -> None:
    params, gradients = small_tree(), noise(small_tree(), 5)
    assert_same(run(a, params, gradients), run(b, params, gradients))


@pytest.mark.parametrize("options", [{}, BETAS, {"mu_dtype": jnp.bfloat16}])
def test_nadamw_is_adamw_with_nesterov_momentum(options: Any) -> None:
    decay = wd.cautious_weight_decay(0.3)
    mine = wd.nadamw(SCHEDULE, decay, **options)
    assert_equal_runs(mine, wd.adamw(SCHEDULE, decay, nesterov=True, **options))
    plain = wd.nadamw(SCHEDULE, wd.masked_decay(0.3, wd.everything), **options)
    optaxs = optax.nadamw(SCHEDULE, weight_decay=0.3, **options)
    params, gradients = small_tree(), noise(small_tree(), 5)
    seen, expected = (run(tx, params, gradients)[0] for tx in (plain, optaxs))
    assert_same(seen, expected)


@pytest.mark.parametrize("options", [{}, {**BETAS, "nesterov": True}])
def test_adamc_is_adamw_with_a_proportional_decay(options: Any) -> None:
    decay = wd.masked_decay(wd.proportional(0.3, to=SCHEDULE, peak=0.02))
    mine = wd.adamc(SCHEDULE, 0.3, peak=0.02, **options)
    assert_equal_runs(mine, wd.adamw(SCHEDULE, decay, **options))


def test_adamc_follows_timm() -> None:
    with np.load(DATA / "adamc.npz", allow_pickle=False) as data:
        rates = jnp.asarray(data["lrs"], jnp.float32)
        start = [data[k] for k in data.files if k.startswith("params0/")]
        grads = [data[k] for k in data.files if k.startswith("grads/")]
        known = [data[k] for k in data.files if k.startswith("adamw_corrected/params/")]
    tx = wd.adamc(lambda step: rates[step], 0.3, wd.everything, peak=0.02, b2=0.95)
    steps = [list(map(jnp.asarray, step)) for step in zip(*grads, strict=True)]
    seen, _ = run(tx, list(map(jnp.asarray, start)), steps)
    assert len(seen) == 15 and known
    for t, params in enumerate(seen):
        for found, expected in zip(params, known, strict=True):
            np.testing.assert_allclose(found, expected[t], atol=2e-6)


@pytest.mark.parametrize("step", [0, 3])
def test_the_shrink_of_adamc_goes_with_the_square_of_the_learning_rate(
    step: int,
) -> None:
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx: Any = wd.adamc(SCHEDULE, 0.3, peak=0.02)
    state, updates = tx.init(params), None
    for _ in range(step + 1):
        updates, state = tx.update(zeros, state, params)
    rate = float(SCHEDULE(step))
    expected = -(rate**2) / 0.02 * 0.3
    assert updates is not None
    np.testing.assert_allclose(updates["kernel"], np.full((2, 2), expected), rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def test_adamc_refuses_a_learning_rate_that_is_known_to_be_above_its_peak() -> None:
    message = "^learning_rate is 0.02, above its highest value, peak=0.01; write the hi"
    with pytest.raises(ValueError, match=message):
        wd.adamc(0.02, 0.2, peak=0.01)
    params = {"w": jnp.full((2, 2), 8.0)}
    for rate, shrink in ((0.01, 0.002), (optax.constant_schedule(0.02), 0.008)):
        updates = once(wd.adamc(rate, 0.2, peak=0.01), {"w": jnp.zeros((2, 2))}, params)
        np.testing.assert_allclose(updates["w"], -8.0 * shrink, rtol=1e-6)


def test_adamc_needs_a_peak_above_0() -> None:
    with pytest.raises(ValueError, match="peak is the highest value of `to`"):
        wd.adamc(SCHEDULE, 0.3, peak=0.0)


@pytest.mark.parametrize("options", [{}, {"nesterov": True}])
@pytest.mark.parametrize("rate", [0.3, lambda step: 0.3 / (1.0 + step)])
def test_sgds_is_sgdw_with_a_corrected_decay(options: Any, rate: Any) -> None:
    decay = wd.momentum_corrected_weight_decay(rate, momentum=0.75)
    mine = wd.sgds(SCHEDULE, rate, momentum=0.75, **options)
    assert_equal_runs(mine, wd.sgdw(SCHEDULE, decay, momentum=0.75, **options))


def test_sgds_ends_where_l2_regularisation_ends() -> None:
    tx: Any = wd.sgds(0.1, 0.5, wd.everything, momentum=0.9)

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        updates, state = tx.update(x - 2.0, state, x)  # of (x - 2)^2 / 2
        return (x + updates, state), None

    x = jnp.zeros(1)
    (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=1000)
    assert float(x[0]) == pytest.approx(2.0 / 1.5, abs=1e-5)


@pytest.mark.parametrize("ready", [wd.adamw, wd.nadamw])
def test_a_decay_for_after_the_learning_rate_is_placed_last(ready: Any) -> None:
    last = wd.after_learning_rate(wd.masked_decay(0.25, wd.everything))
    params = {"w": jnp.ones((2, 2))}
    updates = once(ready(0.0, last), params, params)
    np.testing.assert_array_equal(updates["w"], np.full((2, 2), -0.25))


@pytest.mark.parametrize(
    ("ready", "static", "options"),
    [
        (wd.nadamw, (), {"decay": wd.masked_decay(0.5)}),
        (wd.adamc, "mask", {"weight_decay": 0.5, "mask": wd.standard, "peak": 0.5}),
    ],
    ids=["nadamw", "adamc"],
)
def test_an_injected_learning_rate_can_be_set(
    ready: Any, static: Any, options: Any
) -> None:
    tx = optax.inject_hyperparams(ready, static_args=static)(
        learning_rate=0.5, **options
    )
    params = {"kernel": jnp.ones((2, 2))}
    zeros = {"kernel": jnp.zeros((2, 2))}
    state: Any = tx.init(params)
    for rate in (0.5, 0.25):
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        updates: Any = tx.update(zeros, state, params)[0]
        scale = rate / 0.5 if ready is wd.adamc else 1.0
        np.testing.assert_allclose(updates["kernel"], -rate * scale * 0.5)


@pytest.mark.parametrize("name", ["nadamw", "adamc", "sgds"])
def test_state_has_one_structure_for_numbers_and_schedules(name: str) -> None:
    kinds = set()
    for learning_rate in (0.02, SCHEDULE):
        for rate in (0.1, lambda step: 0.1):
            tx: Any = {
                "nadamw": lambda a, b: wd.nadamw(a, wd.masked_decay(b)),
                "adamc": lambda a, b: wd.adamc(a, b, peak=0.02),
                "sgds": lambda a, b: wd.sgds(a, b, momentum=0.9),
            }[name](learning_rate, rate)
            state = jax.eval_shape(tx.init, tree())
            leaves, structure = jax.tree.flatten(state)
            kinds.add((structure, *((x.shape, x.dtype.name) for x in leaves)))
    assert len(kinds) == 1


# Forms of code bases that are not worth a function


@pytest.mark.parametrize("step", [0, 2])
def test_modded_nanogpts_decay_goes_with_the_square_of_the_learning_rate_by_leaf(
    step: int,
) -> None:
    factors = {
        "embed": 150.0,
        "lm_head": 150.0,
        "value_embeds": 5.0,
        "bigram_embed": 5.0,
        "resid_lambdas": 0.0,
        "scalars": 0.0,
        "attn_gate_bank": 1.0,
        "mlp_bank": 1.0,
    }
    params = {name: jnp.full((2, 3), 2.0) for name in factors}
    zeros = jax.tree.map(jnp.zeros_like, params)
    decay = wd.masked_decay(
        wd.proportional(0.005, to=SCHEDULE),
        wd.everything,
        multiplier=wd.recipes.modded_nanogpt(),
    )
    tx: Any = wd.adamw(SCHEDULE, decay)
    state, updates = tx.init(params), zeros
    for _ in range(step + 1):
        updates, state = tx.update(zeros, state, params)
    for name, factor in factors.items():
        shrink = float(SCHEDULE(step)) ** 2 * 0.005 * factor
        expected = np.full((2, 3), -shrink * 2.0)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-5, err_msg=name)
