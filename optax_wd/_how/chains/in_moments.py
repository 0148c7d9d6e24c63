# SPDX-License-Identifier: Apache-2.0
"""Ready chains of optimizers that have a decay of their own in their midst.

`novograd` has it inside the momentum, `fadam` in the metric of its natural gradient.
Both take any other decay as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_wd._amount.amounts import check_positive
from optax_wd._how.chains.optimizers import final_direction, ready_chain
from optax_wd._how.chains.ready import takes_decay
from optax_wd._how.leafwise import inner_axes, map_decayed, norm
from optax_wd._how.methods.natural import clipped_natural
from optax_wd._how.placement import AfterLearningRate
from optax_wd._how.step import is_inexact, wide_dtype
from optax_wd._tree.leaves import Leaf, bare
from optax_wd._tree.typing import PyTree
from optax_wd._where.atoms import everything
from optax_wd._where.rules import Rule, Stacked, check_stacked


@takes_decay
def novograd(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.GradientTransformation,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.25,
    eps: jax.typing.ArrayLike = 1e-6,
    eps_root: jax.typing.ArrayLike = 0.0,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    """NovoGrad with a decay of your choice, which goes through the momentum.

    `m <- b1 * m + g / (sqrt(v) + eps) + decay`, `x <- x - lr * m`, where `v` is one
    number for each tensor, a running mean of the squared norm of its gradient. The
    decay is in the moment, behind the preconditioner: with a shrink per step of
    `lr * weight_decay / (1 - b1)` in the end. Gates read the signs of the gradient.

    Args:
      learning_rate: as in `adamw`.
      decay: as in `adamw`; what is made by `after_learning_rate` is placed last.
      b1: decay rate of the momentum, in [0, 1).
      b2: decay rate of the squared norm, in [0, 1).
      eps: added to the root of the squared norm.
      eps_root: added to the squared norm inside the root.
      stacked: which leaves are several tensors along an axis, as in
        `natural_weight_decay`.

    Returns:
      A transformation with a copy of the parameters, the momentum, and one number for
      each tensor.

    Raises:
      TypeError: as `adamw`, and if `stacked` is no rule.
      ValueError: as `adamw`.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.novograd(1e-3, wd.masked_decay(1e-3))

    Source: Ginsburg et al., arXiv:1905.11286, Algorithm 1; defaults and arithmetic of
    `optax.novograd`, whose decay has no mask and no schedule.
    """
    scale = _scale_by_norm(b2, eps, eps_root, check_stacked(stacked))

    def steps(inner: optax.GradientTransformation) -> optax.GradientTransformation:
        trace = optax.masked(
            optax.trace(b1), lambda tree: jax.tree.map(is_inexact, tree)
        )
        return optax.chain(scale, inner, trace)

    return _with_decay_inside(steps, decay, learning_rate)


@takes_decay
def fadam(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.GradientTransformation,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: float = 1e-8,
    mu_dtype: jax.typing.DTypeLike | None = None,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    """Fisher Adam: momentum of the natural gradient, for a natural decay.

    `f <- b * f + (1 - b) * g**2` with `b = b2 * (1 - b2**(t-1)) / (1 - b2**t)` at step
    `t` of `1..`, a mean without bias; `n = g / (sqrt(f) + eps)`, divided by its RMS
    over the tensor where that is above 1; `m <- b1 * m + (1 - b1) * n`, and
    `x <- x - lr * (m + decay)`. The momentum starts at 0 and is not corrected for it.

    Args:
      learning_rate: as in `adamw`.
      decay: as in `adamw`. FAdam's own is `natural_weight_decay`, which is handed `f`
        here unless it stands inside `after_learning_rate`; give it the same `eps` and
        `stacked`.
      b1: decay rate of the momentum, in [0, 1).
      b2: decay rate of the squared gradients, in [0, 1).
      eps: added to the root of `f`, more than 0.
      mu_dtype: dtype of the momentum; by default that of the parameters.
      stacked: which leaves are several tensors along an axis, as in
        `natural_weight_decay`.

    Returns:
      A transformation whose state holds `optax.ScaleByAdamState`, two copies of the
      parameters, with `f` under the name `nu`, in float32 or wider: in bfloat16 it
      would stand still once gradients fall.

    Raises:
      TypeError: as `adamw`, and if `eps` is no number, or `stacked` no rule.
      ValueError: if `eps` is not above 0, and as `adamw`.

    Example:
      >>> import optax_wd as wd
      >>> tx = wd.fadam(1e-3, wd.natural_weight_decay(0.1))

    Source: Hwang, FAdam, arXiv:2405.12807, Algorithm 1, with its exponent 1/2 and
    clipping threshold 1, and without its adaptive epsilon: here `eps` is constant.
    """
    check_positive("eps", eps)
    axes_of = check_stacked(stacked)

    def moments(updates: PyTree, state: Any) -> optax.ScaleByAdamState:
        count = jnp.asarray(optax.safe_increment(state.count))
        b = b2 * (1.0 - b2 ** (count - 1)) / (1.0 - b2**count)

        def fisher(leaf: Leaf, factor: Any, g: Any, f: Any) -> jax.Array:
            del leaf, factor
            wide = jnp.square(jnp.abs(g.astype(wide_dtype(g.dtype))))
            return (b * f + (1.0 - b) * wide).astype(f.dtype)

        def momentum(leaf: Leaf, factor: Any, g: Any, m: Any, f: Any) -> jax.Array:
            del factor
            wide, axes = g.astype(wide_dtype(g.dtype)), inner_axes(leaf, axes_of)
            natural = clipped_natural(wide, f, eps, axes)
            return (b1 * m + (1.0 - b1) * natural).astype(m.dtype)

        nu = map_decayed(fisher, everything, None, updates, state.nu)
        trees = state.mu, nu
        mu = map_decayed(momentum, everything, None, updates, *trees, stacked=axes_of)
        return optax.ScaleByAdamState(count, mu, nu)

    def steps(inner: optax.GradientTransformation) -> optax.GradientTransformation:
        return _by_moments(moments, inner, mu_dtype)

    return _with_decay_inside(steps, decay, learning_rate)


def _with_decay_inside(
    steps: Callable[[optax.GradientTransformation], optax.GradientTransformation],
    decay: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """The chain of `steps(decay)` and the learning rate; what belongs last is last."""
    inside = isinstance(decay, optax.GradientTransformation)
    if inside and not isinstance(decay, AfterLearningRate):
        return ready_chain(
            optax.identity(), steps(decay), learning_rate, final_direction
        )
    return ready_chain(steps(optax.identity()), decay, learning_rate, final_direction)


class NormState(NamedTuple):
    """State of the preconditioner of NovoGrad."""

    norm_count: jax.Array  # shape=(), dtype=int32: updates so far
    squared_norm: PyTree  # bare: for each tensor one number, with all axes of the leaf


def _scale_by_norm(
    b2: Any, eps: Any, eps_root: Any, axes_of: tuple[tuple[Rule, int], ...]
) -> optax.GradientTransformation:
    """Each tensor by the root of a running mean of its squared norm."""

    def squares(leaf: Leaf, factor: Any, g: Any, kept: Any) -> jax.Array:
        del factor, kept
        return norm(g.astype(wide_dtype(g.dtype)), inner_axes(leaf, axes_of)) ** 2

    def init(params: optax.Params) -> Any:
        zeros = map_decayed(squares, everything, None, params, bare(params))
        zeros = jax.tree.map(_zero, bare(params), zeros)
        return NormState(jnp.zeros([], jnp.int32), zeros)

    def update(updates: optax.Updates, state: Any, params: Any = None) -> Any:
        del params
        old = state.squared_norm
        now = map_decayed(squares, everything, None, updates, old, stacked=axes_of)
        kept = jnp.where(state.norm_count == 0, 0.0, b2)  # the first is taken as it is
        v = jax.tree.map(
            lambda g, old, new: (
                kept * old + (1.0 - kept) * new if is_inexact(g) else old
            ),
            *(bare(updates), old, now),
        )

        def scaled(leaf: Leaf, factor: Any, g: Any, _: Any, v: Any) -> Any:
            del leaf, factor
            return (g / (jnp.sqrt(v + eps_root) + eps)).astype(g.dtype)

        updates = map_decayed(scaled, everything, None, updates, updates, v)
        count = jnp.asarray(optax.safe_increment(state.norm_count))
        return updates, NormState(count, v)

    return optax.GradientTransformation(init, update)


def _zero(param: Any, norms: Any) -> jax.Array:
    """Where a running mean starts; one number for what has no norm."""
    return jnp.zeros_like(norms) if is_inexact(param) else jnp.zeros([], jnp.float32)


def _wide_zeros(param: Any) -> jax.Array:
    """Zeros like a leaf, in a dtype that a mean of many squares can move in."""
    wide = wide_dtype(param.dtype) if is_inexact(param) else None
    return jnp.zeros_like(param, dtype=wide)


def _by_moments(
    moments: Callable[[PyTree, Any], optax.ScaleByAdamState],
    decay: optax.GradientTransformation,
    mu_dtype: jax.typing.DTypeLike | None,
) -> optax.GradientTransformationExtraArgs:
    """The momentum, and the decay, which is handed the second moment as `fisher`."""
    inner = optax.with_extra_args_support(decay)

    def init(params: optax.Params) -> Any:
        mu = optax.tree.zeros_like(params, mu_dtype)
        nu = jax.tree.map(_wide_zeros, params)
        adam = optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu)
        return adam, inner.init(params)

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        adam = moments(updates, state[0])
        direction = jax.tree.map(
            lambda m, g: m.astype(g.dtype) if is_inexact(g) else g, adam.mu, updates
        )
        extra_args |= {"sign_of": direction, "fisher": adam.nu}
        total, decayed = inner.update(direction, state[1], params, **extra_args)
        return total, (adam, decayed)

    return optax.GradientTransformationExtraArgs(init, update)
