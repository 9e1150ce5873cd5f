"""Columns of Parquet and Arrow files."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxplain.run.reading import reading
from jaxplain.types import JaxplainError

FORMATS = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow"}


class Table(NamedTuple):
    """A file of columns, of which none is read yet.

    Attributes:
        columns: their names.
        read: `(names, limit) -> [(row's number, {name: value})]`, of these columns alone.
        sha256: hash of the file's bytes.
    """

    columns: list[str]
    read: Callable[[list[str], int | None], list[tuple[int, dict[str, Any]]]]
    sha256: str


def open_table(path: Path, format: str) -> Table:
    """Open a Parquet file, or an Arrow file: Feather (version 2) or a stream.

    Raises:
        JaxplainError: it cannot be read, is damaged or of another kind, or pyarrow is missing.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        raise JaxplainError(
            f"{path.name} needs pyarrow to be read: pip install 'jaxplain[arrow]'"
        ) from None
    with reading(path), path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    def damaged(error: Exception) -> JaxplainError:
        reason = " ".join(str(error).split()).rstrip(".")
        return JaxplainError(
            f"{path} is damaged, or no {format.capitalize()} file ({reason}): write it again, or "
            "say what it is with --format"
        )

    def arrow(names: list[str] | None) -> tuple[Any, Iterator[Any]]:
        """The schema, and batches of the columns `names`; all of them for None."""
        with pa.memory_map(str(path)) as file:
            whole = file.read(6) == b"ARROW1"  # else a stream, as some libraries keep on disk
        opened = pa.ipc.open_file if whole else pa.ipc.open_stream

        def reader(options: Any = None) -> Any:
            return opened(pa.memory_map(str(path)), options=options)

        schema = reader().schema
        if names is not None:  # a file whose columns were not asked for is not even decompressed
            fields = [schema.get_field_index(name) for name in names]
            chosen = reader(pa.ipc.IpcReadOptions(included_fields=fields))
        else:
            chosen = reader()
        if whole:
            return schema, (chosen.get_batch(n) for n in range(chosen.num_record_batches))
        return schema, iter(chosen)

    def parquet(names: list[str] | None) -> tuple[Any, Iterator[Any]]:
        file = pyarrow.parquet.ParquetFile(path)
        return file.schema_arrow, file.iter_batches(columns=names)

    batches = parquet if format == "parquet" else arrow

    def read(names: list[str], limit: int | None) -> list[tuple[int, dict[str, Any]]]:
        rows = []
        try:
            names = list(dict.fromkeys(names))  # one column may be asked for twice
            for batch in batches(names)[1]:
                batch = batch if limit is None else batch.slice(0, limit - len(rows))
                values = zip(*(batch.column(name).to_pylist() for name in names), strict=True)
                for row in values:
                    rows.append((len(rows) + 1, dict(zip(names, row, strict=True))))
                if len(rows) == limit:
                    break
        except (pa.ArrowException, OSError) as error:
            raise damaged(error) from None
        return rows

    try:
        columns = list(batches(None)[0].names)
    except (pa.ArrowException, OSError) as error:
        raise damaged(error) from None
    if len(set(columns)) < len(columns):
        raise JaxplainError(f"{path} names a column twice: {', '.join(columns)}")
    return Table(columns, read, sha256)
