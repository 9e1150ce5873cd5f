"""What a shard's bytes say: records, packed by column, and read one by one."""

import bisect
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import msgpack
import numpy as np

from jaxplain.run import columns, shown, store
from jaxplain.run.columns import Block, Index
from jaxplain.run.trees import describe, rebuild
from jaxplain.types import PyTree


class Record(NamedTuple):
    """One explained example.

    Attributes:
        index: its position in the source.
        result: what `explain` returned, as numpy arrays with the padding trimmed; None if failed.
        notes: the example's fields that are not numeric, as the source gave them.
        error: why it failed; None if it did not.
        effort: in a run with a tolerance, evaluations that the result took: nodes or samples.
        converged: in such a run, whether the result is within the tolerance.
    """

    index: int
    result: PyTree
    notes: dict[str, Any]
    error: str | None
    effort: int | None = None
    converged: bool | None = None

    def _repr_html_(self) -> str:
        return shown.record_html(self)


def note(value: Any) -> Any:
    """A note as msgpack takes it."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, dict):
        return {str(name): note(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [note(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


def noted(notes: dict[str, Any]) -> dict[str, Any]:
    """Notes as a run gives them back."""
    packed: bytes = msgpack.packb(note(notes))  # type: ignore[assignment]
    return msgpack.unpackb(packed, strict_map_key=False)


def pack_block(
    tree: Any,
    block: Block,
    *,
    run: str = "",
    effort: int | None = None,
    converged: list[bool] | None = None,
) -> bytes:
    """Pack a block of rows into a shard's bytes.

    `run` is the run's identity. With a tolerance, `effort` is that of all rows, and `converged`
    says who is within it.
    """
    noted = any(block.notes)
    return store.pack(
        {
            "run": run,
            "examples": columns.pack_index(block.index),
            "failed": block.failed,
            # Packed by themselves: who counts and checks need not unpack them.
            "notes": msgpack.packb([note(row) for row in block.notes]) if noted else b"",
            "tree": tree,
            "columns": [columns.pack_column(column) for column in block.columns],
        }
        | ({} if converged is None else {"effort": effort, "converged": converged})
    )


def pack_records(
    tree: Any, records: Sequence[tuple[int, list | None, dict, str | None]], **more: Any
) -> bytes:
    """`pack_block` of `(index, leaves, notes, error)` rows."""
    return pack_block(tree, columns.of_rows(records), **more)


class Rows(Sequence[Record]):
    """The records of one shard, each made when it is asked for."""

    def __init__(self, content: dict[str, Any]):
        self.content = content
        self.positions = columns.unpack_index(content["examples"])
        self.columns = columns.unpack_columns(content)
        self.failed = sorted(content["failed"])
        self.notes = msgpack.unpackb(content["notes"]) if content["notes"] else None

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        index, content = self.positions[row], self.content
        row %= len(self)
        notes = self.notes[row] if self.notes else {}
        if row in content["failed"]:
            return Record(index, None, notes, content["failed"][row])
        place = row - bisect.bisect(self.failed, row)
        # Copies: who keeps a record keeps no shard.
        leaves = (leaf.copy() for leaf in columns.leaves(self.columns, place))
        result = rebuild(content["tree"], leaves)
        near = content["converged"][row] if "converged" in content else None
        return Record(index, result, notes, None, content.get("effort"), near)


def unpack_records(path: Path) -> Rows:
    """Read a shard: its records, in its order.

    Raises:
        store.Damaged: if its checksum does not agree.
        FileNotFoundError: if it is not there.
    """
    return Rows(store.unpack(path))


def read_shard(path: Path, index: Index, run: str) -> dict[str, Any] | None:
    """A shard's content if it is whole, of this run, and holds these examples; None otherwise."""
    with contextlib.suppress(FileNotFoundError, store.Damaged):
        content = store.unpack(path)
        if content["examples"] == columns.pack_index(index) and content["run"] == run:
            return content
    return None


def write_kept(out: Path, keep: PyTree) -> None:
    """Write the arrays that belong to the whole run, in the form of a shard of one record."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(keep)]
    store.write(out / store.KEPT, pack_records(describe(keep), [(0, leaves, {}, None)]))


def read_kept(out: Path) -> PyTree:
    """What `write_kept` wrote; None where it wrote nothing.

    Raises:
        store.Damaged: if its checksum does not agree.
    """
    try:
        return unpack_records(out / store.KEPT)[0].result
    except FileNotFoundError:
        return None
