"""The shared types: what a method takes, what it gives, and the checks that both sides rely on."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
ScalarFunction: TypeAlias = Callable[[PyTree], Array]


class JaxplainError(ValueError):
    """Input that jaxplain refuses; the message is one line that says what to do."""


class Attribution(NamedTuple):
    """One explanation of one example.

    Attributes:
        scores: x's tree; each leaf broadcastable to x's leaf, in f's units unless the method says
            otherwise.
        output: `[]` f(x).
        gap: `[]` completeness residual, sum of scores minus what they should add up to, in f's
            units; NaN where the method claims no completeness.
    """

    scores: PyTree
    output: Array
    gap: Array


class SampledAttribution(NamedTuple):
    """An `Attribution` that was estimated by sampling.

    Attributes:
        scores: as in `Attribution`.
        output: `[]` as in `Attribution`.
        gap: `[]` as in `Attribution`.
        standard_error: x's tree; standard error of each score, in the scores' units.
        samples: `[]` int32, how many samples were drawn.
    """

    scores: PyTree
    output: Array
    gap: Array
    standard_error: PyTree
    samples: Array


class DecomposedAttribution(NamedTuple):
    """An `Attribution` whose scores are relevant parts of f(x), each of one group of inputs.

    Attributes:
        scores: as in `Attribution`.
        output: `[]` as in `Attribution`.
        gap: `[]` NaN: groups overlap or interact, so that no sum is claimed.
        whole: `[]` the relevant part of all inputs together, in f's units. The rest of f(x) is what
            the rules leave with constants.
        residual: `[]` the largest |relevant + irrelevant - f(x)| of any group, f(x) being evaluated
            on its own: how nearly the program that was decomposed computes f.
    """

    scores: PyTree
    output: Array
    gap: Array
    whole: Array
    residual: Array


@runtime_checkable
class Explainer(Protocol):
    """Any method with its configuration bound: `functools.partial(method, **configuration)`."""

    def __call__(self, f: ScalarFunction, x: PyTree, /, *, key: Array | None = None) -> Any: ...


def check_example(f: ScalarFunction, x: PyTree) -> None:
    """Raise unless `x` is a pytree of float arrays and `f(x)` is one float scalar.

    Traces `f` once by shape only; evaluates nothing.

    Raises:
        JaxplainError: naming the leaf or the shape that is wrong, and what to do about it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(x)
    if not leaves:
        raise JaxplainError("x has no arrays in it: there is nothing to explain")
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            where = f"x{jax.tree_util.keystr(path)}"
            raise JaxplainError(
                f"{where} is {dtype}, and only floating-point inputs can be explained: explain "
                "the embeddings of ids, and close f over inputs that are not to be explained"
            )
    out = jax.eval_shape(f, x)
    if len(jax.tree.leaves(out)) != 1 or not hasattr(out, "shape"):
        raise JaxplainError(
            f"f must return one scalar, and returned {jax.tree.structure(out)}: select the "
            "score to explain, as in f = lambda x: model(x)['logits'][target]"
        )
    if out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise JaxplainError(
            f"f must return one floating-point scalar, and returned {out.dtype}{list(out.shape)}: "
            "select the score to explain, as in f = lambda x: model(x)[target]"
        )


def check_key(name: str, key: Array | None) -> Array:
    """Give `key` back, or raise with the line that a stochastic method's user needs."""
    if key is None:
        raise JaxplainError(f"{name} draws samples: pass key=jax.random.key(0)")
    return key


def check_positive(name: str, value: int) -> int:
    """Give `value` back if it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise JaxplainError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def check_like(name: str, value: PyTree, x: PyTree, whose: str = "x") -> PyTree:
    """Broadcast each leaf of `value` to x's leaf and dtype, or raise saying which does not fit.

    `whose` is what messages call x.
    """
    if jax.tree.structure(value) != jax.tree.structure(x):
        if jax.tree.structure(value) == jax.tree.structure(0.0):  # one number serves every leaf
            value = jax.tree.map(lambda _: value, x)
        else:
            raise JaxplainError(
                f"{name} has structure {jax.tree.structure(value)}, and {whose} has "
                f"{jax.tree.structure(x)}: give {name} the same tree as {whose}, or one number"
            )

    def fit(path, v, leaf):
        v, leaf = jnp.asarray(v), jnp.asarray(leaf)
        missing = leaf.ndim - v.ndim
        fits = zip((1,) * missing + v.shape, leaf.shape, strict=False)
        if missing < 0 or any(size not in (1, wanted) for size, wanted in fits):
            raise JaxplainError(
                f"{name}{jax.tree_util.keystr(path)} has shape {list(v.shape)}, which does not "
                f"broadcast to {whose}'s {list(leaf.shape)}"
            )
        return jnp.broadcast_to(v.astype(leaf.dtype), leaf.shape)

    return jax.tree_util.tree_map_with_path(fit, value, x)


class Split(NamedTuple):
    """A function's value in two parts that sum to it.

    Attributes:
        relevant: f's output tree, what came from the chosen group of inputs, in f's units.
        irrelevant: the same, the rest.
    """

    relevant: PyTree
    irrelevant: PyTree
