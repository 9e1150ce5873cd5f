"""Curves over layers as pictures and tables for a page: SVG without a script."""

import html
from collections.abc import Mapping

import numpy as np

from jaxplain.report.curves import Curve, Curves

WIDTH, HEIGHT = 460.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 34.0, 118.0, 12.0, 34.0
LINE = 13.0  # least distance of two labels


def ticks(top: float) -> list[float]:
    """Three to six round numbers from 0 to at most `top`.

    >>> ticks(2.62), ticks(2.4)
    ([0.0, 1.0, 2.0], [0.0, 0.5, 1.0, 1.5, 2.0])
    """
    if not top > 0:
        return [0.0]
    raw = top / 5
    power = 10.0 ** np.floor(np.log10(raw))
    unit = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= raw * (1 - 1e-9))
    return [float(unit * k) for k in range(int(top / unit + 1e-9) + 1)]


def apart(places: list[float], low: float, high: float) -> list[float]:
    """Move labels so that no two overlap, in their order, as little as a simple pass can."""
    order = np.argsort(places, kind="stable")
    moved = list(places)
    below = low - LINE
    for k in order:
        moved[k] = below = max(places[k], below + LINE)
    above = high + LINE
    for k in order[::-1]:
        moved[k] = above = min(moved[k], above - LINE)
    return moved


def chart(title: str, slices: Mapping[str, Curve], layers: tuple[int, ...], unit: str) -> str:
    """Lines over layers, each named at its right end; bars are one standard error.

    A slice without a word in any layer has no line; a layer without one breaks the line.
    """
    lines = {name: curve for name, curve in slices.items() if np.isfinite(curve.mean).any()}
    if not lines:
        return ""
    reach = [c.mean + np.nan_to_num(c.standard_error) for c in lines.values()]
    top = float(np.nanmax(reach)) or 1.0
    last = len(layers) - 1
    across = lambda k: LEFT + (WIDTH - LEFT - RIGHT) * (k / last if last else 0.9)
    up = lambda v: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * v / top
    parts = []
    for tick in ticks(top):
        parts.append(
            f'<path class="grid" d="M{LEFT} {up(tick):.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 5}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    skip = -(-len(layers) // 13)
    for k in range(0, len(layers), skip):
        parts.append(
            f'<text x="{across(k):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{layers[k]}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 3}" text-anchor="middle">layer</text>')
    ends = []
    for place, (name, curve) in enumerate(lines.items()):
        path, pen = "", "M"
        dots = []
        for k, (mean, error) in enumerate(zip(curve.mean, curve.standard_error, strict=True)):
            if not np.isfinite(mean):
                pen = "M"
                continue
            x, y = across(k), up(float(mean))
            path += f"{pen}{x:.1f} {y:.1f}"
            pen = "L"
            if np.isfinite(error):
                low, high = up(float(mean - error)), up(float(mean + error))
                path_error = f"M{x:.1f} {low:.1f}V{high:.1f}"
                dots.append(f'<path class="error" d="{path_error}"/>')
            dots.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"><title>{html.escape(name)}, layer '
                f"{layers[k]}: {told(curve, k)} {unit}</title></circle>"
            )
        end = int(np.flatnonzero(np.isfinite(curve.mean))[-1])
        ends.append((place, name, up(float(curve.mean[end])), across(end)))
        parts.append(f'<g class="c{place % 8}"><path class="line" d="{path}"/>{"".join(dots)}</g>')
    labels = apart([y for *_, y, _ in ends], TOP + 4, HEIGHT - BOTTOM)
    for (place, name, y, x), at in zip(ends, labels, strict=True):
        lead = f"M{x + 4:.1f} {y:.1f}L{WIDTH - RIGHT + 12} {at:.1f}"
        parts.append(
            f'<g class="c{place % 8}"><path class="lead" d="{lead}"/><text class="name" '
            f'x="{WIDTH - RIGHT + 15}" y="{at + 4:.1f}">{html.escape(name)}</text></g>'
        )
    return (
        f'<figure class="chart"><figcaption><b>{html.escape(title)}</b><br>{unit}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{html.escape(title)}, by '
        f'layer">{"".join(parts)}</svg></figure>'
    )


def told(curve: Curve, k: int) -> str:
    """One layer of a slice: the mean, its standard error, how many words it is of."""
    error = curve.standard_error[k]
    near = f" ± {error:.2g}" if np.isfinite(error) else ""
    noun = "word" if curve.words[k] == 1 else "words"
    return f"{curve.mean[k]:.3g}{near}, {curve.words[k]:,} {noun}"


def forgotten(curve: Curve) -> Curve:
    """The share of words at the cap as a curve of its own, in percent."""
    share = 100 * curve.censored
    return curve._replace(mean=share, standard_error=np.full_like(share, np.nan))


def charts(found: Curves) -> str:
    """The pictures at the top of a page."""
    unit = "nats per dimension kept" if found.quantity == "kept" else "nats per dimension discarded"
    whole, last = {"all words": found.overall}, list(found.groups.items())[-2:]
    judged = any(curve.words.any() for curve in found.correctness.values())
    lost = {name: forgotten(curve) for name, curve in (whole | dict(last)).items()}
    shown = [
        ("By kind of word", found.groups, unit),
        ("By place in the sentence", found.places, unit),
        ("Right and wrong predictions", whole | found.correctness, unit)
        if judged
        else ("All words", whole, unit),
        ("Forgotten words, at the cap", lost, "% of words"),
        (
            "How targeted",
            {"within a sentence": found.targeting},
            "standard deviation of log σ over the words of a sentence, nats",
        ),
    ]
    if not any(np.nansum(curve.mean) for curve in lost.values()):
        del shown[3]  # nothing is forgotten
    return "".join(chart(title, slices, found.layers, unit) for title, slices, unit in shown)


def table(found: Curves) -> str:
    """Every number of the curves, with how many words it is of."""
    slices = {"all words": found.overall, **found.groups, **found.places}
    slices |= {f"predicted {name}": curve for name, curve in found.correctness.items()}
    head = "".join(f"<th>layer {layer}</th>" for layer in found.layers)
    rows = []
    for name, curve in slices.items():
        cells = "".join(
            f"<td>{told(curve, k) if curve.words[k] else 'no word'}</td>"
            for k in range(len(found.layers))
        )
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    spread = "".join(
        f"<td>{told(found.targeting, k) if found.targeting.words[k] else 'no word'}</td>"
        for k in range(len(found.layers))
    )
    lost = "".join(f"<td>{count:,}</td>" for count in found.unconverged)
    rows.append(f"<tr><th>standard deviation of log σ</th>{spread}</tr>")
    rows.append(f"<tr><th>sentences not converged</th>{lost}</tr>")
    body = f"<tr><th></th>{head}</tr>{''.join(rows)}"
    return f'<div class="wide"><table class="layers">{body}</table></div>'
