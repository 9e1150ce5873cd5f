"""What a run's record says of its completeness gaps and standard errors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxplain.run.columns import Column, unpack_columns

Numbers = Sequence[np.ndarray] | np.ndarray  # `[KINDS, K]` of each result, stacked or not
EXACT = 2**17  # numbers that are kept for their quantiles
DIGITS = 10  # bits of a number's mantissa that are told apart where there are more
SHIFT = 52 - DIGITS
KINDS = 3  # a gap, the size of what it is a gap of, a standard error


class Places(NamedTuple):
    """Which leaves of a result say how exact it is; None where none does.

    Attributes:
        gap: its completeness gap.
        output: its f(x), beside the gap.
        error: its standard errors.
    """

    gap: int | None
    output: int | None
    error: int | None


def places(names: list[str]) -> Places | None:
    """The places of the first of each kind among a result's leaves; None where there is none."""
    gap = output = error = None
    for place, name in enumerate(names):
        *above, last = name.split(".")
        if last == "gap" and gap is None:
            gap, beside = place, ".".join([*above, "output"])
            output = names.index(beside) if beside in names else None
        if "standard_error" in (last, *above) and error is None:
            error = place
    return None if gap is None and error is None else Places(gap, output, error)


def of_columns(columns: Mapping[int, Column] | list[Column], at: Places) -> Numbers:
    """Of each result its gaps, the sizes of what they are gaps of, and its largest
    standard error; NaN where not known."""
    known = [place for place in at if place is not None]
    if not len(columns):
        return []
    stacked = all(isinstance(columns[place], np.ndarray) for place in known)
    if not stacked:  # row by row
        rows = zip(*(columns[place] for place in known), strict=True)
        given = (
            {p: np.asarray(leaf)[None] for p, leaf in zip(known, row, strict=True)} for row in rows
        )
        return [found for row in given for found in of_columns(row, at)]
    count = len(columns[known[0]])
    flat = {
        place: np.reshape(np.asarray(columns[place], np.float64), (count, -1)) for place in known
    }
    gaps = np.full((count, 1), np.nan) if at.gap is None else np.abs(flat[at.gap])
    found = np.full((count, KINDS, gaps.shape[1]), np.nan)
    found[:, 0] = gaps
    if at.output is not None and flat[at.output].shape == gaps.shape:
        found[:, 1] = np.abs(flat[at.output])
    if at.error is not None and gaps.size and flat[at.error].size:
        # fmax: NaN only where all are
        found[:, 2, 0] = np.fmax.reduce(flat[at.error], axis=1)
    return found


def of_shard(content: dict[str, Any], at: Places) -> Numbers:
    """`of_columns` of the results in a shard, as it was read back."""
    if not content["columns"]:
        return []
    known = [place for place in at if place is not None]
    return of_columns(dict(zip(known, unpack_columns(content, known), strict=True)), at)


def together(found: Numbers) -> np.ndarray:
    """`[KINDS, N]` of all."""
    if isinstance(found, np.ndarray):
        return found.transpose(1, 0, 2).reshape(KINDS, -1)
    return np.concatenate([np.zeros((KINDS, 0)), *found], axis=1)


class Spread(NamedTuple):
    """Numbers of which the quantiles are wanted, in memory that does not grow with them.

    Up to `EXACT` numbers are kept; of more, how many there are of each leading `DIGITS` bits.

    Attributes:
        count: how many numbers there are.
        largest: of them.
        values: those that are kept, in parts.
        kept: how many these are.
        keys: leading bits of the others, in order.
        counts: how many numbers begin with each.
    """

    count: int = 0
    largest: float = 0.0
    values: tuple[np.ndarray, ...] = ()
    kept: int = 0
    keys: np.ndarray = np.zeros(0, np.int64)
    counts: np.ndarray = np.zeros(0, np.int64)


def more(spread: Spread, values: np.ndarray) -> Spread:
    """A spread with more numbers, at least 0; what comes out depends on no order."""
    if not len(values):
        return spread
    new = spread._replace(
        count=spread.count + len(values),
        largest=max(spread.largest, float(values.max())),
        values=(*spread.values, values),
        kept=spread.kept + len(values),
    )
    return new if new.kept <= EXACT else counted(new)


def counted(spread: Spread) -> Spread:
    """A spread that keeps no number, only counts."""
    bits = np.concatenate(spread.values).astype("<f8").view(np.int64) >> SHIFT
    new, times = np.unique(bits, return_counts=True)
    keys, places = np.unique(np.concatenate([spread.keys, new]), return_inverse=True)
    counts = np.bincount(places, np.concatenate([spread.counts, times]), len(keys))
    return Spread(spread.count, spread.largest, (), 0, keys, counts.astype(np.int64))


def quantile(spread: Spread, share: float) -> float:
    """As `np.quantile`; of more than `EXACT` numbers to 0.05%."""
    if spread.kept == spread.count:
        return float(np.quantile(np.concatenate(spread.values), share))
    spread = counted(spread) if spread.kept else spread
    # The middle of what begins with the same bits.
    middles = ((spread.keys << SHIFT) + (1 << (SHIFT - 1))).view(np.float64)
    middles[spread.keys == 0] = 0
    place = share * (spread.count - 1)
    below, above = middles[
        np.searchsorted(np.cumsum(spread.counts), [np.floor(place), np.ceil(place)], side="right")
    ]
    return float(min(below + (above - below) * (place % 1), spread.largest))


class Tally(NamedTuple):
    """What a run's results have come to so far.

    Attributes:
        gaps: the claimed ones, without sign.
        errors: each result's largest standard error.
        not_claimed: how many gaps are NaN.
        of_output: the largest gap relative to |f(x)|; None where that is not known.
    """

    gaps: Spread = Spread()
    errors: Spread = Spread()
    not_claimed: int = 0
    of_output: float | None = None


def add(tally: Tally, found: Numbers) -> Tally:
    """A tally with more results."""
    gaps, sizes, largest = together(found)
    claimed = ~np.isnan(gaps)
    known = claimed & (sizes > 0)
    shares = [tally.of_output] if tally.of_output is not None else []
    shares += [float((gaps[known] / sizes[known]).max())] if known.any() else []
    return Tally(
        more(tally.gaps, gaps[claimed]),
        more(tally.errors, largest[~np.isnan(largest)]),
        tally.not_claimed + int((~claimed).sum()),
        max(shares, default=None),
    )


def statistics(tally: Tally) -> dict[str, Any]:
    """Of the gaps that are claimed: how many, their median, 99th percentile and largest, in f's
    units, and the largest relative to |f(x)|."""
    row: dict[str, Any] = {"claimed": tally.gaps.count, "not_claimed": tally.not_claimed}
    row |= quantiles(tally.gaps)
    return row | ({} if tally.of_output is None else {"largest_of_output": short(tally.of_output)})


def errors(tally: Tally) -> dict[str, Any]:
    """Of each result's largest standard error, in the scores' units: how many there are, their
    median, 99th percentile and largest; empty where there are none."""
    found = quantiles(tally.errors)
    return {"known": tally.errors.count} | found if found else {}


def quantiles(spread: Spread) -> dict[str, float]:
    if not spread.count:
        return {}
    named = {"median": quantile(spread, 0.5), "percentile_99": quantile(spread, 0.99)}
    return {name: short(value) for name, value in (named | {"largest": spread.largest}).items()}


def short(value: Any) -> float:
    return float(f"{value:.4g}")
