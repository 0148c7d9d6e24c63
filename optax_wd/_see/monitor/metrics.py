# SPDX-License-Identifier: Apache-2.0
"""What the monitor measures: from arrays of one step to scalars for each group.

Everything is elementwise, a sum, or arithmetic of sums, so parameters that are sharded
stay where they are, and only scalars travel.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_wd._tree import leaves as _leaves
from optax_wd._tree.typing import PyTree

ALL = "all"
_TILE, _WIDE = 16, 256  # numbers; see _totals


class Metrics(NamedTuple):
    """What was measured of one group of parameters, NaN before the first time.

    `x` are the parameters before the step, `u` what the step subtracts from them, the
    learning rate included, and `d` the decay, a part of `u`. Norms are over all
    coordinates of the group, fractions of their number. 0/0 is NaN: so is the shrink of
    weights that are all 0.
    """

    measured_step: jax.Array  # shape=(), dtype=int32: updates so far, 0 for none; the
    # others are shape=(), dtype=float32
    shrink: jax.Array  # <d, x> / <x, x>: the fraction of x that the decay removes
    open_fraction: jax.Array  # coordinates that d brings nearer to 0
    decay_over_update: jax.Array  # ||d|| / ||u||
    weight_rms: jax.Array  # root of the mean of x^2
    overlap: jax.Array  # sum of max(u x, 0): 0 if no weight shrinks
    cosine: jax.Array  # <u, x> / (||u|| ||x||)
    angle: jax.Array  # radians between x and x - u
    changed: jax.Array  # coordinates whose stored value changes
    changed_open: jax.Array  # the same, among those that d brings nearer to 0


def unmeasured(labels: list[str | None]) -> Any:
    """The metrics before the first measurement."""

    def nothing() -> Metrics:  # an array each: one array could not be donated twice
        fields = (jnp.full([], jnp.nan, jnp.float32) for _ in Metrics._fields[1:])
        return Metrics(jnp.zeros([], jnp.int32), *fields)

    if not any(labels):  # optax.tree_map_params calls init with a tree without leaves,
        return jnp.full([], jnp.nan, jnp.float32)  # and one leaf stands for any dict
    return {name: nothing() for name in (ALL, *filter(None, labels))}


def is_inexact(x: Any) -> bool:
    """Whether `x` is an array of real or complex floating-point numbers."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def zeros(tree: PyTree) -> PyTree:
    """The tree with zeros in its inexact leaves."""
    return jax.tree.map(lambda x: jnp.zeros_like(x) if is_inexact(x) else x, tree)


class _Sums(NamedTuple):
    """What adds up over leaves; the names are those of `Metrics`."""

    size: Any
    xx: Any
    uu: Any
    dd: Any
    dx: Any
    ux: Any
    overlap: Any
    is_open: Any
    changed: Any
    changed_open: Any


def measure(
    count: jax.Array,
    labels: list[str | None],
    params: PyTree,
    updates: PyTree,
    at_zero: PyTree,
) -> dict[str, Metrics]:
    """The metrics of every group, and of all parameters together.

    Args:
      count: updates so far, this one included.
      labels: the group of each leaf of `params`, None for those that are left out.
      params: parameters before the step.
      updates: final updates, which are added to the parameters; like `params`.
      at_zero: the same for parameters that are all 0.
    """
    nodes, treedef = jax.tree.flatten(params, is_leaf=_leaves.is_hole)
    columns = nodes, treedef.flatten_up_to(updates), treedef.flatten_up_to(at_zero)
    present = [row for row in zip(*columns, strict=True) if not _leaves.is_hole(row[0])]
    groups: dict[str, list[_Sums]] = {}
    for label, row in zip(labels, present, strict=True):
        if label is not None:
            sums = _sums(*(zeros(row[0]) if _leaves.is_hole(x) else x for x in row))
            for name in (ALL, label):
                groups.setdefault(name, []).append(sums)
    return {
        name: _metrics(count, _Sums(*map(sum, zip(*rows, strict=True))))
        for name, rows in groups.items()
    }


def _sums(param: jax.Array, update: jax.Array, at_zero: jax.Array) -> _Sums:
    after = jnp.asarray(optax.apply_updates(param, update))
    x, v, rest, new = map(_real, (param, update, at_zero, after))
    # What is stored is rounded; XLA keeps a bfloat16 sum in float32 unless told so.
    stored = jnp.finfo(param.dtype)
    new = jax.lax.reduce_precision(new, stored.nexp, stored.nmant)
    u, d = -v, rest - v
    # XLA may subtract a product from `rest` before it rounds it. What is left of a
    # coordinate that does not decay is then that rounding error, of either sign.
    d = jnp.where(jnp.abs(d) <= 2 * jnp.finfo(d.dtype).eps * jnp.abs(v), 0, d)
    is_open = ((d > 0) & (x > 0)) | ((d < 0) & (x < 0))  # d * x may underflow
    changed = new != x
    terms = x * x, u * u, d * d, d * x, u * x, jnp.maximum(u * x, 0)
    counts = (is_open, changed, changed & is_open)
    return _Sums(float(x.size), *_totals(*terms, *(c.astype(x.dtype) for c in counts)))


def _totals(*terms: jax.Array) -> list[jax.Array]:
    """The sum of each of several arrays of one shape, in float32."""
    # One reduction of all terms reads parameters and state once and keeps no copies;
    # a sum for each took 3 times the time on CPU and 5 times the temporaries. It is
    # over short tiles, because XLA gathers what it leaves of an axis that is sharded;
    # wide axes only, because the number of tiles has to be a multiple of the shards.
    shape = terms[0].shape
    if shape and shape[-1] % _WIDE == 0:
        tiled = (*shape[:-1], shape[-1] // _TILE, _TILE)
        tiles = tuple(term.reshape(tiled) for term in terms)
        starts = tuple(np.zeros([], term.dtype) for term in terms)
        terms = tuple(jax.lax.reduce(tiles, starts, _add, (len(shape),)))
    return [jnp.sum(term).astype(jnp.float32) for term in terms]


def _add(totals: tuple[Any, ...], terms: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a + b for a, b in zip(totals, terms, strict=True))


def _real(x: jax.Array) -> jax.Array:
    """Real numbers in float32 or wider; of complex ones both parts."""
    parts = jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x
    return parts.astype(jnp.promote_types(parts.dtype, jnp.float32))


def _metrics(step: jax.Array, s: _Sums) -> Metrics:
    norm = jnp.sqrt(s.xx)
    along = s.ux / norm  # of u, in the direction of x
    across = jnp.sqrt(jnp.maximum(s.uu - along**2, 0))
    return Metrics(
        step,
        shrink=s.dx / s.xx,
        open_fraction=s.is_open / s.size,
        decay_over_update=jnp.sqrt(s.dd / s.uu),
        weight_rms=norm / s.size**0.5,
        overlap=s.overlap,
        cosine=along / jnp.sqrt(s.uu),
        # of small angles the arccos of the cosine would be 0
        angle=jnp.arctan2(across, norm - along),
        changed=s.changed / s.size,
        changed_open=s.changed_open / s.is_open,
    )


class Spectrum(NamedTuple):
    """Singular values of one matrix."""

    singular_values: np.ndarray  # shape=(min(rows, columns),), dtype=float32, falling
    norm: float  # the largest
    condition: float  # the largest over the smallest
    stable_rank: float  # the sum of their squares over the largest square


def spectrum(params: PyTree) -> dict[str, Spectrum]:
    """Singular values of every matrix, computed when asked for, outside of the step.

    An array of more dimensions is folded: its last axis against all the others, as a
    convolution's output channels. Of stacked layers pass one layer at a time.

    Args:
      params: parameters in any container. Leaves of fewer than two dimensions, and
        those that are not of an inexact dtype, are left out.

    Returns:
      A `Spectrum` for each matrix, by path: `a/b/kernel`. Computed in float32, whose
      precision ends the meaning of a condition number at about 1e6.

    Raises:
      ValueError: if there is no matrix.

    Example:
      >>> import jax.numpy as jnp, optax_wd as wd
      >>> found = wd.spectrum({"kernel": jnp.diag(jnp.asarray([4.0, 2.0]))})
      >>> found["kernel"].condition, found["kernel"].stable_rank
      (2.0, 1.25)
    """
    pairs = zip(_leaves.list_leaves(params), jax.tree.leaves(params), strict=True)
    found = {
        leaf.where: _spectrum(value)
        for leaf, value in pairs
        if leaf.is_inexact and leaf.ndim > 1 and leaf.size
    }
    if not found:
        kind = type(params).__name__
        raise ValueError(f"found no matrix in the {kind}; pass the tree of parameters")
    return found


def _spectrum(matrix: jax.Array) -> Spectrum:
    dtype = jnp.complex64 if jnp.iscomplexobj(matrix) else jnp.float32
    folded = jnp.asarray(matrix, dtype).reshape(-1, matrix.shape[-1])
    values = jnp.linalg.svd(folded, compute_uv=False)
    extent, squares = values[0] / values[-1], jnp.sum((values / values[0]) ** 2)
    values, extent, squares = jax.device_get((values, extent, squares))
    return Spectrum(values, float(values[0]), float(extent), float(squares))
