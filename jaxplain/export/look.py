"""What the columns of a run are: found by reading it once, before anything is written."""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxplain.export.rows import Leaf, Names, Rows, names, plain
from jaxplain.run import fingerprint
from jaxplain.run.records import Records

MIXED = "json"  # the kind of a note whose values have no type in common
SIMPLE = {bool: "bool", str: "str", bytes: "bytes"}


class Exported(NamedTuple):
    """What an export came to.

    Attributes:
        path: what was written.
        rows: examples in it, failed ones included.
        failed: examples that failed; they have a row with their `error`, and no result.
        missing: examples that the run has not explained yet; they have no row.
        columns: their names.
        remarks: in words, what is otherwise there than in the run.
    """

    path: Path
    rows: int
    failed: int
    missing: int
    columns: tuple[str, ...]
    remarks: tuple[str, ...]


class Seen(NamedTuple):
    """What all rows of a result's array have in common.

    Attributes:
        dtype: as `explain` gave it.
        shape: the length of each axis; None where it differs between examples.
    """

    dtype: np.dtype
    shape: tuple[int | None, ...]


class Look(NamedTuple):
    """The columns of some rows.

    Attributes:
        leaves: of results, by path.
        notes: kinds of notes, by field: see `kind_of`.
        names: what they are called.
        failed: how many rows have an error.
    """

    leaves: dict[str, Seen]
    notes: dict[str, Any]
    names: Names
    failed: int

    @property
    def remarks(self) -> tuple[str, ...]:
        widened, mixed = [], []
        for path, seen in self.leaves.items():
            now = plain(np.empty(0, seen.dtype)).dtype
            if now != seen.dtype:
                widened.append(f"{self.names.leaves[path]} was {seen.dtype} and is {now}")
        for field, kind in self.notes.items():
            if kind == MIXED:
                mixed.append(f"{self.names.notes[field]} holds values of several types, as JSON")
        return (*widened, *mixed)


def look(parts: Iterable[Rows]) -> Look:
    """Find the columns of rows that come a part at a time."""
    leaves: dict[str, Seen] = {}
    notes: dict[str, Any] = {}
    failed = 0
    for rows in parts:
        failed += sum(error is not None for error in rows.error)
        for path, leaf in rows.leaves.items():
            if len(leaf.shapes):
                seen = Seen(leaf.values.dtype, common(leaf))
                before = leaves.get(path, seen).shape
                shape = tuple(
                    m if m == n else None for m, n in zip(before, seen.shape, strict=True)
                )
                leaves[path] = Seen(seen.dtype, shape)
        for field in dict.fromkeys(chain.from_iterable(rows.notes)):
            kind = kind_of([row.get(field) for row in rows.notes])
            notes[field] = either(notes.get(field), kind)
    return Look(leaves, notes, names(leaves, notes), failed)


def common(leaf: Leaf) -> tuple[int | None, ...]:
    first = leaf.shapes[0]
    same = (leaf.shapes == first).all(0)
    return tuple(int(n) if s else None for n, s in zip(first, same, strict=True))


def provenance(run: Records, found: Look) -> str:
    """What says where a table comes from, as JSON: run.json, without the paths on this machine."""
    told = {name: value for name, value in run.info.items() if name != "origin"}
    told["identity"] = fingerprint.identity(run.info)
    told["missing"] = run.info["examples"] - len(run)
    told["results"] = {
        found.names.leaves[path]: {"dtype": str(seen.dtype), "shape": seen.shape}
        for path, seen in found.leaves.items()
    }
    told["json"] = [found.names.notes[f] for f, kind in found.notes.items() if kind == MIXED]
    return json.dumps(told, default=str)


# ---- notes


def kind_of(values: Iterable[Any]) -> Any:
    """The type of some notes, None being of any: a word, `("list", kind)` or `("dict", {name:
    kind})`; None where there is nothing but None.

    Whole numbers become floats beside floats if they are as exact there. Dicts have a kind if all
    have the same fields.

    >>> kind_of([1, None, 2.5]), kind_of([["a"], []]), kind_of([{"a": 1}]), kind_of([1, "a"])
    ('float', ('list', 'str'), ('dict', {'a': 'int'}), 'json')
    >>> kind_of([2**53 + 1, 2]), kind_of([2**53 + 1, 0.5]), kind_of([2**63])
    ('long', 'json', 'json')
    """
    values = [value for value in values if value is not None]
    types = set(map(type, values))
    if not types:
        return None
    if types == {list}:
        inner = kind_of(chain.from_iterable(values))
        return MIXED if inner == MIXED else ("list", inner)
    if types == {dict}:
        fields = values[0].keys()
        if not fields or any(value.keys() != fields for value in values):
            return MIXED
        kinds = {name: kind_of([value[name] for value in values]) for name in fields}
        return MIXED if MIXED in kinds.values() else ("dict", kinds)
    if types <= {int, float}:
        whole = [abs(value) for value in values if type(value) is int]
        number = None
        if whole:
            number = "int" if max(whole) <= 2**53 else "long" if max(whole) < 2**63 else MIXED
        return either(number, "float") if float in types else number
    return SIMPLE.get(types.pop(), MIXED) if len(types) == 1 else MIXED


def either(a: Any, b: Any) -> Any:
    """The kind of notes of two kinds."""
    if a is None or b is None:
        return b if a is None else a
    if a == b:
        return a
    if isinstance(a, tuple) and isinstance(b, tuple) and a[0] == b[0]:
        if a[0] == "list":
            inner = either(a[1], b[1])
            return MIXED if inner == MIXED else ("list", inner)
        if a[1].keys() == b[1].keys():
            kinds = {name: either(kind, b[1][name]) for name, kind in a[1].items()}
            return MIXED if MIXED in kinds.values() else ("dict", kinds)
        return MIXED
    if isinstance(a, str) and isinstance(b, str):
        return {"int,long": "long", "float,int": "float"}.get(",".join(sorted((a, b))), MIXED)
    return MIXED


def as_json(value: Any) -> str:
    """A note as JSON text; bytes as base64."""
    told: Mapping[str, Any] = {"ensure_ascii": False, "default": lambda b: b64encode(b).decode()}
    return json.dumps(value, **told)
