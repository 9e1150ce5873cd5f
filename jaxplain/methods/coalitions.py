"""What f gives when only some groups of the input stay and the rest is taken from elsewhere."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret import canonical_convolutions, hoisting
from jaxplain.methods.path import Baseline, check_baseline, check_set
from jaxplain.methods.players import Players, many, players
from jaxplain.methods.sampling import wide
from jaxplain.types import Array, JaxplainError, PyTree, ScalarFunction, check_example

Worth = Callable[[Array], Array]


class Game(NamedTuple):
    """Groups of an input as players, and what a coalition of them is worth.

    Letters: `M` players.

    Attributes:
        groups: the players.
        worth: `[M]` bool -> `[]`: f where the players of a coalition keep their entries.
        both: `[M]` bool -> `[2]`: the worth of a coalition, and of all players but these.
        chunk: how many coalitions to evaluate at once.
        whole: `[]` f(x).
        nothing: `[]` the worth of nobody.
    """

    groups: Players
    worth: Worth
    both: Worth
    chunk: int
    whole: Array
    nothing: Array

    @property
    def players(self) -> int:
        """M."""
        return self.groups.count

    def scores(self, values: Array) -> PyTree:
        """Each player's value `[M]` at its entries, in x's tree."""
        return self.groups.scores(values)

    def gap(self, values: Array) -> Array:
        """The sum of all values, less what they should add up to."""
        return jnp.sum(values) - (wide(self.whole) - self.nothing)


def game(
    f: ScalarFunction,
    x: PyTree,
    *,
    groups: PyTree | None,
    baseline: Baseline = None,
    baselines: PyTree | None = None,
    chunk: int | None = None,
) -> Game:
    """The game of f at x: what is not in a coalition comes from the baseline, or from each of
    `baselines` in turn, over which f is averaged.

    Where f begins with steps that are affine in x, such as a convolution, and it is less work to
    add up what each player gives there, they run for each player and not for each coalition.

    Raises:
        JaxplainError: x, f or a baseline that does not fit; both kinds of baseline; groups that
            are not whole numbers broadcastable to x, or hold nobody.
    """
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    all_of = players(x, groups, chunk)
    f = canonical_convolutions(f)
    if baselines is None:
        count = 1
        worth, both = _against(f, all_of, check_baseline(baseline, x))
    elif baseline is not None:
        raise JaxplainError("give baseline or baselines, not both: they are two different games")
    else:
        count, others = check_set(baselines, x)
        worth, both = _against_each(f, all_of, count, others)
    nothing = worth(jnp.zeros(all_of.count, bool))
    return Game(all_of, worth, both, max(1, all_of.width // count), f(x), nothing)


def _against(f: ScalarFunction, groups: Players, other: PyTree) -> tuple[Worth, Worth]:
    """What a coalition is worth where the rest comes from one baseline, and with its complement."""
    halves = hoisting.affine(f, groups.x, groups.count)
    if halves is None:
        return _alone(lambda kept: wide(f(groups.keep(kept, other))))
    first, rest = halves
    start = groups.without_all(other)
    change = jax.tree.map(jnp.subtract, groups.x, start)
    base, shares = first(start), groups.shares(_slope(first, start), change)

    def value(kept: Array, moved: list[Array]) -> Array:
        held = [b + m for b, m in zip(base, moved, strict=True)]
        return wide(rest(groups.keep(kept, other), held))

    return _paired(value, lambda kept: _sum(kept, shares), [jnp.sum(s, 0) for s in shares])


def _against_each(
    f: ScalarFunction, groups: Players, count: int, others: PyTree
) -> tuple[Worth, Worth]:
    """The mean over several baselines of what `_against` gives."""

    def mean(value: Callable[..., Array], *given: PyTree) -> Array:
        if count <= groups.width:
            return jnp.mean(wide(jax.vmap(value)(*given)))
        at = lambda k: jax.tree.map(lambda v: v[k], given)
        return jnp.mean(many(lambda k: wide(value(*at(k))), count, groups.width))

    halves = hoisting.affine(f, groups.x, groups.count, count + 1)
    if halves is None:
        return _alone(lambda kept: mean(lambda other: f(groups.keep(kept, other)), others))
    first, rest = halves
    start = groups.without_all(jax.tree.map(jnp.zeros_like, groups.x))
    base, slope = first(start), _slope(first, start)
    mine = groups.shares(slope, groups.x)
    theirs = jax.lax.map(lambda other: groups.shares(slope, other), others)
    theirs = [jnp.moveaxis(t, 1, 0) for t in theirs]  # [M, K, ...]

    def value(kept: Array, moved: list[Array]) -> Array:
        held = [b[None] + m for b, m in zip(base, moved, strict=True)]
        return mean(lambda other, held: rest(groups.keep(kept, other), held), others, held)

    def moved(kept: Array) -> list[Array]:
        both = zip(_sum(kept, mine), _sum(~kept, theirs), strict=True)
        return [m[None] + t for m, t in both]

    both = zip(mine, theirs, strict=True)
    return _paired(value, moved, [jnp.sum(m, 0)[None] + jnp.sum(t, 0) for m, t in both])


def _alone(worth: Worth) -> tuple[Worth, Worth]:
    return worth, lambda kept: jax.vmap(worth)(jnp.stack([kept, ~kept]))


def _paired(
    value: Callable[[Array, list[Array]], Array],
    moved: Callable[[Array], list[Array]],
    whole: list[Array],
) -> tuple[Worth, Worth]:
    """A coalition's worth by what its players move; its complement moves the rest of the whole."""

    def both(kept: Array) -> Array:
        parts = zip(moved(kept), whole, strict=True)
        return jax.vmap(value)(
            jnp.stack([kept, ~kept]), [jnp.stack([part, w - part]) for part, w in parts]
        )

    return lambda kept: value(kept, moved(kept)), both


def _slope(first: Callable[[PyTree], list[Array]], start: PyTree) -> Callable:
    """The linear part of an affine function."""
    # Not a difference: two infinities, such as a mask puts in, have none.
    return lambda change: jax.jvp(first, (start,), (change,))[1]


def _sum(kept: Array, shares: list[Array]) -> list[Array]:
    """The shares `[M, ...]` of the players that are kept, added up."""
    exact = jax.lax.Precision.HIGHEST
    return [jnp.tensordot(kept.astype(s.dtype), s, 1, precision=exact) for s in shares]


def all_but_one(f: ScalarFunction, groups: Players, other: PyTree) -> Array:
    """What f gives without each player `[M]`, whose entries come from the baseline."""
    m = groups.count
    member = lambda at: at == np.arange(m).reshape(-1, *(1,) * at.ndim)
    size = m * sum(at.size for at in groups.labels)
    sets = [member(at) for at in groups.labels] if size <= hoisting.LARGEST else None
    hidden = lambda i: groups.keep(jnp.arange(m) != i, other)
    return many(left_out(f, groups.x, other, hidden, sets, groups.width), m, groups.width)


def left_out(
    f: ScalarFunction,
    x: PyTree,
    other: PyTree,
    hidden: Callable[[Array], PyTree],
    sets: list[np.ndarray] | None,
    width: int,
) -> Callable[[Array], Array]:
    """What f gives where one of several sets of entries comes from the baseline, by its number.

    Where sets reach few of the values that f begins with, as words do through a convolution, steps
    up to these run for several sets at once: for as many as reach none in common.

    Args:
        f: the function.
        x: its input, a tree of arrays.
        other: the baseline.
        hidden: x with the set of that number hidden.
        sets: for each leaf of x, `[M, ...]` bool that broadcasts to it, which entries are in each
            set; None where these are too many to list.
        width: how many evaluations to do at once.
    """
    local = None if sets is None else hoisting.local(f, x, sets)
    if sets is None or local is None:
        return lambda i: wide(f(hidden(i)))
    first, rest, reach, colour = local
    each = [colour == n for n in range(colour.max() + 1)]
    covers = [jnp.asarray(np.stack([s[c].any(0) for c in each])) for s in sets]

    def without(c: Array) -> list[Array]:
        leaves, tree = jax.tree.flatten(x)
        parts = zip(covers, jax.tree.leaves(other), leaves, strict=True)
        return first(tree.unflatten([jnp.where(cover[c], o, v) for cover, o, v in parts]))

    whole, moved = first(x), many(without, len(each), width)
    reached, colours = [jnp.asarray(r) for r in reach], jnp.asarray(colour)

    def value(i: Array) -> Array:
        parts = zip(reached, moved, whole, strict=True)
        return wide(rest([jnp.where(r[i], m[colours[i]], w) for r, m, w in parts]))

    return value
