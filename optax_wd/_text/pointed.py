# SPDX-License-Identifier: Apache-2.0
"""Error messages that point at a piece of a text."""

from optax_wd._tree import fold as _fold

_WIDTH = 80  # characters of a long line that an error shows
_MAX_SENTENCE = 1000  # characters, of sentences that quote long arguments


def pointed(sentence: str, text: str, number: int, span: tuple[int, int]) -> str:
    """A sentence, one line of the text, and carets under a span of characters.

    Args:
      sentence: what is wrong.
      text: the whole text.
      number: the line that is meant, from 1 on.
      span: the first character of the piece in that line, and the one behind it.

    Returns:
      Three lines. Long ones are cut around the piece, control characters escaped.
    """
    lines = text.split("\n")
    line, (start, end) = lines[number - 1], span
    left = max(0, min(start - _WIDTH // 2, len(line) - _WIDTH))
    right = left + _WIDTH
    before = "..." * (left > 0) + _fold.printable(line[left:start])
    rest = _fold.printable(line[start:right]) + "..." * (right < len(line))
    carets = "^" * max(1, len(_fold.printable(line[start : min(end, right)])))
    if len(sentence) > _MAX_SENTENCE:
        half = _MAX_SENTENCE // 2
        sentence = f"{sentence[:half]} ... {sentence[-half:]}"
    where = f"line {number}: " if len(lines) > 1 else ""
    return f"{where}{sentence}\n  {before}{rest}\n  {' ' * len(before)}{carets}"
