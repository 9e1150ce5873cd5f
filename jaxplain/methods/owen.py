"""Owen values: Shapley values of players who come in unions, and join union by union.

Letters: `M` players: groups of inputs, or single ones. `[...]` is the shape of one leaf of x.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.coalitions import game
from jaxplain.methods.path import Baseline
from jaxplain.methods.players import known, many
from jaxplain.methods.shapley import by_orders
from jaxplain.types import (
    Array,
    Attribution,
    JaxplainError,
    PyTree,
    SampledAttribution,
    ScalarFunction,
    check_key,
)

MOST = 2**16  # coalitions that are all evaluated


def exact_owen(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    baselines: PyTree | None = None,
    groups: PyTree | None = None,
    unions: np.ndarray,
    chunk: int | None = None,
) -> Attribution:
    """Owen values by all coalitions that unions allow: exact.

    Players who belong together (words of a sentence, pixels of a region) join one after the other,
    with nobody else between them: a value is what a player adds, averaged over all orders that keep
    every union together. A union's values sum to the Shapley value of the union as one player.
    Where all players are in one union, or each in its own, they are Shapley values.

    Unions may hold unions, which are then kept together too (a level structure: Winter values); a
    tree of unions in pairs is the hierarchy of `shap`'s Partition explainer.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example, any pytree of float arrays; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        baseline: as in `integrated_gradients`; default zeros. As `baselines`: see `exact_shapley`.
        baselines: x's tree, `[K, ...]`.
        groups: as in `feature_ablation`; None makes every entry a player.
        unions: `[M]` whole numbers: which union a player is in. Players are in the order of their
            groups' numbers, or of x's flattened entries. Or `[L, M]`, coarsest first: players are
            together in a union where this row and all rows above agree.
        chunk: evaluations at once, default 32. Memory is that of `chunk` of them, and M numbers
            for each coalition.

    Returns:
        scores in f's units, float32 or wider, of the shape of `groups`, or `[...]`: each entry has
        the value of its group. gap is rounding: the sum of all players' values less f(x) - f of
        nobody. Cost: a forward pass for each coalition, times K with `baselines`: for U unions of S
        players, 2^U + U 2^(U-1) (2^S - 2); of a balanced tree of pairs, 2 (M^2 + 2) / 3. Less
        where first steps are affine, see `exact_shapley`.

    Raises:
        JaxplainError: more than 65,536 coalitions, with how many; unions that are not whole numbers
            known beforehand, or not one for each player; as `feature_ablation`; baseline and
            baselines both.

    References: Owen, Values of Games with a Priori Unions, 1977,
        https://doi.org/10.1007/978-3-642-45494-3_7
        Winter, A Value for Cooperative Games with Levels Structure of Cooperation, 1989,
        https://doi.org/10.1007/BF01268147

    >>> import jax.numpy as jnp, numpy as np
    >>> f = lambda x: x[0] * x[1] * x[2]
    >>> pair_and_one = np.array([0, 0, 1])
    >>> exact_owen(f, jnp.array([2.0, 3.0, 4.0]), unions=pair_and_one).scores.tolist()
    [6.0, 6.0, 12.0]
    """
    del key
    table = game(f, x, groups=groups, baseline=baseline, baselines=baselines, chunk=chunk)
    levels = _levels(unions, table.players)
    cost = _cost(levels)
    if cost > MOST:
        raise JaxplainError(
            f"{table.players} players in these unions have {_round(cost)} coalitions, a "
            f"forward pass each, above {MOST}: use owen_sampling, or smaller unions in more levels"
        )
    held, weight = _coalitions(levels)
    rows = jnp.asarray(held)
    worth = many(lambda i: table.worth(rows[i]), len(held), table.chunk)
    # About nobody's worth: f's level, that all coalitions share, would only cost digits.
    values = jnp.sum(jnp.asarray(weight, worth.dtype) * (worth - table.nothing)[:, None], axis=0)
    return Attribution(table.scores(values), table.whole, table.gap(values))


def owen_sampling(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    baselines: PyTree | None = None,
    groups: PyTree | None = None,
    unions: np.ndarray,
    samples: int = 32,
    chunk: int | None = None,
) -> SampledAttribution:
    """Owen values by random orders that keep unions together: see `exact_owen`.

    Orders come in pairs, one the other backwards, as in `shapley_sampling`.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example, any pytree of float arrays; batch with `jax.vmap`.
        key: consumed.
        baseline: as in `integrated_gradients`; default zeros. As `baselines`: see `exact_shapley`.
        baselines: x's tree, `[K, ...]`.
        groups: as in `feature_ablation`; None makes every entry a player.
        unions: `[M]` or `[L, M]`, as in `exact_owen`.
        samples: orders, an even number of at least 4. The standard error falls with its root.
        chunk: evaluations at once, default 32. Memory is that of `chunk` of them, whatever M and
            `samples` are.

    Returns:
        scores in f's units, float32 or wider, of the shape of `groups`, or `[...]`: each entry has
        the value of its group; standard_error the same, from how pairs of orders differ; gap is
        rounding: each order's values sum to f(x) - f of nobody. Cost: samples (M - 1) + 2 forward
        passes, times K with `baselines`; less where first steps are affine, see `exact_shapley`.

    Raises:
        JaxplainError: no key; samples odd or below 4; unions as in `exact_owen`; as
            `feature_ablation`; baseline and baselines both.

    References: as `exact_owen`, and Mitchell, Cooper, Frank, Holmes, Sampling Permutations for
        Shapley Value Estimation, 2022, https://arxiv.org/abs/2104.12199 (antithetic orders)

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> f, x = lambda x: x[0] * x[1] + x[2], jnp.array([2.0, 3.0, 4.0])
    >>> owen_sampling(f, x, unions=np.array([0, 0, 1]), key=jax.random.key(0)).scores.tolist()
    [3.0, 3.0, 4.0]
    """
    key = check_key("owen_sampling", key)
    table = game(f, x, groups=groups, baseline=baseline, baselines=baselines, chunk=chunk)
    levels = _levels(unions, table.players)
    return by_orders(table, lambda i: _places(jax.random.fold_in(key, i), levels), samples)


def _levels(unions: np.ndarray, players: int) -> np.ndarray:
    """`[L + 1, M]`: unions from 0 in each level, each level within the one above, then players."""
    rows = known("unions", unions)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != players:
        raise JaxplainError(
            f"unions has shape {list(np.shape(unions))}, and needs one number for each player: "
            f"[{players}], or [L, {players}] for levels"
        )
    rows = np.concatenate([rows, np.arange(players)[None]])
    each = range(1, len(rows) + 1)
    return np.stack([np.unique(rows[:n], axis=1, return_inverse=True)[1].ravel() for n in each])


def _children(levels: np.ndarray, members: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The parts that the first level splits the members into, and the levels below.

    Levels that do not split them are skipped: they would only add coalitions that are known.
    """
    while len(levels) > 1 and len(np.unique(levels[0][members])) == 1:
        levels = levels[1:]
    names = levels[0][members]
    return [members[names == name] for name in np.unique(names)], levels[1:]


def _cost(levels: np.ndarray) -> int:
    """How many coalitions there are, without listing them."""

    def inside(levels, members):
        if len(members) == 1:
            return 0
        parts, below = _children(levels, members)
        return 2 ** len(parts) - 2 + 2 ** (len(parts) - 1) * sum(inside(below, p) for p in parts)

    return 2 + inside(levels, np.arange(levels.shape[1]))


def _coalitions(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coalitions `[E, M]` that orders can lead to, and each one's weights `[E, M]` in values.

    A union's place among the parts of its own union is a Shapley value's; along the levels, the
    shares of contexts multiply.
    """
    players = levels.shape[1]
    blocks: list[tuple[np.ndarray, np.ndarray]] = []

    def visit(levels, members, context, share):
        parts, below = _children(levels, members)
        n = len(parts)
        chosen = np.arange(2**n)[:, None] >> np.arange(n) & 1 == 1
        size = chosen.sum(1)
        each = np.array([share / (n * math.comb(n - 1, s)) for s in range(n)])
        held = np.repeat(context[None], 2**n, axis=0)
        for at, part in enumerate(parts):
            held[:, part] = chosen[:, at, None]
        weight = np.zeros(held.shape)
        for at, part in enumerate(parts):
            if len(part) == 1:
                joins, stays = each[size - 1], -each[np.minimum(size, n - 1)]
                weight[:, part[0]] = np.where(chosen[:, at], joins, stays)
                continue
            for row in np.flatnonzero(~chosen[:, at]):
                visit(below, part, held[row], each[size[row]])
        if weight.any():
            blocks.append((held, weight))

    visit(levels, np.arange(players), np.zeros(players, bool), 1.0)
    held, weight = (np.concatenate(rows) for rows in zip(*blocks, strict=True))
    packed = np.packbits(held, axis=1)
    _, first, same = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    total = np.zeros((len(first), players))
    np.add.at(total, same.ravel(), weight)
    return held[first], total


def _places(key: Array, levels: np.ndarray) -> Array:
    """Each player's place `[M]` in a random order that keeps every union together."""
    keys = jax.random.split(key, len(levels))
    ranks = [
        jax.random.permutation(k, int(level.max()) + 1)[level]
        for k, level in zip(keys, levels, strict=True)
    ]
    order = jnp.lexsort(ranks[::-1])  # by the coarsest first
    players = jnp.arange(levels.shape[1], dtype=jnp.int32)
    return jnp.zeros_like(players).at[order].set(players)


def _round(cost: int) -> str:
    return str(cost) if cost < 10**6 else f"over 10^{int(math.log10(cost))}"
