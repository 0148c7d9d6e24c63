# SPDX-License-Identifier: Apache-2.0
"""Put the questions to an optimizer in order, and name the kind of each leaf."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from optax_wd._see.audit import coupling as _coupling
from optax_wd._see.audit import kinds as _kinds
from optax_wd._see.audit import probes as _probes
from optax_wd._see.audit.probes import Prober
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import PyTree


@dataclasses.dataclass
class Found:
    """What is known of one leaf so far."""

    leaf: Leaf
    still: _kinds.Still
    target: str
    pushed: _kinds.Pushed | None = None
    kind: str = _kinds.UNKNOWN
    shrink: float = math.nan
    open: float = math.nan
    begins: bool = False  # does nothing yet, but does in the next step
    together: bool = False  # measured where the optimizer was initialised

    @property
    def precision(self) -> float:
        """The roundoff of what is measured, which is in float32 at best."""
        kinds = self.leaf.dtype, jnp.float32
        return max(float(jnp.finfo(dtype).eps) for dtype in kinds)


def measured(asked: Prober, leaves: list[Leaf]) -> dict[int, Found]:
    """The leaves of an inexact dtype by position, each with a kind."""
    found = _at(asked, leaves, asked.fresh)
    then = asked.run(asked.fresh, asked.nothing, asked.start)[1]
    for n, one in _at(asked, leaves, then).items():
        found[n].begins = found[n].still.moved == 0.0 < one.still.moved
    if any(one.target != _kinds.ZERO for one in found.values()):
        copies = _coupling.displaced(asked, leaves)
        tracked = {
            n
            for n, one in found.items()
            if one.target != _kinds.ZERO and (copies[n] or one.still.shrink > 0.5)
        }
        if tracked:
            together = _together(asked, leaves)
            found |= {n: together[n] for n in tracked}
    targets = _targets(asked, found)
    answers = [
        [asked.run(asked.pushed, g, point)[0] for g in (asked.gradient, asked.opposite)]
        for point in (targets, asked.here)
    ]
    _push(asked, {n: one for n, one in found.items() if one.pushed is None}, answers)
    return found


def _targets(asked: Prober, found: dict[int, Found]) -> PyTree:
    """The target of each leaf: zeros, or where the optimizer was initialised."""
    zeros, structure = jax.tree.flatten(asked.nothing)
    starts = jax.tree.leaves(asked.start)
    return structure.unflatten(
        start if n in found and found[n].target == _kinds.INITIAL else zero
        for n, (zero, start) in enumerate(zip(zeros, starts, strict=True))
    )


def _at(asked: Prober, leaves: list[Leaf], state: PyTree) -> dict[int, Found]:
    """What leaves do without a gradient in a state of the optimizer."""
    points = asked.nothing, asked.here, asked.there
    updates = [asked.run(state, asked.nothing, point)[0] for point in points]
    return _still(asked, leaves, updates)


def _still(
    asked: Prober, leaves: list[Leaf], updates: list[PyTree]
) -> dict[int, Found]:
    """What leaves do without a gradient, from updates at zero, here and there."""
    columns = [jax.tree.leaves(tree) for tree in updates]
    points = [jax.tree.leaves(p) for p in (asked.start, asked.here, asked.there)]
    found = {}
    for n, leaf in enumerate(leaves):
        if not leaf.is_inexact:
            continue
        start, here, there = (point[n] for point in points)
        given = tuple(column[n] for column in columns)
        measured = _kinds.still(start, (here, there), given)
        still = _kinds.Still(*map(float, jax.device_get(measured)))
        found[n] = Found(leaf, still, _kinds.UNKNOWN)
        found[n].target = _kinds.target_of(still, found[n].precision)
    return found


def _push(
    asked: Prober,
    found: dict[int, Found],
    answers: list[list[PyTree]],
    floor: float = 0.0,
) -> None:
    """Add what leaves do with gradients, and what kind that makes them.

    `answers` are updates for two gradients each, at the targets and here. `floor` is
    what is no change of an update but rounding, in units of roundoff.
    """
    targets, heres = map(jax.tree.leaves, (_targets(asked, found), asked.here))
    bases, others = [
        list(zip(*map(jax.tree.leaves, pair), strict=True)) for pair in answers
    ]
    for n, one in found.items():
        shrink = jnp.asarray(one.still.shrink, jnp.float32)
        measured = jax.device_get(
            _kinds.pushed(shrink, targets[n], heres[n], bases[n], others[n])
        )
        *numbers, fits = measured
        first, second = ((float(rate), float(rest)) for rate, rest in fits)
        one.pushed = _kinds.Pushed(*[float(x) for x in numbers], fits=(first, second))
        one.kind, one.shrink, one.open = _kinds.kind_of(
            one.still, one.pushed, one.target, one.precision, floor * one.precision
        )


def _together(asked: Prober, leaves: list[Leaf]) -> dict[int, Found]:
    """As `measured`, for optimizers with a copy: initialised where they are asked.

    That cannot see a pull to the initial value, and is for those that would seem to
    have one: averages of weights, whose average is behind the weights.
    """
    points = asked.nothing, asked.here, asked.there
    states = [asked.init(point) for point in points]
    updates = [
        asked.run(state, asked.nothing, point)[0]
        for state, point in zip(states, points, strict=True)
    ]
    found = _still(asked, leaves, updates)
    answers = [
        [asked.run(state, g, point)[0] for g in (asked.gradient, asked.opposite)]
        for state, point in zip(states[:2], points[:2], strict=True)
    ]
    for one in found.values():
        one.target, one.together = _kinds.ZERO, True
    _push(asked, found, answers, floor=8 * _probes.HERE[1])
    return found


def further(asked: Prober, leaves: list[Leaf], found: dict[int, Found]) -> list[str]:
    """Ask what single updates did not tell; notes about it."""
    notes, coupled = [], set()
    is_moved = {n for n, one in found.items() if one.kind != _kinds.NONE}
    if is_moved:
        rates = _coupling.in_gradient(asked, leaves)
        for n in is_moved:
            if not math.isnan(rates[n]):
                found[n].kind = _kinds.L2 if rates[n] > 0 else _kinds.GROWING
                found[n].shrink = found[n].open = math.nan  # it is the gradient's
                coupled.add(n)
    notes += _begins(found) + _wanders(asked, leaves, found)
    alone = {n: one for n, one in found.items() if n not in coupled}
    notes += _remembers(asked, alone)
    is_open = {
        n
        for n, one in found.items()
        if one.kind == _kinds.UNKNOWN
        or (one.pushed and one.kind == _kinds.NONE and one.pushed.changed > 0)
    }
    if is_open:
        fixed = _coupling.fixed_norms(asked, leaves)
        for n in is_open:
            if fixed[n]:
                found[n].kind = _kinds.PINNED
                found[n].shrink = found[n].open = math.nan  # it was off its norm
    notes += _overshoots(asked, leaves, found) + _sizes(asked, alone)
    plain = {n: one for n, one in found.items() if one.kind == _kinds.DECOUPLED}
    return notes + (_learning_rate(asked, leaves, plain) if plain else [])


def _begins(found: dict[int, Found]) -> list[str]:
    """What seems to do nothing, but only has not begun, is unknown."""
    late = [one for one in found.values() if one.kind == _kinds.NONE and one.begins]
    for one in late:
        one.kind, one.shrink, one.open = _kinds.UNKNOWN, math.nan, math.nan
    name = "some leaves do not decay in this step, but in the next; pass at_step="
    return [name] * bool(late)


def _overshoots(
    asked: Prober, leaves: list[Leaf], found: dict[int, Found]
) -> list[str]:
    """What acts only where a step leads beyond the start, not far from it, is unknown.

    An optimizer with a copy of the weights is left out: to it each point is another.
    """
    quiet = {
        n: one
        for n, one in found.items()
        if one.kind == _kinds.NONE and not one.together
    }
    beyond = _coupling.overshooting(asked, leaves) if quiet else []
    late = [one for n, one in quiet.items() if beyond[n]]
    for one in late:
        one.kind, one.target = _kinds.UNKNOWN, _kinds.OTHER
        one.shrink, one.open = math.nan, math.nan
    name = "some leaves do not decay, but where a step leads beyond their start they do"
    return [name] * bool(late)


def _sizes(asked: Prober, found: dict[int, Found]) -> list[str]:
    """What takes another share of small weights than of large ones is no decay."""
    plain = {
        n: one
        for n, one in found.items()
        if one.kind in _kinds.TOLD and one.target == _kinds.ZERO and not one.together
    }
    if not plain:
        return []
    updates = asked.run(asked.fresh, asked.nothing, asked.small)[0]
    smalls, updates = map(jax.tree.leaves, (asked.small, updates))
    notes = []
    for n, one in plain.items():
        if not _kinds.holds(one.still.shrink, smalls[n], updates[n]):
            one.kind, one.shrink, one.open = _kinds.UNKNOWN, math.nan, math.nan
            notes = ["some leaves lose another share of small weights than of large"]
    return notes


def _remembers(asked: Prober, found: dict[int, Found]) -> list[str]:
    """What a memory of the weights does, as a momentum of decays, takes many steps."""
    told = _kinds.NONE, *_kinds.TOLD
    states = [
        asked.uncounted(asked.run(asked.fresh, asked.nothing, point)[1])
        for point in (asked.here, asked.there)
    ]
    answers = [asked.run(state, asked.nothing, asked.here)[0] for state in states]
    columns = [jax.tree.leaves(updates) for updates in answers]
    notes = []
    for n, one in found.items():
        first, second = columns[0][n], columns[1][n]
        if one.kind not in told or one.together or not first.size:
            continue
        size = float(jnp.max(jnp.abs(first)))
        if float(jnp.max(jnp.abs(first - second))) > 16 * one.precision * size:
            one.kind, one.shrink, one.open = _kinds.UNKNOWN, math.nan, math.nan
            notes = ["the state remembers some weights, which one step does not show"]
    return notes


def _wanders(asked: Prober, leaves: list[Leaf], found: dict[int, Found]) -> list[str]:
    """What seems to pull to the initial value, but to one that follows the weights."""
    pulled = [
        n
        for n, one in found.items()
        if one.target == _kinds.INITIAL and one.kind in _kinds.TOLD
    ]
    if not pulled:
        return []
    state = _coupling.rested(asked, asked.fresh, asked.here)
    then = _at(asked, leaves, asked.uncounted(state))
    notes = []
    for n in pulled:
        if then[n].target == _kinds.OTHER:
            found[n].kind, found[n].target = _kinds.UNKNOWN, _kinds.OTHER
            notes = ["the target of some leaves follows the weights, as an average"]
    return notes


def _learning_rate(
    asked: Prober, leaves: list[Leaf], found: dict[int, Found]
) -> list[str]:
    """Tell decays that go with the learning rate from those that do not."""
    others = _coupling.two_rates(asked, _targets(asked, found))
    if others is None:
        return [
            "the learning rate does not change, so whether a decoupled decay is "
            "multiplied by it cannot be told"
        ]
    *states, times = others
    points = asked.nothing, asked.here, asked.there
    now, then = (
        _still(asked, leaves, [asked.run(s, asked.nothing, p)[0] for p in points])
        for s in states
    )
    notes = {}
    for n, one in found.items():
        ratio = (
            then[n].still.shrink / now[n].still.shrink if now[n].still.shrink else 0.0
        )
        power = math.log(ratio) / math.log(times) if ratio > 0 else math.nan
        if abs(power) < 0.1:
            one.kind = _kinds.UNCOUPLED
        elif abs(power - 1) > 0.1:
            notes[
                f"some shrinks go with the learning rate to the power {power:.2g}"
            ] = 0
    return list(notes)
