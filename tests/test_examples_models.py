"""Examples of the user's own models run, at a small size, and find what is known to be there."""

import re

import numpy as np
import pytest

import jaxplain as jxp
from examples import linen_cnn, nnx_transformer, plain_function
from tests.helpers import quick_compile

pytestmark = pytest.mark.slow


def number(pattern, printed):
    found = re.search(pattern, printed)
    assert found, printed
    return float(found[1])


def test_linen_cnn(tmp_path, capsys):
    with quick_compile():
        linen_cnn.main(out=tmp_path / "run", epochs=3, limit=24)
    printed = capsys.readouterr().out
    assert number(r"test accuracy ([\d.]+)%", printed) > 80  # 3 epochs give 89%, guessing 10%
    assert "24 of 24 digits explained, 0 failed" in printed
    for name in ("page.html", "scores.png", "cam.png"):
        assert (tmp_path / "run" / name).is_file()
    for record in jxp.load(tmp_path / "run"):
        logits, found = record.result["logits"], record.result["attribution"]
        second, first = np.argsort(logits)[-2:]
        assert (record.result["target"], record.result["other"]) == (first, second)
        # f(x) is the difference that was asked for; rounding, of logits up to 10.
        assert found.output == pytest.approx(logits[first] - logits[second], abs=1e-4)
        assert found.scores.shape == (8, 8, 1) and record.result["cam"].shape == (8, 8)
        assert np.all(record.result["cam"] >= 0)


def test_nnx_transformer(optimized, tmp_path, capsys):
    with quick_compile():
        nnx_transformer.main(out=tmp_path / "run", updates=160, count=30, steps=32)
    printed = capsys.readouterr().out
    assert number(r"test accuracy ([\d.]+)%", printed) > 95  # guessing gives 12.5%
    # One of 13 places is the letter's, one the star's: 15% by chance.
    assert number(r"the star's in ([\d.]+)%", printed) > 70
    # The first block brings the letter to the star; little of it is left where it was.
    row = re.search(r"block 0 +(-?\d+)% +(-?\d+)% +(-?\d+)%", printed)
    assert row and abs(int(row[1])) < 20 and int(row[2]) > 80
    assert (tmp_path / "run" / "text.png").is_file()
    for record in jxp.load(tmp_path / "run"):
        found, through = record.result["attribution"], record.result["through"]
        assert record.notes["pieces"][0] == ">" and record.notes["pieces"].count("*") == 1
        # What passes through a layer is the change of f; 32 nodes leave some percent of it.
        change = found.scores.sum() - found.gap
        assert through.scores.sum() - through.gap == pytest.approx(change, rel=1e-4)
        assert abs(through.gap) < 0.1 * abs(change)


def test_plain_function(tmp_path, capsys):
    with quick_compile():
        plain_function.main(out=tmp_path / "run", updates=400, samples=32)
    printed = capsys.readouterr().out
    assert number(r"explains (\d+)%", printed) > 85
    assert "400 of 400 rows explained, 0 failed" in printed
    # Five of ten columns do nothing.
    for method in ("DeepLIFT", "integrated gradients", "Shapley sampling"):
        assert number(rf"{method}.* ([\d.]+)%", printed) < 10
    assert number(r"DeepLIFT +\S+ +([\d.]+) ", printed) > 0.95
    assert (tmp_path / "run" / "columns.png").is_file()
    record = jxp.load(tmp_path / "run")[0]
    assert record.notes["names"] == [f"x{n}" for n in range(10)]
    result = record.result
    # Complete, each of them, to the rounding of sums up to 20.
    assert abs(result["units"].scores.sum() - result["attribution"].scores.sum()) < 1e-4
