"""Methods that average gradients along paths from reference inputs to the example."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxplain.interpret import canonical_convolutions
from jaxplain.methods.quadrature import Nodes, gauss_legendre
from jaxplain.methods.sampling import layout, like, moments, repeat, residual, scan, wide
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
    steps: int | Nodes = 32,
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
            the path, and as 1 / steps across the kinks of a ReLU. Or a rule of your own, `Nodes`:
            its number of places may be traced, so that one program serves many; no gradient passes
            through it.
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
    steps: int | Nodes,
    chunk: int | None,
) -> PyTree:
    """The mean of `term(point, x - start)` over the straight path from `start` to x.

    By `steps` Gauss-Legendre nodes, or by the rule that `steps` is, `chunk` of them at once.
    """
    chunk = 1 if chunk is None else check_positive("chunk", chunk)
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

    if isinstance(steps, Nodes):
        fill = -len(steps.place) % chunk
        place, weight = (jnp.pad(jnp.asarray(v), (0, fill)) for v in steps[:2])
        quadrature = place.reshape(-1, chunk), weight.reshape(-1, chunk)
    else:
        nodes, weights = gauss_legendre(check_positive("steps", steps))
        index, real = layout(steps, chunk)
        quadrature = (jnp.asarray(nodes[index]), jnp.asarray(weights[index] * real))
    shape = jax.eval_shape(weighted, *(jax.ShapeDtypeStruct((), q.dtype) for q in quadrature))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
    if isinstance(steps, Nodes):
        rows = -(-jnp.asarray(steps.count) // chunk)
        return repeat(row, zero, quadrature, rows)
    return scan(row, zero, quadrature)


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
