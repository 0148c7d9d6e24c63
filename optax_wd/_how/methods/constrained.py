# SPDX-License-Identifier: Apache-2.0
"""Constrained weight decay (CPR): as much decay as a bound on the mean square needs."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount, check_number
from optax_wd._how.engine import evolving
from optax_wd._how.leafwise import inner_axes, map_decayed
from optax_wd._how.norms import check_steps, mean_square, per_tensor
from optax_wd._how.step import decayed, is_inexact, wide_dtype
from optax_wd._tree.typing import Mask, Multiplier, PyTree
from optax_wd._where.atoms import everything
from optax_wd._where.rules import Rule, Stacked, check_stacked
from optax_wd._where.standard import standard


class ConstrainedMemory(NamedTuple):
    """Memory of `constrained_weight_decay`; trees like the parameters."""

    constrained_count: jax.Array  # shape=(), dtype=int32: updates so far
    pressure: PyTree  # one number per tensor: the Lagrange multiplier l
    squares: PyTree  # one number per tensor: the mean square that the bound goes by


def constrained_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask = standard,
    *,
    limit: float = 1.0,
    after: int | None = 0,
    stacked: Stacked = None,
    multiplier: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Decay each tensor only as much as a bound on its mean square demands.

    With `y = x - u`, what the step alone would make of the tensor:
    `l <- max(0, l + weight_decay * (mean(y^2) - k))`, then `u <- u + 2 * l * y`. The
    multiplier `l` grows while the mean square is above the bound `k` and falls while it
    is below; at the bound itself it stays. It stands where updates are final, inside
    `after_learning_rate`, and the shrink per step there is `2 * l`. It is not meant to
    be multiplied by a learning rate: elsewhere `y` is not the result of the step. So a
    ready chain takes it inside `after_learning_rate` only, and places it last.

    What it does not do: it does not project. The bound is passed for a while, the
    longer the smaller `weight_decay`, and then held on average. A tensor inside its
    bound does not decay at all. And it does not look ahead: far above the bound `2 * l`
    may come to exceed 1, which turns the signs of all weights and may diverge.

    Args:
      weight_decay: how fast `l` follows, per step, in units of one over a mean square.
        The paper's mu; 1 is its default. A number, a schedule, or a 0-d array.
      mask: as in `masked_decay`.
      limit: the bound `k`, as a multiple of the mean square that the tensor itself has
        after `after` steps; with `after=None` the bound on all mean squares.
      after: steps until the mean square is read, without any decay before; 0 reads it
        at `init`.
      stacked: leaves that hold several tensors along an axis (of `nn.scan`,
        `nnx.vmap`): a rule for axis 0, or pairs `(rule, axis)`.
      multiplier: as in `masked_decay`; the same as factors on mu.

    Returns:
      A transformation with a `DecayState`, whose memory is two numbers per tensor and a
      counter. Updates keep their dtypes.

    Raises:
      TypeError: as `masked_decay`; if an argument is of the wrong kind.
      ValueError: as `masked_decay`; if `limit` or `after` is negative; at update, if
        it gets `sign_of`, which says that it stands before the learning rate.

    Example:
      >>> import optax, optax_wd as wd
      >>> decay = wd.constrained_weight_decay(1.0, after=1000)
      >>> tx = optax.chain(optax.adam(1e-3), wd.after_learning_rate(decay))

    Source: Franke et al., Constrained Parameter Regularization, arXiv:2311.09058, and
    its code with the l2 function, where the bound is an absolute number (`uniform`:
    `limit=k, after=None`), a multiple of the initial mean square (`dependent`:
    `limit=k, after=0`) or the mean square after the update of number s, counted from 0
    (`warm_start`: `after=s + 1`). Its standard deviation and its adaptive bound are not
    here.
    """
    amount = check_amount(weight_decay)
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    check_number("limit", limit, least=0)
    if after is not None:
        check_steps("after", after)
    pairs = check_stacked(stacked)
    method = _Method(mask, multiplier, limit, after, pairs)

    def begin(params: optax.Params) -> PyTree:
        squares = per_tensor(mean_square, pairs, params)
        pressure = jax.tree.map(jnp.zeros_like, squares)
        return ConstrainedMemory(jnp.zeros([], jnp.int32), pressure, squares)

    def apply(rate: Any, updates: Any, params: Any, memory: Any, extra: Any) -> Any:
        if extra.get("sign_of") is not None:  # as a ready chain passes it
            raise ValueError(
                "constrained_weight_decay stands before the learning rate, where "
                "updates are not final; pass the ready chain "
                "after_learning_rate(constrained_weight_decay(...)), which it places "
                "last"
            )
        pressure = method.pressed(rate, updates, params, memory)
        pulled = map_decayed(_pulled, mask, multiplier, params, updates, pressure)
        steps = jnp.asarray(optax.safe_increment(memory.constrained_count))
        squares = method.read(steps, updates, params, memory)
        return pulled, ConstrainedMemory(steps, pressure, squares)

    return evolving(amount, begin, apply)


@dataclasses.dataclass(frozen=True)
class _Method:
    """What is bounded and how, everything but the rate."""

    mask: Mask
    multiplier: Multiplier | None
    limit: float
    after: int | None
    stacked: tuple[tuple[Rule, int], ...]

    def pressed(self, rate: Any, updates: Any, params: Any, memory: Any) -> PyTree:
        """The multipliers after a step that lands on `params - updates`."""

        def one(
            leaf: Any, _: Any, param: Any, pressure: Any, update: Any, kept: Any
        ) -> Any:
            if not is_inexact(update):
                return pressure
            bound = self.limit if self.after is None else self.limit * kept
            excess = self._square(leaf, param, update) - bound
            grown = jnp.maximum(
                0.0, pressure + jnp.asarray(rate, excess.dtype) * excess
            )
            is_free = memory.constrained_count < (self.after or 0)
            return jnp.where(is_free, pressure, grown)

        trees = memory.pressure, updates, memory.squares
        return map_decayed(
            one, self.mask, self.multiplier, params, *trees, stacked=self.stacked
        )

    def read(self, steps: Any, updates: Any, params: Any, memory: Any) -> PyTree:
        """The mean squares that bounds go by, read where `after` steps are done."""
        if not self.after:
            return memory.squares

        def one(leaf: Any, _: Any, param: Any, kept: Any, update: Any) -> Any:
            if not is_inexact(update):
                return kept
            found = self._square(leaf, param, update)
            return jnp.where(steps == self.after, found, kept)

        # Of all tensors, so that the mask may change later; nothing decayed so far.
        return map_decayed(one, everything, None, params, memory.squares, updates)

    def _square(self, leaf: Any, param: Any, update: Any) -> jax.Array:
        wide = wide_dtype(param.dtype)
        landed = jnp.asarray(param, wide) - jnp.asarray(update, wide)
        return mean_square(landed, inner_axes(leaf, self.stacked))


def _pulled(leaf: Any, factor: Any, param: Any, update: Any, pressure: Any) -> Any:
    del leaf

    def inwards(u: jax.Array, x: jax.Array, pressure: jax.Array) -> jax.Array:
        return 2.0 * pressure * (x - u)

    values = param, pressure
    return decayed(update, values, update, (1.0, factor), inwards, None)
