# SPDX-License-Identifier: Apache-2.0
"""Newton-Schulz: the nearest matrix with orthonormal rows, roughly, by products alone.

Optax's iteration is private. Its public way in, `scale_by_muon` with `beta=0`, carries
a momentum to throw away, takes the norm in the dtype of the iteration (float16 has no
`eps` of 1e-8), and goes through `vmap`; a test holds this one to it.
"""

import operator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Coefficients: TypeAlias = tuple[tuple[float, float, float], ...]

STEPS = 5
"""How many steps by default: that many say nothing against other coefficients."""


def newton_schulz(
    x: jax.Array, coefficients: Coefficients, eps: jax.typing.ArrayLike, dtype: Any
) -> jax.Array:
    """A batch of matrices with all singular values pushed towards 1.

    Args:
      x: of shape (matrices, A, B); cheapest where A <= B.
      coefficients: `(a, b, c)` of each step `y <- a y + (b s + c s s) y`, `s = y y^T`.
      eps: added to the Frobenius norm that each matrix is divided by at first.
      dtype: of the iteration; None for that of `x`.

    Returns:
      An array of the shape and dtype of `x`. A matrix of zeros stays zeros.
    """
    # Divided by the largest element first: squares of 1e20 are no float32.
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)
    y = x / largest
    norm = jnp.sqrt(jnp.sum(jnp.square(y), axis=(-2, -1), keepdims=True))
    norm = jnp.where(norm > 0, norm, 1)
    y = (y / (norm + eps / largest)).astype(dtype or x.dtype)
    for a, b, c in coefficients:
        s = y @ y.mT
        y = a * y + (b * s + c * (s @ s)) @ y
    return y.astype(x.dtype)


def check_coefficients(ns_coeffs: Any, ns_steps: Any) -> Coefficients:
    """The coefficients of every step: one triple repeated, or one for each step."""
    try:
        found = np.asarray(ns_coeffs, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    shaped = found.ndim in (1, 2) and found.shape[-1] == 3 and found.size > 0
    if not shaped or not np.isfinite(found).all():
        raise ValueError(
            "ns_coeffs takes three numbers such as (3.4445, -4.775, 2.0315), or such a "
            f"triple for each step, got {ns_coeffs!r}"
        )
    if found.ndim == 1:
        found = np.tile(found, (_check_steps(ns_steps), 1))
    elif ns_steps not in (STEPS, len(found)):
        raise ValueError(
            f"ns_coeffs has triples for {len(found)} steps, but ns_steps={ns_steps!r}; "
            "write one triple, or leave ns_steps out"
        )
    rows: Any = found.tolist()
    return tuple((a, b, c) for a, b, c in rows)


def _check_steps(ns_steps: Any) -> int:
    try:
        steps = 0 if isinstance(ns_steps, bool) else operator.index(ns_steps)
    except TypeError:
        steps = 0
    if steps < 1:
        raise ValueError(
            f"ns_steps is a whole number, 1 or more, got {ns_steps!r}; under "
            "optax.inject_hyperparams it is one of static_args"
        )
    return steps
