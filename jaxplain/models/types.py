"""What every text model offers, whatever is inside it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxplain.types import Array, PyTree


class Tokens(NamedTuple):
    """One text as a model reads it.

    Letters: `T` tokens of this text, special tokens included, not padded.

    Attributes:
        ids: `[T]` int32.
        pieces: T strings to show a person, one per id.
        truncated: the text was longer than the model's `max_length`, and its end is missing; or,
            where it is not the end that is missing, what is, in words.
    """

    ids: np.ndarray
    pieces: list[str]
    truncated: bool | str


class TextModel(NamedTuple):
    """A text classifier cut at its embeddings: `score(params, embed(params, ids), mask)`.

    Every function takes one example; batch with `vmap`. An example is padded with `pad_id` to any
    length up to `max_length`, with `mask` False there: nothing at those positions reaches a
    result, so gradients there are exactly zero and the logits are the same, to rounding, whatever
    the padding.

    Letters: `T` tokens with padding, `D` width of the embedding, `C` classes, `L` layers with the
    embedding layer first, `D'` width of a layer's state.

    Attributes:
        name: what the model is called in reports.
        params: float32 arrays; the first argument of the four functions below.
        embed: `(params, ids [T] int32) -> x [T, D]`, word embeddings without positions.
        score: `(params, x [T, D], mask [T] bool) -> logits [C]`.
        hidden: `(params, x [T, D], mask [T] bool) -> [L, T, D']`, zero at masked positions.
        states: the same as a tuple of L arrays `[T, D']`: one alone costs the layers below it.
        tokenize: `str -> Tokens`.
        labels: C names of classes, in the order of the logits.
        max_length: most tokens the model takes, special tokens included.
        pad_id: id that fills the padding.
        unk_id: id of a word the vocabulary lacks.
        mask_id: id that stands for a hidden word; None where training had none.
        special_ids: ids that are no word of the text, and that a baseline keeps as they are.
        kind: "transformer", "lstm", "cnn" or "bert": what suits the model's architecture, such as a
            table of rules, is chosen by it; "" if it is none of them.
    """

    name: str
    params: PyTree
    embed: Callable[[PyTree, Any], Array]
    score: Callable[[PyTree, Any, Any], Array]
    hidden: Callable[[PyTree, Any, Any], Array]
    states: Callable[[PyTree, Any, Any], tuple[Array, ...]]
    tokenize: Callable[[str], Tokens]
    labels: tuple[str, ...]
    max_length: int
    pad_id: int
    unk_id: int
    mask_id: int | None = None
    special_ids: tuple[int, ...] = ()
    kind: str = ""


class Model(NamedTuple):
    """A classifier of arrays, such as images or rows of a table, for the command line.

    Letters: `[...]` the shape of one example's `x`, `T` its leading axis, `C` classes.

    Attributes:
        score: `(params, x [...]) -> logits [C]`, of one example; a regression gives `[1]`. Where
            examples hold a `mask` `[T]` bool, `(params, x [T, ...], mask)`, and nothing at masked
            positions may reach the logits.
        params: arrays; the first argument of `score`.
        labels: C names of classes, in the order of the logits; None where they have none.
        names: of x's entries, where x is a row of a table.
        images: `folder -> source`, how a folder of images is read for this model, such as
            `functools.partial(jaxplain.ImageFolder, size=224)`; None if it takes no images.
        name: what the model is called in reports.
    """

    score: Callable[..., Array]
    params: PyTree
    labels: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    images: Callable[..., Any] | None = None
    name: str = ""
