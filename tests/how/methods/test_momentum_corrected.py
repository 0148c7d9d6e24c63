# SPDX-License-Identifier: Apache-2.0
"""Momentum-corrected decay: SGDS, and the fixed point that it shares with L2."""

from typing import Any

import numpy as np
import optax
import pytest
from helpers import assert_follows, assert_same, noise, once, settled, tree

import optax_wd as wd


def corrected(rate: Any, momentum: float = 0.9, dampening: float = 0.0) -> Any:
    return wd.momentum_corrected_weight_decay(
        rate, wd.everything, momentum=momentum, dampening=dampening
    )


def reference(x: np.ndarray, gradients: np.ndarray, rates: np.ndarray) -> list:
    """SGDS as in its code: the weight shrinks, then the momentum moves it."""
    momentum, seen = np.zeros_like(x), []
    for g, rate in zip(gradients, rates, strict=True):
        x = x * (1.0 - (1.0 - 0.2) / (1.0 - 0.9) * 0.1 * rate)
        momentum = 0.9 * momentum + (1.0 - 0.2) * g
        x = x - 0.1 * momentum
        seen.append(x)
    return seen


def test_it_is_sgds_in_numpy() -> None:
    def method(*arguments: Any, **options: Any) -> Any:
        options |= {"momentum": 0.9, "dampening": 0.2}
        return wd.momentum_corrected_weight_decay(*arguments, **options)

    damped = optax.chain(optax.scale(1.0 - 0.2), optax.trace(0.9))
    assert_follows(method, reference, before=damped)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_its_fixed_point_is_that_of_l2_whatever_the_momentum(momentum: float) -> None:
    tx = wd.sgdw(0.1, corrected(0.5, momentum), momentum=momentum)
    assert settled(tx) == pytest.approx(1.0 * 2.0 / (1.0 + 0.5), abs=1e-5)


def test_plain_decay_has_another_one() -> None:
    tx = wd.sgdw(0.1, wd.masked_decay(0.5, wd.everything), momentum=0.9)
    assert settled(tx) == pytest.approx(10.0 * 2.0 / (10.0 + 0.5), abs=1e-5)


def test_without_momentum_it_is_plain_decay() -> None:
    params, (updates,) = tree(), noise(tree(), 1)
    plain = once(wd.masked_decay(0.3, wd.everything), updates, params)
    assert_same(once(corrected(0.3, 0.0), updates, params), plain)


def test_the_state_tells_the_coefficient_as_it_was_given() -> None:
    assert corrected(0.5).init(tree()).decay_rate == 0.5


@pytest.mark.parametrize("name", ["momentum", "dampening"])
def test_what_is_no_momentum_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is less than 1, got 1.0"):
        corrected(0.5, **{name: 1.0})
    with pytest.raises(ValueError, match=f"{name} is finite and 0 or more, got -0.5"):
        corrected(0.5, **{name: -0.5})
    with pytest.raises(TypeError, match=f"{name} is one number, got None"):
        corrected(0.5, **{name: None})  # type: ignore
