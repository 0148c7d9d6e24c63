# SPDX-License-Identifier: Apache-2.0
"""Randomly gated decay: what is drawn, from what, and that nothing else decides it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same, noise, once, tree
from helpers import quick_compiles as quick_compiles

import optax_wd as wd


def gated(
    rate: Any = 0.5, fraction: float = 0.5, seed: int = 0, mask: Any = wd.everything
) -> Any:
    return wd.controls.randomly_gated_weight_decay(
        rate, mask, fraction=fraction, seed=seed
    )


WIDE = {"a": jnp.ones((40, 50)), "b": {"c": jnp.ones((40, 50))}}
ZERO = jax.tree.map(jnp.zeros_like, WIDE)


def opens(tx: Any, steps: int = 1, params: Any = WIDE) -> list[Any]:
    """At which coordinates weights of 1 decay, at each step."""
    zeros, state, seen = jax.tree.map(jnp.zeros_like, params), tx.init(params), []
    for _ in range(steps):
        updates, state = jax.jit(tx.update)(zeros, state, params)
        seen.append(jax.tree.map(lambda u: np.asarray(u) != 0, updates))
    return seen


def agreement(x: Any, y: Any) -> float:
    return float(np.mean(x == y))


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
def test_the_open_share_is_the_fraction(fraction: float) -> None:
    (found,) = opens(gated(fraction=fraction))
    for leaf in jax.tree.leaves(found):  # four standard errors
        assert np.mean(leaf) == pytest.approx(fraction, abs=4 * 0.5 / 2000**0.5)


def test_open_coordinates_decay_in_full_and_closed_ones_not_at_all() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    full = once(wd.masked_decay(0.5, wd.everything), updates, params)
    some = once(gated(), updates, params)
    triples = zip(*map(jax.tree.leaves, (some, full, updates)), strict=True)
    shares = []
    for s, f, u in triples:
        assert np.all((s == f) | (s == u))
        shares += list(np.ravel(s == f))
    assert 0.2 < np.mean(shares) < 0.8


def test_at_the_ends_it_is_plain_decay_and_none() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    full = once(wd.masked_decay(0.5, wd.everything), updates, params)
    assert_same(once(gated(fraction=1.0), updates, params), full)
    assert_same(once(gated(fraction=0.0), updates, params), updates)


def test_leaves_steps_and_seeds_have_draws_of_their_own() -> None:
    first, second = opens(gated(), steps=2)
    (other,) = opens(gated(seed=1))
    for x, y in (
        (first["a"], first["b"]["c"]),
        (first["a"], second["a"]),
        (first["a"], other["a"]),
    ):
        assert agreement(x, y) == pytest.approx(0.5, abs=0.05)


def test_the_draw_is_the_same_again_after_a_restart() -> None:
    tx = gated(rate=optax.constant_schedule(0.5))
    _, _, third = opens(tx, steps=3)
    state = tx.init(WIDE)._replace(decay_count=jnp.asarray(2, jnp.int32))
    again, later = tx.update(ZERO, state, WIDE)
    assert_same(jax.tree.map(lambda u: np.asarray(u) != 0, again), third)
    assert later.decay_count == 3 and later.memory == ()


def test_other_leaves_and_partitions_do_not_change_the_draw() -> None:
    (whole,) = opens(gated())
    (alone,) = opens(gated(), params={"b": WIDE["b"]})
    assert_same(alone["b"], whole["b"])
    labels = wd.first_match((wd.named("a"), "x"), default="y")
    (parted,) = opens(optax.partition({"x": gated(), "y": gated()}, labels))
    assert_same(parted, whole)


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_shards_have_the_draw_of_the_whole_and_do_not_talk(axis_type: str) -> None:
    types = (jax.sharding.AxisType[axis_type],)
    mesh = jax.make_mesh((4,), ("x",), axis_types=types)
    (local,) = opens(gated())
    with jax.set_mesh(mesh):
        place = jax.NamedSharding(mesh, jax.P("x"))
        params = jax.device_put(WIDE, place)
        tx = gated()
        arguments = jax.device_put(ZERO, place), tx.init(params), params
        step = jax.jit(tx.update).lower(*arguments).compile()
        found = jax.tree.map(lambda u: np.asarray(u) != 0, step(*arguments)[0])
    assert_same(found, local)
    text = str(step.as_text())
    assert "all-" not in text and "permute" not in text


def test_the_audit_does_not_take_it_for_another() -> None:
    rows = wd.audit(wd.adamw(0.1, gated()), {"w": jnp.ones((6, 6))}).rows
    assert [row.kind for row in rows] == ["unknown"]


def test_what_is_no_fraction_and_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="fraction is at most 1, got 1.5"):
        gated(fraction=1.5)
    with pytest.raises(ValueError, match="fraction is finite and 0 or more, got -0.5"):
        gated(fraction=-0.5)
    with pytest.raises(TypeError, match="fraction is one number, got None"):
        gated(fraction=None)  # type: ignore
    for wrong in (0.5, True, None):
        with pytest.raises(TypeError, match="seed is an integer, got"):
            gated(seed=wrong)  # type: ignore
