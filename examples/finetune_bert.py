"""Fine-tune a Hugging Face BERT directory on SST-2, and write one that jaxplain loads.

    python examples/finetune_bert.py --base all-MiniLM-L6-v2 --out minilm-sst2

reads `$JAXPLAIN_DATA/sst2/{train,dev,test}.tsv` (columns sentence and label), trains every
parameter under a new head, prints dev and test accuracy, and writes config.json, model.safetensors
and tokenizer.json into `--out`. Needs `pip install 'jaxplain[hf]'`.
"""

import csv
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import cyclopts
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxplain.models import TextModel
from jaxplain.models.bert import load_bert, save_bert
from jaxplain.types import JaxplainError, PyTree

LABELS = ("negative", "positive")
BUCKET = 16  # lengths are padded to a multiple of this: a handful of compilations


class Batch(NamedTuple):
    """`B` texts of `T` tokens with padding; rows beyond the last text have weight 0."""

    ids: np.ndarray  # [B, T] int32
    mask: np.ndarray  # [B, T] bool
    labels: np.ndarray  # [B] int32
    weights: np.ndarray  # [B] float32


class Data(NamedTuple):
    """Tokenised texts and their labels."""

    ids: list[np.ndarray]
    labels: np.ndarray


def read(model: TextModel, path: Path, length: int) -> Data:
    """Read a TSV with columns sentence and label; texts are cut at `length` tokens."""
    if not path.is_file():
        raise JaxplainError(f"{path} is missing: set JAXPLAIN_DATA to the directory that has sst2/")
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    ids = [model.tokenize(row["sentence"]).ids for row in rows]
    ids = [i if len(i) <= length else np.append(i[: length - 1], i[-1]) for i in ids]  # keep [SEP]
    return Data(ids, np.array([int(row["label"]) for row in rows], np.int32))


def batch(model: TextModel, data: Data, rows: Sequence[int] | np.ndarray, size: int) -> Batch:
    """Pad some texts to one shape."""
    longest = max(len(data.ids[row]) for row in rows)
    length = min(-(-longest // BUCKET) * BUCKET, model.max_length)
    out = Batch(
        np.full((size, length), model.pad_id, np.int32),
        np.zeros((size, length), bool),
        np.zeros(size, np.int32),
        np.zeros(size, np.float32),
    )
    for at, row in enumerate(rows):
        ids = data.ids[row]
        out.ids[at, : len(ids)], out.mask[at, : len(ids)] = ids, True
        out.labels[at], out.weights[at] = data.labels[row], 1
    return out


def epoch(
    model: TextModel, data: Data, size: int, generator: np.random.Generator
) -> Iterator[Batch]:
    """Yield every text once, in random order, texts of like length together."""
    order = generator.permutation(len(data.ids))
    pools = np.array_split(order, max(1, len(order) // (size * 32)))
    sort = lambda pool: pool[np.argsort([len(data.ids[i]) for i in pool], kind="stable")]
    order = np.concatenate([sort(pool) for pool in pools])
    starts = generator.permutation(np.arange(0, len(order), size))
    for start in starts:
        yield batch(model, data, order[start : start + size], size)


def logits(model: TextModel, params: PyTree, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """`ids [B, T], mask [B, T] -> [B, C]`."""
    one = lambda i, m: model.score(params, model.embed(params, i), m)
    return jax.vmap(one)(ids, mask)


def loss(model: TextModel, params: PyTree, b: Batch) -> jax.Array:
    """Mean cross-entropy of a batch."""
    each = optax.softmax_cross_entropy_with_integer_labels(
        logits(model, params, jnp.asarray(b.ids), jnp.asarray(b.mask)), jnp.asarray(b.labels)
    )
    return jnp.sum(each * b.weights) / jnp.sum(b.weights)


def accuracy(
    model: TextModel,
    predict: Callable[..., jax.Array],
    params: PyTree,
    data: Data,
    size: int = 64,
) -> float:
    """Share of texts whose largest logit is their label's; `predict` is `logits`, compiled."""
    order = np.argsort([len(i) for i in data.ids], kind="stable")
    right = 0.0
    for start in range(0, len(order), size):
        b = batch(model, data, order[start : start + size], size)
        predicted = np.asarray(predict(params, b.ids, b.mask)).argmax(-1)
        right += float(((predicted == b.labels) * b.weights).sum())
    return right / len(order)


def train(
    model: TextModel, data: Data, *, steps: int, size: int, rate: float, seed: int
) -> Iterator[tuple[int, PyTree, float]]:
    """Train all parameters; yields step (from 1), parameters (until the next) and its loss."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01)
    )

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, b):
        value, gradient = jax.value_and_grad(partial(loss, model))(params, b)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    @jax.jit
    def begin(params):  # with copies, as the first update gives its input away
        return jax.tree.map(jnp.copy, params), optimizer.init(params)

    params, state = begin(model.params)
    generator, step = np.random.default_rng(seed), 0
    while step < steps:
        for b in epoch(model, data, size, generator):
            params, state, value = update(params, state, b)
            step += 1
            yield step, params, float(value)
            if step == steps:
                return


def main(
    *,
    base: Path,
    out: Path,
    pooling: Literal["mean", "cls", "pooler"] = "mean",
    keep_head: bool = False,
    epochs: int = 3,
    steps: int | None = None,
    batch_size: int = 32,
    length: int = 64,
    rate: float = 1e-4,
    seed: int = 0,
) -> None:
    """Fine-tune a BERT on SST-2.

    Parameters
    ----------
    base
        Hugging Face BERT directory to start from; it may lack a classifier.
    out
        Directory to write; must not exist.
    pooling
        How the last layer's states become one vector.
    keep_head
        Go on with the classifier that base has, instead of a new one.
    epochs
        Passes over the training file.
    steps
        Stop after so many batches instead.
    batch_size
        Texts a batch.
    length
        Training texts are cut at this many tokens.
    rate
        Peak learning rate.
    seed
        Of the order of texts.
    """
    if out.exists():
        raise JaxplainError(f"{out} exists: choose another name, or remove it")
    if "JAXPLAIN_DATA" not in os.environ:
        raise JaxplainError("set JAXPLAIN_DATA to the directory that has sst2/train.tsv")
    files = Path(os.environ["JAXPLAIN_DATA"]) / "sst2"
    model = load_bert(base, labels=None if keep_head else LABELS, pooling=pooling)
    data = read(model, files / "train.tsv", length)
    dev, test = (read(model, files / f"{n}.tsv", model.max_length) for n in ("dev", "test"))
    predict = jax.jit(partial(logits, model))
    a_pass = -(-len(data.ids) // batch_size)
    steps = steps or epochs * a_pass
    start, params = time.perf_counter(), model.params
    for step, params, value in train(
        model, data, steps=steps, size=batch_size, rate=rate, seed=seed
    ):
        if step % 20 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {value:.3f}  {time.perf_counter() - start:.0f} s")
        if step % a_pass == 0 and step < steps:
            print(
                f"pass {step // a_pass}  dev accuracy {accuracy(model, predict, params, dev):.1%}"
            )
    print(f"dev accuracy {accuracy(model, predict, params, dev):.1%}")
    print(f"test accuracy {accuracy(model, predict, params, test):.1%}")
    save_bert(out, params, base=base, labels=model.labels, pooling=pooling)
    print(f"wrote {out}")


if __name__ == "__main__":
    try:
        cyclopts.run(main)
    except JaxplainError as error:
        raise SystemExit(f"finetune_bert: {error}") from None
