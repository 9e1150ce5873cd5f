"""How much of each word a hidden state has forgotten, by the noise that the word could bear."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret.compat import is_traced
from jaxplain.interpret.dependence import depends
from jaxplain.methods import noise as noises
from jaxplain.methods.noise import Target
from jaxplain.methods.sampling import wide
from jaxplain.types import Array, JaxplainError, PyTree, check_key, check_positive


class WordInformation(NamedTuple):
    """What a hidden state has forgotten of each word; LARGER sigma = more forgotten.

    Letters: `T` words with padding, `K` width of a word, `D` units compared, `n` words that count.
    `layer_information` puts an axis `[L]` of layers in front of every field. Rows of padding hold 0
    and False.

    Attributes:
        sigma: `[T]` standard deviation of the noise that each word bears, in x's units.
        entropy: `[T]` nats, the entropy of that noise, K/2 log(2 pi e) + K log sigma: what has been
            discarded of the word.
        log_ratio: `[T]` log(sigma / scale), at most 0.
        censored: `[T]` bool, within the tolerance of sigma = scale: the word is forgotten, and its
            entropy is only known to be at least this.
        standard_error: `[T]` of log sigma (K times it: of the entropy), from the noise drawn, by
            the curvature of the locally linear case; NaN for the published loop, which has none.
        loss: `[]` the objective: mean over units of (h(x + noise) - h(x))^2 / spread^2, less rate
            times the mean over words of log(sigma / scale).
        gradient_norm: `[]` largest |d loss / d log sigma_i| n / rate of the words not censored: 0
            at the optimum, 1 where noise costs nothing.
        converged: `[]` bool: gradient and standard error both within the tolerance, for every word
            that is not censored.
        steps: `[]` int32, steps taken.
        units: `[]` int32, D.
        left_out: `[]` int32, units left out because their spread is 0 or was never counted.
    """

    sigma: Array
    entropy: Array
    log_ratio: Array
    censored: Array
    standard_error: Array
    loss: Array
    gradient_norm: Array
    converged: Array
    steps: Array
    units: Array
    left_out: Array


def word_information(
    h: Callable[[Array], PyTree],
    x: Array,
    *,
    key: Array | None = None,
    scale: float | Array,
    rate: float | Array | None = None,
    per_word_rate: float | Array | None = None,
    spread: PyTree | None = None,
    mask: Array | None = None,
    unit_mask: PyTree | None = None,
    steps: int | None = None,
    samples: int | None = None,
    tolerance: float = 0.01,
    probes: int = 32,
    parametrisation: Literal["log", "sigmoid"] = "log",
    learning_rate: float | None = None,
) -> WordInformation:
    """How much of each word of x the state h(x) has forgotten.

    Looks for the largest Gaussian noise on each word that leaves the state as it is, up to `rate`.
    """
    key = check_key("word_information", key)
    x = _check_words(h, x)
    _check_settings(scale, rate, per_word_rate, tolerance, parametrisation)
    check_positive("probes", probes)
    published = parametrisation == "sigmoid"
    settings = {
        "steps": (5000 if published else 300) if steps is None else check_positive("steps", steps),
        "samples": (1 if published else 4)
        if samples is None
        else check_positive("samples", samples),
        "learning_rate": (0.01 if published else 0.5) if learning_rate is None else learning_rate,
    }
    target = _target(h, x, spread, mask, unit_mask, rate, per_word_rate)
    scale = jnp.asarray(scale, wide(x).dtype)
    if published:
        found = noises.published(h, x, target, scale, key, **settings)
    else:
        found = noises.search(
            h, x, target, scale, key, tolerance=tolerance, probes=probes, **settings
        )
    log_ratio, error = found.log_ratio, found.standard_error
    censored = target.real & (log_ratio > -tolerance)
    balanced = target.real & ~censored
    norm = jnp.max(jnp.abs(found.slope), where=balanced, initial=0.0)
    uncertain = jnp.max(error, where=balanced, initial=0.0)
    log_sigma = log_ratio + jnp.log(scale)
    width = x.shape[1]
    zero = jnp.zeros_like(log_ratio)
    kept = lambda v: jnp.where(target.real, v, zero)
    return WordInformation(
        sigma=kept(jnp.exp(log_sigma)),
        entropy=kept(width * (log_sigma + 0.5 * math.log(2 * math.pi * math.e))),
        log_ratio=kept(log_ratio),
        censored=censored,
        standard_error=kept(error),
        loss=found.change - target.rate * jnp.sum(kept(log_ratio)) / target.words,
        gradient_norm=norm,
        converged=(norm / 2 <= tolerance) & (jnp.nan_to_num(uncertain) <= tolerance),
        steps=found.steps,
        units=target.units,
        left_out=target.left_out,
    )


def layer_information(
    hidden: Callable[[Array], PyTree],
    x: Array,
    *,
    key: Array | None = None,
    layers: Sequence[int] | None = None,
    spread: PyTree | None = None,
    unit_mask: PyTree | None = None,
    chunk: int = 8,
    **settings: Any,
) -> WordInformation:
    """`word_information` of several states of one network, in one program."""
    key = check_key("layer_information", key)
    out = jax.eval_shape(hidden, x)
    listed = isinstance(out, tuple | list)
    if not listed and (not hasattr(out, "shape") or not out.ndim):
        raise JaxplainError(
            f"hidden must return a tuple of states or one array [L, ...], not {out!r}"
        )
    count = len(out) if listed else out.shape[0]
    chosen = list(range(count)) if layers is None else [int(layer) for layer in layers]
    if not chosen or not all(-count <= layer < count for layer in chosen):
        raise JaxplainError(
            f"layers {chosen}: hidden has {count} states, so layers are among 0 to {count - 1}"
        )
    chosen = [layer % count for layer in chosen]
    _check_layers("spread", spread, count)
    _check_layers("unit_mask", unit_mask, count)

    def one(layer):
        pick = lambda tree: None if tree is None else tree[layer]
        return word_information(
            lambda v: hidden(v)[layer],
            x,
            key=jax.random.fold_in(key, layer),
            spread=pick(spread),
            unit_mask=pick(unit_mask),
            **settings,
        )

    if listed:
        each = [one(layer) for layer in chosen]
        return jax.tree.map(lambda *v: jnp.stack(v), *each)
    arrays = lambda tree: None if tree is None else jnp.stack([jnp.asarray(v) for v in tree])
    spread, unit_mask = arrays(spread), arrays(unit_mask)
    return jax.lax.map(one, jnp.asarray(chosen), batch_size=check_positive("chunk", chunk))


def published_loss(
    h: Callable[[Array], PyTree],
    x: Array,
    ratio: Array,
    noise: Array,
    *,
    scale: float | Array,
    rate: float | Array,
    spread: PyTree | None = None,
    mask: Array | None = None,
    unit_mask: PyTree | None = None,
) -> Array:
    """The published objective for one noise draw."""
    x = _check_words(h, x)
    target = _target(h, x, spread, mask, unit_mask, rate, None)
    return noises.published_loss(h, x, target, jnp.asarray(ratio).reshape(-1), noise, scale)


def _target(h, x, spread, mask, unit_mask, rate, per_word_rate) -> Target:
    real = jnp.ones(x.shape[0], bool) if mask is None else jnp.asarray(mask).astype(bool)
    if real.shape != x.shape[:1]:
        raise JaxplainError(f"mask has shape {list(real.shape)}, and x has {x.shape[0]} words")
    leaves, tree = jax.tree.flatten(wide(h(x)))
    counted = [v != 0 for v in _fitted("unit_mask", unit_mask, leaves, tree)]
    asked = sum(jnp.sum(c) for c in counted)
    if spread is None:
        # As published without one: all units by the mean square of the state.
        sums = [jnp.sum(jnp.square(v), where=c) for c, v in zip(counted, leaves, strict=True)]
        inverse = [jnp.where(c, asked / sum(sums), 0) for c in counted]
    else:
        wanted = _fitted("spread", spread, leaves, tree)
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


def _fitted(name: str, value: PyTree, leaves: list[Array], tree: Any) -> list[Array]:
    """`value` broadcast to each leaf of a state: one for all of them, or a tree like it."""
    if value is None:
        return [jnp.ones(leaf.shape, leaf.dtype) for leaf in leaves]
    given = jax.tree.leaves(value) if jax.tree.structure(value) == tree else [value] * len(leaves)
    fit = []
    for v, leaf in zip(given, leaves, strict=True):
        if name == "spread" and not is_traced(v) and np.any(np.asarray(v) < 0):
            raise JaxplainError("spread has negative entries: it is a standard deviation")
        v = jnp.asarray(v)
        missing = leaf.ndim - v.ndim
        sizes = zip((1,) * missing + v.shape, leaf.shape, strict=False)
        if missing < 0 or any(size not in (1, wanted) for size, wanted in sizes):
            raise JaxplainError(
                f"{name} has shape {list(v.shape)}, which does not broadcast to h(x)'s "
                f"{list(leaf.shape)}"
            )
        v = v.reshape((1,) * missing + v.shape)
        fit.append(jnp.broadcast_to(v.astype(leaf.dtype), leaf.shape))
    return fit


def _check_words(h: Callable, x: Any) -> Array:
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


def _check_settings(scale, rate, per_word_rate, tolerance, parametrisation) -> None:
    if parametrisation not in ("log", "sigmoid"):
        raise JaxplainError(f"parametrisation must be log or sigmoid, not {parametrisation!r}")
    if rate is not None and per_word_rate is not None:
        raise JaxplainError("give rate or per_word_rate, not both: one follows from the other")
    numbers = {"scale": scale, "rate": rate, "per_word_rate": per_word_rate, "tolerance": tolerance}
    for name, value in numbers.items():
        if value is None:
            continue
        if jnp.ndim(value):
            raise JaxplainError(f"{name} must be one number, and has shape {jnp.shape(value)}")
        if not is_traced(value) and not 0 < float(value) < math.inf:
            raise JaxplainError(f"{name} must be above 0 and finite, not {value}")


def _check_layers(name: str, value: PyTree, count: int) -> None:
    if value is None:
        return
    size = len(value) if isinstance(value, tuple | list) else jnp.shape(value)[0]
    if size != count:
        raise JaxplainError(f"{name} has {size} entries, and hidden has {count} states: one each")
