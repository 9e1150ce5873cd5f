"""The two ways to look at a run directory."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxplain.report import heat, information, web
from jaxplain.report.agreement import Comparison
from jaxplain.report.agreement import sentence as told
from jaxplain.report.compare import LIMIT
from jaxplain.report.corpus import corpus
from jaxplain.report.curves import curves
from jaxplain.report.told import percent, share
from jaxplain.report.view import Survey, survey
from jaxplain.run.records import load
from jaxplain.types import JaxplainError


def page(run_dir: str | Path, path: str | Path | None = None, *, limit: int = LIMIT) -> Path:
    """Write a run as one HTML file that shows without a network, a server or JavaScript.

    Args:
        run_dir: a directory that `run` wrote.
        path: the file to write; `page.html` in the run directory if None.
        limit: how many explained examples to show, at most: the page stays under 20 MB, and says
            how many it leaves out. The summary and the words or features are of all.

    Returns:
        The file's path.

    Raises:
        JaxplainError: if `run_dir` is not a run, or the file cannot be written.
    """
    return publish(run_dir, path, limit=limit)[0]


def publish(
    run_dir: str | Path, path: str | Path | None = None, *, limit: int = LIMIT
) -> tuple[Path, Mapping[str, Any], Survey]:
    """As `page`; give what was read on the way, too."""
    path = Path(run_dir) / "page.html" if path is None else Path(path)
    info, found = look(run_dir, limit=limit)
    text = web.render(info, found, None if found.informed else corpus(load(run_dir)))
    try:
        return web.write(path, text), info, found
    except OSError as error:
        raise JaxplainError(
            f"{path} cannot be written: {error.strerror or error}; write the page elsewhere with "
            f"jaxplain show {run_dir} --page FILE"
        ) from error


def look(run_dir: str | Path, *, limit: int = 0) -> tuple[Mapping[str, Any], Survey]:
    """Read a run once: its `run.json`, and its records as a person wants them.

    Raises:
        JaxplainError: if `run_dir` is not a run.
    """
    records = load(run_dir)
    found = survey(records, records.info.get("configuration") or {}, limit=limit)
    if found.informed:
        found = found._replace(curves=curves(records))
    return records.info, found


def terminal(run_dir: str | Path, *, limit: int = 5, console: Console | None = None) -> None:
    """Print a run's first examples: tokens in colour, features as bars, images as shades.

    Args:
        run_dir: a directory that `run` wrote.
        limit: how many examples to print.
        console: where to; standard output if None. Without colours (no terminal, or NO_COLOR set)
            tokens carry signs instead.

    Raises:
        JaxplainError: if `run_dir` is not a run.
    """
    records = load(run_dir)
    console = Console(highlight=False) if console is None else console
    heat.examples(
        itertools.islice(records, limit), records.info.get("configuration") or {}, console
    )


def advice(found: Survey, configuration: Mapping[str, Any]) -> str | None:
    """What to do where a run is not as exact as it should be; None where there is nothing to do."""
    if found.curves is not None:
        return information.advice(found.curves)
    return web.advice(found, configuration)


def overview(found: Survey) -> str | None:
    """A run's numbers as a small table; None where there is none to make."""
    return None if found.curves is None else information.table_text(found.curves) + "\n"


def agreement(found: Comparison) -> str:
    """A comparison of two runs in one line."""
    return told(found)


def sentence(found: Survey, speed: str | None = None) -> str:
    """A run in one line: how many, how fast, how exact, what failed."""
    facts = [f"{found.examples - found.failed:,} of {found.examples:,} examples explained"]
    if speed:
        facts.append(speed)
    if found.labelled:
        facts.append(f"{percent(found.correct / found.labelled)} predicted rightly")
    if len(found.gaps):
        facts.append(
            f"{found.gap_name} "
            + ", ".join(
                f"{name} {take(found.gaps):.2g} ({share(float(take(found.relative_gaps)))})"
                for name, take in (("median", np.median), ("largest", np.max))
            )
        )
    if found.converged or found.unconverged:
        known = found.converged + found.unconverged
        facts.append(f"{found.converged:,} of {known:,} converged")
    if found.residual is not None:
        facts.append(f"parts sum to f(x) within {found.residual:.1g}")
    if found.curves is not None:
        facts.append(information.summary(found.curves))
    facts += [f"{found.failed:,} failed", f"{found.truncated:,} truncated"]
    return " · ".join(facts)
