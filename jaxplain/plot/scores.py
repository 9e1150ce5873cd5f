"""What is to be drawn, of whatever was given."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxplain.types import JaxplainError

Sign = Literal["all", "positive", "negative", "absolute"]
SIGNS = ("all", "positive", "negative", "absolute")


class Read(NamedTuple):
    """What is to be drawn, of whatever was given."""

    scores: np.ndarray
    names: list[str]
    errors: np.ndarray | None
    image: np.ndarray | None


def read(given: Any, names: Sequence[str] | None, kinds: tuple[str, ...], part: str | None) -> Read:
    """Scores and what goes with them, of a record, an attribution or an array."""
    if hasattr(given, "result") and hasattr(given, "notes"):
        from jaxplain.report.view import view

        seen = view(given, {} if names is None else {"names": names})
        if seen.error is not None:
            raise JaxplainError(f"example {seen.index} failed, and has no scores: {seen.error}")
        fits = [p for p in seen.parts if p.kind in kinds and part in (None, p.title)]
        if len(fits) != 1:
            there = ", ".join(f"{p.title or 'scores'!r} ({p.kind})" for p in seen.parts)
            what = "say which to draw, part=..." if len(fits) > 1 else f"draw {' or '.join(kinds)}"
            raise JaxplainError(f"the record holds {there or 'no scores to draw'}: {what}")
        found = fits[0]
        told = list(found.names) if names is None else [str(name) for name in names]
        return Read(np.asarray(found.scores), told, found.errors, found.image)
    errors = getattr(given, "standard_error", None)
    scores = getattr(given, "scores", given)
    if part is not None:
        scores = scores[part]
        errors = None if errors is None else errors[part]
    if isinstance(scores, Mapping):
        raise JaxplainError(f"there are scores of {', '.join(map(repr, scores))}: choose by part=")
    told = [str(name) for name in ([] if names is None else names)]
    errors = None if errors is None else np.asarray(errors, np.float64)
    return Read(np.asarray(scores), told, errors, None)


def signed(values: np.ndarray, sign: str) -> np.ndarray:
    """The scores that are to be seen."""
    if sign not in SIGNS:
        raise JaxplainError(f"sign must be one of {', '.join(SIGNS)}, not {sign!r}")
    if sign == "absolute":
        return np.abs(values)
    return np.clip(values, 0 if sign == "positive" else None, 0 if sign == "negative" else None)


def flat(scores: np.ndarray) -> np.ndarray:
    """`[T]` of `[T, ...]`."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim < 1:
        raise JaxplainError("one number is no text's scores: give one for each word")
    return scores.reshape(len(scores), -1).sum(1) if scores.size else scores.reshape(0)


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """`[C, H, W]` as `[H, W, C]`, where C is 1 to 4 and W is not."""
    first = pixels.ndim == 3 and pixels.shape[0] <= 4 < pixels.shape[-1]
    return np.moveaxis(pixels, 0, -1) if first else pixels


def plane(scores: np.ndarray, what: str) -> np.ndarray:
    """`[H, W]`, summed over channels."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim not in (2, 3):
        raise JaxplainError(
            f"an image's {what} are [H, W], [H, W, C] or [C, H, W], not {list(scores.shape)}: "
            "give those of one example"
        )
    return channels_last(scores).sum(-1) if scores.ndim == 3 else scores


def largest(values: np.ndarray, outliers: float) -> float:
    """The magnitude that full colour stands for: what is larger holds `outliers` percent of all."""
    if not 0 <= outliers < 100:
        raise JaxplainError(f"outliers is a percentage from 0 to below 100, not {outliers}")
    ordered = np.sort(np.abs(values[np.isfinite(values)]), axis=None)
    if not ordered.size or not ordered[-1]:
        return 1.0  # nothing but zeros has no colour
    reached = np.cumsum(ordered) >= ordered.sum() * (1 - outliers / 100) * (1 - 1e-12)
    return float(ordered[np.argmax(reached)])
