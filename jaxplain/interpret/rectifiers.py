"""Finds the ReLUs of a program, however they are written.

`max(x, 0)`, `where(x > 0, x, 0)`, `clip(x, 0)`, `x * (x > 0)`, `(x + abs(x)) / 2`, a call with a
derivative of its own: each is a function of one element that is 0 on one side and a line on the
other, up to a ceiling if it has one. So candidates are sampled, on the host and without shapes. A
rectifier inside a larger function of one value (softplus, ELU, CELU) is a part of that one.
"""

from collections.abc import Callable, Collection, Mapping
from itertools import product
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxplain.interpret import compat, dependence, patterns, walk
from jaxplain.interpret.compat import Program, Step
from jaxplain.types import JaxplainError

RELU = "relu"
CONTROL = ("scan", "cond", "checkpoint")
# Made of a clipped ReLU, and not one: calls that stay whole.
GATES = ("hard_sigmoid", "sparse_sigmoid")
_HALF = 2.0 ** np.array([-20, -19, -7, -1, 0, 3, 10])
PROBES = np.concatenate([-_HALF[::-1], [0], _HALF])
_ZERO = len(_HALF)

Sample: TypeAlias = Any  # at PROBES, or one number for all; NaN: known, never 0; None: unknown
Fact: TypeAlias = Callable[[int], Sample]


def _convert(params: Mapping[str, Any], v: Sample) -> Sample:
    if jnp.issubdtype(params["new_dtype"], jnp.inexact):
        return np.asarray(v, float)
    return np.asarray(v) != 0 if jnp.issubdtype(params["new_dtype"], jnp.bool_) else np.trunc(v)


def _clamp(params: Mapping[str, Any], low: Sample, v: Sample, high: Sample) -> Sample:
    return np.minimum(np.maximum(v, low), high)


def _same(params: Mapping[str, Any], v: Sample) -> Sample:
    return v


_VARYING = ("pvary", "pcast")  # inside shard_map, of constants too
# What lines with corners are made of.
_NUMPY: Mapping[str, Callable[..., Sample]] = {
    name: lambda params, *v, fn=fn: fn(*v)
    for name, fn in {
        "max": np.maximum, "min": np.minimum, "add": np.add, "add_any": np.add,
        "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
        "abs": np.abs, "sign": np.sign, "gt": np.greater, "ge": np.greater_equal,
        "lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal,
        "and": np.logical_and, "or": np.logical_or, "not": np.logical_not,
    }.items()
} | {
    "clamp": _clamp,
    "convert_element_type": _convert,
    "select_n": lambda params, which, *cases: np.select(
        [np.asarray(which) == n for n in range(len(cases))], cases
    ),
} | dict.fromkeys(
    (*patterns.MOVES - {"convert_element_type"}, "copy_p", "stop_gradient", *_VARYING), _same
)  # fmt: skip
_CANDIDATES = ("max", "min", "clamp", "select_n", "mul")
_DEPTH = 32  # constants are made in fewer steps


def facts(program: Program, given: Mapping[int, Sample]) -> Fact:
    """What is known of a program's constants, while nothing is computed: `number -> Sample`."""
    makers = {i: step for step in program.steps for i in step.outputs}
    found = dict(given)

    def fact(number: int, depth: int = 0) -> Sample:
        if number not in found:
            found[number] = None
            step = makers.get(number)
            if number in program.constants:
                found[number] = _uniform(program.constants[number])
            elif step is not None and step.name in _NUMPY and depth < _DEPTH:
                found[number] = _applied(step, [fact(i, depth + 1) for i in step.inputs])
        return found[number]

    return fact


def _uniform(constant: Any) -> Sample:
    """The number that an array holds everywhere; NaN if several, none of them 0."""
    if compat.is_traced(constant):
        return None
    dtype = jnp.result_type(constant)
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        return None
    values = np.asarray(constant)
    if not values.size or not np.all(values == values.flat[0]):
        return np.nan if values.size and np.all(values != 0) else None
    return float(values.flat[0])


def _applied(step: Step, values: list[Sample]) -> Sample:
    """The step's only output."""
    if step.name == "clamp" and values[2] is None:  # a ceiling that is learned
        values = [*values[:2], np.inf]
    if any(v is None for v in values) or len(step.outputs) != 1:
        return None
    if step.inner is not None and step.name not in CONTROL:
        inner = step.inner
        known = dict(zip(inner.inputs, values, strict=True))
        return _sampled(inner.steps, inner.outputs[0], known, facts(inner, known))
    if step.name not in _NUMPY:
        return None
    with np.errstate(all="ignore"):
        return _NUMPY[step.name](step.params, *values)


def _sampled(steps: Collection[Step], out: int, known: Mapping[int, Sample], fact: Fact) -> Sample:
    """The value `out`, which `steps` make of what is known."""
    known = dict(known)
    for step in steps:
        values = [known[i] if i in known else fact(i) for i in step.inputs]
        known |= dict.fromkeys(step.outputs)
        known[step.outputs[0]] = _applied(step, values)
    return known.get(out)


def _signs(samples: Sample) -> tuple[int, int] | None:
    """`(a, b)` if `b * f(a * t)` is a ReLU in t, scaled and with a ceiling or without."""
    if samples is None or np.shape(samples) != PROBES.shape:
        return None
    low, near = _ZERO + 1, _ZERO + 2
    for a, b in product((1, -1), (1, -1)):
        y = b * np.asarray(samples, float)[::a]
        slope = y[low] / PROBES[low]
        line = np.minimum(slope * PROBES[_ZERO:], y[-1])
        if slope > 0 and not y[:low].any() and np.allclose(y[_ZERO:], line, rtol=1e-6, atol=0):
            if np.isclose(y[near], 2 * y[low], rtol=1e-6, atol=0):  # no step function
                return a, b
    return None


def named(
    program: Program,
    active: Collection[int],
    fact: Fact,
    marked: Collection[Program] = (),
    others: Collection[str] = (),
) -> Program:
    """The program with one step called "relu" for each ReLU; its `params["signs"]` are `(a, b)`.

    Such a step is a function f of its first operand, and `b * f(a * t)` is the ReLU.

    Args:
        program: as traced, with calls that have a derivative rule whole.
        active: numbers of the floats that depend on x.
        fact: of `facts`.
        marked: the programs of the calls that a user marked as a ReLU.
        others: names of calls that are something else.

    Raises:
        JaxplainError: a comparison with a bound that is not known while tracing, or a ReLU in a
            call with a derivative rule of its own, which would hide it.
    """
    calls = [s.inner is not None and s.name not in (*CONTROL, *others) for s in program.steps]
    steps = tuple(
        _call(step, step.inner, active, fact, marked) if call and step.inner else step
        for step, call in zip(program.steps, calls, strict=True)
    )
    program = program._replace(steps=steps)
    touched = [i in active for i in program.inputs]
    signal = dependence.signal(program, touched)
    makers = {i: step for step in steps for i in step.outputs}
    place = {step.outputs: n for n, step in enumerate(steps)}
    found: dict[int, Step] = {}

    def try_(step: Step, inside: Collection[Step] = (), smooth: bool = False) -> None:
        """Note the ReLU whose last step this is."""
        if step.name not in _CANDIDATES:
            return
        root, cone = _cone(step, makers, active, signal)
        if root is None or (step.name in ("mul", "select_n") and not cone):
            return
        cone = sorted(cone, key=lambda s: place[s.outputs])
        _check_bound(step, fact, signal)
        signs = _signs(_sampled([*cone, step], step.outputs[0], {root: PROBES}, fact))
        beside = [s for s in inside if root in s.inputs and s is not step and s not in cone]
        if signs is None or (smooth and beside) or _is_guard(step, signal, readers):
            return
        found[step.outputs[0]] = _one(program, root, [*cone, step], signs)

    readers: dict[int, list[Step]] = {}
    for step in steps:
        for i in step.inputs:
            readers.setdefault(i, []).append(step)
    grouped = patterns.group(program, touched, {"normalization", "elementwise", RELU}, set())
    for step in grouped.steps:
        if step.inner is None:
            try_(step)
        elif step.name == "elementwise" and step.params == {}:
            inner = [makers[s.outputs[0]] for s in step.inner.steps]
            root = next(i for i in step.inputs if i in signal)
            signs = _signs(_sampled(inner, step.outputs[0], {root: PROBES}, fact))
            if signs is not None and root in active:
                found[step.outputs[0]] = _one(program, root, inner, signs)
                continue
            smooth = not all(map(_is_line, inner))
            for each in inner:
                try_(each, inner, smooth)
    return program._replace(
        steps=tuple(found.get(s.outputs[0], s) if s.outputs else s for s in steps)
    )


def _call(
    step: Step,
    inner: Program,
    active: Collection[int],
    fact: Fact,
    marked: Collection[Program],
) -> Step:
    """The call, by the name "relu" if it is one, and never otherwise."""
    if any(inner is program for program in marked):
        return step._replace(name=RELU, params={"signs": (1, 1)})
    lifted = [n for n, i in enumerate(step.inputs) if i in active]
    if not lifted:
        return step
    if len(lifted) == 1:
        values = [fact(i) for i in step.inputs]
        values[lifted[0]] = PROBES
        signs = _signs(_applied(step, values))
        if signs is not None:
            first = step.inputs[lifted[0]]
            order = (lifted[0], *(n for n in range(len(values)) if n != lifted[0]))
            back = np.argsort(order)
            return step._replace(
                name=RELU,
                params={"signs": signs},
                inputs=(first, *(step.inputs[n] for n in order[1:])),
                run=lambda values: step.run([values[n] for n in back]),
            )
    if not _is_pointwise(inner):
        known = dict(zip(inner.inputs, map(fact, step.inputs), strict=True))
        if hides(inner, [i in active for i in step.inputs], known, marked):
            where = f" in {step.path}" if step.path else ""
            raise JaxplainError(
                f"the call {step.name}{where} has a derivative rule of its own, which hides the "
                "ReLU inside of it: leave out its custom_jvp or custom_vjp"
            )
    return step._replace(name="call") if step.name == RELU else step


def hides(
    program: Program, touched: Collection[bool], given: Mapping[int, Sample], marked: Any
) -> bool:
    """Whether there is a ReLU in the program, at any depth."""
    active, fact = actives(program, touched), facts(program, given)
    for step in named(program, active, fact, marked).steps:
        if step.name == RELU and step.inputs[0] in active:
            return True
        for inner, flags, known in within(step, active, fact):
            if hides(inner, flags, known, marked):
                return True
    return False


def actives(program: Program, touched: Collection[bool]) -> set[int]:
    """Numbers of the floats that a gradient reaches from the touched inputs."""
    stops = [s._replace(name="hold") if s.name == "stop_gradient" else s for s in program.steps]
    numbers = (*program.inputs, *(i for step in stops for i in step.outputs))
    flags = dependence.lifted(program._replace(steps=tuple(stops), outputs=numbers), touched)
    return {i for i, flag in zip(numbers, flags, strict=True) if flag}


def within(
    step: Step, active: Collection[int], fact: Fact
) -> list[tuple[Program, list[bool], dict[int, Sample]]]:
    """The programs inside a loop, a branch or a checkpoint, with what is active and known there."""
    reads = [i in active for i in step.inputs]
    known = [fact(i) for i in step.inputs]
    if step.name == "cond":
        return [(p, reads[1:], dict(zip(p.inputs, known[1:], strict=True))) for p in step.branches]
    if step.inner is None or step.name not in CONTROL:
        return []
    if step.name == "scan":
        constants, carries = step.params["counts"]
        reads[constants : constants + carries] = dependence.scan_lifts(step, reads)[0]
        known[constants:] = [None] * len(known[constants:])
    return [(step.inner, reads, dict(zip(step.inner.inputs, known, strict=True)))]


def _is_pointwise(program: Program) -> bool:
    return len(program.outputs) == 1 and all(
        _is_pointwise(s.inner) if s.inner else s.name in patterns.POINTWISE_CALLS | {*_VARYING}
        for s in program.steps
    )


def _is_line(step: Step) -> bool:
    return all(map(_is_line, step.inner.steps)) if step.inner else step.name in _NUMPY


def _cone(
    step: Step, makers: Mapping[int, Step], active: Collection[int], signal: Collection[int]
) -> tuple[int | None, list[Step]]:
    """The one float that a step is a function of, and the steps between: comparisons of it."""
    roots, cone, seen, todo = set(), [], set(), list(step.inputs)
    while todo:
        number = todo.pop()
        if number in active:
            roots.add(number)
        elif number in signal and number not in seen and number in makers:
            cone.append(makers[number])
            todo += makers[number].inputs
        seen.add(number)
    return (roots.pop() if len(roots) == 1 else None), cone


def _check_bound(step: Step, fact: Fact, signal: Collection[int]) -> None:
    """Refuse what is a ReLU or not, depending on numbers that are not known yet."""
    bounds = {"max": step.inputs, "clamp": step.inputs[:1]}.get(step.name, ())
    if any(i not in signal and fact(i) is None for i in bounds):
        where = f" in {step.path}" if step.path else ""
        raise JaxplainError(
            f"{step.name}{where} has a bound that is not known while tracing, so that it may be a "
            "ReLU or not: write jax.nn.relu(x) if it is, or make the bound a constant"
        )


def _is_guard(step: Step, signal: Collection[int], readers: Mapping[int, list[Step]]) -> bool:
    """Whether it only keeps a root from negative numbers, as of a variance."""
    while len(after := readers.get(step.outputs[0], [])) == 1:
        step = after[0]
        if step.name in ("sqrt", "rsqrt"):
            return True
        one = len([i for i in step.inputs if i in signal]) == 1
        if not one or step.name not in patterns.MOVES | {"add", "mul"}:
            return False
    return False


def _one(program: Program, root: int, steps: list[Step], signs: tuple[int, int]) -> Step:
    """One step for those from `root` to the last."""
    last = steps[-1]
    made = {i for s in steps for i in s.outputs}
    reads = dict.fromkeys(i for s in steps for i in s.inputs if i not in made and i != root)
    inner = Program(
        (root, *(i for i in reads if i not in program.constants)),
        {i: program.constants[i] for i in reads if i in program.constants},
        tuple(steps),
        last.outputs,
    )
    return Step(
        RELU,
        last.path,
        {"signs": signs},
        inner.inputs,
        last.outputs,
        last.shapes,
        lambda values: walk.run(inner, values),
        inner,
    )
