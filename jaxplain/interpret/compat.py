"""The one file that touches jaxpr internals, and hides what of them differs by JAX version."""

from contextlib import ExitStack
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where the kinds of call keep what they call


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


def bind(eqn: JaxprEqn, values: list, **changed: Any) -> list:
    """Apply the equation to other operands, and with other parameters where `changed`."""
    params = eqn.primitive.get_bind_params(eqn.params | changed)
    out: Any = eqn.primitive.bind(*values, **params)
    return out if eqn.primitive.multiple_results else [out]


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
