"""DeepLIFT: differences from a baseline, handed down a program without losing any.

Every value is compared with what it is at the baseline. What each primitive does with the change of
its operands stands in a table, an ordinary mapping from names to rules, of which a caller replaces
what should be otherwise: `{**DEEP_LIFT, "erf": mine}`. Names are those of primitives, of calls
(`jaxplain.named`), patterns of module paths (with a "/"), and of the classes in `DEEP_LIFT`. A rule
is `(operation, *operands) -> Pair`, in which operands are `Pair`s or arrays that do not depend on
x, and the `change` it returns is linear in theirs.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jaxplain.interpret import linear, pairs
from jaxplain.interpret.pairs import Pair as Pair
from jaxplain.interpret.parts import MissingRule, NoRule, Operation
from jaxplain.methods.path import Baseline, check_baseline, check_set
from jaxplain.methods.sampling import moments, residual, wide
from jaxplain.types import (
    Array,
    Attribution,
    JaxplainError,
    PyTree,
    SampledAttribution,
    ScalarFunction,
    check_example,
)


def rescale(operation: Operation, *operands: Any) -> Pair:
    """A function of one element: its change over its operand's.

    Where the derivative halfway accounts for the change up to rounding, it is taken instead: it
    keeps its digits where the two values come close, and is what the ratio tends to.
    """
    at = next(n for n, v in enumerate(operands) if isinstance(v, Pair))
    x = operands[at]

    def run(v: Array) -> Array:
        return operation(*operands[:at], v, *operands[at + 1 :])

    value, reference = run(x.value), run(x.reference)
    half = _average(x)
    if value.shape == half.shape:  # not forwards, which a custom_vjp has no derivative for
        derivative = wide(jax.vjp(run, half)[1](jnp.ones_like(value))[0])
    else:
        derivative = wide(jax.jvp(run, (half,), (jnp.ones_like(half),))[1])
    move, moved = _difference(x.value, x.reference), _difference(value, reference)
    noise = 2 * float(jnp.finfo(value.dtype).eps) * jnp.maximum(jnp.abs(value), jnp.abs(reference))
    # Or so small that its square, which derivatives divide by, would be 0.
    none = jnp.abs(move) <= 2 * float(jnp.finfo(move.dtype).tiny) ** 0.5
    same = (jnp.abs(derivative * move - moved) <= wide(noise)) | none
    # Not by `same`, which XLA may compute in two fusions that round it differently.
    ratio = moved / jnp.where(none, 1, move)
    # Of a change of 0, an infinite derivative makes nothing.
    derivative = jnp.where(jnp.isfinite(derivative), derivative, 0)
    slope = jnp.where(same, derivative, ratio).astype(value.dtype)
    return Pair(value, reference, slope * x.change)


def midpoint(operation: Operation, a: Pair, b: Pair) -> Pair:
    """A product of two values that both change: each one's change times the other's average."""
    left, right = _average(a), _average(b)
    change = operation(a.change, right) + operation(left, b.change)
    return Pair(operation(a.value, b.value), operation(a.reference, b.reference), change)


def quotient(operation: Operation, a: Pair, b: Pair) -> Pair:
    """A product with one over the second, whose change is -change / (value * reference)."""
    inverse = (1 / b.value + 1 / b.reference) / 2
    change = a.change * inverse - _average(a) * b.change / b.value / b.reference
    return Pair(operation(a.value, b.value), operation(a.reference, b.reference), change)


def softmax(operation: Operation, x: Pair) -> Pair:
    """Exponentials of the scores less a logarithm, which keeps their sum 1, each rescaled.

    So a number added to all scores has no part in the change.
    """
    axes = operation.params["axes"]
    value, reference = operation(x.value), operation(x.reference)
    log = lambda v: v - jax.nn.logsumexp(v, axes, keepdims=True)
    slope = _mean_of_exponentials(log(wide(x.value)), log(wide(x.reference)))
    slope = slope.astype(value.dtype)
    share = slope / jnp.sum(slope, axes, keepdims=True)
    moved = x.change - jnp.sum(share * x.change, axes, keepdims=True)
    return Pair(value, reference, slope * moved)


def winner(operation: Operation, *operands: Any) -> Pair:
    """A maximum: its change comes from the element that is it where it is higher, at x or at the
    baseline. Of a minimum, where it is lower. Of equal elements, the first."""
    name, params = operation.name, operation.params
    sign = -1 if name in ("min", "reduce_min", "reduce_window_min") else 1
    if len(operands) == 2:
        shape = operation.run([pairs.at_x(v) for v in operands])[0].shape
        spread = [jnp.broadcast_to(v, shape) for v in map(pairs.at_x, operands)]
        grounds = [jnp.broadcast_to(v, shape) for v in map(pairs.at_reference, operands)]
        changes = [
            jnp.broadcast_to(v.change, shape) if isinstance(v, Pair) else jnp.zeros(shape, o.dtype)
            for v, o in zip(operands, spread, strict=True)
        ]
        x = Pair(jnp.stack(spread), jnp.stack(grounds), jnp.stack(changes))
        best, pick = _over_axes((0,))
    elif name.startswith("reduce_window"):
        x = operands[0]
        try:
            best = lambda v: linear.winners(params, v)[1]
            jax.eval_shape(best, x.value)
        except NoRule as error:
            raise MissingRule(f"no rule for {name}: {error}") from None
        pick = lambda v, place: linear.pick(params, v, place)
    else:
        x = operands[0]
        best, pick = _over_axes(params["axes"])
    here, there = best(sign * x.value), best(sign * x.reference)
    value, reference = pick(x.value, here), pick(x.reference, there)
    higher = sign * value >= sign * reference
    place = jnp.where(higher, here, there)
    move = _difference(pick(x.value, place), pick(x.reference, place))
    slope = jnp.where(move == 0, 1, _difference(value, reference) / jnp.where(move == 0, 1, move))
    return Pair(value, reference, slope.astype(value.dtype) * pick(x.change, place))


DEEP_LIFT: Mapping[str, pairs.Rule] = MappingProxyType(
    {
        "elementwise": rescale,
        "product": midpoint,
        "quotient": quotient,
        "softmax": softmax,
        "maximum": winner,
    }
)


def deep_lift(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    rules: Mapping[str, pairs.Rule] = DEEP_LIFT,
) -> Attribution:
    """DeepLIFT's rescale rule on any function: parts of f(x) - f(baseline) that add up to it.

    Complete by construction: every primitive hands the change of its result to its operands without
    losing any, whether it is an activation, a product of two values that both change (attention,
    gates), a quotient, a softmax, a norm, a maximum; through `scan`, `cond` and `jax.checkpoint`,
    and through `stop_gradient`, since values change behind it all the same. What has no such rule
    raises.

    Works on any pytree of float arrays; below, `[...]` is the shape of one leaf.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        baseline: as in `integrated_gradients`; default zeros. Choosing it is choosing the question.
            Under `vmap`, the passes of a baseline that is the same for all examples run once.
        rules: a table; `jaxplain.deeplift` says what is in one.

    Returns:
        scores `[...]` in f's units, float32 or wider; gap is what rounding left: sum of scores -
        (f(x) - f(baseline)). Cost: 2 forward passes, in which each activation is evaluated twice
        more, and the backward pass of one gradient.

    Raises:
        JaxplainError: x or f as in `saliency`; baseline does not fit x; a pattern of module paths
            in `rules` that no module fits.
        MissingRule: a primitive that no rule is for (sorting, a `while` loop, a branch that x
            chooses, a float made of a comparison of several values), with the line to add.

    References: Shrikumar, Greenside, Kundaje, Learning Important Features Through Propagating
        Activation Differences, 2017, https://arxiv.org/abs/1704.02685
        Lundberg, Lee, A Unified Approach to Interpreting Model Predictions, 2017,
        https://arxiv.org/abs/1705.07874 (of two factors' product each gets half of what both do)
    Differs: the paper has no rule for products, quotients, softmax and maxima. Here, a product's
        change is each factor's change times the other's average; a softmax rescales the
        exponentials of what it normalises; a maximum's change comes from the element that is it
        where it is higher, as in Captum and SHAP. Scores equal Captum's where those add up:
        activations that are modules, each behind a linear map, and max pooling without overlap.

    >>> import jax.numpy as jnp
    >>> f = lambda x: jnp.maximum(x[0] + x[1], 0) * x[2]
    >>> deep_lift(f, jnp.array([2.0, -1.0, 3.0])).scores.tolist()
    [3.0, -1.5, 1.5]
    """
    del key
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    return _lifted(f, x, check_baseline(baseline, x), rules)


def deep_shap(
    f: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baselines: PyTree,
    rules: Mapping[str, pairs.Rule] = DEEP_LIFT,
    chunk: int | None = None,
) -> SampledAttribution:
    """DeepLIFT averaged over a set of baselines: an approximation of the marginal game's SHAP.

    `K` baselines. Works on any pytree of float arrays; below, `[...]` is the shape of one leaf.

    Args:
        f: `x -> []`, one score.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; every baseline is taken.
        baselines: x's tree, `[K, ...]`, K of at least 2: examples of what x is to be compared with.
        rules: as in `deep_lift`.
        chunk: baselines at once, default 8. Memory is that of `chunk` of them.

    Returns:
        scores `[...]` in f's units, float32 or wider: averages over the baselines; standard_error
        `[...]`: how far they may be from averages over all that the baselines are a sample of;
        samples K; gap is what rounding left: sum of scores - (f(x) - mean of f over the
        baselines). Cost: K times that of `deep_lift`, but for x's own passes.

    Raises:
        JaxplainError, MissingRule: as in `deep_lift`; fewer than 2 baselines, or ones that do not
            fit x; chunk below 1.

    References: Lundberg, Lee, A Unified Approach to Interpreting Model Predictions, 2017,
        https://arxiv.org/abs/1705.07874
        Chen, Lundberg, Lee, Explaining a series of models by propagating Shapley values, 2022,
        https://arxiv.org/abs/2105.00108

    >>> import jax.numpy as jnp
    >>> f = lambda x: jnp.maximum(x[0], 0) * x[1]
    >>> deep_shap(f, jnp.array([2.0, 3.0]), baselines=jnp.array([[0.0, 0], [2, 0]])).scores.tolist()
    [1.5, 4.5]
    """
    del key
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    count, starts = check_set(baselines, x)
    if count < 2:
        raise JaxplainError("baselines has one baseline: use deep_lift, whose baseline it is")

    def sample(k: Array) -> tuple:
        found = _lifted(f, x, jax.tree.map(lambda b: b[k], starts), rules)
        return found.scores, found.output, found.gap

    drawn = moments(sample, count, 8 if chunk is None else chunk)
    scores, output, gap = drawn.mean
    error = drawn.standard_error()[0]
    return SampledAttribution(scores, output, gap, error, jnp.int32(count))


def _lifted(f: ScalarFunction, x: PyTree, start: PyTree, rules: Mapping) -> Attribution:
    change = jax.tree.map(jnp.subtract, x, start)

    def moved(change: PyTree) -> tuple:
        pair = pairs.differences(f, x, start, change, rules)
        return pair.change, (pair.value, pair.reference)

    out, backward, (output, reference) = jax.vjp(moved, change, has_aux=True)
    (multipliers,) = backward(jnp.ones_like(out))
    scores = jax.tree.map(jnp.multiply, wide(change), wide(multipliers))
    return Attribution(scores, output, residual(scores, wide(output) - wide(reference)))


def _difference(value: Array, reference: Array) -> Array:
    """0 also between infinities, which masks are made of."""
    return jnp.where(value == reference, 0, wide(value) - wide(reference))


def _average(x: Pair) -> Array:
    half = x.reference + (x.value - x.reference) / 2
    return jnp.where(x.value == x.reference, x.value, half)


def _mean_of_exponentials(a: Array, b: Array) -> Array:
    """`(exp(a) - exp(b)) / (a - b)`, which is exp(a) where they are equal; of numbers below 0."""
    high, gap = jnp.maximum(a, b), jnp.abs(_difference(a, b))
    # Next to 0, where the ratio is 1: no comparison with 0 for two fusions to round differently.
    gap = jnp.maximum(gap, float(jnp.finfo(gap.dtype).tiny) ** 0.5)
    return jnp.exp(high) * (-jnp.expm1(-gap) / gap)


def _over_axes(axes: tuple[int, ...]) -> tuple:
    """Where the largest element over some axes is, and the element at a place."""

    def last(v: Array) -> Array:
        kept = [n for n in range(v.ndim) if n not in axes]
        return jnp.transpose(v, (*kept, *axes)).reshape(*(v.shape[n] for n in kept), -1)

    def pick(v: Array, place: Array) -> Array:
        v = last(v)  # a masked sum: gathers and scatters of single elements take several times more
        index = jnp.arange(v.shape[-1]).reshape((1,) * place.ndim + (-1,))
        return jnp.sum(jnp.where(index == place[..., None], v, 0), axis=-1)

    return (lambda v: jnp.argmax(last(v), axis=-1)), pick
