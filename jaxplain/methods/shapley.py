"""Shapley values: what each player adds to a coalition, averaged over the orders they may join in.

Letters: `M` players: groups of inputs, or single ones. `[...]` is the shape of one leaf of x.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.coalitions import Game, game
from jaxplain.methods.path import Baseline
from jaxplain.methods.players import many
from jaxplain.methods.sampling import moments, wide
from jaxplain.types import (
    Array,
    Attribution,
    JaxplainError,
    PyTree,
    SampledAttribution,
    ScalarFunction,
    check_key,
)

MOST = 16  # players whose coalitions are all evaluated


def exact_shapley(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    baselines: PyTree | None = None,
    groups: PyTree | None = None,
    chunk: int | None = None,
) -> Attribution:
    """Shapley values by all coalitions: exact, for up to 16 players.

    Two games, by name: with `baseline`, what is not in a coalition comes from that one input; with
    `baselines`, f is averaged over them (the marginal, or interventional, game). They are
    different questions with different answers.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example, any pytree of float arrays; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        baseline: as in `integrated_gradients`; default zeros.
        baselines: x's tree, `[K, ...]`.
        groups: as in `feature_ablation`; None makes every entry a player.
        chunk: evaluations at once, default 32. Memory is that of `chunk` of them, `2^M` numbers,
            and of what each player gives in affine first steps, 64 MiB at most.

    Returns:
        scores in f's units, float32 or wider, of the shape of `groups`, or `[...]`: each entry has
        the value of its group. gap is rounding: the sum of all players' values less f(x) - f of
        nobody. Cost: 2^M forward passes, times K with `baselines`. Where f begins with steps that
        are affine in x in float32 or wider, such as a convolution, and adding up what each player
        gives there takes half the products or less, these steps run for each player, not for each
        coalition. Their sums are rounded as sums of all players: an infinite entry of x or of the
        baseline then makes NaN of every coalition.

    Raises:
        JaxplainError: more than 16 players, with what they would cost; as `feature_ablation`;
            baseline and baselines both.

    References: Shapley, A Value for n-Person Games, 1953, https://doi.org/10.1515/9781400881970-018
        Sundararajan, Najmi, The many Shapley values for model explanation, 2020,
        https://arxiv.org/abs/1908.08474 (on the two games)

    >>> import jax.numpy as jnp
    >>> f = lambda x: x[0] * x[1] + x[2]
    >>> exact_shapley(f, jnp.array([2.0, 3.0, 4.0])).scores.round(4).tolist()
    [3.0, 3.0, 4.0]
    """
    del key
    table = game(f, x, groups=groups, baseline=baseline, baselines=baselines, chunk=chunk)
    m = table.players
    if m > MOST:
        raise JaxplainError(
            f"{m} players have 2^{m} coalitions, a forward pass each: join them to at most {MOST} "
            "groups, or use shapley_sampling"
        )
    bit = jnp.arange(m)
    member = lambda number: (number >> bit) & 1 == 1
    worth = many(lambda number: table.worth(member(number)), 2**m, table.chunk)
    joined = np.array([math.factorial(s) * math.factorial(m - 1 - s) for s in range(m)])
    weight = jnp.asarray(joined / math.factorial(m), worth.dtype)
    held = jax.vmap(member)(jnp.arange(2**m))  # [2^M, M]
    size = jnp.sum(held, axis=1)
    joins = weight[jnp.maximum(size - 1, 0)][:, None]
    stays = weight[jnp.minimum(size, m - 1)][:, None]
    # About nobody's worth: f's level, that all coalitions share, would only cost digits.
    values = jnp.sum(jnp.where(held, joins, -stays) * (worth - table.nothing)[:, None], axis=0)
    return Attribution(table.scores(values), table.whole, table.gap(values))


def shapley_sampling(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    baselines: PyTree | None = None,
    groups: PyTree | None = None,
    samples: int = 32,
    chunk: int | None = None,
) -> SampledAttribution:
    """Shapley values by random orders: what each player adds when it joins, order after order.

    Orders come in pairs, one the other backwards: a player that joins early in one joins late in
    the other, and what differs between early and late cancels.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example, any pytree of float arrays; batch with `jax.vmap`.
        key: consumed.
        baseline: as in `integrated_gradients`; default zeros. As `baselines`: see `exact_shapley`.
        baselines: x's tree, `[K, ...]`.
        groups: as in `feature_ablation`; None makes every entry a player.
        samples: orders, an even number of at least 4. The standard error falls with its root.
        chunk: evaluations at once, default 32. Memory is that of `chunk` of them, whatever M and
            `samples` are, and as in `exact_shapley` of affine first steps.

    Returns:
        scores in f's units, float32 or wider, of the shape of `groups`, or `[...]`: each entry has
        the value of its group; standard_error the same, from how pairs of orders differ; gap is
        rounding: each order's values sum to f(x) - f of nobody. Cost: samples (M - 1) + 2 forward
        passes, times K with `baselines`; less where first steps are affine, see `exact_shapley`.

    Raises:
        JaxplainError: no key; samples odd or below 4; as `feature_ablation`; baseline and
            baselines both.

    References: Castro, Gomez, Tejada, Polynomial calculation of the Shapley value based on
        sampling, 2009, https://doi.org/10.1016/j.cor.2008.04.004
        Mitchell, Cooper, Frank, Holmes, Sampling Permutations for Shapley Value Estimation, 2022,
        https://arxiv.org/abs/2104.12199 (antithetic orders)

    >>> import jax, jax.numpy as jnp
    >>> f = lambda x: x[0] * x[1] + x[2]
    >>> shapley_sampling(f, jnp.array([2.0, 3.0, 4.0]), key=jax.random.key(0)).scores.tolist()
    [3.0, 3.0, 4.0]
    """
    key = check_key("shapley_sampling", key)
    table = game(f, x, groups=groups, baseline=baseline, baselines=baselines, chunk=chunk)
    place = lambda i: jax.random.permutation(jax.random.fold_in(key, i), table.players)
    return by_orders(table, place, samples)


def by_orders(table: Game, place: Callable[[Array], Array], samples: int) -> SampledAttribution:
    """What players add when they join, averaged over orders and the same ones backwards.

    Args:
        table: the game.
        place: from the number of a pair of orders, the place of each player in the first, `[M]`.
        samples: orders.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 4 or samples % 2:
        raise JaxplainError(
            f"samples must be an even number of at least 4, not {samples!r}: orders come in pairs"
        )
    m = table.players
    count = 2 * (m - 1)  # coalitions of a pair of orders, but for nobody and all

    def pair(i: Array) -> Array:
        if not count:
            return (wide(table.whole) - table.nothing)[None]
        first = place(i)
        places = jnp.stack([first, m - 1 - first])
        # Who has not joined in the one order are the first to join in the other.
        both = many(lambda j: table.both(first <= j), m - 1, max(1, table.chunk // 2))
        between = jnp.stack([both[:, 0], both[::-1, 1]])
        ends = [jnp.full((2, 1), v, between.dtype) for v in (table.nothing, table.whole)]
        steps = jnp.diff(jnp.concatenate([ends[0], between, ends[1]], axis=1), axis=1)
        return jnp.mean(jnp.take_along_axis(steps, places, axis=1), axis=0)

    drawn = moments(pair, samples // 2, max(1, table.chunk // max(count, 1)))
    values, error = drawn.mean, drawn.standard_error()
    return SampledAttribution(
        table.scores(values),
        table.whole,
        table.gap(values),
        table.scores(error),
        jnp.int32(samples),
    )
