"""How nearly two explanations of one example agree, whatever each split it into."""

import functools
import unicodedata
from typing import NamedTuple

import numpy as np

from jaxplain.report.parts import Part
from jaxplain.report.view import View
from jaxplain.report.words import whole

LEAST = 3  # ranks of fewer say nothing
UNITS = {"tokens": "words", "tree": "words", "bars": "features", "image": "pixels"}


class Agreement(NamedTuple):
    """Of two explanations of one example.

    Attributes:
        signed: Spearman's rank correlation of the scores; NaN where it is not known.
        sizes: that of their magnitudes.
        units: how many words, features or pixels both have.
        unit: which of these they are.
        reason: why the agreement is not known; None if it is.
    """

    signed: float
    sizes: float
    units: int
    unit: str
    reason: str | None


def ranks(values: np.ndarray) -> np.ndarray:
    """`[N]` ranks from 1, ties by their average.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of `[N]` and `[N]`; NaN where N < 3, or one of them is constant."""
    if len(a) < LEAST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


@functools.lru_cache(maxsize=1 << 16)
def letters(word: str) -> str:
    """A word as tokenisers agree on it: without case, accents and spaces."""
    apart = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in apart if not unicodedata.combining(c) and not c.isspace())


def match_words(
    a: list[tuple[str, float]], b: list[tuple[str, float]]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Sum the words of each to the shortest stretches that begin and end in both.

    Returns:
        `[N]` scores of each; None where their letters differ, as those of unknown or cut words do.

    >>> match_words([("do", 1.0), ("n't", 2.0), ("go", 3.0)], [("Don't", 4.0), ("go", 5.0)])
    (array([3., 3.]), array([4., 5.]))
    """
    sides = [[letters(word) for word, _ in side] for side in (a, b)]
    if "".join(sides[0]) != "".join(sides[1]):
        return None
    ends = [np.cumsum([len(word) for word in side], dtype=int) for side in sides]
    common = np.intersect1d(ends[0], ends[1])
    found = []
    for side, end in zip((a, b), ends, strict=True):
        scores = np.zeros(len(common))
        np.add.at(scores, np.searchsorted(common, end), [score for _, score in side])
        found.append(scores)
    return found[0], found[1]


def match(a: Part, b: Part) -> tuple[np.ndarray, np.ndarray] | None:
    """The scores of two arrays over what both have; None where they cannot be matched."""
    if UNITS.get(a.kind) != UNITS.get(b.kind) or a.kind not in UNITS:
        return None
    if a.kind == "image":
        same = a.scores.shape == b.scores.shape
        return (a.scores.ravel(), b.scores.ravel()) if same else None
    if a.kind == "bars":
        places = {name: k for k, name in enumerate(b.names)}
        if len(places) != len(b.names) or sorted(a.names) != sorted(b.names):
            return None
        return a.scores, b.scores[[places[name] for name in a.names]]
    return match_words(whole(a.names, a.scores), whole(b.names, b.scores))


def agreement(a: View, b: View) -> Agreement:
    """Compare two explanations of one example."""
    unit = UNITS.get(a.parts[0].kind, "scores") if a.parts else "scores"
    unknown = lambda n, reason: Agreement(float("nan"), float("nan"), n, unit, reason)
    if a.error is not None or b.error is not None:
        return unknown(0, "failed in one of the runs")
    if not a.parts or [part.title for part in a.parts] != [part.title for part in b.parts]:
        return unknown(0, "there are no scores of the same arrays")
    matched = [match(*parts) for parts in zip(a.parts, b.parts, strict=True)]
    if any(pair is None for pair in matched):
        return unknown(0, f"the {unit} of the two cannot be matched")
    first, second = (np.concatenate(side) for side in zip(*filter(None, matched), strict=True))
    if len(first) < LEAST:
        return unknown(len(first), f"fewer than {LEAST} {unit}")
    signed = spearman(first, second)
    if np.isnan(signed):
        return unknown(len(first), "all scores are the same in one of the runs")
    return Agreement(signed, spearman(np.abs(first), np.abs(second)), len(first), unit, None)


class Comparison(NamedTuple):
    """How two runs agree, example by example. Letters: `N` examples.

    Attributes:
        names: of the two runs.
        agreements: `[N]` Spearman's rank correlation of the two runs' scores over the words,
            features or pixels of each example; NaN where it is not known.
        units: `[N]` int, how many words, features or pixels were ranked, or could be matched.
        unit: "words", "features" or "pixels".
        magnitudes: whether magnitudes were ranked, because one run's scores have no sign.
        unknown: why agreements are not known, and how many for each reason.
        alike: `[N]` bool, False where the two explain different classes: their scores answer
            different questions.
    """

    names: tuple[str, str]
    agreements: np.ndarray
    units: np.ndarray
    unit: str
    magnitudes: bool
    unknown: dict[str, int]
    alike: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """The agreements that are known, of pairs that do not explain different classes."""
        return self.agreements[self.alike & ~np.isnan(self.agreements)]


def reason_of(each: Agreement) -> str:
    return each.reason or "all magnitudes are the same in one of the runs"


def sentence(found: Comparison) -> str:
    """A comparison in one line."""
    known, different = found.known, int((~found.alike).sum())
    facts = [f"{len(found.agreements):,} examples compared"]
    if len(known):
        what = "magnitudes of scores" if found.magnitudes else "scores"
        facts.append(
            f"rank agreement of {what} over {found.unit}: median {np.median(known):+.2f}, mean "
            f"{known.mean():+.2f}, lowest {known.min():+.2f}"
        )
    facts += [f"{count:,} not known: {reason}" for reason, count in found.unknown.items()]
    if different:
        facts.append(f"{different:,} left out: they explain different classes")
    return " · ".join(facts).replace("-", "−")
