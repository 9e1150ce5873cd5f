"""The page and the terminal: every number and every text gets there, and gets there whole."""

import base64
import io
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

import jaxplain as jxp
from jaxplain import report
from jaxplain.hierarchy import Agglomeration, Hierarchy
from jaxplain.report import certificate, heat, parts, png, view, web, words
from jaxplain.report.api import sentence
from jaxplain.types import (
    Attribution,
    DecomposedAttribution,
    JaxplainError,
    SampledAttribution,
)

CONFIGURATION = {
    "model": "toy",
    "method": "integrated_gradients",
    "options": {"steps": 4, "baseline": "zeros"},
    "data": {"name": "a<b>.tsv", "sha256": "00"},
    "target": "predicted",
    "classes": ["negative", "positive"],
}
INFO = {"configuration": CONFIGURATION, "status": "complete"}
EVIL = "<script>alert('1')</script>"


def f32(value) -> Any:
    return np.asarray(value, np.float32)


def text_record(index=0, pieces=("a", "fine", "film"), scores=(0.1, 0.5, -0.2), gap=0.0, **notes):
    scores = f32(scores)
    return jxp.Record(
        index,
        {
            "attribution": Attribution(scores, f32(2.5), f32(gap)),
            "logits": f32([0.0, 2.0]),
            "target": f32(1),
        },
        {"text": " ".join(pieces), "pieces": list(pieces), "label": "positive", **notes},
        None,
    )


def failed_record(index=0, error="the sentence is empty"):
    return jxp.Record(index, None, {}, error)


def render(records, info=INFO, limit=1000):
    return web.render(info, view.survey(records, info["configuration"], limit=limit))


class Page(HTMLParser):
    """What a browser would find: tokens with their scores, links, and text per tag."""

    def __init__(self, text):
        super().__init__()
        self.tokens, self.links, self.tags, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[k] for k in ("src", "href", "action") if k in attrs]
        if "data-v" in attrs:
            self.tokens.append([attrs["data-v"], attrs.get("class", ""), ""])

    def handle_data(self, data):
        if self.lasttag in ("style", "script"):
            return
        self.text += data
        if self.tokens and self.lasttag == "span" and not self.tokens[-1][2]:
            self.tokens[-1][2] = data


def test_tokens_carry_their_score_and_colour():
    page = Page(render([text_record(scores=(0.1, 0.5, -0.2))]))
    assert page.tokens == [["+0.1", "p2", "a"], ["+0.5", "p10", "fine"], ["−0.2", "m4", "film"]]
    for fact in ("positive", "88.1%", "✓", "f(x) +2.5", "1 example of a<b>.tsv"):
        assert fact in page.text, fact


def test_nothing_of_the_data_becomes_markup():
    record = text_record(
        pieces=(EVIL, '"><img src=x>', "&amp;"), truncated=EVIL, label=EVIL, text=EVIL
    )
    source = render([record, jxp.Record(1, None, {"text": EVIL}, EVIL)])
    page = Page(source)
    assert page.tags.count("script") == 2  # its own, and the data
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)
    assert data and "<" not in data[1] and EVIL in json.loads(data[1])["classes"]
    assert "img" not in page.tags
    assert [token[2] for token in page.tokens] == [EVIL, '"><img src=x>', "&amp;"]


def test_the_page_needs_no_network():
    image = jxp.Record(1, Attribution(np.ones((4, 4)), f32(1), f32(0)), {}, None)
    source = render([text_record(), image])
    assert all(link.startswith(("#", "data:")) for link in Page(source).links)
    assert Page(source).links
    assert "@import" not in source
    assert "url(" not in source
    assert not re.search(r"https?://", source)


def test_word_pieces_are_joined_and_special_tokens_dimmed():
    pieces = ("[CLS]", "un", "##bear", "##able", "##", "[SEP]")
    page = Page(render([text_record(pieces=pieces, scores=(0,) * 6)]))
    assert [t[2] for t in page.tokens] == ["[CLS]", "un", "bear", "able", "##", "[SEP]"]
    assert [t[1] for t in page.tokens] == ["s", "h", "g h", "g", "", "s"]
    found = words.words(["▁a", "▁fi", "ne", "<s>"])
    assert [(w.text, w.glued, w.special) for w in found] == [
        ("a", False, False), ("fi", False, False), ("ne", True, False), ("<s>", False, True),
    ]  # fmt: skip


def test_the_gap_is_a_share_of_what_the_scores_should_sum_to():
    seen = view.view(text_record(scores=(1.0, 2.0, -0.5), gap=0.5), CONFIGURATION)
    assert seen.change == 2.0
    assert seen.relative_gap == 0.25
    none = view.view(text_record(gap=np.nan), CONFIGURATION)
    assert none.gap is None
    assert none.relative_gap is None
    flat = view.view(text_record(scores=(1.0, -0.5, 0.0), gap=0.5), CONFIGURATION)
    assert flat.relative_gap == np.inf


def test_a_survey_counts_all_records_and_keeps_the_first():
    records = [text_record(i, gap=0.4 * 0.01 * i) for i in range(5)]
    records += [text_record(5, label="negative"), text_record(6, label="unheard of")]
    records += [text_record(7, truncated="only the first 3 tokens were read")]
    records += [failed_record(8), failed_record(9), failed_record(10, "NaN")]
    found = view.survey(records, CONFIGURATION, limit=3)
    assert [v.index for v in found.views] == [0, 1, 2]
    assert (found.examples, found.failed, found.truncated) == (11, 3, 1)
    assert (found.labelled, found.correct) == (7, 6)
    assert list(found.reasons.items()) == [("the sentence is empty", 2), ("NaN", 1)]
    assert len(found.gaps) == 8
    line = sentence(found, "1 s")
    assert "8 of 11 examples explained · 1 s · 85.7% predicted rightly" in line
    assert "3 failed · 1 truncated" in line
    page = Page(render(records, limit=3))
    assert "The first 3 of 8 explained examples are shown" in page.text
    assert "Failed: 3" in page.text
    assert "the sentence is empty" in page.text


def test_large_gaps_are_told_with_what_to_do():
    records = [text_record(0, gap=0.2), text_record(1)]
    advice = web.advice(view.survey(records, CONFIGURATION, limit=0), CONFIGURATION)
    assert advice is not None
    assert advice.startswith("1 of 2 examples has a completeness gap above 1%")
    assert "give --tolerance 0.01 or raise --steps or choose another --baseline" in advice
    assert advice in Page(render(records)).text
    assert web.advice(view.survey(records[1:], CONFIGURATION, limit=0), CONFIGURATION) is None
    far = [records[1]._replace(effort=17, converged=True), records[1]._replace(converged=False)]
    advice = web.advice(view.survey(far, CONFIGURATION, limit=0), CONFIGURATION)
    assert advice is not None
    assert advice.startswith("1 of 2 examples did not reach the tolerance: raise --steps, or take")


@pytest.mark.parametrize("gaps", [[0.0] * 3, [np.inf, 1e-12, 1.0], [1e5], [3e-4, 0.02]])
def test_histogram_counts_every_example(gaps):
    drawn = str(certificate.histogram(np.array(gaps)))
    assert sum(map(int, re.findall(r"<title>(\d+) examples", drawn))) == len(gaps)
    for x, width in re.findall(r'x="([-\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn):
        assert 0 <= float(x) <= float(x) + float(width) <= 560


def tree_record(pieces=("[CLS]", "not", "<good>", "film", "[SEP]")):
    """(not <good>) film between two special tokens, as a method gives it."""
    leaves: dict[str, Any] = dict(
        unit_scores=f32([0, 0.5, 2, -0.25, 0]),
        unit_parent=np.array([-1, 0, 0, 1, -1]),
        unit_level=np.array([0, 2, 1, 3, 0]),
        scores=f32([-4, -3, 0, 0, 0]),
        parent=np.array([1, -1, -1, -1, -1]),
        level=np.array([2, 3, 0, 0, 0]),
        count=np.array(2),
    )
    h = Hierarchy(**leaves)
    found = Agglomeration(h.unit_scores, f32(-2.5), f32(np.nan), h)
    result = {"attribution": found, "logits": f32([0, 2]), "target": f32(1), "other": f32(0)}
    return jxp.Record(0, result, {"text": "x", "pieces": list(pieces)}, None)


def test_a_tree_of_words_is_drawn_without_special_tokens():
    record = tree_record()
    seen = view.view(record, CONFIGURATION)
    assert [(p.kind, p.names) for p in seen.parts] == [("tree", ["not", "<good>", "film"])]
    page = Page(render([record]))
    assert page.tags.count("svg") == 1 and page.tokens == []
    for fact in ("explained positive over negative", "−4.00", "f(x) −2.5", "&lt;good&gt;"):
        assert (fact in page.text) == (fact[0] != "&"), fact
    assert "[CLS]" not in page.text
    out = io.StringIO()
    heat.examples([record], CONFIGURATION, Console(file=out, width=200))
    assert "explained positive over negative" in out.getvalue()
    assert "−3.00 not <good> film\n├ −4.00 not <good>\n" in out.getvalue()
    assert "+ for positive, − against positive" in out.getvalue()


def test_what_is_no_tree_of_words_is_shown_as_scores():
    whole = tree_record()
    h = whole.result["attribution"].hierarchy
    broken = [
        h._replace(unit_parent=np.array([-1, 0, 1, 0, -1])),  # a phrase with a gap
        h._replace(scores=f32([np.nan] * 5)),
    ]
    for other in broken:
        found = whole.result["attribution"]._replace(hierarchy=other)
        record = whole._replace(result=whole.result | {"attribution": found})
        assert [part.kind for part in view.view(record, CONFIGURATION).parts] == ["tokens"]
    bare = whole._replace(result=h)
    assert [part.kind for part in view.view(bare, CONFIGURATION).parts] == ["tree"]


def test_how_nearly_parts_sum_to_f_is_told():
    found = DecomposedAttribution(f32([1, -2, 0]), f32(1), f32(np.nan), f32(1), f32(3e-7))
    records = [text_record()._replace(result={"attribution": found})]
    records.append(records[0]._replace(result={"attribution": found._replace(residual=f32(0))}))
    assert "3.0e−07largest |relevant + irrelevant − f(x)|" in Page(render(records)).text
    assert "parts sum to f(x) within 3e-07" in sentence(view.survey(records, {}, limit=0))
    assert "relevant" not in Page(render([text_record()])).text


def test_scores_without_sign_get_a_one_sided_legend():
    page = Page(render([text_record(scores=(0.1, 0.2, 0.0), gap=np.nan)]))
    assert "most influence" in page.text
    assert "against" not in page.text
    assert "claims no sum" in page.text
    parts_of_a_sum = Page(render([text_record(scores=(0.1, 0.2, 0.0), gap=0.0)]))
    assert "against positive" in parts_of_a_sum.text


def test_standard_errors_are_shown():
    scores = f32([1, -2, 0])
    sampled = SampledAttribution(scores, f32(1), f32(0), scores**2 / 10, f32(9))
    record = text_record()._replace(result={"attribution": sampled})
    assert [t[0] for t in Page(render([record])).tokens] == ["+1 ± 0.1", "−2 ± 0.4", "+0 ± 0"]


def decode(uri):
    """Read back what `png` wrote: `[H, W, 3]`."""
    raw = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    at, body = 8, b""
    while at < len(raw):
        (size,) = struct.unpack(">I", raw[at : at + 4])
        kind, content = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]
        assert struct.unpack(">I", raw[at + 8 + size :][:4])[0] == zlib.crc32(kind + content)
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", content[:10])
            assert (depth, colour) == (8, 2)
        body += content if kind == b"IDAT" else b""
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_images_are_pictures_with_orange_above_zero_and_blue_below():
    scores = np.zeros((5, 7))
    scores[0, 0], scores[4, 6] = 2.0, -1.0
    pixels = decode(png.data_uri(png.heat(scores)))
    assert pixels.shape == (5, 7, 3)
    assert pixels[0, 0].tolist() == png.POSITIVE.tolist()
    assert pixels[2, 2].tolist() == png.NEUTRAL.tolist()
    red, _, blue = pixels[4, 6].astype(int)
    assert blue > red
    assert png.heat(np.zeros((2, 3))).tolist() == np.full((2, 3, 3), 247).tolist()
    assert max(png.heat(np.ones((3000, 20))).shape) <= png.LARGEST


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3), (3, 6, 5)])
def test_image_shaped_scores_become_pictures(shape):
    scores = np.ones(shape, np.float32)
    result = {"attribution": Attribution(scores, f32(1), f32(0)), "image": scores}
    (part,) = parts.parts(result, {}, {})
    assert part.kind == "image"
    assert part.scores.shape == (6, 5)
    assert (part.image is not None) == (shape[:2] == (6, 5))
    page = Page(render([jxp.Record(0, result, {}, None)]))
    assert page.tags.count("img") == 1 + (part.image is not None)


def test_tables_become_bars_by_name():
    def attribution(scores):
        return Attribution(scores, f32(1), f32(np.nan))

    row = attribution(f32([1, -3, 2]))
    named = jxp.Record(0, row, {"names": ["age", "pay <b>", "size"]}, None)
    page = Page(render([named]))
    assert "pay <b>−3size+2age+1" in page.text
    tree = attribution({"age": f32(1), "deep": [f32([2])]})
    (part,) = parts.parts(tree, {}, {})
    assert (part.kind, part.names, part.scores.tolist()) == ("bars", ["age", "deep.0"], [1, 2])
    unnamed = parts.parts(row, {}, {"names": ["too", "few"]})
    assert unnamed[0].names == ["0", "1", "2"]
    many = jxp.Record(0, attribution(np.arange(30.0)), {}, None)
    assert "and 10 smaller" in Page(render([many])).text


def test_terminal_marks_signs_where_there_are_no_colours():
    out = io.StringIO()
    records = [text_record(scores=(0.3, 0.5, -0.5)), failed_record(1)]
    heat.examples(records, CONFIGURATION, Console(file=out))
    assert "[+a] [+++fine] [---film]" in out.getvalue()
    assert "failed: the sentence is empty" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_result_without_scores_says_so():
    """As of `group_scores`, whose groups are the caller's own."""
    record = jxp.Record(0, {"tiles": jxp.Split(f32([1, 2]), f32([0, 1]))}, {}, None)
    out = io.StringIO()
    heat.examples([record], CONFIGURATION, Console(file=out))
    assert "jaxplain.load gives the arrays" in out.getvalue()
    assert "jaxplain.load gives the arrays" in Page(render([record])).text
    assert "jaxplain.load gives" not in Page(render([text_record()])).text


def test_terminal_colours_where_it_can(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", width=60)
    heat.examples([text_record(scores=(0.0, 0.5, -0.5))], CONFIGURATION, console)
    assert re.search(r"\x1b\[1;[^m]*48;2;230;126;0mfine", out.getvalue())
    assert re.search(r"\x1b\[1;[^m]*48;2;64;144;224mfilm", out.getvalue())
    assert "[+" not in out.getvalue()


def test_terminal_shows_images_and_tables():
    out = io.StringIO()
    image = Attribution(f32([[1, 0], [0, -1]]), f32(1), f32(0))
    table = Attribution(f32([1, -2]), f32(1), f32(0))
    records = [jxp.Record(0, image, {}, None), jxp.Record(1, table, {"names": ["x", "y"]}, None)]
    heat.examples(records, {}, Console(file=out))
    assert "+█  \n  -█" in out.getvalue()
    assert out.getvalue().index("y  ") < out.getvalue().index("x  ")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A small real run, one example of which fails."""

    def explain(params, example, key):
        return jxp.integrated_gradients(lambda x: jax.nn.sigmoid(x @ params), example["x"])

    rows = [{"x": f32([1, i, 2]), "names": ["a", "b", "c"]} for i in range(4)]
    rows[2]["x"][0] = np.nan
    out = tmp_path_factory.mktemp("runs") / "run"
    params = f32([1, -1, 0.5])
    jxp.run(explain, params, rows, out, key=jax.random.key(0), progress=False)
    return out


def test_a_run_directory_as_page_and_in_the_terminal(run_dir, tmp_path):
    path = report.page(run_dir)
    assert path == run_dir / "page.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert "Failed: 1" in page.text
    elsewhere = report.page(run_dir, tmp_path / "x.html", limit=1)
    assert "The first 1 of 3 explained examples" in Page(elsewhere.read_text("utf-8")).text
    out = io.StringIO()
    report.terminal(run_dir, limit=3, console=Console(file=out))
    assert [f"#{i}" in out.getvalue() for i in range(4)] == [True, True, True, False]
    assert "failed: " in out.getvalue()
    assert len(jxp.load(run_dir)) == 4  # the page in it does no harm


def test_reports_refuse_in_one_line(run_dir, tmp_path):
    with pytest.raises(JaxplainError, match="is not a run"):
        report.page(tmp_path / "nothing")
    with pytest.raises(JaxplainError, match=r"cannot be written: .* --page FILE"):
        report.page(run_dir, tmp_path / "no" / "folder.html")
    assert not list(tmp_path.iterdir())
