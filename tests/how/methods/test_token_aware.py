# SPDX-License-Identifier: Apache-2.0
"""Token-aware decay: the rule in NumPy, running counts, what is left of rare rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same, largest_difference, noise, once, run

import optax_wd as wd

ROWS = 6
COUNTS = jnp.asarray([30, 6, 3, 3, 0, 0])  # of mean 7


def model(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    """An embedding, an output layer with the vocabulary on its last axis, a matrix."""
    rng = np.random.default_rng(seed)
    shapes = {"embedding": (ROWS, 3), "head": (3, ROWS), "kernel": (3, 4), "bias": (4,)}
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}


def share(counts: Any) -> np.ndarray:
    counts = np.asarray(counts, np.float64)
    return np.minimum(1.0, counts / counts.mean())[:, None]


@pytest.mark.parametrize("average", [0.0, 0.75])
def test_it_is_the_rule_in_numpy_over_several_steps(average: float) -> None:
    params, rng = model(), np.random.default_rng(1)
    tx: Any = optax.chain(
        wd.token_aware_weight_decay(lambda t: 0.5 / (1 + t), average=average),
        optax.scale_by_learning_rate(0.1),
    )
    state, x = tx.init(params), np.asarray(params["embedding"], np.float64)
    update, mean = jax.jit(tx.update), np.zeros(ROWS)
    here: Any = params
    for t, grads in enumerate(noise(params, 5)):
        counts = rng.integers(0, 9, size=ROWS)
        updates, state = update(grads, state, here, token_counts=jnp.asarray(counts))
        here = optax.apply_updates(here, updates)
        mean = average * mean + (1 - average) * counts
        x = x - 0.1 * (grads["embedding"] + 0.5 / (1 + t) * share(mean) * x)
        np.testing.assert_allclose(here["embedding"], x, atol=2e-6)
        np.testing.assert_array_equal(updates["bias"], -0.1 * grads["bias"])


def test_a_step_by_hand() -> None:
    params = {"embedding": jnp.full((ROWS, 2), 2.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = wd.token_aware_weight_decay(0.5)
    found = once(tx, zeros, params, token_counts=COUNTS)["embedding"]
    expected = [1.0, 6 / 7, 3 / 7, 3 / 7, 0.0, 0.0]
    np.testing.assert_allclose(found, np.tile(expected, (2, 1)).T, rtol=1e-6)


def test_equal_counts_are_plain_decay() -> None:
    params, (grads,) = model(), noise(model(), 1)
    tx = wd.token_aware_weight_decay(0.3)
    plain = once(wd.masked_decay(0.3, wd.named("embedding")), grads, params)
    for each in (1, 1000, 0.25):
        counts = jnp.full(ROWS, each)
        assert_same(once(tx, grads, params, token_counts=counts), plain)


def test_the_unit_of_the_counts_does_not_matter_and_no_row_exceeds_the_rate() -> None:
    params, (grads,) = model(), noise(model(), 1)
    tx = wd.token_aware_weight_decay(0.3, average=0.5)
    found = [once(tx, grads, params, token_counts=COUNTS * s) for s in (1, 0.01, 64)]
    assert largest_difference(found[0], found[1]) < 1e-6
    assert largest_difference(found[0], found[2]) < 1e-6
    shrink = (found[0]["embedding"] - grads["embedding"]) / params["embedding"]
    assert float(jnp.max(shrink)) < 0.3 + 1e-4


def test_where_no_token_was_seen_nothing_decays() -> None:
    params, (grads,) = model(), noise(model(), 1)
    tx = wd.token_aware_weight_decay(0.3)
    found = once(tx, grads, params, token_counts=jnp.zeros(ROWS))
    assert_same(found, grads)


def test_nan_in_a_row_without_tokens_is_not_touched() -> None:
    params = {"embedding": jnp.ones((ROWS, 2)).at[5].set(jnp.nan)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = once(wd.token_aware_weight_decay(0.3), zeros, params, token_counts=COUNTS)
    assert bool(jnp.all(jnp.isfinite(found["embedding"])))


@pytest.mark.parametrize("axis", [1, -1])
def test_the_vocabulary_may_be_on_another_axis(axis: int) -> None:
    params, (grads,) = model(), noise(model(), 1)
    tx = wd.token_aware_weight_decay(0.3, wd.named("head"), axis=axis)
    found = once(tx, grads, params, token_counts=COUNTS)["head"]
    expected = grads["head"] + 0.3 * share(COUNTS).T * params["head"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_several_vocabularies_have_a_tree_of_counts() -> None:
    params = {"a": jnp.ones((2, 3)), "b": {"c": jnp.ones((4, 3)), "d": jnp.ones(4)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = wd.token_aware_weight_decay(1.0, wd.everything)
    counts = {"a": jnp.asarray([1, 3]), "b": jnp.asarray([0, 0, 2, 2])}
    found = once(tx, zeros, params, token_counts=counts)
    np.testing.assert_array_equal(found["a"][:, 0], [0.5, 1.0])
    np.testing.assert_array_equal(found["b"]["c"][:, 0], [0.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(found["b"]["d"], [0.0, 0.0, 1.0, 1.0])


def test_a_tree_of_counts_may_leave_out_what_does_not_decay() -> None:
    params, (grads,) = model(), noise(model(), 1)
    tx = wd.token_aware_weight_decay(0.3, average=0.5)
    counts = {"embedding": COUNTS}
    found = once(tx, grads, params, token_counts=counts)
    assert_same(found, once(tx, grads, params, token_counts=COUNTS))
    part = {"embedding": params["embedding"], "kernel": None}
    found = once(tx, part, part, token_counts={"embedding": COUNTS, "head": COUNTS})
    assert found["kernel"] is None


def test_negative_counts_and_those_that_are_not_finite_count_as_zero() -> None:
    params, (grads,) = model(), noise(model(), 1)
    tx = wd.token_aware_weight_decay(0.3)
    bad = jnp.asarray([30.0, 6.0, -3.0, jnp.nan, -jnp.inf, jnp.inf])
    expected = once(tx, grads, params, token_counts=jnp.asarray([30, 6, 0, 0, 0, 0]))
    assert_same(once(tx, grads, params, token_counts=bad), expected)
    update = jax.jit(tx.update)
    found, _ = update(grads, tx.init(params), params, token_counts=bad)
    assert largest_difference(found, expected) < 1e-6


def test_mask_and_multiplier() -> None:
    params, (grads,) = model(), noise(model(), 1)
    factor = np.ones((ROWS, 1))
    factor[0] = 0.0
    tx = wd.token_aware_weight_decay(
        0.3,
        {"embedding": True, "head": False, "kernel": False, "bias": False},
        multiplier={"embedding": factor, "head": 1.0, "kernel": 1.0, "bias": 1.0},
    )
    found = once(tx, grads, params, token_counts=COUNTS)
    amount = 0.3 * share(COUNTS) * factor
    expected = grads["embedding"] + amount * params["embedding"]
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)
    for name in ("head", "kernel", "bias"):
        assert found[name] is grads[name]


def test_memory_covers_every_leaf_with_one_number_a_row() -> None:
    wanted = {"embedding": (ROWS,), "head": (3,), "kernel": (3,), "bias": (4,)}
    kinds = set()
    for rate in (0.3, lambda t: 0.3):
        for mask in (wd.everything, wd.named("embedding")):
            for average in (0.0, 0.9):
                tx = wd.token_aware_weight_decay(rate, mask, average=average)
                state: Any = tx.init(model())
                assert jax.tree.map(jnp.shape, state.memory, is_leaf=None) == wanted
                kinds.add(jax.tree.structure(state))
    assert len(kinds) == 1


def test_the_shares_are_those_of_the_corpus_in_the_long_run() -> None:
    params = {"embedding": jnp.ones((ROWS, 2))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = wd.token_aware_weight_decay(1.0, average=0.99)
    rng, state = np.random.default_rng(0), tx.init(params)
    update, updates = jax.jit(tx.update), zeros
    for _ in range(600):
        counts = rng.multinomial(7, np.asarray(COUNTS, np.float64) / 42)
        updates, state = update(zeros, state, params, token_counts=jnp.asarray(counts))
    np.testing.assert_allclose(updates["embedding"][:, :1], share(COUNTS), atol=0.1)


def test_rows_of_all_frequencies_keep_the_same_part_below_the_mean() -> None:
    """Why the rule is what it is: gradients come as often as the tokens do."""
    shares, target = jnp.asarray([0.6, 0.2, 0.1, 0.06, 0.04]), 2.0

    def settled(tx: Any) -> np.ndarray:
        def gradient(x: Any) -> Any:
            return {"embedding": shares[:, None] * (x["embedding"] - target)}

        @jax.jit
        def loop(x: Any) -> Any:
            def step(carry: Any, _: None) -> Any:
                x, state = carry
                updates, state = tx.update(gradient(x), state, x, token_counts=shares)
                return (optax.apply_updates(x, updates), state), None

            return jax.lax.scan(step, (x, tx.init(x)), length=3000)[0][0]

        return np.asarray(loop({"embedding": jnp.ones((5, 1))})["embedding"][:, 0])

    aware = settled(wd.sgdw(0.5, wd.token_aware_weight_decay(0.1)))
    plain = settled(wd.sgdw(0.5, wd.masked_decay(0.1, wd.named("embedding"))))
    part = np.asarray(shares) * target
    np.testing.assert_allclose(plain, part / (shares + 0.1), rtol=1e-4)
    amounts = 0.1 * share(shares)[:, 0]
    np.testing.assert_allclose(aware, part / (shares + amounts), rtol=1e-4)
    np.testing.assert_allclose(aware[2:], aware[2], rtol=1e-4)  # all below the mean
    assert plain[4] < 0.6 < 1.3 < aware[4]


def test_low_precision_and_one_compilation() -> None:
    params, traces = model(0, jnp.bfloat16), []
    tx = wd.token_aware_weight_decay(lambda t: 0.3, average=0.5)

    @jax.jit
    def update(grads: Any, state: Any, counts: Any) -> Any:
        traces.append(1)
        return tx.update(grads, state, params, token_counts=counts)

    state: Any = tx.init(params)
    updates: Any = params
    for n in range(3):
        updates, state = update(params, state, COUNTS + n)
    assert len(traces) == 1
    assert {u.dtype for u in updates.values()} == {jnp.dtype("bfloat16")}
    assert {m.dtype for m in state.memory.values()} == {jnp.dtype("float32")}


def test_in_a_ready_chain_and_beside_another_decay() -> None:
    params, gradients = model(), noise(model(), 2)
    decay = optax.chain(wd.masked_decay(0.1), wd.token_aware_weight_decay(0.3))
    tx: Any = wd.adamw(0.1, decay)
    other: Any = wd.adamw(0.1, wd.masked_decay(0.1))
    state, rest = tx.init(params), other.init(params)
    updates, _ = tx.update(gradients[0], state, params, token_counts=COUNTS)
    without, _ = other.update(gradients[0], rest, params, token_counts=COUNTS)
    assert_same(updates["kernel"], without["kernel"])
    added = -0.1 * 0.3 * share(COUNTS) * params["embedding"]
    found = updates["embedding"] - without["embedding"]
    np.testing.assert_allclose(found, added, atol=1e-6)


def test_a_partition_keeps_to_its_leaves() -> None:
    params = model()
    tx = optax.partition(
        {
            "rows": wd.token_aware_weight_decay(0.5, wd.everything),
            "rest": optax.identity(),
        },
        wd.first_match((wd.named("embedding"), "rows"), default="rest"),
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = once(tx, zeros, params, token_counts=COUNTS)
    expected = 0.5 * share(COUNTS) * params["embedding"]
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)


def test_errors_say_what_to_write() -> None:
    params = model()
    tx = wd.token_aware_weight_decay(0.3)
    message = (
        r"needs the counts of tokens, got no token_counts; call "
        r"tx.update\(grads, state, params, token_counts=counts\)"
    )
    with pytest.raises(ValueError, match=message):
        once(tx, params, params)
    message = (
        r"token_counts has shape \(5,\), but 'embedding' has shape \(6, 3\) and the "
        r"vocabulary on axis 0; pass one count for each token, and a mask of the leaves"
    )
    with pytest.raises(ValueError, match=message):
        once(tx, params, params, token_counts=jnp.ones(5))
    flat = wd.token_aware_weight_decay(0.3, wd.named("bias"), axis=1)
    with pytest.raises(
        ValueError, match=r"'bias' has shape \(4,\) and the voc.* axis 1"
    ):
        once(flat, params, params, token_counts=jnp.ones(4))
    message = "token_counts has an entry for 'other', where the parameters have no leaf"
    with pytest.raises(ValueError, match=message):
        once(tx, params, params, token_counts={"other": COUNTS})
    message = "token_counts has no entry for 'embedding', which decays; add one, or"
    with pytest.raises(ValueError, match=message):
        once(tx, params, params, token_counts={"kernel": COUNTS})
    message = r"token_counts has 30 at '0'; pass an array of one count for each token: "
    with pytest.raises(TypeError, match=message):
        once(tx, params, params, token_counts=COUNTS.tolist())
    with pytest.raises(ValueError, match="average is 0 or more and less than 1, got 1"):
        wd.token_aware_weight_decay(0.3, average=1.0)
    with pytest.raises(ValueError, match="average is finite and 0 or more, got -0.5"):
        wd.token_aware_weight_decay(0.3, average=-0.5)
    with pytest.raises(TypeError, match="axis is an integer, got 0.0"):
        wd.token_aware_weight_decay(0.3, axis=0.0)  # pyright: ignore
    with pytest.raises(TypeError, match="mask=None is ambiguous"):
        wd.token_aware_weight_decay(0.3, None)


def test_the_audit_sees_which_leaves_decay() -> None:
    decay = wd.token_aware_weight_decay(0.25)

    def given(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return decay.update(updates, state, params, token_counts=COUNTS, **extra)

    tx = optax.GradientTransformationExtraArgs(decay.init, given)
    found = wd.audit(wd.sgdw(0.125, tx), model())
    kinds = {row.path: row.kind for row in found.rows if row.kind != "none"}
    assert set(kinds) == {"embedding"}


def test_a_rate_of_zero_needs_no_counts() -> None:
    params = model()
    assert once(wd.token_aware_weight_decay(0.0), params, params) is params
    seen, _ = run(optax.chain(wd.token_aware_weight_decay(0.0)), params, [params])
    assert len(seen) == 1
