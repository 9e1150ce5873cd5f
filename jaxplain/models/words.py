"""Words of plain English text, and the vocabulary that numbers them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxplain.models.types import TextModel, Tokens
from jaxplain.types import JaxplainError

PAD, UNKNOWN = "<pad>", "<unk>"
PAD_ID, UNKNOWN_ID = 0, 1

_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "–": "--", "—": "--"})
# Whole words that begin or end with punctuation of their own.
_WHOLE = re.compile(
    r"n't|'(s|re|ve|ll|d|m|em|til|tis|twas|cause|n'?|\d\ds?)|ol'"
    r"|mr\.|mrs\.|ms\.|dr\.|jr\.|sr\.|st\.|vs\.|etc\.|co\.|inc\.|bros\.|prof\.|sept\.|wash\."
    r"|[b-hj-z]\.|([a-z]\.){2,}"
)
_SUFFIX = re.compile(r"(.+?)(n't|'s|'re|'ve|'ll|'d|'m)")
_INSIDE = re.compile(r'(--+|\.\.+|[;!?()\[\]{}"]|,(?!\d)|:(?!\d))')
_RUN = re.compile(r"[?!]+|(.)\1*")


def words(text: str) -> list[str]:
    """Split `text` into lower-case words, with clitics and punctuation apart.

    Follows the Penn Treebank: "it's" is `it 's`, "don't" is `do n't`, a full stop stands alone,
    double quotes become two back-quotes or two apostrophes. Text that is split already comes out
    as it went in.

    >>> words("It's no good, and I don't like it.")
    ['it', "'s", 'no', 'good', ',', 'and', 'i', 'do', "n't", 'like', 'it', '.']

    Differs: sentences need not be split first, so a full stop is split off wherever a word ends,
    unless the word is a known abbreviation; case is dropped.

    References:
        Marcus, Santorini, Marcinkiewicz, "Building a Large Annotated Corpus of English: The Penn
        Treebank", Computational Linguistics 19(2), 1993. https://aclanthology.org/J93-2004/
    """
    text = unicodedata.normalize("NFC", text).translate(_QUOTES).lower()
    return [word for chunk in text.split() for word in _split(chunk)]


def _split(chunk: str) -> list[str]:
    """Words of one run of characters without white space."""
    if _WHOLE.fullmatch(chunk):
        return [chunk]
    if not any(map(str.isalnum, chunk)):
        return ["''" if run.group() == '"' else run.group() for run in _RUN.finditer(chunk)]
    first, last = chunk[0], chunk[-1]
    if not first.isalnum():
        head = _RUN.match(chunk).group()  # type: ignore[union-attr]
        if not (head == "'" and _WHOLE.fullmatch(chunk.rstrip(".,;:!?)\"'"))):
            return ["``" if head == '"' else head, *_split(chunk[len(head) :])]
    if last in ".,;:!?)]}%$\"'" or chunk.endswith("--"):
        rest = chunk[:-1] if last in ".'" and not chunk.endswith("..") else chunk.rstrip(last)
        if last in "?!":
            rest = chunk.rstrip("?!")
        tail = chunk[len(rest) :]
        return [*_split(rest), "''" if tail == '"' else tail]
    parts = [part for part in _INSIDE.split(chunk) if part]
    if len(parts) > 1:
        return [word for part in parts for word in _split(part)]
    if clitic := _SUFFIX.fullmatch(chunk):
        return [*_split(clitic.group(1)), clitic.group(2)]
    return ["can", "not"] if chunk == "cannot" else [chunk]


class Vocabulary(NamedTuple):
    """Words and their numbers: `words[i]` has id `i`, after `<pad>` (0) and `<unk>` (1).

    Attributes:
        words: all words, the two special ones first.
        ids: word to id.
    """

    words: tuple[str, ...]
    ids: MappingProxyType[str, int]


def vocabulary(listed: Iterable[str]) -> Vocabulary:
    """Number the words of a list whose first two are `<pad>` and `<unk>`.

    Raises:
        JaxplainError: if the list begins otherwise or a word occurs twice.
    """
    listed = tuple(listed)
    ids = {word: i for i, word in enumerate(listed)}
    if listed[:2] != (PAD, UNKNOWN) or len(ids) != len(listed):
        raise JaxplainError(
            f"a vocabulary lists each word once, with {PAD} and {UNKNOWN} first: make it with "
            "jaxplain.models.words.count_words"
        )
    return Vocabulary(listed, MappingProxyType(ids))


def count_words(texts: Iterable[list[str]], *, least: int = 1) -> Vocabulary:
    """Number the words that occur at least `least` times, the most frequent first."""
    counts = Counter(word for text in texts for word in text)
    kept = sorted((word for word in counts if counts[word] >= least), key=lambda w: (-counts[w], w))
    return vocabulary([PAD, UNKNOWN, *kept])


def tokenize(vocabulary: Vocabulary, max_length: int, text: str) -> Tokens:
    """Number the words of one text; a word the vocabulary lacks keeps its own piece.

    Raises:
        JaxplainError: if the text holds no word.
    """
    pieces = words(text)
    if not pieces:
        raise JaxplainError("the text is empty: give at least one word")
    kept = pieces[:max_length]
    ids = np.array([vocabulary.ids.get(piece, UNKNOWN_ID) for piece in kept], np.int32)
    return Tokens(ids, kept, len(pieces) > max_length)


class WordList(NamedTuple):
    """Words as single tokens of a model, and those that are none.

    Letters: `W` words that were found.

    Attributes:
        words: W words, each once.
        ids: `[W]` int32, their tokens.
        unknown: words that the vocabulary lacks.
        several: words that are more than one token, or none.
        repeated: words whose token another one has already.
    """

    words: tuple[str, ...]
    ids: np.ndarray
    unknown: tuple[str, ...]
    several: tuple[str, ...]
    repeated: tuple[str, ...]


def single_tokens(model: TextModel, listed: Iterable[str]) -> WordList:
    """Look up the words that are one token of `model`, special tokens aside, and count the rest.

    Cost: no evaluation; each word is tokenized.
    """
    kept: dict[int, str] = {}
    unknown, several, repeated = [], [], []
    for word in listed:
        ids = [int(i) for i in model.tokenize(word).ids] if word.strip() else []
        ids = [i for i in ids if i not in model.special_ids]
        if model.unk_id in ids:
            unknown.append(word)
        elif len(ids) != 1:
            several.append(word)
        elif ids[0] in kept:
            repeated.append(word)
        else:
            kept[ids[0]] = word
    left_out = (tuple(words) for words in (unknown, several, repeated))
    return WordList(tuple(kept.values()), np.array(list(kept), np.int32), *left_out)
