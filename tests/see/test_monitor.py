# SPDX-License-Identifier: Apache-2.0
"""`with_metrics` measures what NumPy computes, and leaves the step as it is."""

import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from forms import NNXBlock
from helpers import assert_same, noise, once, small_tree, tree

import optax_wd as wd
from optax_wd._see.monitor.metrics import Metrics
from optax_wd._see.monitor.monitor import MetricsState

KERNELS = wd.named("kernel")
RATE, DECAY = 0.125, 0.5
LABELS = wd.first_match((wd.contains("mlp"), "mlp"), default="rest")
FIELDS = Metrics._fields[1:]


def watched(tx: Any, every: int = 1, groups: Any = None) -> Any:
    return wd.with_metrics(tx, every=every, groups=groups)


def stepper(tx: Any) -> Any:
    """A whole step; parameters and state are donated, as in training."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def measured(tx: Any, params: Any, updates: Any = None, groups: Any = None) -> Any:
    """What the first step measures."""
    tx = watched(tx, groups=groups)
    updates = params if updates is None else updates
    return wd.metrics(jax.jit(tx.update)(updates, tx.init(params), params)[1])


def text(found: Any) -> str:
    """For comparisons in which NaN equals NaN."""
    return json.dumps(found, sort_keys=True)


def given(update: Any) -> optax.GradientTransformation:
    """An optimizer whose update is the given one, whatever comes."""
    return optax.stateless(lambda updates, params: update)


# --------------------------------------------------------------- what NumPy computes


def reference(x: Any, u: Any, d: Any, dtype: Any = np.float32) -> dict[str, Any]:
    """The metrics of flat float64 arrays; `u` and its part `d` are subtracted."""
    is_open, changed = d * x > 0, (x - u).astype(dtype) != x.astype(dtype)
    cosine = u @ x / (np.linalg.norm(u) * np.linalg.norm(x))
    new = x - u
    straight = new @ x / (np.linalg.norm(new) * np.linalg.norm(x))
    return {
        "shrink": d @ x / (x @ x),
        "open_fraction": is_open.mean(),
        "decay_over_update": np.linalg.norm(d) / np.linalg.norm(u),
        "weight_rms": np.sqrt(np.mean(x**2)),
        "overlap": np.maximum(u * x, 0).sum(),
        "cosine": cosine,
        "angle": np.arccos(straight),
        "changed": changed.mean(),
        "changed_open": changed[is_open].mean() if is_open.any() else math.nan,
    }


def flat(tree: Any, *names: str) -> np.ndarray:
    """All numbers of the chosen modules in one float64 vector."""
    parts = [jax.tree.leaves(tree[name]) for name in names]
    return np.concatenate([np.asarray(x, np.float64).ravel() for p in parts for x in p])


def plain(update: Any, x: Any) -> Any:
    return RATE * DECAY * x


def cautious(update: Any, x: Any) -> Any:
    """Plain decay where the rest of the step shrinks the weight, or is 0."""
    return np.where(np.sign(update) * np.sign(x) >= 0, RATE * DECAY * x, 0.0)


CASES: dict[str, tuple[Any, Any]] = {
    "sgdw": (wd.sgdw(RATE, wd.masked_decay(DECAY, KERNELS)), plain),
    "sgdw, cautious": (
        wd.sgdw(RATE, wd.cautious_weight_decay(DECAY, KERNELS)),
        cautious,
    ),
    "optax.adamw": (optax.adamw(RATE, weight_decay=DECAY, mask=KERNELS), plain),
    "adamw": (wd.adamw(RATE, wd.masked_decay(DECAY, KERNELS)), plain),
    "adamw, cautious": (
        wd.adamw(RATE, wd.cautious_weight_decay(DECAY, KERNELS)),
        cautious,
    ),
    "behind the learning rate": (
        optax.chain(
            optax.adam(RATE),
            wd.after_learning_rate(wd.masked_decay(RATE * DECAY, KERNELS)),
        ),
        plain,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_quantity_is_what_numpy_computes(name: str) -> None:
    tx, decay = CASES[name]
    without = {
        "sgdw": optax.sgd(RATE),
        "sgdw, cautious": optax.sgd(RATE),
    }.get(name, optax.adam(RATE))
    params = tree()
    state, rest = watched(tx, groups=LABELS).init(params), without.init(params)
    update, bare = jax.jit(watched(tx, groups=LABELS).update), jax.jit(without.update)
    for grads in noise(params, 3):
        updates, state = update(grads, state, params)
        others, rest = bare(grads, rest, params)
        found = wd.metrics(state)
        subtracted = jax.tree.map(lambda v: -np.asarray(v, np.float64), updates)
        decays = jax.tree_util.tree_map_with_path(
            lambda path, v, x: (
                decay(-np.asarray(v, np.float64), np.asarray(x, np.float64))
                if path[-1].key == "kernel"
                else np.zeros(x.shape)
            ),
            others,
            params,
        )
        assert set(found) == {"all", "mlp", "rest"}
        for group, names in {
            "all": ("attn", "mlp", "norm"),
            "mlp": ("mlp",),
            "rest": ("attn", "norm"),
        }.items():
            arrays = [flat(t, *names) for t in (params, subtracted, decays)]
            for field, value in reference(*arrays).items():
                close = pytest.approx(value, rel=2e-5, abs=1e-6)
                assert found[group][field] == close, (group, field)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("shape", [(3, 256), (512,), (2, 3, 5), (0, 256), (3, 1)])
def test_sums_do_not_depend_on_the_shape(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    x, g = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    more = {"w": jnp.asarray(x), "b": jnp.ones(2)}
    grads = {"w": jnp.asarray(g), "b": jnp.zeros(2)}
    tx = wd.sgdw(RATE, wd.masked_decay(DECAY, wd.everything))
    found = measured(tx, more, grads)["all"]
    x64 = np.concatenate([x.ravel(), np.ones(2)]).astype(np.float64)
    u64 = RATE * np.concatenate([g.ravel(), np.zeros(2)]) + RATE * DECAY * x64
    for field, value in reference(x64, u64, RATE * DECAY * x64).items():
        if field != "angle" or shape != (0, 256):  # of parallel vectors, see below
            assert found[field] == pytest.approx(value, rel=1e-5), field


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float16, jnp.complex64])
def test_other_dtypes_are_measured_too(dtype: Any) -> None:
    with jax.enable_x64(True):
        x = jnp.asarray([[1.0, -2.0], [3.0, 4.0]], dtype)
        x = x * (1 + 1j) if dtype == jnp.complex64 else x
        tx = wd.sgdw(0.5, wd.masked_decay(0.5, wd.everything))
        found = measured(tx, {"w": x}, {"w": jnp.zeros_like(x)})["all"]
    assert found["shrink"] == 0.25 and found["decay_over_update"] == 1.0
    assert found["open_fraction"] == found["changed"] == found["changed_open"] == 1.0
    assert found["overlap"] == 0.25 * 30.0 * (1 + (dtype == jnp.complex64))
    assert found["weight_rms"] == pytest.approx(7.5**0.5)


def test_small_angles_keep_their_digits() -> None:
    x, u = jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, -1e-6])
    assert measured(given(u), x)["all"]["angle"] == pytest.approx(1e-6, rel=1e-6)
    assert measured(given(-0.25 * x), x)["all"]["angle"] == 0.0
    assert measured(given(-2.0 * x), x)["all"]["angle"] == pytest.approx(math.pi)
    assert measured(given(0.0 * x), x)["all"]["angle"] == 0.0


def test_what_is_divided_by_zero_is_nan() -> None:
    zero = measured(optax.sgd(1.0), jnp.zeros(3), jnp.ones(3))["all"]
    assert math.isnan(zero["shrink"]) and math.isnan(zero["cosine"])
    assert zero["overlap"] == 0.0 and zero["changed"] == 1.0


def test_growth_is_a_negative_shrink() -> None:
    params = {"w": jnp.ones((2, 3))}
    tx = optax.chain(optax.sgd(0.5), optax.add_decayed_weights(0.25))
    found = measured(tx, params)["all"]
    assert (found["shrink"], found["open_fraction"]) == (-0.25, 0.0)


def test_l2_shows_through_the_preconditioner() -> None:
    """Of the first step of Adam it is next to nothing: the step is a sign."""
    params = {"w": jnp.full((2, 3), 2.0)}
    coupled = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5))
    assert measured(coupled, params)["all"]["shrink"] == pytest.approx(0.05)
    adam = optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.5))
    assert measured(adam, params)["all"]["shrink"] == pytest.approx(0.0, abs=1e-6)


def test_t16_bf16_weights_that_cannot_change_are_told() -> None:
    params = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for rate, changed in ((1e-5, 0.0), (0.5, 1.0)):
        decay = wd.after_learning_rate(wd.masked_decay(rate, wd.everything))
        found = measured(decay, params, zeros)["all"]
        assert found["shrink"] == pytest.approx(rate, rel=1e-2)
        assert found["open_fraction"] == 1.0
        assert found["changed"] == found["changed_open"] == changed


# -------------------------------------------------------------------------- groups


PAIR: dict[str, Any] = {
    "attn": {"w": jnp.ones(2), "v": jnp.ones(2)},
    "mlp": {"w": jnp.full(2, 4.0)},
}
GROUPS: dict[str, Any] = {
    "table": LABELS,
    "function": lambda params: {k: "mlp" if k == "mlp" else "rest" for k in params},
    "prefix tree": {"attn": "rest", "mlp": "mlp"},
    "whole tree": {"attn": {"w": "rest", "v": "rest"}, "mlp": {"w": "mlp"}},
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_a_table_a_function_or_a_tree(name: str) -> None:
    found = measured(optax.sgd(1.0), PAIR, groups=GROUPS[name])
    sizes = {group: fields["weight_rms"] for group, fields in found.items()}
    assert sizes == pytest.approx({"all": 6**0.5, "mlp": 4.0, "rest": 1.0})


def test_groups_are_by_default_the_first_tokens() -> None:
    tx = watched(optax.sgd(1.0))
    assert set(wd.metrics(tx.init(tree()))) == {"all", "attn", "mlp", "norm"}
    assert set(wd.metrics(tx.init(jnp.ones(3)))) == {"all", "array"}


def test_leaves_without_numbers_belong_to_no_group() -> None:
    params = {
        "w": jnp.ones(3),
        "step": jnp.ones(4, jnp.int32),
        "key": jax.random.key(0),
    }
    tx = optax.masked(optax.sgd(0.5), {"w": True, "step": False, "key": False})
    found = measured(tx, params)
    assert set(found) == {"all", "w"} and text(found["all"]) == text(found["w"])
    assert found["all"]["overlap"] == 1.5


@pytest.mark.parametrize("hole", [None, optax.MaskedNode()], ids=["None", "masked"])
def test_leaves_that_are_absent_are_left_out(hole: Any) -> None:
    params = {**PAIR, "head": hole}
    whole = measured(optax.sgd(1.0), PAIR)
    assert text(measured(optax.sgd(1.0), params)) == text(whole)


def test_leaves_without_an_update_are_measured_as_still() -> None:
    found = measured(
        given({"a": None, "b": -jnp.ones(2)}), {"a": jnp.ones(2), "b": jnp.ones(2)}
    )
    assert found["a"]["changed"] == found["a"]["overlap"] == 0.0
    assert found["all"]["changed"] == 0.5


# ------------------------------------------------------------------------ the step


OPTIMIZERS: dict[str, Any] = {
    "sgdw": lambda: wd.sgdw(0.1, wd.masked_decay(0.1), momentum=0.9),
    "optax.adamw": lambda: optax.adamw(1e-3, weight_decay=0.1),
    "adamw, cautious": lambda: wd.adamw(1e-3, wd.cautious_weight_decay(0.1)),
    "lion": lambda: wd.lion(optax.linear_schedule(0.0, 1e-3, 9), wd.masked_decay(1.0)),
    "lamb, clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.lamb(1e-3, weight_decay=0.1)
    ),
    "MultiSteps": lambda: optax.MultiSteps(wd.sgdw(0.1, wd.masked_decay(0.1)), 2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_and_state_are_those_of_the_optimizer(name: str) -> None:
    params, tx = small_tree(), OPTIMIZERS[name]()
    wrapped = watched(tx, every=2)
    state, inner = wrapped.init(params), tx.init(params)
    one, other = jax.jit(wrapped.update), jax.jit(tx.update)
    for grads in noise(params, 2):
        ours, state = one(grads, state, params)
        theirs, inner = other(grads, inner, params)
        both = (ours, state.inner), (theirs, inner)
        assert jax.tree.structure(both[0]) == jax.tree.structure(both[1])
        for a, b in zip(*map(jax.tree.leaves, both), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=2e-6)


def test_without_a_compiler_updates_are_the_same_bit_for_bit() -> None:
    params, tx = PAIR, optax.adamw(1e-3, weight_decay=0.1)
    (grads,) = noise(params, 1)
    for a, b in zip(
        jax.tree.leaves(once(watched(tx), grads, params)),
        jax.tree.leaves(once(tx, grads, params)),
        strict=True,
    ):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_it_measures_every_k_steps_and_then_only() -> None:
    tx = watched(wd.sgdw(0.1, wd.masked_decay(0.1)), every=3)
    params = small_tree()
    step, state, seen = stepper(tx), tx.init(params), []
    for grads in noise(params, 7):
        params, state = step(params, state, grads)
        found = wd.metrics(state)["all"]
        seen.append((found["measured_step"], found["weight_rms"]))
    assert [n for n, _ in seen] == [0, 0, 3, 3, 3, 6, 6]
    assert math.isnan(seen[1][1]) and seen[2][1] == seen[4][1] != seen[5][1]
    assert state.metrics_count == 7


def test_it_measures_the_parameters_before_the_step() -> None:
    tx = watched(optax.sgd(0.5), every=2)
    params = {"w": jnp.ones(4)}
    _, state = tx.update(params, tx.init(params), params)
    _, state = tx.update(params, state, {"w": jnp.full(4, 3.0)})
    assert wd.metrics(state)["w"]["weight_rms"] == 3.0


def test_state_holds_scalars_and_has_one_structure() -> None:
    params = tree()
    tx = watched(optax.sgd(1.0))
    first = jax.eval_shape(tx.init, params)
    second = jax.eval_shape(tx.update, params, first, params)[1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), first) == jax.tree.map(
        lambda x: (x.shape, x.dtype), second
    )
    assert isinstance(first, MetricsState)
    assert first._fields == ("metrics_count", "metrics", "inner")
    for group in first.metrics.values():
        assert isinstance(group, Metrics)
        assert [x.shape for x in group] == [()] * len(group)
        assert [x.dtype.name for x in group] == ["int32"] + ["float32"] * len(FIELDS)


def test_it_compiles_once_and_nothing_is_sent_to_the_host() -> None:
    tx = watched(wd.adamw(1e-3, wd.masked_decay(0.1)), every=2)
    params = small_tree()
    gradients, traces = noise(params, 4), []

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    with jax.transfer_guard("disallow"):
        for grads in gradients:
            params, state = step(params, state, grads)
    assert len(traces) == 1 and wd.metrics(state)["all"]["measured_step"] == 4


def test_it_runs_inside_scan() -> None:
    params = small_tree()
    tx = watched(wd.sgdw(0.1, wd.masked_decay(0.1)), every=2)
    gradients = noise(params, 5)

    def body(carry: Any, grads: Any) -> tuple[Any, None]:
        updates, state = tx.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    stacked = jax.tree.map(lambda *g: jnp.stack(g), *gradients)
    (scanned, state), _ = jax.lax.scan(body, (params, tx.init(params)), stacked)
    again, step = tx.init(params), stepper(tx)
    for grads in gradients:
        params, again = step(params, again, grads)
    for field in Metrics._fields:
        expected = pytest.approx(wd.metrics(again)["mlp"][field], rel=1e-5)
        assert wd.metrics(state)["mlp"][field] == expected
    assert wd.metrics(state)["mlp"]["measured_step"] == 4


def test_the_state_is_updated_in_place_on_all_steps() -> None:
    """Copies of parameters and moments would take 12 bytes for each parameter."""
    params = {f"w{n}": jnp.ones((256, 256)) for n in range(4)}
    tx = watched(optax.adamw(1e-3), every=10)
    lowered = stepper(tx).lower(params, tx.init(params), params)
    compiled = lowered.compile()
    size = sum(x.size for x in params.values())
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * size
    copies = re.findall(r"f32\[256,256\]\S* copy\(", str(compiled.as_text()))
    assert copies == []


SPECS = {
    "both": jax.P("x", "y"),
    "rows": jax.P("x"),
    "columns": jax.P(None, "y"),
    "narrow": jax.P("y", "x"),
}


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_of_sharded_parameters_only_scalars_travel(kind: str) -> None:
    types = (getattr(jax.sharding.AxisType, kind),) * 2
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=types)
    rng = np.random.default_rng(4)
    host = {
        name: rng.normal(size=(8, 6 if name == "narrow" else 256)).astype(np.float32)
        for name in SPECS
    }
    tx = watched(wd.adamw(1e-3, wd.cautious_weight_decay(0.1, wd.everything)))
    expected = measured(
        wd.adamw(1e-3, wd.cautious_weight_decay(0.1, wd.everything)), host
    )
    with jax.set_mesh(mesh):
        params = {
            name: jax.device_put(x, jax.NamedSharding(mesh, SPECS[name]))
            for name, x in host.items()
        }
        state = jax.jit(tx.init)(params)
        compiled = jax.jit(tx.update).lower(params, state, params).compile()
        updates, state = compiled(params, state, params)
    program = str(compiled.as_text())
    calls = re.findall(r"= (.+?) (all-\w+|collective-\w+|reduce-scatter)\(", program)
    shapes = {s for result, _ in calls for s in re.findall(r"\w+\[[\d,]*\]", result)}
    assert {name for _, name in calls} == {"all-reduce"} and shapes == {"f32[]"}
    for name in SPECS:
        place = jax.NamedSharding(mesh, SPECS[name])
        assert updates[name].sharding.is_equivalent_to(place, 2)
    for group, fields in wd.metrics(state).items():
        assert fields == pytest.approx(expected[group], rel=1e-4, nan_ok=True), group


def test_the_steps_of_multi_steps_are_real_ones() -> None:
    params = small_tree()
    inner = wd.sgdw(0.5, wd.masked_decay(0.5))
    for tx in (
        optax.MultiSteps(watched(inner, every=2), 2).gradient_transformation(),
        watched(optax.MultiSteps(inner, 2), every=4),
    ):
        weights, step, state = params, stepper(tx), tx.init(params)
        weights = jax.tree.map(jnp.copy, params)
        for grads in noise(params, 4):
            weights, state = step(weights, state, grads)
        found = wd.metrics(state)
        assert found["attn"]["shrink"] == pytest.approx(0.25)
        assert found["all"]["changed"] == 1.0


def test_extra_arguments_are_passed_on() -> None:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        factor = extra["factor"]
        return jax.tree.map(lambda u, p: factor * (u + p), updates, params), state

    tx = watched(
        optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    )
    params = {"w": jnp.ones((2, 2))}
    updates, state = jax.jit(tx.update)(params, tx.init(params), params, factor=-0.25)
    assert_same(updates, {"w": jnp.full((2, 2), -0.5)})
    assert wd.metrics(state)["w"]["shrink"] == 0.25


def test_a_partition_without_leaves_is_passed_by() -> None:
    params = {"w": jnp.ones(3)}
    tx = optax.partition(
        {"a": watched(optax.sgd(1.0)), "b": optax.sgd(1.0)}, {"w": "b"}
    )
    assert_same(once(tx, params, params), {"w": -jnp.ones(3)})


def test_optax_tree_map_params_sees_through_it() -> None:
    params = tree()
    tx = watched(optax.adam(1e-3))
    state: Any = optax.tree_map_params(
        tx, lambda x: "param", tx.init(params), transform_non_params=lambda x: "other"
    )
    assert set(jax.tree.leaves(state.inner[0].mu)) == {"param"}
    assert set(jax.tree.leaves((state.metrics, state.metrics_count))) == {"other"}


# ------------------------------------------------------------------------- reading


def test_metrics_are_found_wherever_the_state_is() -> None:
    model = NNXBlock(nnx.Rngs(0))
    tx = watched(wd.sgdw(0.5, wd.masked_decay(0.5)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    nnx.jit(lambda optimizer, model: optimizer.update(model, grads))(optimizer, model)
    expected = wd.metrics(optimizer.opt_state)
    assert set(expected) == {"all", "attn", "mlp", "norm"}
    assert expected["all"]["measured_step"] == 1
    assert expected["mlp"]["shrink"] == pytest.approx(0.25)
    assert expected["norm"]["shrink"] == 0.0
    as_state = nnx.state(optimizer)
    assert text(wd.metrics(as_state)) == text(expected)
    assert text(wd.metrics(nnx.to_pure_dict(as_state))) == text(expected)
    params = small_tree()
    fit: Any = TrainState.create(apply_fn=print, params=params, tx=optax.chain(tx))
    assert set(wd.metrics(fit)) == {"all", "attn", "mlp"}


def test_metrics_are_python_numbers_by_group() -> None:
    tx = watched(optax.sgd(1.0), groups={"attn": "a/b", "mlp": "metrics", "norm": "c"})
    found = wd.metrics(tx.init(tree()))
    assert set(found) == {"all", "a/b", "metrics", "c"}
    for fields in found.values():
        assert tuple(fields) == Metrics._fields
        assert [type(v) for v in fields.values()] == [int, *[float] * len(FIELDS)]
    assert json.loads(json.dumps(found))["all"] == pytest.approx(
        found["all"], nan_ok=True
    )


def test_before_the_first_measurement_there_are_no_numbers() -> None:
    found = wd.metrics(watched(optax.sgd(1.0)).init(tree()))["all"]
    assert found["measured_step"] == 0
    assert all(math.isnan(found[field]) for field in FIELDS)


def test_the_fields_of_the_state_do_not_collide_with_those_of_optax() -> None:
    state = watched(optax.adamw(1e-3)).init(tree())
    assert optax.tree.get(state, "count") == 0
    assert optax.tree.get(state, "metrics_count") == 0
    assert set(optax.tree.get(state, "metrics")) == {"all", "attn", "mlp", "norm"}


# ------------------------------------------------------------------------ spectrum


def test_the_spectrum_is_that_of_numpy() -> None:
    params = {
        **tree(),
        "half": jnp.ones((2, 2), jnp.bfloat16),
        "n": jnp.ones((2, 2), int),
    }
    found = wd.spectrum(params)
    assert set(found) == {"attn/kernel", "attn/bias", "mlp/kernel", "half"}
    folded = np.asarray(params["attn"]["kernel"], np.float64).reshape(8, 3)
    values = np.linalg.svd(folded, compute_uv=False)
    one = found["attn/kernel"]
    np.testing.assert_allclose(one.singular_values, values, rtol=1e-5)
    assert one.norm == pytest.approx(values[0])
    assert one.condition == pytest.approx(values[0] / values[-1])
    assert one.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2)


def test_the_spectrum_of_special_matrices() -> None:
    zero = wd.spectrum({"w": jnp.zeros((2, 3))})["w"]
    assert zero.norm == 0.0 and math.isnan(zero.condition)
    assert wd.spectrum({"w": jnp.diag(jnp.asarray([1.0, 0.0]))})["w"].condition > 1e30
    turned = jnp.asarray([[0.0, 1j], [2.0, 0.0]])
    assert wd.spectrum({"w": turned})["w"].condition == pytest.approx(2.0)
    model = NNXBlock(nnx.Rngs(0))
    assert {"mlp/kernel", "attn/out/kernel"} < set(wd.spectrum(nnx.state(model)))


# -------------------------------------------------------------------------- errors


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "no optimizer": (
        lambda: wd.with_metrics(3),  # pyright: ignore[reportArgumentType]
        TypeError,
        "tx takes an optimizer with init and update, got 3",
    ),
    "every is no int": (
        lambda: watched(optax.sgd(1.0), every=2.0),  # pyright: ignore[reportArgumentType]
        TypeError,
        "every takes a whole number such as 100, got 2.0",
    ),
    "every is a bool": (
        lambda: watched(optax.sgd(1.0), every=True),
        TypeError,
        "every takes a whole number such as 100, got True",
    ),
    "every is 0": (
        lambda: watched(optax.sgd(1.0), every=0),
        ValueError,
        "every has to be 1 or more, got 0",
    ),
    "a mask for groups": (
        lambda: measured(optax.sgd(1.0), tree(), groups=KERNELS),
        TypeError,
        "groups gives False at 'attn/bias', where a label belongs; write first_match",
    ),
    "a group called all": (
        lambda: measured(optax.sgd(1.0), tree(), groups=lambda t: {"attn": "all"}),
        ValueError,
        "groups is a tree that has no entry for 'mlp/bias'",
    ),
    "an own group all": (
        lambda: measured(optax.sgd(1.0), {"all": jnp.ones(2)}),
        ValueError,
        "groups gives 'all' at 'all', which is the group of all parameters; choose",
    ),
    "no parameters": (
        lambda: watched(optax.sgd(1.0)).update({}, watched(optax.sgd(1.0)).init({})),
        ValueError,
        r"with_metrics needs the parameters, got params=None; call tx.update\(grads,",
    ),
    "no state": (
        lambda: wd.metrics(optax.adamw(1e-3).init(tree())),
        ValueError,
        "the state holds 0 states of with_metrics, not one; wrap the whole optimizer",
    ),
    "two states": (
        lambda: wd.metrics(watched(watched(optax.sgd(1.0))).init(tree())),
        ValueError,
        "the state holds 2 states of with_metrics, not one; wrap the whole optimizer",
    ),
    "no matrix": (
        lambda: wd.spectrum({"b": jnp.ones(3)}),
        ValueError,
        "found no matrix in the dict; pass the tree of parameters",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(name: str) -> None:
    act, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        act()


def test_parameters_that_are_named_as_metrics_are_not_taken_for_them() -> None:
    params = {"metrics": {"angle": jnp.ones(3), "shrink": jnp.ones(2)}}
    state = wd.with_metrics(optax.adamw(0.1)).init(params)
    assert set(wd.metrics(state)) == {"all", "metrics"}


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chain", ["adamw", "sgdw", "lion"])
def test_closed_coordinates_are_not_opened_by_rounding_in_a_compiled_step(
    chain: str, fraction: float
) -> None:
    # Where a compiler subtracts before it rounds, what is left of a coordinate that
    # does not decay has either sign: half of them would count as open.
    rng = np.random.default_rng(0)
    params, grads = (
        {"kernel": jnp.asarray(rng.normal(size=(100, 300)), jnp.float32)}
        for _ in range(2)
    )
    decay = wd.controls.randomly_gated_weight_decay(0.5, fraction=fraction, seed=0)
    tx = wd.with_metrics(getattr(wd, chain)(5e-3, decay), every=1)
    state = tx.init(params)
    for _ in range(2):
        _, state = jax.jit(tx.update)(grads, state, params)
        found = wd.metrics(state)["all"]["open_fraction"]
        assert found == pytest.approx(fraction, abs=0.01 * (0 < fraction < 1))
