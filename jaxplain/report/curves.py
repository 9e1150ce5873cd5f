"""A corpus at a glance: how much of its words each layer keeps, by kind of word and by place."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxplain.report.results import layer_numbers, word_information
from jaxplain.report.view import view
from jaxplain.report.wordlists import SPECIAL, membership, places
from jaxplain.run.packing import Record
from jaxplain.run.records import Records
from jaxplain.types import JaxplainError

CONSTANT = 0.5 * float(np.log(2 * np.pi * np.e))  # nats of a standard normal


class Curve(NamedTuple):
    """One slice of the words, layer by layer. Letters: `L` layers.

    Attributes:
        mean: `[L]` mean over sentences of the sentence's mean over the slice's words; NaN where
            there is none.
        standard_error: `[L]` of that mean, over sentences; NaN for fewer than two.
        sentences: `[L]` int, how many count.
        words: `[L]` int, how many words they have in the slice.
        censored: `[L]` share of these words that are at the cap: forgotten.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    sentences: np.ndarray
    words: np.ndarray
    censored: np.ndarray


class Curves(NamedTuple):
    """Word information of a whole run, by layer. Letters: `L` layers.

    Attributes:
        layers: the L layers' numbers.
        quantity: what `mean` is, see `curves`.
        overall: all words; special tokens are no words.
        groups: by group of words, special tokens among them.
        places: the first word, the last word, and each fifth of the sentence.
        correctness: the words of sentences that the model got "right" and "wrong".
        targeting: standard deviation of log sigma over the words of a sentence, in nats: 0 where
            all are kept alike, larger where few are singled out.
        sentences: how many have word information.
        words: how many words they have, special tokens included.
        unconverged: `[L]` int, sentences whose layer did not converge.
        unconverged_words: `[L]` int, their words, special tokens included.
        included: whether those are in the curves.
        largest_error: largest Monte Carlo standard error of a log sigma, over all words and
            layers; NaN where the search gave none.
        kept: the largest log(scale / sigma) of any word and layer.
    """

    layers: tuple[int, ...]
    quantity: str
    overall: Curve
    groups: dict[str, Curve]
    places: dict[str, Curve]
    correctness: dict[str, Curve]
    targeting: Curve
    sentences: int
    words: int
    unconverged: np.ndarray
    unconverged_words: np.ndarray
    included: bool
    largest_error: float
    kept: float

    @property
    def converged(self) -> float:
        """Share of all layers of all sentences that converged."""
        return 1 - float(self.unconverged.sum()) / max(self.sentences * len(self.layers), 1)


class Tally:
    """Running means and squared deviations of `[S, L]` slices by layers (Welford's update)."""

    def __init__(self, slices: int, layers: int):
        shape = (slices, layers)
        self.sentences, self.words = np.zeros(shape, int), np.zeros(shape, int)
        self.censored = np.zeros(shape, int)
        self.mean, self.squares = np.zeros(shape), np.zeros(shape)

    def add(self, value: np.ndarray, words: np.ndarray, censored: np.ndarray) -> None:
        """Add one sentence: its value in each slice and layer, where it has `words`."""
        there = words > 0
        self.sentences += there
        self.words += words
        self.censored += censored
        step = np.where(there, value - self.mean, 0.0)
        self.mean += step / np.maximum(self.sentences, 1)
        self.squares += np.where(there, step * (value - self.mean), 0.0)

    def curve(self, row: int) -> Curve:
        count, words = self.sentences[row], self.words[row]
        spread = np.sqrt(self.squares[row] / np.maximum(count - 1, 1) / np.maximum(count, 1))
        return Curve(
            np.where(count > 0, self.mean[row], np.nan),
            np.where(count > 1, spread, np.nan),
            count,
            words,
            np.where(words > 0, self.censored[row] / np.maximum(words, 1), np.nan),
        )


def curves(
    records: Iterable[Record],
    *,
    groups: Mapping[str, Collection[str]] | None = None,
    quantity: Literal["kept", "entropy"] = "kept",
    include_unconverged: bool = False,
    configuration: Mapping[str, Any] | None = None,
) -> Curves:
    """How much each layer keeps, or has discarded, of a corpus's words.

    Every sentence counts once in a slice, however many of its words are in it; the standard error
    is over sentences. A word at the cap enters with the cap's value, so where many are, the mean
    is a bound: it keeps at most, has discarded at least, so much. Cost: one pass over the records,
    in memory that does not grow with them.

    Args:
        records: of a run of word information, as `jaxplain.load` gives them.
        groups: your own lists of words in place of closed classes of English; see
            `wordlists.membership`.
        quantity: "kept", log(scale / sigma), in nats per dimension of a word, 0 where the word is
            forgotten; or "entropy", what is discarded, log(sigma) + log(2 pi e) / 2, in nats per
            dimension.
        include_unconverged: let layers that did not converge count, too; they are left out, and
            counted, otherwise.
        configuration: of the run, for the layers' numbers and the classes' names; that of
            `records` if None.

    Raises:
        JaxplainError: an unknown quantity; no record with word information.
    """
    if quantity not in ("kept", "entropy"):
        raise JaxplainError(f"quantity must be kept or entropy, not {quantity!r}")
    if configuration is None:
        configuration = records.info.get("configuration") if isinstance(records, Records) else None
    configuration = configuration or {}
    totals: Totals | None = None
    for record in records:
        found = word_information(record.result)
        if found is None:
            continue
        seen = read(found, record.notes.get("pieces"), groups)
        right = view(record, configuration).correct
        held = np.stack(
            [seen.word, *seen.kinds.values(), *seen.stands.values()]
            + [seen.word & (right is wanted) for wanted in (True, False)]
        )
        layers = len(seen.sigma)
        if totals is None:
            totals = Totals(Tally(len(held), layers), Tally(1, layers), np.zeros((2, layers), int))
            names = list(seen.kinds), list(seen.stands)
        counted = (seen.converged | include_unconverged)[None]
        value = -seen.ratio if quantity == "kept" else np.log(seen.sigma) + CONSTANT
        many = held.sum(axis=1)[:, None]
        capped = held @ seen.censored.T.astype(int)
        totals.slices.add(held @ value.T / np.maximum(many, 1), many * counted, capped * counted)
        word = seen.word
        if word.sum() > 1:  # one word has no spread
            deviation = np.log(seen.sigma[:, word]).std(axis=1)
            few = seen.censored[:, word].sum(axis=1)
            totals.spread.add(deviation[None], word.sum() * counted, few * counted)
        totals.lost[:] += ~seen.converged * np.array([[1], [len(word)]])
        totals = totals._replace(
            sentences=totals.sentences + 1,
            words=totals.words + len(word),
            error=float(np.fmax(totals.error, np.fmax.reduce(seen.error, axis=None))),
            kept=max(totals.kept, float(np.max(-seen.ratio, initial=0.0))),
        )
    if totals is None:
        raise JaxplainError(
            "no record holds word information: run with --method word_information first"
        )
    rows = map(totals.slices.curve, range(len(totals.slices.mean)))
    return Curves(
        layers=layer_numbers(configuration, len(totals.lost[0])),
        quantity=quantity,
        overall=next(rows),
        groups={name: next(rows) for name in names[0]},
        places={name: next(rows) for name in names[1]},
        correctness={name: next(rows) for name in ("right", "wrong")},
        targeting=totals.spread.curve(0),
        sentences=totals.sentences,
        words=totals.words,
        unconverged=totals.lost[0],
        unconverged_words=totals.lost[1],
        included=include_unconverged,
        largest_error=totals.error,
        kept=totals.kept,
    )


class Seen(NamedTuple):
    """One record's arrays without padding: `[L, T]`, `converged` `[L]`, the groups `[T]`."""

    sigma: np.ndarray
    ratio: np.ndarray
    censored: np.ndarray
    error: np.ndarray
    converged: np.ndarray
    word: np.ndarray
    kinds: dict[str, np.ndarray]
    stands: dict[str, np.ndarray]


class Totals(NamedTuple):
    """What is summed over records; `lost` `[2, L]` counts sentences and words not converged."""

    slices: Tally
    spread: Tally
    lost: np.ndarray
    sentences: int = 0
    words: int = 0
    error: float = float("nan")
    kept: float = 0.0


def read(
    found: Any, pieces: Sequence[str] | None, groups: Mapping[str, Collection[str]] | None
) -> Seen:
    sigma = np.asarray(found.sigma, np.float64)
    real = sigma[0] > 0  # padding is 0
    seen = lambda array: np.asarray(array)[:, real]
    names = pieces or [str(k) for k in range(len(real))]
    names = [piece for piece, there in zip(names, real, strict=True) if there]
    kinds = membership(names, groups)
    return Seen(
        sigma=seen(sigma),
        ratio=seen(found.log_ratio),
        censored=seen(found.censored),
        error=seen(found.standard_error),
        converged=np.asarray(found.converged, bool),
        word=~kinds[SPECIAL],
        kinds=kinds,
        stands=places(names),
    )
