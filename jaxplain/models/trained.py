"""A trained text classifier as a folder: card.json, weights.msgpack, vocabulary.txt.

The weights are one msgpack file and no Orbax checkpoint: two megabytes need no sharding, one file
is easily shipped in a wheel, and reading it imports nothing beyond flax, so the first explanation
comes quickly. They are float16 on disk, which halves the wheel, and float32 in memory.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np

from jaxplain.models import text, words
from jaxplain.models.types import TextModel
from jaxplain.types import JaxplainError, PyTree

CARD, WEIGHTS, VOCABULARY = "card.json", "weights.msgpack", "vocabulary.txt"


def rounded(params: PyTree) -> PyTree:
    """`params` as a folder holds them: rounded to float16, given in float32."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float16).astype(np.float32), params)


def write(
    folder: Path | str, params: PyTree, vocabulary: words.Vocabulary, card: Mapping[str, Any]
) -> None:
    """Write a trained classifier.

    Args:
        folder: made if it is not there; files of the same names in it are replaced.
        params: what `text.classifier(**card["architecture"])` takes.
        vocabulary: the words behind its ids.
        card: JSON; needs `name`, `architecture`, `labels`, `max_length`; more is for people.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    half = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), params)
    (folder / WEIGHTS).write_bytes(flax.serialization.msgpack_serialize(half))
    (folder / VOCABULARY).write_text("\n".join(vocabulary.words) + "\n", encoding="utf-8")
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def read_card(folder: Path | str) -> dict[str, Any]:
    """What `write` recorded about a trained classifier."""
    return json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))


def read(folder: Path | str) -> TextModel:
    """Read what `write` wrote.

    Raises:
        JaxplainError: if a file is missing or damaged, or the weights do not fit the card.
    """
    folder = Path(folder)
    for name in (CARD, WEIGHTS, VOCABULARY):
        if not (folder / name).is_file():
            raise JaxplainError(f"{folder} has no {name}: give a folder with a whole model")
    try:
        card = read_card(folder)
        params = flax.serialization.msgpack_restore((folder / WEIGHTS).read_bytes())
    except ValueError as error:  # of json and of msgpack
        raise JaxplainError(
            f"{folder}: {CARD} or {WEIGHTS} is damaged: write the model again"
        ) from error
    listed = (folder / VOCABULARY).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = words.vocabulary(listed)
    module = text.classifier(**card["architecture"])
    some = jax.ShapeDtypeStruct((1,), np.int32), jax.ShapeDtypeStruct((1,), np.bool_)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *some)["params"]
    sizes = lambda tree: jax.tree.map(lambda leaf: list(leaf.shape), tree)
    if sizes(shapes) != sizes(params) or card["architecture"]["vocabulary"] != len(listed):
        raise JaxplainError(
            f"{folder}: {WEIGHTS} and {VOCABULARY} do not fit the architecture in {CARD}: "
            "write all three together"
        )
    return text.text_model(
        card["name"],
        module,
        jax.tree.map(lambda leaf: leaf.astype(np.float32), params),
        vocabulary,
        labels=tuple(card["labels"]),
        max_length=card["max_length"],
    )
