"""The network of `examples.reversal`: GRUs that read a sequence and give it back in reverse.

Letters: `T` words of a sequence, `K` width of a word, `D` of a state.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

LETTERS = "abcdefghijkl"
WORDS, LENGTH, WIDTH, DEPTH = len(LETTERS), 8, 16, 64
NOISE = 0.1  # standard deviation, of a decoder's state in training


class Cell(NamedTuple):
    """A gated recurrent unit: `[D] -> [D]` a step."""

    enter: jax.Array
    recur: jax.Array
    bias: jax.Array


def initialise(key, layers: int) -> dict[str, Any]:
    """Embeddings, an encoder's and a decoder's cells, and the map from a state to words."""
    keys = iter(jax.random.split(key, 4 * layers + 2))
    normal = lambda rows, columns: jax.random.normal(next(keys), (rows, columns)) / rows**0.5

    def cell(width):
        return Cell(normal(width, 3 * DEPTH), normal(DEPTH, 3 * DEPTH), jnp.zeros(3 * DEPTH))

    widths = [WIDTH] + [DEPTH] * (layers - 1)
    return dict(
        embedding=jax.random.normal(next(keys), (WORDS, WIDTH)),
        encoder=[cell(width) for width in widths],
        decoder=[cell(width) for width in widths],
        out=normal(DEPTH, WORDS),
    )


def recur(cell: Cell, state, inputs, noise):
    """All states `[T, D]` after `inputs [T, K]`, from `state [D]` on, `noise [T, D]` added."""
    entered = inputs @ cell.enter + cell.bias[None]

    def step(state, word):
        entered, noise = word
        reset, keep, new = jnp.split(entered, 3)
        recurred = jnp.split(state @ cell.recur, 3)
        keep = jax.nn.sigmoid(keep + recurred[1])
        new = jnp.tanh(new + jax.nn.sigmoid(reset + recurred[0]) * recurred[2])
        state = keep * state + (1 - keep) * new + noise
        return state, state

    return jax.lax.scan(step, state, (entered, noise))[1]


def decoder_states(params, x, noise=None):
    """`x [T, K]` -> `[layers, T, D]`: the decoder's state from which each word is given."""
    quiet = jnp.zeros((len(params["decoder"]), LENGTH, DEPTH))
    inputs, given, found = x, jnp.zeros_like(x), []
    cells = zip(params["encoder"], params["decoder"], strict=True)
    for layer, (encoder, decoder) in enumerate(cells):
        inputs = recur(encoder, jnp.zeros(DEPTH), inputs, quiet[0])
        given = recur(decoder, inputs[-1], given, (quiet if noise is None else noise)[layer])
        found.append(given)
    return jnp.stack(found)


def logits(params, ids, noise=None):
    return decoder_states(params, params["embedding"][ids], noise)[-1] @ params["out"]


def train(key, *, layers: int, updates: int, batch: int = 128):
    """Parameters after `updates` steps of Adam, each on new sequences."""
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_onecycle_schedule(updates, 1e-2)),
    )

    def loss(params, ids, noise):
        got = jax.vmap(logits, (None, 0, 0))(params, ids, noise)
        return optax.softmax_cross_entropy_with_integer_labels(got, ids[:, ::-1]).mean()

    def step(state, key):
        params, moments = state
        ids = jax.random.randint(key, (batch, LENGTH), 0, WORDS)
        draw = jax.random.normal(jax.random.fold_in(key, 1), (batch, layers, LENGTH, DEPTH))
        value, slope = jax.value_and_grad(loss)(params, ids, NOISE * draw)
        change, moments = optimiser.update(slope, moments, params)
        return (optax.apply_updates(params, change), moments), value

    params = initialise(key, layers)
    keys = jax.random.split(jax.random.fold_in(key, 1), updates)
    scan = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))
    (params, _), losses = scan((params, optimiser.init(params)), keys)
    return params, losses
