"""What a shard holds, column by column: rows of one shape in one array, others one by one."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

Index = Sequence[int]  # positions in the source: a range where they follow one another
Column = np.ndarray | list[np.ndarray]  # rows of one shape `[N, ...]`, or of several


class Block(NamedTuple):
    """Rows on their way to a shard, `N` of them without a failure.

    Attributes:
        index: their positions in the source.
        columns: each leaf of the results, of those that did not fail; empty where all did.
        notes: of each row; empty where no row has any.
        failed: why, by row.
    """

    index: Index
    columns: list[Column]
    notes: Sequence[dict]
    failed: dict[int, str]


def rows(block: Block) -> Iterator[tuple[int, list[np.ndarray] | None, dict, str | None]]:
    """`(index, leaves, notes, error)` of each row."""
    places = iter(range(len(block.index)))
    notes = block.notes or [{}] * len(block.index)
    for row, (index, noted) in enumerate(zip(block.index, notes, strict=True)):
        error = block.failed.get(row)
        values = None if error is not None else leaves(block.columns, next(places))
        yield index, values, noted, error


def leaves(columns: Sequence[Column], place: int) -> list[np.ndarray]:
    """The leaves of one result: numbers are arrays, too."""
    return [c[place, ...] if isinstance(c, np.ndarray) else c[place] for c in columns]


def of_rows(given: Sequence[tuple[int, list | None, dict, str | None]]) -> Block:
    """The block of such rows."""
    good = [map(np.asarray, values) for _, values, _, _ in given if values is not None]
    return Block(
        tuple(index for index, *_ in given),
        [list(column) for column in zip(*good, strict=True)],
        [notes for _, _, notes, _ in given],
        {row: error for row, (*_, error) in enumerate(given) if error is not None},
    )


def join(blocks: Sequence[Block]) -> Block:
    """One block of several, in their order."""
    starts = np.cumsum([0, *(len(block.index) for block in blocks)]).tolist()
    parts = zip(*(block.columns for block in blocks if block.columns), strict=True)
    noted = any(block.notes for block in blocks)
    notes = (block.notes or [{}] * len(block.index) for block in blocks if noted)
    return Block(
        join_index([block.index for block in blocks]),
        [join_column(part) for part in parts],
        list(chain.from_iterable(notes)),
        {
            start + row: error
            for start, block in zip(starts, blocks, strict=False)
            for row, error in block.failed.items()
        },
    )


def join_column(parts: Sequence[Column]) -> Column:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return list(chain.from_iterable(parts))


def join_index(parts: Sequence[Index]) -> Index:
    """Positions one after another; a range where they are one."""
    follow = all(isinstance(part, range) and part.step == 1 for part in parts) and all(
        a.stop == b.start  # type: ignore[attr-defined]
        for a, b in pairwise(parts)
    )
    if parts and follow:
        return range(parts[0].start, parts[-1].stop)  # type: ignore[attr-defined]
    return tuple(chain.from_iterable(parts))


def runs(index: Index) -> np.ndarray:
    """`[R, 3]`: first position, end and first row of each part whose positions follow another."""
    numbers = np.asarray(index, np.int64)
    rows = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
    sizes = np.diff(rows, append=len(numbers))
    return np.stack([numbers[rows], numbers[rows] + sizes, rows], axis=1)


# ---- as msgpack takes it


def pack_index(index: Index) -> list[int] | bytes:
    """`[start, stop]` of positions that follow one another; int64 of others."""
    if isinstance(index, range) and index.step == 1:
        return [index.start, index.stop]
    numbers = np.asarray(index, "<i8")
    if len(numbers) and (np.diff(numbers) == 1).all():
        return [int(numbers[0]), int(numbers[-1]) + 1]
    return numbers.tobytes()


def unpack_index(packed: list[int] | bytes) -> Index:
    if isinstance(packed, bytes):
        return tuple(np.frombuffer(packed, "<i8").tolist())
    return range(*packed)


def pack_column(column: Column) -> dict[str, Any]:
    """Its bytes, with one shape where all rows have one, and else the shape of each."""
    if isinstance(column, np.ndarray):
        data, shapes = column.tobytes(), [list(column.shape[1:])]
    else:
        data = b"".join(leaf.tobytes() for leaf in column)
        shapes = [list(leaf.shape) for leaf in column]
        shapes = shapes[:1] if all(shape == shapes[0] for shape in shapes) else shapes
    return {"dtype": str(column[0].dtype), "shapes": shapes, "data": data}


def unpack_column(packed: dict[str, Any], count: int) -> Column:
    """A column of `count` rows."""
    data, shapes = np.frombuffer(packed["data"], jnp.dtype(packed["dtype"])), packed["shapes"]
    if len(shapes) == 1:
        return data.reshape(count, *shapes[0])
    ends = np.cumsum([int(np.prod(shape, dtype=np.int64)) for shape in shapes])
    parts = np.split(data, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def unpack_columns(content: dict[str, Any], places: Iterable[int] | None = None) -> list[Column]:
    """The columns of a shard, or those at `places`."""
    count = len(unpack_index(content["examples"])) - len(content["failed"])
    packed = content["columns"]
    chosen = range(len(packed)) if places is None else places
    return [unpack_column(packed[place], count) for place in chosen]
