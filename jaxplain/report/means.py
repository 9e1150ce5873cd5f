"""A `Corpus` as HTML: means with their intervals, side by side."""

import html

import numpy as np
from markupsafe import Markup

from jaxplain.report import png
from jaxplain.report.corpus import Corpus, Mean, Sides
from jaxplain.report.told import signed

CLASSES = 12  # explained classes that get tables or maps of their own


def rows(means: list[Mean], largest: float, *, words: bool) -> str:
    """Means as bars with a whisker, of a length relative to `largest`."""
    shown = []
    for m in means:
        side = "plus" if m.mean > 0 else "minus"
        ends = [min(max(end, 0.0), 1.0) for end in interval(m, largest)]
        name = html.escape(m.name)
        if words:
            name = f'<a href="#examples" data-find="{name}">{name}</a>'
        bar = f'<i class="{side}" style="width:{100 * abs(m.mean) / largest:.1f}%"></i>'
        whisker = (
            f'<i class="ci" style="left:{100 * ends[0]:.1f}%;right:{100 - 100 * ends[1]:.1f}%"></i>'
        )
        shown.append(
            f'<tr><th scope="row">{name}</th><td class="bar">{bar}{whisker}</td>'
            f'<td class="n">{told(m)}</td>'
            f'<td class="n soft">{m.examples:,}</td></tr>'
        )
    return "".join(shown)


def told(m: Mean) -> str:
    """A mean and its interval, in digits that mean something."""
    return f"{m.mean:+.3g} ± {m.half:.2g}".replace("-", "−")


def interval(m: Mean, largest: float) -> tuple[float, float]:
    """A mean's interval, as shares of `largest`; what lies beyond zero is below 0."""
    return (abs(m.mean) - m.half) / largest, (abs(m.mean) + m.half) / largest


def ends(target: str, signs: bool) -> tuple[str, str]:
    """What the two tables are called."""
    return (f"for {target}", f"against {target}") if signs else ("most influence", "")


def sides_html(found: Sides, corpus: Corpus, titles: tuple[str, str]) -> str:
    """Two tables: for and against."""
    every = [*found.positive, *found.negative]
    largest = 1.05 * max((abs(m.mean) + m.half for m in every), default=0.0) or 1.0
    words, noun = corpus.kind == "words", corpus.kind.removesuffix("s")
    blocks = []
    for means, title in zip((found.positive, found.negative), titles, strict=True):
        if means:
            blocks.append(
                f'<table class="means"><caption>{html.escape(title)}</caption>'
                f'<thead><tr><th scope="col">{noun}</th><th scope="col" class="bar"></th>'
                '<th scope="col">mean ± 95%</th><th scope="col">examples</th></tr></thead>'
                f"<tbody>{rows(means, largest, words=words)}</tbody></table>"
            )
    return f'<div class="both">{"".join(blocks)}</div>'


def maps_html(corpus: Corpus) -> str:
    """Mean scores of images as pictures."""
    figures = []
    for name, (scores, count) in list(corpus.maps.items())[:CLASSES]:
        low, high = signed(float(np.min(scores))), signed(float(np.max(scores)))
        of = "all" if name == "all" else f"explained {html.escape(name)}"
        caption = f"{of}: {count:,} images, {low} to {high}"
        figures.append(
            f'<figure><img src="{png.data_uri(png.heat(scores))}" alt="mean scores, {caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    more = len(corpus.maps) - len(figures)
    told = f'<p class="soft">{more} more classes are not shown.</p>' if more else ""
    return f'<div class="pictures">{"".join(figures)}</div>{told}'


def corpus_html(corpus: Corpus, *, signs: bool = True) -> Markup:
    """The corpus view of a page; empty where a run has neither words, features nor images.

    Args:
        corpus: of the run.
        signs: whether its scores say for or against, and not only how much.
    """
    if corpus.maps:
        return Markup(
            '<p class="soft">Mean scores of all images of the run, pixel by pixel, each map in a '
            f"colour scale of its own.</p>{maps_html(corpus)}"
        )
    if not corpus.kind:
        return Markup("")
    noun = corpus.kind
    what = (
        "whole words, joined from their pieces and in lower case; a word that stands in an example "
        "more than once counts once, with its mean there"
        if noun == "words"
        else "features by name"
    )
    toward = " toward the class that each example explains," if signs else ""
    told = (
        f'<p class="soft">Over all {corpus.examples:,} explained examples, not only those shown: '
        f"mean score{toward} of {what}. Listed are {noun} in "
        f"at least {corpus.minimum} examples, {corpus.counted:,} of {corpus.distinct:,}. ± is half "
        f"the 95% interval of the mean over examples, for each of the {noun} alone: among many, "
        "the most extreme are partly so by chance.</p>"
    )
    if not corpus.counted:
        return Markup(told)
    blocks = [told, sides_html(corpus.overall, corpus, ends("the explained class", signs))]
    for name, found in list(corpus.classes.items())[:CLASSES]:
        if found.positive or found.negative:
            blocks.append(
                f"<details><summary>Where {html.escape(name)} is explained</summary>"
                f"{sides_html(found, corpus, ends(name, signs))}</details>"
            )
    if len(corpus.classes) > CLASSES:
        more = len(corpus.classes) - CLASSES
        blocks.append(f'<p class="soft">{more} more classes have no tables of their own.</p>')
    return Markup("".join(blocks))
