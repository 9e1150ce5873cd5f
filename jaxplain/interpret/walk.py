"""The evaluator: steps in order, loops and branches rebuilt with what their values have become.

Values may be any pytrees: a family of rules lifts arrays to tuples of arrays, and `lax.scan` and
`lax.switch` carry those as they are.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxplain.interpret import compat
from jaxplain.interpret.compat import Program, Step
from jaxplain.types import PyTree

Apply = Callable[[Step, list], list]


def evaluate(program: Program, values: list, apply: Apply) -> list:
    """The results of `program` on `values`; `apply(step, operands)` gives a step's outputs."""
    known = dict(program.constants)
    known |= zip(program.inputs, values, strict=True)
    for step in program.steps:
        known |= zip(step.outputs, apply(step, [known[i] for i in step.inputs]), strict=True)
    return [known[i] for i in program.outputs]


def scan(step: Step, operands: list, body: Callable[[list], list], carry: Callable) -> list:
    """A `scan` over other values.

    Args:
        step: the scan.
        operands: its constants, carry and inputs, as pytrees.
        body: the loop's body on lists of such values.
        carry: `list of carries -> list of carries`, which gives a carry one type for all rounds.
    """
    constants, carries = step.params["counts"]
    held = operands[:constants]
    start = carry(operands[constants : constants + carries])

    def once(state, sliced):
        out = body([*held, *state, *sliced])
        return carry(out[:carries]), out[carries:]

    length, reverse, unroll = (step.params[name] for name in ("length", "reverse", "unroll"))
    end, stacked = lax.scan(
        once, start, operands[constants + carries :], length, reverse=reverse, unroll=unroll
    )
    return [*end, *stacked]


def cond(step: Step, operands: list, branch: Callable[[Program, list], list]) -> list:
    """A `cond` over other values; its first operand, the index of the branch, is a plain array."""
    index, *rest = operands
    return lax.switch(
        index, [lambda values, inner=inner: branch(inner, values) for inner in step.branches], rest
    )


def checkpoint(step: Step, operands: list, inside: Callable[[list], list]) -> list:
    """A `jax.checkpoint` over other values."""
    given = {name: step.params.get(name) for name in ("policy", "prevent_cse")}
    kept: Any = jax.checkpoint(inside, **{k: v for k, v in given.items() if v is not None})
    return kept(operands)


def run(program: Program, values: list) -> list:
    """The results on plain arrays."""
    return evaluate(program, values, lambda step, operands: step.run(operands))


def whole_with_rule(name: str, inner: Program, ruled: bool, marked: bool) -> bool:
    """Keep the calls whose derivative rule inlining would lose."""
    return ruled


def identity(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function, walked step by step: calls inlined, loops and branches rebuilt.

    It shows that what the rules stand on changes nothing: values, gradients and batches of the
    result equal those of `fn`.
    """

    def inside(program: Program, values: list) -> list:
        return evaluate(program, values, apply)

    def apply(step: Step, operands: list) -> list:
        if step.name == "scan" and step.inner is not None:
            inner = step.inner
            return scan(step, operands, lambda values: inside(inner, values), lambda c: c)
        if step.name == "cond":
            return cond(step, operands, inside)
        if step.name == "checkpoint" and step.inner is not None:
            inner = step.inner
            return checkpoint(step, operands, lambda values: inside(inner, values))
        return step.run(operands)

    def walked(*args: Any) -> PyTree:
        program, tree = compat.trace(fn, args, whole_with_rule)
        return jax.tree.unflatten(tree, inside(program, jax.tree.leaves(args)))

    return walked
