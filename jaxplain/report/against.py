"""The page of two runs on the same examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

import jaxplain
from jaxplain.report import web
from jaxplain.report.agreement import Agreement, Comparison, reason_of, sentence
from jaxplain.report.certificate import QUANTILES, certificate, flat
from jaxplain.report.drawn import pair
from jaxplain.report.information import Range
from jaxplain.report.packed import first, pack
from jaxplain.report.parts import NOTHING_DRAWN
from jaxplain.report.view import Survey, View
from jaxplain.run.records import Records

UNCOLOURED = Range(0.0, 0.0)  # no maps of layers here
BINS = np.linspace(-1, 1, 21)


def differences(infos: list[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What is not the same in the two run.json: a name, and the value in each."""
    sides = []
    for info in infos:
        rows = dict(flat(info.get("configuration") or {}))
        for group in ("plan", "versions", "devices", "fingerprints"):
            rows |= dict(flat(info.get(group) or {}, group))
        sides.append(rows)
    first, second = sides
    names = [*first, *(name for name in second if name not in first)]
    rows = [(name, first.get(name, "unset"), second.get(name, "unset")) for name in names]
    return [row for row in rows if row[1] != row[2]]


def chart(values: np.ndarray) -> Markup:
    """How many examples have which agreement, from -1 to 1."""
    counts, _ = np.histogram(values, BINS)
    width, floor = 560, 104
    step = width / len(counts)
    shapes = [
        f'<rect x="{k * step + 0.5:.1f}" y="{floor - max(2.0, 88 * n / counts.max()):.1f}" '
        f'width="{step - 1:.1f}" height="{max(2.0, 88 * n / counts.max()):.1f}">'
        f"<title>{n} examples</title></rect>"
        for k, n in enumerate(counts)
        if n
    ]
    for value, anchor in (
        (-1, "start"),
        (-0.5, "middle"),
        (0, "middle"),
        (0.5, "middle"),
        (1, "end"),
    ):
        text = f"{value:g}".replace("-", "−")
        x = (value + 1) / 2 * width
        shapes.append(f'<text x="{x:g}" y="122" text-anchor="{anchor}">{text}</text>')
    line = f'<path d="M0 {floor}H{width}" stroke="currentColor" stroke-opacity=".4"/>'
    return Markup(
        f'<svg viewBox="0 0 {width} 130" role="img" aria-label="distribution of agreement">'
        f"{''.join(shapes)}{line}</svg>"
    )


def render(
    runs: tuple[Records, Records],
    surveys: tuple[Survey, Survey],
    found: Comparison,
    pairs: list[tuple[View, View]],
    each: list[Agreement],
) -> str:
    """Give the page of a comparison as HTML text."""
    rows = []
    for (a, b), one, value in zip(pairs, each, found.agreements.tolist(), strict=False):
        if np.isnan(value):
            told = f"agreement not known: {reason_of(one)}"
        else:
            told = f"agreement {value:+.2f} over {one.units:,} {one.unit}".replace("-", "−")
        same = None if a.target is None or b.target is None else int(a.target == b.target)
        known = None if np.isnan(value) else float(f"{value:.4g}")
        rows.append(((known, same, told), a, b))
    articles = first(pair(found.names, told, a, b) for (_, _, told), a, b in rows)
    settings = {"runs": found.names, "nothing": NOTHING_DRAWN}
    packed = pack(rows, UNCOLOURED, paired=True, beside=articles, **settings)
    rows = rows[: packed.count]
    known = found.known
    facets = web.facets([a for _, a, _ in rows])
    facets = {name: value for name, value in facets.items() if name in ("search", "labels")}
    at = np.quantile(known, (0, 0.1, 0.5, 0.9, 1)) if len(known) else ()
    spread = [f"{value:+.2f}".replace("-", "−") for value in at]
    sheets = [
        {
            "name": name,
            "certificate": certificate(run.info, seen),
            "survey": seen,
            "folder": str(run.path),
        }
        for name, run, seen in zip(found.names, runs, surveys, strict=True)
    ]
    spoken = [part.kind for _, a, b in rows for v in (a, b) for part in v.parts]
    off = dict.fromkeys(
        ("judged", "confident", "gaps", "converging", "efforts", "failing", "cut"), False
    )
    return (
        web.environment()
        .get_template("compare.html.jinja")
        .render(
            paired=True,
            found=found,
            known=known,
            different=int((~found.alike).sum()),
            told=sentence(found),
            chart=chart(known) if len(known) else "",
            quantiles=list(QUANTILES),
            spread=spread,
            differing=differences([run.info for run in runs]),
            kinds=sorted(set(spoken)),
            two_sided=not found.magnitudes,
            ends=web.ends([v for _, a, b in rows for v in (a, b)]),
            articles=articles[: packed.count],
            rows=len(rows),
            examples=len(found.agreements),
            left_out=len(pairs) - len(rows),
            sheets=sheets,
            data=packed.data,
            script=web.inline("page.js"),
            version=jaxplain.__version__,
            predictions=[],
            **off,
            **facets,
        )
    )
