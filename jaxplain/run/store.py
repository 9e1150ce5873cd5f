"""The run directory: shards that are whole or absent, a readable record, a lock.

    run.json              what was run, on what, how far it got
    plans/00000.msgpack   which examples make which shard, a file a window of the source
    shards/00000-0000.msgpack   the records of one shard
    plans/00000.01.msgpack, shards/00000-0000.01.msgpack   the same, of those that took another
                          round to be as precise as asked: their records stand for the earlier ones
    kept.msgpack          arrays that belong to the run as a whole, where it has some
    processes/            of a run of several processes, while it goes on

A shard holds its examples' positions, why some failed, their notes, and the results leaf by leaf:
those of one shape as one array. Positions that follow one another are kept as the first and the
end, so that neither plans nor what is read of them grow with examples of one shape.

Every msgpack file starts with a mark and a checksum of the rest, is written under a temporary name,
synced and renamed; so a file under its final name is whole, and a damaged one is noticed. Nothing
is ever unpickled.
"""

import bisect
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import msgpack
import numpy as np

from jaxplain.run import columns, shown
from jaxplain.run.columns import Block, Index
from jaxplain.run.trees import describe, rebuild
from jaxplain.types import JaxplainError, PyTree

FORMAT = "jaxplain run 2"
MARK = b"JXP1"
KEPT = "kept.msgpack"
DIGEST = 16

Present = dict[int, set[tuple[int, int]]]  # level and number of shards, by window


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


class Damaged(JaxplainError):
    """A file of the store that is truncated or altered."""


class NoRecord(JaxplainError):
    """The directory holds a run's files, and run.json is absent or damaged: see `restore`."""


def write(path: Path, payload: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever happens."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def pack(content: Any) -> bytes:
    body: bytes = msgpack.packb(content)  # type: ignore[assignment]
    return MARK + hashlib.blake2b(body, digest_size=DIGEST).digest() + body


def unpack(path: Path) -> Any:
    """Read a msgpack file of the store.

    Raises:
        Damaged: if its checksum does not agree.
        FileNotFoundError: if it is not there.
    """
    raw = memoryview(path.read_bytes())
    mark, digest, body = raw[: len(MARK)], raw[len(MARK) : len(MARK) + DIGEST], raw[4 + DIGEST :]
    if mark != MARK or hashlib.blake2b(body, digest_size=DIGEST).digest() != digest:
        raise Damaged(f"{path} is damaged: run the same command again to compute it anew")
    return msgpack.unpackb(body, strict_map_key=False)


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
    return pack(
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
        Damaged: if its checksum does not agree.
        FileNotFoundError: if it is not there.
    """
    return Rows(unpack(path))


def read_shard(path: Path, index: Index, run: str) -> dict[str, Any] | None:
    """A shard's content if it is whole, of this run, and holds these examples; None otherwise."""
    with contextlib.suppress(FileNotFoundError, Damaged):
        content = unpack(path)
        if content["examples"] == columns.pack_index(index) and content["run"] == run:
            return content
    return None


def write_kept(out: Path, keep: PyTree) -> None:
    """Write the arrays that belong to the whole run, in the form of a shard of one record."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(keep)]
    write(out / KEPT, pack_records(describe(keep), [(0, leaves, {}, None)]))


def read_kept(out: Path) -> PyTree:
    """What `write_kept` wrote; None where it wrote nothing.

    Raises:
        Damaged: if its checksum does not agree.
    """
    try:
        return unpack_records(out / KEPT)[0].result
    except FileNotFoundError:
        return None


def plan_path(out: Path, window: int, level: int = 0) -> Path:
    """Of a window's first results; from level 1, of those that were given more nodes or samples."""
    return out / "plans" / f"{window:05d}{f'.{level:02d}' if level else ''}.msgpack"


def shard_path(out: Path, window: int, shard: int, level: int = 0) -> Path:
    return out / "shards" / f"{window:05d}-{shard:04d}{f'.{level:02d}' if level else ''}.msgpack"


def plans(out: Path) -> Iterator[tuple[int, int, Path]]:
    """`(window, level, path)` of every plan, the levels of a window in their order."""
    for path in sorted((out / "plans").glob("*.msgpack"), key=lambda path: path.stem):
        window, _, level = path.stem.partition(".")
        yield int(window), int(level or 0), path


def prune(out: Path, window: int, counts: list[int]) -> None:
    """Remove what earlier plans of a window left: all but its rounds, with so many shards each."""
    named = {plan_path(out, window, level) for level in range(len(counts))}
    for level, count in enumerate(counts):
        named |= {shard_path(out, window, number, level) for number in range(count)}
    found = [*(out / "plans").glob(f"{window:05d}*"), *(out / "shards").glob(f"{window:05d}-*")]
    for path in {*found} - named:
        path.unlink(missing_ok=True)


def present(out: Path) -> Present:
    """The shards that are there."""
    found: Present = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(out / "shards") as entries:
        for entry in entries:
            stem, ending = os.path.splitext(entry.name)
            if ending == ".msgpack" and not stem.startswith("."):
                place, _, level = stem.partition(".")
                window, number = place.split("-")
                found.setdefault(int(window), set()).add((int(level or 0), int(number)))
    return found


def read_info(out: Path) -> dict[str, Any] | None:
    """The content of run.json; None where the directory is absent or empty.

    Raises:
        NoRecord: if shards or plans of a run are there, and no readable run.json.
        JaxplainError: if there is something that is not a run of ours.
    """
    record = out / "run.json"
    lost = f"{record} is {{}}: the command that made it restores it; or overwrite the run"
    try:
        info = json.loads(record.read_text())
    except FileNotFoundError:
        if ours(out):
            raise NoRecord(lost.format("missing")) from None
        # A run that was killed before its first write leaves no more than these.
        if out.is_dir() and any(p.name not in ("run.lock", "processes") for p in visible(out)):
            raise JaxplainError(
                f"{out} holds files and no run.json: it is not a run of jaxplain; give another "
                "directory"
            ) from None
        return None
    except NotADirectoryError:
        raise JaxplainError(f"{out} cannot be a directory: part of its path is a file") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        if ours(out):
            raise NoRecord(lost.format("damaged")) from None
        raise JaxplainError(
            f"{record} is not readable as JSON: it was altered; give another directory"
        ) from None
    known = info.get("format") if isinstance(info, dict) else None
    if known != FORMAT and str(known).startswith("jaxplain run "):
        raise JaxplainError(
            f"{out} is in format {known!r}, and this version reads {FORMAT!r}: give another "
            "directory, or read it with the version of jaxplain that wrote it"
        )
    if known != FORMAT:
        kind = NoRecord if ours(out) else JaxplainError
        raise kind(f"{record} is not the record of a jaxplain run of format {FORMAT!r}")
    return info


def ours(out: Path) -> bool:
    """Whether a directory without a readable run.json has the files of a run, and no others among
    them."""
    folders = [out / name for name in ("plans", "shards") if (out / name).is_dir()]
    if not folders:
        names = {path.name for path in visible(out)} if out.is_dir() else set()
        return names - {"processes"} == {"run.json", "run.lock"}
    return all(path.suffix == ".msgpack" for folder in folders for path in visible(folder))


def visible(out: Path) -> Iterator[Path]:
    return (p for p in out.iterdir() if not (p.name.startswith(".") and p.name.endswith(".tmp")))


def write_info(out: Path, info: dict[str, Any]) -> None:
    write(out / "run.json", (json.dumps(info, indent=1, sort_keys=False) + "\n").encode())


def sweep(out: Path) -> None:
    """Remove what killed writes left behind."""
    for path in [*out.glob(".*.tmp"), *out.glob("*/.*.tmp")]:
        path.unlink(missing_ok=True)


def clear(out: Path) -> None:
    """Remove a run's files; `read_info` has made sure that it is one."""
    for folder in ("shards", "plans"):
        if (out / folder).exists():
            shutil.rmtree(out / folder)
    (out / KEPT).unlink(missing_ok=True)
    (out / "run.json").unlink(missing_ok=True)  # last: until then the directory is ours


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold the directory for one run; the system frees it however the run ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(out / "run.lock", timeout=0)
        held.acquire()
    except filelock.Timeout:
        raise JaxplainError(
            f"{out} is in use by another run that is still going: wait for it, or give another "
            "directory"
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JaxplainError(f"{out} cannot be written: {reason}; give another directory") from None
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn a failed write into one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise JaxplainError(
            f"{out} cannot be written: {error.strerror or error}. What is already there is whole: "
            "mend that, and run the same command again to resume"
        ) from error
