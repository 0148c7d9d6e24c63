# SPDX-License-Identifier: Apache-2.0
"""The traps of weight decay in JAX, one test for each.

Every test shows first what happens with Optax and Flax alone, and then what holds here.
The numbers are names: T1, T2, ...
"""

import ast
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import forms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze
from helpers import assert_same
from helpers import run as run_steps

import optax_wd as wd

# --------------------------------------------------------------- what all tests use


def names(tree: Any) -> list[str]:
    """The path of every leaf, as JAX itself writes it."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in pairs]


def ones(abstract: Any) -> Any:
    """The same tree with ones, made without running any initialiser."""
    return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), abstract)


def zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def update(tx: Any, updates: Any, state: Any, params: Any = None) -> Any:
    """`tx.update`, for whose results Optax has no useful type."""
    return tx.update(updates, state, params)


def applied(params: Any, updates: Any) -> Any:
    return optax.apply_updates(params, updates)


def first_update(tx: Any, params: Any) -> Any:
    """What the first step with zero gradients adds to the parameters."""
    return update(tx, zeros(params), tx.init(params), params)[0]


def moved(tx: Any, params: Any) -> set[str]:
    """The leaves that the first step with zero gradients moves."""
    updates = first_update(tx, params)
    pairs = zip(names(updates), jax.tree.leaves(updates), strict=True)
    return {name for name, u in pairs if np.any(np.asarray(u) != 0)}


def small(dtype: Any = jnp.float32) -> dict[str, Any]:
    """A layer and a norm, of ones."""
    shapes = {"dense": {"bias": (2,), "kernel": (2, 2)}, "norm": {"scale": (2,)}}
    is_shape = dict(is_leaf=lambda x: isinstance(x, tuple))
    return jax.tree.map(lambda shape: jnp.ones(shape, dtype), shapes, **is_shape)


def by_rank(tree: Any) -> Any:
    """The mask that Optax documents."""
    return jax.tree.map(lambda x: x.ndim != 1, tree)


def is_matrix(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, tree)


EVERY = {"dense/bias", "dense/kernel", "norm/scale"}
KERNEL = {"dense/kernel"}


class Dense(eqx.Module):
    bias: Any
    kernel: Any


class Norm(eqx.Module):
    bias: Any
    scale: Any


class Attention(eqx.Module):
    key: Dense
    out: Dense
    query: Dense
    value: Dense


class EquinoxBlock(eqx.Module):
    attn: Attention
    mlp: Dense
    norm: Norm


def nnx_block() -> Any:
    graph, state = nnx.split(forms.nnx_abstract())
    return nnx.merge(graph, ones(state))


def boxed(params: Any, box: Callable[..., Any]) -> Any:
    return jax.tree.map(lambda x: box(x, names=(None,) * x.ndim), params)


# ----------------------------------------------------------------------- the traps


def test_t01_a_rule_gives_one_answer_on_every_form_of_one_model() -> None:
    def no_bias(tree: Any) -> Any:
        answers = [not name.endswith("bias") for name in names(tree)]
        seen.append(sum(answers))
        return jax.tree.structure(tree).unflatten(answers)

    seen: list[int] = []
    model = nnx_block()
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3, mask=no_bias), wrt=nnx.Param)
    optimizer.update(model, zeros(nnx.state(model, nnx.Param)))
    assert seen == [12, 6]  # at init every path ends in `value`

    params = forms.zeros(forms.linen_abstract())
    attn = Attention(**{name: Dense(**leaf) for name, leaf in params["attn"].items()})
    equinox = EquinoxBlock(attn, Dense(**params["mlp"]), Norm(**params["norm"]))
    trees = {**forms.single(), **forms.stacked(), "Equinox": equinox}
    rules = {
        wd.standard: lambda name: name.endswith("kernel"),
        wd.standard_with(also=("attn",)): lambda name: name == "mlp/kernel",
        ~wd.named("bias", "scale"): lambda name: name.endswith("kernel"),
        wd.regex(".*/kernel"): lambda name: name.endswith("kernel"),
        wd.path("**/attn/*/bias"): lambda name: bool(re.match("attn/.*bias", name)),
        wd.contains("value", "norm"): lambda name: bool(re.search("value|norm", name)),
    }
    for form, tree in trees.items():
        for rule, expected in rules.items():
            answer = rule(tree)
            assert jax.tree.structure(answer) == jax.tree.structure(tree), form
            found = forms.answers(answer)
            assert found == {name: expected(name) for name in forms.WEIGHTS}, form


def test_t01_nnx_optimizer_gets_the_same_answer_at_init_and_at_update() -> None:
    def spy(tree: Any) -> Any:
        seen.append(jax.tree.leaves(wd.named("kernel")(tree)))
        return wd.named("kernel")(tree)

    seen: list[list[bool]] = []
    model = nnx_block()
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3, mask=spy), wrt=nnx.Param)
    optimizer.update(model, zeros(nnx.state(model, nnx.Param)))
    assert len(seen) == 2 and seen[0] == seen[1]
    assert sum(seen[0]) == 5  # kernels


def test_t01_raw_optax_on_split_state_decays_the_kernels_only_with_a_rule() -> None:
    def ends_in_kernel(tree: Any) -> Any:
        answers = [name.endswith("/kernel") for name in names(tree)]
        return jax.tree.structure(tree).unflatten(answers)

    def decay(mask: Any) -> optax.GradientTransformation:
        return optax.adamw(1e-3, weight_decay=0.1, mask=mask)

    state = nnx.split(nnx_block(), nnx.Param, ...)[1]
    kernels = {name for name in names(state) if name.endswith("kernel/value")}
    assert moved(decay(ends_in_kernel), state) == set()
    assert moved(decay(wd.regex(".*/kernel")), state) == kernels


def tiny_linear() -> nnx.Linear:
    model = nnx.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    nnx.update(model, ones(nnx.state(model)))
    return model


def step_with(tx: optax.GradientTransformation) -> nnx.Linear:
    """A tiny model after one step of `nnx.Optimizer` with zero gradients."""
    model = tiny_linear()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, zeros(nnx.state(model, nnx.Param)))
    return model


def test_t02_mask_of_makes_the_tree_that_nnx_optimizer_takes() -> None:
    def by_mask(mask: Any) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(0.5, mask), optax.scale(-1.0))

    def by_label(labels: Any) -> optax.GradientTransformation:
        return optax.partition({"yes": by_mask(None), "no": optax.scale(-1.0)}, labels)

    model = tiny_linear()
    for make, of_state in (
        (by_mask, by_rank(nnx.state(model, nnx.Param))),
        (by_label, jax.tree.map(lambda x: "no", nnx.state(model, nnx.Param))),
    ):
        with pytest.raises(ValueError, match="pytree structure error"):
            step_with(make(of_state))

    table = wd.first_match((wd.named("kernel"), "yes"), default="no")
    for tx in (
        by_mask(wd.mask_of(model, wd.named("kernel"))),
        by_label(wd.mask_of(model, table)),
    ):
        after = nnx.to_pure_dict(nnx.state(step_with(tx), nnx.Param))
        assert float(after["kernel"][0, 0]) == 0.5
        assert float(after["bias"][0]) == 1.0


def test_t03_frozen_and_plain_dicts_may_be_mixed() -> None:
    params, mask = small(), {"dense": {"bias": False, "kernel": True}, "norm": False}
    for tree, other in ((params, freeze(mask)), (freeze(params), mask)):
        with pytest.raises(ValueError, match="different types at key path"):
            first_update(optax.add_decayed_weights(0.1, other), tree)

        assert moved(wd.masked_decay(0.1, other), tree) == KERNEL
        assert isinstance(wd.standard(tree), FrozenDict) is isinstance(tree, FrozenDict)
        for rule in (wd.standard, wd.named("kernel")):
            assert moved(optax.add_decayed_weights(0.1, rule), tree) == KERNEL
            assert moved(wd.masked_decay(0.1, rule), tree) == KERNEL


@pytest.mark.parametrize("box", [nn.Partitioned, nn.LogicallyPartitioned])
def test_t04_boxes_are_seen_through(box: Any) -> None:
    def no_bias(tree: Any) -> Any:
        answers = [not name.endswith("bias") for name in names(tree)]
        return jax.tree.structure(tree).unflatten(answers)

    params = boxed(small(), box)
    now = moved(optax.add_decayed_weights(0.1, no_bias), params)
    assert "dense/bias/value" in now

    for decay in (optax.add_decayed_weights, wd.masked_decay):
        assert moved(decay(0.1, ~wd.named("bias")), params) == {
            "dense/kernel/value",
            "norm/scale/value",
        }


def test_t05_inject_hyperparams_calls_no_rule_with_the_step() -> None:
    inject, params = optax.inject_hyperparams, small()
    for mask, wrong in ((by_rank, EVERY), (is_matrix, set())):
        assert moved(inject(optax.adamw)(1.0, mask=mask), params) == wrong  # silently

    for make in (optax.adamw, wd.masked_decay):
        with pytest.raises(TypeError, match="got a step count.*pass static_args="):
            inject(make)(1.0, mask=wd.standard).init(params)
    adamw = inject(optax.adamw, static_args="mask")
    assert moved(adamw(1.0, mask=wd.standard), params) == KERNEL


def test_t05_what_the_error_says_to_write_works_as_it_stands() -> None:
    def told(tx: Any) -> tuple[Any, Any]:
        """What to write for any optimizer, and for a decay of this package."""
        with pytest.raises(TypeError, match="pass static_args=") as caught:
            tx.init(small())
        _, first, second = str(caught.value).split("static_args=")
        texts = first.partition(",")[0], second.partition(";")[0]
        return ast.literal_eval(texts[0]), ast.literal_eval(texts[1])

    inject, mask = optax.inject_hyperparams, wd.named("kernel")
    for make in (optax.adamw, optax.add_decayed_weights, wd.masked_decay):
        static, _ = told(inject(make)(0.5, mask=mask))
        assert (
            moved(inject(make, static_args=static)(0.5, mask=mask), small()) == KERNEL
        )

    options = {"mask": mask, "multiplier": wd.first_match((mask, 2.0), default=1.0)}
    _, static = told(inject(wd.masked_decay, static_args="mask")(0.5, **options))
    tx = inject(wd.masked_decay, static_args=static)(0.5, **options)
    assert float(first_update(tx, small())["dense"]["kernel"][0, 0]) == 1.0


@pytest.mark.parametrize("decay", [wd.masked_decay, wd.cautious_weight_decay])
def test_t05_an_injected_rate_can_be_read_and_set(decay: Any) -> None:
    params = small()
    injected = optax.inject_hyperparams(decay, static_args=("mask", "multiplier"))
    tx = injected(0.25, mask=wd.named("kernel"), multiplier=2.0)
    state: Any = tx.init(params)
    assert float(state.hyperparams["weight_decay"]) == 0.25
    updates, state = update(tx, zeros(params), state, params)
    assert float(updates["dense"]["kernel"][0, 0]) == 0.5
    assert float(optax.tree.get(state, "decay_rate")) == 0.25

    state.hyperparams["weight_decay"] = jnp.asarray(0.5)
    updates, state = update(tx, zeros(params), state, params)
    assert float(updates["dense"]["kernel"][0, 0]) == 1.0
    assert float(updates["dense"]["bias"][0]) == 0.0
    assert float(optax.tree.get(state, "decay_rate")) == 0.5


def test_t06_with_a_float32_hyperparam_dtype_bfloat16_keeps_rate_and_dtype() -> None:
    def optimizer(learning_rate: Any, weight_decay: Any) -> Any:
        decay = wd.masked_decay(weight_decay, wd.everything)
        return wd.adamw(learning_rate, decay)

    params = small(jnp.bfloat16)
    plain = optax.inject_hyperparams(optax.adamw)(1.0, weight_decay=0.1)
    now = update(plain, params, plain.init(params), params)[0]
    assert np.all(np.isnan(np.asarray(now["norm"]["scale"], np.float32)))

    inject = optax.inject_hyperparams(optimizer, hyperparam_dtype=jnp.float32)
    tx = inject(learning_rate=1.0, weight_decay=0.1)
    updates, state = update(tx, params, tx.init(params), params)
    assert float(optax.tree.get(state, "decay_rate")) == np.float32(0.1)
    for u in jax.tree.leaves(updates):
        assert u.dtype == jnp.bfloat16
        assert np.all(np.isfinite(np.asarray(u, np.float32)))

    link = optax.inject_hyperparams(
        wd.masked_decay,
        static_args=("mask", "multiplier"),
        hyperparam_dtype=jnp.float32,
    )
    alone = link(0.1, mask=wd.everything)
    updates, state = update(alone, params, alone.init(params), params)
    assert float(optax.tree.get(state, "decay_rate")) == np.float32(0.1)
    assert updates["norm"]["scale"].dtype == jnp.bfloat16


def test_t07_strings_are_no_masks() -> None:
    params = small()
    labels = {"dense": {"bias": "no_decay", "kernel": "decay"}, "norm": "no_decay"}
    for truthy in (".*kernel", labels):
        assert moved(optax.adamw(1.0, mask=truthy), params) == EVERY

    with pytest.raises(TypeError, match=r"write regex\('.*kernel'\), path\(.*or named"):
        wd.masked_decay(0.1, ".*kernel")
    for mask in (labels, {"dense": 1, "norm": 0}, {"dense": None, "norm": "decay"}):
        with pytest.raises(TypeError, match="write a rule .* or a tree of bools"):
            wd.masked_decay(0.1, mask)
    with pytest.raises(TypeError, match="'no_decay' at 'dense/bias', where a bool"):
        first_update(wd.masked_decay(0.1, lambda tree: labels), params)


def test_t08_rules_answer_for_partial_trees() -> None:
    def by_hand(tree: Any) -> Any:
        return {k: {n: n == "kernel" for n in layer} for k, layer in tree.items()}

    def decay(mask: Any) -> optax.GradientTransformation:
        return optax.adamw(1.0, weight_decay=0.1, mask=mask)

    params = small()
    part = {"dense": True, "norm": False}
    with pytest.raises(ValueError, match="MaskedNode"):
        first_update(optax.masked(decay(by_hand), part), params)

    leafwise = {"dense": {"bias": True, "kernel": True}, "norm": False}
    table = wd.first_match((wd.contains("dense"), "a"), default="b")
    ours = wd.masked_decay(0.1, wd.named("kernel"))
    for inner in (decay(wd.named("kernel")), decay(wd.standard), ours):
        groups: dict[Any, Any] = {"a": inner, "b": optax.identity()}
        for tx in (
            optax.masked(inner, part),
            optax.masked(optax.masked(inner, leafwise), part),
            optax.partition(groups, {"dense": "a", "norm": "b"}),
            optax.partition(groups, table),
            optax.partition(
                {"a": optax.partition(groups, table), "b": optax.set_to_zero()}, table
            ),
        ):
            assert moved(tx, params) == KERNEL


def test_t09_a_rule_refuses_a_vector_without_a_path() -> None:
    def no_bias(tree: Any) -> Any:
        answers = ["bias" not in name for name in names(tree)]
        return jax.tree.structure(tree).unflatten(answers)

    def flat(mask: Any) -> optax.GradientTransformation:
        return optax.flatten(optax.adamw(1.0, weight_decay=0.1, mask=mask))

    assert moved(flat(by_rank), small()) == set()
    assert moved(flat(no_bias), small()) == EVERY

    for rule in (wd.standard, wd.min_ndim(2), wd.named("kernel"), ~wd.named("bias")):
        for tx in (flat(rule), optax.flatten(wd.masked_decay(0.1, rule))):
            message = r"asked about a single array.*outside optax\.flatten"
            with pytest.raises(ValueError, match=message):
                first_update(tx, small())
    assert moved(flat(wd.everything), small()) == EVERY
    assert moved(optax.flatten(wd.masked_decay(0.1, wd.nothing)), small()) == set()


def test_t10_scalars_do_not_decay() -> None:
    params = {"kernel": jnp.ones((2, 2)), "temperature": jnp.ones(())}
    assert moved(optax.adamw(1.0, mask=by_rank), params) == {"kernel", "temperature"}

    params["unheard_of"] = jnp.ones(())
    for rule in (wd.standard, wd.min_ndim(2)):
        assert moved(optax.adamw(1.0, mask=rule), params) == {"kernel"}
        assert moved(wd.masked_decay(0.1, rule), params) == {"kernel"}


def test_t11_a_schedule_changes_no_dtype() -> None:
    schedule = optax.linear_schedule(0.1, 0.2, 10)
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    theirs = optax.add_decayed_weights(schedule)
    assert first_update(theirs, params)["w"].dtype == jnp.float32
    with pytest.raises(TypeError, match="cond branches must have equal output types"):
        first_update(optax.apply_if_finite(theirs, 3), params)

    for decay in (wd.masked_decay, wd.cautious_weight_decay):
        ours = decay(schedule, wd.everything)
        for tx in (ours, optax.apply_if_finite(ours, 3)):
            assert first_update(tx, params)["w"].dtype == jnp.bfloat16

        def body(carry: Any, _: None, tx: Any = ours) -> tuple[Any, None]:
            return update(tx, carry[0], carry[1], params), None

        carry = zeros(params), ours.init(params)
        jax.lax.scan(body, carry, None, length=2)  # raises if a dtype changed


def shrink_inside(rate: Any = 0.01) -> optax.GradientTransformation:
    decay = wd.masked_decay(rate, wd.everything)
    return optax.chain(decay, optax.scale_by_learning_rate(1.0))


def test_t12_inside_multi_steps_decay_counts_once_per_real_step() -> None:
    params = {"x": jnp.ones(1)}
    gradients = [zeros(params)] * 8  # two steps of four
    outside = optax.chain(
        optax.MultiSteps(optax.sgd(1.0), 4).gradient_transformation(),
        wd.after_learning_rate(wd.masked_decay(0.01, wd.everything)),
    )
    seen, _ = run_steps(outside, params, gradients)
    np.testing.assert_allclose(seen[-1]["x"], 0.9227, atol=5e-5)
    assert "every micro-step" in str(wd.after_learning_rate.__doc__)

    inside = optax.MultiSteps(shrink_inside(), 4).gradient_transformation()
    seen, state = run_steps(inside, params, gradients)
    np.testing.assert_allclose(seen[-1]["x"], 0.9801, atol=1e-6)
    assert int(optax.tree.get(state, "decay_count")) == 2

    schedule = optax.piecewise_constant_schedule(0.5, {1: 0.0})  # 0.5, then 0
    scheduled = optax.MultiSteps(shrink_inside(schedule), 4).gradient_transformation()
    seen, _ = run_steps(scheduled, params, gradients)
    assert [float(x["x"][0]) for x in seen] == [1.0] * 3 + [0.5] * 5


def test_t12_inside_apply_if_finite_a_nan_step_does_not_decay() -> None:
    params = {"x": jnp.ones(1)}
    nan, zero = {"x": jnp.full(1, jnp.nan)}, zeros(params)
    after = wd.after_learning_rate(wd.masked_decay(0.01, wd.everything))
    outside = optax.chain(optax.apply_if_finite(optax.sgd(1.0), 9), after)
    seen, _ = run_steps(outside, params, [nan])
    np.testing.assert_allclose(seen[-1]["x"], 0.99, atol=1e-6)  # of a step not taken
    assert "steps that are thrown away" in str(wd.after_learning_rate.__doc__)

    for tx in (shrink_inside(), optax.chain(optax.sgd(1.0), after)):
        seen, state = run_steps(optax.apply_if_finite(tx, 9), params, [nan, zero])
        assert float(seen[0]["x"][0]) == 1.0
        np.testing.assert_allclose(seen[1]["x"], 0.99, atol=1e-6)
        assert int(optax.tree.get(state, "decay_count")) == 1


def test_t13_missing_parameters_are_one_clear_error() -> None:
    params = small()
    theirs = optax.chain(optax.add_decayed_weights(0.1))
    with pytest.raises(ValueError, match="not passing `params` when calling `update`"):
        theirs.update(params, theirs.init(params))

    l1 = wd.decay_along(lambda u, p: jnp.sign(p), 0.1)
    for decay in (wd.masked_decay(0.1), wd.masked_decay(0.0), l1):
        for tx in (
            decay,
            wd.cautious_weight_decay(0.1),
            wd.after_learning_rate(decay),
            wd.adamw(1e-3, decay),
        ):
            with pytest.raises(ValueError, match=r"tx\.update\(grads, state, params\)"):
                update(tx, params, tx.init(params))


@pytest.fixture
def checkpoints(tmp_path: Any) -> Iterator[tuple[Callable, Callable]]:
    """`save(name, state)` and `restore(name, like)`, through Orbax."""
    checkpointer = ocp.StandardCheckpointer()

    def save(name: str, state: Any) -> None:
        checkpointer.save(tmp_path / name, state)
        checkpointer.wait_until_finished()

    yield save, lambda name, like: checkpointer.restore(tmp_path / name, like)
    checkpointer.close()


def test_t14_checkpoints_survive_a_change_of_rate_or_mask(checkpoints: Any) -> None:
    save, restore = checkpoints
    params = small()
    rates = 0.1, optax.constant_schedule(0.1)
    constant, scheduled = (
        optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(rate)).init(params)
        for rate in rates
    )
    save("theirs", constant)
    with pytest.raises(ValueError, match="structures do not match"):
        restore("theirs", scheduled)

    def anchored(rate: Any, mask: Any) -> optax.GradientTransformationExtraArgs:
        def away(u: Any, p: Any, m: Any) -> Any:
            return p - m

        return wd.decay_along(away, rate, mask, remember=lambda p: p)

    for make in (wd.masked_decay, anchored):  # without memory, and with
        variants = [
            wd.adamw(rate, make(rate, mask))
            for rate in rates
            for mask in (wd.standard, wd.named("bias"))
        ]
        for n, tx in enumerate(variants):
            _, state = update(tx, params, tx.init(params), params)
            save(f"{make.__name__}{n}", state)
            for other in variants:
                restored = restore(f"{make.__name__}{n}", other.init(params))
                assert_same(restored, state)
                other.update(params, restored, params)


def test_t14_a_relabelled_partition_is_what_does_not_survive(checkpoints: Any) -> None:
    save, restore = checkpoints
    params = small()

    def grouped(labels: Any) -> optax.GradientTransformation:
        groups: dict[Any, Any] = {
            "a": optax.scale_by_adam(),
            "b": optax.scale_by_adam(),
        }
        return optax.partition(groups, labels)

    before = grouped({"dense": {"bias": "b", "kernel": "a"}, "norm": "b"})
    after = grouped({"dense": {"bias": "a", "kernel": "a"}, "norm": "b"})
    save("partition", before.init(params))
    restored = restore("partition", after.init(params))  # with moments that are None
    with pytest.raises(TypeError, match="NoneType"):
        after.update(params, restored, params)

    def masked(mask: Any) -> optax.GradientTransformation:
        return wd.adamw(1e-3, wd.masked_decay(0.1, mask))

    save("masked", masked(wd.named("kernel")).init(params))
    relabelled = masked(wd.contains("dense"))
    restored = restore("masked", relabelled.init(params))
    relabelled.update(params, restored, params)


def sharded(mesh: jax.sharding.Mesh, *axes: str) -> Any:
    x = jnp.arange(16.0).reshape(4, 4)
    return {"w": jax.device_put(x, jax.NamedSharding(mesh, jax.P(*axes)))}


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, None])
def test_t15_decays_are_elementwise_under_any_mesh(kind: Any) -> None:
    explicit = jax.sharding.AxisType.Explicit
    types = (kind or explicit,) * 2
    devices = jax.devices("cpu")[:4]
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=types, devices=devices)
    with jax.set_mesh(mesh):
        params = sharded(mesh, "data", "model")
        if kind is None:
            with pytest.raises(Exception, match="sharded"):
                jnp.vdot(params["w"], params["w"])
            with pytest.raises(Exception, match="(?i)sharding"):
                jnp.add(params["w"], sharded(mesh, "model", "data")["w"])

        # An update of x is along the decay before, and against it behind the rate.
        for decay, alone, last in (
            (wd.masked_decay(0.5), 1.5, 0.5),
            (wd.cautious_weight_decay(0.5), 1.5, 1.0),
        ):
            for tx, factor in ((decay, alone), (wd.after_learning_rate(decay), last)):
                state = tx.init(params)
                compiled = jax.jit(tx.update).lower(params, state, params).compile()
                text = str(compiled.as_text())
                for collective in ("all-", "collective-permute", "reduce-scatter"):
                    assert collective not in text
                updates, _ = compiled(params, state, params)
                assert updates["w"].sharding.is_equivalent_to(params["w"].sharding, 2)
                expected = factor * np.arange(16.0).reshape(4, 4)
                np.testing.assert_array_equal(updates["w"], expected)
            if kind is None:
                with pytest.raises(Exception, match="(?i)sharding"):
                    other = sharded(mesh, "model", "data")
                    update(decay, other, decay.init(params), params)


FLOATS = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}


def pairs_of(dtype: Any, *others: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of special values of both signs, and where their signs agree."""
    info = jnp.finfo(dtype)
    positive = [0.0, float(info.smallest_subnormal), float(info.tiny), 1.0]
    values = np.asarray([*positive, *(-x for x in positive), *others], dtype)
    u, x = (side.ravel() for side in np.meshgrid(values, values))
    signs = [np.sign(np.asarray(side, np.float64)) for side in (u, x)]
    return u, x, signs[0] * signs[1] >= 0.0  # False for NaN


@pytest.mark.parametrize("name", FLOATS)
def test_t17_the_gate_is_right_for_all_special_values(name: str) -> None:
    def wrong(gate: Callable[[jax.Array, jax.Array], jax.Array]) -> int:
        return int(np.sum(np.asarray(jax.jit(gate)(u, x)) != right))

    u, x, right = pairs_of(FLOATS[name])
    assert wrong(lambda a, b: a * b >= 0) > 0
    if name != "f16" and jax.default_backend() == "cpu":  # where subnormals are zeros
        assert wrong(lambda a, b: jnp.sign(a) * jnp.sign(b) >= 0) == 10  # of 64
    assert wrong(wd.cautious_gate) == 0

    u, x, right = pairs_of(FLOATS[name], np.inf, -np.inf, np.nan)
    assert wrong(wd.cautious_gate) == 0
    eager = wd.cautious_gate(jnp.asarray(u), jnp.asarray(x))
    np.testing.assert_array_equal(eager, right)


def test_t17_products_that_underflow_do_not_open_the_gate() -> None:
    u, x = {"x": jnp.full(1, -1e-4, jnp.float16)}, {"x": jnp.full(1, 1e-4, jnp.float16)}
    assert bool((u["x"] * x["x"] >= 0)[0])

    tx = wd.cautious_weight_decay(0.5, wd.everything)
    assert_same(update(tx, u, tx.init(x), x)[0], u)


def test_t17_the_audit_sees_a_gate_behind_the_learning_rate() -> None:
    params, decay = small(), wd.cautious_weight_decay(0.1, wd.everything)
    behind = optax.chain(optax.sgd(1.0), decay)
    before = optax.chain(decay, optax.sgd(1.0))
    ahead = {"x": jnp.asarray([1.0, -1.0])}  # gradients on a weight of 1: down and up
    weights = {"x": jnp.ones(2)}
    updates = update(behind, ahead, behind.init(weights), weights)[0]["x"]
    np.testing.assert_allclose(updates, [-1.0, 1.1])  # the opposite set, and it grows
    updates = update(before, ahead, before.init(weights), weights)[0]["x"]
    np.testing.assert_allclose(updates, [-1.1, 1.0])

    with pytest.raises(AssertionError, match="the weights grow"):
        wd.assert_decays(behind, params, wd.everything)
    wd.assert_decays(before, params, wd.everything)

    def kinds(tx: Any) -> set[str]:
        return {row.kind for row in wd.audit(tx, params).rows}

    assert kinds(behind) == {"growing"}
    assert kinds(before) == {"cautious"}
    repaired = optax.chain(optax.sgd(1.0), wd.after_learning_rate(decay))
    assert kinds(repaired) == {"cautious"}


def test_t18_what_is_not_inexact_is_never_touched() -> None:
    counter = {"w": jnp.ones(2), "n": jnp.asarray(3)}
    now = counter
    for _ in range(3):
        now = applied(now, first_update(optax.adamw(1e-3), now))
    assert int(now["n"]) == 0
    keys = {"w": jnp.ones(2), "key": jax.random.key(0)}
    with pytest.raises(TypeError, match="does not accept dtypes float32, key"):
        optax.add_decayed_weights(0.1).update(keys, optax.EmptyState(), keys)
    float0 = jax.grad(lambda p: jnp.sum(p["w"]), allow_int=True)(counter)
    with pytest.raises(TypeError, match="float0"):
        optax.add_decayed_weights(0.1).update(float0, optax.EmptyState(), counter)

    others = {"w": jnp.ones(2), "none": None, "python": 2.0, "flag": np.True_}
    for decay in (
        wd.masked_decay(0.5, wd.everything),
        wd.cautious_weight_decay(0.5, wd.everything),
        wd.after_learning_rate(wd.masked_decay(0.5, wd.everything)),
        wd.decay_along(lambda u, p, m: m, 0.5, wd.everything, remember=lambda p: p),
    ):
        for grads, params in (
            (zeros(counter), counter),
            (float0, counter),
            (keys, keys),
            (others, others),
        ):
            updates, _ = update(decay, grads, decay.init(params), params)
            same = [k for k in params if k != "w"]
            assert all(updates[k] is grads[k] for k in same)
            assert not np.array_equal(updates["w"], grads["w"])


def test_t18_abstract_trees_can_be_masked_and_described() -> None:
    params = {
        "kernel": jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.float32),
        "count": jax.ShapeDtypeStruct((), jnp.int32),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
        "none": None,
    }
    assert wd.everything(params) == {
        "kernel": True,
        "count": False,
        "key": False,
        "none": None,
    }
    rows = wd.describe(wd.everything, params).rows
    assert [(row.path, row.decays) for row in rows] == [
        ("count", False),
        ("kernel", True),
        ("key", False),
    ]


def test_t19_a_decay_behind_the_learning_rate_is_reported_as_growth() -> None:
    params = small()
    behind = optax.chain(optax.adam(1e-3), optax.add_decayed_weights(1e-4, wd.standard))
    grown = applied(params, first_update(behind, params))
    assert float(grown["dense"]["kernel"][0, 0]) > 1.0

    message = r"dense/kernel.*expected decay, measured shrink -0\.0001.*weights grow"
    with pytest.raises(AssertionError, match=message):
        wd.assert_decays(behind, params, wd.standard)
    mended = optax.chain(
        optax.adam(1e-3),
        wd.after_learning_rate(optax.add_decayed_weights(1e-4, wd.standard)),
    )
    wd.assert_decays(mended, params, wd.standard)


def test_t19_the_audit_tells_behind_before_and_twice_apart() -> None:
    decay = optax.add_decayed_weights(0.25, wd.standard)
    twice = optax.chain(
        optax.adamw(0.5, weight_decay=0.25, mask=wd.standard),
        wd.after_learning_rate(wd.masked_decay(0.5 * 0.25)),
    )
    for tx, kind, shrink in (
        (optax.chain(optax.adam(0.5), decay), "growing", -0.25),
        (optax.chain(decay, optax.adam(0.5)), "coupled L2", None),
        (twice, "decoupled", 2 * 0.5 * 0.25),
        (wd.adamw(0.5, wd.masked_decay(0.25)), "decoupled", 0.5 * 0.25),
    ):
        rows = {row.path: row for row in wd.audit(tx, small()).rows}
        found = rows.pop("dense/kernel")
        assert found.kind == kind
        assert shrink is None or found.shrink == pytest.approx(shrink, rel=1e-3)
        assert {row.kind for row in rows.values()} == {"none"}


def test_t20_types_and_metadata_choose_where_names_are_no_help() -> None:
    class Odd(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.a = nnx.Linear(2, 2, rngs=rngs)
            self.b = nnx.LayerNorm(2, rngs=rngs)
            self.c = nnx.Param(jnp.ones((2, 2)), weight_decay=False)

    model = nnx.eval_shape(lambda: Odd(nnx.Rngs(0)))
    renamed = {"a": {"theta0": jnp.ones((2, 2))}, "b": {"theta1": jnp.ones((1, 2))}}
    assert all(jax.tree.leaves(by_rank(renamed)))  # neither names nor ranks can tell

    rule = ~wd.owned_by(nnx.LayerNorm) & ~wd.declared("weight_decay", False)
    mask = wd.mask_of(model, rule)
    assert dict(zip(names(mask), jax.tree.leaves(mask), strict=True)) == {
        "a/bias": True,
        "a/kernel": True,
        "b/bias": False,
        "b/scale": False,
        "c": False,
    }
    with pytest.raises(ValueError, match=r"make the mask with mask_of\(model, rule\)"):
        rule(renamed)


def test_t21_rules_cannot_tell_parameters_from_updates() -> None:
    def dead(tree: Any) -> Any:  # decay what is alive: a mask by value
        answers = jax.tree.map(lambda x: bool(jnp.any(x != 0)), tree)
        seen.append(answers)
        return answers

    seen: list[Any] = []
    params = small()
    first_update(optax.add_decayed_weights(0.1, dead), params)
    assert seen[0] != seen[1]  # parameters at init, updates afterwards

    half = small(jnp.bfloat16)
    integers = {"w": jnp.ones((2, 2)), "n": jnp.asarray(3)}
    float0 = jax.grad(lambda p: jnp.sum(p["w"]), allow_int=True)(integers)
    rules = (wd.standard, wd.everything, wd.min_ndim(2), ~wd.named("*s"))
    for rule in rules:
        for given, later in ((params, zeros(params)), (half, params)):
            assert rule(given) == rule(later)
        assert wd.optional(rule)(integers) == wd.optional(rule)(float0)
    fields = set(wd.Leaf.__dataclass_fields__)
    assert fields == {"path", "shape", "dtype", "owner", "metadata"}


def test_t22_counts_can_be_looked_up() -> None:
    schedule, params = optax.constant_schedule(0.1), small()
    with pytest.raises(KeyError, match="multiple values"):
        optax.tree.get(optax.adamw(schedule).init(params), "count")

    for learning_rate in (0.1, schedule):
        for rate in (0.1, schedule):
            for decay in (wd.masked_decay(rate), wd.cautious_weight_decay(rate)):
                tx = wd.adamw(learning_rate, decay)
                state = update(tx, params, tx.init(params), params)[1]
                for count in ("count", "decay_count", "learning_rate_count"):
                    assert int(optax.tree.get(state, count)) == 1
    plain = optax.chain(optax.scale_by_adam(), wd.masked_decay(schedule))
    assert int(optax.tree.get(plain.init(params), "count")) == 0


def test_t23_stacked_axes_do_not_make_matrices() -> None:
    def init(seed: jax.Array) -> dict[str, jax.Array]:
        return {"kernel": jnp.full((2, 3), seed), "offset": jnp.ones(3)}

    params = jax.vmap(init)(jnp.arange(1.0, 5.0))
    assert by_rank(params) == {"kernel": True, "offset": True}

    inside = wd.masked_decay(1.0, wd.standard)
    updates = jax.vmap(lambda p: first_update(inside, p))(params)
    assert_same(
        updates, {"kernel": params["kernel"], "offset": zeros(params)["offset"]}
    )
    for rule in (
        wd.standard_with(stacked=wd.everything),
        wd.min_ndim(2, stacked=wd.everything),
    ):
        assert rule(params) == {"kernel": True, "offset": False}
        assert moved(wd.masked_decay(1.0, rule), params) == {"kernel"}


def test_t24_a_rule_excludes_frozen_leaves() -> None:
    params = {
        "frozen": {"kernel": jnp.ones((2, 2))},
        "embed": {"table": jnp.ones((3, 2))},
    }

    def loss(p: Any) -> jax.Array:
        frozen = jax.lax.stop_gradient(p["frozen"]["kernel"])
        return jnp.sum(p["embed"]["table"][0] @ frozen)  # rows 1 and 2 are not seen

    gradients = jax.grad(loss)(params)

    def after(tx: optax.GradientTransformation) -> Any:
        updates, _ = update(tx, gradients, tx.init(params), params)
        return applied(params, updates)

    now = after(optax.adamw(1e-2, weight_decay=0.1))
    assert float(now["frozen"]["kernel"][0, 0]) < 1.0
    assert float(now["embed"]["table"][2, 0]) < 1.0

    for decay in (wd.masked_decay, wd.cautious_weight_decay):
        kept = after(wd.adamw(1e-2, decay(0.1, ~wd.contains("frozen", "embed"))))
        assert_same(kept["frozen"], params["frozen"])
        assert float(kept["embed"]["table"][2, 0]) == 1.0
        for text in ("stop_gradient", "embedding", "xclude them by a rule"):
            assert text in str(decay.__doc__)


def test_t25_a_tied_parameter_is_described_with_its_other_names() -> None:
    class Tied(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.token = nnx.Linear(2, 3, use_bias=False, rngs=rngs)
            self.head = nnx.Linear(2, 3, use_bias=False, rngs=rngs)
            self.token.kernel = self.head.kernel

    model = nnx.eval_shape(lambda: Tied(nnx.Rngs(0)))
    assert names(nnx.state(model, nnx.Param)) == ["head/kernel/value"]

    description = wd.describe(wd.standard, model)
    assert [row.path for row in description.rows] == ["head/kernel"]
    assert "head/kernel is shared, and is also token/kernel" in description.warnings


def test_t26_a_name_that_matches_nothing_is_an_error() -> None:
    def no_bais(tree: Any) -> Any:
        answers = ["bais" not in name for name in names(tree)]
        return jax.tree.structure(tree).unflatten(answers)

    assert moved(optax.adamw(1.0, mask=no_bais), small()) == EVERY

    message = r"named\('bais'\) matches no leaf; the nearest are 'bias'"
    for tx in (
        optax.adamw(1.0, mask=~wd.named("bais")),
        wd.masked_decay(0.1, wd.min_ndim(2) & ~wd.named("bais", "scale")),
        wd.adamw(1.0, wd.cautious_weight_decay(0.1, wd.named("kernel", "bais"))),
    ):
        with pytest.raises(ValueError, match=message):
            first_update(tx, small())
    assert (
        moved(optax.adamw(1.0, mask=wd.optional(~wd.named("bais"))), small()) == EVERY
    )


def test_t27_the_audit_sees_what_muon_decays_in_flax_attention() -> None:
    shapes = {"kernel": (4, 2, 2), "bias": (2, 2)}
    params = {
        "query": {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
    }
    muon = optax.contrib.muon(1e-3, weight_decay=0.1)
    with pytest.raises(AssertionError) as caught:
        wd.assert_decays(muon, params, wd.standard)
    message = str(caught.value)
    assert "query/bias (2, 2): expected no decay, measured shrink 0.0001" in message
    assert "query/kernel (4, 2, 2): expected decay, measured shrink 0 per" in message
    wd.assert_decays(muon, params, wd.named("bias"))
    rows = {row.path: row for row in wd.audit(muon, params).rows}
    kernel, bias = rows["query/kernel"], rows["query/bias"]
    assert (kernel.kind, bias.kind) == ("none", "decoupled")
    assert bias.shrink == pytest.approx(1e-3 * 0.1, rel=1e-3)


def test_t28_the_growth_of_sst2_is_reported_and_mended() -> None:
    params, decay = small(), optax.add_decayed_weights(3e-6)
    sst2 = optax.chain(optax.sgd(0.1, 0.9), decay)
    with pytest.raises(
        AssertionError, match=r"measured shrink -3e-06 per step \(the w"
    ):
        wd.assert_decays(sst2, params, wd.everything)
    mended = optax.chain(optax.sgd(0.1, 0.9), wd.after_learning_rate(decay))
    wd.assert_decays(mended, params, wd.everything)
    for tx, kind, shrink in ((sst2, "growing", -3e-6), (mended, "decoupled", 3e-6)):
        for row in wd.audit(tx, params).rows:
            assert row.kind == kind
            assert row.shrink == pytest.approx(shrink, rel=1e-2)


def test_t29_a_leaf_without_a_layer_is_an_error_and_not_of_the_head() -> None:
    def layer_id(name: str, num_layers: int) -> int:
        """As many write it: what has no number belongs to the head."""
        found = re.search(r"block_(\d+)", name)
        return int(found[1]) if found else num_layers

    params = {
        "patch_stem": {"kernel": jnp.ones((2, 2))},
        **{f"block_{n}": {"kernel": jnp.ones((2, 2))} for n in range(3)},
        "head": {"kernel": jnp.ones((2, 2))},
    }
    now = {name: 0.5 ** (3 - layer_id(name, 3)) for name in names(params)}
    assert now["patch_stem/kernel"] == now["head/kernel"] == 1.0  # the lowest layer
    assert now["block_2/kernel"] == 0.5

    def refusal(layer_of: Any) -> str:
        tx = wd.scale_per_leaf(wd.layerwise(0.5, layer_of))
        with pytest.raises(ValueError) as caught:
            first_update(tx, params)
        return str(caught.value)

    first, last = wd.contains("patch_stem"), wd.contains("head")
    numbered = wd.numbered_layers("block_#", 3, last=last)
    assert refusal(numbered) == (
        f"'patch_stem/kernel' has no layer; {numbered!r} found layers 1..4 of 0..4 in "
        "other leaves, and has to name one for each leaf that is scaled"
    )
    off_by_one = wd.numbered_layers("block_#", 2, first=first, last=last)
    assert refusal(off_by_one) == (
        "layer 2 found at 'block_2/kernel', but num_layers=2 (layers are 0..1)"
    )
    other_way = wd.numbered_layers("block_#", 4, first=first, last=last)
    assert refusal(other_way).startswith("no leaf has the number 3 of 'block_#', the h")

    good = wd.layerwise(0.5, wd.numbered_layers("block_#", 3, first=first, last=last))
    after = update(wd.scale_per_leaf(good), params, optax.EmptyState())[0]
    factors = {name: float(leaf["kernel"][0, 0]) for name, leaf in after.items()}
    assert factors == {
        "patch_stem": 0.0625,
        "block_0": 0.125,
        "block_1": 0.25,
        "block_2": 0.5,
        "head": 1.0,
    }


def test_t30_nothing_is_said_under_a_trace(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    def loud(tree: Any) -> Any:
        logging.getLogger("trainer").info("decaying %s", names(tree))
        return by_rank(tree)

    def trace_twice(tx: optax.GradientTransformation) -> None:
        params = small()
        for _ in range(2):
            jax.eval_shape(lambda p: first_update(tx, p), params)

    with caplog.at_level(logging.INFO):
        trace_twice(optax.add_decayed_weights(0.1, loud))
        assert len(caplog.records) == 4  # at init and at update of every trace
        caplog.clear()

        odd = wd.everything & ~wd.optional(wd.named("missing"))
        for decay in (wd.masked_decay, wd.cautious_weight_decay):
            trace_twice(wd.adamw(optax.constant_schedule(0.1), decay(0.1, odd)))
            trace_twice(optax.adamw(0.1, mask=odd))
    assert not [r for r in caplog.records if not r.name.startswith("jax")]
    assert capfd.readouterr() == ("", "")


def test_t31_masks_are_not_asked_in_init() -> None:
    def labels(tree: Any) -> Any:
        return {"dense": {k: k for k in tree["dense"]}, "norm": "scale"}

    params = small()
    groups: dict[Any, Any] = {
        name: optax.scale_by_adam() for name in ("bias", "kernel", "scale")
    }
    theirs = optax.partition(groups, labels)
    with pytest.raises(TypeError, match="_ParamsPlaceholder"):
        optax.tree_map_params(theirs, jnp.ones_like, theirs.init(params))

    def asked(tree: Any) -> Any:
        raise AssertionError("the mask was asked")

    tree = {"dense": {"bias": False, "kernel": True}, "norm": False}
    anchored = wd.decay_along(
        lambda u, p, m: p - m, 0.1, wd.named("kernel"), remember=lambda p: p
    )
    table = wd.first_match(
        (wd.named("bias"), "bias"), (wd.named("kernel"), "kernel"), default="scale"
    )
    for tx in (
        wd.adamw(0.1, wd.masked_decay(0.1, asked, multiplier=asked)),
        wd.adamw(0.1, wd.cautious_weight_decay(0.1, tree)),
        wd.adamw(0.1, wd.after_learning_rate(anchored)),
        optax.partition(groups, table),
        optax.adamw(0.1, mask=wd.named("kernel")),
    ):
        state = tx.init(params)
        mapped = optax.tree_map_params(tx, lambda x: x + 1.0, state)
        moments = optax.tree.get_all_with_path(mapped, "mu")
        for before, after in zip(
            optax.tree.get_all_with_path(state, "mu"), moments, strict=True
        ):
            assert_same(jax.tree.map(lambda x: x + 1.0, before[1]), after[1])


def test_t32_only_flax_wrappers_lose_their_value_key() -> None:
    class Heads(NamedTuple):
        query: Any
        key: Any
        value: Any

    params = {"attn": Heads(*(jnp.ones((2, 2)) for _ in range(3)))}
    stripped = [name.removesuffix("/value") for name in names(params)]
    assert stripped == ["attn/query", "attn/key", "attn"]  # the usual mending

    for tree in (params, {"attn": {**params["attn"]._asdict()}}):
        rows = wd.describe(wd.named("value"), tree).rows
        assert {row.path for row in rows if row.decays} == {"attn/value"}
        assert moved(wd.masked_decay(0.1, wd.path("attn/value")), tree) == {
            "attn/value"
        }
    box = {"value": nn.Partitioned(jnp.ones((2, 2)), names=(None, None))}
    assert [row.path for row in wd.describe(wd.everything, box).rows] == ["value"]
    variable = nnx.State({"value": nnx.Param(jnp.ones((2, 2)))})
    assert [row.path for row in wd.describe(wd.everything, variable).rows] == ["value"]


class Layer(Dense):
    """A layer that can be called, and so can a tree of bools in its structure."""

    def __call__(self, x: jax.Array) -> jax.Array:
        raise AssertionError("a tree of bools was called")


def test_t33_an_equinox_tree_of_bools_is_no_function() -> None:
    params: Any = Layer(jnp.ones(2), jnp.ones((2, 2)))
    labels = jax.tree.map(lambda x: "a", params)
    groups: dict[Any, Any] = {"a": optax.identity()}
    with pytest.raises(AssertionError, match="a tree of bools was called"):
        optax.partition(groups, labels).init(params)

    mask = wd.named("kernel")(params)
    assert callable(mask)
    for tx in (
        wd.sgdw(1.0, wd.masked_decay(0.1, mask)),
        wd.sgdw(1.0, wd.cautious_weight_decay(0.1, jax.tree.map(np.bool_, mask))),
        optax.adamw(1.0, mask=mask),
    ):
        assert moved(tx, params) == {"kernel"}
        wd.assert_decays(tx, params, mask)
    assert {r.path for r in wd.describe(mask, params).rows if r.decays} == {"kernel"}
    same = optax.partition(groups, wd.first_match((wd.everything, "a")))
    same.init(params)


def test_t34_a_strict_rule_may_stand_in_a_branch_of_a_partition() -> None:
    params, strict = small(), wd.named("kernel")
    with pytest.raises(ValueError, match="matches no leaf"):
        strict({"norm": params["norm"]})

    labels = {"dense": "matrices", "norm": "rest"}
    for decay in (
        wd.masked_decay(0.1, strict),
        wd.cautious_weight_decay(0.1, strict),
        optax.add_decayed_weights(0.1, strict),
        wd.adamw(0.1, wd.masked_decay(0.1, strict)),
    ):
        tx = optax.partition({"matrices": decay, "rest": decay}, labels)
        assert moved(tx, params) == KERNEL


def test_t35_a_ready_chain_puts_a_final_decay_last_or_refuses_it() -> None:
    params, final = small(), wd.after_learning_rate(wd.masked_decay(0.125))
    inside = optax.chain(
        optax.scale_by_adam(), final, optax.scale_by_learning_rate(0.5)
    )
    assert float(first_update(inside, params)["dense"]["kernel"][0, 0]) > 0.0  # grows

    for ready in (wd.adamw, wd.sgdw, wd.lion):
        updates = first_update(ready(0.5, final), params)
        assert float(updates["dense"]["kernel"][0, 0]) == -0.125
        wd.assert_decays(ready(0.5, final), params, wd.standard)
        for hidden in (
            optax.chain(final),
            optax.chain(wd.masked_decay(0.1), final),
            optax.partition({"a": final}, lambda tree: "a"),
            optax.masked(final, {"dense": True, "norm": False}),
        ):
            with pytest.raises(ValueError, match="where it would grow the weights"):
                first_update(ready(0.5, hidden), params)


def test_t36_a_bare_vector_is_no_factor_for_stacked_layers() -> None:
    params = {"kernel": jnp.ones((3, 2, 3))}
    factors = jnp.asarray([1.0, 2.0, 3.0])
    now = factors * params["kernel"]
    np.testing.assert_array_equal(now[:, 0, 0], [1.0, 1.0, 1.0])  # the last axis

    for bare in (factors, np.asarray(factors), jnp.ones((3, 3)), jnp.ones((2, 1, 1))):
        with pytest.raises(
            ValueError, match="give it the rank of the leaf, with 1 for"
        ):
            first_update(wd.masked_decay(0.5, multiplier={"kernel": bare}), params)
    good = {"kernel": factors.reshape(3, 1, 1)}
    for tx in (
        wd.masked_decay(0.5, multiplier=good),
        wd.cautious_weight_decay(0.5, multiplier=jax.tree.map(np.asarray, good)),
    ):
        updates = first_update(tx, params)["kernel"]
        np.testing.assert_array_equal(updates[:, 0, 0], [0.5, 1.0, 1.5])
        np.testing.assert_array_equal(updates[0], np.full((2, 3), 0.5))


@pytest.mark.parametrize(("dtype", "changed"), [("bfloat16", 0.0), ("float32", 1.0)])
def test_t16_metrics_show_the_decay_that_rounding_undoes(
    dtype: str, changed: float
) -> None:
    params = {"w": jnp.ones(64, dtype)}
    tx = wd.with_metrics(wd.sgdw(1.0, wd.masked_decay(1e-5, wd.everything)), every=1)
    step: Any = jax.jit(tx.update)
    updates, state = step(zeros(params), tx.init(params), params)
    found = wd.metrics(state)["all"]
    assert found["shrink"] == pytest.approx(1e-5, rel=1e-2)
    assert found["open_fraction"] == 1.0 and found["changed"] == changed
    after: Any = optax.apply_updates(params, updates)
    moved = after["w"] != params["w"]
    assert bool(jnp.all(moved)) is bool(changed)
