"""What f gives when only some groups of the input stay and the rest is taken from elsewhere."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret import canonical_convolutions
from jaxplain.interpret.compat import is_traced
from jaxplain.methods.path import Baseline, check_baseline, check_set
from jaxplain.methods.sampling import layout, wide
from jaxplain.types import (
    Array,
    JaxplainError,
    PyTree,
    ScalarFunction,
    check_example,
    check_positive,
)

CHUNK = 32  # evaluations at once, where the caller does not say


class Game(NamedTuple):
    """Groups of an input as players, and what a coalition of them is worth.

    Letters: `M` players.

    Attributes:
        labels: for each leaf of x, whole numbers that broadcast to it: whose each entry is;
            negative for nobody's, which is never taken away.
        players: M.
        worth: `[M]` bool -> `[]`: f where the players of a coalition keep their entries.
        chunk: how many coalitions to evaluate at once.
        whole: `[]` f(x).
        nothing: `[]` the worth of nobody.
    """

    labels: list[np.ndarray]
    players: int
    worth: Callable[[Array], Array]
    chunk: int
    whole: Array
    nothing: Array

    def scores(self, x: PyTree, values: Array) -> PyTree:
        """Each player's value `[M]` at its entries, in x's tree."""
        at = [
            jnp.where(jnp.asarray(label >= 0), values[np.maximum(label, 0)], 0)
            for label in self.labels
        ]
        return jax.tree.unflatten(jax.tree.structure(x), at)

    def gap(self, values: Array) -> Array:
        """The sum of all values, less what they should add up to."""
        return jnp.sum(values) - (wide(self.whole) - self.nothing)


def game(
    f: ScalarFunction,
    x: PyTree,
    *,
    groups: PyTree | None,
    baseline: Baseline = None,
    baselines: PyTree | None = None,
    chunk: int | None = None,
) -> Game:
    """The game of f at x: what is not in a coalition comes from the baseline, or from each of
    `baselines` in turn, over which f is averaged.

    Raises:
        JaxplainError: x, f or a baseline that does not fit; both kinds of baseline; groups that
            are not whole numbers broadcastable to x, or hold nobody.
    """
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    labels, players = label(groups, x)
    width = CHUNK if chunk is None else check_positive("chunk", chunk)
    f = canonical_convolutions(f)

    def mixed(kept: Array, other: PyTree) -> Array:
        leaves = zip(jax.tree.leaves(x), jax.tree.leaves(other), labels, strict=True)
        parts = [
            jnp.where(jnp.asarray(at < 0) | kept[np.maximum(at, 0)], v, o) for v, o, at in leaves
        ]
        return wide(f(jax.tree.unflatten(jax.tree.structure(x), parts)))

    if baselines is None:
        other = check_baseline(baseline, x)
        worth, count = lambda kept: mixed(kept, other), 1
    elif baseline is not None:
        raise JaxplainError("give baseline or baselines, not both: they are two different games")
    else:
        count, others = check_set(baselines, x)

        def worth(kept):
            one = lambda k: mixed(kept, jax.tree.map(lambda b: b[k], others))
            return jnp.mean(many(one, count, width))

    at_once = max(1, width // count)
    return Game(labels, players, worth, at_once, f(x), worth(jnp.zeros(players, bool)))


def many(value: Callable[[Array], Array], count: int, chunk: int) -> Array:
    """`value(0), ..., value(count - 1)`, `chunk` of them at once."""
    index, _ = layout(count, chunk)
    rows = jax.lax.map(lambda row: jax.vmap(value)(row), jnp.asarray(index))
    return rows.reshape(-1, *rows.shape[2:])[:count]


def label(groups: PyTree | None, x: PyTree) -> tuple[list[np.ndarray], int]:
    """For each leaf of x whose its entries are, numbered from 0, and how many there are."""
    leaves, tree = jax.tree.flatten(x)
    if groups is None:
        ends = np.cumsum([0, *(leaf.size for leaf in leaves)])
        starts = zip(ends, leaves, strict=False)
        return [start + np.arange(v.size).reshape(v.shape) for start, v in starts], int(ends[-1])
    given = jax.tree.leaves(groups)
    if jax.tree.structure(groups) != tree:
        raise JaxplainError(
            f"groups has structure {jax.tree.structure(groups)}, and x has {tree}: give groups "
            "the same tree, each leaf the numbers of its entries' groups"
        )
    fits = []
    for at, leaf in zip(given, leaves, strict=True):
        if is_traced(at) or not np.issubdtype(np.asarray(at).dtype, np.integer):
            kind = "traced" if is_traced(at) else str(np.asarray(at).dtype)
            raise JaxplainError(
                f"groups must be arrays of whole numbers that are known beforehand, not {kind}: "
                "how many there are decides what is compiled"
            )
        at = np.asarray(at)
        at = at.reshape((1,) * (leaf.ndim - at.ndim) + at.shape)
        if at.ndim != leaf.ndim or any(
            n not in (1, m) for n, m in zip(at.shape, leaf.shape, strict=True)
        ):
            raise JaxplainError(
                f"groups has shape {list(at.shape)}, which does not broadcast to x's "
                f"{list(leaf.shape)}"
            )
        fits.append(at)
    names = np.unique(np.concatenate([at.ravel() for at in fits]))
    names = names[names >= 0]
    if not len(names):
        raise JaxplainError("groups has no group: number them from 0; below 0 is in none")
    return [np.where(at < 0, -1, np.searchsorted(names, at)) for at in fits], len(names)
