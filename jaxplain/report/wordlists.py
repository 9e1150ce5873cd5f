"""Which group a word belongs to: closed classes of English by list, or any lists of yours."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from jaxplain.report.words import words

# Closed classes of English, each word in the class it belongs to most often. "not" is in none: it
# turns a sentence's meaning, as a content word does.
FUNCTION_WORDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        name: frozenset(listed.split())
        for name, listed in {
            "determiners": "a an the this that these those each every either neither another all "
            "both some any no such which what whose half enough several few many much more most",
            "prepositions": "about above across after against along among amid around as at before "
            "behind below beneath beside besides between beyond by concerning despite down during "
            "except for from in inside into like near of off on onto out outside over past per "
            "since through throughout to toward towards under underneath until unlike up upon via "
            "with within without",
            "conjunctions": "and but or nor so yet if because although though while whereas unless "
            "than whether when whenever where wherever once lest",
            "pronouns": "i me my mine myself you your yours yourself yourselves he him his himself "
            "she her hers herself it its itself we us our ours ourselves they them their theirs "
            "themselves who whom one oneself someone somebody something anyone anybody anything "
            "everyone everybody everything nobody nothing none there",
            "auxiliaries": "am is are was were be been being have has had having do does did doing "
            "will would shall should can could may might must ought 'm 're 's 've 'll 'd",
        }.items()
    }
)
PUNCTUATION, SPECIAL = "punctuation", "special tokens"


def membership(
    pieces: Sequence[str], groups: Mapping[str, Collection[str]] | None = None
) -> dict[str, np.ndarray]:
    """Which pieces are in which group; a piece belongs to the group of the word that it is part of.

    Args:
        pieces: `T` pieces of one sentence, as its tokeniser gave them.
        groups: lists of words, compared in lower case; a word may be in several. None takes
            `FUNCTION_WORDS`. Special tokens may be listed, too.

    Returns:
        `[T]` bools for each group, then for "punctuation" (no letter and no digit), "special
        tokens", and for what is in none of them: "content words", or "other words" where `groups`
        are yours.

    >>> {k: v.tolist() for k, v in membership(["un", "##dead", "."], {"x": ["Undead"]}).items()}
    {'x': [True, True, False], 'punctuation': [False, False, True], 'special tokens': \
[False, False, False], 'other words': [False, False, False]}
    """
    listed = FUNCTION_WORDS if groups is None else groups
    lists = {name: {word.lower() for word in content} for name, content in listed.items()}
    shown, numbers = words(list(pieces)), word_numbers(pieces)
    whole: dict[int, str] = {}
    for piece, number in zip(shown, numbers.tolist(), strict=True):
        whole[number] = whole.get(number, "") + piece.text.lower()
    found = {
        name: np.array([whole[n] in content for n in numbers.tolist()], bool)
        for name, content in lists.items()
    }
    special = np.array([piece.special for piece in shown], bool)
    empty = np.array([not any(map(str.isalnum, whole[n])) for n in numbers.tolist()], bool)
    taken = np.any([special, *found.values()], axis=0)
    found[PUNCTUATION] = empty & ~taken
    found[SPECIAL] = special
    rest = "content words" if groups is None else "other words"
    found[rest] = ~np.any(list(found.values()), axis=0)
    return found


def word_numbers(pieces: Sequence[str]) -> np.ndarray:
    """`[T]` which word, counted from 0, a piece is part of."""
    glued = np.array([piece.glued for piece in words(list(pieces))], bool)
    return np.cumsum(~glued) - 1


def places(pieces: Sequence[str]) -> dict[str, np.ndarray]:
    """Where in the sentence a piece's word stands; special tokens and punctuation do not count.

    Returns:
        `[T]` bools for the first word, the last word, and five stretches of equal length; in a
        sentence of fewer than five words some stretches are empty.
    """
    kinds = membership(pieces, {})
    other = kinds[SPECIAL] | kinds[PUNCTUATION]
    number = np.where(other, -1, word_numbers(pieces))
    order = np.unique(number[~other])
    rank = np.searchsorted(order, number)  # the others are masked below
    count = max(len(order), 1)
    stretch = np.minimum(5 * rank // count, 4)
    found = {"first word": rank == 0, "last word": rank == len(order) - 1}
    found |= {f"{20 * k} to {20 * k + 20}%": stretch == k for k in range(5)}
    return {name: held & ~other for name, held in found.items()}
