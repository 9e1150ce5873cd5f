"""The examples of a page as compact JSON: page.js sorts, filters and draws them from it."""

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from jaxplain.report import information
from jaxplain.report.drawn import BARS, TEXT, whole
from jaxplain.report.parts import Part
from jaxplain.report.view import View
from jaxplain.report.words import Word, words

BUDGET = 19_300_000  # bytes of what grows with the run; a page stays under 20 MB
STATIC = 50  # examples that are there without JavaScript, and on one sheet with it
STATIC_BYTES = 4_000_000  # fewer where they are longer than that


class Packed(NamedTuple):
    """What a page carries.

    Attributes:
        data: JSON for a `<script>`.
        count: how many of the rows fitted into the budget.
    """

    data: Markup
    count: int


class Table:
    """Values in the order of their first use; rows hold their places."""

    def __init__(self) -> None:
        self.places: dict[Any, int] = {}
        self.size = 0  # bytes that they take as JSON

    def __call__(self, value: Any) -> int:
        """The place of `value`; -1 of None."""
        if value is not None and value not in self.places:
            self.places[value] = len(self.places)
            self.size += length(text(value)) + 1
        return -1 if value is None else self.places[value]


class Tables(NamedTuple):
    """What rows share: pieces, class names, lists of feature names, and texts of failures."""

    words: Table
    classes: Table
    names: Table
    errors: Table


def number(value: float | None, digits: int = 4) -> str:
    """A JSON number of few digits; null for None and NaN, ±1e999, which reads as infinity."""
    if value is None or np.isnan(value):
        return "null"
    if np.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return f"{value:.{digits}g}"


def numbers(values: Iterable[float], digits: int = 4) -> str:
    return f"[{','.join(number(float(value), digits) for value in values)}]"


def text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def length(line: str) -> int:
    """Bytes of JSON in a page, where `<` takes six."""
    return len(line.encode()) + 5 * line.count("<")


def pack_part(part: Part, tables: Tables, colours: information.Range) -> str:
    """One array of scores as JSON: `[kind, title, ...]`; what cannot be drawn anew is HTML."""
    title = text(part.title)
    if part.kind == "tokens":
        ids = [tables.words(word) for word in words(part.names)]
        errors = "" if part.errors is None else f",{numbers(part.errors, 2)}"
        return f'["t",{title},{text(ids)},{numbers(part.scores)}{errors}]'
    if part.kind == "bars":
        order = np.argsort(-np.abs(part.scores), kind="stable")[:BARS]
        names = tables.names(tuple(part.names))
        errors = "" if part.errors is None else f",{numbers(part.errors[order], 2)}"
        scores = numbers(part.scores[order])
        return f'["b",{title},{names},{text(order.tolist())},{scores}{errors}]'
    found = " ".join(
        ("" if word.glued else " ") + word.text for word in words(part.names) if not word.special
    )
    return f'["h",{title},{text(whole(part, colours))},{text(found.strip())}]'


def pack_view(seen: View, tables: Tables, colours: information.Range) -> str:
    """One example as a JSON array; page.js reads its places by the same names, in `side`."""
    if seen.error is not None:
        return f"[{seen.index},{tables.errors(seen.error)},{text((seen.text or '')[:TEXT])}]"
    known = lambda value: "null" if value is None else str(int(value))
    fields = (
        str(seen.index),
        str(tables.classes(seen.prediction)),
        number(seen.probability, 6),
        str(tables.classes(seen.label)),
        known(seen.correct),
        str(tables.classes(seen.target)),
        str(tables.classes(seen.other)),
        number(seen.output),
        number(seen.gap),
        number(seen.relative_gap),
        text(seen.truncated),
        known(seen.effort),
        known(seen.converged),
        f"[{','.join(pack_part(part, tables, colours) for part in seen.parts)}]",
    )
    return f"[{','.join(fields)}]"


def first(articles: Iterable[Markup]) -> list[Markup]:
    """The examples that are there without JavaScript: at least one."""
    found: list[Markup] = []
    size = 0
    for article in itertools.islice(articles, STATIC):
        size += len(article.encode())
        if found and size > STATIC_BYTES:
            break
        found.append(article)
    return found


def pack(
    rows: Sequence[Any],
    colours: information.Range,
    *,
    beside: Sequence[str] = (),
    budget: int = BUDGET,
    paired: bool = False,
    **settings: Any,
) -> Packed:
    """Write views, in their order, until `budget` bytes are full.

    Args:
        rows: a `View` each, or, `paired`, `(values, view, view)` where `values` are JSON's own.
        colours: of maps of layers.
        beside: what else is on the page and counts toward the budget.
        budget: bytes, about; at least one row is written.
        paired: whether each row holds two views.
        settings: more that page.js is to know.
    """
    tables = Tables(Table(), Table(), Table(), Table())
    written: list[str] = []
    size = sum(len(part.encode()) for part in beside)
    for row in rows:
        if paired:
            values, *views = row
            sides = ",".join(pack_view(seen, tables, colours) for seen in views)
            line = f"[{text(list(values))},{sides}]"
        else:
            line = pack_view(row, tables, colours)
        size += length(line) + 1
        if written and size + sum(table.size for table in tables) > budget:
            break
        written.append(line)
    listed = {name: list(table.places) for name, table in zip(Tables._fields, tables, strict=True)}
    listed["words"] = [spelled(word) for word in listed["words"]]
    head = text({**settings, "sheet": STATIC, "paired": paired, **listed})
    source = f'{head[:-1]},"rows":[{",".join(written)}]}}'
    return Packed(Markup(source.replace("<", "\\u003c")), len(written))


def spelled(word: Word) -> str:
    """A piece with a digit before it: 1 if it is glued to the one before, 2 if it is special."""
    return f"{word.glued + 2 * word.special}{word.text}"
