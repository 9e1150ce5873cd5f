"""Runs as tables and arrays: every value of every record comes back, and where it comes from."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

import jaxplain as jxp
from jaxplain import cli
from jaxplain.export import rows as reading
from jaxplain.methods.information import WordInformation
from jaxplain.run import fingerprint, packing, plan, store
from jaxplain.run.trees import describe
from jaxplain.types import Attribution, JaxplainError

# Of each field the values that a note may have; a field that is not there is None, too.
NOTES: list[dict[str, Any]] = [
    {"text": "", "pieces": [], "number": 1, "mixed": 1, "place": {"a": 1, "b": None}, "none": None},
    {"text": "naïve 日本 🙂", "pieces": ["a", "é"], "number": 2.5, "mixed": "1", "index": "own"},
    {"text": "a\nb", "pieces": ["x"], "number": None, "mixed": [1, None], "counts": {"x": 1}},
    {"text": None, "place": {"a": 3, "b": ["deep"]}, "mixed": {"k": b"\xff"}, "counts": {"y": 2}},
    {"text": "b", "raw": b"\x00\xff", "yes": True, "large": 2**60, "nested": [[1], [], None]},
]  # fmt: skip
FAILED, ABSENT, COUNT = 7, 9, 24


def result(index: int) -> dict[str, Any]:
    """Arrays of each kind, of an example of length T."""
    kind: Any = Attribution  # of numpy's arrays, as they come from a run
    draw, size = np.random.default_rng(index), 1 + index * 5 % 7
    scores = draw.normal(size=size).astype(np.float32)
    scores[0] = [np.nan, np.inf, -np.inf, -0.0][index % 4]
    return {
        "attribution": kind(scores, np.float32(index), np.float32(np.nan)),
        "pairs": draw.normal(size=(size, size)),
        "layers": (draw.normal(size=(2, size, 3)).astype(jnp.bfloat16), None),
        "table": draw.normal(size=(3, 2)).astype(np.float16),
        "count": np.int32(-index),
        "large": np.asarray(2**40 + index),
        "flags": draw.random(4) > 0.5,
        "phase": np.asarray([1 + 2j * index], np.complex64),
        "empty": np.zeros((2, 0), np.float32),
        "shard": {"a/b": np.full(size, index, np.uint8)},
    }


def write_shard(out: Path, number: int, indices: list[int], level: int = 0) -> None:
    records = []
    for index in indices:
        leaves = None if index == FAILED else jax.tree.leaves(result(index + 100 * level))
        error = "NaN in scores" if index == FAILED else None
        records.append((index, leaves, NOTES[index % len(NOTES)], error))
    near = {"effort": 17 + level, "converged": [index % 2 == 0 for index in indices]}
    packed = packing.pack_records(describe(result(0)), records, **near)
    store.write(store.shard_path(out, 0, number, level), packed)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run under way: shards that were sorted by length, one to come, and a second round."""
    out = tmp_path_factory.mktemp("runs") / "run"
    (out / "plans").mkdir(parents=True)
    (out / "shards").mkdir()
    order = sorted(range(COUNT), key=lambda i: (i * 5 % 7, i))
    shards = [order[k : k + 8] for k in range(0, COUNT, 8)]
    again = [shards[0][1], shards[2][0]]
    for level, every in ((0, shards), (1, [again])):
        planned = plan.pack([[plan.Batch(8, 8, tuple(shard))] for shard in every])
        store.write(store.plan_path(out, 0, level), store.pack({"shards": planned}))
        for number, shard in enumerate(every):
            if ABSENT not in shard:
                write_shard(out, number, shard, level)
    info = {
        "format": store.FORMAT, "status": "running", "examples": COUNT, "configuration": {"m": 1},
        "plan": {"tolerance": 0.1, "window": COUNT}, "versions": {"jax": "9"},
        "fingerprints": {"params": "f00d"},
        "origin": {"model": "/home/somebody"},
    }  # fmt: skip
    store.write_info(out, info)
    return out


@pytest.fixture
def small(monkeypatch):
    """Groups of a few rows, as large runs have them."""
    monkeypatch.setattr(reading, "MOST", 5)


RESULTS = [*"pairs table count large flags empty layers.0 shard.a/b".split()]
RESULTS += ["attribution.scores", "attribution.output", "attribution.gap", "phase.real"]


def arrays_of(record: jxp.Record) -> dict[str, np.ndarray]:
    found = record.result
    arrays = {name: found[name] for name in ("pairs", "table", "count", "flags", "empty", "phase")}
    fields = found["attribution"]._asdict()
    return (
        arrays
        | {f"attribution.{name}": value for name, value in fields.items()}
        | {
            "layers.0": found["layers"][0].astype(np.float32),
            "large": found["large"],
            "shard.a/b": found["shard"]["a/b"],
        }
    )


def alike(got: Any, want: Any) -> bool:
    """The same numbers in the same shape; repr tells NaN, -0.0, and 1 from True."""
    return repr(bare(got)) == repr(want)


def bare(value: Any) -> Any:
    """Python's own numbers: older versions of pyarrow give float16 as numpy's."""
    if isinstance(value, list):
        return [bare(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def empty(value: Any) -> bool:
    return all(map(empty, value)) if isinstance(value, list) else value is None


def check_table(table: pa.Table, run: Path) -> None:
    records = list(jxp.load(run))
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == [record.index for record in records]
    for row, record in zip(rows, records, strict=True):
        assert (row["error"], row["effort"]) == (record.error, record.effort)
        assert row["converged"] == record.converged
        notes = record.notes
        for field in ("text", "pieces", "place", "raw", "yes", "none", "nested"):
            assert row[field] == notes.get(field), (record.index, field)
        assert row["number"] == notes.get("number") and row["notes.large"] == notes.get("large")
        assert row["notes.index"] == notes.get("index")
        if isinstance(notes.get("mixed"), dict):
            assert row["mixed"] == '{"k": "/w=="}'  # bytes as base64
        else:
            for field in ("mixed", "counts"):
                assert (json.loads(row[field]) if row[field] else None) == notes.get(field)
        if record.error is not None:
            assert all(empty(row[name]) for name in RESULTS)
            assert row["attribution.scores"] is row["count"] is None
            assert row["layers.0"] in (None, [None, None])  # a table of records: of any size
            continue
        for name, array in arrays_of(record).items():
            if name == "phase":
                assert row["phase.real"] == np.real(array).tolist()
                assert row["phase.imag"] == np.imag(array).tolist()
            else:
                assert alike(row[name], array.tolist()), (record.index, name)


def test_parquet(run, tmp_path, small):
    done = jxp.export.to_parquet(run, tmp_path / "run.parquet")
    assert done[:4] == (tmp_path / "run.parquet", 16, 1, 8)
    file = parquet.ParquetFile(done.path)
    assert file.metadata.num_row_groups == 4  # 16 rows, 5 a group
    table = file.read()
    check_table(table, run)
    assert tuple(table.column_names) == done.columns
    assert "layers.0 was bfloat16 and is float32" in done.remarks
    assert {line.split()[0] for line in done.remarks[1:]} == {"mixed", "counts"}

    def kind(name):  # Parquet calls the items of its lists otherwise
        return str(table.schema.field(name).type).replace("element: ", "item: ")

    assert kind("attribution.scores") == "list<item: float>"
    assert kind("pairs") == "list<item: list<item: double>>"
    sizes = "fixed_size_list<item: {}>[{}]"
    assert kind("layers.0") == sizes.format(f"list<item: {sizes.format('float', 3)}>", 2)
    assert kind("table") == sizes.format(sizes.format("halffloat", 2), 3)
    assert (kind("count"), kind("large")) == ("int32", "int64")
    assert kind("flags") == sizes.format("bool", 4) and kind("phase.imag") == sizes.format(
        "float", 1
    )
    assert table["attribution.gap"].null_count == 1  # of the example that failed; NaN is no null
    assert list(tmp_path.iterdir()) == [done.path]


def test_arrow(run, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST", 1)  # so that one group is of nothing but failures
    done = jxp.export.to_arrow(jxp.load(run), tmp_path / "run.arrow")
    with pa.memory_map(str(done.path)) as source:
        table = pa.ipc.open_file(source).read_all()
        check_table(table, run)
        assert pa.total_allocated_bytes() < 2**26
    told = json.loads(table.schema.metadata[b"jaxplain"])
    info = jxp.load(run).info
    assert told["identity"] == fingerprint.identity(info) and told["missing"] == 8
    assert told["versions"] == {"jax": "9"} and told["fingerprints"] == {"params": "f00d"}
    assert "somebody" not in json.dumps(told)
    assert told["results"]["layers.0"] == {"dtype": "bfloat16", "shape": [2, None, 3]}
    assert told["json"] == ["mixed", "counts"]


def test_numpy(run, small):
    columns = jxp.export.to_numpy(run)
    assert {len(column) for column in columns.values()} == {16}
    assert columns["table"].dtype == np.float16 and columns["table"].shape == (16, 3, 2)
    assert columns["layers.0"].dtype == object and columns["flags"].dtype == bool
    for row, record in enumerate(jxp.load(run)):
        assert columns["index"][row] == record.index and columns["error"][row] == record.error
        assert columns["text"][row] == record.notes.get("text")
        assert columns["mixed"][row] == record.notes.get("mixed")  # nothing becomes JSON here
        if record.error is not None:
            assert columns["attribution.scores"][row] is None and columns["count"][row] == 0
            assert np.isnan(columns["table"][row]).all() and np.isnan(columns["phase"][row])
            continue
        assert columns["effort"][row] == record.effort
        for name, array in arrays_of(record).items():
            assert columns[name][row].dtype == array.dtype
            assert alike(columns[name][row].tolist(), array.tolist()), name


@pytest.mark.parametrize("folder", [False, True])
def test_numpy_files(run, tmp_path, small, folder):
    if folder:
        done = jxp.export.to_npy(run, tmp_path / "run")
        read = {
            file.stem.replace("%2F", "/"): np.load(file, mmap_mode="r", allow_pickle=False)
            for file in done.path.iterdir()
        }
        with pytest.raises(JaxplainError, match="there already"):
            jxp.export.to_npy(run, tmp_path / "run")
    else:
        done = jxp.export.to_npz(run, tmp_path / "run.npz")
        read = dict(np.load(done.path, allow_pickle=False))
    assert set(read) == set(done.columns) and done[1:4] == (16, 1, 8)
    assert list(tmp_path.iterdir()) == [done.path]
    assert json.loads(str(read["jaxplain"][0]))["fingerprints"] == {"params": "f00d"}
    assert not {"flags.offsets", "empty.offsets", "attribution.scores.shapes"} & set(read)

    def part(name, row):
        if f"{name}.offsets" not in read:
            return read[name][row]
        start, stop = read[f"{name}.offsets"][row : row + 2]
        values = read[name][start:stop]
        return values.reshape(read[f"{name}.shapes"][row]) if f"{name}.shapes" in read else values

    for row, record in enumerate(jxp.load(run)):
        assert bytes(part("error", row)).decode() == (record.error or "")
        notes = json.loads(bytes(part("notes", row)))
        assert notes.get("text") == record.notes.get("text") and notes.keys() == record.notes.keys()
        assert read["failed"][row] == (record.error is not None)
        if record.error is None:
            assert read["converged"][row] == record.converged
            for name, array in arrays_of(record).items():
                got = part(name, row)
                assert got.dtype == array.dtype and alike(got.tolist(), array.tolist()), name
        else:
            assert part("attribution.scores", row).size == 0


def test_groups_hold_what_they_may(run, monkeypatch):
    """In bytes, too: no group is larger than was asked for by more than one row."""
    whole = next(iter(reading.groups(reading.opened(run))))
    largest = max(shard.size for shard in reading.shards_of(reading.opened(run), 0))
    monkeypatch.setattr(reading, "BYTES", 2 * largest)
    parts = list(reading.groups(reading.opened(run)))
    assert len(whole.index) == 16 and len(parts) > 3
    assert max(len(part.index) for part in parts) <= 4
    assert [index for part in parts for index in part.index] == whole.index


@pytest.mark.parametrize("to", [jxp.export.to_parquet, jxp.export.to_npz])
def test_an_export_that_fails_leaves_what_was_there(run, tmp_path, monkeypatch, to):
    (tmp_path / "file").write_text("before")
    with pytest.raises(JaxplainError, match="not a run"):
        to(tmp_path, tmp_path / "file")
    with pytest.raises(JaxplainError, match="cannot be written"):
        to(run, tmp_path / "no" / "file")

    def broken(source):
        yield reading.picked(reading.shards_of(source, 0)[0], [0, 1])
        raise store.Damaged("a shard is damaged")

    for module in ("tables", "arrays"):
        monkeypatch.setattr(sys.modules[f"jaxplain.export.{module}"], "groups", broken)
    with pytest.raises(JaxplainError, match="a shard is damaged"):
        to(run, tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_table_of_records(run):
    records = list(jxp.load(run))
    table = jxp.export.to_table(records)
    check_table(table, run)
    # Records alone do not tell what other batches of theirs hold.
    assert str(table.schema.field("table").type) == "list<item: list<item: halffloat>>"
    schema = pa.schema(
        [("text", pa.large_string()), ("flags", pa.list_(pa.bool_(), 4)), ("absent", pa.int8())]
    )
    for some in (records, [r for r in records if r.error], []):
        made = jxp.export.to_table(some, schema=schema)
        assert made.schema == schema and made.num_rows == len(some)
        assert made["flags"].null_count == sum(r.error is not None for r in some)
    with pytest.raises(JaxplainError, match=r"text is string.*int32"):
        jxp.export.to_table(records, schema=pa.schema([("text", pa.int32())]))


def test_names():
    """Of a bare result, and of fields that are called as a record's are."""
    kind: Any = WordInformation
    found = kind(*np.ones(len(WordInformation._fields)))
    bare = jxp.export.to_numpy([jxp.Record(0, np.ones(2), {"result": "x"}, None)])
    assert bare["result"].shape == (1, 2) and bare["notes.result"][0] == "x"
    table = jxp.export.to_table([jxp.Record(0, found, {"error": 1}, None)])
    assert {"sigma", "result.converged", "converged", "notes.error"} <= set(table.column_names)
    twice = {"a.b": np.ones(1), "a": {"b": np.ones(1)}}
    with pytest.raises(JaxplainError, match=r"called a\.b"):
        jxp.export.to_table([jxp.Record(0, twice, {}, None)])


def test_without_pyarrow(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for to in (jxp.export.to_parquet, jxp.export.to_arrow):
        with pytest.raises(JaxplainError, match=r"jaxplain\[arrow\]"):
            to(run, tmp_path / "file")
    assert jxp.export.to_npz(run, tmp_path / "file.npz").rows == 16


def test_command_line(run, tmp_path, capsys):
    for ending in ("parquet", "pq", "arrow", "feather", "npz"):
        assert cli.call(["export", str(run), str(tmp_path / f"run.{ending}")]) == 0
        out, err = capsys.readouterr()
        assert "16 rows, 1 of them failed" in out and "8 examples are missing" in out
        assert "layers.0 was bfloat16 and is float32" in out and not err
        assert (tmp_path / f"run.{ending}").is_file()
    assert parquet.read_table(tmp_path / "run.pq").num_rows == 16
    for ending in (".csv", ""):
        assert cli.call(["export", str(run), str(tmp_path / f"run{ending}")]) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and ".parquet, .arrow or .npz" in err


def test_pandas_reads_it(run, tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    jxp.export.to_parquet(run, tmp_path / "run.parquet")
    frame = pandas.read_parquet(tmp_path / "run.parquet")
    record = next(iter(jxp.load(run)))
    np.testing.assert_array_equal(frame["attribution.scores"][0], record.result["attribution"][0])
    assert frame["text"][0] == record.notes["text"]
    assert len(pandas.DataFrame({"scores": jxp.export.to_numpy(run)["attribution.scores"]})) == 16
