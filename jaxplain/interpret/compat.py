"""The one file that touches jaxpr internals, and hides what of them differs by JAX version."""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.core
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where the kinds of call keep what they call
PLAIN_CALLS = ("jit", "closed_call", "core_call")
RULED_CALLS = ("custom_jvp_call", "custom_vjp_call")  # calls with a derivative rule of their own
CHECKPOINT = ("remat2", "remat", "checkpoint")
MARK = "jaxplain:"  # before the names of calls that a user marked
_TRANSFORM = re.compile(r"\w+\(|\)")  # vmap(layer) is of the module layer


def closed(jaxpr: Any) -> ClosedJaxpr:
    """A jaxpr with its constants; up to JAX 0.10 an open one is a type of its own."""
    return jaxpr if hasattr(jaxpr, "consts") else ClosedJaxpr(jaxpr, ())


def is_plain_call(eqn: JaxprEqn) -> bool:
    """Whether the equation is a call and no more: no derivative rule, loop or sharding."""
    if eqn.primitive.name not in ("jit", "closed_call"):
        return False
    shardings = (*eqn.params.get("in_shardings", ()), *eqn.params.get("out_shardings", ()))
    return not any(isinstance(s, jax.sharding.Sharding) for s in shardings)


def called(eqn: JaxprEqn) -> ClosedJaxpr:
    """What a call calls."""
    return closed(next(eqn.params[name] for name in CALLED if eqn.params.get(name) is not None))


def is_inlined_freely(jaxpr: Any) -> bool:
    """Whether it has no effects, and no call with shardings of its own, which inlining loses."""
    jaxpr = closed(jaxpr)
    calls = [e for e in jaxpr.jaxpr.eqns if e.primitive.name in PLAIN_CALLS]
    placed = any(e.primitive.name == "jit" and not is_plain_call(e) for e in calls)
    return not placed and not jaxpr.effects and all(is_inlined_freely(called(e)) for e in calls)


def bind(eqn: JaxprEqn, values: list, **changed: Any) -> list:
    """Apply the equation to other operands, and with other parameters where `changed`."""
    params = eqn.primitive.get_bind_params(eqn.params | changed)
    out: Any = eqn.primitive.bind(*values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def origin(eqn: JaxprEqn) -> ExitStack:
    """A context in which what is traced keeps the equation's names and settings."""
    stack = ExitStack()
    stack.enter_context(eqn.ctx.manager)
    if names := str(eqn.source_info.name_stack):
        stack.enter_context(jax.named_scope(names))
    return stack


def value(operand: Any, known: dict) -> Any:
    """What a literal or a variable stands for."""
    return operand.val if isinstance(operand, Literal) else known[operand]


def is_traced(value: Any) -> bool:
    """Whether its numbers are not known yet."""
    return isinstance(value, jax.core.Tracer)


def named(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, as a call that keeps its name in a trace, told apart from calls that just have it."""

    def call(*args):
        return fn(*args)

    call.__name__ = call.__qualname__ = MARK + name
    return jax.jit(call)


def hoisted(fn: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], list]:
    """`fn` as a function of what it closes over, and that: `(g, held)`, `fn(*a) == g(held, *a)`.

    What it closes over may be traced, so that `g` may stand where those traces are not known.
    """
    traced, shape = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)(*args)
    tree = jax.tree.structure(shape)

    def plain(held: list, *args: Any) -> Any:
        return tree.unflatten(jax.core.eval_jaxpr(traced.jaxpr, held, *jax.tree.leaves(args)))

    return plain, list(traced.consts)


class Step(NamedTuple):
    """One operation of a `Program`: a primitive, or a call or group of them taken whole.

    Attributes:
        name: of the primitive or the call.
        path: name scopes it was traced in, outermost first, joined by "/": the module path.
        params: of the primitive; empty for a group.
        inputs: numbers of the values it reads.
        outputs: numbers of the values it makes.
        shapes: of the outputs, with dtypes.
        run: evaluates it: `operands -> outputs`, lists of plain arrays.
        inner: the program inside, of a group, a call, a loop's body; None for a primitive.
        branches: the programs of a `cond`.
    """

    name: str
    path: str
    params: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[Any, ...]
    run: Callable[[list], list]
    inner: "Program | None" = None
    branches: "tuple[Program, ...]" = ()


class Program(NamedTuple):
    """A traced function as a list of steps over numbered values, its calls inlined.

    Attributes:
        inputs: numbers of the arguments.
        constants: literals and captured arrays by number.
        steps: in an order in which they can run.
        outputs: numbers of the results.
    """

    inputs: tuple[int, ...]
    constants: dict[int, Any]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]


def call_name(eqn: JaxprEqn) -> str | None:
    """The name that a call was given; None for a primitive."""
    if eqn.primitive.name in (*PLAIN_CALLS, *RULED_CALLS):
        return str(eqn.params.get("name") or called(eqn).jaxpr.debug_info.func_name)
    return None


def trace(
    fn: Callable[..., Any], args: tuple, whole: Callable[[str, "Program", bool, bool], bool]
) -> tuple[Program, Any]:
    """The program of `fn(*args)` and the tree of its results.

    Args:
        fn: any function of pytrees of arrays.
        whole: `(name, program inside, has a derivative rule of its own, was marked) -> bool`:
            whether that call stays one step. All others are inlined.
    """
    # A new function every time: traces are cached by function, with what it closes over.
    traced, shape = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)(*args)
    return program(traced, whole), jax.tree.structure(shape)


def program(jaxpr: Any, whole: Callable[..., bool], path: str = "") -> Program:
    """A jaxpr as a `Program`."""
    counter = iter(range(1 << 62))
    constants: dict[int, Any] = {}
    steps: list[Step] = []

    def inline(jaxpr: Any, numbers: list[int], path: str) -> list[int]:
        jaxpr = closed(jaxpr)
        known = dict(zip(jaxpr.jaxpr.invars, numbers, strict=True))
        for var, const in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            known[var] = number = next(counter)
            constants[number] = const

        def read(operand: Any) -> int:
            if isinstance(operand, Literal):
                constants[number := next(counter)] = operand.val
                return number
            return known[operand]

        for eqn in jaxpr.jaxpr.eqns:
            here = _join(path, str(eqn.source_info.name_stack))
            inputs = [read(v) for v in eqn.invars]
            name, inner = call_name(eqn), None
            if name is not None:
                inner = program(called(eqn), whole, here)
                marked, name = name.startswith(MARK), name.removeprefix(MARK)
                if not whole(name, inner, eqn.primitive.name in RULED_CALLS, marked):
                    known |= zip(eqn.outvars, inline(called(eqn), inputs, here), strict=True)
                    continue
            outputs = [next(counter) for _ in eqn.outvars]
            known |= zip(eqn.outvars, outputs, strict=True)
            steps.append(_step(eqn, name, here, inputs, outputs, inner, whole))
        return [read(v) for v in jaxpr.jaxpr.outvars]

    jaxpr = closed(jaxpr)
    inputs = [next(counter) for _ in jaxpr.jaxpr.invars]
    outputs = inline(jaxpr, inputs, path)
    return Program(tuple(inputs), constants, tuple(steps), tuple(outputs))


def _step(eqn, name, path, inputs, outputs, inner, whole) -> Step:
    def run(values: list) -> list:
        with origin(eqn):
            return bind(eqn, values)

    kind, branches = eqn.primitive.name, ()
    if kind == "scan" or kind in CHECKPOINT:
        inner = program(called(eqn), whole, path)
    elif kind == "cond":
        branches = tuple(program(branch, whole, path) for branch in eqn.params["branches"])
    params = eqn.params
    if kind == "scan":
        params = params | {"counts": _scan_counts(params)}
    return Step(
        "checkpoint" if kind in CHECKPOINT else name or kind,
        path,
        params,
        tuple(inputs),
        tuple(outputs),
        tuple(v.aval for v in eqn.outvars),
        run,
        inner,
        branches,
    )


def _join(path: str, names: str) -> str:
    return "/".join(filter(None, (path, _TRANSFORM.sub("", names))))


def _scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many operands are constants of a scan, and how many its carry."""
    if "num_carry" in params:  # up to JAX 0.10
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()
    return len(constants), len(carry)
