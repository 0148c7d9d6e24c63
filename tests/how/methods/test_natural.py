# SPDX-License-Identifier: Apache-2.0
"""Natural decay: the rule in NumPy, its clipping, and what it needs to be told."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same, largest_difference, noise, once, tree

import optax_wd as wd


def natural(rate: Any, **options: Any) -> Any:
    return wd.natural_weight_decay(rate, wd.everything, **options)


def squares(seed: int = 5) -> Any:
    return jax.tree.map(lambda x: x**2, tree(seed))


def reference(x: Any, u: Any, f: Any, rate: float, eps: float) -> np.ndarray:
    """The rule for one tensor, in float64."""
    x, u, f = (np.asarray(a, np.float64) for a in (x, u, f))
    w = x / (np.sqrt(f) + eps)
    return u + rate * w / max(1.0, np.sqrt(np.mean(w**2)))


@pytest.mark.parametrize("scale", [1.0, 1e6], ids=["clipped", "not clipped"])
def test_it_is_the_rule_in_numpy_over_several_steps(scale: float) -> None:
    params, tx = tree(), natural(lambda t: 0.5 / (1.0 + t), eps=0.1)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for t, u in enumerate(noise(params, 4)):
        f = jax.tree.map(lambda x: scale * x, squares(t))
        found, state = update(u, state, params, fisher=f)
        expected = jax.tree.map(
            lambda p, u, f, t=t: reference(p, u, f, 0.5 / (1.0 + t), 0.1), params, u, f
        )
        assert largest_difference(found, expected) < 2e-6
    assert state.decay_count == 4 and state.memory == ()


def test_a_step_by_hand() -> None:
    x, zero = {"w": jnp.asarray([[3.0, 4.0]])}, {"w": jnp.zeros((1, 2))}
    for fisher, expected in (
        (10000.0, [[0.015, 0.02]]),  # RMS 0.035: as it is
        (1.0, [[0.5 * 3.0 / 12.5**0.5, 0.5 * 4.0 / 12.5**0.5]]),  # RMS sqrt(12.5)
    ):
        f = {"w": jnp.full((1, 2), fisher)}
        found = once(natural(0.5), zero, x, fisher=f)
        np.testing.assert_allclose(found["w"], expected, rtol=1e-6)


def test_insensitive_weights_decay_more_than_sensitive_ones() -> None:
    x, zero = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
    found = once(natural(0.5), zero, x, fisher={"w": jnp.asarray([1.0, 100.0])})
    assert found["w"][0] / found["w"][1] == pytest.approx(10.0)


def test_a_constant_fisher_of_one_below_the_threshold_is_plain_decay() -> None:
    params = jax.tree.map(lambda x: 0.01 * x, tree())
    (u,) = noise(params, 1)
    ones = jax.tree.map(jnp.ones_like, params)
    plain = once(wd.masked_decay(0.5, wd.everything), u, params)
    assert largest_difference(once(natural(0.5), u, params, fisher=ones), plain) < 1e-6


def test_where_the_fisher_is_zero_everything_is_finite() -> None:
    params = {"w": jnp.asarray([[3.0, -4.0]]), "empty": jnp.zeros((0, 2))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = once(natural(0.5), zeros, params, fisher=zeros)
    np.testing.assert_allclose(found["w"], [[1.5 / 12.5**0.5, -2.0 / 12.5**0.5]])
    still = once(natural(0.5), zeros, zeros, fisher=zeros)
    np.testing.assert_array_equal(still["w"], [[0.0, 0.0]])


def test_mask_multiplier_and_a_nan_elsewhere() -> None:
    params, (u,) = tree(), noise(tree(), 1)
    params["norm"]["scale"] = params["norm"]["scale"].at[0].set(jnp.nan)
    f = squares()
    mask, table = (
        wd.named("kernel"),
        wd.first_match((wd.contains("attn"), 2.0), default=1.0),
    )
    tx = wd.natural_weight_decay(0.5, mask, multiplier=table)
    found = once(tx, u, params, fisher=f)
    assert found["mlp"]["bias"] is u["mlp"]["bias"]
    assert found["norm"]["scale"] is u["norm"]["scale"]
    for name, rate in (("attn", 1.0), ("mlp", 0.5)):
        leaf = params[name]["kernel"], u[name]["kernel"], f[name]["kernel"]
        expected = reference(*leaf, rate, 1e-8)
        np.testing.assert_allclose(found[name]["kernel"], expected, atol=2e-6)


def test_stacked_layers_are_clipped_one_by_one() -> None:
    layers = [{"kernel": n * tree(n)["mlp"]["kernel"]} for n in (1, 20, 3)]
    zeros = jax.tree.map(jnp.zeros_like, layers[0])

    def stack(trees: list[Any]) -> Any:
        return {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *trees)}

    ones = jax.tree.map(jnp.ones_like, stack(layers))
    nothing = jax.tree.map(jnp.zeros_like, ones)
    tx = natural(0.5, stacked=wd.contains("blocks"))
    found = once(tx, nothing, stack(layers), fisher=ones)["blocks"]["kernel"]
    for n, layer in enumerate(layers):
        one = jax.tree.map(jnp.ones_like, layer)
        alone = once(natural(0.5), zeros, layer, fisher=one)
        np.testing.assert_allclose(found[n], alone["kernel"], rtol=1e-6)
    pooled = once(natural(0.5), nothing, stack(layers), fisher=ones)
    assert float(jnp.max(jnp.abs(pooled["blocks"]["kernel"] - found))) > 0.1


def test_low_precision_is_rounded_once() -> None:
    x, u, f = (tree(n, jnp.bfloat16)["mlp"]["kernel"] for n in (0, 1, 2))
    found = once(natural(0.5), {"w": u}, {"w": x}, fisher={"w": f * f})["w"]
    assert found.dtype == jnp.bfloat16
    expected = jnp.asarray(reference(x, u, f * f, 0.5, 1e-8), jnp.bfloat16)
    np.testing.assert_array_equal(found, expected)


def test_it_compiles_once() -> None:
    params, traces = tree(), []
    tx = natural(lambda t: 0.1)

    @jax.jit
    def update(u: Any, state: Any, f: Any) -> Any:
        traces.append(1)
        return tx.update(u, state, params, fisher=f)

    state = tx.init(params)
    for u in noise(params, 3):
        _, state = update(u, state, squares())
    assert len(traces) == 1


def test_what_it_needs_is_named() -> None:
    params = tree()
    message = (
        "needs the Fisher diagonal, got no fisher; use the ready chain fadam, with the "
        "decay bare, since nothing hands it over inside after_learning_rate, or call "
        r"tx.update\(grads, state, params, fisher=squared_gradients\)"
    )
    with pytest.raises(ValueError, match=message):
        once(natural(0.5), params, params)
    with pytest.raises(ValueError, match=message):
        once(wd.fadam(0.1, wd.after_learning_rate(natural(0.5))), params, params)
    with pytest.raises(ValueError, match="eps is a finite number above 0, got 0.0"):
        natural(0.5, eps=0.0)
    with pytest.raises(TypeError, match="stacked takes a rule, for axis 0, or pairs"):
        natural(0.5, stacked="blocks")
    with pytest.raises(TypeError, match="mask=None is ambiguous"):
        wd.natural_weight_decay(0.5, None)
    with pytest.raises(TypeError, match="multiplier takes factors"):
        natural(0.5, multiplier="all")


def test_a_rate_of_zero_touches_nothing_and_needs_nothing() -> None:
    params = tree()
    assert once(natural(0.0), params, params) is params


def test_the_audit_sees_which_leaves_decay() -> None:
    found = wd.audit(wd.fadam(0.125, wd.natural_weight_decay(0.25)), tree())
    kinds = {row.path: row.kind for row in found.rows}
    assert {path for path, kind in kinds.items() if kind != "none"} == {
        "attn/kernel",
        "mlp/kernel",
    }
    assert "decoupled" not in kinds.values()
    plain = wd.audit(wd.fadam(0.125, optax.identity()), tree())
    assert {row.kind for row in plain.rows} == {"none"}


def test_the_same_structure_of_state_for_numbers_and_schedules() -> None:
    states = [natural(r).init(tree()) for r in (0.5, lambda t: 0.5)]
    assert_same(*states)


def test_every_leaf_that_decays_needs_its_fisher() -> None:
    params = {"k": jnp.ones((2, 2))}
    tx = wd.natural_weight_decay(0.5, wd.everything)
    for fisher in ({"k": None}, {"k": jnp.ones(())}, {}):
        with pytest.raises(ValueError, match=r"fisher has no array of shape \(2, 2\)"):
            tx.update(params, tx.init(params), params, fisher=fisher)
