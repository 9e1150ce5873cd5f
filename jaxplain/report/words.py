"""Pieces of a text as a person reads them."""

import re
from collections.abc import Iterable
from typing import NamedTuple

SPECIAL = re.compile(r"\[(CLS|SEP|PAD|MASK|BOS|EOS)\]|<(s|/s|pad|cls|sep|mask|bos|eos)>|<\|.*\|>")


class Word(NamedTuple):
    """A piece as it is shown: its letters, whether it continues a word, whether it is special."""

    text: str
    glued: bool
    special: bool


def words(pieces: list[str]) -> list[Word]:
    """Take the tokeniser's marks off the pieces: `##`, or a leading `▁` or `Ġ`.

    >>> [word.text for word in words(["[CLS]", "un", "##bear", "##able", "[SEP]"])]
    ['[CLS]', 'un', 'bear', 'able', '[SEP]']
    """
    marks_starts = any(piece[:1] in ("▁", "Ġ") for piece in pieces)
    shown = []
    for position, piece in enumerate(pieces):
        if piece[:1] in "[<" and SPECIAL.fullmatch(piece):
            shown.append(Word(piece, False, True))
        elif piece.startswith("##") and len(piece) > 2:
            shown.append(Word(piece[2:], position > 0, False))
        elif piece[:1] in ("▁", "Ġ"):
            shown.append(Word(piece[1:] or " ", False, False))
        else:
            shown.append(Word(piece, marks_starts and position > 0, False))
    return shown


def whole(pieces: list[str], scores: Iterable[float]) -> list[tuple[str, float]]:
    """Join pieces to words as they are written; a word's score is the sum of its pieces'.

    Special tokens are left out.

    >>> whole(["[CLS]", "Un", "##bearable", "film"], [9, 1, 2, 4])
    [('Unbearable', 3.0), ('film', 4.0)]
    """
    found: list[tuple[str, float]] = []
    for (text, glued, special), score in zip(words(pieces), scores, strict=True):
        if special:
            continue
        if glued and found:
            before, total = found[-1]
            found[-1] = before + text, total + float(score)
        else:
            found.append((text, float(score)))
    return found
