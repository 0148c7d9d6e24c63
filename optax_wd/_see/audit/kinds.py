# SPDX-License-Identifier: Apache-2.0
"""From what an optimizer did to one leaf to the kind of its decay.

Measured are updates `y(g, x)` at several points `x` and gradients `g`. Plain decay adds
the same multiple of the distance from its target on every coordinate, whatever the
gradient; each other kind breaks that in a way of its own.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NONE = "none"
DECOUPLED = "decoupled"
UNCOUPLED = "without learning rate"
L2 = "coupled L2"
CAUTIOUS = "cautious"
GROWING = "growing"
PINNED = "norm-constrained"
UNKNOWN = "unknown"
TOLD = DECOUPLED, CAUTIOUS, GROWING  # with a fraction, until more is asked
KINDS = NONE, DECOUPLED, UNCOUPLED, L2, CAUTIOUS, GROWING, PINNED, UNKNOWN

ZERO, INITIAL, OTHER = "zero", "initial value", "other"


class Still(NamedTuple):
    """What a leaf does without a gradient.

    Attributes:
      shrink: the mean over coordinates and points of what a step takes away.
      spread: the largest deviation from it.
      moved: the largest absolute change of the update from zero to another point.
      at_zero: the largest absolute update at the point zero.
      from_start: the largest deviation of that from a pull to the initial value.
    """

    shrink: float
    spread: float
    moved: float
    at_zero: float
    from_start: float


class Pushed(NamedTuple):
    """What a leaf does with a gradient and with the opposite one, at two points.

    The points are the target of the decay, where there is none, and another one.

    Attributes:
      plain: the largest deviation from the shrink that was measured without gradient.
      gated: the same, where the shrink may also be 0.
      open: the fraction of coordinates that shrink by more than half of it.
      agrees: the fraction of coordinates that do so just where the step shrinks them.
      changed: the largest absolute change of the update between the points.
      size: the largest absolute update.
      rough: the largest sum of two updates by the distance of their points: times the
        roundoff, how precise a shrink of one coordinate is.
      fits: two shrinks, each with the largest relative residual of the fit of updates
        by `factor * update at the target - shrink * distance`.
    """

    plain: float
    gated: float
    open: float
    agrees: float
    changed: float
    size: float
    rough: float
    fits: tuple[tuple[float, float], tuple[float, float]]

    @property
    def fitted(self) -> float:
        """The mean of the two shrinks; NaN where the leaf is too small to tell."""
        return (self.fits[0][0] + self.fits[1][0]) / 2

    @property
    def residual(self) -> float:
        """The larger of the two residuals."""
        return max(self.fits[0][1], self.fits[1][1])


def _real(x: Any) -> jax.Array:
    """In float32; of complex numbers both parts."""
    if jnp.iscomplexobj(x):
        x = jnp.stack([jnp.real(x), jnp.imag(x)])
    return jnp.asarray(x, jnp.float32)


def _largest(x: jax.Array) -> jax.Array:
    """The largest absolute value; 0 where there is none."""
    return jnp.max(jnp.abs(x), initial=0.0)


@jax.jit  # compiled once for each shape
def still(start: Any, points: tuple[Any, Any], updates: tuple[Any, Any, Any]) -> Any:
    """The fields of a `Still`, from the updates at zero and at two points."""
    start = _real(start)
    zero, *there = map(_real, updates)
    slopes = [-(y - zero) / _real(x) for x, y in zip(points, there, strict=True)]
    shrink = jnp.mean(jnp.stack(slopes))
    return (
        shrink,
        _largest(jnp.stack(slopes) - shrink),
        _largest(jnp.stack(there) - zero),
        _largest(zero),
        _largest(zero - shrink * start),
    )


@jax.jit
def pushed(
    shrink: Any, target: Any, here: Any, base: tuple[Any, Any], there: tuple[Any, Any]
) -> Any:
    """The fields of a `Pushed`, from the updates at the target and at `here`."""
    distance = _real(here) - _real(target)
    bases, heres = [list(map(_real, pair)) for pair in (base, there)]
    rate = jnp.stack([(x - y) / distance for x, y in zip(bases, heres, strict=True)])
    is_open = jnp.abs(rate) > jnp.abs(shrink) / 2
    steps = -jnp.stack(bases)
    expected = steps * distance >= 0
    return (
        _largest(rate - shrink),
        _largest(jnp.minimum(jnp.abs(rate - shrink), jnp.abs(rate))),
        jnp.mean(is_open),
        jnp.sum((is_open == expected) & (steps != 0))
        / jnp.maximum(1, jnp.sum(steps != 0)),
        _largest(jnp.stack(heres) - jnp.stack(bases)),
        _largest(jnp.stack(heres + bases)),
        _largest((jnp.abs(jnp.stack(heres)) + jnp.abs(jnp.stack(bases))) / distance),
        tuple(_fit(x, y, distance) for x, y in zip(bases, heres, strict=True)),
    )


def _fit(base: jax.Array, there: jax.Array, distance: jax.Array) -> tuple[Any, Any]:
    """Least squares of `there` by `base` and `-distance`: the shrink, the residual."""

    def along(x: jax.Array, unit: jax.Array) -> jax.Array:
        length = jnp.sum(unit * unit)
        return jnp.where(length > 0, jnp.sum(x * unit) / length, 0.0) * unit

    beside = distance - along(distance, base)
    length = jnp.sum(beside * beside)
    is_told = length > 1e-3 * jnp.sum(distance * distance)
    shrink = jnp.where(is_told, -jnp.sum(there * beside) / length, jnp.nan)
    rest = there + shrink * distance
    residual = _largest(rest - along(rest, base)) / _largest(there)
    return shrink, residual


def target_of(measured: Still, precision: float) -> str:
    """What a pull without a gradient goes to."""
    tolerance = tolerance_of(precision)
    pull = abs(measured.shrink) * 100.0  # of a typical distance
    # At zero there is no pull at all, or the target is another: weights are small.
    if measured.at_zero <= 32 * precision * abs(measured.shrink) or not measured.moved:
        return ZERO
    return INITIAL if measured.from_start <= tolerance * pull else OTHER


def kind_of(
    measured: Still, answer: Pushed, target: str, precision: float, floor: float
) -> tuple[str, float, float]:
    """The kind of a leaf whose decay is not in its gradient, nor its norm fixed.

    Args:
      measured: without a gradient.
      answer: with gradients.
      target: of `target_of`.
      precision: the unit roundoff of the leaf's dtype.
      floor: what is no change of an update, but rounding.

    Returns:
      The kind, the shrink per step and the open fraction, NaN where not known.
    """
    tolerance = tolerance_of(precision)
    if not all(map(math.isfinite, [*measured, *answer[:-1]])):
        return UNKNOWN, math.nan, math.nan
    shrink = measured.shrink
    if measured.moved <= floor:
        is_lost = abs(answer.fitted) * 100.0 <= tolerance * answer.size
        if measured.moved > 0:  # too little to be told from rounding
            return UNKNOWN, math.nan, math.nan
        if answer.changed <= 8 * precision * answer.size:
            return NONE, 0.0, 0.0
        if is_lost and answer.residual <= tolerance:
            return NONE, 0.0, 0.0
        return UNKNOWN, answer.fitted, math.nan
    # Differences of updates are as precise as the updates are.
    allowed = tolerance * abs(shrink) + 16 * precision * answer.rough
    is_one = measured.spread <= tolerance * abs(shrink)
    if target == OTHER or not is_one or allowed > abs(shrink) / 4:
        return UNKNOWN, answer.fitted, math.nan
    if answer.plain <= allowed:
        return (DECOUPLED if shrink > 0 else GROWING), shrink, 1.0
    if answer.gated <= allowed and shrink < 0:
        return GROWING, shrink, answer.open
    if answer.gated <= allowed:
        if answer.agrees > 0.99:
            return CAUTIOUS, shrink, answer.open
        return UNKNOWN, answer.fitted, math.nan
    (first, _), (second, _) = answer.fits
    if answer.residual <= tolerance and abs(first - second) <= 0.1 * abs(shrink):
        return (DECOUPLED if answer.fitted > 0 else GROWING), answer.fitted, 1.0
    return UNKNOWN, answer.fitted, math.nan


def holds(shrink: float, point: Any, update: Any) -> bool:
    """Whether small weights lose the fraction that large ones do, within a sixteenth.

    What goes by a norm and passes changes the fraction of weights of 0.02, as networks
    begin with, by 0.3 % at most; so a trust ratio may have an epsilon.
    """
    lost, size = map(float, jax.device_get(_lost(point, update)))
    finest = float(jnp.finfo(point.dtype).smallest_subnormal)  # updates underflow
    return not size * abs(lost - shrink) > size * abs(shrink) / 16 + finest


@jax.jit  # compiled once for each shape
def _lost(point: Any, update: Any) -> tuple[jax.Array, jax.Array]:
    """Least squares of what an update takes of a point, whose mean size is second."""
    x = _real(point)
    return -jnp.sum(x * _real(update)) / jnp.sum(x * x), jnp.mean(jnp.abs(x))


def tolerance_of(precision: float) -> float:
    """How far numbers of a dtype may be apart, relatively, and count as equal."""
    return max(1e-3, 8 * precision)
