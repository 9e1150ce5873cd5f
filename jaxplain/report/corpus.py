"""A run at a glance: the words or features that speak most for and against the explained class."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from jaxplain.report.parts import Part
from jaxplain.report.view import View, view
from jaxplain.report.words import whole
from jaxplain.run.packing import Record
from jaxplain.run.records import Records
from jaxplain.types import JaxplainError

SHARE = 0.95  # of intervals


class Mean(NamedTuple):
    """A word's or a feature's mean score over the examples that hold it.

    Attributes:
        name: the word, case-folded, or the feature's name.
        mean: mean over examples, in f's units.
        half: half the width of the mean's 95% interval, by Student's t over examples.
        examples: how many examples it is in.
    """

    name: str
    mean: float
    half: float
    examples: int


class Sides(NamedTuple):
    """The largest means above zero, and the lowest below it, strongest first."""

    positive: list[Mean]
    negative: list[Mean]


class Corpus(NamedTuple):
    """What a whole run says. Letters: `H`, `W` height and width of an image.

    Attributes:
        kind: "words", "features", or empty where there are neither.
        examples: how many explained records were read.
        distinct: how many different words or features they hold.
        counted: how many of these are in at least `minimum` examples.
        minimum: examples that a word must be in to be listed.
        overall: toward whatever class each example explains.
        classes: the same by explained class, where there are several.
        maps: mean scores of images `[H, W]` and their number, by explained class, or under "all"
            where records name none; empty where images differ in shape.
    """

    kind: str
    examples: int
    distinct: int
    counted: int
    minimum: int
    overall: Sides
    classes: dict[str, Sides]
    maps: dict[str, tuple[np.ndarray, int]]


class Tally:
    """Count, mean and squared deviations (Welford's update), of numbers or arrays."""

    __slots__ = ("count", "mean", "squares")

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, value: Any) -> None:
        self.count += 1
        step = value - self.mean
        self.mean = self.mean + step / self.count
        self.squares = self.squares + step * (value - self.mean)

    def join(self, other: "Tally") -> None:
        """Take in another one's examples."""
        count = self.count + other.count
        step = other.mean - self.mean
        self.squares += other.squares + step * step * (self.count * other.count / count)
        self.mean += step * (other.count / count)
        self.count = count


class Tallies(dict[Any, Tally]):
    """A tally for each name, empty at first."""

    def __missing__(self, name: Any) -> Tally:
        self[name] = tally = Tally()
        return tally


def scored(part: Part) -> Iterable[tuple[str, float]]:
    """One value for each different word or feature of an array."""
    before = f"{part.title}: " if part.title else ""
    if part.kind == "bars":
        return zip([before + name for name in part.names], part.scores.tolist(), strict=True)
    values: dict[str, float] = {}
    again: dict[str, int] = {}
    for word, score in whole(part.names, part.scores.tolist()):
        name = before + word.casefold()
        if name in values:
            again[name] = again.get(name, 1) + 1
            values[name] += score
        else:
            values[name] = score
    for name, count in again.items():
        values[name] /= count
    return values.items()


def corpus(
    records: Iterable[Record],
    *,
    minimum: int = 5,
    top: int = 20,
    configuration: Mapping[str, Any] | None = None,
) -> Corpus:
    """Which words or features speak most for the explained class, and which most against it.

    A word is joined from its pieces and case-folded, and its score is the sum of theirs. An example
    gives one value for each word, the mean over the word's places in it, so that examples, which
    are drawn apart from each other, are what the interval is over; special tokens are no words. A
    tree gives the scores of its single words. The intervals are each word's own: among many words,
    the most extreme ones are partly so by chance.

    Cost: one pass over the records, in memory that grows with the different words, not with the
    records.

    Args:
        records: as `jaxplain.load` gives them; failed ones are passed over.
        minimum: examples that a word must be in to be listed; at least 2.
        top: how many are listed at most, for and against.
        configuration: of the run, for the classes' and features' names; that of `records` if None.

    Raises:
        JaxplainError: `minimum` or `top` too small.
    """
    if minimum < 2 or top < 1:
        raise JaxplainError(
            f"minimum must be at least 2 and top at least 1, not {minimum} and {top}"
        )
    if configuration is None:
        configuration = records.info.get("configuration") if isinstance(records, Records) else None
    words: dict[str | None, Tallies] = {}
    maps = Tallies()
    kinds, shapes, examples = set(), set(), 0
    for record in records:
        seen = view(record, configuration or {})
        if seen.error is not None:
            continue
        examples += 1
        add(seen, words, maps, kinds, shapes)
    together = Tallies()
    for tallies in words.values():
        for name, tally in tallies.items():
            together[name].join(tally)
    kind = "words" if kinds & {"tokens", "tree"} else "features" if "bars" in kinds else ""
    named = {name: tallies for name, tallies in sorted(words.items(), key=str) if name is not None}
    pictures = {} if len(shapes) > 1 or kind else maps
    return Corpus(
        kind=kind,
        examples=examples,
        distinct=len(together),
        counted=sum(tally.count >= minimum for tally in together.values()),
        minimum=minimum,
        overall=sides(together, minimum, top),
        classes={k: sides(v, minimum, top) for k, v in named.items()} if len(words) > 1 else {},
        maps={k or "all": (np.asarray(v.mean), v.count) for k, v in pictures.items()},
    )


def add(
    seen: View,
    words: dict[str | None, Tallies],
    maps: Tallies,
    kinds: set[str],
    shapes: set[tuple[int, ...]],
) -> None:
    """Add one example to the tallies of its explained class."""
    tallies = words.setdefault(seen.target, Tallies())
    for part in seen.parts:
        kinds.add(part.kind)
        if part.kind == "image":
            shapes.add(part.scores.shape)
            if len(shapes) == 1 and len(seen.parts) == 1:
                maps[seen.target].add(part.scores)
        elif part.kind != "information":
            for name, score in scored(part):
                tallies[name].add(score)


def sides(tallies: Mapping[str, Tally], minimum: int, top: int) -> Sides:
    """The most extreme means of the words that are in enough examples."""
    means = [
        Mean(name, float(t.mean), half_width(t), t.count)
        for name, t in tallies.items()
        if t.count >= minimum
    ]
    means.sort(key=lambda m: (-m.mean, m.name))
    positive = [m for m in means[:top] if m.mean > 0]
    negative = [m for m in sorted(means, key=lambda m: (m.mean, m.name))[:top] if m.mean < 0]
    return Sides(positive, negative)


def half_width(tally: Tally) -> float:
    """Half the 95% interval of a mean over at least two examples."""
    error = np.sqrt(np.asarray(tally.squares) / (tally.count - 1) / tally.count)
    return float(stdtrit(tally.count - 1, (1 + SHARE) / 2) * error)
