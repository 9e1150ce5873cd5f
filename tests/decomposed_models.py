"""Models to decompose: linen, nnx and plain functions, of every structure that JAX programs have.

`make(name)` gives a small_models.Model: `apply(params, x) -> [C]`, weights and an example drawn
from a seed. Nothing is compiled to make one.
"""

import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxplain import models
from jaxplain.models import bert
from tests import small_models
from tests.small_models import Model

BERT = Path(__file__).parent / "goldens" / "tiny_bert"


class MLP(nn.Module):
    last: Callable[[Any], Any] = nn.relu

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6)(x))
        x = self.last(nn.Dense(5)(x))
        return nn.Dense(2)(x)


ZEROS = nn.initializers.zeros  # weights are drawn later; the default has no bfloat16 in JAX 0.12


class CNN(nn.Module):
    """A residual block with BatchNorm, both kinds of pooling, and a bias before BatchNorm."""

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(4, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(x + norm()(nn.Conv(4, (3, 3))(x)))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(2)(x.reshape(-1))


class Recurrent(nn.Module):
    cell: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.RNN(self.cell)(x)[-1])


class BothWays(nn.Module):
    """The last two words are padding."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        cell = partial(nn.OptimizedLSTMCell, 3, param_dtype=self.dtype)
        lengths = jnp.array(x.shape[0] - 2)
        both: Any = nn.Bidirectional(nn.RNN(cell()), nn.RNN(cell()))(x, seq_lengths=lengths)
        return nn.Dense(2)(jnp.max(both[: x.shape[0] - 2], axis=0))


class Block(nn.Module):
    """One layer of a Transformer, normalised after each half."""

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.LayerNorm, use_fast_variance=False)
        x = norm()(x + nn.MultiHeadDotProductAttention(2)(x))
        inner = nn.gelu(nn.Dense(6)(x), approximate=False)
        return norm()(x + nn.Dense(x.shape[-1])(inner))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        pooled = jnp.tanh(nn.Dense(4)(Block()(x)[0]))
        return nn.Dense(2)(pooled)


class Prenorm(nn.Module):
    """Normalised before each half, with the fast variance and the gelu by tanh."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = x + nn.Dense(4)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(x))))
        return nn.Dense(2)(nn.LayerNorm()(x).mean(axis=0))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(4)(x)), None


class Remat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.remat(Layer)()(x, None)[0])


class Scanned(nn.Module):
    """Three layers with parameters of their own in one loop, each recomputed on the way back."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return nn.Dense(2)(layers()(x, None)[0])


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RMSNorm()(nn.Dense(4)(x))
        return nn.Dense(2)(jnp.tanh(nn.GroupNorm(num_groups=2)(x[None])[0]).mean(axis=0))


class Activations(nn.Module):
    """One layer for each of the activation functions."""

    names: tuple[str, ...] = ("leaky_relu", "silu", "gelu", "elu", "softplus", "sigmoid", "relu6")

    @nn.compact
    def __call__(self, x):
        hidden = [getattr(jax.nn, name)(nn.Dense(2)(x)) for name in self.names]
        return nn.Dense(2)(jnp.concatenate(hidden))


class NnxRecurrent(nnx.Module):
    """A recurrent cell by a loop of Python, or by nnx.RNN."""

    def __init__(self, kind, *, loop, rngs, dtype):
        self.cell = kind(3, 4, param_dtype=dtype, rngs=rngs)
        self.loop = loop
        self.head = nnx.Linear(4, 2, param_dtype=dtype, rngs=rngs)

    def __call__(self, x):
        if not self.loop:
            states: Any = nnx.RNN(self.cell, rngs=nnx.Rngs(0))(x)
            return self.head(states[-1])
        carry = self.cell.initialize_carry(x.shape[1:], rngs=nnx.Rngs(0))
        for i in range(x.shape[0]):
            carry, shown = self.cell(carry, x[i])
        return self.head(shown)


def branch_on_data(p, x):
    """x `[5]`: the sign of a sum of the input decides."""
    left = lambda h: jnp.tanh(h @ p["a"] + p["c"])
    right = lambda h: jax.nn.relu(h @ p["b"]) + p["c"]
    return jax.lax.cond(x.sum() > 0, left, right, x) @ p["d"]


def branch_on_constant(p, x):
    """x `[5]`: a parameter decides, and the branch that it leaves does not read x."""
    left = lambda h: jnp.tanh(h @ p["a"] + p["c"])
    right = lambda h: p["c"] * 2
    return jax.lax.cond(p["c"][0] > -100, left, right, x) @ p["d"]


def counted_loop(p, x):
    """x `[5]`: the same layer three times, of which a counter picks the bias."""
    body = lambda i, h: jnp.tanh(h @ p["a"] + p["b"][i])
    return jax.lax.fori_loop(0, 3, body, x) @ p["c"]


FUNCTIONS: dict[str, tuple[Callable, Any, tuple[int, ...]]] = {
    "branch_on_data": (
        branch_on_data,
        {"a": (5, 4), "b": (5, 4), "c": (4,), "d": (4, 2)},
        (5,),
    ),
    "branch_on_constant": (branch_on_constant, {"a": (5, 4), "c": (4,), "d": (4, 2)}, (5,)),
    "counted_loop": (counted_loop, {"a": (5, 5), "b": (3, 5), "c": (5, 2)}, (5,)),
}

LINEN: dict[str, tuple[Callable[[Any], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda _: MLP(jnp.tanh), (5,)),
    "relu_mlp": (lambda _: MLP(), (5,)),
    "cnn": (lambda _: CNN(), (1, 8, 8, 2)),
    "lstm": (
        lambda dtype: Recurrent(nn.LSTMCell(4, param_dtype=dtype, recurrent_kernel_init=ZEROS)),
        (5, 3),
    ),
    "lstm_optimized": (
        lambda dtype: Recurrent(
            nn.OptimizedLSTMCell(4, param_dtype=dtype, recurrent_kernel_init=ZEROS)
        ),
        (5, 3),
    ),
    "gru": (
        lambda dtype: Recurrent(nn.GRUCell(4, param_dtype=dtype, recurrent_kernel_init=ZEROS)),
        (5, 3),
    ),
    "bidirectional": (BothWays, (5, 3)),
    "transformer": (lambda _: Transformer(), (4, 4)),
    "prenorm": (lambda _: Prenorm(), (4, 4)),
    "remat": (lambda _: Remat(), (4,)),
    "scanned": (lambda _: Scanned(), (4,)),
    "norms": (lambda _: Norms(), (3, 4)),
    "activations": (lambda _: Activations(), (5,)),
}

NNX: dict[str, tuple[Any, bool]] = {
    "nnx_lstm": (nnx.LSTMCell, True),
    "nnx_lstm_optimized": (nnx.OptimizedLSTMCell, False),
    "nnx_gru": (nnx.GRUCell, False),
}

SMALL = {"attention": "attention", "jnp_cnn": "cnn", "jnp_lstm": "lstm", "tree": "tree"}

TEXT = {f"text_{name}": name for name in models.BUNDLED}

NAMES = (*LINEN, *NNX, *FUNCTIONS, *SMALL, *TEXT, "bert")


def fill(shapes: Any, draw: np.random.Generator, dtype: Any) -> Any:
    """Random parameters: products of size one, biases and offsets that matter."""

    def leaf(path, shape):
        name = jax.tree_util.keystr(path)
        noise = draw.normal(size=shape.shape)
        if "'var'" in name:
            return jnp.asarray(0.5 + draw.uniform(size=shape.shape), dtype)
        if "'scale'" in name:
            return jnp.asarray(1 + 0.3 * noise, dtype)
        # A kernel has its outputs last; one of attention has heads there as well.
        outputs = 2 if len(shape.shape) == 3 and "'out'" not in name else 1
        fan = np.prod(shape.shape[: max(len(shape.shape) - outputs, 0)])
        return jnp.asarray(noise * (fan**-0.5 if "kernel" in name else 0.5), dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _linen(name: str, dtype: Any, draw: np.random.Generator) -> Model:
    build, shape = LINEN[name]
    module = build(dtype)
    x = jnp.asarray(draw.normal(size=shape), dtype)
    params = fill(jax.eval_shape(module.init, jax.random.key(0), x), draw, dtype)
    apply: Any = lambda p, x: module.apply(p, x)
    if name == "cnn":  # its own example is one image, without the axis that pooling wants
        return Model(lambda p, x: apply(p, x[None]), params, x[0])
    return Model(apply, params, x)


def _nnx(name: str, dtype: Any, draw: np.random.Generator) -> Model:
    kind, loop = NNX[name]
    made = nnx.eval_shape(lambda: NnxRecurrent(kind, loop=loop, rngs=nnx.Rngs(0), dtype=dtype))
    graph, shapes = nnx.split(made)
    params = fill(nnx.to_pure_dict(shapes), draw, dtype)

    def apply(params, x):
        state = jax.tree.map(lambda v: v, shapes)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(x)

    return Model(apply, params, jnp.asarray(draw.normal(size=(4, 3)), dtype))


def _text(name: str, dtype: Any) -> Model:
    """Shipped weights, or BERT's random ones, and a sentence with one place of padding."""
    model = bert.load_bert(BERT) if name == "bert" else models.load(TEXT[name])
    ids = model.tokenize("not a good film").ids
    mask = np.arange(len(ids) + 1) < len(ids)
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), model.params)
    x = model.embed(params, jnp.asarray(np.pad(ids, (0, 1), constant_values=model.pad_id)))
    return Model(lambda p, x: model.score(p, x, mask), params, x)


@lru_cache
def make(name: str, dtype: Any = "f4") -> Model:
    """The model called `name`, in `dtype`."""
    dtype = jnp.dtype(dtype)
    if name in SMALL:
        return small_models.make(SMALL[name], dtype)
    if name in TEXT or name == "bert":
        return _text(name, dtype)
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if name in LINEN:
        return _linen(name, dtype, draw)
    if name in NNX:
        return _nnx(name, dtype, draw)
    apply, shapes, shape = FUNCTIONS[name]
    params = {
        k: jnp.asarray(draw.normal(size=s) * (s[0] ** -0.5 if len(s) > 1 else 0.5), dtype)
        for k, s in shapes.items()
    }
    return Model(apply, params, jnp.asarray(draw.normal(size=shape), dtype))
