"""Runs as arrays of numpy: in memory, in one .npz file, in a folder of .npy files."""

import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxplain.export.look import Exported, Look, as_json, look, provenance
from jaxplain.export.rows import Leaf, groups, of_records, opened, plain, whole
from jaxplain.export.tables import replacing
from jaxplain.run.packing import Record
from jaxplain.run.records import Records
from jaxplain.types import JaxplainError


def to_numpy(run: str | Path | Records | Iterable[Record]) -> dict[str, np.ndarray]:
    """A run as arrays in memory that have one row an example each, in the order of the source.

    Columns and their names are those of `to_parquet`. Arrays of one shape are stacked, `[N, ...]`;
    those that are as long as their example are object arrays `[N]` of arrays, and notes and `error`
    object arrays `[N]` of what they are in Python. An example that failed has its `error`, None in
    object arrays, NaN in floats, 0 in whole numbers and False. `effort` (0 if failed) and
    `converged` are there in a run with a tolerance.

    Args:
        run: the run's directory, what `jaxplain.load` gave, or a list of records.

    Returns:
        Arrays by name; bfloat16 and float8 are float32, int4 is int8. Takes as much memory as all
        results; `to_npy` has them on disk.

    Raises:
        JaxplainError: no run, or a damaged one.

    >>> import numpy as np, jaxplain as jxp
    >>> rows = [jxp.Record(k, {"scores": np.ones(k + 1)}, {"text": "so"}, None) for k in range(3)]
    >>> columns = jxp.export.to_numpy(rows)
    >>> columns["text"], columns["scores"][1]
    (array(['so', 'so', 'so'], dtype=object), array([1., 1.]))
    """
    if isinstance(run, str | Path | Records):
        read = opened(run)
        found, parts, count = look(whole(read)), groups(read), len(read)
    else:
        rows = of_records(run)
        found, parts, count = look([rows]), iter([rows]), len(rows.index)
    made: dict[str, np.ndarray] = {"index": np.empty(count, np.int64)}
    made |= {name: np.empty(count, object) for name in found.names.notes.values()}
    for path, seen in found.leaves.items():
        dtype = plain(np.empty(0, seen.dtype)).dtype
        ragged = None in seen.shape
        shape = (count,) if ragged else (count, *seen.shape)
        made[found.names.leaves[path]] = np.empty(shape, object if ragged else dtype)  # type: ignore[arg-type]
    made |= {"effort": np.empty(count, np.int64), "converged": np.empty(count, bool)}
    made["error"] = np.empty(count, object)
    start, asked = 0, False
    for rows in parts:
        here = slice(start, start + len(rows.index))
        start = here.stop
        made["index"][here] = rows.index
        for field, name in found.names.notes.items():
            made[name][here] = _objects([row.get(field) for row in rows.notes])
        for path, name in found.names.leaves.items():
            shape = found.leaves[path].shape
            leaf = rows.leaves.get(path)
            if None in shape:
                made[name][here] = _objects(_each(leaf, rows.good))
            else:
                made[name][here] = _dense(leaf, rows.good, made[name].dtype, shape)
        made["error"][here] = _objects(rows.error)
        made["effort"][here] = [effort or 0 for effort in rows.effort]
        made["converged"][here] = [bool(near) for near in rows.converged]
        asked = asked or any(effort is not None for effort in rows.effort)
    return {n: a for n, a in made.items() if asked or n not in ("effort", "converged")}


def to_npz(run: str | Path | Records, path: str | Path) -> Exported:
    """Write a run as one .npz file, which `numpy.load` reads without pickling.

    Names are those of `to_parquet`. Arrays of one shape are stacked, `[N, ...]`. An array that is
    as long as its example is all examples' values one after another, `NAME`, and `NAME.offsets`
    `[N + 1]`: example i's are `values[offsets[i]:offsets[i + 1]]`. Where another axis than the
    first varies, values are flat, and `NAME.shapes` `[N, axes]` says how to reshape them. Texts are
    UTF-8 bytes with offsets of the same kind: `error`, empty where there is none, and `notes`,
    JSON. `failed` `[N]` says which examples failed: they have no values, or NaN, 0 and False.
    `effort` and `converged` are there in a run with a tolerance. `jaxplain` `[1]` is the run's
    provenance, as `to_parquet` has it. Read and written in bounded memory, as by `to_parquet`.

    Args:
        run: the run's directory, or what `jaxplain.load` gave.
        path: the file to write; beside it the disk needs room for as much again.

    Raises:
        JaxplainError: no run, a damaged one, a file that cannot be written.

    >>> import json, jax, numpy as np, jaxplain as jxp, tempfile
    >>> explain = lambda p, example, key: example["x"] ** 2
    >>> rows = [{"x": np.ones(k + 1, np.float32), "name": f"row {k}"} for k in range(3)]
    >>> out = tempfile.mkdtemp() + "/run"
    >>> _ = jxp.run(explain, (), rows, out, key=jax.random.key(0), progress=False)
    >>> done = jxp.export.to_npz(out, out + ".npz")
    >>> arrays = np.load(out + ".npz")
    >>> starts, notes = arrays["result.offsets"], arrays["notes.offsets"]
    >>> np.add.reduceat(arrays["result"], starts[:-1])
    array([1., 2., 3.], dtype=float32)
    >>> json.loads(bytes(arrays["notes"][notes[2]:notes[3]]))
    {'name': 'row 2'}
    """
    read, path = opened(run), Path(path)
    found = look(whole(read))
    folder = path.with_name(f".{path.name}.{os.getpid()}.arrays.tmp")
    try:
        with replacing(path) as temporary:
            names = _write(read, found, folder)
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
                for name in names:
                    file.write(_file(folder, name), f"{name}.npy")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _exported(read, found, path, names)


def to_npy(run: str | Path | Records, folder: str | Path) -> Exported:
    """Write a run as a folder of .npy files that can be memory-mapped.

    The arrays of `to_npz`, a file each: `numpy.load(folder / "attribution.scores.npy",
    mmap_mode="r")` takes no memory for what is not looked at. A slash in a name is `%2F` there.

    Args:
        run: the run's directory, or what `jaxplain.load` gave.
        folder: to be made; it must not be there yet.

    Raises:
        JaxplainError: no run, a damaged one, a folder that is there or cannot be written.
    """
    read, folder = opened(run), Path(folder)
    if folder.exists():
        raise JaxplainError(f"{folder} is there already: remove it, or give another name")
    found = look(whole(read))
    with replacing(folder) as temporary:
        try:
            names = _write(read, found, temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return _exported(read, found, folder, names)


def _exported(read: Records, found: Look, path: Path, names: list[str]) -> Exported:
    missing = read.info["examples"] - len(read)
    remarks = tuple(line for line in found.remarks if not line.endswith("JSON"))  # all notes are
    return Exported(path, len(read), found.failed, missing, tuple(names), remarks)


class _Npy:
    """A .npy file that grows along its first axis."""

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...] = ()):
        self.file, self.dtype, self.shape, self.rows = path.open("wb"), dtype, shape, 0
        self.header()

    def header(self) -> None:
        # numpy leaves room in the header for the first axis to grow.
        about = np.lib.format.dtype_to_descr(self.dtype)
        shape = (self.rows, *self.shape)
        np.lib.format.write_array_header_1_0(
            self.file, {"descr": about, "fortran_order": False, "shape": shape}
        )

    def append(self, values: Any) -> None:
        values = np.ascontiguousarray(values, self.dtype)
        self.rows += len(values)
        self.file.write(values.data.cast("B") if values.size else b"")

    def close(self) -> None:
        self.file.seek(0)
        self.header()
        self.file.close()


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('%', '%25').replace('/', '%2F')}.npy"


def _write(read: Records, found: Look, folder: Path) -> list[str]:
    """Write a run's arrays into a new folder, group by group; give their names."""
    columns = set(found.names.leaves.values())
    beside = {f"{name}.{ending}" for name in columns for ending in ("offsets", "shapes")}
    if columns & beside:
        raise JaxplainError(
            f"the result has a field {min(columns & beside)}, which is what numpy's files call "
            "where values end: rename it, or export to .parquet"
        )
    asked = read.info.get("plan", {}).get("tolerance") is not None
    folder.mkdir()
    files: dict[str, _Npy] = {}

    def put(name: str, values: Any, dtype: Any = None) -> None:
        values = np.asarray(values, dtype)
        if name not in files:
            files[name] = _Npy(_file(folder, name), values.dtype, values.shape[1:])
        files[name].append(values)

    ends: dict[str, int] = {}

    def place(name: str, sizes: Iterable[int]) -> None:
        """Where each row's values end."""
        if name not in ends:
            ends[name] = 0
            put(f"{name}.offsets", [0], np.int64)
        stops = np.cumsum([ends[name], *sizes], dtype=np.int64)
        ends[name] = int(stops[-1])
        put(f"{name}.offsets", stops[1:])

    def texts(name: str, lines: list[str]) -> None:
        encoded = [line.encode() for line in lines]
        put(name, np.frombuffer(b"".join(encoded), np.uint8))
        place(name, map(len, encoded))

    try:
        for rows in groups(read):
            put("index", rows.index, np.int64)
            good = rows.good
            put("failed", ~good)
            for path, name in found.names.leaves.items():
                dtype, shape = found.leaves[path]
                dtype = plain(np.empty(0, dtype)).dtype
                leaf = rows.leaves.get(path)
                if None not in shape:
                    put(name, _dense(leaf, good, dtype, shape))
                    continue
                if leaf is None:
                    leaf = Leaf(np.empty(0, dtype), np.empty((0, len(shape)), np.int64))
                shapes = np.zeros((len(good), len(shape)), np.int64)
                shapes[good] = leaf.shapes
                if None not in shape[1:]:
                    put(name, plain(leaf.values).reshape(shapes[:, 0].sum(), *shape[1:]))
                    place(name, shapes[:, 0])
                else:
                    sizes = np.zeros(len(good), np.int64)
                    sizes[good] = leaf.sizes
                    put(name, plain(leaf.values))
                    place(name, sizes)
                    put(f"{name}.shapes", shapes)
            if asked:
                put("effort", [effort or 0 for effort in rows.effort], np.int64)
                put("converged", [bool(near) for near in rows.converged])
            texts("error", [error or "" for error in rows.error])
            texts("notes", [as_json(notes) for notes in rows.notes])
        put("jaxplain", [provenance(read, found)])
    finally:
        for file in files.values():
            file.close()
    return list(files)


def _dense(leaf: Leaf | None, good: np.ndarray, dtype: np.dtype, shape: tuple) -> np.ndarray:
    """`[N, ...]`: one leaf of every row, NaN or 0 where the row failed."""
    made = np.full((len(good), *shape), np.nan if dtype.kind in "fc" else 0, dtype)
    if leaf is not None:
        made[good] = plain(leaf.values).reshape(len(leaf.shapes), *shape)
    return made


def _each(leaf: Leaf | None, good: np.ndarray) -> Iterator[np.ndarray | None]:
    """One leaf of every row, None where the row failed."""
    if leaf is None:
        yield from [None] * len(good)
        return
    values, stops = plain(leaf.values), np.cumsum(leaf.sizes)
    arrays = iter(
        values[stop - size : stop].reshape(shape)
        for stop, size, shape in zip(stops, leaf.sizes, leaf.shapes, strict=True)
    )
    for fine in good:
        yield next(arrays) if fine else None


def _objects(values: Iterable[Any]) -> np.ndarray:
    """An object array of one axis, whatever the values are."""
    values = list(values)
    made = np.empty(len(values), object)
    for row, value in enumerate(values):
        made[row] = value
    return made
