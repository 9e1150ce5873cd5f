"""Ablation, occlusion and Shapley values: by replicas, published numbers and another library's."""

import itertools
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxplain as jxp
from jaxplain.methods import regression
from jaxplain.types import JaxplainError
from tests import small_models
from tests.helpers import close, quick_compile, total, within_errors

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ("mlp", "cnn", "attention")


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def explained(method, f, x, **options):
    """Compiled whole: one operation at a time takes several times as long here."""
    return jax.jit(lambda x: method(f, x, **options))(x)


def multilayer(x):
    """Captum's BasicModel_MultiLayer, its first output."""
    h = jax.nn.relu(jnp.sum(x) + jnp.array([-10.0, 1.0, 1.0, 1.0]))
    return jnp.sum(h) - 1


ROW, OTHER = jnp.array([20.0, 50.0, 30.0]), jnp.array([2.0, 10.0, 3.0])
PAIRED = np.array([0, 0, 1])


@pytest.mark.parametrize(
    ("x", "options", "want"),
    [
        (ROW, {}, [80, 200, 120]),
        (OTHER, {}, [8, 35, 12]),
        (ROW, {"groups": PAIRED}, [280, 280, 120]),
        (ROW, {"groups": PAIRED, "baseline": 4.0}, [248, 248, 104]),
    ],
)
def test_ablation_of_captums_tests(x, options, want):
    np.testing.assert_array_equal(
        explained(jxp.feature_ablation, multilayer, x, **options).scores, want
    )


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, [80, 200, 120]),
        ({"window": 2, "strides": 1, "baseline": 10.0}, [200, 220, 240]),
        ({"window": (2,), "strides": (2,)}, [280, 280, 120]),
    ],
)
def test_occlusion_of_captums_tests(options, want):
    np.testing.assert_array_equal(explained(jxp.occlusion, multilayer, ROW, **options).scores, want)


@pytest.mark.parametrize(
    ("x", "options", "want"),
    [
        (ROW, {}, [76.6667, 196.6667, 116.6667]),
        (OTHER, {}, [7, 32.5, 10.5]),
        (ROW, {"groups": PAIRED}, [275, 275, 115]),
        (ROW, {"groups": PAIRED, "baseline": 4.0}, [248, 248, 104]),
    ],
)
def test_shapley_values_of_captums_tests(x, options, want):
    got = explained(jxp.exact_shapley, multilayer, x, **options)
    np.testing.assert_allclose(got.scores, want, rtol=1e-6)  # the published digits


@pytest.mark.parametrize("name", NAMES)
def test_captum_goldens(x64, name):
    with np.load(GOLDENS / f"captum_{name}.npz") as stored:
        params = {k[6:]: jnp.asarray(stored[k]) for k in stored.files if k.startswith("param_")}
        x, start = stored["x"], stored["baseline"]
    with np.load(GOLDENS / "perturbation.npz") as stored:
        golden = {k.removeprefix(f"{name}_"): stored[k] for k in stored.files}
    f, groups = partial(small_models.SHAPES[name][0], params), golden["groups"]
    sizes = [tuple(golden[k].tolist()) for k in ("window", "strides")]

    @jax.jit
    @jax.vmap
    def explain(x, start):
        return {
            "ablation": explained(jxp.feature_ablation, f, x, baseline=start),
            "grouped": explained(jxp.feature_ablation, f, x, baseline=start, groups=groups),
            "occlusion": explained(
                jxp.occlusion, f, x, window=sizes[0], strides=sizes[1], baseline=start
            ),
            "shapley": explained(jxp.exact_shapley, f, x, baseline=start, groups=groups),
        }

    for key, got in explain(x, start).items():
        scores = jnp.broadcast_to(got.scores, x.shape)
        # Captum keeps the results of these methods in float32, whatever the network's dtype, and
        # adds up Shapley values over all orders in it, here those of at most 6 players.
        terms = math.factorial(6) if key == "shapley" else 4
        close(scores, golden[key], factor=terms * 6e-8 / 1e-12)


def enumerated(worth, players):
    """Shapley's own sum over all orders, slowly."""
    values = np.zeros(players)
    for order in itertools.permutations(range(players)):
        kept = np.zeros(players, bool)
        for player in order:
            before = worth(kept)
            kept[player] = True
            values[player] += worth(kept) - before
    return values / math.factorial(players)


def random_game(players, seed=0):
    """A function whose worth is another number for every coalition, of x = 1 and baseline 0."""
    table = np.random.default_rng(seed).normal(size=2**players).astype("f4")
    powers = 2 ** np.arange(players)
    f = lambda x: jnp.asarray(table)[jnp.sum((x > 0.5) * powers)]
    return f, lambda kept: float(table[np.sum(kept * powers)])


@pytest.mark.parametrize("players", [1, 2, 5])
def test_exact_shapley_is_the_mean_over_all_orders(players):
    f, worth = random_game(players)
    got = explained(jxp.exact_shapley, f, jnp.ones(players), chunk=7)
    close(got.scores, jnp.asarray(enumerated(worth, players), jnp.float32))
    assert abs(float(got.gap)) < 1e-5  # sums of 32 numbers of size 1 in float32


def test_the_marginal_game_is_the_mean_of_the_baseline_games():
    model = small_models.make("mlp")
    others = jnp.asarray(np.random.default_rng(3).normal(size=(4, 5)), jnp.float32)
    got = explained(jxp.exact_shapley, model.f, model.x, baselines=others, chunk=3)
    each = [explained(jxp.exact_shapley, model.f, model.x, baseline=b) for b in others]
    close(got.scores, jnp.mean(jnp.stack([a.scores for a in each]), 0))
    assert got.gap == pytest.approx(0, abs=1e-5)
    sampled = jxp.shapley_sampling(
        model.f, model.x, baselines=others, key=jax.random.key(0), samples=200
    )
    within_errors(sampled.scores, got.scores, sampled.standard_error)


def test_sampling_is_unbiased_and_its_errors_are_right():
    f, worth = random_game(6, seed=1)
    want = enumerated(worth, 6)
    x = jnp.ones(6)
    run = jax.jit(jax.vmap(lambda key: jxp.shapley_sampling(f, x, key=key, samples=40)))
    found = run(jax.random.split(jax.random.key(0), 300))
    away = (np.asarray(found.scores) - want) / np.asarray(found.standard_error)
    # 20 pairs: a t distribution of 19 degrees, of which 2.093 errors hold 95%. 1,800 values, of
    # which the six of a run hang together: 95 +- 4 is over 5 deviations of 300 independent ones.
    assert 91 < 100 * np.mean(np.abs(away) < 2.093) < 99
    mean = np.mean(found.scores, 0)
    within_errors(mean, want, np.std(found.scores, 0, ddof=1) / 300**0.5)
    assert np.abs(found.gap).max() < 1e-5
    assert (found.samples == 40).all()


def test_pairs_of_orders_cancel_what_is_symmetric():
    """Of products of two, an order and its reverse give each its half, exactly."""
    f = lambda x: x[0] * x[1] + x[1] * x[2] + x[3]
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    got = jxp.shapley_sampling(f, x, key=jax.random.key(0), samples=4)
    np.testing.assert_array_equal(got.scores, [1, 4, 3, 4])
    np.testing.assert_array_equal(got.standard_error, 0)


def test_groups_over_a_tree_and_entries_of_nobody():
    x = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0, 4.0]])}
    f = lambda x: jnp.sum(x["a"]) * x["b"][0, 0] + x["b"][0, 1]
    groups = {
        "a": np.array([9, -1]),
        "b": np.array(
            [
                [9],
            ]
        )
        * np.ones((1, 2), int),
    }
    for got in (
        explained(jxp.feature_ablation, f, x, groups=groups),
        explained(jxp.exact_shapley, f, x, groups=groups),
        explained(jxp.shapley_sampling, f, x, groups=groups, key=jax.random.key(0)),
    ):
        # a[1] stays, whoever else does: nobody's worth is 2 * 0 + 0, and the one group's all.
        np.testing.assert_array_equal(got.scores["a"], [13, 0])
        np.testing.assert_array_equal(got.scores["b"], [[13, 13]])


def test_chunks_change_nothing():
    model = small_models.make("tree")
    key = jax.random.key(1)

    @partial(jax.jit, static_argnums=0)
    def explain(chunk, x):
        return [
            explained(jxp.feature_ablation, model.f, x, chunk=chunk),
            explained(jxp.exact_shapley, model.f, x, chunk=chunk),
            explained(jxp.occlusion, model.f, x, chunk=chunk),
            jxp.shapley_sampling(model.f, x, key=key, samples=6, chunk=chunk),
        ]

    want = [a.scores for a in explain(None, model.x)]
    for chunk in (1, 3, 100):
        close([a.scores for a in explain(chunk, model.x)], want)


def test_memory_does_not_grow_with_samples_or_windows(monkeypatch):
    monkeypatch.setattr(regression, "ROWS", 16)  # a block, of which 60 pairs make several
    model = small_models.make("cnn")

    def taken(explain):
        stats = jax.jit(explain).lower(model.x).compile().memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes

    sampled = lambda n: (
        lambda x: jxp.shapley_sampling(model.f, x, key=jax.random.key(0), samples=n, chunk=4)
    )
    assert taken(sampled(400)) < 1.1 * taken(sampled(40))
    groups = np.arange(8)[:, None, None]
    fitted = lambda n: (
        lambda x: jxp.kernel_shap(
            model.f, x, key=jax.random.key(0), groups=groups, samples=n, chunk=4
        )
    )
    # A number for what each coalition is worth.
    assert taken(fitted(240)) < taken(fitted(120)) + 16 * 120
    slid = lambda w: lambda x: jxp.occlusion(model.f, x, window=w, chunk=4)
    # 4 windows of half the side, against 128 single entries: a byte or two for each of these.
    assert taken(slid(1)) < taken(slid((4, 4, 2))) + 2 * model.x.nbytes


@pytest.mark.parametrize("method", [jxp.exact_shapley, jxp.shapley_sampling])
def test_gradients_pass_through(method):
    """Values of x * w and y * w are x * w and y * w: their slope in w is x and y."""
    x = jnp.array([2.0, 3.0])

    def first(w):
        return method(lambda x: jnp.sum(x) * w, x, key=jax.random.key(0)).scores[0]

    assert jax.jit(jax.grad(first))(1.5) == pytest.approx(2.0)


def test_eight_devices_equal_one():
    model = small_models.make("cnn")
    xs = jnp.stack([model.x + 0.1 * i for i in range(8)])
    keys = jax.random.split(jax.random.key(0), 8)
    groups = np.arange(8)[:, None, None] // 2
    explain = jax.jit(
        jax.vmap(
            lambda x, key: (
                explained(jxp.occlusion, model.f, x, window=4).scores,
                jxp.shapley_sampling(model.f, x, groups=groups, key=key, samples=4).scores,
            )
        )
    )
    rows = NamedSharding(Mesh(np.asarray(jax.devices()), ("data",)), PartitionSpec("data"))
    close(explain(*jax.device_put((xs, keys), rows)), explain(xs, keys))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, x: jxp.exact_shapley(f, jnp.ones(17)), r"17 players have 2\^17 coalitions"),
        (lambda f, x: jxp.shapley_sampling(f, x), "draws samples: pass key"),
        (
            lambda f, x: jxp.shapley_sampling(f, x, key=jax.random.key(0), samples=5),
            "samples must be an even number of at least 4, not 5",
        ),
        (
            lambda f, x: jxp.exact_shapley(f, x, baseline=0.0, baselines=x[None]),
            "give baseline or baselines, not both",
        ),
        (lambda f, x: jxp.exact_shapley(f, x, baselines=x), "baselines has shape"),
        (lambda f, x: jxp.feature_ablation(f, x, baseline=jnp.ones(2)), "baseline has shape"),
        (lambda f, x: jxp.feature_ablation(f, x, chunk=0), "chunk must be"),
        (lambda f, x: jxp.feature_ablation(f, x, groups=np.ones(3)), "whole numbers .* float64"),
        (lambda f, x: jxp.feature_ablation(f, x, groups=np.ones(2, int)), "does not broadcast"),
        (lambda f, x: jxp.feature_ablation(f, x, groups=[np.ones(3, int)]), "groups has structure"),
        (lambda f, x: jxp.feature_ablation(f, x, groups=-np.ones(3, int)), "has no group"),
        (
            lambda f, x: jax.jit(lambda g: jxp.feature_ablation(f, x, groups=g))(PAIRED),
            "known beforehand, not traced",
        ),
        (lambda f, x: jxp.occlusion(f, x, window=2, strides=3), "go beyond the window"),
        (lambda f, x: jxp.occlusion(f, x, window=(2, 2)), "one for each of the 1 axes"),
        (lambda f, x: jxp.occlusion(f, x, window=0), "at least 1"),
        (lambda f, x: jxp.occlusion(f, x, window={"a": 1}), "one for each of the 1 axes"),
        (lambda f, x: jxp.occlusion(lambda x: x[0][0], (x, x), window={}), "x's tree of tuples"),
        (lambda f, x: jxp.occlusion(lambda x: x, x), "f must return one"),
    ],
)
def test_refused_in_one_line(call, words):
    with pytest.raises(JaxplainError, match=words) as caught:
        call(jnp.sum, jnp.ones(3))
    assert "\n" not in str(caught.value)


def test_values_add_up():
    model = small_models.make("attention")
    groups = np.arange(6)[:, None]
    got = explained(jxp.exact_shapley, model.f, model.x, groups=groups)
    assert got.scores.shape == (6, 1)
    want = float(model.f(model.x) - model.f(jnp.zeros_like(model.x)))
    assert total(got.scores) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("players", [1, 2, 3, 7])
def test_kernel_shap_of_all_coalitions_is_exact(players):
    f, _ = random_game(players)
    got = explained(jxp.kernel_shap, f, jnp.ones(players), key=jax.random.key(0))
    assert int(got.samples) == 2**players - 2
    # A system of up to 6 unknowns in float32, of condition below 10.
    close(got.scores, explained(jxp.exact_shapley, f, jnp.ones(players)).scores, factor=5)
    np.testing.assert_array_equal(got.standard_error, 0)
    assert abs(float(got.gap)) < 1e-5


def test_kernel_shap_of_captums_tests():
    got = jxp.kernel_shap(
        multilayer, ROW, key=jax.random.key(0), baseline=jnp.array([10.0, 20, 10])
    )
    np.testing.assert_allclose(got.scores, [40, 120, 80], rtol=1e-5)


def test_kernel_shap_is_right_within_errors_that_are_right():
    f, _ = random_game(8, seed=2)
    want = np.asarray(explained(jxp.exact_shapley, f, jnp.ones(8)).scores)
    run = jax.jit(jax.vmap(lambda key: jxp.kernel_shap(f, jnp.ones(8), key=key, samples=120)))
    found = run(jax.random.split(jax.random.key(0), 300))
    away = (np.asarray(found.scores) - want) / np.asarray(found.standard_error)
    # 8 pairs are single players and all others, and 52 are drawn, which have 56% of the weight, and
    # so of the 7 unknowns: 2.011 errors hold 95%; as for sampled orders, within 4.
    assert 91 < 100 * np.mean(np.abs(away) < 2.011) < 99
    # Least squares with a drawn system is off by a share of 1 / samples: below the mean's error.
    mean = np.mean(found.scores, 0)
    within_errors(mean, want, np.std(found.scores, 0, ddof=1) / 300**0.5)
    assert np.abs(found.gap).max() < 1e-5


def test_kernel_shap_of_the_marginal_game():
    model = small_models.make("mlp")
    others = jnp.asarray(np.random.default_rng(3).normal(size=(4, 5)), jnp.float32)
    got = explained(jxp.kernel_shap, model.f, model.x, key=jax.random.key(0), baselines=others)
    close(
        got.scores,
        explained(jxp.exact_shapley, model.f, model.x, baselines=others).scores,
        factor=5,
    )


@pytest.mark.parametrize(
    ("samples", "words"),
    [(30, "30 samples are too few for 10 players: draw at least 40"), (41, "even number, not 41")],
)
def test_kernel_shap_refuses(samples, words):
    with pytest.raises(JaxplainError, match=words):
        jxp.kernel_shap(jnp.sum, jnp.ones(10), key=jax.random.key(0), samples=samples)


def test_kernel_shap_equals_shaps(x64):
    with np.load(GOLDENS / "captum_mlp.npz") as stored:
        params = {k[6:]: jnp.asarray(stored[k]) for k in stored.files if k.startswith("param_")}
        xs = jnp.asarray(stored["x"])
    with np.load(GOLDENS / "shap.npz") as stored:
        values, background = stored["values"], jnp.asarray(stored["background"])
    f, key = partial(small_models.SHAPES["mlp"][0], params), jax.random.key(0)
    explain = jax.vmap(lambda x: jxp.kernel_shap(f, x, key=key, baselines=background))
    close(jax.jit(explain)(xs).scores, jnp.asarray(values))
