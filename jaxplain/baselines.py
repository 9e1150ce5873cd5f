"""Reference inputs as pure functions of x: each asks another question.

Scores of a path method answer "what made f(x) differ from f(baseline)?". Bind a baseline's options
with `functools.partial`: `integrated_gradients(f, x, baseline=partial(blur, sigma=2.0))`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.types import Array, JaxplainError, PyTree, check_like


def zeros(x: PyTree) -> PyTree:
    """What made f differ from its value at the origin?

    `x`: any tree of arrays. Right where zero means absence: centred features, black in a picture of
    light. It cannot credit a feature whose value in x is zero itself.

    >>> zeros({"a": jnp.ones(2)})["a"].tolist()
    [0.0, 0.0]
    """
    return jax.tree.map(jnp.zeros_like, x)


def mean(
    x: PyTree, *, axes: int | tuple[int, ...] | None = None, where: PyTree | None = None
) -> PyTree:
    """What made f differ from its value on a flat input of the same average?

    Args:
        x: any tree of arrays.
        axes: axes to average over, in every leaf; default all. `(0, 1)` of an `[H, W, C]` picture
            keeps its average colour, `0` of `[T, D]` embeddings gives the average token.
        where: x's tree of bools broadcastable to x: what to average over. Give it if x is padded.

    >>> mean(jnp.array([[1.0, 2.0], [3.0, 4.0]]), axes=0).tolist()
    [[2.0, 3.0], [2.0, 3.0]]
    """
    real = check_like("where", True if where is None else where, x)

    def average(leaf, m):
        value = jnp.mean(leaf, axis=axes, where=m != 0, keepdims=True)
        return jnp.broadcast_to(value, leaf.shape)

    return jax.tree.map(average, x, real)


def blur(x: PyTree, *, sigma: float = 4.0, axes: tuple[int, ...] = (0, 1)) -> PyTree:
    """What did the fine detail of x add, beyond its coarse layout?

    Gaussian blur along each of `axes`, cut off at 4 sigma; near an edge, the weights inside are
    scaled up to sum to one. It cannot credit what blur does not change, such as a flat background.

    Args:
        x: any tree of arrays; `axes` apply to every leaf. `[H, W, C]` pictures by default.
        sigma: standard deviation in positions (pixels); a Python number above 0.
        axes: where to blur; `(0,)` for a signal `[T]` or `[T, D]`.

    Raises:
        JaxplainError: sigma is not above 0, or a leaf lacks one of the axes.

    >>> blur(jnp.array([[0.0, 9.0, 0.0]]), sigma=0.5, axes=(1,)).astype(int).tolist()
    [[1, 7, 1]]
    """
    if not sigma > 0:
        raise JaxplainError(f"sigma must be above 0, not {sigma!r}")

    def leaf_blur(leaf):
        leaf = jnp.asarray(leaf)
        if any(not -leaf.ndim <= axis < leaf.ndim for axis in axes):
            raise JaxplainError(
                f"blur along axes {axes} needs them in x, whose shape is {list(leaf.shape)}: "
                "set axes to the spatial ones"
            )
        out = leaf.astype(jnp.promote_types(leaf.dtype, "f4"))
        for axis in axes:
            out = jnp.moveaxis(_blur_last(jnp.moveaxis(out, axis, -1), sigma), -1, axis)
        return out.astype(leaf.dtype)

    return jax.tree.map(leaf_blur, x)


def _blur_last(x: Array, sigma: float) -> Array:
    """Blur the last axis of `[..., N]`."""
    size = x.shape[-1]
    radius = min(math.ceil(4 * sigma), size - 1)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    inside = np.convolve(np.ones(size), kernel)[radius : radius + size]
    out = jax.lax.conv_general_dilated(
        x.reshape(-1, 1, size),
        jnp.asarray(kernel, x.dtype).reshape(1, 1, -1),
        window_strides=(1,),
        padding=[(radius, radius)],
        precision=jax.lax.Precision.HIGHEST,
    )
    return out.reshape(x.shape) / jnp.asarray(inside, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def token(x: PyTree, *, embedding: PyTree, keep: PyTree | None = None) -> PyTree:
    """What made f differ from its value on a text without words: `[MASK] [MASK] [MASK]`?

    `T` tokens, `D` features.

    Args:
        x: `[T, D]` embeddings, or any tree of arrays.
        embedding: `[D]`, that of the mask, padding or unknown token, or x's tree of arrays that
            broadcast to x.
        keep: `[T]` bool, or x's tree of bools on the leading axes: where the baseline is x itself,
            which takes those positions out of the question. Keep the special tokens.

    Raises:
        JaxplainError: embedding does not broadcast to x, or keep has other leading axes than x.

    >>> x = jnp.array([[1.0, 1.0], [2.0, 2.0]])
    >>> token(x, embedding=jnp.array([7.0, 8.0]), keep=jnp.array([True, False])).tolist()
    [[1.0, 1.0], [7.0, 8.0]]
    """
    flat = check_like("embedding", embedding, x)
    if keep is None:
        return flat

    def choose(leaf, value, kept):
        kept = jnp.asarray(kept)
        if kept.shape != leaf.shape[: kept.ndim]:
            raise JaxplainError(
                f"keep has shape {list(kept.shape)}, and x {list(leaf.shape)}: keep needs x's "
                "leading axes"
            )
        return jnp.where(kept.reshape(kept.shape + (1,) * (leaf.ndim - kept.ndim)), leaf, value)

    return jax.tree.map(choose, x, flat, keep)
