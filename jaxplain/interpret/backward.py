"""Backward rules: a program whose gradient is another one at the steps that a table names.

Each such step is evaluated as it is, under `jax.custom_vjp` with the rule as its backward pass. So
`jax.vjp` of the result is the modified pass, through loops, branches and checkpoints too.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxplain.interpret import affine, compat, rectifiers, walk
from jaxplain.interpret.affine import Affine
from jaxplain.interpret.compat import Program, Step
from jaxplain.interpret.rules import NORMALIZER
from jaxplain.types import Array, JaxplainError, PyTree


class Layer(NamedTuple):
    """What a rule is told of its step. Call it for the step's outputs, a tuple, at other inputs.

    Attributes:
        name: of the primitive, call or pattern.
        path: module path, outermost first.
        kind: of `redistribution.KINDS`; "" where the table has no kinds.
        params: the primitive's.
        run: the step, as a function of the inputs that depend on x.
        linear: the same, but a normalisation with what it divides by held as it is.
        gates: positions of the inputs that a sigmoid or a softmax made, or that are 1 less such.
        map: gives what an affine step is made of; None for other steps.
    """

    name: str
    path: str
    kind: str
    params: Mapping[str, Any]
    run: Callable[..., tuple]
    linear: Callable[..., tuple]
    gates: tuple[int, ...]
    map: Callable[[], Affine] | None

    def __call__(self, *inputs: Array) -> tuple:
        return self.run(*inputs)


# (layer, inputs, outputs, cotangents of the outputs) -> cotangents of the inputs. The inputs are
# those that depend on x.
Rule: TypeAlias = Callable[[Layer, list[Array], list[Array], list[Array]], list[Array]]
NORMALIZATION = "normalization"
# By name of a primitive or a call; under a pattern of module paths, which has a "/", the table for
# the steps in such modules.
Rules: TypeAlias = Mapping[str, Any]


class Applied(NamedTuple):
    """A rule, and the steps of one name and module path that it was applied to.

    Attributes:
        name: of the primitive, call or pattern.
        path: module path; "" outside of any name scope.
        kind: of `redistribution.KINDS`; "" where the table has no kinds.
        rule: the rule's name.
        count: how many steps; a loop's body counts once.
    """

    name: str
    path: str
    kind: str
    rule: str
    count: int


class Modified(NamedTuple):
    """A function with another gradient.

    Attributes:
        run: the same function of the same arguments.
        overridden: how many steps each name in the table has a rule for; a loop's body counts once.
        applied: which rule each step has, in the order of the program. Steps that are not here
            keep their derivative.
        watched: `(taps [K], *args)`, `run` with another argument, of which nothing depends; its
            cotangent is, for each of `applied`, the sum of what came to it less what it passed on.
    """

    run: Callable[..., PyTree]
    overridden: Mapping[str, int]
    applied: tuple[Applied, ...]
    watched: Callable[..., PyTree]


_Key: TypeAlias = tuple[str, str, str, str]  # all of Applied but its count


class Action(NamedTuple):
    """A step and what to do at it.

    Attributes:
        step: the step.
        rule: what gives its cotangents; None for its derivative.
        lifted: positions of the operands that it gives them for.
        inner: plans of the programs that it runs.
        kind: of `redistribution.KINDS`.
        gates: positions among `lifted` of the gates, as in `Layer`.
    """

    step: Step
    rule: Rule | None
    lifted: tuple[int, ...]
    inner: "tuple[Plan, ...]" = ()
    kind: str = ""
    gates: tuple[int, ...] = ()


class Plan(NamedTuple):
    """A program and what to do at each of its steps."""

    program: Program
    actions: tuple[Action, ...]


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
    return realized(_planned(program, [True] * len(program.inputs), {}, rules, names, marked), tree)


def realized(plan: Plan, tree: Any) -> Modified:
    """The function that a plan describes; `tree` is that of its results."""
    counts: dict[_Key, int] = {}
    _count(plan, counts)
    applied = tuple(Applied(*key, count) for key, count in counts.items())
    overridden: dict[str, int] = {}
    for each in applied:
        overridden[each.name] = overridden.get(each.name, 0) + each.count
    slots = {key: n for n, key in enumerate(counts)}

    def run(*args: Any) -> PyTree:
        return jax.tree.unflatten(tree, _evaluated(plan, jax.tree.leaves(args), None, slots))

    def watched(taps: Array, *args: Any) -> PyTree:
        return jax.tree.unflatten(tree, _evaluated(plan, jax.tree.leaves(args), taps, slots))

    return Modified(run, overridden, applied, watched)


def _planned(
    program: Program,
    touched: list[bool],
    given: Mapping[int, Any],
    rules: Rules,
    names: set[str],
    marked: list[Program],
) -> Plan:
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
                check(step)
                inner = tuple(
                    _planned(*each, rules, names, marked)
                    for each in rectifiers.within(step, active, fact)
                )
        actions.append(Action(step, rule, lifted, inner))
    return Plan(program, tuple(actions))


def _rule(step: Step, rules: Rules) -> Rule | None:
    """The table's rule for a step."""
    parts = step.path.split("/")
    modules = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    for key, table in rules.items():
        if "/" in key and step.name in table:
            if any(fnmatch.fnmatchcase(module, key.lstrip("/")) for module in modules):
                return table[step.name]
    return None if "/" in step.name else rules.get(step.name)


def check(step: Step) -> None:
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


def _key(action: Action) -> _Key:
    rule: Any = action.rule
    while isinstance(rule, partial):
        rule = rule.func
    name = getattr(rule, "__name__", type(rule).__name__)
    return action.step.name, action.step.path, action.kind, name


def _count(plan: Plan, counts: dict[_Key, int]) -> None:
    for action in plan.actions:
        if action.rule is not None:
            counts[_key(action)] = counts.get(_key(action), 0) + 1
        for inner in action.inner:
            _count(inner, counts)


def _evaluated(plan: Plan, values: list, taps: Array | None, slots: Mapping[_Key, int]) -> list:
    actions = {action.step.outputs: action for action in plan.actions}
    inside = lambda inner: lambda values: _evaluated(inner, values, taps, slots)

    def apply(step: Step, operands: list) -> list:
        action = actions[step.outputs]
        if action.rule is not None:
            tap = None if taps is None else taps[slots[_key(action)]]
            return _overridden(action, action.rule, operands, tap)
        if not any(_changes(inner) for inner in action.inner):
            return step.run(operands)
        if step.name == "cond":
            plans = {id(p): inner for p, inner in zip(step.branches, action.inner, strict=True)}
            return walk.cond(step, operands, lambda p, values: inside(plans[id(p)])(values))
        (inner,) = action.inner
        if step.name == "scan":
            return walk.scan(step, operands, inside(inner), lambda carry: carry)
        return walk.checkpoint(step, operands, inside(inner))

    return walk.evaluate(plan.program, values, apply)


def _changes(plan: Plan) -> bool:
    return any(a.rule is not None or any(map(_changes, a.inner)) for a in plan.actions)


def _times(sign: int, values: Iterable[Array]) -> list[Array]:
    return [v if sign == 1 else -v for v in values]


def _held(step: Step, operands: list) -> Callable[[list], list]:
    """A normalisation as a function of its operands, with what it divides by held as it is there.

    Held values are constants to it, and still functions of the operands: no `stop_gradient`.
    """
    inner = step.inner
    assert inner is not None
    found: dict[tuple[int, ...], list] = {}

    def note(inside: Step, values: list) -> list:
        out = inside.run(values)
        if inside.name in NORMALIZER:
            found[inside.outputs] = out
        return out

    walk.evaluate(inner, operands, note)
    run = lambda inside, values: found.get(inside.outputs) or inside.run(values)
    return lambda values: walk.evaluate(inner, values, run)


def _overridden(action: Action, rule: Rule, operands: list, tap: Array | None) -> list:
    """The step's outputs, with the rule as their derivative."""
    step, lifted = action.step, action.lifted

    def forward(tap: Array | None, *operands: Array) -> tuple:
        outputs = tuple(step.run(list(operands)))
        return outputs, (operands, outputs)

    def call(tap: Array | None, *operands: Array) -> tuple:
        return forward(tap, *operands)[0]

    def backward(kept: tuple, cotangents: tuple) -> tuple:
        operands, outputs = kept
        a, b = step.params.get("signs", (1, 1))  # in and out, of a ReLU upside down

        def at(run: Callable[[list], list], *values: Array) -> tuple:
            changed = dict(zip(lifted, _times(a, values), strict=True))
            return tuple(_times(b, run([changed.get(n, v) for n, v in enumerate(operands)])))

        normalizes = action.kind == NORMALIZATION and step.inner is not None
        held = _held(step, list(operands)) if normalizes else step.run
        found = rule(
            Layer(
                step.name,
                step.path,
                action.kind,
                step.params,
                partial(at, step.run),
                partial(at, held),
                action.gates,
                partial(affine.unfolded, step, list(operands)) if affine.chain_of(step) else None,
            ),
            _times(a, [operands[n] for n in lifted]),
            _times(b, outputs),
            _times(b, cotangents),
        )
        lost = None if tap is None else _total(cotangents, tap) - _total(found, tap)
        given = dict(zip(lifted, _times(a, found), strict=True))
        return lost, *(given.get(n) for n in range(len(operands)))

    function = jax.custom_vjp(call)
    function.defvjp(forward, backward)
    return list(function(tap, *operands))


def _total(values: Iterable[Array], like: Array) -> Array:
    floats = (v for v in values if jnp.issubdtype(v.dtype, jnp.inexact))
    return sum((jnp.sum(v.astype(like.dtype)) for v in floats), jnp.zeros_like(like))
