"""The examples of word information run at a small size, and their numbers are what they say."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from examples import compare_models, measures, reversal, reversal_model
from examples.compare_findings import FINDINGS, concept_kept, difference, judge
from examples.compare_reading import (
    PLACES,
    Concept,
    Reading,
    neighbours,
    read,
    sentiment_words,
)
from jaxplain import models
from tests.helpers import close, quick_compile

pytestmark = pytest.mark.slow


def test_the_network_gives_back_in_reverse_what_noise_leaves_it():
    params = reversal_model.initialise(jax.random.key(0), layers=2)
    ids = jnp.arange(reversal_model.LENGTH)
    x = params["embedding"][ids]
    quiet = reversal_model.decoder_states(params, x)
    assert quiet.shape == (2, reversal_model.LENGTH, reversal_model.DEPTH)
    noise = jnp.zeros(quiet.shape).at[1, 3].set(1)  # of the upper layer, at the fourth step
    with quick_compile():
        loud = reversal_model.decoder_states(params, x, noise)
    close(loud[0], quiet[0])
    close(loud[1, :3], quiet[1, :3])
    close(loud[1, 3], quiet[1, 3] + 1)
    assert (jnp.abs(loud[1, 4:] - quiet[1, 4:]).max(axis=-1) > 0.01).all()


def test_reversal(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    with quick_compile():
        reversal.main(out=tmp_path / "run", updates=30, sequences=2, steps=1, layers=1)
    printed = capsys.readouterr().out
    found = re.search(r"([\d.]+)% of words right", printed)
    # Guessing gives 8%; 30 updates give 16% or so, of the words that come first.
    assert found and float(found[1]) > 10
    rows = json.loads((tmp_path / "run" / "numbers.json").read_text())
    assert set(rows) == {*reversal.METHODS, "the truth", "the probe"}
    (truth,), (probe,) = rows["the truth"], rows["the probe"]
    assert truth["needed, one state"] == truth["needed, all steps"] == 1
    # One word of 8 changes between steps.
    assert truth["steps, variation %"] == pytest.approx(100 / 8)
    assert probe["readable"] == pytest.approx(1)
    for name in reversal.METHODS:
        assert len(rows[name]) == 2
        for row in rows[name]:
            assert 0 <= row["needed, one state"] <= 1 and np.isnan(row["layers, variation %"])
    assert (tmp_path / "run" / "reversal.png").stat().st_size < 150_000


def test_baselines_of_a_state_that_holds_one_word_each():
    """A decoder whose state at step t is word t alone, in its first entries."""
    params = reversal_model.initialise(jax.random.key(0), layers=1)
    length, width, depth = reversal_model.LENGTH, reversal_model.WIDTH, reversal_model.DEPTH
    alone = np.eye(length, dtype=bool)[None]

    def states(params, x, noise=None):
        return jnp.pad(jnp.tanh(x), ((0, 0), (0, depth - width)))[None]

    with pytest.MonkeyPatch.context() as patch, quick_compile():
        patch.setattr(reversal, "decoder_states", states)
        x, spread = params["embedding"][jnp.arange(length)], jnp.ones((1, length, depth))
        maps = {
            "gradient": reversal.gradient(params, x),
            "occlusion": reversal.occlusion(params, x, spread),
            "perturbation": reversal.perturbation(params, x, spread),
            "LRP": reversal.relevance(params, x),
            "CD": reversal.decomposition(params, x),
        }
    for name, got in maps.items():
        got = np.asarray(got)
        assert got.shape == alone.shape, name
        if name == "perturbation":  # what the state does not read is free to go
            assert got[alone].min() > 2 * got[~alone].max(), name
        else:
            assert not got[~alone].any() and got[alone].all(), name
    slope = 1 - np.tanh(np.asarray(x)) ** 2
    close(maps["gradient"][0].diagonal(), slope.sum(axis=1) / (depth * width))
    # All of an entry goes to the one word that it was made of.
    held = np.abs(np.tanh(np.asarray(x))).sum(axis=1)
    close(maps["LRP"][0].diagonal(), held / depth)


def test_measures():
    assert measures.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    assert measures.spearman(np.array([1.0, 2, 3]), np.array([1.0, 8, 27])) == pytest.approx(1)
    assert np.isnan(measures.spearman(np.ones(3), np.arange(3.0)))
    needed = np.array([True, True, False, False])
    # Of four pairs two are in order, one is tied, one is not.
    assert measures.auc(np.array([3.0, 1.0, 2.0, 1.0]), needed) == (2 + 0.5) / 4
    assert measures.mean_and_error([1.0, 3.0, np.nan]) == "2.00 ± 1.00"
    assert measures.mean_and_error([np.nan]) == "-"
    lines = [["", "b"], ["long", "2"]]
    assert measures.table(lines).splitlines() == ["      b", "long  2"]
    assert measures.table(lines, markdown=True).splitlines()[1] == "| --- | --- |"


def test_probe_reads_what_is_there():
    draw = np.random.default_rng(0)
    length, words = reversal_model.LENGTH, reversal_model.WORDS
    ids = draw.integers(0, words, (800, length))
    states = np.zeros((800, 1, length, words))
    for t in range(length):  # the state at step t is word t
        states[:, 0, t] = np.eye(words)[ids[:, t]]
    got = reversal.probe(states, ids)[0]
    assert (got.diagonal() == 1).all()
    # 200 guesses among 12 words: 8% right, within 5 standard errors.
    assert got[~np.eye(length, dtype=bool)].max() < 0.18


TREES = """(3 (2 A) (4 (3 Charming) (2 film)))
(1 (2 a) (1 (1 dull) (2 (3 like) (0 awful))))
"""


def test_lists_of_sentiment_words(tmp_path):
    (tmp_path / "trees.txt").write_text(TREES)
    assert sentiment_words(tmp_path / "trees.txt") == {
        "positive words": ["charming"],  # "like" is a preposition
        "negative words": ["awful", "dull"],
    }


def test_neighbours():
    rows = np.array([[0.0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1]])
    up, down, flat = neighbours(rows)
    # Of a line of 6: the sum of 5 products over 5, by the sum of 6 squares over 6.
    assert up == pytest.approx((8.75 / 5) / (17.5 / 6)) and down == pytest.approx(-1)
    assert np.isnan(flat) and np.isnan(neighbours(rows[:, :4])).all()


def test_difference_counts_the_sentences_that_have_both():
    found = difference(np.array([1.0, 2.0, np.nan, 3.0]), np.array([0.0, 1.0, 0.0, np.nan]))
    assert (found.mean, found.error, found.above) == (1, 0, True)
    assert not difference(np.array([1.0, -1.0])).above
    assert not difference(np.array([np.nan])).above


def test_compare_models(optimized, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "trees.txt").write_text(TREES.replace("film", "film) (3 funny"))
    rows = ["sentence\tlabel", "a charming and funny film .\t1", "the film is dull .\t0"]
    (tmp_path / "some.tsv").write_text("\n".join([*rows, "awful , dull and long\t0", ""]))
    given = dict(data=tmp_path / "some.tsv", trees=tmp_path / "trees.txt", out=tmp_path / "out")
    # Where the search ends is not the question here.
    given |= dict(steps=1, samples=2, tolerance=2.0)
    with quick_compile():
        compare_models.main(**given, model=("cnn",), markdown=True)
    printed = capsys.readouterr().out
    assert "explained" in printed and "no BERT" in printed
    assert (tmp_path / "out" / "report.md").read_text() in printed
    for name in ("models.png", "sentence.png"):
        assert (tmp_path / "out" / name).stat().st_size < 150_000

    records, model = jxp.load(tmp_path / "out" / "cnn"), models.load("cnn")
    found = read(records, model, sentiment_words(given["trees"]), "the film")
    assert found.layers == (0, 1) and found.right.tolist() == [1, 1, 1] and not found.failed
    assert found.example[0] == ["the", "film", "is", "dull", "."]
    information = records[1].result["information"]
    kept = -np.asarray(information.log_ratio, np.float64)
    np.testing.assert_allclose(found.kept["negative words"][1], kept[:, 3])
    np.testing.assert_allclose(found.kept["and, the, to, is"][1], kept[:, [0, 2]].mean(axis=1))
    np.testing.assert_allclose(found.spread[1], kept.std(axis=1))
    negative = found.concepts["negative words"]
    assert negative.sigma.shape == (2, 3) and (negative.listed, negative.unknown) == (2, 0)
    np.testing.assert_allclose(negative.sigma[:, 0], np.asarray(information.sigma)[:, 3])
    # "dull" beside "awful", its one other word in the list.
    pair = np.asarray(model.embed(model.params, model.tokenize("dull awful").ids), np.float64)
    square = ((pair[0] - pair[1]) ** 2).sum() / (2 * negative.sigma[:, 0] ** 2)
    np.testing.assert_allclose(negative.beyond[:, 0], square, rtol=1e-4)  # float32, twice

    before = (tmp_path / "out" / "cnn" / "run.json").read_bytes()
    with quick_compile():
        compare_models.main(**given, model=("cnn",))
    assert "done before, nothing computed anew" in capsys.readouterr().out
    assert (tmp_path / "out" / "cnn" / "run.json").read_bytes() == before


def reading(seed, layers, **kept):
    """20 sentences; `kept` shifts a slice, in every layer alike or layer by layer."""
    draw = np.random.default_rng(seed)
    names = ["all words", "sentiment words", "function words", "and, the, to, is", "[SEP]", *PLACES]
    around = lambda centre: centre + 0.01 * draw.normal(size=(20, layers))
    nothing = np.zeros(layers)
    return Reading(
        name="",
        layers=tuple(range(layers)),
        kept={name: around(np.asarray(kept.get(name, 1.0))) for name in names},
        spread=around(kept.get("spread", 0.3)),
        neighbours=around(kept.get("neighbours", 0.0)),
        right=np.ones(20),
        censored=nothing,
        unconverged=nothing,
        unknown=nothing,
        failed=0,
        concepts={"positive words": concept(np.asarray(kept.get("sigma", nothing + 1.0)))},
        example=([], np.zeros((layers, 0))),
    )


def concept(sigma):
    noise = np.repeat(sigma[:, None], 5, axis=1)
    return Concept(1 / noise**2, 1 / noise**2, 1 / noise**2, noise, noise < 0, 5, 0, 0)


def test_findings_are_decided_by_the_numbers():
    by = dict(
        bert=reading(
            0,
            7,
            **{"[SEP]": np.array([1, 1, 0.5, 0.5, 0.5, 0.5, 0.5])},
            **{"function words": np.array([1, 1, 1, 1, 0.8, 0.6, 0.4])},
            **{"and, the, to, is": 0.4},
        ),
        transformer=reading(1, 3, sigma=np.array([1.0, 1.1, 1.2])),
        lstm=reading(2, 2, neighbours=0.5, sigma=np.array([1.0, 2.0]), **{PLACES[4]: 1.3}),
        cnn=reading(3, 2, neighbours=0.5, spread=0.1, sigma=np.array([1.0, 3.0])),
    )
    assert [found.agrees for found in judge(by)] == [True] * 7
    half = by["cnn"].kept["all words"] * [1.0, np.nan]
    gone = by["cnn"]._replace(kept=by["cnn"].kept | {"all words": half})
    assert {found.agrees for found in judge(by | {"cnn": gone})} == {None}
    # A layer's share of the first one's information is that of 1 / sigma^2.
    np.testing.assert_allclose(concept_kept(by["cnn"]), [1, 1 / 9])
    # The same numbers with the names of two models exchanged.
    other = by | dict(
        bert=by["transformer"], transformer=by["bert"], lstm=by["cnn"], cnn=by["lstm"]
    )
    assert [find(other).agrees for find in FINDINGS] == [
        *(False, False, False, False, False, True, False)
    ]
    assert [find(dict(lstm=by["lstm"])).agrees for find in FINDINGS] == [
        *(None, None, None, True, None, None, None)
    ]


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXPLAIN_DATA", raising=False)
    with pytest.raises(SystemExit, match="--data"):
        compare_models.main(out=tmp_path)
    with pytest.raises(SystemExit, match="--trees"):
        compare_models.main(data=Path(__file__), out=tmp_path)
