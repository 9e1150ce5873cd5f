"""Text files: what is read, what is refused and in which words; texts as examples."""

import hashlib
import json

import numpy as np
import pytest

from jaxplain.models.types import TextModel, Tokens
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
