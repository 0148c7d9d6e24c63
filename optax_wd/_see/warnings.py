# SPDX-License-Identifier: Apache-2.0
"""What looks unintended about a mask: sentences for `describe`.

Each names the leaf, what speaks against the verdict, and what to write instead. They
are rare, or nobody would read them.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from optax_wd._see.report import Row
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Mask
from optax_wd._where import modules as _modules
from optax_wd._where.owners import asks_the_model
from optax_wd._where.roles import verdict
from optax_wd._where.rules import LeafFunction, Rule, unmatched
from optax_wd._where.values import BoolTable, Table

_SMALL = ("bias", "scale")  # roles that no decay is for
_EXAMPLES = 3


def _some(leaves: list[Leaf]) -> str:
    shown = ", ".join(leaf.where for leaf in leaves[:_EXAMPLES])
    more = len(leaves) - _EXAMPLES
    return shown + (f" and {more} more" if more > 0 else "")


def of_totals(pairs: list[tuple[Leaf, Any]]) -> Iterator[str]:
    decays = [factor is not None for leaf, factor in pairs if leaf.is_inexact]
    if decays and all(decays):
        yield "every leaf decays"
    if not any(decays):
        yield "no leaf decays"


def of_shrinks(
    per_step: float | None, rows: tuple[Row, ...], at_step: int
) -> Iterator[str]:
    if per_step == 0:
        yield f"the shrink at step {at_step} is 0; pass at_step= for another step"
    shrinks = [row.shrink for row in rows if row.shrink is not None]
    if any(np.max(shrink) > 1.0 for shrink in shrinks):
        yield "a step takes away more than the whole weight; check the units"


def of_leaves(pairs: list[tuple[Leaf, Any]]) -> Iterator[str]:
    decayed = [leaf for leaf, factor in pairs if factor is not None]
    for text, found in (
        ("biases, scales or the like decay", [x for x in decayed if _is_bias_like(x)]),
        ("scalars decay", [x for x in decayed if x.ndim == 0]),
        ("factors of LoRA decay; " + _base_of(decayed), _lora_of(decayed)),
        (
            "low-precision leaves decay; where the shrink per step is less than half a "
            "unit in the last place, rounding undoes it",
            [x for x in decayed if x.dtype.itemsize < 4],
        ),
    ):
        if found:
            yield f"{text}: {_some(found)}"


def of_unsure(mask: Mask, pairs: list[tuple[Leaf, Any]]) -> Iterator[str]:
    unsure = [leaf for leaf, _ in pairs if is_unsure(leaf, mask)]
    if not unsure:
        return
    yield (
        f"{len(unsure)} marked with ?, since shape alone decides, or a name that may "
        f"mislead, such as {unsure[0].where}; where one is wrong, write "
        f"mask & ~path({unsure[0].where!r}) or mask | path(...)"
    )


def is_unsure(leaf: Leaf, mask: Mask) -> bool:
    return leaf.is_inexact and isinstance(mask, LeafFunction) and mask.unsure(leaf)


def _lora_of(leaves: list[Leaf]) -> list[Leaf]:
    return [leaf for leaf in leaves if verdict(leaf).role == "lora"]


def _base_of(decayed: list[Leaf]) -> str:
    """What becomes of the weights that factors of LoRA are added to."""
    factors = _lora_of(decayed)
    others = {leaf.path[:-1] for leaf in decayed if leaf not in factors}
    for leaf in factors:
        module = leaf.path[:-1]
        outer = module[:-1] if module[-1:] == ("lora",) else module
        if {module, outer, (*module, "base_module")} & others:
            return "so do their weights, unless wrt=nnx.LoRAParam leaves these out"
    return "the merged weights go to the pretrained ones"


def _is_bias_like(leaf: Leaf) -> bool:
    return verdict(leaf).role in _SMALL


def of_names(given: Any, leaves: list[Leaf]) -> Iterator[str]:
    if isinstance(given, LeafFunction):
        yield from unmatched(given, leaves)
    table = given.table if isinstance(given, BoolTable) else given
    if not isinstance(table, Table):
        return
    used = {table.row(leaf) for leaf in leaves}
    for n, (rule, value) in enumerate(table.rows):
        if n not in used and any(map(rule.matches, leaves)):
            why = "earlier rows match all of its leaves"
        elif n not in used and not unmatched(rule, leaves):
            why = "it matches no leaf"
        else:
            continue
        yield f"the row ({rule!r}, {value!r}) never decides: {why}"


def of_the_model(mask: Mask, asked: Mask, leaves: list[Leaf]) -> Iterator[str]:
    """Leaves about which an optimizer, which sees one path alone, decides otherwise."""
    known = any(leaf.owner is not None for leaf in leaves)
    if not known or not isinstance(mask, Rule) or not isinstance(asked, Rule):
        return
    if any(map(asks_the_model, mask.written())):
        return
    other = [
        leaf
        for leaf in leaves
        if leaf.is_inexact and asked.matches(leaf) != mask.matches(_bare(leaf))
    ]
    if other:
        yield (
            f"by its path alone, which is what an optimizer sees, {other[0].where} "
            f"{'decays' if mask.matches(_bare(other[0])) else 'does not decay'}"
            f"{_more(other)}; pass mask=mask_of(model, {mask!r})"
        )


def _bare(leaf: Leaf) -> Leaf:
    return Leaf(leaf.path, leaf.shape, leaf.dtype)


def _more(leaves: list[Leaf]) -> str:
    return f", and so with {len(leaves) - 1} more" if leaves[1:] else ""


def of_modules(model: Any) -> Iterator[str]:
    for path in _modules.normalised(model):
        yield (
            f"{path} is an nnx.WeightNorm, which writes the normalised kernel back in "
            "each forward pass: no decay of it lasts"
        )


def of_shared(leaves: list[Leaf], shared: dict[Any, list[str]]) -> Iterator[str]:
    for leaf in leaves:
        if others := shared.get(leaf.path):
            yield f"{leaf.where} is shared, and is also {', '.join(others)}"
