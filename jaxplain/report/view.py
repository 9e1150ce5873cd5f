"""What a record says to a person, whatever kind of example it explains."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxplain.registry import METHODS
from jaxplain.report.parts import Part, parts
from jaxplain.report.results import field, leaves, number, word_information
from jaxplain.run.packing import Record

COUNTS = ("examples", "failed", "truncated", "labelled", "correct", "informed")
COUNTS += ("converged", "unconverged")
CELLS = 50_000  # words by layers that a page shows, at most: some 5 MB


class View(NamedTuple):
    """One record, in words and numbers; None stands for what the record does not say.

    Attributes:
        index: position in the source.
        error: why it failed.
        text: the example as its owner wrote it.
        parts: its scores.
        prediction: name of the predicted class.
        probability: its probability.
        target: name of the explained class.
        other: name of the class that it was compared with.
        label: the true class.
        correct: whether prediction and label agree.
        output: f(x).
        gap: completeness residual; None where the method claims none.
        change: f(x) - f(baseline), which the scores should sum to; None with `gap`.
        residual: largest |relevant + irrelevant - f(x)|, where the method decomposes f(x).
        truncated: the example was cut, in words.
        effort: how many nodes or samples its result took.
        converged: whether these were enough for the tolerance that was asked for.
    """

    index: int
    error: str | None
    text: str | None
    parts: list[Part]
    prediction: str | None = None
    probability: float | None = None
    target: str | None = None
    other: str | None = None
    label: str | None = None
    correct: bool | None = None
    output: float | None = None
    gap: float | None = None
    change: float | None = None
    residual: float | None = None
    truncated: str | None = None
    effort: int | None = None
    converged: bool | None = None

    @property
    def relative_gap(self) -> float | None:
        """|gap| as a share of |f(x) - f(baseline)|; infinite where that is 0 and the gap is not."""
        if self.gap is None or self.change is None:
            return None
        if self.gap == 0:
            return 0.0
        return abs(self.gap / self.change) if self.change else float("inf")


class Survey(NamedTuple):
    """A whole run at a glance.

    Attributes:
        views: the explained examples to show.
        failures: the failed examples to show.
        reasons: how many examples failed for each reason, most frequent first.
        examples: how many records there are.
        failed: how many of them failed.
        truncated: how many were cut.
        labelled: how many have a label that the model knows.
        correct: how many of those are predicted rightly.
        gaps: `[N]` |gap| of every explained example, empty where none is claimed.
        relative_gaps: `[N]` as a share of |f(x) - f(baseline)|.
        residual: the largest of any example; None where no method decomposes f(x).
        informed: how many hold word information.
        curves: `curves.Curves` of these, where it was asked for.
        conserving: whether gaps are of methods that hand down f(x), so that constants keep some.
        efforts: how many examples took so many nodes or samples; empty where records do not say.
        converged: how many reached the tolerance that was asked for.
        unconverged: how many did not.
        errors: `[N]` an example's largest standard error as a share of its largest |score|, for
            every example that has standard errors.
    """

    views: list[View]
    failures: list[View]
    reasons: dict[str, int]
    examples: int
    failed: int
    truncated: int
    labelled: int
    correct: int
    gaps: np.ndarray
    relative_gaps: np.ndarray
    residual: float | None
    informed: int = 0
    curves: Any = None
    conserving: bool = False
    efforts: Mapping[int, int] = MappingProxyType({})
    converged: int = 0
    unconverged: int = 0
    errors: np.ndarray = np.zeros(0)

    @property
    def gap_name(self) -> str:
        """What the gaps are called."""
        return "conservation gap" if self.conserving else "completeness gap"

    @property
    def gap_of(self) -> str:
        """What relative gaps are shares of."""
        return "|f(x)|" if self.conserving else "|f(x) − f(baseline)|"


def view(record: Record, configuration: Mapping[str, Any]) -> View:
    """Read what a record says.

    A result is an attribution or a `Hierarchy` of words, or a dict or named tuple with one as
    `attribution`, or with a `WordInformation` as `information`, and beside it, each optional,
    `logits` `[C]`, `target` `[]`, `other` `[]`, `label` `[]` and `image`. Notes may hold `text`,
    `pieces`, `names`, `label` and `truncated`; the run's configuration `classes` and `names`.
    """
    notes, result = record.notes or {}, record.result
    text = notes.get("text")
    effort, converged = (getattr(record, name, None) for name in ("effort", "converged"))
    if result is None:
        reason = record.error or "no reason was recorded"
        return View(record.index, reason, text, [], truncated=notes.get("truncated") or None)
    classes = configuration.get("classes") or ()

    def name(value: Any) -> str | None:
        index = number(value)
        if index is None:
            return None
        return str(classes[int(index)]) if 0 <= index < len(classes) else str(int(index))

    attribution = field(result, "attribution")
    attribution = result if attribution is None else attribution
    prediction = probability = None
    logits = field(result, "logits")
    if logits is not None and np.ndim(logits) == 1 and len(logits) > 1:
        powers = np.exp(np.asarray(logits, np.float64) - np.max(logits))
        prediction, probability = name(np.argmax(logits)), float(powers.max() / powers.sum())
    label = notes.get("label")
    label = name(field(result, "label")) if label is None else str(label)
    known = label is not None and (not classes or label in map(str, classes))
    gap = number(field(attribution, "gap"))
    change = None
    if gap is not None:
        arrays = [np.asarray(a, np.float64) for _, a in leaves(field(attribution, "scores"))]
        change = float(sum(a.sum() for a in arrays)) - gap
    return View(
        index=record.index,
        error=None,
        text=text,
        parts=parts(result, notes, configuration),
        prediction=prediction,
        probability=probability,
        target=None if word_information(result) else name(field(result, "target")),
        other=name(field(result, "other")),
        label=label,
        correct=prediction == label if known and prediction is not None else None,
        output=number(field(attribution, "output")),
        gap=gap,
        change=change,
        residual=number(field(attribution, "residual")),
        truncated=notes.get("truncated") or None,
        effort=None if effort is None else int(effort),
        converged=None if converged is None else bool(converged),
    )


def relative_error(seen: View) -> float | None:
    """The largest standard error as a share of the largest |score|; None where there is none."""
    errors = [np.max(p.errors, initial=0.0) for p in seen.parts if p.errors is not None]
    scores = [np.max(np.abs(p.scores), initial=0.0) for p in seen.parts if p.errors is not None]
    if not errors or not np.isfinite(max(errors)):
        return None
    if not max(errors):
        return 0.0
    return float(max(errors) / max(scores)) if max(scores) else float("inf")


def survey(
    records: Iterable[Record], configuration: Mapping[str, Any], *, limit: int, failures: int = 1000
) -> Survey:
    """Read all records once; keep the first `limit` explained ones and the first failed ones."""
    views, failed, reasons = [], [], {}
    counts = dict.fromkeys(COUNTS, 0)
    gaps, relative, residuals, errors = [], [], [], []
    efforts: dict[int, int] = {}
    cells = 0
    for record in records:
        seen = view(record, configuration)
        counts["examples"] += 1
        counts["truncated"] += bool(seen.truncated)
        if seen.error is not None:
            counts["failed"] += 1
            reasons[seen.error] = reasons.get(seen.error, 0) + 1
            if len(failed) < failures:
                failed.append(seen)
            continue
        counts["labelled"] += seen.correct is not None
        counts["correct"] += seen.correct is True
        if seen.gap is not None:
            gaps.append(abs(seen.gap))
            relative.append(seen.relative_gap)
        if seen.residual is not None:
            residuals.append(seen.residual)
        if seen.effort is not None:
            efforts[seen.effort] = efforts.get(seen.effort, 0) + 1
        counts["converged"] += seen.converged is True
        counts["unconverged"] += seen.converged is False
        error = relative_error(seen)
        errors += [] if error is None else [error]
        maps = [part for part in seen.parts if part.kind == "information"]
        counts["informed"] += bool(maps)
        cells += sum(part.scores.size for part in maps)
        if len(views) < limit and (cells <= CELLS or not views):
            views.append(seen)
    method = METHODS.get(str(configuration.get("method")))
    ordered = dict(sorted(reasons.items(), key=lambda item: -item[1]))
    return Survey(
        views,
        failed,
        ordered,
        **counts,
        gaps=np.array(gaps),
        relative_gaps=np.array(relative),
        residual=max(residuals, default=None),
        conserving=bool(method and method.conserving),
        efforts=dict(sorted(efforts.items())),
        errors=np.array(errors),
    )
