# SPDX-License-Identifier: Apache-2.0
"""The direction of a matrix optimizer: momentum, orthogonalised, as long as it should.

Every leaf that arrives here is a matrix, or many, as its fold says. Matrices of equal
sides are orthogonalised as one batch, which devices may share.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_wd._how.step import wide_dtype
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import PyTree
from optax_wd._where.folds import Fold

Orthogonalize = Callable[[jax.Array], jax.Array]
"""From a batch of shape (matrices, A, B), A <= B, to one of the same shape."""


class MatrixState(NamedTuple):
    """State of the direction of `muon` and `normuon`."""

    matrix_momentum: PyTree  # like the matrices, of mu_dtype
    # float32, float64 for such leaves, with 1 on the input axes, bare; () for Muon
    neuron_squares: PyTree


class Momentum(NamedTuple):
    """How gradients are averaged: `m <- beta m + (1 - beta) g`, from 0 on."""

    beta: jax.typing.ArrayLike
    nesterov: bool
    dtype: Any

    def start(self, param: Any) -> jax.Array:
        """Zeros like a parameter."""
        return jnp.zeros_like(param, dtype=self.dtype)

    def step(self, g: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The direction, wide, and the momentum, from a gradient that is wide."""
        moved = self.beta * m.astype(g.dtype) + (1 - self.beta) * g
        # Without bias correction, as in the authors' code. Orthogonalising takes the
        # length away, so it would matter for the share of g in Nesterov momentum only.
        ahead = self.beta * moved + (1 - self.beta) * g if self.nesterov else moved
        return jnp.asarray(ahead, g.dtype), jnp.asarray(moved).astype(m.dtype)


class Neurons(NamedTuple):
    """NorMuon: each output neuron divided by a running root mean square of its own."""

    b2: jax.typing.ArrayLike
    eps: jax.typing.ArrayLike
    keeps_norm: bool

    def start(self, folds: list[Fold], params: PyTree) -> PyTree:
        """A zero for each output neuron of every leaf, like the bare parameters."""
        nodes, treedef = jax.tree.flatten(_leaves.bare(params))
        pairs = zip(folds, nodes, strict=True)
        zeros = [jnp.zeros(fold.neurons, wide_dtype(x.dtype)) for fold, x in pairs]
        return treedef.unflatten(zeros)

    def step(
        self, x: jax.Array, squares: jax.Array, fold: Fold
    ) -> tuple[jax.Array, jax.Array]:
        """`x` with neurons of like size.

        Its Frobenius norms are those of before, or those of a matrix whose singular
        values are all 1.
        """
        now = jnp.mean(jnp.square(x), axis=fold.axes("i"), keepdims=True)
        moved = self.b2 * squares + (1 - self.b2) * now
        even = x / (jnp.sqrt(moved) + self.eps)
        norm = _norm(x, fold) if self.keeps_norm else fold.short_and_long[0] ** 0.5
        ratio = norm / (_norm(even, fold) + self.eps)
        return (even * ratio).astype(x.dtype), jnp.asarray(moved).astype(squares.dtype)


def scale_by_orthogonal(
    fold_of: Callable[[Leaf], Fold],
    orthogonalize: Orthogonalize,
    momentum: Momentum,
    neurons: Neurons | None,
    size: Callable[[Fold], Any],
) -> optax.GradientTransformation:
    """The transformation; every inexact leaf that reaches it is folded.

    Args:
      fold_of: the fold of a leaf; it raises where there is none.
      orthogonalize: of a batch.
      momentum: of the gradients.
      neurons: what NorMuon adds; None for Muon.
      size: the factor on an orthogonal matrix of a fold.

    Returns:
      A transformation with a `MatrixState`. Arithmetic is in float32, or float64 where
      the leaf is, and rounded once to the dtype of the update.
    """

    def init(params: optax.Params) -> Any:
        folds = list(map(fold_of, _leaves.list_leaves(params)))
        squares = () if neurons is None else neurons.start(folds, params)
        return MatrixState(jax.tree.map(momentum.start, params), squares)

    def step(updates: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
        folds = list(map(fold_of, _leaves.list_leaves(updates)))
        nodes, treedef = jax.tree.flatten(updates)
        before = treedef.flatten_up_to(state.matrix_momentum)
        wide = [g.astype(wide_dtype(g.dtype)) for g in nodes]
        moved = [momentum.step(g, m) for g, m in zip(wide, before, strict=True)]
        found = in_batches([m for m, _ in moved], folds, orthogonalize)
        squares = state.neuron_squares
        if neurons is not None:
            kept, plain = jax.tree.flatten(squares)
            both = list(map(neurons.step, found, kept, folds))
            found = [x for x, _ in both]
            squares = plain.unflatten(v for _, v in both)
        rows = zip(folds, found, nodes, strict=True)
        scaled = [(size(fold) * x).astype(g.dtype) for fold, x, g in rows]
        state = MatrixState(treedef.unflatten(m for _, m in moved), squares)
        return treedef.unflatten(scaled), state

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        del params
        return with_auto_axes(step, updates, state)

    return optax.GradientTransformation(init, update)


def with_auto_axes(function: Callable[..., Any], *trees: PyTree) -> Any:
    """`function(*trees)`, which returns what lies as they do, on any mesh.

    On a mesh of Explicit axes JAX would ask for the place of every product of matrices,
    and refuses to fold axes that are split.
    """
    places = jax.tree.map(lambda x: jax.typeof(x).sharding, trees)
    # Auto axes are no part of a type; nor is a mesh, where an array was made on none.
    meshes = [place.mesh for place in jax.tree.leaves(places) if any(place.spec)]
    if not meshes:
        return function(*trees)
    on_mesh = lambda place: jax.NamedSharding(meshes[0], place.spec)  # noqa: E731
    places = jax.tree.map(on_mesh, places)
    axes = meshes[0].explicit_axes  # others may be Manual, and stay so
    return jax.sharding.auto_axes(function, axes=axes, out_sharding=places)(*trees)


def in_batches(
    arrays: list[jax.Array], folds: list[Fold], orthogonalize: Orthogonalize
) -> list[jax.Array]:
    """Every array orthogonalised, with one call for all matrices of equal sides."""
    groups: dict[Hashable, list[int]] = {}
    for n, (x, fold) in enumerate(zip(arrays, folds, strict=True)):
        groups.setdefault((fold.short_and_long, x.dtype), []).append(n)
    found = list(arrays)
    for where in groups.values():
        batches = [folds[n].to_batch(arrays[n]) for n in where]
        ends = [sum(map(len, batches[: k + 1])) for k in range(len(batches) - 1)]
        parts = jnp.split(orthogonalize(jnp.concatenate(batches)), ends)
        for n, part in zip(where, parts, strict=True):
            found[n] = folds[n].from_batch(part)
    return found


def distributed(
    orthogonalize: Orthogonalize, sharding: jax.NamedSharding | None
) -> Orthogonalize:
    """The same, with the matrices of a batch shared by devices; None changes nothing.

    Args:
      orthogonalize: of a batch.
      sharding: of its first axis. Zeros fill it up to a multiple of the devices.

    Returns:
      A function of a batch, to be traced by `jax.jit`.

    Raises:
      TypeError: if `sharding` is no NamedSharding.
      ValueError: if it shards another axis than the first, or none, or its mesh has
        axes that are not Auto.
    """
    if sharding is None:
        return orthogonalize
    written = 'write jax.NamedSharding(mesh, jax.P("data"))'
    if not isinstance(sharding, jax.NamedSharding):
        raise TypeError(
            f"distribute takes a sharding of many matrices, got {sharding!r}; {written}"
        )
    names, *others = (*sharding.spec, None)
    if not isinstance(names, str | tuple) or not names or any(others):
        raise ValueError(
            "distribute shards the first axis of (matrices, A, B) and no other, got "
            f"{sharding.spec!r}; {written}"
        )
    mesh = sharding.mesh
    if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "distribute takes a mesh of Auto axes, got axis_types="
            f"{tuple(kind.name for kind in mesh.axis_types)}; make it with axis_types="
            f"(jax.sharding.AxisType.Auto,) * {len(mesh.axis_types)}"
        )
    axes = (names,) if isinstance(names, str) else names
    devices = math.prod(mesh.shape[axis] for axis in axes)

    # Around the iteration matrices are whole in number, and lie as they do: otherwise
    # concatenating and taking apart would exchange the matrices one by one.
    free = jax.P(None, jax.P.UNCONSTRAINED, jax.P.UNCONSTRAINED)
    around = jax.NamedSharding(mesh, free)
    placed = jax.lax.with_sharding_constraint

    def shared(batch: jax.Array) -> jax.Array:
        number = len(batch)
        filled = jnp.pad(batch, ((0, -number % devices), (0, 0), (0, 0)))
        share = placed(placed(filled, around), sharding)
        found = placed(orthogonalize(share), sharding)
        return placed(found, around)[:number]

    return shared


def _norm(x: jax.Array, fold: Fold) -> jax.Array:
    axes = fold.axes("i") + fold.axes("o")
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))
