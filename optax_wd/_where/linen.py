# SPDX-License-Identifier: Apache-2.0
"""What a Linen module tells about its parameters while it is initialized, abstractly.

A Linen module holds no parameters, and the tree that `init` makes has no types. But
every method that runs on the way can be seen, with the module that it belongs to.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Path, PyTree

_ARRAYS = jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic


def of_linen(
    model: Any, wrt: Any, inputs: tuple[Any, ...], named_inputs: dict[str, Any]
) -> tuple[PyTree, list[Leaf]]:
    """The abstract parameters of a Linen module, and their leaves with owners."""
    from flax import linen as nn

    name = "params" if wrt is None else wrt
    if not isinstance(name, str):
        raise TypeError(
            f"wrt of a Linen module is the name of a collection, got {wrt!r}; write "
            "wrt='params'"
        )
    variables, owners = _initialize(model, inputs, named_inputs)
    if name not in variables:
        raise ValueError(
            f"{type(model).__name__} makes no collection {name!r}; wrt is one of those "
            f"that it makes: {', '.join(map(repr, variables))}"
        )
    boxes = variables[name]
    told = jax.tree.map(_metadata_of_box, boxes, is_leaf=_is_box)
    metadata = dict(_leaves.leaves_with_paths(told))
    tree = jax.eval_shape(nn.unbox, boxes)
    return tree, [
        dataclasses.replace(
            leaf,
            owner=_leaves.longest(owners, keys),
            metadata=_leaves.longest(metadata, leaf.path),
        )
        for leaf, keys in zip(_leaves.list_leaves(tree), _keys(tree), strict=True)
    ]


def _initialize(
    model: Any, inputs: tuple[Any, ...], named_inputs: dict[str, Any]
) -> tuple[PyTree, dict[Path, type]]:
    """The abstract variables of a Linen module, and the types at module paths."""
    if inputs and _is_key(inputs[0]):
        raise TypeError(
            "mask_of got a random key as the first input; it needs none, leave it out: "
            "mask_of(model, rule, x)"
        )
    values, structure = jax.tree.flatten((inputs, named_inputs))
    arrays = [value for value in values if isinstance(value, _ARRAYS)]

    def init(arrays: list[Any]) -> PyTree:
        given = iter(arrays)
        merged = [next(given) if isinstance(v, _ARRAYS) else v for v in values]
        args, kwargs = structure.unflatten(merged)
        return model.init(jax.random.key(0), *args, **kwargs)

    try:
        variables, owners = _watch(init, arrays)
        if not all(keys[1:-1] in owners for keys in _keys(variables)):
            # Where nn.jit answers from its cache, no method was called to be seen.
            with jax.disable_jit():
                variables, owners = _watch(init, arrays)
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise TypeError(
            f"{type(model).__name__} cannot be initialized with these inputs: {error}; "
            "pass example inputs as its init takes them: mask_of(model, rule, x)"
        ) from error
    return variables, owners | {(): type(model)}


def _is_key(value: Any) -> bool:
    """Whether it is a random key, of the new kind or of the old."""
    dtype = getattr(value, "dtype", np.dtype(bool))
    is_new = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return is_new or (dtype == np.uint32 and value.shape == (2,))


def _watch(
    init: Callable[[list[Any]], PyTree], arrays: list[Any]
) -> tuple[PyTree, dict[Path, type]]:
    """The abstract result, and the type of each Linen module of which a method ran."""
    from flax import linen as nn

    seen: dict[Path, type] = {}

    def see(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        seen.setdefault(module.path, type(module))
        return method(*args, **kwargs)

    with nn.intercept_methods(see):
        return jax.eval_shape(init, arrays), seen


def _keys(tree: PyTree) -> list[tuple[Any, ...]]:
    """The keys of dicts on the way to each leaf or box; unlike tokens, not split."""
    pairs = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)[0]
    return [tuple(getattr(key, "key", None) for key in keys) for keys, _ in pairs]


def _is_box(node: Any) -> bool:
    return _leaves.is_a(node, "flax.core.meta", "AxisMetadata")


def _metadata_of_box(box: Any) -> Mapping[str, Any]:
    """The fields of a box but its value; a proxy, since JAX takes a dict for a tree."""
    fields = dataclasses.fields(box) if dataclasses.is_dataclass(box) else ()
    found = {f.name: getattr(box, f.name) for f in fields if f.name != "value"}
    return types.MappingProxyType(found if _is_box(box) else {})
