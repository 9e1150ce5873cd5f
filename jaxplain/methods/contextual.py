"""Contextual decomposition: how much of f(x) came from a chosen group of inputs.

Every value in f's program is split in a relevant and an irrelevant part that sum to it. What each
primitive does with the parts stands in a table of rules: an ordinary mapping from names to
functions, of which a caller replaces what should be otherwise, `{**CD_ACD, "erf": first}`. The
published variants of the method are such tables, and disagree with each other. `tables.py` has
them, the rules they are made of, and what the names in them mean.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain.interpret import compat, forward
from jaxplain.interpret.convolutions import canonical_convolutions
from jaxplain.interpret.parts import Missing
from jaxplain.interpret.parts import Operation as Operation
from jaxplain.interpret.parts import Parts as Parts
from jaxplain.interpret.parts import apart as apart
from jaxplain.interpret.parts import proportional as proportional
from jaxplain.methods.tables import CD_ACD as CD_ACD
from jaxplain.methods.tables import CD_LSTM as CD_LSTM
from jaxplain.methods.tables import CD_SHAPLEY as CD_SHAPLEY
from jaxplain.methods.tables import CD_TRANSFORMER as CD_TRANSFORMER
from jaxplain.methods.tables import CD_TRANSFORMER_QK as CD_TRANSFORMER_QK
from jaxplain.methods.tables import Rules as Rules
from jaxplain.methods.tables import alone as alone
from jaxplain.methods.tables import by_total as by_total
from jaxplain.methods.tables import first as first
from jaxplain.methods.tables import first_under_mask as first_under_mask
from jaxplain.methods.tables import held as held
from jaxplain.methods.tables import last as last
from jaxplain.methods.tables import lstm_rules as lstm_rules
from jaxplain.methods.tables import shapley as shapley
from jaxplain.methods.tables import shared as shared
from jaxplain.methods.tables import switch as switch
from jaxplain.methods.tables import with_constants as with_constants
from jaxplain.types import Array, JaxplainError, PyTree, Split, check_like, check_positive


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
    return forward.decompose(f, x, relevant, members, size, rules, forward.refuse)


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
