"""Methods that average gradients along paths from reference inputs to the example."""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret import canonical_convolutions
from jaxplain.methods.sampling import layout, like, moments, residual, scan, wide
from jaxplain.types import (
    Array,
    Attribution,
    JaxplainError,
    PyTree,
    SampledAttribution,
    ScalarFunction,
    check_example,
    check_key,
    check_like,
    check_positive,
)

Baseline: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None


def integrated_gradients(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    steps: int = 32,
    chunk: int | None = None,
) -> Attribution:
    """Average gradient along the straight path from `baseline` to `x`, times `x - baseline`.

    Works on any pytree of float arrays; below, `[...]` is the shape of one leaf.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        baseline: x's tree broadcastable to `[...]`, one number for every leaf, or a function that
            makes one of x, as those in `jaxplain.baselines`; default zeros. Choosing it is
            choosing the question.
        steps: Gauss-Legendre nodes. Error falls exponentially in `steps` where f is smooth along
            the path, and as 1 / steps across the kinks of a ReLU.
        chunk: gradients taken at once, default 1. Memory is that of `chunk` gradients, whatever
            `steps` is; raise it where one example leaves the device idle.

    Returns:
        scores `[...]` in f's units, float32 or wider, which is also what they are summed in; gap is
        what quadrature and rounding left: sum of scores - (f(x) - f(baseline)).
        Cost: `steps` gradients, up to one more for each chunk after the first if `chunk` does not
        divide them evenly, and 2 forward passes.

    Raises:
        JaxplainError: x or f as in `saliency`; baseline does not fit x; steps or chunk below 1.

    References: Sundararajan, Taly, Yan, Axiomatic Attribution for Deep Networks, 2017,
        https://arxiv.org/abs/1703.01365
    Differs: quadrature is Gauss-Legendre, not the paper's right Riemann sum.

    >>> import jax.numpy as jnp
    >>> a = integrated_gradients(lambda x: x[0] * x[1], jnp.array([2.0, 3.0]), steps=2)
    >>> [round(s, 5) for s in a.scores.tolist()]
    [3.0, 3.0]
    """
    del key
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    start = check_baseline(baseline, x)
    gradient = lambda point, change: wide(jax.grad(f)(point))
    average = mean_along(gradient, x, start, steps, chunk)
    scores = jax.tree.map(lambda v, b, g: (v - b) * g, wide(x), wide(start), average)
    output = f(x)
    return Attribution(scores, output, residual(scores, wide(output) - wide(f(start))))


def mean_along(
    term: Callable[[PyTree, PyTree], PyTree],
    x: PyTree,
    start: PyTree,
    steps: int,
    chunk: int | None,
) -> PyTree:
    """The mean of `term(point, x - start)` over the straight path from `start` to x.

    By `steps` Gauss-Legendre nodes, `chunk` of them at once.
    """
    nodes, weights = gauss_legendre(check_positive("steps", steps))
    index, real = layout(steps, 1 if chunk is None else chunk)
    change = jax.tree.map(jnp.subtract, wide(x), wide(start))

    def weighted(node, weight):
        point = jax.tree.map(lambda b, d: b + node.astype(d.dtype) * d, wide(start), change)
        found = term(like(point, x), change)
        return jax.tree.map(lambda t: weight.astype(t.dtype) * t, found)

    def row(total, xs):
        if xs[0].shape[0] == 1:  # vmap over one changes nothing but the program
            terms = weighted(xs[0][0], xs[1][0])
        else:
            terms = jax.tree.map(lambda t: jnp.sum(t, 0), jax.vmap(weighted)(*xs))
        return jax.tree.map(jnp.add, total, terms)

    quadrature = (jnp.asarray(nodes[index]), jnp.asarray(weights[index] * real))
    shape = jax.eval_shape(weighted, *(jax.ShapeDtypeStruct((), q.dtype) for q in quadrature))
    return scan(row, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape), quadrature)


def expected_gradients(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baselines: PyTree,
    samples: int = 256,
    chunk: int | None = None,
) -> SampledAttribution:
    """Integrated gradients averaged over a set of baselines, by Monte Carlo.

    `K` baselines. Each sample draws one baseline b and one place alpha ~ U(0, 1), and is
    (x - b) * grad f(b + alpha (x - b)).

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example: any pytree of float arrays; batch with `jax.vmap`.
        key: consumed.
        baselines: x's tree, `[K, ...]`: examples of what x is to be compared with.
        samples: draws, at least 2. The standard error falls with the root of `samples`.
        chunk: gradients taken at once, default 1. Memory is that of `chunk` gradients.

    Returns:
        scores `[...]` in f's units, float32 or wider; standard_error `[...]` of each; gap = sum of
        scores - (f(x) - mean of f over the K baselines), which is sampling error.
        Cost: `samples` gradients and `K + 1` forward passes.

    Raises:
        JaxplainError: no key; baselines do not fit x; samples below 2; chunk below 1; x or f as in
            `saliency`.

    References: Erion, Janizek, Sturmfels, Lundberg, Lee, Improving performance of deep learning
        models with axiomatic attribution priors and expected gradients, 2021,
        https://arxiv.org/abs/1906.10670
    """
    key = check_key("expected_gradients", key)
    chunk = 1 if chunk is None else check_positive("chunk", chunk)
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    count, baselines = check_set(baselines, x)

    def sample(i):
        which, where = jax.random.split(jax.random.fold_in(key, i))
        k = jax.random.randint(which, (), 0, count)
        start = wide(jax.tree.map(lambda b: b[k], baselines))
        change = jax.tree.map(jnp.subtract, wide(x), start)
        alpha = jax.random.uniform(where, dtype=jnp.float32)
        point = jax.tree.map(lambda b, d: b + alpha.astype(d.dtype) * d, start, change)
        return jax.tree.map(jnp.multiply, change, wide(jax.grad(f)(like(point, x))))

    drawn = moments(sample, samples, chunk)
    output = f(x)
    outputs = jax.lax.map(canonical_convolutions(f), baselines, batch_size=min(chunk, count))
    gap = residual(drawn.mean, wide(output) - jnp.mean(wide(outputs)))
    return SampledAttribution(drawn.mean, output, gap, drawn.standard_error(), jnp.int32(samples))


@lru_cache(maxsize=64)
def gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights `[n]` on [0, 1], in float64, exact for polynomials of degree 2n - 1.

    Newton's iteration on the Legendre polynomial, O(n^2), where eigenvalue solvers are O(n^3).
    """
    x = np.cos(np.pi * (np.arange(n, 0, -1) - 0.25) / (n + 0.5))
    slope = np.ones(n)
    for _ in range(6):  # quadratic from within 1e-4 of the root: 4 would do
        before, value = np.ones(n), x
        for k in range(2, n + 1):
            before, value = value, ((2 * k - 1) * x * value - (k - 1) * before) / k
        slope = n * (before - x * value) / (1 - x * x)
        x = x - value / slope
    weights = 1 / ((1 - x * x) * slope * slope)
    return (1 + x) / 2, weights


def check_baseline(baseline: Baseline, x: PyTree) -> PyTree:
    """The one input that x is compared with, in x's tree, shapes and dtypes; default zeros."""
    given = baseline(x) if callable(baseline) else 0.0 if baseline is None else baseline
    return check_like("baseline", given, x)


def check_set(baselines: PyTree, x: PyTree) -> tuple[int, PyTree]:
    """How many baselines there are, and the baselines in x's dtypes."""
    if jax.tree.structure(baselines) != jax.tree.structure(x):
        raise JaxplainError(
            f"baselines has structure {jax.tree.structure(baselines)}, and x has "
            f"{jax.tree.structure(x)}: give baselines the same tree, each leaf with one more axis"
        )
    baselines = jax.tree.map(lambda b, leaf: jnp.asarray(b, leaf.dtype), baselines, x)
    shapes = [b.shape for b in jax.tree.leaves(baselines)]
    count = shapes[0][0] if shapes[0] else 0
    wanted = [(count, *leaf.shape) for leaf in jax.tree.leaves(x)]
    if count < 1 or shapes != wanted:
        got = ", ".join(str(list(s)) for s in shapes)
        want = ", ".join(f"[K, {str(list(s[1:]))[1:]}" for s in wanted)
        raise JaxplainError(f"baselines has shape {got}, and needs {want}, for K of at least 1")
    return count, baselines
