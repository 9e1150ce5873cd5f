"""Agglomeration: against the published package's numbers, and against Python sets and loops."""

import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.hierarchy import (
    PAPER_TEXT,
    PUBLISHED_TEXT,
    Hierarchy,
    after_third,
    agglomerate,
    build_up_score,
    chain,
    class_difference,
    components_at,
    expand,
    grid,
    heights,
    last_five,
    members,
    occlusion_score,
    published_images,
    tabulated,
    to_tree,
    touching,
)
from jaxplain.types import JaxplainError
from tests.helpers import quick_compile

GOLDENS = json.loads((Path(__file__).parent / "goldens/agglomeration.json").read_text())


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quick_compile():
        yield


def at(tree, i):
    return jax.tree.map(lambda leaf: np.asarray(leaf[i]), tree)


def span_score(table):
    """The score of a span, looked up."""

    def score(masks):
        start = jnp.argmax(masks, axis=1)
        stop = masks.shape[1] - 1 - jnp.argmax(masks[:, ::-1], axis=1)
        return table[start, stop]

    return score


LONGEST = max(len(case["spans"]) for case in GOLDENS)


@functools.cache
def published(percentile, absolute, iterations):
    """One compilation for all lengths of sentence."""
    options = {
        **PUBLISHED_TEXT,
        "percentile": last_five(percentile),
        "magnitude": absolute,
        "max_levels": iterations,
    }

    @jax.jit
    def explain(table, valid):
        return agglomerate(span_score(table), chain(LONGEST), valid=valid, **options)

    return explain


@pytest.mark.parametrize("case", GOLDENS, ids=lambda c: f"{len(c['spans'])}-{c['percentile']}")
def test_published_text_trees(case):
    n = len(case["spans"])
    table = np.zeros((LONGEST, LONGEST), np.float32)
    table[:n, :n] = case["spans"]
    explain = published(case["percentile"], case["absolute"], case["iterations"])
    h = explain(table, np.arange(LONGEST) < n)
    assert int(np.max(np.r_[h.level, h.unit_level])) == len(case["components"])
    for level, (wanted, scores) in enumerate(
        zip(case["components"], case["scores"], strict=True), 1
    ):
        place, got = components_at(h, level)
        assert np.all(place[n:] == -1)
        numbers = {first: k for k, first in enumerate(np.unique(place[place >= 0]), 1)}
        assert [numbers.get(p, 0) for p in place[:n]] == wanted
        for unit, number in enumerate(wanted):
            if number:  # stored in float64, looked up in float32
                np.testing.assert_allclose(got[unit], scores[str(number)], rtol=1e-6)


def components(selected, touch):
    """Connected sets, by depth-first search, in the order of their first units."""
    left, found = sorted(selected), []
    while left:
        stack, group = [left[0]], set()
        while stack:
            unit = stack.pop()
            if unit not in group:
                group.add(unit)
                stack += [v for v in selected if touch[unit, v]]
        found.append(frozenset(group))
        left = [u for u in left if u not in group]
    return found


def slow(
    score, touch, borders, *, percentile: Any, order, magnitude, last, smooth=None, merge=False
):
    """Algorithm 1 with a queue of (priority, unit, the group that it would extend)."""
    n = len(touch)
    selected, found, unit_level = set(), {}, np.zeros(n, int)
    groups = []
    queue = [(score({u}), u, None) for u in range(n)]
    for level in range(1, last + 1):
        queue = [e for e in queue if e[1] not in selected and (e[2] is None or e[2] in groups)]
        if not queue:
            break
        strength = np.array([abs(e[0]) if magnitude else e[0] for e in queue])
        q = percentile(len(queue)) if isinstance(percentile, Callable) else percentile
        new = {
            e[1]
            for e, s in zip(queue, strength, strict=True)
            if s >= np.percentile(strength, q) - 1e-9  # scores are multiples of 1 / 8
        }
        if smooth is not None and level > 1:
            cross = selected | new
            new = new | {u for u in range(n) if sum(borders[u, v] for v in cross) >= smooth}
        new -= selected
        selected |= new
        for unit in new:
            unit_level[unit] = level
        groups = components(selected, touch)
        for group in groups:
            if len(group) > 1:
                found.setdefault(group, (score(group), level))
            for unit in range(n):
                if unit not in selected and any(borders[unit, v] for v in group):
                    entry = (score(group | {unit}) - score(group), unit, group)
                    if order == "published":
                        queue = [e for e in queue if e[1] != unit]
                        entry = (*entry[:2], None)
                    if entry not in queue:
                        queue.append(entry)
    level = max([0, *unit_level, *(v[1] for v in found.values())])
    while merge and len(groups) > 1:
        level += 1
        pairs = [(a, b) for i, a in enumerate(groups) for b in groups[i + 1 :]]
        gains = [score(a | b) - max(score(a), score(b)) for a, b in pairs]
        a, b = pairs[int(np.argmax(gains))]
        found[a | b] = (score(a | b), level)
        groups = sorted([a | b, *(g for g in groups if g not in (a, b))], key=min)
    return found, unit_level


def random_sets(seed, count, n):
    """Weights of units and of their pairs: multiples of 1/8, so sums are exact in any order."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-32, 33, (count, n)) / 8
    pairs = rng.integers(-16, 17, (count, n, n)) / 8 * (rng.random((count, n, n)) < 0.3)
    return weights.astype(np.float32), pairs.astype(np.float32)


def quadratic(weights, pairs):
    def score(masks):
        m = masks.astype(jnp.float32)
        return m @ weights + jnp.sum((m @ pairs) * m, axis=1)

    return score


TEXT = {"order": "paper", "percentile": 90.0, "magnitude": True}
IMAGE = {"order": "paper", "percentile": 95.0, "magnitude": False}
SLOWLY: dict[str, Any] = {
    "chain-paper": (chain(11), chain(11), TEXT, 11),
    "chain-signed": (chain(11), chain(11), {**TEXT, "magnitude": False, "percentile": 70.0}, 11),
    "grid-paper": (grid(4, 5), grid(4, 5), {**IMAGE, "percentile": 70.0, "merge": True}, 2),
    "grid-published": (
        grid(4, 5, connectivity=2),
        grid(4, 5),
        {**published_images(20), "percentile": after_third(75.0, 20), "smooth": 2},
        3,
    ),
}


@pytest.mark.parametrize("name", SLOWLY)
def test_trees_of_random_set_functions(name):
    touch, borders, options, last = SLOWLY[name]
    options = {"magnitude": False, **options, "max_levels": last}
    weights, pairs = random_sets(len(name), 8, len(touch))

    def explain(w, p):
        return agglomerate(quadratic(w, p), touch, borders=borders, chunk=5, **options)

    batch = jax.jit(jax.vmap(explain))(weights, pairs)
    grown = 0
    for i, (w, p) in enumerate(zip(weights.astype(float), pairs.astype(float), strict=True)):

        def score(group, w=w, p=p):
            units = sorted(group)
            return float(w[units].sum() + p[np.ix_(units, units)].sum())

        kept = {k: v for k, v in options.items() if k != "max_levels"}
        wanted, unit_level = slow(score, touch, borders, last=last, **kept)
        h = at(batch, i)
        held = [frozenset(np.flatnonzero(row).tolist()) for row in members(h)]
        got = {g: (float(h.scores[k]), int(h.level[k])) for k, g in enumerate(held)}
        assert got == wanted and len(held) == int(h.count)
        assert h.unit_level.tolist() == unit_level.tolist()
        for k, group in enumerate(held):  # a group's parent is the smallest that holds it
            above = min((g for g in held if g > group), key=len, default=None)
            assert int(h.parent[k]) == (-1 if above is None else held.index(above))
        for unit, parent in enumerate(h.unit_parent):
            above = min((g for g in held if unit in g), key=len, default=None)
            assert int(parent) == (-1 if above is None else held.index(above))
        grown += len(held)
    assert grown > 8 * 3  # the comparison was of trees, not of stumps


def test_a_tree_depends_on_no_padding_no_chunk_and_no_way_to_say_what_touches():
    weights, pairs = (a[0] for a in random_sets(3, 1, 12))

    @jax.jit
    def short(weights, pairs):
        score = tabulated(quadratic(weights, pairs), 9, chunk=7)
        return agglomerate(score, chain(9), **PAPER_TEXT)

    @jax.jit
    def padded(weights, pairs, touch, valid):
        return agglomerate(quadratic(weights, pairs), touch, valid=valid, chunk=1, **PAPER_TEXT)

    want = short(weights[:9], pairs[:9, :9])
    got = padded(weights, pairs, chain(12), np.arange(12) < 9)
    assert int(want.count) > 2
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(a, b[:9] if b.ndim else b)
        assert not b.ndim or not np.any(np.asarray(b[9:]) > 0)


def test_only_what_changed_is_scored():
    scored = Counter()

    def score(masks):
        jax.debug.callback(lambda m: scored.update([m.tobytes()]), masks)
        return jnp.sum(masks * 2.0 ** -jnp.arange(9.0)[None], axis=1)

    explain = jax.jit(lambda: agglomerate(score, chain(9), percentile=100.0, chunk=1))
    h = jax.block_until_ready(explain())
    jax.effects_barrier()
    assert h.unit_level.tolist() == list(range(1, 10))  # from the left, a word at a time
    # 9 words; each next prefix, once as an extension and once as a group.
    assert sum(scored.values()) == 9 + 8 + 8


def ones(masks):
    return jnp.where(jnp.any(masks, axis=1), 1.0, jnp.nan)


def test_a_single_unit():
    one = jax.jit(lambda: agglomerate(ones, chain(1)))()
    assert (one.unit_level.tolist(), int(one.count), one.scores.tolist()) == ([1], 0, [0.0])


def test_equal_scores_join_at_once():
    flat = jax.jit(lambda: agglomerate(ones, chain(7), **PUBLISHED_TEXT))()
    assert int(flat.count) == 1 and flat.scores.tolist() == [1.0] + 6 * [0.0]
    assert flat.unit_parent.tolist() == 7 * [0]


@pytest.mark.parametrize("merge", [False, True])
def test_a_score_that_is_not_finite_stops_the_tree_and_shows(merge):
    @jax.jit
    def explain(bad, value):  # any group of the units in bad
        def score(masks):
            sizes = jnp.sum(masks * jnp.arange(1.0, 7.0)[None], axis=1)
            return jnp.where(jnp.all(masks | ~bad[None], axis=1), value, sizes)

        return agglomerate(score, chain(6), percentile=99.0, max_levels=6, merge=merge)

    unit = np.arange(6)
    h = explain((unit == 3) | (unit == 4), np.nan)
    assert np.isnan(h.scores).any() and int(h.count) > 0
    with pytest.raises(JaxplainError, match="not finite"):
        to_tree(h)
    infinite = explain(unit == 0, np.inf)
    assert np.isnan(infinite.scores).all() and int(infinite.count) == 0


def test_scores_by_taking_out_and_by_leaving_in():
    x = {"a": jnp.arange(1.0, 7.0).reshape(3, 2), "b": jnp.array([5.0])}
    units = {"a": np.arange(3)[:, None], "b": np.array([-1])}
    f = lambda x: jnp.stack([jnp.prod(jnp.sum(x["a"], 1)) * x["b"][0], jnp.sum(x["a"])])
    ones = lambda x: jax.tree.map(jnp.ones_like, x)

    @jax.jit
    def explain(x, masks):
        return (
            expand(masks, units),
            occlusion_score(f, x, units, baseline=1.0)(masks),
            build_up_score(f, x, units, baseline=ones)(masks),
        )

    masks = jnp.array([[True, False, True], [False, True, False], [False, False, False]])
    places, out, kept = explain(x, masks)
    assert places["a"].shape == (3, 3, 1) and not places["b"].any()
    sums = np.array([3.0, 7.0, 11.0])
    whole = 5 * np.prod(sums)
    np.testing.assert_allclose(out[:, 0], np.array([whole - 140, whole - 330, 0]))
    np.testing.assert_allclose(out[:, 1], [14 - 4, 7 - 2, 0])
    # b is in no unit: nothing takes it out, and nothing takes it to the baseline.
    assert kept[:, 0].tolist() == [5 * 3 * 2 * 11 - 40, 5 * 2 * 7 * 2 - 40, 0]
    label = class_difference(jnp.array([[1.0, 5.0, 3.0], [9.0, 0.0, 1.0]]), jnp.int32(1))
    assert label.tolist() == [2.0, -9.0]
    assert float(class_difference(jnp.array([1.0, 5.0, 3.0]), 1, 0)) == 4.0


def test_which_segments_touch():
    labels = np.array([[0, 0, 1], [2, 2, 1], [3, -1, 4]])
    sides = {(a, b) for a, b in np.argwhere(touching(labels)) if a < b}
    assert sides == {(0, 1), (0, 2), (1, 2), (1, 4), (2, 3)}
    corners = {(a, b) for a, b in np.argwhere(touching(labels, connectivity=2)) if a < b}
    assert corners - sides == {(2, 4)}
    assert grid(3, 3)[4].nonzero()[0].tolist() == [1, 3, 5, 7]
    assert grid(3, 3, connectivity=2)[4].sum() == 8


def test_trees_for_files():
    score = lambda m: m @ jnp.array([0.1, -2.0, 3.0]) - 6.0 * m[:, 1] * m[:, 2]
    h = jax.jit(lambda: agglomerate(lambda m: score(m * 1.0), chain(3), **PUBLISHED_TEXT))()
    tree = json.loads(json.dumps(to_tree(h, ["a", "not", "good"])))
    (root,) = tree["roots"]
    assert (root["units"], tree["left"], heights(h).tolist()) == ([0, 1, 2], [], [1, 2])
    leaf, phrase = root["children"]
    assert (leaf["label"], phrase["units"], phrase["score"]) == ("a", [1, 2], -5.0)
    assert [c["label"] for c in phrase["children"]] == ["not", "good"]
    level = np.array([0, 0, 1])
    cut = to_tree(h._replace(unit_level=level, unit_parent=level * 0 - 1, count=np.int32(0)))
    assert [u["unit"] for u in cut["left"]] == [0, 1]


NONE = jnp.zeros(3, int)
EMPTY = Hierarchy(NONE, NONE, NONE, NONE, NONE, NONE, jnp.int32(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: agglomerate(s, np.ones((3, 2), bool)), r"adjacency has shape \[3, 2\]"),
        (lambda s: agglomerate(s, chain(3), borders=chain(4)), "3 units, and borders of 4"),
        (lambda s: agglomerate(s, chain(3), valid=np.ones(2, bool)), r"valid has shape \[2\]"),
        (lambda s: agglomerate(s, chain(3), order="best"), '"paper" or "published"'),
        (lambda s: agglomerate(s, chain(3), percentile=101.0), "within 0 to 100"),
        (lambda s: agglomerate(s, chain(3), percentile=lambda n: -n), "within 0 to 100"),
        (lambda s: agglomerate(s, chain(3), max_levels=0), "max_levels must be"),
        (lambda s: agglomerate(s, chain(3), chunk=0), "chunk must be"),
        (lambda s: agglomerate(lambda m: m * 1.0, chain(3)), r"gave \[4, 3\]: select the class"),
        (lambda s: chain(0), "n must be"),
        (lambda s: touching(np.ones((2, 2))), "whole numbers"),
        (lambda s: grid(2, 2, connectivity=4), "connectivity must be 1 or 2"),
        (lambda s: class_difference(jnp.ones((2, 1)), 0), "at least 2 classes"),
        (lambda s: to_tree(EMPTY, ["a"]), "labels are 1"),
        (lambda s: members(jax.tree.map(lambda a: a[None], EMPTY)), "one exam"),
    ],
)
def test_one_clear_line_each(call, message):
    with pytest.raises(JaxplainError, match=message):
        call(lambda masks: jnp.sum(masks * 1.0, axis=1))
