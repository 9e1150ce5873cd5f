"""The run directory: shards that are whole or absent, a readable record, a lock.

    run.json              what was run, on what, how far it got
    plans/00000.msgpack   which examples make which shard, a file a window of the source
    shards/00000-0000.msgpack   the records of one shard
    plans/00000.01.msgpack, shards/00000-0000.01.msgpack   the same, of those that took another
                          round to be as precise as asked: their records stand for the earlier ones
    kept.msgpack          arrays that belong to the run as a whole, where it has some
    processes/            of a run of several processes, while it goes on

Every msgpack file starts with a mark and a checksum of the rest, is written under a temporary name,
synced and renamed; so a file under its final name is whole, and a damaged one is noticed. Nothing
is ever unpickled.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import jax.numpy as jnp
import msgpack
import numpy as np

from jaxplain.run import shown
from jaxplain.run.trees import describe, rebuild
from jaxplain.types import JaxplainError, PyTree

FORMAT = "jaxplain run 1"
MARK = b"JXP1"
KEPT = "kept.msgpack"
DIGEST = 16


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
    raw = path.read_bytes()
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


def pack_records(
    tree: Any,
    records: list[tuple[int, list | None, dict, str | None]],
    *,
    run: str = "",
    effort: int | None = None,
    converged: list[bool] | None = None,
) -> bytes:
    """Pack `(index, leaves, notes, error)` rows, leaf by leaf, into a shard's bytes.

    `run` is the run's identity. With a tolerance, `effort` is that of all rows, and `converged`
    says who is within it.
    """
    good = [leaves for _, leaves, _, _ in records if leaves is not None]
    columns = []
    for column in zip(*good, strict=True):
        column = [np.asarray(a) for a in column]
        columns.append(
            {
                "dtype": str(column[0].dtype),
                "shapes": [list(a.shape) for a in column],
                "data": b"".join(np.ascontiguousarray(a).tobytes() for a in column),
            }
        )
    return pack(
        {
            "run": run,
            "index": [index for index, *_ in records],
            "errors": [error for *_, error in records],
            "notes": [note(notes) for _, _, notes, _ in records],
            "tree": tree,
            "columns": columns,
        }
        | ({} if converged is None else {"effort": effort, "converged": converged})
    )


def unpack_records(path: Path) -> list[Record]:
    """Read a shard's records."""
    content = unpack(path)
    columns = []
    for column in content["columns"]:
        dtype, start, arrays = jnp.dtype(column["dtype"]), 0, []
        data = np.frombuffer(column["data"], dtype)
        for shape in column["shapes"]:
            stop = start + int(np.prod(shape, dtype=np.int64))
            arrays.append(data[start:stop].reshape(shape))
            start = stop
        columns.append(arrays)
    records, row = [], 0
    rows = [content["index"], content["errors"], content["notes"]]
    rows.append(content.get("converged") or [None] * len(rows[0]))
    for index, error, notes, converged in zip(*rows, strict=True):
        result = None
        if error is None:
            result = rebuild(content["tree"], iter([column[row] for column in columns]))
            row += 1
        effort = content.get("effort") if error is None else None
        records.append(
            Record(index, result, notes, error, effort, converged if error is None else None)
        )
    return records


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
    if not isinstance(info, dict) or info.get("format") != FORMAT:
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
