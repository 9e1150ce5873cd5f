"""Each method against a slow replica, published numbers, Captum's own, and bad input."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import JaxplainError, baselines
from jaxplain.methods.path import gauss_legendre
from jaxplain.methods.sampling import layout, moments
from tests import replicas, small_models
from tests.helpers import close, total, within_errors

GOLDENS = Path(__file__).parent / "goldens"


def flat_mlp():
    """An MLP in float64, its gradient as numpy sees it, and its example."""
    model = small_models.make("mlp", "f8")
    gradient = jax.jit(jax.grad(model.f))
    return model.f, lambda x: np.asarray(gradient(jnp.asarray(x))), np.asarray(model.x)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 32, 100, 257])
def test_gauss_legendre_is_numpys(steps):
    nodes, weights = gauss_legendre(steps)
    want_nodes, want_weights = np.polynomial.legendre.leggauss(steps)
    np.testing.assert_allclose(nodes, (want_nodes + 1) / 2, rtol=0, atol=1e-15)
    # Against long doubles, 257 weights of numpy's are off by 1.3e-12 of the largest; ours by 1e-14.
    np.testing.assert_allclose(weights, want_weights / 2, rtol=0, atol=5e-12 * weights.max())


def test_gauss_legendre_of_many_nodes_is_exact_for_a_high_power():
    nodes, weights = gauss_legendre(5000)
    assert weights @ nodes**9999 == pytest.approx(1e-4, rel=1e-10)


@pytest.mark.parametrize("chunk", [None, 1, 3, 4, 5, 7, 100])
def test_integrated_gradients_is_the_papers(x64, chunk):
    f, gradient, x = flat_mlp()
    start = np.linspace(-1, 1, 5)
    got = jxp.integrated_gradients(f, jnp.asarray(x), baseline=start, steps=7, chunk=chunk)
    close(got.scores, replicas.integrated_gradients(gradient, x, start, 7))
    close(got.output, f(x))
    # The gap is of the size of a quadrature error here, which makes its own rounding visible.
    assert float(got.gap) == pytest.approx(total(got.scores) - float(f(x) - f(start)), abs=1e-14)
    assert 1e-14 < abs(float(got.gap)) < 1e-2


def test_integrated_gradients_is_the_limit_of_the_papers_riemann_sum(x64):
    f, gradient, x = flat_mlp()
    got = jxp.integrated_gradients(f, jnp.asarray(x), steps=64).scores
    coarse, fine = (
        np.abs(replicas.riemann_integrated_gradients(gradient, x, 0 * x, n) - got).max()
        for n in (100, 1000)
    )
    assert fine == pytest.approx(coarse / 10, rel=0.05)  # a first-order rule, converging to it


@pytest.mark.parametrize(("count", "chunk"), [(1, 1), (7, 3), (32, 32), (32, 5), (5, 9), (100, 32)])
def test_layout_counts_every_term_once_and_wastes_less_than_a_row_count(count, chunk):
    index, real = layout(count, chunk)
    assert index[real].tolist() == list(range(count))
    assert index.shape[1] <= chunk and index.size - count < len(index)
    assert set(index[~real]) <= {count - 1} and real.any(1).all()


def test_chunk_does_not_change_how_often_f_is_evaluated():
    """Counted on the device: steps gradients (with fillers), and f at x and at the baseline."""
    count = []

    @jax.custom_jvp
    def f(x):
        jax.debug.callback(lambda: count.append("value"))
        return jnp.sum(x**2)

    @f.defjvp
    def _(primals, tangents):
        jax.debug.callback(lambda: count.append("gradient"))
        return jnp.sum(primals[0] ** 2), jnp.sum(2 * primals[0] * tangents[0])

    jax.block_until_ready(jxp.integrated_gradients(f, jnp.ones(3), steps=10))
    jax.effects_barrier()
    assert (count.count("gradient"), count.count("value")) == (10, 2)


def test_baseline_as_array_number_function_and_tree():
    model = small_models.make("tree")
    explain = partial(jxp.integrated_gradients, model.f, model.x, steps=8)
    want = explain(baseline=jax.tree.map(lambda v: jnp.full_like(v, 0.5), model.x))
    close(explain(baseline=0.5), want)
    close(explain(baseline=lambda x: jax.tree.map(lambda v: 0 * v + 0.5, x)), want)
    close(explain(), explain(baseline=baselines.zeros))


def test_oracle_rows_of_small_relu_networks():
    """Captum's own tests: integrated gradients of two forms of one function, and saliency."""
    relu = jax.nn.relu
    for f in (
        lambda x: relu(relu(x[0]) - 1 - relu(x[1])),
        lambda x: relu(relu(x[0] - 1) - relu(x[1])),
    ):
        got = jxp.integrated_gradients(f, jnp.array([3.0, 1.0]), steps=1000)
        # One kink: an error of the order of one node's weight, 1.5 / 1000.
        np.testing.assert_allclose(got.scores, [1.5, -0.5], atol=3e-3)
        assert abs(float(got.gap)) < 3e-3
    got = jxp.saliency(lambda x: jnp.sum(1 - relu(1 - x)), jnp.array([1.0, 2, 3, 0, -1, 7]))
    # At the kink, x = 1, any slope of 0 to 1 is a right one, and 0 is jax.nn.relu's.
    np.testing.assert_array_equal(got.scores, [0, 0, 0, 1, 1, 0])


@pytest.mark.parametrize("name", ["mlp", "cnn", "attention"])
def test_captum_goldens(x64, name):
    with np.load(GOLDENS / f"captum_{name}.npz") as stored:
        golden = {key: stored[key] for key in stored.files}
    params = {key[6:]: jnp.asarray(v) for key, v in golden.items() if key.startswith("param_")}
    apply = small_models.SHAPES[name][0]
    f = partial(apply, params)

    @jax.jit
    @jax.vmap
    def explain(x, start):
        ig = jxp.integrated_gradients(f, x, baseline=start, steps=int(golden["steps"]))
        return jxp.saliency(f, x).scores, jxp.input_x_gradient(f, x).scores, ig

    saliency, product, ig = explain(golden["x"], golden["baseline"])
    close(saliency, golden["saliency"])
    close(product, golden["input_x_gradient"])
    close(ig.output, golden["output"])
    # Captum rounds its step sizes to float32, in float64 runs too: 6e-8 / 2 a node, averaged.
    close(ig.scores, golden["integrated_gradients"], factor=2e-8 / 1e-12)


def test_expected_gradients_is_the_papers(key):
    model = small_models.make("mlp")
    gradient = jax.jit(jax.grad(model.f))
    starts = np.random.default_rng(1).normal(size=(4, 5)).astype("f4")
    got = jxp.expected_gradients(model.f, model.x, key=key, baselines=starts, samples=4000, chunk=9)
    x = np.asarray(model.x)
    want = replicas.expected_gradients(lambda v: np.asarray(gradient(v)), x, starts, 20)
    within_errors(got.scores, want, got.standard_error)
    assert np.abs(want).max() > 20 * float(got.standard_error.max())  # so that the test can fail
    mean = np.mean([model.f(b) for b in starts])
    assert float(got.gap) == pytest.approx(total(got.scores) - float(model.f(x) - mean), abs=1e-5)
    assert int(got.samples) == 4000


@pytest.mark.parametrize("chunk", [7, 20])  # with fillers, and without a loop
def test_sampling_does_not_depend_on_chunk(key, chunk):
    model = small_models.make("tree")
    starts = jax.tree.map(lambda v: jnp.stack([v * 0, v + 1, v - 1]), model.x)
    for explain in (
        partial(jxp.expected_gradients, baselines=starts, samples=20),
        jxp.smooth(jxp.saliency, samples=20, statistic="variance"),
    ):
        one, many = (jax.jit(partial(explain, model.f, chunk=c)) for c in (1, chunk))
        got, want = many(model.x, key=key), one(model.x, key=key)
        for field in ("scores", "standard_error", "output", "samples"):
            close(getattr(got, field), getattr(want, field), factor=5)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_moments_are_numpys_whatever_the_mean(shift, chunk):
    data = np.random.default_rng(0).gamma(2.0, size=(100, 3)).astype("f4") + np.float32(shift)
    got = jax.jit(lambda: moments(lambda i: jnp.asarray(data)[i], 100, chunk))()
    data = data.astype("f8")
    d = data - data.mean(0)
    # The mean is carried in float32: off by some 1e-5 at a mean of 1000, and third moments by
    # 3 n var times that. Plain sums of powers would be off by 1e-7 * 1000^4.
    close(got.mean, data.mean(0))
    for power, found in ((2, got.second), (3, got.third), (4, got.fourth)):
        np.testing.assert_allclose(found, (d**power).sum(0), rtol=2e-3 if shift else 1e-4)


def smooth_case():
    model = small_models.make("mlp")
    gradient = jax.jit(jax.vmap(jax.grad(model.f)))
    x = np.asarray(model.x)
    deviation = 0.15 * (x.max() - x.min())
    draws = np.random.default_rng(3).normal(size=(20000, 5)) * deviation
    return model, np.asarray(gradient((x + draws).astype("f4")), "f8")


@pytest.mark.parametrize(
    ("statistic", "reduce"),
    [
        ("mean", lambda g: g.mean(0)),
        ("square", lambda g: (g**2).mean(0)),
        ("variance", lambda g: g.var(0, ddof=1)),
    ],
)
def test_smooth_is_the_papers(key, statistic, reduce):
    model, gradients = smooth_case()
    method = partial(jxp.saliency, absolute=False)
    explain = jxp.smooth(method, samples=4000, statistic=statistic, chunk=100)
    got = explain(model.f, model.x, key=key)
    want = reduce(gradients)
    # `want` has an error of its own, smaller by the root of 20000 / 4000.
    within_errors(got.scores, want, got.standard_error * 1.1)
    assert np.isnan(got.gap) and float(got.output) == pytest.approx(float(model.f(model.x)))
    assert np.abs(want).max() > 10 * float(got.standard_error.max())  # so that the test can fail


@pytest.mark.parametrize("statistic", ["mean", "square", "variance"])
def test_standard_errors_are_the_spread_of_repeated_runs(key, statistic):
    model = small_models.make("mlp")
    method = partial(jxp.saliency, absolute=False)
    explain = jxp.smooth(method, samples=100, statistic=statistic, level=0.3)
    runs = jax.jit(jax.vmap(lambda k: explain(model.f, model.x, key=k)))(jax.random.split(key, 400))
    spread = np.std(runs.scores, axis=0, ddof=1)
    # A spread from 400 runs is good to 1 / sqrt(800) = 4%; 5 of those.
    claimed = np.sqrt(np.mean(np.square(runs.standard_error), axis=0))
    np.testing.assert_allclose(claimed, spread, rtol=0.2)


def test_smooth_over_a_stochastic_method_gives_it_a_key_of_its_own(key):
    def method(f, x, *, key=None):
        assert key is not None
        del f
        return jxp.Attribution(x * 0 + jax.random.uniform(key), x, x)

    got = jxp.smooth(method, samples=200)(jnp.sum, jnp.ones(2), key=key)
    error = np.sqrt(1 / 12 / 200)
    assert abs(float(got.scores[0]) - 0.5) < 5 * error
    assert float(got.standard_error[0]) == pytest.approx(error, rel=0.2)


def test_noise_has_the_width_asked_for(key):
    x = {"a": jnp.array([0.0, 10.0, 1000.0]), "b": jnp.array([1.0, 3.0])}
    where = {"a": jnp.array([True, True, False]), "b": jnp.array([True, True])}
    method = lambda f, x, *, key=None: jxp.Attribution(x, f(x), f(x))
    f = lambda x: jnp.sum(x["a"])
    explain = jxp.smooth(method, samples=2000, statistic="variance", level=0.1)
    got = explain(f, x, key=key, where=where)
    want = {"a": jnp.array([1.0, 1.0, 0.0]), "b": jnp.array([0.04, 0.04])}
    within_errors(got.scores, want, got.standard_error)
    assert float(got.scores["a"][2]) == 0
    got = explain(f, x, key=key, deviation={"a": jnp.array([1.0, 2.0, 3.0]), "b": 0.5})
    want = {"a": jnp.array([1.0, 4.0, 9.0]), "b": jnp.array([0.25, 0.25])}
    within_errors(got.scores, want, got.standard_error)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 30.0])
def test_blur_is_a_weighted_mean_of_pixels(x64, sigma):
    image = np.random.default_rng(0).normal(size=(9, 7, 2))
    got = np.asarray(baselines.blur(jnp.asarray(image), sigma=sigma))
    for channel in range(2):
        close(got[..., channel], replicas.gaussian_blur(image[..., channel], sigma))
    flat = baselines.blur(jnp.full((5, 6), 2.0), sigma=sigma)
    close(flat, jnp.full((5, 6), 2.0))


def test_blur_and_mean_of_signals_and_batches():
    signal = jnp.sin(jnp.arange(20.0)).reshape(2, 10)
    blur = partial(baselines.blur, sigma=1.5, axes=(0,))
    close(jax.vmap(blur)(signal), jnp.stack([blur(s) for s in signal]))
    close(baselines.blur(signal, sigma=1.5, axes=(-1,)), jax.vmap(blur)(signal))
    close(baselines.mean(signal, axes=1), jnp.broadcast_to(signal.mean(1, keepdims=True), (2, 10)))
    where = jnp.arange(10) < 3
    want = jnp.broadcast_to(signal[:, :3].mean(1, keepdims=True), (2, 10))
    close(baselines.mean(signal, axes=1, where=where), want)


@pytest.mark.parametrize(
    ("name", "dtype"), [("mlp", "bfloat16"), ("attention", "bfloat16"), ("attention", "float16")]
)
def test_half_precision_sums_in_float32(name, dtype, key):
    half = small_models.make(name, dtype)
    exact = small_models.make(name)
    x = half.x.astype("f4")
    got = jax.jit(partial(jxp.integrated_gradients, half.f, steps=512))(half.x)
    want = jax.jit(partial(jxp.integrated_gradients, exact.f, steps=512))(x)
    assert got.scores.dtype == got.gap.dtype == jnp.float32 and got.output.dtype == dtype
    # The network rounds each gradient and its weights to `dtype`; a sum of 512 terms kept in
    # `dtype` would be off by some 512 / 2 roundings of it, 1 and more in bfloat16.
    close(got.scores, want.scores, dtype=dtype, factor=2)
    smooth = jax.jit(partial(jxp.smooth(jxp.saliency, samples=8), half.f))(half.x, key=key)
    assert smooth.scores.dtype == jnp.float32
    assert jxp.saliency(half.f, half.x).scores.dtype == dtype


ONES = jnp.ones(3)
KEY = jax.random.key(0)
IG, EG = jxp.integrated_gradients, jxp.expected_gradients


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: IG(jnp.sum, ONES, steps=0), "steps must be a whole number of at least 1, not 0"),
        (lambda: IG(jnp.sum, ONES, steps=2.5), "steps must be a whole number of at least 1"),  # pyright: ignore
        (lambda: IG(jnp.sum, ONES, chunk=0), "chunk must be a whole number of at least 1, not 0"),
        (lambda: IG(jnp.sum, ONES, baseline=jnp.ones(2)), r"baseline has shape \[2\]"),
        (lambda: IG(jnp.sum, ONES, baseline={"a": 1.0}), "baseline has structure"),
        (lambda: IG(jnp.sin, ONES), r"one floating-point scalar, and returned float32\[3\]"),
        (lambda: jxp.saliency(jnp.sum, jnp.arange(3)), "only floating-point inputs"),
        (lambda: jxp.input_x_gradient(lambda x: (x, x), ONES), "must return one scalar"),  # pyright: ignore
        (lambda: jxp.saliency(lambda x: 1.0, {}), "nothing to explain"),  # pyright: ignore
        (lambda: EG(jnp.sum, ONES, baselines=jnp.ones((2, 3))), "expected_gradients draws samples"),
        (
            lambda: EG(jnp.sum, ONES, key=KEY, baselines=ONES),
            r"baselines has shape \[3\], and needs \[K, 3\], for K of at least 1",
        ),
        (lambda: EG(jnp.sum, ONES, key=KEY, baselines=jnp.ones((0, 3))), "K of at least 1"),
        (lambda: EG(jnp.sum, ONES, key=KEY, baselines={"a": ONES}), "baselines has structure"),
        (
            lambda: EG(jnp.sum, ONES, key=KEY, baselines=jnp.ones((2, 3)), samples=1),
            "samples must be at least 2",
        ),
        (lambda: jxp.smooth(jxp.saliency)(jnp.sum, ONES), "smooth draws samples"),
        (lambda: jxp.smooth(jxp.saliency, samples=1)(jnp.sum, ONES, key=KEY), "at least 2"),
        (lambda: jxp.smooth(jxp.saliency, level=-1)(jnp.sum, ONES, key=KEY), "level must be"),
        (
            lambda: jxp.smooth(jxp.saliency, statistic="mode")(jnp.sum, ONES, key=KEY),  # pyright: ignore
            "statistic must be one of mean, square, variance, not 'mode'",
        ),
        (
            lambda: jxp.smooth(jxp.saliency, deviation=jnp.ones(2))(jnp.sum, ONES, key=KEY),
            r"deviation has shape \[2\]",
        ),
        (lambda: baselines.blur(ONES), r"blur along axes \(0, 1\) needs them in x"),
        (lambda: baselines.blur(ONES, sigma=0), "sigma must be above 0, not 0"),
        (
            lambda: baselines.token(jnp.ones((4, 3)), embedding=ONES, keep=jnp.ones(3, bool)),
            r"keep has shape \[3\], and x \[4, 3\]",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(JaxplainError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
