"""A run as one HTML file that needs no network."""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

import jaxplain
from jaxplain.report import charts, information
from jaxplain.report.certificate import QUANTILES, certificate, histogram
from jaxplain.report.corpus import Corpus
from jaxplain.report.drawn import article
from jaxplain.report.means import corpus_html
from jaxplain.report.packed import first, pack
from jaxplain.report.parts import NOTHING_DRAWN
from jaxplain.report.told import brief, percent, share
from jaxplain.report.view import Survey, View

LARGE = 0.01  # a relative gap above this deserves a word


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
    """What to do about large gaps, or a tolerance that was not reached; None if nothing is."""
    large = int(np.sum(found.relative_gaps > LARGE))
    options = configuration.get("options")
    options = options if isinstance(options, Mapping) else {}
    ways = [f"raise --{name}" for name in ("steps", "samples") if name in options]
    if found.unconverged and not found.informed:
        of = found.converged + found.unconverged
        return (
            f"{found.unconverged:,} of {of:,} examples did not reach the tolerance: "
            f"{' or '.join(ways) or 'allow more rounds'}, or take their scores as approximate"
        )
    if not large:
        return None
    ways = ["give --tolerance 0.01"] * ("steps" in options) + ways
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


def names(info: Mapping[str, Any]) -> tuple[str, str]:
    """What a run is called, and what it is of."""
    configuration = info.get("configuration") or {}
    method, model = configuration.get("method"), configuration.get("model")
    data = configuration.get("data")
    data = data.get("name") if isinstance(data, Mapping) else data
    title = " · ".join(str(part) for part in (method, model) if part) or "Explanations"
    return title, str(data) if data else ""


def facets(views: list[View]) -> dict[str, Any]:
    """What a page's examples can be sorted and filtered by."""
    done = [v for v in views if v.error is None]
    listed = lambda values: sorted({v for v in values if v is not None})
    return {
        "labels": listed(v.label for v in done),
        "predictions": listed(v.prediction for v in done),
        "judged": any(v.correct is not None for v in done),
        "confident": any(v.probability is not None for v in done),
        "gaps": any(v.relative_gap is not None for v in done),
        "converging": any(v.converged is not None for v in done),
        "efforts": any(v.effort is not None for v in done),
        "failing": len(done) < len(views),
        "cut": any(v.truncated for v in done),
        "search": any(v.parts and v.parts[0].kind != "image" for v in done),
    }


def environment() -> jinja2.Environment:
    """Templates beside this file; what they show is escaped."""

    def source(name: str) -> str:
        return resources.files("jaxplain.report").joinpath(name).read_text(encoding="utf-8")

    found = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.globals["zip"] = zip
    return found


def inline(name: str) -> Markup:
    """A file beside this one, as it stands."""
    text = resources.files("jaxplain.report").joinpath(name).read_text(encoding="utf-8")
    return Markup(text)


def render(info: Mapping[str, Any], found: Survey, corpus: Corpus | None = None) -> str:
    """Give the page of a run's `run.json` and of what its records hold, as HTML text."""
    configuration = info.get("configuration") or {}
    shown = [part for v in found.views for part in v.parts]
    kinds = sorted({part.kind for part in shown})
    colours = information.span([part for part in shown if part.kind == "information"])
    title, data = names(info)
    noun = "example" if found.examples == 1 else "examples"
    noun = f"bundled {noun}" if data == "bundled" else f"{noun} of {data}" if data else noun
    words_of = [f"{found.examples:,} {noun}"]
    if "target" in configuration and not found.informed:
        told = {"predicted": "the predicted class of each", "label": "the true class of each"}
        target = str(configuration["target"])
        words_of.append(f"explained: {told.get(target, target)}")
    views = sorted([*found.views, *found.failures], key=lambda v: v.index)
    signs = two_sided(found.views) or bool(corpus and corpus.overall.negative)
    articles = first(article(v, colours) for v in views)
    whole = corpus_html(corpus, signs=signs) if corpus else Markup("")
    packed = pack(views, colours, beside=(*articles, whole), nothing=NOTHING_DRAWN)
    views = views[: packed.count]
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            title=title,
            subtitle="; ".join(words_of),
            status=info.get("status"),
            tiles=tiles(found),
            survey=found,
            kinds=kinds,
            two_sided=two_sided(found.views),
            ends=ends(found.views),
            histogram=histogram(found.relative_gaps),
            caption=f"How many examples have which {found.gap_name}: what the scores' sum misses, "
            f"as a share of {found.gap_of}, on a logarithmic scale.",
            advice=advice(found, configuration),
            colours=colours,
            cell="1rem" if found.curves and len(found.curves.layers) < 5 else ".68rem",
            told=information.ends_told(colours),
            curves=Markup(charts.charts(found.curves)) if found.curves else "",
            numbers=Markup(charts.table(found.curves)) if found.curves else "",
            lost=information.advice(found.curves) if found.curves else None,
            certificate=certificate(info, found),
            quantiles=list(QUANTILES),
            corpus=whole,
            articles=articles[: packed.count],
            rows=len(views),
            explained=sum(v.error is None for v in views),
            left_out=len(found.views) + len(found.failures) - len(views),
            data=packed.data,
            script=inline("page.js"),
            version=jaxplain.__version__,
            paired=False,
            **facets(views),
        )
    )


def write(path: Path, text: str) -> Path:
    """Write the page whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
