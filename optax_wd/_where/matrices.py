# SPDX-License-Identifier: Apache-2.0
"""The leaves that matrix optimizers take by default: hidden weight matrices.

These are the matrices that `standard` decays, without tables of tokens and positions
and without output layers, which do better under Adam. The names live in this file.
"""

import dataclasses
from typing import Any, final

import jax
import jax.numpy as jnp

from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Path, Shape
from optax_wd._where.atoms import documented
from optax_wd._where.lexicon import EMBEDS, HIDDEN, OUTERMOST, OUTPUTS, Kind
from optax_wd._where.owners import asks_the_model
from optax_wd._where.roles import verdict
from optax_wd._where.rules import (
    LeafFunction,
    Rule,
    check_rule,
    inner_shape,
)
from optax_wd._where.standard import DECAYING
from optax_wd._where.standard_0_1 import OldMatrices
from optax_wd._where.values import Table
from optax_wd._where.words import Reading, read

_WRITE = "write names, as in matrices & ~contains('router')"


def is_real(leaf: Leaf) -> bool:
    """Whether a leaf holds real floating-point numbers."""
    return leaf.is_array and jnp.issubdtype(leaf.dtype, jnp.floating)


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Matrices(Rule):
    """The kind of the rule `matrices`; with stacked axes, inside of an optimizer."""

    stacked: tuple[tuple[Rule, int], ...] = ()

    def matches(self, leaf: Leaf) -> bool:
        """Whether a leaf is a hidden weight matrix of real numbers."""
        read = self._read(leaf)
        return verdict(read).role in DECAYING and self._exempt(read) is None

    def reason(self, leaf: Leaf) -> str:
        """What exempts a leaf, or what its role is known from."""
        read = self._read(leaf)
        found = verdict(read)
        exempt = self._exempt(read)
        if exempt is not None and found.role in DECAYING:
            return f"matrices: {exempt}"
        taken = leaf.ndim - read.ndim
        said = f"matrices: {found.text(leaf.path)}"
        return f"{said}, without {taken} stacked" if taken else said

    def unsure(self, leaf: Leaf) -> bool:
        """Whether the role of the leaf is unsure, and decides."""
        read = self._read(leaf)
        return self._exempt(read) is None and verdict(read).unsure

    def _read(self, leaf: Leaf) -> Leaf:
        """A leaf without its stacked axes."""
        return Leaf(leaf.path, inner_shape(leaf, self.stacked), leaf.dtype)

    def _exempt(self, leaf: Leaf) -> str | None:
        if not is_real(leaf):
            return str(leaf.dtype)
        if 0 in leaf.shape:
            return "empty"
        name = _outside(leaf.path, leaf.ndim)
        return None if name is None else f"in {name!r}"

    def __repr__(self) -> str:
        return "matrices"


def check_matrices(matrices: Any, stacked: tuple[tuple[Rule, int], ...]) -> Rule:
    """The argument `matrices` of an optimizer, with its stacked axes inside."""
    if not isinstance(matrices, LeafFunction):
        if _leaves.is_function(matrices):
            raise TypeError(
                f"matrices takes a rule, got the function {matrices!r}; write "
                "satisfies(function, 'a reason'), of a function from a Leaf to a bool"
            )
        values = jax.tree.leaves(matrices)
        if values and all(isinstance(value, bool) for value in values):
            raise TypeError(
                "matrices takes a rule and no tree of bools; types of modules, which "
                f"mask_of knows, are not known here: {_WRITE}"
            )
    rule = check_rule(matrices, "matrices")
    if asked := [part for part in rule.written() if asks_the_model(part)]:
        raise TypeError(
            f"matrices asks about paths, shapes and dtypes, got {asked[0]!r}, which an "
            f"optimizer, that sees no model, cannot answer; {_WRITE}"
        )
    return _with_stacked(rule, stacked)


def _with_stacked(part: Any, stacked: tuple[tuple[Rule, int], ...]) -> Any:
    """A rule in which every `matrices`, however deep inside, takes stacked axes off."""
    if isinstance(part, Matrices | OldMatrices):
        return type(part)(stacked)
    if type(part) is tuple:
        return tuple(_with_stacked(inner, stacked) for inner in part)
    if not isinstance(part, Rule | Table):
        return part
    fields = {
        field.name: getattr(part, field.name) for field in dataclasses.fields(part)
    }
    told = {name: _with_stacked(value, stacked) for name, value in fields.items()}
    return part if told == fields else dataclasses.replace(part, **told)


def is_patch_embedding(path: Path, inner: Shape) -> bool:
    """Whether a leaf is the convolution of a ViT that is called `embedding`.

    A table of tokens is no kernel, but itself called `embedding`, and has two axes.
    """
    return path[-2:] == ("embedding", "kernel") and len(inner) == 4


def _outside(path: Path, ndim: int) -> str | None:
    """A token that puts a matrix outside of the hidden ones: at a table, or a head."""
    tokens = [(token, read(token)) for token in path]
    for token, words in tokens:
        if ndim < 4 and _embeds(words):  # of four axes it is a convolution over patches
            return token
        if _is_output(words):
            return token
    inside = [(token, words) for token, words in tokens if not words.is_silent]
    inside = [pair for pair in inside if not pair[1].is_wrapper]
    if len(inside) == 2 and inside[0][0] in OUTERMOST:
        return inside[0][0]
    return None


def _embeds(words: Reading) -> bool:
    """Whether a module embeds: a table, or the linear layer in the place of one."""
    if words.has("patch", "patches"):
        return False
    return bool(words.every & Kind.TABLE) or any(
        w.startswith(EMBEDS) for w in words.words
    )


def _is_output(words: Reading) -> bool:
    """Whether a module is an output layer, by its first word or its last."""
    names = words.words
    if not names or not HIDDEN.isdisjoint(names):
        return False
    return names[0] in OUTPUTS or names[-1] in OUTPUTS or names == ("heads",)


matrices: Rule = documented(
    Matrices(),
    """The leaves that `muon` and `normuon` orthogonalise by default: hidden matrices.

    A leaf of real numbers that `standard` decays, none of whose axes is of length 0,
    unless a token of its path is

    * a table or an input layer: it has a word that starts with `emb`, or is wte, wpe,
      table or the like. But what embeds patches, and a kernel of four axes below such a
      token, is a convolution, so a matrix; or
    * an output layer: its first or last word is head, unembed, logits, classifier or
      score, or it is heads, but not multi_head or pre_logits; or it is output or
      fc_out, where nothing but wrappers stands above: deeper down these are hidden.

    All other leaves go to AdamW. Names are no stable API: a head that is called `fc`
    passes for a hidden layer, so read `describe_matrices(params)` before the first run,
    and combine: `matrices & ~contains("fc")`, `matrices | path("head/kernel")`.
    """,
)
"""Hidden matrices, which `muon` orthogonalises. `help(matrices)` says by what."""
