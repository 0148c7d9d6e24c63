# SPDX-License-Identifier: Apache-2.0
"""Run an optimizer on stand-ins for parameters and gradients, and keep what it did.

Only `init` and `update` are called. An optimizer is initialised at one point and asked
at others, with no gradient and with two opposite ones: what changes with the point, at
one and the same gradient, is what a decay does.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Path, PyTree

# Ranges of absolute values; signs are random. Points are large, so that a shrink of
# 1e-9 per step is a number beside a step of 1e-3, and far from where `init` was called.
START, HERE, THERE, GRADIENT = (96.0, 160.0), (200.0, 300.0), (40.0, 80.0), (0.5, 2.0)
# The gradient of the step before. It turns the sign of the momentum on every second
# coordinate, so that a gate on the raw gradient is told from one on the direction.
EARLIER = (0.05, 40.0)
_SMALL = 8  # the longest axis of a stand-in for an abstract array


@dataclasses.dataclass(frozen=True)
class Prober:
    """An optimizer, the points that it is asked about, how often until it answers.

    Attributes:
      init: from a tree of parameters to a state.
      update: from gradients, state and parameters to updates and state.
      params: what `update` gets, as shapes and dtypes.
      emits: how many updates it takes until one does something; 0 if none does.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
    params: PyTree
    emits: int = 1

    def run(self, state: PyTree, gradient: PyTree, point: PyTree) -> tuple[Any, Any]:
        """The first update that is not withheld, and the state after it."""
        updates = None
        for _ in range(self.emits or 1):
            updates, state = self.update(gradient, state, point)
        return updates, state

    @functools.cached_property
    def start(self) -> PyTree:
        """Where the optimizer is initialised."""
        return self._point(START, 1)

    @functools.cached_property
    def pushed(self) -> PyTree:
        """The state after a step with the earlier gradient; the step is not counted."""
        return self.uncounted(self.run(self.fresh, self.earlier, self.nothing)[1])

    def uncounted(self, state: PyTree) -> PyTree:
        """The state with its counters set back, so that schedules give the same."""
        values = dict(_leaves.leaves_with_paths(self.fresh))
        return with_values(state, {path: values[path] for path in counters(state)})

    @functools.cached_property
    def here(self) -> PyTree:
        """A point far from the start."""
        return self._point(HERE, 2)

    @functools.cached_property
    def there(self) -> PyTree:
        """A point nearer to zero."""
        return self._point(THERE, 3)

    @functools.cached_property
    def small(self) -> PyTree:
        """A point so near to zero as hardly any weights are, some 1e-3."""
        return jax.tree.map(lambda x: x * 2.0**-16 if _is_inexact(x) else x, self.there)

    @functools.cached_property
    def gradient(self) -> PyTree:
        """A gradient for the step that is looked at."""
        return self._point(GRADIENT, 4)

    @functools.cached_property
    def opposite(self) -> PyTree:
        """The gradient with all signs turned."""
        return jax.tree.map(lambda g: -g if _is_inexact(g) else g, self.gradient)

    @functools.cached_property
    def earlier(self) -> PyTree:
        """A gradient for the step before, small and large in turn."""

        def alternate(x: Any) -> Any:
            if not _is_inexact(x):
                return _zeros(x)
            signs = np.random.default_rng(x.size).choice([-1.0, 1.0], x.shape)
            odd = np.arange(x.size).reshape(x.shape) % 2
            return _placed(signs * np.where(odd, EARLIER[1], EARLIER[0]), x)

        return jax.tree.map(alternate, self.params)

    @functools.cached_property
    def nothing(self) -> PyTree:
        """Zeros, as a gradient and as a point."""
        return jax.tree.map(_zeros, self.params)

    @functools.cached_property
    def fresh(self) -> PyTree:
        """The state of an optimizer that was initialised at the start."""
        return self.init(self.start)

    def around_zero(self, step: PyTree, share: float) -> PyTree:
        """The start, where every second coordinate is a share of a step instead."""

        def one(x: Any, u: Any, earlier: Any) -> Any:
            return _alternate(x, u, earlier, share) if _is_inexact(x) else x

        return jax.tree.map(one, self.start, step, self.earlier)

    def _point(self, bounds: tuple[float, float], seed: int) -> PyTree:
        leaves, structure = jax.tree.flatten(self.params)
        values = (_random(x, bounds, [seed, n]) for n, x in enumerate(leaves))
        return structure.unflatten(values)


def probe(
    tx: optax.GradientTransformation,
    params: PyTree,
    *,
    steps: int,
    extra_args: Mapping[str, Any],
    scalars: Callable[[PyTree], PyTree],
) -> tuple[Prober, bool]:
    """A prober for an optimizer, and whether its stand-ins are smaller than `params`.

    Args:
      tx: the optimizer.
      params: as `audit` gets them.
      steps: how many updates to wait for one that is not zero.
      extra_args: for `tx.update`.
      scalars: what to do with a fresh state, such as to set its counters.
    """
    at_init, pure = as_called(params)
    whole = jax.tree.map(_abstract, pure(at_init))
    structure = jax.tree.structure(at_init)

    def init(point: PyTree) -> PyTree:
        return scalars(pure(tx.init(structure.unflatten(jax.tree.leaves(point)))))

    def update(g: PyTree, state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        return with_extra_args(tx)(g, state, x, **extra_args)

    def fits(shapes: PyTree) -> bool:
        try:
            state = jax.eval_shape(init, shapes)
            jax.eval_shape(update, shapes, state, shapes)
        except Exception:  # whatever an optimizer says to other shapes than its own
            return False
        return True

    small = jax.tree.map(_shorter, whole)
    is_abstract = any(
        isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(pure(at_init))
    )
    is_smaller = is_abstract and fits(small) and small != whole
    asked = Prober(jax.jit(init), jax.jit(update), small if is_smaller else whole)
    return dataclasses.replace(asked, emits=_emits(asked, steps)), is_smaller


def with_extra_args(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """The update of `tx`, which drops extra arguments where it takes none.

    `optax.MultiSteps` takes them, but is none of the classes that Optax knows for it.
    """
    is_plain = isinstance(tx, optax.GradientTransformation)
    return optax.with_extra_args_support(tx).update if is_plain else tx.update


def as_called(params: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """What `init` gets, and what is done to any tree before `update` gets it."""
    if not _leaves.is_nnx_module(params):
        return params, lambda tree: tree
    from flax import nnx

    return nnx.state(params, nnx.Param), nnx.as_pure


def counters(state: PyTree) -> Iterator[Path]:
    """The paths of all counters of steps, of micro-steps left aside."""
    for path, value in _leaves.leaves_with_paths(state):
        name = path[-1] if path else ""
        is_integer = jnp.issubdtype(getattr(value, "dtype", np.float32), jnp.integer)
        if is_integer and np.shape(value) == () and name != "mini_step":
            if name in ("count", "step") or name.endswith(("_count", "_step")):
                yield path


def schedules(state: PyTree, leaves: list[Leaf]) -> Iterator[Path]:
    """The counters that belong to schedules: no moments are kept beside them."""
    ends = {leaf.path for leaf in leaves if leaf.path}
    moments = [
        path
        for path, value in _leaves.leaves_with_paths(state)
        if _is_inexact(value)
        and (np.ndim(value) or any(path[-len(end) :] == end for end in ends))
    ]
    for path in counters(state):
        beside = path[:-1]
        if not any(moment[: len(beside)] == beside for moment in moments):
            yield path


def with_values(state: PyTree, values: Mapping[Path, Any]) -> PyTree:
    """The state with other values for its scalars."""
    paths = [path for path, _ in _leaves.leaves_with_paths(state)]
    leaves, structure = jax.tree.flatten(state)
    changed = [
        jnp.asarray(values[path], old.dtype) if path in values else old
        for path, old in zip(paths, leaves, strict=True)
    ]
    return structure.unflatten(changed)


def _emits(asked: Prober, steps: int) -> int:
    """The first update that depends on the gradient, or else that is not zero.

    Optimizers with a copy of the parameters answer with roundoff where they do nothing.
    """
    state = resting = asked.fresh
    moved = 0
    for n in range(1, steps + 1):
        updates, state = asked.update(asked.gradient, state, asked.here)
        others, resting = asked.update(asked.nothing, resting, asked.here)
        both = jax.tree.leaves(updates), jax.tree.leaves(others)
        pairs = [pair for pair in zip(*both, strict=True) if _is_inexact(pair[0])]
        if any(bool(jnp.any(u != other)) for u, other in pairs):
            return n
        if not moved and any(bool(jnp.any(u != 0)) for u, _ in pairs):
            moved = n
    return moved


def _is_inexact(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def _abstract(x: Any) -> Any:
    """Shape and dtype of what is a number; the others, such as keys, as they are."""
    is_number = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.number)
    if isinstance(x, jax.ShapeDtypeStruct) or not is_number:
        return x
    # Where JAX chose the device, it may choose again: else jit compiles once more.
    sharding = x.sharding if getattr(x, "committed", False) else None
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)


def _shorter(x: Any) -> Any:
    if not isinstance(x, jax.ShapeDtypeStruct) or max(x.shape, default=0) <= _SMALL:
        return x
    return jax.ShapeDtypeStruct(tuple(min(n, _SMALL) for n in x.shape), x.dtype)


def _placed(values: np.ndarray, like: Any) -> jax.Array:
    array = np.asarray(values).astype(like.dtype)
    sharding = getattr(like, "sharding", None)  # at once: it may fit no single device
    return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)


def _random(like: Any, bounds: tuple[float, float], seed: list[int]) -> Any:
    if not _is_inexact(like):
        return _zeros(like)
    rng = np.random.default_rng(seed)

    def values() -> np.ndarray:
        return rng.uniform(*bounds, like.shape) * rng.choice([-1.0, 1.0], like.shape)

    is_complex = jnp.issubdtype(like.dtype, jnp.complexfloating)
    return _placed(values() + 1j * values() if is_complex else values(), like)


@jax.jit  # compiled once for each shape
def _alternate(x: Any, u: Any, earlier: Any, share: Any) -> Any:
    is_second = jnp.abs(earlier) < 1.0  # it is small and large in turn
    return jnp.where(is_second, (share * u).astype(x.dtype), x)


def _zeros(like: Any) -> Any:
    """Zeros for what has a gradient; what is no number, such as a key, has none."""
    if not isinstance(like, jax.ShapeDtypeStruct):
        return like
    if not jnp.issubdtype(like.dtype, jnp.number):
        return jnp.full(like.shape, 0, like.dtype)
    return _placed(np.zeros(like.shape), like)
