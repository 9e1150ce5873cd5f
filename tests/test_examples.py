"""The examples run, at a small size, and what they leave on disk explains what it should."""

import json
import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from examples import digits, hierarchies_images, hierarchies_text, tabular
from jaxplain import models
from tests.helpers import quick_compile

pytestmark = pytest.mark.slow


def accuracy_of(printed: str) -> float:
    found = re.search(r"test accuracy ([\d.]+)%", printed)
    assert found, printed
    return float(found[1])


def test_digits(optimized, tmp_path, capsys):
    digits.main(out=tmp_path / "run", steps=8, epochs=6)
    printed = capsys.readouterr().out
    # 6 epochs give 98%, and 20 give 99%; guessing gives 10%.
    assert accuracy_of(printed) > 95
    assert "1797 of 1797 digits explained, 0 failed" in printed
    assert (tmp_path / "run" / "page.html").is_file()

    records = jxp.load(tmp_path / "run")
    assert len(records) == 1797
    assert {record.notes["label"] for record in records} == set("0123456789")
    right, gaps = 0, []
    for record in records:
        attribution, image = record.result["attribution"], record.result["image"]
        assert attribution.scores.shape == image.shape == (8, 8, 1)
        assert not attribution.scores[image == 0].any()  # where x is the baseline, nothing changed
        right += str(record.result["target"]) == record.notes["label"]
        gaps.append(abs(attribution.gap) / abs(attribution.scores.sum() - attribution.gap))
    assert right / len(records) > 0.95
    # 8 nodes across the kinks of a ReLU: the median digit misses 0.4% of f(x) - f(black).
    assert np.median(gaps) < 0.02


def test_tabular(tmp_path, capsys):
    tabular.main(out=tmp_path / "run", steps=16, updates=100)
    printed = capsys.readouterr().out
    assert accuracy_of(printed) > 93  # always "benign" gives 63%
    assert "569 of 569 patients explained, 0 failed" in printed
    assert (tmp_path / "run" / "page.html").is_file()

    record = jxp.load(tmp_path / "run")[0]
    assert len(record.notes["names"]) == len(record.result["attribution"].scores) == 30
    assert record.notes["names"][0] == "mean radius"
    # A smooth network: 16 nodes leave 8e-5 of sums up to 66, little more than float32 rounding.
    gaps = [r.result["attribution"].gap for r in jxp.load(tmp_path / "run")]
    assert np.max(np.abs(gaps)) < 1e-3


def leaves(nodes):
    """The units of a tree from a JSON file, in order."""
    for node in nodes:
        yield from leaves(node["children"]) if "children" in node else [node["unit"]]


# Of SST-2's test set, whose labels these are; the bundled sentences hold no such negation as clear.
SENTENCES = """sentence\tlabel
too bad the former murphy brown does n't pop reese back .\t0
she lists ingredients , but never mixes and stirs .\t0
a warm and funny film .\t1
"""


def test_hierarchies_of_sentences(tmp_path, capsys):
    (tmp_path / "some.tsv").write_text(SENTENCES)
    with quick_compile():
        hierarchies_text.main(out=tmp_path / "run", data=tmp_path / "some.tsv", limit=2, show=1)
    printed = capsys.readouterr().out
    assert "in 2 sentences one has not the sign of its words' sum" in printed
    assert "2 trees" in printed
    assert "every word is in the tree in 2, one group covers the sentence in 2" in printed
    assert {f.name for f in (tmp_path / "run").iterdir() if f.is_file()} == {
        *("page.html", "trees.json", "negation1.svg")
    }

    model = models.load("lstm")
    text = SENTENCES.splitlines()[1].split("\t")[0]
    tokens = model.tokenize(text)
    x, real = model.embed(model.params, tokens.ids), jnp.ones(len(tokens.ids), bool)
    f = lambda x: model.score(model.params, x, real) @ jnp.array([-1.0, 1.0])
    start, stop = tokens.pieces.index("does"), tokens.pieces.index("pop") + 1
    place = np.arange(len(tokens.ids))
    phrase = (place >= start) & (place < stop)
    masks = np.array([phrase, place >= 0, *(place[start:stop, None] == place)])[:, :, None]
    scores = np.asarray(jxp.group_scores(f, x, masks, rules=jxp.CD_LSTM).relevant)
    found = re.search(r"phrase (\S+), sum of its words (\S+)", printed)
    assert found
    # What is printed has two decimals.
    assert float(found[1]) == pytest.approx(scores[0], abs=0.006)
    assert float(found[2]) == pytest.approx(scores[2:].sum(), abs=0.006)
    assert scores[0] < 0 < scores[2:].sum()
    lines = [line for line in printed.splitlines() if line.endswith("does n't pop")]
    assert len(lines) == 1 and lines[0].startswith(found[1].replace("-", "−"))

    first, second = json.loads((tmp_path / "run" / "trees.json").read_text())
    assert (first["text"], first["label"]) == (text, "negative")
    assert first["output"] == pytest.approx(float(f(x)), abs=1e-5)
    (root,) = first["roots"]
    assert root["label"] == text and list(leaves([root])) == place.tolist()
    assert root["score"] == pytest.approx(float(scores[1]), abs=1e-5)  # rounding, of sums up to 3
    assert second["label"] == "negative" and not second["left"]


def test_search_for_negations():
    text = dict(table="a", line=3, pieces=["is", "n't", "very", "good", "or"], start=0, after=2)
    words = np.array([0.1, -0.6, 0.1, 0.9, 0.2, 7.0, 7.0])  # what comes after the end is padding
    phrases = np.array([-0.4, -0.2, -0.3, 7.0, 7.0])
    record = SimpleNamespace(result=dict(words=words, phrases=phrases))
    (found,), count, turned = hierarchies_text.search([text], [record])
    # "is n't very" and "is n't very good" end with their strongest word, and the last one does not.
    assert (found.start, found.stop, found.phrase) == (0, 4, -0.2)
    assert found.words == pytest.approx(0.5)
    assert (count, turned) == (2, 2)
    # "is n't very" has the sign of its words' sum, which is -0.4.
    record = SimpleNamespace(result=dict(words=words, phrases=np.abs(phrases)))
    (found,), count, turned = hierarchies_text.search([text], [record])
    assert (found.stop, count, turned) == (3, 2, 0)


def test_hierarchies_of_images(optimized, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("JAXPLAIN_DATA", raising=False)  # scikit-learn's digits, 8 pixels a side
    with quick_compile():
        hierarchies_images.main(out=tmp_path / "run", count=4, epochs=6)
    printed = capsys.readouterr().out
    assert accuracy_of(printed) > 90  # guessing gives 10%
    found = re.search(r"4 trees.*covers the ink in 4;.*ink to (\S+), .* logits to (\S+)\n", printed)
    assert found, printed
    # The tree's root is scored in one batch, and all the ink in another.
    assert float(found[1]) < 1e-4
    trees = json.loads((tmp_path / "run" / "trees.json").read_text())
    page = (tmp_path / "run" / "page.html").read_text()
    images = [record.result["image"] for record in jxp.load(tmp_path / "run")]
    for tree, image in zip(trees, images, strict=True):
        (root,) = tree["roots"]
        assert sorted(leaves([root])) == np.flatnonzero(image > 0).tolist()
        logits = dict(zip("0123456789", tree["logits"], strict=True))
        order = sorted(logits, key=logits.__getitem__)
        assert order[-2:] == [tree["other"], tree["predicted"]]
        difference = logits[tree["predicted"]] - logits[tree["other"]]
        assert abs(difference - root["score"]) <= 1.01 * float(found[2]) + 1e-4
        assert f"{tree['predicted']} rather than {tree['other']}, labelled {tree['label']}" in page
    assert page.count("the input</figcaption>") == 4
