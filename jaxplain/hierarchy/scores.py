"""Scores of groups of units."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.hierarchy.units import expand
from jaxplain.methods.path import check_baseline
from jaxplain.types import Array, JaxplainError, PyTree, check_positive


def class_difference(scores: Array, label: Array | int, other: Array | int | None = None) -> Array:
    """What speaks for one class rather than for another.

    Args:
        scores: `[..., K]`, one for each of K classes.
        label: the class.
        other: the class to compare with; default the strongest of the others, row by row.

    Returns:
        `[...]`.

    Raises:
        JaxplainError: fewer than 2 classes.

    >>> import jax.numpy as jnp
    >>> class_difference(jnp.array([[1.0, 3.0, 2.0]]), 1).tolist()
    [1.0]
    """
    count = scores.shape[-1] if scores.ndim else 0
    if count < 2:
        raise JaxplainError("class_difference needs scores of at least 2 classes on the last axis")
    if other is None:
        mine = jnp.broadcast_to(jnp.arange(count) == label, scores.shape)
        rest = jnp.max(jnp.where(mine, -jnp.inf, scores), axis=-1)
    else:
        rest = jnp.take(scores, other, axis=-1)
    return jnp.take(scores, label, axis=-1) - rest


def occlusion_score(
    f: Callable[[PyTree], Array],
    x: PyTree,
    units: PyTree,
    *,
    baseline: PyTree | Callable[[PyTree], PyTree] = 0.0,
) -> Callable[[Array], Array]:
    """The score f(x) - f(x without the group), which the published code calls break-down.

    Args:
        f: `x -> [...]`.
        x: one example: any pytree of float arrays.
        units: as in `expand`.
        baseline: what stands where a group is taken out: x's tree, one number, or a function of x.

    Returns:
        `masks [G, N] -> [G, ...]`. Cost: one forward pass a group, and one that they share.
    """
    replaced, output = _replacing(f, x, units, baseline), f(x)
    return lambda masks: output[None] - replaced(masks)


def build_up_score(
    f: Callable[[PyTree], Array],
    x: PyTree,
    units: PyTree,
    *,
    baseline: PyTree | Callable[[PyTree], PyTree] = 0.0,
) -> Callable[[Array], Array]:
    """The score f(the group, all other units at the baseline) - f(all at the baseline).

    What is in no unit stays as it is; see `occlusion_score`.
    """
    replaced = _replacing(f, x, units, check_baseline(baseline, x))

    def score(masks):
        masks = masks.astype(bool)
        return replaced(~masks) - replaced(jnp.ones_like(masks[:1]))  # an axis of 1 broadcasts

    return score


def tabulated(
    score: Callable[[Array], Array], n: int, *, chunk: int = 64
) -> Callable[[Array], Array]:
    """The same score of runs of units, every one of them computed beforehand.

    For `agglomerate` over `chain(n)`: it scores n (n + 1) / 2 runs, several times what the levels
    need, but none waits for another. That is faster where a device is idle otherwise.

    Args:
        score: `masks [G, n] bool -> [G]`.
        n: how many units there are.
        chunk: runs scored at once.

    Returns:
        `masks [G, n] -> [G]`, right for masks of one run only.
    """
    unit = np.arange(check_positive("n", n))
    start, stop = np.triu_indices(n)
    masks = jnp.asarray((unit >= start[:, None]) & (unit <= stop[:, None]))
    one = lambda mask: score(mask[None])[0]
    values = jax.lax.map(one, masks, batch_size=check_positive("chunk", chunk))
    table = jnp.zeros((n, n), values.dtype).at[start, stop].set(values)

    def look_up(masks):
        first = jnp.argmax(masks, axis=1)
        return table[first, first + jnp.sum(masks, axis=1) - 1]

    return look_up


def _replacing(f, x: PyTree, units: PyTree, baseline) -> Callable[[Array], Array]:
    start = check_baseline(baseline, x)

    def one(mask):
        mixed = jax.tree.map(lambda m, b, v: jnp.where(m, b, v), mask, start, x)
        return f(mixed)

    return lambda masks: jax.vmap(one)(expand(masks.astype(bool), units))
