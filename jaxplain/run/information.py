"""What the layers of a text model hold of each word: a function of one text that `run` maps."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.information import DEFAULTS, layer_information, word_information
from jaxplain.methods.spread import finish, hidden_moments, merge
from jaxplain.models.types import TextModel
from jaxplain.run import plan
from jaxplain.run.sources import TextSource
from jaxplain.types import Array, JaxplainError, PyTree

STATES = ("all", "mean", "first")
SENTENCES = 512  # that the spread of a layer's units is measured on
ROWS = 32  # of them at once
SCALE = 10.0  # standard deviations of the word embeddings, as published
TOLERANCE = 0.1  # of log sigma: maps and curves need no more, and more takes its square in time
OWN = {"layers": "all", "state": "all", "scale": "auto"}  # options that need the model to be read


def layer_count(model: TextModel) -> int:
    """How many layers a model has, that of the embeddings included. Cost: none, by shape alone."""
    mask = jax.ShapeDtypeStruct((2,), bool)
    ids = jax.ShapeDtypeStruct((2,), jnp.int32)
    x = jax.eval_shape(model.embed, model.params, ids)
    return len(jax.eval_shape(model.states, model.params, x, mask))


def read_layers(layers: str | int | Sequence[int], model: TextModel) -> tuple[int, ...]:
    """Layers by number: "all", "0,3,6", or numbers.

    Raises:
        JaxplainError: a number that is none of the model's layers, or is given twice.
    """
    count = layer_count(model)
    if layers == "all":
        return tuple(range(count))
    given = layers.split(",") if isinstance(layers, str) else np.atleast_1d(layers).tolist()
    try:
        chosen = tuple(int(layer) for layer in given)
    except ValueError:
        chosen = ()
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(count)):
        raise JaxplainError(
            f"{model.name} has {count} layers, 0 to {count - 1}: layers must be all, or some of "
            f"their numbers, such as 0,{count - 1}, and not {layers!r}"
        )
    return chosen


def read_scale(scale: str | float, model: TextModel) -> float:
    """The largest sigma to look for: "auto", or a number above 0.

    "auto" is what was published: 10 times the standard deviation of all entries of the model's
    table of word embeddings.

    Raises:
        JaxplainError: no such number; "auto" for a model whose table cannot be found.

    References:
        Guan et al., "Towards a Deep and Unified Understanding of Deep Neural Models in NLP", 2019.
        https://proceedings.mlr.press/v97/guan19a.html
    """
    if scale != "auto":
        with contextlib.suppress(TypeError, ValueError):
            if 0 < float(scale) < np.inf:
                return float(scale)
        raise JaxplainError(f"scale must be auto or a number above 0, not {scale!r}")
    tables = [leaf for leaf in read_by_embed(model) if leaf.ndim == 2]
    if len(tables) != 1:
        raise JaxplainError(
            f"{model.name} has no one table of word embeddings, so there is no automatic scale: "
            "give scale a number, such as 10 standard deviations of an embedding's entries"
        )
    table = model.embed(model.params, jnp.arange(len(tables[0]), dtype=jnp.int32))
    return float(SCALE * np.asarray(table, np.float64).std())


def read_by_embed(model: TextModel) -> list[Array]:
    """The parameters that `embed` reads: those that its result has a gradient with respect to."""
    slope = jax.grad(lambda p, ids: model.embed(p, ids).sum())
    # In one program, so that no gradient of a parameter that is not read is ever made; the word is
    # its argument, or XLA would compute the table's gradient while it compiles.
    any_of = jax.jit(lambda p, ids: jax.tree.map(lambda g: jnp.any(g != 0), slope(p, ids)))
    reached = any_of(model.params, jnp.zeros(1, jnp.int32))
    pairs = zip(jax.tree.leaves(model.params), jax.tree.leaves(reached), strict=True)
    return [leaf for leaf, read in pairs if read]


def hidden(model: TextModel, state: str) -> Callable[[PyTree, Array, Array], tuple[Array, ...]]:
    """`(params, x [T, D], mask [T]) ->` a state for every layer: what is compared of it.

    Args:
        state: "all" words' states `[T, D']`; their "mean", or that of the "first" token, `[1, D']`.

    Raises:
        JaxplainError: another `state`.
    """
    if state not in STATES:
        raise JaxplainError(
            f"state must be {', '.join(STATES[:-1])} or {STATES[-1]}, not {state!r}"
        )

    def states(params, x, mask):
        every = model.states(params, x, mask)
        if state == "first":
            return tuple(one[:1] for one in every)
        if state == "mean":
            total = lambda one: jnp.sum(jnp.where(mask[:, None], one, 0), axis=0, keepdims=True)
            return tuple(total(one) / jnp.sum(mask) for one in every)
        return every

    return states


def layer_spreads(
    model: TextModel,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    count: int = SENTENCES,
    state: str = "all",
    max_length: int | None = None,
) -> tuple[Array, ...]:
    """How much each unit of each layer varies over a sample of texts, padding left out.

    The sample is evenly spaced over the texts. It is read in batches of a few lengths, and no more
    than a batch is in memory; the same texts give the same numbers, bit for bit, on one kind of
    device.

    Letters: `D'` width of a layer's state.

    Args:
        model: its `params` are used.
        layers: their L numbers.
        count: sentences to measure on.
        state: as in `explain_information`; over "all", every word of every sentence is a sample,
            else every sentence.
        max_length: as `TextSource` takes it.

    Returns:
        L arrays `[1, D']`. Cost: one forward evaluation a sentence.

    Raises:
        JaxplainError: fewer than two sentences that the model can read.
    """
    source = TextSource(texts, None, model, max_length=max_length)
    examples = []
    for row in np.unique(np.linspace(0, len(texts) - 1, num=min(count, len(texts))).astype(int)):
        with contextlib.suppress(JaxplainError):  # a text without a word is recorded by the run
            examples.append(source[int(row)])
    if len(examples) < 2:
        raise JaxplainError(
            f"{len(examples)} of the sentences can be read, and a layer's spread is measured over "
            "at least 2: raise --background, or give other data"
        )
    of = hidden(model, state)

    @jax.jit
    def moments(params, batch):
        def counted(example):
            _, mask, real = example
            return (mask & real)[:, None] if state == "all" else real[None, None]

        def h(example):
            every = of(params, model.embed(params, example[0]), example[1])
            return tuple(every[layer] for layer in layers)

        return hidden_moments(h, batch, counted=counted, axes=(0,), chunk=ROWS)

    lengths, buckets = plan.grid("auto", plan.FEW), {}
    for example in examples:
        size = plan.bucket_of(len(example["ids"]), lengths, source.max_length)
        buckets.setdefault(size, []).append(example)
    found = (
        moments(model.params, stack(rows[start : start + ROWS], size, model.pad_id))
        for size, rows in sorted(buckets.items())
        for start in range(0, len(rows), ROWS)
    )
    return tuple(finish(functools.reduce(merge, found)))


def stack(examples: list[dict[str, Any]], size: int, pad: int) -> tuple[np.ndarray, ...]:
    """`ROWS` rows of ids and mask, `[ROWS, size]`, and which rows are examples, `[ROWS]`."""
    ids, mask = np.full((ROWS, size), pad, np.int32), np.zeros((ROWS, size), bool)
    for row in range(ROWS):  # the rest repeats the last one: real values keep states finite
        tokens = examples[min(row, len(examples) - 1)]["ids"]
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
    return ids, mask, np.arange(ROWS) < len(examples)


def explain_information(
    model: TextModel,
    *,
    layers: Sequence[int],
    scale: float,
    state: str = "all",
    **options: Any,
) -> Callable[[PyTree, PyTree, Array], PyTree]:
    """Make the function of one text that `run` maps over a `TextSource`.

    Letters: `T` tokens with padding, `L` layers, `D'` width of a layer's state, `C` classes.

    Args:
        model: a text classifier; its parameters are not closed over.
        layers: numbers of the layers to look at, from 0, that of the embeddings.
        scale: largest sigma, in the embeddings' units; see `read_scale`.
        state: what of a layer must stay as it is: the states of "all" words, their "mean", or that
            of the "first" token.
        options: those of `word_information`.

    Returns:
        `(params, example, key) -> dict` of `information`, a `WordInformation` of `[L, T]`, `logits`
        `[C]`, and `target` `[]` int32, the class of the example, as `TextSource` has it. `params`
        is `{"model": model.params, "spread": layer_spreads(...)}`. Costs what `layer_information`
        costs, and one forward pass.

    Raises:
        JaxplainError: another `state`; what `word_information` refuses.
    """
    states, count = hidden(model, state), layer_count(model)

    def explain(params, example, key):
        ids, mask = example["ids"], example["mask"]
        embedded = model.embed(params["model"], ids)
        # Padding repeats the first token, as it does for every other method.
        x = jnp.where(mask[:, None], embedded, embedded[:1])
        logits = model.score(params["model"], x, mask)
        target = jnp.where(example["target"] < 0, jnp.argmax(logits), example["target"])
        counted = mask[:, None] if state == "all" else jnp.ones((1, 1), bool)
        spread: list[Array | None] = [None] * count  # a layer's noise does not depend on the others
        for layer, measured in zip(layers, params["spread"], strict=True):
            spread[layer] = measured
        information = layer_information(
            lambda x: states(params["model"], x, mask),
            x,
            key=key,
            scale=scale,
            layers=layers,
            spread=spread,
            mask=mask,
            unit_mask=[counted] * count,
            **options,
        )
        return {"information": information, "logits": logits, "target": target.astype(jnp.int32)}

    return explain


def toy(
    f: Any,
    x: Any,
    *,
    key: Array | None = None,
    rate: float | None = None,
    per_word_rate: float | None = None,
    steps: int = DEFAULTS["log"]["steps"],
    samples: int = DEFAULTS["log"]["samples"],
    probes: int = 32,
    tolerance: float = TOLERANCE,
) -> Any:
    """`word_information` of a toy in place of f, for `registry.configure` to try options on."""
    return word_information(
        lambda x: x, jnp.ones((2, 2)), key=key, scale=1.0, rate=rate, per_word_rate=per_word_rate,
        steps=steps, samples=samples, probes=probes, tolerance=tolerance,
    )  # fmt: skip
