"""Units: which touch, and which parts of an input each of them is."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.types import Array, JaxplainError, PyTree, check_positive


def chain(n: int) -> np.ndarray:
    """`[n, n]` bool: each unit of a sequence touches the next."""
    place = np.arange(check_positive("n", n))
    return np.abs(place[:, None] - place[None]) == 1


def grid(rows: int, columns: int, *, connectivity: int = 1) -> np.ndarray:
    """`[rows * columns]` squared, bool: touching by sides, and with `connectivity` 2 by corners."""
    size = check_positive("rows", rows), check_positive("columns", columns)
    return touching(np.arange(math.prod(size)).reshape(size), connectivity=connectivity)


def touching(labels: np.ndarray, *, connectivity: int = 1) -> np.ndarray:
    """`[N, N]` bool: which segments of a label map `[H, W]` of 0 to N - 1 touch.

    By sides, and with `connectivity` 2 by corners too. A negative label is no segment.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer) or labels.max() < 0:
        raise JaxplainError("labels must be a map [H, W] of whole numbers, one of them at least 0")
    if connectivity not in (1, 2):
        raise JaxplainError(f"connectivity must be 1 or 2, not {connectivity!r}")
    count = int(labels.max()) + 1
    touch = np.zeros((count, count), bool)
    pairs = [(labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])]
    if connectivity == 2:
        pairs += [(labels[1:, 1:], labels[:-1, :-1]), (labels[1:, :-1], labels[:-1, 1:])]
    for a, b in pairs:
        a, b = a.ravel(), b.ravel()
        apart = (a != b) & (a >= 0) & (b >= 0)
        touch[a[apart], b[apart]] = touch[b[apart], a[apart]] = True
    return touch


def expand(masks: Array, units: PyTree) -> PyTree:
    """Masks of units as masks of the input.

    Args:
        masks: `[G, N]`.
        units: whole numbers broadcastable to the input, leaf by leaf: the unit that each place
            belongs to, -1 for none. Words of `[L, E]` are `jnp.arange(L)[:, None]`.

    Returns:
        units' tree, each leaf `[G, ...]` before the axes of units.
    """

    def leaf(unit):
        unit = jnp.asarray(unit)
        held = masks[:, jnp.maximum(unit, 0)]
        return jnp.where((unit >= 0)[None], held, jnp.zeros_like(held))

    return jax.tree.map(leaf, units)
