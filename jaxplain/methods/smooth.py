"""Statistics of any explanation over noisy copies of the example."""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from jaxplain.methods.sampling import Moments, moments, unclaimed, wide
from jaxplain.types import (
    Array,
    Explainer,
    JaxplainError,
    PyTree,
    SampledAttribution,
    ScalarFunction,
    check_example,
    check_key,
    check_like,
    check_positive,
)

Statistic: TypeAlias = Literal["mean", "square", "variance"]


def smooth(
    method: Explainer,
    *,
    samples: int = 64,
    level: float = 0.15,
    deviation: PyTree | None = None,
    statistic: Statistic = "mean",
    where: PyTree | None = None,
    chunk: int | None = None,
) -> Callable[..., SampledAttribution]:
    """Explain noisy copies of the example by `method`, and give a statistic of their scores.

    With `partial(saliency, absolute=False)` as `method`: statistic "mean" is SmoothGrad, "square"
    (mean of squares) is SmoothGrad-squared, "variance" (unbiased, n - 1) is VarGrad. Under
    saliency's default, `absolute=True`, "mean" averages magnitudes, which cancel nothing, and
    "variance" is that of the magnitude; "square" is the same either way.

    Args:
        method: any Explainer; a stochastic one gets a key of its own for every sample.
        samples: noisy copies, at least 2. The standard error falls with the root of `samples`.
        level: standard deviation of the Gaussian noise, as a share of max - min of each leaf of x.
        deviation: the standard deviation itself, in x's units: one number, or x's tree
            broadcastable to x; `level` is then ignored.
        statistic: "mean", "square" or "variance".
        where: x's tree of bools broadcastable to x, or None for everywhere: which entries count for
            max - min and get noise. Give it where x is padded.
        chunk: explanations computed at once, default 1. Memory is that of `chunk` explanations.

    Returns:
        An Explainer that needs a key. Its scores are in the units of `method`'s (squared, for
        "square" and "variance"), float32 or wider, each with its standard error; output is f at x
        itself; gap NaN. Cost: `samples` times that of `method`, and 1 forward pass.

    Raises:
        JaxplainError: on the call: no key; samples below 2; level below 0; chunk below 1; another
            statistic; deviation or where does not fit x.

    References: Smilkov et al., SmoothGrad: removing noise by adding noise, 2017,
        https://arxiv.org/abs/1706.03825
        Hooker et al., A Benchmark for Interpretability Methods in Deep Neural Networks, 2019,
        https://arxiv.org/abs/1806.10758 (squared)
        Adebayo et al., Sanity Checks for Saliency Maps, 2018, https://arxiv.org/abs/1810.03292
        (VarGrad)
    Differs: VarGrad divides by n - 1.

    >>> import jax, jax.numpy as jnp
    >>> from jaxplain import saliency
    >>> smoothgrad = smooth(partial(saliency, absolute=False), samples=1000)
    >>> a = smoothgrad(lambda x: (x**2).sum(), jnp.array([1.0, 2.0]), key=jax.random.key(0))
    >>> bool((abs(a.scores - jnp.array([2.0, 4.0])) < 5 * a.standard_error).all())
    True
    """
    return partial(
        _smoothed,
        method=method,
        samples=samples,
        level=level,
        deviation=deviation,
        statistic=statistic,
        where=where,
        chunk=chunk,
    )


def _smoothed(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    method: Explainer,
    samples: int,
    level: float,
    deviation: PyTree | None,
    statistic: Statistic,
    where: PyTree | None,
    chunk: int | None,
) -> SampledAttribution:
    key = check_key("smooth", key)
    if statistic not in _STATISTICS:
        raise JaxplainError(f"statistic must be one of mean, square, variance, not {statistic!r}")
    chunk = 1 if chunk is None else check_positive("chunk", chunk)
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    scale = _scale(x, level, deviation, where)
    leaves, tree = jax.tree.flatten(wide(x))

    def sample(i):
        noise, inner = jax.random.split(jax.random.fold_in(key, i))
        keys = jax.random.split(noise, len(leaves))
        noisy = [
            (leaf + s * jax.random.normal(k, leaf.shape, leaf.dtype)).astype(old.dtype)
            for leaf, s, k, old in zip(leaves, scale, keys, jax.tree.leaves(x), strict=True)
        ]
        scores = wide(method(f, jax.tree.unflatten(tree, noisy), key=inner).scores)
        return jax.tree.map(jnp.square, scores) if statistic == "square" else scores

    scores, error = _STATISTICS[statistic](moments(sample, samples, chunk))
    output = f(x)
    return SampledAttribution(scores, output, unclaimed(output), error, jnp.int32(samples))


def _scale(x: PyTree, level: float, deviation: PyTree | None, where: PyTree | None) -> list[Array]:
    """Standard deviation of the noise, one array for each leaf of x, broadcastable to it."""
    if isinstance(level, int | float) and not level >= 0:
        raise JaxplainError(f"level must be at least 0, not {level!r}")
    real = jax.tree.leaves(_check_where(where, x))
    leaves = jax.tree.leaves(wide(x))
    if deviation is not None:
        scale = jax.tree.leaves(wide(check_like("deviation", deviation, x)))
    else:
        scale = [
            level * (jnp.max(v, where=m, initial=-jnp.inf) - jnp.min(v, where=m, initial=jnp.inf))
            for v, m in zip(leaves, real, strict=True)
        ]
    return [jnp.where(m, s, 0).astype(v.dtype) for m, s, v in zip(real, scale, leaves, strict=True)]


def _check_where(where: PyTree | None, x: PyTree) -> PyTree:
    fits = check_like("where", True if where is None else where, x)
    return jax.tree.map(lambda m: m != 0, fits)


def _mean(m: Moments) -> tuple[PyTree, PyTree]:
    return m.mean, m.standard_error()


def _variance(m: Moments) -> tuple[PyTree, PyTree]:
    """Unbiased variance, and its standard error from the fourth central moment."""
    n = m.count
    variance = jax.tree.map(lambda m2: m2 / (n - 1), m.second)

    def error(v, m4):
        # The estimate can fall below zero when there are few samples.
        return jnp.sqrt(jnp.maximum(m4 / n - v * v * ((n - 3) / (n - 1)), 0) / n)

    return variance, jax.tree.map(error, variance, m.fourth)


_STATISTICS = {"mean": _mean, "square": _mean, "variance": _variance}
