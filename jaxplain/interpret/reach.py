"""Which groups of inputs reach which elements of a program's values, by shapes alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from jaxplain.interpret import rules
from jaxplain.interpret.compat import Program, Step

Reach = np.ndarray  # [M, ...] bool, which broadcasts to [M, *shape]

LARGEST = 2**22  # entries of a table of groups by elements
REDUCTIONS = frozenset(f"reduce_{name}" for name in "sum max min prod and or xor".split())
WINDOWS = frozenset(f"reduce_window_{name}" for name in "sum max min".split())


class _TooLarge(Exception):
    """A table that is not worth its memory."""


def reached(
    program: Program, shapes: Mapping[int, tuple[int, ...]], touched: Sequence[Reach | None]
) -> dict[int, Reach]:
    """Which of M groups reach each element of the values that depend on any.

    What no rule here knows counts as reached by all that reach an operand, and so does what would
    take a table of over 4 million entries.

    Args:
        program: as traced.
        shapes: of all its values; see `shapes_of`.
        touched: for each input, `[M, ...]` which group holds each of its elements; None for one
            that is in no group.
    """
    found = {i: t for i, t in zip(program.inputs, touched, strict=True) if t is not None}
    for step in program.steps:
        reads = [found.get(i) for i in step.inputs]
        if all(r is None for r in reads):
            continue
        sizes = [shapes[i] for i in step.inputs]
        try:
            outs = _step(step, reads, sizes)
        except _TooLarge:
            outs = None
        for number, aval, out in zip(
            step.outputs, step.shapes, outs or [None] * len(step.outputs), strict=True
        ):
            found[number] = _all(reads, len(aval.shape)) if out is None else out
    return found


def shapes_of(program: Program, inputs: Sequence[tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """The shape of every value."""
    found = {i: tuple(np.shape(c)) for i, c in program.constants.items()}
    found |= zip(program.inputs, inputs, strict=True)
    for step in program.steps:
        found |= zip(step.outputs, (tuple(s.shape) for s in step.shapes), strict=True)
    return found


def most(reach: Reach) -> int:
    """How many groups reach an element, at most."""
    return int(reach.sum(0).max(initial=0))


def _step(step: Step, reads: list, sizes: list[tuple[int, ...]]) -> list[Reach | None] | None:
    """Of each output; None where all that is known is that operands reach it."""
    name = step.name
    if step.inner is not None:
        if name in ("scan", "checkpoint"):
            return None
        inside = reached(step.inner, shapes_of(step.inner, sizes), reads)
        made = zip(step.inner.outputs, step.shapes, strict=True)
        return [inside.get(i, _none(reads, s.shape)) for i, s in made]
    if name in rules.POINTWISE:
        rank = len(step.shapes[0].shape)
        full = [r if r.ndim == rank + 1 else _all([r], rank) for r in reads if r is not None]
        return [reduce(np.logical_or, full)]
    if name == "dot_general":
        return [_dot(step, reads, sizes)]
    if name == "concatenate":
        return [_concatenate(step, reads, sizes)]
    # All others move or gather the elements of their first operand.
    if reads[0] is None or any(r is not None for r in reads[1:]) or name not in MOVES:
        return None
    return MOVES[name](step, reads[0], sizes)


def _all(reads: list, rank: int) -> Reach:
    """Everything is reached by all that reach anything."""
    each = [r.reshape(len(r), -1).any(1) for r in reads if r is not None]
    return reduce(np.logical_or, each).reshape(-1, *(1,) * rank)


def _any(reach: Reach, axes: Sequence[int], keepdims: bool = False) -> Reach:
    return np.asarray(reach.any(tuple(n + 1 for n in axes), keepdims=keepdims))


def _none(reads: list, shape: tuple[int, ...]) -> Reach:
    groups = next(len(r) for r in reads if r is not None)
    return np.zeros((groups, *(1,) * len(shape)), bool)


def _full(reach: Reach, shape: tuple[int, ...], axes: Sequence[int]) -> Reach:
    """With those axes of the value written out."""
    wanted = list(reach.shape)
    for axis in axes:
        wanted[axis + 1] = shape[axis]
    if math.prod(wanted) > LARGEST:
        raise _TooLarge
    return np.broadcast_to(reach, wanted)


def _dot(step: Step, reads: list, sizes: list[tuple[int, ...]]) -> Reach:
    contract, batch = step.params["dimension_numbers"]
    free = [
        [n for n in range(len(s)) if n not in (*c, *b)]
        for s, c, b in zip(sizes, contract, batch, strict=True)
    ]
    parts = []
    for side, reach in enumerate(reads):
        if reach is None:
            continue
        summed = _any(reach, contract[side], keepdims=True)
        order = (*batch[side], *free[side])
        moved = summed.transpose(0, *(n + 1 for n in order), *(n + 1 for n in contract[side]))
        kept = moved.shape[: len(order) + 1]
        at, ones = 1 + len(batch[side]), (1,) * len(free[1 - side])
        shape = (*kept, *ones) if side == 0 else (*kept[:at], *ones, *kept[at:])
        parts.append(moved.reshape(shape))
    return reduce(np.logical_or, parts)


def _concatenate(step: Step, reads: list, sizes: list[tuple[int, ...]]) -> Reach:
    axis = step.params["dimension"]
    parts = [
        _full(_none(reads, s) if r is None else r, s, [axis])
        for r, s in zip(reads, sizes, strict=True)
    ]
    one = lambda p: p.shape[: axis + 1] + p.shape[axis + 2 :]
    others = np.broadcast_shapes(*map(one, parts))
    wide = [(*others[: axis + 1], p.shape[axis + 1], *others[axis + 1 :]) for p in parts]
    return np.concatenate(list(map(np.broadcast_to, parts, wide)), axis + 1)


def _convolution(step: Step, reach: Reach, sizes: list) -> list[Reach | None]:
    params = step.params
    if params["batch_group_count"] != 1:
        return [None]
    images, kernels, outs = params["dimension_numbers"]
    (batch, feature, *space), out = images, step.shapes[0].shape
    reach = _any(reach, (feature,), keepdims=True)  # groups of features too: one reaches all
    for n, axis in enumerate(space):
        reach = _slide(
            _full(reach, sizes[0], [axis]),
            axis + 1,
            out[outs[2 + n]],
            sizes[1][kernels[2 + n]],
            params["window_strides"][n],
            params["padding"][n][0],
            params["lhs_dilation"][n],
            params["rhs_dilation"][n],
        )
    order = [0] * len(out)
    for here, there in zip((batch, feature, *space), outs, strict=True):
        order[there] = here + 1
    return [reach.transpose(0, *order)]


def _windows(step: Step, reach: Reach, sizes: list) -> list[Reach | None]:
    names = "window_dimensions window_strides padding base_dilation window_dilation".split()
    for axis, (window, stride, pad, base, apart) in enumerate(
        zip(*(step.params[n] for n in names), strict=True)
    ):
        if (window, stride, tuple(pad), base) != (1, 1, (0, 0), 1):
            reach = _full(reach, sizes[0], [axis])
            out = step.shapes[0].shape[axis]
            reach = _slide(reach, axis + 1, out, window, stride, pad[0], base, apart)
    return [reach]


def _slide(
    reach: Reach, axis: int, out: int, taps: int, stride: int, pad: int, base: int, apart: int
) -> Reach:
    """What a window that slides along an axis sees."""
    size = reach.shape[axis]
    found = np.zeros((*reach.shape[:axis], out, *reach.shape[axis + 1 :]), bool)
    for tap in range(taps):
        place = np.arange(out) * stride - pad + tap * apart
        real = (place >= 0) & (place <= (size - 1) * base) & (place % base == 0)
        at = (slice(None),) * axis + (np.flatnonzero(real),)
        found[at] |= np.take(reach, place[real] // base, axis)
    return found


def _broadcast(step: Step, reach: Reach, sizes: list) -> list[Reach | None]:
    shape = [1] * len(step.shapes[0].shape)
    for n, axis in enumerate(step.params["broadcast_dimensions"]):
        shape[axis] = reach.shape[n + 1]
    return [reach.reshape(len(reach), *shape)]


def _reshape(step: Step, reach: Reach, sizes: list) -> list[Reach | None]:
    if step.name == "reshape" and step.params["dimensions"] is not None:
        return [None]
    shape = step.shapes[0].shape
    long = lambda s: [n for n in s if n != 1]
    if long(sizes[0]) == long(shape):  # axes of one come and go
        rest = iter(n for n, size in zip(reach.shape[1:], sizes[0], strict=True) if size != 1)
        return [reach.reshape(len(reach), *(1 if n == 1 else next(rest) for n in shape))]
    return [_full(reach, sizes[0], range(len(sizes[0]))).reshape(len(reach), *shape)]


def _transpose(step: Step, reach: Reach, sizes: list) -> list[Reach | None]:
    return [reach.transpose(0, *(n + 1 for n in step.params["permutation"]))]


def _slice(step: Step, reach: Reach, sizes: list) -> list[Reach | None]:
    params, whole = step.params, slice(None)
    strides = params["strides"] or (1,) * len(sizes[0])
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    cuts = [whole if n == 1 else slice(*b) for n, b in zip(reach.shape[1:], bounds, strict=True)]
    return [reach[(whole, *cuts)]]


def _split(step: Step, reach: Reach, sizes: list) -> list[Reach | None]:
    axis = step.params["axis"]
    ends = np.cumsum(step.params["sizes"])[:-1]
    return list(np.split(_full(reach, sizes[0], [axis]), ends, axis + 1))


def _pad(step: Step, reach: Reach, sizes: list) -> list[Reach | None]:
    for axis, (low, high, between) in enumerate(step.params["padding_config"]):
        if (low, high, between) != (0, 0, 0):
            reach = _full(reach, sizes[0], [axis])
            out = step.shapes[0].shape[axis]
            reach = _slide(reach, axis + 1, out, 1, 1, low, between + 1, 1)
    return [reach]


def _reverse(step: Step, reach: Reach, sizes: list) -> list[Reach | None]:
    return [np.flip(reach, tuple(n + 1 for n in step.params["dimensions"]))]


def _reduce(step: Step, reach: Reach, sizes: list) -> list[Reach | None]:
    return [_any(reach, step.params["axes"])]


MOVES: Mapping[str, Callable[[Step, Reach, list], list[Any]]] = {
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "expand_dims": _reshape,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "squeeze": _reshape,
    "transpose": _transpose,
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(WINDOWS, _windows),
}
