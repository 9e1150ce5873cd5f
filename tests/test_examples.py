"""The examples run, at a small size, and what they leave on disk explains what it should."""

import re

import numpy as np

import jaxplain as jxp
from examples import digits, tabular


def accuracy_of(printed: str) -> float:
    found = re.search(r"test accuracy ([\d.]+)%", printed)
    assert found, printed
    return float(found[1])


def test_digits(tmp_path, capsys):
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
