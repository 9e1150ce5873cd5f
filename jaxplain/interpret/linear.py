"""What linear and selecting primitives do with the parts of a value: the same under every table."""

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain.interpret import rules
from jaxplain.interpret.parts import (
    NoRule,
    Operation,
    Parts,
    Rules,
    Value,
    apart,
    each,
    settle,
    splits_early,
)
from jaxplain.types import Array


def hold(operation: Operation, *operands: Value) -> list:
    """The outputs whole, as constants: what is held is not split."""
    return operation.run([v.total if isinstance(v, Parts) else v for v in operands])


def switch(operation: Operation, *operands: Value) -> Any:
    """Picks from every part the elements that it picks from the total."""
    totals = [v.total if isinstance(v, Parts) else v for v in operands]
    parts = [v.relevant if isinstance(v, Parts) else jnp.zeros_like(v) for v in operands]
    if operation.name == "reduce_max" or operation.name == "reduce_min":
        return _pick(operation, operands[0])
    if operation.name == "reduce_window_max":
        return _pool(operation, operands[0])
    if operation.name in ("max", "min"):
        first = totals[0] >= totals[1] if operation.name == "max" else totals[0] <= totals[1]
        total = operation(*totals)
        return Parts(jnp.where(first, *jnp.broadcast_arrays(*parts)), total)
    # The derivative picks the same elements; where two are equal it shares between them.
    floats = [n for n, v in enumerate(totals) if jnp.issubdtype(v.dtype, jnp.inexact)]

    def of_floats(*values: Array) -> list:
        given = dict(zip(floats, values, strict=True))
        return operation.run([given.get(n, v) for n, v in enumerate(totals)])

    out, moved = jax.jvp(of_floats, [totals[n] for n in floats], [parts[n] for n in floats])
    return [
        Parts(r, t) if jnp.issubdtype(t.dtype, jnp.inexact) else t
        for r, t in zip(moved, out, strict=True)
    ]


def _pick(operation: Operation, x: Parts) -> Parts:
    """Maximum or minimum over axes; of equal elements, the first."""
    axes = tuple(operation.params["axes"])
    if not axes:
        return x
    kept = [n for n in range(x.total.ndim) if n not in axes]

    def last(v: Array) -> Array:
        moved = jnp.transpose(v, (*kept, *axes))
        return moved.reshape(*(v.shape[n] for n in kept), -1)

    best = jnp.argmax if operation.name == "reduce_max" else jnp.argmin
    index = best(last(x.total), axis=-1)[..., None]
    return each(lambda v: jnp.take_along_axis(last(v), index, axis=-1)[..., 0], x)


def _pool(operation: Operation, x: Parts) -> Parts:
    """Maximum over windows; of equal elements, the first in reading order."""
    best, place = winners(operation.params, x.total)
    picked = lambda v: pick(operation.params, v, place)
    return each(picked, x) if x.bias is not None else Parts(picked(x.relevant), best)


def winners(params: Mapping[str, Any], x: Array) -> tuple[Array, Array]:
    """The maximum of each window, and where in the window it is: of equals, the first."""
    if any(n != 1 for n in params["base_dilation"]):
        raise NoRule("dilated max-pooling has no rule: give one for 'reduce_window_max'")
    # Not by equality with the maximum: compilers may round copies of one value differently.
    first, *others = _views(params, x, -jnp.inf)
    best, place = first, jnp.zeros(first.shape, jnp.int32)
    for n, view in enumerate(others, 1):
        place = jnp.where(view > best, n, place)
        best = jnp.maximum(best, view)
    return best, place


def pick(params: Mapping[str, Any], x: Array, place: Array) -> Array:
    """Of each window, the element at its place."""
    out, *others = _views(params, x, 0)
    for n, view in enumerate(others, 1):
        out = jnp.where(place == n, view, out)
    return out


def _views(params: Mapping[str, Any], x: Array, edge: float) -> Iterable[Array]:
    """The elements at each place of the window, for all windows at once."""
    x = lax.pad(x, jnp.asarray(edge, x.dtype), [(lo, hi, 0) for lo, hi in params["padding"]])
    window, strides = params["window_dimensions"], params["window_strides"]
    dilation = params["window_dilation"]
    spans = [(n - 1) * d + 1 for n, d in zip(window, dilation, strict=True)]
    counts = [(n - s) // t + 1 for n, s, t in zip(x.shape, spans, strides, strict=True)]
    for place in np.ndindex(*window):
        start = [n * d for n, d in zip(place, dilation, strict=True)]
        stop = [s + (c - 1) * t + 1 for s, c, t in zip(start, counts, strides, strict=True)]
        yield lax.slice(x, start, stop, strides)


def _structure(operation: Operation, operands: list, zero: list[bool], table: Rules) -> Any:
    """Every part moves like the whole."""
    data = rules.DATA.get(operation.name, slice(None))
    places = range(len(operands))[data] if isinstance(data, slice) else data
    controls = [v.total if isinstance(v, Parts) else v for v in operands]
    if not any(isinstance(operands[n], Parts) for n in places):
        return operation.run(controls)  # what decides is the total
    floats = [n for n in places if jnp.issubdtype(total_of(operands[n]).dtype, jnp.inexact)]
    constant = any(
        (v.bias is not None) if isinstance(v, Parts) else not zero[n]
        for n, v in ((n, operands[n]) for n in floats)
    )
    belongs = [v.member for n in floats if isinstance(v := operands[n], Parts)]

    def channel(of: Callable[[Value, bool], Array]) -> list:
        values = list(controls)
        for n in floats:
            values[n] = of(operands[n], isinstance(operands[n], Parts))
        return operation.run(values)

    def nothing(v: Value) -> Array:
        return jnp.zeros_like(total_of(v))

    relevant = channel(lambda v, is_parts: v.relevant if is_parts else nothing(v))
    signal = channel(
        lambda v, is_parts: v.signal if is_parts else nothing(v) if constant else total_of(v)
    )
    bias = member = [None] * len(signal)
    if constant:
        bias = channel(
            lambda v, is_parts: v if not is_parts else nothing(v) if v.bias is None else v.bias
        )
    if any(m is not None for m in belongs):
        member = channel(
            lambda v, is_parts: nothing(v) if not is_parts or v.member is None else v.member
        )
        member = [jnp.abs(m) for m in member] if operation.name == "neg" else member
    return [Parts(*parts) for parts in zip(relevant, signal, bias, member, strict=True)]


def total_of(value: Value) -> Array:
    return value.total if isinstance(value, Parts) else jnp.asarray(value)


def _sum(operation: Operation, operands: list, zero: list[bool], table: Rules) -> Parts:
    """Parts add up; a constant joins the constants."""
    a, b = operands
    sign = -1 if operation.name == "sub" else 1
    if isinstance(a, Parts) and isinstance(b, Parts):
        if splits_early(table):
            a, b = settle(a, table), settle(b, table)
        signal = operation(a.signal, b.signal)
        known = [v for v in (a.bias, None if b.bias is None else sign * b.bias) if v is not None]
        joined = [v for v in (a.member, b.member) if v is not None]
        member = None if not joined else jnp.broadcast_to(reduce(jnp.maximum, joined), signal.shape)
        bias = reduce(jnp.add, known) if known else None
        return Parts(operation(a.relevant, b.relevant), signal, bias, member)
    x, c, place = (a, b, 1) if isinstance(a, Parts) else (b, a, 0)
    shape = jnp.broadcast_shapes(x.signal.shape, jnp.shape(c))
    out = each(lambda v: jnp.broadcast_to(sign * v if place == 0 and sign < 0 else v, shape), x)
    out = out._replace(member=x.member)
    if zero[place]:
        return out
    constant = jnp.broadcast_to(c if place == 0 or sign == 1 else -c, shape).astype(x.signal.dtype)
    return out._replace(bias=constant if out.bias is None else out.bias + constant)


def _mixing(operation: Operation, operands: list, zero: list[bool], table: Rules) -> Parts:
    x = settle(operands[0], table) if splits_early(table) else operands[0]
    return each(lambda v: operation(v), x)


def _bilinear(operation: Operation, operands: list, zero: list[bool], table: Rules) -> Any:
    """Linear in one lifted operand; of two, the table's product rule."""
    a, b = operands
    if isinstance(a, Parts) and isinstance(b, Parts):
        if operation.gate is not None:
            return table["gate"](operation, a, b)
        if "product" not in table:
            raise NoRule(f"add one with rules={{**rules, {operation.name!r}: rule}}")
        if table["bias"] is not apart:
            a, b = settle(a, table), settle(b, table)
        return table["product"](operation, a, b)
    x, left = (a, True) if isinstance(a, Parts) else (b, False)
    c = total_of(b if left else a)
    with_constant = (lambda v: operation(v, c)) if left else (lambda v: operation(c, v))
    if operation.name == "mul":
        out = each(with_constant, x)
        member = None if x.member is None else jnp.broadcast_to(x.member, out.signal.shape)
        return out._replace(member=member)
    if splits_early(table):
        x = settle(x, table)
    out = each(with_constant, x)
    if x.member is None or operation.name != "dot_general":
        return out
    return out._replace(member=_belongs(operation, x.member, left, out.signal.shape))


def _belongs(operation: Operation, member: Array, left: bool, shape: tuple[int, ...]) -> Array:
    """Membership of a product's elements: the most of what each was summed over."""
    contract, batch = operation.params["dimension_numbers"]
    summed, batched = (contract[0], batch[0]) if left else (contract[1], batch[1])
    free = [n for n in range(member.ndim) if n not in (*summed, *batched)]
    most = jnp.transpose(member.max(axis=tuple(summed), keepdims=True), (*batched, *free, *summed))
    most = most.reshape([member.shape[n] for n in (*batched, *free)])
    first = len(batched) if left else len(shape) - len(free)
    places = (*range(len(batched)), *range(first, first + len(free)))
    return lax.broadcast_in_dim(most, shape, places)


def _quotient(operation: Operation, operands: list, zero: list[bool], table: Rules) -> Any:
    """What a value is divided by comes from its total."""
    a, b = operands
    if isinstance(b, Parts):
        if "normalizer" not in table:
            raise NoRule(f"add one with rules={{**rules, {operation.name!r}: rule}}")
        b = b.total
    if not isinstance(a, Parts):
        return operation(total_of(a), b)
    return each(lambda v: operation(v, b), a, member=False)._replace(
        member=None if a.member is None else jnp.broadcast_to(a.member, a.signal.shape)
    )


def _root(operation: Operation, operands: list, zero: list[bool], table: Rules) -> Parts:
    """As the value divided by its root, which is held: a part may be negative, its root is none."""
    x = settle(operands[0], table)
    root = operation(x.total)
    scale = jnp.where(x.total > 0, 1 / jnp.where(x.total > 0, root, 1), 0)
    return Parts(x.relevant * scale, root)


def _convert(operation: Operation, operands: list, zero: list[bool], table: Rules) -> Any:
    """Floats to floats in parts; to anything else, held."""
    if jnp.issubdtype(operation.params["new_dtype"], jnp.inexact):
        return each(lambda v: operation(v), operands[0], member=True)
    return hold(operation, *operands)


BUILT_IN: Mapping[str, Callable[..., Any]] = {
    "structure": _structure,
    "mixing": _mixing,
    "sum": _sum,
    "bilinear": _bilinear,
    "quotient": _quotient,
    "convert": _convert,
    "root": _root,
    "hold": lambda operation, operands, zero, table: hold(operation, *operands),
}
