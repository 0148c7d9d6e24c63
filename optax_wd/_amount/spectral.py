# SPDX-License-Identifier: Apache-2.0
"""Factors on the decay from the spectra of the weights, computed when asked for.

This is no transformation: singular values cost more than a step, and the factors are
static numbers of a `multiplier`. Ask now and then, and make the optimizer anew with the
same state.
"""

import jax
import jax.numpy as jnp
import numpy as np

from optax_wd._amount import masks as _masks
from optax_wd._amount.amounts import check_number
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask, PyTree
from optax_wd._where.rules import Rule, Stacked, check_stacked, stacked_axes
from optax_wd._where.standard import standard

_FLAT = 1e-6  # exponents that differ by less are equal: what is left is rounding


def alpha_decay_factors(
    params: PyTree,
    mask: Mask = standard,
    *,
    low: float = 2 / 3,
    high: float = 5.0,
    fewest: int = 50,
    stacked: Stacked = None,
) -> PyTree:
    """Factors on the decay: less for matrices whose spectrum has a heavy tail.

    The eigenvalues `e_1 <= ... <= e_N` of `W^T W` are the squared singular values of a
    matrix. With `k = N // 2` (from 0) the exponent of the power law of its upper half,
    by Hill's estimator, is

    `alpha = 1 + (N - k) / sum(log(e_i / e_k) for i >= k)`,

    and the factor is `low` for the smallest `alpha` of all matrices, `high` for the
    largest, and linear in between: `low + (high - low) * (alpha - min) / (max - min)`.
    A heavy tail, a small `alpha`, is taken for learned structure and spared. Where all
    are equal, or there is but one matrix, factors are 1.

    Args:
      params: the parameters; concrete arrays, outside of `jax.jit`.
      mask: the leaves that decay; those of two or more dimensions among them are
        matrices. Pass the mask of the decay.
      low: the factor for the heaviest tail, 0 or more.
      high: the factor for the lightest tail, 0 or more.
      fewest: matrices with fewer eigenvalues tell too little, and have the factor 1.
      stacked: which leaves are several matrices along an axis, each with a factor of
        its own: a rule, for axis 0, or pairs `(rule, axis)`.

    Returns:
      A tree with the structure of `params`, for `multiplier=`: a float for each leaf,
      for a stacked one a float32 array of its rank with 1 on the axes of the matrix.

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if `low` or `high` is negative or not finite, `fewest` is less than 1,
        or the mask does not fit.

    Example: factors are exchanged by making the optimizer anew; its state goes on.
      >>> import jax, optax, optax_wd as wd
      >>> def make(params):
      ...     factors = wd.alpha_decay_factors(params)
      ...     return wd.adamw(1e-3, wd.masked_decay(0.1, multiplier=factors))
      >>> keys = jax.random.split(jax.random.key(0))
      >>> params = {"up": jax.random.normal(keys[0], (64, 64))}
      >>> params["down"] = jax.random.t(keys[1], 2.0, (64, 64))  # with heavy tails
      >>> tx = make(params)
      >>> opt_state = tx.init(params)
      >>> for step in range(4):
      ...     if step == 2:  # every 500, in earnest; a jitted step is compiled again
      ...         tx = make(params)
      ...     updates, opt_state = tx.update(params, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> factors = wd.alpha_decay_factors(params)
      >>> print({name: round(factor, 2) for name, factor in factors.items()})
      {'down': 0.67, 'up': 5.0}

    Source: AlphaDecay, arXiv:2506.14562, Algorithm 1; defaults of the authors' scripts
    (hed-ucas/AlphaDecay: 2/3 and 5, anew every 500 steps, 50 eigenvalues or more),
    which leave out the first and last linear layer too: exclude them by the mask. Their
    convolutions pool the spectra of all positions; here an array of more dimensions is
    one matrix, its last axis against all the others, as in `spectrum`. Eigenvalues of 0
    count as the smallest normal number; there they give NaN.
    """
    check_number("low", low, least=0.0)
    check_number("high", high, least=0.0)
    check_number("fewest", fewest, least=1.0)
    _masks.check_mask(mask, "right after the parameters")
    axes_of, leaves = check_stacked(stacked), _leaves.list_leaves(params)
    chosen = _masks.factors_of(mask, None, params, leaves, stacked=axes_of)
    values = jax.tree.leaves(params)
    alphas = [
        None if factor is None else _alphas(leaf, value, axes_of, int(fewest))
        for leaf, factor, value in zip(leaves, chosen, values, strict=True)
    ]
    known = [a[~np.isnan(a)] for a in alphas if a is not None]
    every = np.concatenate([np.zeros(0), *known])
    ends = (every.min(), every.max()) if every.size else (0.0, 0.0)

    def factor(alpha: np.ndarray | None) -> float | np.ndarray:
        if alpha is None or ends[1] - ends[0] < _FLAT:
            return 1.0
        share = (alpha - ends[0]) / (ends[1] - ends[0])
        found = np.where(np.isnan(alpha), 1.0, low + (high - low) * share)
        return found.astype(np.float32) if found.ndim else float(found)

    return jax.tree.structure(params).unflatten(map(factor, alphas))


def _alphas(
    leaf: Leaf, value: jax.Array, axes_of: tuple[tuple[Rule, int], ...], fewest: int
) -> np.ndarray | None:
    """The exponent of each matrix of a leaf, NaN where it tells too little.

    Its shape is () or, for a stacked leaf, that of the leaf with 1 on the inner axes.
    """
    outer = stacked_axes(leaf, axes_of)
    inner = [axis for axis in range(leaf.ndim) if axis not in outer]
    if len(inner) < 2 or not value.size:
        return None
    dtype = jnp.complex64 if jnp.iscomplexobj(value) else jnp.float32
    layers = jnp.moveaxis(jnp.asarray(value, dtype), outer, range(len(outer)))
    lengths = [value.shape[axis] for axis in sorted(outer)]
    order = sorted(range(len(outer)), key=lambda n: outer[n])
    layers = layers.transpose(*order, *range(len(outer), leaf.ndim))
    folded = layers.reshape(*lengths, -1, layers.shape[-1])
    found = _hill(np.asarray(jnp.linalg.svd(folded, compute_uv=False)), fewest)
    return np.expand_dims(found, inner) if outer else found


def _hill(singular: np.ndarray, fewest: int) -> np.ndarray:
    """The exponent of the upper half of the squares, over the last axis, falling."""
    count = singular.shape[-1]
    squares = np.square(singular.astype(np.float64))
    logs = np.log(np.maximum(squares, np.finfo(np.float32).tiny))[..., ::-1]
    tail = logs[..., count // 2 :] - logs[..., count // 2, None]
    total = tail.sum(axis=-1)
    with np.errstate(divide="ignore"):
        alpha = 1.0 + tail.shape[-1] / total
    return np.where((total > 0.0) & (count >= fewest), alpha, np.nan)
