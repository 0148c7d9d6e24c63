# SPDX-License-Identifier: Apache-2.0
"""What a mask asks for: one row per leaf, and warnings about what looks unintended.

This is the intention. What an optimizer really does is measured by `assert_decays`.
"""

import functools
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_amount
from optax_wd._see import warnings as _warnings
from optax_wd._see.report import Description, Range, Row
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, Multiplier, PyTree
from optax_wd._where import modules as _modules
from optax_wd._where.rules import LeafFunction, Rule


def describe(
    mask: Mask,
    params_or_model: PyTree,
    *,
    multiplier: Multiplier | None = None,
    weight_decay: optax.ScalarOrSchedule | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
    at_step: int = 0,
) -> Description:
    """Show which leaves a mask decays, how much, and because of which clause.

    Nothing is allocated and values are not looked at. A name that matches no leaf is a
    warning here, not an error.

    Args:
      mask: a rule, a function from the tree to a tree of bools, or such a tree.
      params_or_model: a tree of parameters, concrete or from `jax.eval_shape`; or an
        NNX or Equinox module, of which rules may ask for owners and metadata, and of
        which shared parameters are shown with all their names.
      multiplier: factors on the rate, as in `masked_decay`, or on the learning rate, as
        in `scale_per_leaf`; of both, their product, `layerwise(rate**2, ...)`.
      weight_decay: a number or a schedule of the step; with it, each leaf's shrink per
        step is shown.
      learning_rate: the same; None for a decay that stands after the learning rate.
      at_step: the step that schedules are asked about, from 0 on.

    Returns:
      A Description: `print` it, or read `rows`, `warnings`, `summary()`, `to_dict()`.

    Raises:
      TypeError: if an argument is of the wrong kind, or there are no arrays in
        `params_or_model`.
      ValueError: if a mask or multiplier does not fit the tree, or a number is negative
        or not finite.

    Example:
      >>> import jax.numpy as jnp, optax_wd as wd
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> print(wd.describe(wd.standard, params).summary())
      decays          1 of 2 tensors  6 of 9 parameters
      does not decay  1 of 2 tensors  3 of 9 parameters
    """
    if isinstance(params_or_model, LeafFunction):
        raise TypeError(
            f"describe got {params_or_model!r} where the parameters belong; the order "
            "of arguments is (mask, params)"
        )
    _masks.check_mask(mask, "first, before the parameters")
    _masks.check_multiplier(multiplier)
    per_step, amount = _per_step(weight_decay, learning_rate, at_step)
    tree, leaves, shared = _facts(params_or_model)
    asked = (
        _modules.tied(mask, params_or_model)
        if shared and isinstance(mask, Rule)
        else mask
    )
    named = _modules.with_names(params_or_model, leaves) if shared else leaves
    if not any(leaf.is_array for leaf in leaves):
        kind = type(params_or_model).__name__
        raise TypeError(
            f"describe found no arrays in the {kind}; pass the tree of parameters, or "
            "jax.eval_shape of what makes it"
        )
    factors = _masks.factors_of(asked, multiplier, tree, leaves, strict=False)
    pairs = [(x, f) for x, f in zip(leaves, factors, strict=True) if x.is_array]
    rows = tuple(_row(leaf, factor, asked, per_step) for leaf, factor in pairs)
    warnings = (
        *_warnings.of_totals(pairs),
        *_warnings.of_shrinks(per_step, rows, at_step),
        *_warnings.of_leaves(pairs),
        *_warnings.of_unsure(asked, pairs),
        *_warnings.of_the_model(mask, asked, leaves),
        *_warnings.of_names(mask, named),
        *_warnings.of_names(multiplier, named),
        *_warnings.of_shared(leaves, shared),
        *_warnings.of_modules(params_or_model),
    )
    return Description(_mask_text(mask), amount, rows, warnings)


def _per_step(
    weight_decay: optax.ScalarOrSchedule | None,
    learning_rate: optax.ScalarOrSchedule | None,
    at_step: int,
) -> tuple[float | None, str]:
    """The shrink per step of a leaf whose factor is 1, and what it is made of."""
    try:
        step = -1 if isinstance(at_step, bool) else operator.index(at_step)
    except TypeError:
        step = -1
    if step < 0:
        raise ValueError(f"at_step is a whole number, 0 or more, got {at_step!r}")
    if weight_decay is None:
        if learning_rate is not None:
            raise ValueError("a shrink needs weight_decay= besides learning_rate=")
        return None, ""
    count = jnp.asarray(step)
    decay = float(check_amount(weight_decay).at(count))
    if learning_rate is None:
        return decay, f"weight_decay {decay:g}, no learning rate, at step {step}"
    rate = float(check_amount(learning_rate, "learning_rate").at(count))
    text = f"learning_rate {rate:g} * weight_decay {decay:g}, at step {step}"
    return rate * decay, text


def _facts(given: PyTree) -> tuple[PyTree, list[Leaf], dict[Any, list[str]]]:
    if _modules.is_linen_module(given):
        raise TypeError(
            f"describe found no arrays in the {type(given).__name__}, a Linen module; "
            "pass the tree of parameters, or for a rule that asks for owners write "
            "describe(mask_of(model, rule, x), params)"
        )
    if _modules.holds_parameters(given):
        return *_modules.contents(given), _modules.shared_names(given)
    return given, _leaves.list_leaves(given), {}


def _row(
    leaf: Leaf, factor: _masks.Factor | None, mask: Mask, per_step: float | None
) -> Row:
    multiplier = shrink = None
    if factor is not None:
        multiplier = _range(factor)
        shrink = None if per_step is None else _range(np.multiply(factor, per_step))
    return Row(
        path=leaf.where,
        shape=leaf.shape,
        dtype=_dtype_name(leaf.dtype),
        size=leaf.size,
        decays=factor is not None,
        multiplier=multiplier,
        shrink=shrink,
        because=_because(leaf, factor, mask),
        unsure=_warnings.is_unsure(leaf, mask),
    )


def _range(values: Any) -> Range:
    if isinstance(values, float):  # leaves are many
        return float(values)
    low, high = float(np.min(values)), float(np.max(values))
    return low if low == high else (low, high)


@functools.cache
def _dtype_name(dtype: Any) -> str:
    return str(dtype)


def _because(leaf: Leaf, factor: _masks.Factor | None, mask: Mask) -> str:
    if not leaf.is_inexact:
        return f"{leaf.dtype} is not inexact"
    if not isinstance(mask, LeafFunction):
        return "a function says so" if _leaves.is_function(mask) else "a tree says so"
    if factor is None and mask.decide(leaf):
        return f"{mask.reason(leaf)}; factor 0"
    return mask.reason(leaf)


def _mask_text(mask: Mask) -> str:
    if isinstance(mask, LeafFunction):
        return repr(mask)
    return repr(mask) if _leaves.is_function(mask) else "a tree of bools"
