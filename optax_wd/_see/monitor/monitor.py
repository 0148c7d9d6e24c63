# SPDX-License-Identifier: Apache-2.0
"""Watch what an optimizer does to the weights while it trains.

A wrapper around the whole optimizer sees parameters and final updates. Every k steps it
runs the optimizer twice more, with the parameters and with zeros in their place, and
reduces both updates to scalars. It knows nothing of how a decay is made: decay is what
the update owes to the parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_wd._see.monitor.metrics import (
    ALL,
    Metrics,
    is_inexact,
    measure,
    unmeasured,
    zeros,
)
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.typing import PyTree


class MetricsState(NamedTuple):
    """State of `with_metrics`: scalars, and the state of the optimizer."""

    metrics_count: jax.Array  # shape=(), dtype=int32: updates so far
    metrics: dict[str, Metrics]  # by group
    inner: optax.OptState


def with_metrics(
    tx: optax.GradientTransformation,
    *,
    groups: Callable[[PyTree], PyTree] | PyTree | None = None,
    every: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Measure a whole optimizer every few steps, and leave its updates as they are.

    Wrap the finished optimizer, learning rate included; read with `metrics`. What is
    measured is a handful of scalars per group, see below. They stay on the device.

    Decay is measured as a difference: the update less the update that the same gradient
    and state give where all parameters are 0. That is right for every decay towards 0
    (plain, cautious, L1, behind the learning rate), and exact up to the rounding of the
    update: too coarse for bfloat16 updates, and coordinates whose decay is below the
    last two bits of the update count as closed. L2 regularisation shows with what the
    preconditioner makes of it in that step; what it left in the moments does not. It is
    wrong where 0 is not the target (anchored decay), and where the update depends on
    the parameters otherwise: LAMB, LARS, Adafactor with scaling by parameters,
    schedule-free methods. All but `shrink`, `open_fraction`, `decay_over_update` and
    `changed_open` holds there too.

    A step that measures costs several others, and temporaries of about one copy of the
    parameters; the rest cost nothing. Call it under `jax.jit`:
    outside, each step compiles the measurement. Under `jax.vmap` every step measures.
    Inside `optax.MultiSteps` a step is a real one; around it, let `every` be a multiple
    of its k, so that the steps that are measured are the ones that move.

    Args:
      tx: any optimizer; its extra arguments are passed on.
      groups: labels of the leaves: a table of strings such as
        `first_match((contains("embed"), "embed"), default="rest")`, a function from the
        parameters to a tree of strings, or such a tree (or a prefix of it). By default
        the first token of each path. The group "all" is always there. Leaves that are
        not of an inexact dtype belong to none.
      every: how many updates apart to measure; the first time is update number `every`.

    Returns:
      A transformation with a `MetricsState`, whose updates are exactly those of `tx`;
      under `jax.jit` up to the last bit, which depends on how XLA fuses a program.
      Real and imaginary parts count as two coordinates. Sums are taken in float32
      (float64 for float64 leaves). `changed` supposes `optax.apply_updates`.

    Raises:
      TypeError: if `tx` is no optimizer or `every` no whole number; at init, if
        `groups` gives anything but strings.
      ValueError: if `every` is less than 1; at init, if a label is "all" or the labels
        do not fit the parameters; at update, if there are no `params`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_wd as wd
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> decay = wd.masked_decay(0.5, wd.named("kernel"))
      >>> tx = wd.with_metrics(wd.sgdw(0.5, decay), every=1)
      >>> _, state = jax.jit(tx.update)(params, tx.init(params), params)
      >>> found = wd.metrics(state)["dense"]
      >>> round(found["shrink"], 4), round(found["open_fraction"], 4)
      (0.1667, 0.6667)
    """
    _check(tx, every)
    inner = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> Any:
        count = jnp.zeros([], jnp.int32)
        return MetricsState(
            count, unmeasured(_labels(groups, params)), inner.init(params)
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        labels = _labels(groups, _required(params))
        count = jnp.asarray(optax.safe_increment(state.metrics_count))

        def measured() -> dict[str, Metrics]:
            here, at_zero = (
                inner.update(updates, state.inner, p, **extra_args)[0]
                for p in (params, zeros(params))
            )
            return measure(count, labels, params, here, at_zero)

        found = state.metrics
        if any(labels):
            found = jax.lax.cond(count % every == 0, measured, lambda: state.metrics)
            updates = _after(found, updates)
        results, new_inner = inner.update(updates, state.inner, params, **extra_args)
        return results, MetricsState(count, found, new_inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _required(params: optax.Params | None) -> optax.Params:
    if params is None:
        raise ValueError(
            "with_metrics needs the parameters, got params=None; call "
            "tx.update(grads, state, params)"
        )
    return params


def _check(tx: Any, every: Any) -> None:
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"tx takes an optimizer with init and update, got {tx!r}")
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every takes a whole number such as 100, got {every!r}")
    if every < 1:
        raise ValueError(f"every has to be 1 or more, got {every}")


def metrics(opt_state: optax.OptState) -> dict[str, dict[str, float]]:
    """What `with_metrics` measured last, in one transfer from the device.

    Args:
      opt_state: a state with that of `with_metrics` anywhere in it: of a chain, of
        `nnx.Optimizer`, a TrainState, a restored checkpoint.

    Returns:
      For each group the fields of `Metrics` as Python numbers.

    Raises:
      ValueError: if there is no such state in it, or more than one.

    Example:
      >>> import jax.numpy as jnp, optax, optax_wd as wd
      >>> tx = wd.with_metrics(optax.adamw(1e-3))
      >>> wd.metrics(tx.init({"kernel": jnp.ones((2, 3))}))["all"]["shrink"]
      nan
    """
    # By path, because not every container keeps the types of named tuples.
    found: dict[tuple[str, ...], dict[tuple[str, str], Any]] = {}
    pairs = _leaves.leaves_with_paths(opt_state)
    counters = {path[:-1] for path, _ in pairs if path[-1:] == ("metrics_count",)}
    for path, value in pairs:
        if path and path[-1] in Metrics._fields and "metrics" in path:
            if path[: path.index("metrics")] not in counters:
                continue  # parameters of that name
            n = path.index("metrics")
            group = "/".join(path[n + 1 : -1])
            found.setdefault(path[:n], {})[group, path[-1]] = value
    if len(found) != 1:
        raise ValueError(
            f"the state holds {len(found)} states of with_metrics, not one; wrap the "
            "whole optimizer once: with_metrics(tx)"
        )
    (values,) = jax.device_get(list(found.values()))
    groups = dict.fromkeys(group for group, _ in values)
    return {
        group: {name: values[group, name].tolist() for name in Metrics._fields}
        for group in groups
    }


def _labels(groups: Any, params: PyTree) -> list[str | None]:
    """The group of each leaf; None for leaves that are not measured."""
    leaves = _leaves.list_leaves(params)
    if groups is None:
        given = [leaf.path[0] if leaf.path else "array" for leaf in leaves]
    else:
        tree = groups(params) if _leaves.is_function(groups) else groups
        partial = _leaves.has_holes(params)
        given = _leaves.spread(tree, leaves, partial=partial, what="groups")
    for leaf, label in zip(leaves, given, strict=True):
        if not isinstance(label, str):
            raise TypeError(
                f"groups gives {label!r} at {leaf.where!r}, where a label belongs; "
                "write first_match((rule, 'label'), default='rest')"
            )
        if label == ALL:
            raise ValueError(
                f"groups gives {ALL!r} at {leaf.where!r}, which is the group of all "
                "parameters; choose another label"
            )
    pairs = zip(leaves, given, strict=True)
    return [label if leaf.is_inexact else None for leaf, label in pairs]


def _after(found: dict[str, Metrics], updates: optax.Updates) -> optax.Updates:
    """The updates as they are, but not to be used before `found` is known."""
    # The measurement reads the old state of the optimizer. Where nothing orders it
    # before the step, XLA cannot write the new state in place and copies parameters and
    # moments on every step, also those that measure nothing: 4 to 8 times the time of
    # AdamW on CPU. Barriers do not help, they are gone before copies are placed; nor
    # does a step inside both branches, which writes the updates to memory. So the
    # gradients are made to depend on a condition that XLA cannot know to be false.
    never = found[ALL].measured_step < 0

    def wait(u: Any) -> Any:
        return jnp.where(never, jnp.zeros_like(u), u) if is_inexact(u) else u

    return jax.tree.map(wait, updates)
