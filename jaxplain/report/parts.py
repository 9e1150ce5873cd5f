"""The arrays of scores in a result, each ready to be shown: tokens, a tree, bars, a picture."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxplain.hierarchy import Hierarchy, members
from jaxplain.report.results import field, layer_numbers, leaves, word_information
from jaxplain.report.words import words

NOTHING_DRAWN = "no scores to draw in this result: jaxplain.load gives the arrays"


class Part(NamedTuple):
    """The scores of one input array.

    Attributes:
        kind: "tokens", "tree", "bars", "image" or "information".
        title: the array's place in the input; empty if it is the only one.
        scores: `[N]`, or `[H, W]` for an image.
        names: N pieces or feature names; empty for an image.
        errors: standard errors, like `scores`, where the method estimates them.
        image: the input itself `[H, W]` or `[H, W, C]`, where the record holds it.
        tree: of the pieces, where kind is "tree".
        information: a `WordInformation` `[L, N]`, where kind is "information"; `scores` are then
            what is kept of each piece, `[L, N]`.
        layers: the L layers' numbers.
    """

    kind: str
    title: str
    scores: np.ndarray
    names: list[str]
    errors: np.ndarray | None = None
    image: np.ndarray | None = None
    tree: Hierarchy | None = None
    information: Any = None
    layers: tuple[int, ...] = ()


def part(
    title: str,
    scores: np.ndarray,
    errors: np.ndarray | None,
    pieces: list[str] | None,
    names: list[str] | None,
    image: np.ndarray | None,
) -> Part:
    """Decide how an array of scores is shown, by its shape."""
    scores = np.asarray(scores, np.float64)
    if pieces and scores.ndim >= 1 and scores.shape[0] == len(pieces):
        if scores.ndim > 1:  # tokens by embedding dimensions; their errors do not simply add up
            scores, errors = scores.reshape(len(pieces), -1).sum(axis=1), None
        return Part("tokens", title, scores, pieces, errors)
    if scores.ndim < 2:
        scores = scores.reshape(-1)
        if names is None or len(names) != len(scores):
            names = [str(i) for i in range(len(scores))]
        return Part("bars", title, scores, names, None if errors is None else errors.reshape(-1))
    if scores.ndim > 2:
        channels_first = scores.ndim == 3 and scores.shape[0] <= 4 < scores.shape[-1]
        axes = (0,) if channels_first else tuple(range(2, scores.ndim))
        scores = scores.sum(axis=axes)
    fits = image is not None and image.ndim in (2, 3) and image.shape[:2] == scores.shape
    return Part("image", title, scores, [], None, image if fits else None)


def sentence(tree: Any, pieces: list[str] | None) -> Part | None:
    """The tree of a sentence without its special tokens; None if it is not one of runs of words."""
    if tree is None or not pieces or np.shape(field(tree, "unit_parent")) != (len(pieces),):
        return None
    tree = Hierarchy(*map(np.asarray, tree))  # type: ignore[arg-type]
    shown = words(pieces)
    keep = [i for i, word in enumerate(shown) if tree.unit_level[i] or not word.special]
    if not keep or not np.isfinite(tree.scores).all():
        return None
    few = Hierarchy(
        *(leaf[keep] if name.startswith("unit") else leaf[: len(keep)] if leaf.ndim else leaf
          for name, leaf in zip(Hierarchy._fields, tree, strict=True))
    )  # fmt: skip
    for held in members(few):
        if np.ptp(np.flatnonzero(held)) + 1 != held.sum():
            return None
    scores = np.asarray(few.unit_scores, np.float64)
    return Part("tree", "", scores, [pieces[i] for i in keep], tree=few)


def parts(result: Any, notes: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[Part]:
    """Every array of scores in a result, ready to be shown."""
    information = word_information(result)
    if information is not None:
        kept = -np.asarray(information.log_ratio, np.float64)
        pieces = list(notes.get("pieces") or map(str, range(kept.shape[1])))
        if len(pieces) != kept.shape[1]:
            return []
        layers = layer_numbers(configuration, len(kept))
        return [Part("information", "", kept, pieces, information=information, layers=layers)]
    attribution = field(result, "attribution")
    attribution = result if attribution is None else attribution
    scores = list(leaves(field(attribution, "scores")))
    errors = dict(leaves(field(attribution, "standard_error")))
    names = notes.get("names") or configuration.get("names")
    if len(scores) > 1 and all(array.size == 1 for _, array in scores):  # a table, column by column
        found = [errors[path].item() for path, _ in scores if path in errors]
        together = np.array(found) if len(found) == len(scores) else None
        values = np.array([array.item() for _, array in scores])
        return [part("", values, together, None, [path for path, _ in scores], None)]
    tree = result if field(result, "unit_parent") is not None else field(attribution, "hierarchy")
    grown = sentence(tree, notes.get("pieces"))
    if grown is not None:
        return [grown]
    image = field(result, "image")
    return [
        part(path, array, errors.get(path), notes.get("pieces"), names, image)
        for path, array in scores
    ]
