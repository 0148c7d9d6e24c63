# SPDX-License-Identifier: Apache-2.0
"""Newton-Schulz shared by 8 devices: values, places, and what the devices exchange."""

import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import ROOT
from pages import columns_of

import optax_wd as wd

TOLERANCE = 1e-5  # of parameters and states in float32 after three steps of 0.1
# Of the table in docs/muon.md: the names of its columns in what is measured.
SHARES = {"without": "None", '`P("data")`': "data", '`P(("data", "model"))`': "all"}
ROWS = {
    row["parameters lie"].split()[0]: row
    for row in columns_of("| parameters lie |", (ROOT / "docs" / "muon.md").read_text())
}
MESH = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))


@pytest.fixture(scope="module")
def report() -> Any:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    more = {
        "PYTHONPATH": path,
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "True",
    }
    command = [
        sys.executable,
        "-W",
        "error",
        str(ROOT / "tests/shared/eight_matrices.py"),
    ]
    done = subprocess.run(
        command, env=os.environ | more, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_values_are_those_of_one_device_and_arrays_stay_where_they_are(
    report: Any,
) -> None:
    assert len(report) == 10
    for name, found in report.items():
        assert found["difference"] < TOLERANCE, name
        assert found["moved"] == 0, name


def documented(cell: str) -> int:
    """How many collectives a cell of the table counts in all."""
    counts = re.findall(r"(\d+) all-|(\d+) coll", cell)
    assert counts or cell == "none"
    return sum(int(a or b) for a, b in counts)


@pytest.mark.parametrize("layout", ["replicated", "FSDP", "TP"])
def test_collectives_are_no_more_than_the_page_says(report: Any, layout: str) -> None:
    """No more, because XLA may find better ways; but it has to share something."""
    for column, name in SHARES.items():
        found = sum(report[f"{layout}, {name}"]["collectives"].values())
        said = documented(ROWS[layout][column])
        assert found <= said and (found > 0) == (said > 0), column


def test_shared_work_exchanges_less_than_split_products_do(report: Any) -> None:
    assert report["replicated, None"]["collectives"] == {}
    for layout in ("FSDP", "TP"):
        totals = {
            name: sum(report[f"{layout}, {name}"]["collectives"].values())
            for name in SHARES.values()
        }
        assert totals["data"] < totals["None"] > totals["all"]


@pytest.mark.parametrize("number", [1, 4, 6])
def test_each_device_has_a_share_and_what_fills_it_up_is_taken_off(
    number: int,
) -> None:
    share = jax.NamedSharding(MESH, jax.P("data"))
    params = {f"{n}": {"kernel": jnp.full((2, 3), n + 1.0)} for n in range(number)}
    tx, alone = (
        wd.muon(0.1, optax.identity(), ns_steps=1, distribute=given)
        for given in (share, None)
    )
    lowered = jax.jit(tx.update).lower(params, tx.init(params), params)
    per_device = math.ceil(number / 4)
    text = lowered.compile().as_text() or ""
    assert f"f32[{per_device},2,3]" in text and text.count(" all-gather(") <= 1
    found, _ = jax.jit(tx.update)(params, tx.init(params), params)
    expected, _ = jax.jit(alone.update)(params, alone.init(params), params)
    for name in params:
        assert jnp.allclose(found[name]["kernel"], expected[name]["kernel"], atol=1e-6)


@pytest.mark.parametrize("make", [wd.muon, wd.normuon], ids=["muon", "normuon"])
@pytest.mark.parametrize("given", ["data", jax.P("data"), MESH], ids=["a", "b", "c"])
def test_what_is_no_sharding_is_refused(make: Any, given: Any) -> None:
    with pytest.raises(TypeError, match="distribute takes a sharding of many matrices"):
        make(0.1, optax.identity(), distribute=given)


@pytest.mark.parametrize(
    "spec",
    [jax.P(), jax.P(None), jax.P(None, "data"), jax.P(None, None, "data"), jax.P(())],
    ids=str,
)
def test_a_sharding_of_other_axes_is_refused(spec: jax.P) -> None:
    sharding = jax.NamedSharding(MESH, spec)
    message = r"first axis of \(matrices, A, B\) and no other, got P.*; write jax.Named"
    with pytest.raises(ValueError, match=message):
        wd.muon(0.1, optax.identity(), distribute=sharding)


@pytest.mark.parametrize("spec", [jax.P("data", None), jax.P(("data",), None, None)])
def test_axes_that_are_not_sharded_may_be_said(spec: jax.P) -> None:
    tx = wd.muon(0.1, optax.identity(), distribute=jax.NamedSharding(MESH, spec))
    assert isinstance(tx, optax.GradientTransformationExtraArgs)


def test_a_mesh_of_explicit_axes_is_refused() -> None:
    kinds = jax.sharding.AxisType
    mesh = jax.make_mesh((4, 1), ("data", "model"), (kinds.Explicit, kinds.Auto))
    message = (
        r"distribute takes a mesh of Auto axes, got axis_types=\('Explicit', 'Auto'\); "
        r"make it with axis_types=\(jax.sharding.AxisType.Auto,\) \* 2"
    )
    with pytest.raises(ValueError, match=message):
        sharding = jax.NamedSharding(mesh, jax.P("data"))
        wd.muon(0.1, optax.identity(), distribute=sharding)


@pytest.mark.parametrize(
    "spec", [("data",), (None, "model"), ("data", "model")], ids=str
)
@pytest.mark.parametrize("make", [wd.muon, wd.normuon], ids=["muon", "normuon"])
def test_on_a_mesh_of_explicit_axes_all_is_as_on_one_device(
    make: Any, spec: tuple[str | None, ...]
) -> None:
    rng = np.random.default_rng(0)
    shapes = {"up": (4, 8), "query": (4, 4, 2), "bias": (8,)}
    params = {k: {"kernel": rng.normal(size=n)} for k, n in shapes.items()}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    tx = make(0.1, wd.masked_decay(0.1), ns_steps=2)
    expected, _ = tx.update(params, tx.init(params), params)
    mesh = jax.make_mesh((2, 2), ("data", "model"))  # Explicit, by default
    places = {k: jax.P(*spec) if len(n) > 1 else jax.P() for k, n in shapes.items()}
    placed = {
        k: jax.device_put(x, jax.NamedSharding(mesh, places[k]))
        for k, x in params.items()
    }
    for update in (tx.update, jax.jit(tx.update)):
        before = tx.init(placed)
        found, state = update(placed, before, placed)
        for name in params:
            a, b = found[name]["kernel"], expected[name]["kernel"]
            assert jnp.allclose(jax.device_get(a), b, atol=1e-6)
        # With what is split: float32[4@data,8].
        types = lambda tree: [str(jax.typeof(x)) for x in jax.tree.leaves(tree)]  # noqa: E731
        assert types((found, state)) == types((placed, before))


@pytest.mark.parametrize("make", [wd.muon, wd.normuon], ids=["muon", "normuon"])
def test_axes_that_a_shard_map_has_made_manual_stay_so(make: Any) -> None:
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)}
    tx = make(0.1, wd.masked_decay(0.1), ns_steps=2)

    def step(params: Any) -> Any:
        return tx.update(params, tx.init(params), params)[0]

    mesh = jax.make_mesh((2, 2), ("data", "model"))
    placed = jax.device_put(params, jax.NamedSharding(mesh, jax.P("model")))
    options: Any = {"in_specs": jax.P(), "out_specs": jax.P(), "check_vma": False}
    mapped = jax.shard_map(step, mesh=mesh, axis_names={"data"}, **options)
    found, expected = jax.jit(mapped)(placed), step(params)
    assert jnp.allclose(jax.device_get(found["kernel"]), expected["kernel"], atol=1e-6)
