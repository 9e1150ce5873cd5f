"""The three figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.plot.scores import Sign, channels_last, flat, largest, plane, read, signed
from jaxplain.plot.style import EM, LINE, PAD, colours_of, ends, figure_of, legend
from jaxplain.types import JaxplainError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def text(
    scores: Any,
    words: Sequence[str] | None = None,
    *,
    sign: Sign = "all",
    outliers: float = 0.0,
    part: str | None = None,
    title: str = "",
    width: float = 7.0,
) -> Figure:
    """A text with each word on the colour of its score.

    Args:
        scores: a record, an attribution, or `[T]` scores; `[T, ...]` are summed over all but T.
        words: T pieces, with a tokeniser's marks or without; those of the record if None.
        sign: "all", or only "positive" or "negative" scores, or their "absolute" values.
        outliers: as in `image`.
        part: which of a record's arrays of scores, by its name, where there are several.
        title: above the text.
        width: inches.

    Raises:
        JaxplainError: matplotlib is missing; words and scores differ in number; a record that
            failed, or has no such scores.
    """
    seen = read(scores, words, ("tokens",), part)
    values = signed(flat(seen.scores), sign)
    if len(seen.names) != len(values):
        raise JaxplainError(
            f"{len(seen.names)} words for {len(values)} scores: give words=[...], one for each"
        )
    from jaxplain.report.words import words as shown

    figure = figure_of(width, 1.0)
    axes = figure.add_axes((0, 0, 1, 1))
    colours, norm = colours_of(sign, largest(values, outliers))
    draw, right = figure.canvas.get_renderer(), 72 * width - EM
    x, y = EM, LINE * (1.8 if title else 0.9)
    if title:
        axes.text(EM, LINE * 0.8, title, size=EM, weight="bold", va="center")
    groups: list[list[Any]] = []  # a word, and the pieces that continue it
    for word, value in zip(shown(list(seen.names)), values, strict=True):
        box = dict(facecolor=colours(norm(value)), edgecolor="none", boxstyle=f"square,pad={PAD}")
        size = EM * (0.75 if word.special else 1)
        drawn = axes.text(0, 0, word.text, size=size, va="center", bbox=box)
        if not (word.glued and groups):
            groups.append([])
        groups[-1].append((drawn, drawn.get_window_extent(draw).width / figure.dpi * 72))
    for group in groups:
        if x + sum(wide for _, wide in group) > right and x > EM:
            x, y = EM, y + LINE
        for drawn, wide in group:
            drawn.set_position((x, y))
            x += wide + 0.2 * EM  # pieces of one word touch
        x += (2 * PAD + 0.2) * EM
    high = y + LINE * 2.2
    figure.set_size_inches(width, high / 72)
    axes.set(xlim=(0, 72 * width), ylim=(high, 0))
    axes.axis("off")
    place = figure.add_axes((1.5 / width * EM / 72, 0.85 * LINE / high, 0.3, 0.3 * LINE / high))
    legend(figure, colours, norm, cax=place, orientation="horizontal")
    return figure


def image(
    scores: Any,
    image: Any = None,
    *,
    sign: Sign = "all",
    outliers: float = 2.0,
    overlay: float | None = None,
    part: str | None = None,
    title: str = "",
    width: float = 3.0,
) -> Figure:
    """Scores of an image's pixels as a picture, beside the image or over it.

    Args:
        scores: a record, an attribution, or scores `[H, W]`, `[H, W, C]` or `[C, H, W]`, whose
            channels are summed.
        image: the input, `[H, W]`, `[H, W, C]` or `[C, H, W]` in any range, shown beside the
            scores; that of the record if None.
        sign: as in `text`.
        outliers: the largest scores, which hold this percent of all magnitude, get full colour
            alike; a few extreme pixels would leave the rest pale. As outlier_perc in Captum's
            `visualize_image_attr`.
        overlay: from 0 to 1, how far the largest scores cover the image, in one picture; smaller
            ones cover less. None for two pictures.
        part: as in `text`.
        title: above the scores.
        width: inches of one picture.

    Raises:
        JaxplainError: as `text`; the image has another size than the scores.
    """
    seen = read(scores, None, ("image",), part)
    values = signed(plane(seen.scores, "scores"), sign)
    image = seen.image if image is None else image
    if overlay is not None and not 0 <= overlay <= 1:
        raise JaxplainError(f"overlay is a share from 0 to 1, not {overlay}")
    if image is None and overlay is not None:
        raise JaxplainError("there is no image to lay the scores over: give image=")
    pixels = None
    if image is not None:
        from jaxplain.report.png import picture

        pixels = channels_last(np.asarray(image))
        if pixels.shape[:2] != values.shape:
            raise JaxplainError(
                f"the image is {list(np.shape(image))} and the scores are {list(values.shape)}: "
                "give the image that was explained"
            )
        pixels = picture(pixels)
    beside = pixels is not None and overlay is None
    tall = width * values.shape[0] / values.shape[1]
    figure = figure_of(width * (2 if beside else 1) + 0.9, tall + 0.5, "constrained")
    grid = figure.subplots(1, 2 if beside else 1, squeeze=False)[0]
    size = largest(values, outliers)
    colours, norm = colours_of(sign, size)
    edges = (-0.5, values.shape[1] - 0.5, values.shape[0] - 0.5, -0.5)
    if pixels is not None:
        grid[0].imshow(pixels, extent=edges)
    # Over an image, what has no score leaves it as it is.
    covered = None if overlay is None else overlay * np.abs(values / size).clip(0, 1)
    grid[-1].imshow(values, cmap=colours, norm=norm, alpha=covered, extent=edges)
    grid[-1].set_title(title, size=EM)
    for axes in grid:
        axes.axis("off")
    legend(figure, colours, norm, ax=list(grid), shrink=0.8)
    return figure


def bar(
    scores: Any,
    names: Sequence[str] | None = None,
    *,
    sign: Sign = "all",
    top: int = 10,
    errors: Any = None,
    part: str | None = None,
    title: str = "",
    width: float = 6.0,
) -> Figure:
    """The largest scores as bars, the rest summed in the last one.

    Args:
        scores: a record, an attribution, or `[N]` scores; or `[M, N]`, M examples, of which the
            mean magnitude is shown. What is left is one bar more, so that bars sum to what scores
            do (SHAP's `bar` does so, too).
        names: N names; those of the record, or positions, if None.
        sign: as in `text`; the other scores are left out.
        top: how many bars of their own, at most.
        errors: `[N]` standard errors, drawn as lines; those of the record or attribution if None.
        part: as in `text`.
        title: above the bars.
        width: inches.

    Raises:
        JaxplainError: as `text`; names or errors do not fit; top is below 1.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise JaxplainError(f"top must be a whole number of at least 1, not {top!r}")
    seen = read(scores, names, ("bars", "tokens"), part)
    values, label = np.asarray(seen.scores, np.float64), "score"
    if values.ndim == 2:
        values, label = np.abs(values).mean(0), f"mean magnitude over {len(values)} examples"
    if values.ndim != 1:
        raise JaxplainError(f"bars take scores [N] or [M, N], not {list(values.shape)}")
    named = [str(n) for n in (seen.names or range(len(values)))]
    errors = seen.errors if errors is None else np.asarray(errors, np.float64)
    for what, given in (("names", named), ("errors", errors)):
        if given is not None and np.shape(given)[:1] != values.shape:
            raise JaxplainError(f"{len(given)} {what} for {len(values)} scores: give one for each")
    values = signed(values, sign)
    order = np.argsort(-np.abs(values), kind="stable")
    order = order[values[order] != 0] if sign in ("positive", "negative") else order
    own = order[:top]
    lengths, labels = list(values[own]), [named[i] for i in own]
    if len(own) < len(order):
        lengths.append(values[order[top:]].sum())
        labels.append(f"sum of {len(order) - top} others")
    figure = figure_of(width, 0.32 * len(lengths) + (1.0 if title else 0.8), "constrained")
    axes = figure.subplots()
    places = np.arange(len(lengths))[::-1]
    colours = [ends()[2 if length >= 0 else 0] for length in lengths]
    lines = None if errors is None else [*errors[own], *[0.0] * (len(lengths) - len(own))]
    bars = axes.barh(places, lengths, color=colours, height=0.7, xerr=lines, ecolor="0.2")
    axes.bar_label(bars, [f"{v:+.3g}".replace("-", "−") for v in lengths], padding=3, size=EM - 2)
    axes.set_yticks(places, labels)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.margins(x=0.18)
    axes.set(xlabel=label, title=title)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
