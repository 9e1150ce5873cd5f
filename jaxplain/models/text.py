"""Text classifiers in Flax: Transformer, LSTM and CNN.

All three read one example, `x [T, D]` and `mask [T]`, and share one shape of state: a layer is
`[T, D]`, zero at masked positions, and the class scores are a linear map of the last layer, pooled
over the words. A module is bound to its parameters by nothing but arguments, so each function here
is pure and maps with `jax.vmap`.

Letters: `T` tokens with padding, `D` width, `L` layers with the embedding layer first, `C` classes,
`V` words in the vocabulary.
"""

import functools
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxplain.models import words
from jaxplain.models.types import TextModel
from jaxplain.types import Array, JaxplainError, PyTree


def keep(x: Array, mask: Array) -> Array:
    """`x [T, D]` where `mask [T]`, zero elsewhere."""
    return jnp.where(mask[:, None], x, jnp.zeros_like(x))


class Attention(nn.Module):
    """Multi-head self-attention over the unmasked positions.

    References:
        Vaswani et al., "Attention Is All You Need", 2017. https://arxiv.org/abs/1706.03762
    """

    heads: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        length, width = x.shape
        split = lambda name: nn.Dense(width, name=name)(x).reshape(length, self.heads, -1)
        query, key, value = split("query"), split("key"), split("value")
        scores = jnp.einsum("qhd,khd->hqk", query, key) / jnp.sqrt(width / self.heads)
        scores = jnp.where(mask[None, None, :], scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), value)
        return nn.Dense(width, name="out")(mixed.reshape(length, width))


class Block(nn.Module):
    """One layer of a Transformer, normalised before each half.

    References:
        Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020.
        https://arxiv.org/abs/2002.04745
    """

    heads: int
    inner: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> Array:
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        x = x + drop(Attention(self.heads, name="attention")(nn.LayerNorm()(x), mask))
        inner = jax.nn.gelu(nn.Dense(self.inner, name="inner")(nn.LayerNorm()(x)))
        return keep(x + drop(nn.Dense(x.shape[-1], name="out")(inner)), mask)


class Transformer(nn.Module):
    """Words and learned positions through `layers` blocks, the last one normalised."""

    max_length: int
    layers: int = 2
    heads: int = 4
    inner: int = 128
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> list[Array]:
        length, width = x.shape
        if length > self.max_length:
            raise JaxplainError(
                f"{length} positions, and this model has {self.max_length}: cut the text, as its "
                "tokenize does"
            )
        positions = self.param("positions", nn.initializers.normal(0.02), (self.max_length, width))
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        states = [keep(drop(x + positions[:length]), mask)]
        for _ in range(self.layers):
            states.append(
                Block(self.heads, self.inner, self.dropout)(states[-1], mask, deterministic)
            )
        states[-1] = keep(nn.LayerNorm(name="norm")(states[-1]), mask)
        return states


class Recurrence(nn.Module):
    """Long short-term memory in one direction; a masked position leaves its carry as it was.

    References:
        Hochreiter, Schmidhuber, "Long Short-Term Memory", 1997.
        https://doi.org/10.1162/neco.1997.9.8.1735
    """

    width: int
    reverse: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        # Inputs of the four gates for all words at once; the scan then holds one small product.
        inputs = nn.Dense(4 * self.width, name="input")(x)
        orthogonal = nn.initializers.orthogonal(dtype=jnp.float32)  # its own follows enable_x64
        recurrent = self.param("recurrent", orthogonal, (self.width, 4 * self.width))

        def step(carry, word):
            state, cell = carry
            gates, real = word
            enter, forget, new, leave = jnp.split(gates + state @ recurrent, 4)
            # One added before the sigmoid: a fresh cell remembers.
            updated = jax.nn.sigmoid(forget + 1) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            shown = jax.nn.sigmoid(leave) * jnp.tanh(updated)
            carry = jnp.where(real, shown, state), jnp.where(real, updated, cell)
            return carry, carry[0]

        # A carry made of the input keeps its type under shard_map.
        zero = jnp.zeros_like(inputs[0, : self.width])
        _, states = jax.lax.scan(step, (zero, zero), (inputs, mask), reverse=self.reverse)
        return states


class LSTM(nn.Module):
    """`layers` bidirectional layers; a layer's state is both directions, half the width each."""

    layers: int = 1
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> list[Array]:
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        states = [keep(drop(x), mask)]
        for layer in range(self.layers):
            both = [
                Recurrence(x.shape[-1] // 2, reverse, name=f"{name}_{layer}")(states[-1], mask)
                for name, reverse in (("forward", False), ("backward", True))
            ]
            states.append(keep(drop(jnp.concatenate(both, axis=-1)), mask))
        return states


class CNN(nn.Module):
    """Filters over windows of several sizes; the width is shared among the sizes.

    A window is centred on a word and sees zeros beyond the text's ends, so that a text shorter
    than a filter has windows too, and padding is like no padding.

    References:
        Kim, "Convolutional Neural Networks for Sentence Classification", 2014.
        https://arxiv.org/abs/1408.5882
    """

    windows: tuple[int, ...] = (1, 2, 3, 5)
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> list[Array]:
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        states = [keep(drop(x), mask)]
        filters = x.shape[-1] // len(self.windows)
        maps = [
            nn.Conv(filters, (size,), name=f"window_{size}")(states[0]) for size in self.windows
        ]
        states.append(keep(jax.nn.relu(jnp.concatenate(maps, axis=-1)), mask))
        return states


ENCODERS = MappingProxyType({"transformer": Transformer, "lstm": LSTM, "cnn": CNN})


class TextClassifier(nn.Module):
    """Word embeddings, an encoder, one vector by pooling, and linear class scores.

    Attributes:
        encoder: `(x [T, D], mask [T], deterministic) -> L states [T, D]`.
        vocabulary: V.
        width: D.
        pool: "mean" or "max", over the unmasked positions of the last state.
        dropout: share of the pooled vector dropped in training.
    """

    encoder: nn.Module
    vocabulary: int
    width: int
    classes: int
    pool: str
    dropout: float = 0.0

    def setup(self):
        self.embedding = nn.Embed(self.vocabulary, self.width)
        self.drop = nn.Dropout(self.dropout)
        self.head = nn.Dense(self.classes)

    def embed(self, ids: Array) -> Array:
        return self.embedding(ids)

    def states(self, x: Array, mask: Array, deterministic: bool = True) -> tuple[Array, ...]:
        return tuple(self.encoder(keep(x, mask), mask, deterministic))  # type: ignore[operator]

    def score(self, x: Array, mask: Array, deterministic: bool = True) -> Array:
        last = self.encoder(keep(x, mask), mask, deterministic)[-1]  # type: ignore[operator]
        if self.pool == "max":
            lowest = jnp.finfo(last.dtype).min
            pooled = jnp.where(mask[:, None], last, lowest).max(axis=0)
            pooled = jnp.where(mask.any(), pooled, 0)  # no word at all: no evidence
        else:
            pooled = last.sum(axis=0) / jnp.maximum(mask.sum(), 1)
        return self.head(self.drop(pooled, deterministic=deterministic))

    def __call__(self, ids: Array, mask: Array, deterministic: bool = True) -> Array:
        return self.score(self.embed(ids), mask, deterministic)


def embed(module: TextClassifier, params: PyTree, ids: Array) -> Array:
    """Word embeddings `[T, D]` of `ids [T]`. Cost: no evaluation."""
    return module.apply({"params": params}, ids, method="embed")  # type: ignore[return-value]


def score(module: TextClassifier, params: PyTree, x: Array, mask: Array) -> Array:
    """Logits `[C]` of embeddings `x [T, D]` where `mask [T]`. Cost: one forward evaluation."""
    return module.apply({"params": params}, x, mask, method="score")  # type: ignore[return-value]


def hidden(module: TextClassifier, params: PyTree, x: Array, mask: Array) -> Array:
    """Every layer's state `[L, T, D]`, zero where `mask [T]` is not. Cost: one forward."""
    return jnp.stack(states(module, params, x, mask))


def states(module: TextClassifier, params: PyTree, x: Array, mask: Array) -> tuple[Array, ...]:
    """As `hidden`, in a tuple: a layer that is not used is not computed. Cost: one forward."""
    return module.apply({"params": params}, x, mask, method="states")  # type: ignore[return-value]


def classifier(
    kind: str,
    *,
    vocabulary: int,
    width: int,
    classes: int,
    pool: str,
    dropout: float = 0.0,
    **rest: Any,
) -> TextClassifier:
    """A classifier without parameters, from the numbers that a model card records.

    Args:
        kind: "transformer", "lstm" or "cnn".
        rest: fields of that encoder.

    Raises:
        JaxplainError: for another kind.
    """
    if kind not in ENCODERS:
        raise JaxplainError(
            f"no text classifier is called {kind!r}: take one of {', '.join(ENCODERS)}"
        )
    rest = {name: tuple(v) if isinstance(v, list) else v for name, v in rest.items()}
    encoder = ENCODERS[kind](dropout=dropout, **rest)
    return TextClassifier(encoder, vocabulary, width, classes, pool, dropout)


def text_model(
    name: str,
    module: TextClassifier,
    params: PyTree,
    vocabulary: words.Vocabulary,
    *,
    labels: tuple[str, ...],
    max_length: int,
) -> TextModel:
    """Bind a classifier, its parameters and its words to the interface of all text models."""
    return TextModel(
        name=name,
        params=params,
        embed=functools.partial(embed, module),
        score=functools.partial(score, module),
        hidden=functools.partial(hidden, module),
        states=functools.partial(states, module),
        tokenize=functools.partial(words.tokenize, vocabulary, max_length),
        labels=labels,
        max_length=max_length,
        pad_id=words.PAD_ID,
        unk_id=words.UNKNOWN_ID,
        mask_id=None,
        kind=next((k for k, kind in ENCODERS.items() if isinstance(module.encoder, kind)), ""),
    )
