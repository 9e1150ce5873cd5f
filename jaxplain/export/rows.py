"""Records as columns: what the exporters share, read from a run a group of rows at a time."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import msgpack
import numpy as np

from jaxplain.run import columns, store
from jaxplain.run.packing import Record, noted
from jaxplain.run.records import Records, load
from jaxplain.run.trees import describe, leaf_names, rebuild, unbuild
from jaxplain.types import JaxplainError, PyTree

BYTES = 2**27  # of a group, about; each group reads anew the shards that it shares with others
MOST = 2**16  # rows of a group
FEW = 64  # numbers of a row that are not worth handling on their own
OWN = ("index", "error", "effort", "converged")  # a record's own fields
FILES = ("failed", "notes", "jaxplain")  # what files of numpy hold besides


class Leaf(NamedTuple):
    """One array of the results of some rows, those that failed left out.

    Attributes:
        values: all their values, one row's after another's, flat.
        shapes: `[rows, axes]`.
    """

    values: np.ndarray
    shapes: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        return self.shapes.prod(1, dtype=np.int64)


class Rows(NamedTuple):
    """Some records, field by field; lists hold one item a row.

    Attributes:
        index: positions in the source.
        error, effort, converged, notes: as in `Record`.
        leaves: by the path of a result's array; empty where every row failed.
    """

    index: list[int]
    error: list[str | None]
    effort: list[int | None]
    converged: list[bool | None]
    notes: list[dict[str, Any]]
    leaves: dict[str, Leaf]

    @property
    def good(self) -> np.ndarray:
        return np.array([error is None for error in self.error], bool)


class Shard(NamedTuple):
    """Which rows of a shard stand for their examples: a later round's replace an earlier one's."""

    path: Path
    size: int  # bytes a row, about
    rows: list[tuple[int, int]]  # (index, row)


def opened(run: str | Path | Records) -> Records:
    """What a run holds so far.

    Raises:
        JaxplainError: if it is no run.
    """
    return run if isinstance(run, Records) else load(run)


def shards_of(run: Records, window: int) -> list[Shard]:
    """The shards of a window, each with the rows of it that stand for their examples."""
    places: dict[int, tuple[Path, int]] = {}
    for level, number, positions in run.shards(window):
        file = store.shard_path(run.path, window, number, level)
        places |= {index: (file, row) for row, index in enumerate(positions)}
    shards: dict[Path, list[tuple[int, int]]] = {}
    for index, (file, row) in sorted(places.items()):
        shards.setdefault(file, []).append((index, row))
    found = []
    for file, rows in shards.items():
        held = max(row for _, row in rows) + 1
        found.append(Shard(file, file.stat().st_size // held, rows))
    return found


def groups(run: Records) -> Iterator[Rows]:
    """The rows of a run in the order of their examples, in groups of bounded size.

    A shard is read once for each group that it has rows in: the shards of texts, which were
    sorted by length, have some in every group of their window.
    """
    for window in run.windows:
        shards = shards_of(run, window)
        order = sorted((i, n) for n, shard in enumerate(shards) for i, _ in shard.rows)
        start = 0
        while start < len(order):
            stop, room = start, BYTES
            while stop < len(order) and stop - start < MOST and (room > 0 or stop == start):
                room -= shards[order[stop][1]].size
                stop += 1
            first, last = order[start][0], order[stop - 1][0]
            parts = []
            for number in sorted({n for _, n in order[start:stop]}):
                rows = [row for i, row in shards[number].rows if first <= i <= last]
                parts.append(picked(shards[number], rows))
            yield joined(parts)
            start = stop


def whole(run: Records) -> Iterator[Rows]:
    """The rows of a run shard by shard, each read once."""
    for window in run.windows:
        for shard in shards_of(run, window):
            yield picked(shard, [row for _, row in shard.rows])


def picked(shard: Shard, rows: list[int]) -> Rows:
    """Some rows of a shard."""
    try:
        content = store.unpack(shard.path)
    except OSError as error:
        raise JaxplainError(
            f"{shard.path} cannot be read: {error.strerror or error}; run the same command again "
            "to compute it anew"
        ) from error
    positions, failed = columns.unpack_index(content["examples"]), content["failed"]
    errors = [failed.get(row) for row in rows]
    place = np.cumsum([row not in failed for row in range(len(positions))]) - 1
    wanted = place[[row for row in rows if row not in failed]]
    leaves = {}
    if content["columns"]:
        names = paths(rebuild(content["tree"], count()))
        for name, column in zip(names, content["columns"], strict=True):
            values = np.frombuffer(column["data"], jnp.dtype(column["dtype"]))
            shapes = np.array(column["shapes"], np.int64).reshape(len(column["shapes"]), -1)
            if len(shapes) == 1:  # of all rows
                shapes = np.repeat(shapes, len(positions) - len(failed), axis=0)
            leaves[name] = gathered([Leaf(values, shapes)], wanted)
    notes = msgpack.unpackb(content["notes"]) if content["notes"] else [{}] * len(positions)
    good = [error is None for error in errors]
    effort, converged = content.get("effort"), content.get("converged")
    return Rows(
        [positions[row] for row in rows],
        errors,
        [effort if fine else None for fine in good],
        [
            converged[row] if fine and converged else None
            for row, fine in zip(rows, good, strict=True)
        ],
        [notes[row] for row in rows],
        leaves,
    )


def gathered(parts: Sequence[Leaf], order: Any) -> Leaf:
    """The rows that `order` names, of the rows of all parts, copied once."""
    sizes = np.concatenate([part.sizes for part in parts])
    shapes = np.concatenate([part.shapes for part in parts])[order]
    if len(sizes) and sizes[0] < FEW and (sizes == sizes[0]).all():
        values = np.concatenate([part.values for part in parts]).reshape(len(sizes), -1)
        return Leaf(values[order].ravel(), shapes)
    rows = []
    for part in parts:
        stops = np.cumsum(part.sizes)
        pairs = zip(stops, part.sizes, strict=True)
        rows += [part.values[stop - size : stop] for stop, size in pairs]
    return Leaf(np.concatenate([parts[0].values[:0], *(rows[row] for row in order)]), shapes)


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several shards as one, in the order of their examples."""
    fields: list[Any] = [[item for part in parts for item in part[k]] for k in range(5)]
    order = np.argsort(fields[0], kind="stable")
    rank = np.cumsum([error is None for error in fields[1]]) - 1  # among those that did not fail
    good = rank[[row for row in order if fields[1][row] is None]]
    leaves, held = {}, [part.leaves for part in parts if part.leaves]
    for name in list(held[0]) if held else ():
        leaves[name] = gathered([leaf.pop(name) for leaf in held], good)
    index, error, effort, converged, notes = ([field[row] for row in order] for field in fields)
    return Rows(index, error, effort, converged, notes, leaves)


def of_records(records: Iterable[Record]) -> Rows:
    """Records in memory, as they come."""
    records = list(records)
    leaves: dict[str, Leaf] = {}
    results = [record.result for record in records if record.error is None]
    if results:
        tree = describe(results[0])
        names = paths(results[0])
        columns = zip(*(unbuild(tree, result) for result in results), strict=True)
        for name, column in zip(names, columns, strict=True):
            arrays = [np.asarray(array) for array in column]
            shapes = np.array([array.shape for array in arrays], np.int64)
            values = np.concatenate([array.ravel() for array in arrays])
            leaves[name] = Leaf(values, shapes.reshape(len(arrays), -1))
    return Rows(
        [record.index for record in records],
        [record.error for record in records],
        [record.effort for record in records],
        [record.converged for record in records],
        [noted(record.notes) for record in records],
        leaves,
    )


# ---- names


def paths(result: PyTree) -> list[str]:
    """A name for each array of a result.

    Raises:
        JaxplainError: if two have the same.
    """
    found = leaf_names(result)
    for path in found:
        if found.count(path) > 1:
            raise JaxplainError(f"two arrays of the result are called {path}: rename one's field")
    return found


class Names(NamedTuple):
    """What results and notes are called as columns, by path and by field."""

    leaves: dict[str, str]
    notes: dict[str, str]


def names(leaves: Iterable[str], notes: Iterable[str]) -> Names:
    """A column's name is the path in the result, or the note's field; `result.` or `notes.` comes
    before a name that is taken.

    >>> names(["scores", "converged"], ["text", "scores"])
    Names(leaves={'scores': 'scores', 'converged': 'result.converged'},
          notes={'text': 'text', 'scores': 'notes.scores'})

    Raises:
        JaxplainError: if two are still alike.
    """
    taken: set[str] = set(OWN)
    found: list[dict[str, str]] = []
    for prefix, fields in (("result", leaves), ("notes", notes)):
        chosen = {}
        for field in fields:
            column = field if field != "the result" else "result"
            if column in taken or (prefix == "result" and column in FILES):
                column = f"{prefix}.{column}"
            if column in taken:
                raise JaxplainError(f"two columns are called {column}: rename one's field")
            taken.add(column)
            chosen[field] = column
        found.append(chosen)
    return Names(*found)


# ---- dtypes


def plain(values: np.ndarray) -> np.ndarray:
    """Values in a dtype that numpy itself has: bfloat16 and float8 become float32, int4 int8."""
    if values.dtype.kind in "biufc":
        return values
    if jnp.issubdtype(values.dtype, jnp.floating):
        return values.astype(np.float32)
    return values.astype(np.int8 if jnp.issubdtype(values.dtype, jnp.signedinteger) else np.uint8)
