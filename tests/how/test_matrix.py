# SPDX-License-Identifier: Apache-2.0
"""Muon and NorMuon: the iteration, the momentum, and what decays by how much."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import forms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from helpers import DATA, assert_same, largest_difference, noise, run
from helpers import quick_compiles as quick_compiles

import optax_wd as wd

NONE = optax.identity()
# One step of the iteration is quick to compile, and enough where it is not the subject.
BOTH: dict[str, Callable[..., Any]] = {
    "muon": functools.partial(wd.muon, ns_steps=1),
    "normuon": functools.partial(wd.normuon, ns_steps=1),
}
both = pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)
# NorMuon goes through everything that Muon does; where that is enough, it is quicker.
longer = pytest.mark.parametrize("make", [BOTH["normuon"]], ids=["normuon"])
TRIPLE = (3.4445, -4.7750, 2.0315)


def once(tx: Any, updates: Any, params: Any) -> Any:
    """The updates of the first step, compiled, which is quicker than step by step."""
    return jax.jit(tx.update)(updates, tx.init(params), params)[0]


def tree(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Attention as of Flax, a wide and a tall kernel, a norm, a table."""
    rng = np.random.default_rng(seed)
    shapes = {
        "query": {"kernel": (6, 2, 4), "bias": (2, 4)},
        "out": {"kernel": (2, 4, 6), "bias": (6,)},
        "wide": {"kernel": (6, 8)},
        "tall": {"kernel": (8, 6)},
        "norm": {"scale": (6,)},
        "embed": {"embedding": (9, 6)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


SIDES = {  # of each matrix: inputs and outputs
    "query/kernel": (6, 8),
    "out/kernel": (8, 6),
    "wide/kernel": (6, 8),
    "tall/kernel": (8, 6),
}


def flat(params: Any) -> dict[str, np.ndarray]:
    return {
        path: np.asarray(x, np.float64) for path, x in forms.answers(params).items()
    }


def orthogonal(x: np.ndarray, steps: Any = (TRIPLE,) * 5) -> np.ndarray:
    """The iteration in float64, on the singular values alone."""
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s = s / np.linalg.norm(s)
    for a, b, c in steps:
        s = a * s + b * s**3 + c * s**5
    return u * s @ v


def direction(x: Any, **options: Any) -> Any:
    """What is subtracted for one gradient, without momentum, size and decay."""
    options = {"beta": 0.0, "nesterov": False, "consistent_rms": None} | options
    tx = wd.muon(-1.0, NONE, matrices=wd.everything, **options)
    return once(tx, x, jax.tree.map(jnp.zeros_like, x))


# -------------------------------------------------------------------- the iteration


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (5, 1)])
def test_singular_values_go_to_one_and_singular_vectors_stay(
    shape: tuple[int, int],
) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype("f4")
    size = max(1.0, shape[1] / shape[0]) ** 0.5
    found = np.asarray(direction({"k": jnp.asarray(x)})["k"], np.float64) / size
    np.testing.assert_allclose(found, orthogonal(x), atol=2e-5)
    values = np.linalg.svd(found, compute_uv=False)
    assert values.min() > 0.65 and values.max() < 1.25


def test_bfloat16_iterates_to_nearly_the_same() -> None:
    x = {"k": jnp.asarray(np.random.default_rng(1).normal(size=(8, 24)), jnp.float32)}
    exact = np.asarray(direction(x)["k"])
    found = np.asarray(direction(x, ns_dtype=jnp.bfloat16)["k"])
    assert found.dtype == np.float32
    assert 1e-4 < np.abs(found - exact).max() < 0.1
    values = np.linalg.svd(found, compute_uv=False) / 3**0.5
    assert values.min() > 0.6 and values.max() < 1.3


def test_each_step_may_have_its_own_coefficients() -> None:
    triples = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (1.5, -0.5, 0.0))
    x = np.random.default_rng(2).normal(size=(5, 5)).astype("f4")
    found = direction({"k": jnp.asarray(x)}, ns_coeffs=triples)["k"]
    np.testing.assert_allclose(found, orthogonal(x, triples), atol=1e-5)
    found = direction({"k": jnp.asarray(x)}, ns_steps=2)["k"]
    np.testing.assert_allclose(found, orthogonal(x, (TRIPLE,) * 2), atol=1e-5)


def test_it_is_the_iteration_of_optax() -> None:
    x = jnp.asarray(np.random.default_rng(3).normal(size=(7, 4)), jnp.float32)
    theirs = once(optax.contrib.scale_by_muon(beta=0.0, nesterov=False), x, x)
    assert largest_difference(direction(x), theirs) < 2e-6


@pytest.mark.parametrize("scale", [1e20, 1e-20])
def test_gradients_may_be_large_or_small(scale: float) -> None:
    """In one batch with others, which stay as they are."""
    x = np.random.default_rng(3).normal(size=(4, 4)).astype("f4")
    found = direction({"a": jnp.asarray(x) * scale, "b": jnp.asarray(x)}, eps=0.0)
    for name in ("a", "b"):
        np.testing.assert_allclose(found[name], orthogonal(x), atol=2e-5)


def test_eps_is_added_to_the_norm_of_the_gradient_itself() -> None:
    x = {"k": jnp.full((2, 2), 3.0)}  # of norm 6
    found = direction(x, eps=6.0, ns_coeffs=(1.0, 0.0, 0.0))["k"]
    np.testing.assert_allclose(found, 0.25, rtol=1e-6)


@longer
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_without_a_gradient_a_matrix_stays_where_it_is(make: Any, dtype: str) -> None:
    params = {"k": jnp.ones((3, 4), dtype)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert_same(once(make(0.1, NONE), zeros, params), zeros)
    matrices = {"kernel": jnp.zeros((2, 3))}
    assert_same(once(wd.muon(0.1, NONE, eps=0.0), matrices, matrices), matrices)


def test_float64_leaves_are_orthogonalised_in_float64() -> None:
    with jax.enable_x64(True):
        x = np.random.default_rng(4).normal(size=(5, 5))
        found = direction({"k": jnp.asarray(x)}, eps=0.0)["k"]
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, orthogonal(x), atol=1e-12)


@pytest.mark.parametrize(
    "coefficients",
    [(1.0, 2.0), ((1.0, 2.0),), (), "dion", None, 3.0, (1.0, float("nan"), 0.0)],
)
def test_coefficients_that_are_no_triples_are_refused(coefficients: Any) -> None:
    with pytest.raises(ValueError, match="ns_coeffs takes three numbers such as"):
        wd.muon(0.1, NONE, ns_coeffs=coefficients)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None])
def test_a_number_of_steps_that_is_none_is_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match="ns_steps is a whole number, 1 or more, got"):
        wd.normuon(0.1, NONE, ns_steps=steps)


@pytest.mark.parametrize("steps", [2, 4])
def test_as_many_triples_as_steps_are_asked_for(steps: int) -> None:
    make = functools.partial(wd.muon, 0.1, NONE, ns_coeffs=(TRIPLE,) * 3)
    with pytest.raises(ValueError, match=f"for 3 steps, but ns_steps={steps}; write"):
        make(ns_steps=steps)
    make(ns_steps=3)
    make()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a size of False": ({"consistent_rms": False}, "consistent_rms is one number, got"),
    "a size of True": ({"consistent_rms": True}, "consistent_rms is one number, got"),
    "a size of 0": ({"consistent_rms": 0.0}, "consistent_rms is a finite number abo"),
    "a size below 0": ({"consistent_rms": -1.0}, "consistent_rms is a finite number"),
    "eps below 0": ({"eps": -1e-8}, "^eps is finite and 0 or more, got -1e-08"),
    "eps that is none": ({"eps": None}, "^eps is one number, got None"),
    "beta of 1": ({"beta": 1.0}, r"beta is a number in \[0, 1\), got 1.0"),
    "beta below 0": ({"beta": -0.1}, r"beta is a number in \[0, 1\), got -0.1"),
    "beta that is none": ({"beta": None}, r"beta is a number in \[0, 1\), got None"),
    "adam_b1": ({"adam_b1": 1}, r"adam_b1 is a number in \[0, 1\), got 1;"),
    "adam_b2": (
        {"adam_b2": jnp.asarray(0.999, jnp.bfloat16)},
        r"adam_b2 is .* by rounding, give optax.inject_hyperparams a hyperparam_dtype",
    ),
    "ns_dtype": ({"ns_dtype": jnp.int32}, "ns_dtype is a dtype such as jnp.bfloat16"),
    "mu_dtype": ({"mu_dtype": "int8"}, "mu_dtype is a dtype .*, got 'int8'"),
    "no rate": ({"learning_rate": None}, "^learning_rate takes a number or a schedule"),
    "a text": ({"learning_rate": "1"}, "^learning_rate takes a number or a schedule"),
    "another rate": ({"adam_learning_rate": "1"}, "^adam_learning_rate takes a number"),
}


@both
@pytest.mark.parametrize("case", WRONG)
def test_numbers_and_dtypes_that_cannot_be_are_refused(case: str, make: Any) -> None:
    options, message = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=message):
        make(**{"learning_rate": 0.1, "decay": NONE} | options)


@pytest.mark.parametrize(
    "rule",
    [wd.owned_by("Linear") & wd.named("kernel"), ~wd.declared("sharding")],
    ids=repr,
)
def test_matrices_are_not_chosen_by_what_only_the_model_knows(rule: wd.Rule) -> None:
    message = r"^matrices asks about paths, .* got (owned_by|declared)\('.*'.*\), which"
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    for ask in (
        lambda: wd.muon(0.1, NONE, matrices=rule),
        lambda: wd.describe_matrices(model, matrices=rule),
    ):
        with pytest.raises(TypeError, match=message):
            ask()


def test_a_model_is_described_as_the_optimizers_see_it() -> None:
    model, rule = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), wd.optional(wd.owned_by("Linear"))
    for tree in (model, nnx.state(model, nnx.Param)):
        with pytest.raises(ValueError, match="asks for the module that holds"):
            wd.describe_matrices(tree, matrices=rule)


def test_a_decay_rate_of_the_neurons_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^b2 is a number in \[0, 1\), got 1.0"):
        wd.normuon(0.1, NONE, b2=1.0)


# ---------------------------------------------------------------- against references


@pytest.mark.parametrize("layout", ["weight", "kernel"])
def test_normuon_does_what_its_authors_code_does(layout: str) -> None:
    """Recorded from SingleDeviceNorMuon, in torch's layout and turned to Flax's."""
    data = np.load(DATA / "normuon.npz")

    def turned(key: str) -> Any:
        parts = [data[f"{key}/{n}"] for n in range(3)]
        if layout == "kernel":
            parts = [np.swapaxes(x, -1, -2) for x in parts]
        return [{layout: jnp.asarray(x)} for x in parts]

    gradients, expected = turned("grads"), turned("params")
    tx = wd.normuon(0.02, wd.masked_decay(0.3), consistent_rms=None)
    each = [jax.tree.map(lambda g, t=t: g[t], gradients) for t in range(10)]
    seen, _ = run(tx, turned("params0"), each)
    for t in range(10):
        then = jax.tree.map(lambda x, t=t: x[t], expected)
        assert largest_difference(seen[t], then) < 1e-5


def test_normuon_tells_input_from_output() -> None:
    data = np.load(DATA / "normuon.npz")
    params = [{"weight": jnp.asarray(data["params0/0"])}]
    gradients = [[{"weight": jnp.asarray(g)}] for g in data["grads/0"]]
    wrong = wd.first_match((wd.named("weight"), "io"))
    tx = wd.normuon(0.02, wd.masked_decay(0.3), consistent_rms=None, folds=wrong)
    seen, _ = run(tx, params, gradients)
    assert np.abs(seen[-1][0]["weight"] - data["params/0"][-1]).max() > 1e-2


def reference(
    params: Any,
    gradients: list[Any],
    rates: np.ndarray,
    consistent_rms: float | None,
    b2: float | None,
) -> dict[str, np.ndarray]:
    """The matrices of `tree` after Nesterov momentum 0.9 and decay 0.5, in float64."""
    found = {}
    for path, (inputs, outputs) in SIDES.items():
        x = flat(params)[path]
        shape, x = x.shape, x.reshape(inputs, outputs)
        m, v = np.zeros_like(x), np.zeros((1, outputs))
        size = max(1.0, outputs / inputs) ** 0.5
        if consistent_rms is not None:
            size = consistent_rms * max(inputs, outputs) ** 0.5
        for rate, grads in zip(rates, gradients, strict=True):
            g = flat(grads)[path].reshape(inputs, outputs)
            m = 0.9 * m + 0.1 * g
            o = orthogonal(0.9 * m + 0.1 * g)
            if b2 is not None:
                v = b2 * v + (1 - b2) * np.mean(o**2, axis=0, keepdims=True)
                even = o / np.sqrt(v)
                norm = np.linalg.norm(o)
                if consistent_rms is not None:
                    norm = min(inputs, outputs) ** 0.5
                o = even * norm / np.linalg.norm(even)
            x = x - rate * (size * o + 0.5 * x)
        found[path] = x.reshape(shape)
    return found


@pytest.mark.parametrize(
    ("consistent_rms", "b2"), [(0.2, None), (None, 0.8), (0.3, 0.8)]
)
def test_it_follows_a_loop_in_numpy(consistent_rms: Any, b2: float | None) -> None:
    params, gradients = tree(), noise(tree(), 5)
    schedule = optax.linear_schedule(0.1, 0.02, 5)
    options: dict[str, Any] = {"beta": 0.9, "consistent_rms": consistent_rms}
    make = wd.muon if b2 is None else functools.partial(wd.normuon, b2=b2)
    seen, _ = run(make(schedule, wd.masked_decay(0.5), **options), params, gradients)
    rates = np.asarray([schedule(t) for t in range(5)], np.float64)
    expected = reference(params, gradients, rates, consistent_rms, b2)
    for path, values in expected.items():
        np.testing.assert_allclose(flat(seen[-1])[path], values, atol=2e-5)


def test_the_root_mean_square_of_normuon_is_what_is_asked_for() -> None:
    (grads,) = noise(tree(), 1)
    updates = once(wd.normuon(1.0, NONE, consistent_rms=0.3, ns_steps=1), grads, grads)
    for path in SIDES:
        rms = np.sqrt(np.mean(flat(updates)[path] ** 2))
        assert rms == pytest.approx(0.3, rel=1e-5)


def test_without_nesterov_it_is_muon_of_optax() -> None:
    """Where dimensions are given by hand, and the decay is masked: it agrees."""
    numbers = optax.contrib.MuonDimensionNumbers
    axes = {
        "query/kernel": numbers((0,), (1, 2)),
        "out/kernel": numbers((0, 1), (2,)),
        "wide/kernel": numbers(),
        "tall/kernel": numbers(),
    }
    params, gradients = tree(), noise(tree(), 5)
    theirs = optax.contrib.muon(
        *(0.05,),
        nesterov=False,
        ns_steps=2,
        weight_decay=0.5,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=jax.tree.unflatten(
            jax.tree.structure(params), [axes.get(path) for path in flat(params)]
        ),
    )
    ours = wd.muon(0.05, wd.masked_decay(0.5), ns_steps=2, nesterov=False)
    found, expected = (run(tx, params, gradients)[0][-1] for tx in (ours, theirs))
    assert largest_difference(found, expected) < 1e-5


# --------------------------------------------------------------------------- leaves


@longer
def test_all_that_is_no_matrix_goes_to_adamw(make: Any) -> None:
    params, gradients = tree(), noise(tree(), 4)
    decay = wd.cautious_weight_decay(0.5, wd.everything)
    options = {"adam_b1": 0.8, "adam_b2": 0.9, "eps": 1e-3, "adam_eps_root": 1e-4}
    found, _ = run(make(0.05, decay, **options), params, gradients)
    adamw = wd.adamw(0.05, decay, b1=0.8, b2=0.9, eps=1e-3, eps_root=1e-4)
    expected, _ = run(adamw, params, gradients)
    for path, value in flat(found[-1]).items():
        same = np.allclose(value, flat(expected[-1])[path], atol=1e-6)
        assert same == (path not in SIDES), path


@longer
def test_the_others_may_have_a_learning_rate_of_their_own(make: Any) -> None:
    params, gradients = tree(), noise(tree(), 4)
    decay = wd.masked_decay(0.5, wd.everything)
    slow, fast = (lambda t: 0.01 * (t + 1)), 0.1
    found, state = run(make(fast, decay, adam_learning_rate=slow), params, gradients)
    expected = run(make(fast, decay), params, gradients)[0]
    others = run(make(slow, decay), params, gradients)[0]
    for path, value in flat(found[-1]).items():
        like = expected if path in SIDES else others
        np.testing.assert_array_equal(value, flat(like[-1])[path])
    assert optax.tree.get(state, "learning_rate_count") == 4


@longer
def test_in_a_batch_each_matrix_is_as_it_is_alone(make: Any) -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    found = once(make(0.1, NONE), grads, params)
    alone = once(make(0.1, NONE), {"out": grads["out"]}, {"out": params["out"]})
    assert largest_difference(found["out"], alone["out"]) < 1e-6


@pytest.mark.parametrize(("name", "axis"), [("muon", 0), ("normuon", 1)])
def test_stacked_layers_move_as_the_layers_do(name: str, axis: int) -> None:
    layers, make = [tree(seed)["query"] for seed in range(2)], BOTH[name]
    gradients = [noise(layer, 2, seed) for seed, layer in enumerate(layers)]

    def stack(trees: Any) -> Any:
        return {"query": jax.tree.map(lambda *x: jnp.stack(x, axis), *trees)}

    tx = make(0.1, NONE, stacked=((wd.contains("query"), axis),))
    found, _ = run(tx, stack(layers), [stack(g) for g in zip(*gradients, strict=True)])
    for n, layer in enumerate(layers):
        one = [{"query": g} for g in gradients[n]]
        expected, _ = run(make(0.1, NONE), {"query": layer}, one)
        own = jax.tree.map(lambda x, n=n: jnp.take(x, n, axis), found[-1])
        assert largest_difference(own, expected[-1]) < 1e-6


@longer
def test_every_expert_is_a_matrix_of_its_own(make: Any) -> None:
    params = {"experts": {"kernel": jnp.ones((3, 4, 5))}}
    (grads,) = noise(params, 1)
    found = once(make(0.1, NONE), grads, params)["experts"]["kernel"]
    alone = {"kernel": grads["experts"]["kernel"][2]}
    expected = once(make(0.1, NONE), alone, alone)["kernel"]
    np.testing.assert_allclose(found[2], expected, atol=1e-6)


# ---------------------------------------------------------------------------- decay


@pytest.mark.parametrize(
    ("make", "consistent_rms"),
    [(BOTH["muon"], 0.2), (BOTH["normuon"], None)],
    ids=["muon", "normuon"],
)
def test_the_shrink_is_the_learning_rate_times_the_decay(
    make: Any, consistent_rms: Any
) -> None:
    params = tree()
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = make(0.1, wd.masked_decay(0.5), consistent_rms=consistent_rms)
    for path, update in flat(once(tx, zeros, params)).items():
        expected = -0.05 * flat(params)[path] * (path in SIDES)
        np.testing.assert_allclose(update, expected, rtol=1e-6)


@longer
def test_who_decays_is_said_by_the_mask_and_not_by_who_is_a_matrix(make: Any) -> None:
    params = tree()
    zeros = jax.tree.map(jnp.zeros_like, params)
    mask = wd.contains("wide", "embed", "norm")
    found = once(make(0.1, wd.masked_decay(0.5, mask)), zeros, params)
    moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), found)
    assert moved == mask(params)
    with pytest.raises(ValueError, match=r"contains\('wdie'\) matches no leaf"):
        once(make(0.1, wd.masked_decay(0.5, wd.contains("wdie"))), zeros, params)


@both
def test_gates_read_the_final_direction(make: Any) -> None:
    """Not the momentum, whose signs differ, and not what an earlier decay has made."""
    params, (grads,) = tree(), noise(tree(), 1)
    kernels, options = wd.named("kernel"), {"beta": 0.5}
    plain = once(make(0.1, NONE, **options), grads, params)
    first = wd.masked_decay(10.0, kernels)
    gated = optax.chain(first, wd.cautious_weight_decay(0.5, kernels))
    found = once(make(0.1, gated, **options), grads, params)
    before = once(make(0.1, first, **options), grads, params)
    differ = 0
    for path in SIDES:
        x, o = flat(params)[path], -flat(plain)[path]
        decayed = np.abs(flat(found)[path] - flat(before)[path]) > 1e-5
        np.testing.assert_array_equal(decayed, o * x >= 0)
        differ += int(np.sum(np.sign(o) != np.sign(flat(grads)[path])))
    assert differ > 10


@longer
def test_a_decay_after_the_learning_rate_stands_last(make: Any) -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    last = wd.after_learning_rate(wd.masked_decay(0.01))
    found = once(make(0.1, last), grads, params)
    plain = once(make(0.1, NONE), grads, params)
    for path, update in flat(found).items():
        expected = flat(plain)[path] - 0.01 * flat(params)[path] * (path in SIDES)
        np.testing.assert_allclose(update, expected, atol=1e-6)


@both
def test_a_decay_that_is_no_transformation_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match=r"got 0.1; write masked_decay\(0.1\), or opt"):
        make(0.1, 0.1)


TWO = {
    "before, before": (wd.masked_decay(0.5), wd.masked_decay(0.25, wd.everything)),
    "after, before": (
        wd.after_learning_rate(wd.masked_decay(0.05)),
        wd.masked_decay(0.25, wd.everything),
    ),
    "before, after": (
        wd.masked_decay(0.5, wd.everything),
        wd.after_learning_rate(wd.masked_decay(0.025, ~wd.named("wdie"))),
    ),
    "after, after": (
        wd.after_learning_rate(wd.masked_decay(0.05, wd.everything)),
        wd.after_learning_rate(wd.masked_decay(0.025, wd.everything)),
    ),
}


@pytest.mark.parametrize("places", TWO)
def test_two_decays_have_their_leaves_wherever_they_stand(places: str) -> None:
    """A name that matches nothing, `wdie`, passes: each sees a part of the tree."""
    params, (decay, adam_decay) = tree(), TWO[places]
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = BOTH["normuon"](0.1, decay, adam_decay=adam_decay)
    for path, update in flat(once(tx, zeros, params)).items():
        shrink = 0.05 if path in SIDES else 0.025
        np.testing.assert_allclose(update, -shrink * flat(params)[path], rtol=1e-6)


@longer
def test_two_equal_decays_are_the_one_on_the_whole_tree(make: Any) -> None:
    """Masks and gates: the signs are those of `O`, and those of Adam's direction."""
    params, gradients = tree(), noise(tree(), 3)
    decay = wd.cautious_weight_decay(lambda t: 0.5 / (1 + t), ~wd.contains("norm"))
    found, state = run(make(0.1, decay, adam_decay=decay), params, gradients)
    expected, _ = run(make(0.1, decay), params, gradients)
    assert largest_difference(found[-1], expected[-1]) < 1e-6
    first = make(0.1, decay, adam_decay=decay).init(params)
    assert jax.tree.structure(first) == jax.tree.structure(state)


@both
def test_a_decay_of_the_rest_that_is_no_transformation_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match="^adam_decay takes a transformation, got 0.1;"):
        make(0.1, NONE, adam_decay=0.1)


SPECTRAL = {"lr": 0.05, "decay": 0.5, "low": 0.65, "high": 1.25}


def spectral_norm(decay: Any, gradient: Any, start: float, steps: int) -> float:
    """After some steps along one gradient, from a multiple of the identity."""
    tx = wd.muon(SPECTRAL["lr"], decay, consistent_rms=None)

    def step(_: Any, carry: Any) -> Any:
        params, state = carry
        updates, state = tx.update({"kernel": gradient}, state, params)
        return optax.apply_updates(params, updates), state

    params = {"kernel": start * jnp.eye(6)}
    carry = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))
    return float(jnp.linalg.norm(carry[0]["kernel"], 2))


@pytest.mark.parametrize("start", [0.0, 20.0])
def test_plain_decay_keeps_the_spectral_norm_below_its_inverse(start: float) -> None:
    """The ball `1 / decay`, times 0.65 to 1.25, where the iteration leaves values."""
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
    norm = spectral_norm(wd.masked_decay(SPECTRAL["decay"]), gradient, start, 400)
    assert SPECTRAL["low"] < norm * SPECTRAL["decay"] < SPECTRAL["high"]


def test_under_cautious_decay_a_constant_gradient_leaves_that_ball() -> None:
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
    decay = wd.cautious_weight_decay(SPECTRAL["decay"])
    norm = spectral_norm(decay, gradient, 0.0, 400)
    assert norm * SPECTRAL["decay"] > 4 * SPECTRAL["high"]


# ---------------------------------------------------------------------------- state


@both
def test_the_state_has_one_structure_and_names_of_its_own(make: Any) -> None:
    params, decay = tree(), wd.masked_decay(0.1)
    state = make(0.1, decay).init(params)
    others = [
        make(lambda t: 0.1, decay, beta=0.5, nesterov=False, consistent_rms=None),
        make(0.1, wd.cautious_weight_decay(lambda t: 0.1, wd.everything)),
        make(0.1, decay, adam_learning_rate=lambda t: 0.2, ns_steps=2, eps=1e-3),
    ]
    for other in others:
        assert jax.tree.structure(other.init(params)) == jax.tree.structure(state)
    for name in ("mu", "nu", "count", "matrix_momentum", "neuron_squares"):
        assert optax.tree.get(state, name) is not None, name
    for name in ("decay_rate", "decay_count", "learning_rate_count"):
        assert jnp.shape(optax.tree.get(state, name)) == (), name


@both
def test_the_state_is_as_large_as_is_said(make: Any) -> None:
    state = make(0.1, NONE).init(tree())
    (momentum,) = [s.inner_state for s in state[0][:1]]
    assert sum(x.size for x in jax.tree.leaves(momentum.matrix_momentum)) == 4 * 48
    neurons = {path: x.shape for path, x in flat(momentum.neuron_squares).items()}
    shapes = {
        "query/kernel": (1, 2, 4),
        "out/kernel": (1, 1, 6),
        "wide/kernel": (1, 8),
        "tall/kernel": (1, 6),
    }
    assert neurons == ({} if make is BOTH["muon"] else shapes)
    assert sum(x.size for x in jax.tree.leaves(state)) == (
        4 * 48 + 2 * (8 + 6 + 6 + 54) + (28 if make is BOTH["normuon"] else 0) + 2
    )


@longer
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_it_compiles_once_keeps_dtypes_and_may_be_donated(
    make: Any, dtype: str
) -> None:
    params = tree(0, dtype)
    tx = make(lambda t: 0.1 / (1 + t), wd.masked_decay(lambda t: 0.1 / (1 + t)))
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, grads: Any) -> Any:
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    for grads in noise(params, 3):
        params, state = step(params, state, grads)
    assert len(traces) == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == kinds
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(params))


def test_momenta_may_have_another_dtype() -> None:
    state: Any = wd.muon(0.1, NONE, mu_dtype=jnp.bfloat16).init(tree())
    for name in ("matrix_momentum", "mu"):
        kept = jax.tree.leaves(optax.tree.get(state, name))
        assert {x.dtype for x in kept} == {jnp.dtype("bfloat16")}


@longer
def test_bfloat16_is_rounded_once(make: Any) -> None:
    params, gradients = tree(0, "bfloat16"), noise(tree(0, "bfloat16"), 1)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (params, gradients[0]))
    exact = once(make(1.0, NONE), wide[1], wide[0])
    found = once(make(1.0, NONE), gradients[0], params)
    for path in SIDES:
        np.testing.assert_allclose(flat(found)[path], flat(exact)[path], rtol=2**-8)


# ---------------------------------------------------------------- other surroundings


@longer
def test_parts_of_a_tree_are_trained_as_the_parts_alone(make: Any) -> None:
    params, (grads,) = tree(), noise(tree(), 1)
    tx = make(0.1, wd.masked_decay(0.5))
    chosen = wd.contains("query", "norm")
    labels = wd.first_match((chosen, "one"), default="other")
    found = once(optax.partition({"one": tx, "other": NONE}, labels), grads, params)
    alone, values = ({k: t[k] for k in ("query", "norm")} for t in (grads, params))
    expected = once(tx, alone, values)
    for name in ("query", "norm"):
        assert largest_difference(found[name], expected[name]) < 1e-6
    assert_same(found["wide"], grads["wide"])


@longer
def test_there_may_be_no_matrix_and_nothing_else(make: Any) -> None:
    params = {"bias": jnp.ones(3), "gone": None}
    found = once(make(0.1, NONE), params, params)
    np.testing.assert_allclose(found["bias"], -0.1, rtol=1e-5)
    lone = jnp.ones((2, 3))
    assert once(make(0.1, NONE, matrices=wd.everything), lone, lone).shape == (2, 3)


@both
def test_parameters_of_the_state_can_be_told(make: Any) -> None:
    tx = make(0.1, wd.masked_decay(0.1))
    state = tx.init(tree())
    found = optax.tree.map_params(tx, lambda x: "param", state)
    kinds = [x for x in jax.tree.leaves(found) if isinstance(x, str)]
    assert len(kinds) == 4 + 2 * 4 + (4 if make is BOTH["normuon"] else 0)


@longer
def test_under_inject_hyperparams_numbers_can_be_set(make: Any) -> None:
    static = (
        *("decay", "matrices", "folds", "stacked", "nesterov"),
        *("ns_coeffs", "ns_steps", "adam_decay", "distribute"),
    )
    inject = optax.inject_hyperparams(make, static_args=static)
    tx = inject(learning_rate=0.1, decay=wd.masked_decay(0.5))
    params, (grads,) = tree(), noise(tree(), 1)
    state: Any = tx.init(params)
    for name, value in {
        "learning_rate": 0.2,
        "beta": 0.5,
        "consistent_rms": 1.0,
    }.items():
        state.hyperparams[name] = jnp.asarray(value)
    found, _ = jax.jit(tx.update)(grads, state, params)
    tx = make(0.2, wd.masked_decay(0.5), beta=0.5, consistent_rms=1.0)
    assert largest_difference(found, once(tx, grads, params)) < 1e-5


@both
def test_the_learning_rate_alone_can_be_injected_into_bfloat16(make: Any) -> None:
    params = {"k": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
    tx = optax.inject_hyperparams(lambda learning_rate: make(learning_rate, NONE))(0.5)
    state: Any = tx.init(params)
    assert list(state.hyperparams) == ["learning_rate"]
    _, state = tx.update(params, state, params)
    updates, _ = tx.update(params, state, params)
    assert all(bool(jnp.all(jnp.isfinite(u))) for u in jax.tree.leaves(updates))


@both
def test_a_rule_taken_for_a_schedule_is_told_how_to_inject(make: Any) -> None:
    tx = optax.inject_hyperparams(make, static_args=("ns_steps", "ns_coeffs"))
    with pytest.raises(TypeError, match="matrices, folds.* into muon inject the learn"):
        tx(0.1, NONE).init(tree())


def test_an_nnx_optimizer_takes_it() -> None:
    model = forms.concrete(forms.nnx_abstract()).attn
    tx = wd.normuon(0.1, wd.cautious_weight_decay(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    nnx.jit(lambda m, o, g: o.update(m, g))(model, optimizer, grads)
    pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    zeros = jax.tree.map(jnp.zeros_like, pure)
    expected = once(tx, jax.tree.map(jnp.ones_like, zeros), zeros)
    assert largest_difference(pure, expected) < 1e-6


@longer
def test_equinox_models_take_it_and_are_told_that_weights_are_out_by_in(
    make: Any,
) -> None:
    model = eqx.nn.Sequential(
        [eqx.nn.Linear(4, 6, key=jax.random.key(0)), eqx.nn.Lambda(jax.nn.relu)]
    )
    params = eqx.filter(model, eqx.is_inexact_array)
    found: Any = once(make(0.1, NONE), params, params)
    kernel = {"kernel": params[0].weight.T}
    expected = once(make(0.1, NONE), kernel, kernel)["kernel"].T
    np.testing.assert_allclose(found[0].weight, expected, atol=1e-6)


# ---------------------------------------------------------------------------- audit


def attention(kind: str) -> Any:
    """The parameters of Flax attention, abstract."""
    if kind == "linen":
        return forms.linen_abstract()["attn"]
    return nnx.state(forms.nnx_abstract().attn, nnx.Param)


def audited(tx: Any, params: Any) -> dict[str, tuple[str, float]]:
    rows = wd.audit(tx, params).rows
    return {row.path: (row.kind, row.shrink or 0.0) for row in rows}


@pytest.mark.parametrize(
    ("make", "kind", "decay"),
    [
        (wd.muon, "linen", "decoupled"),
        (wd.normuon, "nnx", "cautious"),
    ],
    ids=["muon linen", "normuon nnx"],
)
def test_the_audit_sees_kernels_of_attention_decay_and_no_bias(
    make: Any, kind: str, decay: str
) -> None:
    method = wd.masked_decay if decay == "decoupled" else wd.cautious_weight_decay
    found = audited(make(0.1, method(0.2), ns_steps=1), attention(kind))
    for path, (told, shrink) in found.items():
        is_kernel = path.endswith("kernel")
        assert told == (decay if is_kernel else "none"), path
        assert shrink == pytest.approx(0.02 if is_kernel else 0.0, rel=2e-3)
    assert len(found) == 8


def test_the_audit_catches_what_muon_of_optax_decays_there() -> None:
    theirs = optax.contrib.muon(0.1, weight_decay=0.2, ns_steps=1)
    found = audited(theirs, attention("linen"))
    decayed = {path for path, (kind, _) in found.items() if kind != "none"}
    assert decayed == {"query/bias", "key/bias", "value/bias"}


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_a_state_of_other_matrices_is_refused_with_their_names(name: str) -> None:
    make = functools.partial(getattr(wd, name), 0.1, wd.masked_decay(0.1))
    params = {"a": {"kernel": jnp.ones((3, 4))}, "b": {"kernel": jnp.ones((3, 4))}}
    old, new = make(matrices=wd.matrices & ~wd.contains("b")), make()
    state = old.init(params)
    for update in (new.update, jax.jit(new.update)):
        with pytest.raises(ValueError, match="other matrices than matrices: .* b/kern"):
            update(params, state, params)
    old.update(params, state, params)
    legacy = make(matrices=wd.roles.matrices_0_1)
    legacy.update(params, legacy.init(params), params)
