# SPDX-License-Identifier: Apache-2.0
"""What a mask asks for: one row per leaf, and warnings about what looks unintended.

This is the intention. What an optimizer really does is measured by `assert_decays`.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from optax_wd import _fold, _leaves, _masks, _modules
from optax_wd._leaves import Leaf
from optax_wd._rules import LeafFunction, unmatched
from optax_wd._standard import LAST_TOKENS
from optax_wd._typing import Mask, Multiplier, PyTree, Shape
from optax_wd._values import BoolTable, Table

_BIAS_LIKE = LAST_TOKENS - {"embedding", "input_embedding"}
_LORA = ("lora_a", "lora_b")
_EXAMPLES = 3


class Row(NamedTuple):
    """What is asked for one leaf.

    Attributes:
      path: the leaf's path, tokens separated by slashes.
      shape: the shape of the whole leaf.
      dtype: the name of the dtype.
      size: the number of elements.
      decays: whether the leaf decays.
      multiplier: the factor on the rate, or the least and the largest factor of an
        array; None if the leaf does not decay.
      because: the clause of the mask that decides.
    """

    path: str
    shape: Shape
    dtype: str
    size: int
    decays: bool
    multiplier: float | tuple[float, float] | None
    because: str


@dataclasses.dataclass(frozen=True)
class Description:
    """Rows, totals and warnings about a mask on a parameter tree; made by `describe`.

    Attributes:
      mask: the mask as text.
      rows: one Row for each array, in the order of `jax.tree.leaves`.
      warnings: sentences about what looks unintended.
    """

    mask: str
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Two lines: how many tensors and parameters decay, and how many do not."""
        lines = []
        for title, decays in (("decays", True), ("does not decay", False)):
            part, whole = self._totals(decays), self._totals(None)
            counts = (f"{part[key]:,} of {whole[key]:,} {key}" for key in whole)
            lines.append((title, *counts))
        return _fold.align(lines, right=(1, 2))

    def table(self, *, fold: bool = True) -> str:
        """The rows as plain text.

        Args:
          fold: whether repeated layers become one line, `block_{0..11}/mlp/kernel`,
            with the parameters of all of them.

        Returns:
          Text without trailing newline.
        """
        facts = [row[1:] for row in self.rows]
        names = [_fold.printable(row.path) for row in self.rows]
        groups = [(name, [n]) for n, name in enumerate(names)]
        if fold:
            groups = _fold.fold(list(zip(names, facts, strict=True)))
        head = ("leaf", "shape", "dtype", "parameters", "decays", "factor", "because")
        lines = [head] + [
            _cells(name, self.rows[where[0]], len(where)) for name, where in groups
        ]
        if all(row.multiplier in (None, 1.0) for row in self.rows):
            lines = [line[:5] + line[6:] for line in lines]
        return _fold.align(lines, right=(3,))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data that `json.dumps` takes."""
        return {
            "mask": self.mask,
            "rows": [row._asdict() for row in self.rows],
            "decays": self._totals(True),
            "does_not_decay": self._totals(False),
            "warnings": list(self.warnings),
        }

    def _totals(self, decays: bool | None) -> dict[str, int]:
        sizes = [row.size for row in self.rows if decays in (None, row.decays)]
        return {"tensors": len(sizes), "parameters": sum(sizes)}

    def __str__(self) -> str:
        notes = [f"warning: {_fold.printable(text)}" for text in self.warnings]
        mask = f"mask: {_fold.printable(self.mask)}"
        return "\n".join([mask, self.table(), self.summary(), *notes])


def describe(
    mask: Mask, params_or_model: PyTree, *, multiplier: Multiplier | None = None
) -> Description:
    """Show which leaves a mask decays, how much, and because of which clause.

    Nothing is allocated and values are not looked at. A name that matches no leaf is a
    warning here, not an error.

    Args:
      mask: a rule, a function from the tree to a tree of bools, or such a tree.
      params_or_model: a tree of parameters, concrete or from `jax.eval_shape`; or an
        NNX module, whose rules may ask for owners and metadata, and whose shared
        parameters are shown.
      multiplier: factors on the rate, as in `masked_decay`.

    Returns:
      A Description: `print` it, or read `rows`, `warnings`, `summary()`, `to_dict()`.

    Raises:
      TypeError: if `mask` is no mask, or there are no arrays in `params_or_model`.
      ValueError: if a mask or multiplier that is a tree does not fit.

    Example:
      >>> import jax.numpy as jnp, optax_wd as wd
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> print(wd.describe(wd.standard, params).summary())
      decays          1 of 2 tensors  6 of 9 parameters
      does not decay  1 of 2 tensors  3 of 9 parameters
    """
    if isinstance(params_or_model, LeafFunction):
        raise TypeError(
            f"describe got {params_or_model!r} where the parameters belong; the order "
            "of arguments is (mask, params)"
        )
    _masks.check_mask(mask)
    _masks.check_multiplier(multiplier)
    tree, leaves, shared = _facts(params_or_model)
    if not any(leaf.is_array for leaf in leaves):
        kind = type(params_or_model).__name__
        raise TypeError(
            f"describe found no arrays in the {kind}; pass the tree of parameters, or "
            "jax.eval_shape of what makes it"
        )
    factors = _masks.factors_of(mask, multiplier, tree, leaves, strict=False)
    pairs = [(x, f) for x, f in zip(leaves, factors, strict=True) if x.is_array]
    rows = tuple(_row(leaf, factor, mask) for leaf, factor in pairs)
    warnings = (
        *_warn_of_totals(pairs),
        *_warn_of_leaves(pairs),
        *_warn_of_names(mask, leaves),
        *_warn_of_names(multiplier, leaves),
        *_warn_of_shared(leaves, shared),
    )
    return Description(_mask_text(mask), rows, warnings)


def _facts(given: PyTree) -> tuple[PyTree, list[Leaf], dict[Any, list[str]]]:
    if _leaves.is_nnx_module(given):
        leaves = _modules.module_leaves(given)
        return given, leaves, _modules.shared_names(given)
    return given, _leaves.list_leaves(given), {}


def _row(leaf: Leaf, factor: _masks.Factor | None, mask: Mask) -> Row:
    return Row(
        path=leaf.where,
        shape=leaf.shape,
        dtype=_dtype_name(leaf.dtype),
        size=leaf.size,
        decays=factor is not None,
        multiplier=_range(factor),
        because=_because(leaf, factor, mask),
    )


def _range(factor: _masks.Factor | None) -> float | tuple[float, float] | None:
    if factor is None or isinstance(factor, float):
        return factor
    low, high = float(np.min(factor)), float(np.max(factor))
    return low if low == high else (low, high)


@functools.cache
def _dtype_name(dtype: Any) -> str:
    return str(dtype)


def _because(leaf: Leaf, factor: _masks.Factor | None, mask: Mask) -> str:
    if not leaf.is_inexact:
        return f"{leaf.dtype} is not inexact"
    if not isinstance(mask, LeafFunction):
        return "a function says so" if _leaves.is_function(mask) else "a tree says so"
    if factor is None and mask.decide(leaf):
        return f"{mask.reason(leaf)}; factor 0"
    return mask.reason(leaf)


def _mask_text(mask: Mask) -> str:
    if isinstance(mask, LeafFunction):
        return repr(mask)
    return repr(mask) if _leaves.is_function(mask) else "a tree of bools"


def _cells(name: str, row: Row, count: int) -> tuple[str, ...]:
    factor = "-"
    if row.multiplier is not None:
        factor = "..".join(f"{end:g}" for end in np.atleast_1d(row.multiplier))
    decays = "yes" if row.decays else "no"
    total = f"{row.size * count:,}"
    because = _fold.printable(row.because)
    return (name, str(row.shape), row.dtype, total, decays, factor, because)


def _some(leaves: list[Leaf]) -> str:
    shown = ", ".join(leaf.where for leaf in leaves[:_EXAMPLES])
    more = len(leaves) - _EXAMPLES
    return shown + (f" and {more} more" if more > 0 else "")


def _warn_of_totals(pairs: list[tuple[Leaf, Any]]) -> Iterator[str]:
    decays = [factor is not None for leaf, factor in pairs if leaf.is_inexact]
    if decays and all(decays):
        yield "every leaf decays"
    if not any(decays):
        yield "no leaf decays"


def _warn_of_leaves(pairs: list[tuple[Leaf, Any]]) -> Iterator[str]:
    decayed = [leaf for leaf, factor in pairs if factor is not None]
    for text, found in (
        ("biases, scales or the like decay", [x for x in decayed if _is_bias_like(x)]),
        ("scalars decay", [x for x in decayed if x.ndim == 0]),
        (
            "factors of LoRA decay; the merged weights go to the pretrained ones",
            [x for x in decayed if set(_LORA) & {t.casefold() for t in x.path}],
        ),
        (
            "low-precision leaves decay; where the shrink per step is less than half a "
            "unit in the last place, rounding undoes it",
            [x for x in decayed if x.dtype.itemsize < 4],
        ),
    ):
        if found:
            yield f"{text}: {_some(found)}"


def _is_bias_like(leaf: Leaf) -> bool:
    name = leaf.name.casefold()
    return name in _BIAS_LIKE or name.endswith("_bias")


def _warn_of_names(given: Any, leaves: list[Leaf]) -> Iterator[str]:
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


def _warn_of_shared(leaves: list[Leaf], shared: dict[Any, list[str]]) -> Iterator[str]:
    for leaf in leaves:
        if others := shared.get(leaf.path):
            yield f"{leaf.where} is shared, and is also {', '.join(others)}"
