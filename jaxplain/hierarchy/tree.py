"""A finished hierarchy as people and files take it: plain numpy, one example at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxplain.hierarchy.growth import Hierarchy
from jaxplain.types import JaxplainError


def members(hierarchy: Hierarchy) -> np.ndarray:
    """`[count, N]` bool: which units each group holds."""
    h = _checked(hierarchy)
    held = np.zeros((int(h.count), len(h.unit_scores)), bool)
    for unit, group in enumerate(h.unit_parent):
        if group >= 0:
            held[group, unit] = True
    for group in range(len(held)):  # a parent's number is larger than its children's
        if h.parent[group] >= 0:
            held[h.parent[group]] |= held[group]
    return held


def heights(hierarchy: Hierarchy) -> np.ndarray:
    """`[count]` int: one more than the highest group inside each group; 1 for groups of units.

    The levels of a figure without redundant ones, as the published `collapse_tree`.
    """
    h = _checked(hierarchy)
    high = np.ones(int(h.count), int)
    for group in range(len(high)):
        if h.parent[group] >= 0:
            high[h.parent[group]] = max(high[h.parent[group]], high[group] + 1)
    return high


def components_at(hierarchy: Hierarchy, level: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest groups and lone units at a level.

    Returns:
        `[N]` int, the smallest unit of the group that holds each unit, -1 where the level has not
        selected it; and `[N]` the score of what holds it, NaN there.
    """
    h = _checked(hierarchy)
    held = members(hierarchy)
    chosen = (h.unit_level > 0) & (h.unit_level <= level)
    place = np.where(chosen, np.arange(len(chosen)), -1)
    scores = np.where(chosen, h.unit_scores, np.nan)
    for group in range(len(held)):
        if h.level[group] <= level:
            place[held[group]] = np.flatnonzero(held[group])[0]
            scores[held[group]] = h.scores[group]
    return place, scores


def to_tree(hierarchy: Hierarchy, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """The tree as nested dicts of plain numbers and text, ready for JSON.

    Args:
        hierarchy: of one example; not batched.
        labels: a name for each of the N units.

    Returns:
        `roots`: what is in no group, each a node; `left`: the units that no level selected. A unit
        is `{"unit", "label", "score", "level"}`, a group `{"units", "label", "score", "level",
        "children"}`, children in the order of their first units.

    Raises:
        JaxplainError: a batch; labels of another number; a score that was not finite.
    """
    h = _checked(hierarchy)
    n, count = len(h.unit_scores), int(h.count)
    if labels is not None and len(labels) != n:
        raise JaxplainError(f"labels are {len(labels)}, and the hierarchy is of {n} units")
    if not (np.isfinite(h.scores).all() and np.isfinite(h.unit_scores).all()):
        raise JaxplainError("a group's score was not finite, so the tree is not whole: see f(x)")
    held = members(hierarchy)
    roots, left = [], []
    nodes: list[dict[str, Any]] = [
        {
            "units": np.flatnonzero(held[g]).tolist(),
            **({} if labels is None else {"label": " ".join(np.asarray(labels)[held[g]])}),
            "score": float(h.scores[g]),
            "level": int(h.level[g]),
            "children": [],
        }
        for g in range(count)
    ]

    def place(node: dict[str, Any], parent: int) -> None:
        (nodes[parent]["children"] if parent >= 0 else roots).append(node)

    for unit in range(n):
        node = {"unit": unit} | ({} if labels is None else {"label": str(labels[unit])})
        node |= {"score": float(h.unit_scores[unit]), "level": int(h.unit_level[unit])}
        if h.unit_level[unit] == 0:
            left.append(node)
        else:
            place(node, int(h.unit_parent[unit]))
    for group, node in enumerate(nodes):
        place(node, int(h.parent[group]))
    first = lambda node: node["units"][0] if "units" in node else node["unit"]
    for children in (roots, *(node["children"] for node in nodes)):
        children.sort(key=first)
    return {"roots": roots, "left": left}


def _checked(hierarchy: Hierarchy) -> Hierarchy:
    h = Hierarchy(*map(np.asarray, hierarchy))  # pyright: ignore[reportArgumentType]
    if h.scores.ndim != 1:
        raise JaxplainError(
            f"hierarchy has scores of shape {list(h.scores.shape)}: take one example of the batch, "
            "jax.tree.map(lambda a: a[i], hierarchy)"
        )
    return h
