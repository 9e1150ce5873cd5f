"""Shapley values by weighted least squares over coalitions (KernelSHAP)."""

import math

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
    values, in pairs, each with its complement; values are held to add up to f(x) - f of nobody. If
    `samples` is enough for all coalitions, each is evaluated once, and the result is exact.

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
        held, weight = _all(m) if count == every else _drawn(key, m, count)
        worth = many(lambda i: table.worth(held[i]), count, table.chunk) - table.nothing
        values, error = _fit(held.astype(worth.dtype), weight, worth, total)
        error = jnp.zeros_like(error) if count == every else error
    return SampledAttribution(
        table.scores(x, values),
        table.whole,
        table.gap(values),
        table.scores(x, error),
        jnp.int32(count),
    )


def _all(m: int) -> tuple[Array, Array]:
    """All coalitions but nobody and everybody, `[2^M - 2, M]`, and their weights."""
    number = jnp.arange(1, 2**m - 1)
    held = (number[:, None] >> jnp.arange(m)[None]) & 1 == 1
    size = np.arange(1, m)
    kernel = (m - 1) / (np.array([math.comb(m, s) for s in size], float) * size * (m - size))
    weight = jnp.asarray(kernel)[jnp.sum(held, axis=1) - 1]
    return held, weight / jnp.sum(weight)


def _drawn(key: Array, m: int, count: int) -> tuple[Array, Array]:
    """`count` coalitions by the kernel's weights, `[count, M]`: the second half are complements."""
    size = np.arange(1, m)
    share = jnp.asarray(1 / (size * (m - size)))

    def one(key):
        how_many, who = jax.random.split(key)
        size = 1 + jax.random.categorical(how_many, jnp.log(share))
        return jax.random.permutation(who, m) < size

    held = jax.vmap(one)(jax.random.split(key, count // 2))
    return jnp.concatenate([held, ~held]), jnp.full(count, 1 / count)


def _fit(held: Array, weight: Array, worth: Array, total: Array) -> tuple[Array, Array]:
    """Values `[M]` that add up to `total`, and their standard errors by pairs of rows.

    The last player's value is what the others leave of the total: that is the constraint. NaN where
    the coalitions do not tell the players apart.
    """
    weight = weight.astype(held.dtype)[:, None]
    last = held[:, -1:]
    columns = held[:, :-1] - last
    gram = columns.T @ (weight * columns)
    side = columns.T @ (weight[:, 0] * (worth - last[:, 0] * total))
    factor = jax.scipy.linalg.cho_factor(gram)
    first = jax.scipy.linalg.cho_solve(factor, side)
    values = jnp.append(first, total - jnp.sum(first))
    left = worth - held @ values
    half = len(worth) // 2
    pairs = columns * left[:, None]
    pairs = (pairs[:half] + pairs[half:]) / 2
    moved = jax.scipy.linalg.cho_solve(factor, pairs.T)  # [M - 1, pairs]
    moved = jnp.concatenate([moved, -jnp.sum(moved, axis=0, keepdims=True)])
    spare = max(half - (len(values) - 1), 1)  # degrees of freedom that the fit leaves
    return values, jnp.sqrt(jnp.sum(moved**2, axis=1) / (half * spare))
