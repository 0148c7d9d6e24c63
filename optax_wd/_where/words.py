# SPDX-License-Identifier: Apache-2.0
"""Tokens cut into words, and what the lexicon knows of these.

`LayerNorm_0`, `layer_norm` and `layernorm` hold the same words. Single letters are kept
with their case where a whole piece between underscores is one letter, as in `W_Q` and
`b1`; letters that cutting leaves over, as of `conv1d` and `MoELayer`, are none.
"""

import dataclasses
import functools
import re

from optax_wd._where.lexicon import KINDS, Kind

_DIGITS = "0123456789"
_BORDERS = re.compile(r"[^A-Za-z0-9]+")
_END = re.compile(r"[\[ ]")  # from here on, as in `w[0,1] 8x0e`, there are no words
_PIECES = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_COUNTED = re.compile(r"^[0-9]+[dDxX]?")  # `2d`, `1x1`
# Names whose capitals are no borders between words.
_SPELLINGS = {"LoRA": "Lora", "DoRA": "Dora", "AdaLN": "Adaln", "adaLN": "adaln"}
_SPELT = re.compile("|".join(_SPELLINGS))
# Digits that belong to a name. Torch's weight normalisation keeps its gain in
# `original0` and its direction in `original1`.
_NUMBERED = {
    "original0": ("scale",),
    "original1": ("original",),
    "ia3": ("ia3",),
}

_DECIDING = (
    Kind.WEIGHT
    | Kind.KERNEL
    | Kind.BIAS
    | Kind.SCALE
    | Kind.NORM
    | Kind.TABLE
    | Kind.TOKEN
    | Kind.POSITION
    | Kind.FACTOR
    | Kind.CONSTANT
    | Kind.CODEBOOK
    | Kind.QUANTIZER
    | Kind.STATISTIC
    | Kind.LAYER
)


@dataclasses.dataclass(frozen=True, eq=False)  # as a key it is compared by identity
class Reading:
    """The words of a token.

    Attributes:
      words: in lower case, but single letters as they are written.
      kinds: of each word, Kind.NONE for one that is unknown.
      every: all kinds together.
      head: the position of the rightmost word that decides what the thing is, letters
        behind a word and adjectives left aside; -1 if there is none.
      is_loose: whether an unknown word stands behind the head.
      is_understood: whether every word is known, letters left aside.
      is_silent: whether the words say nothing about what the module holds.
      is_wrapper: whether the token, as the last one, is no name of the array.
      is_number: whether there are no words at all.
    """

    words: tuple[str, ...]
    kinds: tuple[Kind, ...] = dataclasses.field(init=False)
    every: Kind = dataclasses.field(init=False)
    head: int = dataclasses.field(init=False)
    is_loose: bool = dataclasses.field(init=False)
    is_understood: bool = dataclasses.field(init=False)
    is_silent: bool = dataclasses.field(init=False)
    is_wrapper: bool = dataclasses.field(init=False)
    is_number: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        kinds = tuple(map(_kind, self.words))
        head, is_loose = _head(self.words, kinds)
        every = Kind.NONE
        for kind in kinds:
            every |= kind
        known = [k for w, k in zip(self.words, kinds, strict=True) if len(w) > 1]
        facts = {
            "kinds": kinds,
            "every": every,
            "head": head,
            "is_loose": is_loose,
            "is_understood": all(known),
            "is_silent": all(
                kind & (Kind.SILENT | Kind.NEUTRAL | Kind.WRAPPER | Kind.ROW)
                and not kind & _DECIDING
                for kind in kinds
            ),
            "is_wrapper": all(kind & Kind.WRAPPER for kind in kinds),
            "is_number": not self.words,
        }
        for name, fact in facts.items():
            object.__setattr__(self, name, fact)

    @property
    def head_kind(self) -> Kind:
        """The kinds of the head; Kind.NONE where there is none."""
        return self.kinds[self.head] if self.head >= 0 else Kind.NONE

    def has(self, *words: str) -> bool:
        """Whether one of these words is among them."""
        return not set(words).isdisjoint(self.words)


@functools.lru_cache(maxsize=1 << 16)
def read(token: str) -> Reading:
    """The words of a token; one object for all tokens that differ by numbers alone."""
    if token in _NUMBERED:
        return _reading(_NUMBERED[token])
    return _read_stem(token.rstrip(_DIGITS))


@functools.lru_cache(maxsize=1 << 14)
def _read_stem(stem: str) -> Reading:
    return _reading(cut(stem))


@functools.lru_cache(maxsize=1 << 14)
def _reading(words: tuple[str, ...]) -> Reading:
    return Reading(words)


def cut(token: str) -> tuple[str, ...]:
    """The words of a token, in lower case but for single letters.

    Args:
      token: one component of a path.

    Returns:
      The words in order; none where there are only digits and signs.
    """
    name = _SPELT.sub(lambda found: _SPELLINGS[found[0]], _END.split(token)[0])
    words: list[str] = []
    for piece in _BORDERS.split(name):
        stripped = _COUNTED.sub("", piece.rstrip(_DIGITS))
        if piece.lower() in KINDS:
            words.append(piece.lower())
        elif len(stripped) == 1 and not piece[0].isdigit():
            words.append(stripped)
        elif stripped.lower() in KINDS:
            words.append(stripped.lower())
        else:
            words += _inside(stripped)
    return tuple(words)


def _inside(piece: str) -> list[str]:
    """The words of a piece that is written with capitals, digits or no border."""
    found: list[str] = []
    for word in _PIECES.findall(piece):
        if len(word) > 1:
            found += _halves(word.lower())
    return found


def _halves(word: str) -> tuple[str, ...]:
    """A word, or two known ones that are written together, as in `attnnorm`."""
    if word not in KINDS:
        for n in range(3, len(word) - 2):
            if word[:n] in KINDS and word[n:] in KINDS:
                return word[:n], word[n:]
    return (word,)


def _kind(word: str) -> Kind:
    if len(word) == 1:
        # Of letters, `q k v o` are projections in any case; the others stand for
        # something only in the places that `evidence` names.
        return KINDS.get(word.lower(), Kind.NONE) & (Kind.LAYER | Kind.NEUTRAL)
    return KINDS.get(word, Kind.NONE)


def _head(words: tuple[str, ...], kinds: tuple[Kind, ...]) -> tuple[int, bool]:
    is_loose = False
    for n in range(len(words) - 1, -1, -1):
        if len(words[n]) == 1 and any(kind & _DECIDING for kind in kinds[:n]):
            continue
        if kinds[n] & _DECIDING:
            return n, is_loose
        is_loose |= not kinds[n] and len(words[n]) > 1
    return -1, False
