"""How much of each word a hidden state has forgotten, by the noise that the word could bear."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret.compat import is_traced
from jaxplain.methods import noise as noises
from jaxplain.methods.sampling import wide
from jaxplain.methods.target import check_words, measured
from jaxplain.types import Array, JaxplainError, PyTree, check_key, check_positive

# What a search does where it is not told; the published loop, as published.
DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "log": MappingProxyType({"steps": 300, "samples": 4, "learning_rate": 0.5}),
        "sigmoid": MappingProxyType({"steps": 5000, "samples": 1, "learning_rate": 0.01}),
    }
)


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
        standard_error: `[T]` of log sigma (K times it: of the entropy), from how costs varied and
            how they rose with sigma on the way; NaN for the published loop, which has none.
        loss: `[]` the objective: mean over units of (h(x + noise) - h(x))^2 / spread^2, less rate
            times the mean over words of log(sigma / scale).
        gradient_norm: `[]` largest |d loss / d log sigma_i| n / rate of the words not censored: 0
            at the optimum, 1 where noise costs nothing.
        converged: `[]` bool: for every word that is not censored, the standard error is within the
            tolerance, and so is the way to where the gradient would be 0; and the loss is finite.
        steps: `[]` int32, steps taken, from all starts together.
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
    tolerance: float = 0.02,
    probes: int = 32,
    starts: Sequence[float] = (0.0,),
    parametrisation: Literal["log", "sigmoid"] = "log",
    learning_rate: float | None = None,
) -> WordInformation:
    """How much of each word of x the state h(x) has forgotten.

    Noise of standard deviation sigma_i is put on word i, all words at once, and sigma made as large
    as the state allows: it minimises the mean over units of (h(x + noise) - h(x))^2 / spread^2,
    less rate times the mean over words of log sigma_i. The noise's entropy is the information about
    the word that the state has discarded. One scale serves all layers and models of one x.

    Letters: `T` words with padding, `K` width of a word, `D` units compared, `n` words that count.

    Args:
        h: `[T, K] -> ` hidden state of any shape, or a tree of them.
        x: `[T, K]` word vectors.
        key: a JAX random key.
        scale: the largest sigma, in x's units. Ten times the standard deviation of the word
            embeddings is recommended.
        rate: what a nat of noise is worth, by the published convention. What a word may change the
            state by then depends on n and D: targets of different size are not comparable.
        per_word_rate: the same free of both, rate D / (n K); equal to `rate` where h gives one
            state of width K a word. Default 0.1, where `rate` is not given either.
        spread: standard deviation of h's units over inputs (`hidden_spread`): h's tree or one
            array, broadcastable to h(x). None divides by the mean square of h(x) instead.
        mask: `[T]` bool, which rows of x are words; None for all. Others get no noise.
        unit_mask: which units are compared, like `spread`; None for all. Leave out those of
            padding: where h gives `[T, D']`, `mask[:, None]`.
        steps: most steps from a start; default 300, and 5000 for "sigmoid".
        samples: evaluations a step, default 4; 1 takes 2. A quarter of them, rounded up, repeat
            another's noise draw with sigma a little larger and smaller, which tells how fast its
            cost rises. For "sigmoid" noise draws, in antithetic pairs, default 1. Peak memory is
            that of so many evaluations.
        tolerance: of log sigma. Stops when every standard error is below it, and the gradient no
            larger than so far from the optimum, words at the cap aside.
        probes: backward passes from random signs for the start, the optimum of the locally linear
            case; a state of up to 256 units is taken unit by unit instead, exactly.
        starts: what is added to log sigma of that start; each is searched from, and the search with
            the lowest loss is kept. Where the state saturates there can be two optima: (0, 1) looks
            above the first one too.
        parametrisation: "log" descends in log sigma, and averages its iterates. "sigmoid" is the
            published loop, for comparison: sigma = scale sigmoid(ratio) from a random ratio, Adam,
            and the parameters after the step with the lowest noisy loss. It has no standard error;
            its gradient is measured afterwards, by 64 draws.
        learning_rate: default 0.5, Newton's step where h is locally linear, falling from the fifth
            step; and 0.01, constant, for "sigmoid".

    Returns:
        `WordInformation`. Where it has not converged it says so, by `converged`, and by the
        standard errors and the gradient that are left. Cost, for each start: `probes` backward
        evaluations and up to `steps * samples` gradient evaluations. Under `vmap` a batch costs
        about the sum of what its searches cost, an eighth of them at once, and at least 8: one that
        has converged makes room for the next. Where the batch is split over an axis `data` of a
        mesh, compile within `jax.set_mesh`, or devices wait for each other.

    Raises:
        JaxplainError: no key; x is not one float array `[T, K]`; scale, a rate, tolerance or
            learning_rate not above 0; both rates; starts that are no numbers, or given to the
            published loop; a spread, mask or unit_mask of another shape, or a negative spread; h
            returns no floats, or does not depend on x.

    References: Chaoyu Guan, Xiting Wang, Quanshi Zhang, Runjin Chen, Di He, Xing Xie, "Towards a
        Deep and Unified Understanding of Deep Neural Models in NLP", 2019,
        https://proceedings.mlr.press/v97/guan19a.html
    Differs: the published loop draws once a step and keeps the parameters that followed its
        luckiest draw; started at random with steps of 0.01 it can end several times away from the
        optimum, and from a start near the cap in another one, where normalisation inside h bounds
        what noise can do. Here the start is the closed form
        sigma_i^2 = rate D / (2 n sum_d |J_di|^2 / spread_d^2), and what is left of the gradient is
        told.

    >>> import jax, jax.numpy as jnp
    >>> weights = jnp.array([1.0, 2.0, 0.0])
    >>> x = jnp.ones((3, 32))
    >>> found = word_information(
    ...     lambda x: weights @ x, x, key=jax.random.key(0), scale=1.0, rate=0.01, spread=1.0,
    ...     tolerance=0.05)
    >>> bool(found.converged), found.censored.tolist()
    (True, [False, False, True])
    >>> bool(abs(found.sigma[0] / found.sigma[1] / 2 - 1) < 0.1)
    True
    """
    key = check_key("word_information", key)
    x = check_words(h, x)
    _check_settings(scale, rate, per_word_rate, tolerance, learning_rate, parametrisation)
    check_positive("probes", probes)
    starts = _check_starts(starts, parametrisation)
    given = {"steps": steps, "samples": samples, "learning_rate": learning_rate}
    settings = {**DEFAULTS[parametrisation], **{k: v for k, v in given.items() if v is not None}}
    check_positive("steps", settings["steps"])
    check_positive("samples", settings["samples"])
    target = measured(h, x, spread, mask, unit_mask, rate, per_word_rate)
    scale = jnp.asarray(scale, wide(x).dtype)
    if parametrisation == "sigmoid":
        found = noises.published(h, x, target, scale, key, tolerance=tolerance, **settings)
    else:
        found = noises.search(
            h, x, target, scale, key, tolerance=tolerance, probes=probes, starts=starts, **settings
        )
    log_ratio, error = found.log_ratio, found.standard_error
    censored = target.real & (log_ratio > -tolerance)
    balanced = target.real & ~censored
    norm = jnp.max(jnp.abs(found.slope), where=balanced, initial=0.0)
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
        loss=noises.objective(target, found),
        gradient_norm=norm,
        converged=found.converged,
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
    """`word_information` of several states of one network, in one program.

    Letters: as in `word_information`; `L` states chosen.

    Args:
        hidden: `[T, K] -> ` the states: a tuple or list of them, each a state of any shape, or one
            array with an axis of states in front (the timesteps of a recurrent network, say). Of a
            tuple, each state costs what it is computed from and no more; of an array, each costs
            one evaluation of `hidden`.
        x: `[T, K]` word vectors.
        key: a JAX random key; each state folds its number into it.
        layers: numbers of the states to explain, negative ones from the end; None for all.
        spread: for each state of `hidden` what `word_information` takes; a list, or one array with
            an axis of states in front.
        unit_mask: the same.
        chunk: states of an array that are searched at once.
        settings: the other arguments of `word_information`.

    Returns:
        `WordInformation`, each field with an axis `[L]` in front, in the order of `layers`. Peak
        memory is that of the last state, or of `chunk` of them. A tuple's states are compiled one
        by one: the time to compile grows with the sum of their depths.

    Raises:
        JaxplainError: as `word_information`; `hidden` returns neither; a number that no state has;
            not one spread or unit_mask for each state.

    >>> import jax, jax.numpy as jnp
    >>> hidden = lambda x: (x, jnp.tanh(x).sum(0))
    >>> found = layer_information(hidden, jnp.ones((3, 32)), key=jax.random.key(0), scale=1.0,
    ...     tolerance=0.05)
    >>> found.sigma.shape, found.converged.tolist()
    ((2, 3), [True, True])
    """
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
    """The published objective for one noise draw, to compare with the published code.

    Args:
        ratio: `[T]`; sigma = scale sigmoid(ratio).
        noise: `[T, K]` standard normal.
        h, x, scale, rate, spread, mask, unit_mask: as in `word_information`.

    Returns:
        `[]`. Cost: two forward evaluations.
    """
    x = check_words(h, x)
    target = measured(h, x, spread, mask, unit_mask, rate, None)
    return noises.published_loss(h, x, target, jnp.asarray(ratio).reshape(-1), noise, scale)


def _check_settings(scale, rate, per_word_rate, tolerance, learning_rate, parametrisation) -> None:
    if parametrisation not in ("log", "sigmoid"):
        raise JaxplainError(f"parametrisation must be log or sigmoid, not {parametrisation!r}")
    if rate is not None and per_word_rate is not None:
        raise JaxplainError("give rate or per_word_rate, not both: one follows from the other")
    numbers = {"scale": scale, "rate": rate, "per_word_rate": per_word_rate}
    numbers |= {"tolerance": tolerance, "learning_rate": learning_rate}
    for name, value in numbers.items():
        if value is None:
            continue
        if jnp.ndim(value):
            raise JaxplainError(f"{name} must be one number, and has shape {jnp.shape(value)}")
        if not is_traced(value) and not 0 < float(value) < math.inf:
            raise JaxplainError(f"{name} must be above 0 and finite, not {value}")


def _check_starts(starts, parametrisation) -> tuple[float, ...]:
    try:
        known = np.asarray(starts, float)
    except (TypeError, ValueError):  # no numbers, or traced ones
        known = np.zeros(0)
    if known.ndim != 1 or not known.size or not np.isfinite(known).all():
        raise JaxplainError(
            f"starts must be finite numbers, at least one, such as (0, 1): {starts}"
        )
    if parametrisation == "sigmoid" and known.any():
        raise JaxplainError("the published loop starts at random: give starts for 'log' only")
    return tuple(known.tolist())


def _check_layers(name: str, value: PyTree, count: int) -> None:
    if value is None:
        return
    size = len(value) if isinstance(value, tuple | list) else jnp.shape(value)[0]
    if size != count:
        raise JaxplainError(f"{name} has {size} entries, and hidden has {count} states: one each")
