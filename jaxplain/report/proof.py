"""What proves a run's numbers, in ten lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxplain.report.told import share
from jaxplain.report.view import Survey


def lines(run_dir: Path, info: Mapping[str, Any], found: Survey) -> list[str]:
    """Ten lines at most, each with a name; what a run does not say is left out."""
    rows = [
        ("examples", examples(info, found)),
        ("gap", gaps(found)),
        ("precision", precision(info, found)),
        ("errors", errors(found)),
        (
            "failures",
            "; ".join(f"{n:,} × {reason}" for reason, n in list(found.reasons.items())[:2]),
        ),
        ("configured", configured(info)),
        ("identity", short(info.get("fingerprints"))),
        ("made with", short(info.get("versions"), cut=40)),
        ("made on", made(info)),
        ("to check", f"jaxplain verify {run_dir}"),
    ]
    return [f"{name:<11} {value}" for name, value in rows if value]


def examples(info: Mapping[str, Any], found: Survey) -> str:
    of = info.get("examples", found.examples)
    done = found.examples - found.failed
    told = f"{done:,} of {of:,} explained, {found.failed:,} failed"
    return told if info.get("status") == "complete" else f"{told}; the run is not complete"


def gaps(found: Survey) -> str:
    if not len(found.gaps):
        return "" if found.informed else "none claimed: the scores are not said to add up"
    upper = np.quantile(found.relative_gaps, 0.99, method="higher")
    parts = ("median", np.median(found.relative_gaps)), ("99%", upper)
    parts += (("largest", found.relative_gaps.max()),)
    told = ", ".join(f"{name} {share(float(value))}" for name, value in parts)
    return f"{found.gap_name} {told} of {found.gap_of}"


def precision(info: Mapping[str, Any], found: Survey) -> str:
    said = (info.get("totals") or {}).get("precision") or {}
    if not found.converged + found.unconverged:
        return ""
    told = f"{found.converged:,} converged"
    if "tolerance" in said:
        told += f" to {share(said['tolerance'])}"
    told += f", {found.unconverged:,} did not"
    if found.efforts:
        told += f"; {min(found.efforts):,} to {max(found.efforts):,} nodes or samples each"
    return told + (f", {said['evaluations']:,} in all" if "evaluations" in said else "")


def errors(found: Survey) -> str:
    if not len(found.errors):
        return ""
    told = f"largest {share(float(found.errors.max()))}, median "
    return f"standard error, of the largest score: {told}{share(float(np.median(found.errors)))}"


def configured(info: Mapping[str, Any]) -> str:
    told = info.get("configuration") or {}
    rows = [(name, told[name]) for name in ("model", "method", "target", "seed") if name in told]
    options = told.get("options")
    rows += list(options.items()) if isinstance(options, Mapping) else []
    return ", ".join(f"{name} {value}" for name, value in rows if value is not None)


def short(values: Any, cut: int = 8) -> str:
    if not isinstance(values, Mapping):
        return ""
    return ", ".join(f"{name} {str(value)[:cut]}" for name, value in values.items())


def made(info: Mapping[str, Any]) -> str:
    devices, totals = info.get("devices") or {}, info.get("totals") or {}
    count = int(np.prod(list((devices.get("mesh") or {"data": 1}).values())))
    rows = [f"{count} × {devices['kind']}"] if "kind" in devices else []
    rows += [str(info["finished"])] if "finished" in info else []
    rows += [f"{totals['seconds']:,.1f} s"] if "seconds" in totals else []
    return ", ".join(rows)
