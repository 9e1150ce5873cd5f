"""A run's first examples in the terminal, coloured where it can show colours, marked where not."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from jaxplain.report import information
from jaxplain.report.parts import NOTHING_DRAWN, Part
from jaxplain.report.shades import LEVELS, NEGATIVE, POSITIVE, level
from jaxplain.report.told import exact, percent, share, signed
from jaxplain.report.trees import sentence_tree_text
from jaxplain.report.view import View, view
from jaxplain.report.web import ends, two_sided
from jaxplain.report.words import words
from jaxplain.run.packing import Record

SHADES = " ░▒▓█"
ROWS = 10  # features shown per example


def tokens(part: Part, colour: bool) -> Text:
    """A sentence as a heat map; without colours, as `[+good]` and `[--dull]`."""
    largest = float(np.abs(part.scores).max(initial=0.0))
    text = Text()
    for position, word in enumerate(words(part.names)):
        step = level(float(part.scores[position]), largest, LEVELS)
        if position and not word.glued:
            text.append(" ")
        if colour:
            style = (POSITIVE if step > 0 else NEGATIVE)[abs(step)]
            text.append(word.text, style or ("dim" if word.special else ""))
        elif abs(step) < 2:
            text.append(word.text)
        else:
            sign = ("+" if step > 0 else "-") * (abs(step) - 1)
            text.append(f"[{sign}{word.text}]")
    return text


def bars(part: Part) -> Text:
    """The largest scores of a row of features."""
    order = np.argsort(-np.abs(part.scores), kind="stable")
    largest = float(np.abs(part.scores).max(initial=0.0)) or 1.0
    wide = max((len(part.names[i]) for i in order[:ROWS]), default=0)
    lines = []
    for i in order[:ROWS]:
        bar = "█" * max(1, round(20 * abs(float(part.scores[i])) / largest))
        lines.append(f"{part.names[i]:<{wide}}  {exact(part, int(i)):>12}  {bar}")
    return Text("\n".join(lines))


def image(part: Part) -> Text:
    """A small image's scores, two letters a pixel: `+` for, `-` against, darker for stronger."""
    step = -(-max(part.scores.shape) // 32)
    scores = part.scores[::step, ::step]
    largest = float(np.abs(scores).max(initial=0.0))
    rows = []
    for row in scores:
        steps = [level(float(score), largest, LEVELS) for score in row]
        rows.append(
            "".join(("+" if s > 0 else "-" if s < 0 else " ") + SHADES[abs(s)] for s in steps)
        )
    return Text("\n".join(rows))


def headline(seen: View) -> str:
    """What is known of an example, on one line."""
    facts = [f"#{seen.index}"]
    if seen.prediction is not None and seen.probability is not None:
        facts.append(f"predicted {seen.prediction} {percent(seen.probability)}")
    if seen.label is not None:
        mark = {True: " (right)", False: " (wrong)", None: ""}[seen.correct]
        facts.append(f"label {seen.label}{mark}")
    if seen.target is not None:
        over = "" if seen.other is None else f" over {seen.other}"
        facts.append(f"explained {seen.target}{over}")
    if seen.output is not None and seen.prediction is None:
        facts.append(f"f(x) {signed(seen.output)}")
    if seen.gap is not None and seen.relative_gap is not None:
        facts.append(f"gap {share(seen.relative_gap)}")
    if seen.effort is not None:
        facts.append(f"effort {seen.effort}")
    if seen.converged is False:
        facts.append("not converged")
    if seen.truncated:
        facts.append(seen.truncated)
    return " · ".join(facts)


def example(seen: View, console: Console, ends: information.Range) -> None:
    """Print one record; `ends` as `information.map_text` takes it."""
    colour = console.color_system is not None and not console.no_color
    wrap = not console.is_terminal  # a file gets whole lines
    console.print(Text(headline(seen), style="dim" if colour else ""), soft_wrap=wrap)
    if seen.error is not None:
        console.print(Text(f"  failed: {seen.error}"), soft_wrap=wrap)
    elif not seen.parts:
        console.print(Text(f"  {NOTHING_DRAWN}"), soft_wrap=wrap)
    for part in seen.parts:
        if part.title:
            console.print(Text(f"  {part.title}"))
        if part.tree is not None:
            shown = sentence_tree_text(part.tree, part.names, colour=colour)
        elif part.kind == "information":
            shown = information.map_text(part, ends, colour=colour, width=console.width)
        elif part.kind == "tokens":
            shown = tokens(part, colour)
        else:
            shown = image(part) if part.kind == "image" else bars(part)
        console.print(shown, soft_wrap=wrap)
    console.print()


def legend(views: list[View], console: Console) -> None:
    """Say what the colours or marks mean."""
    colour = console.color_system is not None and not console.no_color
    low, high = ends(views)
    both = two_sided(views)
    if colour:
        text = Text(f"{low} " if both else "no influence ")
        for style in (*(reversed(NEGATIVE[2:]) if both else ()), "", *POSITIVE[2:]):
            text.append("   ", style)
        text.append(f" {high}" if both else " most influence")
    elif all(part.kind == "tree" for seen in views for part in seen.parts):
        text = Text(f"each phrase with its score, + {high}, − {low}, under the one it is part of")
    elif both:
        text = Text(f"[+word] {high}, [-word] {low}; more signs, stronger")
    else:
        text = Text("[+word] influence; more signs, stronger")
    console.print(text.append("\n"))


def examples(records: Iterable[Record], configuration: Mapping[str, Any], console: Console) -> None:
    """Print records with a legend."""
    views = [view(record, configuration) for record in records]
    shown = [part for seen in views for part in seen.parts]
    maps = [part for part in shown if part.kind == "information"]
    colours = information.span(maps)
    if maps:
        colour = console.color_system is not None and not console.no_color
        console.print(information.legend_text(colours, colour=colour), soft_wrap=True)
    if any(part.kind in ("tokens", "tree") for part in shown):
        legend(views, console)
    for seen in views:
        example(seen, console, colours)
