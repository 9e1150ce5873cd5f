"""Shapley interactions of pairs: what two players give together beyond what each gives alone."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.coalitions import game
from jaxplain.methods.path import Baseline
from jaxplain.methods.players import many
from jaxplain.methods.sampling import wide
from jaxplain.types import Array, JaxplainError, PyTree, ScalarFunction

MOST = 12  # players whose coalitions are all evaluated


class Interactions(NamedTuple):
    """Effects of single players and of pairs.

    Attributes:
        interactions: `[M, M]` in f's units, symmetric: a pair's whole interaction is both at
            `[i, j]` and at `[j, i]`; main effects are on the diagonal. Players are in the order of
            their groups' numbers, or of x's flattened entries.
        output: `[]` f(x).
        gap: `[]` the sum of main effects and of pairs, each counted once, less f(x) - f of nobody.
    """

    interactions: Array
    output: Array
    gap: Array


def shapley_interactions(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    index: Literal["k-SII", "STII"] = "k-SII",
    baseline: Baseline = None,
    baselines: PyTree | None = None,
    groups: PyTree | None = None,
    chunk: int | None = None,
) -> Interactions:
    """Shapley interactions of pairs, by all coalitions: exact, for up to 12 players.

    A pair's interaction given a coalition is what f moves by when both join, beyond what it moves
    by when each joins alone; its index averages that over coalitions of the others, `M` players:

    - `"k-SII"`: as Shapley values average (the Shapley interaction index); a main effect is the
      player's Shapley value less half of its interactions. Also called n-Shapley values, and what
      `shap` calls interaction values, which halve a pair between `[i, j]` and `[j, i]`.
    - `"STII"`: the Shapley-Taylor index, which gives all effects of three players and more to
      pairs: a main effect is what the player adds to nobody.

    Both sum to f(x) - f of nobody, and agree where f has no effects of three players or more.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example, any pytree of float arrays; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        index: which average.
        baseline: as in `integrated_gradients`; default zeros. As `baselines`: see `exact_shapley`.
        baselines: x's tree, `[K, ...]`.
        groups: as in `feature_ablation`; None makes every entry a player.
        chunk: evaluations at once, default 32. Memory is that of `chunk` of them, and `M 2^M`
            numbers.

    Returns:
        interactions `[M, M]`; gap is rounding. Cost: 2^M forward passes, times K with `baselines`;
        less where first steps are affine, see `exact_shapley`.

    Raises:
        JaxplainError: more than 12 players, with what they would cost; another index; as
            `feature_ablation`; baseline and baselines both.

    References: Grabisch, Roubens, An axiomatic approach to the concept of interaction among players
        in cooperative games, 1999, https://doi.org/10.1007/s001820050125
        Lundberg et al., From local explanations to global understanding with explainable AI for
        trees, 2020, https://arxiv.org/abs/1905.04610 (pairs and main effects that add up)
        Bordt, von Luxburg, From Shapley Values to Generalized Additive Models and back, 2023,
        https://arxiv.org/abs/2209.04012 (the same for any order)
        Sundararajan, Dhamdhere, Agarwal, The Shapley Taylor Interaction Index, 2020,
        https://arxiv.org/abs/1902.05622

    >>> import jax.numpy as jnp
    >>> f = lambda x: x[0] * x[1] + x[2]
    >>> shapley_interactions(f, jnp.array([2.0, 3.0, 4.0])).interactions.round(4).tolist()
    [[0.0, 6.0, 0.0], [6.0, 0.0, 0.0], [0.0, 0.0, 4.0]]
    """
    del key
    if index not in ("k-SII", "STII"):
        raise JaxplainError(f"index must be 'k-SII' or 'STII', not {index!r}")
    table = game(f, x, groups=groups, baseline=baseline, baselines=baselines, chunk=chunk)
    m = table.players
    if m > MOST:
        raise JaxplainError(
            f"{m} players have 2^{m} coalitions, a forward pass each: join them to at most {MOST} "
            "groups"
        )
    held = np.arange(2**m)[:, None] >> np.arange(m) & 1 == 1  # [2^M, M]
    rows = jnp.asarray(held)
    # About nobody's worth: f's level, that all coalitions share, would only cost digits.
    worth = many(lambda i: table.worth(rows[i]), 2**m, table.chunk) - table.nothing
    pairs = _pairs(held, worth, _shares(m, index))
    if index == "STII":
        alone = worth[2 ** np.arange(m)]
    else:
        joins = np.array([1 / (m * math.comb(m - 1, s)) for s in range(m)])
        size = held.sum(1)
        weight = np.where(held, joins[size - 1][:, None], -joins[np.minimum(size, m - 1)][:, None])
        values = jnp.sum(jnp.asarray(weight, worth.dtype) * worth[:, None], axis=0)
        alone = values - jnp.sum(pairs, axis=1) / 2
    total = jnp.sum(alone) + jnp.sum(pairs) / 2
    gap = total - (wide(table.whole) - table.nothing)
    return Interactions(pairs + jnp.diag(alone), table.whole, gap)


def _shares(m: int, index: str) -> np.ndarray:
    """A pair's weight of a coalition of t others, for t below `M - 1`; over all, they sum to 1."""
    if index == "STII":
        return np.array([2 / (m * math.comb(m - 1, t)) for t in range(max(m - 1, 1))])
    return np.array([1 / ((m - 1) * math.comb(m - 2, t)) for t in range(m - 1)] or [0.0])


def _pairs(held: np.ndarray, worth: Array, share: np.ndarray) -> Array:
    """Each pair's mean interaction `[M, M]`, 0 on the diagonal.

    A coalition counts for a pair that it holds whole or not at all, and against one that it parts,
    with the share of its size without the pair.
    """
    size = held.sum(1)
    inside, outside = (jnp.asarray(h, worth.dtype) for h in (held, ~held))

    def both(a, b, less):
        by_size = jnp.asarray(share[np.clip(size - less, 0, len(share) - 1)], worth.dtype)
        return jnp.matmul(a.T, (worth * by_size)[:, None] * b, precision=jax.lax.Precision.HIGHEST)

    parted = both(inside, outside, 1)
    sums = both(inside, inside, 2) + both(outside, outside, 0) - parted - parted.T
    sums = (sums + sums.T) / 2  # which are equal, but for how they were rounded
    return jnp.where(jnp.eye(held.shape[1], dtype=bool), 0, sums)
