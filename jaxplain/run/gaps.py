"""What a run's record says of its completeness gaps and standard errors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

Numbers = list[np.ndarray]
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


def of_values(values: Mapping[int, np.ndarray] | list[np.ndarray], at: Places) -> np.ndarray:
    """`[KINDS, N]` of one result: its gaps, the sizes of what they are gaps of, and its largest
    standard error; NaN where not known."""
    gaps = np.full(1, np.nan)
    if at.gap is not None:
        gaps = np.abs(np.ravel(values[at.gap]).astype(np.float64))
    found = np.full((KINDS, gaps.size), np.nan)
    found[0] = gaps
    if at.output is not None and np.size(values[at.output]) == gaps.size:
        found[1] = np.abs(np.ravel(values[at.output]).astype(np.float64))
    if at.error is not None and gaps.size:
        errors = np.ravel(values[at.error]).astype(np.float64)
        known = errors[~np.isnan(errors)]
        found[2, 0] = known.max() if known.size else np.nan
    return found


def of_shard(content: Any, at: Places) -> list[np.ndarray]:
    """`of_values` of every result in a shard, as it was read back."""
    columns = content["columns"]
    if not columns:
        return []
    leaves: dict[int, list[np.ndarray]] = {}
    for place in (place for place in at if place is not None):
        column = columns[place]
        ends = np.cumsum([int(np.prod(shape, dtype=np.int64)) for shape in column["shapes"]])
        leaves[place] = np.split(np.frombuffer(column["data"], jnp.dtype(column["dtype"])), ends)
    rows = range(len(columns[0]["shapes"]))
    return [of_values({place: leaf[row] for place, leaf in leaves.items()}, at) for row in rows]


def together(found: Numbers) -> np.ndarray:
    return np.concatenate([np.zeros((KINDS, 0)), *found], axis=1)


def statistics(found: Numbers) -> dict[str, Any]:
    """Of the gaps that are claimed: how many, their median, 99th percentile and largest, in f's
    units, and the largest relative to |f(x)|."""
    gaps, sizes, _ = together(found)
    claimed = ~np.isnan(gaps)
    gaps, sizes = gaps[claimed], sizes[claimed]
    row: dict[str, Any] = {"claimed": len(gaps), "not_claimed": int((~claimed).sum())}
    if len(gaps):
        row |= spread(gaps)
        known = sizes > 0
        if known.any():
            row["largest_of_output"] = short((gaps[known] / sizes[known]).max())
    return row


def errors(found: Numbers) -> dict[str, Any]:
    """Of each result's largest standard error, in the scores' units: how many there are, their
    median, 99th percentile and largest; empty where there are none."""
    largest = together(found)[2]
    largest = largest[~np.isnan(largest)]
    return {"known": len(largest)} | spread(largest) if len(largest) else {}


def spread(values: np.ndarray) -> dict[str, float]:
    named = {"median": np.median(values), "percentile_99": np.percentile(values, 99)}
    return {name: short(value) for name, value in (named | {"largest": values.max()}).items()}


def short(value: Any) -> float:
    return float(f"{value:.4g}")
