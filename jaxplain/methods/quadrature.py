"""Nodes and weights on [0, 1]: how a mean along a path is taken."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxplain.types import Array, check_positive


class Nodes(NamedTuple):
    """Where to evaluate, and with which weight; arrays, so that one program serves many rules.

    Letters: `W` places, of which the first `count` are used.

    Attributes:
        place: `[W]` in [0, 1].
        weight: `[W]`.
        count: `[]` int32.
    """

    place: Array | np.ndarray
    weight: Array | np.ndarray
    count: Array | np.ndarray | int


@lru_cache(maxsize=64)
def gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights `[n]` on [0, 1], in float64, exact for polynomials of degree 2n - 1.

    Newton's iteration on the Legendre polynomial, O(n^2), where eigenvalue solvers are O(n^3).
    """
    x = np.cos(np.pi * (np.arange(n, 0, -1) - 0.25) / (n + 0.5))
    slope = np.ones(n)
    for _ in range(6):  # quadratic from within 1e-4 of the root: 4 would do
        before, value = np.ones(n), x
        for k in range(2, n + 1):
            before, value = value, ((2 * k - 1) * x * value - (k - 1) * before) / k
        slope = n * (before - x * value) / (1 - x * x)
        x = x - value / slope
    weights = 1 / ((1 - x * x) * slope * slope)
    return (1 + x) / 2, weights


def nested(intervals: int, levels: int) -> list[Nodes]:
    """Rules of which each halves the intervals of the mean of those before, at the new places only.

    The first is the trapezoidal rule of `intervals` intervals after the change of variable
    (1 - cos(pi t)) / 2, whose ends get what weight the constants need: places and accuracy are
    those of Clenshaw-Curtis where it matters, an error of order 1 / n^4 where f is smooth. Its
    weights halve from level to level, and so a level's rule is the *mean* of the rule before and of
    one that evaluates the new places, and the two ends again: this one is what the list holds. A
    mean that is kept needs no gradient twice.

    Args:
        intervals: of the first level, at least 2.
        levels: how many.

    Returns:
        `levels` rules, all of the shape that the last one needs. The first has `intervals + 1`
        places, the next `intervals + 2`, then `2 intervals + 2`, `4 intervals + 2` and so on.

    References: Clenshaw, Curtis, A method for numerical integration on an automatic computer, 1960,
        https://doi.org/10.1007/BF01386223
    Differs: weights of Clenshaw-Curtis change at every place from level to level, so that all
        gradients would have to be kept.

    >>> rules = nested(4, 3)
    >>> [int(rule.count) for rule in rules], rules[0].place.shape
    ([5, 6, 10], (10,))
    """
    intervals, levels = check_positive("intervals", intervals), check_positive("levels", levels)
    rules, before = [], 0.0
    width = intervals + 1 if levels == 1 else intervals * 2 ** (levels - 2) + 2
    width = max(width, intervals + 1)
    for level in range(levels):
        n = intervals * 2**level
        step = np.arange(1, n) if level == 0 else np.arange(1, n, 2)
        every = np.pi / (2 * n) * np.sin(np.pi * np.arange(1, n) / n)
        end = (1 - every.sum()) / 2  # of the whole rule, so that its weights sum to 1
        scale = 1 if level == 0 else 2
        weight = scale * np.pi / (2 * n) * np.sin(np.pi * step / n)
        place = (1 - np.cos(np.pi * step / n)) / 2
        ends = scale * end - before
        place, weight = np.append(place, [0.0, 1.0]), np.append(weight, [ends, ends])
        many = len(place)
        fill = width - many
        rules.append(
            Nodes(
                np.pad(place, (0, fill)),
                np.pad(weight, (0, fill)),
                many,
            )
        )
        before = end
    return rules
