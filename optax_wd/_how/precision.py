# SPDX-License-Identifier: Apache-2.0
"""Updates that do not get lost in bfloat16 or float16: stochastic rounding.

Near 1, bfloat16 has a number every 0.4 to 0.8 %. A decay takes away far less in a step,
and rounding to the nearest number puts it back, every time. Rounded up or down at
random, with chances that make the mean right, it arrives on average. This is the last
line of a training step, not a transformation: a transformation returns updates, and
never sees what they are added to and rounded to.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

_ROUNDED = {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}


def apply_updates(
    params: optax.Params, updates: optax.Updates, key: jax.Array
) -> optax.Params:
    """Add updates to parameters, and round bfloat16 and float16 ones at random.

    The sum `x + u` is taken in float32. Where it lies between two numbers of the
    parameter's dtype, at the fraction `p` of the way from one to the other, it becomes
    the other with probability `p`: its mean is the sum itself. A sum that is a number
    of the dtype stays what it is; so do infinities and NaN, and a sum beyond the
    largest finite number is rounded to the nearest. Other leaves, of float32, float64,
    complex or integer numbers, are what `optax.apply_updates` makes of them.

    What it does not do. It adds noise: over `n` steps that a decay alone makes, of
    which each is less than a gap `e` between two numbers, a standard deviation of up to
    `e / 2 * sqrt(n)`. It cannot restore what an update lost before: updates in bfloat16
    keep 8 bits, and those smaller than `6e-8 * abs(x)` are lost in float32 too. Master
    weights in float32 have neither fault, for four more bytes per parameter.
    `nnx.Optimizer` and Flax's `TrainState` call `optax.apply_updates` themselves: there
    `tx.update` has to be called by hand.

    Args:
      params: the parameters; None and MaskedNode as in `optax.apply_updates`.
      updates: a tree of the same structure and shapes, as `tx.update` returns it.
      key: one key of `jax.random`, another one in each step. With one and the same key
        every step would round the same coordinates the same way, and those that it
        rounds back would never move. Each leaf draws from a key of its own.

    Returns:
      The new parameters, with the structure, shapes and dtypes of `params`. It draws 32
      bits per coordinate that is rounded.

    Raises:
      TypeError: if `key` is no key, or a parameter is of a float8 or float4 dtype:
        these have no room for weights without a scale beside them.

    Example:
      >>> import jax, jax.numpy as jnp, optax_wd as wd
      >>> params = {"kernel": jnp.ones(10_000, jnp.bfloat16)}
      >>> updates = {"kernel": jnp.full(10_000, -1e-5)}
      >>> new = wd.apply_updates(params, updates, jax.random.key(0))
      >>> moved = jnp.sum(new["kernel"] < 1)  # by 2**-8: a chance of 0.00256
      >>> bool(10 < moved < 45)
      True

    Source: Gupta et al., Deep Learning with Limited Numerical Precision,
    arXiv:1502.02551, section 3 (there for fixed-point numbers).
    """
    if not isinstance(key, jax.Array):
        raise TypeError(
            f"key takes a key of jax.random, got {key!r}; write "
            "jax.random.fold_in(jax.random.key(0), step)"
        )
    paths, treedef = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda x: x is None
    )
    pairs = zip(paths, treedef.flatten_up_to(updates), strict=True)
    return treedef.unflatten(
        _add(path, param, update, key, position)
        for position, ((path, param), update) in enumerate(pairs)
    )


def _add(path: Any, param: Any, update: Any, key: jax.Array, position: int) -> Any:
    dtype = getattr(param, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return optax.apply_updates(param, update)
    if dtype in _ROUNDED:
        total = jnp.asarray(param, jnp.float32) + jnp.asarray(update, jnp.float32)
        return _rounded(total, dtype, jax.random.fold_in(key, position))
    if jnp.finfo(dtype).bits < 16:
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        raise TypeError(
            f"the parameter {where!r} is {jnp.dtype(dtype).name}, which holds no "
            "weights without a scale; keep it in bfloat16 or float16"
        )
    return optax.apply_updates(param, update)


def _rounded(total: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """The float32 `total` as one of its two neighbours in the dtype, at random."""
    # The barrier keeps XLA from taking a number that goes there and back for itself.
    nearest = jax.lax.optimization_barrier(total.astype(dtype))
    away = total > nearest.astype(jnp.float32)
    infinity = jnp.asarray(jnp.inf, dtype)
    other = jnp.nextafter(nearest, jnp.where(away, infinity, -infinity))
    # Small numbers are scaled by a power of two: XLA flushes subnormal differences.
    scale = jnp.where(jnp.abs(total) < 1.0, 2.0**64, 1.0).astype(jnp.float32)
    start, end = (x.astype(jnp.float32) * scale for x in (nearest, other))
    # Between two finite numbers this is exact. Next to an infinity it is 0 or NaN, and
    # the comparison False: the nearest number stays.
    share = (total * scale - start) / (end - start)
    drawn = jax.random.uniform(key, total.shape, jnp.float32)
    return jnp.where(drawn < share, other, nearest)
