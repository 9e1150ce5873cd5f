"""Finds the affine steps of a program, and makes one step of each, however it is written.

A convolution, its bias and the BatchNorm after it are one affine map, `y = scale * core(x, W) +
offset`, in whatever order a library multiplies and adds its constants. Rules that tell positive
weights from negative ones need all of it at once: a weight that BatchNorm turns around is negative.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxplain.interpret import patterns, walk
from jaxplain.interpret.compat import Program, Step
from jaxplain.types import Array

CORES = ("dot_general", "conv_general_dilated")
SCALING = ("mul", "div", "neg", "sub")  # sub may turn the sign
ADDING = ("add", "add_any", "sub")
ARITHMETIC = frozenset((*SCALING, *ADDING))
# Moves every element somewhere, and copies none.
RELAYOUT = patterns.MOVES | {"transpose", "copy_p", "reduce_precision", "rev"}


class Affine(NamedTuple):
    """An affine map `x -> scale * core(x, weight) + offset`, in the layout of what the core makes.

    Attributes:
        core: `(x, weights) -> z`, linear in each.
        weight: what x is multiplied with; of a product by elements, all factors together.
        scale: `z`'s shape, factors that come after; None for ones.
        offset: `z`'s shape, what is added, after the scale; None for zeros.
        aligned: a value of the step's output, such as its relevance, in the layout of `z`.
    """

    core: Callable[[Array, Array], Array]
    weight: Array
    scale: Array | None
    offset: Array | None
    aligned: Callable[[Array], Array]

    def weighted(self, x: Array, up: float, down: float) -> Array:
        """What x adds, with weights that are positive `up` times, and negative ones `down` times.

        A weight's sign is that of its product with the scale.
        """
        if up == down:
            z = self.core(x, self.weight if up == 1 else up * self.weight)
            return z if self.scale is None else self.scale * z
        above, below = jnp.maximum(self.weight, 0), jnp.minimum(self.weight, 0)
        z = self.core(x, up * above + down * below)
        if self.scale is None:
            return z
        turned = self.core(x, down * above + up * below)
        return jnp.maximum(self.scale, 0) * z + jnp.minimum(self.scale, 0) * turned

    def squared(self, x: Array) -> Array:
        """What x would add by squares of the weights, their scale included."""
        z = self.core(x, self.weight**2)
        return z if self.scale is None else self.scale**2 * z

    def flat(self, x: Array) -> Array:
        """What x would add if all weights were 1."""
        return self.core(x, jnp.ones_like(self.weight))


class Chain(NamedTuple):
    """The steps that an affine step was made of.

    Attributes:
        core: the product with weights that it starts with; None if all is by elements.
        root: number of the value that it is a function of.
        start: number of what the core makes; the root if there is none.
        shape: of what the core makes, with dtype.
        after: the rest.
        scales: whether constants multiply in `after`.
        adds: whether constants are added.
    """

    core: Step | None
    root: int
    start: int
    shape: jax.ShapeDtypeStruct
    after: tuple[Step, ...]
    scales: bool
    adds: bool


def chain_of(step: Step) -> Chain | None:
    """What an affine step was made of; None for any other step."""
    found = step.params.get("affine")
    return found if isinstance(found, Chain) else None


def grouped(
    program: Program,
    active: Collection[int],
    alone: Collection[str],
    scope: Callable[[Step], frozenset[str]],
) -> Program:
    """The program with one step in place of each affine map of one active value.

    Args:
        program: as traced, or with patterns grouped.
        active: numbers of the values that carry a signal.
        alone: names of primitives that stay apart: those with a rule of their own.
        scope: names of what a step is in; a map goes on while it is in nothing else than its start.
    """
    readers: dict[int, list[Step]] = {number: [] for number in active}
    for step in program.steps:
        for i in step.inputs:
            if i in readers:
                readers[i].append(step)
    outside = set(program.outputs)
    whole: dict[int, Step] = {}  # by the place of the last step
    gone: set[int] = set()
    place = {id(step): n for n, step in enumerate(program.steps)}
    for n, step in enumerate(program.steps):
        if n in gone or not _starts(step, active, alone):
            continue
        chain = [step]
        while len(after := readers[chain[-1].outputs[0]]) == 1:
            if chain[-1].outputs[0] in outside or not _continues(after[0], chain[-1], active):
                break
            if after[0].name in alone or not scope(after[0]) <= scope(step):
                break
            chain.append(after[0])
        while chain[-1].name in RELAYOUT:
            chain.pop()
        places = [place[id(s)] for s in chain]
        gone |= set(places)
        whole[places[-1]] = _one(program, chain, active)
    steps = [whole.get(n, step) for n, step in enumerate(program.steps)]
    return program._replace(
        steps=tuple(s for n, s in enumerate(steps) if n in whole or n not in gone)
    )


def _reads(step: Step, active: Collection[int]) -> list[int]:
    return [n for n, i in enumerate(step.inputs) if i in active]


def _starts(step: Step, active: Collection[int], alone: Collection[str]) -> bool:
    if step.inner is not None or len(step.outputs) != 1 or step.outputs[0] not in active:
        return False
    if len(_reads(step, active)) != 1:
        return False
    return step.name in CORES or (step.name not in alone and _is_arithmetic(step, active))


def _is_arithmetic(step: Step, active: Collection[int]) -> bool:
    if step.name == "div":  # by a constant
        return _reads(step, active) == [0]
    return step.name in ARITHMETIC and len(_reads(step, active)) == 1


def _continues(step: Step, before: Step, active: Collection[int]) -> bool:
    """Whether it goes on with the map, element by element."""
    if step.inner is not None or len(step.outputs) != 1 or step.outputs[0] not in active:
        return False
    same_size = step.shapes[0].size == before.shapes[0].size
    if step.name in RELAYOUT:
        return same_size
    return _is_arithmetic(step, active) and step.shapes[0].shape == before.shapes[0].shape


def _one(program: Program, chain: list[Step], active: Collection[int]) -> Step:
    first, last = chain[0], chain[-1]
    core = first if first.name in CORES else None
    (root,) = (i for i in first.inputs if i in active)
    made = {i for s in chain for i in s.outputs}
    reads = [i for s in chain for i in s.inputs if i not in made and i != root]
    reads = list(dict.fromkeys(reads))
    inner = Program(
        (root, *(i for i in reads if i not in program.constants)),
        {i: program.constants[i] for i in reads if i in program.constants},
        tuple(chain),
        last.outputs,
    )
    after = tuple(chain[1:] if core else chain)
    names = {s.name for s in after}
    turned = any(s.name == "sub" and s.inputs[0] not in {root, *made} for s in after)
    params = {
        "affine": Chain(
            core,
            root,
            first.outputs[0] if core else root,
            jax.ShapeDtypeStruct(first.shapes[0].shape, first.shapes[0].dtype),
            after,
            turned or not names.isdisjoint(("mul", "div", "neg")),
            not names.isdisjoint(ADDING),
        )
    }
    return Step(
        first.name,
        first.path,
        params,
        inner.inputs,
        last.outputs,
        last.shapes,
        lambda values: walk.run(inner, values),
        inner,
    )


def unfolded(step: Step, operands: list) -> Affine:
    """The map that an affine step is, its constants being known; `operands` are the step's."""
    chain, inner = chain_of(step), step.inner
    assert chain is not None and inner is not None
    known = dict(inner.constants) | dict(zip(inner.inputs, operands, strict=True))
    zeros = jnp.zeros(chain.shape.shape, chain.shape.dtype)

    def through(z: Array, only_moves: bool) -> Array:
        values = known | {chain.start: z}
        for each in chain.after:
            signal = next(i for i in each.inputs if i == chain.start or i in moving)
            if only_moves and each.name in ARITHMETIC:
                values[each.outputs[0]] = values[signal]
            else:
                values |= zip(each.outputs, each.run([values[i] for i in each.inputs]), strict=True)
        return values[chain.after[-1].outputs[0]] if chain.after else z

    moving = {i for each in chain.after for i in each.outputs}
    moves, back = jax.vjp(lambda z: through(z, True), zeros)
    aligned = lambda value: back(value.astype(moves.dtype))[0]
    scale = offset = None
    if chain.scales:
        (scale,) = jax.vjp(lambda z: through(z, False), zeros)[1](jnp.ones_like(moves))
    if chain.adds:
        offset = aligned(through(zeros, False))
    if chain.core is None:
        weight = jnp.ones_like(zeros) if scale is None else scale
        core = lambda x, w: jnp.broadcast_to(x, w.shape) * w
        return Affine(core, weight, None, offset, aligned)
    made_by = chain.core
    position = made_by.inputs.index(chain.root)
    weight = known[made_by.inputs[1 - position]]
    if position == 0:
        core = lambda x, w: made_by.run([x, w])[0]
    else:
        core = lambda x, w: made_by.run([w, x])[0]
    return Affine(core, weight, scale, offset, aligned)
