# SPDX-License-Identifier: Apache-2.0
"""The engine: subtract a multiple of some direction from the parameters that decay.

Every method that is a direction and at most one gate, both functions of one leaf, is
built on `decay_along`. Masks, schedules, factors per leaf, precision and the structure
of the state are settled here, once. Methods whose memory evolves, or which need global
statistics, are Optax transformations of their own.

Convention: `u` is the direction that will be *subtracted*, `x <- x - lr * (u + decay)`.
The place in the chain says what the decay is multiplied by; `after_learning_rate` is
for the place where the signs are already turned.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import Amount, check_amount
from optax_wd._how.leafwise import map_decayed
from optax_wd._how.step import decayed, is_inexact
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Direction, Gate, Mask, Multiplier, PyTree, Remember
from optax_wd._where.rules import LeafFunction
from optax_wd._where.standard import standard


class DecayState(NamedTuple):
    """State of every decay, of one structure whatever its arguments.

    The names occur nowhere in Optax's states, so `optax.tree.get` finds them.
    """

    decay_count: jax.Array  # shape=(), dtype=int32: updates so far
    decay_rate: jax.Array  # shape=(), dtype=float32: the rate last applied
    memory: PyTree  # a tree like the parameters; () for methods without memory


def masked_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull the chosen parameters towards zero.

    `u <- u + weight_decay * x` on the leaves that the mask chooses; the others are not
    touched. Between the preconditioner and the learning rate this is decoupled decay
    (AdamW), with a shrink per step of `lr * weight_decay`. Before the preconditioner it
    is L2 regularisation. After the learning rate it belongs inside
    `after_learning_rate`, with a shrink per step of `weight_decay` itself; bare, it
    would grow the weights.

    Every step shrinks, the gradient notwithstanding: rows of an embedding that no token
    used, and parameters behind `stop_gradient`, go to zero too. Exclude them by a rule.

    Args:
      weight_decay: dimensionless; multiplied by the learning rate that follows. A
        number, a schedule of the step, or a 0-d array.
      mask: a rule, a function from the tree to a tree of bools, or such a tree (or a
        prefix of it).
      multiplier: a factor on `weight_decay`: a number, a Table, or a tree of numbers or
        of arrays that broadcast against their leaf at equal rank. 0 counts as False.

    Returns:
      A transformation with a `DecayState` and empty memory. Updates keep their dtypes;
      the sum is taken in float32 (float64 for float64 leaves) and rounded once.

    Raises:
      TypeError: if an argument is of the wrong kind; swapped arguments are.
      ValueError: if a constant rate is negative or not finite; at update, if there are
        no `params`, or the mask or multiplier does not fit them.

    Example:
      >>> import optax, optax_wd as wd
      >>> tx = optax.chain(
      ...     optax.scale_by_adam(),
      ...     wd.masked_decay(0.1, wd.named("kernel")),
      ...     optax.scale_by_learning_rate(1e-3),
      ... )

    Source: Loshchilov & Hutter, Decoupled Weight Decay Regularization,
    arXiv:1711.05101. As `optax.add_decayed_weights`, except for the default mask, which
    there is everything, and the dtype of updates under a schedule, which there changes.
    """
    return decay_along(towards_zero, weight_decay, mask, multiplier=multiplier)


def decay_along(
    direction: Direction,
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    gate: Gate | None = None,
    multiplier: Multiplier | None = None,
    remember: Remember | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Subtract a multiple of a direction of your own: every decay is made of this.

    `u <- u + weight_decay * multiplier * direction(u, x)` on the coordinates of the
    chosen leaves where `gate(u, direction)` is true. What is not chosen is not touched:
    no arithmetic is done on it. For the shrink per step see `masked_decay`.

    Args:
      direction: a function `(update, param)`, or `(update, param, memory)` with
        `remember`, from arrays of one leaf, in float32 or wider, to an array of the
        shape of `param`.
      weight_decay: dimensionless; multiplied by the learning rate that follows. A
        number, a schedule of the step, or a 0-d array.
      mask: as in `masked_decay`.
      gate: a function of real arrays `(sign_source, direction)` to a bool array of
        their shape. `sign_source` is the update, or the leaf of the tree `sign_of`
        where the caller of `update` passes one: of the same signs, in parallel to the
        updates. Of complex leaves both parts are gated separately.
      multiplier: as in `masked_decay`.
      remember: a function from one parameter, at `init`, to what `direction` needs of
        it; the identity anchors at the initial value. It is kept for every inexact leaf
        whatever the mask (one copy of the parameters), so that a checkpoint survives a
        change of mask.

    Returns:
      A transformation with a `DecayState`. Updates keep their dtypes.

    Raises:
      TypeError: if an argument is of the wrong kind; at update, if `gate` does not
        return bools.
      ValueError: as `masked_decay`; at update also if `direction` or `gate` return
        another shape than that of the leaf.

    Example:
      >>> import jax.numpy as jnp, optax_wd as wd
      >>> l1_decay = wd.decay_along(lambda u, p: jnp.sign(p), 1e-4)
    """
    _check_functions(direction, gate, remember)
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    method = _Method(direction, gate, mask, multiplier)

    def begin(params: optax.Params) -> PyTree:
        return () if remember is None else jax.tree.map(_kept(remember), params)

    def apply(rate: Any, updates: Any, params: Any, memory: Any, extra: Any) -> Any:
        kept = None if remember is None else memory
        return method.apply(updates, params, rate, extra.get("sign_of"), kept), memory

    return evolving(amount, begin, apply)


def evolving(
    amount: Amount,
    begin: Callable[[optax.Params], PyTree],
    apply: Callable[[Any, PyTree, PyTree, PyTree, dict[str, Any]], tuple[Any, Any]],
) -> optax.GradientTransformationExtraArgs:
    """The transformation around a method: counter, rate, memory, `params` required.

    Args:
      amount: the weight decay; the constant 0 leaves updates and memory alone.
      begin: from the parameters to the memory, at `init`.
      apply: from the rate, updates, parameters, memory and the extra arguments of
        `update` to updates and memory.

    Returns:
      A transformation with a `DecayState`.
    """

    def init(params: optax.Params) -> Any:
        count = jnp.zeros([], jnp.int32)
        rate = jnp.asarray(amount.at(count), jnp.float32)
        return DecayState(count, rate, begin(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        params = _required(params)
        rate, memory = amount.at(state.decay_count), state.memory
        if not amount.is_zero:
            updates, memory = apply(rate, updates, params, memory, extra_args)
        count = jnp.asarray(optax.safe_increment(state.decay_count))
        return updates, DecayState(count, jnp.asarray(rate, jnp.float32), memory)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_functions(direction: Any, gate: Any, remember: Any) -> None:
    if not callable(direction) or isinstance(direction, LeafFunction):
        raise TypeError(
            f"direction takes a function (update, param), got {direction!r}; the order "
            "of arguments is (direction, weight_decay, mask)"
        )
    for name, given in (("gate", gate), ("remember", remember)):
        if given is not None and not callable(given):
            raise TypeError(f"{name} takes a function of arrays, got {given!r}")


def _required(params: optax.Params | None) -> optax.Params:
    if params is None:
        raise ValueError(
            "weight decay needs the parameters, got params=None; call "
            "tx.update(grads, state, params)"
        )
    return params


def towards_zero(update: jax.Array, param: jax.Array) -> jax.Array:
    """The direction of plain decay: the parameter itself."""
    del update
    return param


def _kept(remember: Remember) -> Callable[[Any], Any]:
    """What memory holds of a leaf: never its own buffer, which may be donated."""

    def keep(param: Any) -> jax.Array:
        if not is_inexact(param):
            return jnp.zeros([], jnp.float32)  # one structure, and nothing to remember
        return jnp.array(remember(param), copy=True)

    return keep


@dataclasses.dataclass(frozen=True)
class _Method:
    """What decays and how, everything but the rate."""

    direction: Direction
    gate: Gate | None
    mask: Mask
    multiplier: Multiplier | None

    def apply(
        self,
        updates: optax.Updates,
        params: optax.Params,
        rate: float | jax.Array,
        sign_of: optax.Updates | None,
        memory: PyTree | None,
    ) -> optax.Updates:
        """Decay the leaves that have a factor and an update; pass on the others."""

        def one(
            leaf: Leaf,
            factor: _masks.Factor,
            param: jax.Array,
            update: jax.Array,
            sign: Any,
            *memory: jax.Array,
        ) -> jax.Array:
            del leaf
            source = update if _leaves.is_hole(sign) else sign
            arguments = param, *memory
            return decayed(
                update, arguments, source, (rate, factor), self.direction, self.gate
            )

        trees = [updates, updates if sign_of is None else sign_of]
        trees += [] if memory is None else [memory]
        return map_decayed(one, self.mask, self.multiplier, params, *trees)
