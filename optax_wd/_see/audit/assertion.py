# SPDX-License-Identifier: Apache-2.0
"""Assert what an optimizer does to the weights, for users' own tests.

The optimizer is run on stand-ins for the parameters, with zero gradients: what moves
then, moves without a gradient. How much and in which way is for `audit` to say.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_wd._see.audit.audit import audit
from optax_wd._see.audit.audited import AuditRow
from optax_wd._see.audit.kinds import KINDS
from optax_wd._see.audit.probes import as_called, with_extra_args
from optax_wd._tree import fold as _fold
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, PyTree

# Parameters are probed away from where they were initialised, and far enough from 0
# that a float16 shrink of 1e-9 a step is still a number.
_START, _HERE = 128.0, 256.0
_MAX_LINES = 20


def assert_decays(
    tx: optax.GradientTransformation,
    params: PyTree,
    mask: Mask,
    *,
    shrink: Any = None,
    kind: str | None = None,
    steps: int = 8,
    extra_args: Mapping[str, Any] | None = None,
) -> None:
    """Assert that an optimizer decays the leaves of a mask, and no others.

    The optimizer is run on stand-ins of the same shapes and dtypes, with zero
    gradients. A leaf decays if its update is not zero and points to smaller weights;
    growth is reported as what it is. The optimizer is run for several steps, so that it
    may begin with a learning rate of 0 or emit every k-th update only
    (`optax.MultiSteps`). What was given is not changed. It takes the memory of one
    step, the state of the optimizer included.

    Zero gradients cannot tell decoupled decay from L2 regularisation, nor plain decay
    from cautious: both move every chosen coordinate. Nor do stand-ins of one size, 256,
    show what smaller weights do: a pull to a norm makes them grow. With `shrink` or
    `kind` the leaves are audited too, which takes longer.

    Args:
      tx: any optimizer.
      params: parameters or a tree of `jax.ShapeDtypeStruct`, in the form in which `tx`
        gets them; or an NNX module, of which `tx` gets what `nnx.Optimizer` gives it.
      mask: the leaves that should decay: a rule, a function, or a tree of bools. Rules
        about owners and metadata go through `mask_of(model, rule)` first.
      shrink: what a step should take away from the leaves that decay, as a fraction,
        within 1 %: a number, or a Table or a tree of numbers.
      kind: the kind that their decay should have, in the words of `audit`: `decoupled`,
        `cautious` and so on.
      steps: how many steps to run at most. More than k for `MultiSteps` of k.
      extra_args: what `tx.update` needs besides, by name, such as `grad`: as in
        `audit`, which gets it too.

    Raises:
      AssertionError: if a leaf differs, with what was expected and what was measured.
      TypeError: if `tx` is no optimizer, `mask` does not give bools, or there are no
        arrays in `params`.
      ValueError: if `steps` is less than 1, or the mask does not fit the parameters.

    Example:
      >>> import jax.numpy as jnp, optax, optax_wd as wd
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> tx = optax.adamw(1e-3, weight_decay=0.1, mask=wd.standard)
      >>> wd.assert_decays(tx, params, wd.standard)
    """
    _check_asked(tx, mask, steps)
    at_init, pure = as_called(params)
    at_update = pure(at_init)
    leaves = _leaves.list_leaves(at_update)
    if not any(leaf.is_array for leaf in leaves):
        kind = type(params).__name__
        raise TypeError(f"found no arrays in the {kind}; pass the tree of parameters")
    expected = _expected(mask, at_update, leaves)
    measured = _measure(tx, at_init, pure, steps, dict(extra_args or {}))
    rows = zip(leaves, expected, measured, strict=True)
    wrong = [_line(*row) for row in rows if row[0].is_inexact and not _agrees(*row[1:])]
    if wrong:
        more = [f"... and {len(wrong) - _MAX_LINES} more"] * (len(wrong) > _MAX_LINES)
        late = "" if any(measured) else "; pass more steps= to what moves later only"
        raise AssertionError(
            f"{len(wrong)} of {len(leaves)} leaves do not decay as the mask says "
            f"(zero gradients, {steps} steps at most{late}):\n  "
            + "\n  ".join(wrong[:_MAX_LINES] + more)
        )
    if shrink is not None or kind is not None:
        _check_wanted(kind, shrink, expected)
        found = audit(tx, params, steps=steps, extra_args=extra_args)
        rows = {row.path: row for row in found.rows}
        pairs = zip(leaves, expected, strict=True)
        chosen = [leaf for leaf, choice in pairs if choice and leaf.is_inexact]
        _assert_rows([rows[leaf.where] for leaf in chosen], chosen, shrink, kind)


def _check_asked(tx: Any, mask: Any, steps: Any) -> None:
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"tx takes an optimizer with init and update, got {tx!r}")
    if mask is None or isinstance(mask, str):
        raise TypeError(f"the mask is {mask!r} as a whole; write a rule or a tree")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps takes a whole number such as 8, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps has to be 1 or more, got {steps}")


def _check_wanted(kind: str | None, shrink: Any, expected: list[bool]) -> None:
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, got {kind!r}")
    if isinstance(shrink, str) or (_leaves.is_number(shrink) and shrink != shrink):
        raise ValueError(f"shrink is a number or a table of numbers, got {shrink!r}")
    if not any(expected):
        raise ValueError("the mask lets nothing decay, so no kind or shrink is checked")


def _assert_rows(
    rows: list[AuditRow], leaves: list[Leaf], shrink: Any, kind: str | None
) -> None:
    """Compare what was measured with what was expected of the leaves that decay."""
    shrinks = [shrink] * len(leaves)
    if shrink is not None and not _leaves.is_number(shrink):
        tree = {
            leaf.where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves
        }
        given = shrink(tree) if _leaves.is_function(shrink) else shrink
        shrinks = _leaves.spread(given, leaves, partial=True, what="shrink")
    wrong = []
    for row, wanted in zip(rows, shrinks, strict=True):
        name = f"{_fold.printable(row.path)} {row.shape}"
        if kind is not None and row.kind != kind:
            wrong.append(f"{name}: expected {kind}, measured {row.kind}")
        if wanted is not None and not _is_near(row.shrink, wanted):
            found = "none that can be told" if row.shrink is None else f"{row.shrink:g}"
            wrong.append(f"{name}: expected shrink {wanted:g}, measured {found}")
    if wrong:
        more = [f"... and {len(wrong) - _MAX_LINES} more"] * (len(wrong) > _MAX_LINES)
        raise AssertionError(
            f"{len(wrong)} findings about {len(rows)} leaves that decay:\n  "
            + "\n  ".join(wrong[:_MAX_LINES] + more)
        )


def _is_near(measured: float | None, wanted: float) -> bool:
    return measured is not None and abs(measured - wanted) <= 0.01 * abs(wanted)


def _agrees(expected: bool, shrink: float) -> bool:
    return shrink > 0.0 if expected else shrink == 0.0


def _line(leaf: Leaf, expected: bool, shrink: float) -> str:
    found = f"shrink {shrink:.3g} per step"
    if math.isnan(shrink):
        found = "an update that is NaN, or shrinks a part and grows another"
    elif shrink <= 0.0:
        found += " (no decay)" if shrink == 0.0 else " (the weights grow)"
    wanted = "decay" if expected else "no decay"
    name = _fold.printable(leaf.where)
    return f"{name} {leaf.shape}: expected {wanted}, measured {found}"


def _expected(mask: Mask, params: PyTree, leaves: list[Leaf]) -> list[bool]:
    given = mask(params) if _leaves.is_function(mask) else mask
    partial = _leaves.has_holes(params)
    answers = _leaves.spread(given, leaves, partial=partial, what="mask")
    for leaf, answer in zip(leaves, answers, strict=True):
        if not isinstance(answer, bool | np.bool_):
            raise TypeError(f"the mask is {answer!r} at {leaf.where!r}; write a bool")
    return [bool(answer) for answer in answers]


def _stand_in(params: PyTree, value: float) -> PyTree:
    """The same tree with `value` in every inexact leaf, the others as they are."""

    def fill(x: Any) -> Any:
        inexact = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
        if isinstance(x, jax.ShapeDtypeStruct):
            filled = value if inexact else 0
            return jnp.full(x.shape, filled, x.dtype, device=x.sharding)
        return jnp.full_like(x, value) if inexact else x

    return jax.tree.map(fill, params)


def _zeros(x: Any) -> Any:
    """The gradient of a leaf; what is no number, such as a random key, has none."""
    is_number = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.number)
    return jnp.zeros_like(x) if is_number else x


def _measure(
    tx: optax.GradientTransformation,
    at_init: PyTree,
    pure: Callable[[PyTree], PyTree],
    steps: int,
    extra_args: dict[str, Any],
) -> list[float]:
    """Per leaf the shrink of the first step that moves it; 0 if none does."""
    params = _stand_in(pure(at_init), _HERE)
    zeros = jax.tree.map(_zeros, params)
    update = with_extra_args(tx)

    @jax.jit
    def step(state: PyTree, zeros: PyTree, params: PyTree) -> tuple[Any, Any]:
        return update(zeros, state, params, **extra_args)

    state = pure(jax.jit(tx.init)(_stand_in(at_init, _START)))
    found = [0.0] * len(jax.tree.leaves(params))
    for _ in range(steps):
        updates, state = step(state, zeros, params)
        shrinks = [_shrink(update) for update in jax.tree.leaves(updates)]
        now = [float(shrink) for shrink in jax.device_get(shrinks)]
        found = [before or after for before, after in zip(found, now, strict=True)]
    return found


@jax.jit  # compiled once for each shape, not once for each leaf
def _shrink(update: Any) -> jax.Array:
    """The mean shrink of a leaf; NaN if a part of it shrinks and another grows."""
    if not jnp.issubdtype(update.dtype, jnp.inexact):
        return jnp.zeros([])
    ratio = -jnp.real(update).astype(jnp.float32) / _HERE
    is_mixed = jnp.any(ratio < 0.0) & jnp.any(ratio > 0.0)
    return jnp.where(is_mixed, jnp.nan, jnp.mean(ratio))
