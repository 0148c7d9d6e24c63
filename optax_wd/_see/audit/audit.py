# SPDX-License-Identifier: Apache-2.0
"""Measure what an optimizer does to the weights, by probing it.

Nothing here knows how a decay is made: only `init` and `update` are called, on
stand-ins for the parameters. Each leaf is then named by what it did.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

from optax_wd._see.audit import kinds as _kinds
from optax_wd._see.audit import measure as _measure
from optax_wd._see.audit import probes as _probes
from optax_wd._see.audit.audited import Audit, AuditRow
from optax_wd._see.audit.measure import Found
from optax_wd._see.audit.probes import Prober
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Path, PyTree


def audit(
    tx: optax.GradientTransformation,
    params: PyTree,
    *,
    at_step: int | None = None,
    state: optax.OptState | None = None,
    steps: int = 8,
    extra_args: Mapping[str, Any] | None = None,
) -> Audit:
    """Measure which leaves an optimizer shrinks, by how much, and towards what.

    The optimizer is initialised at one point and asked at others, on stand-ins of the
    shapes, dtypes and shardings of the parameters: without a gradient, and with two
    opposite gradients after an earlier one. Nothing that was given is changed.

    * `none`: updates do not depend on the parameters, or on their norm only, as those
      of LAMB and Adafactor without decay do.
    * `decoupled`: every coordinate loses the same fraction of its distance from the
      target, whatever the gradient.
    * `without learning rate`: the same, and the fraction stays as it is when the
      learning rate changes.
    * `coupled L2`: a multiple of the parameters acts, on updates and on the state, just
      as if it were a part of the gradient. Its shrink depends on that and is None.
    * `cautious`: coordinates lose that fraction just where the step shrinks them.
    * `growing`: as decoupled, cautious or coupled, but away from the target.
    * `norm-constrained`: the norm of the leaf is the same after every step.
    * `unknown`: anything else, also what only takes steps back that lead beyond the
      initial value, and what bounds norms or pulls them to a size other than zero.
      `shrink` is then a least-squares fit, or None where that is no fraction, or not
      the same for small weights.

    What cannot be told. L2 regularisation in plain SGD is decoupled decay. Whether a
    decay is multiplied by the learning rate shows only if that changes: in a schedule,
    or as a hyper-parameter of `optax.inject_hyperparams`; else it is called decoupled.
    A gate on the raw gradient of a scalar looks cautious. Methods that act now and
    then, or only on other sizes of weights than those of the stand-ins (40 to 300), may
    look like none; beside a decay that is told, what acts on some steps only is not
    looked for. What decays weights up to 300 alike, and also those of 0.001, is called
    after that: `huber_weight_decay(threshold=1e4)` is decoupled. A norm that is pinned
    is unknown where a step turns the leaf by less than 0.05. Optimizers that keep a
    moving copy of the weights, such as schedule-free ones, are initialised where they
    are asked; there no decay, or a shrink below the roundoff of the weights, is
    unknown.

    It compiles the optimizer twice, and its derivative once if there is L2 to tell, and
    holds some thirty times the parameters. For large models pass shapes instead,
    `jax.eval_shape` or `nnx.eval_shape`: abstract arrays have stand-ins of at most 8 in
    each axis, if the optimizer takes them, which a note says.

    Args:
      tx: any optimizer.
      params: parameters or a tree of `jax.ShapeDtypeStruct`, in the form in which `tx`
        gets them; or an NNX module, of which `tx` gets what `nnx.Optimizer` gives it.
      at_step: the step at which counters stand, for schedules; by default the first
        in which gradients move anything. Weights and norms that a state remembers are
        those of `init` all the same.
      state: a state of `tx` whose scalars, such as counters and hyper-parameters, are
        used. Its arrays are not.
      steps: how many updates to wait for one that is not withheld, as `MultiSteps`
        does, or zero, as at the start of a warm-up.
      extra_args: what `tx.update` needs besides, by name.

    Returns:
      An Audit: `print` it, or read `rows`, `summary()`, `to_dict()`.

    Raises:
      TypeError: if `tx` is no optimizer, or there are no arrays in `params`.
      ValueError: if `at_step` or `steps` is out of range, or `state` is no state of
        `tx`. What the optimizer itself raises stands.

    Example:
      >>> import jax.numpy as jnp, optax, optax_wd as wd
      >>> params = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
      >>> tx = optax.adamw(1e-3, weight_decay=0.1, mask=wd.standard)
      >>> print(wd.audit(tx, params).table())
      leaf          shape   parameters  kind       shrink  target  open
      dense/bias    (3,)             3  none       0       -       0.00
      dense/kernel  (4, 3)          12  decoupled  0.0001  zero    1.00
    """
    _check(tx, steps, at_step)
    asked, is_smaller = _probes.probe(
        tx,
        params,
        steps=steps,
        extra_args=dict(extra_args or {}),
        scalars=lambda fresh: _probes.with_values(
            fresh, _scalars(fresh, at_step, state)
        ),
    )
    whole = _leaves.list_leaves(_probes.as_called(params)[0])
    rows, notes = _rows(asked, whole)
    if is_smaller:
        notes.insert(
            0,
            "measured on stand-ins of at most 8 in each axis; what looks at sizes, as "
            "some masks do, answers for these",
        )
    if at_step is not None and not list(_probes.counters(asked.fresh)):
        notes.append("no counter of steps was found, so at_step= changes nothing")
    if asked.emits > 1:
        notes.append(f"measured at update {asked.emits}, the first that is not zero")
    return Audit(tuple(rows), tuple(notes))


def _check(tx: Any, steps: int, at_step: int | None) -> None:
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        kind = type(tx).__name__
        raise TypeError(
            f"tx takes an optimizer with init and update, got a {kind}; the order of "
            "arguments is (tx, params)"
        )
    if not _is_whole(steps) or steps < 1:
        raise ValueError(f"steps is a whole number, 1 or more, got {steps!r}")
    if at_step is not None and (not _is_whole(at_step) or at_step < 0):
        raise ValueError(f"at_step is a whole number, 0 or more, got {at_step!r}")
    if at_step is not None and at_step >= 2**31:
        raise ValueError(f"at_step is less than 2**31, got {at_step!r}")


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _scalars(
    fresh: PyTree, at_step: int | None, state: optax.OptState | None
) -> dict[Path, Any]:
    """The values that scalars of a fresh state are given."""
    values: dict[Path, Any] = {}
    if state is not None:
        own = {path for path, _ in _leaves.leaves_with_paths(fresh)}
        given = dict(_leaves.leaves_with_paths(state))
        if own != set(given):
            raise ValueError(
                "state is no state of tx: their leaves differ; pass what tx.init made, "
                "or the updates after it"
            )
        values.update((p, v) for p, v in given.items() if np.shape(v) == ())
    if at_step is not None:
        values.update((path, at_step) for path in _probes.counters(fresh))
    return values


def _rows(asked: Prober, whole: list[Leaf]) -> tuple[list[AuditRow], list[str]]:
    """A row for each leaf of an inexact dtype, and notes."""
    leaves = _leaves.list_leaves(asked.params)
    if not any(leaf.is_inexact for leaf in leaves):
        raise TypeError("found no arrays of floats; pass the tree of parameters")
    notes = []
    if asked.emits == 0:
        notes.append("no update was other than zero; pass more steps=, or at_step=")
        found = {}
    else:
        found = _measure.measured(asked, leaves)
        notes += _measure.further(asked, leaves, found)
    rows = []
    for n, leaf in enumerate(whole):
        if leaf.is_inexact:
            rows.append(_row(leaf, found.get(n)))
    return rows, notes


def _row(leaf: Leaf, found: Found | None) -> AuditRow:
    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    facts = (leaf.where, leaf.shape, str(leaf.dtype), leaf.size)
    if found is None:
        return AuditRow(*facts, _kinds.UNKNOWN, None, None, None)
    is_none = found.kind == _kinds.NONE
    if found.kind == _kinds.UNKNOWN and abs(found.shrink) > 1.0:  # no fraction
        found.shrink = math.nan
    target = None if is_none else found.target
    return AuditRow(*facts, found.kind, known(found.shrink), target, known(found.open))
