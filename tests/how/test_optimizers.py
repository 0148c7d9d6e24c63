# SPDX-License-Identifier: Apache-2.0
"""The ready chains: equal to the chain written out, and as cheap as Optax's own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    DECAYS,
    assert_same,
    every_decay,
    label,
    noise,
    once,
    run,
    small_tree,
    tree,
)
from helpers import quick_compiles as quick_compiles

import optax_wd as wd

Chain = optax.GradientTransformation
SCHEDULE = optax.linear_schedule(0.02, 0.0, 6)


def written_out(scale: Chain, decay: Chain, learning_rate: Any) -> Chain:
    return optax.chain(scale, decay, optax.scale_by_learning_rate(learning_rate))


# name: (the ready chain of (learning rate, decay), the preconditioner in it)
CHAINS: dict[str, tuple[Callable[..., Any], Chain]] = {
    "adamw": (wd.adamw, optax.scale_by_adam()),
    "adamw other betas": (
        lambda lr, decay: wd.adamw(lr, decay, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-5),
        optax.scale_by_adam(0.8, 0.95, 1e-3, 1e-5),
    ),
    "adamw b1=0": (lambda lr, d: wd.adamw(lr, d, b1=0.0), optax.scale_by_adam(0.0)),
    "nadamw": (
        lambda lr, decay: wd.adamw(lr, decay, nesterov=True),
        optax.scale_by_adam(nesterov=True),
    ),
    "adamw mu_dtype": (
        lambda lr, decay: wd.adamw(lr, decay, mu_dtype=jnp.bfloat16),
        optax.scale_by_adam(mu_dtype=jnp.bfloat16),
    ),
    "nadamw mu_dtype": (
        lambda lr, decay: wd.adamw(lr, decay, mu_dtype=jnp.bfloat16, nesterov=True),
        optax.scale_by_adam(mu_dtype=jnp.bfloat16, nesterov=True),
    ),
    "sgdw": (wd.sgdw, optax.identity()),
    "sgdw momentum": (
        lambda lr, decay: wd.sgdw(lr, decay, momentum=0.9),
        optax.trace(0.9),
    ),
    "sgdw nesterov": (
        lambda lr, decay: wd.sgdw(lr, decay, momentum=0.9, nesterov=True),
        optax.trace(0.9, nesterov=True),
    ),
    "sgdw accumulator_dtype": (
        lambda lr, d: wd.sgdw(lr, d, momentum=0.9, accumulator_dtype=jnp.bfloat16),
        optax.trace(0.9, accumulator_dtype=jnp.bfloat16),
    ),
    "lion": (wd.lion, optax.scale_by_lion()),
    "lion other betas": (
        lambda lr, decay: wd.lion(lr, decay, b1=0.5, b2=0.8),
        optax.scale_by_lion(0.5, 0.8),
    ),
    "lion mu_dtype": (
        lambda lr, decay: wd.lion(lr, decay, mu_dtype=jnp.bfloat16),
        optax.scale_by_lion(mu_dtype=jnp.bfloat16),
    ),
}
every_chain = pytest.mark.parametrize("name", CHAINS)


def assert_equal_runs(ready: Chain, chain: Chain, params: Any = None) -> None:
    params = small_tree() if params is None else params
    gradients = noise(params, 5)
    seen, expected = (run(tx, params, gradients)[0] for tx in (ready, chain))
    assert_same(seen, expected)


LONE = {"kernel": jnp.asarray([[1.0, -0.5], [-0.25, 2.0], [0.0, -1.5]])}


@every_chain
def test_it_is_the_chain_written_out(name: str) -> None:
    ready, scale = CHAINS[name]
    decay = wd.cautious_weight_decay(0.3, wd.named("kernel"))
    assert_equal_runs(ready(0.02, decay), written_out(scale, decay, 0.02), LONE)


@pytest.mark.parametrize("name", ["nadamw", "sgdw nesterov", "lion"])
def test_with_schedules_it_is_the_chain_written_out(name: str) -> None:
    ready, scale = CHAINS[name]
    decay = wd.cautious_weight_decay(optax.linear_schedule(0.5, 0.1, 4))
    assert_equal_runs(ready(SCHEDULE, decay), written_out(scale, decay, SCHEDULE), LONE)


DECAY_KINDS: dict[str, Chain] = {
    "masked": wd.masked_decay(0.3),
    "anchored": DECAYS["anchored"](0.3, wd.everything),
    "add_decayed_weights": optax.add_decayed_weights(0.3, mask=wd.standard),
    "none": optax.identity(),
    "masked by optax": optax.masked(
        wd.cautious_weight_decay(0.3, wd.everything), wd.named("kernel")
    ),
    "partition": optax.partition(
        {
            "strong": wd.cautious_weight_decay(0.5, wd.everything),
            "weak": wd.cautious_weight_decay(0.1, wd.everything),
            "none": optax.identity(),
        },
        wd.first_match(
            (wd.path("mlp/kernel"), "strong"),
            (wd.contains("attn"), "weak"),
            default="none",
        ),
    ),
    "a chain": optax.chain(
        wd.cautious_weight_decay(0.3, wd.contains("mlp")),
        wd.cautious_weight_decay(0.1, wd.contains("attn")),
    ),
}


@pytest.mark.parametrize("decay", DECAY_KINDS.values(), ids=DECAY_KINDS)
def test_adamw_takes_any_decay(decay: Chain) -> None:
    scale = optax.scale_by_adam()
    assert_equal_runs(wd.adamw(0.02, decay), written_out(scale, decay, 0.02))


@pytest.mark.parametrize("kind", ["partition", "masked by optax", "a chain"])
def test_nadamw_takes_decays_that_see_a_part_of_the_tree(kind: str) -> None:
    scale, decay = optax.scale_by_adam(nesterov=True), DECAY_KINDS[kind]
    assert_equal_runs(
        wd.adamw(0.02, decay, nesterov=True), written_out(scale, decay, 0.02)
    )


WRAPPERS: dict[str, Callable[[Any], Chain]] = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "masked": lambda tx: optax.masked(tx, wd.contains("mlp")),
    "partition": lambda tx: optax.partition(
        {"a": tx, "b": optax.sgd(0.1)},
        wd.first_match((wd.contains("attn"), "b"), default="a"),
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_inside_wrappers_it_is_the_chain_written_out(
    wrapper: Callable[[Any], Chain], nesterov: bool
) -> None:
    decay = wd.cautious_weight_decay(0.3)
    chain = written_out(optax.scale_by_adam(nesterov=nesterov), decay, 0.02)
    assert_equal_runs(wrapper(wd.adamw(0.02, decay, nesterov=nesterov)), wrapper(chain))


@pytest.mark.parametrize("learning_rate", [0.02, SCHEDULE], ids=["number", "schedule"])
@pytest.mark.parametrize("name", ["adamw", "sgdw momentum", "lion"])
def test_in_bf16_it_is_the_chain_written_out(name: str, learning_rate: Any) -> None:
    # Eagerly: compiled, XLA may keep more bits in one of the two.
    ready, scale = CHAINS[name]
    decay = wd.cautious_weight_decay(0.3, wd.everything)
    params = {"w": jnp.asarray([[1.0, -2.0, 0.3]], jnp.bfloat16)}
    (grads,) = noise(params, 1)
    updates = once(ready(learning_rate, decay), grads, params)
    assert_same(updates, once(written_out(scale, decay, learning_rate), grads, params))
    assert updates["w"].dtype == jnp.bfloat16


def test_a_learning_rate_in_an_array_does_not_widen_updates_as_in_optax() -> None:
    params = {"w": jnp.ones((2, 2), jnp.bfloat16)}
    for learning_rate in (jnp.float32(0.5), lambda step: jnp.float32(0.5)):
        tx = wd.sgdw(learning_rate, wd.masked_decay(0.5))
        updates = once(tx, params, params)
        assert_same(updates, {"w": jnp.full((2, 2), -0.75, jnp.bfloat16)})


def test_leaves_of_other_dtypes_pass_a_ready_chain() -> None:
    params: dict[str, Any] = {"w": jnp.ones((2, 2)), "n": jnp.asarray([3]), "a": None}
    decay = wd.masked_decay(0.5)
    for place, update in ((decay, -0.75), (wd.after_learning_rate(decay), -1.0)):
        updates = once(wd.sgdw(0.5, place), params, params)
        assert updates["n"] is params["n"] and updates["a"] is None
        assert updates["w"][0, 0] == update


def test_float16_needs_a_larger_eps_as_the_docstring_says() -> None:
    zeros = {"w": jnp.zeros((2, 2), jnp.float16)}
    for eps, finite in ((1e-8, False), (1e-4, True)):
        updates = once(wd.adamw(0.5, wd.masked_decay(0.5), eps=eps), zeros, zeros)
        assert bool(jnp.all(jnp.isfinite(updates["w"]))) is finite


# Optax's own

OPTAX: dict[str, tuple[Chain, Chain]] = {
    "adamw": (
        wd.adamw(SCHEDULE, wd.masked_decay(0.3, wd.everything), b2=0.95),
        optax.adamw(SCHEDULE, b2=0.95, weight_decay=0.3),
    ),
    "adamw masked": (
        wd.adamw(0.02, wd.masked_decay(0.3, wd.named("kernel"))),
        optax.adamw(0.02, weight_decay=0.3, mask=wd.named("kernel")),
    ),
    "nadamw": (
        wd.adamw(0.02, wd.masked_decay(0.3, wd.everything), nesterov=True),
        optax.nadamw(0.02, weight_decay=0.3),
    ),
    "adam": (wd.adamw(0.02, optax.identity()), optax.adam(0.02)),
    "lion": (
        wd.lion(0.02, wd.masked_decay(0.3, wd.everything)),
        optax.lion(0.02, weight_decay=0.3),
    ),
    "lion without": (
        wd.lion(0.02, optax.identity()),
        optax.lion(0.02, weight_decay=0.0),
    ),
    "sgd": (wd.sgdw(0.02, optax.identity()), optax.sgd(0.02)),
    "sgd nesterov": (
        wd.sgdw(0.02, optax.identity(), momentum=0.9, nesterov=True),
        optax.sgd(0.02, momentum=0.9, nesterov=True),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_it_is_optaxs_own_with_the_same_mask(name: str) -> None:
    assert_equal_runs(*OPTAX[name])


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_in_float64_it_is_optaxs_own_with_the_same_mask(name: str) -> None:
    with jax.enable_x64(True):
        assert_equal_runs(*OPTAX[name], small_tree(dtype=jnp.float64))


# After the learning rate


@every_decay
@pytest.mark.parametrize("name", ["nadamw", "sgdw", "lion"])
def test_a_decay_for_after_the_learning_rate_is_put_last(name: str, decay: Any) -> None:
    ready, scale = CHAINS[name]
    last = wd.after_learning_rate(decay(0.1))
    rate = optax.scale_by_learning_rate(0.02)
    params, (grads,) = LONE, noise(LONE, 1)
    expected = once(optax.chain(scale, rate, last), grads, params)
    assert_same(once(ready(0.02, last), grads, params), expected)


def test_a_decay_for_after_the_learning_rate_shrinks_in_a_ready_chain() -> None:
    params = {"w": jnp.ones((2, 2))}
    zeros = {"w": jnp.zeros((2, 2))}
    for name in ("adamw", "sgdw", "lion"):
        ready, _ = CHAINS[name]
        last = wd.after_learning_rate(wd.masked_decay(0.25))
        updates = once(ready(1e-3, last), zeros, params)
        np.testing.assert_array_equal(updates["w"], np.full((2, 2), -0.25))


@pytest.mark.parametrize("name", ["adamw", "sgdw", "lion"])
@pytest.mark.parametrize(
    "nest",
    [
        lambda last: optax.chain(last),
        lambda last: optax.chain(optax.identity(), last),
        lambda last: optax.masked(last, wd.everything),
        lambda last: optax.partition(
            {"a": last}, lambda p: jax.tree.map(lambda _: "a", p)
        ),
    ],
    ids=["chain", "second", "masked", "partition"],
)
def test_a_nested_decay_for_after_the_learning_rate_is_refused(
    name: str, nest: Any
) -> None:
    tx = CHAINS[name][0](0.02, nest(wd.after_learning_rate(wd.masked_decay(0.1))))
    message = (
        "after_learning_rate stands before the learning rate, where it would grow the "
        "weights; pass it to the ready chain as the whole decay, or take the decay out"
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: once(tx, p, p), small_tree())


@pytest.mark.parametrize("ready", [wd.adamw, wd.sgdw, wd.lion])
@pytest.mark.parametrize("decay", [0.1, None, wd.standard, wd.masked_decay, (1, 2)])
def test_what_is_no_transformation_is_refused(ready: Any, decay: Any) -> None:
    message = (
        r"decay takes a transformation, got .*; write masked_decay\(0\.1\), or "
        r"optax\.identity\(\) for no decay"
    )
    with pytest.raises(TypeError, match=message):
        ready(1e-3, decay)


@pytest.mark.parametrize("ready", [wd.adamw, wd.sgdw, wd.lion])
@pytest.mark.parametrize("rate", [None, "1e-3", True, np.ones(2)], ids=label)
def test_what_is_no_learning_rate_is_refused_at_once(ready: Any, rate: Any) -> None:
    message = r"^learning_rate takes a number or a schedule, got .*; write 1e-3, or a f"
    with pytest.raises(TypeError, match=message):
        ready(rate, wd.masked_decay(0.1))


def test_missing_params_are_named_by_a_ready_chain() -> None:
    tx = wd.adamw(1e-3, wd.masked_decay(0.1))
    with pytest.raises(ValueError, match="weight decay needs the parameters"):
        jax.eval_shape(tx.update, small_tree(), tx.init(small_tree()))


def test_without_a_decay_params_are_not_needed() -> None:
    tx = wd.adamw(1e-3, optax.identity())
    assert_same(tx.update(LONE, tx.init(LONE))[0], once(tx, LONE, LONE))


def test_extra_arguments_reach_the_decay() -> None:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        assert sorted(extra) == ["grad", "sign_of"]
        return jax.tree.map(lambda u, g: u + g, updates, extra["grad"]), state

    decay = optax.GradientTransformationExtraArgs(lambda params: (), update)
    ones = {"w": jnp.ones(2)}
    updates = once(wd.sgdw(0.5, decay), ones, ones, grad={"w": jnp.full(2, 3.0)})
    np.testing.assert_array_equal(updates["w"], [-2.0, -2.0])


# Signs to gate by


def signs_of(tx_of: Callable[[Any], Chain], steps: int) -> list[tuple[Any, Any]]:
    """Direction and `sign_of` that a ready chain hands to its decay, step by step."""
    seen = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append((updates, extra["sign_of"]))
        return updates, state

    tx = tx_of(optax.GradientTransformationExtraArgs(lambda params: (), update))
    params = {"w": jnp.ones((4, 5))}
    state = tx.init(params)
    for grads in noise(params, steps):
        _, state = tx.update(grads, state, params)
    return seen


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_signs_to_gate_by_are_those_of_the_direction(
    b1: float, nesterov: bool
) -> None:
    seen = signs_of(lambda d: wd.adamw(1e-3, d, b1=b1, nesterov=nesterov), 4)
    for direction, signs in seen:
        assert signs is not direction
        assert_same(*(jax.tree.map(jnp.sign, x) for x in (direction, signs)))


@pytest.mark.parametrize("name", ["adamw mu_dtype", "sgdw momentum", "lion"])
def test_elsewhere_the_signs_to_gate_by_are_the_direction(name: str) -> None:
    for direction, signs in signs_of(lambda d: CHAINS[name][0](1e-3, d), 2):
        assert_same(direction, signs)


# State


@pytest.mark.parametrize("name", ["adamw", "sgdw momentum", "lion", "nadamw"])
def test_state_has_one_structure_for_numbers_and_schedules(name: str) -> None:
    kinds = set()
    for learning_rate in (0.02, SCHEDULE, jnp.float32(0.02)):
        for rate in (0.1, lambda step: 0.1):
            tx = CHAINS[name][0](learning_rate, wd.cautious_weight_decay(rate))
            state = jax.eval_shape(tx.init, tree())
            after = jax.eval_shape(tx.update, tree(), state, tree())[1]
            for leaves, structure in map(jax.tree.flatten, (state, after)):
                kinds.add((structure, *((x.shape, x.dtype.name) for x in leaves)))
    assert len(kinds) == 1


@pytest.mark.parametrize("learning_rate", [0.02, SCHEDULE], ids=["number", "schedule"])
@pytest.mark.parametrize("name", ["adamw", "nadamw", "lion"])
def test_the_look_up_of_count_is_not_ambiguous(name: str, learning_rate: Any) -> None:
    decay = wd.cautious_weight_decay(lambda step: 0.25)
    _, state = run(
        CHAINS[name][0](learning_rate, decay), small_tree(), noise(small_tree(), 3)
    )
    for counter in ("count", "decay_count", "learning_rate_count"):
        assert optax.tree.get(state, counter) == 3
    assert optax.tree.get(state, "decay_rate") == 0.25


def test_without_a_momentum_counts_are_found_as_well() -> None:
    _, state = run(
        wd.sgdw(0.1, wd.masked_decay(0.1)), small_tree(), noise(small_tree(), 2)
    )
    assert optax.tree.get(state, "count") is None
    assert optax.tree.get(state, "learning_rate_count") == 2


def test_the_learning_rate_schedule_gets_the_number_of_updates_so_far() -> None:
    tx: Any = wd.sgdw(lambda step: 0.5 + step, optax.identity())
    state, seen = tx.init(jnp.ones(1)), []
    for _ in range(3):
        updates, state = tx.update(jnp.ones(1), state)
        seen.append(float(updates[0]))
    assert seen == [-0.5, -1.5, -2.5]


# inject_hyperparams


@pytest.mark.parametrize("nesterov", [False, True])
def test_hyperparameters_of_adamw_can_be_injected(nesterov: bool) -> None:
    decay = wd.cautious_weight_decay(0.3)
    tx = optax.inject_hyperparams(wd.adamw)(
        learning_rate=SCHEDULE, decay=decay, b2=0.95, nesterov=nesterov
    )
    # The betas become arrays, so that products are rounded elsewhere than in the chain.
    chain = optax.inject_hyperparams(
        lambda learning_rate, b2: written_out(
            optax.scale_by_adam(b2=b2, nesterov=nesterov), decay, learning_rate
        )
    )(learning_rate=SCHEDULE, b2=0.95)
    params, gradients = small_tree(), noise(small_tree(), 3)
    seen, state = run(tx, params, gradients)
    expected, _ = run(chain, params, gradients)
    for a, b in zip(jax.tree.leaves(seen), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert set(state.hyperparams) >= {"learning_rate", "b1", "b2", "eps", "eps_root"}
    np.testing.assert_allclose(state.hyperparams["learning_rate"], SCHEDULE(2))


@pytest.mark.parametrize(
    ("ready", "options"),
    [(wd.adamw, {}), (wd.sgdw, {"momentum": 0.9}), (wd.lion, {"b1": 0.8})],
)
def test_an_injected_learning_rate_can_be_set(ready: Any, options: Any) -> None:
    decay = wd.masked_decay(0.5, wd.everything)
    tx = optax.inject_hyperparams(ready)(learning_rate=0.5, decay=decay, **options)
    params = {"w": jnp.ones((2, 2))}
    zeros = {"w": jnp.zeros((2, 2))}
    state: Any = tx.init(params)
    update = jax.jit(tx.update)
    for rate in (0.5, 0.25):
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        updates, state = update(zeros, state, params)
        np.testing.assert_array_equal(updates["w"], np.full((2, 2), -rate * 0.5))


def test_an_injected_chain_still_places_the_decay_last() -> None:
    last = wd.after_learning_rate(wd.masked_decay(0.25, wd.everything))
    tx = optax.inject_hyperparams(wd.adamw)(learning_rate=0.0, decay=last)
    params = {"w": jnp.ones((2, 2))}
    updates = once(tx, {"w": jnp.ones((2, 2))}, params)
    np.testing.assert_array_equal(updates["w"], np.full((2, 2), -0.25))


# Cost

SIDE, LEAVES = 1000, 4
# Counters and rates may differ, by some bytes in all. One more visit to the parameters
# would be 16 MB.
SCALARS = 256


def cost(tx: Chain) -> tuple[float, int]:
    """Bytes accessed and bytes of temporaries of one compiled step."""
    shape = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)
    params = {f"layer_{n}": {"kernel": shape} for n in range(LEAVES)}

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    step = jax.jit(step, donate_argnums=(0, 1))
    compiled = step.lower(params, state, params).compile()
    analysis: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return analysis["bytes accessed"], memory.temp_size_in_bytes


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_cautious_step_costs_what_a_step_of_optax_costs(nesterov: bool) -> None:
    optaxs = cost(optax.adamw(1e-3, weight_decay=0.1, nesterov=nesterov))
    cautious = wd.cautious_weight_decay(0.1)
    assert optaxs[0] / (LEAVES * SIDE**2) == pytest.approx(44 if nesterov else 40, 1e-5)
    for decay in (
        cautious,
        wd.masked_decay(0.1),
        wd.cautious_weight_decay(SCHEDULE, multiplier=2.0),
    ):
        mine = cost(wd.adamw(SCHEDULE, decay, nesterov=nesterov))
        assert abs(mine[0] - optaxs[0]) < SCALARS
        assert mine[1] <= optaxs[1] + SCALARS
    # A gate on the direction itself is what this is compared with, and dearer.
    scale = optax.scale_by_adam(nesterov=nesterov)
    dear = cost(written_out(scale, cautious, 1e-3))
    assert dear[0] - optaxs[0] >= 8 * LEAVES * SIDE**2
    assert dear[1] - optaxs[1] >= 4 * SIDE**2


def test_a_chain_of_ones_own_with_plain_decay_costs_what_optax_costs() -> None:
    chain = written_out(optax.scale_by_adam(), wd.masked_decay(0.1), 1e-3)
    mine, optaxs = cost(chain), cost(optax.adamw(1e-3, weight_decay=0.1))
    assert abs(mine[0] - optaxs[0]) < SCALARS and mine[1] <= optaxs[1] + SCALARS


def test_undecayed_leaves_are_not_read_for_the_decay() -> None:
    chain = written_out(optax.identity(), wd.masked_decay(0.1, wd.nothing), 1e-3)
    mine, optaxs = cost(chain), cost(optax.sgd(1e-3))
    assert abs(mine[0] - optaxs[0]) < SCALARS


@pytest.mark.parametrize(
    "name", "adamw nadamw sgdw lion novograd fadam muon normuon".split()
)
def test_the_keywords_of_optax_are_answered_with_what_to_write(name: str) -> None:
    chain: Any = getattr(wd, name)
    right = rf"write {name}\(learning_rate, masked_decay\(0.1, mask\)\)$"
    with pytest.raises(TypeError, match=rf"^{name} takes a decay, got mask; {right}"):
        chain(1e-3, mask=wd.standard)
    given = {"weight_decay": 0.1, "mask": wd.standard}
    with pytest.raises(TypeError, match=f"got mask and weight_decay; {right}"):
        chain(1e-3, **given)
    with pytest.raises(TypeError, match="missing 1 required .* 'decay'"):
        chain(1e-3)
