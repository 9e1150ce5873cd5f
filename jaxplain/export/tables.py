"""Runs as tables of Apache Arrow: Parquet files, Arrow files, tables in memory."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxplain.export.look import MIXED, Exported, Look, Seen, as_json, look, provenance
from jaxplain.export.rows import Leaf, Rows, groups, of_records, opened, plain, whole
from jaxplain.run.packing import Record
from jaxplain.run.records import Records
from jaxplain.types import JaxplainError


def to_parquet(run: str | Path | Records, path: str | Path) -> Exported:
    """Write a run as a Parquet file, which pandas, Polars, DuckDB, Spark and BigQuery read.

    One row an example, in the order of the source. Columns: `index`, its position there; the notes
    by name, such as `text` and `label`; each array of the result by its path, such as
    `attribution.scores`; `effort`, `converged` and `error`, as in `Record`. A name that is taken
    already gets `result.` or `notes.` before it. An example that failed has its `error`, and null
    in every column of the result, in lists of a fixed size for each of their items; NaN stays NaN,
    and is not null.

    Arrays keep their dtype. An axis that is as long in every example makes lists of that fixed
    size, one that is not lists of any size; an array of no axis is a plain column. What Arrow has
    no type for gets another one, and `remarks` says so: bfloat16 and float8 become float32, int4
    becomes int8; notes of several types, and dicts with differing fields, JSON text (bytes in it
    base64). A complex array is two columns, `.real` and `.imag`. Notes that are all None are
    strings.

    The file's metadata have an entry `jaxplain`: run.json as JSON (fingerprints, versions,
    configuration, plan; not `origin`, which holds paths), the run's `identity`, and of each result
    its `dtype` and `shape` in the run.

    The run is read twice, a shard at a time, and written in row groups of about 128 MiB at most;
    memory holds one shard and some copies of one group. A file that is there is replaced, when the
    new one is whole.

    Args:
        run: the run's directory, or what `jaxplain.load` gave. One that is under way gives what
            is there.
        path: the file to write.

    Raises:
        JaxplainError: no run, a damaged one, a file that cannot be written; pyarrow is missing.

    >>> import jax, jax.numpy as jnp, numpy as np, jaxplain as jxp, tempfile
    >>> explain = lambda p, example, key: jxp.input_x_gradient(lambda x: (x**2).sum(), example["x"])
    >>> rows = [{"x": np.ones(3, np.float32) * i, "name": f"row {i}"} for i in range(4)]
    >>> out = tempfile.mkdtemp() + "/run"
    >>> _ = jxp.run(explain, (), rows, out, key=jax.random.key(0), progress=False)
    >>> done = jxp.export.to_parquet(out, out + ".parquet")
    >>> done.rows, done.failed, done.missing, done.remarks
    (4, 0, 0, ())
    >>> done.columns
    ('index', 'name', 'scores', 'output', 'gap', 'effort', 'converged', 'error')
    >>> import pyarrow.parquet
    >>> pyarrow.parquet.read_table(out + ".parquet", columns=["name", "scores"]).to_pylist()[1]
    {'name': 'row 1', 'scores': [2.0, 2.0, 2.0]}
    """
    _arrow("Parquet")
    import pyarrow.parquet as parquet

    return _write(run, Path(path), parquet.ParquetWriter)


def to_arrow(run: str | Path | Records, path: str | Path) -> Exported:
    """Write a run as an Arrow file, also known as Feather version 2, that can be memory-mapped.

    As `to_parquet`, with record batches for row groups; not compressed. In pandas
    `pandas.read_feather`, in Polars `polars.read_ipc`.

    Args:
        run: the run's directory, or what `jaxplain.load` gave.
        path: the file to write.

    Raises:
        JaxplainError: no run, a damaged one, a file that cannot be written; pyarrow is missing.
    """
    return _write(run, Path(path), _arrow("Arrow").ipc.new_file)


def to_table(records: Iterable[Record], *, schema: Any = None) -> Any:
    """Records in memory as a `pyarrow.Table`, for pipelines that pass such tables on.

    As `to_parquet`, in the order in which they come, but that every axis makes lists of any size:
    what other records hold cannot be known here. For the same reason the columns are those that
    these records have, unless a schema says.

    Args:
        records: what `jaxplain.batch_explainer` gave, or any of a run's.
        schema: a `pyarrow.Schema`: these columns, in these types, and no others; null where
            none of the records has it.

    Raises:
        JaxplainError: a column that does not fit the schema; pyarrow is missing.

    >>> import numpy as np, pyarrow as pa, jaxplain as jxp
    >>> rows = [jxp.Record(0, {"scores": np.ones(2, np.float32)}, {"text": "so so"}, None)]
    >>> jxp.export.to_table(rows).column_names
    ['index', 'text', 'scores', 'effort', 'converged', 'error']
    >>> schema = pa.schema([("text", pa.string()), ("scores", pa.list_(pa.float64()))])
    >>> jxp.export.to_table(rows, schema=schema).to_pylist()
    [{'text': 'so so', 'scores': [1.0, 1.0]}]
    """
    pa = _arrow("a table")
    rows = of_records(records)
    found = look([rows])
    loose = {
        path: seen._replace(shape=(None,) * len(seen.shape)) for path, seen in found.leaves.items()
    }
    found = found._replace(leaves=loose)
    made = pa.table(_columns(rows, found), schema=_schema(found))
    if schema is None:
        return made
    columns = []
    for field in schema:
        if field.name not in made.column_names:
            columns.append(pa.nulls(made.num_rows, field.type))
            continue
        try:
            columns.append(made[field.name].cast(field.type))
        except pa.ArrowException as error:
            raise JaxplainError(
                f"{field.name} is {made.schema.field(field.name).type}, and the schema's "
                f"{field.type} cannot hold it: {' '.join(str(error).split())}"
            ) from None
    return pa.table(columns, schema=schema)


def _arrow(what: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise JaxplainError(
            f"{what} needs pyarrow to be written: pip install 'jaxplain[arrow]'"
        ) from None
    return pyarrow


def _write(run: str | Path | Records, path: Path, writer: Callable) -> Exported:
    import pyarrow as pa

    read = opened(run)
    found = look(whole(read))
    schema = _schema(found).with_metadata({"jaxplain": provenance(read, found)})
    with replacing(path) as temporary, writer(str(temporary), schema) as file:
        for rows in groups(read):
            file.write_table(pa.table(_columns(rows, found), schema=schema))
    missing = read.info["examples"] - len(read)
    columns = tuple(schema.names)
    return Exported(path, len(read), found.failed, missing, columns, found.remarks)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` if all goes well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise JaxplainError(
            f"{path} cannot be written: {error.strerror or error}; give another path"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# ---- columns


def _schema(found: Look) -> Any:
    import pyarrow as pa

    fields = [pa.field("index", pa.int64(), nullable=False)]
    fields += [pa.field(found.names.notes[f], _note_type(kind)) for f, kind in found.notes.items()]
    for path, seen in found.leaves.items():
        values = plain(np.empty(0, seen.dtype))
        for ending, part in _parts(values):
            kind = pa.from_numpy_dtype(part.dtype)
            for size in reversed(seen.shape):
                kind = pa.list_(kind, size) if size else pa.list_(kind)
            fields.append(pa.field(found.names.leaves[path] + ending, kind))
    fields += [("effort", pa.int64()), ("converged", pa.bool_()), ("error", pa.string())]
    return pa.schema(fields)


def _columns(rows: Rows, found: Look) -> list[Any]:
    import pyarrow as pa

    columns: list[Any] = [pa.array(rows.index, pa.int64())]
    for field, kind in found.notes.items():
        values = [row.get(field) for row in rows.notes]
        if kind == MIXED:
            values = [None if value is None else as_json(value) for value in values]
        columns.append(pa.array(values, _note_type(kind)))
    good = rows.good
    for path, seen in found.leaves.items():
        empty = Leaf(np.empty(0, seen.dtype), np.empty((0, len(seen.shape)), np.int64))
        leaf = rows.leaves.get(path, empty)  # every row of the group may have failed
        for _, part in _parts(plain(leaf.values)):
            columns.append(_nested(leaf._replace(values=part), seen, good))
    columns.append(pa.array(rows.effort, pa.int64()))
    columns.append(pa.array(rows.converged, pa.bool_()))
    columns.append(pa.array(rows.error, pa.string()))
    return columns


def _parts(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """What a column holds; of complex numbers, which Arrow has not, two columns."""
    if values.dtype.kind != "c":
        return [("", values)]
    return [(".real", np.real(values).copy()), (".imag", np.imag(values).copy())]


def _nested(leaf: Leaf, seen: Seen, good: np.ndarray) -> Any:
    """A leaf as lists in lists, one level an axis, of good rows and of those that failed.

    Null is what is in the lists of fixed size, and not they: many versions of pyarrow, 23 among
    them, neither write nor read Parquet with nulls in their place.
    """
    import pyarrow as pa

    sizes = seen.shape
    first = next((axis for axis, size in enumerate(sizes) if not size), len(sizes))
    many = math.prod(sizes[:first])  # type: ignore[arg-type]
    gone = None if good.all() else np.repeat(~good, many)
    if first == len(sizes):
        values = np.zeros((len(good), many), leaf.values.dtype)
        values[good] = leaf.values.reshape(len(leaf.shapes), many)
        column = pa.array(values.ravel(), mask=gone)
    else:
        column = pa.array(leaf.values)
        for axis in range(len(sizes) - 1, first - 1, -1):
            if sizes[axis]:
                column = pa.FixedSizeListArray.from_arrays(column, sizes[axis])
                continue
            above = leaf.shapes[:, :axis].prod(1, dtype=np.int64)  # lists that a row has here
            stops = np.cumsum(np.repeat(leaf.shapes[:, axis], above), dtype=np.int64)
            offsets = pa.array(np.concatenate([[0], stops]), pa.int32())
            column = pa.ListArray.from_arrays(offsets, column)
        if gone is not None:
            column = column.take(pa.array(np.cumsum(~gone) - 1, mask=gone))
    for size in reversed(sizes[:first]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _note_type(kind: Any) -> Any:
    import pyarrow as pa

    if isinstance(kind, tuple) and kind[0] == "list":
        return pa.list_(_note_type(kind[1]))
    if isinstance(kind, tuple):
        return pa.struct([(name, _note_type(inner)) for name, inner in kind[1].items()])
    simple = {"bool": pa.bool_(), "int": pa.int64(), "long": pa.int64(), "float": pa.float64()}
    return simple.get(kind) or (pa.binary() if kind == "bytes" else pa.string())
