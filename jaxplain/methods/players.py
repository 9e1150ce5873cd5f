"""Groups of an input as players: whose each entry is, and inputs where only some keep theirs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret.compat import is_traced
from jaxplain.methods.sampling import layout
from jaxplain.types import Array, JaxplainError, PyTree, check_positive

CHUNK = 32  # evaluations at once, where the caller does not say


class Players(NamedTuple):
    """Groups of an input's entries.

    Letters: `M` players.

    Attributes:
        x: the input, a tree of arrays.
        labels: for each leaf of x, whole numbers that broadcast to it: whose each entry is;
            negative for nobody's, which is never taken away.
        count: M.
        width: how many evaluations to do at once.
    """

    x: PyTree
    labels: list[np.ndarray]
    count: int
    width: int

    def keep(self, kept: Array, other: PyTree) -> PyTree:
        """x at the entries of the players that are kept `[M]`, and of nobody; else the other."""
        leaves = zip(jax.tree.leaves(self.x), jax.tree.leaves(other), self.labels, strict=True)
        parts = [
            jnp.where(jnp.asarray(at < 0) | kept[np.maximum(at, 0)], v, o) for v, o, at in leaves
        ]
        return jax.tree.unflatten(jax.tree.structure(self.x), parts)

    def without_all(self, other: PyTree) -> PyTree:
        """x at the entries of nobody, else the other."""
        return self.keep(jnp.zeros(self.count, bool), other)

    def shares(self, linear: Callable[[PyTree], list[Array]], change: PyTree) -> list[Array]:
        """What a linear function gives for each player's part of a change: `[M, ...]`."""

        def share(i: Array) -> list[Array]:
            leaves = zip(jax.tree.leaves(change), self.labels, strict=True)
            moved = [jnp.where(jnp.asarray(at) == i, v, 0) for v, at in leaves]
            return linear(jax.tree.unflatten(jax.tree.structure(change), moved))

        return many(share, self.count, self.width)

    def scores(self, values: Array) -> PyTree:
        """Each player's value `[M]` at its entries, in x's tree."""
        at = [
            jnp.where(jnp.asarray(label >= 0), values[np.maximum(label, 0)], 0)
            for label in self.labels
        ]
        return jax.tree.unflatten(jax.tree.structure(self.x), at)


def players(x: PyTree, groups: PyTree | None, chunk: int | None) -> Players:
    """The groups of x, a tree of arrays.

    Raises:
        JaxplainError: groups that are not whole numbers broadcastable to x, or hold nobody; a
            chunk below 1.
    """
    labels, count = label(groups, x)
    return Players(x, labels, count, CHUNK if chunk is None else check_positive("chunk", chunk))


def many(value: Callable[[Array], PyTree], count: int, chunk: int) -> PyTree:
    """`value(0), ..., value(count - 1)`, `chunk` of them at once."""
    index, _ = layout(count, chunk)
    rows = jax.lax.map(lambda row: jax.vmap(value)(row), jnp.asarray(index))
    return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:])[:count], rows)


def known(name: str, numbers: Any) -> np.ndarray:
    """Whole numbers that decide what is compiled.

    Raises:
        JaxplainError: they are traced, or no whole numbers.
    """
    if is_traced(numbers) or not np.issubdtype(np.asarray(numbers).dtype, np.integer):
        kind = "traced" if is_traced(numbers) else str(np.asarray(numbers).dtype)
        raise JaxplainError(
            f"{name} must be whole numbers that are known beforehand, not {kind}: they decide what "
            "is compiled"
        )
    return np.asarray(numbers)


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
        at = known("groups", at)
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
