# SPDX-License-Identifier: Apache-2.0
"""Parameters among what a whole train state holds: moments, counters, keys, averages.

The state of an optimizer is known by its name, or by what it holds: moments, each with
the paths and shapes of the parameters beside it. A name alone is no proof where modules
are called so too. What is left out is named, always.
"""

import collections
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from optax_wd._see.files.headers import CheckpointError, Found
from optax_wd._tree.typing import Path, Shape

# Nobody calls a module so. (Texts are split, as these are names of states, not leaves.)
_SURE = frozenset("opt_state opt_states optimizer_state optim_state".split())
_LIKELY = frozenset("optimizer optimizers optim opt state states".split())
OPTIMIZERS = _SURE | _LIKELY - frozenset("state states".split())
_PARAMETERS = frozenset("params model target variables weights".split())
_MOMENTS = frozenset("mu nu trace".split())  # of Optax; T5X's stand in the next
_UNCOUNTED = frozenset("nu trace".split())  # whose states may have no counter
_SLOTS = "param_states"
_COUNTER = "count"
# What stands beside an optimizer and is no parameter, if it holds no fractions.
_BESIDE = frozenset("step steps global_step iteration epoch count".split())
_BESIDE |= frozenset("rng rngs key prng_key dropout_rng".split())
_AVERAGES = frozenset("ema avg average averaged target polyak swa shadow".split())
_NAMES = _SURE | _LIKELY | _MOMENTS | _BESIDE  # without any of these there is no state
_DEPTH = 10  # levels, below which no train state is looked for
_CANDIDATES = 32  # states within one node
_SHOWN = 5


class Branch(NamedTuple):
    """What is left out under one path.

    Attributes:
      arrays: how many arrays it has.
      copies: how often it holds what has the paths and shapes of the parameters; 0 if
        it does not hold all of them equally often.
    """

    arrays: int
    copies: int


class _Item(NamedTuple):
    path: Path
    shape: Shape
    inexact: bool
    moment: int  # where the name of a moment last stands in the path; -1 if nowhere

    @property
    def is_counter(self) -> bool:
        return self.shape == () and not self.inexact


def parameters(found: Found) -> tuple[Found, dict[str, Branch]]:
    """The arrays of a checkpoint without those of an optimizer.

    Args:
      found: all arrays, by path.

    Returns:
      The arrays that are left, and what is left out, by path. All arrays where no
      branch is the state of an optimizer, or where no others would be left.
    """
    items = list(_items(found))
    if _NAMES.isdisjoint(token for item in items for token in item.path):
        return found, {}
    left = dict(_left_out(items, 0))
    kept = [
        item
        for item in items
        if not any(item.path[: n + 1] in left for n in range(_DEPTH))
    ]
    if not left or not any(item.inexact for item in kept):
        return found, {}
    names = ["/".join(item.path) for item in kept]
    branches = {"/".join(path): branch for path, branch in left.items()}
    return {name: found[name] for name in names}, branches


def _items(found: Found) -> Iterator[_Item]:
    inexact = {x.dtype: jnp.issubdtype(x.dtype, jnp.inexact) for x in found.values()}
    for name, leaf in found.items():
        path = tuple(name.split("/"))
        moment = -1
        if not _MOMENTS.isdisjoint(path):
            moment = max(n for n, token in enumerate(path) if token in _MOMENTS)
        yield _Item(path, leaf.shape, inexact[leaf.dtype], moment)


def told(left: dict[str, Branch]) -> str:
    """What is left out, in one line; `left` is not empty."""
    names = [name + _facts(branch) for name, branch in left.items()][:_SHOWN]
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    return f"left out, as no parameters: {', '.join(names)}{more}; --all shows them"


def _facts(branch: Branch) -> str:
    arrays, copies = branch
    number = f"{arrays} array{'s' if arrays > 1 else ''}"
    if not copies:
        return f" ({number})"
    return f" ({copies} cop{'ies' if copies > 1 else 'y'} of the parameters, {number})"


def _left_out(items: list[_Item], depth: int) -> Iterator[tuple[Path, Branch]]:
    """The branches to leave out, below a node that all items have in common."""
    nodes: dict[str, list[_Item]] = {}
    for item in items:
        if len(item.path) > depth:
            nodes.setdefault(item.path[depth], []).append(item)
    likely = [name for name in nodes if _may_be_state(name, nodes[name], depth)]
    states: set[str] = set()
    if len(likely) <= _CANDIDATES:  # each is compared with all others
        states = {name for name in likely if _is_state(name, nodes, depth)}
    out = states | set(_beside(nodes, states, depth))
    whole = _whole(nodes, out, depth) if out else set()
    for name, below in nodes.items():
        if name in out:
            copies = _copies(below, whole, depth)
            yield below[0].path[: depth + 1], Branch(len(below), copies)
        elif depth + 1 < _DEPTH:
            yield from _left_out(below, depth + 1)


def _may_be_state(name: str, below: list[_Item], depth: int) -> bool:
    """Whether it is called so, or has moments only, or what counts."""
    if name in _SURE or name in _LIKELY or name in _MOMENTS:
        return True
    if any(x.is_counter and x.path[-1] == _COUNTER for x in below):
        return True
    return all(x.shape == () or x.moment > depth for x in below)


def _is_state(name: str, nodes: dict[str, list[_Item]], depth: int) -> bool:
    """Whether a node is the state of an optimizer, and not all that there is."""
    others = [x for key, node in nodes.items() if key != name for x in node]
    below, has_main = nodes[name], not _PARAMETERS.isdisjoint(nodes)
    if not any(x.inexact for x in others):
        return False
    if name in _SURE or (name in OPTIMIZERS and has_main):
        return True
    if name in _MOMENTS:  # a distribution has a `mu` too, but nothing that counts
        counted = any(x.is_counter for x in nodes.get(_COUNTER, ()))
        return counted and has_main and _mirrors(below, others, depth)
    if name in _LIKELY:
        slots = any(_SLOTS in x.path[depth + 1 :] for x in below)
        return slots or _mirrors(below, others, depth)
    return _is_counted(below, others, depth) or _is_all_moments(below, others, depth)


def _is_counted(below: list[_Item], others: list[_Item], depth: int) -> bool:
    """Whether there is nothing but states of Optax with a counter beside moments.

    A moment has the path of an array beside the node, after the name of its field; the
    shape is another where it is factored, or has a history.
    """
    known = {x.path[n:] for x in others for n in (depth, depth + 1)}
    counters = {x.path[:-1] for x in below if x.is_counter and x.path[-1] == _COUNTER}
    fields = {
        x: next((n - 1 for n in _starts(x, depth + 2) if x.path[n:] in known), None)
        for x in below
    }
    counted = {x.path[:n] for x, n in fields.items() if n is not None} & counters
    return bool(counted) and all(
        x.shape == () or n is not None or x.path[:-1] in counted
        for x, n in fields.items()
    )


def _is_all_moments(below: list[_Item], others: list[_Item], depth: int) -> bool:
    """Whether there is a trace or a mean of squares for each array beside the node."""
    arrays = [x for x in below if x.shape != ()]
    if any(x.path[x.moment] not in _UNCOUNTED or x.moment <= depth for x in arrays):
        return False
    moments = {(x.path[x.moment + 1 :], x.shape) for x in arrays}
    beside = [x for x in others if x.inexact]
    return any(
        {(x.path[n:], x.shape) for x in beside} == moments for n in (depth, depth + 1)
    )


def _starts(item: _Item, first: int) -> range:
    return range(first, min(len(item.path), first + _DEPTH))


def _mirrors(below: list[_Item], others: list[_Item], depth: int) -> bool:
    """Whether a moment has a path and the shape of an array beside its state."""
    known = {(x.path[n:], x.shape) for x in others for n in (depth, depth + 1)}
    return any(
        (x.path[x.moment + 1 :], x.shape) in known for x in below if x.moment >= depth
    )


def _beside(
    nodes: dict[str, list[_Item]], states: set[str], depth: int
) -> Iterator[str]:
    """Counters and keys beside parameters, and averages of these beside a state."""
    main = next((name for name in nodes if name in _PARAMETERS), None)
    if not states and main is None:
        return
    for name, below in nodes.items():
        if name in states or name == main:
            continue
        if name in _BESIDE and not any(item.inexact for item in below):
            yield name
        elif states and main is not None and _AVERAGES.intersection(name.split("_")):
            if _relative(below, depth) == _relative(nodes[main], depth):
                yield name


def _relative(items: Iterable[_Item], depth: int) -> set[tuple[Path, Shape]]:
    return {(item.path[depth + 1 :], item.shape) for item in items}


def _whole(
    nodes: dict[str, list[_Item]], out: set[str], depth: int
) -> set[tuple[Path, Shape]]:
    """What moments are copies of: the paths within the parameters, with shapes."""
    kept = [name for name in nodes if name not in out]
    main = [name for name in kept if name in _PARAMETERS] or kept
    if len(main) == 1:
        return _relative(nodes[main[0]], depth)
    return {(x.path[depth:], x.shape) for name in main for x in nodes[name]}


def _copies(below: list[_Item], whole: set[tuple[Path, Shape]], depth: int) -> int:
    counts: collections.Counter[Any] = collections.Counter()
    for item in below:
        tails = ((item.path[n:], item.shape) for n in _starts(item, depth + 1))
        counts[next((tail for tail in tails if tail in whole), None)] += 1
    numbers = {counts[tail] for tail in whole}
    return numbers.pop() if len(numbers) == 1 else 0


def subtree(found: Found, branch: str) -> Found:
    """The arrays below a branch, under their whole paths.

    Raises:
      CheckpointError: if there are none.
    """
    inside = branch.strip("/") + "/"
    kept = {path: leaf for path, leaf in found.items() if f"{path}/".startswith(inside)}
    if not kept:
        tops = list(dict.fromkeys(path.split("/")[0] for path in found))
        more = f" and {len(tops) - _SHOWN} more" if len(tops) > _SHOWN else ""
        known = ", ".join(map(repr, tops[:_SHOWN]))
        raise CheckpointError(
            f"there is nothing below {branch!r}; at the top are {known}{more}"
        )
    return kept
