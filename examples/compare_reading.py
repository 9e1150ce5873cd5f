"""What `examples.compare_models` takes out of a run of word information.

Letters: `S` sentences, `L` layers, `T` tokens of a sentence, `W` words of a concept in the corpus,
`K` width of a word.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxplain.methods.concepts import concept_information
from jaxplain.models.types import TextModel
from jaxplain.models.words import single_tokens
from jaxplain.report.view import view
from jaxplain.report.wordlists import FUNCTION_WORDS, SPECIAL, membership, places
from jaxplain.run import Records

NAMED = ("and", "the", "to", "is")  # the paper's
FUNCTION = frozenset().union(*FUNCTION_WORDS.values())
ENDS = {"[CLS]": ("[CLS]", "<s>"), "[SEP]": ("[SEP]", "</s>")}
PLACES = tuple(f"{20 * k} to {20 * k + 20}%" for k in range(5))
REFERENCES = 256  # drawn from the corpus's vocabulary, each word as likely as another


class Concept(NamedTuple):
    """Information about the words of one concept, at every place in the corpus, in nats.

    Attributes:
        word: `[L, W]` A_i.
        concept: `[L, W]` A_c.
        beyond: `[L, W]` A_i - A_c.
        sigma: `[L, W]`, NaN where the layer did not converge.
        censored: `[L, W]` bool.
        listed: how many words were given.
        unknown: how many of them the vocabulary lacks.
        several: how many are several tokens.
    """

    word: np.ndarray
    concept: np.ndarray
    beyond: np.ndarray
    sigma: np.ndarray
    censored: np.ndarray
    listed: int
    unknown: int
    several: int


class Reading(NamedTuple):
    """One model's run. Kept is log(scale / sigma), in nats per dimension of a word.

    Attributes:
        name: the model.
        layers: the L layers' numbers.
        kept: `[S, L]` by slice of the words: the sentence's mean over them; NaN where it has none,
            or the layer is not known `within` what was asked.
        spread: `[S, L]` standard deviation of log sigma over a sentence's words.
        neighbours: `[S, L]` correlation of log sigma between neighbouring words.
        right: `[S]` whether the model's prediction is the label; NaN without one.
        censored: `[L]` share of the words that are forgotten.
        unconverged: `[L]` int, sentences whose layer missed the tolerance of the run.
        unknown: `[L]` int, sentences that are left out: not known `within` what was asked.
        failed: sentences without a result.
        concepts: by name.
        example: of one sentence, its pieces, and kept `[L, T]`.
    """

    name: str
    layers: tuple[int, ...]
    kept: dict[str, np.ndarray]
    spread: np.ndarray
    neighbours: np.ndarray
    right: np.ndarray
    censored: np.ndarray
    unconverged: np.ndarray
    unknown: np.ndarray
    failed: int
    concepts: dict[str, Concept]
    example: tuple[list[str], np.ndarray]


def sentiment_words(trees: Path) -> dict[str, list[str]]:
    """Single words that the leaves of sentiment trees call positive (3, 4) or negative (0, 1).

    A word with several labels counts by their mean. Words of a closed class, such as "like", are
    left out: they are in the group of those.
    """
    seen: dict[str, list[int]] = {}
    for label, word in re.findall(r"\((\d) ([^()\s]+)\)", trees.read_text(encoding="utf-8")):
        if any(map(str.isalpha, word)) and word.lower() not in FUNCTION:
            seen.setdefault(word.lower(), []).append(int(label))
    means = {word: float(np.mean(labels)) for word, labels in sorted(seen.items())}
    return {
        "positive words": [word for word, mean in means.items() if mean > 2.5],
        "negative words": [word for word, mean in means.items() if mean < 1.5],
    }


def read(
    records: Records,
    model: TextModel,
    concepts: dict[str, list[str]],
    shown: str,
    within: float = 0.5,
) -> Reading:
    """Go through a run once.

    Args:
        records: of the run.
        model: that was explained.
        concepts: lists of words.
        shown: the beginning of the sentence to keep as the example.
        within: a layer of a sentence counts where log sigma of every word is known so well.
    """
    configuration = records.info["configuration"]
    groups = concepts | {"function words": FUNCTION, "and, the, to, is": NAMED}
    rows: list[dict[str, np.ndarray]] = []
    sigmas, caps, ids, right = [], [], [], []
    example, failed, unconverged, unknown = None, 0, 0, 0
    for record in records:
        if record.result is None:
            failed += 1
            continue
        found = record.result["information"]
        pieces = list(record.notes["pieces"])
        converged = np.asarray(found.converged, bool)
        error = np.nan_to_num(np.asarray(found.standard_error), nan=np.inf).max(axis=1)
        good = (error <= within) & (np.asarray(found.gradient_norm) / 2 <= within)
        sigma = np.where(good[:, None], np.asarray(found.sigma, np.float64), np.nan)
        kept = np.where(good[:, None], -np.asarray(found.log_ratio, np.float64), np.nan)
        unconverged, unknown = unconverged + ~converged, unknown + ~good
        if example is None or record.notes["text"].startswith(shown):
            example = pieces, -np.asarray(found.log_ratio, np.float64)
        parts = slices(pieces, groups)
        word = parts["all words"]
        row = {name: mean(kept, inside) for name, inside in parts.items()}
        row["spread"] = kept[:, word].std(axis=1) if word.sum() > 1 else np.full(len(kept), np.nan)
        row["neighbours"] = neighbours(kept[:, word])
        row["censored"] = np.asarray(found.censored)[:, word].mean(axis=1)
        rows.append(row)
        tokens = np.asarray(model.tokenize(record.notes["text"]).ids)
        if len(tokens) == len(pieces):  # else it was cut, and no token is certain
            real = ~parts[SPECIAL]
            ids.append(tokens[real])
            sigmas.append(sigma[:, real])
            caps.append(np.asarray(found.censored)[:, real])
        correct = view(record, configuration).correct
        right.append(np.nan if correct is None else float(correct))
    if example is None:
        raise SystemExit(f"{records.path} has no sentence with word information")
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    corpus = np.concatenate(ids)
    noise = np.concatenate(sigmas, axis=1), np.concatenate(caps, axis=1)
    return Reading(
        name=model.name,
        layers=tuple(configuration["options"]["layers"]),
        spread=stacked.pop("spread"),
        neighbours=stacked.pop("neighbours"),
        censored=stacked.pop("censored").mean(axis=0),
        kept=stacked,
        right=np.array(right),
        unconverged=np.asarray(unconverged),
        unknown=np.asarray(unknown),
        failed=failed,
        concepts={name: about(model, listed, corpus, *noise) for name, listed in concepts.items()},
        example=example,
    )


def slices(pieces: list[str], groups: Mapping[str, Iterable[str]]) -> dict[str, np.ndarray]:
    """`[T]` bools: all words, the groups, [CLS] and [SEP], and fifths of the sentence."""
    found = membership(pieces, {name: set(listed) for name, listed in groups.items()})
    sentiment = found["positive words"] | found["negative words"]
    special = {name: np.isin(pieces, marks) for name, marks in ENDS.items()}
    parts = {"all words": ~found[SPECIAL], "sentiment words": sentiment, **found, **special}
    return parts | {name: places(pieces)[name] for name in PLACES}


def mean(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean of `[L, T]` over some tokens; NaN where there is none."""
    return values[:, inside].mean(axis=1) if inside.any() else np.full(len(values), np.nan)


def neighbours(values: np.ndarray) -> np.ndarray:
    """`[L]` correlation of `[L, T]` with itself one place on; NaN for fewer than five tokens.

    Around the mean and variance of the whole row. Of values in random order it is -1 / T on
    average, in any layer and model alike.
    """
    if values.shape[1] < 5:
        return np.full(len(values), np.nan)
    centred = values - values.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1)
    shared = (centred[:, 1:] * centred[:, :-1]).mean(axis=1)
    return np.divide(shared, variance, out=np.full(len(values), np.nan), where=variance > 0)


def about(
    model: TextModel, listed: list[str], corpus: np.ndarray, sigma: np.ndarray, censored: np.ndarray
) -> Concept:
    """A concept's words wherever they stand in the corpus: `sigma [L, N]` of its N tokens."""
    known = single_tokens(model, listed)
    where = np.isin(corpus, known.ids)
    embed = lambda ids: np.asarray(model.embed(model.params, np.asarray(ids, np.int32)))
    drawn = np.random.default_rng(0).choice(np.unique(corpus), REFERENCES)
    found = concept_information(
        sigma[:, where].astype(np.float32),
        embed(corpus[where]),
        embed(known.ids),
        embed(drawn),
        # No word is compared with itself.
        concept_mask=corpus[where][:, None] != known.ids[None],
        reference_mask=corpus[where][:, None] != drawn[None],
    )
    wide = lambda value: np.asarray(value, np.float64)
    return Concept(
        word=wide(found.word),
        concept=wide(found.concept),
        beyond=wide(found.beyond),
        sigma=sigma[:, where],
        censored=censored[:, where],
        listed=len(listed),
        unknown=len(known.unknown),
        several=len(known.several),
    )
