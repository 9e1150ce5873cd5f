"""As precise as asked: who gets more nodes or samples, and what becomes of those it had."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxplain.methods.quadrature import Nodes, nested
from jaxplain.run.trees import is_tuple
from jaxplain.types import JaxplainError, PyTree, check_positive

SUMS = {"samples"}  # fields that count, and add up where results are joined


class Effort(NamedTuple):
    """One round of a run that goes on until its results are precise enough.

    Attributes:
        value: what `explain` is given as `effort`. Arrays are arguments of one compiled program for
            all rounds; anything else is compiled in, a program a round.
        count: evaluations that it takes an example: nodes or samples.
        share: weight of its result where it is joined to that of the rounds before: the joined
            result is `(1 - share) * before + share * new`; 1 replaces it.
    """

    value: Any
    count: int
    share: float


def nodes(first: int = 16, limit: int = 1024) -> tuple[Effort, ...]:
    """Rounds for methods that take the mean along a path, `integrated_gradients(steps=effort)`.

    Each about doubles the nodes, and no gradient is taken twice but those at the two ends. The gap
    is that of the sum of scores, which few nodes can get right by luck: begin with more where
    single scores matter.

    Args:
        first: intervals of the first round.
        limit: intervals at most.

    >>> [e.count for e in nodes(16, 64)], [e.share for e in nodes(16, 64)]
    ([17, 18, 34], [1.0, 0.5, 0.5])
    """
    check_positive("first", first)
    if limit < first:
        raise JaxplainError(f"limit {limit} is below the first round's {first}")
    levels = int(np.log2(limit / first)) + 1
    rules = nested(first, levels)
    return tuple(Effort(r, int(r.count), 0.5 if k else 1.0) for k, r in enumerate(rules))


def draws(first: int, limit: int, *, factor: int = 4) -> tuple[Effort, ...]:
    """Rounds for methods that draw samples, `shapley_sampling(samples=effort)`.

    Each draws what makes `factor` times as many in all, with a key of its own, and results are
    averaged by their number of samples. A round's program is its own.

    >>> [(e.value, round(e.share, 3)) for e in draws(64, 1024)]
    [(64, 1.0), (192, 0.75), (768, 0.75)]
    """
    rounds = [Effort(check_positive("first", first), first, 1.0)]
    total = first
    while total * factor <= limit:
        new = total * (factor - 1)
        total += new
        rounds.append(Effort(new, new, new / total))
    return tuple(rounds)


def restarts(counts: Sequence[int]) -> tuple[Effort, ...]:
    """Rounds that begin anew with more steps, as `word_information(steps=effort)`.

    Batch mates of an example that takes long do not wait for it beyond their round.
    """
    return tuple(Effort(check_positive("effort", n), n, 1.0) for n in counts)


def check(explain: Callable, tolerance: float | None, efforts: Any) -> tuple[Effort, ...]:
    """The rounds of a run; none where no tolerance was asked for.

    Raises:
        JaxplainError: a tolerance that is no share, efforts without one, or an `explain` that takes
            none.
    """
    if tolerance is None:
        if efforts is not None:
            raise JaxplainError("efforts are for runs with a tolerance: give tolerance=0.01, say")
        return ()
    if isinstance(tolerance, bool) or not (
        isinstance(tolerance, int | float) and 0 < tolerance < np.inf
    ):
        raise JaxplainError(f"tolerance must be a number above 0, such as 0.01, not {tolerance!r}")
    try:
        takes = inspect.signature(explain).parameters
    except (TypeError, ValueError):
        takes = {}
    if "effort" not in takes:
        raise JaxplainError(
            "with a tolerance, explain is told how much to do: let it take effort, as in "
            "def explain(params, example, key, effort): ... "
            "integrated_gradients(f, x, steps=effort)"
        )
    rounds = nodes() if efforts is None else tuple(efforts)
    if not rounds or not all(isinstance(e, Effort) for e in rounds) or rounds[0].share != 1:
        raise JaxplainError(
            "efforts must be rounds, as jaxplain.precision.nodes(16, 1024), draws(64, 4096) or "
            "restarts((500, 4000)) give them"
        )
    return rounds


def static(effort: Effort) -> bool:
    """Whether a round is compiled in, because what `explain` is given holds no arrays."""
    return not isinstance(effort.value, Nodes) and not _arrays(effort.value)


def arguments(efforts: Sequence[Effort], level: int) -> dict[str, Any]:
    """What a program is compiled with, and called with, for a round."""
    if not efforts:
        return {}
    value, number = efforts[level].value, np.uint32(level)
    if static(efforts[level]):
        return {"rounds": (number, ()), "settled": value}
    return {"rounds": (number, value)}


def _arrays(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_arrays, value.values()))
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_arrays, value))
    return hasattr(value, "dtype") and hasattr(value, "shape")


def distance(result: PyTree) -> float:
    """How far a result is from done, to be compared with the tolerance: its relative error.

    Of a method that is complete, |gap| as a share of |f(x) - f(baseline)|, which is what the scores
    should sum to. Of one that samples, the largest standard error of a score as a share of the
    same; where no completeness is claimed, of the largest score. Of one that searches, 0 where all
    searches converged, else infinity. A result that holds several has the largest.

    Raises:
        JaxplainError: it holds nothing that says.
    """
    found = [_distance(part) for part in _parts(result)]
    if not found or any(d is None for d in found):
        raise JaxplainError(
            "this result says nothing of how far it is from done, so no tolerance can be promised: "
            "choose a method with a completeness gap or standard errors, or leave tolerance out"
        )
    return max(d for d in found if d is not None)


def _parts(result: PyTree) -> Iterator[Any]:
    """The attributions, searches and the like in a result."""
    if is_tuple(result):
        if {"scores", "gap"} <= set(result._fields) or "converged" in result._fields:
            yield result
            return
        result = tuple(result)
    children = result.values() if isinstance(result, dict) else result
    if isinstance(children, list | tuple) or isinstance(result, dict):
        for child in children:
            yield from _parts(child)


def _distance(part: Any) -> float | None:
    if "converged" in part._fields:
        return 0.0 if np.all(part.converged) else np.inf
    leaves = [np.asarray(leaf, np.float64) for leaf in _leaves(part.scores)]
    gap = np.abs(np.asarray(part.gap, np.float64))
    claimed = not np.isnan(gap).any()
    if gap.ndim:
        return None
    size = abs(sum(float(leaf.sum()) for leaf in leaves) - float(part.gap)) if claimed else 0.0
    if "standard_error" in part._fields:
        errors = [np.asarray(leaf, np.float64) for leaf in _leaves(part.standard_error)]
        error = max((float(leaf.max(initial=0)) for leaf in errors), default=0.0)
        if not claimed:
            size = max((float(np.abs(leaf).max(initial=0)) for leaf in leaves), default=0.0)
        if np.isnan(error):
            return np.inf
    elif claimed:
        error = float(gap)
    else:
        return None
    return error / size if size else (0.0 if error == 0 else np.inf)


def _leaves(tree: PyTree) -> list:
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in _leaves(child)]
    if isinstance(tree, list | tuple):
        return [leaf for child in tree for leaf in _leaves(child)]
    return [] if tree is None else [tree]


def join(before: PyTree, new: PyTree, share: float) -> PyTree:
    """A result of all rounds so far: scores and gaps averaged, standard errors with them.

    What is not part of an attribution, such as a model's logits, is that of the new one.
    """
    if share == 1:
        return new
    if is_tuple(new):
        if {"scores", "gap"} <= set(new._fields):
            errors = _leaves(getattr(new, "standard_error", None))
            if errors and not any(np.any(leaf) for leaf in errors):
                return new  # all there is was evaluated: nothing to average
            return type(new)(
                *(
                    _joined(name, a, b, share)
                    for name, a, b in zip(new._fields, before, new, strict=True)
                )
            )
        parts = (join(a, b, share) for a, b in zip(before, new, strict=True))
        return type(new)(*parts)
    if isinstance(new, dict):
        return {name: join(before[name], value, share) for name, value in new.items()}
    if isinstance(new, list | tuple):
        return type(new)(join(a, b, share) for a, b in zip(before, new, strict=True))
    return new


def _joined(name: str, before: PyTree, new: PyTree, share: float) -> PyTree:
    if isinstance(new, dict):
        return {key: _joined(name, before[key], value, share) for key, value in new.items()}
    if isinstance(new, list | tuple):
        pairs = [_joined(name, a, b, share) for a, b in zip(before, new, strict=True)]
        return type(new)(*pairs) if is_tuple(new) else type(new)(pairs)
    if new is None or name == "output":
        return new
    if name in SUMS:
        return before + new
    a, b = (1 - share) * np.asarray(before), share * np.asarray(new)
    return np.asarray(np.hypot(a, b) if name == "standard_error" else a + b, a.dtype)
