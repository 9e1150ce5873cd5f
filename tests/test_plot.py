"""In a notebook: what figures draw, in which colour and where, and what runs and records say."""

import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

import jaxplain as jxp
from jaxplain import plot
from jaxplain.run.packing import Record

WORDS = ["[CLS]", "not", "un", "##clear", "[SEP]"]
SCORES = np.array([0.0, 2.0, -1.0, -4.0, 0.5])
RNG = np.random.default_rng(0)


def record(result, **notes):
    return Record(3, result, notes, None)


def attribution(scores, gap=0.0):
    return jxp.Attribution(np.asarray(scores), jnp.float32(1.5), jnp.float32(gap))


def drawn(figure) -> Any:
    """Each word with the colour behind it."""
    return {t.get_text(): to_rgb(t.get_bbox_patch().get_facecolor()) for t in figure.axes[0].texts}


def is_orange(colour):
    return colour[0] > colour[1] > colour[2]


def is_blue(colour):
    return colour[2] > colour[1] > colour[0]


def test_text():
    figure = plot.text(SCORES, WORDS)
    colours = drawn(figure)
    assert list(colours) == ["[CLS]", "not", "un", "clear", "[SEP]"]
    assert is_orange(colours["not"]) and is_blue(colours["un"]) and is_blue(colours["clear"])
    assert np.ptp(colours["[CLS]"]) < 1e-12  # no score, no colour
    saturation = {word: max(c) - min(c) for word, c in colours.items()}
    assert saturation["clear"] > 3 * saturation["un"] > 0
    # Half the magnitude, half the way to full colour.
    full = np.array(drawn(plot.text(-SCORES, WORDS))["clear"])
    neutral = np.array(colours["[CLS]"])
    # A colour map has 257 steps.
    np.testing.assert_allclose(colours["not"], (full + neutral) / 2, atol=2 / 256)
    labels = [t.get_text() for t in figure.axes[1].get_xticklabels()]
    assert labels == ["−4", "0", "+4"]


def test_words_stand_in_lines():
    words = [f"word{i}" for i in range(40)] + ["##s"]
    figure = plot.text(np.zeros(41), words, title="a title", width=4)
    title, *texts = figure.axes[0].texts
    assert title.get_text() == "a title"
    places = np.array([t.get_position() for t in texts])
    lines = np.unique(places[:, 1])
    assert len(lines) > 3 and lines[0] > title.get_position()[1]
    for line in lines:  # from left to right, and none over the edge
        assert np.all(np.diff(places[places[:, 1] == line, 0]) > 0)
    assert places[:, 0].max() < 4 * 72
    assert places[-1, 1] == places[-2, 1]  # a piece stays with its word


@pytest.mark.parametrize(
    ("sign", "want"),
    [
        ("positive", [0.0, 2.0, 0.0, 0.0, 0.5]),
        ("negative", [0.0, 0.0, -1.0, -4.0, 0.0]),
        ("absolute", [0.0, 2.0, 1.0, 4.0, 0.5]),
    ],
)
def test_signs(sign, want):
    figure = plot.image(SCORES[None], sign=sign, outliers=0)
    heat = figure.axes[0].images[0]
    np.testing.assert_array_equal(heat.get_array(), [want])
    low, high = heat.get_clim()
    assert (low, high) == (min(want), max(want))
    colours = heat.to_rgba(np.array([want]))[0]
    assert is_blue(colours[3]) == (sign == "negative")
    assert is_orange(colours[1]) == (sign != "negative")
    with pytest.raises(jxp.JaxplainError, match="sign must be one of all, positive"):
        plot.image(SCORES[None], sign="absolute_value")  # type: ignore[arg-type]


def test_image_with_its_scores():
    scores, pixels = RNG.normal(size=(6, 4, 3)), RNG.uniform(size=(6, 4, 3))
    figure = plot.image(scores, pixels, outliers=0, title="for 3")
    left, right, _ = figure.axes
    heat = right.images[0]
    np.testing.assert_allclose(np.asarray(heat.get_array()), scores.sum(-1))
    assert heat.get_clim() == (-np.abs(scores.sum(-1)).max(), np.abs(scores.sum(-1)).max())
    shown = np.asarray(left.images[0].get_array())
    assert shown.shape == (6, 4, 3) and right.get_title() == "for 3"
    grey = np.corrcoef(shown.ravel(), pixels.ravel())[0, 1]
    assert grey > 0.999  # the image, its range stretched
    # Channels first, as others have them.
    other = plot.image(np.moveaxis(RNG.normal(size=(6, 7, 3)), -1, 0), RNG.uniform(size=(3, 6, 7)))
    assert np.asarray(other.axes[1].images[0].get_array()).shape == (6, 7)


def test_scores_over_the_image():
    scores = np.array([[0.0, 1.0], [-2.0, 4.0]])
    figure = plot.image(scores, np.eye(2), overlay=0.8, outliers=0)
    under, over = figure.axes[0].images
    alpha: Any = over.get_alpha()
    np.testing.assert_allclose(alpha, 0.8 * np.abs(scores) / 4)
    assert under.get_extent() == over.get_extent()
    with pytest.raises(jxp.JaxplainError, match="give image="):
        plot.image(scores, overlay=0.5)
    with pytest.raises(jxp.JaxplainError, match="share from 0 to 1"):
        plot.image(scores, np.eye(2), overlay=50)


def captum_threshold(values, percentile):
    """Captum's `_cumulative_sum_threshold`: where the sorted magnitudes' sum reaches a share."""
    ordered = np.sort(np.abs(values).ravel())
    reached = np.cumsum(ordered)
    return ordered[np.where(reached >= reached[-1] * 0.01 * percentile)[0][0]]


def test_outliers():
    scores = np.random.default_rng(1).normal(size=(50, 50)) ** 3
    for outliers in (2.0, 10.0):
        high = plot.image(scores, outliers=outliers).axes[0].images[0].get_clim()[1]
        assert high == captum_threshold(scores, 100 - outliers) < np.abs(scores).max()
    heat = plot.image(scores, outliers=10.0).axes[0].images[0]
    largest = heat.to_rgba(np.array([heat.get_clim()[1], 1e9]))
    np.testing.assert_array_equal(largest[0], largest[1])  # all beyond is in full colour
    with pytest.raises(jxp.JaxplainError, match="percentage from 0"):
        plot.image(scores, outliers=100)
    assert plot.image(np.zeros((3, 3))).axes[0].images[0].get_clim() == (-1, 1)


def bars(figure) -> Any:
    axes = figure.axes[0]
    names = [t.get_text() for t in axes.get_yticklabels()][::-1]  # the first bar is on top
    return {names[round(b.get_y() + b.get_height() / 2)]: b.get_width() for b in axes.patches}


def test_bars():
    scores = np.array([0.1, -3.0, 2.0, 0.4, -0.2])
    figure = plot.bar(scores, list("abcde"), top=2)
    shown = bars(figure)
    assert list(shown) == ["b", "c", "sum of 3 others"]
    assert list(shown.values()) == pytest.approx([-3.0, 2.0, 0.3])
    assert sum(shown.values()) == pytest.approx(scores.sum())
    colours = [to_rgb(patch.get_facecolor()) for patch in figure.axes[0].patches]
    assert is_blue(colours[0]) and is_orange(colours[1]) and is_orange(colours[2])
    assert [t.get_text() for t in figure.axes[0].texts] == ["−3", "+2", "+0.3"]
    assert list(bars(plot.bar(scores))) == ["1", "2", "3", "4", "0"]
    assert bars(plot.bar(scores, list("abcde"), sign="positive")) == {"c": 2.0, "d": 0.4, "a": 0.1}
    absolute = bars(plot.bar(scores, list("abcde"), sign="absolute", top=1))
    assert absolute == pytest.approx({"b": 3.0, "sum of 4 others": 2.7})


def test_bars_of_many_examples():
    scores = np.array([[1.0, -2.0], [-3.0, 0.0]])
    figure = plot.bar(scores, ["a", "b"])
    assert bars(figure) == {"a": 2.0, "b": 1.0}
    assert figure.axes[0].get_xlabel() == "mean magnitude over 2 examples"


def test_errors_are_lines():
    found = jxp.SampledAttribution(
        np.array([1.0, -2.0, 0.1]),
        jnp.float32(0),
        jnp.float32(0),
        np.array([0.1, 0.2, 0.3]),
        jnp.int32(8),
    )
    figure = plot.bar(found, list("abc"), top=2)
    (lines,) = figure.axes[0].collections
    assert isinstance(lines, LineCollection)
    ends = sorted(tuple(segment[:, 0]) for segment in lines.get_segments())
    want = [(-2.2, -1.8), (0.1, 0.1), (0.9, 1.1)]
    np.testing.assert_allclose(ends, want)


def test_records():
    notes = dict(pieces=WORDS, text="not unclear")
    figure = plot.text(record({"attribution": attribution(SCORES[:, None] * np.ones(2))}, **notes))
    assert list(drawn(figure)) == ["[CLS]", "not", "un", "clear", "[SEP]"]
    assert figure.axes[1].get_xticklabels()[-1].get_text() == "+8"
    assert bars(plot.bar(record(attribution(SCORES), **notes), top=1))["##clear"] == -4
    pixels = RNG.uniform(size=(4, 5))
    held = record({"attribution": attribution(RNG.normal(size=(4, 5))), "image": pixels})
    assert len(plot.image(held).axes) == 3
    names = [f"column {i}" for i in range(5)]
    assert set(bars(plot.bar(record(attribution(SCORES), names=names)))) == set(names)
    assert set(bars(plot.bar(record(attribution(SCORES)), names))) == set(names)
    several = record(attribution(0.0)._replace(scores={"a": SCORES, "b": -SCORES}))
    assert bars(plot.bar(several, part="b"))["3"] == 4


def test_what_cannot_be_drawn():
    with pytest.raises(jxp.JaxplainError, match="5 words for 4 scores"):
        plot.text(SCORES[:4], WORDS)
    with pytest.raises(jxp.JaxplainError, match="example 3 failed, and has no scores: too long"):
        plot.text(Record(3, None, {}, "too long"))
    several = record(attribution(0.0)._replace(scores={"a": SCORES, "b": SCORES}))
    with pytest.raises(jxp.JaxplainError, match=r"holds 'a' \(bars\), 'b' \(bars\): say which"):
        plot.bar(several)
    with pytest.raises(jxp.JaxplainError, match="scores of 'a', 'b': choose by part="):
        plot.bar(attribution(0.0)._replace(scores={"a": SCORES, "b": SCORES}))
    with pytest.raises(jxp.JaxplainError, match="draw image"):
        plot.image(record(attribution(SCORES)))
    with pytest.raises(jxp.JaxplainError, match=r"the image is \[3, 3\] and the scores are"):
        plot.image(np.zeros((2, 2)), np.zeros((3, 3)))
    with pytest.raises(jxp.JaxplainError, match=r"not \[2, 2, 2, 2\]"):
        plot.image(np.zeros((2, 2, 2, 2)))
    with pytest.raises(jxp.JaxplainError, match="2 names for 5 scores"):
        plot.bar(SCORES, ["a", "b"])
    with pytest.raises(jxp.JaxplainError, match="top must be a whole number"):
        plot.bar(SCORES, top=0)


def test_shows_itself():
    assert plot.bar(SCORES)._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    def explain(params, example, key):
        return jxp.input_x_gradient(lambda x: jnp.log(x).sum(), example["x"])

    out = tmp_path_factory.mktemp("notebook") / "run"
    examples = [{"x": np.full(8, n, "f4"), "text": f"a <b> & {n}"} for n in range(7)]
    jxp.run(explain, None, examples, out, key=jax.random.key(0), configuration={"method": "mine"})
    return jxp.load(out)


def tables(html):
    """Rows of cells of each table; raises where a tag is left open."""
    tree = ElementTree.fromstring(f"<div>{html}</div>")
    return [
        [[cell.text or "" for cell in row] for row in table.iter("tr")]
        for table in tree.iter("table")
    ]


def test_a_run_shows_itself(records):
    about, first = tables(records._repr_html_())
    assert ["method", "mine"] in about and ["failed", "1"] in about
    assert ["examples", "7 of 7, complete"] in about
    assert not any(row[0] == "gap" for row in about)  # this method claims none
    head, *rows = first
    assert len(rows) == 5 and "and 2 more" in records._repr_html_()
    shown = [dict(zip(head, row, strict=True)) for row in rows]
    assert shown[2]["text"] == "a <b> & 2" and shown[2]["scores"] == "[8], 1 to 1"
    assert float(shown[2]["output"]) == pytest.approx(8 * np.log(2), rel=1e-3)  # 4 digits
    assert "infinity" in shown[0]["failed"] and not shown[0]["output"] and not shown[2]["failed"]


def test_a_record_shows_itself(records):
    notes, arrays = tables(records[3]._repr_html_())
    assert notes == [["example", "3"], ["text", "a <b> & 3"]]
    assert ["scores", "float32[8]", "1 to 1"] in arrays and ["gap", "float32[]", "nan"] in arrays
    (failed,) = tables(records[0]._repr_html_())
    assert failed[1][0] == "failed" and "infinity" in failed[1][1]
    late = record(None, pieces=["not", "<s>"])._replace(effort=64, converged=False)
    (rows,) = tables(late._repr_html_())
    assert rows[1:] == [["pieces", "not <s>"], ["effort", "64"], ["converged", "False"]]
    (rows,) = tables(record(None, text="word " * 100)._repr_html_())
    assert len(rows[1][1]) == 80 and rows[1][1].endswith("…")


def test_matplotlib_is_imported_only_to_draw():
    lines = [
        "import sys, jaxplain, numpy",
        "assert 'matplotlib' not in sys.modules and 'flax' not in sys.modules",
        "sys.modules['matplotlib'] = None",  # as if it were not installed
        "jaxplain.plot.bar(numpy.ones(2))",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert "pip install 'jaxplain[plot]'" in done.stderr
