"""Convolutions in the one layout that every backend runs fast, wherever in a program they are."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxplain.interpret import compat
from jaxplain.types import Array, PyTree


def canonical_convolutions(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function, with its convolutions laid out as NHWC images and HWIO kernels.

    XLA's CPU backend lays convolutions out for its fast kernel outside of loops only: in the body
    of a `scan`, the gradient of one runs several times slower. So wrap what the body computes, its
    gradients included. Elsewhere, it leaves transposes that compilers fold into the convolution.

    Args:
        fn: any function of pytrees of arrays that JAX can trace. Give it the gradient itself, as in
            `canonical_convolutions(jax.grad(f))`: one taken of the result has other convolutions,
            which are left as JAX makes them.

    Returns:
        A function equal to `fn` up to rounding, to be called with positional arguments. It traces
        `fn` on every call, and is `fn` itself where that holds no convolution. Convolutions in
        loops, branches, `jax.checkpoint`, functions with a derivative rule of their own and jit
        with shardings of its own stay as they are, and so do those with a `batch_group_count`.

    >>> import jax.numpy as jnp
    >>> gradient = canonical_convolutions(jax.grad(lambda x: jnp.convolve(x, x).sum()))
    >>> gradient(jnp.ones(3)).tolist()
    [6.0, 6.0, 6.0]
    """

    def canonical(*args):
        # A new function every time: traces are cached by function, with what it closes over.
        traced, shape = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)(*args)
        if not _convolves(traced):
            return fn(*args)
        leaves = _evaluate(traced, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return canonical


def _is_convolution(eqn: Any) -> bool:
    """Whether it is one to lay out: groups in the batch are rewritten by the compiler itself."""
    named = eqn.primitive.name == "conv_general_dilated"
    return named and eqn.params["batch_group_count"] == 1


def _convolves(jaxpr: Any) -> bool:
    return any(
        _is_convolution(eqn) or (compat.is_plain_call(eqn) and _convolves(compat.called(eqn)))
        for eqn in compat.closed(jaxpr).jaxpr.eqns
    )


def _evaluate(jaxpr: Any, args: list) -> list:
    closed = compat.closed(jaxpr)
    inner = closed.jaxpr
    known = dict(zip(inner.constvars, closed.consts, strict=True))
    known |= zip(inner.invars, args, strict=True)
    for eqn in inner.eqns:
        values = [compat.value(v, known) for v in eqn.invars]
        with compat.origin(eqn):
            if _is_convolution(eqn):
                out = [_convolution(eqn, *values)]
            elif compat.is_plain_call(eqn) and _convolves(compat.called(eqn)):
                out = _evaluate(compat.called(eqn), values)
            else:
                out = compat.bind(eqn, values)
        known |= zip(eqn.outvars, out, strict=True)
    return [compat.value(v, known) for v in inner.outvars]


def _convolution(eqn: Any, image: Array, kernel: Array) -> Array:
    """One convolution with its axes in order: `[batch, *space, in]`, `[*space, in, out]`."""
    n = image.ndim
    (b, f, *s), (o, i, *k), (batch, feature, *space) = eqn.params["dimension_numbers"]
    images, kernels = (0, n - 1, *range(1, n - 1)), (n - 1, n - 2, *range(n - 2))
    out = compat.bind(
        eqn,
        [lax.transpose(image, (b, *s, f)), lax.transpose(kernel, (*k, i, o))],
        dimension_numbers=lax.ConvDimensionNumbers(images, kernels, images),
    )[0]
    order = (batch, *space, feature)
    return lax.transpose(out, [order.index(axis) for axis in range(n)])
