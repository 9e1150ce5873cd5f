"""From token ids to one score per token: what is summed, what a baseline is, what padding does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain.hierarchy import acd, members
from jaxplain.models import TextModel, Tokens
from jaxplain.run.sources import TextSource
from jaxplain.run.text import background, baseline_id, explain_text
from jaxplain.types import JaxplainError
from tests.helpers import quick_compile

D, VOCABULARY = 6, 12
WORDS = {"pad": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "[MASK]": 4}
WORDS |= {word: 5 + i for i, word in enumerate("a good bad film not very".split())}


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def tokenize(text):
    pieces = ["[CLS]", *text.split(), "[SEP]"]
    return Tokens(np.array([WORDS.get(p, 3) for p in pieces], np.int32), pieces, False)


def embed(params, ids):
    return params["table"][ids]


def score(params, x, mask):
    """A curved function of every word and of pairs of neighbours, blind where mask is False."""
    x = jnp.where(mask[:, None], x, 0)
    pairs = jnp.tanh(x[1:] * x[:-1]).sum(0)
    return jnp.tanh(x @ params["w"]).sum(0) + pairs @ params["v"]


def hidden(params, x, mask):
    raise AssertionError("no explanation of a text looks at hidden states")


def make_model():
    keys = jax.random.split(jax.random.key(3), 3)
    params = {
        "table": jax.random.normal(keys[0], (VOCABULARY, D)),
        "w": jax.random.normal(keys[1], (D, 2)),
        "v": jax.random.normal(keys[2], (D, 2)),
    }
    return TextModel(
        "toy", params, embed, score, hidden, hidden, tokenize, ("no", "yes"), 16, 0, 3, 4, (1, 2)
    )


MODEL = make_model()
TEXT = "a very good film"


def example(text=TEXT, length=None, target="predicted"):
    """A padded example as the engine gives it to `explain`."""
    row = TextSource([text], None, MODEL, target=target)[0]
    pad = (length or len(row["ids"])) - len(row["ids"])
    return {
        "ids": np.pad(row["ids"], (0, pad)),
        "mask": np.pad(row["mask"], (0, pad)),
        "target": row["target"],
    }


def explained(explainer, *, length=None, text=TEXT, target="predicted", **settings):
    explain = jax.jit(explain_text(MODEL, explainer, **settings))
    return explain(MODEL.params, example(text, length, target), jax.random.key(0))


def integrated(steps=64):
    return functools.partial(jxp.integrated_gradients, steps=steps)


@pytest.mark.parametrize("baseline", ["zeros", "mean", "pad", "unk", "mask", "token:not"])
def test_token_scores_sum_to_the_difference_from_the_baseline(baseline):
    result = explained(integrated(), baseline=baseline, length=9)
    ids = jnp.asarray(tokenize(TEXT).ids)
    mask = jnp.ones(6, bool)
    x = embed(MODEL.params, ids)
    if baseline == "zeros":
        start = jnp.zeros_like(x)
    elif baseline == "mean":
        start = jnp.broadcast_to(x.mean(0), x.shape)
    else:
        token = {"pad": 0, "unk": 3, "mask": 4, "token:not": WORDS["not"]}[baseline]
        start = embed(MODEL.params, jnp.array([1, token, token, token, token, 2]))
    f = lambda x: score(MODEL.params, x, mask)[result["target"]]
    scores = result["attribution"].scores
    assert scores.shape == (9,)
    # 64 Gauss-Legendre nodes on a path of smooth tanh's: what is left is float32 rounding.
    np.testing.assert_allclose(scores.sum(), f(x) - f(start), atol=1e-4)
    np.testing.assert_allclose(result["attribution"].gap, 0, atol=1e-4)
    np.testing.assert_allclose(result["logits"], score(MODEL.params, x, mask), atol=1e-5)
    assert result["target"] == jnp.argmax(result["logits"])
    if baseline not in ("zeros", "mean"):  # special tokens are the same in both: no part of it
        assert scores[0] == scores[5] == 0
        assert (scores[1:5] != 0).all()


@pytest.mark.parametrize(
    ("explainer", "settings"),
    [
        (integrated(8), {"baseline": "mean"}),
        (integrated(8), {"baseline": "mask"}),
        (jxp.configure("smoothgrad", {"samples": 4}), {"magnitude": True}),
        (jxp.configure("vargrad", {"samples": 4}), {}),
        (
            functools.partial(jxp.expected_gradients, samples=8),
            {"references": background(["a film", "not very good", "bad"], MODEL)},
        ),
    ],
)
def test_padding_changes_nothing(explainer, settings):
    short = explained(explainer, **settings)
    long = explained(explainer, length=13, **settings)
    for a, b in zip(short["attribution"], long["attribution"], strict=True):
        if jnp.ndim(a):
            np.testing.assert_array_equal(b[6:], 0)
            b = b[:6]
        # Sums over another number of positions may round otherwise; the draws are the same.
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def words(*places):
    """The mask of TEXT's tokens at `places`."""
    return np.isin(np.arange(6), places)[:, None]


def test_a_token_s_score_is_its_relevant_part():
    x, mask = embed(MODEL.params, tokenize(TEXT).ids), jnp.ones(6, bool)
    f = lambda x: score(MODEL.params, x, mask)[1]
    want = [jxp.contextual_decomposition(f, x, words(i)).relevant for i in range(6)]
    for length in (6, 13):
        got = explained(jxp.token_scores, where=True, target="yes", length=length)["attribution"]
        # Sums of some 40 terms round differently in another order.
        np.testing.assert_allclose(got.scores[:6], want, rtol=2e-5, atol=2e-6)
        np.testing.assert_array_equal(got.scores[6:], 0)
        np.testing.assert_allclose(got.whole, f(x), rtol=1e-5)
        assert got.residual < 1e-5 and jnp.isnan(got.gap)


@pytest.mark.parametrize("contrast", [False, True])
def test_a_tree_groups_words_and_scores_them_as_they_are(contrast):
    x, mask = embed(MODEL.params, tokenize(TEXT).ids), jnp.ones(6, bool)
    two = lambda x: score(MODEL.params, x, mask)
    f = (lambda x: two(x)[1] - two(x)[0]) if contrast else (lambda x: two(x)[1])
    options = {"where": True, "units": True, "contrast": contrast, "target": "yes"}
    short, long = (explained(acd, length=length, **options) for length in (6, 13))
    assert ("other" in short) == contrast and short.get("other", 0) == 0
    for a, b in zip(*map(jax.tree.leaves, (short, long)), strict=True):
        b = b[: a.shape[0]] if a.ndim else b
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)  # as above; and whole numbers equal
    tree = short["attribution"].hierarchy
    np.testing.assert_array_equal(tree.unit_level > 0, [False, True, True, True, True, False])
    held = members(tree)
    assert held.any(axis=0).tolist() == [False, True, True, True, True, False]
    for group, row in enumerate(held):
        want = jxp.contextual_decomposition(f, x, row[:, None]).relevant
        np.testing.assert_allclose(tree.scores[group], want, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(short["attribution"].output, f(x), rtol=1e-5)


def test_two_classes_are_compared_only_where_there_are_two():
    with pytest.raises(JaxplainError, match="one class, and no other"):
        explain_text(MODEL._replace(labels=("only",)), acd, contrast=True)


def test_a_gradient_keeps_its_length_and_a_sum_its_sign():
    x = embed(MODEL.params, tokenize(TEXT).ids)
    mask = jnp.ones(6, bool)
    norm = explained(jxp.saliency, magnitude=True, target="yes")
    gradient = jax.grad(lambda x: score(MODEL.params, x, mask)[1])(x)
    np.testing.assert_allclose(
        norm["attribution"].scores, jnp.linalg.norm(gradient, axis=1), rtol=1e-5
    )
    product = explained(jxp.input_x_gradient, target="yes")
    want = (gradient * x).sum(1)
    np.testing.assert_allclose(product["attribution"].scores, want, rtol=1e-4, atol=1e-5)
    assert norm["target"] == product["target"] == 1


def test_the_target_is_explained():
    for target, index in (("no", 0), ("yes", 1)):
        result = explained(jxp.input_x_gradient, target=target)
        assert result["target"] == index
        assert result["attribution"].output == result["logits"][index]


def test_the_standard_error_of_a_token_is_never_too_small():
    references = background(["a film", "not very good", "bad"], MODEL)
    explainer = functools.partial(jxp.expected_gradients, samples=64)
    explain = explain_text(MODEL, explainer, references=references)
    keys = jax.random.split(jax.random.key(1), 200)
    draw = jax.vmap(lambda key: explain(MODEL.params, example(), key)["attribution"])
    drawn = jax.jit(draw)(keys)
    spread = drawn.scores.std(axis=0, ddof=1)
    # 200 draws know a spread to 5%; the bound may be loose, and must not be below it.
    assert (drawn.standard_error.mean(axis=0) >= 0.8 * spread).all()


def test_the_background_is_cut_and_repeated_around_special_tokens():
    seen = {}

    def spy(f, x, *, key=None, baselines):
        seen["baselines"] = baselines
        return jxp.saliency(f, x)

    references = background(["bad film", "", "a", "not very good film a bad"], MODEL)
    np.testing.assert_array_equal(references.lengths, [2, 1, 6])
    explain = explain_text(MODEL, spy, references=references)
    explain(MODEL.params, example(), jax.random.key(0))
    ids = lambda text: [1, *(WORDS[word] for word in text.split()), 2]
    expected = [ids("bad film bad film"), ids("a a a a"), ids("not very good film")]
    for row, want in zip(seen["baselines"], expected, strict=True):
        np.testing.assert_array_equal(row, embed(MODEL.params, jnp.array(want)))


def test_background_sentences_are_spread_over_the_data():
    texts = [" ".join(["a"] * (1 + i)) for i in range(10)]
    np.testing.assert_array_equal(background(texts, MODEL, 4).lengths, [1, 4, 7, 10])
    np.testing.assert_array_equal(background(texts, MODEL, 99).lengths, range(1, 11))
    with pytest.raises(JaxplainError, match="none of the background sentences"):
        background(["", " "], MODEL)


def test_baseline_tokens_are_refused_in_words():
    assert baseline_id("token:film", MODEL) == WORDS["film"]
    for baseline, message in {
        "token:": "not in its vocabulary",
        "token:zebra": "not in its vocabulary",
        "token:a film": "2 tokens",
        "blur": "'blur' is unknown: choose zeros",
    }.items():
        with pytest.raises(JaxplainError, match=message):
            baseline_id(baseline, MODEL)
    with pytest.raises(JaxplainError, match="has no mask token"):
        baseline_id("mask", MODEL._replace(mask_id=None))


def test_parameters_are_arguments():
    """Compiled once, the function follows its parameters; none is folded into the program."""
    explain = jax.jit(explain_text(MODEL, integrated(4), baseline="zeros"))
    key = jax.random.key(0)
    other = jax.tree.map(lambda p: 2 * p, MODEL.params)
    one, two = explain(MODEL.params, example(), key), explain(other, example(), key)
    assert explain._cache_size() == 1  # type: ignore[attr-defined]
    assert (one["logits"] != two["logits"]).all()
    consts = jax.make_jaxpr(explain_text(MODEL, integrated(4), baseline="zeros"))(
        MODEL.params, example(), key
    ).consts
    assert sum(np.size(c) for c in consts) < MODEL.params["table"].size
