# SPDX-License-Identifier: Apache-2.0
"""Which layer a leaf belongs to: by the numbers in its path, or by rules.

A `layer_of` is any function from a Leaf to an id, 0 for the lowest layer, or None. The
ones made here are values; they know how many layers there are, and so mean the same
where `optax.masked` or `optax.partition` shows a part of a tree as on the whole.
"""

import abc
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias, final

from optax_wd._tree.leaves import Leaf
from optax_wd._where.rules import NameRule, Rule, check_rule

LayerOf: TypeAlias = Callable[[Leaf], int | None]

Counts: TypeAlias = int | tuple["Counts", ...]


class Layers(abc.ABC):
    """A `layer_of` that knows the highest id."""

    @property
    @abc.abstractmethod
    def top(self) -> int:
        """The highest id."""

    @abc.abstractmethod
    def __call__(self, leaf: Leaf) -> int | None:
        """The id of the layer of a leaf; of the first one if it holds several."""

    @abc.abstractmethod
    def span(self, leaf: Leaf) -> int | None:
        """How many layers a leaf has to hold; None if that is not said."""

    @abc.abstractmethod
    def written(self) -> tuple[NameRule, ...]:
        """The names and patterns inside; each has to match some leaf."""


def numbered_layers(
    pattern: str,
    num_layers: Counts,
    *,
    first: Rule | None = None,
    last: Rule | None = None,
) -> Layers:
    """Layers by the number in their path: `first` is 0, block `i` is `i + 1`.

    `last` comes on top, at `num_layers + 1`. The pattern decides before `first`, and
    `first` before `last`, so `last=everything` takes all the rest. These are the ids of
    MAE, BEiT and DINOv2; for others there is `ordered_layers`.

    Args:
      pattern: whole tokens separated by slashes, anywhere in a path, with `#` for each
        number: `blocks/#`, `encoderblock_#`, `layers/#/blocks/#`. `*` and `?` stand for
        characters within a token.
      num_layers: how many layers there are, numbered from 0. For two numbers, how many
        of the inner for each of the outer, such as (2, 2, 6, 2), and so on; where the
        outer start at 1, the first is 0.
      first: the leaves of layer 0: tokens, positions, the patch embedding.
      last: the leaves of layer `num_layers + 1`: the final norm and the head.

    Returns:
      A function for `layerwise`, from a Leaf to the id of its layer or None.

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if the pattern has not as many numbers as `num_layers` counts; when
        called, if a number is too high, or if the highest occurs in no path of a
        complete tree.

    Example:
      >>> import optax_wd as wd
      >>> swin = wd.numbered_layers("layers/#/blocks/#", (2, 2, 6, 2))
      >>> swin(wd.Leaf(("layers", "2", "blocks", "5", "norm"), (4,), "float32"))
      10
    """
    if not isinstance(pattern, str) or "#" not in pattern:
        raise TypeError(
            "the pattern of numbered_layers is a string with # for the number, such "
            f"as 'blocks/#', got {pattern!r}"
        )
    if not isinstance(num_layers, int | tuple) or isinstance(num_layers, bool):
        raise TypeError(
            f"num_layers is 12, or a tuple such as (2, 2, 6, 2), got {num_layers!r}"
        )
    if _depth(num_layers) != pattern.count("#") or _total(num_layers) < 1:
        raise ValueError(
            f"num_layers={num_layers!r} does not count the numbers of {pattern!r}; "
            "write 12 for one #, (2, 2, 6, 2) for two"
        )
    for name, rule in (("first", first), ("last", last)):
        if rule is not None:
            check_rule(rule, name)
    return _Numbered(pattern, num_layers, first, last)


def ordered_layers(*rows: Rule | tuple[Rule, int]) -> Layers:
    """Layers by rules: the first row that matches a leaf is its layer.

    Args:
      *rows: rules, from the bottom to the top of the model. A pair `(rule, n)` is for
        leaves that hold `n` layers along their stacked axis; the next row then has an
        id that is higher by `n`.

    Returns:
      A function for `layerwise`, from a Leaf to the id of its layer or None.

    Raises:
      TypeError: if a row is neither a rule nor a pair.
      ValueError: if there is no row, or a number is less than 1; when called, if a leaf
        holds another number of layers than its row says.

    Example:
      >>> import optax_wd as wd
      >>> tokens = wd.contains("cls_token", "pos_embed", "patch_embed")
      >>> blocks = [wd.path(f"blocks/{n}/**") for n in range(12)]
      >>> timm_vit = wd.ordered_layers(  # its norm goes with the last block
      ...     tokens, *blocks[:-1], blocks[-1] | wd.contains("norm"), wd.everything
      ... )
      >>> blocks = wd.contains("blocks")  # in one stack
      >>> layer_of = wd.ordered_layers(
      ...     wd.contains("embed"), (blocks, 12), wd.everything
      ... )
      >>> factors = wd.layerwise(0.75, layer_of, stacked=blocks)
    """
    if not rows:
        raise ValueError("ordered_layers() has no row; write rules, the lowest first")
    found = []
    for row in rows:
        match row:
            case Rule():
                found.append((row, 1))
            case (Rule() as rule, int(n)) if not isinstance(n, bool):
                if n < 1:
                    raise ValueError(f"a row of ordered_layers holds {n} layers: {row}")
                found.append((rule, n))
            case _:
                raise TypeError(
                    "a row of ordered_layers is a rule, or a pair (rule, number of "
                    f"stacked layers), got {row!r}"
                )
    return _Ordered(tuple(found))


def _depth(counts: object) -> int | None:
    """How many numbers are counted: 1 for 12, 2 for (2, 2, 6, 2); None for nonsense."""
    if isinstance(counts, int) and not isinstance(counts, bool):
        return 1 if counts >= 0 else None
    if not isinstance(counts, tuple) or not counts:
        return None
    depths = {_depth(inner) for inner in counts}
    depth = depths.pop()
    return None if depths or depth is None else depth + 1


def _total(counts: Counts) -> int:
    return counts if isinstance(counts, int) else sum(map(_total, counts))


def _position(counts: Counts, numbers: list[int]) -> int | None:
    """How many layers stand before the one with these numbers; None if too high."""
    first, *rest = numbers
    if isinstance(counts, int):
        return first if first < counts else None
    if first >= len(counts):
        return None
    inner = _position(counts[first], rest)
    return None if inner is None else sum(map(_total, counts[:first])) + inner


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """The pattern for a whole path, with a group for each number."""
    special = {"#": "([0-9]+)", "*": "[^/]*?", "?": "[^/]"}
    body = "".join(special.get(c) or re.escape(c) for c in pattern)
    return re.compile(f"(?:.*?/)??{body}(?:/.*)?", re.DOTALL)


def _groups(counts: Counts, outer: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """The highest numbers of each innermost group that has any."""
    if isinstance(counts, int):
        yield from [(*outer, counts - 1)] if counts else []
        return
    for n, inner in enumerate(counts):
        yield from _groups(inner, (*outer, n))


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Highest(NameRule):
    """The leaves of the highest number: where there are none, num_layers is wrong."""

    layers: "_Numbered"
    numbers: tuple[int, ...]

    def matches(self, leaf: Leaf) -> bool:
        return self.layers.numbers(leaf) == self.numbers

    def reason(self, leaf: Leaf) -> str:
        return f"layer {self.layers(leaf)}"

    def hint(self, leaves: list[Leaf]) -> str:
        found = dict.fromkeys(map(self.layers.numbers, leaves))
        texts = ["/".join(map(str, numbers)) for numbers in found if numbers]
        highest = "/".join(map(str, self.numbers))
        return (
            f"no leaf has the number {highest} of {self.layers.pattern!r}, the highest "
            f"by num_layers={self.layers.num_layers}; the numbers found are "
            f"{', '.join(texts) or 'none'}, in paths such as {leaves[0].where!r}; for "
            "a part of a model give a function of your own as layer_of"
        )


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Numbered(Layers):
    pattern: str
    num_layers: Counts
    first: Rule | None
    last: Rule | None

    @property
    def top(self) -> int:
        return _total(self.num_layers) + 1

    def __call__(self, leaf: Leaf) -> int | None:
        if numbers := self.numbers(leaf):
            position = _position(self.num_layers, list(numbers))
            if position is None:
                raise ValueError(
                    f"layer {'/'.join(map(str, numbers))} found at {leaf.where!r}, but "
                    f"num_layers={self.num_layers}{self._range()}"
                )
            return position + 1
        if self.first is not None and self.first.matches(leaf):
            return 0
        return self.top if self.last is not None and self.last.matches(leaf) else None

    def numbers(self, leaf: Leaf) -> tuple[int, ...]:
        """The numbers in the path of a leaf; none if the pattern does not match."""
        found = _compiled(self.pattern).fullmatch(leaf.where)
        return tuple(map(int, found.groups())) if found else ()

    def span(self, leaf: Leaf) -> int | None:
        return 1

    def written(self) -> tuple[NameRule, ...]:
        ends = [rule for rule in (self.first, self.last) if rule is not None]
        parts = [part for rule in ends for part in rule.written()]
        highest = [_Highest(self, numbers) for numbers in _groups(self.num_layers)]
        return (*highest, *parts)

    def _range(self) -> str:
        if not isinstance(self.num_layers, int):
            return ""
        return f" (layers are 0..{self.num_layers - 1})"

    def __repr__(self) -> str:
        ends = (("first", self.first), ("last", self.last))
        parts = [f"{name}={rule!r}" for name, rule in ends if rule is not None]
        arguments = ", ".join([repr(self.pattern), repr(self.num_layers), *parts])
        return f"numbered_layers({arguments})"


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Ordered(Layers):
    rows: tuple[tuple[Rule, int], ...]

    @property
    def top(self) -> int:
        return sum(count for _, count in self.rows) - 1

    def __call__(self, leaf: Leaf) -> int | None:
        return next((start for start, _ in self._matching(leaf)), None)

    def span(self, leaf: Leaf) -> int | None:
        return next((count for _, count in self._matching(leaf)), None)

    def written(self) -> tuple[NameRule, ...]:
        return tuple(part for rule, _ in self.rows for part in rule.written())

    def _matching(self, leaf: Leaf) -> Iterator[tuple[int, int]]:
        start = 0
        for rule, count in self.rows:
            if rule.matches(leaf):
                yield start, count
            start += count

    def __repr__(self) -> str:
        rows = [repr(rule) if n == 1 else repr((rule, n)) for rule, n in self.rows]
        return f"ordered_layers({', '.join(rows)})"
