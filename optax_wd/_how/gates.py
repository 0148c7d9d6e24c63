# SPDX-License-Identifier: Apache-2.0
"""Gates say on which coordinates of a leaf the decay acts.

A gate is a function `gate(sign_source, direction)` of two real arrays of one shape. It
may use the first for its sign only: magnitudes differ between the places in a chain.
"""

import jax
import jax.numpy as jnp
import numpy as np


def cautious_gate(sign_source: jax.Array, direction: jax.Array) -> jax.Array:
    """Open where the step and the decay agree in sign, or where either is zero.

    The product of the two is not formed: it underflows (1e-4 * -1e-4 is -0.0 in
    float16), and XLA on CPU counts subnormal numbers as zero. The sign bits are
    compared instead, so that zeros, subnormals and infinities all count for what they
    are.

    Args:
      sign_source: real array; what will be subtracted, or anything of the same signs.
      direction: real array of the same shape; what the decay subtracts.

    Returns:
      Bool array of the same shape; False where either is NaN.
    """
    (negative_s, zero_s, nan_s), (negative_d, zero_d, nan_d) = (
        _sign_bits(sign_source),
        _sign_bits(direction),
    )
    return ((negative_s == negative_d) | zero_s | zero_d) & ~(nan_s | nan_d)


def _sign_bits(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether each element is negative, is zero, is NaN, by its bits alone."""
    if x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64):
        x = x.astype(jnp.float32)  # exact: all others are narrower
    info = jnp.finfo(x.dtype)
    integer = np.dtype(f"int{info.bits}")
    infinity = (2**info.nexp - 1) << info.nmant
    bits = jax.lax.bitcast_convert_type(x, integer)
    magnitude = bits & np.asarray(np.iinfo(integer).max, integer)
    return bits < 0, magnitude == 0, magnitude > np.asarray(infinity, integer)
