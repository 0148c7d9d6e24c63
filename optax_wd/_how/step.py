# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of one decayed leaf: precision, factor, gate.

The sum is taken in float32, or in float64 where the leaf is float64, and rounded once
to the dtype of the update. Coordinates that do not decay keep the value of the update.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_wd._amount.masks import Factor
from optax_wd._tree.typing import Direction, Gate


def is_inexact(x: Any) -> bool:
    """Whether `x` is an array of real or complex floating-point numbers."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def decayed(
    update: jax.Array,
    arguments: tuple[jax.Array, ...],
    sign_source: jax.Array,
    scale: tuple[float | jax.Array, Factor],
    direction: Direction,
    gate: Gate | None,
) -> jax.Array:
    """`update + rate * factor * direction(update, *arguments)` where the gate is open.

    Args:
      update: an inexact array.
      arguments: the parameter and, for methods with memory, what is remembered of it;
        all of the shape of `update`.
      sign_source: array of the same shape and the signs of `update`.
      scale: the rate and the factor.
      direction: see `decay_along`.
      gate: see `decay_along`.

    Returns:
      An array of the shape and dtype of `update`.
    """
    if jnp.iscomplexobj(arguments[0]) and not jnp.iscomplexobj(update):
        raise ValueError(
            "got a real update for a complex parameter; make the dtypes agree, or the "
            "decay of the imaginary part would be lost"
        )
    wide = wide_dtype(update.dtype, arguments[0].dtype)
    d = direction(*(jnp.asarray(x, wide) for x in (update, *arguments)))
    _check("direction", d, update.shape)
    amount = _product(*scale, jnp.finfo(wide).dtype)
    terms = jnp.asarray(d, wide), sign_source, amount, scale[1], gate
    if not jnp.iscomplexobj(update):
        return _sum(update, *terms)
    parts = [
        _sum(part(update), part(terms[0]), part(terms[1]), *terms[2:])
        for part in (jnp.real, jnp.imag)
    ]
    return jax.lax.complex(*parts)


def _sum(
    update: jax.Array,
    direction: jax.Array,
    sign_source: jax.Array,
    amount: jax.Array,
    factor: Factor,
    gate: Gate | None,
) -> jax.Array:
    """The sum for real arrays; `direction` and `amount` have the wide dtype."""
    # Closed coordinates add -0.0, which leaves every number as it is. A `where` between
    # two sums would use the update twice and make XLA write it to memory.
    term = amount * direction
    if gate is not None:
        is_open = gate(sign_source, direction)
        _check("gate", is_open, update.shape)
        if is_open.dtype != jnp.bool_:
            raise TypeError(f"the gate returned {is_open.dtype.name}; return bools")
        term = jnp.where(is_open, term, -0.0)
    if not isinstance(factor, float):  # 0 on a part, or at run time: not 0 * inf
        term = jnp.where(jnp.asarray(factor) != 0, term, -0.0)
    return (jnp.asarray(update, term.dtype) + term).astype(update.dtype)


def _product(rate: float | jax.Array, factor: Factor, dtype: Any) -> jax.Array:
    if isinstance(rate, float) and isinstance(factor, float):
        return jnp.asarray(rate * factor, dtype)
    if isinstance(factor, float) and factor == 1.0:
        return jnp.asarray(rate, dtype)
    return jnp.asarray(rate, dtype) * jnp.asarray(factor, dtype)


def wide_dtype(*dtypes: Any) -> Any:
    """float32, or the double or complex dtype that the arrays already have."""
    double = any(jnp.finfo(dtype).bits == 64 for dtype in dtypes)
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        return jnp.complex128 if double else jnp.complex64
    return jnp.float64 if double else jnp.float32


def _check(what: str, result: Any, shape: tuple[int, ...]) -> None:
    if np.shape(result) != shape:
        raise ValueError(
            f"the {what} returned shape {np.shape(result)} for a leaf of shape "
            f"{shape}; return one element for each of the leaf's"
        )
