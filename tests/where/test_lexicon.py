# SPDX-License-Identifier: Apache-2.0
"""The lexicon is the only list of names, and its words are cut from tokens as told."""

import ast
import collections
from collections.abc import Iterator

import pytest
from helpers import ROOT

import optax_wd as wd
from optax_wd._where.lexicon import KINDS, LEXICON, Kind

# Words that say what a leaf is, layers and adjectives left aside.
ROLES = (
    Kind.BIAS | Kind.SCALE | Kind.NORM | Kind.TABLE | Kind.TOKEN | Kind.POSITION
    | Kind.FACTOR | Kind.CONSTANT | Kind.CODEBOOK | Kind.LORA | Kind.STATISTIC
)  # fmt: skip
ALLOWED = {
    "_where/lexicon.py": "the list itself",
    "_where/words.py": "spellings of the lexicon's words",
    "_where/evidence.py": "the order of evidence asks for words by name",
    "_where/above.py": "the same, of modules",
    "_where/roles.py": "names of roles",
    "_where/holders.py": "names of roles",
    "_where/standard.py": "names of roles",
    "_where/standard_0_1.py": "the lists of version 0.1, which answer as they did",
    "_where/matrices.py": "the convolution of a ViT that is called `embedding`",
    "_where/known_folds.py": "what an axis is for: attention, convolutions, experts",
    "_see/warnings.py": "names of roles",
    "_how/methods/token_aware.py": "its default mask is a name, which has to match",
    "recipes": "each code base has its own list",
    "__main__.py": "words of English in messages",
}


def words_in(text: str) -> Iterator[str]:
    """Words of the lexicon that a module has as string literals of their own."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if KINDS.get(node.value.lower(), Kind.NONE) & ROLES:
                yield node.value


def test_there_is_no_second_list_of_names() -> None:
    found = collections.defaultdict(set)
    for path in sorted((ROOT / "optax_wd").rglob("*.py")):
        name = path.relative_to(ROOT / "optax_wd").as_posix()
        if name in ALLOWED or name.split("/")[0] in ALLOWED:
            continue
        found[name] |= set(words_in(path.read_text("utf-8")))
    assert {name: words for name, words in found.items() if words - ENGLISH} == {}


# Words that the package itself uses: arguments, fields and keys of its own.
ENGLISH = {
    "average", "count", "decay", "freq", "mean", "mu", "norm", "path", "scale", "step",
    "steps", "std", "sum", "table", "target", "temp", "token", "tokens", "var", "rel",
    "moving", "running", "Counts", "multiplier", "threshold", "decays", "log", "e",
    "positions", "position", "b",
}  # fmt: skip


def test_the_search_for_lists_finds_one() -> None:
    assert set(words_in("x = {'gamma', 'pos_embed', 'kernel'}\ny = 'bias'")) == {
        "gamma",
        "bias",
    }


@pytest.mark.parametrize("kind", [kind for kind in LEXICON if kind != Kind.WRAPPER])
def test_every_word_is_lower_case_and_says_where_it_was_seen(kind: Kind) -> None:
    for seen, words in LEXICON[kind].items():
        assert seen and words == words.lower()
        for word in words.split():
            assert KINDS[word] & kind


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("LayerNorm_0/scale", "scale"),
        ("layer_norm/bias", "bias"),
        ("attnnorm/weight", "scale"),
        ("blocks/0/attn/b_Q", "bias"),
        ("posEmbed", "position_table"),
        ("PatchEmbed/proj/kernel", "weight"),
        ("conv1d/kernel", "weight"),
        ("MoELayer_0/wi", "weight"),
        ("time_mix_k", "factor"),
        ("A_log", "model_constant"),
        ("kernel_lora_a", "lora"),
    ],
)
def test_tokens_are_cut_into_words(path: str, role: str) -> None:
    shape = (4,) if role == "scale" else (4, 8)
    leaf = wd.Leaf(tuple(path.split("/")), shape, "float32")
    assert getattr(wd.roles, role).matches(leaf), wd.roles.weight.reason(leaf)
