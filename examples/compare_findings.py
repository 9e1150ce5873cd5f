"""The paper's findings that `examples.compare_models` holds against its numbers.

Each function takes the models' readings by name and decides from them; nothing is decided by hand.
"""

from typing import NamedTuple

import numpy as np

from examples.compare_reading import PLACES, Reading
from examples.measures import mean_and_error


class Difference(NamedTuple):
    """A mean difference, and its standard error over sentences."""

    mean: float
    error: float

    @property
    def above(self) -> bool:
        return self.mean > 2 * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f}"


def difference(first: np.ndarray, second: np.ndarray | float = 0.0) -> Difference:
    """Of values of the same sentences; NaN where there is none."""
    values = np.asarray(first) - second
    values = values[np.isfinite(values)]
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return Difference(float(values.mean()) if len(values) else np.nan, float(error))


class Finding(NamedTuple):
    """One of the paper's: what it says, whether the numbers agree (None: no model to tell)."""

    claim: str
    agrees: bool | None
    numbers: str


def special_token(by: dict[str, Reading]) -> Finding:
    claim = "BERT forgets the end token ([SEP]) by layers 3 to 4 of 12: in its first third"
    if "bert" not in by:
        return Finding(claim, None, "no BERT")
    r = by["bert"]
    third = int(np.ceil(r.layers[-1] / 3))
    lost = [difference(r.kept["[SEP]"][:, 0], column) for column in r.kept["[SEP]"].T]
    behind = [
        difference(*pair) for pair in zip(r.kept["all words"].T, r.kept["[SEP]"].T, strict=True)
    ]
    half = next((k for k, d in enumerate(lost) if d.above and d.mean >= lost[-1].mean / 2), None)
    early = half is not None and r.layers[half] <= third
    after = max(k for k, layer in enumerate(r.layers) if layer <= third or k == 0)
    told = ", ".join(f"{layer}: {d}" for layer, d in zip(r.layers, lost, strict=True))
    return Finding(
        claim,
        early and behind[after].above and behind[-1].above,
        f"[SEP] has lost half of what it loses in all by layer "
        f"{'-' if half is None else r.layers[half]} (its first third ends with {third}), and is "
        f"kept less than the words by {behind[after]} in layer {r.layers[after]} and by "
        f"{behind[-1]} in the last; lost since the first layer, by layer: {told}",
    )


def irrelevant_words(by: dict[str, Reading]) -> Finding:
    claim = "BERT forgets words without sentiment in layers 5 to 12 of 12"
    if "bert" not in by:
        return Finding(claim, None, "no BERT")
    r = by["bert"]
    before = max(
        k for k in range(len(r.layers)) if r.layers[k] <= max(r.layers[-1] * 5 / 12, r.layers[0])
    )
    gap = r.kept["sentiment words"] - r.kept["function words"]
    last, grown = difference(gap[:, -1]), difference(gap[:, -1], gap[:, before])
    return Finding(
        claim,
        last.above and grown.above,
        f"sentiment less function words in the last layer {last}; since layer {r.layers[before]} "
        f"it has changed by {grown}",
    )


def named_words(by: dict[str, Reading]) -> Finding:
    claim = "The other models still attend to and, the, to, is, where BERT does not"
    others = [name for name in by if name != "bert"]
    if "bert" not in by or not others:
        return Finding(claim, None, "no BERT" if others else "no other model")
    gap = {n: r.kept["and, the, to, is"] - r.kept["sentiment words"] for n, r in by.items()}
    told = {name: difference(gap[name][:, -1], gap["bert"][:, -1]) for name in others}
    return Finding(
        claim,
        all(d.above for d in told.values()),
        f"these words less sentiment words, last layer: BERT {difference(gap['bert'][:, -1])}; "
        + "; ".join(f"{name} {difference(gap[name][:, -1])}" for name in others),
    )


def one_end(by: dict[str, Reading]) -> Finding:
    claim = "The LSTM favours words near one end of the sentence"
    slope = {
        n: difference(r.kept[PLACES[-1]][:, -1], r.kept[PLACES[0]][:, -1]) for n, r in by.items()
    }
    if "lstm" not in by:
        return Finding(claim, None, "no LSTM")
    size = {name: abs(d.mean) for name, d in slope.items()}
    own = slope["lstm"]
    return Finding(
        claim,
        size["lstm"] > 2 * own.error and size["lstm"] == max(size.values()),
        "last less first fifth of the sentence, last layer: "
        + "; ".join(f"{name} {d}" for name, d in slope.items()),
    )


def spreads(by: dict[str, Reading]) -> Finding:
    claim = "The CNN spreads over the words more evenly than the other models"
    if "cnn" not in by or len(by) < 2:
        return Finding(claim, None, "no CNN" if "cnn" not in by else "no other model")
    told = {n: difference(r.spread[:, -1], by["cnn"].spread[:, -1]) for n, r in by.items()}
    return Finding(
        claim,
        all(d.above for name, d in told.items() if name != "cnn"),
        "standard deviation over a sentence's words, last layer: "
        + "; ".join(f"{n} {mean_and_error(r.spread[:, -1], 3)}" for n, r in by.items()),
    )


def subsequences(by: dict[str, Reading]) -> Finding:
    claim = "BERT and the Transformer use single words, LSTM and CNN subsequences"
    whole, words = (
        [n for n in pair if n in by] for pair in (("lstm", "cnn"), ("bert", "transformer"))
    )
    if not (whole and words):
        return Finding(claim, None, "models of one kind only")
    told = [
        difference(by[a].neighbours[:, -1], by[b].neighbours[:, -1]) for a in whole for b in words
    ]
    return Finding(
        claim,
        all(d.above for d in told),
        "correlation of neighbouring words' log sigma, last layer: "
        + "; ".join(f"{n} {mean_and_error(r.neighbours[:, -1], 3)}" for n, r in by.items()),
    )


def concept_kept(r: Reading) -> np.ndarray:
    """`[L]` median over words of A_c in a layer as a share of the first layer's.

    Layers change a word's A_i, A_c and what is beyond by the same factor, 1 / sigma^2, so that the
    three shares are one.
    """
    sigma = np.concatenate([concept.sigma for concept in r.concepts.values()], axis=1)
    changes = 2 * np.log(sigma[:1] / sigma)
    return np.array([np.exp(np.median(v)) if len(v) else np.nan for v in map(finite, changes)])


def finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def concepts(by: dict[str, Reading]) -> Finding:
    claim = "BERT keeps information about concepts best: its curve over the layers is flat"
    if "bert" not in by or len(by) < 2:
        return Finding(claim, None, "no BERT" if "bert" not in by else "no other model")
    last = {name: float(concept_kept(r)[-1]) for name, r in by.items()}
    return Finding(
        claim,
        last["bert"] == max(last.values()),
        "share of the first layer's information about the concept that the last one keeps, median "
        "word: " + "; ".join(f"{name} {value:.3g}" for name, value in last.items()),
    )


FINDINGS = (
    special_token,
    irrelevant_words,
    named_words,
    one_end,
    spreads,
    subsequences,
    concepts,
)


def judge(by: dict[str, Reading]) -> list[Finding]:
    """All findings; none is told of models of which some layer has no sentence left."""
    empty = [n for n, r in by.items() if not np.isfinite(r.kept["all words"]).any(axis=0).all()]
    found = [find(by) for find in FINDINGS]
    if not empty:
        return found
    why = f"no sentence converged in some layer of {', '.join(empty)}"
    return [Finding(one.claim, None, why) for one in found]
