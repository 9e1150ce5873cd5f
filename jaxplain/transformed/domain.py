"""Any method, in any domain: the coefficients of a transform are explained in place of x."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.transformed.checks import shapes_of
from jaxplain.types import Array, JaxplainError, PyTree, check_like


class Transform(NamedTuple):
    """A domain: two pure functions, of which only `inverse` must be differentiable.

    Attributes:
        forward: x's tree -> s, any tree of float arrays (complex ones as two real parts).
        inverse: s -> x's tree. It need not be exact: see `in_domain`.
    """

    forward: Callable[[PyTree], PyTree]
    inverse: Callable[[PyTree], PyTree]


def in_domain(
    f: Callable[[PyTree], PyTree], x: PyTree, transform: Transform, *, residual: bool = True
) -> tuple[Callable[[PyTree], PyTree], PyTree]:
    """f as a function of x's coefficients: `g(s) = f(inverse(s) + residual)`, and `s = forward(x)`.

    The residual x - inverse(forward(x)) is what the transform loses. It is held constant (also
    under a gradient with respect to x), so g(s) = f(x), whatever the transform loses.

    Args:
        f: of x's tree; may be vector-valued.
        x: one example: any tree of float arrays that `transform` takes.
        transform: the domain.
        residual: False drops it, and g(s) is then f of the reconstruction of x.

    Returns:
        g, and s in the dtypes of `forward`. Cost: 1 `forward` and 1 `inverse`; g costs 1 `inverse`
        and 1 f. Contextual decomposition of g treats the residual as it does a bias.

    Raises:
        JaxplainError: x or s holds something other than floats; inverse(s) does not fit x.

    References: Singh, Ha, Lanusse, Boehm, Liu, Yu, Transformation Importance with Applications to
        Cosmology, 2020, https://arxiv.org/abs/2003.01926
    Differs: the published code leaves the residual out by default.

    >>> top = Transform(forward=lambda x: x[:2], inverse=lambda s: jnp.append(s, 0.0))
    >>> g, s = in_domain(jnp.sum, jnp.array([1.0, 2.0, 4.0]), top)
    >>> g(s).item(), g(0 * s).item()
    (7.0, 4.0)
    """
    x = jax.tree.map(jnp.asarray, x)
    _check_floats("x", x, "explain the embeddings of ids, and close f over the rest")
    s = jax.tree.map(jnp.asarray, transform.forward(x))
    _check_floats("forward(x)", s, "give a complex coefficient as two real parts")
    shapes = jax.eval_shape(transform.inverse, s)
    same = jax.tree.structure(shapes) == jax.tree.structure(x)
    if not same or jax.tree.map(jnp.shape, shapes) != jax.tree.map(jnp.shape, x):
        raise JaxplainError(
            f"inverse(forward(x)) is {shapes_of(shapes)} and x is {shapes_of(x)}: give a transform "
            "made for x's shape"
        )
    back = transform.inverse(s) if residual else None
    lost = None if back is None else jax.lax.stop_gradient(jax.tree.map(jnp.subtract, x, back))

    def g(s: PyTree) -> PyTree:
        point = transform.inverse(s)
        if lost is not None:
            point = jax.tree.map(jnp.add, point, lost)
        return f(jax.tree.map(lambda v, leaf: v.astype(leaf.dtype), point, x))

    return g, s


def transformed(
    method: Callable[..., Any], transform: Transform, *, residual: bool = True
) -> Callable[..., Any]:
    """`method`, explaining the coefficients of x instead of x.

    Args:
        method: any Explainer, `contextual_decomposition`, `group_scores`, or another function of
            (f, x, ...).
        transform: the domain.
        residual: as in `in_domain`.

    Returns:
        `explain(f, x, *arguments, **options)`, which gives what `method` gives, with s's tree where
        it has x's. Arguments and options are the method's, in the domain: masks have s's tree, and
        a baseline of zeros is inverse(0) + residual; baselines in x's domain are mapped with
        `jax.vmap(transform.forward)`. Cost: the method's, with an `inverse` in every evaluation of
        f, and what `in_domain` costs.

    Raises:
        JaxplainError: on the call, as in `in_domain` and in the method.

    References: as in `in_domain`.

    >>> from jaxplain import integrated_gradients
    >>> from jaxplain.transformed import fourier
    >>> wave = jnp.cos(2 * jnp.pi * 3 * jnp.arange(16) / 16)
    >>> explain = transformed(integrated_gradients, fourier(16))
    >>> a = explain(lambda x: jnp.sum(x**2), wave)
    >>> int(jnp.argmax(a.scores.sum(-1))), round(a.output.item(), 3)
    (3, 8.0)
    """

    def explain(f: Callable[[PyTree], PyTree], x: PyTree, *arguments: Any, **options: Any) -> Any:
        g, s = in_domain(f, x, transform, residual=residual)
        return method(g, s, *arguments, **options)

    return explain


def group_sum(scores: PyTree, groups: PyTree) -> Array:
    """The score of each group: the signed sum of its coefficients' scores.

    `G` groups. The same for every method, so that methods can be compared: a sum keeps what scores
    in f's units mean, and the scores of a partition still add up to what all scores do. Magnitudes
    do neither.

    Args:
        scores: any tree of arrays, `[...]`.
        groups: the same tree, `[G, ...]`, each leaf broadcastable to `[G, *scores.shape]`: masks,
            boolean or real.

    Returns:
        `[G]`, float32 or wider.

    Raises:
        JaxplainError: groups do not fit scores.
    Differs: Singh et al. take the magnitude of the two parts of a Fourier coefficient, except for
        contextual decomposition, whose sign they keep.

    >>> masks = jnp.array([[[1], [0]], [[1], [1]]])
    >>> group_sum(jnp.array([[1.0, -3.0], [5.0, 1.0]]), masks).tolist()
    [-2.0, 4.0]
    """
    scores = jax.tree.map(
        lambda v: jnp.asarray(v, jnp.promote_types(jnp.result_type(v), "f4")), scores
    )

    def one(mask):
        terms = jax.tree.map(jnp.multiply, check_like("each group", mask, scores), scores)
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(terms)), jnp.zeros(()))

    return jax.vmap(one)(jax.tree.map(jnp.asarray, groups))


def leaf_groups(s: PyTree) -> PyTree:
    """One group a leaf of s, such as a wavelet's scale: masks `[G, 1, ...]` in s's tree."""
    leaves, tree = jax.tree.flatten(s)
    rows = np.eye(len(leaves), dtype=bool)
    masks = [rows[:, i].reshape(-1, *(1,) * jnp.ndim(v)) for i, v in enumerate(leaves)]
    return jax.tree.unflatten(tree, masks)


def _check_floats(name: str, tree: PyTree, hint: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise JaxplainError(
                f"{where} is {leaf.dtype}, and only floats can be explained: {hint}"
            )
