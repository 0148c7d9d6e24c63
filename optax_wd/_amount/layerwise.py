# SPDX-License-Identifier: Apache-2.0
"""Factors that fall from the top of a model to its bottom: layer-wise decay.

`layerwise` says how much, its `layer_of` says where, and the place says what for: on
the learning rate (`scale_per_leaf`) or on the coefficient (`multiplier=`).
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, final

import numpy as np

from optax_wd._amount.layers import LayerOf, Layers
from optax_wd._tree.leaves import Leaf
from optax_wd._where.rules import (
    LeafFunction,
    NameRule,
    Rule,
    Stacked,
    check_stacked,
    stacked_axes,
    stacked_repr,
)


def layerwise(
    rate: float,
    layer_of: LayerOf,
    *,
    stacked: Stacked = None,
    minimum: float = 0.0,
) -> LeafFunction:
    """Factors `rate ** (L - l)` for layer `l` of `0..L`: 1 at the top, small below.

    The layer-wise learning rate of BEiT, MAE, timm and DINOv2 is
    `scale_per_leaf(layerwise(...))`, right before the learning rate. A decoupled decay
    that stands before it is scaled along, once. As `multiplier=` of a decay it scales
    the coefficient instead; both together give `rate ** (2 * (L - l))`.

    Args:
      rate: dimensionless, 0 or more; 1 means no difference between layers.
      layer_of: from a Leaf to the id of its layer, 0 for the first, or None for none.
        `L` is the highest id that `numbered_layers` or `ordered_layers` state; for a
        function of your own, the highest id in the tree.
      stacked: the leaves that hold several layers along an axis (of `nn.scan`,
        `nnx.vmap`), as in `min_ndim`. `layer_of` gives the id of the first of them, as
        `ordered_layers` does, and the factor is an array of the rank of the leaf.
      minimum: the least factor.

    Returns:
      A function of a tree, for `multiplier=` and `scale_per_leaf`. Every leaf that is
      scaled has to have a layer.

    Raises:
      TypeError: if an argument is of the wrong kind, or `layer_of` returns something
        else than an integer or None.
      ValueError: if a number is negative or not finite; when called, if a leaf has no
        layer or one above the highest, or if the highest is not known.

    Example:
      >>> import optax_wd as wd
      >>> layer_of = wd.numbered_layers(
      ...     "blocks/#", 12, first=wd.contains("patch_embed"), last=wd.everything
      ... )
      >>> layer_of(wd.Leaf(("blocks", "0", "mlp", "kernel"), (4, 4), "float32"))
      1
      >>> factors = wd.layerwise(0.75, layer_of)

    Source: Clark et al., ELECTRA, arXiv:2003.10555; Bao et al., BEiT, arXiv:2106.08254;
    `minimum` is timm's `min_scale`.
    """
    for name, value in (("rate", rate), ("minimum", minimum)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"the {name} of layerwise is a number, got {value!r}")
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"the {name} of layerwise is 0 or more, got {value}")
    if not callable(layer_of) or isinstance(layer_of, LeafFunction):
        raise TypeError(
            f"layer_of is a function from a Leaf to an integer or None, got "
            f"{layer_of!r}; write numbered_layers('blocks/#', 12)"
        )
    return _Layerwise(float(rate), layer_of, check_stacked(stacked), float(minimum))


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Layerwise(LeafFunction):
    rate: float
    layer_of: LayerOf
    stacked: tuple[tuple[Rule, int], ...]
    minimum: float

    def decide(self, leaf: Leaf) -> float | np.ndarray:
        return self.decider([leaf], complete=False)(leaf)

    def decider(self, leaves: list[Leaf], *, complete: bool) -> Callable[[Leaf], Any]:
        spans = [self._ids(leaf) for leaf in leaves]
        found = sorted({int(n) for ids in spans if ids is not None for n in ids.flat})
        if isinstance(self.layer_of, Layers):
            top = self.layer_of.top
        elif complete:
            top = max(found, default=0)
        else:
            raise ValueError(
                f"how many layers {self.layer_of!r} tells apart is not known from a "
                "part of a tree; make it with numbered_layers or ordered_layers, which "
                "say so"
            )
        return functools.partial(self._factor, top=top, found=found)

    def _factor(self, leaf: Leaf, top: int, found: list[int]) -> float | np.ndarray:
        ids = self._ids(leaf)
        if not leaf.is_inexact:
            return 1.0
        if ids is None:
            raise ValueError(
                f"{leaf.where!r} has no layer; {self.layer_of!r} found layers "
                f"{_ranges(found)} of 0..{top} in other leaves, and has to name one "
                "for each leaf that is scaled"
            )
        depths = [top - int(n) for n in ids.flat]
        powers = [max(self.minimum, self.rate**d) for d in depths]
        return np.asarray(powers).reshape(ids.shape) if ids.ndim else powers[0]

    def _ids(self, leaf: Leaf) -> np.ndarray | None:
        """The ids of the layers in a leaf, of its rank if it is stacked, else 0-d."""
        first = self._first(leaf)
        if first is None:
            return None
        axes = stacked_axes(leaf, self.stacked)
        sizes = [leaf.shape[axis] for axis in axes]
        count = math.prod(sizes)
        stated = self.layer_of.span(leaf) if isinstance(self.layer_of, Layers) else None
        if stated not in (None, count):
            advice = (
                f"write (rule, {count}) in ordered_layers, or another axis in stacked="
                if axes
                else "pass stacked= with a rule for it"
            )
            raise ValueError(
                f"{leaf.where!r} of shape {leaf.shape} holds {count} layers by "
                f"stacked={stacked_repr(self.stacked) if axes else None}, but {stated} "
                f"by {self.layer_of!r}; {advice}"
            )
        if not axes:
            return np.asarray(first)
        shape = [n if axis in axes else 1 for axis, n in enumerate(leaf.shape)]
        ids = first + np.arange(count).reshape(sizes)
        return ids.transpose(np.argsort(axes)).reshape(shape)

    def _first(self, leaf: Leaf) -> int | None:
        layer = self.layer_of(leaf) if leaf.is_inexact else None
        if layer is None:
            return None
        if isinstance(layer, bool) or not isinstance(layer, int | np.integer):
            raise TypeError(
                f"layer_of returned {layer!r} for {leaf.where!r}; return the id of its "
                "layer, an integer from 0 on, or None"
            )
        if layer < 0:
            raise ValueError(
                f"layer_of returned {layer} for {leaf.where!r}; ids start at 0"
            )
        return int(layer)

    def reason(self, leaf: Leaf) -> str:
        return f"layer {self._first(leaf)}"

    def written(self) -> tuple[NameRule, ...]:
        inside = [rule for rule, _ in self.stacked]
        inside += [self.layer_of] if isinstance(self.layer_of, Layers) else []
        return tuple(part for rule in inside for part in rule.written())

    def __repr__(self) -> str:
        parts = [repr(self.rate), repr(self.layer_of)]
        parts += [f"stacked={stacked_repr(self.stacked)}"] if self.stacked else []
        parts += [f"minimum={self.minimum!r}"] if self.minimum else []
        return f"layerwise({', '.join(parts)})"


def _ranges(ids: list[int]) -> str:
    """`0..3, 7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for n in ids:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    texts = [f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs]
    return ", ".join(texts) or "none"
