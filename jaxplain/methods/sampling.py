"""Loops over path nodes and random samples: one scan over chunks, which bound the memory."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret import canonical_convolutions
from jaxplain.types import Array, JaxplainError, PyTree, check_positive


def wide(x: PyTree) -> PyTree:
    """Cast every leaf to float32, or leave it as it is where it is wider already."""
    return jax.tree.map(lambda v: jnp.asarray(v, jnp.promote_types(jnp.result_type(v), "f4")), x)


def like(values: PyTree, x: PyTree) -> PyTree:
    """Cast every leaf of `values` to the dtype of x's leaf."""
    return jax.tree.map(lambda v, leaf: v.astype(leaf.dtype), values, x)


def residual(scores: PyTree, difference: Array) -> Array:
    """Sum of all `scores` minus the `difference` that they should add up to."""
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(wide(scores)))
    return jnp.asarray(total - wide(difference))


def unclaimed(output: Array) -> Array:
    """The gap of a method that claims no completeness: NaN, in f's units."""
    return jnp.full((), jnp.nan, wide(output).dtype)


def layout(count: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay `count` terms out in `R` rows of `W <= chunk`, as evenly as that goes.

    Returns:
        `[R, W]` int32 indices and `[R, W]` bool, False where an index is a repeat of the last one
        that only fills its row: at most R - 1 places, and none where R divides `count`.
    """
    rows = -(-count // check_positive("chunk", chunk))
    place = np.arange(rows * -(-count // rows)).reshape(rows, -1)
    return np.minimum(place, count - 1).astype(np.int32), place < count


def scan(row: Callable[[PyTree, PyTree], PyTree], state: PyTree, xs: PyTree) -> PyTree:
    """Carry `state` through `row(state, xs[r])` for every row r of `xs`.

    Under a gradient, rows are recomputed on the way back instead of held: memory stays that of one.
    A single row is no loop. Convolutions are laid out for it: see `canonical_convolutions`.
    """
    if jax.tree.leaves(xs)[0].shape[0] == 1:
        return row(state, jax.tree.map(lambda v: v[0], xs))
    step = canonical_convolutions(row)
    body = jax.checkpoint(lambda state, x: (step(state, x), None), prevent_cse=False)
    return jax.lax.scan(body, state, xs)[0]


def repeat(
    row: Callable[[PyTree, PyTree], PyTree], state: PyTree, xs: PyTree, rows: Array
) -> PyTree:
    """`scan` over the first `rows` rows of `xs`, a number that may be traced."""
    step = canonical_convolutions(row)
    at = lambda i: jax.tree.map(lambda v: v[i], xs)
    return jax.lax.fori_loop(0, rows, lambda i, state: step(state, at(i)), state)


class Moments(NamedTuple):
    """Of `count` samples: their mean and the sums of central powers, each with a sample's tree."""

    count: int
    mean: PyTree
    second: PyTree
    third: PyTree
    fourth: PyTree

    def standard_error(self) -> PyTree:
        """Of the mean: the sample standard deviation over the root of the count."""
        n = self.count
        return jax.tree.map(lambda m2: jnp.sqrt(m2 / ((n - 1) * n)), self.second)


def _merge(a: tuple, b: tuple, p: Array, q: Array, n: Array) -> tuple:
    """Moments of the union of two sets, of shares `p` and `q = 1 - p` of `n` (Pébay, 2008)."""
    (mean, a2, a3, a4), (other, b2, b3, b4) = a, b
    d = other - mean
    return (
        mean + d * q,
        a2 + b2 + d**2 * n * p * q,
        a3 + b3 + d**3 * n * p * q * (p - q) + 3 * d * (p * b2 - q * a2),
        a4
        + b4
        + d**4 * n * p * q * (p * p - p * q + q * q)
        + 6 * d**2 * (p * p * b2 + q * q * a2)
        + 4 * d * (p * b3 - q * a3),
    )


def moments(sample: Callable[[Array], PyTree], count: int, chunk: int) -> Moments:
    """Draw `sample(0), ..., sample(count - 1)` and keep their central moments, in one scan.

    Sums of powers about the running mean lose no digits to a mean far from zero, in float32 too.
    Memory is that of `chunk` samples. Moments that the caller leaves unused, the compiler drops.

    References: Pébay, Formulas for Robust, One-Pass Parallel Computation of Covariances and
        Arbitrary-Order Statistical Moments, 2008, https://doi.org/10.2172/1028931
    """
    if check_positive("samples", count) < 2:
        raise JaxplainError("samples must be at least 2: one sample has no standard error")
    index, real = layout(count, chunk)
    new = real.sum(1)
    total = np.cumsum(new)
    shape = jax.eval_shape(lambda: wide(sample(jnp.zeros((), jnp.int32))))
    zeros = [(jnp.zeros(leaf.shape, leaf.dtype),) * 4 for leaf in jax.tree.leaves(shape)]

    def row(state, xs):
        i, weight, p, q, n = xs

        def update(old, s):
            w = weight.astype(s.dtype).reshape((-1,) + (1,) * (s.ndim - 1))
            mean = jnp.sum(w * s, 0) / jnp.sum(w)
            d = w * (s - jnp.expand_dims(mean, 0))
            fresh = (mean, jnp.sum(d**2, 0), jnp.sum(d**3, 0), jnp.sum(d**4, 0))
            return _merge(old, fresh, *(v.astype(s.dtype) for v in (p, q, n)))

        if i.shape[0] == 1:  # vmap over one changes nothing but the program
            drawn = jax.tree.map(lambda s: jnp.expand_dims(s, 0), sample(i[0]))
        else:
            drawn = jax.vmap(sample)(i)
        leaves = jax.tree.leaves(wide(drawn))
        return [update(old, s) for old, s in zip(state, leaves, strict=True)]

    xs = (index, real, (total - new) / total, new / total, total.astype(np.float64))
    xs = jax.tree.map(jnp.asarray, xs)
    state = scan(row, zeros, xs)
    tree = jax.tree.structure(shape)
    return Moments(count, *(jax.tree.unflatten(tree, power) for power in zip(*state, strict=True)))
