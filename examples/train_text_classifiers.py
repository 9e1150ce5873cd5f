"""Train the bundled Transformer, LSTM and CNN on the sentiment of film reviews (SST-2).

    JAXPLAIN_DATA=path/to/data python -m examples.train_text_classifiers --out trained

reads `sst2/{train,dev,test}.tsv` (columns `sentence` and `label`) below JAXPLAIN_DATA, prints the
accuracy on dev and test, and writes one folder per model that `jaxplain.models.load` takes.

References:
    Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank",
    2013. https://aclanthology.org/D13-1170/
"""

import csv
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cyclopts
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxplain.models import text, trained, words

BUCKETS = (4, 8, 16, 32, 64, 128)
MAX_LENGTH = BUCKETS[-1]
LABELS = ("negative", "positive")
SPLITS = ("train", "dev", "test")


class Recipe(NamedTuple):
    """How one model is built and trained; rates are shares, counts are whole passes."""

    encoder: dict[str, Any]
    pool: str
    epochs: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    dropout: float = 0.3
    word_dropout: float = 0.1
    smoothing: float = 0.1
    batch_size: int = 64
    width: int = 64
    least: int = 5


RECIPES = {
    "transformer": Recipe(
        dict(max_length=MAX_LENGTH, layers=2, heads=4, inner=128), "mean", 5, dropout=0.2
    ),
    "lstm": Recipe(dict(layers=1), "max", 5),
    "cnn": Recipe(dict(windows=(1, 2, 3, 5)), "max", 5),
}


class Examples(NamedTuple):
    """Texts as ids, not padded, and their labels."""

    ids: list[np.ndarray]
    labels: np.ndarray


def read(path: Path) -> tuple[list[str], np.ndarray]:
    """Sentences and labels of a table with a header line."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["sentence"] for row in rows], np.array([int(row["label"]) for row in rows])


def encode(vocabulary: words.Vocabulary, sentences: list[str], labels: np.ndarray) -> Examples:
    """Number the words of every sentence."""
    return Examples([words.tokenize(vocabulary, MAX_LENGTH, s).ids for s in sentences], labels)


def batches(
    examples: Examples, size: int, rng: np.random.Generator | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """All examples once, as `ids [B, T]`, `mask [B, T]`, `labels [B]`, `real [B]`.

    A batch holds one bucket of lengths; the last of a bucket is filled up with rows that are not
    real. With `rng`, rows and batches come in random order.
    """
    bucket = np.searchsorted(BUCKETS, [len(ids) for ids in examples.ids])
    plan = []
    for b, length in enumerate(BUCKETS):
        rows = np.flatnonzero(bucket == b)
        if rng is not None:
            rng.shuffle(rows)
        plan += [(length, rows[i : i + size]) for i in range(0, len(rows), size)]
    if rng is not None:
        rng.shuffle(plan)  # type: ignore[arg-type]
    for length, rows in plan:
        ids = np.zeros((size, length), np.int32)
        mask = np.zeros((size, length), bool)
        labels = np.zeros(size, np.int32)
        for i, row in enumerate(rows):
            n = len(examples.ids[row])
            ids[i, :n], mask[i, :n] = examples.ids[row], True
        labels[: len(rows)] = examples.labels[rows]
        yield ids, mask, labels, np.arange(size) < len(rows)


@functools.partial(jax.jit, static_argnums=0)
def count_right(module: text.TextClassifier, params, ids, mask, labels, real) -> jax.Array:
    """How many real rows of a batch have their label's score highest."""
    one = lambda i, m: text.score(module, params, text.embed(module, params, i), m)
    return jnp.sum((jax.vmap(one)(ids, mask).argmax(-1) == labels) & real)


def accuracy(module: text.TextClassifier, params: Any, examples: Examples) -> float:
    """Percent of `examples` whose label has the highest score."""
    right = sum(int(count_right(module, params, *batch)) for batch in batches(examples, 64))
    return 100 * right / len(examples.labels)


def fit(
    module: text.TextClassifier,
    recipe: Recipe,
    train: Examples,
    *,
    seed: int,
    epochs: int | None = None,
    after_epoch: Any = lambda epoch, params: None,
) -> Any:
    """Parameters after the recipe's passes over `train`; the last ones, none is picked."""
    rng = np.random.default_rng(seed)
    key, init = jax.random.split(jax.random.key(seed))
    epochs = recipe.epochs if epochs is None else epochs
    params = jax.jit(module.init)(init, jnp.zeros(1, jnp.int32), jnp.ones(1, bool))["params"]
    per_epoch = sum(1 for _ in batches(train, recipe.batch_size))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, per_epoch // 2, per_epoch * epochs
    )
    matrices = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, weight_decay=recipe.weight_decay, mask=matrices),
    )

    def loss(params, key, ids, mask, labels, real):
        hide, drop = jax.random.split(key)
        # A hidden word reads as unknown, which also trains the unknown word's embedding.
        ids = jnp.where(
            jax.random.bernoulli(hide, recipe.word_dropout, ids.shape), words.UNKNOWN_ID, ids
        )

        def one(ids, mask, key) -> Any:
            return module.apply({"params": params}, ids, mask, False, rngs={"dropout": key})

        logits = jax.vmap(one)(ids, mask, jax.random.split(drop, len(ids)))
        wanted = optax.smooth_labels(jax.nn.one_hot(labels, module.classes), recipe.smoothing)
        losses = optax.softmax_cross_entropy(logits, wanted)
        return jnp.sum(losses * real) / jnp.sum(real)

    @jax.jit
    def step(params, state, key, *batch):
        grads = jax.grad(loss)(params, key, *batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    count = 0
    for epoch in range(epochs):
        for batch in batches(train, recipe.batch_size, rng):
            params, state = step(params, state, jax.random.fold_in(key, count), *batch)
            count += 1
        after_epoch(epoch, params)
    return params


def build(name: str, recipe: Recipe, vocabulary: words.Vocabulary) -> dict[str, Any]:
    """The architecture as a card records it."""
    return dict(
        kind=name,
        vocabulary=len(vocabulary.words),
        width=recipe.width,
        classes=len(LABELS),
        pool=recipe.pool,
        **recipe.encoder,
    )


def train_one(
    name: str,
    tables: dict[str, tuple[list[str], np.ndarray]],
    folder: Path,
    *,
    recipe: Recipe,
    seed: int,
    epochs: int | None = None,
) -> dict[str, float]:
    """Train, measure and write one model; gives its accuracies in percent, as shipped."""
    vocabulary = words.count_words(map(words.words, tables["train"][0]), least=recipe.least)
    data = {split: encode(vocabulary, *tables[split]) for split in tables}
    architecture = build(name, recipe, vocabulary)
    module = text.classifier(**architecture, dropout=recipe.dropout)
    epochs = recipe.epochs if epochs is None else epochs
    report = lambda epoch, params: print(
        f"{name}: epoch {epoch + 1} of {epochs}, dev {accuracy(module, params, data['dev']):.1f}%",
        flush=True,
    )
    params = fit(module, recipe, data["train"], seed=seed, epochs=epochs, after_epoch=report)
    params = trained.rounded(params)
    scores = {split: accuracy(module, params, data[split]) for split in ("dev", "test")}
    card = dict(
        name=name,
        task="sentiment of a sentence of English film review",
        labels=LABELS,
        max_length=MAX_LENGTH,
        architecture=architecture,
        data=dict(
            name="SST-2",
            source="Socher et al. 2013, https://aclanthology.org/D13-1170/",
            examples={split: len(data[split].labels) for split in SPLITS},
        ),
        command=f"python -m examples.train_text_classifiers --model {name}"
        f" --epochs {epochs} --seed {seed}",
        training={
            k: v for k, v in recipe._asdict().items() if k not in ("encoder", "pool", "width")
        }
        | dict(epochs=epochs, seed=seed),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        accuracy={split: round(scores[split], 2) for split in scores},
    )
    trained.write(folder / name, params, vocabulary, card)
    return scores


def main(
    *,
    out: Path = Path("trained"),
    model: Literal["transformer", "lstm", "cnn", "all"] = "all",
    epochs: int | None = None,
    seed: int = 0,
) -> None:
    """Train text classifiers on SST-2 and write each to a folder.

    Args:
        out: where the models' folders go.
        model: which one to train.
        epochs: passes over the training file; the recipe's own number if not given.
        seed: of parameters, order and dropout.
    """
    home = os.environ.get("JAXPLAIN_DATA")
    if not home:
        sys.exit("set JAXPLAIN_DATA to a folder that holds sst2/train.tsv, dev.tsv and test.tsv")
    paths = {split: Path(home) / "sst2" / f"{split}.tsv" for split in SPLITS}
    if missing := [str(path) for path in paths.values() if not path.is_file()]:
        sys.exit(f"not found: {', '.join(missing)}: set JAXPLAIN_DATA to the folder above sst2")
    tables = {split: read(path) for split, path in paths.items()}
    for name in RECIPES if model == "all" else [model]:
        scores = train_one(name, tables, out, recipe=RECIPES[name], seed=seed, epochs=epochs)
        size = (out / name / trained.WEIGHTS).stat().st_size
        print(
            f"{name}: dev {scores['dev']:.2f}%, test {scores['test']:.2f}%, "
            f"{size / 1e6:.2f} MB, written to {out / name}",
            flush=True,
        )


if __name__ == "__main__":
    cyclopts.run(main)
