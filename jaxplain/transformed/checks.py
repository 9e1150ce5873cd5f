"""What the transforms check alike: lengths, axes, and the array that they get."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxplain.types import Array, JaxplainError, PyTree, check_positive

Lengths: TypeAlias = int | Sequence[int]
Axes: TypeAlias = Sequence[int] | None


def check_axes(lengths: Lengths, axes: Axes, most: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and axes as tuples of one size, from 1 to `most`."""
    sizes = (lengths,) if isinstance(lengths, int) else tuple(lengths)
    along = tuple(range(len(sizes))) if axes is None else tuple(axes)
    for n in sizes:
        check_positive("each of lengths", n)
    if not 1 <= len(sizes) <= most or len(set(along)) != len(sizes) or len(along) != len(sizes):
        raise JaxplainError(
            f"lengths {list(sizes)} and axes {list(along)} must pair up, 1 to {most} of each"
        )
    return sizes, along


def fit(x: Any, lengths: tuple[int, ...], axes: tuple[int, ...], whole: bool = False) -> Array:
    """x in float32 or wider, if it has these lengths along these axes."""
    if len(jax.tree.leaves(x)) != 1 or not jax.tree_util.all_leaves([x]):
        raise JaxplainError(
            f"the transform takes one array, and x is {shapes_of(x)}: write a Transform that calls "
            "it on a leaf"
        )
    shape = jnp.shape(x)
    reach = all(-len(shape) <= a < len(shape) for a in axes)
    if not reach or tuple(shape[a] for a in axes) != lengths or (whole and len(shape) > len(axes)):
        raise JaxplainError(
            f"the transform was made for lengths {list(lengths)} along axes {list(axes)}, and x "
            f"has shape {list(shape)}"
        )
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), "f4"))


def shapes_of(tree: PyTree) -> str:
    """The tree with a shape for each leaf, on one line."""
    return str(jax.tree.map(lambda v: list(jnp.shape(v)), tree))
