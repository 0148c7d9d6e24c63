# SPDX-License-Identifier: Apache-2.0
"""Static facts about the leaves of any parameter tree: path, shape and dtype.

A `Leaf` is all that a rule may look at. It can be had at trace time, from abstract
values, and from every form that Flax gives to one and the same model; its path does
not depend on the form. Values are never looked at.
"""

import dataclasses
import functools
import math
import numbers
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_wd._tree.typing import Path, PyTree, Shape

_SEPARATORS = re.compile("[/.]")


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf of a parameter tree, as a rule sees it.

    Args:
      path: the tokens that lead to the leaf, outermost first, without the `value` of
        Flax boxes and Variables. Empty for an array that stands alone.
      shape: the shape of the whole leaf, stacked axes included.
      dtype: a dtype, or its name; None for a leaf that is no array.
      owner: the type of the module that holds the leaf, or the name of that type.
        Known only where a rule is asked about a module, see `mask_of`.
      metadata: what the Variable of the leaf declares. Known as `owner` is.
    """

    path: Path
    shape: Shape
    dtype: Any
    owner: type | str | None = None
    metadata: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.path, str):
            raise TypeError(
                f"the path of a Leaf is a tuple of tokens, got {self.path!r}; write "
                f"{path_of((self.path,))!r}"
            )
        for name in ("path", "shape"):  # few are not tuples, and leaves are many
            if type(getattr(self, name)) is not tuple:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.dtype, str | type):
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype))

    @property
    def name(self) -> str:
        """The last token of the path; empty for an array that stands alone."""
        return self.path[-1] if self.path else ""

    @property
    def where(self) -> str:
        """The path as text, for messages and tables: `a/b/kernel`."""
        return "/".join(self.path)

    @property
    def ndim(self) -> int:
        """The number of dimensions, stacked axes included."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_array(self) -> bool:
        """Whether the leaf has a shape and a dtype at all."""
        return self.dtype is not None

    @property
    def is_inexact(self) -> bool:
        """Whether the leaf holds real or complex floating-point numbers."""
        return self.dtype is not None and _is_inexact(self.dtype)


@functools.cache
def _is_inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def is_hole(node: Any) -> bool:
    """Whether a node stands for a leaf that is absent: None or `optax.MaskedNode`."""
    return node is None or isinstance(node, optax.MaskedNode)


def has_holes(tree: PyTree) -> bool:
    """Whether a tree is partial: some leaf was taken out of it."""
    if is_nnx_module(tree):  # None is an attribute there, not a missing leaf
        return False
    return any(map(is_hole, jax.tree.leaves(tree, is_leaf=is_hole)))


def leaves_with_paths(tree: PyTree) -> list[tuple[Path, Any]]:
    """Canonical path and value of every leaf, in the order of `jax.tree.leaves`."""
    return list(_walk((), tree, _box_types()))


def list_leaves(tree: PyTree) -> list[Leaf]:
    """The static facts of every leaf, in the order of `jax.tree.leaves`."""
    return [_facts(path, value) for path, value in leaves_with_paths(tree)]


def is_boxed(tree: PyTree) -> bool:
    """Whether a tree has Flax boxes or Variables."""
    boxes = _box_types()
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, boxes))
    return any(isinstance(node, boxes) for node in nodes)


def bare(tree: PyTree) -> PyTree:
    """The tree without Flax boxes and Variables, but what they hold.

    What is kept of a leaf in another shape than its own has no place in its box: the
    box says how to shard the axes that the leaf has.
    """
    boxes = _box_types()

    def is_leaf(node: Any) -> bool:
        return is_hole(node) or isinstance(node, boxes)

    def opened(node: Any) -> Any:
        if not isinstance(node, boxes):
            return node
        inner = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
        return bare(inner[0] if len(inner) == 1 else inner)

    return jax.tree.map(opened, tree, is_leaf=is_leaf)


def spread(values: PyTree, leaves: list[Leaf], *, partial: bool, what: str) -> list:
    """One entry of `values` for each leaf, found by path: containers may differ.

    Args:
      values: a tree of answers with the paths of `leaves`, or a prefix of it.
      leaves: the leaves to answer for.
      partial: whether leaves may be missing, so that answers may be left over.
      what: the name of `values` in messages.

    Returns:
      A list as long as `leaves`.

    Raises:
      ValueError: if a leaf has no answer, or an answer has no leaf.
    """
    answers = dict(leaves_with_paths(values))
    used = set()
    found = []
    for leaf in leaves:
        prefix = next((p for p in prefixes(leaf.path) if p in answers), None)
        if prefix is None:
            raise ValueError(
                f"{what} is a tree that has no entry for {leaf.where!r}; "
                "make it with a rule, which answers for every tree: rule(params), or "
                "with mask_of and the wrt= of the optimizer"
            )
        used.add(prefix)
        found.append(answers[prefix])
    if not partial and (extra := [p for p in answers if p not in used]):
        raise ValueError(
            f"{what} is a tree with an entry for {'/'.join(extra[0])!r}, where the "
            "parameters have no leaf; make it with a rule: rule(params)"
        )
    return found


def is_function(given: Any) -> bool:
    """Whether to call it: an Equinox tree of bools has a `__call__` and is a tree."""
    if not callable(given):
        return False
    values = jax.tree.leaves(given)
    return not values or not all(isinstance(v, bool | np.bool_) for v in values)


def is_number(value: Any) -> bool:
    """Whether `value` is a real number, or an array of such; bools are none."""
    if isinstance(value, jax.Array | np.ndarray):
        kinds = jnp.integer, jnp.floating
        return any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def refuse_count(tree: PyTree, what: str) -> None:
    """Refuse the number of a step, which Optax gives to functions under injection."""
    dtype, shape = getattr(tree, "dtype", None), getattr(tree, "shape", None)
    if isinstance(tree, numbers.Number) or (
        shape == () and dtype is not None and jnp.issubdtype(dtype, jnp.integer)
    ):
        raise TypeError(
            "got a step count, expected a parameter tree; under "
            "optax.inject_hyperparams every argument that is a rule or a function is "
            "static (mask, multiplier, stacked, gate, matrices, folds): pass "
            f'static_args="{what}", or for a decay of optax_wd '
            'static_args=("mask", "multiplier"); into muon inject the learning rate '
            "alone, by a function of it that makes the optimizer"
        )


def path_of(keys: Iterable[Any]) -> Path:
    """The tokens of keys, each of which may hold a path itself: `Dense_0/kernel/scale`.

    Such are the scales of `nn.WeightNorm`, and flattened dicts, also those of torch,
    whose names have dots: `layers.0.weight`.
    """
    return tuple(token for key in keys for token in _SEPARATORS.split(str(key)))


def prefixes(path: Path) -> Iterator[Path]:
    """A path and all its prefixes, the longest first."""
    return (path[:n] for n in range(len(path), -1, -1))


def _facts(path: Path, value: Any) -> Leaf:
    dtype = getattr(value, "dtype", None)
    shape = getattr(value, "shape", None)
    if dtype is None or shape is None:
        return Leaf(path, (), None)
    return Leaf(path, shape, dtype)


def is_nnx_module(model: Any) -> bool:
    """Whether `model` is an NNX module."""
    return is_a(model, "flax.nnx")


def is_a(node: Any, module: str, name: str = "Module") -> bool:
    """Whether it is of a class of a module, which need not have been imported."""
    kind = _imported(module, name)
    return kind is not None and isinstance(node, kind)


def longest(known: Mapping[Path, Any], path: Path) -> Any:
    """What is known of the longest prefix of a path."""
    return next(known[p] for p in prefixes(path) if p in known)


def _imported(module: str, name: str) -> type | None:
    """A class of a module; None where it was never imported, so has no objects."""
    return getattr(sys.modules.get(module), name, None)


def _box_types() -> tuple[type, ...]:
    """Flax's wrappers around one array, as far as they can occur."""
    found = (
        _imported("flax.core.meta", "AxisMetadata"),
        _imported("flax.nnx", "Variable"),
    )
    return tuple(box for box in found if box is not None)


def _walk(
    prefix: Path, root: PyTree, boxes: tuple[type, ...]
) -> Iterator[tuple[Path, Any]]:
    def is_inner_box(node: Any) -> bool:
        return node is not root and isinstance(node, boxes)

    drop = 1 if isinstance(root, boxes) else 0  # the box's own `value`
    pairs = jax.tree_util.tree_flatten_with_path(root, is_leaf=is_inner_box)[0]
    for keys, node in pairs:
        path = prefix + tuple(t for key in keys[drop:] for t in _tokens(key))
        if isinstance(node, boxes):
            yield from _walk(path, node, boxes)
        else:
            yield path, node


def _tokens(key: Any) -> Path:
    """The tokens of one key of a pytree; a tuple is a path."""
    for attribute in ("key", "name", "idx"):
        value = getattr(key, attribute, None)
        if isinstance(value, str) and not _SEPARATORS.search(value):
            return (value,)
        if value is not None:
            return path_of(value if isinstance(value, tuple) else (value,))
    return path_of((key,))
