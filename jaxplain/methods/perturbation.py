"""Methods that take parts of the input away and look at what f loses."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret import canonical_convolutions, hoisting
from jaxplain.methods.coalitions import all_but_one, left_out
from jaxplain.methods.path import Baseline, check_baseline
from jaxplain.methods.players import CHUNK, players
from jaxplain.methods.sampling import layout, scan, unclaimed, wide
from jaxplain.types import (
    Array,
    Attribution,
    JaxplainError,
    PyTree,
    ScalarFunction,
    check_example,
    check_positive,
)


def feature_ablation(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    groups: PyTree | None = None,
    chunk: int | None = None,
) -> Attribution:
    """What f loses when a group of inputs is replaced by the baseline, each group by itself.

    Works on any pytree of float arrays; below, `[...]` is the shape of one leaf, `M` the number of
    groups.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        baseline: as in `integrated_gradients`; default zeros.
        groups: x's tree of whole numbers broadcastable to `[...]`: which group an entry is in, in
            any leaf; below 0 in none, and never replaced. None takes every entry by itself. For
            tokens `[T, D]`: `np.arange(T)[:, None]`.
        chunk: evaluations at once, default 32. Memory is that of `chunk` of them, whatever M is,
            and of what first steps give where they are shared, 64 MiB at most.

    Returns:
        scores in f's units, float32 or wider, of the shape of `groups`, or `[...]`: each entry has
        the score of its group, and 0 in none. gap NaN: groups interact, and no sum is claimed.
        Cost: M + 2 forward passes, and one less than the number of chunks at most where they do
        not come out even. Groups that reach no value in common, as words some windows of a
        convolution apart, share a pass through the steps up to there, where that saves products.

    Raises:
        JaxplainError: x or f as in `saliency`; baseline or groups that do not fit x; chunk below 1.

    References: Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014,
        https://arxiv.org/abs/1311.2901

    >>> import jax.numpy as jnp
    >>> f = lambda x: x[0] * x[1] + x[2]
    >>> feature_ablation(f, jnp.array([2.0, 3.0, 4.0])).scores.tolist()
    [6.0, 6.0, 4.0]
    """
    del key
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    each = players(x, groups, chunk)
    output = f(x)
    left = all_but_one(canonical_convolutions(f), each, check_baseline(baseline, x))
    return Attribution(each.scores(wide(output) - left), output, unclaimed(output))


def occlusion(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    window: Sequence[int] | int | PyTree = 1,
    strides: Sequence[int] | int | PyTree | None = None,
    baseline: Baseline = None,
    chunk: int | None = None,
) -> Attribution:
    """What f loses when a window that slides over the input is replaced by the baseline.

    Works on any pytree of float arrays; below, `[...]` is the shape of one leaf. Leaves are
    occluded one after the other.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        window: its size along each axis: a tuple for an x that is one array, else x's tree of
            tuples; one number is the size along all axes. For an image `[H, W, C]`: `(8, 8, C)`.
        strides: the same of the steps from one window to the next, at most the window, so that no
            input is left out; default the window itself. The last window of an axis is cut at the
            edge.
        baseline: as in `integrated_gradients`; default zeros.
        chunk: evaluations at once, default 32. Memory is that of `chunk` of them, whatever the
            number of windows, and as in `feature_ablation`.

    Returns:
        scores `[...]` in f's units, float32 or wider: the mean over the windows that cover an entry
        of f(x) - f(x without the window). gap NaN: no sum is claimed.
        Cost: one forward pass for each window, and 1 more. Windows share first steps as groups do
        in `feature_ablation`.

    Raises:
        JaxplainError: x or f as in `saliency`; a window or strides of another length than the
            axes, or not whole numbers of at least 1; strides beyond the window; baseline that does
            not fit x; chunk below 1.

    References: Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014,
        https://arxiv.org/abs/1311.2901
    Differs: scores are what f loses, where the paper shows f itself as a map.

    >>> import jax.numpy as jnp
    >>> f = lambda x: x[0] * x[1] + x[2]
    >>> occlusion(f, jnp.array([2.0, 3.0, 4.0]), window=2, strides=1).scores.tolist()
    [6.0, 8.0, 10.0]
    """
    del key
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    start = jax.tree.leaves(check_baseline(baseline, x))
    leaves, tree = jax.tree.flatten(x)
    sizes = _each_axis("window", window, x)
    steps = sizes if strides is None else _each_axis("strides", strides, x)
    chunk = CHUNK if chunk is None else check_positive("chunk", chunk)
    f = canonical_convolutions(f)
    output = f(x)
    scores = []
    for place, leaf in enumerate(leaves):
        size, step = sizes[place], steps[place]
        if any(s > w for s, w in zip(step, size, strict=True)):
            raise JaxplainError(
                f"strides {step} go beyond the window {size}, and would leave inputs out: make "
                "them at most the window"
            )
        axes = zip(leaf.shape, size, step, strict=True)
        counts = tuple(max(0, -(-(n - w) // s)) + 1 for n, w, s in axes)

        def inside(number, leaf=leaf, size=size, step=step, counts=counts):
            """Which entries the window covers: `[...]` bool."""
            covered = jnp.ones(leaf.shape, bool)
            for axis, at in enumerate(jnp.unravel_index(number, counts) if counts else ()):
                along = jax.lax.broadcasted_iota(jnp.int32, leaf.shape, axis) - at * step[axis]
                covered = covered & (along >= 0) & (along < size[axis])
            return covered

        def hidden(number, place=place, leaf=leaf, inside=inside):
            part = jnp.where(inside(number), start[place], leaf)
            return tree.unflatten([*leaves[:place], part, *leaves[place + 1 :]])

        sets = None
        if math.prod(counts) * leaf.size <= hoisting.LARGEST:
            sets = [np.zeros((math.prod(counts), *(1,) * v.ndim), bool) for v in leaves]
            sets[place] = _windows(leaf.shape, size, step, counts)
        value = left_out(f, x, tree.unflatten(start), hidden, sets, chunk)

        def row(sums, xs, inside=inside, value=value):
            number, real = xs
            losses = jnp.where(real, wide(output) - jax.vmap(value)(number), 0)
            covered = jax.vmap(inside)(number)
            return sums + jnp.tensordot(losses, covered.astype(losses.dtype), 1)

        rows = tuple(map(jnp.asarray, layout(math.prod(counts), chunk)))
        zero = jnp.zeros(leaf.shape, jnp.result_type(wide(output)))
        scores.append(scan(row, zero, rows) / _covering(leaf.shape, size, step, counts))
    return Attribution(tree.unflatten(scores), output, unclaimed(output))


def _each_axis(name: str, given: PyTree, x: PyTree) -> list[tuple[int, ...]]:
    """For each leaf of x, a whole number for each of its axes."""
    leaves, tree = jax.tree.flatten(x)
    whole = lambda n: isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 1
    if isinstance(given, int | np.integer):
        rows: list = [(given,) * leaf.ndim for leaf in leaves]
    elif len(leaves) == 1 and isinstance(given, tuple | list) and all(map(whole, given)):
        rows = [given]
    else:
        try:
            rows = tree.flatten_up_to(given)
        except ValueError as error:
            raise JaxplainError(f"{name} must be a number, or x's tree of tuples") from error
    for row, leaf in zip(rows, leaves, strict=True):
        fits = isinstance(row, tuple | list) and len(row) == leaf.ndim and all(map(whole, row))
        if not fits:
            raise JaxplainError(
                f"{name} must be whole numbers of at least 1, one for each of the {leaf.ndim} axes "
                f"of {list(leaf.shape)}, not {row!r}"
            )
    return [tuple(map(int, row)) for row in rows]


def _windows(shape, size, step, counts) -> np.ndarray:
    """Which entries each window covers: `[windows, ...]` bool."""
    total = np.ones((*counts, *shape), bool)
    for axis, n in enumerate(shape):
        starts = np.arange(counts[axis])[:, None] * step[axis]
        cover = (np.arange(n) >= starts) & (np.arange(n) < starts + size[axis])
        at = [1] * (2 * len(shape))
        at[axis], at[len(shape) + axis] = cover.shape
        total &= cover.reshape(at)
    return total.reshape(math.prod(counts), *shape)


def _covering(shape, size, step, counts) -> np.ndarray:
    """How many windows cover each entry: `[...]`."""
    total = np.ones(shape)
    for axis, n in enumerate(shape):
        starts = np.arange(counts[axis])[:, None] * step[axis]
        place = np.arange(n)[None]
        cover = ((place >= starts) & (place < starts + size[axis])).sum(0)
        total *= cover.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return total
