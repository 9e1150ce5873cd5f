"""Methods that change what a gradient does at each ReLU: guided backpropagation, deconvnets."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxplain.interpret import backward
from jaxplain.interpret.rectifiers import RELU
from jaxplain.methods.sampling import unclaimed
from jaxplain.types import (
    Array,
    Attribution,
    JaxplainError,
    PyTree,
    ScalarFunction,
    check_example,
)


def guided_backprop(f: ScalarFunction, x: PyTree, *, key: Array | None = None) -> Attribution:
    """Guided backpropagation: a gradient that goes through a ReLU only where it is on and wanted.

    On its way down, the signal is kept at a ReLU where the unit is above 0 and the signal is, too;
    it is 0 elsewhere. Everything else keeps its gradient: linear maps, pooling (the maximum of a
    window gets it all), and activations that are no ReLU, such as sigmoid, GELU, softplus or leaky
    ReLU.

    A ReLU is one however it is written: `jax.nn.relu`, `flax.linen.relu`, `jnp.maximum(x, 0)`,
    `jnp.where(x > 0, x, 0)`, `jnp.clip(x, 0)`, a function with a derivative of its own that
    computes it; with a ceiling too (`jax.nn.relu6`, `jnp.clip(x, 0, 1)`), above which nothing
    passes. It may be in a `scan`, a `cond` or a `jax.checkpoint`, and serve many times. Bare
    primitives inside a smooth function of the same value, as in a softplus or an ELU written by
    hand, are a part of that function. A ReLU written with a reduction or a branch is not seen: mark
    it, `jaxplain.named("relu", fn)`.

    Works on any pytree of float arrays; below, `[...]` is the shape of one leaf.

    Args:
        f: `x -> []`, one score; from a hidden unit down, `unit_of(h, index)`.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.

    Returns:
        scores `[...]` in units of f per unit of x, x's dtype; gap NaN. Cost: 1 gradient.

    Raises:
        JaxplainError: x holds something other than floats, f does not return one float; there is no
            ReLU between x and f(x); one is inside a call with a custom derivative, a `while` loop
            or a `shard_map`; or a maximum is taken with a bound that tracing does not know.

    References: Springenberg, Dosovitskiy, Brox, Riedmiller, Striving for Simplicity: The All
        Convolutional Net, 2014, https://arxiv.org/abs/1412.6806

    >>> import jax, jax.numpy as jnp
    >>> f = lambda x: jax.nn.relu(x[0]) - jax.nn.relu(x[1])
    >>> guided_backprop(f, jnp.array([3.0, 4.0])).scores.tolist()
    [1.0, 0.0]
    """
    del key
    return _explain("guided_backprop", _guided, f, x)


def deconvnet(f: ScalarFunction, x: PyTree, *, key: Array | None = None) -> Attribution:
    """Deconvolutional network: a gradient that at each ReLU keeps what is above 0, whatever is on.

    Goes down through transposed convolutions, unpooling by the switches of the maxima, and a ReLU
    of the signal in place of each ReLU, whose own state it does not read. The first two are the
    gradients of convolution and of max pooling, so that only ReLUs differ from a gradient.
    Everything else keeps its own, such as activations that are no ReLU. `guided_backprop` says what
    counts as one.

    Works on any pytree of float arrays; below, `[...]` is the shape of one leaf.

    Args:
        f: `x -> []`, one score; from a hidden unit down, `unit_of(h, index)`.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.

    Returns:
        scores `[...]` in units of f per unit of x, x's dtype; gap NaN. Cost: 1 gradient.

    Raises:
        JaxplainError: as `guided_backprop`.

    References: Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014,
        https://arxiv.org/abs/1311.2901
    Differs: the paper starts from the unit's value, and this from 1: multiply scores by `output`
        for the paper's. ReLUs with a ceiling, which the paper has not, pass nothing where they
        are at it.

    >>> import jax, jax.numpy as jnp
    >>> f = lambda x: jax.nn.relu(x[0]) - jax.nn.relu(x[1])
    >>> deconvnet(f, jnp.array([-3.0, 4.0])).scores.tolist()
    [1.0, 0.0]
    """
    del key
    return _explain("deconvnet", _deconvolved, f, x)


def unit_of(h: Callable[[PyTree], Array], index: int | tuple[int, ...]) -> ScalarFunction:
    """One unit of a hidden state as a function to explain: `x -> h(x)[index]`.

    Args:
        h: `x -> [...]`, one array.
        index: a whole number for each of its axes; negative ones count from the end.

    Raises:
        JaxplainError: when called: h(x) is no array, or has no such unit.

    >>> import jax, jax.numpy as jnp
    >>> h = lambda x: jax.nn.relu(jnp.stack([x[0] - x[1], x[0] + x[1]]))
    >>> deconvnet(unit_of(h, 1), jnp.array([1.0, 2.0])).scores.tolist()
    [1.0, 1.0]
    """
    given = index if isinstance(index, tuple) else (index,)

    def unit(x: PyTree) -> Array:
        state = h(x)
        if not hasattr(state, "shape"):
            raise JaxplainError(
                f"h must return one array, and returned {jax.tree.structure(state)}: select the "
                "layer, as in h = lambda x: states(x)[layer]"
            )
        try:
            place = tuple(map(operator.index, given))
        except TypeError:
            raise JaxplainError(
                f"index must be whole numbers, known while tracing, not {index!r}: for all units "
                "at once, explain lambda x: jnp.vdot(h(x), row) under vmap over rows of jnp.eye"
            ) from None
        fits = len(place) == state.ndim and all(
            -size <= n < size for n, size in zip(place, state.shape, strict=True)
        )
        if not fits:
            raise JaxplainError(
                f"h(x) has shape {list(state.shape)} and no unit {list(place)}: give one index "
                "for each axis, below its size"
            )
        return state[place]

    return unit


def _explain(name: str, rule: backward.Rule, f: ScalarFunction, x: PyTree) -> Attribution:
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    changed = backward.modified(f, (x,), {RELU: rule})
    if not changed.overridden:
        raise JaxplainError(
            f"{name} changes the gradient at ReLUs, and none is between x and f(x): take saliency "
            'or integrated_gradients, or mark a ReLU that was not seen, jaxplain.named("relu", fn)'
        )
    output, gradient = jax.value_and_grad(changed.run)(x)
    return Attribution(gradient, output, unclaimed(output))


def _guided(f, inputs, outputs, cotangents):
    """The derivative, where the unit is on and the signal positive."""
    (unit,), (signal,) = outputs, cotangents
    (found,) = jax.vjp(f, *inputs)[1]((jnp.maximum(signal, 0),))
    return [jnp.where(unit > 0, found, jnp.zeros_like(found))]


def _deconvolved(f, inputs, outputs, cotangents):
    """The derivative on the side where units are on, where the signal is positive."""
    (value,), (unit,), (signal,) = inputs, outputs, cotangents
    above = jnp.where(unit > 0, value, jnp.full_like(value, _ON))
    return list(jax.vjp(f, above)[1]((jnp.maximum(signal, 0),)))


_ON = 2.0**-10  # above 0, and below any ceiling
