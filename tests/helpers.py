"""Comparisons with a tolerance that follows from the dtype, or from a method's own uncertainty."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.types import JaxplainError

# Some hundreds of roundings deep: the models here are chains of about 10 sums of about 50 terms.
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 3e-2, "float16": 4e-3}


def close(got, want, *, dtype=None, factor=1.0):
    """Assert equal trees of close arrays, relative to the largest number in each of `want`.

    Arrays of whole numbers must be equal.
    `dtype` is the one the computation ran in, by default that of `got`.
    """
    assert jax.tree.structure(got) == jax.tree.structure(want)
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True)
    for (path, g), w in pairs:
        tolerance = TOLERANCE.get(str(dtype or jnp.result_type(g)), 0) * factor
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        scale = max(np.max(np.abs(w), initial=0, where=np.isfinite(w)), 1e-30)
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * scale, err_msg=where)


def within_errors(got, want, error, *, errors=5.0):
    """Assert that `got` is within `errors` of its own standard errors of `want`, leaf by leaf.

    5 errors: one false alarm in 10^6 scores, and keys are fixed.
    """
    for g, w, e in zip(*(jax.tree.leaves(t) for t in (got, want, error)), strict=True):
        g, w, e = (np.asarray(v, np.float64) for v in (g, w, e))
        excess = np.abs(g - w) - errors * e
        rounding = TOLERANCE["float32"] * max(np.abs(w).max(), 1e-30)
        assert excess.max() <= rounding, (g, w, e)


@contextmanager
def quick_compile():
    """Compile without most optimizations: half the time, where compiling is all a test does."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def total(scores) -> float:
    """Sum of all scores, in float64."""
    return sum(float(np.sum(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(scores))


def refused(call, *words):
    """A call raises `JaxplainError`, in one line that holds the words."""
    with pytest.raises(JaxplainError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
