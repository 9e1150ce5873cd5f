"""Explanations of a layer: f = g after h, where h makes the layer's state and g reads it.

Letters: `[...]` is the shape of one leaf of x or of the state h(x), each any pytree of float
arrays. What needs no path through h is a method of g: `integrated_gradients(g, h(x),
baseline=h(start))` is a layer's integrated gradients, and so for any other method.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.path import Baseline, check_baseline, mean_along
from jaxplain.methods.rectified import guided_backprop, unit_of
from jaxplain.methods.sampling import like, residual, unclaimed, wide
from jaxplain.types import (
    Array,
    Attribution,
    JaxplainError,
    PyTree,
    ScalarFunction,
    check_example,
)

State = Callable[[PyTree], PyTree]  # h: `x -> [...]`


def grad_cam(
    g: ScalarFunction,
    a: Array,
    *,
    key: Array | None = None,
    relu: bool = True,
    channel_axis: int = -1,
) -> Attribution:
    """Grad-CAM: the channels of a convolution's state, weighed by their mean gradients.

    Letters: `[H, W, C]` the state's shape; any number of spatial axes will do.

    Args:
        g: `a -> []`, the rest of f: f(x) = g(a) for a = h(x).
        a: `[H, W, C]`, one example's state; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        relu: False keeps places that speak against the score, which the paper sets to 0.
        channel_axis: where C is.

    Returns:
        scores `[H, W]` in f's units, a's dtype; output f(x); gap NaN. Cost: 1 gradient of g.

    Raises:
        JaxplainError: a is not one float array of two axes or more, or has no such axis; g does not
            return one float.

    References: Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra, Grad-CAM: Visual Explanations
        from Deep Networks via Gradient-based Localization, 2017, https://arxiv.org/abs/1610.02391

    >>> import jax.numpy as jnp
    >>> a = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])
    >>> grad_cam(lambda a: jnp.sum(a[..., 0]) - a[0, 0, 1], a).scores.tolist()
    [[0.0, 1.0]]
    """
    del key
    check_example(g, a)
    a = jnp.asarray(a) if hasattr(a, "shape") else a
    if not hasattr(a, "ndim") or a.ndim < 2 or not -a.ndim <= channel_axis < a.ndim:
        shape = list(a.shape) if hasattr(a, "shape") else str(jax.tree.structure(a))
        raise JaxplainError(
            f"a must be one array with spatial axes and channel_axis {channel_axis}, not {shape}"
        )
    output, gradient = jax.value_and_grad(g)(a)
    places = [axis for axis in range(a.ndim) if axis != channel_axis % a.ndim]
    weights = jnp.mean(gradient, axis=places, keepdims=True)
    scores = jnp.sum(weights * a, axis=channel_axis)
    return Attribution(jax.nn.relu(scores) if relu else scores, output, unclaimed(output))


def guided_grad_cam(
    h: State,
    g: ScalarFunction,
    x: Array,
    *,
    key: Array | None = None,
    channel_axis: int = -1,
    interpolation: Literal["linear", "nearest"] = "linear",
) -> Attribution:
    """Guided Grad-CAM: guided backpropagation to x, where Grad-CAM of a layer is above 0.

    Args:
        h: `x -> [h, w, C]`, the layer's state.
        g: `[h, w, C] -> []`, the rest of f.
        x: `[H, W, D]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        channel_axis: where C and D are.
        interpolation: how Grad-CAM is brought to `[H, W]`, by `jax.image.resize`.

    Returns:
        scores `[H, W, D]` in squared units of f per unit of x, x's dtype: only how they compare
        within x means anything. output f(x); gap NaN. Cost: 2 gradients.

    Raises:
        JaxplainError: as `grad_cam`, and `guided_backprop` of f; x and h(x) differ in their number
            of axes.

    References: as `grad_cam`.
    Differs: Captum's default interpolation is nearest; the paper's is bilinear, as here.

    >>> import jax, jax.numpy as jnp
    >>> h, x = lambda x: jax.nn.relu(x), jnp.array([[[1.0], [-2.0]]])
    >>> guided_grad_cam(h, jnp.sum, x).scores.ravel().tolist()
    [1.0, 0.0]
    """
    guided = guided_backprop(lambda x: g(h(x)), x, key=key)
    a = h(x)
    cam = grad_cam(g, a, channel_axis=channel_axis).scores
    if a.ndim != np.ndim(x):
        raise JaxplainError(
            f"h(x) has shape {list(a.shape)} and x {list(np.shape(x))}: Grad-CAM is resized to x's "
            "spatial axes, and needs as many; use grad_cam, and resize its scores"
        )
    x = jnp.asarray(x)
    places = [size for axis, size in enumerate(x.shape) if axis != channel_axis % x.ndim]
    cam = jax.image.resize(cam, places, interpolation).astype(x.dtype)
    scores = guided.scores * jnp.expand_dims(cam, channel_axis)
    return Attribution(scores, guided.output, guided.gap)


def layer_conductance(
    h: State,
    g: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    steps: int = 32,
    chunk: int | None = None,
) -> Attribution:
    """How much of f's change from the baseline to x flows through each unit of a layer.

    Along the straight path from `baseline` to `x`: a unit's own change, times f's gradient to it.

    Args:
        h: `x -> [...]`, the layer's state.
        g: `[...] -> []`, the rest of f. What of f bypasses the layer is not seen: carry it in h.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        baseline: as in `integrated_gradients`; default zeros.
        steps: Gauss-Legendre nodes, as in `integrated_gradients`.
        chunk: nodes at once, default 1. Memory is that of `chunk` of them, whatever `steps` is.

    Returns:
        scores in f's units, of h(x)'s tree and shapes, float32 or wider; output f(x); gap is what
        quadrature and rounding left: sum of scores - (f(x) - f(baseline)). Cost: `steps` times a
        forward derivative of h and a gradient of g, and 2 forward passes.

    Raises:
        JaxplainError: x or f as in `saliency`; h(x) holds something other than floats; baseline
            does not fit x; steps or chunk below 1.

    References: Dhamdhere, Sundararajan, Yan, How Important Is a Neuron?, 2018,
        https://arxiv.org/abs/1805.12233
        Shrikumar, Su, Kundaje, Computationally Efficient Measures of Internal Neuron Importance,
        2018, https://arxiv.org/abs/1807.09946 (this form, at the cost of one gradient a node)
    Differs: takes the state's derivative along the path, and Gauss-Legendre nodes. Captum takes
        differences between nodes, with an error that falls as 1 / steps.

    >>> import jax.numpy as jnp
    >>> h = lambda x: jnp.stack([x[0] + x[1], 2 * x[1]])
    >>> a = layer_conductance(h, jnp.prod, jnp.array([1.0, 2.0]))
    >>> a.scores.round(4).tolist()
    [6.0, 6.0]
    """
    del key
    x, start = _check(h, g, x, baseline)

    def term(point, change):
        state, moved = jax.jvp(h, (point,), (like(change, point),))
        return jax.tree.map(jnp.multiply, wide(jax.grad(g)(state)), wide(moved))

    scores = mean_along(term, x, start, steps, chunk)
    output = g(h(x))
    return Attribution(scores, output, residual(scores, wide(output) - wide(g(h(start)))))


def internal_influence(
    h: State,
    g: ScalarFunction,
    x: PyTree,
    *,
    key: Array | None = None,
    baseline: Baseline = None,
    steps: int = 32,
    chunk: int | None = None,
) -> Attribution:
    """Mean gradient of f to each unit of a layer, along the straight path from baseline to x.

    Args:
        h: `x -> [...]`, the layer's state.
        g: `[...] -> []`, the rest of f.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        baseline: as in `integrated_gradients`; default zeros.
        steps: Gauss-Legendre nodes, as in `integrated_gradients`.
        chunk: nodes at once, default 1. Memory is that of `chunk` of them, whatever `steps` is.

    Returns:
        scores in units of f per unit of the state, of h(x)'s tree and shapes, float32 or wider;
        output f(x); gap NaN. Cost: `steps` forward passes of h and gradients of g, and 1 more
        forward pass.

    Raises:
        JaxplainError: as `layer_conductance`.

    References: Leino, Sen, Datta, Fredrikson, Li, Influence-Directed Explanations for Deep
        Convolutional Networks, 2018, https://arxiv.org/abs/1802.03788 (the distribution of interest
        being uniform on the path)

    >>> import jax.numpy as jnp
    >>> h = lambda x: jnp.stack([x[0] + x[1], 2 * x[1]])
    >>> internal_influence(h, jnp.prod, jnp.array([1.0, 2.0])).scores.round(4).tolist()
    [2.0, 1.5]
    """
    del key
    x, start = _check(h, g, x, baseline)
    scores = mean_along(lambda point, _: wide(jax.grad(g)(h(point))), x, start, steps, chunk)
    output = g(h(x))
    return Attribution(scores, output, unclaimed(output))


def neuron_conductance(
    h: Callable[[PyTree], Array],
    g: ScalarFunction,
    x: PyTree,
    *,
    unit: int | Sequence[int],
    key: Array | None = None,
    baseline: Baseline = None,
    steps: int = 32,
    chunk: int | None = None,
) -> Attribution:
    """How much of each input's part in f's change flows through one unit of a layer.

    Over inputs it sums to the unit's `layer_conductance`; over units, to `integrated_gradients`.

    Args:
        h: `x -> [...]`, the layer's state, one array.
        g: `[...] -> []`, the rest of f.
        x: `[...]`, one example; batch with `jax.vmap`.
        unit: which one: a whole number for each axis of h(x).
        key: ignored; the method is deterministic.
        baseline: as in `integrated_gradients`; default zeros.
        steps: Gauss-Legendre nodes, as in `integrated_gradients`.
        chunk: nodes at once, default 1. Memory is that of `chunk` of them, whatever `steps` is.

    Returns:
        scores `[...]` in f's units, of x's tree and shapes, float32 or wider; output f(x); gap NaN:
        they sum to the unit's conductance, which is not f's. Cost: `steps` gradients of h and of g,
        and 1 forward pass.

    Raises:
        JaxplainError: as `layer_conductance`; h(x) is no array, or has no such unit.

    References: as `layer_conductance`.
    Differs: Captum's default, riemann_trapezoid, has weights that sum to (steps - 1) / steps, and
        scores are too small by as much.

    >>> import jax.numpy as jnp
    >>> h = lambda x: jnp.stack([x[0] + x[1], 2 * x[1]])
    >>> neuron_conductance(h, jnp.prod, jnp.array([1.0, 2.0]), unit=0).scores.round(4).tolist()
    [2.0, 4.0]
    """
    del key
    x, start = _check(h, g, x, baseline)
    at = tuple(unit) if isinstance(unit, Sequence) else unit
    jax.eval_shape(unit_of(h, at), x)  # which checks the index

    def term(point, change):
        state, back = jax.vjp(h, point)
        slope = wide(jax.grad(g)(state)[at])
        (inputs,) = back(jnp.zeros_like(state).at[at].set(1))
        return jax.tree.map(lambda d, c: slope.astype(c.dtype) * d * c, wide(inputs), change)

    scores = mean_along(term, x, start, steps, chunk)
    output = g(h(x))
    return Attribution(scores, output, unclaimed(output))


def _check(h: State, g: ScalarFunction, x: PyTree, baseline: Baseline) -> tuple[PyTree, PyTree]:
    """x as arrays, and its baseline."""
    check_example(lambda x: g(h(x)), x)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.eval_shape(h, x)):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise JaxplainError(
                f"h(x){jax.tree_util.keystr(path)} is {leaf.dtype}, and only a layer of floats can "
                "be explained: cut f where all of its state is"
            )
    x = jax.tree.map(jnp.asarray, x)
    return x, check_baseline(baseline, x)
