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

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import msgpack

from jaxplain.types import JaxplainError

FORMAT = "jaxplain run 2"
MARK = b"JXP1"
KEPT = "kept.msgpack"
DIGEST = 16

Present = dict[int, set[tuple[int, int]]]  # level and number of shards, by window


class Damaged(JaxplainError):
    """A file of the store that is truncated or altered."""


class NoRecord(JaxplainError):
    """The directory holds a run's files, and run.json is absent or damaged: see `restore`."""


def write(path: Path, payload: bytes, *, lasting: bool = True) -> None:
    """Write a file so that it is there whole or not at all, whatever happens.

    One that is not `lasting` need not outlive the machine, and is not synced.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if lasting:
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
