"""Word information of a sentence: a map of words by layers, for a page and for the terminal."""

import html
from typing import NamedTuple

import numpy as np
from rich.text import Text

from jaxplain.report.curves import Curves
from jaxplain.report.shades import KEPT
from jaxplain.report.view import Part
from jaxplain.report.words import words

STEPS = 10  # colour steps of a page
SHADES = " ░▒▓█"  # those of a terminal without colours
CENSORED, UNCONVERGED = "·", "?"


class Range(NamedTuple):
    """Nats per dimension kept that get no colour and full colour: the same for all sentences."""

    low: float
    high: float


def step(kept: float, ends: Range, steps: int) -> int:
    """The colour step, 0 to `steps`, of a word that keeps `kept` nats per dimension."""
    share = (kept - ends.low) / (ends.high - ends.low) if ends.high > ends.low else float(kept > 0)
    return int(np.clip(np.rint(share * steps), 0, steps))


def span(parts: list[Part]) -> Range:
    """The range of colours for some sentences: all but the lowest and highest 3% of their words.

    It begins at 0, forgotten, unless even the least kept words are far from it.
    """
    values = np.concatenate([part.scores.ravel() for part in parts]) if parts else np.zeros(1)
    low, high = (float(np.quantile(values, q)) for q in (0.03, 0.97))
    return Range(low if low > high / 4 else 0.0, high)


def ends_told(ends: Range) -> tuple[str, str]:
    """What the pale and the dark end of the colours stand for."""
    low = f"{ends.low:.2g} or less" if ends.low else "0, forgotten,"
    return low, f"{ends.high:.2g} nats per dimension or more"


def told(part: Part, row: int, column: int) -> str:
    """One word in one layer, in numbers."""
    found = part.information
    facts = [
        f"layer {part.layers[row]}",
        f"kept {part.scores[row, column]:.3g} nats per dimension",
        f"σ {found.sigma[row, column]:.3g}",
        f"entropy {found.entropy[row, column]:.4g} nats".replace("-", "−"),
    ]
    error = float(found.standard_error[row, column])
    if np.isfinite(error):
        facts.append(f"log σ ± {error:.2g}")
    if found.censored[row, column]:
        facts.append("at the cap: forgotten")
    if not found.converged[row]:
        facts.append("not converged")
    return " · ".join(facts)


def map_html(part: Part, ends: Range) -> str:
    """A sentence's words, each over a stripe for every layer, in the order of the layers.

    Args:
        part: of kind "information".
        ends: of the colours.
    """
    found = part.information
    labels = "".join(
        f"<i>{layer}{'' if found.converged[row] else UNCONVERGED}</i>"
        for row, layer in enumerate(part.layers)
    )
    columns = [f'<span class="names"><b>layer</b>{labels}</span>']
    shown = words(part.names)
    for column, word in enumerate(shown):
        held = column + 1 < len(shown) and shown[column + 1].glued
        cells = []
        for row in range(len(part.layers)):
            marks = [f"k{step(part.scores[row, column], ends, STEPS)}"]
            marks += ["z"] * bool(found.censored[row, column]) + ["u"] * (not found.converged[row])
            stop = 0 if row == column == 0 else -1
            cells.append(
                f'<i class="{" ".join(marks)}" tabindex="{stop}" '
                f'data-v="{told(part, row, column)}"></i>'
            )
        marks = ["g"] * word.glued + ["h"] * held + ["s"] * word.special
        kind = f' class="{" ".join(marks)}"' if marks else ""
        columns.append(f"<span{kind}><b>{html.escape(word.text)}</b>{''.join(cells)}</span>")
    return f'<div class="map">{" ".join(columns)}</div>'


def map_text(part: Part, ends: Range, *, colour: bool, width: int) -> Text:
    """The map for a terminal `width` columns wide: a line of words, then a line for each layer."""
    found = part.information
    labels = [
        f"layer {layer}{'' if found.converged[row] else UNCONVERGED}"
        for row, layer in enumerate(part.layers)
    ]
    margin = max(map(len, labels)) + 2
    shown = words(part.names)
    lines: list[list[int]] = [[]]
    used = margin
    for column, word in enumerate(shown):
        need = len(word.text) + 1
        if used + need > width and lines[-1]:
            lines.append([])
            used = margin
        lines[-1].append(column)
        used += need
    text = Text()
    for line in lines:
        text.append(" " * margin)
        for column in line:
            text.append(shown[column].text, "dim" if colour and shown[column].special else "")
            text.append(" ")
        text.append("\n")
        for row, label in enumerate(labels):
            text.append(f"{label:<{margin}}", "dim" if colour else "")
            for column in line:
                level = step(part.scores[row, column], ends, len(SHADES) - 1)
                wide = len(shown[column].text)
                if found.censored[row, column]:
                    text.append(CENSORED * wide)
                elif colour:
                    text.append(" " * wide, KEPT[level])
                else:
                    text.append(SHADES[level] * wide)
                text.append(" ")
            text.append("\n")
    text.rstrip()
    return text


def legend_text(ends: Range, *, colour: bool) -> Text:
    """What the shades of `map_text` mean."""
    low, high = ends_told(ends)
    text = Text(f"kept: {low} ")
    for level, shade in enumerate(SHADES):
        text.append("   " if colour else shade * 3, KEPT[level] if colour else "")
    return text.append(f" {high}; {CENSORED} at the cap: forgotten; {UNCONVERGED} not converged\n")


def table_text(found: Curves) -> str:
    """The curves of a run in a few lines: what each layer keeps, over all sentences."""
    last = {name: curve for name, curve in list(found.groups.items())[-2:] if curve.words.any()}
    slices = {"all words": found.overall, **last}
    rows = [["layer", *slices, "words forgotten", "targeted"]]
    for k, layer in enumerate(found.layers):
        row = [f"{layer}{UNCONVERGED if found.unconverged[k] else ''}"]
        for curve in slices.values():
            row.append(f"{curve.mean[k]:.2f} ± {curve.standard_error[k]:.2f}".replace("nan", "-"))
        forgotten, spread = found.overall.censored[k], found.targeting.mean[k]
        rows.append([*row, f"{100 * forgotten:.0f}%", f"{spread:.2f}"])
        rows[-1] = [cell.replace("nan%", "-").replace("nan", "-") for cell in rows[-1]]
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(c.rjust(n) for c, n in zip(row, wide, strict=True)) for row in rows]
    return "kept, in nats per dimension, by layer (larger: more is kept)\n" + "\n".join(lines)


def summary(found: Curves) -> str:
    """Word information of a run in a few words."""
    lost = int(found.unconverged.sum())
    count = len(found.layers)
    facts = f"{count} {'layer' if count == 1 else 'layers'} of {found.words:,} words"
    share = f"{100 * found.converged:.1f}% of layers of sentences converged"
    if lost:
        share += f" ({lost:,} not)"
    error = "unknown" if np.isnan(found.largest_error) else f"{found.largest_error:.2g}"
    return f"{facts} · {share} · largest standard error of log σ {error}"


def advice(found: Curves) -> str | None:
    """What to do about layers that did not converge; None where there is nothing to do."""
    lost = int(found.unconverged.sum())
    if not lost:
        return None
    which = [f"{n} ({k:,})" for n, k in zip(found.layers, found.unconverged, strict=True) if k]
    return (
        f"{lost:,} of {found.sentences * len(found.layers):,} layers of sentences did not converge "
        f"and are left out of the curves, by layer: {', '.join(which)}; raise --steps or --samples"
    )
