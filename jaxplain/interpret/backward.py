"""Backward rules: a program whose gradient is another one at the steps that a table names.

Each such step is evaluated as it is, under `jax.custom_vjp` with the rule as its backward pass. So
`jax.vjp` of the result is the modified pass, through loops, branches and checkpoints too.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

from jaxplain.interpret import compat, rectifiers, walk
from jaxplain.interpret.compat import Program, Step
from jaxplain.types import Array, JaxplainError, PyTree

# (f, inputs, outputs, cotangents of the outputs) -> cotangents of the inputs. The inputs are those
# that depend on x; f is the step as a function of them, and gives a tuple.
Rule: TypeAlias = Callable[
    [Callable[..., tuple], list[Array], list[Array], list[Array]], list[Array]
]
# By name of a primitive or a call; under a pattern of module paths, which has a "/", the table for
# the steps in such modules.
Rules: TypeAlias = Mapping[str, Any]


class Modified(NamedTuple):
    """A function with another gradient.

    Attributes:
        run: the same function of the same arguments.
        overridden: how many steps each name in the table has a rule for; a loop's body counts once.
    """

    run: Callable[..., PyTree]
    overridden: Mapping[str, int]


class _Action(NamedTuple):
    """A step, the rule for it or None, the operands that it is for, and plans of what it runs."""

    step: Step
    rule: Rule | None
    lifted: tuple[int, ...]
    inner: "tuple[_Plan, ...]"


class _Plan(NamedTuple):
    """A program and what to do at each of its steps."""

    program: Program
    actions: tuple[_Action, ...]


def modified(fn: Callable[..., PyTree], args: tuple, rules: Rules) -> Modified:
    """`fn` with the rules of a table in place of its derivatives.

    Values are those of `fn`. Steps that no rule is for keep their derivative, and so do calls with
    a derivative of their own. The rule for "relu" serves all ReLUs, however they are written.

    Args:
        fn: any function of pytrees of arrays.
        args: what it will be called with, or anything of the same shapes and dtypes. Evaluates
            nothing.
        rules: the table, as in `{"relu": rule, "*/head": {"dot_general": other}}`; the first
            pattern of a module path that fits comes before names.

    Raises:
        JaxplainError: a loop or call that cannot be looked into is on the way from the arguments,
            or what `rectifiers.named` refuses.
    """
    names = {name for key, rule in rules.items() for name in ([key] if "/" not in key else rule)}
    marked: list[Program] = []

    def whole(name: str, inner: Program, ruled: bool, was_marked: bool) -> bool:
        if was_marked and name in names:
            if name == rectifiers.RELU:
                marked.append(inner)
            return True
        return ruled or (name in rectifiers.GATES and len(inner.inputs) == 1)

    program, tree = compat.trace(fn, args, whole)
    plan = _planned(program, [True] * len(program.inputs), {}, rules, names, marked)
    counts: dict[str, int] = {}
    _count(plan, counts)

    def run(*args: Any) -> PyTree:
        return jax.tree.unflatten(tree, _evaluated(plan, jax.tree.leaves(args)))

    return Modified(run, counts)


def _planned(
    program: Program,
    touched: list[bool],
    given: Mapping[int, Any],
    rules: Rules,
    names: set[str],
    marked: list[Program],
) -> _Plan:
    active, fact = rectifiers.actives(program, touched), rectifiers.facts(program, given)
    if rectifiers.RELU in names:
        program = rectifiers.named(program, active, fact, marked, names - {rectifiers.RELU})
    actions = []
    for step in program.steps:
        lifted = tuple(n for n, i in enumerate(step.inputs) if i in active)
        rule, inner = None, ()
        if lifted:
            rule = _rule(step, rules)
            if rule is None:
                _check(step)
                inner = tuple(
                    _planned(*each, rules, names, marked)
                    for each in rectifiers.within(step, active, fact)
                )
        actions.append(_Action(step, rule, lifted, inner))
    return _Plan(program, tuple(actions))


def _rule(step: Step, rules: Rules) -> Rule | None:
    """The table's rule for a step."""
    parts = step.path.split("/")
    modules = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    for key, table in rules.items():
        if "/" in key and step.name in table:
            if any(fnmatch.fnmatchcase(module, key.lstrip("/")) for module in modules):
                return table[step.name]
    return None if "/" in step.name else rules.get(step.name)


def _check(step: Step) -> None:
    """Refuse what holds a program that no rule would reach."""
    hints = {
        "while": "write it as lax.scan; lax.fori_loop is one if its bounds are known while tracing",
        "shard_map": "explain inside of it instead, or leave it out of f",
        "pallas_call": "leave it out of f, or write it in jax.numpy",
        "custom_vmap_call": "leave out its jax.custom_batching.custom_vmap",
    }
    if step.name in hints:
        where = f" in {step.path}" if step.path else ""
        raise JaxplainError(f"no rule reaches into {step.name}{where}: {hints[step.name]}")


def _count(plan: _Plan, counts: dict[str, int]) -> None:
    for action in plan.actions:
        if action.rule is not None:
            counts[action.step.name] = counts.get(action.step.name, 0) + 1
        for inner in action.inner:
            _count(inner, counts)


def _evaluated(plan: _Plan, values: list) -> list:
    actions = {action.step.outputs: action for action in plan.actions}

    def apply(step: Step, operands: list) -> list:
        action = actions[step.outputs]
        if action.rule is not None:
            return _overridden(step, action.rule, action.lifted, operands)
        if not any(_changes(inner) for inner in action.inner):
            return step.run(operands)
        if step.name == "cond":
            plans = {id(p): inner for p, inner in zip(step.branches, action.inner, strict=True)}
            return walk.cond(step, operands, lambda p, values: _evaluated(plans[id(p)], values))
        (inner,) = action.inner
        inside = lambda values: _evaluated(inner, values)
        if step.name == "scan":
            return walk.scan(step, operands, inside, lambda carry: carry)
        return walk.checkpoint(step, operands, inside)

    return walk.evaluate(plan.program, values, apply)


def _changes(plan: _Plan) -> bool:
    return any(a.rule is not None or any(map(_changes, a.inner)) for a in plan.actions)


def _times(sign: int, values: Iterable[Array]) -> list[Array]:
    return [v if sign == 1 else -v for v in values]


def _overridden(step: Step, rule: Rule, lifted: tuple[int, ...], operands: list) -> list:
    """The step's outputs, with the rule as their derivative."""

    @jax.custom_vjp
    def call(*operands: Array) -> tuple:
        return tuple(step.run(list(operands)))

    def forward(*operands: Array) -> tuple:
        outputs = tuple(step.run(list(operands)))
        return outputs, (operands, outputs)

    def backward(kept: tuple, cotangents: tuple) -> tuple:
        operands, outputs = kept

        def f(*values: Array) -> tuple:
            changed = dict(zip(lifted, values, strict=True))
            return tuple(step.run([changed.get(n, v) for n, v in enumerate(operands)]))

        a, b = step.params.get("signs", (1, 1))  # in and out, of a ReLU upside down
        found = rule(
            lambda *values: tuple(_times(b, f(*_times(a, values)))),
            _times(a, [operands[n] for n in lifted]),
            _times(b, outputs),
            _times(b, cotangents),
        )
        given = dict(zip(lifted, _times(a, found), strict=True))
        return tuple(given.get(n) for n in range(len(operands)))

    call.defvjp(forward, backward)
    return list(call(*operands))
