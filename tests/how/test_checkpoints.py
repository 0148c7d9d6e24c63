# SPDX-License-Identifier: Apache-2.0
"""A checkpoint outlives a change of rate or mask: every pair, through Orbax."""

import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import DECAYS, assert_same

import optax_wd as wd

PARAMS: dict[str, Any] = {
    "dense": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)},
    "half": {"kernel": jnp.ones((3, 2), jnp.bfloat16)},
}
GRADS = jax.tree.map(lambda x: jnp.full_like(x, 2.0), PARAMS)

RATES: dict[str, Any] = {"number": 0.125, "schedule": lambda step: 0.5 / (1.0 + step)}
MASKS = {"kernels": wd.named("kernel"), "a tree": {"dense": True, "half": False}}
VARIANTS = list(itertools.product(RATES, MASKS))


def in_chain(decay: Callable[..., Any]) -> Callable[..., Any]:
    """A decay in a chain of one's own."""
    return lambda rate, mask: optax.chain(decay(rate, mask), optax.scale(-0.5))


def ready(optimizer: Callable[..., Any]) -> Callable[..., Any]:
    """A ready chain; its learning rate is a schedule where the decay's rate is one."""

    def make(rate: Any, mask: Any) -> optax.GradientTransformation:
        learning_rate = (
            0.5 if rate == RATES["number"] else optax.linear_schedule(0.5, 0.1, 9)
        )
        return optimizer(learning_rate, wd.cautious_weight_decay(rate, mask))

    return make


KINDS: dict[str, Callable[..., Any]] = {
    **{name: in_chain(decay) for name, decay in DECAYS.items()},
    "after the learning rate": in_chain(
        lambda rate, mask: wd.after_learning_rate(wd.masked_decay(rate, mask))
    ),
    "adamw": ready(wd.adamw),
    "sgdw": ready(wd.sgdw),
    "lion": ready(wd.lion),
}


def make(kind: str, variant: tuple[str, str]) -> Any:
    return KINDS[kind](RATES[variant[0]], MASKS[variant[1]])


@pytest.fixture
def checkpointer() -> Iterator[ocp.StandardCheckpointer]:
    with ocp.StandardCheckpointer() as checkpointer:
        yield checkpointer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("written", VARIANTS, ids="-".join)
def test_a_checkpoint_is_read_by_every_variant(
    kind: str,
    written: tuple[str, str],
    checkpointer: ocp.StandardCheckpointer,
    tmp_path: pathlib.Path,
) -> None:
    tx = make(kind, written)
    state = jax.tree.map(lambda x: jnp.full_like(x, 3), tx.init(PARAMS))
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    for read in VARIANTS:
        tx = make(kind, read)
        abstract = jax.eval_shape(tx.init, PARAMS)
        restored = checkpointer.restore(tmp_path / "state", abstract)
        assert_same(restored, state)
        after = jax.eval_shape(tx.update, GRADS, restored, PARAMS)[1]
        assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_run_goes_on_with_the_new_rate_and_mask(
    kind: str, checkpointer: ocp.StandardCheckpointer, tmp_path: pathlib.Path
) -> None:
    old, new = make(kind, ("number", "a tree")), make(kind, ("schedule", "kernels"))
    _, state = jax.jit(old.update)(GRADS, old.init(PARAMS), PARAMS)
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    abstract = jax.eval_shape(new.init, PARAMS)
    restored = checkpointer.restore(tmp_path / "state", abstract)
    assert optax.tree.get(restored, "decay_rate") == 0.125
    update = jax.jit(new.update)
    updates, after = update(GRADS, restored, PARAMS)
    assert optax.tree.get(after, "decay_rate") == 0.25  # 0.5 / (1 + 1)
    assert optax.tree.get(after, "decay_count") == 2
    assert_same(updates, update(GRADS, state, PARAMS)[0])


def test_a_state_of_another_structure_is_not_read(
    checkpointer: ocp.StandardCheckpointer, tmp_path: pathlib.Path
) -> None:
    """What happens to Optax's own decay, and what these tests would show."""
    old = optax.add_decayed_weights(RATES["number"])
    new = optax.add_decayed_weights(RATES["schedule"])
    checkpointer.save(tmp_path / "state", (old.init(PARAMS), jnp.ones(2)))
    checkpointer.wait_until_finished()
    abstract = jax.eval_shape(new.init, PARAMS), jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(ValueError, match="structure"):
        checkpointer.restore(tmp_path / "state", abstract)
