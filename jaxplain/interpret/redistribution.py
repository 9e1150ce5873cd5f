"""Backward rules for every step: what comes to a program's output is handed down to its inputs.

Unlike in `backward.modified`, no step keeps its derivative silently: one that only moves elements
does, and every other needs a rule, which a table has for its name or for its kind.
"""

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxplain.interpret import affine, backward, compat, patterns, rectifiers, rules
from jaxplain.interpret.backward import Action, Modified, Plan, Rule, Rules
from jaxplain.interpret.compat import Program, Step
from jaxplain.interpret.parts import MissingRule
from jaxplain.types import JaxplainError, PyTree

PATTERNS = ("softmax", "normalization", "elementwise")
# What a table's names may mean besides a primitive or call.
KINDS = (*PATTERNS, *"first affine scale sum pooling product quotient switch".split())
POOLING = ("reduce_sum", "reduce_window_sum", "cumsum")
SUMS = ("add", "add_any", "sub", "scatter-add")
# These move elements, and so hand on what comes to each.
MOVES = frozenset((*rules.STRUCTURE, "convert_element_type")) - {
    *"neg stop_gradient scatter-add real imag conj complex".split()
}
GATES = ("logistic", "softmax", "sigmoid")
SHIFT = "shift"
BETWEEN = affine.RELAYOUT | {"slice", "split", "dynamic_slice"}


class _Table(NamedTuple):
    """The table, names in it but kinds, patterns of module paths, and those that have been met."""

    rules: Rules
    names: frozenset[str]
    patterns: tuple[str, ...]
    met: set[str]


def redistributed(fn: Callable[..., PyTree], args: tuple, table: Rules) -> Modified:
    """`fn` with the rules of a table in place of its derivatives, each step by some rule.

    Args:
        fn: any function of pytrees of arrays.
        args: what it will be called with, or anything of the same shapes and dtypes. Evaluates
            nothing.
        table: rules by name of a primitive or call, by one of `KINDS`, or for the modules that a
            path with a "/" in it fits, a table of their own, which comes first.

    Raises:
        MissingRule: a step that depends on the arguments has no rule.
        JaxplainError: a pattern fits no module; there is a `while` loop on the way.
    """
    keys = tuple(key for key in table if "/" in key)
    for key in keys:
        if not isinstance(table[key], Mapping):
            raise JaxplainError(
                f"rules[{key!r}] must be a table for the steps in such modules, as in "
                f"{{{key!r}: {{'affine': rule}}}}"
            )
    named = {name for key in keys for name in table[key]} | {k for k in table if "/" not in k}
    reading = _Table(table, frozenset(named) - {*KINDS}, keys, set())

    def whole(name: str, inner: Program, ruled: bool, marked: bool) -> bool:
        """Calls that the table names, and functions of elements with a derivative of their own."""
        if name in named and (marked or name not in KINDS):
            return True
        return ruled and _is_pointwise(inner)

    program, tree = compat.trace(fn, args, whole)
    plan, _ = _planned(
        program, [True] * len(program.inputs), [False] * len(program.inputs), reading
    )
    if unmet := set(keys) - reading.met:
        raise JaxplainError(
            f"no module fits {', '.join(sorted(unmet))}: paths look like {_some_path(program)}"
        )
    return backward.realized(plan, tree)


def _is_pointwise(program: Program) -> bool:
    return len(program.outputs) == 1 and all(
        _is_pointwise(s.inner) if s.inner else s.name in patterns.POINTWISE_CALLS
        for s in program.steps
    )


def _some_path(program: Program) -> str:
    def paths(program: Program) -> Iterator[str]:
        for step in program.steps:
            yield step.path
            for inner in (*step.branches, *([step.inner] if step.inner else [])):
                yield from paths(inner)

    return max(paths(program), key=len, default="") or (
        "those of jax.named_scope, of which f has none"
    )


def _planned(
    program: Program, touched: list[bool], mixed: list[bool], table: _Table
) -> tuple[Plan, list[bool]]:
    """The plan, and which outputs an affine step is behind; `mixed` is that of the inputs."""
    program = patterns.group(program, touched, table.names | {*PATTERNS}, set())
    active = rectifiers.actives(program, touched)
    program = _shifts_named(program, active)
    scope = lambda step: frozenset(_scope(step, table))
    program = affine.grouped(program, active, table.names, scope)
    reached = _reached(program, active)
    makers = {i: step for step in program.steps for i in step.outputs}
    behind = {i for i, flag in zip(program.inputs, mixed, strict=True) if flag}
    actions = []
    for step in program.steps:
        table.met.update(scope(step))
        lifted = tuple(n for n, i in enumerate(step.inputs) if i in active)
        if not lifted or reached.isdisjoint(step.outputs):
            actions.append(Action(step, None, ()))
            continue
        later = [i in behind for i in step.inputs]
        if step.name in rectifiers.CONTROL:
            action, flags = _control(step, lifted, active, later, table)
            behind |= {i for i, flag in zip(step.outputs, flags, strict=True) if flag}
            actions.append(action)
            continue
        kind = _kind(step, lifted)
        mixes = kind == "product" or (kind == "affine" and step.name in affine.CORES)
        if mixes or any(later):
            behind |= set(step.outputs)
        keys = (step.name, kind)
        if kind == "affine" and step.name in affine.CORES and not any(later):
            keys = ("first", *keys)
        rule = _rule(step, keys, table)
        if rule is None and kind != "move":
            _refuse(step)
        gates = tuple(n for n, i in enumerate(lifted) if _is_gate(step.inputs[i], makers))
        actions.append(Action(step, rule, lifted, (), kind, gates))
    return Plan(program, tuple(actions)), [i in behind for i in program.outputs]


def _shifts_named(program: Program, active: set[int]) -> Program:
    """With a name for what keeps exponentials small: a maximum taken off, and put back on.

    It is no constant of the model, to keep a part: by it, scores would be divided by 0.
    """
    makers = {i: step for step in program.steps for i in step.outputs}
    passing = affine.RELAYOUT | {"stop_gradient", "max", "pmax", "select_n", "elementwise"}

    def is_maximum(number: int) -> bool:
        todo, stopped = [number], False
        while todo:
            step = makers.get(todo.pop())
            if step is not None and step.name == "reduce_max":
                return stopped
            if step is not None and step.name in passing:
                stopped |= step.name == "stop_gradient"
                todo += step.inputs
        return False

    def named(step: Step) -> Step:
        if step.name not in ("add", "sub") or len(active.intersection(step.inputs)) != 1:
            return step
        others = [i for i in step.inputs if i not in active]
        shifts = step.inputs[0] in active or step.name == "add"
        return step._replace(name=SHIFT) if shifts and any(map(is_maximum, others)) else step

    steps = list(map(named, program.steps))
    shifts = {step.outputs[0]: step for step in steps if step.name == SHIFT}
    for n, step in enumerate(steps):  # a softmax is one of what came before the shift
        if step.name == "softmax" and step.inputs[0] in shifts:
            steps[n] = _joined(shifts[step.inputs[0]], step)
    return program._replace(steps=tuple(steps))


def _joined(first: Step, then: Step) -> Step:
    """One step for two, of which the second reads the first."""
    size = len(first.inputs)
    run = lambda values: then.run([*first.run(values[:size]), *values[size:]])
    return then._replace(inputs=(*first.inputs, *then.inputs[1:]), run=run, inner=None)


def _reached(program: Program, active: Collection[int]) -> set[int]:
    """The active values that anything comes to from the outputs."""
    found = set(program.outputs).intersection(active)
    for step in reversed(program.steps):
        if not found.isdisjoint(step.outputs):
            found |= {i for i in step.inputs if i in active}
    return found


def _control(
    step: Step, lifted: tuple[int, ...], active: Collection[int], later: list[bool], table: _Table
) -> tuple[Action, list[bool]]:
    """A loop, a branch or a checkpoint, with the plans of what it runs."""
    inside = rectifiers.within(step, active, lambda _: None)
    if step.name == "cond":
        found = [_planned(p, flags, later[1:], table) for p, flags, _ in inside]
        behind = [any(each) for each in zip(*(flags for _, flags in found), strict=True)]
        return Action(step, None, lifted, tuple(plan for plan, _ in found)), behind
    ((program, flags, _),) = inside
    plan, behind = _planned(program, flags, later, table)
    if step.name == "scan":  # a carry comes back from behind what the last round did
        constants, carries = step.params["counts"]
        carry = slice(constants, constants + carries)
        while any(b and not a for a, b in zip(later[carry], behind[:carries], strict=True)):
            later[carry] = [a or b for a, b in zip(later[carry], behind[:carries], strict=True)]
            plan, behind = _planned(program, flags, later, table)
    return Action(step, None, lifted, (plan,)), behind


def _kind(step: Step, lifted: tuple[int, ...]) -> str:
    """What the step is to a table; "" for what no kind has."""
    name, one = step.name, len(lifted) == 1
    if name == SHIFT:
        return "elementwise"
    if chain := affine.chain_of(step):
        return "affine" if chain.core or chain.adds else "scale"
    if name in PATTERNS:
        return name
    if step.inner is not None:
        return "elementwise" if one and _is_pointwise(step.inner) else ""
    if name in SUMS:
        return "sum"
    if name in POOLING:
        return "pooling"
    if name in rules.BILINEAR:
        return "product"
    if name == "div":
        return "elementwise" if one else "quotient"
    if name in MOVES:
        return "move"
    if name in rules.SWITCH or (name in ("max", "min") and not one):
        return "switch"
    return "elementwise" if one and name in rules.POINTWISE else ""


def _scope(step: Step, table: _Table) -> tuple[str, ...]:
    """The patterns of module paths that fit the step's."""
    if not table.patterns:
        return ()
    parts = step.path.split("/")
    modules = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    fits = lambda key: any(fnmatch.fnmatchcase(module, key.lstrip("/")) for module in modules)
    return tuple(key for key in table.patterns if fits(key))


def _rule(step: Step, keys: tuple[str, ...], table: _Table) -> Rule | None:
    for names in (*(table.rules[key] for key in _scope(step, table)), table.rules):
        for key in keys:
            if key in names and "/" not in key:
                return names[key]
    return None


def _is_gate(number: int, makers: Mapping[int, Step]) -> bool:
    """Whether a sigmoid or a softmax made the value, or it is what such a one leaves of 1."""
    step = makers.get(number)
    while step is not None and (step.name in BETWEEN or _is_rest(step)):
        step = makers.get(step.inputs[0])
    return step is not None and step.name in GATES


def _is_rest(step: Step) -> bool:
    """Whether it is 1 less its input."""
    chain = affine.chain_of(step)
    if chain is None or step.inner is None or chain.core is not None or len(chain.after) != 1:
        return False
    only = chain.after[0]
    one = step.inner.constants.get(only.inputs[0])
    known = only.name == "sub" and one is not None and not compat.is_traced(one)
    return known and bool(np.all(np.asarray(one) == 1))


def _refuse(step: Step) -> None:
    backward.check(step)
    where = f" in {step.path}" if step.path else ""
    raise MissingRule(
        f"no rule for {step.name}{where}: add one with rules={{**rules, {step.name!r}: rule}}, "
        "where rule(layer, inputs, outputs, relevance) gives the relevance of each input"
    )
