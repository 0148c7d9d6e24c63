# SPDX-License-Identifier: Apache-2.0
"""Roles: what a leaf is in its model. Each is a rule like any other.

There is one question, and one answer to it, for the default mask, the matrix optimizers
and the warnings. `evidence` has the order in which a leaf is judged.
"""

import dataclasses
from typing import final

from optax_wd._tree.leaves import Leaf
from optax_wd._where import evidence, holders
from optax_wd._where.atoms import documented
from optax_wd._where.rules import Rule, inner_shape
from optax_wd._where.verdicts import Verdict
from optax_wd._where.words import Reading, read

Stack = tuple[tuple[Rule, int], ...]


def verdict(leaf: Leaf, stacked: Stack = ()) -> Verdict:
    """What a leaf is in its model, and how that is known.

    Args:
      leaf: the leaf; its owner counts where it is known.
      stacked: rules and axes that are taken off first.
    """
    path: tuple[Reading, ...] = tuple(map(read, leaf.path))
    shape = inner_shape(leaf, stacked)
    if leaf.owner is not None:
        if (found := holders.judge(leaf.owner, path, shape)) is not None:
            return found
    return evidence.judge(path, shape)


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Role(Rule):
    name: str
    among: tuple[str, ...]

    def matches(self, leaf: Leaf) -> bool:
        return verdict(leaf).role in self.among

    def reason(self, leaf: Leaf) -> str:
        return _said(leaf)

    def unsure(self, leaf: Leaf) -> bool:
        return verdict(leaf).unsure

    def __repr__(self) -> str:
        return f"roles.{self.name}"


@final
@dataclasses.dataclass(frozen=True, repr=False)
class _Unsure(Rule):
    def matches(self, leaf: Leaf) -> bool:
        return verdict(leaf).unsure

    def reason(self, leaf: Leaf) -> str:
        return _said(leaf)

    def __repr__(self) -> str:
        return "roles.unsure"


def _said(leaf: Leaf) -> str:
    found = verdict(leaf)
    return f"{found.role.replace('_', ' ')}: {found.text(leaf.path)}"


def _role(name: str, text: str, *more: str) -> Rule:
    return documented(_Role(name, (name, *more)), text)


weight = _role(
    "weight",
    """Weight matrices and convolutions.

    A `kernel` or `w` with two or more axes is one, whatever stands above it. A `weight`
    is one unless the module above is a norm, a table or a learned token. What has two
    or more axes longer than one, and a name that says nothing, counts as one and is
    marked as unsure.
    """,
)
"""Weight matrices and convolutions."""

bias = _role(
    "bias",
    "Biases and shifts: bias, beta, offset, shift, `b`, `*_b`, `bq`; of any rank.",
)
"""Biases and shifts."""

scale = _role(
    "scale",
    "Gains of norms and of weight normalisation, layer scales: scale, gamma, gain, and "
    "a `weight` in a norm.",
)
"""Gains of norms and of weight normalisation, layer scales."""

token_table = _role(
    "token_table",
    "Tables of which a token, a class or an item picks a row: token embeddings.",
)
"""Tables of which a token, a class or an item picks a row."""

position_table = _role(
    "position_table",
    "Tables and arrays of positions, absolute or relative: pos_embed, rel_pos_h.",
)
"""Tables and arrays of positions."""

learned_token = _role(
    "learned_token",
    "Tokens, queries and prompts that are learned themselves: cls_token, mask_token.",
)
"""Tokens, queries and prompts that are learned themselves."""

factor = _role(
    "factor",
    "Factors that are no gain of a norm: temperatures, logit scales, IA3, mixing.",
)
"""Factors that are no gain of a norm."""

model_constant = _role(
    "model_constant",
    "Constants of the model: time steps, decay rates and skips of state-space models, "
    "frequencies.",
)
"""Constants of the model."""

codebook = _role(
    "codebook",
    "Codebooks of vector quantisers. Unsure wherever there is more than one axis.",
)
"""Codebooks of vector quantisers."""

lora = _role(
    "lora",
    """Factors of LoRA and its kin: lora_a, lora/a, kernel_lora_b, hada_w1.

    `standard` decays them, which pulls the merged weight to the pretrained one.
    """,
)
"""Factors of LoRA and its kin."""

statistic = _role(
    "statistic",
    "Statistics that live in the tree: running means and variances, counters.",
)
"""Statistics that live in the tree."""

unsure: Rule = documented(
    _Unsure(),
    """Leaves about which names do not tell enough.

    By shape alone, or by a name that elsewhere means another thing. `describe` marks
    them with a question mark. `mask & ~roles.unsure` leaves them out.
    """,
)
"""Leaves about which names do not tell enough."""
