"""Corpus curves: which words are in which slice, and what their means are made of."""

import numpy as np
import pytest

import jaxplain as jxp
from jaxplain.report import curves as corpus
from jaxplain.report import information, view, web, wordlists
from jaxplain.types import JaxplainError

INFO = {"options": {"layers": [0, 3]}, "classes": ["negative", "positive"]}


class WordInformation(dict):
    """Stands for the method's result: what the curves read is its fields."""

    __getattr__ = dict.__getitem__


def record(pieces, kept, *, converged=(True, True), logits=(0.0, 1.0), label="positive", scale=0.5):
    """A sentence whose word t keeps `kept[l][t]` in layer l; at the cap where that is 0."""
    ratio = -np.asarray(kept, np.float32)
    found = WordInformation(
        sigma=scale * np.exp(ratio),
        entropy=np.zeros_like(ratio),
        log_ratio=ratio,
        censored=ratio == 0,
        standard_error=np.full_like(ratio, 0.01),
        converged=np.array(converged),
    )
    notes = {"pieces": list(pieces), "label": label}
    return jxp.Record(0, {"information": found, "logits": np.array(logits)}, notes, None)


def held(found, *names):
    return [sorted(np.flatnonzero(found[name]).tolist()) for name in names]


def test_a_piece_is_in_the_group_of_its_word():
    pieces = "[CLS] The un ##dead and IT were n't ##ly - ... [SEP]".split()
    found = wordlists.membership(pieces)
    names = ("determiners", "conjunctions", "pronouns", "auxiliaries", "punctuation")
    assert held(found, *names) == [[1], [4], [5], [6], [9, 10]]
    assert held(found, "special tokens", "content words") == [[0, 11], [2, 3, 7, 8]]
    assert np.sum(list(found.values()), axis=0).tolist() == [1] * len(pieces)


def test_lists_of_yours_may_overlap_and_name_special_tokens():
    pieces = ["[CLS]", "un", "##dead", "film", "[SEP]"]
    found = wordlists.membership(pieces, {"a": ["undead", "film"], "b": ["Film"], "c": ["[SEP]"]})
    assert held(found, "a", "b", "c") == [[1, 2, 3], [3], [4]]
    assert held(found, "special tokens", "other words", "punctuation") == [[0, 4], [], []]


def test_no_word_is_in_two_lists():
    listed = [word for group in wordlists.FUNCTION_WORDS.values() for word in group]
    assert len(listed) == len(set(listed))


def test_places_count_words_and_not_pieces_or_points():
    pieces = "[CLS] a b ##b c d e f g h i j . [SEP]".split()  # ten words
    found = wordlists.places(pieces)
    names = ("first word", "last word", "0 to 20%", "20 to 40%", "80 to 100%")
    assert held(found, *names) == [[1], [11], [1, 2, 3], [4, 5], [10, 11]]
    assert not np.any([f[[0, 12, 13]] for f in found.values()])


def test_means_are_over_sentences_and_their_words():
    first = record(["a", "film", "."], [[1.0, 2.0, 3.0], [0.0, 2.0, 1.0]])
    second = record(["good", "film", "fun"], [[4.0, 4.0, 7.0], [1.0, 0.0, 2.0]], logits=(1.0, 0.0))
    found = corpus.curves([first, second], configuration=INFO)
    assert found.layers == (0, 3)
    np.testing.assert_allclose(found.overall.mean, [3.5, 1.0], rtol=1e-6)  # of 2 and 5, 1 and 1
    np.testing.assert_allclose(found.overall.standard_error, [1.5, 0.0], atol=1e-6)
    assert found.overall.words.tolist() == [6, 6]
    np.testing.assert_allclose(found.overall.censored, [0, 2 / 6])
    content = found.groups["content words"]
    np.testing.assert_allclose(content.mean, [3.5, 1.5], rtol=1e-6)  # of 2 and 5, 2 and 1
    assert content.words.tolist() == [4, 4]
    np.testing.assert_allclose(found.correctness["right"].mean, [2.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found.correctness["wrong"].mean, [5.0, 1.0], rtol=1e-6)
    spread = [(np.std([1, 2, 3]) + np.std([4, 4, 7])) / 2, np.std([0, 1, 2])]
    np.testing.assert_allclose(found.targeting.mean, spread, rtol=1e-5)  # float32 records
    assert found.kept == 7.0
    assert found.largest_error == pytest.approx(0.01)


def test_entropy_is_what_is_discarded_of_a_dimension():
    one = record(["a", "film"], [[1.0, 2.0], [0.0, 0.0]])
    found = corpus.curves([one], quantity="entropy", configuration=INFO)
    constant = 0.5 * np.log(2 * np.pi * np.e) + np.log(0.5)
    np.testing.assert_allclose(found.overall.mean, [constant - 1.5, constant], rtol=1e-6)


def test_layers_that_did_not_converge_are_counted_and_left_out():
    good = record(["a", "film"], [[1.0, 1.0], [1.0, 1.0]])
    bad = record(["no", "fun", "##ny"], [[3.0] * 3, [2.0] * 3], converged=(True, False))
    found = corpus.curves([good, bad], configuration=INFO)
    np.testing.assert_allclose(found.overall.mean, [2.0, 1.0])
    assert found.overall.sentences.tolist() == [2, 1]
    assert found.overall.words.tolist() == [5, 2]
    assert found.targeting.sentences.tolist() == [2, 1]
    assert found.unconverged.tolist() == [0, 1]
    assert found.unconverged_words.tolist() == [0, 3]
    assert found.converged == 0.75
    every = corpus.curves([good, bad], configuration=INFO, include_unconverged=True)
    np.testing.assert_allclose(every.overall.mean, [2.0, 1.5])
    assert every.included
    assert every.unconverged.tolist() == [0, 1]


def test_an_empty_slice_is_nan_of_no_words():
    found = corpus.curves([record(["a", "film"], [[1.0, 1.0], [1.0, 1.0]])], configuration=INFO)
    empty = found.groups["pronouns"]
    assert np.isnan(empty.mean).all()
    assert np.isnan(empty.censored).all()
    assert empty.sentences.tolist() == empty.words.tolist() == [0, 0]
    assert np.isnan(found.overall.standard_error).all()  # one sentence has none


def test_many_records_agree_with_a_plain_computation():
    rng = np.random.default_rng(0)
    kept = [rng.uniform(0, 3, (2, 4)) for _ in range(50)]
    found = corpus.curves([record("w x y z".split(), k) for k in kept], configuration=INFO)
    means = np.array([k.mean(axis=1) for k in kept])
    np.testing.assert_allclose(found.overall.mean, means.mean(axis=0), rtol=1e-5)  # float32 records
    error = means.std(axis=0, ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(found.overall.standard_error, error, rtol=1e-5)


def test_what_was_not_estimated_is_unknown():
    one = record(["a", "b"], [[1.0, 1.0], [1.0, 1.0]])
    blank = np.full((2, 2), np.nan, np.float32)
    one.result["information"]["standard_error"] = blank
    found = corpus.curves([one], configuration=INFO)
    assert np.isnan(found.largest_error)
    assert "largest standard error of log σ unknown" in information.summary(found)


def test_colours_span_what_is_there():
    part = lambda scores: view.Part("information", "", np.asarray(scores), ["a"])
    near = information.span([part([[3.0], [4.0]])])
    assert [information.step(k, near, 10) for k in (2.0, near.low, 3.5, near.high, 9.0)] == [
        0, 0, 5, 10, 10,
    ]  # fmt: skip
    assert information.ends_told(near)[0] == "3 or less"
    wide = information.span([part([[0.1], [4.0]])])
    assert wide.low == 0.0
    assert information.ends_told(wide)[0] == "0, forgotten,"
    assert information.step(1.0, information.Range(1.0, 1.0), 4) == 4
    assert information.step(0.0, information.Range(0.0, 0.0), 4) == 0


def test_a_page_holds_so_many_words_by_layers_and_says_so(monkeypatch):
    monkeypatch.setattr(view, "CELLS", 13)
    records = [record(["a", "b"], [[1.0, 1.0], [2.0, 2.0]]) for _ in range(5)]
    found = view.survey(records, INFO, limit=1000)
    assert len(found.views) == 3
    assert found.informed == 5
    page = web.render({"configuration": INFO, "status": "complete"}, found)
    assert "The first 3 of 5 explained examples are shown" in page


def test_refusals():
    one = record(["a"], [[1.0], [1.0]])
    with pytest.raises(JaxplainError, match="quantity must be kept or entropy, not 'loss'"):
        corpus.curves([one], quantity="loss")  # type: ignore[arg-type]
    with pytest.raises(JaxplainError, match="no record holds word information"):
        corpus.curves([jxp.Record(0, {"y": 1}, {}, None), jxp.Record(1, None, {}, "failed")])
