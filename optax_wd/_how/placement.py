# SPDX-License-Identifier: Apache-2.0
"""Where updates are final, their signs are turned: a decay needs them turned back.

Coupling is a matter of placement, so this is the only wrapper that there is.
"""

from typing import Any

import jax
import optax

from optax_wd._how.step import is_inexact


def after_learning_rate(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Run a decay where updates are final: signs turned, learning rate applied.

    Updates of inexact leaves are negated, `tx` runs, they are negated back; both are
    exact. A decay inside has a shrink per step of `weight_decay` itself, whatever the
    learning rate. Bare, after the learning rate, the same decay would *grow* the
    weights; `optax.add_decayed_weights` and `masked_decay` alike are mended by this
    wrapper. It also gives decay to an optimizer that is already finished.

    Where the learning rate is 0, final updates are 0, so a cautious gate is open on
    every coordinate. Put it inside `optax.MultiSteps` and `optax.apply_if_finite`:
    outside of them it decays on every micro-step and on steps that are thrown away.

    What it cannot see is what follows: a learning rate after it turns the signs once
    more, and the decay grows the weights. What constrains norms, such as `max_norms`,
    works on final updates as they are, and stands last without it.

    Args:
      tx: a decay, or any transformation that works on directions to be subtracted. It
        is passed the extra argument `inside_after_learning_rate`, if it takes any.

    Returns:
      A transformation with the state of `tx`. Leaves that `tx` returns as they came are
      returned as they came.

    Raises:
      TypeError: if `tx` is no transformation.
      ValueError: if it is wrapped in itself, which would turn signs back; at update, if
        it gets `sign_of`, which says that it stands before the learning rate, or if
        what constrains norms stands inside. Each would grow the weights.

    Example:
      >>> import optax, optax_wd as wd
      >>> tx = optax.chain(
      ...     optax.adam(1e-3), wd.after_learning_rate(wd.masked_decay(1e-4))
      ... )
    """
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"after_learning_rate takes a transformation, got {tx!r}; write "
            "after_learning_rate(masked_decay(0.1))"
        )
    if isinstance(tx, AfterLearningRate):
        raise ValueError(_TWICE)
    inner = optax.with_extra_args_support(tx)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        sign_of: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if sign_of is not None:
            raise ValueError(
                "after_learning_rate stands before the learning rate, where it would "
                "grow the weights; pass it to the ready chain as the whole decay, or "
                "take the decay out of it"
            )
        if "inside_after_learning_rate" in extra_args:
            raise ValueError(_TWICE)
        extra_args["inside_after_learning_rate"] = True
        turned = jax.tree.map(_negated, updates)
        results, state = inner.update(turned, state, params, **extra_args)

        def back(result: Any, before: Any, original: Any) -> Any:
            return original if result is before else _negated(result)

        return jax.tree.map(back, results, turned, updates), state

    return AfterLearningRate(inner.init, update)


class AfterLearningRate(optax.GradientTransformationExtraArgs):
    """What `after_learning_rate` returns, so that ready chains can tell its place."""


_TWICE = (
    "after_learning_rate stands inside of another, which turns the signs back, so that "
    "the decay would grow the weights; write it once"
)


def _negated(x: Any) -> Any:
    return -x if is_inexact(x) else x
