"""What stands behind a run's numbers: gaps, convergence, errors, versions, fingerprints."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from jaxplain.report.told import brief, share
from jaxplain.report.view import Survey

QUANTILES = {"median": 0.5, "90%": 0.9, "99%": 0.99, "largest": 1.0}
GOOD = (1e-4, 1e-3, 1e-2, 1e-1)  # relative gaps below which examples are counted
STAGES = ("format", "status", "created", "finished", "examples")  # of run.json, beside its groups
GROUPS = ("totals", "versions", "devices", "plan", "fingerprints")


class Certificate(NamedTuple):
    """What a page's panel shows; each list may be empty.

    Attributes:
        spread: rows of a table of quantiles: what, then a cell for each of `QUANTILES`.
        facts: names and values, in words.
        efforts: nodes or samples, and how many examples took so many.
        failures: reasons, how many examples failed for each, and the first of these.
        record: names and values of run.json, by group.
    """

    spread: list[tuple[str, list[str]]]
    facts: list[tuple[str, str]]
    efforts: list[tuple[int, int]]
    failures: list[tuple[str, int, list[int]]]
    record: dict[str, list[tuple[str, str]]]


def certificate(info: Mapping[str, Any], found: Survey) -> Certificate:
    """Gather what a run's `run.json` and its records say of how exact they are.

    What a run does not say is left out.
    """
    totals = info.get("totals")
    totals = totals if isinstance(totals, Mapping) else {}
    precision = totals.get("precision")
    precision = precision if isinstance(precision, Mapping) else {}
    efforts = dict(found.efforts)
    if not efforts and isinstance(precision.get("efforts"), Mapping):
        efforts = {int(effort): int(count) for effort, count in precision["efforts"].items()}
    first: dict[str, list[int]] = {}
    for seen in found.failures:
        first.setdefault(seen.error or "", []).append(seen.index)
    record = {"configuration": flat(info.get("configuration") or {})}
    for name in GROUPS:
        group = info.get(name)
        if isinstance(group, Mapping):
            group = {k: v for k, v in group.items() if k != "precision"}
            record[name] = flat(group)
    record["run"] = [
        (name, told(info[name])) for name in ("format", "status", *STAGES) if name in info
    ]
    return Certificate(
        spread=spread(found, efforts),
        facts=facts(found, precision),
        efforts=sorted(efforts.items()),
        failures=[(reason, n, first.get(reason, [])[:5]) for reason, n in found.reasons.items()],
        record={name: rows for name, rows in record.items() if rows},
    )


def spread(found: Survey, efforts: Mapping[int, int]) -> list[tuple[str, list[str]]]:
    """Quantiles of what is known of every example."""
    rows = []
    at = list(QUANTILES.values())
    # Higher: a value that some example has, infinite where f(x) = f(baseline).
    upper = lambda values: np.quantile(values, at[1:], method="higher").tolist()
    take = lambda values: [float(np.median(values)), *upper(values)]
    if len(found.gaps):
        rows.append((f"|{found.gap_name}|, in f's units", [*map(brief, take(found.gaps))]))
        rows.append((f"as a share of {found.gap_of}", [*map(share, take(found.relative_gaps))]))
    if len(found.errors):
        name = "largest standard error, as a share of the example's largest |score|"
        rows.append((name, [percented(value) for value in take(found.errors)]))
    if efforts:
        spent = np.repeat(list(efforts), list(efforts.values()))
        rows.append(("effort: nodes or samples", [f"{value:,g}" for value in take(spent)]))
    return rows


def percented(value: float) -> str:
    return "all scores are 0" if np.isinf(value) else f"{float(f'{100 * value:.2g}'):g}%"


def facts(found: Survey, precision: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the records say together, in words."""
    done = found.examples - found.failed
    rows = []
    if len(found.gaps):
        rows.append((f"{found.gap_name} claimed", f"by {len(found.gaps):,} of {done:,} explained"))
        below = [f"{share(g)}: {int(np.sum(found.relative_gaps < g)):,}" for g in GOOD]
        rows.append(("examples with a gap below", " · ".join(below)))
    elif done and not found.informed:
        rows.append(("completeness", "the method claims no sum for its scores: there is no gap"))
    if found.residual is not None:
        rows.append(("largest |relevant + irrelevant − f(x)|", brief(found.residual)))
    if found.converged or found.unconverged:
        yes, no = found.converged, found.unconverged
    else:
        yes, no = precision.get("converged"), precision.get("not_converged")
    if yes is not None and no is not None:
        within = f" to {share(precision['tolerance'])}" if "tolerance" in precision else ""
        rows.append((f"converged{within}", f"{yes:,} of {done:,}; {no:,} did not"))
    if "evaluations" in precision:
        rows.append(("evaluations in all", f"{precision['evaluations']:,}"))
    if len(found.errors):
        rows.append(("standard errors", f"for {len(found.errors):,} of {done:,} explained"))
    if found.curves is not None:
        lost = int(found.curves.unconverged.sum())
        count = found.curves.sentences * len(found.curves.layers)
        rows.append(("layers of sentences converged", f"{count - lost:,} of {count:,}"))
        error = found.curves.largest_error
        if np.isfinite(error):
            rows.append(("largest standard error of log σ", f"{error:.2g}"))
    rows.append(("failed", f"{found.failed:,} of {found.examples:,}"))
    return rows


def told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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
            rows.append((name, told(value)))
    return rows


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
