"""One example as HTML; page.js draws the same from `packed.pack`'s rows."""

import html

import numpy as np
from markupsafe import Markup

from jaxplain.report import information, png
from jaxplain.report.parts import NOTHING_DRAWN, Part
from jaxplain.report.shades import level
from jaxplain.report.told import brief, exact, percent, rounded, share, signed
from jaxplain.report.trees import sentence_tree_html
from jaxplain.report.view import View
from jaxplain.report.words import words

LEVELS = 10  # colour steps on either side of zero
BARS = 20  # features shown per example
TEXT = 300  # letters shown of a text that failed


def tokens(part: Part) -> Markup:
    """The tokens, each in its colour, with its score to be read on hover, focus or tap."""
    scores = [rounded(float(score)) for score in part.scores]
    largest = max(map(abs, scores), default=0.0)
    pieces = []
    shown = words(part.names)
    for position, word in enumerate(shown):
        step = level(scores[position], largest, LEVELS)
        held = position + 1 < len(shown) and shown[position + 1].glued
        marks = ["g"] * word.glued + ["h"] * held + ["s"] * word.special
        marks += [f"p{step}"] * (step > 0) + [f"m{-step}"] * (step < 0)
        kind = f' class="{" ".join(marks)}"' if marks else ""
        stop = -1 if position else 0
        pieces.append(
            f'{"" if word.glued else " "}<span{kind} tabindex="{stop}" '
            f'data-v="{exact(part, position)}">{html.escape(word.text)}</span>'
        )
    return Markup("".join(pieces).strip())


def tree(part: Part) -> Markup:
    """A sentence's tree, which scrolls where it is wider than the page."""
    assert part.tree is not None
    return Markup(sentence_tree_html(part.tree, part.names))


def layer_map(part: Part, ends: information.Range) -> Markup:
    """Words by layers: how much of each word each layer keeps."""
    return Markup(information.map_html(part, ends))


def bars(part: Part) -> Markup:
    """The largest scores of a row of features, as bars left and right of zero."""
    order = np.argsort(-np.abs(part.scores), kind="stable")
    largest = rounded(float(np.abs(part.scores).max(initial=0.0))) or 1.0
    rows = []
    for position in order[:BARS]:
        score = rounded(float(part.scores[position]))
        side = "plus" if score > 0 else "minus"
        width = np.rint(1000 * abs(score) / largest) / 10
        rows.append(
            f'<span class="name">{html.escape(part.names[position])}</span>'
            f'<span class="track"><i class="{side}" style="width:{width:g}%"></i></span>'
            f'<span class="n">{exact(part, int(position))}</span>'
        )
    if len(order) > BARS:
        rows.append(f'<span class="soft">and {len(order) - BARS} smaller</span>')
    return Markup("".join(rows))


def pictures(part: Part) -> Markup:
    """The scores of an image as a picture, beside the image where the record holds it."""
    low, high = float(np.min(part.scores)), float(np.max(part.scores))
    shown = []
    if part.image is not None:
        shown.append((png.picture(part.image), "input", "the input"))
    caption = f"scores {signed(low)} to {signed(high)}"
    shown.append((png.heat(part.scores), caption, caption))
    return Markup(
        "".join(
            f'<figure><img src="{png.data_uri(pixels)}" alt="{alt}"><figcaption>{caption}'
            "</figcaption></figure>"
            for pixels, caption, alt in shown
        )
    )


def body(seen: View, colours: information.Range) -> str:
    """An example's scores, each array under its title."""
    if seen.error is not None:
        told = f'<p class="fail">failed: {html.escape(seen.error)}</p>'
        text = html.escape((seen.text or "")[:TEXT])
        return told + (f'<p class="soft">{text}</p>' if text else "")
    blocks = []
    for part in seen.parts:
        if part.title:
            blocks.append(f'<p class="part">{html.escape(part.title)}</p>')
        if part.kind == "tokens":
            blocks.append(f'<p class="tokens">{tokens(part)}</p>')
        elif part.kind == "bars":
            blocks.append(f'<div class="bars">{bars(part)}</div>')
        else:
            blocks.append(whole(part, colours))
    return "".join(blocks) or f'<p class="soft">{NOTHING_DRAWN}</p>'


def whole(part: Part, colours: information.Range) -> str:
    """What the page carries as it is: a tree, a map of layers, pictures."""
    if part.kind == "tree":
        return tree(part)
    if part.kind == "information":
        return layer_map(part, colours)
    return f'<div class="pictures">{pictures(part)}</div>'


def facts(seen: View) -> str:
    """What is known of an example, beside its scores."""
    if seen.error is not None:
        return ""
    bold = lambda name: f"<b>{html.escape(name)}</b>"
    found = []
    if seen.prediction is not None and seen.probability is not None:
        sure = percent(float(f"{seen.probability:.6g}"))
        found.append(
            f'<span>predicted {bold(seen.prediction)} <span class="n">{sure}</span></span>'
        )
    if seen.label is not None:
        mark = {True: " ✓", False: ' <span class="wrong">✗ wrong</span>', None: ""}[seen.correct]
        found.append(f"<span>label {bold(seen.label)}{mark}</span>")
    if seen.target is not None:
        over = "" if seen.other is None else f" over {bold(seen.other)}"
        found.append(f"<span>explained {bold(seen.target)}{over}</span>")
    if seen.output is not None:
        found.append(f'<span class="n">f(x) {signed(seen.output)}</span>')
    if seen.gap is not None:
        relative = seen.relative_gap
        told = "" if relative is None else f" ({share(rounded(relative))})"
        found.append(f'<span class="n">gap {brief(rounded(seen.gap))}{told}</span>')
    if seen.effort is not None:
        found.append(f'<span class="n">effort {seen.effort}</span>')
    if seen.converged is False:
        found.append('<span class="wrong">✗ not converged</span>')
    if seen.truncated:
        found.append(f"<span>✂ {html.escape(seen.truncated)}</span>")
    return "".join(found)


def article(seen: View, colours: information.Range) -> Markup:
    """One example of a page."""
    return Markup(
        f'<article id="e{seen.index}"><div class="facts"><a class="id n" href="#e{seen.index}">'
        f"{seen.index}</a>{facts(seen)}</div>{body(seen, colours)}</article>"
    )


def pair(names: tuple[str, str], told: str, a: View, b: View) -> Markup:
    """One example of a comparison: both explanations under each other."""
    sides = "".join(
        f'<div class="side"><div class="facts"><b class="run">{html.escape(name)}</b>'
        f"{facts(seen)}</div>{body(seen, information.Range(0.0, 0.0))}</div>"
        for name, seen in zip(names, (a, b), strict=True)
    )
    return Markup(
        f'<article id="e{a.index}"><div class="facts"><a class="id n" href="#e{a.index}">'
        f"{a.index}</a><span>{html.escape(told)}</span></div>{sides}</article>"
    )
