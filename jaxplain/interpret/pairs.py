"""Forward rules over pairs: each value at x and at a reference, and its change between the two.

The change is kept as a linear function of x's own, equal to the difference of the two values at
every step. So the derivative of f's change by x's are multipliers that leave nothing of
f(x) - f(reference) out, whatever the rules are.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxplain.interpret import dependence, patterns, rules, walk
from jaxplain.interpret.compat import Program, Step, trace
from jaxplain.interpret.parts import MissingRule, Operation
from jaxplain.types import Array, JaxplainError, PyTree


class Pair(NamedTuple):
    """A value at x and at the reference.

    Attributes:
        value: at x.
        reference: at the reference.
        change: `value - reference` as a linear function of x's change; None of whole numbers and
            truth values, which do not change by degrees.
    """

    value: Array
    reference: Array
    change: Any  # an Array, or None


# `(operation, *operands) -> Pair`, or a list of one for each output: operands are pairs, or arrays
# that do not depend on x.
Rule: TypeAlias = Callable[..., Any]
Rules: TypeAlias = Mapping[str, Rule]
# `(step, name in the table, run, operands, outputs) -> outputs`, `run(operands)` being the rule.
Watch: TypeAlias = Callable[[Step, str, Callable[[list], list], list, list], list]


class _Walk(NamedTuple):
    """The table, what looks on at each step that it has a rule for, patterns of paths met."""

    rules: Rules
    watch: "Watch | None"
    met: set[str]


CLASSES = frozenset({"elementwise", "product", "quotient", "softmax", "maximum"})
_AFFINE = ("structure", "mixing", "sum", "convert", "bilinear", "quotient")
_MAXIMA = ("max", "min", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min")
_OPAQUE = {
    "while": "write it as jax.lax.scan, or as fori_loop with bounds that are known while tracing",
    "shard_map": "explain inside of it instead",
    "pallas_call": "write it in jax.numpy, or give a rule, rules={**rules, 'pallas_call': rule}",
}


def differences(
    f: Callable[..., PyTree],
    x: PyTree,
    reference: PyTree,
    change: PyTree,
    rules: Rules,
    watch: Watch | None = None,
) -> PyTree:
    """`f` at x and at the reference: a tree like f's output, of `Pair`s.

    Args:
        change: x's tree, `x - reference`, in which the changes of the result are linear.
        watch: gets what each rule of the table was given and made, and may change that.
    """
    program, tree = trace(f, (x,), _whole(rules))
    values = [
        Pair(*each)
        for each in zip(*(jax.tree.leaves(v) for v in (x, reference, change)), strict=True)
    ]
    walking = _Walk(rules, watch, set())
    out = [_paired(v) for v in _forward(program, values, walking)]
    if unmet := {key for key in rules if "/" in key} - walking.met:
        raise JaxplainError(f"no module on the way from x fits {', '.join(sorted(unmet))}")
    return jax.tree.unflatten(tree, out)


def _whole(table: Rules) -> Callable[[str, Program, bool, bool], bool]:
    """Calls to keep: those that the table names, and functions of one element with a derivative."""

    def whole(name: str, inner: Program, ruled: bool, marked: bool) -> bool:
        if name in table and (marked or name not in CLASSES):
            return True
        pointwise = all(step.name in patterns.POINTWISE_CALLS for step in inner.steps)
        return ruled and pointwise and len(inner.inputs) == 1 == len(inner.outputs)

    return whole


def _paired(value: Any) -> Pair:
    if isinstance(value, Pair):
        return value
    value = jnp.asarray(value)
    return Pair(value, value, jnp.zeros_like(value) if _is_float(value) else None)


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def at_x(value: Any) -> Array:
    return value.value if isinstance(value, Pair) else value


def at_reference(value: Any) -> Array:
    return value.reference if isinstance(value, Pair) else value


def _forward(program: Program, values: list, walking: _Walk) -> list:
    touched = [isinstance(v, Pair) for v in values]
    if not any(touched):
        return walk.run(program, values)
    table = walking.rules
    program = patterns.group(program, touched, table.keys(), walking.met)

    def apply(step: Step, operands: list) -> list:
        if not any(isinstance(v, Pair) for v in operands):
            return step.run(operands)
        if step.name in _CONTROL and step.name not in table:
            return _CONTROL[step.name](step, operands, walking)
        return _apply(step, operands, walking)

    return walk.evaluate(program, values, apply)


def refuse(step: Step, hint: str) -> None:
    where = f" in {step.path}" if step.path else ""
    raise MissingRule(f"no rule for {step.name}{where}: {hint}")


def _apply(step: Step, operands: list, walking: _Walk) -> list:
    table = walking.rules
    if step.name in table:
        return _ruled(step.name, step, operands, walking)
    if step.name in _OPAQUE:
        refuse(step, _OPAQUE[step.name])
    if step.name == "stop_gradient":  # its value changes all the same
        return operands
    if not any(_is_float(shape) for shape in step.shapes):
        return _held(step, operands)
    lifted = [n for n, v in enumerate(operands) if isinstance(v, Pair)]
    if any(operands[n].change is None for n in lifted):
        refuse(
            step,
            "it goes by a comparison or a whole number that depends on x, which does not change "
            "by degrees: mark the function of one value that it is part of with jaxplain.named "
            f"and give it a rule, or give one for {step.name!r}, rules={{**rules, {step.name!r}: "
            "rule}",
        )
    kind = _kind(step, lifted)
    if kind == "affine":
        return _affine(step, operands, lifted)
    if kind not in table:
        refuse(step, f"add one with rules={{**rules, {step.name!r}: rule}}")
    return _ruled(kind, step, operands, walking)


def _kind(step: Step, lifted: list[int]) -> str:
    """Which class of rules a step is of, by which of its operands are pairs; "" for none."""
    name, kind = step.name, rules.CLASSES.get(step.name, "")
    if name in ("elementwise", "softmax") and step.inner is not None:
        return name
    if name in _MAXIMA and (len(lifted) > 1 or name not in ("max", "min")):
        return "maximum"
    if kind in ("bilinear", "quotient") and len(lifted) > 1:
        return "product" if kind == "bilinear" else "quotient"
    if kind in _AFFINE and (kind != "quotient" or lifted == [0]):
        return "affine"
    pointwise = step.inner is not None or name in rules.POINTWISE or kind == "quotient"
    complex_ = any(jnp.issubdtype(shape.dtype, jnp.complexfloating) for shape in step.shapes)
    return "elementwise" if pointwise and len(lifted) == 1 and not complex_ else ""


def _ruled(kind: str, step: Step, operands: list, walking: _Walk) -> list:
    params = step.params
    if step.name == "softmax" and step.inner is not None:
        axes = [s.params["axes"] for s in step.inner.steps if s.name == "reduce_sum"]
        if not axes:
            refuse(
                step, "it has no sum over its scores: mark it by another name and give it a rule"
            )
        params = {"axes": axes[0]}
    operation = Operation(step.name, step.path, params, step.run)

    def run(operands: list) -> list:
        out = walking.rules[kind](operation, *operands)
        return list(out) if isinstance(out, list) else [out]

    out = run(operands)
    return out if walking.watch is None else walking.watch(step, kind, run, operands, out)


def _held(step: Step, operands: list) -> list:
    """Whole numbers and truth values, at x and at the reference."""
    at = [step.run([side(v) for v in operands]) for side in (at_x, at_reference)]
    return [Pair(value, reference, None) for value, reference in zip(*at, strict=True)]


def _affine(step: Step, operands: list, lifted: list[int]) -> list:
    """What is linear in all operands that are pairs, together: so is the change."""

    def run(values: list) -> list:
        given = dict(zip(lifted, values, strict=True))
        return step.run([given.get(n, v) for n, v in enumerate(operands)])

    pairs = [operands[n] for n in lifted]
    values, changes = jax.jvp(run, ([p.value for p in pairs],), ([p.change for p in pairs],))
    references = run([p.reference for p in pairs])
    return [Pair(*each) for each in zip(values, references, changes, strict=True)]


def _scan(step: Step, operands: list, walking: _Walk) -> list:
    assert step.inner is not None
    inner = step.inner
    reads = [isinstance(v, Pair) and v.change is not None for v in operands]
    changing = dependence.scan_lifts(step, reads)[0]

    def carry(values: list) -> list:
        for value, lift in zip(values, changing, strict=True):
            if isinstance(value, Pair) and not lift:
                refuse(step, "it carries a whole number or truth value that depends on x")
        return [_paired(v) if lift else v for v, lift in zip(values, changing, strict=True)]

    return walk.scan(step, operands, lambda values: _forward(inner, values, walking), carry)


def _cond(step: Step, operands: list, walking: _Walk) -> list:
    if isinstance(operands[0], Pair):
        refuse(
            step,
            "which branch is taken depends on x, and need not be the one taken at the baseline: "
            "explain one branch, or write jnp.where of a function of one value",
        )
    reads = [isinstance(v, Pair) for v in operands[1:]]
    flags = [dependence.lifted(branch, reads) for branch in step.branches]
    lift = [any(each) for each in zip(*flags, strict=True)]

    def branch(inner: Program, values: list) -> list:
        out = _forward(inner, values, walking)
        return [_paired(v) if flag else v for v, flag in zip(out, lift, strict=True)]

    return walk.cond(step, operands, branch)


def _checkpoint(step: Step, operands: list, walking: _Walk) -> list:
    assert step.inner is not None
    inner = step.inner
    return walk.checkpoint(step, operands, lambda values: _forward(inner, values, walking))


_CONTROL: Mapping[str, Callable[..., list]] = {
    "scan": _scan,
    "cond": _cond,
    "checkpoint": _checkpoint,
}
