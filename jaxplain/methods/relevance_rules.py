"""The rules of layer-wise relevance propagation: how one step hands relevance to its inputs.

A rule is a function `(layer, inputs, outputs, relevance) -> relevance of each input`. `inputs` are
the step's operands that depend on x, `outputs` what it makes of them, `relevance` what came to each
output, all lists of arrays; `layer` is an `interpret.backward.Layer`: the step as a function of its
inputs, `layer(*inputs)`, and where it is an affine map, `layer.map()` with the weights, the scale
and the offset apart. So a rule of one's own, that a GELU passes relevance where it is positive:

    def positive(layer, inputs, outputs, relevance):
        return [jnp.where(outputs[0] > 0, relevance[0], 0)]

    rules = {**LRP_EPSILON, "elementwise": positive}

Letters: `x` inputs, `W` weights with all constant factors folded in, `c` constants that are added,
`z = x W + c` outputs, `R` relevance; `v⁺` is max(v, 0) and `v⁻` min(v, 0). Which rules conserve
relevance, up to what the constants c and a stabiliser keep, is said with each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxplain.interpret.affine import Affine
from jaxplain.interpret.backward import Layer, Rule
from jaxplain.types import Array, JaxplainError

Arrays = list[Array]


def zero(*, ignore_bias: bool = False) -> Rule:
    """LRP-0: in proportion to what each input adds, `x W R / z`. Conserves but for constants.

    Nothing is handed down where z is exactly 0. For a network of ReLUs without constants, the
    result is input times gradient.

    Args:
        ignore_bias: z without c, so that constants keep nothing.

    References: Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
        Layer-Wise Relevance Propagation, 2015, https://doi.org/10.1371/journal.pone.0130140
    """
    return _named("zero", _proportional(None, ignore_bias), ignore_bias=ignore_bias)


def epsilon(epsilon: float = 1e-6, *, ignore_bias: bool = False) -> Rule:
    """LRP-ε: as `zero`, with `x W R / (z + ε sign z)`, where sign 0 = 1.

    The stabiliser keeps a share ε / (|z| + ε) of each relevance: what z cannot account for. The
    default only keeps divisions by 0 apart; values of 0.01 to 0.25 take noise away, too.

    Args:
        epsilon: above 0, in units of z.
        ignore_bias: z without c, so that constants keep nothing.

    References: as `zero`.
    """
    if not epsilon > 0:
        raise JaxplainError(f"epsilon must be above 0, not {epsilon!r}: for 0, take zero()")
    rule = _proportional(epsilon, ignore_bias)
    return _named("epsilon", rule, epsilon=epsilon, ignore_bias=ignore_bias)


def gamma(gamma: float = 0.25, *, signed: bool = True, ignore_bias: bool = False) -> Rule:
    """LRP-γ: what has the sign of z counts more, `(x W + γ (x W)⁺) R / (z + γ z⁺)` where z > 0.

    z⁺ is the sum of all `(x W)⁺` and c⁺. Where z < 0, with `(x W)⁻` and z⁻. Nothing is divided by
    less than |z|. Conserves but for constants.

    Args:
        gamma: 0 or more; 0 is `zero`, and for large values and z > 0 it comes to `z_plus`.
        signed: False takes inputs and z to be 0 or more, as the paper does, at half the cost:
            `x (W + γ W⁺) R / (x (W + γ W⁺) + c + γ c⁺)`. For others it may divide by nearly 0.
        ignore_bias: without c, c⁺ and c⁻.

    References: Montavon, Binder, Lapuschkin, Samek, Müller, Layer-Wise Relevance Propagation: An
        Overview, 2019, https://doi.org/10.1007/978-3-030-28954-6_10; for both signs, Andéol et al.,
        Learning Domain Invariant Representations by Joint Wasserstein Distance Minimization, 2021,
        https://arxiv.org/abs/2106.04923
    """
    if gamma < 0:
        raise JaxplainError(f"gamma must be 0 or more, not {gamma!r}")
    more = 1 + gamma

    def rule(layer, inputs, outputs, relevance):
        made, x, r = _weights(layer, inputs, relevance)
        if not signed:
            return [_share(made, x, r, more, 1, False, ignore_bias)]
        above = (made.weighted(x, 1, 1) if ignore_bias else made.aligned(outputs[0])) >= 0
        up = _share(made, x, jnp.where(above, r, 0), more, 1, True, ignore_bias)
        return [up + _share(made, x, jnp.where(above, 0, r), 1, more, True, ignore_bias)]

    return _named("gamma", rule, gamma=gamma, signed=signed, ignore_bias=ignore_bias)


def alpha_beta(alpha: float = 2, beta: float = 1, *, ignore_bias: bool = False) -> Rule:
    """LRP-αβ: `(x W)⁺` and `(x W)⁻` apart: `α (x W)⁺ R / z⁺ - β (x W)⁻ R / z⁻`.

    z⁺ is the sum of all `(x W)⁺` and c⁺, z⁻ that of all `(x W)⁻` and c⁻. Conserves but for
    constants where z⁺ and z⁻ are not 0; where one is, its part is lost: α times R, or -β times.

    Args:
        alpha: weight of what is positive, beta + 1.
        beta: weight of what is negative, 0 or more.
        ignore_bias: without c⁺ and c⁻.

    References: as `zero`.
    """
    if beta < 0 or abs(alpha - beta - 1) > 1e-9:
        raise JaxplainError(
            f"alpha - beta must be 1 and beta 0 or more, not {alpha!r} and {beta!r}: otherwise "
            "relevance grows or fades from layer to layer"
        )

    def rule(layer, inputs, outputs, relevance):
        made, x, r = _weights(layer, inputs, relevance)
        found = alpha * _share(made, x, r, 1, 0, True, ignore_bias)
        if beta:
            found = found - beta * _share(made, x, r, 0, 1, True, ignore_bias)
        return [found]

    return _named("alpha_beta", rule, alpha=alpha, beta=beta, ignore_bias=ignore_bias)


def z_plus(*, signed: bool = True) -> Rule:
    """LRP-z⁺: only what is positive, `(x W)⁺ R / Σ (x W)⁺`; constants keep nothing.

    Conserves where anything is positive.

    Args:
        signed: False takes inputs to be 0 or more, as the paper does: `x W⁺ R / Σ x W⁺`, at half
            the cost, and not conserving for negative ones.

    References: Montavon, Lapuschkin, Binder, Samek, Müller, Explaining Nonlinear Classification
        Decisions with Deep Taylor Decomposition, 2017, https://doi.org/10.1016/j.patcog.2016.11.008
    """

    def rule(layer, inputs, outputs, relevance):
        made, x, r = _weights(layer, inputs, relevance)
        return [_share(made, x, r, 1, 0, signed, True)]

    return _named("z_plus", rule, signed=signed)


def w_square() -> Rule:
    """LRP-w²: in proportion to squared weights, whatever the inputs are. Conserves.

    For a first layer of inputs of any size and sign.

    References: as `z_plus`.
    """
    return _named("w_square", _by_weights(lambda made: made.squared))


def flat() -> Rule:
    """LRP-flat: the same to every input that an output can see. Conserves.

    References: Lapuschkin et al., Unmasking Clever Hans Predictors and Assessing What Machines
        Really Learn, 2019, https://arxiv.org/abs/1902.10178
    """
    return _named("flat", _by_weights(lambda made: made.flat))


def z_box(low: Any, high: Any) -> Rule:
    """LRP-z^B: for a first layer of inputs between two bounds. Conserves.

    `(x W - low W⁺ - high W⁻) R / Σ (x W - low W⁺ - high W⁻)`.

    Args:
        low: the smallest value of each input, a number or an array that broadcasts to the layer's
            input: for an image `[H, W, C]`, `[C]` or `[H, W, C]`.
        high: the largest.

    References: as `z_plus`.
    """

    def rule(layer, inputs, outputs, relevance):
        made, x, r = _weights(layer, inputs, relevance)
        least, most = (jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape) for v in (low, high))

        def f(x, least, most):
            up, down = made.weighted(least, 1, 0), made.weighted(most, 0, 1)
            return made.weighted(x, 1, 1) - up - down

        z, back = jax.vjp(f, x, least, most)
        return [_weighed((x, least, most), back(_over(r, z)))]

    return _named("z_box", rule)


def identity(layer: Layer, inputs: Arrays, outputs: Arrays, relevance: Arrays) -> Arrays:
    """All that comes to an element of the output goes to that element of the input. Conserves.

    For functions of one element each, and for layers with as many outputs as inputs. An input that
    is multiplied with a constant 0 gets nothing.
    """
    ((x,), (r,)) = inputs, relevance
    if layer.kind == "scale" and layer.map is not None:
        made = layer.map()
        r = jnp.where(made.weight == 0, 0, made.aligned(r))
    if r.size == x.size:
        return [r.reshape(x.shape).astype(x.dtype)]
    try:
        back = jax.vjp(lambda x: jnp.broadcast_to(x, r.shape), x)[1]
    except ValueError:
        raise JaxplainError(
            f"identity hands on element by element, and {layer.name} makes {list(r.shape)} of "
            f"{list(x.shape)}: take epsilon() there"
        ) from None
    return list(back(r.astype(x.dtype)))


def derivative(layer: Layer, inputs: Arrays, outputs: Arrays, relevance: Arrays) -> Arrays:
    """As a gradient goes down: through a maximum, to the element that was picked.

    Of equal elements in a window of max pooling, the first; elsewhere they share. Conserves where
    the step only picks elements.
    """
    return list(jax.vjp(layer.run, *inputs)[1](tuple(relevance)))


def stop(layer: Layer, inputs: Arrays, outputs: Arrays, relevance: Arrays) -> Arrays:
    """Nothing is handed down: what comes here stays here."""
    return [jnp.zeros_like(x) for x in inputs]


def numerator(layer: Layer, inputs: Arrays, outputs: Arrays, relevance: Arrays) -> Arrays:
    """Of a quotient of two values, all to the one that is divided: the other is held. Conserves.

    References: as `softmax_taylor`, for what normalises.
    """
    x, divisor = inputs
    (r,) = relevance
    back = jax.vjp(lambda x: jnp.broadcast_to(x, r.shape), x)[1]
    return [*back(r), jnp.zeros_like(divisor)]


def uniform(epsilon: float = 1e-6) -> Rule:
    """Of a product of two values, half to each, in proportion: `a b R / (2 (z + ε sign z))`.

    For attention, and for gates where no table says otherwise. Conserves but for the stabiliser.

    References: as `softmax_taylor`.
    """
    return _named("uniform", _uniform(epsilon), epsilon=epsilon)


def signal_takes_all(epsilon: float = 1e-6) -> Rule:
    """Of a product of a gate and a signal, all to the signal, in proportion: the gate is held.

    A gate is what a sigmoid or a softmax made, nothing but moved in between, or 1 less that; of a
    product of two gates, or of none, `uniform` shares. Conserves but for the stabiliser.

    References: Arras, Montavon, Müller, Samek, Explaining Recurrent Neural Network Predictions in
        Sentiment Analysis, 2017, https://arxiv.org/abs/1706.07206
    """
    share, every = _uniform(epsilon), _proportional(epsilon, False)

    def rule(layer, inputs, outputs, relevance):
        if len(layer.gates) != 1:
            return share(layer, inputs, outputs, relevance)
        found = every(layer, inputs, outputs, relevance)
        return [jnp.zeros_like(v) if n == layer.gates[0] else v for n, v in enumerate(found)]

    return _named("signal_takes_all", rule, epsilon=epsilon)


def softmax_taylor(layer: Layer, inputs: Arrays, outputs: Arrays, relevance: Arrays) -> Arrays:
    """Of a softmax s of scores x, by its Taylor expansion at x: `x (R - s Σ R)`.

    Does not conserve: a softmax of zeros is not zero, and this constant keeps its part. Scores that
    are masked, with s = 0, get nothing.

    References: Achtibat et al., AttnLRP: Attention-Aware Layer-wise Relevance Propagation for
        Transformers, 2024, https://arxiv.org/abs/2402.05602
    """
    ((x,), (s,), (r,)) = inputs, outputs, relevance
    (g,) = jax.vjp(layer.run, x)[1]((_over(r, s),))
    on = g != 0
    return [jnp.where(on, jnp.where(on, x, 0) * g, 0)]


def _named(name: str, rule: Rule, **options: Any) -> Rule:
    """The rule, under the name by which records know it: that of its maker, with its options."""
    usual = {"signed": True, "ignore_bias": False}
    told = ", ".join(f"{k}={v}" for k, v in options.items() if usual.get(k) is not v)
    rule.__name__ = rule.__qualname__ = f"{name}({told})"
    return rule


def _over(r: Array, z: Array, epsilon: float | None = None) -> Array:
    """`r / z`, stabilised, or 0 where z is 0; with finite derivatives."""
    if epsilon is not None:
        return r / (z + jnp.where(z >= 0, epsilon, -epsilon).astype(z.dtype))
    none = z == 0
    return jnp.where(none, 0, r / jnp.where(none, 1, z))


def _proportional(epsilon: float | None, ignore_bias: bool) -> Rule:
    """To each input what it adds; for all that is linear in its inputs together."""

    def rule(layer, inputs, outputs, relevance):
        z = outputs
        if ignore_bias:
            z = jax.jvp(layer.linear, inputs, inputs)[1]
        shares = tuple(_over(r, v, epsilon) for r, v in zip(relevance, z, strict=True))
        found = jax.vjp(layer.linear, *inputs)[1](shares)
        return [x * g for x, g in zip(inputs, found, strict=True)]

    return rule


def _uniform(epsilon: float) -> Rule:
    every = _proportional(epsilon, False)

    def rule(layer, inputs, outputs, relevance):
        return [v / len(inputs) for v in every(layer, inputs, outputs, relevance)]

    return rule


def _by_weights(of: Callable[[Affine], Callable[[Array], Array]]) -> Rule:
    def rule(layer, inputs, outputs, relevance):
        if layer.map is None:  # a sum, whose weights are 1
            (r,) = relevance
            ones = [jnp.ones_like(x) for x in inputs]
            z, back = jax.vjp(layer.linear, *ones)
            return list(back((_over(r, z[0]),)))
        made, x, r = _weights(layer, inputs, relevance)
        z, back = jax.vjp(of(made), jnp.ones_like(x))
        return list(back(_over(r, z)))

    return rule


def _weights(layer: Layer, inputs: Arrays, relevance: Arrays) -> tuple[Affine, Array, Array]:
    """An affine step's map, its input, and the relevance in the layout of what its core makes."""
    if layer.map is None:
        where = f" in {layer.path}" if layer.path else ""
        raise JaxplainError(
            f"this rule is for products with weights, and {layer.name}{where} has none: take "
            "epsilon() there, or a rule of your own"
        )
    made = layer.map()
    return made, inputs[0], made.aligned(relevance[0])


def _share(
    made: Affine, x: Array, r: Array, up: float, down: float, signed: bool, ignore_bias: bool
) -> Array:
    """Relevance in proportion to products, `up` times the positive and `down` times the negative.

    Positive are products of positive weights if not `signed`, whatever the sign of x.
    """
    sides = (jnp.maximum(x, 0), jnp.minimum(x, 0)) if signed else (x,)

    def f(above, *below):
        z = made.weighted(above, up, down)
        return sum((made.weighted(v, down, up) for v in below), z)

    z, back = jax.vjp(f, *sides)
    if made.offset is not None and not ignore_bias:
        z = z + up * jnp.maximum(made.offset, 0) + down * jnp.minimum(made.offset, 0)
    return _weighed(sides, back(_over(r, z)))


def _weighed(values: tuple[Array, ...], shares: tuple[Array, ...]) -> Array:
    first, *others = (v * g for v, g in zip(values, shares, strict=True))
    return sum(others, first)
