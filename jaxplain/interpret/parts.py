"""Values in parts, and what a rule is told: the vocabulary of all forward rules."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax

from jaxplain.types import Array, JaxplainError


class Parts(NamedTuple):
    """A value split in two, with the constants in it apart while no rule has split them.

    Attributes:
        relevant: what came from the chosen group of inputs.
        signal: all that came from inputs: the value itself if no constants are apart.
        bias: sum of constants that belong to neither part yet; None if there are none.
        member: how far the inputs that a value was made of belong to the group, 0 to 1; only kept
            for tables that ask for it, and until the first product.
    """

    relevant: Array
    signal: Array
    bias: Array | None = None
    member: Array | None = None

    @property
    def irrelevant(self) -> Array:
        """A difference: below its rounding error it is 0, and takes no share of anything."""
        rest = self.signal - self.relevant
        noise = 4 * float(jnp.finfo(rest.dtype).eps) * jnp.abs(self.signal)
        return rest - lax.stop_gradient(jnp.where(jnp.abs(rest) > noise, 0, rest))

    @property
    def total(self) -> Array:
        return self.signal if self.bias is None else self.signal + self.bias


class Operation(NamedTuple):
    """What a rule is told of the operation that it splits. Call it to evaluate it on arrays.

    Attributes:
        name: of the primitive, call or pattern.
        path: module path, outermost first.
        params: the primitive's.
        run: `operands -> outputs`.
        vanishes: it gives zero where its lifted operand is zero.
        gate: position of the operand that is an LSTM's output gate, where it is one.
        inside: `(changed, operands) -> outputs`, the steps of a group or call by the same table
            with some rules changed; None for a primitive.
    """

    name: str
    path: str
    params: Mapping[str, Any]
    run: Callable[[list], list]
    vanishes: bool = False
    gate: int | None = None
    inside: Callable[..., list] | None = None

    def __call__(self, *operands: Array) -> Any:
        out = self.run(list(operands))
        return out[0] if len(out) == 1 else out


Value: TypeAlias = Any  # Parts, or an array that does not depend on the signal
Rules: TypeAlias = Mapping[str, Any]


class Missing(NamedTuple):
    """A primitive on the signal's path that a table has no rule for.

    Attributes:
        name: of the primitive.
        path: module path of its first use; "" outside of any name scope.
        count: how many times the program uses it there.
        hint: what to do about it.
    """

    name: str
    path: str
    count: int
    hint: str


class MissingRule(JaxplainError, NotImplementedError):
    """A primitive on the signal's path has no rule in the table."""


def apart(relevant: Array, irrelevant: Array, bias: Array, size: Array) -> Array:
    """Constants stay a third part, and none of them is relevant in the end."""
    return jnp.zeros_like(relevant)


def proportional(relevant: Array, irrelevant: Array, bias: Array, size: Array) -> Array:
    """Constants are shared in proportion to the size of the two parts; in halves if both are 0."""
    return bias * share(relevant, irrelevant)


def proportional_or_by_size(relevant: Array, irrelevant: Array, bias: Array, size: Array) -> Array:
    """As `proportional`; if both are 0, by how much of x is in the group: all of it gets all."""
    return bias * share(relevant, irrelevant, size)


def share(relevant: Array, irrelevant: Array, otherwise: Array | float = 0.5) -> Array:
    """`|relevant| / (|relevant| + |irrelevant|)`, with finite derivatives everywhere."""
    dtype = jnp.promote_types(relevant.dtype, jnp.float32)
    own, size = jnp.abs(relevant.astype(dtype)), jnp.abs(irrelevant.astype(dtype))
    size = size + own
    # Below, the derivative 1 / size would overflow when squared.
    some = size > 8 * float(jnp.finfo(dtype).tiny) ** 0.5
    return jnp.where(some, own / jnp.where(some, size, 1), otherwise).astype(relevant.dtype)


def splits_early(rules: Rules) -> bool:
    """Whether constants are split in the module that adds them, before anything else is done."""
    return rules["bias"] is not apart and rules.get("bias_at") == "module"


def settle(value: Value, rules: Rules) -> Value:
    """The value without constants apart: the table's rule for them has split them."""
    if not isinstance(value, Parts) or value.bias is None:
        return value
    part = rules["bias"](value.relevant, value.irrelevant, value.bias, rules["size"])
    return Parts(value.relevant + part, value.total, None, value.member)


def each(op: Callable[[Array], Array], x: Parts, member: bool = False) -> Parts:
    """A linear operation on every part."""
    bias = None if x.bias is None else op(x.bias)
    belongs = op(x.member) if member and x.member is not None else None
    return Parts(op(x.relevant), op(x.signal), bias, belongs)


class NoRule(Exception):
    """A built-in rule met operands that it does not serve."""
