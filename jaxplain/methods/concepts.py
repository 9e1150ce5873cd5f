"""What a state holds about a word beyond a concept that the word belongs to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxplain.methods.sampling import wide
from jaxplain.types import Array, JaxplainError


class ConceptInformation(NamedTuple):
    """Information about each word, about its concept, and about the word beyond its concept.

    Letters: `T` words with padding; `[..., T]` is the shape of `sigma`, such as `[L, T]` of layers.

    Attributes:
        word: `[..., T]` A_i, nats: how much likelier the state makes the word than a reference
            word. An upper bound where `censored`.
        concept: `[..., T]` A_c, nats: how much likelier it makes a word of the concept than a
            reference word; below 0 where the concept's words are further from the word than those.
        beyond: `[..., T]` A_i - A_c, nats: how much likelier the word than a word of the concept.
        word_error: `[..., T]` standard error of `word` over the set of reference words; NaN where
            the set has fewer than two.
        concept_error: `[..., T]` the same of `concept`, over both sets.
        beyond_error: `[..., T]` the same of `beyond`, over the set of the concept's words.
        censored: `[..., T]` bool: as was passed in, False in padding.
        concept_count: `[T]` int32, words of the concept each word was compared with.
        reference_count: `[T]` int32, reference words it was compared with.
    """

    word: Array
    concept: Array
    beyond: Array
    word_error: Array
    concept_error: Array
    beyond_error: Array
    censored: Array
    concept_count: Array
    reference_count: Array


def concept_information(
    sigma: ArrayLike,
    x: ArrayLike,
    concept: ArrayLike,
    reference: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    censored: ArrayLike | None = None,
    concept_mask: ArrayLike | None = None,
    reference_mask: ArrayLike | None = None,
) -> ConceptInformation:
    """Split what a state holds about each word into its concept's part and the rest.

    With the noise that `word_information` or `layer_information` found, the state s says of a word
    that might stand in the place of x_i

        log p(x' | s) = -||x' - x_i||^2 / (2 sigma_i^2) - K log sigma_i - K/2 log(2 pi),

    and with E over the words of a set, X_c of the concept and X_i of the reference,

        A_i = log p(x_i | s) - E_{X_i} log p(x' | s),
        A_c = E_{X_c} log p(x' | s) - E_{X_i} log p(x' | s),    beyond = A_i - A_c.

    What normalises p cancels: the same comes out if p is a distribution over the vocabulary. And
    since sigma is one number a word, a state decides only the scale of all three: between layers,
    a word's A_i, A_c and their difference go as 1 / sigma_i^2, and their ratios stay.

    Letters: `T` words with padding, `K` width of a word, `C` words of the concept, `R` reference
    words; `[..., T]` any axes in front, such as layers.

    Args:
        sigma: `[..., T]`, positive where `mask`, in x's units.
        x: `[T, K]`, the words.
        concept: `[C, K]`, the concept's words; C may be 0.
        reference: `[R, K]`, words drawn at random for the same places; R may be 0.
        mask: `[T]` bool: which rows of x are words; default all. The rest comes out as 0.
        censored: bool, broadcastable to `[..., T]`: where sigma is at its cap; default nowhere.
        concept_mask: bool, broadcastable to `[T, C]`: which of the concept's words each word is
            compared with, such as all but itself; default all.
        reference_mask: bool, broadcastable to `[T, R]`: the same of the reference words.

    Returns:
        `ConceptInformation`. What needs a set without a word in it is NaN, with a count of 0.
        Cost: no evaluation; T (C + R) K multiplications.

    Raises:
        JaxplainError: an array is not floats, or the shapes do not fit each other.

    References:
        Guan, Wang, Zhang, Chen, He, Xie, "Towards a Deep and Unified Understanding of Deep Neural
        Models in NLP", ICML 2019. https://proceedings.mlr.press/v97/guan19a.html

    Differs: what density p(x' | s) the authors used for single words is not confirmed; their
    published code has none of this. The Gaussian of the learned noise is taken here, as above.

    >>> import jax.numpy as jnp
    >>> x, concept, reference = jnp.array([[0.0]]), jnp.array([[1.0]]), jnp.array([[2.0], [-2.0]])
    >>> a = concept_information(jnp.array([0.5]), x, concept, reference)
    >>> float(a.word[0]), float(a.concept[0]), float(a.beyond[0])
    (8.0, 6.0, 2.0)
    """
    _check(sigma, x, concept, reference)
    noise, rows, of_concept, others = (wide(v) for v in (sigma, x, concept, reference))
    length = rows.shape[0]
    real = jnp.ones(length, bool) if mask is None else jnp.asarray(mask, bool)
    if real.shape != (length,):
        raise JaxplainError(f"mask has shape {list(real.shape)}: give one bool a word, [{length}]")
    at_cap = _fit("censored", censored, noise.shape, missing=False)
    near, near_error, near_count = _distances("concept_mask", rows, of_concept, concept_mask)
    far, far_error, far_count = _distances("reference_mask", rows, others, reference_mask)

    row = (1,) * (noise.ndim - 1) + (length,)
    counted = real.reshape(row)
    scale = 0.5 / jnp.where(counted, noise, 1) ** 2
    give = lambda value: jnp.where(counted, scale * value.reshape(row), 0)
    return ConceptInformation(
        word=give(far),
        concept=give(far - near),
        beyond=give(near),
        word_error=give(far_error),
        concept_error=give(jnp.hypot(far_error, near_error)),
        beyond_error=give(near_error),
        censored=at_cap & counted,
        concept_count=jnp.where(real, near_count, 0),
        reference_count=jnp.where(real, far_count, 0),
    )


def _distances(
    name: str, x: Array, words: Array, mask: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Mean of ||x' - x_i||^2 over a set, its standard error, and the set's size, `[T]` each."""
    used = _fit(name, mask, (len(x), len(words)), missing=True)
    # Around the set's mean, or a product would lose the distance between words far from 0.
    centre = jnp.sum(words, axis=0, keepdims=True) / max(len(words), 1)
    rows, columns = x - centre, words - centre
    product = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    lengths = [jnp.sum(v**2, axis=1) for v in (rows, columns)]
    squares = jnp.maximum(lengths[0][:, None] + lengths[1][None] - 2 * product, 0)
    count = jnp.sum(used, axis=1, dtype=jnp.int32)
    number = count.astype(x.dtype)
    mean = jnp.sum(squares, axis=1, where=used) / number  # 0 / 0 is NaN: nothing to compare with
    spread = jnp.sum((squares - mean[:, None]) ** 2, axis=1, where=used)
    error = jnp.sqrt(spread / (number * jnp.where(number > 1, number - 1, jnp.nan)))
    return mean, error, count


def _fit(name: str, value: ArrayLike | None, shape: tuple[int, ...], *, missing: bool) -> Array:
    """Broadcast bools to `shape`; `missing` everywhere if there are none."""
    value = jnp.asarray(missing if value is None else value, bool)
    absent = len(shape) - value.ndim
    fits = zip((1,) * absent + value.shape, shape, strict=False)
    if absent < 0 or any(size not in (1, wanted) for size, wanted in fits):
        raise JaxplainError(
            f"{name} has shape {list(value.shape)}, which does not broadcast to {list(shape)}"
        )
    return jnp.broadcast_to(value.reshape((1,) * absent + value.shape), shape)


def _check(sigma: ArrayLike, x: ArrayLike, concept: ArrayLike, reference: ArrayLike) -> None:
    arrays = dict(sigma=sigma, x=x, concept=concept, reference=reference)
    for name, value in arrays.items():
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise JaxplainError(
                f"{name} is {jnp.result_type(value)}: give floats, the embeddings of words"
            )
    for name in ("x", "concept", "reference"):
        if jnp.ndim(arrays[name]) != 2:
            raise JaxplainError(
                f"{name} has shape {list(jnp.shape(arrays[name]))}: give one row a word"
            )
    length, width = jnp.shape(x)
    if jnp.ndim(sigma) < 1 or jnp.shape(sigma)[-1] != length:
        raise JaxplainError(
            f"sigma has shape {list(jnp.shape(sigma))}, and x has {length} words: give one sigma a "
            "word, in the last axis"
        )
    for name in ("concept", "reference"):
        if jnp.shape(arrays[name])[1] != width:
            raise JaxplainError(
                f"{name} has rows of {jnp.shape(arrays[name])[1]} numbers, and x has {width}: take "
                "both from the same embedding"
            )
