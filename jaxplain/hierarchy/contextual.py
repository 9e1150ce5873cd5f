"""Agglomerative contextual decomposition of one sequence: f and x in, a tree out."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxplain.hierarchy.growth import PAPER_TEXT, PUBLISHED_TEXT, Hierarchy, agglomerate, last_five
from jaxplain.hierarchy.scores import tabulated
from jaxplain.hierarchy.units import chain
from jaxplain.methods.contextual import CD_SHAPLEY, Rules, group_scores
from jaxplain.methods.tokens import over_padding
from jaxplain.types import Array, JaxplainError, PyTree, ScalarFunction, check_example


class Agglomeration(NamedTuple):
    """A hierarchy as the explanation of one example.

    Attributes:
        scores: x's tree, each leaf `[T, 1, ...]`: each unit alone, 0 for what is no unit.
        output: `[]` f(x).
        gap: `[]` NaN: groups hold each other and interact, so that no sum is claimed.
        hierarchy: over T units.
    """

    scores: PyTree
    output: Array
    gap: Array
    hierarchy: Hierarchy


def acd(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    rules: Rules = CD_SHAPLEY,
    order: Literal["paper", "published"] = "paper",
    percentile: float | None = None,
    beforehand: bool = False,
    where: Array | None = None,
    units: Array | None = None,
) -> Agglomeration:
    """Which phrases of a sequence count, and how they are put together: `agglomerate` over a chain.

    A group's score is its relevant part of f(x), by contextual decomposition.

    Args:
        f: x -> `[]`, such as a logit less that of another class.
        x: `[T, ...]`, one example; or a tree of arrays that share the axis T.
        key: ignored.
        rules: a table, as in `contextual_decomposition`.
        order: of the queue, as in `agglomerate`.
        percentile: of the queue that a level selects; None for 90, and for 99.5 where order is
            "published", which at the end of a sentence takes units in twos, as that code does.
        beforehand: score all runs of units first, T (T + 1) / 2, many at a time, instead of those
            that each level asks for: more work, of which nothing waits for anything.
        where: `[T]` bool, False for padding, which f does not read.
        units: `[T]` bool, what may join; default where.

    Returns:
        An `Agglomeration`. Where a score is not finite, so is one of `hierarchy.scores`.
        Cost: forward evaluations: one for each unit, and about 3 for each of up to T levels.

    Raises:
        MissingRule: as `contextual_decomposition`.
        JaxplainError: x has no common axis T; otherwise as `contextual_decomposition` and
            `agglomerate`.

    References:
        Chandan Singh, W. James Murdoch, Bin Yu, "Hierarchical interpretations for neural network
        predictions", 2019, https://arxiv.org/abs/1806.05337

    >>> import jax.numpy as jnp
    >>> f = lambda x: 0.1 * x[0] + 3 * x[2] - 4 * x[1] * x[2]  # "a", "not" and "good"
    >>> h = acd(f, jnp.ones(3)).hierarchy
    >>> h.scores.round(1).tolist(), h.unit_parent.tolist()
    ([-1.0, -0.9..., 0.0], [1, 0, 0])
    """
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    leaves, tree = jax.tree.flatten(x)
    lengths = {v.shape[:1] for v in leaves}
    if len(lengths) > 1 or () in lengths:
        raise JaxplainError(
            "acd groups the rows of a sequence, and x has leaves of "
            f"{sorted(list(v.shape) for v in leaves)}: give arrays that share their first axis, or "
            "call agglomerate with masks of your own"
        )
    ((n,),) = lengths
    real = None if where is None else jnp.asarray(where, bool)
    valid = real if units is None else jnp.asarray(units, bool)

    def rows(masks: Array) -> PyTree:
        """`[..., T]` as x's tree, `[..., T, 1, ...]` each leaf."""
        return tree.unflatten([masks.reshape(*masks.shape, *(1,) * (v.ndim - 1)) for v in leaves])

    def relevant(masks: Array) -> Array:
        filled = masks if real is None else over_padding(masks, real)
        return group_scores(f, x, rows(filled), rules=rules, chunk=len(masks)).relevant

    options: dict[str, Any] = dict(PAPER_TEXT if order == "paper" else PUBLISHED_TEXT) | {
        "order": order
    }
    if percentile is not None:
        options["percentile"] = percentile if order == "paper" else last_five(percentile)
    score = tabulated(relevant, n) if beforehand else relevant
    hierarchy = agglomerate(score, chain(n), valid=valid, **options)
    output = f(x)
    return Agglomeration(
        scores=rows(hierarchy.unit_scores),
        output=output,
        gap=jnp.full((), jnp.nan, output.dtype),
        hierarchy=hierarchy,
    )
