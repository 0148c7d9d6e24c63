# SPDX-License-Identifier: Apache-2.0
"""States that version 0.1 wrote are read, and runs go on from them as they did."""

import functools
from typing import Any

import flax.serialization
import golden_chains as golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import DATA, arrays, assert_same
from safetensors.numpy import load_file

import optax_wd as wd

FOLDER = DATA / "states" / "0.1"

every_chain = pytest.mark.parametrize("name", golden.CHAINS)


@functools.cache
def written() -> Any:
    return flax.serialization.msgpack_restore((FOLDER / "run.msgpack").read_bytes())


def empty(name: str) -> Any:
    return golden.CHAINS[name]().init(golden.params())


@functools.cache
def restored(name: str) -> Any:
    """The state as it was, in the structure of today's `init`."""
    return flax.serialization.from_state_dict(
        empty(name), written()["runs"][name]["state"]
    )


@functools.cache
def same_compiler() -> bool:
    """Whether programs without this package have the bits that they had then."""
    return bool(np.array_equal(golden.reference(), written()["reference"]))


def test_every_optimizer_has_a_state() -> None:
    assert set(written()["runs"]) == set(golden.CHAINS)


@every_chain
def test_a_run_goes_on_from_an_old_state_as_it_did(name: str) -> None:
    run, state = written()["runs"][name], restored(name)
    assert jax.tree.structure(state) == jax.tree.structure(empty(name))
    step = golden.step(golden.CHAINS[name]())
    params, after = step(run["params"], state, golden.gradients()[-1])
    assert jax.tree.structure(after) == jax.tree.structure(state)
    if same_compiler():
        assert_same(params, run["after"])
    for path, leaf in arrays(params).items():
        expected = arrays(run["after"])[path]
        np.testing.assert_allclose(leaf, expected, rtol=2e-6, atol=1e-6)


def test_old_states_are_read_from_safetensors() -> None:
    found = load_file(FOLDER / "states.safetensors")
    expected = arrays({name: restored(name) for name in golden.CHAINS})
    assert set(found) == set(expected)
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype
        np.testing.assert_array_equal(found[path], leaf)


def test_old_states_are_read_by_orbax() -> None:
    abstract = {name: jax.eval_shape(lambda n=name: empty(n)) for name in golden.CHAINS}
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore((FOLDER / "orbax").absolute(), abstract)
    assert_same(found, {name: restored(name) for name in golden.CHAINS})


DECAYS = [name for name in golden.CHAINS if "norms" not in name and "scale" not in name]


@pytest.mark.parametrize("name", DECAYS)
def test_counters_and_rates_of_old_states_are_found(name: str) -> None:
    assert optax.tree.get(restored(name), "decay_count") == golden.STEPS
    # what was applied last: the schedule's third value, or the constant
    rate, last = optax.tree.get(restored(name), "decay_rate"), golden.STEPS - 1
    assert rate in (np.float32(0.5), jnp.asarray(golden.RATE(last), jnp.float32))


def test_metrics_reads_an_old_state() -> None:
    found = wd.metrics(restored("with_metrics"))
    assert set(found) == {"all", *golden.params()}
    assert found["all"]["measured_step"] == 2
    assert found["attn"]["shrink"] > 0
    assert found["norm"]["shrink"] == 0


def test_audit_and_assert_decays_work_beside_old_states() -> None:
    tx, params = golden.CHAINS["adamw-cautious"](), golden.params()
    found = wd.audit(tx, params, state=restored("adamw-cautious"))
    kinds = {row.path: row.kind for row in found.rows}
    assert kinds["attn/query/kernel"] == "cautious"
    assert kinds["attn/query/bias"] == "none"
    wd.assert_decays(tx, params, golden.KERNELS)
    rows = {row.path: row for row in found.rows}
    expected: Any = golden.SPEED(golden.STEPS) * golden.RATE(golden.STEPS)
    shrink: Any = rows["attn/query/kernel"].shrink
    np.testing.assert_allclose(shrink, expected, rtol=1e-2)
