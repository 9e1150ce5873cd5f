"""Text files: what is read, what is refused and in which words; texts as examples."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxplain.models.types import TextModel, Tokens
from jaxplain.run.images import ImageFolder
from jaxplain.run.sources import TextSource, class_index, read_texts
from jaxplain.types import JaxplainError


def tokenize(text: str) -> Tokens:
    """Words by their length, between two special tokens; 12 tokens at most, as BERT cuts them."""
    words = text.split()
    pieces = ["[CLS]", *words[:10], "[SEP]"]
    ids = [1, *(2 + len(word) for word in words[:10]), 2]
    return Tokens(np.array(ids, np.int32), pieces, len(words) > 10)


def never(*_):
    raise AssertionError("a source computes nothing")


MODEL = TextModel(
    "toy",
    {},
    never,
    never,
    never,
    never,
    tokenize,
    ("negative", "positive"),
    12,
    0,
    3,
    None,
    (1, 2),
)


def put(folder, name: str, content: str | bytes):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'sentence\tlabel\nit \'s "fine\t1\n"so bad\t0\n'),
        ("a.tsv", '\n\nlabel\tsentence\r\n1\tit \'s "fine\r\n\r\n0\t"so bad'),
        ("a.TSV", b'\xef\xbb\xbfsentence\tlabel\nit \'s "fine\t1\n"so bad\t0\n'),
        ("a.csv", 'text,label\n"it \'s ""fine",1\n"""so bad",0\n'),
        ("a.csv", b'\xef\xbb\xbfid,Review,LABEL\r\n1,"it \'s ""fine",1\r\n\r\n2,"""so bad",0\r\n'),
        ("a.jsonl", '{"text": "it \'s \\"fine", "label": 1}\n\n{"label": 0, "text": "\\"so bad"}'),
        (
            "a.ndjson",
            '{"text": "it \'s \\"fine", "label": true}\n{"text": "\\"so bad","label":false}',
        ),
    ],
)
def test_reads_what_people_have(tmp_path, name, content):
    path = put(tmp_path, name, content)
    texts = read_texts(path)
    assert texts.texts == ["it 's \"fine", '"so bad']
    assert texts.labels == ["1", "0"]
    assert texts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_texts(path, limit=1).texts == texts.texts[:1]


def test_csv_keeps_line_breaks_and_commas_inside_quotes(tmp_path):
    path = put(tmp_path, "a.csv", 'text,label\n"one,\ntwo\r\nthree",pos\nplain,\n')
    texts = read_texts(path)
    assert texts.texts == ["one,\ntwo\r\nthree", "plain"]
    assert texts.labels == ["pos", None]


def test_columns_are_chosen_by_name_or_by_option(tmp_path):
    path = put(tmp_path, "a.tsv", "id\ttitle\tbody\tstars\n1\tshort\tlong text\t5\n")
    assert read_texts(path).texts == ["long text"]
    chosen = read_texts(path, text_column="title", label_column="stars")
    assert (chosen.texts, chosen.labels) == (["short"], ["5"])
    only = put(tmp_path, "b.tsv", "zeile\nein Satz\n")
    assert read_texts(only).texts == ["ein Satz"]
    assert read_texts(only).labels is None
    assert read_texts(put(tmp_path, "c.dat", "text\na\n"), format="tsv").texts == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.tsv", "", {}, "is empty"),
        ("a.tsv", " \n\n", {}, "is empty"),
        ("a.tsv", "text\tlabel\n", {}, "no rows"),
        (
            "a.tsv",
            "text\tlabel\nfine\t1\nbad\n",
            {},
            "line 3: 1 fields, and the first line names 2",
        ),
        ("a.tsv", "text\tlabel\na\tb\t1\n", {}, "line 2: 3 fields"),
        ("a.tsv", "text\ttext\na\tb\n", {}, "names a column twice"),
        ("a.tsv", "foo\tbar\na\tb\n", {}, "columns foo, bar, and none .* --text-column foo"),
        ("a.tsv", "foo\tbar\na\tb\n", {"text_column": "fooo"}, "has foo, bar; did you mean foo"),
        ("a.tsv", "text\tbar\na\tb\n", {"label_column": "y"}, "no column 'y' .*--label-column"),
        ("a.tsv", b"text\nfine\nb\xe4d\n", {}, r"not UTF-8 \(line 3, byte 11\)"),
        ("a.csv", 'text,label\n"never closed,1\nb,2\n', {}, "line 3: unexpected end of data"),
        ("a.csv", 'text,label\n"a" b,1\n', {}, "line 2: .* mend the quotes"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', {}, "line 2 is not JSON: Expecting value"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', {}, "line 2 is not a JSON object"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', {}, "line 2: text is 3, not a string"),
        ("a.jsonl", '{"text": "a"}\n{"label": 3}\n', {}, "line 2: text is null, not a string"),
        ("a.txt", "text\na\n", {}, "ends in .txt: .* --format tsv"),
        ("a.tsv", "text\na\n", {"format": "xml"}, "format 'xml' is unknown"),
        ("a.tsv", "text\na\n", {"limit": 0}, "limit must be at least 1"),
    ],
)
def test_refuses_in_one_line(tmp_path, name, content, options, message):
    with pytest.raises(JaxplainError, match=message) as error:
        read_texts(put(tmp_path, name, content), **options)
    assert "\n" not in str(error.value)


def test_refuses_what_is_no_file(tmp_path):
    with pytest.raises(JaxplainError, match="does not exist"):
        read_texts(tmp_path / "none.tsv")
    with pytest.raises(JaxplainError, match="is a directory"):
        read_texts(tmp_path, format="tsv")


def test_labels_by_name_or_number():
    classes = ("negative", "positive")
    assert [class_index(s, classes) for s in ("0", "1.0", " Positive ", "NEGATIVE")] == [0, 1, 1, 0]
    assert [class_index(s, classes) for s in ("2", "-1", "0.5", "great", "nan", "")] == [None] * 6


def test_examples_are_made_when_asked_for():
    source = TextSource(
        ["a fine film", "", " \t", "x " * 40, "odd"], ["1", "0", "0", "0", "?"], MODEL
    )
    assert len(source) == 5
    first = source[0]
    np.testing.assert_array_equal(first["ids"], [1, 3, 6, 6, 2])
    assert first["ids"].dtype == np.int32
    assert first["mask"].tolist() == [True] * 5
    assert (first["target"], first["text"], first["label"]) == (-1, "a fine film", "positive")
    assert first["pieces"] == ["[CLS]", "a", "fine", "film", "[SEP]"]
    assert first["truncated"] is None
    assert source[3]["truncated"] == "only the first 12 tokens were read"
    assert source[4]["label"] == "?"
    for empty in (1, 2):
        with pytest.raises(JaxplainError, match="the sentence is empty"):
            source[empty]


def test_shorter_than_the_model_keeps_the_last_special_token():
    cut = TextSource(["one two three four"], None, MODEL, max_length=4)[0]
    assert cut["pieces"] == ["[CLS]", "one", "two", "[SEP]"]
    assert cut["ids"].tolist() == [1, 5, 5, 2]
    assert cut["truncated"] == "only the first 4 tokens were read"
    for length in (0, 2, 13):
        with pytest.raises(JaxplainError, match="between 3 and 12 tokens for toy"):
            TextSource(["a"], None, MODEL, max_length=length)


def test_targets():
    labels = ["0", "positive"]
    texts = ["a", "b"]
    pick = lambda target: [
        int(TextSource(texts, labels, MODEL, target=target)[i]["target"]) for i in (0, 1)
    ]
    assert pick("predicted") == [-1, -1]
    assert pick("label") == [0, 1]
    assert pick("Positive") == [1, 1]
    assert pick("0") == [0, 0]
    with pytest.raises(JaxplainError, match="'2' is no class of toy"):
        pick("2")
    with pytest.raises(JaxplainError, match="no label column"):
        TextSource(texts, None, MODEL, target="label")
    with pytest.raises(JaxplainError, match="row 2 has label 'great'"):
        TextSource(texts, ["1", "great"], MODEL, target="label")


def test_a_million_rows_are_not_tokenised_up_front():
    class Lazy(list):
        def __getitem__(self, index):
            raise AssertionError("read too early")

    assert len(TextSource(Lazy(["a"] * 10), None, MODEL)) == 10


def test_jsonl_rows_may_hold_other_things(tmp_path):
    row = {"text": "a", "meta": {"deep": [1, 2]}, "label": None}
    texts = read_texts(put(tmp_path, "a.jsonl", json.dumps(row) + "\r\n"))
    assert (texts.texts, texts.labels) == (["a"], [None])


def table_file(path, columns, *, kind="file"):
    """Write a Parquet, a Feather or an Arrow stream file."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table(columns)
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, path, row_group_size=2)
    else:
        writer = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with writer(path, table.schema) as out:
            out.write_table(table, max_chunksize=2)
    return path


ROWS = {"stars": [5, 1, 3], "review": ["fine", "so bad", "odd"], "label": [1, 0, None]}


@pytest.mark.parametrize(
    ("name", "kind"), [("a.parquet", ""), ("a.feather", "file"), ("a.arrow", "stream")]
)
def test_reads_tables_of_columns(tmp_path, name, kind):
    path = table_file(tmp_path / name, ROWS, kind=kind)
    texts = read_texts(path)
    assert texts.texts == ["fine", "so bad", "odd"]
    assert texts.labels == ["1", "0", None]
    assert texts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_texts(path, limit=2, label_column="stars").labels == ["5", "1"]
    assert read_texts(path, limit=3).texts == texts.texts
    renamed = path.rename(tmp_path / "a.dat")
    kind = "parquet" if name == "a.parquet" else "arrow"
    assert read_texts(renamed, format=kind, text_column="review", limit=1).texts == ["fine"]
    same = read_texts(renamed, format=kind, text_column="review", label_column="review")
    assert same.labels == same.texts


def test_other_columns_are_not_read(tmp_path):
    """A column that is damaged on disk does no harm as long as it is not asked for."""
    path = table_file(tmp_path / "a.parquet", {"text": ["fine"] * 3, "junk": ["x" * 99] * 3})
    raw = path.read_bytes()
    at = raw.index(b"x" * 20)
    path.write_bytes(raw[:at] + b"\xff" * 20 + raw[at + 20 :])
    assert read_texts(path).texts == ["fine"] * 3
    with pytest.raises(JaxplainError, match="is damaged, or no Parquet file"):
        at = raw.index(b"fine")
        path.write_bytes(raw[: at - 20] + b"\xff" * 24 + raw[at + 4 :])
        read_texts(path)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"foo": ["a"], "bar": ["b"]}, {}, "columns foo, bar, and none .* --text-column foo"),
        ({"text": ["a"]}, {"label_column": "y"}, "no column 'y' .*--label-column"),
        ({"text": ["a", None]}, {}, "row 2: text is null, not a string"),
        ({"text": [b"a"]}, {}, "row 1: text is .*, not a string"),
        ({"text": []}, {}, "no rows"),
    ],
)
def test_tables_refuse_in_one_line(tmp_path, columns, options, message):
    for name in ("a.parquet", "a.feather"):
        with pytest.raises(JaxplainError, match=message) as error:
            read_texts(table_file(tmp_path / name, columns), **options)
        assert "\n" not in str(error.value)


def test_files_that_are_no_tables(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(JaxplainError, match="is damaged, or no"):
            read_texts(put(tmp_path, name, "text\nfine\n"))
        with pytest.raises(JaxplainError, match="does not exist"):
            read_texts(tmp_path / f"none.{name}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(JaxplainError, match=r"pip install 'jaxplain\[arrow\]'"):
        read_texts(tmp_path / "a.parquet")


@pytest.fixture
def folder(tmp_path):
    """Two classes, an image that is none, and files that are no images."""
    from PIL import Image

    for name, size, colour in (("cat/b.png", (8, 4), "red"), ("ant/a.JPG", (4, 8), "white")):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", size, colour).save(tmp_path / name)
    put(tmp_path, "cat/broken.png", (tmp_path / "cat" / "b.png").read_bytes()[:45])
    put(tmp_path, "cat/text.png", "not an image")
    put(tmp_path, "cat/notes.txt", "no image")
    put(tmp_path, ".hidden.png", "x")
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    return tmp_path


def test_a_folder_of_images(folder):
    source = ImageFolder(folder, size=4, mean=(0.5, 0, 0), std=(0.5, 1, 1))
    names = ["ant/a.JPG", "cat/b.png", "cat/broken.png", "cat/text.png", "deep.png"]
    assert [file.as_posix() for file in source.files] == names
    assert source.labels == ["ant", "cat", "cat", "cat", None]
    assert (len(source), source.classes) == (5, ["ant", "cat"])
    first = source[1]
    assert (first["file"], first["label"]) == ("cat/b.png", "cat")
    assert first["x"].dtype == np.float32
    np.testing.assert_array_equal(
        first["x"], np.broadcast_to(np.array([1, 0, 0], np.float32), (4, 4, 3))
    )
    for index, what in (
        (2, "cannot be read as an image"),
        (3, "no image"),
        (4, "more than 8 bits"),
    ):
        with pytest.raises(JaxplainError, match=what) as error:
            source[index]
        assert source.files[index].as_posix() in str(error.value)
    grey = ImageFolder(folder, channels=1, scale=1)[1]["x"]
    assert grey.shape == (4, 8, 1) and (grey == 76).all()  # red's share of luminance, ITU-R 601
    assert ImageFolder(folder, size=(2, 6))[0]["x"].shape == (2, 6, 3)


def test_resize_then_cut_the_middle(tmp_path):
    from PIL import Image

    ramp = np.zeros((8, 16, 3), np.uint8)
    ramp[:, 4:12] = 255
    Image.fromarray(ramp).save(tmp_path / "a.png")
    whole = ImageFolder(tmp_path, size=8)[0]["x"]
    assert (whole == 1).all()  # 8 of 16 columns, from the middle
    cut = ImageFolder(tmp_path, size=2, resize=4)[0]["x"]
    assert cut.shape == (2, 2, 3) and (cut > 0.9).all()
    assert ImageFolder(tmp_path)[0]["x"].shape == (8, 16, 3)


def test_folders_refuse_in_one_line(folder, monkeypatch):
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (folder / "none", {}, "does not exist"),
        (folder / "cat" / "b.png", {}, "is no folder"),
        (folder / "cat", {"channels": 2}, "channels must be 1, 3 or 4"),
        (folder, {"mean": (1, 2)}, "mean must be one number or 3"),
        (folder, {"std": 0}, "std must be above 0"),
        (folder, {"size": 0}, "size must be"),
        (folder, {"resize": 9}, "resize must be at least size"),
    ]
    for path, options, message in cases:
        with pytest.raises(JaxplainError, match=message):
            ImageFolder(path, **options)
    (folder / "empty").mkdir()
    with pytest.raises(JaxplainError, match="has no image in it"):
        ImageFolder(folder / "empty")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(JaxplainError, match=r"pip install 'jaxplain\[images\]'"):
        ImageFolder(folder)[0]
