"""What the change of a hidden state is measured by: which units count, and by how much each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret.compat import is_traced
from jaxplain.interpret.dependence import depends
from jaxplain.methods.sampling import wide
from jaxplain.types import Array, JaxplainError, PyTree, check_like


class Target(NamedTuple):
    """What the change of a state is measured by.

    Attributes:
        state: leaves of h(x).
        weight: like `state`, 1 / (spread^2 D), 0 where a unit does not count.
        real: `[T]` bool, which rows of x are words.
        words: `[]` how many of them, n.
        units: `[]` int32, how many units count, D.
        left_out: `[]` int32, units that would, and have no spread.
        rate: `[]` by the published convention.
    """

    state: list[Array]
    weight: list[Array]
    real: Array
    words: Array
    units: Array
    left_out: Array
    rate: Array


def measured(h, x, spread, mask, unit_mask, rate, per_word_rate) -> Target:
    """The `Target` of h at x; see `word_information` for the arguments."""
    real = jnp.ones(x.shape[0], bool) if mask is None else jnp.asarray(mask).astype(bool)
    if real.shape != x.shape[:1]:
        raise JaxplainError(f"mask has shape {list(real.shape)}, and x has {x.shape[0]} words")
    state = wide(h(x))
    leaves = jax.tree.leaves(state)
    every = 1.0 if unit_mask is None else unit_mask
    counted = [v != 0 for v in jax.tree.leaves(check_like("unit_mask", every, state, "h(x)"))]
    asked = sum(jnp.sum(c) for c in counted)
    if spread is None:
        # As published without one: all units by the mean square of the state.
        sums = [jnp.sum(jnp.square(v), where=c) for c, v in zip(counted, leaves, strict=True)]
        inverse = [jnp.where(c, asked / sum(sums), 0) for c in counted]
    else:
        _check_spread(spread)
        wanted = jax.tree.leaves(check_like("spread", spread, state, "h(x)"))
        counted = [c & (s > 0) for c, s in zip(counted, wanted, strict=True)]
        inverse = [
            jnp.where(c, 1 / jnp.square(jnp.where(c, s, 1)), 0)
            for c, s in zip(counted, wanted, strict=True)
        ]
    units, words = sum(jnp.sum(c) for c in counted), jnp.sum(real)
    dtype = leaves[0].dtype
    if rate is None:
        per_word = jnp.asarray(0.1 if per_word_rate is None else per_word_rate, dtype)
        rate = per_word * words * x.shape[1] / units
    return Target(
        state=leaves,
        weight=[v.astype(dtype) / units for v in inverse],
        real=real,
        words=words.astype(dtype),
        units=jnp.asarray(units, jnp.int32),
        left_out=jnp.asarray(asked - units, jnp.int32),
        rate=jnp.asarray(rate, dtype),
    )


def _check_spread(spread: PyTree) -> None:
    for leaf in jax.tree.leaves(spread):
        if not is_traced(leaf) and np.any(np.asarray(leaf) < 0):
            raise JaxplainError("spread has negative entries: it is a standard deviation")


def check_words(h: Callable, x: Any) -> Array:
    """x as an array of words, after a look at h's shapes."""
    if len(jax.tree.leaves(x)) != 1 or jnp.ndim(x) != 2 or 0 in jnp.shape(x):
        shapes = [list(jnp.shape(v)) for v in jax.tree.leaves(x)]
        raise JaxplainError(
            f"x must be one array [T, K] of word vectors, and has {shapes}: close h over the rest"
        )
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise JaxplainError(
            f"x is {jnp.result_type(x)}, and noise needs floating-point words: give the embeddings "
            "of ids"
        )
    x = jnp.asarray(x)
    out = jax.eval_shape(h, x)
    bad = [s for s in jax.tree.leaves(out) if not jnp.issubdtype(s.dtype, jnp.floating)]
    if bad or not jax.tree.leaves(out):
        raise JaxplainError(
            f"h must return floating-point states, and returned {bad or 'nothing'}: select the "
            "hidden state, as in h = lambda x: model(x)['hidden'][3]"
        )
    if not depends(h, x):
        raise JaxplainError(
            "h does not depend on x: no word is in its state; compute the state from the x that h "
            "is given"
        )
    return x
