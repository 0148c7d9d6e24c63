# SPDX-License-Identifier: Apache-2.0
"""What a matrix optimizer takes for matrices: one row per leaf, before it runs."""

import dataclasses
import glob
import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from optax_wd._tree import fold as _fold
from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import PyTree, Shape
from optax_wd._where import modules as _modules
from optax_wd._where.folds import Folding, Folds, check_folding
from optax_wd._where.matrices import matrices
from optax_wd._where.names import path
from optax_wd._where.rules import LeafFunction, Rule, Stacked, unmatched


class MatrixRow(NamedTuple):
    """How a matrix optimizer treats one leaf.

    Attributes:
      path: the leaf's path, tokens separated by slashes.
      shape: the shape of the whole leaf.
      fold: one letter per axis, i for input, o for output, b for batch; empty for a
        leaf that goes to AdamW, or that `muon` refuses.
      matrices: how many these are; 0 where there is no fold.
      inputs: the number of inputs of each matrix; 0 where there is no fold.
      outputs: the number of its outputs; 0 where there is no fold.
      because: where the fold comes from, or the clause that leaves it to AdamW.
    """

    path: str
    shape: Shape
    fold: str
    matrices: int
    inputs: int
    outputs: int
    because: str


@dataclasses.dataclass(frozen=True)
class MatrixDescription:
    """Rows and warnings about the matrices of a tree; made by `describe_matrices`.

    Attributes:
      matrices: the rule as text.
      rows: one MatrixRow for each array, in the order of `jax.tree.leaves`.
      warnings: what `muon` refuses, and names that match no leaf.
    """

    matrices: str
    rows: tuple[MatrixRow, ...]
    warnings: tuple[str, ...]

    def table(self, *, fold: bool = True) -> str:
        """The rows as plain text.

        Args:
          fold: whether repeated layers become one line, `block_{0..11}/mlp/kernel`,
            with the matrices of all of them.

        Returns:
          Text without trailing newline.
        """
        return _fold.align(self._lines(fold))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data that `json.dumps` takes."""
        rows = [row._asdict() for row in self.rows]
        return dataclasses.asdict(self) | {"rows": rows}

    def _lines(self, fold: bool) -> list[Sequence[str]]:
        names = [_fold.printable(row.path) for row in self.rows]
        groups = [(name, [n]) for n, name in enumerate(names)]
        if fold:
            facts = [row._replace(path="") for row in self.rows]
            groups = _fold.fold(list(zip(names, facts, strict=True)))
        cells = (_cells(name, [self.rows[n] for n in where]) for name, where in groups)
        return [_HEAD, *cells]

    def _tail(self) -> list[str]:
        return [f"warning: {_fold.printable(text)}" for text in self.warnings]

    def __str__(self) -> str:
        head = _fold.printable(f"matrices: {self.matrices}")
        return "\n".join([head, self.table(), *self._tail()])

    def _repr_html_(self) -> str:
        """The same for a notebook, with every name escaped."""
        head = html.escape(_fold.printable(f"matrices: {self.matrices}"))
        tail = html.escape("\n".join(self._tail()))
        table = _fold.html_table(self._lines(fold=True))
        return f"<pre>{head}</pre>{table}<pre>{tail}</pre>"


_REFUSED = "see the warnings"
_EXAMPLES = 3
_HEAD = ("leaf", "shape", "fold", "matrices", "because")


def describe_matrices(
    params_or_model: PyTree,
    *,
    matrices: Rule = matrices,
    folds: Folds = None,
    stacked: Stacked = None,
) -> MatrixDescription:
    """Show which leaves `muon` and `normuon` orthogonalise, and as what matrices.

    Nothing is allocated and values are not looked at. What the optimizers refuse, and a
    name that matches no leaf, is a warning here and not an error.

    Args:
      params_or_model: a tree of parameters, concrete or from `jax.eval_shape`; or an
        NNX or Equinox module.
      matrices: as in `muon`.
      folds: as in `muon`.
      stacked: as in `muon`.

    Returns:
      A MatrixDescription: `print` it, or read `rows`, `warnings`, `to_dict()`. A matrix
      is shown as `inputs x outputs`.

    Raises:
      TypeError: if an argument is of the wrong kind, or there are no arrays in
        `params_or_model`.
      ValueError: if `folds` has a fold that is none.

    Example:
      >>> import jax.numpy as jnp, optax_wd as wd
      >>> query = {"kernel": jnp.zeros((16, 4, 8)), "bias": jnp.zeros((4, 8))}
      >>> params = {"query": query}
      >>> print(wd.describe_matrices(params).table())
      leaf          shape       fold  matrices   because
      query/bias    (4, 8)      -     AdamW      matrices: named 'bias'
      query/kernel  (16, 4, 8)  ioo   1 16 x 32  'query' makes heads
    """
    folding = check_folding(matrices, folds, stacked)
    asked, shared = folding, {}
    if _modules.holds_parameters(params_or_model):
        _, leaves = _modules.contents(params_or_model)
        shared = _modules.shared_names(params_or_model)
        tied = _modules.tied(folding.matrices, params_or_model)
        asked = dataclasses.replace(folding, matrices=tied)
    else:
        leaves = _leaves.list_leaves(params_or_model)
    # As the optimizers see them: without what only the model knows.
    leaves = [Leaf(leaf.path, leaf.shape, leaf.dtype) for leaf in leaves]
    arrays = [leaf for leaf in leaves if leaf.is_array]
    if not arrays:
        raise TypeError(
            f"describe_matrices found no arrays in the "
            f"{type(params_or_model).__name__}; pass the tree of parameters, or "
            "jax.eval_shape of what makes it"
        )
    found = [_row(leaf, asked) for leaf in arrays]
    ties = [
        f"{leaf.where} is shared, and is also {', '.join(shared[leaf.path])}"
        + _seen(leaf, folding.matrices, asked.matrices)
        for leaf in arrays
        if leaf.path in shared
    ]
    asked = [rule for rule, _ in folding.stacked]
    asked += [x for x in (matrices, folds) if isinstance(x, LeafFunction)]
    lost = [text for function in asked for text in unmatched(function, leaves)]
    refused = [text for _, text in found if text]
    more = len(refused) - _EXAMPLES
    refused[_EXAMPLES:] = [f"and {more} more are refused"] * (more > 0)
    rows = tuple(row for row, _ in found)
    return MatrixDescription(repr(folding.matrices), rows, (*refused, *lost, *ties))


def _seen(leaf: Leaf, alone: Rule, tied: Rule) -> str:
    """What an optimizer does, which sees one of the names alone."""
    if alone.matches(leaf) == tied.matches(leaf):
        return ""
    return (
        "; an optimizer sees this path alone, and takes it for a matrix: write "
        f"matrices={alone & ~path(glob.escape(leaf.where))!r}, and for the decay "
        "mask=mask_of(model, standard)"
    )


def _row(leaf: Leaf, folding: Folding) -> tuple[MatrixRow, str]:
    """The row of a leaf, and why it is refused."""
    if not folding.matrices.matches(leaf):
        because = folding.matrices.reason(leaf)
        return MatrixRow(leaf.where, leaf.shape, "", 0, 0, 0, because), ""
    try:
        fold = folding.fold(leaf)
    except ValueError as error:
        return MatrixRow(leaf.where, leaf.shape, "", 0, 0, 0, _REFUSED), str(error)
    number, inputs, outputs = (fold.length(letter) for letter in "bio")
    shown = fold.letters, number, inputs, outputs, fold.reason
    return MatrixRow(leaf.where, leaf.shape, *shown), ""


def _cells(name: str, rows: list[MatrixRow]) -> tuple[str, ...]:
    row = rows[0]
    count = sum(row.matrices for row in rows)
    size = f"{count:,} {row.inputs:,} x {row.outputs:,}"
    other = "refused" if row.because == _REFUSED else "AdamW"
    return (
        *(name, str(row.shape), row.fold or "-", size if row.fold else other),
        _fold.printable(row.because),
    )
