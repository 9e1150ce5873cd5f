"""Methods that read one gradient."""

import jax
import jax.numpy as jnp

from jaxplain.methods.sampling import unclaimed
from jaxplain.types import Array, Attribution, PyTree, ScalarFunction, check_example


def saliency(
    f: ScalarFunction, x: PyTree, *, key: Array | None = None, absolute: bool = True
) -> Attribution:
    """Magnitude of the gradient: how fast f moves with each input, whichever way.

    Works on any pytree of float arrays; below, `[...]` is the shape of one leaf.

    Args:
        f: `x -> []`, one score, differentiable at x.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        absolute: False keeps the gradient's sign. Choose False under `smooth`, which otherwise
            averages magnitudes.

    Returns:
        scores `[...]` in units of f per unit of x, x's dtype; gap NaN. Cost: 1 gradient.

    Raises:
        JaxplainError: x holds something other than floats, or f does not return one float.

    References: Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, 2013,
        https://arxiv.org/abs/1312.6034
    Differs: the paper takes the largest magnitude over an image's channels; scores here keep x's
        shape, and `jnp.max(scores, -1)` is the paper's map.

    >>> import jax.numpy as jnp
    >>> saliency(lambda x: x[0] - 2 * x[1], jnp.array([3.0, 4.0])).scores.tolist()
    [1.0, 2.0]
    """
    del key
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    output, gradient = jax.value_and_grad(f)(x)
    scores = jax.tree.map(jnp.abs, gradient) if absolute else gradient
    return Attribution(scores, output, unclaimed(output))


def input_x_gradient(f: ScalarFunction, x: PyTree, *, key: Array | None = None) -> Attribution:
    """Input times gradient: the first-order guess of what setting each input to zero takes away.

    Works on any pytree of float arrays; below, `[...]` is the shape of one leaf.

    Args:
        f: `x -> []`, one score, differentiable at x.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.

    Returns:
        scores `[...]` in f's units, x's dtype; gap NaN: the sum is f(x) - f(0) only where f is
        affine (and f(x) where it has no biases either). Cost: 1 gradient.

    Raises:
        JaxplainError: x holds something other than floats, or f does not return one float.

    References: Shrikumar, Greenside, Shcherbina, Kundaje, Not Just a Black Box, 2016,
        https://arxiv.org/abs/1605.01713

    >>> import jax.numpy as jnp
    >>> input_x_gradient(lambda x: x[0] - 2 * x[1], jnp.array([3.0, 4.0])).scores.tolist()
    [3.0, -8.0]
    """
    del key
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    output, gradient = jax.value_and_grad(f)(x)
    return Attribution(jax.tree.map(jnp.multiply, x, gradient), output, unclaimed(output))
