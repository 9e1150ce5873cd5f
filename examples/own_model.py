r"""Your own model and data on the command line: one function that returns each.

    jaxplain explain --model examples.own_model:model --data examples.own_model:data
    jaxplain explain --model examples.own_model:model --data examples.own_model:data \
        --method kernel_shap --target label --limit 40
    jaxplain explain --model examples.own_model:reader --data examples.own_model:reviews

The first two explain rows of a table, scikit-learn's wines, by a small network; the third, texts
by a bag of words that knows seven. Replace what is in the functions by what is yours: reading a
checkpoint, building a Flax module and wrapping its `apply`. `score` sees one example, and no batch.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_wine

from jaxplain.models import Model, Tokens

# --- Arrays: what the model needs is a score and its parameters.


@functools.cache  # read once, for the model and for the data
def table():
    wine: Any = load_wine()
    rows = (wine.data - wine.data.mean(0)) / wine.data.std(0)
    return rows.astype(np.float32), wine


def score(params, x):
    """Logits `[3]` of one wine `x [13]`."""
    return jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"]


def model():
    """A network of 16 hidden units, trained on the spot; yours is read from a file, or imported."""
    rows, wine = table()

    def loss(params):
        logits = jax.vmap(score, (None, 0))(params, rows)
        return optax.softmax_cross_entropy_with_integer_labels(logits, wine.target).mean()

    def step(state, _):
        updates, moments = optimiser.update(jax.grad(loss)(state[0]), state[1])
        return (optax.apply_updates(state[0], updates), moments), None

    one, two = jax.random.split(jax.random.key(0))
    params = {
        "in": 0.3 * jax.random.normal(one, (13, 16)),
        "bias": jnp.zeros(16),
        "out": 0.3 * jax.random.normal(two, (16, 3)),
    }
    optimiser = optax.adam(1e-2)
    state = jax.jit(lambda s: jax.lax.scan(step, s, length=100)[0])(
        (params, optimiser.init(params))
    )
    names = tuple(name.replace("_", " ") for name in wine.feature_names)
    return Model(score, state[0], labels=tuple(map(str, wine.target_names)), names=names)


def data():
    """Any sequence of dicts: `x`, one example's array; `label`, a class by name or number."""
    rows, wine = table()
    return [{"x": row, "label": label} for row, label in zip(rows, wine.target, strict=True)]


# --- Texts: a model is cut at its embeddings, and brings its tokenizer.

KNOWN = {
    "good": 1.0,
    "fine": 0.7,
    "warm": 0.8,
    "funny": 0.6,
    "bad": -1.0,
    "dull": -0.8,
    "flat": -0.5,
}
IDS = {word: number for number, word in enumerate(KNOWN, start=1)}


def tokenize(text):
    words = text.lower().split()
    return Tokens(np.array([IDS.get(word, 0) for word in words], np.int32), words, False)


def read(params, x, mask):
    """Logits `[2]` of embeddings `x [T, 1]` where `mask [T]`: the words' sum, squashed."""
    total = jnp.tanh(jnp.sum(jnp.where(mask[:, None], x, 0)))
    return jnp.stack([-total, total])


def reader():
    """A dict of a `TextModel`'s fields, without those that only some methods need."""
    return {
        "params": jnp.array([[0.0], *([value] for value in KNOWN.values())]),
        "embed": lambda params, ids: params[ids],
        "score": read,
        "tokenize": tokenize,
        "labels": ("negative", "positive"),
        "max_length": 64,
    }


def reviews():
    """Texts and their labels; a list of strings would do, or dicts with `text`."""
    texts = ["a warm and funny film", "dull , flat and bad", "a good cast in a bad film"]
    return texts, ["positive", "negative", "negative"]


if __name__ == "__main__":
    print(__doc__)
