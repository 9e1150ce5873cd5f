"""The steps of agglomeration, each on arrays of fixed size."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.types import Array, JaxplainError

Score: TypeAlias = Callable[[Array], Array]
Percentile: TypeAlias = float | Callable[[int], float]


class Tree(NamedTuple):
    top: Array  # [N] node that holds each unit and is in no other; units are nodes 0 to N - 1
    score: Array  # [2N]
    parent: Array  # [2N]
    level: Array  # [2N]
    count: Array  # [] groups so far


class State(NamedTuple):
    level: Array  # []
    done: Array  # []
    sound: Array  # [] every score so far is finite
    selected: Array  # [N]
    group: Array  # [N] smallest unit of each unit's group; its own while it is alone
    live: Array  # [N, D] extensions of a group by a unit that are in the queue
    wanted: Array  # [N * (1 + D)] what the next level has to score
    values: Array  # [N * (1 + D)] score of each group at its smallest unit, and of each extension
    queue: Array  # [N] each unit's own priority
    tree: Tree


def neighbours(name: str, touch: Array | np.ndarray) -> Array:
    """`[N, D]` the neighbours of each unit, filled up with itself."""
    if touch.ndim != 2 or touch.shape[0] != touch.shape[1] or touch.shape[0] < 1:
        raise JaxplainError(f"{name} has shape {list(touch.shape)}, and needs [N, N]")
    n = touch.shape[0]
    if not isinstance(touch, np.ndarray):
        unit = jnp.arange(n, dtype=jnp.int32)
        return jnp.where(touch.astype(bool), unit[None], unit[:, None])
    touch = touch.astype(bool)
    degree = max(1, int(touch.sum(axis=1).max()))
    first = np.argsort(~touch, axis=1, kind="stable")[:, :degree]
    real = np.take_along_axis(touch, first, axis=1)
    return jnp.asarray(np.where(real, first, np.arange(n)[:, None]), jnp.int32)


def ranks(percentile: Percentile, most: int) -> np.ndarray:
    """Of n sorted entries, 0 <= n <= most, the first that is not below the percentile."""
    if not callable(percentile):
        share = np.full(most + 1, float(percentile))
    else:
        share = np.array([float(percentile(n)) for n in range(most + 1)])
    if not np.all((share >= 0) & (share <= 100)):
        raise JaxplainError(f"percentile must be within 0 to 100, not {percentile!r}")
    places = share / 100 * np.maximum(np.arange(most + 1) - 1, 0)
    return np.ceil(places - 1e-9).astype(np.int32)  # 55 % of 20 is 11, not 11.000000000000002


def checked(score: Score, chunk: int, n: int) -> tuple[Score, jnp.dtype]:
    masks = jax.ShapeDtypeStruct((chunk, n), bool)
    out = jax.eval_shape(score, masks)
    if not hasattr(out, "shape") or out.shape != (chunk,):
        raise JaxplainError(
            f"score must give one number for each of [{chunk}, {n}] masks, and gave "
            f"{jax.tree.map(lambda leaf: list(leaf.shape), out)}: select the class to explain"
        )
    kind = jnp.promote_types(out.dtype, jnp.float32)
    return lambda masks: score(masks).astype(kind), kind


def fill(call: Score, masks: Callable, wanted: Array, values: Array, chunk: int) -> Array:
    """Score the wanted places of `values`, `chunk` at a time: cost follows how many there are."""
    size = wanted.shape[0]
    rows = jnp.sort(jnp.where(wanted, jnp.arange(size, dtype=jnp.int32), size))
    rows = jnp.pad(rows, (0, -size % chunk), constant_values=size)
    total = jnp.sum(wanted, dtype=jnp.int32)

    def step(state):
        start, values = state
        row = jax.lax.dynamic_slice(rows, (start,), (chunk,))
        new = call(masks(jnp.minimum(row, size - 1)))
        return start + chunk, values.at[row].set(new, mode="drop")

    return jax.lax.while_loop(lambda s: s[0] < total, step, (jnp.zeros_like(total), values))[1]


def top(priority: Array, live: Array, rank: Array) -> Array:
    """Which live entries are at or above their percentile."""
    ordered = jnp.sort(jnp.where(live, priority, jnp.inf).ravel())
    return live & (priority >= ordered[rank[jnp.sum(live)]])


def components(selected: Array, group: Array, near: Array) -> Array:
    """The smallest unit of each selected unit's connected component."""
    linked = selected[near] & selected[:, None]

    def spread(state):
        group, _ = state
        seen = jnp.min(jnp.where(linked, group[near], group[:, None]), axis=1)
        new = group.at[group].min(seen)  # tell the root, then ask it
        new = jnp.minimum(new[new], seen)
        return new, jnp.any(new != group)

    return jax.lax.while_loop(lambda s: s[1], spread, (group, jnp.any(selected)))[0]


def one_each(live: Array, group: Array, *, last: bool) -> Array:
    """Of a unit's live places `[N, D]` keep one for each group, or only that of the last group."""
    n, degree = live.shape
    place = jnp.arange(degree, dtype=jnp.int32)[None]
    if last:
        return live & (place == jnp.argmax(jnp.where(live, group, -1), axis=1)[:, None])
    unit = jnp.arange(n)[:, None]
    first = jnp.full((n, n), degree).at[unit, group].min(jnp.where(live, place, degree))
    return live & (first[unit, group] == place)


def join(tree: Tree, group: Array, level: Array) -> Tree:
    """Make a node of every group that holds more than one."""
    n = group.shape[0]
    low = jnp.full(n, 2 * n, jnp.int32).at[group].min(tree.top)
    high = jnp.zeros(n, jnp.int32).at[group].max(tree.top)
    new = low < high
    unit = jnp.arange(n)
    before = jnp.sum(new[None] & (unit[None] < unit[:, None]), axis=1, dtype=jnp.int32)
    node = (n + tree.count + before)[group]
    joins = new[group]
    return tree._replace(
        top=jnp.where(joins, node, tree.top),
        parent=tree.parent.at[jnp.where(joins, tree.top, 2 * n)].set(node, mode="drop"),
        level=tree.level.at[jnp.where(joins, node, 2 * n)].set(level, mode="drop"),
        count=tree.count + jnp.sum(new, dtype=jnp.int32),
    )


def merge_pairs(call: Score, end: State, chunk: int) -> tuple[Tree, Array]:
    """Join the best pair of groups until one is left; each turn scores one group's pairs, or joins.

    Returns:
        The whole tree, and whether every score is finite.
    """
    n = end.group.shape[0]
    unit = jnp.arange(n, dtype=jnp.int32)

    class Turn(NamedTuple):
        group: Array  # [N] as in State
        root: Array  # [N] smallest units of the groups that are left
        todo: Array  # [N] of those, the ones whose pairs have no score yet
        union: Array  # [N, N] score of each pair, at their smallest units
        tree: Tree
        level: Array
        sound: Array

    def score(t: Turn) -> Turn:
        one = jnp.argmax(t.todo)

        def masks(row):
            return (t.group == one)[None] | (t.group[None] == row[:, None])

        wanted = t.root & ~t.todo
        row = fill(call, masks, wanted, t.union[one], chunk)
        union = t.union.at[one].set(row)
        union = union.at[:, one].set(jnp.where(wanted, row, union[:, one]))
        sound = t.sound & jnp.all(~wanted | jnp.isfinite(row))
        return t._replace(todo=t.todo & (unit != one), union=union, sound=sound)

    def join_best(t: Turn) -> Turn:
        own = t.tree.score[t.tree.top]
        pair = t.root[:, None] & t.root[None] & (unit[:, None] < unit[None])
        gain = jnp.where(pair, t.union - jnp.maximum(own[:, None], own[None]), -jnp.inf)
        best = jnp.argmax(gain).astype(jnp.int32)
        a, b = best // n, best % n
        group = jnp.where(t.group == b, a, t.group)
        tree = join(t.tree, group, t.level + 1)
        tree = tree._replace(score=tree.score.at[tree.top[a]].set(t.union[a, b]))
        root = t.root & (unit != b)
        return t._replace(group=group, root=root, todo=unit == a, tree=tree, level=t.level + 1)

    root = end.selected & (end.group == unit)
    union = jnp.zeros((n, n), end.values.dtype)
    start = Turn(end.group, root, root, union, end.tree, jnp.max(end.tree.level), end.sound)
    last = jax.lax.while_loop(
        lambda t: t.sound & (jnp.sum(t.root) > 1),
        lambda t: jax.lax.cond(jnp.any(t.todo), score, join_best, t),
        start,
    )
    return last.tree, last.sound
