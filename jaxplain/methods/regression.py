"""Shapley values by weighted least squares over coalitions (KernelSHAP)."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.coalitions import game
from jaxplain.methods.path import Baseline
from jaxplain.methods.players import many
from jaxplain.methods.sampling import layout, wide
from jaxplain.types import (
    Array,
    JaxplainError,
    PyTree,
    SampledAttribution,
    ScalarFunction,
    check_key,
)

EXTRA = 2048  # samples beyond two for each player, where the caller does not say
ROWS = 256  # pairs at once, where none is evaluated


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
        chunk: evaluations at once, default 32. Memory is that of `chunk` of them, `samples` numbers
            and as many times M bits, M by M numbers, and as in `exact_shapley` of affine first
            steps.

    Returns:
        scores in f's units, float32 or wider, of the shape of `groups`, or `[...]`: each entry has
        the value of its group; standard_error the same, from what the fit leaves of each pair, 0
        where all coalitions were evaluated; gap is rounding; samples, how many were. All are NaN
        where the coalitions drawn do not tell the players apart. Cost: `samples + 2` forward
        passes, times K with `baselines`, less where first steps are affine, see `exact_shapley`;
        and one M by M system.

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
        count = 2 * len(design.weight)
        worths = lambda held: table.both(held) - table.nothing
        values, error = _fit(design, m, worths, total, table.chunk)
    return SampledAttribution(
        table.scores(values),
        table.whole,
        table.gap(values),
        table.scores(error),
        jnp.int32(count),
    )


class _Design(NamedTuple):
    """Coalitions to evaluate, each with its complement.

    Attributes:
        row: a whole number below N to a coalition, `[M]` bool; those drawn at random come first.
        weight: `[N]` of each, and of its complement; sums to 1/2.
        drawn: how many were drawn.
        share: what all drawn ones and their complements together weigh.
    """

    row: Callable[[Array], Array]
    weight: np.ndarray
    drawn: int
    share: float


def _drawn(key: Array, m: int, count: int) -> _Design:
    """`count / 2` coalitions by the kernel's weights.

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
        for place, members in enumerate(itertools.combinations(range(m), few)):
            half[place, list(members)] = True
        listed.append(half)
        weights.append(np.full(len(half), mass / many_of))
        left, share = left - many_of, share - mass
    few = len(listed)  # the smallest size that is drawn
    size, odds = size[few - 1 : m - few], odds[few - 1 : m - few]
    draws = left // 2 if len(size) else 0
    cuts = jnp.asarray(np.cumsum(odds / odds.sum())[:-1], jnp.float32)
    table = jnp.asarray(np.concatenate(listed))

    def drawn(i: Array) -> Array:
        how_many, who = jax.random.split(jax.random.fold_in(key, i))
        place = jnp.searchsorted(cuts, jax.random.uniform(how_many), side="right")
        lots = jax.random.bits(who, (m,))
        if m <= 64:  # comparing all pairs is less work than sorting
            return jnp.sum(lots[None, :] < lots[:, None], axis=-1) < jnp.asarray(size)[place]
        return lots <= jnp.sort(lots)[jnp.asarray(size)[place] - 1]

    def row(i: Array) -> Array:
        if not len(table):
            return drawn(i)
        known = table[jnp.clip(i - draws, 0, len(table) - 1)]
        return jnp.where(i < draws, drawn(i), known) if draws else known

    weight = np.concatenate([np.full(draws, share / max(2 * draws, 1)), *weights])
    return _Design(row, weight / (2 * weight.sum()), draws, share if draws else 0.0)


def _all(m: int) -> _Design:
    """All coalitions but nobody and everybody."""
    number = np.arange(1, 2 ** (m - 1))  # those without the last player; their complements have it
    size = np.array([int(n).bit_count() for n in number])
    ways = np.array([math.comb(m, s) for s in range(m)], float)
    weight = 1 / (ways[size] * size * (m - size))
    row = lambda i: ((i + 1) >> jnp.arange(m)) & 1 == 1
    return _Design(row, weight / (2 * weight.sum()), 0, 0.0)


def _fit(
    design: _Design, m: int, worths: Callable[[Array], Array], total: Array, chunk: int
) -> tuple[Array, Array]:
    """Values `[M]` that add up to `total`, and their standard errors by the pairs that were drawn.

    The last player's value is what the others leave of the total: that is the constraint. NaN where
    the coalitions do not tell the players apart. Memory is that of `chunk` evaluations, of what
    they gave, and a bit for each player of each pair.
    """
    dtype, pairs = total.dtype, len(design.weight)
    bits = many(lambda i: _packed(design.row(i)), pairs, ROWS)
    member = lambda i: _unpacked(bits[i], m)
    gave = many(lambda i: worths(member(i)), pairs, max(1, chunk // 2))

    def pair(i: Array) -> tuple[Array, Array, Array]:
        """The row of the system, which the complement has with the other sign, and both."""
        held = member(i).astype(dtype)
        return held[:-1] - held[-1], held, 1 - held

    def add(state: tuple, xs: tuple) -> tuple:
        """A block's part of the normal equations."""
        index, weight = xs
        row, held, others = jax.vmap(pair)(index)
        more = gave[index, 0] - gave[index, 1] - (held[:, -1] - others[:, -1]) * total
        weighted = weight.astype(dtype)[:, None] * row
        return (state[0] + 2 * weighted.T @ row, state[1] + weighted.T @ more), None

    index, real = layout(pairs, ROWS)
    zero = jnp.zeros((m - 1, m - 1), dtype), jnp.zeros(m - 1, dtype)
    xs = jnp.asarray(index), jnp.asarray(design.weight[index] * real)
    gram, side = jax.lax.scan(add, zero, xs)[0]
    factor = jax.scipy.linalg.cho_factor(gram)
    first = jax.scipy.linalg.cho_solve(factor, side)
    values = jnp.append(first, total - jnp.sum(first))
    n = design.drawn
    if not n:
        # Not zeros of their own: where the system is singular, these are NaN as well.
        return values, values * 0

    def away(state: tuple, xs: tuple) -> tuple:
        """Sums of the drawn pairs' parts of the normal equations that are left, and of products."""
        index, real = xs
        row, held, others = jax.vmap(pair)(index)
        left = (gave[index, 0] - held @ values) - (gave[index, 1] - others @ values)
        parts = row * (left / 2 * real.astype(dtype))[:, None]
        return (state[0] + jnp.sum(parts, axis=0), state[1] + parts.T @ parts), None

    xs = tuple(map(jnp.asarray, layout(n, ROWS)))
    mean, products = jax.lax.scan(away, (zero[1], zero[0]), xs)[0]
    spread = products - mean[:, None] * mean[None, :] / n
    moved = jax.scipy.linalg.cho_solve(factor, jax.scipy.linalg.cho_solve(factor, spread).T)
    # Degrees of freedom that the fit leaves: of those it takes, these rows have their share.
    spare = max(n - max(1.0, design.share * (m - 1)), 1.0)
    variance = jnp.append(jnp.diagonal(moved), jnp.sum(moved)) / (n * spare)
    return values, design.share * jnp.sqrt(jnp.maximum(variance, 0))


def _packed(held: Array) -> Array:
    """`[M]` bool as `[ceil(M / 32)]` whole numbers."""
    padded = jnp.pad(held, (0, -len(held) % 32)).reshape(-1, 32)
    return jnp.sum(padded.astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32)[None], 1)


def _unpacked(bits: Array, m: int) -> Array:
    each = bits[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None] & 1
    return each.reshape(-1)[:m] == 1
