"""A linear surrogate of f near x, fitted to what f gives as groups are switched off (LIME)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.coalitions import game
from jaxplain.methods.path import Baseline
from jaxplain.methods.players import many
from jaxplain.methods.sampling import unclaimed, wide
from jaxplain.types import (
    Array,
    JaxplainError,
    PyTree,
    ScalarFunction,
    check_key,
    check_positive,
)


class SurrogateAttribution(NamedTuple):
    """An `Attribution` that is the coefficients of a linear surrogate.

    Attributes:
        scores: as in `Attribution`: each group's coefficient.
        output: `[]` as in `Attribution`.
        gap: `[]` NaN: a surrogate's sum is not f's.
        standard_error: x's tree; standard error of each coefficient, in the scores' units.
        samples: `[]` int32, how many inputs the surrogate was fitted to.
        intercept: `[]` the surrogate where all groups are off, in f's units.
        r2: `[]` the share of f's weighted variance that the surrogate has: 1 where f is additive
            and nothing was regularized; NaN where f does not move.
    """

    scores: PyTree
    output: Array
    gap: Array
    standard_error: PyTree
    samples: Array
    intercept: Array
    r2: Array


def lime(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    groups: PyTree | None = None,
    samples: int = 1000,
    distance: Literal["cosine", "euclidean"] = "cosine",
    kernel_width: float | None = None,
    regularization: float = 1.0,
    chunk: int | None = None,
) -> SurrogateAttribution:
    """LIME: a weighted ridge regression of f on which groups of the input are on.

    Groups are switched off by fair coins, independently, and off means the baseline's entries; the
    first sample is x itself. With `z [M]` of 1 for on and 0 for off, a sample at distance d from x
    weighs `w = sqrt(exp(-d^2 / kernel_width^2))`, and coefficients b and intercept c minimize
    `sum of w (f - c - z @ b)^2 + regularization sum of b^2`, in closed form.

    Letters: `M` groups of inputs, or single ones; `[...]` the shape of one leaf of x.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example, any pytree of float arrays; batch with `jax.vmap`.
        key: consumed.
        baseline: as in `integrated_gradients`; default zeros.
        groups: as in `feature_ablation`; None makes every entry a group. For an image, its regions.
        samples: inputs to fit to, x among them. The standard error falls with its root, and ridge's
            pull to 0, which is as in `sklearn.linear_model.Ridge` not divided by samples, faster.
        distance: of z from all ones: `"cosine"`, `1 - sqrt(on / M)` for a z with `on` ones; or
            `"euclidean"`, `sqrt(M - on)`.
        kernel_width: in units of the distance; default 0.25 for cosine, `0.75 sqrt(M)` for
            euclidean. A wide kernel weighs all alike, for which coefficients are Banzhaf values; a
            narrow one leaves few samples that count, and the standard error says so.
        regularization: ridge's alpha; 0 for least squares.
        chunk: evaluations at once, default 32. Memory is that of `chunk` of them, and
            `(samples + M) M` numbers.

    Returns:
        scores in f's units, float32 or wider, of the shape of `groups`, or `[...]`: each entry has
        the coefficient of its group. standard_error the same: of the samples' draw, by the sandwich
        estimator, which asks neither for equal variances nor for f to be linear; the intended value
        is this regression with all inputs drawn, at as much regularization a sample. intercept, r2:
        see `SurrogateAttribution`. All but output are NaN where what was drawn does not determine
        coefficients: a kernel so narrow that only x weighs, or groups always on or off together
        without regularization. Cost: samples + 1 forward passes, less where first steps
        are affine, see `exact_shapley`; and one M by M system.

    Raises:
        JaxplainError: no key; fewer samples than least squares determines coefficients from;
            another distance; kernel_width not above 0, regularization below 0; as
            `feature_ablation`.

    References: Ribeiro, Singh, Guestrin, "Why Should I Trust You?": Explaining the Predictions of
        Any Classifier, 2016, https://arxiv.org/abs/1602.04938
        Garreau, von Luxburg, Explaining the Explainer: A First Theoretical Analysis of LIME, 2020,
        https://arxiv.org/abs/2001.03447
    Differs: defaults are those of the `lime` package for images: kernel, coins, ridge of 1; its
        selection of few features first is left out, and so is its tabular sampling, of inputs
        themselves from training statistics. Captum's Lime instead weighs by distances of inputs,
        not of z, by a width of 1 that leaves weights nearly equal; takes 25 samples; and fits a
        lasso of 0.01, which is not offered here: it has no closed form, its result is a solver's
        at a tolerance, and it moves every coefficient to 0 by a share of alpha.

    >>> import jax, jax.numpy as jnp
    >>> f, x = lambda x: 2 * x[0] - x[1], jnp.array([2.0, 3.0])
    >>> a = lime(f, x, key=jax.random.key(0), regularization=0.0)
    >>> a.scores.round(4).tolist(), float(a.r2.round(4))
    ([4.0, -3.0], 1.0)
    """
    key = check_key("lime", key)
    table = game(f, x, groups=groups, baseline=baseline, chunk=chunk)
    m = table.players
    alpha = _number("regularization", regularization, "of at least 0")
    least = 3 if alpha else m + 2
    if check_positive("samples", samples) < least:
        raise JaxplainError(
            f"{samples} samples are too few for {m} groups: draw at least {least}"
            + ("" if alpha else ", or regularize")
        )
    coins = jax.random.bernoulli(key, 0.5, (samples - 1, m))
    held = jnp.concatenate([jnp.ones((1, m), bool), coins]).astype(table.nothing.dtype)
    weight = _kernel(jnp.mean(held, axis=1), m, distance, kernel_width)
    drawn = many(lambda i: table.worth(coins[i]), samples - 1, table.chunk)
    worth = jnp.concatenate([wide(table.whole)[None], drawn])
    fit = _ridge(held, weight, worth - worth[0], alpha)
    return SurrogateAttribution(
        table.scores(fit.slopes),
        table.whole,
        unclaimed(table.whole),
        table.scores(fit.errors),
        jnp.int32(samples),
        fit.intercept + worth[0],
        fit.r2,
    )


class _Fit(NamedTuple):
    slopes: Array
    errors: Array
    intercept: Array
    r2: Array


def _kernel(share: Array, m: int, distance: str, width: float | None) -> Array:
    """The weight of samples with such a share of m groups on: 1 where all are."""
    if distance == "cosine":  # to all ones; of no ones, 1
        away, usual = 1 - jnp.sqrt(share), 0.25
    elif distance == "euclidean":
        away, usual = jnp.sqrt(m * (1 - share)), 0.75 * m**0.5
    else:
        raise JaxplainError(f"distance must be 'cosine' or 'euclidean', not {distance!r}")
    scale = usual if width is None else _number("kernel_width", width, "above 0")
    return jnp.exp(-((away / scale) ** 2) / 2)


def _ridge(held: Array, weight: Array, worth: Array, alpha: float) -> _Fit:
    """Slopes with their errors, intercept and R^2 of the weighted regression of `worth [N]`.

    The first row is given, and the others were drawn: errors are by how these differ.
    """
    mean = lambda v: (weight / jnp.sum(weight)) @ v
    around = mean(held)
    columns, moved = held - around[None], worth - mean(worth)
    dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    gram = dot(columns.T, weight[:, None] * columns)
    m = gram.shape[0]
    system = gram + alpha * jnp.eye(m, dtype=gram.dtype)
    factor = jax.scipy.linalg.cho_factor(system, lower=True)
    # What a column keeps beside those before it, of 1; rounding alone would leave some eps.
    kept = jnp.diag(factor[0]) ** 2 / jnp.diag(system)
    eps = jnp.finfo(gram.dtype).eps
    some = jnp.max(jnp.diag(gram)) > eps * jnp.sum(weight)  # inputs other than x weigh something
    sound = some & jnp.all(kept > 10 * m * eps)
    slopes = jax.scipy.linalg.cho_solve(factor, dot(columns.T, weight * moved))
    left = moved - dot(columns, slopes)
    # Each drawn row's part in the equations that slopes solve; their spread moves the solution.
    parts = ((weight * left)[:, None] * columns)[1:]
    parts = parts - jnp.mean(parts, axis=0, keepdims=True)
    inverse = jax.scipy.linalg.cho_solve(factor, jnp.eye(m, dtype=gram.dtype))
    n = len(worth)
    spare = n - 1 - jnp.sum(inverse * gram)  # degrees of freedom that the fit leaves
    errors = jnp.sqrt(jnp.sum(dot(parts, inverse) ** 2, axis=0) * n / spare)
    r2 = 1 - jnp.sum(weight * left**2) / jnp.sum(weight * moved**2)
    intercept = mean(worth) - dot(around, slopes)
    return jax.tree.map(lambda v: jnp.where(sound, v, jnp.nan), _Fit(slopes, errors, intercept, r2))


def _number(name: str, value: float, what: str) -> float:
    """Give `value` back if it is a number of at least 0, or above 0 where `what` says so."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not (value > 0 if what == "above 0" else value >= 0) or value == np.inf:
        raise JaxplainError(f"{name} must be a number {what}, not {value!r}")
    return float(value)
