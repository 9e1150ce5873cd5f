"""What in a program depends on the signal, and what is zero, without computing anything."""

from collections.abc import Callable, Collection, Iterable

import jax.numpy as jnp

from jaxplain.interpret import compat, rules
from jaxplain.interpret.compat import Program, Step
from jaxplain.types import PyTree


def depends(fn: Callable[[PyTree], PyTree], x: PyTree) -> bool:
    """Whether anything that `fn` returns is computed from x, by its program and not by its values.

    A loop, a branch or a call counts as computing all its results from all its operands.
    """
    program, _ = compat.trace(fn, (x,), lambda *_: True)
    reached = signal(program, [True] * len(program.inputs))
    return not reached.isdisjoint(program.outputs)


def signal(program: Program, touched: Collection[bool]) -> set[int]:
    """Numbers of the values that depend on the touched inputs in any way, integers included."""
    found = {i for i, flag in zip(program.inputs, touched, strict=True) if flag}
    for step in program.steps:
        if step.name != "hold" and not found.isdisjoint(step.inputs):
            found |= set(step.outputs)
    return found


def lifted(program: Program, touched: Collection[bool]) -> list[bool]:
    """For each output, whether it is a float that depends on a touched input.

    As the rules see it: comparisons and integers carry no signal on.
    """
    found = {i for i, flag in zip(program.inputs, touched, strict=True) if flag}
    for step in program.steps:
        reads = [i in found for i in step.inputs]
        if not any(reads) or step.name == "hold":
            continue
        flags = [True] * len(step.outputs)
        if step.name == "scan" and step.inner is not None:
            flags = scan_lifts(step, reads)[1]
        elif step.name == "cond":
            inner = [lifted(branch, reads[1:]) for branch in step.branches]
            flags = [any(each) for each in zip(*inner, strict=True)]
        elif step.name == "checkpoint" and step.inner is not None:
            flags = lifted(step.inner, reads)
        found |= {
            out
            for out, shape, flag in zip(step.outputs, step.shapes, flags, strict=True)
            if flag and jnp.issubdtype(shape.dtype, jnp.inexact)
        }
    return [i in found for i in program.outputs]


def scan_lifts(step: Step, reads: list[bool]) -> tuple[list[bool], list[bool]]:
    """Which carries of a scan, and which of its results, come to depend on the signal."""
    assert step.inner is not None
    constants, carries = step.params["counts"]
    held, rest = reads[:constants], reads[constants + carries :]
    carry = reads[constants : constants + carries]
    while True:  # grows, so at most as many rounds as carries
        out = lifted(step.inner, [*held, *carry, *rest])
        grown = [a or b for a, b in zip(carry, out[:carries], strict=True)]
        if grown == carry:
            return carry, [*carry, *out[carries:]]
        carry = grown


def zeros(program: Program, zero_inputs: Iterable[int] = ()) -> set[int]:
    """Numbers of the values known to be zero, without computing any."""
    found = set(zero_inputs)
    for number, constant in program.constants.items():
        if jnp.ndim(constant) == 0 and not compat.is_traced(constant):
            if jnp.issubdtype(jnp.result_type(constant), jnp.number) and constant == 0:
                found.add(number)
    for step in program.steps:
        if step_is_zero(step, [i in found for i in step.inputs]):
            found |= set(step.outputs)
    return found


def step_is_zero(step: Step, zero: list[bool]) -> bool:
    """Whether the step gives zeros where the marked operands are zero."""
    if step.inner is not None and step.name not in ("scan", "checkpoint"):
        inside = zip(step.inner.inputs, zero, strict=True)
        known = zeros(step.inner, [i for i, z in inside if z])
        return all(i in known for i in step.inner.outputs)
    if step.name in rules.ABSORBS_ZERO:
        return any(zero)
    if step.name == "div":
        return zero[0]
    if step.name == "integer_pow":
        return zero[0] and step.params["y"] > 0
    if step.name == "select_n":
        return all(zero[1:])
    if step.name in ("gather", "dynamic_slice"):
        return zero[0]
    return step.name in rules.KEEPS_ZERO and all(zero)
