"""A sentence's hierarchy for a person: as lines of text, and as a picture."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.text import Text

from jaxplain.hierarchy import Hierarchy, heights, members
from jaxplain.report import shades
from jaxplain.report.shades import level
from jaxplain.report.words import words
from jaxplain.types import JaxplainError

SMALLEST = 0.7  # a page shrinks a wide tree to its own width, but no further than to this scale
STEPS = 10  # colour steps on either side of zero, as on the page
FONT = 13.0  # pixels
SMALL = 10.0
ROW, GAP, PAD = 36.0, 9.0, 6.0
NARROW, WIDE = "fijlt.,;:!|'`I()[]-–’ ", "mwMWOQ@%&—"
# The page's variables where it is part of one, the light page's colours where it is alone.
INK, SOFT, LINE = "var(--ink,#1b1c1e)", "var(--soft,#5d6167)", "var(--line,#c9c8c4)"


class Box(NamedTuple):
    """A unit or group of a sentence.

    Attributes:
        start: its first word.
        stop: the place after its last word.
        row: 0 for a word, the group's height otherwise.
        score: in f's units; None for a word that is in no group and was not selected.
        parent: place of the group that holds it in the list of boxes; -1 if none.
    """

    start: int
    stop: int
    row: int
    score: float | None
    parent: int


def boxes(hierarchy: Hierarchy, pieces: Sequence[str]) -> list[Box]:
    """The words of a sentence, then its groups, children before their parents.

    Raises:
        JaxplainError: another number of words than units; a tree that is not whole; groups that are
            no runs of words.
    """
    n = len(pieces)
    if len(hierarchy.unit_scores) != n:
        raise JaxplainError(
            f"the hierarchy is of {len(hierarchy.unit_scores)} units, and the words are {n}"
        )
    if not np.isfinite(hierarchy.scores).all():
        raise JaxplainError("a group's score was not finite, so the tree is not whole: see f(x)")
    above = lambda parent: int(parent) + n if parent >= 0 else -1
    found = []
    for unit in range(n):
        score = float(hierarchy.unit_scores[unit]) if hierarchy.unit_level[unit] else None
        found.append(Box(unit, unit + 1, 0, score, above(hierarchy.unit_parent[unit])))
    rows = heights(hierarchy)
    for group, held in enumerate(members(hierarchy)):
        place = np.flatnonzero(held)
        start, stop = int(place[0]), int(place[-1]) + 1
        if stop - start != len(place):
            raise JaxplainError("a group of words has gaps: draw hierarchies over chain(n) only")
        parent = above(hierarchy.parent[group])
        found.append(Box(start, stop, int(rows[group]), float(hierarchy.scores[group]), parent))
    return found


def largest(found: list[Box]) -> float:
    return max((abs(box.score) for box in found if box.score is not None), default=0.0)


def short(value: float, largest: float) -> str:
    """A score with as many decimals as the strongest one needs for two digits or three.

    >>> short(-0.126, 2.0), short(0.0126, 0.02), short(130.4, 250.0)
    ('−0.13', '+0.013', '+130')
    """
    power = int(np.floor(np.log10(largest))) if largest else 0
    digits = min(max(0, (2 if power >= 0 else 1) - power), 9)
    return f"{value:+.{digits}f}".replace("-", "−")


def phrase(pieces: Sequence[str]) -> str:
    """Words as they are written: pieces of one word joined.

    >>> phrase(["un", "##watch", "##able", "film"])
    'unwatchable film'
    """
    text = ""
    for place, word in enumerate(words(list(pieces))):
        text += ("" if word.glued or not place else " ") + word.text
    return text


def sentence_tree_text(hierarchy: Hierarchy, pieces: Sequence[str], *, colour: bool = True) -> Text:
    """A sentence's tree for the terminal: a line for each group, under the group it went into.

    Args:
        hierarchy: of one sentence, over `chain(N)`.
        pieces: its N words or pieces of words.
        colour: whether the terminal shows colours; the scores are written either way.
    """
    found = boxes(hierarchy, pieces)
    strongest = largest(found)
    below: dict[int, list[int]] = {}
    for place, box in enumerate(found):
        below.setdefault(box.parent, []).append(place)
    text = Text()

    def styled(box: Box) -> str:
        if not colour or box.score is None:
            return "" if box.score is not None or not colour else "dim"
        step = level(box.score, strongest, shades.LEVELS)
        return (shades.POSITIVE if step > 0 else shades.NEGATIVE)[abs(step)]

    def write(place: int, lead: str, rest: str) -> None:
        box = found[place]
        score = "" if box.score is None else short(box.score, strongest)
        text.append(lead, "dim" if colour else "")
        text.append(f"{score} ", "" if box.row else "dim" if colour else "")
        text.append(phrase(pieces[box.start : box.stop]), styled(box))
        text.append("\n")
        inner = sorted(below.get(place, []), key=lambda k: found[k].start)
        for k in inner:
            end = k == inner[-1]
            write(k, rest + ("└ " if end else "├ "), rest + ("  " if end else "│ "))

    for place in sorted(below[-1], key=lambda k: found[k].start):
        write(place, "", "")
    text.rstrip()
    return text


def near(pixels: Any) -> str:
    return f"{pixels:.1f}".removesuffix(".0")


def letters(text: str, size: float) -> float:
    """About how wide a text is in pixels, a little too wide rather than too narrow."""
    width = sum(0.34 if c in NARROW else 0.92 if c in WIDE else 0.61 for c in text)
    wide = sum(ord(c) >= 0x1100 for c in text)  # Chinese, Japanese, Korean, emoji
    return size * (width + 0.45 * wide)


def fill(score: float | None, strongest: float) -> str:
    """The page's colour of a score."""
    step = 0 if score is None else level(score, strongest, STEPS)
    if not step:
        return "fill:none"
    name = "--pos,242 135 20" if step > 0 else "--neg,66 146 230"
    return f"fill:rgb(var({name})/{abs(step) * 100 // STEPS}%)"


def sentence_tree_svg(
    hierarchy: Hierarchy,
    pieces: Sequence[str],
    *,
    ends: tuple[str, str] | None = None,
) -> str:
    """A sentence's tree as a picture: words at the bottom, what they join to above.

    A group is a box over its words, in the colour of its score. As in the figures of Singh, Murdoch
    and Yu (2019), its row is one above the highest of what it is made of.

    Args:
        hierarchy: of one sentence, over `chain(N)`.
        pieces: its N words or pieces of words.
        ends: what the two ends of the colour scale stand for; makes a legend.

    Returns:
        One `<svg>`, a file by itself or part of a page, whose colours it then takes.
    """
    found = boxes(hierarchy, pieces)
    strongest = largest(found)
    shown = words(list(pieces))
    told = ["" if b.score is None else short(b.score, strongest) for b in found]
    wide = [
        max(letters(word.text, FONT), letters(told[k], SMALL)) + 2 * PAD + 2
        for k, word in enumerate(shown)
    ]
    edge = np.concatenate([[0.0], np.cumsum(wide)]) + 1
    rows = max(box.row for box in found)
    width, height = edge[-1] + 1, 1 + (rows + 1) * (ROW + GAP) - GAP + 1
    top = lambda box: 1 + (rows - box.row) * (ROW + GAP)
    middle = lambda box: (edge[box.start] + edge[box.stop]) / 2
    lines = "".join(  # first of all, since boxes cover them
        f"M{near(middle(box))} {near(top(box))}V{near(top(found[box.parent]) + ROW)}"
        for box in found
        if box.parent >= 0
    )
    parts = [f'<path d="{lines}" style="stroke:{LINE}"/>']
    for k, box in enumerate(found):
        x, y, across = edge[box.start], top(box), edge[box.stop] - edge[box.start]
        inset = 1.5 if box.row else 2.5
        parts.append(
            f"<g><title>{html.escape(phrase(pieces[box.start : box.stop]))} {told[k]}</title>"
            f'<rect x="{near(x + inset)}" y="{near(y)}" width="{near(across - 2 * inset)}" '
            f'height="{ROW:.0f}" rx="4" style="{fill(box.score, strongest)};stroke:{LINE}"/>'
        )
        for unit in range(box.start, box.stop):
            soft = f' style="fill:{SOFT}"' if box.score is None or shown[unit].special else ""
            at = (edge[unit] + edge[unit + 1]) / 2
            line = y + (16 if told[k] else 22)
            text = html.escape(shown[unit].text)
            parts.append(f'<text x="{near(at)}" y="{near(line)}"{soft}>{text}</text>')
        parts.append(
            f'<text x="{near(middle(box))}" y="{near(y + 29)}" font-size="{SMALL:g}" '
            f"{'' if box.row else 'fill-opacity=.75 '}>{told[k]}</text></g>".replace(
                "fill-opacity=.75", 'fill-opacity=".75"'
            )
        )
    if ends is not None:
        legend, across = ramp(ends, height + 14)
        parts.append(legend)
        width, height = max(width, across), height + 32
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" text-anchor="middle" '
        f'font-family="system-ui,-apple-system,Segoe UI,Roboto,Liberation Sans,sans-serif" '
        f'font-size="{FONT:g}" style="fill:{INK}" '
        f'aria-label="tree of the phrases of: {html.escape(phrase(pieces))}">'
        f"{''.join(parts)}</svg>"
    )


def ramp(ends: tuple[str, str], y: float) -> tuple[str, float]:
    """A legend of the colours and its width."""
    start = 2 + letters(ends[0], SMALL + 1)
    cell = 9.0
    parts = [f'<text x="2" y="{y + 10:.0f}" text-anchor="start">{html.escape(ends[0])}</text>']
    for k, step in enumerate(range(-STEPS, STEPS + 1)):
        parts.append(
            f'<rect x="{start + 6 + k * cell:.1f}" y="{y:.0f}" width="{cell:g}" height="12" '
            f'style="{fill(step / STEPS, 1.0)}"/>'
        )
    stop = start + 12 + (2 * STEPS + 1) * cell
    parts.append(
        f'<text x="{stop:.1f}" y="{y + 10:.0f}" text-anchor="start">{html.escape(ends[1])}</text>'
    )
    group = f'<g font-size="{SMALL + 1:g}" style="fill:{SOFT}">{"".join(parts)}</g>'
    return group, stop + letters(ends[1], SMALL + 1) + 2


def sentence_tree_html(hierarchy: Hierarchy, pieces: Sequence[str]) -> str:
    """`sentence_tree_svg` for a page: shrunk a little, or scrolled sideways, where it is wide."""
    svg = sentence_tree_svg(hierarchy, pieces)
    width = int(svg.split(' width="', 1)[1].split('"', 1)[0])
    least = f"max-width:100%;min-width:{SMALLEST * width:.0f}px;height:auto"
    svg = svg.replace('style="', f'style="{least};', 1)
    return f'<div class="tree" tabindex="0" style="overflow-x:auto">{svg}</div>'
