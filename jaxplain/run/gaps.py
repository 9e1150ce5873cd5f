"""What a run's record says of its completeness gaps."""

from typing import Any

import jax.numpy as jnp
import numpy as np

Numbers = list[np.ndarray]


def places(names: list[str]) -> tuple[int, int | None] | None:
    """Which leaf of a result is its gap, and which its output, f(x), beside it; None for no gap."""
    for place, name in enumerate(names):
        *above, last = name.split(".")
        if last == "gap":
            output = ".".join([*above, "output"])
            return place, names.index(output) if output in names else None
    return None


def of_values(values: list[np.ndarray], at: tuple[int, int | None]) -> np.ndarray:
    """`[2, N]` gaps of one result and the size of what they are gaps of; NaN where not known."""
    gap, output = at
    gaps = np.ravel(values[gap]).astype(np.float64)
    sizes = np.full(gaps.shape, np.nan)
    if output is not None and np.size(values[output]) == gaps.size:
        sizes = np.abs(np.ravel(values[output]).astype(np.float64))
    return np.stack([np.abs(gaps), sizes])


def of_shard(content: Any, at: tuple[int, int | None]) -> np.ndarray:
    """`of_values` of every result in a shard, as it was read back."""
    columns = [content["columns"][n] for n in at if n is not None] if content["columns"] else []
    if not columns or len({tuple(map(len, c["shapes"])) for c in columns}) > 1:
        return np.zeros((2, 0))
    found = [np.frombuffer(c["data"], jnp.dtype(c["dtype"])) for c in columns]
    return of_values(found, (0, 1 if len(found) > 1 else None))


def statistics(found: Numbers) -> dict[str, Any]:
    """Of the gaps that are claimed: how many, their median, 99th percentile and largest, in f's
    units, and the largest relative to |f(x)|."""
    gaps, sizes = np.concatenate([np.zeros((2, 0)), *found], axis=1)
    claimed = ~np.isnan(gaps)
    gaps, sizes = gaps[claimed], sizes[claimed]
    row: dict[str, Any] = {"claimed": len(gaps), "not_claimed": int((~claimed).sum())}
    if len(gaps):
        short = lambda value: float(f"{value:.4g}")
        row["median"] = short(np.median(gaps))
        row["percentile_99"] = short(np.percentile(gaps, 99))
        row["largest"] = short(gaps.max())
        known = sizes > 0
        if known.any():
            row["largest_of_output"] = short((gaps[known] / sizes[known]).max())
    return row
