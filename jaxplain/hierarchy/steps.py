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
    (rows,) = jnp.nonzero(wanted, size=-(-size // chunk) * chunk, fill_value=size)
    total = jnp.sum(wanted)

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
    node = (n + tree.count + jnp.cumsum(new) - 1).astype(jnp.int32)[group]
    joins = new[group]
    return tree._replace(
        top=jnp.where(joins, node, tree.top),
        parent=tree.parent.at[jnp.where(joins, tree.top, 2 * n)].set(node, mode="drop"),
        level=tree.level.at[jnp.where(joins, node, 2 * n)].set(level, mode="drop"),
        count=tree.count + jnp.sum(new, dtype=jnp.int32),
    )


def merge_pairs(call: Score, end: State, chunk: int) -> tuple[Tree, Array]:
    """Join the best pair of groups until one is left."""
    n = end.group.shape[0]
    unit = jnp.arange(n)
    ahead = unit[:, None] < unit[None]

    def pairs(group):
        root = end.selected & (group == unit)
        return root[:, None] & root[None] & ahead

    def step(state):
        group, wanted, values, tree, level, sound = state

        def masks(row):
            a, b = row // n, row % n
            return (group[None] == a[:, None]) | (group[None] == b[:, None])

        live = pairs(group)
        values = fill(call, masks, wanted, values, chunk)
        sound &= jnp.all(~wanted | jnp.isfinite(values))
        union = values.reshape(n, n)
        own = tree.score[tree.top]
        gain = jnp.where(live, union - jnp.maximum(own[:, None], own[None]), -jnp.inf)
        best = jnp.argmax(gain)
        a, b = best // n, best % n
        group = jnp.where((group == b) & sound, a.astype(group.dtype), group)
        tree = join(tree, group, level + 1)
        tree = tree._replace(
            score=tree.score.at[tree.top[a]].set(jnp.where(sound, union[a, b], own[a]))
        )
        wanted = pairs(group) & ((unit == a)[:, None] | (unit == a)[None])
        return group, wanted.ravel(), values, tree, level + 1, sound

    start = pairs(end.group).ravel()
    state = (
        end.group,
        start,
        jnp.zeros(n * n, end.values.dtype),
        end.tree,
        jnp.max(end.tree.level),
        end.sound,
    )
    more = lambda s: s[5] & jnp.any(pairs(s[0]))
    end_state = jax.lax.while_loop(more, step, state)
    return end_state[3], end_state[5]
