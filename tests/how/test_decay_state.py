# SPDX-License-Identifier: Apache-2.0
"""The engine's state: one structure, what it counts, what it remembers."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import (
    DECAYS,
    adam_chain,
    assert_same,
    every_decay,
    largest_difference,
    tree,
)

import optax_wd as wd

KERNELS = wd.named("kernel")


@every_decay
def test_state_has_one_structure_whatever_the_arguments(decay: Any) -> None:
    params = tree()
    kinds = set()
    rates = (0.0, 0.1, lambda step: 0.1, jnp.float32(0.1))
    masks = (wd.everything, KERNELS, False, wd.standard(params))
    factors = (None, 2.0, 0.0, wd.first_match((KERNELS, 0.5), default=1.0))
    for rate, mask, multiplier in itertools.product(rates, masks, factors):
        tx = decay(rate, mask, multiplier=multiplier)
        first = jax.eval_shape(tx.init, params)
        second = jax.eval_shape(tx.update, params, first, params)[1]
        for state in (first, second):
            leaves, structure = jax.tree.flatten(state)
            kinds.add((structure, *((x.shape, x.dtype.name) for x in leaves)))
    assert len(kinds) == 1


def test_state_holds_count_rate_and_no_memory() -> None:
    state: Any = wd.masked_decay(0.1).init(tree())
    assert isinstance(state, wd.DecayState)
    assert state._fields == ("decay_count", "decay_rate", "memory")
    assert (state.decay_count.shape, state.decay_count.dtype) == ((), jnp.int32)
    assert (state.decay_rate.shape, state.decay_rate.dtype) == ((), jnp.float32)
    assert state.memory == ()


def test_decay_rate_is_the_rate_last_applied() -> None:
    tx: Any = wd.masked_decay(lambda step: 0.5 - 0.125 * step)
    state, seen = tx.init(tree()), []
    seen.append(float(state.decay_rate))  # step 0's, before it
    for _ in range(3):
        _, state = tx.update(tree(), state, tree())
        seen.append(float(state.decay_rate))
    assert seen == [0.5, 0.5, 0.375, 0.25]
    assert state.decay_count == 3


def test_decay_rate_leaves_factors_out() -> None:
    tx: Any = wd.masked_decay(0.25, multiplier=4.0)
    _, state = tx.update(tree(), tx.init(tree()), tree())
    assert state.decay_rate == 0.25


def test_the_fields_are_found_in_the_state_of_a_whole_optimizer() -> None:
    tx = optax.chain(optax.clip_by_global_norm(1.0), adam_chain(wd.masked_decay(0.25)))
    state = tx.init(tree())
    assert optax.tree.get(state, "decay_rate") == 0.25
    assert optax.tree.get(state, "decay_count") == 0
    assert optax.tree.get(state, "count") == 0


def test_the_count_does_not_overflow() -> None:
    tx: Any = wd.masked_decay(0.1)
    last = jnp.asarray(2**31 - 1, jnp.int32)
    state = tx.init(tree())._replace(decay_count=last)
    count = tx.update(tree(), state, tree())[1].decay_count
    assert count == last and count.dtype == jnp.int32


def test_init_evaluates_neither_mask_nor_multiplier() -> None:
    def never(params: Any) -> Any:
        raise AssertionError("called")

    for decay in DECAYS.values():
        tx = decay(0.1, never, multiplier=never)
        assert tx.init(tree()).decay_count == 0
        with pytest.raises(AssertionError, match="^called$"):
            tx.update(tree(), tx.init(tree()), tree())


# Memory


def anchored(rate: Any = 0.5, mask: Any = wd.everything, **options: Any) -> Any:
    return DECAYS["anchored"](rate, mask, **options)


def test_memory_holds_the_initial_value_and_does_not_evolve() -> None:
    tx, start = anchored(), tree()
    state, params = tx.init(start), tree(2)
    zeros = jax.tree.map(jnp.zeros_like, start)
    _, state = tx.update(zeros, state, params)
    updates, state = tx.update(zeros, state, params)
    assert_same(state.memory, start)
    expected = jax.tree.map(lambda p, s: 0.5 * (p - s), params, start)
    assert largest_difference(updates, expected) < 1e-6


def test_memory_covers_inexact_leaves_whatever_the_mask() -> None:
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "n": jnp.asarray([3, 4])}
    for mask in (wd.everything, wd.nothing, wd.named("w")):
        memory = anchored(mask=mask).init(params).memory
        assert (memory["w"].shape, memory["w"].dtype) == ((2, 3), jnp.bfloat16)
        assert (memory["n"].shape, memory["n"].dtype) == ((), jnp.float32)


def test_memory_may_be_something_smaller_than_the_parameter() -> None:
    def towards_norm(u: jax.Array, p: jax.Array, norm: jax.Array) -> jax.Array:
        return p * (1.0 - norm / jnp.linalg.norm(p))

    tx: Any = wd.decay_along(towards_norm, 0.5, wd.everything, remember=jnp.linalg.norm)
    state = tx.init({"w": jnp.asarray([[3.0, 4.0]])})
    assert state.memory["w"].shape == ()
    params, zeros = {"w": jnp.asarray([[6.0, 8.0]])}, {"w": jnp.zeros((1, 2))}
    np.testing.assert_allclose(
        tx.update(zeros, state, params)[0]["w"], [[1.5, 2.0]], rtol=1e-6
    )


@pytest.mark.parametrize("remember", [lambda p: p, jnp.asarray, jnp.copy])
@pytest.mark.parametrize("compiled", [False, True])
def test_params_and_state_can_be_donated_together(
    remember: Any, compiled: bool
) -> None:
    tx: Any = wd.decay_along(
        lambda u, p, start: p - start, 0.5, wd.everything, remember=remember
    )

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(zeros, state, params)
        return jax.tree.map(lambda p, u: p - u + 1.0, params, updates), state

    params = {"w": jnp.zeros((2, 2))}
    state = (jax.jit(tx.init) if compiled else tx.init)(params)
    assert state.memory["w"] is not params["w"]
    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(3):
        params, state = step(params, state)
    np.testing.assert_array_equal(params["w"], np.full((2, 2), 1.75))
    np.testing.assert_array_equal(state.memory["w"], np.zeros((2, 2)))


def test_memory_survives_a_parameter_buffer_that_is_deleted() -> None:
    params = {"w": jnp.ones((2, 2))}
    state = anchored().init(params)
    params["w"].delete()
    np.testing.assert_array_equal(state.memory["w"], np.ones((2, 2)))


class Model(nnx.Module):
    def __init__(self) -> None:
        self.dense = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.count = nnx.Variable(jnp.asarray(0))


def test_memory_works_in_an_nnx_optimizer() -> None:
    model = Model()
    start = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(model, nnx.Param)))
    tx = optax.chain(anchored(0.5, wd.named("kernel")), optax.scale(-1.0))
    optimizer: Any = nnx.Optimizer(model, tx, wrt=nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: x + 1.0, nnx.state(model, nnx.Param)))

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        optimizer.update(
            model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
        )

    step(model, optimizer)
    dense: Any = nnx.as_pure(nnx.state(model, nnx.Param))["dense"]
    np.testing.assert_allclose(
        dense["kernel"], start["dense"]["kernel"] + 0.5, rtol=1e-6
    )
    np.testing.assert_array_equal(dense["bias"], start["dense"]["bias"] + 1.0)


def test_memory_of_an_nnx_state_meets_pure_arrays_at_update() -> None:
    params = nnx.state(Model(), nnx.Param)
    tx = anchored(0.5, wd.named("kernel"))
    state = tx.init(params)
    pure = nnx.as_pure(params)
    ones = jax.tree.map(lambda x: x + 1.0, pure)
    zeros = jax.tree.map(jnp.zeros_like, pure)
    for given in (state, nnx.as_pure(state)):
        updates: Any = tx.update(zeros, given, ones)[0]
        np.testing.assert_allclose(
            updates["dense"]["kernel"], np.full((2, 3), 0.5), rtol=1e-6
        )
        assert updates["dense"]["bias"] is zeros["dense"]["bias"]
