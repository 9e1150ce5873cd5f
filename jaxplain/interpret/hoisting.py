"""A function in two: its first steps, which serve many inputs at once, and the rest.

Where many inputs are made of few pieces, the first steps of a network need not run for each of
them: what is affine in x is the sum of what the pieces give, and what only a few pieces reach is
the same in all inputs that share these. Which steps these are, shapes and primitives tell.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret import compat, dependence, walk
from jaxplain.interpret.compat import Program, Step
from jaxplain.interpret.patterns import alive
from jaxplain.interpret.reach import most, reached, shapes_of
from jaxplain.types import Array, PyTree

MOST_BYTES = 64 * 2**20  # of what is kept for all inputs of one example
LARGEST = 2**22  # groups times elements of x, and of what they reach
GAIN = 2  # products that are saved by one that is added; the pieces have to be paid for too
SELECT = 8  # products in the time of choosing one element

# Linear in all float operands together, with nothing else among these.
LINEAR = frozenset(
    """
    add add_any broadcast_in_dim concatenate copy copy_p cumsum expand_dims neg pad reduce_sum
    reduce_window_sum reshape rev slice split squeeze sub transpose
    """.split()
)
# Linear in one operand where none of the others depends on x: which ones that may be.
LINEAR_IN_ONE = {
    "mul": (0, 1),
    "dot_general": (0, 1),
    "conv_general_dilated": (0, 1),
    "div": (0,),
    "gather": (0,),
    "dynamic_slice": (0,),
}


class Halves(NamedTuple):
    """`f(x)` as `rest(x, first(x))`.

    Attributes:
        first: `x -> list of arrays`.
        rest: `(x, such a list) -> f(x)`; of x it computes what `first` does not give.
    """

    first: Callable[[PyTree], list[Array]]
    rest: Callable[[PyTree, list[Array]], Array]


class Local(NamedTuple):
    """Halves of f, and where what a group of inputs changes shows in what the first half gives.

    Letters: `M` groups.

    Attributes:
        first: `x -> list of arrays`.
        rest: such a list -> f(x).
        reach: of each value between them, `[M, ...]` bool, broadcastable to `[M, *shape]`: which
            elements depend on a group.
        colour: `[M]` whole numbers from 0: no element depends on two groups of one colour.
    """

    first: Callable[[PyTree], list[Array]]
    rest: Callable[[list[Array]], Array]
    reach: list[np.ndarray]
    colour: np.ndarray


def affine(fn: Callable[[PyTree], Array], x: PyTree, pieces: int, copies: int = 1) -> Halves | None:
    """f in two, the first half affine in x; None where that would not save products.

    With `pieces` inputs whose sum is x, `first` need run for these only. What it gives is chosen so
    that a sum over the pieces takes half the products of running it, or less, and in float32 or
    wider only.

    Args:
        fn: any function of one pytree of floats.
        x: the input, for its shapes.
        pieces: how many there are.
        copies: how many times what the pieces give is to be kept.
    """
    program = _program(fn, x)
    if program is None:
        return None
    shapes = shapes_of(program, _shapes(x))
    sums = _sums(program, x)
    read = {i for s in program.steps if sums.isdisjoint(s.outputs) for i in s.inputs}
    edge = [i for i in sorted(sums & (read | set(program.outputs))) if i not in program.inputs]
    steps = tuple(s for s in program.steps if not sums.isdisjoint(s.outputs))
    of_x = program._replace(steps=steps)  # the rest does not change from input to input
    cost = lambda at: _products(alive(of_x._replace(outputs=tuple(at))), shapes)
    size = {i: math.prod(shapes[i]) for i in edge}
    kept = [i for i in edge if cost([i]) >= GAIN * pieces * size[i]]
    # What makes the others runs again, and with it what they share with those kept.
    saved = cost(edge) - cost([i for i in edge if i not in kept])
    total = pieces * sum(size[i] for i in kept)
    if not kept or saved < GAIN * total or 8 * copies * total > MOST_BYTES:
        return None
    return _halves(program, x, kept)


def local(fn: Callable[[PyTree], Array], x: PyTree, groups: Sequence[np.ndarray]) -> Local | None:
    """f in two, such that groups of inputs reach few elements of what the first half gives.

    To know f without each group in turn, `first` need run but once for each colour. None where that
    would not save products.

    Args:
        fn: any function of one pytree of floats.
        x: the input, for its shapes.
        groups: for each leaf of x, `[M, ...]` bool, which of its elements a group holds.
    """
    many = len(groups[0])
    if many < 2 or sum(g.size for g in groups) > LARGEST:
        return None
    program = _program(fn, x)
    if program is None:
        return None
    shapes = shapes_of(program, _shapes(x))
    reach = reached(program, shapes, groups)
    crowd = {i: most(r) for i, r in reach.items()}
    best, edge = 0, []
    for limit in sorted({n for n in crowd.values() if n < many}):
        inside = {i for i, n in crowd.items() if n <= limit}
        at, products = _edge(program, reach, inside, shapes)
        moved = sum(math.prod(shapes[i]) for i in at)
        gain = (many - limit) * products - SELECT * many * moved
        if gain > 0 and gain >= best and 8 * limit * moved <= MOST_BYTES:
            best, edge = gain, at
    if not edge or sum(reach[i].size for i in edge) > LARGEST:
        return None
    colour = _colours([reach[i] for i in edge])
    if 2 * (colour.max() + 1) > many:
        return None
    first, rest = _halves(program, x, edge)
    # All of x that the rest reads is between them.
    return Local(first, lambda held: rest(x, held), [reach[i] for i in edge], colour)


def _program(fn: Callable[[PyTree], Array], x: PyTree) -> Program | None:
    """As traced; None where walking it would lose anything."""
    leaves, tree = jax.tree.flatten(x)
    # A new function every time: traces are cached by function, with what it closes over.
    traced = jax.make_jaxpr(lambda *leaves: fn(tree.unflatten(leaves)))(*leaves)
    if not compat.is_inlined_freely(traced):
        return None
    return compat.program(traced, walk.whole_with_rule)


def _shapes(x: PyTree) -> list[tuple[int, ...]]:
    return [tuple(v.shape) for v in jax.tree.leaves(x)]


def _halves(program: Program, x: PyTree, at: list[int]) -> Halves:
    """The program up to those values, and from there."""
    tree = jax.tree.structure(x)
    first = alive(program._replace(outputs=tuple(at)))
    rest = alive(program._replace(inputs=(*program.inputs, *at)))

    def end(x: PyTree, held: list[Array]) -> Array:
        assert jax.tree.structure(x) == tree
        return walk.run(rest, [*jax.tree.leaves(x), *held])[0]

    return Halves(lambda x: walk.run(first, jax.tree.leaves(x)), end)


def _sums(program: Program, x: PyTree) -> set[int]:
    """Numbers of the values that are affine in x and depend on it, in floats wide enough."""
    found = {i for i, v in zip(program.inputs, jax.tree.leaves(x), strict=True) if _wide(v)}
    dependent = dependence.signal(program, _flags(program))
    for step in program.steps:
        reads = [n for n, i in enumerate(step.inputs) if i in dependent]
        sums = reads and all(step.inputs[n] in found for n in reads)
        if sums and all(map(_wide, step.shapes)) and _is_linear(step, reads):
            found |= set(step.outputs)
    return found


def _wide(value: Any) -> bool:
    return value.dtype in (jnp.float32, jnp.float64)


def _flags(program: Program) -> list[bool]:
    return [True] * len(program.inputs)


def _is_linear(step: Step, reads: list[int]) -> bool:
    """In the operands that depend on x, the others being constants."""
    if step.inner is not None:
        return False
    if step.name == "convert_element_type":
        return step.params["new_dtype"] == jnp.float64  # to a narrower one it rounds
    if step.name == "select_n":
        return 0 not in reads
    return step.name in LINEAR or (len(reads) == 1 and reads[0] in LINEAR_IN_ONE.get(step.name, ()))


def _edge(
    program: Program,
    reached: Collection[int],
    inside: Collection[int],
    shapes: Mapping[int, tuple[int, ...]],
) -> tuple[list[int], int]:
    """The values of a region that are read outside of it, and how many products it makes."""
    made = {i for i in program.inputs if i in inside}
    steps, read = [], set(program.outputs)
    for step in program.steps:
        reads = [i for i in step.inputs if i in reached]
        if reads and made.issuperset(reads) and set(step.outputs) <= set(inside):
            steps.append(step)
            made |= set(step.outputs)
        else:
            read |= set(reads)
    return sorted(made & read), _products(program._replace(steps=tuple(steps)), shapes)


def _products(program: Program, shapes: Mapping[int, tuple[int, ...]]) -> int:
    """Multiply-adds of the matrix products and convolutions."""
    total = 0
    for step in program.steps:
        if step.name == "dot_general":
            (summed, _), _ = step.params["dimension_numbers"]
            total += step.shapes[0].size * math.prod(shapes[step.inputs[0]][n] for n in summed)
        elif step.name == "conv_general_dilated":
            kernel = shapes[step.inputs[1]]
            out = kernel[step.params["dimension_numbers"].rhs_spec[0]]
            total += step.shapes[0].size * math.prod(kernel) // max(out, 1)
    return total


def _colours(reach: list[np.ndarray]) -> np.ndarray:
    """Few colours, such that no element is reached by two groups of one (Curtis, Powell, Reid)."""
    many = len(reach[0])
    meet = np.zeros((many, many), bool)
    for each in reach:
        flat = each.reshape(many, -1).astype(np.float32)
        meet |= flat @ flat.T > 0
    colour = np.full(many, -1)
    for group in range(many):
        taken = set(colour[meet[group]])
        colour[group] = next(n for n in range(many) if n not in taken)
    return colour
