# SPDX-License-Identifier: Apache-2.0
"""Further questions to an optimizer, for what single updates do not tell.

Is the decay a part of the gradient? Does it go with the learning rate? Is the norm of
the leaf fixed? Does the optimizer keep a copy of the parameters that moves? Does
something act only where a step leads beyond the start?
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_wd._see.audit import probes as _probes
from optax_wd._see.audit.probes import Prober
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Path, PyTree

_FORGOTTEN = 200  # steps after which a momentum of 0.95 is 1e-5 of itself
_MANY = 20  # gradients that add up to more than in a momentum of 0.95
_LATER = 1, 10, 100, 1000, 10_000, 100_000  # steps ahead, for schedules to change
_AHEAD = 3 / 16  # of a step; below 1/4, so that a step over twice of it goes beyond


def in_gradient(asked: Prober, leaves: list[Leaf]) -> list[float]:
    """Of each leaf the multiple of the parameters that acts as a part of the gradient.

    That is L2 regularisation: `f(g, x) = f(g + l * x, 0)` for the update and for what
    the state keeps of the leaf. `l` comes from derivatives in the direction of the
    parameters, and is then put to the test. NaN where there is none.
    """
    state, here, gradient = asked.pushed, asked.here, asked.gradient
    if all(len(own) == 1 for own in _of_leaves(leaves, gradient, state)):
        # Without a state there is no difference: L2 in plain SGD is decoupled decay.
        return [math.nan] * len(leaves)

    def moved(tree: PyTree, by: Any) -> PyTree:
        return jax.tree.map(lambda x, h: x + by * h if _is_float(x) else x, tree, here)

    def answer(along: jax.Array) -> Any:
        point, in_gradient = moved(here, along[0]), moved(gradient, along[1])
        return asked.run(state, in_gradient, point)

    try:
        tangents = [jax.jvp(answer, (jnp.zeros(2),), (unit,))[1] for unit in jnp.eye(2)]
    except Exception:  # whatever has no derivative; then nothing can be told this way
        return [math.nan] * len(leaves)
    points, gradients = [_of_leaves(leaves, *tangent) for tangent in tangents]
    found = [
        _ratio(p, g) if any(bool(jnp.any(kept != 0)) for kept in p[1:]) else math.nan
        for p, g in zip(points, gradients, strict=True)
    ]
    return [
        rate if is_right else math.nan
        for rate, is_right in zip(
            found, _tested(asked, state, found, leaves), strict=True
        )
    ]


def _tested(
    asked: Prober, state: PyTree, rates: list[float], leaves: list[Leaf]
) -> Iterator[bool]:
    """Whether gradients with the multiples in them do what the parameters did."""
    arrays, structure = jax.tree.flatten(asked.gradient)
    heres = jax.tree.leaves(asked.here)
    known = [0.0 if math.isnan(rate) else rate for rate in rates]
    sums = [
        g + jnp.asarray(rate * h, g.dtype) if _is_float(g) else g
        for g, rate, h in zip(arrays, known, heres, strict=True)
    ]
    inside = asked.run(state, structure.unflatten(sums), asked.nothing)
    beside = asked.run(state, asked.gradient, asked.here)
    for one, other in zip(
        _of_leaves(leaves, *inside), _of_leaves(leaves, *beside), strict=True
    ):
        yield all(map(_is_close, one, other))


def _of_leaves(
    leaves: list[Leaf], updates: PyTree, state: PyTree
) -> list[list[jax.Array]]:
    """For each leaf its update, and the arrays of its shape that the state keeps."""
    kept = [
        (path, value)
        for path, value in _leaves.leaves_with_paths(state)
        if _is_float(value)
    ]
    columns = []
    for leaf, update in zip(leaves, jax.tree.leaves(updates), strict=True):
        n = len(leaf.path)
        own = [
            value
            for path, value in kept
            if n and value.shape == leaf.shape and path[-n:] == leaf.path
        ]
        columns.append([update, *own])
    return columns


def _ratio(points: list[jax.Array], gradients: list[jax.Array]) -> float:
    """Least squares of what the point did by what the gradient did."""
    pairs = [
        (jnp.sum(p * g), jnp.sum(g * g))
        for p, g in zip(points, gradients, strict=True)
        if _is_float(p) and _is_float(g)
    ]
    # Scaled each to its own size: the second moments are far larger than the first.
    shares = [
        (float(jnp.real(both / own)), float(jnp.real(own)))
        for both, own in pairs
        if float(jnp.real(own)) > 0
    ]
    if not shares or not all(math.isfinite(rate) for rate, _ in shares):
        return math.nan
    rates = [rate for rate, _ in shares]
    is_one = max(rates) - min(rates) <= 1e-2 * max(map(abs, rates))
    return rates[0] if is_one and rates[0] != 0.0 else math.nan


def _is_close(one: jax.Array, other: jax.Array) -> bool:
    if not _is_float(one):
        return True
    precision = float(jnp.finfo(one.dtype).eps)
    size = float(jnp.max(jnp.abs(other), initial=0.0))
    return (
        float(jnp.max(jnp.abs(one - other), initial=0.0))
        <= max(1e-3, 8 * precision) * size
    )


def _is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def displaced(asked: Prober, leaves: list[Leaf]) -> list[bool]:
    """Whether gradients displace the target of a leaf for good, as in averages.

    A pull to the initial value forgets a gradient as soon as the momentum does. Signs
    of the momentum, as of Lion or a gate, stay, but do not add up over many gradients.
    An optimizer that averages, or keeps another copy, does neither.
    """

    def at_zero(state: PyTree) -> list[Any]:
        state = asked.uncounted(state)
        return jax.tree.leaves(asked.run(state, asked.nothing, asked.nothing)[0])

    state = asked.run(asked.fresh, asked.gradient, asked.start)[1]
    before, after = at_zero(asked.fresh), at_zero(state)
    late = at_zero(rested(asked, state, asked.start))
    for _ in range(_MANY - 1):
        state = asked.run(state, asked.gradient, asked.start)[1]
    many = at_zero(rested(asked, state, asked.start))
    found = []
    for leaf, *values in zip(leaves, before, after, late, many, strict=True):
        if not leaf.is_inexact:
            found.append(False)
            continue
        old = values[0]
        noise = 8 * float(jnp.finfo(leaf.dtype).eps) * float(_norm(old))
        first, last, sum_of = (float(_norm(value - old)) for value in values[1:])
        found.append(first > noise and last > first / 2 and sum_of > 3 * last)
    return found


def rested(asked: Prober, state: PyTree, point: PyTree) -> PyTree:
    """The state after so many steps without a gradient that momentum is forgotten."""
    for _ in range(_FORGOTTEN):
        state = asked.run(state, asked.nothing, point)[1]
    return state


def fixed_norms(asked: Prober, leaves: list[Leaf]) -> list[bool]:
    """Whether the norm of a leaf stays, though its update is as long as the leaf is."""
    # At the start, for elsewhere a norm that is remembered pulls the whole leaf.
    updates = jax.tree.leaves(asked.run(asked.fresh, asked.gradient, asked.start)[0])
    arrays, structure = jax.tree.flatten(asked.here)
    short = [
        x * _norm(u) / _norm(x) if _is_float(x) and float(_norm(u)) > 0 else x
        for x, u in zip(arrays, updates, strict=True)
    ]
    point = structure.unflatten(
        [
            s.astype(x.dtype) if _is_float(x) else x
            for s, x in zip(short, arrays, strict=True)
        ]
    )
    state = asked.init(point)
    ends = [asked.run(state, g, point)[0] for g in (asked.gradient, asked.opposite)]
    found = []
    for x, *steps in zip(
        jax.tree.leaves(point), *map(jax.tree.leaves, ends), strict=True
    ):
        if not _is_float(x):
            found.append(False)
            continue
        lengths = [float(_norm(x + step) / _norm(x)) for step in steps]
        turns = [float(_norm(step) / _norm(x)) for step in steps]
        found.append(
            all(abs(length - 1) < 1e-3 for length in lengths) and min(turns) > 0.05
        )
    return found


def overshooting(asked: Prober, leaves: list[Leaf]) -> list[bool]:
    """Whether updates change where a step leads back to the start and beyond it.

    Every second coordinate starts a little ahead of zero, in the direction of the step,
    and is asked as far behind; the others stay at the start. So all absolute values are
    equal, and no norm of a leaf or of a part of it tells the two points apart.
    """
    found = [False] * len(leaves)
    for gradient in (asked.gradient, asked.opposite):
        step = asked.run(asked.fresh, gradient, asked.start)[0]
        ahead, behind = (asked.around_zero(step, by) for by in (_AHEAD, -_AHEAD))
        state = asked.init(ahead)
        answers = [asked.run(state, gradient, point)[0] for point in (ahead, behind)]
        pairs = zip(*map(jax.tree.leaves, answers), strict=True)
        for n, (one, other) in enumerate(pairs):
            found[n] |= _is_float(one) and _is_another(one, other)
    return found


def _is_another(one: jax.Array, other: jax.Array) -> bool:
    """Whether an update is no multiple of another, up to what rounding does to both.

    A multiple comes of a norm over all leaves, some of which decay.
    """
    precision = float(max(jnp.finfo(dtype).eps for dtype in (one.dtype, jnp.float32)))
    rest, size = map(float, jax.device_get(_beside(one, other)))
    return rest > max(1e-3, 4 * precision) * size


@jax.jit  # compiled once for each shape
def _beside(one: jax.Array, other: jax.Array) -> Any:
    """The largest part of an update that is no multiple of another, and its size."""
    wide = jnp.promote_types(one.dtype, jnp.float32)
    one, other = one.astype(wide), other.astype(wide)
    length = jnp.sum(jnp.square(jnp.abs(one)))
    times = jnp.sum(jnp.conj(one) * other) / jnp.where(length > 0, length, 1.0)
    rest = other - times * one if one.size > 1 else other - one
    return tuple(jnp.max(jnp.abs(x), initial=0.0) for x in (rest, other))


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x).astype(jnp.float32))))


def two_rates(asked: Prober, targets: PyTree) -> tuple[PyTree, PyTree, float] | None:
    """Two states of unlike learning rates, and how many times the second is the first.

    None if it does not change in any schedule, nor is a hyper-parameter.
    """
    first, before = asked.fresh, _lengths(asked, asked.fresh, targets)
    for state in _states(asked):
        lengths = _lengths(asked, state, targets)
        if not any(before):  # a warm-up starts from zero
            first, before = state, lengths
            continue
        pairs = zip(lengths, before, strict=True)
        ratios = [new / old for new, old in pairs if old > 0 and math.isfinite(new)]
        times = float(np.median(ratios)) if ratios else 0.0
        if times > 0 and abs(times - 1) > 0.01:
            return first, state, times
    return None


def _states(asked: Prober) -> Iterator[PyTree]:
    fresh = asked.fresh
    values = dict(_leaves.leaves_with_paths(fresh))
    rates = [p for p in values if p[-2:] == ("hyperparams", "learning_rate")]
    if rates:
        yield _probes.with_values(fresh, {p: values[p] / 2 for p in rates})
    counters: list[Path] = list(
        _probes.schedules(fresh, _leaves.list_leaves(asked.params))
    )
    for later in _LATER if counters else ():
        yield _probes.with_values(fresh, {p: values[p] + later for p in counters})


def _lengths(asked: Prober, state: PyTree, targets: PyTree) -> list[float]:
    updates = asked.run(state, asked.gradient, targets)[0]
    return [float(_norm(u)) if _is_float(u) else 0.0 for u in jax.tree.leaves(updates)]
