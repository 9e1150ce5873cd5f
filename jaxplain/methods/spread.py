"""How far the units of a hidden state spread over a sample of inputs."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxplain.methods.sampling import wide
from jaxplain.types import Array, JaxplainError, PyTree, check_positive


class Moments(NamedTuple):
    """Of some counted values of every unit; `merge` joins those of two samples.

    Attributes:
        count: how many values; the state's tree, broadcastable to `mean`.
        mean: their mean, in the state's units; 0 where there are none.
        second: sum of their squared distances from the mean.
    """

    count: PyTree
    mean: PyTree
    second: PyTree


def hidden_moments(
    h: Callable[[PyTree], PyTree],
    xs: PyTree,
    *,
    counted: Callable[[PyTree], Array] | None = None,
    axes: tuple[int, ...] = (),
    reduce: Literal["pool", "mean"] = "pool",
    chunk: int = 32,
) -> Moments:
    """Moments of hidden units over one batch of inputs; see `hidden_spread` for the arguments."""
    if reduce not in ("pool", "mean"):
        raise JaxplainError(f"reduce must be pool or mean, not {reduce!r}")
    sizes = {v.shape[0] for v in map(jnp.asarray, jax.tree.leaves(xs)) if v.ndim}
    if len(sizes) != 1:
        raise JaxplainError(
            f"xs has leading axes {sorted(sizes)}: give the sample as one tree whose leaves share "
            "their first axis"
        )

    def one(example: PyTree) -> list[tuple[Array, Array, Array]]:
        state = wide(h(example))
        real = True if counted is None else counted(example)
        return [_of_one(leaf, real, axes, reduce) for leaf in jax.tree.leaves(state)]

    example = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), xs)
    tree = jax.tree.structure(jax.eval_shape(h, example))
    each = jax.lax.map(one, xs, batch_size=check_positive("chunk", chunk))
    columns = zip(*(_join(*leaf) for leaf in each), strict=True)
    return Moments(*(jax.tree.unflatten(tree, list(column)) for column in columns))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of two samples together.

    References: Chan, Golub, LeVeque, Algorithms for Computing the Sample Variance: Analysis and
        Recommendations, 1983, https://doi.org/10.1080/00031305.1983.10483115
    """
    leaves = [
        _join(*(jnp.stack(pair) for pair in zip(left, right, strict=True)))
        for left, right in zip(
            zip(*map(jax.tree.leaves, a), strict=True),
            zip(*map(jax.tree.leaves, b), strict=True),
            strict=True,
        )
    ]
    tree = jax.tree.structure(a.mean)
    return Moments(*(jax.tree.unflatten(tree, list(c)) for c in zip(*leaves, strict=True)))


def finish(moments: Moments) -> PyTree:
    """Standard deviation of every unit, dividing by the count; NaN where nothing was counted."""
    return jax.tree.map(
        lambda n, second: jnp.where(n > 0, jnp.sqrt(second / jnp.maximum(n, 1)), jnp.nan),
        moments.count,
        moments.second,
    )


def hidden_spread(
    h: Callable[[PyTree], PyTree],
    xs: PyTree,
    *,
    counted: Callable[[PyTree], Array] | None = None,
    axes: tuple[int, ...] = (),
    reduce: Literal["pool", "mean"] = "pool",
    chunk: int = 32,
) -> PyTree:
    """Standard deviation of hidden units over a sample of inputs: what a change is measured by.

    For a sample that comes in batches, `hidden_moments` of each, `merge`, and `finish` at the end
    give the same to rounding. Letters: `N` inputs.

    Args:
        h: one input -> hidden state, an array or a tree of them (such as all layers).
        xs: `[N, ...]` leaves; each input is one row.
        counted: one input -> bools that broadcast to each state, or None for everywhere: the
            entries that count. Padding must not.
        axes: axes of a state to reduce, such as (0,) for the words of `[T, D]`: the result has
            size 1 there, and serves any T.
        reduce: how `axes` are: "pool" takes every counted entry as one value; "mean" takes the mean
            over them, as the published code does. Means of many words vary less than the words.
        chunk: inputs evaluated at once.

    Returns:
        The state's tree, in its units, float32 or wider, with `axes` of size 1. A unit that is the
        same for all inputs has 0, one that was never counted NaN. Cost: N forward evaluations.

    Raises:
        JaxplainError: leaves of xs with different first axes; another `reduce`; axes that a state
            does not have; `counted` that does not broadcast.

    References: Guan et al., Towards a Deep and Unified Understanding of Deep Neural Models in NLP,
        2019, https://proceedings.mlr.press/v97/guan19a.html
    Differs: the published code cannot leave out padding, and has "mean" only.

    >>> import jax.numpy as jnp
    >>> words = jnp.array([[[1.0], [3.0]], [[5.0], [0.0]]])  # two texts, the second has one word
    >>> real = jnp.array([[True, True], [True, False]])
    >>> h = lambda text: text["x"]
    >>> counted = lambda text: text["mask"][:, None]
    >>> spread = hidden_spread(h, {"x": words, "mask": real}, counted=counted, axes=(0,))
    >>> round(float(spread[0, 0]), 3)
    1.633
    """
    return finish(hidden_moments(h, xs, counted=counted, axes=axes, reduce=reduce, chunk=chunk))


def _of_one(state: Array, real: Any, axes: tuple[int, ...], reduce: str):
    """Count, mean and second moment of one input's state over `axes`."""
    if any(axis >= state.ndim or axis < -state.ndim for axis in axes):
        raise JaxplainError(f"a state has shape {list(state.shape)}, and no axes {list(axes)}")
    real = jnp.asarray(real, bool)
    if real.ndim > state.ndim or any(
        a not in (1, b) for a, b in zip(real.shape[::-1], state.shape[::-1], strict=False)
    ):
        raise JaxplainError(
            f"counted has shape {list(real.shape)}, which does not broadcast to a state's "
            f"{list(state.shape)}"
        )
    real = jnp.broadcast_to(real.reshape((1,) * (state.ndim - real.ndim) + real.shape), state.shape)
    state = jnp.where(real, state, 0)
    count = jnp.sum(real, axes, keepdims=True).astype(state.dtype)
    mean = jnp.sum(state, axes, keepdims=True) / jnp.maximum(count, 1)
    if reduce == "mean":
        return (count > 0).astype(state.dtype), mean, jnp.zeros_like(mean)
    second = jnp.sum(jnp.where(real, jnp.square(state - mean), 0), axes, keepdims=True)
    return count, mean, second


def _join(count: Array, mean: Array, second: Array) -> tuple[Array, Array, Array]:
    """Moments of all samples along the first axis together."""
    total = jnp.sum(count, 0)
    center = jnp.sum(count * mean, 0) / jnp.maximum(total, 1)
    return total, center, jnp.sum(second + count * jnp.square(mean - center[None]), 0)
