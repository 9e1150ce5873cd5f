"""What a record says to a person, whatever kind of example it explains."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxplain.hierarchy import Hierarchy, members
from jaxplain.registry import METHODS
from jaxplain.report.results import field, layer_numbers, leaves, number, word_information
from jaxplain.report.words import words
from jaxplain.run.store import Record

COUNTS = ("examples", "failed", "truncated", "labelled", "correct", "informed")
CELLS = 50_000  # words by layers that a page shows, at most: some 5 MB
NOTHING_DRAWN = "no scores to draw in this result: jaxplain.load gives the arrays"


class Part(NamedTuple):
    """The scores of one input array.

    Attributes:
        kind: "tokens", "tree", "bars", "image" or "information".
        title: the array's place in the input; empty if it is the only one.
        scores: `[N]`, or `[H, W]` for an image.
        names: N pieces or feature names; empty for an image.
        errors: standard errors, like `scores`, where the method estimates them.
        image: the input itself `[H, W]` or `[H, W, C]`, where the record holds it.
        tree: of the pieces, where kind is "tree".
        information: a `WordInformation` `[L, N]`, where kind is "information"; `scores` are then
            what is kept of each piece, `[L, N]`.
        layers: the L layers' numbers.
    """

    kind: str
    title: str
    scores: np.ndarray
    names: list[str]
    errors: np.ndarray | None = None
    image: np.ndarray | None = None
    tree: Hierarchy | None = None
    information: Any = None
    layers: tuple[int, ...] = ()


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

    @property
    def gap_name(self) -> str:
        """What the gaps are called."""
        return "conservation gap" if self.conserving else "completeness gap"

    @property
    def gap_of(self) -> str:
        """What relative gaps are shares of."""
        return "|f(x)|" if self.conserving else "|f(x) − f(baseline)|"


def part(
    title: str,
    scores: np.ndarray,
    errors: np.ndarray | None,
    pieces: list[str] | None,
    names: list[str] | None,
    image: np.ndarray | None,
) -> Part:
    """Decide how an array of scores is shown, by its shape."""
    scores = np.asarray(scores, np.float64)
    if pieces and scores.ndim >= 1 and scores.shape[0] == len(pieces):
        if scores.ndim > 1:  # tokens by embedding dimensions; their errors do not simply add up
            scores, errors = scores.reshape(len(pieces), -1).sum(axis=1), None
        return Part("tokens", title, scores, pieces, errors)
    if scores.ndim < 2:
        scores = scores.reshape(-1)
        if names is None or len(names) != len(scores):
            names = [str(i) for i in range(len(scores))]
        return Part("bars", title, scores, names, None if errors is None else errors.reshape(-1))
    if scores.ndim > 2:
        channels_first = scores.ndim == 3 and scores.shape[0] <= 4 < scores.shape[-1]
        axes = (0,) if channels_first else tuple(range(2, scores.ndim))
        scores = scores.sum(axis=axes)
    fits = image is not None and image.ndim in (2, 3) and image.shape[:2] == scores.shape
    return Part("image", title, scores, [], None, image if fits else None)


def sentence(tree: Any, pieces: list[str] | None) -> Part | None:
    """The tree of a sentence without its special tokens; None if it is not one of runs of words."""
    if tree is None or not pieces or np.shape(field(tree, "unit_parent")) != (len(pieces),):
        return None
    tree = Hierarchy(*map(np.asarray, tree))  # type: ignore[arg-type]
    shown = words(pieces)
    keep = [i for i, word in enumerate(shown) if tree.unit_level[i] or not word.special]
    if not keep or not np.isfinite(tree.scores).all():
        return None
    few = Hierarchy(
        *(leaf[keep] if name.startswith("unit") else leaf[: len(keep)] if leaf.ndim else leaf
          for name, leaf in zip(Hierarchy._fields, tree, strict=True))
    )  # fmt: skip
    for held in members(few):
        if np.ptp(np.flatnonzero(held)) + 1 != held.sum():
            return None
    scores = np.asarray(few.unit_scores, np.float64)
    return Part("tree", "", scores, [pieces[i] for i in keep], tree=few)


def parts(result: Any, notes: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[Part]:
    """Every array of scores in a result, ready to be shown."""
    information = word_information(result)
    if information is not None:
        kept = -np.asarray(information.log_ratio, np.float64)
        pieces = list(notes.get("pieces") or map(str, range(kept.shape[1])))
        if len(pieces) != kept.shape[1]:
            return []
        layers = layer_numbers(configuration, len(kept))
        return [Part("information", "", kept, pieces, information=information, layers=layers)]
    attribution = field(result, "attribution")
    attribution = result if attribution is None else attribution
    scores = list(leaves(field(attribution, "scores")))
    errors = dict(leaves(field(attribution, "standard_error")))
    names = notes.get("names") or configuration.get("names")
    if len(scores) > 1 and all(array.size == 1 for _, array in scores):  # a table, column by column
        found = [errors[path].item() for path, _ in scores if path in errors]
        together = np.array(found) if len(found) == len(scores) else None
        values = np.array([array.item() for _, array in scores])
        return [part("", values, together, None, [path for path, _ in scores], None)]
    tree = result if field(result, "unit_parent") is not None else field(attribution, "hierarchy")
    grown = sentence(tree, notes.get("pieces"))
    if grown is not None:
        return [grown]
    image = field(result, "image")
    return [
        part(path, array, errors.get(path), notes.get("pieces"), names, image)
        for path, array in scores
    ]


def view(record: Record, configuration: Mapping[str, Any]) -> View:
    """Read what a record says.

    A result is an attribution or a `Hierarchy` of words, or a dict or named tuple with one as
    `attribution`, or with a `WordInformation` as `information`, and beside it, each optional,
    `logits` `[C]`, `target` `[]`, `other` `[]`, `label` `[]` and `image`. Notes may hold `text`,
    `pieces`, `names`, `label` and `truncated`; the run's configuration `classes` and `names`.
    """
    notes, result = record.notes or {}, record.result
    text = notes.get("text")
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
    )


def survey(
    records: Iterable[Record], configuration: Mapping[str, Any], *, limit: int, failures: int = 200
) -> Survey:
    """Read all records once; keep the first `limit` explained ones and the first failed ones."""
    views, failed, reasons = [], [], {}
    counts = dict.fromkeys(COUNTS, 0)
    gaps, relative, residuals = [], [], []
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
    )
