"""Numbers that several examples print: rank correlation, the area under the curve, and tables."""

from collections.abc import Sequence

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of a vector; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation; NaN where either is constant."""
    first, second = ranks(first), ranks(second)
    if not (np.ptp(first) and np.ptp(second)):
        return np.nan
    return float(np.corrcoef(first, second)[0, 1])


def auc(scores: np.ndarray, needed: np.ndarray) -> float:
    """Share of pairs of a needed and another word in which the needed one scores higher."""
    above, below = scores[needed], scores[~needed]
    if not (len(above) and len(below)):
        return np.nan
    difference = above[:, None] - below[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def average(values: Sequence[float] | np.ndarray) -> float:
    """Mean of what is not NaN; NaN if nothing is left."""
    kept = np.asarray(values, float)
    kept = kept[np.isfinite(kept)]
    return float(kept.mean()) if len(kept) else np.nan


def mean_and_error(values: Sequence[float] | np.ndarray, digits: int = 2) -> str:
    """Mean and standard error of independent values, NaN left out, as text."""
    kept = np.asarray(values, float)
    kept = kept[np.isfinite(kept)]
    if not len(kept):
        return "-"
    error = kept.std(ddof=1) / len(kept) ** 0.5 if len(kept) > 1 else np.nan
    return f"{kept.mean():.{digits}f}" + (f" ± {error:.{digits}f}" if error > 0 else "")


def table(lines: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Lines of texts, the first one names, in columns or in Markdown."""
    if markdown:
        rule = ["---"] * len(lines[0])
        return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
    sizes = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    pad = lambda line: "  ".join(text.ljust(n) for text, n in zip(line, sizes, strict=True))
    return "\n".join(pad(line).rstrip() for line in lines)
