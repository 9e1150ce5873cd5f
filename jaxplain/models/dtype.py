"""Models that compute in another float than float32, and are explained in float32."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxplain.types import JaxplainError, PyTree

T = TypeVar("T")

COMPUTED = ("f", "score", "hidden", "states")  # a model's functions, beside `embed` and `cut`


def in_dtype(model: T, dtype: Any) -> T:
    """The same model, computing in `dtype`, such as bfloat16.

    Every float among a function's arguments, parameters included, is cast on its way in, and what
    comes out is cast to float32. So what a method handles stays float32: x, baselines, scores,
    their sums over steps and samples, standard errors, gaps. The gradient with respect to x is in
    `dtype` as far as that cast, and float32 from there.

    Inside nothing else is changed: a softmax is in `dtype` unless the model itself casts, as the
    bundled ones and BERT do not; Flax's norms take their means and variances in float32, and what
    they put out is `dtype`. Where XLA fuses steps it may leave out a rounding between them. A text
    model's `embed` only looks words up, and stays as it is.

    What it costs: f is rounded, in bfloat16 to about 0.4% at every step of it. A gap is rarely
    smaller than that, also of `deep_lift`, whose rules otherwise leave none; a difference of two
    evaluations, as ablation and Shapley values take, means nothing below it; `lrp`'s epsilon is far
    below it, and guards against zero alone; a noise that word information finds means nothing where
    it is below 0.4% of a word's entries; and where two classes are near another one may be
    predicted. `python -m benchmarks.dtype` measures it, method by method.

    Args:
        model: a `TextModel`, `Model` or `Function`, or a function whose arguments hold all of its
            parameters: what it closes over keeps its own type, and the wider one wins.
        dtype: a floating type.

    Returns:
        what was given, of the same kind.

    Raises:
        JaxplainError: `dtype` is no floating type.

    >>> import jax.numpy as jnp
    >>> f = in_dtype(lambda params, x: x @ params, jnp.bfloat16)
    >>> value = f(jnp.ones(3), jnp.array([1.0, 1.0, 1 / 512]))
    >>> value.dtype.name, value.item()
    ('float32', 2.0)
    """
    try:
        dtype = jnp.dtype(dtype)
        floating = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise JaxplainError(f"dtype must be a floating type, such as bfloat16, not {dtype!r}")
    if not hasattr(model, "_replace"):
        return computing(model, dtype)  # type: ignore[arg-type,return-value]
    changed = {n: computing(getattr(model, n), dtype) for n in COMPUTED if hasattr(model, n)}
    if hasattr(model, "cut"):
        changed["cut"] = parts(model.cut, dtype)  # type: ignore[attr-defined]
    return model._replace(**changed)  # type: ignore[attr-defined]


def computing(function: Callable, dtype: Any) -> Callable:
    """`function`, with floats cast to `dtype` on their way in, and to float32 on their way out."""

    def inside(leaf):
        return jnp.asarray(leaf, dtype) if is_float(leaf) else leaf

    def outside(leaf):
        return jnp.asarray(leaf, jnp.promote_types(leaf.dtype, "f4")) if is_float(leaf) else leaf

    @wraps(function)
    def f(*args: PyTree, **named: PyTree) -> PyTree:
        args, named = jax.tree.map(inside, (args, named))
        return jax.tree.map(outside, function(*args, **named))

    return f


def parts(cut: Callable, dtype: Any) -> Callable:
    """The two halves of a model that is cut, each in `dtype`."""

    @wraps(cut)
    def halves(*args, **named):
        both = cut(*args, **named)
        return both._replace(**{n: computing(getattr(both, n), dtype) for n in both._fields})

    return halves


def is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
