"""Word information: its closed form, what must not change it, and what it refuses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxplain import hidden_spread, layer_information, word_information
from jaxplain.methods import noise as noises
from jaxplain.methods.spread import finish, hidden_moments, merge
from jaxplain.methods.target import measured
from jaxplain.types import JaxplainError

WEIGHTS = jnp.array([10.0, 20.0, 5.0, 20.0, 10.0])  # the published toy: a weighted sum of words
WORDS = jax.random.normal(jax.random.key(3), (5, 256))
SPREAD = jnp.linspace(0.5, 2.0, 256)
WIDTH = 48


def arrays(tree):
    return jax.tree.map(np.asarray, tree)


def linear(x):
    return WEIGHTS @ x


def optimum(rate, weights=WEIGHTS, spread=SPREAD, units=256):
    """sigma_i = sqrt(rate D / (2 n sum_d |J_di|^2 / spread_d^2)) of a weighted sum of n words."""
    size = jnp.sum(1 / spread**2)
    return np.asarray(jnp.sqrt(rate * units / (2 * len(weights) * size)) / jnp.abs(weights))


@pytest.fixture(scope="module")
def recurrent():
    """States of a small LSTM, `h(x [T, K], mask [T]) -> [T, K]`."""
    keys = jax.random.split(jax.random.key(1), 2)
    enter = jax.random.normal(keys[0], (WIDTH, 4 * WIDTH)) * 0.3
    again = jax.random.normal(keys[1], (WIDTH, 4 * WIDTH)) * 0.2

    def h(x, mask):
        def step(carry, word):
            state, cell = carry
            gates, real = word
            i, f, g, o = jnp.split(gates + state @ again, 4)
            new = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            shown = jax.nn.sigmoid(o) * jnp.tanh(new)
            carry = jnp.where(real, shown, state), jnp.where(real, new, cell)
            return carry, jnp.where(real, carry[0], 0)

        start = jnp.zeros(WIDTH), jnp.zeros(WIDTH)
        return jax.lax.scan(step, start, (x @ enter, mask))[1]

    return h


@pytest.fixture(scope="module")
def recurrent_information(recurrent):
    """The LSTM's, as one compiled program of batches `(x, mask, key, tolerance)`."""

    def explain(x, mask, key, tolerance):
        return word_information(
            lambda v: recurrent(v, mask), x, key=key, scale=3.0, per_word_rate=0.1, spread=0.2,
            mask=mask, unit_mask=mask[:, None], samples=16, steps=300, tolerance=tolerance,
        )  # fmt: skip

    return jax.jit(jax.vmap(explain, (0, 0, 0, None)))


def sentence(length, padded):
    x = jax.random.normal(jax.random.key(9), (padded, WIDTH))
    return x, jnp.arange(padded) < length


@pytest.mark.slow
def test_linear_closed_form():
    rate = 0.1

    def found(key, scale):
        return word_information(
            linear, WORDS, key=key, scale=scale, rate=rate, spread=SPREAD, samples=16,
            tolerance=0.005,
        )  # fmt: skip

    keys = jax.random.split(jax.random.key(0), 20)
    each = jax.vmap(jax.vmap(found, (0, None)), (None, 0))
    result = arrays(jax.jit(each)(keys, jnp.array([0.03, 1.0, 10.0])))
    # 2%: four of the standard errors that stop the search.
    np.testing.assert_allclose(result.sigma / optimum(rate), 1, atol=0.02)
    assert result.converged.all() and result.steps.max() <= 300
    assert not result.censored.any() and (result.units == 256).all()
    np.testing.assert_allclose(result.standard_error[0], 0.004, atol=0.0011)
    np.testing.assert_allclose(
        result.entropy, 128 * np.log(2 * np.pi * np.e) + 256 * np.log(result.sigma), rtol=1e-5
    )
    # Half the rate is the change at the optimum: each word's noise is worth rate / 2n.
    expected = rate / 2 - rate * result.log_ratio.mean(-1)
    np.testing.assert_allclose(result.loss, expected, atol=0.05 * rate / 2)


def two_optima(height):
    """A state that saturates, at a height, and moves again under far larger noise; and the loss.

    Every word's loss is the same function of log sigma, by quadrature.
    """
    h = lambda x: (height * jnp.tanh(100 * x), 0.05 * x)
    rate = 0.1

    def loss(log_sigma):
        at = np.linspace(-6, 6, 4001)
        density = np.exp(-(at**2) / 2) / np.exp(-(at**2) / 2).sum()
        moved = np.exp(log_sigma)[..., None] * at
        change = (height * np.tanh(100 * moved)) ** 2 + (0.05 * moved) ** 2
        return change @ density / 2 - rate * log_sigma

    grid = np.linspace(-7, 2.5, 951)
    values = loss(grid)
    inside = (values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])
    low, high = grid[1:-1][inside]
    search = functools.partial(
        word_information, h, jnp.zeros((3, WIDTH)), scale=20.0, rate=rate, spread=1.0, samples=16,
        tolerance=0.02,
    )  # fmt: skip
    return search, loss, low, high


@pytest.mark.slow
@pytest.mark.parametrize(("height", "best"), [(0.9, "high"), (1.4, "low")])
def test_of_two_starts_the_lower_optimum_is_kept(height, best):
    search, loss, low, high = two_optima(height)
    assert (loss(high) < loss(low)) == (best == "high")
    both = jax.jit(jax.vmap(lambda key: search(key=key, starts=(0.0, 5.0))))
    keys = jax.random.split(jax.random.key(0), 9)  # more than there are lanes
    found = arrays(both(keys))
    assert found.converged.all()
    # Four standard errors, and half a step of the grid.
    np.testing.assert_allclose(np.log(found.sigma), high if best == "high" else low, atol=0.085)
    alone = [arrays(jax.jit(lambda k, s=s: search(key=k, starts=(s,)))(keys[0])) for s in (0, 5)]
    np.testing.assert_allclose(np.log(alone[0].sigma), low, atol=0.085)
    np.testing.assert_allclose(np.log(alone[1].sigma), high, atol=0.085)
    assert found.steps[0] == alone[0].steps + alone[1].steps
    kept = alone[best == "high"]
    np.testing.assert_allclose(found.loss[0], kept.loss, rtol=1e-4)
    np.testing.assert_allclose(found.log_ratio[0], kept.log_ratio, atol=1e-4)


def test_a_start_from_which_nothing_is_defined_is_not_kept():
    """The optimum is at a sigma of 0.005; one start at 3,000 times the closed form, 0.002."""
    h = lambda x: jnp.where(jnp.abs(x) > 0.5, jnp.nan, jnp.tanh(100 * x))
    search = functools.partial(
        word_information, h, jnp.zeros((2, 8)), key=jax.random.key(0), scale=20.0, rate=0.1,
        spread=1.0, tolerance=0.1,
    )  # fmt: skip
    lost, both = jax.jit(lambda: (search(starts=(8.0,)), search(starts=(8.0, 0.0))))()
    assert np.isnan(lost.loss) and not lost.converged
    assert both.converged and np.isfinite(both.sigma).all()


def test_start_by_probes():
    wide = lambda x: jnp.tile(linear(x), 4)  # 1,024 units: sampled, not taken one by one
    found = lambda key: word_information(
        wide, WORDS, key=key, scale=1.0, rate=0.1, spread=jnp.tile(SPREAD, 4), samples=16,
        tolerance=0.005,
    )  # fmt: skip
    result = arrays(jax.jit(jax.vmap(found))(jax.random.split(jax.random.key(5), 4)))
    np.testing.assert_allclose(result.sigma / optimum(0.1), 1, atol=0.02)
    assert result.converged.all()


def test_published_defaults_are_off():
    found = functools.partial(
        word_information, linear, WORDS, scale=1.0, rate=0.1, spread=SPREAD,
        parametrisation="sigmoid",
    )  # fmt: skip
    result = jax.jit(lambda key: found(key=key))(jax.random.key(0))
    ratio = np.asarray(result.sigma) / optimum(0.1)
    assert ratio.max() > 1.3, "its 5,000 steps of 0.01 do not arrive"
    assert not result.converged and result.gradient_norm > 1
    assert np.isnan(result.standard_error).all() and result.steps == 5000


def test_ignored_word_is_at_the_cap():
    weights = WEIGHTS.at[2].set(0)
    found = word_information(
        lambda x: weights @ x, WORDS, key=jax.random.key(0), scale=0.7, rate=0.1, spread=SPREAD,
        samples=16, tolerance=0.01,
    )  # fmt: skip
    assert found.censored.tolist() == [False, False, True, False, False]
    assert found.sigma[2] == jnp.float32(0.7) and found.log_ratio[2] == 0
    assert found.converged and found.gradient_norm < 0.02


def test_rate_scales_sigma():
    keys, rates = jax.random.split(jax.random.key(0), 1), jnp.array([0.1, 0.2])
    found = jax.jit(
        jax.vmap(
            lambda rate: word_information(
                linear,
                WORDS,
                key=keys[0],
                scale=1.0,
                rate=rate,
                spread=SPREAD,
                samples=16,
                tolerance=0.01,
            )
        )
    )(rates)
    # The same draws: what is left is where the two searches stop.
    np.testing.assert_allclose(found.sigma[1] / found.sigma[0], np.sqrt(2), rtol=0.02)


@pytest.mark.slow
def test_per_word_rate_is_free_of_the_number_of_units():
    def found(h, **rate):
        explain = lambda x: word_information(
            h, x, key=jax.random.key(0), scale=1.0, spread=1.0, samples=16, tolerance=0.01, **rate
        )
        return jax.jit(explain)(WORDS).sigma

    once, twice = linear, lambda x: jnp.concatenate([linear(x), linear(x)])
    np.testing.assert_allclose(
        found(once, per_word_rate=0.02), found(once, rate=0.02 * 5 * 256 / 256), rtol=1e-6
    )
    # Twice the units at the same published rate: the mean is the same, and so is sigma.
    np.testing.assert_allclose(found(twice, rate=0.1), found(once, rate=0.1), rtol=0.02)
    # Per word, twice the units tell twice as much: sigma falls by the root of 2.
    ratio = found(twice, per_word_rate=0.02) / found(once, per_word_rate=0.02)
    np.testing.assert_allclose(ratio, 1 / np.sqrt(2), rtol=0.02)


def test_permuted_words():
    def bag(x):
        return jnp.tanh(x).sum(0)

    order = jnp.array([3, 0, 4, 1, 2])
    words = WORDS[:, :64] * jnp.array([0.1, 0.5, 1.0, 2.0, 3.0])[:, None]
    found = jax.jit(
        jax.vmap(
            lambda x: word_information(
                bag, x, key=jax.random.key(0), scale=3.0, rate=0.1, spread=1.0, tolerance=0.005,
                samples=16, steps=600,
            )
        )
    )(jnp.stack([words, words[order]]))  # fmt: skip
    assert found.converged.all() and np.ptp(found.sigma[0]) > 0.1
    # Two searches of standard error 0.005 each, by draws of their own: four of their difference's.
    np.testing.assert_allclose(found.sigma[1] / found.sigma[0][order], 1, atol=0.03)


@pytest.mark.slow
def test_padding_and_batch_mates_change_nothing(recurrent_information):
    key = jax.random.key(4)
    x, mask = sentence(6, 6)
    alone = recurrent_information(x[None], mask[None], key[None], 0.03)
    padded_x, padded_mask = sentence(6, 10)
    padded_x = padded_x.at[:6].set(x).at[6:].set(jnp.nan)
    padded_x = jnp.where(padded_mask[:, None], padded_x, 1e3)
    other_x, other_mask = sentence(10, 10)
    many = recurrent_information(
        jnp.stack([other_x, padded_x, other_x]),
        jnp.stack([other_mask, padded_mask, other_mask]),
        jnp.stack([jax.random.key(8), key, jax.random.key(7)]),
        0.03,
    )
    assert alone.converged.all() and many.steps[1] == alone.steps[0]
    for name in ("sigma", "entropy", "standard_error", "log_ratio"):
        got, wanted = getattr(many, name)[1], getattr(alone, name)[0]
        # Sums over other shapes round otherwise, and some hundred steps pass it on.
        np.testing.assert_allclose(got[:6], wanted, rtol=2e-3, atol=1e-4, err_msg=name)
        assert (got[6:] == 0).all()
    assert not many.censored[1, 6:].any()
    assert many.units[1] == alone.units[0] == 6 * WIDTH


@pytest.mark.slow
def test_recurrent_seeds_agree_as_their_standard_errors_say(recurrent_information):
    x, mask = sentence(8, 10)
    seeds = 16
    found = recurrent_information(
        jnp.stack([x] * seeds),
        jnp.stack([mask] * seeds),
        jax.random.split(jax.random.key(2), seeds),
        0.01,
    )
    assert found.converged.all() and not found.censored.any()
    logs = np.asarray(found.log_ratio)[:, :8]
    # 5%: five standard errors of 0.01; the largest of 16 x 15 / 2 pairs and 8 words.
    assert np.max(np.ptp(logs, axis=0)) < np.log(1.05)
    ranks = np.argsort(np.argsort(logs, axis=1), axis=1)
    alike = np.asarray(np.corrcoef(ranks))
    assert alike[np.triu_indices(seeds, 1)].min() > 0.9
    # The standard error that each search reports, against how much the searches differ. With 16
    # seeds and 8 words the ratio is known to about a tenth; the curvature of the locally linear
    # case, which it goes by, is another tenth off here.
    reported = np.asarray(found.standard_error)[:, :8].mean()
    assert 0.7 < logs.std(0, ddof=1).mean() / reported < 1.4


def test_rare_large_gradients_are_not_left_out():
    """A unit that jumps three deviations away: one draw in 3,000 carries a quarter of its cost.

    The optimum is that of the integral over one normal variable. Steps divided by the size of the
    gradient that they take leave sigma 12% too large at any length of the search.
    """
    place, width, height, rate, words = 3.0, 0.02, 8.0, 2.0, 64
    jump = lambda v, np: v + height * (1 + np.tanh((v - place) / width / 2)) / 2
    grid = np.linspace(-6, 6, 60001)
    weight = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    sigmas = np.exp(np.linspace(-0.5, 0.5, 501))
    losses = [weight @ jump(s * grid, np) ** 2 - rate * np.log(s) for s in sigmas]
    best = sigmas[np.argmin(losses)]
    found = jax.jit(
        lambda key: word_information(
            lambda x: jump(x[:, 0], jnp), jnp.zeros((words, 1)), key=key, scale=100.0, rate=rate,
            spread=1.0, steps=16000,
        )
    )(jax.random.key(0))  # fmt: skip
    off = float(np.log(found.sigma / best).mean())
    assert abs(off) <= found.standard_error.mean() < 0.1


def test_a_cost_that_hardly_rises_is_told():
    """Units that saturate before others take over: at the optimum the cost rises by a tenth of 2.

    Of 32 searches that claim a tolerance none is further off than normal errors of so many are once
    in 5,000 times; one that took the cost to rise as elsewhere was off by seven of its errors.
    """
    units, linear = 16, 0.086
    grid = np.linspace(-8, 8, 20001)
    weight = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()

    def cost(log_sigma):
        u = np.exp(log_sigma) * grid
        return 2 * weight @ (np.tanh(u) * u / np.cosh(u) ** 2 + (linear * u) ** 2)

    rate = cost(0.0)
    rise = (cost(0.01) - cost(-0.01)) / 0.02 / rate
    assert 0.15 < rise < 0.25
    found = jax.jit(
        jax.vmap(
            lambda key: word_information(
                lambda x: jnp.stack([jnp.tanh(x[0]), linear * x[0]]), jnp.zeros((1, units)),
                key=key, scale=1000.0, rate=rate / 2, spread=1.0, tolerance=0.02, steps=3000,
            )
        )
    )(jax.random.split(jax.random.key(0), 32))  # fmt: skip
    assert found.converged.all()
    off = np.abs(np.log(found.sigma)) / found.standard_error
    assert off.max() < 4.5


@pytest.mark.parametrize(("samples", "draws"), [(1, 1), (2, 1), (3, 2), (5, 3), (8, 6)])
def test_a_pair_counts_once(samples, draws):
    """At the optimum of one word in a sum of width K costs have mean 1, variance 2 / (K draws), and
    rise by 2. Bounds are four standard errors of 4,000 keys, of the variance five."""
    width, rate, keys = 8, 0.1, 4000
    h, x = (lambda x: 3 * x[0]), jnp.ones((1, width))
    target = measured(h, x, 1.0, None, None, rate, None)
    best = jnp.full(1, 0.5 * np.log(rate / 2 / 9))
    one = jax.jit(jax.vmap(lambda key: noises.rising(h, x, target, 1.0, best, key, samples)))
    cost, rise, _ = one(jax.random.split(jax.random.key(0), keys))
    variance = 2 / (width * draws)
    assert abs(cost.mean() - 1) < 4 * np.sqrt(variance / keys)
    assert abs(cost.var() / variance - 1) < 5 * np.sqrt((2 + 12 / (width * draws)) / keys)
    assert abs(rise.mean() - 2) < 4 * rise.std() / np.sqrt(keys)


def test_evaluations_are_draws_of_their_own():
    """Of four evaluations a step three count, one repeats a draw: for one word in a sum of width K
    the variance of a step's cost is 2 / (3 K), so that 0.02 takes 2 / (3 K) / (2 0.02)^2 / 0.75
    steps.

    Of 32 searches of so many steps the mean is known to 3%; two draws a step would take half more.
    """
    width, tolerance = 8, 0.02
    one = lambda key: word_information(
        lambda x: 3 * x[0], jnp.ones((1, width)), key=key, scale=10.0, rate=0.1, spread=1.0,
        tolerance=tolerance,
    ).steps  # fmt: skip
    steps = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 32))
    expected = 2 / (3 * width) / (2 * tolerance) ** 2 / 0.75
    assert abs(steps.mean() / expected - 1) < 0.15


@pytest.mark.slow
def test_eight_devices_equal_one(recurrent_information):
    x, mask = sentence(6, 6)
    batch = jnp.stack([x] * 8), jnp.stack([mask] * 8), jax.random.split(jax.random.key(2), 8)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    one, eight = recurrent_information(*batch, 0.05), recurrent_information(*spread, 0.05)
    # Per device the batch is one row, whose sums may round otherwise.
    np.testing.assert_allclose(eight.sigma, one.sigma, rtol=2e-3)
    assert (eight.converged == one.converged).all()


@pytest.mark.slow
def test_several_starts_on_eight_devices_equal_one():
    search, *_ = two_optima(0.9)
    both = jax.jit(jax.vmap(lambda key: search(key=key, starts=(0.0, 5.0))))
    keys = jax.random.split(jax.random.key(1), 16)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    with jax.set_mesh(mesh):
        eight = both(jax.device_put(keys, NamedSharding(mesh, PartitionSpec("data"))))
    one = both(keys)
    # A step more or less moves a result by a fraction of the tolerance, 0.02.
    np.testing.assert_allclose(eight.log_ratio, one.log_ratio, atol=2e-3)
    assert (eight.converged == one.converged).all()


def layered(x):
    first = jnp.tanh(x @ MATRICES[0])
    second = jnp.tanh(first @ MATRICES[1])
    return x, first, second


MATRICES = jax.random.normal(jax.random.key(6), (2, 32, 32)) / 4


@pytest.mark.slow
def test_layers_at_once_equal_one_by_one():
    x, key = WORDS[:3, :32], jax.random.key(0)
    settings: dict[str, Any] = {"key": key, "scale": 2.0, "steps": 20, "samples": 2}
    spread = [jnp.full((1, 32), s) for s in (1.0, 0.5, 0.7)]
    listed = jax.jit(lambda: layer_information(layered, x, spread=spread, **settings))()
    stacked = jax.jit(
        lambda: layer_information(lambda v: jnp.stack(layered(v)), x, spread=spread, **settings)
    )()
    np.testing.assert_allclose(stacked.sigma, listed.sigma, rtol=1e-3)
    alone = word_information(
        lambda v: layered(v)[2], x, key=jax.random.fold_in(key, 2), scale=2.0, steps=20, samples=2,
        spread=spread[2],
    )  # fmt: skip
    np.testing.assert_allclose(listed.sigma[2], alone.sigma, rtol=1e-3)
    last = layer_information(layered, x, layers=[-1, 0], spread=spread, **settings)
    np.testing.assert_allclose(last.sigma, listed.sigma[jnp.array([2, 0])], rtol=1e-3)


def test_layer_costs_its_prefix():
    def flops(layer):
        explain = lambda x: layer_information(
            layered, x, key=jax.random.key(0), scale=1.0, layers=[layer], steps=2, samples=2
        )
        cost = jax.jit(explain).lower(WORDS[:3, :32]).compile().cost_analysis()
        assert cost is not None
        return cost["flops"]

    deep, flat = flops(2), flops(1)
    product = 2 * 3 * 32 * 32  # of one layer and one evaluation: below it nothing was left out
    assert deep > flat + 4 * product


def test_units_without_spread_are_left_out():
    spread = SPREAD.at[:56].set(0).at[56:60].set(jnp.nan)
    found = word_information(
        linear,
        WORDS,
        key=jax.random.key(0),
        scale=1.0,
        rate=0.1,
        spread=spread,
        samples=16,
        tolerance=0.01,
    )
    assert found.left_out == 60 and found.units == 196
    wanted = optimum(0.1, spread=SPREAD[60:], units=196)
    found = arrays(found)
    np.testing.assert_allclose(found.sigma / wanted, 1, atol=0.04)  # standard error 0.01


def test_no_spread_divides_by_the_mean_square():
    size = jnp.sqrt(jnp.mean(linear(WORDS) ** 2))
    settings = {
        "key": jax.random.key(0),
        "scale": 1.0,
        "rate": 0.1,
        "samples": 16,
        "tolerance": 0.01,
    }
    none = word_information(linear, WORDS, **settings)
    given = word_information(linear, WORDS, spread=size, **settings)
    np.testing.assert_allclose(none.sigma, given.sigma, rtol=1e-3)


def test_not_converged_is_told():
    found = word_information(
        linear, WORDS, key=jax.random.key(0), scale=1.0, rate=0.1, spread=1.0, steps=3
    )
    assert not found.converged and found.steps == 3


def test_what_is_not_a_number_has_not_converged():
    lost = word_information(
        linear, WORDS, key=jax.random.key(0), scale=1.0, rate=0.1, spread=0.0, steps=9
    )
    assert lost.units == 0 and lost.left_out == 256 and not lost.converged
    broken = word_information(
        lambda x: linear(x) * jnp.nan, WORDS, key=jax.random.key(0), scale=1.0, rate=0.1, steps=9
    )
    assert jnp.isnan(broken.sigma).all() and not broken.converged


def test_noise_of_a_word_does_not_depend_on_those_behind_it():
    few = noises.draw(jax.random.key(0), 3, 3, WORDS[:2])
    many = noises.draw(jax.random.key(0), 3, 3, WORDS)
    assert (few == many[:, :2]).all() and (many[2] == -many[0]).all()


@pytest.mark.slow
def test_spread():
    xs = jax.random.normal(jax.random.key(0), (7, 5, 3)) * 2 + 100
    lengths = jnp.array([5, 1, 3, 2, 4, 5, 2])
    mask = jnp.arange(5)[None] < lengths[:, None]
    batch = {"x": xs, "mask": mask}
    settings = {"counted": lambda e: e["mask"][:, None], "axes": (0,)}
    h = lambda e: e["x"]
    pooled = np.concatenate([x[:n] for x, n in zip(xs, lengths, strict=True)])
    spread = hidden_spread(h, batch, **settings, chunk=3)
    np.testing.assert_allclose(spread, pooled.std(0)[None], rtol=1e-4)
    means = np.stack([np.asarray(x[:n]).mean(0) for x, n in zip(xs, lengths, strict=True)])
    spread_of_means = hidden_spread(h, batch, **settings, reduce="mean")
    np.testing.assert_allclose(spread_of_means, means.std(0)[None], rtol=1e-4)
    first, rest = jax.tree.map(lambda v: v[:3], batch), jax.tree.map(lambda v: v[3:], batch)
    halves = first, rest
    joined = finish(merge(*(hidden_moments(h, half, **settings) for half in halves)))
    np.testing.assert_allclose(joined, spread, rtol=1e-5)
    never = hidden_spread(h, batch, counted=lambda e: jnp.arange(5)[:, None] > 5, axes=(0,))
    assert np.isnan(never).all()
    with pytest.raises(JaxplainError, match=r"leading axes \[6, 7\]"):
        hidden_spread(h, batch | {"mask": mask[:6]})
    with pytest.raises(JaxplainError, match="no axes"):
        hidden_spread(h, batch, axes=(2,))
    with pytest.raises(JaxplainError, match="broadcast"):
        hidden_spread(h, batch, counted=lambda e: jnp.ones(4, bool))


GOOD = {"key": jax.random.key(0), "scale": 1.0}


@pytest.mark.parametrize(
    ("h", "x", "settings", "message"),
    [
        (linear, WORDS, GOOD | {"key": None}, "pass key="),
        (linear, jnp.arange(10).reshape(5, 2), GOOD, "x is int32"),
        (linear, WORDS[0], GOOD, r"one array \[T, K\]"),
        (linear, WORDS, GOOD | {"scale": 0.0}, "scale must be above 0"),
        (linear, WORDS, GOOD | {"rate": -0.1}, "rate must be above 0"),
        (linear, WORDS, GOOD | {"per_word_rate": 0}, "per_word_rate must be above 0"),
        (linear, WORDS, GOOD | {"rate": 0.1, "per_word_rate": 0.1}, "not both"),
        (linear, WORDS, GOOD | {"tolerance": 0.0}, "tolerance must be above 0"),
        (linear, WORDS, GOOD | {"parametrisation": "softplus"}, "log or sigmoid"),
        (lambda x: jnp.ones(3), WORDS, GOOD, "does not depend on x"),
        (lambda x: jnp.argmax(x), WORDS, GOOD, "floating-point states"),
        (linear, WORDS, GOOD | {"spread": jnp.ones(7)}, "spread has shape"),
        (linear, WORDS, GOOD | {"spread": -SPREAD}, "negative"),
        (linear, WORDS, GOOD | {"mask": jnp.ones(4, bool)}, "mask has shape"),
        (linear, WORDS, GOOD | {"unit_mask": jnp.ones(4, bool)}, "unit_mask has shape"),
        (linear, WORDS, GOOD | {"samples": 0}, "samples must be"),
        (linear, WORDS, GOOD | {"starts": ()}, "starts must be finite numbers, at least one"),
        (linear, WORDS, GOOD | {"starts": 1.0}, "starts must be finite numbers, at least one"),
        (linear, WORDS, GOOD | {"starts": "low"}, "starts must be finite numbers, at least one"),
        (linear, WORDS, GOOD | {"starts": (0.0, np.nan)}, "starts must be finite numbers"),
        (
            linear,
            WORDS,
            GOOD | {"starts": (0.0, 1.0), "parametrisation": "sigmoid"},
            "the published loop starts at random",
        ),
    ],
)
def test_refused(h, x, settings, message):
    with pytest.raises(JaxplainError, match=message) as raised:
        word_information(h, x, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("hidden", "settings", "message"),
    [
        (layered, {"layers": [3]}, "has 3 states"),
        (layered, {"layers": []}, "has 3 states"),
        (layered, {"spread": [1.0]}, "spread has 1 entries"),
        (lambda x: x.sum(), {}, "tuple of states or one array"),
    ],
)
def test_layers_refused(hidden, settings, message):
    with pytest.raises(JaxplainError, match=message):
        layer_information(hidden, WORDS[:, :32], **GOOD, **settings)
