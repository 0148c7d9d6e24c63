# SPDX-License-Identifier: Apache-2.0
"""The default mask and the matrices of version 0.1, for runs that began with them.

They go by lists of whole tokens, which `roles` replaced. Nothing else uses the lists.
"""

import dataclasses
import fnmatch
import functools
import re
from typing import final

from optax_wd._tree.leaves import Leaf
from optax_wd._tree.typing import Path
from optax_wd._where.atoms import documented
from optax_wd._where.rules import Rule, inner_shape

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


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Standard(Rule):
    def matches(self, leaf: Leaf) -> bool:
        return self._exempt(leaf) is None and leaf.ndim >= 2

    def reason(self, leaf: Leaf) -> str:
        exempt = self._exempt(leaf)
        return f"standard_0_1: {exempt or f'ndim {leaf.ndim}'}"

    def _exempt(self, leaf: Leaf) -> str | None:
        name = leaf.name
        if name.casefold() in LAST_TOKENS or name in LEAF_NAMES:
            return f"named {name!r}"
        if name.casefold().endswith("_bias"):
            return f"{name!r} ends in '_bias'"
        token = next((token for token in leaf.path if token in ANYWHERE), None)
        return None if token is None else f"in {token!r}"

    def __repr__(self) -> str:
        return "roles.standard_0_1"


standard_0_1: Rule = documented(
    _Standard(),
    """The default mask of version 0.1: by lists of tokens, then by rank.

    For a run that began with it. It decays some biases, scales and tables under names
    that the lists do not have; `diff(describe(roles.standard_0_1, params),
    describe(standard, params))` shows which leaves change.
    """,
)
"""The default mask of version 0.1."""

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


# Not a patch embedding, which is a convolution, and not attention of many heads.
@functools.cache
def _names() -> re.Pattern[str]:
    return re.compile(
        "(?!patch_embed|multi_head)"
        f"({'|'.join(map(fnmatch.translate, EMBEDDINGS + HEADS))})"
    )


@final
@dataclasses.dataclass(frozen=True, repr=False)
class OldMatrices(Rule):
    """The kind of the rule `matrices_0_1`; in an optimizer, with stacked axes."""

    stacked: tuple[tuple[Rule, int], ...] = ()

    def matches(self, leaf: Leaf) -> bool:
        """Whether version 0.1 took a leaf for a hidden matrix."""
        read = self._read(leaf)
        return standard_0_1.matches(read) and self._exempt(read) is None

    def reason(self, leaf: Leaf) -> str:
        """What exempts a leaf, or what `standard_0_1` says of it."""
        read = self._read(leaf)
        exempt = self._exempt(read)
        if exempt is not None and standard_0_1.matches(read):
            return f"matrices_0_1: in {exempt!r}"
        return standard_0_1.reason(read).replace("standard", "matrices", 1)

    def _read(self, leaf: Leaf) -> Leaf:
        return Leaf(leaf.path, inner_shape(leaf, self.stacked), leaf.dtype)

    def _exempt(self, leaf: Leaf) -> str | None:
        if 0 in leaf.shape or not leaf.is_inexact:
            return "empty"
        is_patch = leaf.path[-2:] == ("embedding", "kernel") and leaf.ndim == 4
        path = leaf.path[:-2] if is_patch else leaf.path
        named = (token for token in path if _names().match(token.casefold()))
        return next(named, _placed(path))

    def __repr__(self) -> str:
        return "roles.matrices_0_1"


def _placed(path: Path) -> str | None:
    """A name that tells by its place: the table of T5, or the head of a whole model."""
    inside = tuple(token for token in path if token not in _WRAPPERS)
    is_table = inside[-2:-1] == ("shared",) and inside[-1] != "kernel"
    is_head = len(inside) == 2 and inside[0] in OUTERMOST_HEADS
    return inside[-2] if is_table or is_head else None


matrices_0_1: Rule = documented(
    OldMatrices(),
    """The matrices of version 0.1, as `muon(..., matrices=roles.matrices_0_1)`.

    For a run that began with it: other matrices are another structure of the state.
    """,
)
"""The matrices of version 0.1."""
