"""Records as a notebook shows them: tables of what a run knows. Pictures are `jaxplain.plot`'s."""

import html
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxplain.run import trees
from jaxplain.types import PyTree

FIRST = 5  # examples of a run
LONG = 80  # letters of a note
FEW = 6  # entries of an array


def records_html(path: Any, info: Mapping[str, Any], count: int, first: Iterable[Any]) -> str:
    """A run: how far it got, how exact it is, and its first records."""
    totals, about = info.get("totals") or {}, info.get("configuration") or {}
    about = about if isinstance(about, Mapping) else {}
    told = [(name, about[name]) for name in ("method", "model", "data") if name in about]
    told.append(("examples", f"{count:,} of {info['examples']:,}, {info.get('status')}"))
    if "failed" in totals:
        told.append(("failed", f"{totals['failed']:,}"))
    gap = totals.get("gap") or {}
    if gap.get("claimed"):
        share = gap.get("largest_of_output")
        of = "" if share is None else f" ({100 * share:.2g}% of |f(x)|)"
        told.append(("gap", f"median {gap['median']:.2g}, largest {gap['largest']:.2g}{of}"))
    rows = [_row(record) for record in first]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, "") for name in names] for row in rows]
    more = f"<p>and {count - len(rows):,} more</p>" if count > len(rows) else ""
    return f"<p><b>{_text(path)}</b></p>{_table(told)}{_table(cells, names)}{more}"


def record_html(record: Any) -> str:
    """One example: its notes, and every array of its result."""
    facts = [("example", record.index)]
    facts += [("failed", record.error)] if record.error is not None else []
    facts += [(name, note) for name, note in (record.notes or {}).items()]
    for name in ("effort", "converged"):
        value = getattr(record, name, None)
        facts += [] if value is None else [(name, value)]
    arrays = [
        (name, f"{leaf.dtype}{list(leaf.shape)}", _values(leaf))
        for name, leaf in _leaves(record.result)
    ]
    return _table(facts) + (_table(arrays, ["result", "", "values"]) if arrays else "")


def _row(record: Any) -> dict[str, Any]:
    """A record in one row: what a person asks first."""
    row: dict[str, Any] = {"example": record.index}
    row |= {name: record.notes[name] for name in ("text", "label") if name in (record.notes or {})}
    for name, leaf in _leaves(record.result):
        last = name.split(".")[-1]
        if leaf.size == 1:
            row.setdefault(last, _values(leaf))
        elif "scores" in name.split("."):
            row[name] = f"{list(leaf.shape)}, {_values(leaf)}"
    if record.error is not None:
        row["failed"] = record.error
    return row


def _leaves(result: PyTree) -> list[tuple[str, np.ndarray]]:
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
    return list(zip(trees.leaf_names(result), arrays, strict=True)) if arrays else []


def _values(leaf: np.ndarray) -> str:
    """An array's entries where there are few, or else its range."""
    numbers = np.asarray(leaf, np.float64) if leaf.dtype != bool else leaf
    if leaf.size <= FEW:
        return ", ".join(f"{v:.4g}" if leaf.dtype != bool else str(v) for v in numbers.ravel())
    return f"{np.min(numbers):.3g} to {np.max(numbers):.3g}"


def _text(value: Any) -> str:
    words = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    text = " ".join(value) if words else str(value)
    return html.escape(text if len(text) <= LONG else text[: LONG - 1] + "…")


def _table(rows: Iterable[Iterable[Any]], names: Iterable[str] = ()) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_text(v)}</td>' for v in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"
