# SPDX-License-Identifier: Apache-2.0
"""The leaves that matrix optimizers take by default: hidden weight matrices.

These are the matrices that `standard` decays, without tables of tokens and positions
and without output layers, which do better under Adam. The names live in this file.
"""

import dataclasses
import fnmatch
import re
from typing import Any, final

import jax
import jax.numpy as jnp

from optax_wd._tree import leaves as _leaves
from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Path, Shape
from optax_wd._where.atoms import documented
from optax_wd._where.owners import asks_the_model
from optax_wd._where.rules import (
    LeafFunction,
    Rule,
    check_rule,
    inner_shape,
)
from optax_wd._where.standard import standard
from optax_wd._where.values import Table

# Any token of the path, compared case-folded, as globs. T5 calls its table `shared`,
# which elsewhere names layers: see `_placed`.
EMBEDDINGS = (
    "emb embed embed_* *_embed embedder embedding embeddings embedding_* *_embedding "
    "*_embeddings wte wpe tok_emb* token_emb* word_emb* pos_emb* position_emb*"
).split()
HEADS = (
    "head heads *_head head_dist unembed* logits logits_dense lm_logits output_logits "
    "classifier score"
).split()
# Only in front of all: deeper down BERT has an `output`, and GPT-J an `fc_out`, in
# every layer.
OUTERMOST_HEADS = frozenset("output fc_out".split())
_WRAPPERS = frozenset("params model module".split())

_WRITE = "write names, as in matrices & ~contains('router')"
# Not a patch embedding, which is a convolution, and not attention of many heads.
_NAMES = re.compile(
    "(?!patch_embed|multi_head)"
    f"({'|'.join(map(fnmatch.translate, EMBEDDINGS + HEADS))})"
)


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
        return standard.matches(read) and self._exempt(read) is None

    def reason(self, leaf: Leaf) -> str:
        """What exempts a leaf, or what `standard` says of it."""
        read = self._read(leaf)
        exempt = self._exempt(read)
        if exempt is not None and standard.matches(read):
            return f"matrices: {exempt}"
        said = standard.reason(read).replace("standard", "matrices", 1)
        taken = leaf.ndim - read.ndim
        return f"{said} without {taken} stacked" if taken and " ndim " in said else said

    def _read(self, leaf: Leaf) -> Leaf:
        """A leaf without its stacked axes."""
        return Leaf(leaf.path, inner_shape(leaf, self.stacked), leaf.dtype)

    def _exempt(self, leaf: Leaf) -> str | None:
        if not is_real(leaf):
            return str(leaf.dtype)
        if 0 in leaf.shape:
            return "empty"
        path = (
            leaf.path[:-2] if is_patch_embedding(leaf.path, leaf.shape) else leaf.path
        )
        named = (token for token in path if _NAMES.match(token.casefold()))
        name = next(named, _placed(path))
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
    if isinstance(part, Matrices):
        return Matrices(stacked)
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


def _placed(path: Path) -> str | None:
    """A name that tells by its place: the table of T5, or the head of a whole model."""
    inside = tuple(token for token in path if token not in _WRAPPERS)
    is_table = inside[-2:-1] == ("shared",) and inside[-1] != "kernel"
    is_head = len(inside) == 2 and inside[0] in OUTERMOST_HEADS
    return inside[-2] if is_table or is_head else None


matrices: Rule = documented(
    Matrices(),
    """The leaves that `muon` and `normuon` orthogonalise by default: hidden matrices.

    A leaf of real numbers that `standard` decays, a kernel of two or more dimensions
    none of which is 0, unless a token of its path, case-folded, is

    * a table or an input layer: emb, embed, embed_*, *_embed, embedder, embedding,
      embeddings, embedding_*, *_embedding, *_embeddings, wte, wpe, tok_emb*,
      token_emb*, word_emb*, pos_emb*, position_emb*, or `shared` just above a leaf that
      is no `kernel`, as in T5; but patch_embed* is a convolution, so a matrix; or
    * an output layer: head, heads, *_head but not multi_head*, head_dist, unembed*,
      logits, logits_dense, lm_logits, output_logits, classifier, score; or output and
      fc_out, where nothing but params, model or module stands above: deeper down these
      are hidden.

    A kernel of four dimensions in `embedding` is none of these: in big_vision, Scenic
    and others it is the convolution that cuts an image into patches, a matrix as
    `patch_embed`. Keys with dots, `model.embed_tokens.weight` in a flat dict, are read
    by their parts, as they are by every rule.

    All other leaves go to AdamW. Names are no stable API: a head that is called `fc`
    passes for a hidden layer, so read `describe_matrices(params)` before the first run,
    and combine: `matrices & ~contains("fc")`, `matrices | path("head/kernel")`.
    """,
)
"""Hidden matrices, which `muon` orthogonalises. `help(matrices)` says by what."""
