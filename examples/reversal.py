"""What a network still has to remember: a sequence is read, and given back in reverse.

    python -m examples.reversal --out runs/reversal

trains a small recurrent encoder and decoder (GRU) on random sequences of words; at step t the
decoder has to give the word that was read t before the last one. It reads nothing itself, and its
state is noisy in training, so that it has to hold the words that it has still to give, and has
reason to forget those it has given: here, for once, it is known what a map has to show. For the
decoder's state at each step and in each layer the example asks six methods how much the state
holds of each word, draws their answers side by side, and prints for each method

- needed: how often a word that is still to be given scores above one that has been, over all such
  pairs of a sequence and layer (the area under the ROC curve; 1 is right, 0.5 is chance): of pairs
  within one state, and of pairs from any two steps, which asks for scores that mean the same in
  every state;
- readable: the rank correlation (Spearman) with what a state does hold: how often a linear probe of
  it, fitted by least squares, tells the word on new sequences;
- steps: how alike the maps of one layer's neighbouring steps are, as the mean rank correlation
  between the scores of all words in both, 1 where both order the words alike; and as the total
  variation, the mean |change| of a word's score in percent of the range of the method's scores in
  this sequence: 0 where nothing changes;
- layers: the same two numbers between neighbouring layers at the same step.

Two more lines have the same numbers of the truth, 1 for a word that is needed and 0 for the others,
and of the probe. All are means over sequences, with standard errors.

The methods: word information, in nats a word below the cap on its noise; gradient, the mean
|dh/dx| over a word's and the state's entries; perturbation, for each state a mask of the words,
learned to be small and to leave the state what it is, where a word is mixed with the mean word;
occlusion, the mean square change of the state, in units of its spread, when one word is the mean
word; layer-wise relevance propagation (LRP), the mean size of what each entry of h hands down to a
word, gates held, stabilised by 0.001 as published for LSTMs; contextual decomposition (CD), the
mean size of the part of h that came from a word alone, by the rules published for LSTMs.

References:
    Guan, Wang, Zhang, Chen, He, Xie, "Towards a Deep and Unified Understanding of Deep Neural
    Models in NLP", ICML 2019. https://proceedings.mlr.press/v97/guan19a.html
    Fong, Vedaldi, "Interpretable Explanations of Black Boxes by Meaningful Perturbation", 2017.
    https://arxiv.org/abs/1704.03296
    Arras, Montavon, Müller, Samek, "Explaining Recurrent Neural Network Predictions in Sentiment
    Analysis", 2017. https://arxiv.org/abs/1706.07206
"""

import json
import time
from itertools import pairwise
from pathlib import Path

import cyclopts
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxplain as jxp
from examples.measures import auc, average, mean_and_error, spearman, table
from examples.reversal_model import (
    DEPTH,
    LENGTH,
    LETTERS,
    WIDTH,
    WORDS,
    decoder_states,
    logits,
    train,
)
from jaxplain.methods.information import layer_information
from jaxplain.methods.spread import hidden_spread

METHODS = ("word information", "gradient", "perturbation", "occlusion", "LRP", "CD")


def information(params, x, spread, key, *, steps: int):
    """Nats that a state holds of each word, below the cap: `[layers, T, words]`."""
    states = lambda x: decoder_states(params, x).reshape(-1, DEPTH)
    found = layer_information(
        states,
        x,
        key=key,
        scale=jnp.std(params["embedding"]),  # noise as large as words differ: none is left
        spread=spread.reshape(-1, DEPTH),
        steps=steps,
        samples=8,
        tolerance=0.05,
        chunk=16,
    )
    return -WIDTH * found.log_ratio.reshape(-1, LENGTH, LENGTH), found.converged


def gradient(params, x):
    slopes = jax.jacrev(lambda x: decoder_states(params, x))(x)
    return jnp.abs(slopes).mean((2, 4))


def perturbation(params, x, spread, *, steps: int = 200, weight: float = 0.1):
    """The mask of each state: `weight` times its mean, and the square change of the state."""
    mean = params["embedding"].mean(0, keepdims=True)
    before, optimiser = decoder_states(params, x), optax.adam(0.1)

    def loss(free):  # [layers, T, words], a mask of all words for each state
        kept = jax.nn.sigmoid(free)

        def change(layer, step):
            mixed = mean + kept[layer, step][:, None] * (x - mean)
            moved = decoder_states(params, mixed)[layer, step] - before[layer, step]
            return jnp.mean((moved / spread[layer, step]) ** 2)

        layers, places = jnp.indices(kept.shape[:2])
        changes = jax.vmap(change)(layers.reshape(-1), places.reshape(-1))
        return jnp.sum(changes) + weight * jnp.sum(kept.mean(-1))

    def step(state, _):
        free, moments = state
        updates, moments = optimiser.update(jax.grad(loss)(free), moments)
        return (free + jnp.asarray(updates), moments), None

    free = jnp.zeros((*before.shape[:2], LENGTH))
    (free, _), _ = jax.lax.scan(step, (free, optimiser.init(free)), length=steps)
    return jax.nn.sigmoid(free)


def occlusion(params, x, spread):
    mean = params["embedding"].mean(0, keepdims=True)
    without = jnp.where(jnp.eye(LENGTH, dtype=bool)[:, :, None], mean[None], x[None])
    states = jax.vmap(lambda x: decoder_states(params, x))(without)
    change = (states - decoder_states(params, x)[None]) / spread[None]
    return jnp.moveaxis(jnp.mean(change**2, axis=-1), 0, -1)


def relevance(params, x, *, stabiliser: float = 1e-3):
    stable = jxp.relevance.epsilon(stabiliser)
    rules = {**jxp.CP_LRP, "affine": stable, "sum": stable}
    shape = jax.eval_shape(decoder_states, params, x).shape

    def handed_down(entry):
        h = lambda x: decoder_states(params, x).ravel()[entry]
        return jnp.abs(jxp.lrp(h, x, rules=rules).scores.sum(1))

    entries = jnp.arange(int(np.prod(shape)))
    found = jax.lax.map(handed_down, entries, batch_size=DEPTH)
    return found.reshape(*shape, LENGTH).mean(2)


def decomposition(params, x):
    words = jnp.eye(LENGTH)[:, :, None]
    states = lambda x: decoder_states(params, x)
    parts = jxp.group_scores(states, x, words, rules=jxp.CD_LSTM).relevant
    return jnp.moveaxis(jnp.abs(parts).mean(-1), 0, -1)


def maps(params, spread, ids, key, *, steps: int, stabiliser: float):
    """Each method's `[layers, T, words]` for one sequence, and which states converged."""
    x = params["embedding"][ids]
    held, converged = information(params, x, spread, key, steps=steps)
    return {
        "word information": held,
        "gradient": gradient(params, x),
        "perturbation": perturbation(params, x, spread),
        "occlusion": occlusion(params, x, spread),
        "LRP": relevance(params, x, stabiliser=stabiliser),
        "CD": decomposition(params, x),
    }, converged


def truth() -> np.ndarray:
    """`[T, words]` bool: which words the state at each step has still to give."""
    place = np.arange(LENGTH)
    return place[:, None] + place[None] < LENGTH


def probe(states: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """How often a linear map tells each word from a state: `[N, layers, T, D]` -> `[layers, T, T]`.

    Fitted by least squares on three quarters of the sequences, tried on the rest.
    """
    cut = 3 * len(ids) // 4
    words = np.eye(WORDS)[ids].reshape(len(ids), -1)
    found = np.empty((*states.shape[1:3], LENGTH))
    for place in np.ndindex(*states.shape[1:3]):
        rows = np.pad(states[:, *place], ((0, 0), (0, 1)), constant_values=1.0)
        fitted = np.linalg.lstsq(rows[:cut], words[:cut])[0]
        guess = (rows[cut:] @ fitted).reshape(-1, LENGTH, WORDS).argmax(-1)
        found[place] = (guess == ids[cut:]).mean(0)
    return found


def measures(scores: np.ndarray, readable: np.ndarray) -> dict[str, float]:
    """The numbers of the docstring for one `[layers, T, words]` map."""
    needed = truth()
    wide = np.ptp(scores) or 1.0
    steps = [pair for layer in scores for pair in pairwise(layer)]
    layers = [pair for a, b in pairwise(scores) for pair in zip(a, b, strict=True)]
    states = [pair for layer in scores for pair in zip(layer, needed, strict=True)]
    found = {
        "needed, one state": average([auc(state, n) for state, n in states]),
        "needed, all steps": average([auc(layer.ravel(), needed.ravel()) for layer in scores]),
        "readable": average(
            [spearman(a.ravel(), b.ravel()) for a, b in zip(scores, readable, strict=True)]
        ),
    }
    for name, pairs in (("steps", steps), ("layers", layers)):
        found[f"{name}, rank correlation"] = average([spearman(a, b) for a, b in pairs])
        found[f"{name}, variation %"] = average([abs(a - b).mean() / wide * 100 for a, b in pairs])
    return found


def draw(path: Path, found: dict[str, np.ndarray], ids: np.ndarray) -> None:
    """One sequence's maps: a column a method, a row a layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    layers = len(next(iter(found.values())))
    figure, axes = plt.subplots(
        layers, len(found), figsize=(2 * len(found), 2 * layers + 0.7), squeeze=False,
        sharex=True, sharey=True, layout="constrained",
    )  # fmt: skip
    edge = np.arange(LENGTH + 1)
    for column, (name, scores) in enumerate(found.items()):
        for layer in range(layers):
            axis = axes[layer, column]
            shown = axis.imshow(scores[layer].T, cmap="Oranges", vmin=0, vmax=scores.max())
            # Below the stairs are words that have been given.
            axis.stairs(LENGTH - edge[:-1] - 0.5, edge - 0.5, baseline=None, color="#222", lw=1.2)
            axis.set_xticks(range(LENGTH), [str(k + 1) for k in range(LENGTH)], fontsize=8)
            axis.set_yticks(range(LENGTH), [LETTERS[i] for i in ids], fontsize=8)
            axis.tick_params(length=0)
            for side in axis.spines.values():
                side.set_visible(False)
            if column == 0:
                axis.set_ylabel(f"layer {layer + 1}: words read")
            if layer == 0:
                axis.set_title(name, fontsize=10)
            if layer == layers - 1:
                axis.set_xlabel("step of the decoder", fontsize=8)
        bar = figure.colorbar(shown, ax=axes[:, column], location="bottom", aspect=30, pad=0.01)
        bar.ax.tick_params(labelsize=7, length=2)
        bar.outline.set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(
    *,
    out: Path = Path("runs/reversal"),
    layers: int = 2,
    updates: int = 1500,
    sequences: int = 8,
    steps: int = 2000,
    stabiliser: float = 1e-3,
    seed: int = 0,
    markdown: bool = False,
) -> None:
    """Train, explain the decoder's states of some sequences, print a table and draw a figure.

    Args:
        out: the folder for the figure and the numbers.
        layers: of the encoder and of the decoder.
        updates: steps of training, 128 new sequences each.
        sequences: how many to explain; the figure shows the first.
        steps: the most steps of the search for word information.
        stabiliser: of LRP.
        seed: of the parameters, the sequences and the noise.
        markdown: print the table in Markdown.
    """
    key = jax.random.key(seed)
    began = time.monotonic()
    params, _ = train(key, layers=layers, updates=updates)
    draws = jax.random.split(jax.random.fold_in(key, 2), 3)
    test = jax.random.randint(draws[0], (2000, LENGTH), 0, WORDS)
    right = jax.jit(jax.vmap(logits, (None, 0)))(params, test).argmax(-1) == test[:, ::-1]
    print(
        f"trained in {time.monotonic() - began:.0f} s: {right.mean():.2%} of words right, "
        f"{right.all(-1).mean():.2%} of {len(test)} new sequences right",
        flush=True,
    )
    began = time.monotonic()
    states = jax.jit(lambda params, xs: jax.vmap(decoder_states, (None, 0))(params, xs))
    xs = params["embedding"][test]
    readable = probe(np.asarray(states(params, xs), np.float64), np.asarray(test))
    h = lambda params: lambda x: decoder_states(params, x)
    spread = jax.jit(lambda params, xs: hidden_spread(h(params), xs))(params, xs)
    ids = jax.random.randint(draws[1], (sequences, LENGTH), 0, WORDS)
    explain = jax.jit(lambda params, *rows: jax.lax.map(
        lambda row: maps(params, spread, *row, steps=steps, stabiliser=stabiliser), rows
    ))  # fmt: skip
    found, converged = explain(params, ids, jax.random.split(draws[2], sequences))
    found = {name: np.asarray(found[name], np.float64) for name in METHODS}
    print(
        f"{sequences} sequences explained in {time.monotonic() - began:.0f} s: word information "
        f"converged in {int(converged.sum())} of {converged.size} states"
    )
    rows = {name: [measures(one, readable) for one in values] for name, values in found.items()}
    flat = np.broadcast_to(truth(), (layers, LENGTH, LENGTH)).astype(float)
    rows |= {"the truth": [measures(flat, readable)], "the probe": [measures(readable, readable)]}
    names = list(rows["the truth"][0])
    lines = [["", *names]]
    for method, found_numbers in rows.items():
        columns = [[one[name] for one in found_numbers] for name in names]
        digits = [1 if name.endswith("%") else 2 for name in names]
        lines.append([method, *map(mean_and_error, columns, digits)])
    print(table(lines, markdown=markdown))
    out.mkdir(parents=True, exist_ok=True)
    (out / "numbers.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    shown = {name: values[0] for name, values in found.items()} | {"linear probe": readable}
    draw(out / "reversal.png", shown, np.asarray(ids[0]))
    print(f"figure: {out / 'reversal.png'}, numbers: {out / 'numbers.json'}")


if __name__ == "__main__":
    cyclopts.run(main)
