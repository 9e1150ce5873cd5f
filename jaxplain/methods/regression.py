"""Shapley values by weighted least squares over coalitions (KernelSHAP)."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.coalitions import game, many
from jaxplain.methods.path import Baseline
from jaxplain.methods.sampling import wide
from jaxplain.types import (
    Array,
    JaxplainError,
    PyTree,
    SampledAttribution,
    ScalarFunction,
    check_key,
)

EXTRA = 2048  # samples beyond two for each player, where the caller does not say


def kernel_shap(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    baselines: PyTree | None = None,
    groups: PyTree | None = None,
    samples: int | None = None,
    chunk: int | None = None,
) -> SampledAttribution:
    """Shapley values as the best additive guess of what coalitions are worth (KernelSHAP).

    Coalitions are drawn with the probabilities that make weighted least squares give Shapley
    values, in pairs, each with its complement; values are held to add up to f(x) - f of nobody.
    Sizes of which `samples` is enough for all coalitions are evaluated whole, once; if it is enough
    for every size, the result is exact.

    Letters: `M` players: groups of inputs, or single ones.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example, any pytree of float arrays; batch with `jax.vmap`.
        key: consumed.
        baseline: as in `integrated_gradients`; default zeros: the baseline game.
        baselines: x's tree, `[K, ...]`: the marginal game, see `exact_shapley`. This is what the
            paper and `shap` mean; averaging the inputs into one baseline is another game.
        groups: as in `feature_ablation`; None makes every entry a player.
        samples: coalitions, an even number of at least 4 M; default 2 M + 2048, and no more than
            there are. The standard error falls with its root.
        chunk: evaluations at once, default 32. Memory is that of `chunk` of them, and `samples`
            times M numbers.

    Returns:
        scores in f's units, float32 or wider, of the shape of `groups`, or `[...]`: each entry has
        the value of its group; standard_error the same, from what the fit leaves of each pair, 0
        where all coalitions were evaluated; gap is rounding; samples, how many were. All are NaN
        where the coalitions drawn do not tell the players apart. Cost: `samples + 2` forward
        passes, times K with `baselines`, and one M by M system.

    Raises:
        JaxplainError: no key; samples odd, or too few for the system; as `feature_ablation`;
            baseline and baselines both.

    References: Lundberg, Lee, A Unified Approach to Interpreting Model Predictions, 2017,
        https://arxiv.org/abs/1705.07874
        Covert, Lee, Improving KernelSHAP: Practical Shapley Value Estimation via Linear
        Regression, 2021, https://arxiv.org/abs/2012.01536 (pairs, and the standard error)

    >>> import jax, jax.numpy as jnp
    >>> f = lambda x: x[0] * x[1] + x[2]
    >>> a = kernel_shap(f, jnp.array([2.0, 3.0, 4.0]), key=jax.random.key(0))
    >>> a.scores.round(4).tolist(), int(a.samples)
    ([3.0, 3.0, 4.0], 6)
    """
    key = check_key("kernel_shap", key)
    table = game(f, x, groups=groups, baseline=baseline, baselines=baselines, chunk=chunk)
    m = table.players
    every = 2**m - 2
    count = min(2 * m + EXTRA, every) if samples is None else samples
    if isinstance(count, bool) or not isinstance(count, int) or count % 2 or count < 0:
        raise JaxplainError(f"samples must be an even number, not {samples!r}: they come in pairs")
    count = min(count, every)
    if count < min(4 * m, every):
        raise JaxplainError(
            f"{count} samples are too few for {m} players: draw at least {4 * m}, or join the "
            "players to fewer groups"
        )
    total = wide(table.whole) - table.nothing
    if m == 1:
        values, error = total[None], jnp.zeros(1, total.dtype)
    else:
        design = _all(m) if count == every else _drawn(key, m, count)
        count = len(design.held)
        worth = many(lambda i: table.worth(design.held[i]), count, table.chunk) - table.nothing
        values, error = _fit(design, worth, total)
    return SampledAttribution(
        table.scores(x, values),
        table.whole,
        table.gap(values),
        table.scores(x, error),
        jnp.int32(count),
    )


class _Design(NamedTuple):
    """Coalitions to evaluate: the second half are the complements of the first.

    Attributes:
        held: `[count, M]` bool; in each half, those drawn at random come first.
        weight: `[count]`, which sum to 1.
        drawn: how many of a half were drawn.
        share: what all drawn ones together weigh.
    """

    held: Array
    weight: Array
    drawn: int
    share: float


def _drawn(key: Array, m: int, count: int) -> _Design:
    """`count` coalitions by the kernel's weights.

    Sizes of which as many would be drawn as there are coalitions are listed instead: the smallest
    and largest ones.
    """
    size = np.arange(1, m)
    odds = 1 / (size * (m - size))
    odds /= odds.sum()
    left, share, listed, weights = count, 1.0, [np.zeros((0, m), bool)], []
    for few in range(1, (m - 1) // 2 + 1):
        mass, many_of = 2 * odds[few - 1], 2 * math.comb(m, few)
        if left * mass < share * many_of:
            break
        half = np.zeros((many_of // 2, m), bool)
        for row, members in enumerate(itertools.combinations(range(m), few)):
            half[row, list(members)] = True
        listed.append(half)
        weights.append(np.full(len(half), mass / many_of))
        left, share = left - many_of, share - mass
    first = len(listed)  # the smallest size that is drawn
    size, odds = size[first - 1 : m - first], odds[first - 1 : m - first]
    draws = left // 2
    if not draws or not len(size):
        draws, share = 0, 0.0
    held = jnp.asarray(np.concatenate(listed))
    if draws:
        how_many, who = jax.random.split(key)
        cuts = jnp.asarray(np.cumsum(odds / odds.sum())[:-1], jnp.float32)
        place = jnp.searchsorted(cuts, jax.random.uniform(how_many, (draws,)), side="right")
        some = _subsets(who, jnp.asarray(size)[place], m)
        held = jnp.concatenate([some, held])
    weight = np.concatenate([np.full(draws, share / max(2 * draws, 1)), *weights])
    weight = np.concatenate([weight, weight])
    return _Design(jnp.concatenate([held, ~held]), jnp.asarray(weight / weight.sum()), draws, share)


def _all(m: int) -> _Design:
    """All coalitions but nobody and everybody."""
    number = np.arange(1, 2 ** (m - 1))  # those without the last player, and their complements
    held = (number[:, None] >> np.arange(m)) & 1 == 1
    size = held.sum(1)
    ways = np.array([math.comb(m, s) for s in range(m)], float)
    weight = 1 / (ways[size] * size * (m - size))
    weight = np.concatenate([weight, weight])
    return _Design(
        jnp.asarray(np.concatenate([held, ~held])), jnp.asarray(weight / weight.sum()), 0, 0.0
    )


def _subsets(key: Array, sizes: Array, m: int) -> Array:
    """Of each size, a random subset of m: `[N, m]` bool."""
    lots = jax.random.bits(key, (len(sizes), m))
    if m <= 64:  # comparing all pairs is less work than sorting
        rank = jnp.sum(lots[:, None, :] < lots[:, :, None], axis=-1)
        return rank < sizes[:, None]
    last = jnp.take_along_axis(jnp.sort(lots, axis=-1), sizes[:, None] - 1, axis=-1)
    return lots <= last


def _fit(design: _Design, worth: Array, total: Array) -> tuple[Array, Array]:
    """Values `[M]` that add up to `total`, and their standard errors by the pairs that were drawn.

    The last player's value is what the others leave of the total: that is the constraint. NaN where
    the coalitions do not tell the players apart.
    """
    held, weight = design.held.astype(worth.dtype), design.weight.astype(worth.dtype)[:, None]
    last = held[:, -1:]
    columns = held[:, :-1] - last
    gram = columns.T @ (weight * columns)
    side = columns.T @ (weight[:, 0] * (worth - last[:, 0] * total))
    factor = jax.scipy.linalg.cho_factor(gram)
    first = jax.scipy.linalg.cho_solve(factor, side)
    values = jnp.append(first, total - jnp.sum(first))
    n, half = design.drawn, len(worth) // 2
    if not n:
        # Not zeros of their own: where the system is singular, these are NaN as well.
        return values, values * 0
    left = worth - held @ values
    pairs = columns * left[:, None]
    pairs = design.share * (pairs[:n] + pairs[half : half + n]) / 2
    moved = jax.scipy.linalg.cho_solve(factor, pairs.T)  # [M - 1, n]
    moved = jnp.concatenate([moved, -jnp.sum(moved, axis=0, keepdims=True)])
    moved = moved - jnp.mean(moved, axis=1, keepdims=True)
    # Degrees of freedom that the fit leaves: of those it takes, these rows have their share.
    spare = max(n - max(1.0, design.share * (len(values) - 1)), 1.0)
    return values, jnp.sqrt(jnp.sum(moved**2, axis=1) / (n * spare))
