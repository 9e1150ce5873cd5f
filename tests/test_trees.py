"""Hierarchies as a person meets them: every word, phrase and score is there, and nothing else."""

import io
import re
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxplain.hierarchy import Hierarchy
from jaxplain.report import png
from jaxplain.report.levels import image_levels, image_levels_html
from jaxplain.report.trees import sentence_tree_html, sentence_tree_svg, sentence_tree_text
from jaxplain.types import JaxplainError

WORDS = ["a", "not", "<good>", "film"]


def tree(**changed):
    """a ((not <good>) film), of which "a" is left out."""
    whole = dict(
        unit_scores=[0.1, 0.5, 2.0, -0.25],
        unit_parent=[-1, 0, 0, 1],
        unit_level=[0, 2, 1, 3],
        scores=[-4.0, -3.0, 0.0, 0.0],
        parent=[1, -1, -1, -1],
        level=[2, 3, 0, 0],
        count=2,
    )
    return Hierarchy(**{k: np.array(v) for k, v in (whole | changed).items()})  # type: ignore


def printed(text, colour):
    out = io.StringIO()
    system = "truecolor" if colour else None
    Console(file=out, force_terminal=colour, color_system=system, width=200).print(text)
    return out.getvalue()


def test_a_line_for_each_group_under_the_one_it_went_into():
    got = printed(sentence_tree_text(tree(), WORDS, colour=False), False)
    assert [line.rstrip() for line in got.splitlines()] == [
        " a",
        "−3.00 not <good> film",
        "├ −4.00 not <good>",
        "│ ├ +0.50 not",
        "│ └ +2.00 <good>",
        "└ −0.25 film",
    ]
    coloured = printed(sentence_tree_text(tree(), WORDS), True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == got
    assert "48;2;64;144;224mnot <good>\x1b" in coloured  # the strongest, and against


def test_a_box_for_each_word_and_group_over_its_words():
    root = ElementTree.fromstring(sentence_tree_svg(tree(), WORDS, ends=("against", "for")))
    name = "{http://www.w3.org/2000/svg}"
    boxes = {}
    for group in root.findall(f"{name}g"):
        title = group.find(f"{name}title")
        if title is not None:
            rect = group.find(f"{name}rect")
            assert rect is not None
            x, y, wide, high = (float(rect.get(k, "nan")) for k in ("x", "y", "width", "height"))
            boxes[title.text] = (x, x + wide, y, y + high, rect.get("style", ""))
            texts = [(float(t.get("x", "nan")), t.text) for t in group.findall(f"{name}text")]
            assert all(x < at < x + wide for at, _ in texts)
            assert " ".join(t or "" for _, t in texts).strip() == (title.text or "").strip()
    assert set(boxes) == {
        *("a ", "not +0.50", "<good> +2.00", "film −0.25"),
        *("not <good> −4.00", "not <good> film −3.00"),
    }
    phrase, whole = boxes["not <good> −4.00"], boxes["not <good> film −3.00"]
    assert whole[3] < phrase[2] and phrase[3] < boxes["film −0.25"][2]  # rows do not overlap
    assert whole[0] <= phrase[0] and phrase[1] < boxes["film −0.25"][0] < whole[1]
    assert "--neg" in phrase[4] and "/100%" in phrase[4] and "/80%" in whole[4]
    assert "--pos" in boxes["<good> +2.00"][4] and "none" in boxes["a "][4]
    right = max(box[1] for box in boxes.values())
    assert right <= float(root.get("width", "nan"))
    fragment = sentence_tree_html(tree(), WORDS)
    assert ElementTree.fromstring(fragment).tag == "div" and "<good>" not in fragment


def test_an_image_level_by_level():
    units = np.array([[0, 1], [2, 3], [-1, 3]])
    image = np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    found = image_levels(tree(), units, image=image)
    assert [caption for caption, _ in found] == [
        "each unit alone, −0.25 to +2.00",
        "level 1: 1 group, +2.00",
        "level 2: 1 group, −4.00",
        "level 3: 1 group, −3.00",
    ]
    pale = lambda grey: np.rint(0.65 * png.NEUTRAL + 0.35 * 255 * grey)
    _, second = found[2]
    np.testing.assert_array_equal(second[0, 1], png.NEGATIVE)
    np.testing.assert_array_equal(second[1, 0], png.NEGATIVE)
    np.testing.assert_array_equal(second[0, 0], pale(0))
    np.testing.assert_array_equal(second[1, 1], pale(1))
    np.testing.assert_array_equal(found[1][1][1, 0], png.POSITIVE)
    np.testing.assert_array_equal(found[0][1][2, 0], pale(1))  # in no unit
    assert len(image_levels(tree(), units, most=3)) == 3
    assert image_levels_html(tree(), units, image=image).count("<figure") == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sentence_tree_text(tree(), WORDS[:2]), "of 4 units, and the words are 2"),
        (lambda: sentence_tree_svg(tree(scores=[jnp.nan] * 4), WORDS), "not finite"),
        (lambda: sentence_tree_svg(tree(unit_parent=[0, 1, 0, 1]), WORDS), "has gaps"),
        (lambda: image_levels(tree(), np.full((2, 2), 4)), "0 to 3"),
        (lambda: image_levels(tree(), np.zeros((2, 2), int), image=np.ones((3, 2))), "height and"),
    ],
)
def test_one_clear_line_each(call, message):
    with pytest.raises(JaxplainError, match=message):
        call()
