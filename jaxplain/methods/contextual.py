"""Contextual decomposition: how much of f(x) came from a chosen group of inputs.

Every value in f's program is split in a relevant and an irrelevant part that sum to it. What each
primitive does with the parts stands in a table of rules: an ordinary mapping from names to
functions, of which a caller replaces what should be otherwise, `{**CD_ACD, "erf": first}`. The
published variants of the method are such tables, and disagree with each other.

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
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain.interpret import compat, forward
from jaxplain.interpret.convolutions import canonical_convolutions
from jaxplain.interpret.linear import hold as held
from jaxplain.interpret.linear import switch
from jaxplain.interpret.parts import (
    Missing,
    Operation,
    Parts,
    apart,
    proportional,
    proportional_or_by_size,
    share,
)
from jaxplain.types import Array, JaxplainError, PyTree, Split, check_like, check_positive

Rules = Mapping[str, Any]


# Rules for functions of one value. `x.bias` is None but for softmax and where constants stay apart.


def first(op: Operation, x: Parts) -> Parts:
    """The relevant part alone, as if it came first: `φ(relevant + bias) - φ(bias)`."""
    if x.bias is None and op.vanishes:
        return Parts(op(x.relevant), op(x.total))
    start = jnp.zeros_like(x.signal) if x.bias is None else x.bias
    none = op(start)
    return Parts(op(x.relevant + start) - none, op(x.signal + start) - none, none, x.member)


def last(op: Operation, x: Parts) -> Parts:
    """What the relevant part adds to the rest, as if it came last: `φ(total) - φ(irrelevant)`."""
    total, rest = op(x.total), x.irrelevant
    return Parts(total - op(rest if x.bias is None else rest + x.bias), total)


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
    bias=proportional, bias_at="module", elementwise=first, softmax=first, product=alone
)
CD_SHAPLEY = _table(
    bias=proportional_or_by_size,
    bias_at="activation",
    elementwise=shapley,
    softmax=shapley,
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
        softmax=shapley,
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


def contextual_decomposition(
    f: Callable[[PyTree], PyTree],
    x: PyTree,
    mask: PyTree,
    *,
    rules: Rules = CD_SHAPLEY,
) -> Split:
    """f(x) as what came from a group of inputs, and the rest.

    Works on any function that JAX can trace, without changes to it: the rules apply to the
    primitives of its program, through calls, `scan`, `cond` and `jax.checkpoint`.

    Args:
        f: `x -> output`, a tree of float arrays of any shape.
        x: one example, a tree of float arrays.
        mask: x's tree, or one that broadcasts to it: True or 1 where an input is in the group; a
            number between takes that share of the input.
        rules: a table. `CD_SHAPLEY` treats the group and the rest alike; `CD_ACD` (convolutional
            networks), `CD_LSTM` and `CD_TRANSFORMER`, which holds attention, or
            `CD_TRANSFORMER_QK`, which splits it, follow the published methods.

    Returns:
        `relevant` and `irrelevant`, trees like f's output, in f's units; they sum to f(x). This
        holds for every table, and so says nothing of which is right.

    Raises:
        MissingRule: a `NotImplementedError`: a primitive between x and the output has no rule;
            the message names it, its module path and the line that adds one.
        JaxplainError: x has integers, the mask does not fit, or f returns no floats.

    Cost: about 2 forward evaluations; for each further group under `vmap` over masks, about 1.

    References:
        W. James Murdoch, Peter J. Liu, Bin Yu, "Beyond Word Importance: Contextual Decomposition to
        Extract Interactions from LSTMs", 2018, https://arxiv.org/abs/1801.05453
        Chandan Singh, W. James Murdoch, Bin Yu, "Hierarchical interpretations for neural network
        predictions", 2019, https://arxiv.org/abs/1806.05337
        Aliyah R. Hsu, Georgia Zhou, Yeshwanth Cherapanamjeri, Yaxuan Huang, Anobel Y. Odisho, Peter
        R. Carroll, Bin Yu, "Efficient Automated Circuit Discovery in Transformers using Contextual
        Decomposition", 2024, https://arxiv.org/abs/2407.00886

    Differs: constants that an activation makes of zero (sigmoid(0)) are split like a bias, where
        the published code for convolutional networks gives them to the group. Two parts that are
        both 0 share a constant in halves under `CD_ACD`, as published; under `CD_SHAPLEY` and
        `CD_TRANSFORMER`, by how much of x is in the group. The classifier's bias is part of the
        result, under `CD_LSTM` of its irrelevant part. Consecutive constants of one name scope (one
        module) are split once, those of different ones each on their own. Attention, GELU,
        LayerNorm and LSTM cells are recognised by their shape in the program, not by a module's
        class.

    >>> import jax, jax.numpy as jnp
    >>> f = lambda x: jax.nn.relu(x[0] - x[1]) * 2
    >>> split = contextual_decomposition(f, jnp.array([3.0, 1.0]), jnp.array([True, False]))
    >>> float(split.relevant), float(split.irrelevant)
    (5.0, -1.0)
    """
    return _split(f, x, _check(f, x, mask), rules)


def group_scores(
    f: Callable[[PyTree], PyTree],
    x: PyTree,
    masks: PyTree,
    *,
    rules: Rules = CD_SHAPLEY,
    chunk: int = 64,
) -> Split:
    """The contextual decompositions of one example by many groups.

    Letters: `G` groups.

    Args:
        f: as in `contextual_decomposition`.
        x: as in `contextual_decomposition`.
        masks: as `mask` there, each leaf with an axis `G` in front.
        rules: as in `contextual_decomposition`.
        chunk: how many groups are computed at a time; peak memory grows with it, not with G.

    Returns:
        `relevant` and `irrelevant`, f's output tree with an axis `G` in front.

    Raises:
        MissingRule: as `contextual_decomposition`.
        JaxplainError: as `contextual_decomposition`, or the masks have no common axis in front.

    Cost: about G forward evaluations, and one for each chunk.
    """
    check_positive("chunk", chunk)
    sizes = {jnp.shape(m)[:1] for m in jax.tree.leaves(masks)}
    if len(sizes) != 1 or sizes == {()}:
        raise JaxplainError(
            "masks must have one axis of groups in front, of the same length in every leaf, and "
            f"have leading axes {sorted(list(s) for s in sizes)}: for one group take masks[None]"
        )
    (groups,) = next(iter(sizes))
    if groups == 0:
        raise JaxplainError("masks holds no group: give at least one")
    jax.eval_shape(jax.vmap(lambda mask: _check(f, x, mask)), masks)

    def some(masks: PyTree) -> Split:
        return jax.vmap(lambda mask: _split(f, x, _fit(mask, x), rules))(masks)

    rounds = -(-groups // chunk)
    chunk = -(-groups // rounds)  # even ones need the least padding
    if rounds == 1:
        return some(masks)

    def rows(m: Array) -> Array:
        m = jnp.asarray(m)
        missing = jnp.broadcast_to(m[-1:], (rounds * chunk - groups, *m.shape[1:]))
        return jnp.concatenate([m, missing]).reshape(rounds, chunk, *m.shape[1:])

    split = lax.map(canonical_convolutions(some), jax.tree.map(rows, masks))
    return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:])[:groups], split)


def _split(f: Callable[..., PyTree], x: PyTree, mask: PyTree, rules: Rules) -> Split:
    parts = _decompose(f, x, mask, rules)
    is_parts = lambda v: isinstance(v, Parts)
    relevant = jax.tree.map(lambda v: v.relevant, parts, is_leaf=is_parts)
    return Split(relevant, jax.tree.map(lambda v: v.irrelevant, parts, is_leaf=is_parts))


def _decompose(f: Callable[..., PyTree], x: PyTree, mask: PyTree, rules: Rules) -> PyTree:
    x = jax.tree.map(jnp.asarray, x)
    relevant = jax.tree.map(lambda m, v: m * v, mask, x)
    members = None
    if "bias_product" in rules and rules["bias_product"] != "irrelevant":
        members = mask
        if rules["bias_product"] == "exclusive":
            members = jax.tree.map(_and_next, mask)
    wide = [m.astype(jnp.promote_types(m.dtype, jnp.float32)) for m in jax.tree.leaves(mask)]
    size = jnp.mean(jnp.concatenate([m.reshape(-1) for m in wide]))
    return forward.decompose(f, x, relevant, members, size, rules, forward.refuse(rules))


def _and_next(mask: Array) -> Array:
    """Of each step and the one after it, the smaller membership; none after the last."""
    return jnp.minimum(mask, jnp.concatenate([mask[1:], jnp.zeros_like(mask[:1])]))


def _fit(mask: PyTree, x: PyTree) -> PyTree:
    return check_like("mask", mask, x)


def _check(f: Callable[..., PyTree], x: PyTree, mask: PyTree) -> PyTree:
    """The mask, as floats of x's shape; raises for what cannot be decomposed."""
    if not jax.tree.leaves(x):
        raise JaxplainError("x has no arrays in it: there is nothing to decompose")
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            where = f"x{jax.tree_util.keystr(path)}"
            raise JaxplainError(
                f"{where} is {jnp.result_type(leaf)}, and only floating-point inputs can be "
                "decomposed: take the embeddings of ids, and close f over everything else"
            )
    out = jax.tree.leaves(jax.eval_shape(f, x))
    if not out or any(not jnp.issubdtype(v.dtype, jnp.floating) for v in out):
        raise JaxplainError(
            "f must return floating-point arrays, and returned "
            f"{[str(v.dtype) for v in out] or 'nothing'}: return the logits"
        )
    return _fit(mask, x)


def missing(f: Callable[[PyTree], PyTree], x: PyTree, rules: Rules = CD_SHAPLEY) -> list[Missing]:
    """Primitives between x and f(x) that a table has no rule for. Evaluates nothing.

    Args:
        f: as in `contextual_decomposition`.
        x: arrays, or `jax.ShapeDtypeStruct`s of them.
        rules: the table.

    Returns:
        One `Missing(name, path, count, hint)` for each primitive and module path, in the order in
        which the program meets them; empty if the decomposition can run.
    """
    return forward.survey(f, x, rules)


def named(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, to be treated as one operation by tables with a rule of that name.

    Elsewhere it is `fn`, compiled on its own where it is called outside of `jit`.

    >>> import jax.numpy as jnp
    >>> swish = named("swish", lambda x: x / (1 + jnp.exp(-x)))
    >>> x, mask = jnp.array([1.0, 2.0]), jnp.array([True, False])
    >>> split = contextual_decomposition(swish, x, mask, rules={**CD_ACD, "swish": first})
    >>> bool(jnp.allclose(split.relevant, swish(x * mask)))
    True
    """
    return compat.named(name, fn)


def hold(value: PyTree) -> PyTree:
    """`value`, marked: a decomposition takes it whole, as if it did not depend on x.

    >>> import jax.numpy as jnp
    >>> f = lambda x: hold(x[0]) * x[1]
    >>> split = contextual_decomposition(f, jnp.array([2.0, 3.0]), jnp.array([True, False]))
    >>> float(split.relevant)
    0.0
    """
    leaves, tree = jax.tree.flatten(value)
    return jax.tree.unflatten(tree, compat.named("hold", lambda *leaves: leaves)(*leaves))
