"""Text read from files, and served to the engine one example at a time."""

import csv
import difflib
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxplain.models.types import TextModel
from jaxplain.run import tables
from jaxplain.run.reading import reading
from jaxplain.types import JaxplainError

FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", **tables.FORMATS}
TEXT_NAMES = ("sentence", "text", "review", "content", "comment", "document", "body", "tweet")
LABEL_NAMES = ("label", "labels", "target", "class", "sentiment", "polarity", "category")
PREDICTED = -1  # the target of an example whose predicted class is to be explained


class Texts(NamedTuple):
    """The rows of a text file.

    Attributes:
        texts: one string per row; blank lines are no rows.
        labels: one string per row as the file spells it, None where a row has none; None if the
            file has no label column.
        text_column: the column that `texts` came from.
        label_column: the column that `labels` came from; None if there is none.
        sha256: hash of the file's bytes.
    """

    texts: list[str]
    labels: list[str | None] | None
    text_column: str
    label_column: str | None
    sha256: str


def read_texts(
    path: str | Path,
    *,
    format: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
) -> Texts:
    """Read the sentences of a TSV, CSV or JSONL file in UTF-8, or of a Parquet or Arrow file.

    TSV and CSV begin with a line of column names. In TSV a quote is a letter like any other; CSV
    follows RFC 4180, with line breaks inside quotes. A JSONL line holds one object. Of Parquet and
    Arrow files (Feather too), which need the extra `arrow`, only the two columns are read.

    Args:
        path: the file.
        format: "tsv", "csv", "jsonl", "parquet" or "arrow"; by the file's extension if None.
        text_column: column of the sentences; if None, the first of `TEXT_NAMES` that is there.
        label_column: column of the labels; if None, the first of `LABEL_NAMES` that is there.
        limit: how many rows to keep, from the top.

    Raises:
        JaxplainError: saying which line is malformed, or which columns there are.
    """
    path = Path(path)
    if format is None:
        format = FORMATS.get(path.suffix.lower())
        if format is None:
            raise JaxplainError(
                f"{path} ends in {path.suffix or 'no extension'}: rename it to .tsv, .csv, "
                ".jsonl, .parquet or .arrow, or say --format tsv, csv, jsonl, parquet or arrow"
            )
    if format not in FORMATS.values():
        raise JaxplainError(
            f"format {format!r} is unknown: choose tsv, csv, jsonl, parquet or arrow"
        )
    if limit is not None and limit < 1:
        raise JaxplainError(f"limit must be at least 1, not {limit}")
    table, rows, place = None, [], "line"
    if format in tables.FORMATS.values():
        table, place = tables.open_table(path, format), "row"
        columns, sha256 = table.columns, table.sha256
    else:
        text, sha256 = decode(path)
        if format == "jsonl":
            columns, rows = read_jsonl(path, text, limit)
        else:
            columns, rows = read_separated(path, text, format, limit)
    label_column = choose(path, columns, label_column, LABEL_NAMES, "label")
    if text_column is None and columns == [label_column]:
        raise JaxplainError(f"{path} has no column but {label_column}: add one with the sentences")
    text_column = choose(path, columns, text_column, TEXT_NAMES, "text")
    if text_column is None:
        raise JaxplainError(
            f"{path} has columns {', '.join(columns)}, and none is named as text usually is: name "
            f"it, as in --text-column {columns[0]}"
        )
    if table is not None:
        rows = table.read([n for n in (text_column, label_column) if n is not None], limit)
    if not rows:
        raise JaxplainError(f"{path} has column names and no rows: there is nothing to explain")
    texts = []
    for number, row in rows:
        value = row.get(text_column)
        if not isinstance(value, str):
            shown = json.dumps(value, default=str)
            raise JaxplainError(f"{path} {place} {number}: {text_column} is {shown}, not a string")
        texts.append(value)
    labels = None
    if label_column is not None:
        labels = [spell(row.get(label_column)) for _, row in rows]
    return Texts(texts, labels, text_column, label_column, sha256)


def decode(path: Path) -> tuple[str, str]:
    """Give a file's text and the hash of its bytes."""
    with reading(path):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise JaxplainError(
            f"{path} is not UTF-8 (line {line}, byte {error.start}): convert it, as in "
            f"iconv -f latin1 -t utf-8 {path.name}"
        ) from None
    if not text.strip():
        raise JaxplainError(f"{path} is empty: there is nothing to explain")
    return text, hashlib.sha256(raw).hexdigest()


def read_separated(
    path: Path, text: str, format: str, limit: int | None
) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """Give the column names, and each row with the number of the line it ends on."""
    # strict: a stray quote is an error, instead of swallowing the rest of the file.
    if format == "tsv":
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True
        )
    else:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    rows = []
    try:
        for fields in reader:
            if not fields or fields == [""]:
                continue
            if not columns:
                columns = [name.strip() for name in fields]
                continue
            if len(fields) != len(columns):
                separator = "tab" if format == "tsv" else "comma"
                raise JaxplainError(
                    f"{path} line {reader.line_num}: {len(fields)} fields, and the first line "
                    f"names {len(columns)}: mend that line (a stray or missing {separator}?)"
                )
            rows.append((reader.line_num, dict(zip(columns, fields, strict=True))))
            if len(rows) == limit:
                break
    except csv.Error as error:
        raise JaxplainError(
            f"{path} line {reader.line_num}: {error}: mend the quotes there, or use JSONL"
        ) from None
    if len(set(columns)) < len(columns):
        raise JaxplainError(f"{path} names a column twice: {', '.join(columns)}")
    return columns, rows


def read_jsonl(
    path: Path, text: str, limit: int | None
) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """Give the keys of all objects in order of appearance, and each object with its line number."""
    columns: dict[str, None] = {}
    rows = []
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise JaxplainError(f"{path} line {number} is not JSON: {reason}") from None
        if not isinstance(row, dict):
            raise JaxplainError(
                f"{path} line {number} is not a JSON object: write one object a line, as in "
                '{"text": "a fine film", "label": 1}'
            )
        columns |= dict.fromkeys(row)
        rows.append((number, row))
        if len(rows) == limit:
            break
    return list(columns), rows


def choose(
    path: Path, columns: list[str], wanted: str | None, usual: tuple[str, ...], kind: str
) -> str | None:
    """Find the column asked for, or one that is named as such columns usually are."""
    if wanted is not None:
        if wanted in columns:
            return wanted
        close = difflib.get_close_matches(wanted, columns, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise JaxplainError(
            f"{path} has no column {wanted!r} to take as --{kind}-column: it has "
            f"{', '.join(columns)}{hint}"
        )
    lowered = {name.lower(): name for name in reversed(columns)}
    for name in usual:
        if name in lowered:
            return lowered[name]
    return columns[0] if kind == "text" and len(columns) == 1 else None


def spell(label: Any) -> str | None:
    """A label as text; None where it is missing."""
    if label is None or label == "":
        return None
    return str(int(label)) if isinstance(label, bool) else str(label).strip()


def class_index(label: str, classes: Sequence[str]) -> int | None:
    """The class that a label or a `--target` means, by name or by number; None if it is unknown.

    >>> class_index("Positive", ("negative", "positive")), class_index("0", ("no", "yes"))
    (1, 0)
    """
    names = [name.lower() for name in classes]
    if label.strip().lower() in names:
        return names.index(label.strip().lower())
    try:
        number = float(label)
    except ValueError:
        return None
    return int(number) if number in range(len(classes)) else None


class TextSource:
    """Texts as examples of the engine; each is tokenised when it is asked for.

    An example holds `ids` `[T]` int32, `mask` `[T]` bool, `target` `[]` int32 (-1: explain the
    predicted class), and notes: `text`, `pieces` (T strings), `label` (a class name, or the label
    as the file spells it if the model knows no such class) and `truncated` (None, or in words).
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[str | None] | None,
        model: TextModel,
        *,
        target: str = "predicted",
        max_length: int | None = None,
    ):
        """Check what can be checked before the run.

        Args:
            texts: one string per example.
            labels: one per text, or None.
            model: its tokeniser, classes and `max_length` are used.
            target: "predicted", "label", or the name or number of a class.
            max_length: most tokens of an example; the model's own limit if None.

        Raises:
            JaxplainError: if `target` is no class, or asks for labels that are not there.
        """
        self.texts, self.labels, self.model, self.target = texts, labels, model, target
        self.max_length = model.max_length if max_length is None else max_length
        self.fixed = PREDICTED
        special = len(model.tokenize("").ids) if model.special_ids else 0
        if not special < self.max_length <= model.max_length:
            raise JaxplainError(
                f"max length must be between {special + 1} and {model.max_length} tokens for "
                f"{model.name}, not {max_length}"
            )
        if target == "label":
            if labels is None:
                raise JaxplainError(
                    "--target label needs labels, and the data has no label column: name it with "
                    "--label-column, or use --target predicted"
                )
            for row, label in enumerate(labels):
                if label is None or class_index(label, model.labels) is None:
                    raise JaxplainError(
                        f"--target label: row {row + 1} has label {label!r}, and {model.name} "
                        f"knows {', '.join(model.labels)}; use --target predicted, or mend the row"
                    )
        elif target != "predicted":
            index = class_index(target, model.labels)
            if index is None:
                raise JaxplainError(
                    f"--target {target!r} is no class of {model.name}: choose predicted, label, "
                    f"or one of {', '.join(model.labels)}"
                )
            self.fixed = index

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        text = self.texts[index]
        if not text.strip():
            raise JaxplainError("the sentence is empty")
        ids, pieces, truncated = self.model.tokenize(text)
        special = np.isin(ids, self.model.special_ids)
        if special.all():
            raise JaxplainError("the sentence has no token that the model reads")
        if len(ids) > self.max_length:  # keep the special tokens that end a text
            tail = int(np.argmin(special[::-1]))
            head = self.max_length - tail
            keep = [*range(head), *range(len(ids) - tail, len(ids))]
            ids, pieces, truncated = ids[keep], [pieces[i] for i in keep], True
        told = f"only the first {len(ids)} tokens were read"
        told = truncated if isinstance(truncated, str) else told
        label = None if self.labels is None else self.labels[index]
        known = None if label is None else class_index(label, self.model.labels)
        target = known if self.target == "label" else self.fixed
        return {
            "ids": np.asarray(ids, np.int32),
            "mask": np.ones(len(ids), bool),
            "target": np.int32(PREDICTED if target is None else target),
            "text": text,
            "pieces": list(pieces),
            "label": label if known is None else self.model.labels[known],
            "truncated": told if truncated else None,
        }
