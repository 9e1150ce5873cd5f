"""Agglomeration of group scores into a tree, for any score of groups of units."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.hierarchy.steps import (
    Percentile,
    Score,
    State,
    Tree,
    checked,
    components,
    fill,
    join,
    merge_pairs,
    neighbours,
    one_each,
    ranks,
    top,
)
from jaxplain.types import Array, JaxplainError, check_positive


class Hierarchy(NamedTuple):
    """A tree over `N` units. Its groups are numbered in the order they formed, so that a parent's
    number is larger than its children's; there are fewer than N, and every array has N places.

    Attributes:
        unit_scores: `[N]` score of each unit alone; 0 where it is not valid.
        unit_parent: `[N]` int32, the group that the unit joined first; -1 if none.
        unit_level: `[N]` int32, the level that selected the unit, from 1; 0 if none did.
        scores: `[N]` score of each group; beyond `count` 0, or NaN where a score that was asked
            for was not finite, which is also where the tree stopped growing.
        parent: `[N]` int32, the group that the group went into; -1 if none.
        level: `[N]` int32, the level at which the group formed; 0 beyond `count`.
        count: `[]` int32, how many groups there are.
    """

    unit_scores: Array
    unit_parent: Array
    unit_level: Array
    scores: Array
    parent: Array
    level: Array
    count: Array


def agglomerate(
    score: Score,
    adjacency: Array | np.ndarray,
    *,
    borders: Array | np.ndarray | None = None,
    valid: Array | np.ndarray | None = None,
    order: str = "paper",
    percentile: Percentile = 90.0,
    magnitude: bool = False,
    smooth: int | None = None,
    max_levels: int | None = None,
    merge: bool = False,
    chunk: int | None = None,
) -> Hierarchy:
    """Agglomerative contextual decomposition: grow groups of units from the strongest ones.

    A queue holds every unit, with its score as its priority. Each level selects what is within the
    top percentile of the queue; touching selected units are one group. A group puts its
    extensions by one bordering unit in the queue, with priority score(extension) - score(group).

    `N` units, `G` groups to score. Pure, of fixed shapes: jit it, vmap it over examples.

    Args:
        score: `masks [G, N] bool -> [G]`, the score of the units that each row marks, as those
            below or `lambda masks: group_scores(f, x, expand(masks, units)).relevant`.
        adjacency: `[N, N]` bool, which units touch: `chain`, `grid`, `touching`. As a numpy array
            it makes a queue of N times the largest number of neighbours, else of N^2.
        borders: `[N, N]` bool, which units may extend a group that holds one; default adjacency.
        valid: `[N]` bool, False for padding, which never joins and is never scored.
        order: "paper", or "published", whose queue holds one entry a unit: its last extension's,
            that of the last group it borders, in place of its own.
        percentile: of the queue, 0 to 100; or a function of how many entries the queue holds.
        magnitude: whether a strong negative priority is as good as a positive one.
        smooth: from the second level on, also select the units that have at least this many
            selected borders.
        max_levels: levels at most; default until every unit is selected, at most N.
        merge: then join the remaining groups pair by pair, touching or not, each time the pair
            of largest score(union) - max(score of either). Takes N^2 floats.
        chunk: groups scored at once: a level costs what its new groups cost, rounded up to this.
            Default 4 where no unit has more than 2 neighbours, 32 otherwise.

    Returns:
        A `Hierarchy`, scores in score's units, float32 or wider. Of each level, only what changed
        is scored.
        Cost: N scores, then for each level one for each group that grew and one for each unit that
        borders it: 3 a level for a sequence that grows by one word at a time.

    Raises:
        JaxplainError: an array or score of the wrong shape; an unknown order; a percentile outside
            0 to 100.

    References: Singh, Murdoch, Yu, Hierarchical interpretations for neural network predictions,
        2019, https://arxiv.org/abs/1806.05337, algorithm 1; and the package acd 0.0.2, whose
        `agg_1d` is `PUBLISHED_TEXT`.
    Differs: the paper leaves open what becomes of queued groups that overlap. Here a group that
        has grown no longer extends, its successor does; and selected units that touch are
        one group. In images, the unit between two groups takes the priority of the one whose first
        unit comes last, where `agg_2d` numbers groups by their history.

    >>> import jax.numpy as jnp
    >>> from jaxplain.hierarchy import chain
    >>> words = jnp.array([0.1, -2.0, 3.0])
    >>> pair = lambda m: m @ words - 6.0 * m[:, 1] * m[:, 2]  # "not good"
    >>> h = agglomerate(lambda masks: pair(masks.astype(float)), chain(3), magnitude=True)
    >>> h.scores.round(1).tolist(), h.unit_parent.tolist(), h.parent.tolist()
    ([-5.0, -4.9..., 0.0], [1, 0, 0], [1, -1, -1])
    """
    near = neighbours("adjacency", adjacency)
    reach = near if borders is None else neighbours("borders", borders)
    n, degree = reach.shape
    if near.shape[0] != n:
        raise JaxplainError(f"adjacency is of {near.shape[0]} units, and borders of {n}")
    if order not in ("paper", "published"):
        raise JaxplainError(f'order must be "paper" or "published", not {order!r}')
    valid = jnp.ones(n, bool) if valid is None else jnp.asarray(valid, bool)
    if valid.shape != (n,):
        raise JaxplainError(f"valid has shape {list(valid.shape)}, and needs [{n}]")
    last = n if max_levels is None else min(check_positive("max_levels", max_levels), n)
    paper, width = order == "paper", 1 + degree
    rank = jnp.asarray(ranks(percentile, n * width if paper else n))
    chunk = check_positive("chunk", (4 if degree <= 2 else 32) if chunk is None else chunk)
    call, kind = checked(score, chunk, n)
    unit = jnp.arange(n, dtype=jnp.int32)

    def grow(s: State) -> State:
        def masks(row):  # of a group where slot is 0, else of its extension by x
            x, slot = row // width, row % width
            root = s.group[jnp.where(slot == 0, x, reach[x, slot - 1])]
            return (s.group[None] == root[:, None]) | (unit[None] == x[:, None])

        values = fill(call, masks, s.wanted, s.values, chunk)
        sound = s.sound & jnp.all(~s.wanted | jnp.isfinite(values))
        table = values.reshape(n, width)
        tree = s.tree._replace(score=s.tree.score.at[s.tree.top].set(table[s.group, 0]))
        gain = table[:, 1:] - table[s.group[reach], 0]
        queue = jnp.where(s.level == 0, table[:, 0], s.queue)
        live = (valid & ~s.selected)[:, None]
        if paper:
            entries = jnp.concatenate([queue[:, None], gain], axis=1)
            live = jnp.concatenate([live, s.live], axis=1)
        else:
            latest = jnp.sum(jnp.where(s.live, gain, 0), axis=1)  # of the one that lives
            queue = jnp.where(jnp.any(s.live, axis=1), latest, queue)
            entries = queue[:, None]
        best = top(jnp.abs(entries) if magnitude else entries, live, rank)
        fresh = jnp.any(best, axis=1) & sound & (s.level < last)
        if smooth is not None:
            held = jnp.sum((s.selected | fresh)[reach], axis=1)
            fresh |= (held >= smooth) & valid & ~s.selected & (s.level > 0) & jnp.any(fresh)
        selected = s.selected | fresh
        group = components(selected, s.group, near)
        tree = join(tree, group, s.level + 1)
        tree = tree._replace(level=tree.level.at[:n].add(jnp.where(fresh, s.level + 1, 0)))
        beside = selected[reach] & (valid & ~selected)[:, None]
        beside = one_each(beside, group[reach], last=not paper)
        changed = jnp.zeros(n, bool).at[group].max(fresh)
        grown = changed & (group == unit) & (tree.top >= n)
        wanted = jnp.concatenate([grown[:, None], beside & changed[group[reach]]], axis=1)
        return State(
            level=s.level + 1,
            done=~jnp.any(fresh),
            sound=sound,
            selected=selected,
            group=group,
            live=beside,
            wanted=wanted.ravel(),
            values=values,
            queue=queue,
            tree=tree,
        )

    alone = jnp.zeros((n, degree), bool)
    start = State(
        level=jnp.zeros((), jnp.int32),
        done=jnp.zeros((), bool),
        sound=jnp.ones((), bool),
        selected=jnp.zeros(n, bool),
        group=unit,
        live=alone,
        wanted=jnp.concatenate([valid[:, None], alone], axis=1).ravel(),
        values=jnp.zeros(n * width, kind),
        queue=jnp.zeros(n, kind),
        tree=Tree(
            top=unit,
            score=jnp.zeros(2 * n, kind),
            parent=jnp.full(2 * n, -1, jnp.int32),
            level=jnp.zeros(2 * n, jnp.int32),
            count=jnp.zeros((), jnp.int32),
        ),
    )
    end = jax.lax.while_loop(lambda s: ~s.done, grow, start)
    tree, sound = merge_pairs(call, end, chunk) if merge else (end.tree, end.sound)
    parent = jnp.where(tree.parent < 0, -1, tree.parent - n)
    unused = jnp.where(sound, 0, jnp.nan).astype(kind)
    scores = jnp.where(unit < tree.count, tree.score[n:], unused)
    return Hierarchy(
        tree.score[:n], parent[:n], tree.level[:n], scores, parent[n:], tree.level[n:], tree.count
    )


def last_five(percentile: float) -> Callable[[int], float]:
    """As `agg_1d` does: of the last five units pick two, then two, then one by one."""
    return lambda n: (0, 0, 49, 59, 49, 59)[n] if n <= 5 else percentile


def after_third(percentile: float, units: int) -> Callable[[int], float]:
    """As `agg_2d` does: 15 less once more than a third of the `units` have been picked."""
    return lambda n: max(0, percentile - 15) if units - n > units / 3 else percentile


# By magnitude, as the package does: the paper does not say, and else words against come last.
PAPER_TEXT: Mapping[str, Any] = MappingProxyType({"percentile": 90.0, "magnitude": True})
PAPER_IMAGES: Mapping[str, Any] = MappingProxyType(
    {"percentile": 95.0, "max_levels": 5, "merge": True}
)
# The published figures stop after 25 levels, which leaves words of long sentences out.
PUBLISHED_TEXT: Mapping[str, Any] = MappingProxyType(
    {"order": "published", "percentile": last_five(99.5), "magnitude": True}
)


def published_images(units: int) -> dict[str, Any]:
    """Options of the published image figures on a grid of `units`: give it
    `grid(rows, columns, connectivity=2)` as adjacency and `grid(rows, columns)` as borders."""
    return {
        "order": "published",
        "percentile": after_third(99.0, units),
        "smooth": 3,
        "max_levels": 5,
        "merge": True,
    }
