"""Models and data of the user's own: what the command line makes of `module:function`."""

import json
import re
import sys
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import cli
from jaxplain.models import TextModel
from jaxplain.run import data, job, own
from tests.helpers import quick_compile

# A module of a user's, in the directory that the command is started in.
MINE = r'''
import functools
from typing import NamedTuple
import jax, jax.numpy as jnp, numpy as np
import jaxplain as jxp
from jaxplain.models import Model, TextModel, Tokens

def score(params, x):
    return jax.nn.relu(x.reshape(-1) @ params["in"]) @ params["out"]

def images():
    """Bright on the left, or on the right."""
    columns = np.tile([1.0, 1.0, -1.0, -1.0], 4)
    w = np.stack([columns, -columns], 1).astype(np.float32)
    reader = functools.partial(jxp.ImageFolder, size=4, channels=1)
    return Model(score, {"in": w, "out": np.eye(2, dtype=np.float32)}, ("left", "right"),
                 images=reader)

def pixels():
    left = np.zeros((4, 4, 1), np.float32)
    left[:, :2] = 1
    return [{"x": left, "label": "left", "file": "l"}, {"x": 1 - left, "label": np.int64(1)},
            {"x": left[:3], "label": 0}, {"x": left, "label": "up"}, {"y": left}]

def pairs():
    return np.stack([e["x"] for e in pixels()[:2]]), np.array([0, 1])

class Steps(NamedTuple):
    params: dict
    score: object
    labels: tuple

def steps():
    def score(params, x, mask):
        total = jnp.sum(jnp.where(mask[:, None], x, 0) @ params["w"])
        return jnp.stack([-total, total])
    return Steps({"w": jnp.array([1.0, 2.0])}, score, ("down", "up"))

def walks():
    return [{"x": np.full((n, 2), n, int), "mask": np.ones(n)} for n in (2, 3, 5)]

def price():
    return {"score": lambda p, x: (x @ p)[None], "params": jnp.array([1.0, -2.0]),
            "names": ("rooms", "noise")}

def houses():
    return [np.array([2.0, 1.0]), np.array([0.0, 1.0])]

WORDS = {"good": 1, "bad": 2}

def tokenize(text):
    words = text.split()
    return Tokens(np.array([WORDS.get(w, 0) for w in words], np.int32), words, False)

def reader(**more):
    return {
        "params": {"table": jnp.array([[0.0], [1.0], [-1.0]])},
        "embed": lambda params, ids: params["table"][ids],
        "score": lambda params, x, mask: jnp.sum(jnp.where(mask[:, None], x, 0)) * jnp.array([-1., 1.]),
        "tokenize": tokenize, "labels": ("negative", "positive"), "max_length": 9,
    } | more

def texts():
    return ["a good film", "bad", "good good bad"], [1, "negative", None]

def rows():
    return [{"text": "good"}, {"text": "bad"}]

def linen():
    import flax.linen as nn
    from jaxplain.models import from_linen
    module = nn.Dense(2)
    return from_linen(module, module.init(jax.random.key(0), jnp.ones(2)))

def whole():
    from jaxplain import models
    return models.load("cnn")

# What goes wrong.
number = 3
def needs(path): ...
def raises(): raise RuntimeError("no\nfile")
def nothing(): return None
def odd(): return {"score": score, "params": {}, "lables": ("a",)}
def lacks(): return {"tokenize": tokenize, "embed": score, "score": score, "params": {}}
def unscored(): return Model(lambda p, x: x @ p, np.ones(7))
def batched(): return Model(lambda p, x: x, np.ones(7))
def unnamed(): return images()._replace(labels=("left",))
def strings(): return images()._replace(params={"in": "weights.npz"})
def flat(): return reader(embed=lambda params, ids: params["table"][ids][:, 0])
def untokened(): return reader(tokenize=str.split)
def endless():
    class Source(list):
        def __len__(self): return 2**62
    return Source()
def iterator(): return iter(pixels())
def uneven(): return ["a", "b"], [1]
def blind(): return images()._replace(images=None)
'''  # noqa: E501


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working directory with the user's module in it, for this test alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("import no_such_thing")
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def type_in(desk, capsys):
    def run(line: str):
        with quick_compile():
            code = cli.call(f"explain {line} --out R --overwrite --devices 1".split())
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def one_line(result, *facts: str) -> None:
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for fact in facts:
        assert fact in err


OPTIONS = MappingProxyType({"samples": "--samples 32", "steps": "--steps 4"})


@pytest.mark.parametrize("method", jxp.METHODS)
def test_every_method_takes_images(desk, method):
    """By shape alone; the next test computes with one method of each kind."""
    known = jxp.METHODS[method]
    images = data.read(own.Path("mine:pairs"))
    options = {"samples": 64} if "samples" in known.options else {}
    made = job.prepare("mine:images", images, method=method, options=options)
    inputs = {k: v for k, v in made.source[0].items() if k in ("x", "target")}
    result = jax.eval_shape(made.explain, made.model.params, inputs, jax.random.key(0))
    scores = result["attribution"].scores
    assert jnp.broadcast_shapes(scores.shape, (4, 4, 1)) == (4, 4, 1)
    assert (result["logits"].shape, result["image"].shape) == ((2,), (4, 4, 1))


@pytest.mark.parametrize(
    "method",
    "saliency expected_gradients deep_lift lrp kernel_shap guided_backprop "
    "contextual_decomposition".split(),
)
def test_methods_explain_images(type_in, desk, method):
    known = jxp.METHODS[method]
    line = " ".join(text for name, text in OPTIONS.items() if name in known.options)
    line += " --patch 2" if known.takes_groups else ""
    line += " --background 2" if known.needs_baselines else ""
    code, out, err = type_in(f"--model mine:images --data mine:pairs --method {method} {line}")
    assert code == 0, err
    assert "2 of 2 examples explained" in out and "100.0% predicted rightly" in out
    run = jxp.load("R")
    assert run.info["configuration"]["model"] == "mine:images"
    assert run.info["configuration"]["data"] == {"name": "mine:pairs", "limit": None}
    left = run[0].result
    assert (left["target"], left["logits"].argmax()) == (0, 0)
    np.testing.assert_array_equal(left["image"][..., 0], np.repeat([[1, 0]], 4, 0).repeat(2, 1))
    scores = np.broadcast_to(left["attribution"].scores, (4, 4, 1))
    # What speaks for "left" is on the left; a gradient's magnitude is the same everywhere.
    if method == "saliency":
        np.testing.assert_allclose(scores, 1, rtol=1e-5)
    elif method == "contextual_decomposition":  # of rows, and each has as much on either side
        np.testing.assert_allclose(scores, 2, rtol=1e-5)
    elif not known.needs_baselines:
        assert scores[:, :2].sum() > max(scores[:, 2:].sum(), 0)
    if known.complete:  # f is 8 here, 0 for black, and for the two reference images 8 and 0
        worth = 4 if known.needs_baselines else 8
        assert scores.sum() - left["attribution"].gap == pytest.approx(worth, rel=1e-5)
    page = (desk / "R" / "page.html").read_text(encoding="utf-8")
    assert "data:image/png" in page or "<canvas" in page


def test_patches_are_taken_away_whole(type_in):
    assert (
        type_in("--model mine:images --data mine:pairs --method feature_ablation --patch 2")[0] == 0
    )
    scores = jxp.load("R")[0].result["attribution"].scores
    assert scores.shape == (4, 4, 1)
    np.testing.assert_allclose(scores[:, :2], 1, rtol=1e-6)  # 4, shared among 2 by 2 pixels
    np.testing.assert_array_equal(scores[:, 2:], 0)
    assert jxp.load("R").info["configuration"]["options"]["patch"] == 2


def test_targets_labels_and_what_cannot_be_read(type_in):
    line = "--model mine:images --data mine:pixels --method saliency --show 9"
    code, out, err = type_in(line)
    assert code == 0, err
    records = jxp.load("R")
    assert [r.error and r.error.split(":")[0] for r in records] == [
        None, None, "x has shape [3, 4, 1], and the first example's is [4, 4, 1]; where lengths "
        "vary, give each a mask [T] of True", None, "--data mine",
    ]  # fmt: skip
    assert [records[i].notes["label"] for i in (0, 1, 3)] == ["left", "right", "up"]
    assert records[0].notes["file"] == "l"
    assert "3 of 5 examples explained" in out
    assert [int(records[i].result["target"]) for i in (0, 1, 3)] == [0, 1, 0]
    assert type_in(f"{line} --target right")[0] == 0
    assert int(jxp.load("R")[0].result["target"]) == 1
    code, out, err = type_in(f"{line} --target label")
    assert code == 0, err
    assert "the label is up, which is no class of mine:images" in str(jxp.load("R")[3].error)
    assert type_in(f"{line} --limit 2")[0] == 0
    assert len(jxp.load("R")) == 2


def test_a_folder_of_images(type_in, desk):
    image = pytest.importorskip("PIL.Image")
    for side, label in ((0, "left"), (8, "right")):
        (desk / "photos" / label).mkdir(parents=True)
        pixels = np.zeros((16, 16), np.uint8)
        pixels[:, side : side + 8] = 255
        image.fromarray(pixels).save(desk / "photos" / label / "a.png")
    (desk / "photos" / "zero.png").write_bytes(b"")
    code, out, err = type_in("--model mine:images --data photos/ --target label --show 3")
    assert code == 0, err
    assert "2 of 3 examples explained" in out and "zero.png is no image" in out
    run = jxp.load("R")
    assert run[1].notes["file"] == "right/a.png"
    assert run[1].result["attribution"].scores.shape == (4, 4, 1)
    assert run.info["configuration"]["data"]["name"] == "photos"
    one_line(type_in("--model mine:blind --data photos"), "images=functools.partial(")
    one_line(type_in("--data photos"), "photos is a directory")


def test_rows_that_vary_in_number(type_in):
    code, _, err = type_in("--model mine:steps --data mine:walks --method feature_ablation")
    assert code == 0, err
    for record, n in zip(jxp.load("R"), (2, 3, 5), strict=True):
        scores = np.broadcast_to(record.result["attribution"].scores, (n, 1))
        np.testing.assert_allclose(scores, 3 * n, rtol=1e-5)
        assert record.result["target"] == 1
    refusal = type_in("--model mine:steps --data mine:walks --method deep_shap")
    one_line(refusal, "examples with a mask vary in length")


def test_a_table_has_names_and_a_regression_no_classes(type_in):
    line = "--model mine:price --data mine:houses --show 1 --method"
    code, out, err = type_in(f"{line} deep_lift")
    assert code == 0, err
    assert re.search(r"^rooms +\+2 ", out, re.M) and re.search(r"^noise +−2 ", out, re.M)
    assert "--patch is for images" in type_in(f"{line} lime --patch 2")[2]


def test_texts_of_ones_own(type_in):
    code, out, err = type_in("--model mine:reader --data mine:texts --target positive")
    assert code == 0, err
    assert "2 of 2" not in out and "3 of 3 examples explained" in out
    records = jxp.load("R")
    np.testing.assert_allclose(records[2].result["attribution"].scores, [1, 1, -1], atol=1e-6)
    assert [r.notes["label"] for r in records] == ["positive", "negative", None]
    assert records.info["configuration"]["data"]["sha256"]
    assert type_in("--model mine:reader --data mine:rows --method saliency")[0] == 0
    assert type_in("--data mine:texts --model cnn --method saliency")[0] == 0
    for baseline in ("pad", "unk", "mask"):
        one_line(type_in(f"--model mine:reader --baseline {baseline}"), f"no {baseline} token")
    one_line(type_in("--model mine:reader --method word_information"), "has no `states`")


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("--model nomodule:f", ["there is no module nomodule"]),
        ("--model mine.deep:f", ["there is no module mine.deep"]),
        ("--model broken:f", ["importing broken raised ModuleNotFoundError", "no_such_thing"]),
        ("--model mine:modle", ["mine has no modle"]),
        ("--model mine:imags", ["did you mean images?"]),
        ("--model mine:number", ["is a int: name a function that returns a jaxplain.models.Model"]),
        ("--model mine:needs", ["needs path: name a function without arguments"]),
        ("--model mine:raises", ["raised RuntimeError: no file (JAXPLAIN_TRACEBACK=1 shows"]),
        ("--model mine:nothing", ["returned a NoneType: it must return", "TextModel"]),
        ("--model mine:odd", ["has lables: its fields are score, params, labels"]),
        ("--model mine:lacks", ["text model that lacks labels, max_length"]),
        ("--model mine:strings", ["params['in'] is no array"]),
        ("--model mine:flat", ["embed must give [T, D] for ids [T], and gave float32[2]"]),
        ("--model mine:untokened", ["tokenize must return", "returned a list"]),
        ("--model mine:images", ["the bundled sentences are texts"]),
        ("--model mine:images --data rows.tsv", ["rows.tsv has texts"]),
        ("--model mine:images --data mine:texts", ["an example has text, label, and no x"]),
        ("--model mine:unscored --data mine:pairs", ["score(params, x [4, 4, 1])", "raised"]),
        ("--model mine:batched --data mine:pairs", ["gave float32[4, 4, 1]", "not a batch"]),
        ("--model mine:unnamed --data mine:pairs", ["1 labels, and score gives 2 logits"]),
        ("--model mine:images --data mine:pairs --target up", ["'up' is no class", "left, right"]),
        ("--model mine:images --data mine:pairs --method acd", ["acd explains texts"]),
        ("--model mine:images --data mine:pairs --max-length 3", ["--max-length is for texts"]),
        ("--model mine:images --data mine:pairs --text-column x", ["--text-column: mine:pairs"]),
        ("--model mine:images --data mine:pairs --method lime --patch 0", ["--patch must be auto"]),
        ("--model mine:images --data mine:pairs --baseline pad", ["baseline must be a number or"]),
        (
            "--model mine:images --data mine:pairs --patch 3",
            ["it is an option of feature_ablation"],
        ),
        ("--model cnn --method lime --patch 3", ["--patch is for images"]),
        ("--data mine:endless", ["endless source: leave out its repeat()"]),
        ("--data mine:iterator", ["returned a list_iterator", "put an iterator into a list"]),
        ("--data mine:nothing", ["returned a NoneType"]),
        ("--data mine:uneven", ["2 inputs and 1 labels"]),
        ("--data mine:raises", ["--data mine:raises raised RuntimeError"]),
        ("--data mine:pairs", ["example 0 has no text, and the model reads texts"]),
        ("--data mine:texts --limit 0", ["--limit must be at least 1"]),
    ],
)
def test_wrong_functions_get_one_line_and_cost_nothing(type_in, desk, line, facts):
    (desk / "rows.tsv").write_text("text\na\n")
    one_line(type_in(line), *facts)
    assert not (desk / "R").exists()


def test_a_traceback_for_who_asks(type_in, monkeypatch):
    monkeypatch.setenv("JAXPLAIN_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="no\nfile"):
        type_in("--model mine:raises")


def test_what_is_a_reference(desk):
    assert own.is_reference("mine:images") and own.is_reference("a.b_c.d:e.f")
    (desk / "a:b").write_text("")
    for name in ("a:b", "mine", "path/to:model", "C:\\models", "a.tsv", ":f", "a:", "1a:b"):
        assert not own.is_reference(name)
    assert (own.short("a.b:c"), own.short("minilm.v2")) == ("b", "minilm.v2")


def test_grain_sources_are_taken_as_they_are(tmp_path, desk):
    grain = pytest.importorskip("grain")
    rows = [{"x": np.array([i, 1], np.float32), "name": f"row {i}"} for i in range(6)]
    source = grain.MapDataset.source(rows).map(lambda row: row | {"x": 2 * row["x"]})

    def explain(params, example, key):
        return jxp.input_x_gradient(lambda x: x @ params, example["x"])

    key, weights = jax.random.key(0), jnp.array([1.0, -1.0])
    jxp.run(explain, weights, source, tmp_path / "R", key=key, progress=False)
    records = jxp.load(tmp_path / "R")
    assert [r.result.scores.tolist() for r in records] == [[2.0 * i, -2.0] for i in range(6)]
    assert records[3].notes["name"] == "row 3"

    with pytest.raises(jxp.JaxplainError, match="endless"):
        own.check_source("--data mine:ds", source.repeat())
    with pytest.raises(jxp.JaxplainError, match=r"leave out the source's repeat\(\)"):
        jxp.run(explain, weights, source.repeat(), tmp_path / "T", key=key, progress=False)
    # What a filter leaves out is None: those examples fail, and the rest goes on.
    some = source.filter(lambda row: row["x"][0] > 3)
    summary = jxp.run(explain, weights, some, tmp_path / "S", key=key, progress=False)
    assert (summary.done, summary.failed) == (4, 2)


def test_the_example(type_in, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(own.Path(jxp.__file__).parents[1]), *sys.path])
    line = "--model examples.own_model:model --data examples.own_model:data --limit 60"
    code, out, err = type_in(line)
    assert code == 0, err
    assert "60 of 60 examples explained" in out and "alcohol" in out
    run = jxp.load("R")
    assert len(run.info["configuration"]["names"]) == 13
    page = (own.Path("R") / "page.html").read_text(encoding="utf-8")
    assert "flavanoids" in page and "examples.own_model:model" in page
    line = "--model examples.own_model:reader --data examples.own_model:reviews"
    assert type_in(line)[0] == 0
    first = jxp.load("R")[0]
    best = np.argmax(first.result["attribution"].scores)
    assert first.notes["pieces"][best] == "warm"
    json.dumps(run.info)


def test_models_as_others_make_them(desk, type_in):
    for name in ("mine:reader", "mine:whole"):
        model = own.load_model(name)
        assert isinstance(model, TextModel) and model.name == name
    assert model.labels == ("negative", "positive")
    code, _, err = type_in("--model mine:linen --data mine:houses --method input_x_gradient")
    assert code == 0, err
    run = jxp.load("R")
    kernel = own.load_model("mine:linen").params["params"]["kernel"]
    target = run[0].result["target"]
    expected = np.array([2, 1]) * kernel[:, target]
    np.testing.assert_allclose(run[0].result["attribution"].scores, expected, rtol=1e-5)
