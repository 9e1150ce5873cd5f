"""BERT's encoder in Flax linen, cut at the word embeddings; `bert.py` fills it with weights.

References:
    Jacob Devlin, Ming-Wei Chang, Kenton Lee, Kristina Toutanova, "BERT: Pre-training of Deep
    Bidirectional Transformers for Language Understanding", 2019, https://arxiv.org/abs/1810.04805
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxplain.types import Array, JaxplainError, PyTree

_tanh_gelu = partial(jax.nn.gelu, approximate=True)

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "gelu": partial(jax.nn.gelu, approximate=False),
        "gelu_python": partial(jax.nn.gelu, approximate=False),
        "gelu_new": _tanh_gelu,
        "gelu_fast": _tanh_gelu,
        "gelu_pytorch_tanh": _tanh_gelu,
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "relu": jax.nn.relu,
        "relu6": jax.nn.relu6,
        "silu": jax.nn.silu,
        "swish": jax.nn.silu,
        "mish": jax.nn.mish,
        "tanh": jnp.tanh,
        "sigmoid": jax.nn.sigmoid,
    }
)

POOLINGS = ("pooler", "cls", "mean")


class BertConfig(NamedTuple):
    """The sizes and choices that fix the program; hashable, so it can be a static argument.

    Attributes:
        vocabulary: rows of the word embedding table.
        width: `D`, size of every layer's state.
        layers: number of encoder layers.
        heads: attention heads of a layer.
        inner: size of the state between the two dense layers of a feed-forward block.
        activation: a key of `ACTIVATIONS`.
        epsilon: added to the variance in LayerNorm.
        positions: rows of the position table, the most tokens one text can have.
        token_types: rows of the token type table, of which row 0 is used.
        pooling: a member of `POOLINGS`: the first token through a dense tanh layer, the first
            token as it is, or the mean over the unmasked tokens.
        classes: `C`, number of logits.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    activation: str
    epsilon: float
    positions: int
    token_types: int
    pooling: str
    classes: int


def _norm(config: BertConfig) -> nn.LayerNorm:
    # The fast variance, E[x²] - E[x]², cancels: too coarse to equal other implementations to 1e-5.
    return nn.LayerNorm(epsilon=config.epsilon, use_fast_variance=False)


class Layer(nn.Module):
    """Self-attention and a feed-forward block, each followed by a residual sum and LayerNorm."""

    config: BertConfig

    def setup(self):
        width = self.config.width
        self.query, self.key, self.value = nn.Dense(width), nn.Dense(width), nn.Dense(width)
        self.attention_output, self.attention_norm = nn.Dense(width), _norm(self.config)
        self.intermediate, self.output = nn.Dense(self.config.inner), nn.Dense(width)
        self.output_norm = _norm(self.config)

    def __call__(self, state: Array, mask: Array) -> Array:
        tokens, width = state.shape
        split = (tokens, self.config.heads, width // self.config.heads)
        query, key, value = (
            dense(state).reshape(split) for dense in (self.query, self.key, self.value)
        )
        logits = jnp.einsum("qhd,khd->hqk", query, key) / math.sqrt(split[2])
        logits = jnp.where(mask[None, None, :], logits, jnp.finfo(logits.dtype).min)
        mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits), value).reshape(tokens, width)
        state = self.attention_norm(state + self.attention_output(mixed))
        inner = ACTIVATIONS[self.config.activation](self.intermediate(state))
        return self.output_norm(state + self.output(inner))


class Bert(nn.Module):
    """The classifier: `(x [T, D], mask [T]) -> (logits [C], states, L + 1 arrays [T, D])`."""

    config: BertConfig

    def setup(self):
        c = self.config
        self.word_embeddings = nn.Embed(c.vocabulary, c.width)
        self.position_embeddings = nn.Embed(c.positions, c.width)
        self.token_type_embeddings = nn.Embed(c.token_types, c.width)
        self.embeddings_norm = _norm(c)
        self.layer = [Layer(c) for _ in range(c.layers)]
        if c.pooling == "pooler":
            self.pooler = nn.Dense(c.width)
        self.classifier = nn.Dense(c.classes)

    def embed(self, ids: Array) -> Array:
        return self.word_embeddings(ids)

    def __call__(self, x: Array, mask: Array) -> tuple[Array, list[Array]]:
        tokens, rows = x.shape[0], mask[:, None]
        if tokens > self.config.positions:
            raise JaxplainError(
                f"this BERT has {self.config.positions} positions and was given {tokens} tokens: "
                f"cut or pad texts to at most {self.config.positions}"
            )
        state = jnp.where(rows, x, 0)  # so that nothing there, NaN included, is ever read
        state = state + self.token_type_embeddings.embedding[:1]
        state = state + self.position_embeddings.embedding[:tokens]
        states = [self.embeddings_norm(state)]
        for layer in self.layer:
            states.append(layer(states[-1], mask))
        last = states[-1]
        if self.config.pooling == "mean":
            pooled = jnp.where(rows, last, 0).sum(0) / jnp.maximum(mask.sum(), 1)
        elif self.config.pooling == "cls":
            pooled = last[0]
        else:
            pooled = jnp.tanh(self.pooler(last[0]))
        return self.classifier(pooled), [jnp.where(rows, s, 0) for s in states]


def _apply(config: BertConfig, params: PyTree, *inputs: Array, **options: Any) -> Any:
    return Bert(config).apply({"params": params}, *inputs, **options)


def embed(config: BertConfig, params: PyTree, ids: Array) -> Array:
    """`ids [T] int32 -> x [T, D]`: word embeddings alone, before positions and LayerNorm."""
    return _apply(config, params, ids, method=Bert.embed)


def score(config: BertConfig, params: PyTree, x: Array, mask: Array) -> Array:
    """`(x [T, D], mask [T] bool) -> logits [C]`."""
    return _apply(config, params, x, mask)[0]


def hidden(config: BertConfig, params: PyTree, x: Array, mask: Array) -> Array:
    """`(x [T, D], mask [T] bool) -> [L + 1, T, D]`: the embeddings' LayerNorm, then each layer."""
    return jnp.stack(states(config, params, x, mask))


def states(config: BertConfig, params: PyTree, x: Array, mask: Array) -> tuple[Array, ...]:
    """As `hidden`, in a tuple."""
    return tuple(_apply(config, params, x, mask)[1])
