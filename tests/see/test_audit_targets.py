# SPDX-License-Identifier: Apache-2.0
"""`audit` of what is no decay to zero: pulls to a norm, bounds, kept norms."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import quick_compiles as quick_compiles

import optax_wd as wd

WEIGHTS = np.random.default_rng(0).normal(size=(64, 64)) * 0.02
PARAMS: Any = {"k": jnp.asarray(WEIGHTS, jnp.float32)}  # a norm of 1.3
SMALL = {"k": jnp.ones((6, 5))}
GROWS = "some leaves lose another share of small weights than of large"


def audited(tx: Any, params: Any = None, **options: Any) -> Any:
    """The row of the only leaf."""
    (row,) = wd.audit(tx, SMALL if params is None else params, **options).rows
    return row


# ----------------------------------------------------------------- pulls to a norm


def test_a_pull_to_a_larger_norm_is_no_decay() -> None:
    tx = wd.adamw(0.01, wd.norm_targeted_weight_decay(0.1, norm=5.0))
    nothing = {"k": jnp.zeros((64, 64))}
    updates, _ = tx.update(nothing, tx.init(PARAMS), PARAMS)
    grown: Any = optax.apply_updates(PARAMS, updates)
    assert jnp.linalg.norm(grown["k"]) > jnp.linalg.norm(PARAMS["k"])
    found = wd.audit(tx, PARAMS)
    (row,) = found.rows
    assert (row.kind, row.shrink, row.open) == ("unknown", None, None)
    assert found.notes == (GROWS,)


def test_a_pull_to_a_larger_norm_does_not_pass_for_a_decay() -> None:
    tx = wd.adamw(0.01, wd.norm_targeted_weight_decay(0.1, norm=5.0))
    with pytest.raises(AssertionError, match="expected decoupled, measured unknown"):
        wd.assert_decays(tx, PARAMS, wd.standard, kind="decoupled")
    with pytest.raises(AssertionError, match="measured none that can be told"):
        wd.assert_decays(tx, PARAMS, wd.standard, shrink=1e-3)


@pytest.mark.parametrize(
    ("size", "norm", "dtype"),
    [(4, 0.5, "float32"), (8, 1.0, "bfloat16"), (64, 0.5, "float16")],
)
def test_a_norm_far_below_the_stand_ins_is_a_target_too(
    size: int, norm: float, dtype: str
) -> None:
    decay = wd.norm_targeted_weight_decay(0.25, norm=norm)
    row = audited(wd.sgdw(0.0625, decay), {"k": jnp.ones((size, size), dtype)})
    assert row.kind == "unknown"


def test_a_norm_of_zero_is_plain_decay() -> None:
    decay = wd.norm_targeted_weight_decay(0.25, norm=0.0)
    row = audited(wd.sgdw(0.0625, decay))
    assert (row.kind, row.shrink) == ("decoupled", pytest.approx(0.25 / 16))


def gated(target: float, sign: float) -> Any:
    """A pull to a norm, or away from it, where the step goes the same way."""

    def direction(update: Any, param: Any) -> Any:
        del update
        return sign * (1.0 - target / jnp.linalg.norm(param)) * param

    return wd.decay_along(
        direction, 0.25, wd.everything, gate=lambda u, d: u * sign * d >= 0
    )


@pytest.mark.parametrize(
    ("sign", "kind"), [(1.0, "cautious"), (-1.0, "growing")], ids=["to", "away"]
)
def test_a_gate_does_not_hide_a_norm(sign: float, kind: str) -> None:
    assert audited(wd.sgdw(0.0625, gated(0.0, sign))).kind == kind
    assert audited(wd.sgdw(0.0625, gated(0.5, sign))).kind == "unknown"


# -------------------------------------------------------------- what stays a decay


@pytest.mark.parametrize("rate", [0.004, 0.008, 0.02])
def test_what_float16_rounds_of_small_weights_is_no_target(rate: float) -> None:
    tx = wd.sgdw(0.0625, wd.masked_decay(rate))
    row = audited(tx, {"kernel": jnp.ones((1, 1), "float16")})
    assert (row.kind, row.shrink) == ("decoupled", pytest.approx(rate / 16, rel=2e-2))


DECAYS = {
    "a trust ratio with an epsilon": optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.1),
        optax.scale_by_trust_ratio(eps=1e-6),
        optax.scale_by_learning_rate(0.01),
    ),
    "lamb": optax.lamb(0.01, weight_decay=0.1),
    "clipped": optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.01, weight_decay=0.1)
    ),
    "in every third step": optax.MultiSteps(optax.adamw(0.01, weight_decay=0.1), 3),
}


@pytest.mark.parametrize("name", DECAYS)
def test_what_small_weights_lose_alike_is_a_decay(name: str) -> None:
    tx: Any = DECAYS[name]
    assert audited(tx).kind == "decoupled"


def test_growth_that_goes_through_adam_is_growth() -> None:
    tx = optax.chain(optax.add_decayed_weights(-0.25), optax.adam(0.0625))
    assert audited(tx).kind == "growing"


def test_a_threshold_above_the_stand_ins_is_not_seen() -> None:
    decays = [wd.huber_weight_decay(0.1, threshold=at) for at in (100.0, 1e4)]
    kinds = [audited(wd.adamw(0.01, decay)).kind for decay in decays]
    assert kinds == ["unknown", "decoupled"]


# ------------------------------------------------------------- counters of methods


def constrained() -> Any:
    decay = wd.constrained_weight_decay(0.01, limit=0.5, after=20)
    return optax.chain(optax.adam(0.01), wd.after_learning_rate(decay))


def test_a_constrained_decay_is_seen_where_it_has_begun() -> None:
    assert audited(constrained()).kind == "none"
    assert audited(constrained(), at_step=18).kind == "none"
    assert audited(constrained(), at_step=20).kind == "unknown"
    assert audited(constrained(), at_step=60).kind == "unknown"


@pytest.mark.parametrize("rate", [0.001, 0.0625])
def test_a_norm_is_kept_at_and_after_the_step_where_it_is_read(rate: float) -> None:
    tx = optax.chain(optax.adam(rate), wd.keep_norms(after=1000))
    assert audited(tx, at_step=999).kind == "none"
    for step in (1000, 1001, 2000):
        row = audited(tx, at_step=step)
        assert (row.kind, row.shrink) == ("norm-constrained", None)
