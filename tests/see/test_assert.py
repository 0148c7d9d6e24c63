# SPDX-License-Identifier: Apache-2.0
"""`assert_decays` measures: it passes for what decays as asked, and else fails."""

import ast
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from helpers import assert_same
from helpers import quick_compiles as quick_compiles
from jax.core import Tracer

import optax_wd as wd


def leaf(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def params(dtype: Any = jnp.float32) -> dict[str, Any]:
    """A layer with a bias of two dimensions, as in Flax attention."""
    return {
        "attn": {"bias": leaf(2, 2, dtype=dtype), "kernel": leaf(2, 3, dtype=dtype)}
    }


STANDARD: Any = wd.standard  # decays attn/kernel
SCHEDULE = optax.linear_schedule(0.0, 1e-3, 100)  # begins with 0
LABELS = wd.first_match((STANDARD, "decay"), default="rest")


def by_rank(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, tree)


def by_name(tree: Any) -> Any:
    return {"attn": {"bias": False, "kernel": True}}


def injected(make: Callable[..., Any], **options: Any) -> Any:
    return optax.inject_hyperparams(make, static_args="mask")(**options)


def simple(mask: Any = STANDARD, rate: float = 0.5) -> Any:
    """The simplest optimizer that decays: quick to compile."""
    return wd.sgdw(0.5, wd.masked_decay(rate, mask))


def multi_steps(k: int) -> Any:
    return optax.MultiSteps(simple(), k)


def behind(decay: Any) -> Any:
    """A finished optimizer with a decay behind its learning rate."""
    return optax.chain(optax.sgd(0.5), decay)


# ------------------------------------------------------------------- what is right


RIGHT: dict[str, Any] = {
    "optax.adamw": lambda: optax.adamw(1e-3, weight_decay=0.1, mask=STANDARD),
    "optax.adamw, function": lambda: optax.adamw(1e-3, mask=by_name),
    "optax.lamb": lambda: optax.lamb(1e-3, weight_decay=0.1, mask=STANDARD),
    "optax.adafactor": lambda: optax.adafactor(
        1e-3, weight_decay_rate=1e-4, weight_decay_mask=STANDARD
    ),
    "adamw": lambda: wd.adamw(1e-3, wd.masked_decay(0.1)),
    "adamw, cautious": lambda: wd.adamw(1e-3, wd.cautious_weight_decay(0.1)),
    "sgdw": lambda: wd.sgdw(0.1, wd.masked_decay(5e-4), momentum=0.9),
    "sgdw, cautious": lambda: wd.sgdw(0.1, wd.cautious_weight_decay(5e-4)),
    "lion": lambda: wd.lion(1e-4, wd.masked_decay(1.0)),
    "lion, cautious": lambda: wd.lion(1e-4, wd.cautious_weight_decay(1.0)),
    "l1": lambda: wd.sgdw(0.1, wd.decay_along(lambda u, p: jnp.sign(p), 1e-4)),
    "anchored": lambda: wd.sgdw(
        0.1, wd.decay_along(lambda u, p, m: p - m, 1e-4, remember=lambda p: p)
    ),
    "L2": lambda: optax.chain(wd.masked_decay(1e-4), optax.adam(1e-3)),
    "after_learning_rate": lambda: behind(
        wd.after_learning_rate(wd.masked_decay(1e-6))
    ),
    "after_learning_rate, Optax": lambda: behind(
        wd.after_learning_rate(optax.add_decayed_weights(1e-6, STANDARD))
    ),
    "MultiSteps": lambda: multi_steps(4),
    "MultiSteps, transformation": lambda: multi_steps(8).gradient_transformation(),
    "warm-up": lambda: wd.sgdw(SCHEDULE, wd.masked_decay(0.1)),
    "warm-up of the decay": lambda: wd.sgdw(1e-3, wd.masked_decay(SCHEDULE)),
    "warm-up of both": lambda: wd.sgdw(SCHEDULE, wd.cautious_weight_decay(SCHEDULE)),
    "partition": lambda: optax.partition(
        {"decay": simple(wd.everything), "rest": optax.sgd(1e-3)}, LABELS
    ),
    "masked": lambda: optax.masked(simple(wd.everything), STANDARD),
    "inject_hyperparams": lambda: injected(
        optax.adamw, learning_rate=1e-3, mask=STANDARD
    ),
    "inject_hyperparams, ours": lambda: optax.chain(
        injected(wd.masked_decay, weight_decay=0.1), optax.scale(-1.0)
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(simple(), 3),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), simple()),
    "factors": lambda: wd.sgdw(
        1e-3, wd.masked_decay(0.1, multiplier={"attn": np.asarray([[0.0], [2.0]])})
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_it_passes_for_what_decays_as_the_mask_says(name: str) -> None:
    wd.assert_decays(RIGHT[name](), params(), STANDARD)


def test_it_passes_for_any_form_of_the_mask() -> None:
    for mask in (
        wd.named("kernel"),
        ~wd.contains("bias"),
        wd.first_match((wd.named("kernel"), True), default=False),
        by_name,
        by_name(None),
        freeze(by_name(None)),
        jax.tree.map(np.bool_, by_name(None)),
    ):
        wd.assert_decays(simple(), params(), mask)
    wd.assert_decays(simple(wd.everything), params(), True)
    wd.assert_decays(optax.sgd(1e-3), params(), False)
    wd.assert_decays(optax.sgd(1e-3), params(), wd.nothing)


# -------------------------------------------------------------------- what is wrong

KERNEL = "attn/kernel (2, 3): expected decay, measured shrink "
BIAS = "attn/bias (2, 2): expected no decay, measured shrink "

WRONG: dict[str, tuple[Any, list[str]]] = {
    "the mask is dropped": (
        lambda: optax.adamw(1e-3, weight_decay=0.1),
        [BIAS + "0.0001 per step"],
    ),
    "rank decides": (
        lambda: optax.adamw(1e-3, weight_decay=0.1, mask=by_rank),
        [BIAS + "0.0001 per step"],
    ),
    "all leaves decay, ours": (
        lambda: wd.lion(1e-3, wd.cautious_weight_decay(0.1, wd.everything)),
        [BIAS + "0.0001 per step"],
    ),
    "the wrong leaves decay": (
        lambda: wd.sgdw(0.5, wd.masked_decay(0.5, wd.named("bias"))),
        [BIAS + "0.25 per step", KERNEL + "0 per step (no decay)"],
    ),
    "nothing decays": (
        lambda: optax.adam(1e-3),
        [KERNEL + "0 per step (no decay)"],
    ),
    "the rate is 0": (
        lambda: wd.adamw(1e-3, wd.masked_decay(0.0)),
        [KERNEL + "0 per step (no decay)"],
    ),
    "behind the learning rate": (
        lambda: behind(optax.add_decayed_weights(0.25, STANDARD)),
        [KERNEL + "-0.25 per step (the weights grow)"],
    ),
    "behind the learning rate, ours": (
        lambda: behind(wd.masked_decay(0.25)),
        [KERNEL + "-0.25 per step (the weights grow)"],
    ),
    "after_learning_rate before it": (
        lambda: optax.chain(
            wd.after_learning_rate(wd.masked_decay(0.5)), optax.scale(-0.5)
        ),
        [KERNEL + "-0.25 per step (the weights grow)"],
    ),
    "growth of what should not move": (
        lambda: behind(wd.masked_decay(0.25, wd.everything)),
        [BIAS + "-0.25 per step (the weights grow)", KERNEL + "-0.25 per step (the"],
    ),
    "inject_hyperparams drops a callable mask": (
        lambda: optax.inject_hyperparams(optax.adamw)(1e-3, mask=by_rank),
        [KERNEL + "0 per step (no decay)"],
    ),
    "MultiSteps is longer than the steps": (
        lambda: multi_steps(9),
        [KERNEL + "0 per step (no decay)"],
    ),
    "NaN": (
        lambda: optax.chain(
            wd.sgdw(1e-3, wd.masked_decay(0.1)), optax.scale(float("nan"))
        ),
        [
            "attn/bias (2, 2): expected no decay, measured an update that is NaN",
            "attn/kernel (2, 3): expected decay, measured an update that is NaN",
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_fails_with_leaf_expectation_and_measurement(name: str) -> None:
    make, expected = WRONG[name]
    with pytest.raises(AssertionError) as caught:
        wd.assert_decays(make(), params(), STANDARD)
    head, *lines = str(caught.value).split("\n  ")
    nothing_moved = all("measured shrink 0 per step" in line for line in lines)
    late = "; pass more steps= to what moves later only" if nothing_moved else ""
    assert head == (
        f"{len(expected)} of 2 leaves do not decay as the mask says (zero gradients, 8 "
        f"steps at most{late}):"
    )
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def times(*factors: float) -> optax.GradientTransformation:
    """Adds a multiple of each row of the only parameter to it."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        column = jnp.asarray(factors)[:, None]
        return jax.tree.map(lambda u, p: u + column * p, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def test_a_leaf_that_grows_in_part_is_reported() -> None:
    tree = {"w": leaf(2, 2)}
    wd.assert_decays(times(-0.25, -0.5), tree, wd.everything)
    wd.assert_decays(times(-0.25, 0.0), tree, wd.everything)
    wd.assert_decays(times(0.0, 0.0), tree, wd.nothing)
    for factors in ((-0.25, 0.25), (-0.5, 0.25), (0.5, -0.25), (0.5, 0.0)):
        for mask in (wd.everything, wd.nothing):
            with pytest.raises(AssertionError, match=r"w \(2, 2\): expected"):
                wd.assert_decays(times(*factors), tree, mask)


def test_at_most_twenty_leaves_are_listed_and_the_others_counted() -> None:
    tree = {f"layer_{n:02}": leaf(2, 2) for n in range(25)}
    with pytest.raises(AssertionError) as caught:
        wd.assert_decays(optax.sgd(1.0), tree, wd.everything)
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("25 of 25 leaves")
    assert len(lines) == 1 + 20 + 1
    assert lines[-1] == "  ... and 5 more"


def test_control_characters_in_names_are_escaped() -> None:
    tree = {"a\x1b[31m\n": leaf(2, 2)}
    with pytest.raises(AssertionError) as caught:
        wd.assert_decays(optax.sgd(1.0), tree, wd.everything)
    assert r"a\x1b[31m\n (2, 2): expected decay" in str(caught.value)


# ------------------------------------------------------------------------- steps


def test_steps_say_how_long_to_wait_for_the_first_update() -> None:
    wd.assert_decays(multi_steps(9), params(), STANDARD, steps=9)
    wd.assert_decays(multi_steps(1), params(), STANDARD, steps=1)
    with pytest.raises(AssertionError, match="2 steps at most"):
        wd.assert_decays(multi_steps(3), params(), STANDARD, steps=2)


def test_what_moves_late_but_should_not_is_reported_too() -> None:
    schedule = optax.linear_schedule(0.0, 0.25, 4)
    tx = wd.sgdw(1.0, wd.masked_decay(schedule, wd.everything))
    with pytest.raises(AssertionError, match=r"attn/bias.*measured shrink 0\.0625"):
        wd.assert_decays(tx, params(), STANDARD)


@pytest.mark.parametrize("steps", [0, -1])
def test_less_than_one_step_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps has to be 1 or more, got {steps}"):
        wd.assert_decays(optax.sgd(1.0), params(), STANDARD, steps=steps)


@pytest.mark.parametrize("steps", [2.5, "8", None])
def test_steps_that_are_no_integer_are_refused(steps: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="steps"):
        wd.assert_decays(optax.sgd(1.0), params(), STANDARD, steps=steps)


# --------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ("kernel", TypeError, "the mask is 'kernel' .*; write"),
        ({"attn": "decay"}, TypeError, "the mask is 'decay' at 'attn"),
        ({"attn": 1}, TypeError, "the mask is 1 at 'attn"),
        ({"attn": np.ones((2, 2), bool)}, TypeError, "the mask is"),
        ({"attn": None}, (TypeError, ValueError), "mask is"),
        (None, (TypeError, ValueError), "mask is|mask=None"),
        (lambda tree: 0.5, TypeError, r"the mask is 0\.5"),
        (
            wd.first_match((wd.named("kernel"), 2.0), default=1.0),
            TypeError,
            r"the mask is (1\.0|2\.0|first_match)",
        ),
        ({"mlp": True}, ValueError, "mask is a tree that has no entry for 'attn/bias'"),
        (
            {"attn": {"bias": False, "kernel": True}, "mlp": True},
            ValueError,
            "mask is a tree with an entry for 'mlp', where the parameters have no leaf",
        ),
        (
            wd.named("kernal"),
            ValueError,
            r"named\('kernal'\) matches no leaf; the near",
        ),
        (
            wd.owned_by(nnx.LayerNorm),
            ValueError,
            r"make the mask with mask_of\(model, rule\)",
        ),
    ],
)
def test_what_is_no_mask_for_the_tree_is_refused(
    mask: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        wd.assert_decays(simple(), params(), mask)


@pytest.mark.parametrize("given", [{}, nn.Dense(3), {"kernel": (2, 3)}, "params", None])
def test_what_holds_no_arrays_proves_nothing_and_is_refused(given: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="arrays"):
        wd.assert_decays(optax.sgd(1.0), given, wd.everything)


@pytest.mark.parametrize("tx", ["adam", None, optax.adam])
def test_what_is_no_optimizer_is_refused(tx: Any) -> None:
    with pytest.raises(TypeError, match="^tx takes an optimizer with init and update"):
        wd.assert_decays(tx, params(), STANDARD)


def test_an_abstract_tree_keeps_its_shardings() -> None:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("d"))
    seen: list[Any] = []

    def init(params: Any) -> Any:
        jax.debug.inspect_array_sharding(params["w"], callback=seen.append)
        return optax.EmptyState()

    tx = optax.GradientTransformation(init, optax.identity().update)
    tree = {"w": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=sharding)}
    wd.assert_decays(tx, tree, wd.nothing)
    assert seen[0].is_equivalent_to(sharding, 2)


def test_errors_of_the_optimizer_come_through() -> None:
    broken = optax.chain(wd.masked_decay(0.1, wd.named("kernal")), optax.scale(-1.0))
    with pytest.raises(ValueError, match="matches no leaf"):
        wd.assert_decays(broken, params(), STANDARD)


# ----------------------------------------------------------------------- parameters


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_every_inexact_dtype_is_measured(dtype: Any) -> None:
    wd.assert_decays(simple(rate=1e-6), params(dtype), STANDARD)
    cautious = wd.sgdw(0.5, wd.cautious_weight_decay(0.5))
    with pytest.raises(AssertionError) as caught:
        wd.assert_decays(cautious, params(dtype), wd.named("bias"))
    message = str(caught.value)
    assert "attn/bias (2, 2): expected decay, measured shrink 0 per step" in message
    assert "attn/kernel (2, 3): expected no decay, measured shrink 0.25 per" in message


def test_double_precision_is_measured() -> None:
    with jax.enable_x64(True):
        tree = params(jnp.float64)
        wd.assert_decays(simple(rate=1e-30), tree, STANDARD)
        with pytest.raises(
            AssertionError, match="expected decay, measured shrink 0 per"
        ):
            wd.assert_decays(optax.sgd(1e-3), tree, STANDARD)


def test_zero_initialised_parameters_are_measured_all_the_same() -> None:
    tree = {"attn": {"bias": jnp.zeros((2, 2)), "kernel": jnp.zeros((2, 3))}}
    wd.assert_decays(simple(), tree, STANDARD)
    with pytest.raises(AssertionError, match="attn/bias.*expected decay"):
        wd.assert_decays(simple(), tree, wd.everything)
    anchored = wd.decay_along(lambda u, p, m: p - m, 0.1, remember=lambda p: p)
    wd.assert_decays(wd.sgdw(1e-3, anchored), tree, STANDARD)


def test_other_leaves_are_carried_along_and_not_judged() -> None:
    tree = {
        "count": jnp.asarray(3),
        "flag": leaf(dtype=jnp.bool_),
        "kernel": leaf(2, 2),
        "none": None,
    }
    for mask in (STANDARD, wd.everything):
        wd.assert_decays(wd.sgdw(1e-3, wd.masked_decay(0.1)), tree, mask)
    with pytest.raises(AssertionError, match="1 of 3 leaves"):
        wd.assert_decays(optax.sgd(1e-3), tree, STANDARD)


def test_integers_get_gradients_of_zero_as_well() -> None:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        seen.extend(jax.tree.leaves(updates))
        moved = jax.tree.map(lambda u: jnp.any(u != 0).astype(jnp.float32), updates)
        return {"n": updates["n"], "w": updates["w"] - moved["n"]}, state

    seen: list[Any] = []
    tx = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    wd.assert_decays(tx, {"n": jnp.asarray(3), "w": leaf(2, 2)}, wd.nothing)
    assert seen


def test_what_is_given_is_not_changed() -> None:
    tree: Any = {"attn": {"bias": jnp.ones((2, 2)), "kernel": jnp.full((2, 3), 2.0)}}
    kept, copy = dict(tree["attn"]), jax.tree.map(np.array, tree)
    wd.assert_decays(simple(), tree, STANDARD)
    assert all(tree["attn"][name] is kept[name] for name in kept)
    assert_same(jax.tree.map(np.asarray, tree), copy)

    layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(layer)))
    wd.assert_decays(simple(), layer, STANDARD)
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(layer)))
    assert_same(after, before)


def test_the_optimizer_is_run_under_jit_on_stand_ins() -> None:
    def init(params: Any) -> Any:
        seen.extend(jax.tree.leaves(params))
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        seen.extend([*jax.tree.leaves(updates), *jax.tree.leaves(params)])
        return updates, state

    seen: list[Any] = []
    tx = optax.GradientTransformation(init, update)
    tree = {"w": jnp.full((2, 2), 7.0, jnp.bfloat16)}
    wd.assert_decays(tx, tree, wd.nothing)
    assert len(seen) == 3  # traced once, however many steps
    assert all(isinstance(x, Tracer) for x in seen)
    assert {(x.shape, x.dtype.name) for x in seen} == {((2, 2), "bfloat16")}


# ------------------------------------------------------------------- Flax and Equinox


def layer() -> nnx.Linear:
    return nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


def ends_in_kernel(tree: Any) -> Any:
    """What users write for the State of Params, and what fails on pure arrays."""

    def is_kernel(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return name.endswith("kernel/value")

    return jax.tree_util.tree_map_with_path(is_kernel, tree)


def test_a_module_is_probed_as_nnx_optimizer_would_call_the_optimizer() -> None:
    wd.assert_decays(simple(), layer(), STANDARD)
    mask = wd.mask_of(layer(), ~wd.named("bias"))
    wd.assert_decays(simple(mask), layer(), mask)
    table = wd.first_match((wd.named("kernel"), "decay"), default="rest")
    groups: dict[Any, Any] = {"decay": simple(), "rest": optax.sgd(1e-3)}
    labels = wd.mask_of(layer(), table)
    wd.assert_decays(optax.partition(groups, labels), layer(), STANDARD)

    suffix = optax.chain(
        optax.add_decayed_weights(0.1, ends_in_kernel), optax.scale(-1.0)
    )
    with pytest.raises(AssertionError, match="kernel.*measured shrink 0 per step"):
        wd.assert_decays(suffix, layer(), STANDARD)  # right at init, wrong at update
    wd.assert_decays(suffix, nnx.state(layer(), nnx.Param), STANDARD)


def test_only_params_of_a_module_are_probed() -> None:
    module = nnx.eval_shape(lambda: nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    with pytest.raises(AssertionError, match="2 of 2 leaves"):
        wd.assert_decays(optax.sgd(1.0), module, wd.everything)


def test_all_forms_of_one_layer_can_be_probed() -> None:
    shapes = {"bias": leaf(3), "kernel": leaf(2, 3)}
    for tree in (
        shapes,
        freeze(shapes),
        {k: nn.Partitioned(v, names=(None,) * len(v.shape)) for k, v in shapes.items()},
        nnx.state(layer(), nnx.Param),
        nnx.as_pure(nnx.state(layer(), nnx.Param)),
        nnx.to_pure_dict(nnx.state(layer(), nnx.Param)),
    ):
        with pytest.raises(AssertionError) as caught:
            wd.assert_decays(simple(), tree, wd.named("bias"))
        bias, kernel = str(caught.value).split("\n")[1:]
        assert bias.startswith("  bias (3,): expected decay, measured shrink 0 per")
        assert kernel.startswith(
            "  kernel (2, 3): expected no decay, measured shrink 0.2"
        )


class Layer(eqx.Module):
    kernel: Any
    bias: Any
    activation: Any

    def __call__(self, x: Any) -> Any:
        raise AssertionError("a tree was called")


def test_filtered_equinox_trees_can_be_probed() -> None:
    whole = Layer(jnp.ones((2, 3)), jnp.ones(3), jax.nn.relu)
    tree = eqx.filter(whole, eqx.is_inexact_array)
    for mask in (STANDARD, STANDARD(tree)):
        for tx in (
            optax.chain(optax.add_decayed_weights(0.1, mask), optax.scale(-1.0)),
            wd.sgdw(1e-3, wd.cautious_weight_decay(0.1, mask)),
        ):
            wd.assert_decays(tx, tree, mask)
    with pytest.raises(AssertionError, match=r"bias \(3,\): expected decay"):
        wd.assert_decays(simple(), tree, wd.everything)


# ----------------------------------------------------------------- shrink and kind


def test_the_shrink_of_the_leaves_that_decay_is_asserted() -> None:
    tx = wd.sgdw(0.5, wd.masked_decay(0.25))
    wd.assert_decays(tx, params(), STANDARD, shrink=0.125)
    wd.assert_decays(tx, params(), STANDARD, shrink=0.1255)  # within 1 %
    for wrong in (0.12, 0.25, -0.125):
        with pytest.raises(AssertionError) as caught:
            wd.assert_decays(tx, params(), STANDARD, shrink=wrong)
        assert str(caught.value) == (
            "1 findings about 1 leaves that decay:\n"
            f"  attn/kernel (2, 3): expected shrink {wrong:g}, measured 0.125"
        )


def test_shrinks_may_differ_by_leaf() -> None:
    table = wd.first_match((wd.named("kernel"), 2.0), default=1.0)
    tx = wd.sgdw(0.5, wd.masked_decay(0.25, wd.everything, multiplier=table))
    expected = wd.first_match((wd.named("kernel"), 0.25), default=0.125)
    tree = {"attn": {"bias": 0.125, "kernel": 0.25}}
    for shrink in (expected, tree):
        wd.assert_decays(tx, params(), wd.everything, shrink=shrink)
    swapped = {"attn": {"bias": 0.25, "kernel": 0.125}}
    with pytest.raises(AssertionError, match="2 findings about 2 leaves that decay"):
        wd.assert_decays(tx, params(), wd.everything, shrink=swapped)
    with pytest.raises(ValueError, match="shrink is a tree that has no entry for"):
        wd.assert_decays(tx, params(), wd.everything, shrink={"attn": {"bias": 0.1}})


def test_a_tree_of_shrinks_may_have_entries_for_what_does_not_decay() -> None:
    tx = wd.sgdw(0.5, wd.masked_decay(0.25))
    tree = {"attn": {"bias": 0.0, "kernel": 0.125}}
    wd.assert_decays(tx, params(), STANDARD, shrink=tree)


KINDS: dict[str, tuple[Any, str]] = {
    "decoupled": (lambda: simple(), "decoupled"),
    "cautious": (lambda: wd.sgdw(0.5, wd.cautious_weight_decay(0.5)), "cautious"),
    "L2": (
        lambda: optax.chain(wd.masked_decay(0.5), optax.sgd(0.5, 0.9)),
        "coupled L2",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_the_leaves_that_decay_is_asserted(name: str) -> None:
    make, kind = KINDS[name]
    wd.assert_decays(make(), params(), STANDARD, kind=kind)
    for other in ("decoupled", "cautious", "coupled L2"):
        if other != kind:
            with pytest.raises(AssertionError) as caught:
                wd.assert_decays(make(), params(), STANDARD, kind=other)
            assert str(caught.value) == (
                "1 findings about 1 leaves that decay:\n"
                f"  attn/kernel (2, 3): expected {other}, measured {kind}"
            )


def test_kind_and_shrink_are_reported_together() -> None:
    with pytest.raises(AssertionError) as caught:
        wd.assert_decays(simple(), params(), STANDARD, kind="cautious", shrink=0.5)
    assert str(caught.value).split("\n  ") == [
        "2 findings about 1 leaves that decay:",
        "attn/kernel (2, 3): expected cautious, measured decoupled",
        "attn/kernel (2, 3): expected shrink 0.5, measured 0.25",
    ]


def test_a_shrink_that_cannot_be_told_is_said() -> None:
    tree = {"w": leaf()}  # one number is too few for a fit
    tx = wd.sgdw(0.5, wd.decay_along(lambda u, p: jnp.sign(p), 0.5, wd.everything))
    with pytest.raises(AssertionError, match="measured none that can be told"):
        wd.assert_decays(tx, tree, wd.everything, shrink=0.5)


def test_the_mask_is_asserted_before_kind_and_shrink() -> None:
    with pytest.raises(AssertionError, match="do not decay as the mask says"):
        wd.assert_decays(simple(), params(), wd.everything, kind="cautious", shrink=9.0)


def test_steps_hold_for_kind_and_shrink_too() -> None:
    wd.assert_decays(
        multi_steps(9), params(), STANDARD, steps=9, kind="decoupled", shrink=0.25
    )


def test_at_most_twenty_findings_are_listed_and_the_others_counted() -> None:
    tree = {f"layer_{n:02}": leaf(2, 2) for n in range(25)}
    with pytest.raises(AssertionError) as caught:
        wd.assert_decays(simple(wd.everything), tree, wd.everything, shrink=0.5)
    lines = str(caught.value).split("\n")
    assert lines[0] == "25 findings about 25 leaves that decay:"
    assert len(lines) == 1 + 20 + 1 and lines[-1] == "  ... and 5 more"


def test_kind_and_shrink_of_a_module_are_asserted() -> None:
    wd.assert_decays(simple(), layer(), STANDARD, kind="decoupled", shrink=0.25)


# ----------------------------------------------------------------- extra arguments

GATED = wd.controls.gradient_gated_weight_decay(0.5)
ONES = {"grad": {"attn": {"bias": jnp.ones((2, 2)), "kernel": jnp.ones((2, 3))}}}
GIVEN: dict[str, Any] = {
    "chain": optax.chain(GATED, optax.scale(-0.5)),
    "MultiSteps": optax.MultiSteps(optax.chain(GATED, optax.scale(-0.5)), 2),
}


@pytest.mark.parametrize("name", GIVEN)
def test_extra_arguments_reach_the_optimizer_and_the_audit(name: str) -> None:
    wd.assert_decays(GIVEN[name], params(), STANDARD, extra_args=ONES)
    with pytest.raises(AssertionError, match="expected decoupled, measured unknown"):
        wd.assert_decays(
            GIVEN[name], params(), STANDARD, kind="decoupled", extra_args=ONES
        )


def test_a_closed_gate_does_not_decay() -> None:
    closed = jax.tree.map(jnp.negative, ONES)
    with pytest.raises(AssertionError, match="expected decay, measured shrink 0 per"):
        wd.assert_decays(GIVEN["chain"], params(), STANDARD, extra_args=closed)


def test_extra_arguments_are_dropped_where_none_are_taken() -> None:
    def halve(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda x: -0.5 * x, params), state

    tx = optax.GradientTransformation(lambda params: optax.EmptyState(), halve)
    wd.assert_decays(tx, params(), wd.everything, extra_args=ONES)


@pytest.mark.parametrize(
    ("decay", "name"),
    [
        (GATED, "grad"),
        (wd.natural_weight_decay(0.5), "fisher"),
        (wd.token_aware_weight_decay(0.5, STANDARD), "token_counts"),
    ],
    ids=["grad", "fisher", "token_counts"],
)
def test_without_what_a_method_needs_it_is_named(decay: Any, name: str) -> None:
    text = rf'audit or assert_decays with extra_args={{"{name}": '
    for ask in (wd.audit, lambda tx, tree: wd.assert_decays(tx, tree, STANDARD)):
        with pytest.raises(ValueError, match=text):
            ask(optax.chain(decay, optax.scale(-0.5)), params())


# --------------------------------------------------------------------- independence

AUDITOR = {
    name.removeprefix("optax_wd."): module
    for name, module in sys.modules.items()
    if name.startswith("optax_wd._see.audit.")
}
# Of this folder no line decays anything.
SHARED = {"_tree", "_tree.fold", "_tree.leaves", "_tree.typing", "_see.audit"}


def parsed(name: str) -> ast.Module:
    return ast.parse(pathlib.Path(str(AUDITOR[name].__file__)).read_text())


def own_imports(tree: ast.Module) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            module = str(node.module)
            inner = {f"{module}.{name.name}" for name in node.names}
            known = inner & {"optax_wd._how", *sys.modules}
            found |= known or {module}
    ours = {name for name in found if name.split(".")[0] == "optax_wd"}
    return {name.removeprefix("optax_wd.") for name in ours}


@pytest.mark.parametrize("name", AUDITOR)
def test_the_auditor_imports_nothing_that_decays(name: str) -> None:
    assert own_imports(parsed(name)) <= set(AUDITOR) | SHARED


@pytest.mark.parametrize("name", AUDITOR)
def test_of_optax_the_auditor_uses_types_only(name: str) -> None:
    allowed = {"GradientTransformation", "OptState", "with_extra_args_support"}
    used = set()
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used |= {node.attr} if node.value.id == "optax" else set()
        if isinstance(node, ast.ImportFrom):
            assert str(node.module).split(".")[0] != "optax"
    assert used <= allowed


def test_the_search_for_imports_finds_them() -> None:
    for text in (
        "from optax_wd._how import engine",
        "from optax_wd._how.engine import masked_decay",
        "import optax_wd._how.engine",
        "def f():\n    from optax_wd._how import engine",
    ):
        assert own_imports(ast.parse(text)) == {"_how.engine"}
    assert own_imports(ast.parse("from optax_wd import _how")) == {"_how"}
    assert own_imports(parsed("_see.audit.audit")) > {"_tree.leaves"}
    assert len(AUDITOR) > 5


def test_kinds_and_shrinks_that_nothing_can_have_are_refused() -> None:
    params = {"k": leaf(2, 2)}
    tx = optax.adamw(0.1, weight_decay=0.5)
    with pytest.raises(ValueError, match="^kind is one of none, decoupled, .*'Decoup"):
        wd.assert_decays(tx, params, wd.everything, kind="Decoupled")
    with pytest.raises(ValueError, match="^shrink is a number or a table of numbers"):
        wd.assert_decays(tx, params, wd.everything, shrink="0.1")
    with pytest.raises(ValueError, match="^the mask lets nothing decay, so no kind or"):
        wd.assert_decays(optax.adam(0.1), params, wd.nothing, kind="decoupled")
