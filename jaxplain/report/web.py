"""A run as one HTML file that needs no network."""

import html
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

import jaxplain
from jaxplain.report import charts, information, png
from jaxplain.report.shades import level
from jaxplain.report.trees import sentence_tree_html
from jaxplain.report.view import NOTHING_DRAWN, Part, Survey, View
from jaxplain.report.words import words

LEVELS = 10  # colour steps on either side of zero
LARGE = 0.01  # a relative gap above this deserves a word
BARS = 20  # features shown per example


def signed(value: float) -> str:
    return f"{value:+.4g}".replace("-", "−")


def brief(value: float) -> str:
    return f"{value:.1e}".replace("-", "−") if value else "0"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def share(value: float) -> str:
    """A relative gap as a person reads it.

    >>> share(0.0123), share(2.5e-8), share(float("inf"))
    ('1.2%', '<0.0001%', 'f(x) = f(baseline)')
    """
    if not np.isfinite(value):
        return "f(x) = f(baseline)"
    if value > 10:
        return ">1000%"
    if value < 1e-6:
        return "<0.0001%" if value else "0%"
    return f"{float(f'{100 * value:.2g}'):g}%"


def exact(part: Part, position: int) -> str:
    text = signed(float(part.scores[position]))
    if part.errors is not None:
        text += f" ± {float(part.errors[position]):.2g}"
    return text


def tokens(part: Part) -> Markup:
    """The tokens, each in its colour, with its score to be read on hover, focus or tap."""
    largest = float(np.abs(part.scores).max(initial=0.0))
    pieces = []
    shown = words(part.names)
    for position, word in enumerate(shown):
        step = level(float(part.scores[position]), largest, LEVELS)
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
    largest = float(np.abs(part.scores).max(initial=0.0)) or 1.0
    rows = []
    for position in order[:BARS]:
        score = float(part.scores[position])
        side = "plus" if score > 0 else "minus"
        width = 100 * abs(score) / largest
        rows.append(
            f'<span class="name">{html.escape(part.names[position])}</span>'
            f'<span class="track"><i class="{side}" style="width:{width:.1f}%"></i></span>'
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


def histogram(values: np.ndarray) -> Markup | None:
    """How many examples have which relative gap, in decades."""
    if not len(values):
        return None
    powers = np.log10(np.clip(np.where(np.isfinite(values), values, 1e2), 1e-9, 1e2))
    low = int(np.floor(min(powers.min(), -3)))
    high = max(int(np.ceil(powers.max() + 1e-9)), low + 3, 0)
    edges = np.linspace(low, high, 4 * (high - low) + 1)
    counts, _ = np.histogram(powers, edges)
    width, height, floor = 560, 130, 104
    step = width / len(counts)
    shapes = []
    for place, count in enumerate(counts):
        if count:
            tall = max(2.0, 88 * count / counts.max())
            shapes.append(
                f'<rect x="{place * step + 0.5:.1f}" y="{floor - tall:.1f}" '
                f'width="{step - 1:.1f}" height="{tall:.1f}"><title>{count} examples</title></rect>'
            )
    for power in range(high, low - 1, -1 if high - low <= 8 else -2):
        x = (power - low) / (high - low) * width
        anchor = "start" if power == low else "end" if power == high else "middle"
        label = f"{float(f'{10.0**power * 100:.3g}'):.10f}".rstrip("0").rstrip(".")
        if power <= -6:
            label = f"1e{power + 2}".replace("-", "−")
        shapes.append(f'<text x="{x:.1f}" y="122" text-anchor="{anchor}">{label}%</text>')
    line = f'<path d="M0 {floor}H{width}" stroke="currentColor" stroke-opacity=".4"/>'
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="distribution of relative '
        f'gaps">{"".join(shapes)}{line}</svg>'
    )


def tiles(found: Survey) -> list[dict[str, str]]:
    """The few numbers that come first."""
    done = found.examples - found.failed
    rows = [(f"{done:,}", "examples explained")]
    rows.append((f"{found.failed:,}", "failed"))
    if found.truncated or any(v.text is not None for v in found.views):
        rows.append((f"{found.truncated:,}", "truncated"))
    if found.labelled:
        share_right = percent(found.correct / found.labelled)
        rows.append((share_right, f"predicted rightly, of {found.labelled:,} labelled"))
    if len(found.gaps):
        for name, take in (("median", np.median), ("largest", np.max)):
            part = share(float(take(found.relative_gaps)))
            rows.append((f"{take(found.gaps):.2g}", f"{name} {found.gap_name}; share {part}"))
    if found.residual is not None:
        rows.append((brief(found.residual), "largest |relevant + irrelevant − f(x)|"))
    if found.curves is not None:
        count = len(found.curves.layers)
        noun = "layer" if count == 1 else "layers"
        rows.append((str(count), f"{noun} of {found.curves.words:,} words"))
        lost = f"of layers of sentences converged; {int(found.curves.unconverged.sum()):,} did not"
        rows.append((percent(found.curves.converged), lost))
        error = found.curves.largest_error
        error = "unknown" if np.isnan(error) else f"{error:.2g}"
        rows.append((error, "largest standard error of log σ"))
    return [{"value": value, "name": name} for value, name in rows]


def advice(found: Survey, configuration: Mapping[str, Any]) -> str | None:
    """What to do about large gaps; None where there are none."""
    large = int(np.sum(found.relative_gaps > LARGE))
    if not large:
        return None
    options = configuration.get("options")
    options = options if isinstance(options, Mapping) else {}
    ways = [f"raise --{name}" for name in ("steps", "samples") if name in options]
    ways += ["choose another --baseline"] * ("baseline" in options)
    if found.conserving:
        ways = ["it is what biases and some rules keep; jaxplain.coverage(f, x, rules) says which"]
    return (
        f"{large:,} of {len(found.gaps):,} examples {'has' if large == 1 else 'have'} a "
        f"{found.gap_name} above {share(LARGE)} "
        f"of {found.gap_of}: {' or '.join(ways) or 'take their scores as approximate'}"
    )


def two_sided(views: list[View]) -> bool:
    """Whether scores have a sign: one is negative, or they are parts of a sum."""
    return any(
        v.gap is not None or any(np.min(part.scores, initial=0.0) < 0 for part in v.parts)
        for v in views
    )


def ends(views: list[View]) -> tuple[str, str]:
    """What the two ends of the colour scale stand for."""
    targets = {v.target for v in views}
    if None in targets or not targets:
        return "lowers f(x)", "raises f(x)"
    name = targets.pop() if len(targets) == 1 else "the explained class"
    return f"against {name}", f"for {name}"


def flat(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    """Nested settings, one line each."""
    rows = []
    for name, value in tree.items():
        name = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            rows += flat(value, name)
        elif isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            rows.append((name, ", ".join(value)))
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    return rows


SHOWN = (tokens, tree, layer_map, bars, pictures, signed, brief, percent, share)


def render(info: Mapping[str, Any], found: Survey) -> str:
    """Give the page of a run's `run.json` and of what its records hold, as HTML text."""
    configuration = info.get("configuration") or {}
    shown = [part for v in found.views for part in v.parts]
    kinds = sorted({part.kind for part in shown})
    colours = information.span([part for part in shown if part.kind == "information"])
    method, model = configuration.get("method"), configuration.get("model")
    data = configuration.get("data")
    data = data.get("name") if isinstance(data, Mapping) else data
    title = " · ".join(str(part) for part in (method, model) if part) or "Explanations"
    noun = "example" if found.examples == 1 else "examples"
    noun = f"bundled {noun}" if data == "bundled" else f"{noun} of {data}" if data else noun
    words_of = [f"{found.examples:,} {noun}"]
    if "target" in configuration and not found.informed:
        told = {"predicted": "the predicted class of each", "label": "the true class of each"}
        target = str(configuration["target"])
        words_of.append(f"explained: {told.get(target, target)}")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = resources.files("jaxplain.report").joinpath("page.html.jinja")
    rows = flat(configuration)
    for name in ("versions", "devices", "totals"):
        if isinstance(info.get(name), Mapping):
            rows += flat(info[name], name)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        title=title,
        subtitle="; ".join(words_of),
        status=info.get("status"),
        tiles=tiles(found),
        survey=found,
        nothing_drawn=NOTHING_DRAWN,
        kinds=kinds,
        confident=any(v.probability is not None for v in found.views),
        two_sided=two_sided(found.views),
        ends=ends(found.views),
        histogram=histogram(found.relative_gaps),
        caption=f"How many examples have which {found.gap_name}: what the scores' sum misses, as "
        f"a share of {found.gap_of}, on a logarithmic scale.",
        advice=advice(found, configuration),
        colours=colours,
        cell="1rem" if found.curves and len(found.curves.layers) < 5 else ".68rem",
        told=information.ends_told(colours),
        curves=Markup(charts.charts(found.curves)) if found.curves else "",
        numbers=Markup(charts.table(found.curves)) if found.curves else "",
        lost=information.advice(found.curves) if found.curves else None,
        configuration=rows,
        version=jaxplain.__version__,
        **{f.__name__: f for f in SHOWN},
    )


def write(path: Path, text: str) -> Path:
    """Write the page whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
