# SPDX-License-Identifier: Apache-2.0
"""Rules about what only the module knows: the type that holds a leaf, its metadata.

Names are no stable API; types are. A tree of parameters has neither types nor metadata,
so `mask_of` and `describe` ask such a rule about the model itself.
"""

import dataclasses
import enum
from typing import Any, final

from optax_wd._tree.leaves import Leaf
from optax_wd._where.rules import NameRule, Rule


class _Any(enum.Enum):
    """Stands for whatever value; prints as what a reader would write for it."""

    ANY = enum.auto()

    def __repr__(self) -> str:
        return "..."


_ANY = _Any.ANY


def owned_by(*kinds: type | str) -> Rule:
    """Leaves held directly by a module of one of `kinds`.

    Args:
      *kinds: module types of NNX, Linen or Equinox, of which subclasses count too, or
        names of types: `owned_by(nnx.LayerNorm, "RMSNorm")`. A Variable that several
        modules share is owned by the one under whose name it is listed.

    Returns:
      A rule for `mask_of` and `describe(rule, model)`.

    Raises:
      TypeError: if a kind is neither a type nor a string.
      ValueError: if there is no kind; when asked about a leaf without an owner, or if a
        name matches no leaf, or a type none where another type of its name owns some.
    """
    if not kinds:
        raise ValueError("owned_by() has no type; write owned_by(nnx.LayerNorm)")
    for kind in kinds:
        if not isinstance(kind, type | str):
            raise TypeError(f"owned_by takes module types or their names, got {kind!r}")
    return _OwnedBy(kinds)


def declared(key: str, value: object = True) -> Rule:
    """Leaves that declare `value` under `key` in the metadata of Variable or box.

    Args:
      key: name of the metadata entry, as in `nnx.Param(x, weight_decay=False)`, or of
        the field of a Linen box: `"names"` of `nn.Partitioned`. In Equinox there is
        no metadata.
      value: the value it has to have. A leaf without the entry does not match.

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


def asks_the_model(part: object) -> bool:
    """Whether a part of a rule can be answered with the model only."""
    return isinstance(part, _OwnedBy | _Declared)


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _OwnedBy(NameRule):
    kinds: tuple[type | str, ...]

    def written(self) -> tuple[NameRule, ...]:
        return tuple(_OwnedBy((kind,)) for kind in self.kinds)

    def misses(self, leaves: list[Leaf]) -> bool:
        """A type may well own nothing, unless another of its name owns something."""
        return super().misses(leaves) and (
            isinstance(self.kinds[0], str) or bool(self._namesakes(leaves))
        )

    def hint(self, leaves: list[Leaf]) -> str:
        if namesakes := self._namesakes(leaves):
            return (
                f"{self!r} matches no leaf: it is {_full_name(self.kinds[0])}, where "
                f"the owners are {_full_name(namesakes[0])}; write that type"
            )
        owners = dict.fromkeys(_type_name(leaf.owner) for leaf in leaves)
        return (
            f"{self!r} matches no leaf; owners are {', '.join(owners)}; write "
            "optional(...) if that is meant"
        )

    def _namesakes(self, leaves: list[Leaf]) -> list[Any]:
        """Owners that are called as the type is, in another framework."""
        kind = self.kinds[0]
        owners = dict.fromkeys(leaf.owner for leaf in leaves)
        return [
            owner
            for owner in owners
            if isinstance(owner, type)
            and isinstance(kind, type)
            and owner.__name__ == kind.__name__
        ]

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
            f"{', '.join(keys) or 'nothing'}; write optional(...) if that is meant"
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


def _full_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _type_name(kind: type | str | None) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _type_repr(kind: type | str) -> str:
    return kind.__name__ if isinstance(kind, type) else repr(kind)
