"""LIME: by scikit-learn on the same design, by Captum's numbers, and by how its draws spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso, Ridge
from sklearn.metrics import pairwise_distances

from jaxplain.methods.lime import lime
from jaxplain.types import JaxplainError
from tests import small_models
from tests.helpers import close, quick_compile, within_errors

KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def explained(f, x, key=KEY, **options):
    """Compiled whole: one operation at a time takes several times as long here."""
    return jax.jit(lambda x: lime(f, x, key=key, **options))(x)


def multilayer(x):
    """Captum's BasicModel_MultiLayer, its first output."""
    return jnp.sum(jax.nn.relu(jnp.sum(x) + jnp.array([-10.0, 1.0, 1.0, 1.0]))) - 1


def design(f, x, groups, samples, baseline=0.0):
    """The coins that `lime` throws with KEY, after all ones, and f of each."""
    players = int(groups.max()) + 1
    coins = jax.random.bernoulli(KEY, 0.5, (samples - 1, players))
    held = np.concatenate([np.ones((1, players)), np.asarray(coins)])
    mixed = lambda on: f(jnp.where(on[groups] > 0, x, baseline))
    return held, np.asarray(jax.lax.map(mixed, jnp.asarray(held)))


@pytest.mark.parametrize(
    ("distance", "width", "alpha"),
    [
        ("cosine", None, 1.0),
        ("cosine", 0.1, 0.0),
        ("euclidean", None, 3.0),
        ("euclidean", 1.5, 1e-3),
    ],
)
def test_equals_scikit_learn_on_the_same_design(x64, distance, width, alpha):
    model = small_models.make("mlp", "f8")
    held, worth = design(model.f, model.x, np.arange(5), 200, baseline=0.2)
    got = explained(
        model.f,
        model.x,
        samples=200,
        baseline=0.2,
        distance=distance,
        kernel_width=width,
        regularization=alpha,
    )
    width = width or {"cosine": 0.25, "euclidean": 0.75 * 5**0.5}[distance]
    away = pairwise_distances(held, held[:1], metric=distance).ravel()
    weight = np.sqrt(np.exp(-(away**2) / width**2))  # LIME's own line
    ridge = Ridge(alpha=alpha).fit(held, worth, sample_weight=weight)
    close(got.scores, ridge.coef_)
    close(got.intercept, ridge.intercept_)
    close(got.r2, ridge.score(held, worth, sample_weight=weight))
    close(got.output, model.f(model.x))
    assert np.isnan(got.gap) and got.samples == 200


def test_the_lasso_of_captums_tests_is_moved_from_least_squares(x64):
    """Captum's published numbers are of a lasso with alpha 1, not of its default of .01."""
    x, groups = jnp.array([20.0, 50.0, 30.0]), np.arange(3)
    published = np.array([73.3716, 193.3349, 113.3349])
    got = explained(multilayer, x, samples=4000, kernel_width=1e3, regularization=0.0)
    # Of weights all alike, least squares are Banzhaf values: 10 less at one of 4 coalitions.
    within_errors(got.scores, np.array([77.5, 197.5, 117.5]), got.standard_error)
    # A lasso moves each by alpha over the variance of its coin, all of which is its bias.
    held, worth = design(multilayer, x, groups, 4000)
    lasso = Lasso(alpha=1.0).fit(held, worth).coef_
    np.testing.assert_allclose(lasso, published, atol=1)  # the tolerance of Captum's test
    within_errors(got.scores - 4, lasso, got.standard_error)
    np.testing.assert_allclose(got.scores - 4, published, atol=1)


def test_of_an_additive_function_it_is_exact():
    x = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0, 4.0]])}
    f = lambda x: 2 * jnp.sum(x["a"]) + x["b"][0, 0] - x["b"][0, 1] + 5
    groups = {"a": np.array([7, -1]), "b": np.array([[2, 7]])}
    got = explained(f, x, groups=groups, baseline=1.0, regularization=0.0, samples=50)
    close(got.scores, {"a": jnp.array([-3.0, 0.0]), "b": jnp.array([[2.0, -3.0]])})
    # a[1] is in no group, and stays.
    close(got.intercept, jnp.float32(2 * 3 + 1 - 1 + 5))
    assert got.r2 == pytest.approx(1, abs=1e-6)
    assert np.max(got.standard_error["a"]) < 2e-5  # rounding, of numbers of 10


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_errors_are_how_coefficients_spread(alpha):
    model = small_models.make("mlp")
    samples = 120
    options = {"samples": samples, "regularization": alpha, "distance": "euclidean"}
    run = jax.jit(jax.vmap(lambda key: lime(model.f, model.x, key=key, **options)))
    found = run(jax.random.split(KEY, 400))
    spread = np.std(found.scores, 0, ddof=1)
    claimed = np.sqrt(np.mean(np.square(found.standard_error), 0))
    # The spread of 400 runs is known to 1 / sqrt(800) = 3.5%: 4 of that.
    np.testing.assert_allclose(claimed, spread, rtol=0.15)
    # What is intended: all coalitions alike, x once more, as much ridge a sample.
    every = (np.arange(32)[:, None] >> np.arange(5)) & 1
    worth = np.asarray([model.f(model.x * on) for on in every])
    weight = np.exp(-(5 - every.sum(1)) / (0.75**2 * 5) / 2) * (samples - 1) / 32
    weight[-1] += 1
    want = Ridge(alpha=alpha or 1e-9).fit(every, worth, sample_weight=weight).coef_
    within_errors(np.mean(found.scores, 0), want, spread / 20)


def test_what_is_not_determined_is_nan():
    x, f = jnp.array([1.0, 2.0]), lambda x: x[0] * x[1] + x[0]
    # So narrow that all but x weigh 0.
    narrow = explained(f, x, kernel_width=1e-3)
    # Two groups that the coins of a few samples always switch together.
    keys = jax.random.split(KEY, 40)
    coins = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (3, 2)))(keys)
    key = keys[np.argmax(np.all(coins[..., 0] == coins[..., 1], axis=1))]
    together = explained(f, x, key, samples=4, regularization=0.0)
    for got in (narrow, together):
        for value in (got.scores, got.standard_error, got.intercept, got.r2):
            assert np.isnan(value).all()
        assert got.output == 3
    assert np.isfinite(explained(f, x, key, samples=4).scores).all()  # ridge shares it out
    constant = explained(lambda x: 0 * x[0] + 7.0, x)
    np.testing.assert_array_equal(constant.scores, 0)
    assert np.isnan(constant.r2) and constant.intercept == 7


def test_batches_chunks_and_keys():
    model = small_models.make("mlp")
    xs = jnp.stack([model.x, 2 * model.x])
    batch = jax.jit(
        lambda keys, xs: jax.vmap(lambda k, x: lime(model.f, x, key=k, samples=20))(keys, xs)
    )
    found = batch(jnp.stack([KEY, KEY]), xs)
    alone = explained(model.f, xs[1], samples=20, chunk=3)
    # A system of 5 unknowns from 20 samples, in float32.
    close(found.scores[1], alone.scores, factor=5)
    others = batch(jax.random.split(KEY), xs)
    assert np.abs(others.scores - found.scores).max(1).min() > 1e-3


def test_gradients_pass_through():
    """Of w x, with no ridge, coefficients are w x: their slope in w is x."""
    x = jnp.array([2.0, 3.0])
    first = lambda w: lime(lambda x: w * jnp.sum(x), x, key=KEY, regularization=0.0).scores[0]
    assert jax.jit(jax.grad(first))(1.5) == pytest.approx(2, rel=1e-4)  # sums of 1,000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": None}, "lime draws samples: pass key"),
        (
            {"samples": 4, "regularization": 0.0},
            "4 samples are too few for 3 groups: .* at least 5",
        ),
        ({"samples": 2}, "at least 3"),
        ({"samples": 2.5}, "samples must be a whole number"),
        ({"baseline": jnp.ones(2)}, "baseline has shape"),
        ({"groups": np.ones(2, int)}, "does not broadcast"),
        ({"distance": "manhattan"}, "distance must be 'cosine' or 'euclidean', not 'manhattan'"),
        ({"kernel_width": 0.0}, "kernel_width must be a number above 0, not 0.0"),
        ({"regularization": -1}, "regularization must be a number of at least 0, not -1"),
        ({"chunk": 0}, "chunk must be"),
    ],
)
def test_refused_in_one_line(options, words):
    with pytest.raises(JaxplainError, match=words) as caught:
        lime(jnp.sum, jnp.ones(3), **({"key": KEY} | options))
    assert "\n" not in str(caught.value)
