# SPDX-License-Identifier: Apache-2.0
"""The default mask: what the field means by "no decay on norms, biases, embeddings".

One rule for Linen, NNX, Haiku, Equinox, torch names and hand-written trees: leaves
whose role is weight or factor of LoRA. Rank alone is wrong in Flax: attention biases
have two dimensions, and `nn.scan` adds one to everything.
"""

import dataclasses
from typing import final

from optax_wd._tree.leaves import Leaf
from optax_wd._where.atoms import documented
from optax_wd._where.names import contains
from optax_wd._where.roles import verdict
from optax_wd._where.rules import (
    NameRule,
    Rule,
    Stacked,
    check_stacked,
    stacked_axes,
    stacked_repr,
)

DECAYING = frozenset({"weight", "lora"})


def standard_with(*, stacked: Stacked = None, also: tuple[str, ...] = ()) -> Rule:
    """The rule `standard`, with stacked axes taken off or more names left undecayed.

    Args:
      stacked: the leaves that carry a stacked axis (of `nn.scan`, `nnx.vmap`): a rule
        for axis 0, or pairs `(rule, axis)`, outermost first. Without it a stacked norm
        scale under an unusual name counts as a matrix.
      also: more tokens that, anywhere in a path, exempt a leaf from decay. Globs are
        allowed, as in `contains`.

    Returns:
      A rule. Called with a complete tree, it requires what the caller wrote, `also` and
      the names inside `stacked`, to match some leaf.

    Raises:
      TypeError: if `stacked` is neither a rule nor pairs, or `also` no tuple of
        strings.

    Example:
      >>> import optax_wd as wd
      >>> mask = wd.standard_with(stacked=wd.contains("blocks"), also=("router",))
    """
    if not isinstance(also, tuple | list):
        raise TypeError(
            f"also takes a tuple of tokens such as ('router',), got {also!r}"
        )
    return _Standard(check_stacked(stacked), contains(*also) if also else None)


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Standard(Rule):
    stacked: tuple[tuple[Rule, int], ...] = ()
    also: NameRule | None = None

    def matches(self, leaf: Leaf) -> bool:
        role = verdict(leaf, self.stacked).role
        return role in DECAYING and not self._is_also(leaf)

    def reason(self, leaf: Leaf) -> str:
        if self.also is not None and self._is_also(leaf):
            return f"standard: also {self.also.reason(leaf)}"
        said = f"standard: {verdict(leaf, self.stacked).text(leaf.path)}"
        taken = len(stacked_axes(leaf, self.stacked))
        return f"{said}, without {taken} stacked" if taken else said

    def written(self) -> tuple[NameRule, ...]:
        rules = [rule for rule, _ in self.stacked]
        rules += [] if self.also is None else [self.also]
        return tuple(part for rule in rules for part in rule.written())

    def unsure(self, leaf: Leaf) -> bool:
        return not self._is_also(leaf) and verdict(leaf, self.stacked).unsure

    def _is_also(self, leaf: Leaf) -> bool:
        return self.also is not None and self.also.matches(leaf)

    def __repr__(self) -> str:
        parts = [f"stacked={stacked_repr(self.stacked)}"] if self.stacked else []
        parts += [] if self.also is None else [f"also={self.also.patterns!r}"]
        return f"standard_with({', '.join(parts)})" if parts else "standard"


standard: Rule = documented(
    _Standard(),
    """The default mask of every decay: weight matrices, and nothing else.

    A leaf of an inexact dtype decays if its role is weight or factor of LoRA. Biases,
    scales, tables of tokens and positions, learned tokens, factors, constants of the
    model, codebooks and statistics do not, under whatever name the field gives them:
    `optax_wd.roles` has each of them as a rule. Names are cut into words, so that
    `pos_embeddings` and `mask_tokens` are known from the words that they are made of.
    The type of the module goes before names where the module is at hand (`mask_of`),
    names go before shape, and axes of length one do not count as dimensions.

    What names do not tell decays if it has two or more axes, and is marked as unsure:
    `describe(standard, params)` shows it with a question mark; read it before the first
    run. `query`, `key`, `value`, `mask` and `embed` alone never exempt: Flax attention
    has a `query/kernel`, and it decays. Stacked layers need
    `standard_with(stacked=...)` only for leaves of unusual names.

    Token embeddings do not decay, as in levanter, big_vision and OLMo. nanoGPT and the
    Hugging Face trainer decay them; the rule for that is
    `standard | roles.token_table`.

    Names are no stable API. Equinox calls every weight `weight`: there go by module
    types, with `mask_of(model, standard)`.
    """,
)
"""The default mask: weight matrices and nothing else. `help(standard)` says by what."""
