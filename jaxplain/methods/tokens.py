"""Contextual decomposition of each token alone, in the form of an attribution."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret.convolutions import canonical_convolutions
from jaxplain.methods.contextual import CD_SHAPLEY, Rules, contextual_decomposition
from jaxplain.types import (
    Array,
    DecomposedAttribution,
    JaxplainError,
    PyTree,
    ScalarFunction,
    check_example,
    check_positive,
)


def token_scores(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    rules: Rules = CD_SHAPLEY,
    chunk: int = 64,
    where: PyTree | None = None,
) -> DecomposedAttribution:
    """What came from each row of x alone: of embeddings `[T, D]`, from each token.

    The relevant part of f(x), once for each row as the group. Rows interact, so that their scores
    need not sum to anything; `whole` is what all of them have together.

    Letters: `T` rows of a leaf, its first axis; a leaf `[]` is one row.

    Args:
        f: x -> `[]`.
        x: one example, a tree of float arrays.
        key: ignored.
        rules: a table, as in `contextual_decomposition`.
        chunk: how many rows are computed at a time; peak memory grows with it, not with T.
        where: x's tree, each leaf `[T]` bool: the rows that f reads. Padding scores 0, and has no
            say in how large a group is.

    Returns:
        `DecomposedAttribution`: scores `[T, 1, ...]` in f's units; no completeness is claimed.
        Cost: about T + 3 forward evaluations.

    Raises:
        MissingRule: as `contextual_decomposition`.
        JaxplainError: x or f(x) is not floats, or `where` does not fit x's rows.

    References:
        W. James Murdoch, Peter J. Liu, Bin Yu, "Beyond Word Importance: Contextual Decomposition to
        Extract Interactions from LSTMs", 2018, https://arxiv.org/abs/1801.05453

    >>> import jax, jax.numpy as jnp
    >>> f = lambda x: jax.nn.relu(x[0] - x[1]) * 2
    >>> a = token_scores(f, jnp.array([3.0, 1.0]))
    >>> a.scores.tolist(), float(a.output), float(a.whole)
    ([5.0, -1.0], 4.0, 4.0)
    """
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    leaves, tree = jax.tree.flatten(x)
    counts = [v.shape[0] if v.ndim else 1 for v in leaves]
    real = _real(where, x, counts)
    masks = jnp.eye(sum(counts), dtype=jnp.promote_types(leaves[0].dtype, jnp.float32))
    if real is not None:
        sizes = np.repeat([v.size // n for v, n in zip(leaves, counts, strict=True)], counts)
        masks = over_padding(masks, real, sizes)
    edges = np.cumsum(counts)[:-1]

    def trees(rows: Array) -> PyTree:
        """`[..., all rows]` as x's tree, `[..., T, 1, ...]` each leaf."""
        columns = jnp.split(rows, edges, axis=-1)
        shapes = [(*v.shape[:1], *(1,) * (v.ndim - 1)) for v in leaves]
        pairs = zip(columns, shapes, strict=True)
        return tree.unflatten([c.reshape(*c.shape[:-1], *shape) for c, shape in pairs])

    def decompose(mask: PyTree) -> tuple[Array, Array]:
        split = contextual_decomposition(f, x, mask, rules=rules)
        return split.relevant, split.relevant + split.irrelevant

    masks = jnp.concatenate([masks, jnp.ones_like(masks[:1])])  # the whole is one more group
    rounds = -(-len(masks) // check_positive("chunk", chunk))
    if rounds == 1:
        relevant, total = jax.vmap(decompose)(trees(masks))
    else:
        size = -(-len(masks) // rounds)
        masks = jnp.concatenate([masks, jnp.zeros_like(masks[: -len(masks) % size])])
        relevant, total = jax.lax.map(
            canonical_convolutions(decompose), trees(masks), batch_size=size
        )
    count, output = sum(counts), f(x)
    scores, whole = relevant[:count], relevant[count]
    return DecomposedAttribution(
        scores=trees(scores if real is None else jnp.where(real, scores, 0)),
        output=output,
        gap=jnp.full((), jnp.nan, output.dtype),
        whole=whole,
        residual=jnp.max(jnp.abs(total - output[None])),
    )


def over_padding(masks: Array, real: Array, sizes: np.ndarray | None = None) -> Array:
    """Masks `[G, T]` with padding in each group to the share that the group has of what is real.

    What f does not read can be in a group or not; but a table may ask how much of x is in it.

    Args:
        masks: `[G, T]`.
        real: `[T]` bool, False for padding.
        sizes: `[T]` how many numbers each row holds; None if all hold as many.
    """
    masks = jnp.asarray(masks)
    weight = real if sizes is None else real * jnp.asarray(sizes)
    weight = weight.astype(jnp.promote_types(masks.dtype, jnp.float32))
    share = masks.astype(weight.dtype) @ weight / jnp.maximum(jnp.sum(weight), 1)
    return jnp.where(real[None], masks.astype(weight.dtype), share[:, None])


def _real(where: PyTree | None, x: PyTree, counts: list[int]) -> Array | None:
    if where is None:
        return None
    rows = [jnp.asarray(w, bool).reshape(-1) for w in jax.tree.leaves(where)]
    if jax.tree.structure(where) != jax.tree.structure(x) or [r.size for r in rows] != counts:
        raise JaxplainError(
            f"where has {[r.size for r in rows]} rows and x has {counts}: give a bool for each row"
        )
    return jnp.concatenate(rows)
