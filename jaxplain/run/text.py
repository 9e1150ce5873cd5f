"""What one text's explanation is: from token ids to one score per token."""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.hierarchy import Agglomeration
from jaxplain.methods.lime import SurrogateAttribution
from jaxplain.models.types import TextModel
from jaxplain.types import (
    Array,
    Attribution,
    DecomposedAttribution,
    JaxplainError,
    PyTree,
    SampledAttribution,
)

# Methods that give a gradient, whose entries are no parts of a sum: a token gets its length.
NORMS = ("saliency", "smoothgrad", "guided_backprop", "deconvnet")
BASELINES = ("zeros", "mean", "pad", "mask", "unk", "token:WORD")


# What methods give here: NamedTuples with scores, which come out as one number a token.
Explanation: TypeAlias = (
    Attribution | SampledAttribution | SurrogateAttribution | DecomposedAttribution | Agglomeration
)


class Background(NamedTuple):
    """Sentences that serve as reference inputs.

    Letters: `N` sentences, `L` tokens of the longest.

    Attributes:
        ids: `[N, L]` int32, without special tokens; what lies past a sentence's end is not read.
        lengths: `[N]` int32.
    """

    ids: np.ndarray
    lengths: np.ndarray


def background(texts: Sequence[str], model: TextModel, count: int = 32) -> Background:
    """Take `count` reference sentences, evenly spaced over the texts.

    Raises:
        JaxplainError: if no text has a token.
    """
    rows = np.unique(np.linspace(0, len(texts) - 1, num=min(count, len(texts))).astype(int))
    ids = []
    for row in rows:
        with contextlib.suppress(JaxplainError):  # a text without a word is no reference
            ids.append(model.tokenize(texts[int(row)]).ids)
    ids = [row[~np.isin(row, model.special_ids)] for row in ids]
    ids = [row for row in ids if len(row)]
    if not ids:
        raise JaxplainError(
            "none of the background sentences has a token: raise --background, or give other data"
        )
    lengths = np.array([len(row) for row in ids], np.int32)
    padded = np.zeros((len(ids), lengths.max()), np.int32)
    for row, content in zip(padded, ids, strict=True):
        row[: len(content)] = content
    return Background(padded, lengths)


def baseline_id(baseline: str, model: TextModel) -> int | None:
    """The token that stands at every word's place in the baseline; None for "zeros" and "mean".

    Raises:
        JaxplainError: if the model has no such token.
    """
    if baseline in ("zeros", "mean"):
        return None
    if baseline.startswith("token:"):
        word = baseline.removeprefix("token:")
        ids = [int(i) for i in model.tokenize(word).ids] if word.strip() else []
        ids = [i for i in ids if i not in model.special_ids]
        if len(ids) == 1 and ids[0] != model.unk_id:
            return ids[0]
        problem = "not in its vocabulary" if len(ids) < 2 else f"{len(ids)} tokens"
        raise JaxplainError(
            f"baseline token:{word} must be one token of {model.name}, and is {problem}: choose "
            "another word"
        )
    token = {"pad": model.pad_id, "mask": model.mask_id, "unk": model.unk_id}.get(baseline, -1)
    if token == -1:
        raise JaxplainError(f"baseline {baseline!r} is unknown: choose {', '.join(BASELINES)}")
    if token is None:
        raise JaxplainError(f"{model.name} has no {baseline} token: choose another baseline")
    return token


def explain_text(
    model: TextModel,
    explainer: Callable[..., Explanation],
    *,
    baseline: str | None = None,
    references: Background | None = None,
    magnitude: bool = False,
    where: bool = False,
    units: bool = False,
    groups: bool = False,
    contrast: bool = False,
    refined_by: str = "",
) -> Callable[..., PyTree]:
    """Make the function of one text that `run` maps over a `TextSource`.

    The explained function is the logit of the target class, as a function of the embeddings
    `[T, D]`. A token's score is the sum of its embedding's D scores: the scores of all tokens then
    still sum to what those of all dimensions did, and the gap stays what it was. Methods that give
    a gradient (`NORMS`) take the Euclidean norm over D instead: the sum of a gradient's entries
    means nothing, and opposite signs would cancel. Methods that score tokens, `[T, 1]`, are taken
    as they are.

    A sampled token score's standard error is bounded by the sum of its dimensions' standard
    errors, which it reaches if they all err together; a norm's, by their root sum of squares.

    Letters: `T` tokens with padding, `D` width of the embedding, `C` classes.

    Args:
        model: a text classifier; its parameters are not closed over.
        explainer: a method with its options bound.
        baseline: one of `BASELINES`, for methods that take a `baseline`; None passes none. A token
            stands at every place but those of special tokens.
        references: for methods that take a set of `baselines`. Each sentence is repeated or cut to
            the example's length; special tokens stay where the example has them.
        magnitude: norm over D, instead of the sum.
        where: tell the method which tokens are no padding, as `where`.
        units: tell it which of them are words, and not special tokens, as `units`.
        groups: tell it that an embedding is taken away whole, as `groups`.
        contrast: explain the target's logit less that of the strongest other class.
        refined_by: the method's option that a round's effort stands for, with a tolerance.

    Returns:
        `(params, example, key, effort=None) -> dict` of `attribution` (scores `[T]`), `logits`
        `[C]`, `target` `[]` int32 and, with `contrast`, `other` `[]` int32. Costs what the method
        costs, and one forward pass.

    Raises:
        JaxplainError: if the model has no token for `baseline`, or no two classes to contrast.
    """
    if contrast and len(model.labels) < 2:
        raise JaxplainError(
            f"{model.name} has one class, and no other to compare with: --score logit"
        )
    token = None if baseline is None else baseline_id(baseline, model)

    def explain(params, example, key, effort=None):
        ids, mask = example["ids"], example["mask"]
        embedded = model.embed(params, ids)
        # Padding repeats the first token: no range or mean over x then depends on the padding.
        x = jnp.where(mask[:, None], embedded, embedded[:1])
        logits = model.score(params, x, mask)
        target = jnp.where(example["target"] < 0, jnp.argmax(logits), example["target"])

        chosen = {"target": target.astype(jnp.int32)}
        if contrast:
            rest = jnp.where(jnp.arange(logits.shape[0]) == target, -jnp.inf, logits)
            chosen["other"] = jnp.argmax(rest).astype(jnp.int32)

        def f(x):
            scores = model.score(params, x, mask)
            return scores[target] - scores[chosen["other"]] if contrast else scores[target]

        special = jnp.isin(ids, jnp.asarray(model.special_ids, ids.dtype))
        settings = {}
        if references is not None:
            word = jnp.maximum(jnp.cumsum(~special) - 1, 0)  # which word of the text stands here
            place = word[None, :] % jnp.asarray(references.lengths)[:, None]
            tokens = jnp.take_along_axis(jnp.asarray(references.ids), place, axis=1)
            tokens = jnp.where(special[None, :], ids[None, :], tokens)
            settings["baselines"] = jax.vmap(lambda row: model.embed(params, row))(tokens)
        if baseline == "zeros":
            settings["baseline"] = jnp.zeros_like(x)
        elif baseline == "mean":
            total = jnp.sum(jnp.where(mask[:, None], x, 0), axis=0, keepdims=True)
            settings["baseline"] = jnp.broadcast_to(total / jnp.sum(mask), x.shape)
        elif token is not None:
            settings["baseline"] = model.embed(params, jnp.where(special, ids, token))
        if where:
            settings["where"] = mask
        if units:
            settings["units"] = mask & ~special
        if groups:
            settings["groups"] = np.arange(x.shape[0])[:, None]
        if effort is not None:
            settings[refined_by] = effort
        result = explainer(f, x, key=key, **settings)
        return {
            "attribution": per_token(result, mask, magnitude),
            "logits": logits,
            **chosen,
        }

    return explain


def per_token(result: Explanation, mask: Array, magnitude: bool) -> Explanation:
    """Reduce an attribution of `[T, D]` or `[T, 1]` to one of `[T]`; see `explain_text` for how."""

    def reduce(scores, norm):
        reduced = jnp.sqrt(jnp.sum(scores**2, axis=-1)) if norm else jnp.sum(scores, axis=-1)
        return jnp.where(mask, reduced, 0)

    scores = reduce(result.scores, magnitude)
    if isinstance(result, SampledAttribution | SurrogateAttribution):
        error = reduce(result.standard_error, magnitude)
        return result._replace(scores=scores, standard_error=error)
    return result._replace(scores=scores)
