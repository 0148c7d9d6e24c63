# SPDX-License-Identifier: Apache-2.0
"""Masks from what only the module knows: types of layers, metadata of Variables.

Names are no stable API; types are. But the state that reaches an optimizer has neither
types nor metadata, so such a mask is made once, from the model, as a tree of bools.
Flax is imported inside the functions that are handed a Flax module.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, final

import jax

from optax_wd import _leaves
from optax_wd._leaves import Leaf
from optax_wd._rules import LeafFunction, NameRule, Rule, check_leaves
from optax_wd._typing import Path, PyTree

_ANY = object()


def owned_by(*kinds: type | str) -> Rule:
    """Leaves held directly by a module of one of `kinds`.

    Args:
      *kinds: module types, of which subclasses count too, or names of types:
        `owned_by(nnx.LayerNorm, nnx.RMSNorm)`. A Variable that several modules share
        is owned by the one under whose name it is listed.

    Returns:
      A rule for `mask_of` and `describe(rule, model)`.

    Raises:
      TypeError: if a kind is neither a type nor a string.
      ValueError: if there is no kind; when asked about a leaf without an owner, or if a
        name matches no leaf.
    """
    if not kinds:
        raise ValueError("owned_by() has no type; write owned_by(nnx.LayerNorm)")
    for kind in kinds:
        if not isinstance(kind, type | str):
            raise TypeError(f"owned_by takes module types or their names, got {kind!r}")
    return _OwnedBy(kinds)


def declared(key: str, value: object = True) -> Rule:
    """Leaves whose Variable declares `value` under `key` in its metadata.

    Args:
      key: name of the metadata entry, as in `nnx.Param(x, weight_decay=False)`.
      value: the value it has to have. A Variable without the entry does not match.

    Returns:
      A rule for `mask_of` and `describe(rule, model)`.

    Raises:
      TypeError: if `key` is not a string.
      ValueError: when asked about a leaf without metadata, or if no Variable declares
        the entry.
    """
    if not isinstance(key, str):
        raise TypeError(f"declared takes the name of a metadata entry, got {key!r}")
    return _Declared(key, value)


def mask_of(model: Any, rule: LeafFunction, *, wrt: Any = None) -> PyTree:
    """The answers of a rule for the Variables of an NNX module, as a tree.

    The tree is one that `nnx.Optimizer` takes, at init and at update, as a mask or,
    where `rule` is a table of strings, as labels for `optax.partition`.

    Args:
      model: an NNX module.
      rule: a rule or table; here it may ask for owners and metadata.
      wrt: filter for the Variables, the one that the optimizer is given. By default
        `nnx.Param`.

    Returns:
      A tree of answers with the structure of `nnx.as_pure(nnx.state(model, wrt))`.

    Raises:
      TypeError: if `model` is no NNX module, or `rule` neither rule nor table.
      ValueError: if a name or pattern in `rule` matches no leaf.
    """
    if not isinstance(rule, LeafFunction):
        raise TypeError(f"mask_of takes a rule such as `standard`, got {rule!r}")
    if not _leaves.is_nnx_module(model):
        raise TypeError(
            f"mask_of takes an NNX module, got {type(model).__name__}; call the rule "
            "itself with a tree of parameters: rule(params)"
        )
    from flax import nnx

    pure = nnx.as_pure(nnx.state(model, nnx.Param if wrt is None else wrt))
    leaves = module_leaves(model, wrt)
    check_leaves(rule, leaves, complete=True)
    return jax.tree.structure(pure).unflatten(map(rule.decide, leaves))


def module_leaves(model: Any, wrt: Any = None) -> list[Leaf]:
    """The leaves of an NNX module with owners and metadata, in order of its state."""
    from flax import nnx

    state = nnx.state(model, nnx.Param if wrt is None else wrt)
    known = {}
    for path, variable in nnx.to_flat_state(state):
        facts = {"owner": _owner(model, path), "metadata": variable.get_metadata()}
        known[_leaves.path_of(path)] = facts
    return [
        dataclasses.replace(leaf, **next(_known(known, leaf.path)))
        for leaf in _leaves.list_leaves(nnx.as_pure(state))
    ]


def shared_names(model: Any) -> dict[Path, list[str]]:
    """The other paths of each Variable that an NNX module holds more than once."""
    from flax import nnx

    groups: dict[Path, list[Path]] = {}
    for group in nnx.find_duplicates(model):
        paths = [_leaves.path_of(path) for path in group]
        groups.update((path, paths) for path in paths)
    found: dict[Path, list[str]] = {}
    for leaf in module_leaves(model, nnx.Variable):
        for path in _leaves.prefixes(leaf.path):
            rest = leaf.path[len(path) :]
            others = ["/".join(p + rest) for p in groups.get(path, ()) if p != path]
            found[leaf.path] = found.get(leaf.path, []) + others
    return {path: others for path, others in found.items() if others}


def _known(known: dict[Path, dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """The entries of prefixes of a path: a Variable may hold more than one array."""
    return (known[p] for p in _leaves.prefixes(path) if p in known)


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


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _OwnedBy(NameRule):
    kinds: tuple[type | str, ...]

    def written(self) -> tuple[NameRule, ...]:
        """The names; a type cannot be mistyped, and may well own nothing."""
        return tuple(_OwnedBy((kind,)) for kind in self.kinds if isinstance(kind, str))

    def hint(self, leaves: list[Leaf]) -> str:
        owners = dict.fromkeys(_type_name(leaf.owner) for leaf in leaves)
        return f"{self!r} matches no leaf; owners are {', '.join(owners)}"

    def matches(self, leaf: Leaf) -> bool:
        if leaf.owner is None:
            raise ValueError(
                f"{self!r} asks for the module that holds {leaf.where!r}, which is "
                "known only from the model; make the mask with mask_of(model, rule)"
            )
        return any(_is_kind(leaf.owner, kind) for kind in self.kinds)

    def reason(self, leaf: Leaf) -> str:
        return f"owned by {_type_name(leaf.owner)}"

    def __repr__(self) -> str:
        return f"owned_by({', '.join(_type_repr(kind) for kind in self.kinds)})"


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Declared(NameRule):
    key: str
    value: object

    def written(self) -> tuple[NameRule, ...]:
        """The key, with whatever value."""
        return (_Declared(self.key, _ANY),)

    def hint(self, leaves: list[Leaf]) -> str:
        keys = dict.fromkeys(key for leaf in leaves for key in leaf.metadata or ())
        return (
            f"no Variable declares {self.key!r}; what they declare is "
            f"{', '.join(keys)}; write optional(...) if that is meant"
        )

    def matches(self, leaf: Leaf) -> bool:
        if leaf.metadata is None:
            raise ValueError(
                f"{self!r} asks for the metadata of {leaf.where!r}, which is known "
                "only from the model; make the mask with mask_of(model, rule)"
            )
        if self.key not in leaf.metadata or self.value is _ANY:
            return self.key in leaf.metadata
        return bool(leaf.metadata[self.key] == self.value)

    def reason(self, leaf: Leaf) -> str:
        if self.key not in (leaf.metadata or {}):
            return f"declares no {self.key}"
        return f"declares {self.key}={(leaf.metadata or {})[self.key]!r}"

    def __repr__(self) -> str:
        return f"declared({self.key!r}, {self.value!r})"


def _is_kind(owner: type | str, kind: type | str) -> bool:
    if isinstance(owner, type) and isinstance(kind, type):
        return issubclass(owner, kind)
    names = [c.__name__ for c in owner.__mro__] if isinstance(owner, type) else [owner]
    return _type_name(kind) in names


def _type_name(kind: type | str | None) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _type_repr(kind: type | str) -> str:
    return kind.__name__ if isinstance(kind, type) else repr(kind)
