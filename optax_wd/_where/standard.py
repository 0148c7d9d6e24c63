# SPDX-License-Identifier: Apache-2.0
"""The default mask: what the field means by "no decay on norms, biases, embeddings".

One rule for Linen, NNX, Equinox and hand-written trees. It goes by names first and by
rank only where names are silent, because rank alone is wrong in Flax: attention biases
have two dimensions, and `nn.scan` adds one to everything. The names live in this file
and nowhere else.
"""

import dataclasses
from typing import final

from optax_wd._tree.leaves import Leaf
from optax_wd._where.atoms import documented
from optax_wd._where.names import contains
from optax_wd._where.rules import (
    NameRule,
    Rule,
    Stacked,
    check_stacked,
    inner_shape,
    stacked_repr,
)

# The last token of a leaf that is no weight matrix, compared case-folded: additive and
# multiplicative terms, and tables of tokens.
LAST_TOKENS = frozenset("bias b scale gamma beta embedding input_embedding".split())

# The last token, exactly. These are short words that further up in a path name modules
# full of weight matrices: the discriminator `D` of a GAN, the `cls` head of FlaxBert, a
# linear `probe`.
LEAF_NAMES = frozenset("A_log D dt_bias cls probe latents".split())

# Any token of the path, exactly.
ANYWHERE = frozenset(
    # learned tokens: timm, DINOv2, MAE, CLIP
    "cls_token class_token class_embedding dist_token reg_token reg_tokens "
    "register_tokens storage_tokens mask_token query_tokens "
    # positions, absolute: timm, big_vision, Flax examples, Hugging Face
    "pos_emb pos_embed pos_embed_spatial pos_embed_temporal pos_embed_win "
    "pos_embed_window pos_embed_abs absolute_pos_embed pos_embedding "
    "position_embedding position_embeddings positional_embedding "
    "position_embedding_table pixel_pos patch_pos "
    # positions, relative: Swin, BEiT, T5, T5X, LeViT, ViTDet
    "relative_position_bias_table relative_attention_bias attention_biases "
    "rel_embedding rel_pos_h rel_pos_w freqs "
    # scalars and per-channel factors: CLIP, XCiT, CaiT, BEiT
    "temperature logit_scale logit_bias layer_scale lambda_1 lambda_2".split()
)


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
        return self._decide(leaf)[0]

    def reason(self, leaf: Leaf) -> str:
        return self._decide(leaf)[1]

    def written(self) -> tuple[NameRule, ...]:
        rules = [rule for rule, _ in self.stacked]
        rules += [] if self.also is None else [self.also]
        return tuple(part for rule in rules for part in rule.written())

    def _decide(self, leaf: Leaf) -> tuple[bool, str]:
        name = leaf.name
        if name.casefold() in LAST_TOKENS or name in LEAF_NAMES:
            return False, f"standard: named {name!r}"
        if name.casefold().endswith("_bias"):
            return False, f"standard: {name!r} ends in '_bias'"
        for token in leaf.path:
            if token in ANYWHERE:
                return False, f"standard: in {token!r}"
        if self.also is not None and self.also.matches(leaf):
            return False, f"standard: also {self.also.reason(leaf)}"
        ndim = len(inner_shape(leaf, self.stacked))
        taken = f" without {leaf.ndim - ndim} stacked" if ndim < leaf.ndim else ""
        return ndim >= 2, f"standard: ndim {ndim}{taken}"

    def __repr__(self) -> str:
        parts = [f"stacked={stacked_repr(self.stacked)}"] if self.stacked else []
        parts += [] if self.also is None else [f"also={self.also.patterns!r}"]
        return f"standard_with({', '.join(parts)})" if parts else "standard"


standard: Rule = documented(
    _Standard(),
    """The default mask of every decay: weight matrices, and nothing else.

    A leaf of an inexact dtype with two or more dimensions decays, except where

    * its last token, case-folded, is bias, b, scale, gamma, beta, embedding or
      input_embedding, or ends in `_bias`;
    * its last token is cls, probe, latents, A_log, D or dt_bias;
    * any token of its path names a learned token (cls_token, mask_token, ...), a
      position table (pos_embed, relative_position_bias_table, ...) or a learned factor
      (temperature, logit_scale, layer_scale, ...).

    `query`, `key`, `value`, `mask` and `embed` count for nothing: Flax attention has a
    `query/kernel`, and it decays. Stacked layers need `standard_with(stacked=...)` only
    for leaves of unusual names: the biases and scales of scanned Flax layers are told
    by name.

    Token embeddings do not decay, as in levanter, big_vision and OLMo. nanoGPT and the
    Hugging Face trainer decay them; the rule for that is `standard |
    named("embedding")`, with the name that your model has for them.

    Names are no stable API. Equinox calls every weight `weight`, and its convolution
    biases have three dimensions; read `describe(standard, params)` before the first
    run, or go by module types with `mask_of(model, owned_by(...))`.
    """,
)
"""The default mask: weight matrices and nothing else. `help(standard)` says by what."""
