"""Owen values and interactions: by definition, slowly; by shap and shapiq; by what they promise."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.methods.interactions import shapley_interactions
from jaxplain.methods.owen import exact_owen, owen_sampling
from jaxplain.methods.shapley import exact_shapley
from jaxplain.types import JaxplainError
from tests import small_models
from tests.helpers import close, quick_compile, within_errors

GOLDENS = Path(__file__).parent / "goldens"
KEY = jax.random.key(0)
EACH = np.arange(5)
UNIONS = np.array([4, 1, 4, 1, 4])
LEVELS = np.array([[0, 0, 0, 1, 0], [2, 5, 2, 5, 1]])


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def explained(method, f, x, **options):
    """Compiled whole: one operation at a time takes several times as long here."""
    return jax.jit(lambda x: method(f, x, **options))(x)


def game_of(table):
    """A function whose worth is another number for every coalition, of x = 1 and baseline 0."""
    powers = 2 ** np.arange(len(table).bit_length() - 1)
    f = lambda x: jnp.asarray(table)[jnp.sum((x > 0.5) * powers)]
    return f, lambda kept: float(table[np.sum(kept * powers)])


def random_game(players, seed=0):
    return game_of(np.random.default_rng(seed).normal(size=2**players).astype("f4"))


def enumerated(worth, levels):
    """The mean over all orders that keep each level's unions together, slowly."""
    players = levels.shape[1]
    paths = [[tuple(levels[:n, p]) for n in range(1, len(levels) + 1)] for p in range(players)]
    values, orders = np.zeros(players), 0

    def together(order):
        for n in range(len(levels)):
            runs = [name for name, _ in itertools.groupby(paths[p][n] for p in order)]
            if len(runs) != len(set(runs)):
                return False
        return True

    for order in filter(together, itertools.permutations(range(players))):
        kept, orders = np.zeros(players, bool), orders + 1
        for player in order:
            before = worth(kept)
            kept[player] = True
            values[player] += worth(kept) - before
    return values / orders


@pytest.mark.parametrize("unions", [UNIONS, LEVELS, np.array([0, 1, 1, 1, 1])])
def test_owen_values_are_the_mean_over_orders_that_keep_unions_together(unions):
    f, worth = random_game(5)
    got = explained(exact_owen, f, jnp.ones(5), unions=unions, chunk=7)
    want = enumerated(worth, np.atleast_2d(unions))
    close(got.scores, jnp.asarray(want, jnp.float32))
    assert abs(float(got.gap)) < 1e-5  # sums of some 20 numbers of size 1 in float32


@pytest.mark.parametrize("unions", [EACH, 0 * EACH, np.stack([0 * EACH, EACH, EACH])])
def test_of_one_union_or_of_single_ones_they_are_shapley_values(unions):
    f, _ = random_game(5, seed=1)
    want = explained(exact_shapley, f, jnp.ones(5)).scores
    close(explained(exact_owen, f, jnp.ones(5), unions=unions).scores, want)


def test_a_unions_values_sum_to_its_shapley_value_as_one_player():
    f, _ = random_game(5, seed=2)
    got = explained(exact_owen, f, jnp.ones(5), unions=UNIONS).scores
    want = explained(exact_shapley, f, jnp.ones(5), groups=UNIONS).scores
    sums = jnp.stack([jnp.sum(got[UNIONS == u]) for u in UNIONS])
    close(sums, want)


def test_players_of_a_union_that_f_treats_alike_score_alike():
    f = lambda x: jnp.tanh(x[0] * x[1] + x[2]) + x[0] + x[1] + x[2] * x[3]
    x = jnp.array([0.7, 0.7, -1.3, 0.4])
    got = explained(exact_owen, f, x, unions=np.array([0, 0, 1, 1])).scores
    close(got[0], got[1])
    # In two unions they need not: whom one meets first is another.
    apart = explained(exact_owen, f, x, unions=np.array([0, 1, 1, 0])).scores
    assert abs(float(apart[0] - apart[1])) > 0.01


@pytest.mark.parametrize("name", ["pairs", "one", "two"])
def test_owen_values_equal_shaps(x64, name):
    """Its Partition explainer for a tree of pairs, its Coalition explainer for the others."""
    with np.load(GOLDENS / "unions.npz") as stored:
        table, unions, want = stored["table"], stored[f"unions_{name}"], stored[name]
    got = explained(exact_owen, game_of(table)[0], jnp.ones(8), unions=unions)
    close(got.scores, want)


@pytest.mark.usefixtures("optimized")
def test_sampled_owen_values_are_right_within_errors_that_are_right():
    f, worth = random_game(6, seed=3)
    unions = np.array([0, 0, 0, 1, 1, 2])
    want = enumerated(worth, unions[None])
    sampled = partial(owen_sampling, f, jnp.ones(6), unions=unions, samples=40)
    found = jax.jit(jax.vmap(lambda key: sampled(key=key)))(jax.random.split(KEY, 300))
    away = (np.asarray(found.scores) - want) / np.asarray(found.standard_error)
    # 20 pairs: a t distribution of 19 degrees, of which 2.093 errors hold 95%. 1,800 values, of
    # which the six of a run hang together: 95 +- 4 is over 5 deviations of 300 independent ones.
    assert 91 < 100 * np.mean(np.abs(away) < 2.093) < 99
    mean = np.mean(found.scores, 0)
    within_errors(mean, want, np.std(found.scores, 0, ddof=1) / 300**0.5)
    assert np.abs(found.gap).max() < 1e-5
    assert (found.samples == 40).all()


def test_sampled_orders_keep_every_level_together():
    """Of a player alone against the rest, an order and its reverse are all there is to know."""
    f, worth = random_game(5, seed=3)
    got = explained(owen_sampling, f, jnp.ones(5), unions=LEVELS, key=KEY, samples=800)
    want = enumerated(worth, LEVELS)
    assert got.standard_error[3] < 1e-6 and got.standard_error[0] > 0.01
    within_errors(got.scores, want, got.standard_error)


def test_owen_values_over_a_tree_with_a_background():
    model = small_models.make("tree")
    groups = {"a": np.array([0, 1, -1]), "b": (np.array([[2], [3]]), 4)}
    others = jax.tree.map(lambda v: jnp.stack([0 * v, 0.3 + 0 * v]), model.x)
    options = {"groups": groups, "baselines": others, "unions": np.array([0, 0, 1, 1, 1])}
    got = explained(exact_owen, model.f, model.x, **options)
    sampled = explained(owen_sampling, model.f, model.x, key=KEY, samples=60, **options)
    assert got.scores["a"][2] == 0 and got.scores["b"][0].shape == (2, 1)
    within_errors(sampled.scores, got.scores, sampled.standard_error)
    one = {"groups": jax.tree.map(lambda g: 0 * g, groups), "unions": np.zeros(1, int)}
    whole = explained(exact_owen, model.f, model.x, **one)
    also = explained(owen_sampling, model.f, model.x, key=KEY, **one)
    close(whole.scores, also.scores)


def test_many_players_in_pairs_are_few_coalitions():
    """64 players, whose coalitions are 2^64: in a balanced tree of pairs, 2,732."""
    weights = jnp.linspace(-1, 1, 64)
    unions = np.stack([np.arange(64) // 2**k for k in range(5, 0, -1)])
    f = lambda x: weights @ x + x[0] * x[1] * x[63]
    got = explained(exact_owen, f, jnp.ones(64), unions=unions)
    # Of a product of three the half goes to the tree's half with one of them, the rest to the pair.
    want = weights + jnp.zeros(64).at[jnp.array([0, 1, 63])].set(jnp.array([0.25, 0.25, 0.5]))
    close(got.scores, want)


def by_definition(worth, m, index):
    """Interactions of pairs from the papers' sums over coalitions of the others, slowly."""
    kept = lambda players: np.isin(np.arange(m), list(players))

    def alone(i, weight):
        others = [p for p in range(m) if p != i]
        return sum(
            weight(t) * (worth(kept({*chosen, i})) - worth(kept(chosen)))
            for t in range(m)
            for chosen in itertools.combinations(others, t)
        )

    def pair(i, j, weight):
        others = [p for p in range(m) if p not in (i, j)]
        found = 0.0
        for t in range(m - 1):
            for chosen in itertools.combinations(others, t):
                both, first, second = (worth(kept({*chosen, *s})) for s in ((i, j), (i,), (j,)))
                found += weight(t) * (both - first - second + worth(kept(chosen)))
        return found

    share = math.factorial
    if index == "STII":
        main = lambda i: alone(i, lambda t: t == 0)
        weight = lambda t: 2 / m / math.comb(m - 1, t)
    else:
        main = lambda i: alone(i, lambda t: share(m - t - 1) * share(t) / share(m))
        weight = lambda t: share(m - t - 2) * share(t) / share(m - 1)
    matrix = np.zeros((m, m))
    for i, j in itertools.combinations(range(m), 2):
        matrix[i, j] = matrix[j, i] = pair(i, j, weight)
    halves = matrix.sum(1) / 2 if index == "k-SII" else 0
    return matrix + np.diag(np.array([main(i) for i in range(m)]) - halves)


@pytest.mark.parametrize("index", ["k-SII", "STII"])
@pytest.mark.parametrize("players", [1, 2, 3, 5])
def test_interactions_are_the_papers_sums(players, index):
    f, worth = random_game(players, seed=4)
    got = explained(shapley_interactions, f, jnp.ones(players), index=index, chunk=5)
    want = by_definition(worth, players, index)
    close(got.interactions, jnp.asarray(want, jnp.float32))
    np.testing.assert_array_equal(got.interactions, got.interactions.T)
    total = worth(np.ones(players, bool)) - worth(np.zeros(players, bool))
    assert np.triu(got.interactions).sum() == pytest.approx(total, abs=1e-5)
    assert float(got.gap) == pytest.approx(np.triu(got.interactions).sum() - total, abs=1e-5)


@pytest.mark.parametrize("index", ["k-SII", "STII"])
def test_interactions_equal_shapiqs(x64, index):
    with np.load(GOLDENS / "interactions.npz") as stored:
        table, want = stored["table"], stored[index]
    got = explained(shapley_interactions, game_of(table)[0], jnp.ones(6), index=index)
    close(got.interactions, want)


@pytest.mark.parametrize(
    ("f", "index", "want"),
    [
        (lambda x: x[0] * x[1] + x[2], "k-SII", [[0, 6, 0], [6, 0, 0], [0, 0, 4]]),
        (lambda x: x[0] * x[1] + x[2], "STII", [[0, 6, 0], [6, 0, 0], [0, 0, 4]]),
        # A product p of three: each pair's mean is p / 2, each value p / 3, less a half of two.
        (lambda x: x[0] * x[1] * x[2], "k-SII", [[-4, 12, 12], [12, -4, 12], [12, 12, -4]]),
        # Nobody gains by coming first: the pairs share p.
        (lambda x: x[0] * x[1] * x[2], "STII", [[0, 8, 8], [8, 0, 8], [8, 8, 0]]),
    ],
)
def test_interactions_in_closed_form(f, index, want):
    got = explained(shapley_interactions, f, jnp.array([2.0, 3.0, 4.0]), index=index)
    close(got.interactions, jnp.asarray(want, jnp.float32))


def test_main_effects_and_halves_of_pairs_are_shapley_values():
    model = small_models.make("mlp")
    others = jnp.stack([0 * model.x, 0.5 + 0 * model.x])
    options = {"groups": np.array([3, 9, 0, 3, -1]), "baselines": others}
    got = explained(shapley_interactions, model.f, model.x, **options).interactions
    values = jnp.sum(got + jnp.diag(jnp.diag(got)), axis=1) / 2
    want = explained(exact_shapley, model.f, model.x, **options).scores
    # Groups are in the order of their numbers; the entry of nobody is in none.
    close(values[jnp.array([1, 2, 0, 1])], want[:4])
    assert want[4] == 0


def test_batches_and_gradients_pass_through():
    model = small_models.make("mlp")
    xs = jnp.stack([model.x, 2 * model.x])

    def explain(x):
        return (
            exact_owen(model.f, x, unions=UNIONS).scores,
            owen_sampling(model.f, x, unions=UNIONS, key=KEY, samples=4).scores,
            shapley_interactions(model.f, x).interactions,
        )

    batch = jax.jit(jax.vmap(explain))(xs)
    alone = jax.jit(explain)(xs[1])
    close(jax.tree.map(lambda v: v[1], batch), alone, factor=5)
    x, two = jnp.array([2.0, 3.0]), np.zeros(2, int)

    def sums(w):
        f = lambda x: w * x[0] * x[1]
        drawn = owen_sampling(f, x, unions=two, key=KEY).scores[0]
        return exact_owen(f, x, unions=two).scores[0] + drawn + shapley_interactions(f, x)[0][0, 1]

    assert jax.jit(jax.grad(sums))(1.5) == pytest.approx(3 + 3 + 6)


def test_memory_does_not_grow_with_orders():
    unions = np.arange(64) // 2
    f = lambda x: jnp.sum(jnp.outer(jnp.tanh(x), x) ** 2)

    def taken(samples):
        explain = partial(owen_sampling, f, unions=unions, key=KEY, samples=samples, chunk=4)
        stats = jax.jit(explain).lower(jnp.ones(64)).compile().memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes

    assert taken(400) < 1.1 * taken(40)


EIGHT = jnp.ones(8)
OTHER: Any = "SII"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda f: shapley_interactions(f, jnp.ones(13)),
            r"13 players have 2\^13 coalitions, a forward pass each: join them to at most 12",
        ),
        (lambda f: shapley_interactions(f, EIGHT, index=OTHER), "'k-SII' or 'STII', not 'SII'"),
        (lambda f: shapley_interactions(f, EIGHT, baseline=jnp.ones(2)), "baseline has shape"),
        (
            lambda f: exact_owen(f, jnp.ones(40), unions=np.arange(40) // 4),
            "40 players in these unions have 72704 coalitions, a forward pass each, above 65536",
        ),
        (
            lambda f: exact_owen(f, jnp.ones(60), unions=np.arange(60)),
            r"have over 10\^18 coalitions",
        ),
        (
            lambda f: exact_owen(f, EIGHT, unions=np.zeros(7, int)),
            r"shape \[7\], and needs .* \[8\]",
        ),
        (lambda f: exact_owen(f, EIGHT, unions=np.zeros(8)), "whole numbers .* not float64"),
        (
            lambda f: jax.jit(lambda u: exact_owen(f, EIGHT, unions=u))(jnp.zeros(8, int)),
            "known beforehand, not traced",
        ),
        (lambda f: exact_owen(f, EIGHT, unions=EACH, baseline=jnp.ones(2)), "baseline has shape"),
        (lambda f: owen_sampling(f, EIGHT, unions=EACH), "owen_sampling draws samples: pass key"),
        (lambda f: owen_sampling(f, EIGHT, unions=EACH, key=KEY), r"shape \[5\]"),
        (
            lambda f: owen_sampling(f, EIGHT, unions=np.arange(8), key=KEY, samples=5),
            "samples must be an even number of at least 4, not 5",
        ),
    ],
)
def test_refused_in_one_line(call, words):
    with pytest.raises(JaxplainError, match=words) as caught:
        call(jnp.sum)
    assert "\n" not in str(caught.value)
