"""The corpus view against a slow replica: all values kept, then averaged."""

import html

import numpy as np
import pytest
from scipy import stats

import jaxplain as jxp
from jaxplain import report
from jaxplain.report.corpus import Mean, corpus
from jaxplain.types import Attribution, JaxplainError
from tests.made_runs import bars_record, image_record, text_record, write_run
from tests.test_report import CONFIGURATION, f32, tree_record


def whole_words(pieces, scores):
    """Pieces marked as BERT marks them, joined by hand."""
    found = []
    for piece, score in zip(pieces, scores, strict=True):
        if piece in ("[CLS]", "[SEP]"):
            continue
        if piece.startswith("##") and found:
            found[-1] = found[-1][0] + piece[2:], found[-1][1] + float(score)
        else:
            found.append((piece.removeprefix("##"), float(score)))
    return found


def replica(records, minimum, target=None):
    """Every word's mean, interval and count, from lists of all its examples' values."""
    values: dict[str, list[float]] = {}
    for record in records:
        if record.error or target not in (None, int(record.result["target"])):
            continue
        scores = record.result["attribution"].scores.astype(np.float64)
        places: dict[str, list[float]] = {}
        for word, score in whole_words(record.notes["pieces"], scores):
            places.setdefault(word.lower(), []).append(score)
        for word, found in places.items():
            values.setdefault(word, []).append(sum(found) / len(found))
    means = []
    for word, found in values.items():
        if len(found) >= minimum:
            half = float(stats.t.ppf(0.975, len(found) - 1) * float(stats.sem(found)))
            means.append(Mean(word, float(np.mean(found)), half, len(found)))
    return means, len(values)


def same(found, wanted):
    assert [(m.name, m.examples) for m in found] == [(m.name, m.examples) for m in wanted]
    for field in ("mean", "half"):
        got, want = ([getattr(m, field) for m in side] for side in (found, wanted))
        np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(3)
    return [text_record(k, rng) for k in range(300)]


@pytest.mark.parametrize(("minimum", "top"), [(5, 20), (2, 7), (40, 100)])
def test_words_are_averaged_over_examples(texts, minimum, top):
    found = corpus(texts, minimum=minimum, top=top, configuration=CONFIGURATION)
    means, distinct = replica(texts, minimum)
    ordered = sorted(means, key=lambda m: m.mean)
    assert (found.kind, found.distinct, found.counted) == ("words", distinct, len(means))
    assert found.examples == sum(not r.error for r in texts)
    same(found.overall.positive, [m for m in ordered[::-1][:top] if m.mean > 0])
    same(found.overall.negative, [m for m in ordered[:top] if m.mean < 0])
    assert found.overall.positive and found.overall.negative
    for target, name in enumerate(CONFIGURATION["classes"]):
        means = sorted(replica(texts, minimum, target)[0], key=lambda m: m.mean)
        same(found.classes[name].positive, [m for m in means[::-1][:top] if m.mean > 0])
        same(found.classes[name].negative, [m for m in means[:top] if m.mean < 0])


def test_a_run_is_read_whole_and_not_only_what_its_page_shows(texts, tmp_path):
    write_run(tmp_path / "run", texts)
    found = report.corpus(jxp.load(tmp_path / "run"))
    assert found == corpus(texts, configuration=CONFIGURATION)
    page = report.page(tmp_path / "run", limit=3).read_text("utf-8")
    assert f"Over all {found.examples} explained examples" in page
    assert all(html.escape(m.name) in page for m in found.overall.positive)


def test_a_word_that_stands_twice_in_an_example_counts_once():
    pieces = ["A", "a", "b"]
    records = [
        jxp.Record(k, Attribution(f32([1, 3, 10 + k]), f32(0), f32(0)), {"pieces": pieces}, None)
        for k in range(3)
    ]
    found = corpus(records, minimum=3)
    assert found.overall.positive[1] == Mean("a", 2.0, 0.0, 3)
    assert found.overall.positive[0].name == "b"
    assert found.overall.positive[0].half == pytest.approx(stats.t.ppf(0.975, 2) / np.sqrt(3))
    assert found.classes == {}  # no class is named
    assert corpus(records, minimum=4).counted == 0


def test_features_and_the_words_of_trees_are_averaged():
    rng = np.random.default_rng(4)
    rows = [bars_record(k, rng, features=3) for k in range(9)]
    found = corpus(rows, configuration=CONFIGURATION)
    each = np.stack([r.result["attribution"].scores for r in rows])
    scores = each.mean(axis=0, dtype=np.float64).tolist()
    means = {m.name: m.mean for side in found.overall for m in side}
    assert found.kind == "features" and set(found.classes) == {"negative", "positive"}
    for k in range(3):
        assert means[f"a feature with a long name <{k}>"] == pytest.approx(scores[k], rel=1e-6)
    trees = corpus([tree_record()] * 5)
    assert {m.name: m.mean for side in trees.overall for m in side} == {
        "not": 0.5, "<good>": 2.0, "film": -0.25,
    }  # fmt: skip


def test_images_of_one_size_have_mean_maps():
    rng = np.random.default_rng(5)
    images = [image_record(k, rng) for k in range(7)]
    found = corpus(images, configuration=CONFIGURATION)
    assert found.kind == "" and set(found.maps) == {"negative", "positive", "2"}
    mean, count = found.maps["negative"]
    scores = [r.result["attribution"].scores for r in images[::3]]
    wanted = np.mean(scores, axis=0, dtype=np.float64)
    assert count == 3
    np.testing.assert_allclose(mean, wanted, rtol=1e-6)
    assert corpus([*images, image_record(9, rng, side=5)]).maps == {}


def test_nothing_to_average_is_no_corpus_view():
    assert corpus([]).examples == 0
    with pytest.raises(JaxplainError, match="minimum must be at least 2"):
        corpus([], minimum=1)
