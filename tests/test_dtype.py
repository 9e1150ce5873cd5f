"""Models in bfloat16, explained in float32: what is rounded, what is not, and what records say."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import cli, models
from jaxplain.models import Model
from jaxplain.types import JaxplainError
from tests import small_models

HALF = jnp.bfloat16


def test_a_function_computes_in_it_and_gives_float32():
    seen = []

    def f(params, x, mask, *, scale):
        seen.append((params["w"].dtype, x.dtype, mask.dtype, jnp.result_type(scale)))
        return {"y": x @ params["w"] * scale, "n": mask.sum()}

    params, x = {"w": jnp.full(3, 1 + 2**-9)}, jnp.ones(3)
    got = models.in_dtype(f, HALF)(params, x, jnp.ones(3, bool), scale=2.0)
    assert seen == [(HALF, HALF, bool, HALF)]
    assert got["y"].dtype == jnp.float32 and got["y"] == 6.0  # the weights' last digit is gone
    assert got["n"].dtype == jnp.int32 and got["n"] == 3


def test_gradients_come_as_float32_and_are_summed_in_it():
    """600 gradients of 1 + 2^-7: a sum in bfloat16 would stop growing at 256."""
    weights = jnp.full(4, 1 + 2**-7)
    f = partial(models.in_dtype(lambda w, x: x @ w, HALF), weights)
    found = jax.jit(partial(jxp.integrated_gradients, f, steps=600))(jnp.ones(4))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("f4")}
    # Of 600 float32 sums of nodes that themselves sum to one.
    np.testing.assert_allclose(found.scores, weights, rtol=1e-5)
    key, others = jax.random.key(0), jnp.zeros((1, 4))
    sampled = partial(jxp.expected_gradients, f, baselines=others, samples=600)
    found = jax.jit(lambda x: sampled(x, key=key))(jnp.ones(4))
    np.testing.assert_allclose(found.scores, weights, rtol=1e-5)
    assert found.standard_error.dtype == jnp.float32


METHODS = {
    "integrated_gradients": partial(jxp.integrated_gradients, steps=4),
    "deep_lift": jxp.deep_lift,
    "lrp": jxp.lrp,
    "feature_ablation": jxp.feature_ablation,
    "contextual_decomposition": jxp.token_scores,
}


def test_methods_give_float32_near_that_of_float32():
    model = small_models.make("relu")

    def all_of(params, x, dtype=None):
        f = partial(models.in_dtype(model.apply, dtype) if dtype else model.apply, params)
        return {name: method(f, x) for name, method in METHODS.items()}

    exact, rounded = (
        jax.jit(partial(all_of, dtype=dtype))(model.params, model.x) for dtype in (None, HALF)
    )
    for name in METHODS:
        a, b = np.asarray(exact[name].scores), np.asarray(rounded[name].scores)
        assert b.dtype == np.float32 and rounded[name].gap.dtype == np.float32
        # Some ten roundings of 2^-9 a value; differences of two of them, for ablation.
        assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max(), name


def test_every_function_of_a_model_is_changed():
    text = models.load("cnn")
    half = models.in_dtype(text, HALF)
    ids, mask = jnp.asarray(text.tokenize("a good film").ids), jnp.ones(3, bool)
    x = half.embed(half.params, ids)
    np.testing.assert_array_equal(x, text.embed(text.params, ids))  # looked up, not computed
    every = lambda m: [f(m.params, x, mask) for f in (m.score, m.hidden, m.states)]
    exact, rounded = jax.jit(lambda: (every(text), every(half)))()
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert b.dtype == jnp.float32
        assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()  # some ten roundings of 2^-9

    module = nn.Sequential([nn.Dense(4), jnp.tanh, nn.Dense(2)])
    x = jnp.linspace(0.1, 1, 3)
    function = models.from_linen(module, module.init(jax.random.key(0), x))
    half = models.in_dtype(function, HALF)
    h, g = half.cut("layers_0")
    a = h(half.params, x)
    assert a.dtype == jnp.float32
    np.testing.assert_array_equal(a.astype(HALF).astype("f4"), a)
    np.testing.assert_array_equal(g(half.params, a, x), half.f(half.params, x))
    array = models.in_dtype(Model(lambda p, x: x * p, jnp.float32(1 / 3)), HALF)
    assert array.score(array.params, jnp.ones(1))[0] == jnp.asarray(1 / 3, HALF)
    for bad in ("int32", "half a float"):
        with pytest.raises(JaxplainError, match="floating type"):
            models.in_dtype(text, bad)


def test_results_in_it_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPLAIN_CACHE", "off")

    def explain(params, example, key):
        return {"half": example["x"].astype(HALF), "bad": jnp.log(example["x"]).astype(HALF)[:1]}

    rows = [{"x": np.array([1, 1 / 3], "f4")}, {"x": np.array([0, 1], "f4")}]
    summary = jxp.run(explain, None, rows, tmp_path / "r", key=jax.random.key(0), progress=False)
    assert (summary.done, summary.failed) == (1, 1)
    first, second = jxp.load(tmp_path / "r")
    assert first.result["half"].dtype == HALF
    np.testing.assert_array_equal(first.result["half"], rows[0]["x"].astype(HALF))
    assert second.error == "infinity in bad"


def mine():
    """A model that says what it computes in, by its second logit."""

    def score(params, x):
        total = jnp.sum(x * params)
        return jnp.stack([total, jnp.finfo(total.dtype).eps.astype(total.dtype)])

    return Model(score, np.float32(1))


def rows():
    return [{"x": np.array([1 + 2**-9, 2], np.float32)}] * 2


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["explain", "--method", "input_x_gradient", "--quiet", "--out", "R", "--devices", "1"]
    own = [*line, "--model", "tests.test_dtype:mine", "--data", "tests.test_dtype:rows"]
    assert cli.call([*own, "--target", "0", "--dtype", "bfloat16"]) == 0
    record = jxp.load("R")[0]
    assert record.result["logits"][1] == 2**-7
    assert record.result["attribution"].scores.tolist() == [1 + 2**-9, 2]  # x itself is whole
    assert record.result["attribution"].scores.dtype == np.float32
    info = json.loads((tmp_path / "R" / "run.json").read_text())
    assert info["configuration"]["dtype"] == info["origin"]["dtype"] == "bfloat16"
    capsys.readouterr()
    assert cli.call([*own, "--target", "0"]) == 2
    assert "dtype is bfloat16 there and float32 here" in capsys.readouterr().err
    assert cli.call(["verify", "R", "--sample", "2"]) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert cli.call([*own, "--dtype", "float16"]) == 2
    assert "--dtype must be float32 or bfloat16" in capsys.readouterr().err


def test_command_line_on_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["explain", "--method", "saliency", "--model", "cnn", "--limit", "2", "--quiet"]
    assert cli.call([*line, "--out", "R", "--dtype", "bfloat16", "--devices", "1"]) == 0
    model = models.load("cnn")
    for record in jxp.load("R"):
        assert record.result["attribution"].scores.dtype == np.float32
        ids = model.tokenize(record.notes["text"]).ids
        x, mask = model.embed(model.params, ids), np.ones(len(ids), bool)
        exact = model.score(model.params, x, mask)
        # Some ten roundings of 2^-9, or fewer where XLA fuses steps.
        error = np.abs(record.result["logits"] - exact).max() / np.abs(exact).max()
        assert 1e-5 < error < 0.05
