"""Forward rules over lifted values: each value as its relevant part and its total.

The total does not depend on which part is relevant, so `vmap` over many groups computes it once; a
group then costs its relevant part. What is compared, picked or divided by comes from the total.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxplain.interpret import dependence, patterns, rules, walk
from jaxplain.interpret.compat import Program, Step, is_traced, trace
from jaxplain.interpret.linear import BUILT_IN, switch, total_of
from jaxplain.interpret.parts import (
    Missing,
    MissingRule,
    NoRule,
    Operation,
    Parts,
    Rules,
    Value,
    apart,
    settle,
    splits_early,
)
from jaxplain.types import Array, JaxplainError, PyTree

# Names that tables have for more than one primitive, and for no operation at all.
SETTINGS = frozenset({"bias", "bias_at", "bias_product", "size"})
KINDS = SETTINGS | {
    *("elementwise", "product", "gate", "softmax", "normalization", "switch", "normalizer", "hold")
}
# What has no value for some numbers.
PARTIAL_OR_DIV = rules.PARTIAL | {"div", "integer_pow"}


class _Walk(NamedTuple):
    """One evaluation: the table, what to do where it has no rule (raise, or note and go on), and
    the patterns of module paths that have been met."""

    rules: Rules
    missing: Callable[[Step, str], None]
    met: set[str]


def decompose(
    f: Callable[..., PyTree],
    x: PyTree,
    relevant: PyTree,
    member: PyTree | None,
    size: Array,
    rules: Rules,
    missing: Callable[[Step, str], None],
) -> PyTree:
    """`f(x)` in parts: a tree like f's output, of `Parts` with no constants left apart.

    Args:
        relevant: x's tree, the part of x that is relevant.
        member: x's tree, or None.
        size: `[]` how much of x is relevant, 0 to 1.
        missing: called where the table has no rule; raises, or returns to go on with all held.
    """
    if "bias" not in rules:
        raise JaxplainError(
            "rules does not say how constants are split: start from a table, as in "
            "{**jaxplain.CD_SHAPLEY, 'erf': rule}"
        )
    program, tree = trace(f, (x,), _whole(rules))
    members = [None] * len(program.inputs) if member is None else jax.tree.leaves(member)
    values = [
        Parts(part, total, None, m)
        for part, total, m in zip(
            jax.tree.leaves(relevant), jax.tree.leaves(x), members, strict=True
        )
    ]
    walking = _Walk({**rules, "size": size}, missing, set())
    out = _forward(program, values, walking)
    if unmet := {key for key in rules if "/" in key} - walking.met:
        raise JaxplainError(
            f"no module that the signal goes through fits {', '.join(sorted(unmet))}: paths look "
            f"like {_some_path(program)}"
        )
    return jax.tree.unflatten(tree, [_settled(v, walking.rules) for v in out])


def _some_path(program: Program) -> str:
    """The longest module path in a program, as an example."""
    return max((step.path for step in program.steps), key=len, default="") or (
        "those of jax.named_scope, of which f has none"
    )


def refuse(step: Step, hint: str) -> None:
    """Raise for a step without a rule."""
    where = f" in {step.path}" if step.path else ""
    raise MissingRule(f"no rule for {step.name}{where}: {hint}")


def _whole(table: Rules) -> Callable[[str, Program, bool, bool], bool]:
    """Calls to keep: those that the table names, and activations with a derivative rule.

    A call that merely has the name of a class of operations, such as "gate", is none of it.
    """

    def whole(name: str, inner: Program, ruled: bool, marked: bool) -> bool:
        if name in table and (marked or name not in KINDS):
            return name not in SETTINGS
        pointwise = all(step.name in patterns.POINTWISE_CALLS for step in inner.steps)
        return ruled and pointwise and len(inner.inputs) == 1 == len(inner.outputs)

    return whole


def _settled(value: Value, rules: Rules) -> Parts:
    """`relevant` and `total` alone, which every branch and every round of a loop agree on."""
    if not isinstance(value, Parts):
        value = jnp.asarray(value)
        return Parts(jnp.zeros_like(value), value)
    value = settle(value, rules)
    return Parts(value.relevant, value.signal)


def _forward(program: Program, values: list, walking: _Walk, regroup: bool = True) -> list:
    touched = [isinstance(v, Parts) for v in values]
    if not any(touched):
        return walk.run(program, values)
    if regroup:
        program = patterns.group(program, touched, walking.rules.keys(), walking.met)
    zero = dependence.zeros(program)
    gates = patterns.output_gates(program, touched) if "gate" in walking.rules else {}
    pending: dict[int, str] = {}  # where the constants that are still apart were added
    known = dict(program.constants) | dict(zip(program.inputs, values, strict=True))
    split = splits_early(walking.rules)

    for step in program.steps:
        operands = [known[i] for i in step.inputs]
        if not any(isinstance(v, Parts) for v in operands):
            known |= zip(step.outputs, step.run(operands), strict=True)
            continue
        if split:  # the constants of one module are split at its end
            operands = [
                settle(v, walking.rules) if pending.get(i, step.path) != step.path else v
                for i, v in zip(step.inputs, operands, strict=True)
            ]
        out = _apply(step, operands, [i in zero for i in step.inputs], gates, walking)
        for i, shape, value in zip(step.outputs, step.shapes, out, strict=True):
            if isinstance(value, Parts) and value.bias is not None:
                pending[i] = step.path
            if isinstance(value, Parts) and not jnp.issubdtype(shape.dtype, jnp.inexact):
                value = value.total
            known[i] = value
    return [known[i] for i in program.outputs]


def _apply(step: Step, operands: list, zero: list[bool], gates: dict, walking: _Walk) -> list:
    """The step's outputs, in parts."""
    table = walking.rules
    lifted = [n for n, v in enumerate(operands) if isinstance(v, Parts)]
    if step.name in CONTROL and step.name not in table:
        return CONTROL[step.name](step, operands, zero, walking)
    if step.name in ("while", "shard_map", "pallas_call") and step.name not in table:
        return _nothing(step, operands, walking, _hint(step))

    kind = step.name if step.name in table else rules.CLASSES.get(step.name, "")
    if kind == "elementwise" and step.params.get("y", 1) < 0:  # integer_pow: one over a power
        kind = "normalizer"
    if step.name not in table and step.inner is not None:
        kind = "elementwise"  # a call kept whole for its derivative rule
    inner = step.inner

    def inside(changed: Rules, values: list) -> list:
        assert inner is not None
        own = walking._replace(rules={**table, **changed})
        return _forward(inner, values, own, regroup=False)

    operation = Operation(
        step.name,
        step.path,
        step.params,
        step.run,
        False,
        gates.get(step.outputs[0]) if step.outputs else None,
        inside if inner else None,
    )
    if kind == step.name and kind not in ("elementwise", "softmax", "normalization", "hold"):
        if kind not in BUILT_IN:
            return _listed(_user(table[kind], operation, operands, lifted, step, table))
    if kind in BUILT_IN:
        try:
            return _listed(BUILT_IN[kind](operation, operands, zero, table))
        except NoRule as error:
            return _nothing(step, operands, walking, str(error))
    if kind not in table:
        return _nothing(step, operands, walking, _hint(step))
    if kind == "elementwise" and len(lifted) == 1 and _has_no_start(step, operands, lifted[0]):
        hint = (
            "it is not finite at 0, where the rules start: explain what it is a function of, or "
            "give a rule for one of its primitives, as in rules={**rules, 'log': rule}"
        )
        assert step.inner is not None
        made_of = "∘".join(s.name for s in reversed(step.inner.steps))
        return _nothing(step._replace(name=made_of), operands, walking, hint)
    if kind == "elementwise" and len(lifted) > 1:
        hint = (
            "it compares or combines several values that depend on x: mark the function of one "
            "value that it is part of with jaxplain.named, or give a rule of your own, "
            f"rules={{**rules, {step.name!r}: rule}}"
        )
        if step.name in ("max", "min"):
            return _listed(switch(operation, *_settle_all(operands, table)))
        return _nothing(step, operands, walking, hint)
    return _listed(_call(table[kind], kind, operation, operands, lifted, step, table))


def _call(rule, kind, operation, operands, lifted, step, table):
    """A rule of the table on a step whose one lifted operand it is given."""
    if kind in ("elementwise", "softmax", "normalization"):
        operation = _closed(operation, operands, lifted[0], step)
        x = operands[lifted[0]]
        keeps = kind == "softmax" or table["bias"] is apart
        return rule(operation, x if keeps else settle(x, table))
    return rule(operation, *_settle_all(operands, table))


def _user(rule, operation, operands, lifted, step, table):
    """A rule for one name: of one value if one is lifted and it is a function of that value."""
    if len(lifted) == 1 and (step.name in rules.ELEMENTWISE or step.inner is not None):
        operation = _closed(operation, operands, lifted[0], step)
        return rule(operation, settle(operands[lifted[0]], table))
    return rule(operation, *_settle_all(operands, table))


def _closed(operation: Operation, operands: list, position: int, step: Step) -> Operation:
    """The operation as a function of one operand."""
    vanishes = dependence.step_is_zero(
        step, [n == position or _is_zero(v) for n, v in enumerate(operands)]
    )

    def run(values: list) -> list:
        return operation.run([*operands[:position], *values, *operands[position + 1 :]])

    def inside(changed: Rules, values: list) -> list:
        assert operation.inside is not None
        return operation.inside(changed, [*operands[:position], *values, *operands[position + 1 :]])

    return operation._replace(
        run=run, vanishes=vanishes, inside=inside if operation.inside else None
    )


def _has_no_start(step: Step, operands: list, position: int) -> bool:
    """Whether a function made with a logarithm, root or quotient is known to be infinite at 0."""
    partial = step.inner is not None and any(s.name in PARTIAL_OR_DIV for s in step.inner.steps)
    others = [v for n, v in enumerate(operands) if n != position]
    if not partial or any(is_traced(v) for v in others):
        return False
    with jax.ensure_compile_time_eval():
        zero = jnp.zeros(operands[position].signal.shape, operands[position].signal.dtype)
        out = step.run([*operands[:position], zero, *operands[position + 1 :]])
        return not all(bool(jnp.all(jnp.isfinite(v))) for v in out)


def _is_zero(value: Value) -> bool:
    known = not isinstance(value, Parts) and not is_traced(value) and jnp.ndim(value) == 0
    return known and bool(value == 0)


def _settle_all(operands: list, table: Rules) -> list:
    return [settle(v, table) for v in operands]


def _listed(out: Any) -> list:
    return list(out) if isinstance(out, list | tuple) and not isinstance(out, Parts) else [out]


def _hint(step: Step) -> str:
    if step.name == "while":
        return (
            "a while-loop whose length may depend on x cannot be split: write it as jax.lax.scan, "
            "or as fori_loop with a number of rounds known when traced"
        )
    if step.name in ("log", "log1p", "log2", "pow"):
        return (
            "a part of a value can be negative where the value is not: explain logits, or take the "
            f"function whole, rules={{**rules, {step.name!r}: rule}}"
        )
    return (
        f"add one with rules={{**rules, {step.name!r}: jaxplain.contextual.first}}, or any rule "
        "of your own"
    )


def _nothing(step: Step, operands: list, walking: _Walk, hint: str) -> list:
    walking.missing(step, hint)  # raises, but in a survey
    totals = [v.total if isinstance(v, Parts) else v for v in operands]
    out = step.run(totals)
    return [Parts(jnp.zeros_like(v), v) if jnp.issubdtype(v.dtype, jnp.inexact) else v for v in out]


def _scan(step: Step, operands: list, zero: list[bool], walking: _Walk) -> list:
    assert step.inner is not None
    inner, (constants, carries) = step.inner, step.params["counts"]
    changing = dependence.scan_lifts(step, [isinstance(v, Parts) for v in operands])[0]
    apart_at_start = [
        (v.bias is not None) if isinstance(v, Parts) else not zero[constants + n]
        for n, v in enumerate(operands[constants : constants + carries])
    ]

    def carry(values: list) -> list:
        """Each that changes in parts; constants apart where the first value had some."""
        return [
            _carried(v, lift, bias, walking.rules)
            for v, lift, bias in zip(values, changing, apart_at_start, strict=True)
        ]

    def body(values: list) -> list:
        return _forward(inner, values, walking)

    return walk.scan(step, operands, body, carry)


def _carried(value: Value, lift: bool, has_bias: bool, table: Rules) -> Value:
    if not lift:
        return value.total if isinstance(value, Parts) else value
    if not isinstance(value, Parts):
        value = jnp.asarray(value)
        nothing = jnp.zeros_like(value)
        return Parts(nothing, nothing, value) if has_bias else Parts(nothing, value)
    if not has_bias:
        return _settled(value, table)
    value = value if table["bias"] is apart else settle(value, table)
    bias = jnp.zeros_like(value.total) if value.bias is None else value.bias
    return Parts(value.relevant, value.signal, bias)


def _cond(step: Step, operands: list, zero: list[bool], walking: _Walk) -> list:
    operands = [total_of(operands[0]), *(settle(v, walking.rules) for v in operands[1:])]
    lifts = [
        dependence.lifted(branch, [isinstance(v, Parts) for v in operands[1:]])
        for branch in step.branches
    ]
    lift = [any(flags) for flags in zip(*lifts, strict=True)]

    def branch(inner: Program, values: list) -> list:
        out = _forward(inner, values, walking)
        return [
            _settled(v, walking.rules) if flag else total_of(v)
            for v, flag in zip(out, lift, strict=True)
        ]

    return walk.cond(step, operands, branch)


def _checkpoint(step: Step, operands: list, zero: list[bool], walking: _Walk) -> list:
    assert step.inner is not None
    inner = step.inner
    return walk.checkpoint(step, operands, lambda values: _forward(inner, values, walking))


CONTROL: Mapping[str, Callable[..., list]] = {
    "scan": _scan,
    "cond": _cond,
    "checkpoint": _checkpoint,
}


def survey(f: Callable[..., PyTree], x: PyTree, rules: Rules) -> list[Missing]:
    """The primitives on the signal's path without a rule; see `jaxplain.missing`."""
    found: dict[tuple[str, str], Missing] = {}

    def note(step: Step, hint: str) -> None:
        key = step.name, step.path
        count = found[key].count if key in found else 0
        found[key] = Missing(*key, count + 1, hint)

    jax.eval_shape(lambda v: decompose(f, v, v, None, jnp.ones(()), rules, note), x)
    return list(found.values())
