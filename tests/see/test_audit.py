# SPDX-License-Identifier: Apache-2.0
"""`audit` names what optimizers do: those of Optax, ours, and broken ones."""

import functools
import inspect
import json
import math
import random
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from flax.core import freeze
from helpers import assert_same
from helpers import quick_compiles as quick_compiles

import optax_wd as wd
from optax_wd._see.audit import audit as _audit

LR, RATE = 0.0625, 0.25
BOTH = LR * RATE
KERNEL, ALL = wd.named("k"), wd.everything
PARAMS = {"b": jnp.ones(5), "k": jnp.ones((6, 5))}
ONE = {"k": PARAMS["k"]}


def audited(tx: Any, params: Any = None, **options: Any) -> wd.Audit:
    return wd.audit(tx, ONE if params is None else params, **options)


def row(found: wd.Audit, path: str = "k") -> Any:
    (only,) = [one for one in found.rows if one.path == path]
    return only


def kinds(found: wd.Audit) -> dict[str, str]:
    return {one.path: one.kind for one in found.rows}


def check(
    found: wd.Audit,
    kind: str,
    shrink: float | None = None,
    *,
    path: str = "k",
    target: str | None = "zero",
    rel: float = 2e-3,
) -> None:
    """Raise unless a leaf is of a kind, with a shrink and a target."""
    one = row(found, path)
    assert one.kind == kind, one
    if kind == "none":
        assert one[5:] == (0.0, None, 0.0)
        return
    assert one.target == target, one
    if shrink is not None:
        assert one.shrink == pytest.approx(shrink, rel=rel), one
    if kind in ("decoupled", "without learning rate"):
        assert one.open == 1.0
    if kind == "cautious":
        assert 0.2 < one.open < 0.8


def unlike(tx: Any, *allowed: str) -> str:
    """The kind of a broken optimizer; raise if it is none of those allowed."""
    one = row(audited(tx))
    assert one.kind in (*allowed, "unknown"), one
    return one.kind


# ------------------------------------------------------- optimizers written by hand


def step(rule: Callable[[Any, Any], Any]) -> Any:
    """A transformation from a function of updates and parameters of one leaf."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(rule, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def stateful(init: Any, rule: Callable[[Any, Any, Any], tuple[Any, Any]]) -> Any:
    """The same with a state for each leaf."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        pairs = jax.tree.map(rule, updates, params, state)
        return tuple({k: pairs[k][n] for k in pairs} for n in (0, 1))

    return optax.GradientTransformation(
        lambda params: jax.tree.map(init, params), update
    )


def sgd(*parts: Any, lr: Any = LR) -> Any:
    return optax.chain(*parts, optax.scale_by_learning_rate(lr))


def adam(*parts: Any, lr: Any = LR) -> Any:
    return sgd(optax.scale_by_adam(), *parts, lr=lr)


def gated(gate: Callable[[Any, Any], Any]) -> Any:
    return step(lambda u, p: jnp.where(gate(u, p), u + RATE * p, u))


def norm(x: Any) -> Any:
    return jnp.sqrt(jnp.sum(x * x) + 1e-30)


PLAIN = wd.masked_decay(RATE, ALL)
CAUTIOUS = wd.cautious_weight_decay(RATE, ALL)


def pull(gate: Any = None) -> Any:
    """A pull towards the initial value."""
    return wd.decay_along(
        lambda u, p, start: p - start, RATE, ALL, remember=jnp.copy, gate=gate
    )


# ---------------------------------------------------------------- Optax's optimizers


def value(params: Any) -> Any:
    return sum(jnp.sum(x * x) for x in jax.tree.leaves(params))


EXTRA: dict[str, dict[str, Any]] = {
    "momo": {"value": 1.0},
    "momo_adam": {"value": 1.0},
    "sophia": {"obj_fn": value},
}
FEWER: dict[str, dict[str, Any]] = {"muon": {"ns_steps": 1}}  # quicker to compile

PRODUCT: dict[str, tuple[str, float | None]] = {name: ("decoupled", BOTH) for name in (
    "acprop adamaxw adamw adan ademamix galore lion muon nadamw novograd "
    "schedule_free_adamw schedule_free_sgd simplified_ademamix sophia"
).split()}  # fmt: skip
EXPECTED: dict[str, tuple[str, float | None]] = PRODUCT | {
    "adadelta": ("coupled L2", None),
    "adafactor": ("decoupled", RATE),  # behind the learning rate
    "cocob": ("unknown", None),
    # Its estimate of the learning rate begins at 1e-6; b1 0.9, b2 0.999.
    "dadapt_adamw": ("decoupled", 1e-6 * BOTH * math.sqrt(1 - 0.999) / (1 - 0.9)),
    "dog": ("unknown", None),
    "dowg": ("unknown", None),
    "lamb": ("decoupled", LR),  # the trust ratio makes steps as long as the weights
    "lars": ("unknown", None),
    "madgrad": ("unknown", None),
    "mechanize": ("unknown", None),
    "momo": ("decoupled", BOTH / (1 + BOTH)),
    "momo_adam": ("decoupled", BOTH / (1 + BOTH)),
    "prodigy": ("unknown", None),
}
LENGTHS = {"momo_adam"}  # its step depends on the parameters without decay as well
ROUGH = {"lamb": 2e-2}  # the gradient is a part of its trust ratio


def decaying() -> dict[str, tuple[Any, Any]]:
    """Every optimizer of Optax with a weight decay, and its parameters."""
    found = {}
    for module in (optax, optax.contrib):
        for name in sorted(vars(module)):
            make = getattr(module, name)
            is_function = inspect.isfunction(make) or isinstance(
                make, functools.partial
            )
            if not is_function or name.startswith(("scale_by", "add_")):
                continue
            has = inspect.signature(make).parameters
            if {"weight_decay", "weight_decay_rate"} & set(has):
                found[name] = make, has
    return found


@functools.cache
def of_optax(name: str, rate: float) -> tuple[wd.Audit, bool]:
    """The audit of an optimizer with a mask, if it takes one, and whether it does."""
    make, has = decaying()[name]
    options: dict[str, Any] = dict(FEWER.get(name, {}))
    options["weight_decay" if "weight_decay" in has else "weight_decay_rate"] = rate
    if name == "mechanize":
        options["base_optimizer"] = optax.sgd(LR)
    else:
        options["learning_rate"] = LR
    masks = {"mask", "weight_decay_mask"} & set(has)
    options |= {mask: {"b": False, "k": True} for mask in masks if rate}
    tree = PARAMS if masks and rate else ONE
    extra = EXTRA.get(name)
    return audited(make(**options), tree, extra_args=extra), bool(masks)


def test_the_table_has_every_optimizer_of_optax_that_decays() -> None:
    assert sorted(decaying()) == sorted(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_optimizers_of_optax_are_named_or_unknown(name: str) -> None:
    found, is_masked = of_optax(name, RATE)
    kind, shrink = EXPECTED[name]
    one = row(found)
    check(found, kind, shrink, target=one.target, rel=ROUGH.get(name, 2e-3))
    assert one.kind == "unknown" or one.target == "zero"
    if is_masked and kind != "unknown":
        check(found, "none", path="b")


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_optimizers_of_optax_without_their_decay_have_none(name: str) -> None:
    found, _ = of_optax(name, 0.0)
    assert row(found).kind in ("none", "unknown")
    # Schedule-free ones are asked at large weights, where no decay is like rounding.
    told = EXPECTED[name][0] != "unknown" and "schedule_free" not in name
    if told and name not in LENGTHS:
        check(found, "none")


def test_fromage_decays_without_being_asked() -> None:
    check(audited(optax.fromage(LR)), "decoupled", 1 - 1 / math.sqrt(1 + LR**2))


@pytest.mark.parametrize("name", ["adam", "rmsprop", "yogi"])
def test_optimizers_of_optax_that_do_not_decay_have_none(name: str) -> None:
    check(audited(getattr(optax, name)(LR)), "none")


# ---------------------------------------------------------------------- combinators

WRAPPED: dict[str, Callable[[Any, Any], Any]] = {
    "alone": lambda decay, mask: sgd(decay(RATE, mask)),
    "chain": lambda decay, mask: optax.chain(
        optax.clip(1e6), sgd(decay(RATE, mask)), optax.scale(1.0)
    ),
    "partition": lambda decay, mask: optax.partition(
        {"decay": sgd(decay(RATE, ALL)), "rest": optax.sgd(LR)},
        wd.first_match((mask, "decay"), default="rest"),
    ),
    "masked": lambda decay, mask: optax.chain(
        optax.masked(decay(RATE, ALL), mask), optax.scale(-LR)
    ),
    "MultiSteps": lambda decay, mask: optax.MultiSteps(sgd(decay(RATE, mask)), 3),
    "apply_if_finite": lambda decay, mask: optax.apply_if_finite(
        sgd(decay(RATE, mask)), 3
    ),
    "inject_hyperparams": lambda decay, mask: sgd(
        optax.inject_hyperparams(decay, static_args=("mask", "multiplier"))(
            weight_decay=RATE, mask=mask, multiplier=None
        )
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_decay_is_seen_through_the_combinators_of_optax(name: str) -> None:
    found = audited(WRAPPED[name](wd.cautious_weight_decay, KERNEL), PARAMS)
    check(found, "cautious", BOTH)
    check(found, "none", path="b")
    waits = any("measured at update 3" in note for note in found.notes)
    assert waits == (name == "MultiSteps")


def test_decay_is_seen_through_flatten_and_schedule_free() -> None:
    found = audited(optax.flatten(sgd(optax.add_decayed_weights(RATE))), PARAMS)
    check(found, "decoupled", BOTH)
    check(found, "decoupled", BOTH, path="b")
    base = sgd(wd.masked_decay(RATE, KERNEL))
    found = audited(optax.contrib.schedule_free(base, LR), PARAMS)
    check(found, "decoupled", BOTH)
    check(found, "unknown", path="b")  # below the roundoff of an average


def test_a_schedule_free_optimizer_is_waited_for_until_its_warm_up_moves() -> None:
    make = optax.contrib.schedule_free_sgd
    found = audited(make(LR, warmup_steps=10, weight_decay=RATE))
    assert "measured at update 2, the first that is not zero" in found.notes
    # The first of two averaged points has a weight of 1 / 5, and b1 is 0.9.
    check(found, "decoupled", (0.1 + 0.9 * 4 / 5) * BOTH / 10)


# ------------------------------------------------------------------ forms and leaves


class Layer(nnx.Module):
    def __init__(self) -> None:
        self.k = nnx.Param(jnp.ones((6, 5)))
        self.b = nnx.Param(jnp.ones(5))
        self.seen = nnx.BatchStat(jnp.ones(5))


class Equinox(eqx.Module):
    b: Any
    k: Any
    name: str


FORMS: dict[str, Callable[[], Any]] = {
    "NNX module": Layer,
    "NNX abstract module": lambda: nnx.eval_shape(Layer),
    "NNX State of Param": lambda: nnx.state(Layer(), nnx.Param),
    "NNX pure State": lambda: nnx.as_pure(nnx.state(Layer(), nnx.Param)),
    "NNX pure dict": lambda: nnx.to_pure_dict(nnx.state(Layer(), nnx.Param)),
    "FrozenDict": lambda: freeze(PARAMS),
    "boxes": lambda: jax.tree.map(
        lambda x: nn.Partitioned(x, names=(None,) * x.ndim), PARAMS
    ),
    "Equinox": lambda: eqx.filter(
        Equinox(PARAMS["b"], PARAMS["k"], "a"), eqx.is_inexact_array
    ),
    "None": lambda: {**PARAMS, "x": None},
    "MaskedNode": lambda: {**PARAMS, "x": optax.MaskedNode()},
    "integers": lambda: {**PARAMS, "n": jnp.arange(3)},
    "keys": lambda: {**PARAMS, "key": jax.random.key(0)},
    "abstract keys": lambda: {
        **PARAMS,
        "key": jax.eval_shape(lambda: jax.random.key(0)),
    },
    "bools": lambda: {**PARAMS, "flag": jnp.asarray(True)},
    "no elements": lambda: {**PARAMS, "z": jnp.ones((0, 3))},
}


def is_float(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.inexact), tree)


TX = optax.masked(sgd(wd.cautious_weight_decay(RATE, KERNEL)), is_float)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_parameters_is_audited(form: str) -> None:
    found = audited(TX, FORMS[form]())
    check(found, "cautious", BOTH)
    check(found, "none", path="b")
    others = {"z"} if form == "no elements" else set()
    assert set(kinds(found)) == {"b", "k"} | others


def test_a_linen_model_is_audited_by_its_paths() -> None:
    shapes = jax.eval_shape(nn.Dense(3).init, jax.random.key(0), jnp.ones((1, 4)))
    found = audited(sgd(wd.masked_decay(RATE)), shapes)
    assert kinds(found) == {"params/bias": "none", "params/kernel": "decoupled"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("decay", [PLAIN, CAUTIOUS], ids=["decoupled", "cautious"])
def test_every_inexact_dtype_is_audited(dtype: str, decay: Any) -> None:
    found = audited(sgd(decay), {"k": jnp.ones((6, 5), dtype)})
    one = row(found)
    assert one.dtype == dtype
    assert one.kind == ("decoupled" if decay is PLAIN else "cautious")
    assert one.shrink == pytest.approx(BOTH, rel=2e-2)


def test_double_precision_is_audited() -> None:
    with jax.enable_x64(True):
        found = audited(sgd(PLAIN), {"k": np.ones((6, 5))})
        one = row(found)
    assert (one.dtype, one.kind) == ("float64", "decoupled")
    assert one.shrink == pytest.approx(BOTH, rel=1e-6)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_leaves_of_one_element_are_never_named_wrongly(shape: tuple[int, ...]) -> None:
    tree = {"k": jnp.ones(shape)}
    for tx, kind in (
        (sgd(PLAIN), "decoupled"),
        (optax.chain(optax.sgd(LR), PLAIN), "growing"),
        (optax.sgd(LR), "none"),
    ):
        assert row(audited(tx, tree)).kind in (kind, "unknown")
    assert row(audited(adam(CAUTIOUS), tree)).kind in ("cautious", "unknown")
    assert row(audited(sgd(gated(lambda u, p: u * p < 0)), tree)).kind == "unknown"


def test_a_lone_array_is_audited() -> None:
    found = audited(sgd(PLAIN), jnp.ones((6, 5)))
    check(found, "decoupled", BOTH, path="")


# -------------------------------------------------------- schedules, steps and states

WARM = optax.linear_schedule(0.0, 0.1, 10)
FALLING = optax.linear_schedule(0.4, 0.1, 10)
COSINE = optax.cosine_decay_schedule(0.1, 20)
ABOUT: list[tuple[str, Any, Any, int, float]] = [
    ("warm-up, 1", WARM, RATE, 1, 0.01 * RATE),
    ("warm-up, 5", WARM, RATE, 5, 0.05 * RATE),
    ("warm-up, over", WARM, RATE, 12, 0.1 * RATE),
    ("cosine, 5", COSINE, RATE, 5, 0.05 * (1 + math.sqrt(0.5)) * RATE),
    ("cosine, 10", COSINE, RATE, 10, 0.05 * RATE),
    ("decay, 0", LR, FALLING, 0, 0.4 * LR),
    ("decay, 5", LR, FALLING, 5, 0.25 * LR),
    ("both", WARM, FALLING, 5, 0.05 * 0.25),
]


@pytest.mark.parametrize(
    ("lr", "rate", "at", "shrink"),
    [case[1:] for case in ABOUT],
    ids=[case[0] for case in ABOUT],
)
def test_at_step_sets_the_schedules(lr: Any, rate: Any, at: int, shrink: float) -> None:
    tx = sgd(wd.cautious_weight_decay(rate, ALL), lr=lr)
    check(audited(tx, at_step=at), "cautious", shrink)


def test_at_step_reaches_adam_multi_steps_and_anchors() -> None:
    tx = adam(CAUTIOUS, lr=WARM)
    check(audited(optax.MultiSteps(tx, 2), at_step=5), "cautious", 0.05 * RATE)
    found = audited(adam(pull(), lr=WARM), at_step=5)
    check(found, "decoupled", 0.05 * RATE, target="initial value")


def test_without_at_step_the_first_update_that_moves_is_measured() -> None:
    found = audited(sgd(CAUTIOUS, lr=WARM))
    check(found, "cautious", 0.01 * RATE)
    assert "measured at update 2, the first that is not zero" in found.notes


def test_a_decay_that_begins_later_is_not_called_none() -> None:
    found = audited(sgd(wd.masked_decay(WARM, ALL)))
    note = "some leaves do not decay in this step, but in the next; pass at_step="
    assert row(found).kind == "unknown" and note in found.notes
    assert row(found).shrink is None
    check(audited(sgd(wd.masked_decay(WARM, ALL)), at_step=5), "decoupled", 0.05 * LR)


def test_counters_of_a_state_are_used() -> None:
    tx = wd.sgdw(WARM, PLAIN, momentum=0.9)
    state: Any = tx.init(ONE)
    for _ in range(5):
        state = tx.update(ONE, state, ONE)[1]
    found = audited(tx, state=state)
    check(found, "decoupled", 0.05 * RATE)
    assert found == audited(tx, at_step=5)
    check(audited(tx, state=state, at_step=2), "decoupled", 0.02 * RATE)


def test_hyperparameters_of_a_state_are_used() -> None:
    tx = optax.inject_hyperparams(optax.adamw)(LR, weight_decay=RATE)
    state: Any = tx.init(ONE)
    check(audited(tx, state=state), "decoupled", BOTH)
    state.hyperparams["weight_decay"] = jnp.asarray(0.5)
    state.hyperparams["learning_rate"] = jnp.asarray(0.125)
    check(audited(tx, state=state), "decoupled", 0.0625)


def test_a_state_of_another_optimizer_is_refused() -> None:
    message = (
        "^state is no state of tx: their leaves differ; pass what tx.init made, or the "
        "updates after it"
    )
    for other in (optax.sgd(LR).init(ONE), optax.adam(LR).init({"j": jnp.ones(2)}), ()):
        with pytest.raises(ValueError, match=message):
            audited(optax.adam(LR), state=other)


def test_steps_say_how_long_to_wait() -> None:
    tx = optax.MultiSteps(sgd(PLAIN), 3)
    check(audited(tx, steps=3), "decoupled", BOTH)
    found = audited(tx, PARAMS, steps=2)
    assert found.notes == (
        "no update was other than zero; pass more steps=, or at_step=",
    )
    assert [one[3:] for one in found.rows] == [
        (5, "unknown", None, None, None),
        (30, "unknown", None, None, None),
    ]


def test_extra_arguments_reach_the_optimizer() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, rate: Any) -> Any:
        return jax.tree.map(lambda u, p: u + rate * p, updates, params), state

    tx: Any = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        update,  # pyright: ignore
    )
    check(audited(sgd(tx), extra_args={"rate": 0.5}), "decoupled", 0.5 * LR)
    with pytest.raises(TypeError, match="rate"):
        audited(sgd(tx))


# ---------------------------------------------------------------- the learning rate

CANNOT = (
    "the learning rate does not change, so whether a decoupled decay is multiplied by "
    "it cannot be told"
)
SQUARED = "some shrinks go with the learning rate to the power 2"
PEAK = 0.1


def coupled(lr: Any) -> dict[str, tuple[Any, str, float, tuple[str, ...]]]:
    """Decays by how they go with a learning rate of 0.05 of at most 0.1."""

    def last(rate: Any) -> Any:
        decay = wd.after_learning_rate(wd.masked_decay(rate, ALL))
        return optax.chain(optax.sgd(lr), decay)

    share = wd.proportional(RATE, to=lr, peak=PEAK)
    return {
        "decoupled": (sgd(PLAIN, lr=lr), "decoupled", 0.05 * RATE, ()),
        "no learning rate": (last(RATE), "without learning rate", RATE, ()),
        "independent": (last(share), "decoupled", 0.5 * RATE, ()),
        "corrected": (
            sgd(wd.masked_decay(share, ALL), lr=lr),
            "decoupled",
            0.05 * 0.5 * RATE,
            (SQUARED,),
        ),
    }


@pytest.mark.parametrize("name", coupled(COSINE))
def test_schedules_tell_how_a_decay_goes_with_the_learning_rate(name: str) -> None:
    tx, kind, shrink, notes = coupled(COSINE)[name]
    found = audited(tx, at_step=10)
    check(found, kind, shrink)
    assert found.notes == notes


def test_hyperparameters_tell_how_a_decay_goes_with_the_learning_rate() -> None:
    def decoupled(learning_rate: Any) -> Any:
        return sgd(PLAIN, lr=learning_rate)

    def last(learning_rate: Any) -> Any:
        return optax.chain(optax.sgd(learning_rate), wd.after_learning_rate(PLAIN))

    def squared(learning_rate: Any) -> Any:
        decay = wd.masked_decay(learning_rate * 4, ALL)
        return sgd(decay, lr=learning_rate)

    for make, kind, shrink, notes in (
        (decoupled, "decoupled", BOTH, ()),
        (last, "without learning rate", RATE, ()),
        (squared, "decoupled", 4 * LR**2, (SQUARED,)),
    ):
        found = audited(optax.inject_hyperparams(make)(learning_rate=LR))
        check(found, kind, shrink)
        assert found.notes == notes


def test_a_schedule_as_a_hyperparameter_is_followed() -> None:
    tx = optax.inject_hyperparams(optax.adamw)(COSINE, weight_decay=RATE)
    found = audited(tx, at_step=10)
    check(found, "decoupled", 0.05 * RATE)
    assert found.notes == ()


def test_a_constant_learning_rate_cannot_tell_and_that_is_noted() -> None:
    for tx in (sgd(PLAIN), optax.chain(optax.sgd(LR), wd.after_learning_rate(PLAIN))):
        found = audited(tx)
        assert row(found).kind == "decoupled" and found.notes == (CANNOT,)
    assert audited(sgd(CAUTIOUS)).notes == ()


# --------------------------------------------------------------- broken optimizers


def by_rank(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, tree)


def raw_gate() -> Any:
    """A gate on the gradient, where it should be on the momentum."""
    inner = optax.trace(0.9)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        moments, state = inner.update(updates, state, params)
        return jax.tree.map(
            lambda m, g, p: m + jnp.where(g * p >= 0, RATE * p, 0.0),
            moments,
            updates,
            params,
        ), state

    return optax.GradientTransformation(inner.init, update)


def random_gate() -> Any:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        key, now = jax.random.split(state)
        return jax.tree.map(
            lambda u, p: u + RATE * p * jax.random.bernoulli(now, 0.5, p.shape),
            updates,
            params,
        ), key

    return optax.GradientTransformation(lambda params: jax.random.key(0), update)


def every_second(first: int) -> Any:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        rate = jnp.where(state % 2 == first, RATE, 0.0)
        return jax.tree.map(lambda u, p: u + rate * p, updates, params), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)


def pinned(u: Any, p: Any, radius: Any) -> tuple[Any, Any]:
    moved = p - LR * radius * u / norm(u)
    return moved * radius / norm(moved) - p, radius


def max_norm(u: Any, p: Any) -> Any:
    moved = p + u
    return moved * jnp.minimum(1.0, 1.0 / norm(moved)) - p


TWICE = optax.chain(
    optax.adamw(LR, weight_decay=RATE),
    wd.after_learning_rate(wd.masked_decay(BOTH, ALL)),
)
NAMED: dict[str, tuple[Any, str, float | None]] = {
    "wrong sign": (sgd(optax.add_decayed_weights(-RATE)), "growing", -BOTH),
    "after the learning rate": (
        optax.chain(optax.sgd(LR, 0.9), optax.add_decayed_weights(RATE)),
        "growing",
        -RATE,
    ),
    "cautious after the learning rate": (
        optax.chain(optax.adam(LR), CAUTIOUS),
        "growing",
        -RATE,
    ),
    "before Adam": (sgd(PLAIN, optax.scale_by_adam()), "coupled L2", None),
    "through momentum": (sgd(PLAIN, optax.trace(0.9)), "coupled L2", None),
    "away, through momentum": (
        sgd(optax.add_decayed_weights(-RATE), optax.trace(0.9)),
        "growing",
        None,
    ),
    "mask dropped": (
        optax.inject_hyperparams(optax.adamw)(LR, weight_decay=RATE, mask=by_rank),
        "none",
        0.0,
    ),
    "twice": (TWICE, "decoupled", 2 * BOTH),
    "on a copy only": (
        sgd(stateful(lambda p: p, lambda u, p, e: (u, 0.9 * e + 0.09 * p))),
        "none",
        0.0,
    ),
    "of the gradient": (sgd(step(lambda u, p: u * (1 + RATE))), "none", 0.0),
    "norm pinned at init": (
        optax.chain(optax.scale_by_adam(), stateful(norm, pinned)),
        "norm-constrained",
        None,
    ),
    "norm kept": (
        optax.chain(optax.scale_by_adam(), step(lambda u, p: pinned(u, p, norm(p))[0])),
        "norm-constrained",
        None,
    ),
}

UNKNOWN: dict[str, Any] = {
    "gate inverted": sgd(gated(lambda u, p: u * p < 0)),
    "gate inverted, open at zero": sgd(gated(lambda u, p: u * p <= 0)),
    "gate on the raw gradient": sgd(raw_gate()),
    "gate on the whole tensor": sgd(gated(lambda u, p: jnp.sum(u * p) >= 0)),
    "gate at random": sgd(random_gate()),
    "only with a gradient": sgd(gated(lambda u, p: u != 0)),
    "only without a gradient": sgd(gated(lambda u, p: u == 0)),
    "cautious before Adam": sgd(CAUTIOUS, optax.scale_by_adam()),
    "in the first of two steps": sgd(every_second(0)),
    "in the second of two steps": sgd(every_second(1)),
    "clipped to a norm": optax.chain(optax.sgd(LR), step(max_norm)),
    "L1": sgd(step(lambda u, p: u + RATE * jnp.sign(p))),
    "Huber": sgd(step(lambda u, p: u + RATE * jnp.clip(p, -50, 50))),
    "by the norm": sgd(step(lambda u, p: u + RATE * p * norm(p))),
    "by the size of the update": sgd(step(lambda u, p: u + RATE * p * jnp.abs(u))),
    "by rows": sgd(step(lambda u, p: u + RATE * p * jnp.arange(6.0)[:, None])),
    "sensitivity": sgd(
        step(lambda u, p: u + RATE * p * jnp.maximum(0, 1 - jnp.abs(u)))
    ),
    "towards one": sgd(step(lambda u, p: u + RATE * (p - 1.0))),
    "towards an average": sgd(
        stateful(lambda p: p, lambda u, p, e: (u + RATE * (p - e), 0.9 * e + 0.1 * p))
    ),
    "updates masked, not decay": sgd(step(lambda u, p: u * (u * p >= 0))),
    "NaN": sgd(step(lambda u, p: u + jnp.nan * p)),
}


@pytest.mark.parametrize("name", NAMED)
def test_broken_decay_is_named_for_what_it_is(name: str) -> None:
    tx, kind, shrink = NAMED[name]
    check(audited(tx), kind, shrink)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_like_nothing_is_unknown(name: str) -> None:
    assert unlike(UNKNOWN[name]) == "unknown"


def test_the_squared_learning_rate_shows_in_the_shrink_or_in_a_note() -> None:
    found = audited(sgd(wd.masked_decay(LR * RATE, ALL)))
    check(found, "decoupled", LR**2 * RATE)
    lr = optax.linear_schedule(PEAK, 0.0, 20)
    found = audited(sgd(wd.masked_decay(lambda t: RATE * lr(t), ALL), lr=lr))
    check(found, "decoupled", PEAK**2 * RATE)
    assert found.notes == (SQUARED,)


def test_an_average_as_a_target_is_noted() -> None:
    found = audited(UNKNOWN["towards an average"])
    assert row(found).target == "other"
    assert found.notes == ("the target of some leaves follows the weights, as an avera"
                           "ge",)  # fmt: skip


def test_these_tests_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    for good in (PLAIN, CAUTIOUS, optax.identity()):
        with pytest.raises(AssertionError):
            unlike(sgd(good))
    found = audited(sgd(PLAIN))
    for kind, shrink, target in (
        ("cautious", BOTH, "zero"),
        ("none", None, None),
        ("decoupled", 2 * BOTH, "zero"),
        ("decoupled", -BOTH, "zero"),
        ("decoupled", BOTH, "initial value"),
    ):
        with pytest.raises(AssertionError):
            check(found, kind, shrink, target=target)

    answers: Any = lambda *_: ("decoupled", 0.1, 1.0)  # noqa: E731
    monkeypatch.setattr(_audit._kinds, "kind_of", answers)
    for name in ("updates masked, not decay", "gate inverted", "towards one"):
        with pytest.raises(AssertionError):
            unlike(UNKNOWN[name])


# ---------------------------------------------------------------- anchors and gates


def test_a_pull_to_the_initial_value_is_told_from_one_to_zero() -> None:
    for tx in (sgd(pull()), adam(pull()), sgd(optax.trace(0.9), pull())):
        check(audited(tx), "decoupled", BOTH, target="initial value")
    base = optax.scale_by_lion()
    check(audited(sgd(base, pull())), "decoupled", BOTH, target="initial value")


def test_a_cautious_pull_to_the_initial_value_is_cautious() -> None:
    for base in (optax.scale_by_adam(), optax.scale_by_lion(), optax.identity()):
        found = audited(sgd(base, pull(wd.cautious_gate)))
        check(found, "cautious", BOTH, target="initial value")


CHAINS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda decay: wd.sgdw(LR, decay),
    "momentum": lambda decay: wd.sgdw(LR, decay, momentum=0.9),
    "nesterov": lambda decay: wd.sgdw(LR, decay, momentum=0.9, nesterov=True),
    "adam": lambda decay: wd.adamw(LR, decay),
    "adam, nesterov": lambda decay: wd.adamw(LR, decay, nesterov=True),
    "lion": lambda decay: wd.lion(LR, decay),
}


@pytest.mark.parametrize("name", CHAINS)
def test_cautious_decay_is_told_behind_every_base(name: str) -> None:
    check(audited(CHAINS[name](CAUTIOUS)), "cautious", BOTH)


def test_a_misplaced_gate_grows_the_weights_and_is_repaired() -> None:
    base = optax.sgd(LR, 0.9)
    check(audited(optax.chain(base, CAUTIOUS)), "growing", -RATE)
    good = optax.chain(base, wd.after_learning_rate(CAUTIOUS))
    check(audited(good), "cautious", RATE)
    good = optax.chain(base, wd.after_learning_rate(PLAIN))
    check(audited(good), "decoupled", RATE)


# -------------------------------------------------------------------------- purity


def test_what_is_given_is_not_changed() -> None:
    params = jax.tree.map(lambda x: 3.0 * x, PARAMS)
    tx = wd.adamw(LR, PLAIN)
    state = tx.init(params)
    kept = jax.tree.leaves((params, state))
    copies = jax.tree.map(np.array, (params, state))
    audited(tx, params, state=state)
    assert_same(jax.tree.map(np.asarray, (params, state)), copies)
    assert all(a is b for a, b in zip(jax.tree.leaves((params, state)), kept))  # noqa: B905
    assert not any(leaf.is_deleted() for leaf in kept)


def test_random_states_of_the_caller_are_left_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # pyright: ignore
    audited(sgd(CAUTIOUS))
    after = random.getstate(), np.random.get_state()[1].tolist()  # pyright: ignore
    assert before == after


def test_an_audit_is_deterministic() -> None:
    tx = UNKNOWN["gate at random"]
    assert audited(tx) == audited(tx)


# ------------------------------------------------------------------ abstract arrays


def shape(*sizes: int, dtype: Any = jnp.float32, **options: Any) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype, **options)


SMALLER = (
    "measured on stand-ins of at most 8 in each axis; what looks at sizes, as some "
    "masks do, answers for these"
)


def test_abstract_arrays_have_small_stand_ins() -> None:
    seen: list[Any] = []

    def look(u: Any, p: Any) -> Any:
        seen.append(p.shape)
        return u

    tree = {"k": shape(40_000, 40_000), "b": shape(3)}  # 6.4 GB
    found = audited(sgd(step(look), wd.masked_decay(RATE, KERNEL)), tree)
    assert set(seen) == {(8, 8), (3,)}
    assert found.notes[0] == SMALLER
    check(found, "decoupled", BOTH)
    assert row(found)[1:4] == ((40_000, 40_000), "float32", 1_600_000_000)
    assert row(found, "b")[1:4] == ((3,), "float32", 3)


def test_stand_ins_are_whole_where_the_optimizer_insists_or_they_are_small() -> None:
    factors = {"k": np.linspace(1.0, 1.0, 12)[:, None]}
    found = audited(
        sgd(wd.masked_decay(RATE, ALL, multiplier=factors)), {"k": shape(12, 3)}
    )
    check(found, "decoupled", BOTH)
    assert found.notes == (CANNOT,)
    assert audited(sgd(PLAIN), {"k": shape(6, 5)}).notes == (CANNOT,)
    assert audited(sgd(PLAIN), {"k": jnp.ones((12, 3))}).notes == (CANNOT,)


@pytest.mark.parametrize("abstract", [False, True])
def test_sharded_parameters_stay_sharded(abstract: bool) -> None:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("d"))
    leaf = shape(8, 2, sharding=sharding)
    if not abstract:
        leaf = jax.device_put(jnp.ones((8, 2)), sharding)
    seen: list[Any] = []

    def look(u: Any, p: Any) -> Any:
        jax.debug.inspect_array_sharding(p, callback=seen.append)
        jax.debug.inspect_array_sharding(u, callback=seen.append)
        return u

    found = audited(sgd(step(look), PLAIN), {"k": leaf})
    assert len(seen) >= 2
    assert all(s.is_equivalent_to(sharding, 2) for s in seen)
    check(found, "decoupled", BOTH)


# ------------------------------------------------------------------- an audit's text


def example() -> wd.Audit:
    """Two layers, a leaf that is not known, and names to escape."""
    rows = [
        ("layer_0/k", (2, 3), "float32", 6, "decoupled", 1e-4, "zero", 1.0),
        ("layer_1/k", (2, 3), "float32", 6, "decoupled", 1.0000001e-4, "zero", 1.0),
        ("<b>\n", (1000,), "bfloat16", 1000, "unknown", None, "other", None),
        ("scale", (), "float32", 1, "none", 0.0, None, 0.0),
    ]
    whole = tuple(_audit.AuditRow(*cells) for cells in rows)
    return wd.Audit(whole, ("measured < twice",))


def test_the_table_folds_layers_and_marks_what_is_not_known() -> None:
    lines = example().table().splitlines()
    assert [line.split() for line in lines] == [
        ["leaf", "shape", "parameters", "kind", "shrink", "target", "open"],
        ["layer_{0,1}/k", "(2,", "3)", "12", "decoupled", "0.0001", "zero", "1.00"],
        [r"<b>\n", "(1000,)", "1,000", "unknown", "?", "other", "-"],
        ["scale", "()", "1", "none", "0", "-", "0.00"],
    ]
    assert lines[1].index("(2, 3)") == lines[0].index("shape")
    assert "layer_{0,1}/k" not in example().table(fold=False)
    assert len(example().table(fold=False).splitlines()) == 5


def test_layers_that_differ_are_not_folded() -> None:
    rows = example().rows
    other = rows[1]._replace(shrink=2e-4)
    text = wd.Audit((rows[0], other), ()).table()
    assert "layer_0/k" in text and "layer_1/k" in text


def test_the_summary_has_a_line_for_each_kind_and_shrink() -> None:
    assert example().summary().splitlines() == [
        "decoupled  shrink 0.0001  2 tensors     12 parameters",
        "unknown    shrink ?       1 tensors  1,000 parameters",
        "none       shrink 0       1 tensors      1 parameters",
    ]


def test_printed_an_audit_is_table_summary_and_notes() -> None:
    found = example()
    assert str(found) == "\n".join(
        [found.table(), found.summary(), "note: measured < twice"]
    )


def test_an_audit_is_plain_data() -> None:
    found = example()
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["notes"] == ["measured < twice"]
    assert data["rows"][2] == {
        "path": "<b>\n",
        "shape": [1000],
        "dtype": "bfloat16",
        "size": 1000,
        "kind": "unknown",
        "shrink": None,
        "target": "other",
        "open": None,
    }
    measured = audited(sgd(step(lambda u, p: u + jnp.nan * p)), PARAMS)
    json.dumps(measured.to_dict(), allow_nan=False)


def test_in_a_notebook_all_is_escaped() -> None:
    text = example()._repr_html_()
    assert text.startswith("<table>") and "<b>" not in text
    assert "&lt;b&gt;" in text and "note: measured &lt; twice" in text


def test_audits_are_equal_and_hashable_by_value() -> None:
    assert example() == example() and hash(example()) == hash(example())
    assert example() != wd.Audit(example().rows, ())


# -------------------------------------------------------------------------- errors


@pytest.mark.parametrize("tx", ["adam", None, optax.adam])
def test_what_is_no_optimizer_is_refused(tx: Any) -> None:
    message = "^tx takes an optimizer with init and update, got "
    with pytest.raises(TypeError, match=message):
        audited(tx)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "8", True, None])
def test_steps_have_to_be_a_positive_number(steps: Any) -> None:
    message = f"^steps is a whole number, 1 or more, got {steps!r}$"
    with pytest.raises(ValueError, match=message):
        audited(optax.sgd(LR), steps=steps)


@pytest.mark.parametrize("at", [-1, 2.5, "8", True])
def test_at_step_has_to_be_a_number_of_a_step(at: Any) -> None:
    message = f"^at_step is a whole number, 0 or more, got {at!r}$"
    with pytest.raises(ValueError, match=message):
        audited(optax.sgd(LR), at_step=at)


@pytest.mark.parametrize("params", [{}, {"n": jnp.arange(3)}, {"k": (6, 5)}, None])
def test_what_holds_no_floats_is_refused(params: Any) -> None:
    message = "^found no arrays of floats; pass the tree of parameters$"
    with pytest.raises(TypeError, match=message):
        wd.audit(optax.identity(), params)


def test_errors_of_the_optimizer_come_through() -> None:
    with pytest.raises(ValueError, match="matches no leaf"):
        audited(sgd(wd.masked_decay(RATE, wd.named("kernal"))))


# ------------------------------------------------------ what hides from a single step

REMEMBERS = "the state remembers some weights, which one step does not show"


def stale() -> Any:
    """Decays towards zero by the weights of the step before."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda u, p: u + RATE * p, updates, state), params

    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), update
    )


def test_decay_by_the_weights_of_the_step_before_is_not_taken_for_none() -> None:
    found = audited(adam(stale()))
    assert row(found).kind == "unknown"


def test_decay_that_goes_through_a_momentum_behind_adam_is_unknown() -> None:
    found = audited(adam(PLAIN, optax.trace(0.9)))
    assert row(found).kind == "unknown" and row(found).shrink is None
    assert REMEMBERS in found.notes


BEYOND = "some leaves do not decay, but where a step leads beyond their start they do"


def back(rate: float = RATE, keys: tuple[str, ...] = ("k",)) -> Any:
    """Takes a part of a step back that ends on the other side of the start."""

    def rule(u: Any, p: Any, start: Any) -> Any:
        ends = p + u - start
        is_beyond = norm(ends) > norm(p - start)
        is_home = jnp.sum(jnp.real(jnp.conj(u) * (p - start))) < 0
        return jnp.where(is_home & is_beyond, u - rate * ends, u).astype(u.dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        done = {k: rule(updates[k], params[k], state[k]) for k in keys}
        return {**updates, **done}, state

    return optax.GradientTransformation(lambda params: params, update)


@pytest.mark.parametrize("name", ["sgd", "adam", "lion", "lamb", "adafactor"])
def test_a_pull_where_a_step_leads_beyond_the_start_is_unknown(name: str) -> None:
    options: dict[str, Any] = {"weight_decay": 0.0} if name == "lion" else {}
    base = getattr(optax, name)(1e-3, **options)
    found = audited(optax.chain(base, back()), PARAMS)
    assert kinds(found) == {"b": "none", "k": "unknown"}
    assert row(found).target == "other" and row(found).shrink is None
    assert BEYOND in found.notes
    assert BEYOND not in audited(base, PARAMS).notes


def test_so_it_is_in_other_dtypes_in_scalars_and_in_micro_steps() -> None:
    tx = optax.chain(optax.sgd(LR), back(0.5))
    for dtype in ("bfloat16", "float16", "complex64"):
        assert row(audited(tx, {"k": jnp.ones((6, 5), dtype)})).kind == "unknown"
    assert row(audited(tx, {"k": jnp.ones(())})).kind == "unknown"
    assert row(audited(optax.MultiSteps(tx, 3))).kind == "unknown"


UNMOVED: dict[str, Any] = {
    "clipped with a decay of others": optax.chain(
        optax.add_decayed_weights(RATE, mask=KERNEL),
        optax.clip_by_global_norm(1.0),
        optax.sgd(LR),
    ),
    "clipped by norms of rows": optax.chain(
        optax.sgd(LR), optax.adaptive_grad_clip(1e-4)
    ),
    "scaled by a norm": optax.chain(
        optax.scale_by_adam(), optax.scale_by_param_block_norm(), optax.scale(-LR)
    ),
}


@pytest.mark.parametrize("name", UNMOVED)
def test_norms_are_not_taken_for_a_pull_beyond_the_start(name: str) -> None:
    found = audited(UNMOVED[name], PARAMS)
    assert row(found, "b").kind == "none" and BEYOND not in found.notes


@pytest.mark.parametrize("target", [0.02, 1e-4])
def test_a_target_of_small_weights_is_not_taken_for_zero(target: float) -> None:
    decay = wd.decay_along(lambda u, p: p - target, RATE, ALL)
    assert row(audited(adam(decay))).target != "zero"


def test_a_mask_by_size_is_warned_of_where_stand_ins_are_small() -> None:
    shapes = {"k": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    tx = optax.adamw(
        LR,
        weight_decay=RATE,
        mask=lambda params: jax.tree.map(lambda x: x.size > 1000, params),
    )
    found = audited(tx, shapes)
    assert row(found).kind == "none" and found.notes[0] == SMALLER


def test_a_step_that_no_counter_takes_is_noted() -> None:
    note = "no counter of steps was found, so at_step= changes nothing"
    assert note in audited(optax.sgd(LR), at_step=3).notes
    assert note not in audited(adam(PLAIN), at_step=3).notes


def test_numpy_integers_are_steps_and_huge_ones_are_refused() -> None:
    assert row(audited(adam(PLAIN), at_step=np.int64(3))).kind == "decoupled"
    with pytest.raises(ValueError, match=r"at_step is less than 2\*\*31, got"):
        audited(adam(PLAIN), at_step=2**40)


# ----------------------------------------------------------- the ready chains of ours

OTHER_CHAINS: dict[str, tuple[Callable[[], Any], str, float | None]] = {
    "nadamw": (lambda: wd.nadamw(LR, PLAIN), "decoupled", BOTH),
    "nadamw, cautious": (lambda: wd.nadamw(LR, CAUTIOUS), "cautious", BOTH),
    "adamc": (lambda: wd.adamc(LR, RATE, ALL, peak=LR), "decoupled", BOTH),
    "sgds": (lambda: wd.sgds(LR, RATE, ALL, momentum=0.5), "decoupled", 2 * BOTH),
    "muon": (lambda: wd.muon(LR, CAUTIOUS, ns_steps=1), "cautious", BOTH),
    "normuon": (lambda: wd.normuon(LR, PLAIN, ns_steps=1), "decoupled", BOTH),
    "novograd": (lambda: wd.novograd(LR, PLAIN), "unknown", None),  # in its momentum
    "fadam": (
        lambda: wd.fadam(LR, wd.natural_weight_decay(RATE, ALL)),
        "unknown",
        None,
    ),
}


@pytest.mark.parametrize("name", OTHER_CHAINS)
def test_the_other_ready_chains_are_named_as_they_decay(name: str) -> None:
    make, kind, shrink = OTHER_CHAINS[name]
    found = row(audited(make()))
    assert found.kind == kind
    if shrink is not None:
        assert found.shrink == pytest.approx(shrink, rel=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("limit", [0.1, 1e-3])
def test_a_bound_far_below_the_stand_ins_is_no_decay(limit: float, dtype: str) -> None:
    params = {"w": jnp.ones((2, 2), dtype)}
    tx = optax.chain(optax.adam(0.01), wd.max_norms(limit))
    found = wd.audit(tx, params)
    (row,) = found.rows
    assert (row.kind, row.shrink) == ("unknown", None)
    assert any("another share of small weights" in note for note in found.notes)
    with pytest.raises(AssertionError, match="expected decoupled, measured unknown"):
        wd.assert_decays(tx, params, wd.standard, kind="decoupled")


@pytest.mark.parametrize("rate", [0.75, 1.0])
def test_a_decay_that_takes_most_is_a_decay(rate: float) -> None:
    tx = wd.sgdw(1.0, wd.masked_decay(rate))
    (row,) = wd.audit(tx, {"w": jnp.ones((2, 2))}).rows
    assert (row.kind, row.shrink) == ("decoupled", pytest.approx(rate))


def test_what_is_no_fraction_is_not_shown_as_a_shrink() -> None:
    decay = wd.constrained_weight_decay(1.0)
    tx = optax.chain(optax.adam(0.01), wd.after_learning_rate(decay))
    (row,) = wd.audit(tx, {"w": jnp.ones((2, 2))}).rows
    assert (row.kind, row.shrink) == ("unknown", None)
