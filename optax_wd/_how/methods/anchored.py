# SPDX-License-Identifier: Apache-2.0
"""Anchored weight decay: pull towards the initial values, or others, not to zero."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount
from optax_wd._how.engine import evolving
from optax_wd._how.leafwise import map_decayed
from optax_wd._how.step import decayed, is_inexact
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Gate, Mask, Multiplier, PyTree
from optax_wd._where.rules import LeafFunction
from optax_wd._where.standard import standard


def anchored_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    to: PyTree | None = None,
    gate: Gate | None = None,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull the chosen parameters towards where they started, or to values of yours.

    `u <- u + weight_decay * (x - x0)`, where `x0` is the parameter at `init`, or what
    `to` says. At `x = x0` nothing is done. Between the preconditioner and the learning
    rate, the distance from `x0` shrinks by `lr * weight_decay` per step.

    With `gate=cautious_gate` only the coordinates that the step moves towards `x0` as
    well are pulled: where `u * (x - x0) >= 0`, zeros included.

    What it does not do. It does not keep weights small. `x0` is fixed at `init`: where
    parameters are loaded after it, initialise the optimizer again. A new layer without
    pretrained weights has no natural anchor: exclude it by the mask, and give it a
    decay of its own.

    Args:
      weight_decay: as in `masked_decay`.
      mask: as in `masked_decay`.
      to: None for the parameters at `init`; one number, such as 1 for the scales of
        norms; or a tree of numbers and of arrays of the shapes of the parameters. It is
        read by path, so it may have other containers, lack leaves that do not decay,
        and have more than the parameters. Its arrays keep their sharding.
      gate: as in `decay_along`.
      multiplier: as in `masked_decay`.

    Returns:
      A transformation with a `DecayState` whose memory is one copy of the parameters,
      in their dtypes, whatever `to` and the mask are. Updates keep their dtypes. With a
      gate, its `update` takes `sign_of=`.

    Raises:
      TypeError: as `masked_decay`; if `to` holds anything but numbers and arrays.
      ValueError: as `masked_decay`; if a number in `to` is not finite; at init, if a
        shape in `to` differs; at update, if `to` has no entry for a leaf that decays.

    Example:
      >>> import optax_wd as wd
      >>> to_start = wd.anchored_weight_decay(0.01, ~wd.contains("head"))
      >>> scales_to_one = wd.anchored_weight_decay(0.1, wd.named("scale"), to=1.0)

    Source: Li et al., Explicit Inductive Bias for Transfer Learning, arXiv:1802.01483
    (L2-SP), which adds the pull to the loss: here that is the place before the
    preconditioner. HeavyBall's `weight_decay_to_init` is this at the decoupled place.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    _check_gate(gate)
    given = None if to is None else _checked(to)

    def begin(params: optax.Params) -> PyTree:
        arrays, treedef = jax.tree.flatten(params)
        pairs = zip(_leaves.list_leaves(params), arrays, strict=True)
        return treedef.unflatten([_anchor(leaf, x, given) for leaf, x in pairs])

    def apply(rate: Any, updates: Any, params: Any, memory: Any, extra: Any) -> Any:
        def one(leaf: Leaf, factor: Any, param: Any, update: Any, *rest: Any) -> Any:
            if given is not None and _entry(given, leaf) is None:
                raise ValueError(
                    f"to has no entry for {leaf.where!r}, which decays; add one, or "
                    "exclude the leaf by the mask"
                )
            source = update if _leaves.is_hole(rest[0]) else rest[0]
            terms = source, (rate, factor), _away, gate
            return decayed(update, (param, rest[1]), *terms)

        sign_of = extra.get("sign_of")
        trees = updates, updates if sign_of is None else sign_of, memory
        return map_decayed(one, mask, multiplier, params, *trees), memory

    return evolving(amount, begin, apply)


def _away(update: jax.Array, param: jax.Array, anchor: jax.Array) -> jax.Array:
    """From the anchor to the parameter."""
    del update
    return param - anchor


def _check_gate(gate: Any) -> None:
    if gate is not None and not callable(gate):
        raise TypeError(f"gate takes a function of arrays, got {gate!r}")


def _checked(to: PyTree) -> dict[tuple[str, ...], Any]:
    """What `to` says, by path."""
    if isinstance(to, LeafFunction | str | optax.GradientTransformation):
        raise TypeError(f"to takes a number or a tree of arrays, got {to!r}")
    given = dict(_leaves.leaves_with_paths(to))
    for path, value in given.items():
        where = f" at {'/'.join(path)!r}" if path else ""
        if not hasattr(value, "dtype") and not _leaves.is_number(value):
            raise TypeError(f"to is {value!r}{where}; write a number or an array")
        if not hasattr(value, "dtype") and not np.isfinite(value):
            raise ValueError(f"to is {value!r}{where}; write a finite number")
    return given


def _entry(given: dict[tuple[str, ...], Any], leaf: Leaf) -> Any:
    """The entry of the longest prefix of the leaf's path; None if there is none."""
    return next((given[p] for p in _leaves.prefixes(leaf.path) if p in given), None)


def _anchor(leaf: Leaf, param: Any, given: dict[tuple[str, ...], Any] | None) -> Any:
    """What memory holds of a leaf, in its dtype and never its own buffer."""
    if not is_inexact(param):
        return jnp.zeros([], jnp.float32)  # one structure, and nothing to remember
    value = None if given is None else _entry(given, leaf)
    if value is None:
        return jnp.array(param, copy=True)
    if np.shape(value) == ():
        return jnp.full_like(param, value)
    if np.shape(value) != leaf.shape:
        raise ValueError(
            f"to has shape {np.shape(value)} at {leaf.where!r}, where the parameter "
            f"has {leaf.shape}; give it the parameter's shape, or one number"
        )
    return jnp.array(value, param.dtype, copy=True)
