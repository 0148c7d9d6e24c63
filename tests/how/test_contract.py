# SPDX-License-Identifier: Apache-2.0
"""What every decay has to do, whatever its method: one table, one set of tests.

A new method adds its row to METHODS, under its public name, and is held to all of it.
"""

import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from helpers import (
    DECAYS,
    assert_same,
    largest_difference,
    noise,
    public,
    small_tree,
    tree,
)
from helpers import quick_compiles as quick_compiles

import optax_wd as wd

Method = Callable[..., optax.GradientTransformationExtraArgs]


def with_options(method: Method, **options: Any) -> Method:
    """A method whose further arguments are given."""

    def made(
        weight_decay: optax.ScalarOrSchedule,
        mask: Any = wd.standard,
        *,
        multiplier: Any = None,
    ) -> optax.GradientTransformationExtraArgs:
        return method(weight_decay, mask, multiplier=multiplier, **options)

    return made


def given_tree(method: Method, name: str, function: Callable[[Any], Any]) -> Method:
    """A method whose `update` is given something of each update, as `name`."""

    def made(
        weight_decay: optax.ScalarOrSchedule,
        mask: Any = wd.standard,
        *,
        multiplier: Any = None,
    ) -> optax.GradientTransformationExtraArgs:
        tx = method(weight_decay, mask, multiplier=multiplier)

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            tree = jax.tree.map(function, updates)
            return tx.update(updates, state, params, **(extra | {name: tree}))

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return made


def given_grad(method: Method) -> Method:
    """A method whose `update` is given the updates as the raw gradient too."""
    return given_tree(method, "grad", lambda update: update)


METHODS: dict[str, Method] = {
    "masked_decay": wd.masked_decay,
    "cautious_weight_decay": wd.cautious_weight_decay,
    "anchored_weight_decay": wd.anchored_weight_decay,
    "averaged_weight_decay": with_options(wd.averaged_weight_decay, average_decay=0.5),
    "l1_weight_decay": wd.l1_weight_decay,
    "huber_weight_decay": with_options(wd.huber_weight_decay, threshold=0.5),
    "sensitivity_gated_weight_decay": given_grad(wd.sensitivity_gated_weight_decay),
    "momentum_corrected_weight_decay": with_options(
        wd.momentum_corrected_weight_decay, momentum=0.5, dampening=0.5
    ),
    "randomly_gated_weight_decay": with_options(  # a fraction is tested elsewhere
        wd.controls.randomly_gated_weight_decay, fraction=1.0, seed=0
    ),
    "inversely_gated_weight_decay": wd.controls.inversely_gated_weight_decay,
    "gradient_gated_weight_decay": given_grad(wd.controls.gradient_gated_weight_decay),
    "tensor_gated_weight_decay": with_options(
        wd.controls.tensor_gated_weight_decay,
        stacked=wd.optional(wd.contains("blocks")),
    ),
    "natural_weight_decay": given_tree(
        with_options(
            wd.natural_weight_decay, stacked=wd.optional(wd.contains("blocks"))
        ),
        "fisher",
        jnp.ones_like,
    ),
    "topk_gated_weight_decay": with_options(wd.topk_gated_weight_decay, keep=0.5),
    "token_aware_weight_decay": given_tree(
        wd.token_aware_weight_decay, "token_counts", lambda u: jnp.ones(len(u))
    ),
    "norm_targeted_weight_decay": with_options(
        wd.norm_targeted_weight_decay, stacked=wd.optional(wd.contains("blocks"))
    ),
    "constrained_weight_decay": with_options(
        wd.constrained_weight_decay,
        limit=0.0,
        stacked=wd.optional(wd.contains("blocks")),
    ),
    "selective_weight_decay": given_grad(
        with_options(
            wd.selective_weight_decay, stacked=wd.optional(wd.contains("blocks"))
        )
    ),
}
"""From `(weight_decay, mask, *, multiplier)` to the decay, by public name."""


def anchored(
    weight_decay: optax.ScalarOrSchedule,
    mask: Any = wd.standard,
    *,
    multiplier: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """A method of one's own with memory: a pull towards the initial value."""
    return DECAYS["anchored"](weight_decay, mask, multiplier=multiplier)


ROWS = METHODS | {"decay_along with remember": anchored}
# What the nature of a method rules out: method -> test -> why, in one line.
_NORMS = "the norm of a sharded tensor is a sum over devices"
_MOVES = "its memory has moved since the step that is compared"
EXEMPT: dict[str, dict[str, str]] = {
    "averaged_weight_decay": {
        "test_it_can_be_the_carry_of_a_scan": "its third step knows of the first two",
        "test_under_inject_hyperparams_the_rate_can_be_read_and_set": _MOVES,
        "test_under_inject_hyperparams_a_schedule_is_followed": _MOVES,
    },
    "inversely_gated_weight_decay": {
        "test_it_decays_what_the_mask_chooses_and_nothing_else": (
            "without a step nothing moves away from zero"
        ),
    },
    "tensor_gated_weight_decay": {
        "test_shards_stay_where_they_are_and_do_not_talk": (
            "an inner product of sharded tensors is a sum over devices"
        ),
        "test_the_audit_agrees": "the few tensors asked may all be open by chance",
    },
    "natural_weight_decay": {
        "test_shards_stay_where_they_are_and_do_not_talk": _NORMS,
    },
    "topk_gated_weight_decay": {
        "test_scanned_layers_decay_as_the_layers_do": "the choice is among all layers",
        "test_shards_stay_where_they_are_and_do_not_talk": "so is it among all shards",
    },
    "token_aware_weight_decay": {
        "test_shards_stay_where_they_are_and_do_not_talk": (
            "the mean of the counts is a sum, which devices may share"
        ),
    },
    "norm_targeted_weight_decay": {
        "test_shards_stay_where_they_are_and_do_not_talk": _NORMS,
    },
    "constrained_weight_decay": {
        "test_it_can_be_the_carry_of_a_scan": "its third step knows of the first two",
        "test_under_inject_hyperparams_the_rate_can_be_read_and_set": _MOVES,
        "test_under_inject_hyperparams_a_schedule_is_followed": _MOVES,
        "test_shards_stay_where_they_are_and_do_not_talk": _NORMS,
    },
    "selective_weight_decay": {
        "test_it_decays_what_the_mask_chooses_and_nothing_else": (
            "without a step no step overshoots"
        ),
        "test_shards_stay_where_they_are_and_do_not_talk": _NORMS,
    },
}


CONTRACT: list[Callable[..., None]] = []


def every_method(test: Callable[..., None]) -> Callable[..., None]:
    """Ask a test of all methods that are not exempt from it."""
    CONTRACT.append(test)
    asked = {
        name: method
        for name, method in ROWS.items()
        if test.__name__ not in EXEMPT.get(name, {})
    }
    return pytest.mark.parametrize("method", asked.values(), ids=asked)(test)


def test_exemptions_are_of_methods_and_tests_that_exist_and_say_why() -> None:
    for name, reasons in EXEMPT.items():
        assert name in ROWS and len(reasons) < 5, name
        for test, why in reasons.items():
            assert callable(globals()[test]) and len(why) > 20, (name, test)


KERNELS = wd.named("kernel")
START, HERE = (
    small_tree(0),
    small_tree(2),
)  # values at init, and those at the step that is tested
(GRADS,) = noise(HERE, 1)
ZEROS = jax.tree.map(jnp.zeros_like, HERE)


def schedule(step: Any) -> Any:
    return 0.5 / (1.0 + step)


def first(tx: Any, updates: Any = GRADS, params: Any = HERE) -> Any:
    """The updates of the first step after `init` elsewhere, compiled."""
    like = jax.tree.map(lambda x, y: y.astype(x.dtype), params, START)
    return jax.jit(tx.update)(updates, tx.init(like), params)[0]


def decayed_by(method: Any, rate: float) -> Any:
    """What a method subtracts where all leaves decay and every gate is open."""
    return first(method(rate, wd.everything), ZEROS)


# Alone


@every_method
def test_it_decays_what_the_mask_chooses_and_nothing_else(method: Any) -> None:
    moved = jax.tree.map(
        lambda u: float(jnp.max(jnp.abs(u))) > 0, first(method(0.5, KERNELS), ZEROS)
    )
    assert moved == KERNELS(HERE)


@every_method
def test_it_scales_with_rate_and_multiplier(method: Any) -> None:
    once = decayed_by(method, 0.25)
    twice = first(method(0.25, wd.everything, multiplier=2.0), ZEROS)
    assert_same(twice, jax.tree.map(lambda u: 2.0 * u, once))
    assert_same(decayed_by(method, 0.5), twice)


@every_method
def test_compiled_it_does_what_it_does_eagerly(method: Any) -> None:
    tx = method(schedule)
    state = tx.init(START)
    eager = tx.update(GRADS, state, HERE)
    compiled = jax.jit(tx.update)(GRADS, state, HERE)
    assert largest_difference(eager, compiled) < 1e-6
    assert jax.tree.map(jnp.shape, eager) == jax.tree.map(jnp.shape, compiled)


@every_method
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_stay_what_they_are(method: Any, dtype: str) -> None:
    params, grads = small_tree(2, dtype), small_tree(3, dtype)
    tx = optax.chain(method(schedule, wd.everything), optax.scale(-0.25))
    state = tx.init(small_tree(0, dtype))
    updates, after = jax.jit(tx.update)(grads, state, params)
    for u, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        assert u.dtype == p.dtype == dtype and u.shape == p.shape
        assert bool(jnp.all(jnp.isfinite(u)))
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, after)]
    assert kinds[0] == kinds[1]


@every_method
@pytest.mark.parametrize("rate", [0.5, schedule], ids=["number", "schedule"])
def test_it_compiles_once_over_many_steps(method: Any, rate: Any) -> None:
    tx = optax.chain(method(rate), optax.scale(-0.1))
    traces = []

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        traces.append(1)
        updates, state = tx.update(ZEROS, state, params)
        return optax.apply_updates(params, updates), state

    params, state = HERE, tx.init(START)
    for _ in range(5):
        params, state = step(params, state)
    assert len(traces) == 1


@every_method
def test_it_can_be_the_carry_of_a_scan(method: Any) -> None:
    tx = method(schedule)

    def step(state: Any, _: None) -> tuple[Any, Any]:
        return tx.update(GRADS, state, HERE)[::-1]

    state, updates = jax.lax.scan(step, tx.init(START), length=3)
    assert state.decay_count == 3
    last = jax.tree.map(lambda u: u[-1], updates)
    third = first(method(schedule(2)))
    assert largest_difference(last, third) < 1e-6


# In Optax's combinators


@every_method
def test_in_a_chain_it_acts_where_it_stands(method: Any) -> None:
    alone = first(method(0.5, KERNELS), jax.tree.map(lambda g: 3.0 * g, GRADS))
    tx = optax.chain(optax.scale(3.0), method(0.5, KERNELS), optax.scale(-0.25))
    expected = jax.tree.map(lambda u: -0.25 * u, alone)
    assert largest_difference(first(tx), expected) < 1e-6


@every_method
def test_in_a_partition_each_group_has_its_own_rate(method: Any) -> None:
    labels = wd.first_match(
        (wd.contains("attn"), "half"), (wd.named("kernel"), "once"), default="never"
    )
    branches: dict[Any, Any] = {
        "half": method(0.5, wd.everything),
        "once": method(1.0, wd.everything),
        "never": optax.identity(),
    }
    updates = first(optax.partition(branches, labels), ZEROS)
    half = decayed_by(method, 0.5)
    assert_same(updates["attn"], half["attn"])
    assert_same(updates["mlp"]["kernel"], 2.0 * half["mlp"]["kernel"])
    assert_same(updates["mlp"]["bias"], ZEROS["mlp"]["bias"])


@every_method
def test_in_multi_steps_it_counts_and_acts_once_per_real_step(method: Any) -> None:
    tx = optax.MultiSteps(optax.chain(method(schedule, KERNELS), optax.scale(-0.1)), 2)
    plain = optax.chain(method(schedule, KERNELS), optax.scale(-0.1))
    update, plain_update = jax.jit(tx.update), jax.jit(plain.update)
    state: Any = tx.init(START)
    plain_state, rates = plain.init(START), []
    for micro in range(6):
        updates, state = update(GRADS, state, HERE)
        if micro % 2 == 0:
            assert_same(updates, ZEROS)
            continue
        expected, plain_state = plain_update(GRADS, plain_state, HERE)
        assert largest_difference(updates, expected) < 1e-6
        rates.append(float(optax.tree.get(state, "decay_rate")))
    assert optax.tree.get(state, "decay_count") == 3
    np.testing.assert_allclose(rates, [0.5, 0.25, 0.5 / 3.0])


@every_method
def test_in_apply_if_finite_a_nan_step_does_not_decay(method: Any) -> None:
    inner = optax.chain(method(schedule), optax.scale(-0.1))
    tx = optax.apply_if_finite(inner, 5)
    update, inner_update = jax.jit(tx.update), jax.jit(inner.update)
    bad = jax.tree.map(lambda g: g.at[0].set(jnp.nan), GRADS)
    state: Any = tx.init(START)
    inner_state: Any = inner.init(START)
    for grads in (GRADS, bad, bad, GRADS):
        updates, state = update(grads, state, HERE)
        if grads is bad:
            assert_same(updates, ZEROS)
            continue
        expected, inner_state = inner_update(grads, inner_state, HERE)
        assert largest_difference(updates, expected) < 1e-6
    assert optax.tree.get(state, "decay_count") == 2
    assert_same(state.inner_state, inner_state)


@every_method
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_under_inject_hyperparams_the_rate_can_be_read_and_set(
    method: Any, dtype: str
) -> None:
    inject = optax.inject_hyperparams(
        method, static_args=("mask", "multiplier"), hyperparam_dtype=jnp.float32
    )
    tx = inject(weight_decay=0.5, mask=KERNELS, multiplier=None)
    start, here = small_tree(0, dtype), small_tree(2, dtype)
    zeros = jax.tree.map(jnp.zeros_like, here)
    state: Any = tx.init(start)
    assert state.hyperparams["weight_decay"] == 0.5
    traces = []

    @jax.jit
    def update(*arguments: Any) -> Any:
        traces.append(1)
        return tx.update(*arguments)

    for rate in (0.5, 0.25, 0.1, 0.0):
        state.hyperparams["weight_decay"] = jnp.asarray(rate, jnp.float32)
        updates, state = update(zeros, state, here)
        alone = method(rate, KERNELS)
        expected = jax.jit(alone.update)(zeros, alone.init(start), here)[0]
        assert_same(updates, expected)
        assert state.hyperparams["weight_decay"] == np.float32(rate)
        assert state.inner_state.decay_rate == np.float32(rate)
    assert len(traces) == 1


@every_method
def test_under_inject_hyperparams_a_schedule_is_followed(method: Any) -> None:
    inject = optax.inject_hyperparams(method, static_args=("mask", "multiplier"))
    tx = inject(weight_decay=schedule, mask=KERNELS, multiplier=None)
    state: Any = tx.init(START)
    update = jax.jit(tx.update)
    for step in range(3):
        updates, state = update(GRADS, state, HERE)
        assert state.hyperparams["weight_decay"] == np.float32(schedule(step))
        expected = first(method(schedule(step), KERNELS))
        assert largest_difference(updates, expected) < 1e-6


NEEDED: dict[str, Any] = {
    "average_decay": 0.5,
    "threshold": 0.5,
    "momentum": 0.5,
    "fraction": 1.0,
    "seed": 0,
    "keep": 0.5,
    "norm": 1.0,
    "limit": 0.5,
    "learning_rate": 0.5,
    "weight_decay": 0.5,
    "gate": wd.cautious_gate,
    "stacked": wd.optional(wd.contains("blocks")),
    "multiplier": wd.first_match((wd.everything, 2.0)),
}
"""What is given to the arguments of these names; others have defaults."""
INJECTED = [*METHODS, "keep_norms", "max_norms", "pin_norms"]
RATES = {"weight_decay", "learning_rate"}


def injectable(name: str) -> tuple[Any, dict[str, Any]]:
    """A public method and its arguments by name, defaults among them."""
    made = public(name)
    taken = inspect.signature(made).parameters.values()
    return made, {p.name: NEEDED.get(p.name, p.default) for p in taken}


@pytest.mark.parametrize("name", INJECTED)
def test_under_inject_hyperparams_all_but_the_rates_is_static(name: str) -> None:
    made, options = injectable(name)
    params = {"embedding": HERE["mlp"]["kernel"], "kernel": HERE["mlp"]["kernel"]}
    extra = {"grad": params, "fisher": params, "token_counts": jnp.arange(3.0)}
    static = [option for option in options if option not in RATES]
    tx = optax.inject_hyperparams(made, static_args=static)(**options)
    update = jax.jit(lambda state: tx.update(params, state, params, **extra)[0])
    plain = made(**options)
    expected = plain.update(params, plain.init(params), params, **extra)[0]
    assert largest_difference(update(tx.init(params)), expected) < 1e-5


OPTIONS = [
    (name, option)
    for name in INJECTED
    for option, value in injectable(name)[1].items()
    if option not in RATES and isinstance(value, int | float)
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_a_number_that_is_not_static_is_named(name: str, option: str) -> None:
    made, options = injectable(name)
    static = [other for other in options if other not in RATES | {option}]
    inject = optax.inject_hyperparams(made, static_args=static)
    with pytest.raises(
        TypeError,
        match=rf"^{option} .*, got (a traced|the) array.*; under "
        rf"optax.inject_hyperparams write static_args=\(\.\.\., '{option}'\)",
    ):
        jax.eval_shape(lambda: inject(**options).init(HERE))


# Trees


@every_method
def test_leaves_that_are_none_stay_none(method: Any) -> None:
    here: Any = {"a": None, "b": HERE["mlp"], "c": {"d": None}}
    start = {"a": None, "b": START["mlp"], "c": {"d": None}}
    zeros = jax.tree.map(jnp.zeros_like, here)
    tx = method(0.5, wd.everything)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(start), here)
    assert updates["a"] is None and updates["c"] == {"d": None}
    assert_same(updates["b"], decayed_by(method, 0.5)["mlp"])


def boxed(tree: Any) -> Any:
    """Each leaf in a box that has names for its axes, which say how long they are."""
    return jax.tree.map(lambda x: nn.Partitioned(x, tuple(map(str, x.shape))), tree)


def assert_boxes_fit(make: Callable[[], Any]) -> None:
    """Steps are those without boxes, and a box holds what has the axes it names."""
    here, start, grads = map(boxed, (HERE, START, GRADS))
    tx = make()
    updates, state = jax.jit(tx.update)(grads, tx.init(start), here)
    assert_same(nn.unbox(updates), first(make()))
    assert jax.tree.structure(updates) == jax.tree.structure(here)
    is_box = lambda node: isinstance(node, nn.Partitioned)  # noqa: E731
    nodes = jax.tree.leaves((updates, state), is_leaf=is_box)
    assert len(list(filter(is_box, nodes))) >= len(jax.tree.leaves(HERE))
    for box in filter(is_box, nodes):
        shapes = [tuple(map(str, x.shape)) for x in jax.tree.leaves(box)]
        assert shapes in ([], [box.names])


@every_method
def test_a_flax_box_has_what_it_has_names_for_the_axes_of(method: Any) -> None:
    assert_boxes_fit(lambda: method(0.5, KERNELS))


@pytest.mark.parametrize(
    "make",
    [
        lambda: wd.muon(0.1, wd.masked_decay(0.5), ns_steps=1),
        lambda: wd.normuon(0.1, wd.masked_decay(0.5), ns_steps=1),
        lambda: wd.novograd(0.1, wd.masked_decay(0.5)),
        lambda: wd.fadam(0.1, wd.natural_weight_decay(0.5)),
        lambda: wd.keep_norms(),
        lambda: wd.pin_norms(0.1, KERNELS),
        lambda: wd.max_norms(0.1, KERNELS, axis=0),
        lambda: wd.with_metrics(optax.sgd(0.1)),
    ],
    ids="muon normuon novograd fadam keep_norms pin_norms max_norms metrics".split(),
)
def test_boxes_fit_what_is_no_decay_too(make: Any) -> None:
    assert_boxes_fit(make)


@every_method
def test_scanned_layers_decay_as_the_layers_do(method: Any) -> None:
    """Stacked along axis 0, biases and scales too, with a factor for each layer."""
    layers = 3
    start, here, grads = (
        [tree(seed + n)["mlp"] for n in range(layers)] for seed in (10, 20, 30)
    )
    factors = [1.0, 0.0, 2.0]

    def stack(trees: list[Any]) -> Any:
        return {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *trees)}

    tx = method(
        0.5,
        wd.standard_with(stacked=wd.contains("blocks")),
        multiplier={
            "blocks": {"kernel": jnp.asarray(factors)[:, None, None], "bias": 1.0}
        },
    )
    updates, _ = jax.jit(tx.update)(stack(grads), tx.init(stack(start)), stack(here))
    for n in range(layers):
        alone = method(0.5, wd.standard, multiplier=factors[n])
        expected, _ = alone.update(grads[n], alone.init(start[n]), here[n])
        found = jax.tree.map(lambda u, n=n: u[n], updates["blocks"])
        assert largest_difference(found, expected) < 1e-6
        assert_same(found["bias"], grads[n]["bias"])


# Shards

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)
SPECS = {
    "both": jax.P("x", "y"),
    "rows": jax.P("x"),
    "columns": jax.P(None, "y"),
    "replicated": jax.P(),
}


def compiled_step(tx: Any, axis_type: Any) -> tuple[Any, Any, Any]:
    """A compiled update on sharded trees, its arguments, and where leaves belong."""
    types = (axis_type,) * 2
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=types)
    places = {name: jax.NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    rng = np.random.default_rng(0)

    def values() -> Any:
        return {
            name: jax.device_put(rng.normal(size=(4, 8)).astype("f4"), place)
            for name, place in places.items()
        }

    with jax.set_mesh(mesh):
        state = tx.init(values())
        arguments = values(), state, values()
        step = jax.jit(tx.update).lower(*arguments).compile()
        return step, arguments, places


@every_method
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_shards_stay_where_they_are_and_do_not_talk(
    method: Any, axis_type: str
) -> None:
    factors = {name: 0.5 for name in SPECS} | {"rows": np.ones((4, 1)) * 2.0}
    tx = method(schedule, wd.everything, multiplier=factors)
    step, arguments, places = compiled_step(tx, jax.sharding.AxisType[axis_type])
    assert not [name for name in COLLECTIVES if name in step.as_text()]
    updates, state = step(*arguments)
    for name, place in places.items():
        assert updates[name].sharding.is_equivalent_to(place, 2)
        for memory in (arguments[1].memory, state.memory):
            assert not memory or memory[name].sharding.is_equivalent_to(place, 2)
    local = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), arguments)
    assert largest_difference(updates, tx.update(*local)[0]) < 1e-6


def test_the_search_for_collectives_finds_one() -> None:
    step, _, _ = compiled_step(
        optax.clip_by_global_norm(1.0), jax.sharding.AxisType.Auto
    )
    assert [name for name in COLLECTIVES if name in step.as_text()]


# Checkpoints


@every_method
def test_a_checkpoint_comes_back_as_it_was(method: Any, tmp_path: pathlib.Path) -> None:
    tx = optax.chain(optax.scale_by_adam(), method(schedule), optax.scale(-0.1))
    update = jax.jit(tx.update)
    _, state = update(GRADS, tx.init(START), HERE)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        abstract = jax.eval_shape(tx.init, START)
        restored = checkpointer.restore(tmp_path / "state", abstract)
    assert_same(restored, state)
    assert_same(update(GRADS, restored, HERE), update(GRADS, state, HERE))


# Measured from outside

KINDS = {
    "masked_decay": ("decoupled", "zero"),
    "cautious_weight_decay": ("cautious", "zero"),
    "anchored_weight_decay": ("decoupled", "initial value"),
    "averaged_weight_decay": ("unknown", "other"),
    "l1_weight_decay": ("unknown", "zero"),
    "huber_weight_decay": ("unknown", "zero"),
    "sensitivity_gated_weight_decay": ("unknown", "zero"),
    "momentum_corrected_weight_decay": ("decoupled", "zero"),
    "randomly_gated_weight_decay": ("decoupled", "zero"),
    "inversely_gated_weight_decay": ("unknown", "zero"),
    "gradient_gated_weight_decay": ("cautious", "zero"),  # of the step's own direction
    "tensor_gated_weight_decay": ("unknown", "zero"),
    "natural_weight_decay": ("unknown", "zero"),
    "topk_gated_weight_decay": ("unknown", "zero"),  # it changes the gradient too
    "token_aware_weight_decay": ("decoupled", "zero"),  # all tokens are as frequent
    "norm_targeted_weight_decay": ("unknown", "zero"),
    "constrained_weight_decay": ("unknown", "zero"),
    "selective_weight_decay": ("unknown", "other"),  # where it pulls is not asked
    "decay_along with remember": ("decoupled", "initial value"),
}
"""Of every method the kind and the target that `audit` names."""

READY: dict[str, Callable[[Any], Any]] = {
    "adamw": lambda decay: wd.adamw(0.125, decay),
    "sgdw": lambda decay: wd.sgdw(0.125, decay, momentum=0.9),
    "lion": lambda decay: wd.lion(0.125, decay),
    "after_learning_rate": lambda decay: optax.chain(
        optax.sgd(0.125), wd.after_learning_rate(decay)
    ),
    "muon": lambda decay: wd.muon(0.125, decay, ns_steps=1),
    "normuon": lambda decay: wd.normuon(0.125, decay, ns_steps=1),
}
# They compile much, and have one chain behind them: fewer methods are asked.
MATRICES = {
    "muon": ["cautious_weight_decay", "decay_along with remember"],
    "normuon": ["masked_decay"],
}
FINAL = ["constrained_weight_decay", "selective_weight_decay"]
"""Methods that look at what a step ends at: they stand after the learning rate only."""

PLACES: dict[str, Callable[[Any, Any], Any]] = {
    "alone": lambda method, ready: ready(method(0.25, KERNELS)),
    "partition": lambda method, ready: optax.partition(
        {"decay": ready(method(0.25, wd.everything)), "rest": optax.sgd(0.125)},
        wd.first_match((KERNELS, "decay"), default="rest"),
    ),
    "MultiSteps": lambda method, ready: optax.MultiSteps(
        ready(method(0.25, KERNELS)), 2
    ),
}


def audit_agrees(found: wd.Audit, kind: str, target: str, shrink: float) -> None:
    """Raise unless the kernels decay, and only these, as they are asked to."""
    assert {row.path for row in found.rows if row.kind != "none"} == {
        "attn/kernel",
        "mlp/kernel",
    }
    for row in found.rows:
        if row.kind != "none":
            assert (row.kind, row.target) == (kind, target)
            if kind != "unknown":  # of which no one fraction is told
                assert row.shrink == pytest.approx(shrink, rel=2e-3)


TOLD = [name for name in ROWS if "test_the_audit_agrees" not in EXEMPT.get(name, {})]
WHERE = [("alone", ready) for ready in READY if ready not in MATRICES]
WHERE += [(place, "sgdw") for place in PLACES if place != "alone"]
WHERE_FINAL = [(place, "after_learning_rate") for place in PLACES]
ASKED = [
    (name, ready, place)
    for name in TOLD
    for place, ready in (WHERE_FINAL if name in FINAL else WHERE)
]
ASKED += [(name, ready, "alone") for ready, few in MATRICES.items() for name in few]


@pytest.mark.parametrize(("name", "ready", "place"), ASKED)
def test_the_audit_agrees(name: str, ready: str, place: str) -> None:
    shrink = 0.25 * (1.0 if ready == "after_learning_rate" else 0.125)
    found = wd.audit(PLACES[place](ROWS[name], READY[ready]), HERE)
    audit_agrees(found, *KINDS[name], shrink)
    assert KINDS[name][0] in {row.kind for row in found.rows}


INSIDE = [name for name in READY if name not in ("after_learning_rate", "normuon")]


@pytest.mark.parametrize("ready", INSIDE)
@pytest.mark.parametrize("name", METHODS)
def test_a_ready_chain_runs_a_method_or_says_where_it_stands(
    name: str, ready: str
) -> None:
    tx = READY[ready](METHODS[name](0.25, KERNELS))
    if name in FINAL:
        text = f"{name} stands before the learning rate, where updates are not final; "
        with pytest.raises(ValueError, match=text):
            tx.update(GRADS, tx.init(START), HERE)
        tx = READY[ready](wd.after_learning_rate(METHODS[name](0.25, KERNELS)))
    assert jax.tree.structure(first(tx)) == jax.tree.structure(HERE)


def test_the_agreement_of_the_audit_can_fail() -> None:
    good = wd.audit(wd.sgdw(0.125, wd.masked_decay(0.25, KERNELS)), HERE)
    audit_agrees(good, "decoupled", "zero", 0.03125)
    for wrong in (
        ("cautious", "zero", 0.03125),
        ("decoupled", "initial value", 0.03125),
        ("decoupled", "zero", 0.0625),
    ):
        with pytest.raises(AssertionError):
            audit_agrees(good, *wrong)
    every = wd.audit(wd.sgdw(0.125, wd.masked_decay(0.25, wd.everything)), HERE)
    with pytest.raises(AssertionError):
        audit_agrees(every, "decoupled", "zero", 0.03125)


def test_a_new_method_is_one_function_and_one_row() -> None:
    def bounded(
        weight_decay: Any, mask: Any = wd.standard, *, multiplier: Any = None
    ) -> optax.GradientTransformationExtraArgs:
        return wd.decay_along(
            lambda u, p: jnp.tanh(p), weight_decay, mask, multiplier=multiplier
        )

    alone = [
        test
        for test in CONTRACT
        if list(inspect.signature(test).parameters) == ["method"]
    ]
    assert len(alone) > 5
    for test in alone:
        test(bounded)  # nothing else is known of it
