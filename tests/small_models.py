"""Small models in plain jax.numpy: `apply(params, x) -> []`, one example in, one score out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Model(NamedTuple):
    """A model, its parameters and an example: `f(x)` is its score."""

    apply: Callable[[Any, Any], jax.Array]
    params: Any
    x: Any

    def f(self, x):
        return self.apply(self.params, x)


def mlp(p, x):
    """x `[5]`."""
    h = jax.nn.gelu(x @ p["a"] + p["b"], approximate=False)
    return jnp.tanh(h @ p["c"] + p["d"]) @ p["e"]


def cnn(p, x):
    """x `[8, 8, 2]`."""
    for w, b in ((p["a"], p["b"]), (p["c"], p["d"])):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x[None], w, (2, 2), "VALID", dimension_numbers=numbers)[0]
        x = jax.nn.softplus(x + b.reshape(1, 1, -1))
    return x.reshape(-1) @ p["e"]


def lstm(p, x):
    """x `[T, 3]`."""

    def cell(state, token):
        h, c = state
        i, g, o, q = jnp.split(token @ p["a"] + h @ p["b"] + p["c"], 4)
        c = jax.nn.sigmoid(g) * c + jax.nn.sigmoid(i) * jnp.tanh(q)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zero = jnp.zeros(p["b"].shape[0], x.dtype)
    return jax.lax.scan(cell, (zero, zero), x)[0][0] @ p["e"]


def attention(p, x):
    """x `[T, 4]`."""
    h = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 0.1)
    q, k, v = h @ p["a"], h @ p["b"], h @ p["c"]
    x = x + jax.nn.softmax(q @ k.T / q.shape[-1] ** 0.5, axis=-1) @ v
    return jnp.mean(jnp.tanh(x @ p["d"]), 0) @ p["e"]


def tree(p, x):
    """x `{"a": [3], "b": ([2, 2], [])}`: a product of leaves, so that they interact."""
    a, (b, c) = x["a"], x["b"]
    return jnp.tanh(a @ p["a"]) * jnp.sum(jnp.sin(b)) + c * jnp.sum(a**2)


def relu(p, x):
    """x `[5]`: one ReLU as a call, one as a maximum."""
    h = jnp.maximum(x @ p["a"] + p["b"], 0)
    return jax.nn.relu(h @ p["c"] + p["d"]) @ p["e"]


SHAPES = {
    "mlp": (mlp, {"a": (5, 8), "b": (8,), "c": (8, 4), "d": (4,), "e": (4,)}, (5,)),
    "cnn": (
        cnn,
        {"a": (3, 3, 2, 3), "b": (3,), "c": (2, 2, 3, 2), "d": (2,), "e": (2,)},
        (8, 8, 2),
    ),
    "lstm": (lstm, {"a": (3, 16), "b": (4, 16), "c": (16,), "e": (4,)}, (6, 3)),
    "attention": (
        attention,
        {"a": (4, 4), "b": (4, 4), "c": (4, 4), "d": (4, 4), "e": (4,)},
        (6, 4),
    ),
    "tree": (tree, {"a": (3,)}, {"a": (3,), "b": ((2, 2), ())}),
}
# For methods that need a ReLU, of which those above have none.
WITH_RELU = {"relu": (relu, {"a": (5, 16), "b": (16,), "c": (16, 8), "d": (8,), "e": (8,)}, (5,))}


def make(name: str, dtype: Any = "f4", seed: int = 0) -> Model:
    """The model called `name`, of O(1) weights and input drawn from `seed`."""
    apply, params, x = (SHAPES | WITH_RELU)[name]
    draw = np.random.default_rng(seed)
    is_shape = lambda s: isinstance(s, tuple) and all(isinstance(n, int) for n in s)

    def leaf(shape):
        scale = np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 1.0
        return jnp.asarray(draw.normal(size=shape) * scale, dtype)

    params = jax.tree.map(leaf, params, is_leaf=is_shape)
    return Model(apply, params, jax.tree.map(lambda s: leaf(s) * 1.5, x, is_leaf=is_shape))
