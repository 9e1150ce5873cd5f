"""The rules and tables of contextual decomposition: how one operation splits what it makes.

A name in a table is that of a primitive ("erf", "dot_general"), of a call (a function marked with
`jaxplain.named`), a pattern of module paths with a "/" in it ("*/attention/norm"), or one of:

    elementwise     a function of one element each: `(op, x) -> Parts`
    product         of two values that are split: `(op, a, b) -> Parts`
    gate            of an LSTM's output gate with the tanh of its cell: `(op, a, b) -> Parts`
    softmax         of a vector of scores, whose constants `x.bias` are still apart
    normalization   by the mean square of the value itself: LayerNorm, RMSNorm, GroupNorm
    switch          maximum, max-pooling, sorting: what picks elements
    normalizer      what a value is divided by: held
    bias            how constants are split: `(relevant, irrelevant, bias, size) -> relevant part of
                    bias`, where `size` is how much of x is in the group, 0 to 1; `apart` never does
    bias_at         when they are: at the end of the "module" (name scope) that adds them, or not
                    before an "activation" or product needs it
    bias_product    for tables that keep constants apart: who gets a product of two constants

Sums, reshapes, products with constants and everything else that is linear treat all parts alike.
"""

from collections.abc import Callable, Mapping
from functools import partial, wraps
from inspect import unwrap
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxplain.interpret.linear import hold as held
from jaxplain.interpret.linear import switch
from jaxplain.interpret.parts import (
    Operation,
    Parts,
    apart,
    proportional,
    proportional_or_by_size,
    share,
)
from jaxplain.types import Array, JaxplainError

Rules = Mapping[str, Any]


# Rules for functions of one value. `x.bias` is None but for softmax and where constants stay apart.


@jax.custom_jvp
def _with_derivative(value: Array, source: Array) -> Array:
    """`value`, with the derivative of `source`."""
    return value


@_with_derivative.defjvp
def _of_source(primals: tuple, tangents: tuple) -> tuple:
    return _with_derivative(*primals), tangents[1]


def _exact_at_ends(rule: Callable, all_makes_all: bool = True) -> Callable:
    """The rule where nothing in makes nothing out, and all of a signal all that it makes.

    As differences they are so but for rounding, which sharing constants in proportion magnifies
    with every step of a recurrent network, until it is what the scores show.
    """

    @wraps(rule)
    def exact(op: Operation, x: Parts) -> Parts:
        out = rule(op, x)
        part = out.relevant
        if all_makes_all:
            part = jnp.where(x.irrelevant == 0, _with_derivative(out.signal, part), part)
        part = jnp.where(x.relevant == 0, _with_derivative(jnp.zeros_like(part), part), part)
        return out._replace(relevant=part)

    return exact


@_exact_at_ends
def first(op: Operation, x: Parts) -> Parts:
    """The relevant part alone, as if it came first: `φ(relevant + bias) - φ(bias)`."""
    if x.bias is None and op.vanishes:
        return Parts(op(x.relevant), op(x.total))
    start = jnp.zeros_like(x.signal) if x.bias is None else x.bias
    none = op(start)
    return Parts(op(x.relevant + start) - none, op(x.signal + start) - none, none, x.member)


@partial(_exact_at_ends, all_makes_all=False)
def last(op: Operation, x: Parts) -> Parts:
    """What the relevant part adds to the rest, as if it came last: `φ(total) - φ(irrelevant)`."""
    total, rest = op(x.total), x.irrelevant
    return Parts(total - op(rest if x.bias is None else rest + x.bias), total)


@_exact_at_ends
def shapley(op: Operation, x: Parts) -> Parts:
    """The mean of coming first and coming last, the constants being there before either."""
    if x.bias is None and op.vanishes:
        total = op(x.signal)
        return Parts((op(x.relevant) + total - op(x.irrelevant)) / 2, total)
    start = jnp.zeros_like(x.signal) if x.bias is None else x.bias
    none, total = op(start), op(x.signal + start)
    rest = x.signal - x.relevant if x.bias is not None else x.irrelevant
    before, after = op(x.relevant + start) - none, total - op(rest + start)
    return Parts((before + after) / 2, total - none, none, x.member)


# Rules for a product of two values that are both split.


def alone(op: Operation, a: Parts, b: Parts) -> Parts:
    """Relevant times relevant; all that an irrelevant part has a hand in is irrelevant."""
    return Parts(op(a.relevant, b.relevant), op(a.total, b.total))


def shared(op: Operation, a: Parts, b: Parts) -> Parts:
    """Of the products of one part with the other, each gets half: the Shapley value."""
    mixed = op(a.relevant, b.total) + op(a.total, b.relevant)
    return Parts(mixed / 2, op(a.total, b.total))


def with_constants(op: Operation, a: Parts, b: Parts) -> Parts:
    """Relevant times relevant or constant; constant times constant to the members of the group."""
    relevant = op(a.relevant, b.relevant if b.bias is None else b.relevant + b.bias)
    if a.bias is not None:
        theirs, members = b.relevant, [v for v in (a.member, b.member) if v is not None]
        if b.bias is not None and members and op.name == "mul":
            most = members[0] if len(members) == 1 else jnp.maximum(*members)
            theirs = theirs + most * b.bias
        relevant = relevant + op(a.bias, theirs)
    return Parts(relevant, op(a.total, b.total))


def hold_gate(op: Operation, a: Parts, b: Parts) -> Parts:
    """The gate is taken whole: a number that the other operand is multiplied with."""
    gate, other = (a, b) if op.gate == 0 else (b, a)
    held = gate.total
    bias = None if other.bias is None else held * other.bias
    return Parts(held * other.relevant, held * other.signal, bias)


# Rules for patterns.


def first_under_mask(op: Operation, x: Parts) -> Parts:
    """A softmax of the relevant scores alone; what constants mask stays masked."""
    start = 0 if x.bias is None else x.bias
    return Parts(op(x.relevant + start), op(x.total))


def by_total(op: Operation, x: Parts) -> Parts:
    """A normalisation whose mean square is the total's, each part less its own mean.

    The constant added after it is shared in proportion to the parts that came in.
    """
    assert op.inside is not None
    (out,) = op.inside({"bias": apart}, [x])
    if out.bias is None:
        return out
    part = out.bias * share(x.relevant, x.irrelevant)
    return Parts(out.relevant + part, out.total)


def _table(**rules: Any) -> Rules:
    return MappingProxyType({"hold": held, "switch": switch, "normalizer": held, **rules})


CD_ACD = _table(
    bias=proportional, bias_at="module", elementwise=first, softmax=unwrap(first), product=alone
)
CD_SHAPLEY = _table(
    bias=proportional_or_by_size,
    bias_at="activation",
    elementwise=shapley,
    softmax=unwrap(shapley),
    product=shared,
)

BIAS_PRODUCTS = ("inclusive", "exclusive", "irrelevant")


def lstm_rules(
    bias_product: Literal["inclusive", "exclusive", "irrelevant"] = "inclusive",
) -> Rules:
    """The table of Murdoch et al. 2018; `CD_LSTM` is this with its default.

    Args:
        bias_product: who gets the product of two constants, of the input gate and of the new
            cell value, at a step: the group, if the step's input is in it ("inclusive"); if the
            next one is too ("exclusive", the code of the paper); never ("irrelevant"). "exclusive"
            reads the order of steps from x's first axis.

    Raises:
        JaxplainError: for another mode.
    """
    if bias_product not in BIAS_PRODUCTS:
        raise JaxplainError(
            f"bias_product must be one of {', '.join(BIAS_PRODUCTS)}, not {bias_product!r}"
        )
    return _table(
        bias=apart,
        elementwise=shapley,
        softmax=unwrap(shapley),
        product=with_constants,
        gate=hold_gate,
        bias_product=bias_product,
    )


CD_LSTM = lstm_rules()

CD_TRANSFORMER = _table(
    bias=proportional_or_by_size,
    bias_at="module",
    elementwise=last,
    softmax=held,
    product=alone,
    normalization=by_total,
)
CD_TRANSFORMER_QK = MappingProxyType({**CD_TRANSFORMER, "softmax": first_under_mask})
