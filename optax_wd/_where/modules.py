# SPDX-License-Identifier: Apache-2.0
"""Masks from what only the module knows: types of layers, metadata of parameters.

The state that reaches an optimizer has neither, so such a mask is made once, from the
model, as a tree of bools. Each kind of module tells in its own way who holds a leaf:
NNX by its attributes, Equinox by its fields, and Linen only while it is initialized.
Flax is imported inside the functions that are handed a Flax module; Equinox never is.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Path, PyTree
from optax_wd._where.linen import of_linen
from optax_wd._where.rules import LeafFunction, Rule, check_leaves
from optax_wd._where.ties import tie


def mask_of(
    model: Any,
    rule: LeafFunction,
    /,
    *inputs: Any,
    wrt: Any = None,
    **named_inputs: Any,
) -> PyTree:
    """The answers of a rule for the parameters of a module, as a tree.

    The tree is a mask or, where `rule` is a table, labels or factors. Nothing is
    allocated: the model may be abstract, and a Linen module is initialized abstractly.

    * NNX: the tree that `nnx.Optimizer` takes, at init and at update. The owner of a
      leaf is the innermost module around it, containers left aside; metadata is that of
      the Variable.
    * Linen: for parameters as `init` returns them, without boxes (`nn.unbox`); our own
      decays take it for boxed ones too. The owner is the module that declares the
      parameter, inside of `nn.scan`, `nn.remat`, `nn.vmap` and `nn.jit` as well.
      Metadata are the fields of the box, such as the names of `nn.Partitioned`.
    * Equinox: for `eqx.filter(model, eqx.is_inexact_array)`. The owner is the innermost
      module around the leaf; there is no metadata. Where the module has a `__call__`,
      so has the tree, which Optax would call: write `mask=lambda params: tree` there.
      Our own decays take the tree itself.

    Args:
      model: an NNX, Linen or Equinox module, concrete or abstract.
      rule: a rule or table; here it may ask for owners and metadata.
      *inputs: of a Linen module only: example inputs, as its `init` takes them after
        the key. Of arrays and `jax.ShapeDtypeStruct` only shape and dtype are used;
        other values, such as True, are passed on.
      wrt: which leaves, those that the optimizer is given. NNX: a filter, by default
        `nnx.Param`. Linen: the name of a collection, by default `"params"`. Equinox: a
        function from a leaf to a bool, by default for inexact arrays, abstract or not.
      **named_inputs: of a Linen module only: inputs by name, such as `train=False`, and
        what else `init` takes, such as `method=`.

    Returns:
      A tree of answers with the structure of `nnx.as_pure(nnx.state(model, wrt))`, of
      `nn.unbox(variables["params"])`, or of `eqx.filter(model, wrt)`, where None stands
      for what is left out.

    Raises:
      TypeError: if `model` is no such module, `rule` neither rule nor table, or `wrt`
        not what the kind of module needs; if inputs are given that are not needed, or
        are missing.
      ValueError: if a name or pattern in `rule` matches no leaf, or `wrt` selects
        nothing.

    Example:
      >>> import flax.linen as nn, jax, optax_wd as wd
      >>> model, x = nn.LayerNorm(), jax.ShapeDtypeStruct((1, 4), "float32")
      >>> wd.mask_of(model, wd.owned_by(nn.LayerNorm) & wd.named("scale"), x)
      {'bias': False, 'scale': True}
    """
    if not isinstance(rule, LeafFunction):
        raise TypeError(f"mask_of takes a rule such as `standard`, got {rule!r}")
    kind = type(model).__name__
    if is_linen_module(model):
        tree, leaves = of_linen(model, wrt, inputs, named_inputs)
    elif not holds_parameters(model):
        if isinstance(model, type):
            kind = f"the class {model.__name__}"
        raise TypeError(
            f"mask_of takes an NNX, Linen or Equinox module, got {kind}; call the rule "
            "itself with a tree of parameters: rule(params)"
        )
    elif inputs or named_inputs:
        raise TypeError(
            f"mask_of got example inputs with {kind}, which holds its parameters and "
            "needs none, as only Linen modules do; write mask_of(model, rule)"
        )
    else:
        tree, leaves = contents(model, wrt)
    if not leaves:
        raise ValueError(
            f"wrt={wrt!r} selects no parameters of {kind}; write the filter that the "
            "optimizer is given"
        )
    check_leaves(rule, with_names(model, leaves), complete=True)
    asked = tied(rule, model) if isinstance(rule, Rule) else rule
    decide = asked.decider(leaves, complete=True)
    return jax.tree.structure(tree).unflatten(map(decide, leaves))


def is_linen_module(model: Any) -> bool:
    """Whether `model` is a Linen module, which holds no parameters itself."""
    return _leaves.is_a(model, "flax.linen")


def holds_parameters(model: Any) -> bool:
    """Whether `model` is a module of NNX or Equinox."""
    return _leaves.is_nnx_module(model) or _leaves.is_a(model, "equinox")


def contents(model: Any, wrt: Any = None) -> tuple[PyTree, list[Leaf]]:
    """The parameters of an NNX or Equinox module, and their leaves with owners."""
    return (_of_nnx if _leaves.is_nnx_module(model) else _of_equinox)(model, wrt)


def tied(rule: Rule, model: Any) -> Rule:
    """A rule that asks about every name of what a module holds more than once."""
    shared = shared_names(model)
    if not shared:
        return rule
    from flax import nnx

    leaves = {leaf.path: leaf for leaf in contents(model, nnx.Variable)[1]}
    # Of a Variable under another name its owner there; of a shared module the same.
    keys = {
        _leaves.path_of(k): k for group in nnx.find_duplicates(model) for k in group
    }

    def renamed(leaf: Leaf, name: str) -> Leaf:
        path = _leaves.path_of([name])
        owner = _owner(model, keys[path]) if path in keys else leaf.owner
        return dataclasses.replace(leaf, path=path, owner=owner)

    others = {
        path: tuple(renamed(leaves[path], name) for name in names)
        for path, names in shared.items()
    }
    return tie(rule, others)


def with_names(model: Any, leaves: list[Leaf]) -> list[Leaf]:
    """The leaves, and those that are shared once more under each other name."""
    shared = shared_names(model)
    more = (
        dataclasses.replace(leaf, path=_leaves.path_of([name]))
        for leaf in leaves
        for name in shared.get(leaf.path, ())
    )
    return [*leaves, *more]


def shared_names(model: Any) -> dict[Path, list[str]]:
    """The other paths of each Variable that an NNX module holds more than once."""
    if not _leaves.is_nnx_module(model):  # an Equinox module is a tree: it has copies
        return {}
    from flax import nnx

    groups: dict[Path, list[Path]] = {}
    for group in nnx.find_duplicates(model):
        paths = [_leaves.path_of(path) for path in group]
        groups.update((path, paths) for path in paths)
    found: dict[Path, list[str]] = {}
    for leaf in contents(model, nnx.Variable)[1]:
        for path in _leaves.prefixes(leaf.path):
            rest = leaf.path[len(path) :]
            others = ["/".join(p + rest) for p in groups.get(path, ()) if p != path]
            found[leaf.path] = found.get(leaf.path, []) + others
    return {path: others for path, others in found.items() if others}


def normalised(model: Any) -> list[str]:
    """Where an NNX module has a WeightNorm, which undoes every decay of its kernel."""
    if not _leaves.is_nnx_module(model):
        return []
    from flax import nnx

    return [
        "/".join(map(str, path)) or "the model"
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.WeightNorm)
    ]


def _of_nnx(model: Any, wrt: Any) -> tuple[PyTree, list[Leaf]]:
    from flax import nnx

    state = nnx.state(model, nnx.Param if wrt is None else wrt)
    known = {}
    for keys, variable in nnx.to_flat_state(state):
        facts = {"owner": _owner(model, keys), "metadata": variable.get_metadata()}
        known[_leaves.path_of(keys)] = facts
    pure = nnx.as_pure(state)
    return pure, [
        dataclasses.replace(leaf, **_leaves.longest(known, leaf.path))
        for leaf in _leaves.list_leaves(pure)
    ]


def _owner(model: Any, path: tuple[Any, ...]) -> type:
    """The type of the innermost module on the way to a Variable, lists left aside."""
    from flax import nnx

    node, owner = model, type(model)
    for key in path[:-1]:
        node = _child(node, key)
        if isinstance(node, nnx.Module) and not isinstance(node, nnx.List | nnx.Dict):
            owner = type(node)
    return owner


def _child(node: Any, key: Any) -> Any:
    if isinstance(node, Mapping) or isinstance(key, int):
        return node[key]
    return getattr(node, key)  # of a module, or a NamedTuple


def _of_equinox(model: Any, wrt: Any) -> tuple[PyTree, list[Leaf]]:
    if wrt is not None and (isinstance(wrt, type) or not callable(wrt)):
        raise TypeError(
            "wrt of an Equinox module is a function from a leaf to a bool, got "
            f"{wrt!r}; write wrt=eqx.is_inexact_array"
        )
    keep = _is_inexact_array if wrt is None else wrt
    tree = jax.tree.map(lambda x: x if keep(x) else None, model)
    pairs = zip(_leaves.list_leaves(tree), _equinox_owners(tree), strict=True)
    return tree, [
        dataclasses.replace(leaf, owner=owner, metadata={}) for leaf, owner in pairs
    ]


def _is_inexact_array(value: Any) -> bool:
    """As in Equinox, and of abstract arrays too."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return jnp.issubdtype(value.dtype, jnp.inexact)
    return sys.modules["equinox"].is_inexact_array(value)


def _equinox_owners(module: Any) -> Iterator[type]:
    """The type of the innermost module around each leaf, in order of the leaves."""

    def is_inner(node: Any) -> bool:
        return node is not module and _leaves.is_a(node, "equinox")

    for node in jax.tree.leaves(module, is_leaf=is_inner):
        yield from _equinox_owners(node) if is_inner(node) else (type(module),)
