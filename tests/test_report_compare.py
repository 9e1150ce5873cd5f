"""Two runs side by side: matched by their words, refused if they are not of the same examples."""

import re
import warnings

import numpy as np
import pytest
from scipy import stats

from jaxplain import cli, report
from jaxplain.report import agreement, api
from jaxplain.report.view import view
from jaxplain.types import JaxplainError
from tests.made_runs import bars_record, image_record, joined, text_record, write_run
from tests.test_report import CONFIGURATION
from tests.test_report import text_record as plain_record


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for count in range(3, 40):
        a, b = rng.integers(0, 6, (2, count)) / 3  # many ties
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            wanted = stats.spearmanr(a, b)[0]
        np.testing.assert_allclose(agreement.spearman(a, b), np.asarray(wanted), atol=1e-12)
    assert np.isnan(agreement.spearman(np.ones(5), np.arange(5.0)))
    assert np.isnan(agreement.spearman(np.arange(2.0), np.arange(2.0)))


def test_words_are_matched_by_their_letters():
    a = [("Naïve", 1.0), ("do", 2.0), ("n't", 3.0), ("ice-cream", 4.0)]
    b = [("naive", 5.0), ("don", 6.0), ("'", 7.0), ("t", 8.0)]
    b += [("ice", 1.0), ("-", 1.0), ("cream", 1.0)]
    found = agreement.match_words(a, b)
    assert found is not None
    np.testing.assert_array_equal(found[0], [1, 5, 4])
    np.testing.assert_array_equal(found[1], [5, 21, 3])
    assert agreement.match_words(a, [*b[:-1], ("[UNK]", 1.0)]) is None
    assert agreement.match_words(a, b[:-1]) is None  # one was cut


def compared(a, b):
    return agreement.agreement(view(a, CONFIGURATION), view(b, CONFIGURATION))


def test_what_is_not_known_has_its_reason():
    a = plain_record(scores=(1, 2, 3))
    known = compared(a, plain_record(scores=(3, 2, 1)))
    assert (known.signed, known.units, known.reason) == (pytest.approx(-1), 3, None)
    assert compared(a, plain_record(scores=(1, 1, 1))).reason == (
        "all scores are the same in one of the runs"
    )
    other = plain_record(pieces=("a", "[UNK]", "film"))
    assert compared(a, other).reason == "the words of the two cannot be matched"
    short = plain_record(pieces=("a", "film"), scores=(1, 2))
    assert compared(short, short).reason == "fewer than 3 words"
    failed = a._replace(result=None, error="no")
    assert compared(a, failed).reason == "failed in one of the runs"
    rng = np.random.default_rng(1)
    rows = bars_record(0, rng, features=4), image_record(0, rng)
    assert "cannot be matched" in str(compared(*rows).reason)


def test_features_are_matched_by_name_and_images_by_place():
    rng = np.random.default_rng(2)
    a = bars_record(0, rng, features=5)
    turned = a.result["attribution"]._replace(scores=a.result["attribution"].scores[::-1])
    names = {"names": a.notes["names"][::-1]}
    b = a._replace(result=a.result | {"attribution": turned}, notes=names)
    assert compared(a, b).signed == pytest.approx(1)
    image = image_record(0, rng)
    assert compared(image, image)[:4] == (pytest.approx(1), pytest.approx(1), 64, "pixels")
    assert compared(image, image_record(0, rng, side=5)).reason


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same texts by two models, whose tokenisers part words differently."""
    rng = np.random.default_rng(3)
    out = tmp_path_factory.mktemp("runs")
    texts = [text_record(k, rng) for k in range(60)]
    others = [joined(record, rng) for record in texts]
    write_run(out / "a", texts)
    write_run(out / "b", others, configuration={**CONFIGURATION, "model": "b"})
    return out, texts, others


def test_two_runs_are_compared_example_by_example(runs, tmp_path):
    out, texts, others = runs
    found = report.compare(out / "a", out / "b", tmp_path / "page.html", limit=20)
    wanted = [compared(*pair) for pair in zip(texts, others, strict=True)]
    np.testing.assert_array_equal(found.agreements, [each.signed for each in wanted])
    np.testing.assert_array_equal(found.units, [each.units for each in wanted])
    assert sum(found.unknown.values()) == np.isnan(found.agreements).sum()
    assert found.unknown["failed in one of the runs"] == sum(r.error is not None for r in texts)
    same = [
        a.error or a.result["target"] == b.result["target"]
        for a, b in zip(texts, others, strict=True)
    ]
    np.testing.assert_array_equal(found.alike, np.array(same, bool))
    assert len(found.known) == sum(
        bool(s) and each.reason is None for s, each in zip(same, wanted, strict=True)
    )
    told = api.agreement(found)
    assert f"median {np.median(found.known):+.2f}".replace("-", "−") in told
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "The first 20 of 60 examples are shown" in page
    assert len(re.findall(r'<article id="e\d', page)) == 20
    assert report.compare(out / "a", out / "a").agreements[0] == pytest.approx(1)


def test_magnitudes_are_ranked_where_one_run_has_no_sign(tmp_path):
    signed = [plain_record(k, scores=(1, -3, 2), gap=np.nan) for k in range(3)]
    sizes = [plain_record(k, scores=(0.1, 0.3, 0.2), gap=np.nan) for k in range(3)]
    for name, records in (("a", signed), ("b", sizes)):
        write_run(tmp_path / name, records)
    found = report.compare(tmp_path / "a", tmp_path / "b")
    assert found.magnitudes
    np.testing.assert_allclose(found.agreements, 1)
    assert "magnitudes" in api.agreement(found)


def test_runs_of_other_examples_are_refused_in_one_line(runs, tmp_path):
    out, texts, _ = runs
    write_run(tmp_path / "few", texts[:9])
    with pytest.raises(JaxplainError, match=r"is of 60 examples and .* of 9"):
        report.compare(out / "a", tmp_path / "few")
    changed = texts[5]._replace(notes=texts[5].notes | {"text": "another"})
    write_run(tmp_path / "changed", [*texts[:5], changed, *texts[6:]])
    with pytest.raises(JaxplainError, match="not of the same texts: example 5 differs"):
        report.compare(out / "a", tmp_path / "changed")
    rng = np.random.default_rng(4)
    rows = [bars_record(k, rng) for k in range(4)]
    write_run(tmp_path / "rows", rows)
    write_run(tmp_path / "other", rows, fingerprints={"data": "d1"})
    with pytest.raises(JaxplainError, match="fingerprints of their data differ"):
        report.compare(tmp_path / "rows", tmp_path / "other")
    with pytest.raises(JaxplainError, match=r"cannot be written: .* --page FILE"):
        report.compare(out / "a", out / "b", tmp_path / "no" / "folder.html")


def test_the_command_line_compares_two_runs(runs, tmp_path, capsys):
    out, _, _ = runs
    page = tmp_path / "both.html"
    assert cli.call(["show", str(out / "a"), "--against", str(out / "b"), "--page", str(page)]) == 0
    told = capsys.readouterr().out
    assert "60 examples compared" in told and f"page: {page}" in told
    assert page.read_text("utf-8").count("<!doctype html>") == 1
    assert cli.call(["show", str(out / "a"), "--against", str(out / "b")]) == 0
    assert "--page FILE shows them" in capsys.readouterr().out
    assert cli.call(["show", str(out / "a"), "--against", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
