"""Word information once more, as the paper and its published code write it: numpy in float64.

The words are the rows of `x [T, K]`; `h` maps x to an array, and `pull(x, g)` is the gradient of
sum(g * h(x)) by x. `ratio [T]` is the published parameter: sigma = scale * sigmoid(ratio).

The networks below, in JAX, are those that goldens/make_information.py has in torch.
"""

import jax
import jax.numpy as jnp
import numpy as np

TOY = np.array([10.0, 20.0, 5.0, -20.0, -10.0])  # of the published tutorial


def toy(p, x):
    """`[5, K] -> [K]`: a weighted sum of the words."""
    return p["words"] @ x


def lstm(p, x):
    """`[T, K] -> [T, H]`: every state of an LSTM whose gates are in torch's order, i f g o."""

    def cell(state, word):
        hidden, memory = state
        gates = p["enter"] @ word + p["stay"] @ hidden + p["bias"]
        i, f, g, o = jnp.split(gates, 4)
        memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(memory)
        return (hidden, memory), hidden

    zero = jnp.zeros(p["stay"].shape[1], x.dtype)
    return jax.lax.scan(cell, (zero, zero), x)[1]


def attention(p, x, mask=None):
    """`[T, K] -> [T, D]`: one head over the words of `mask [T]`, and a layer on each word."""
    logits = (x @ p["query"]) @ (x @ p["key"]).T
    if mask is not None:
        logits = jnp.where(mask[None, :], logits, jnp.finfo(x.dtype).min)
    mixed = x + jax.nn.softmax(logits) @ (x @ p["value"])
    return jnp.tanh(mixed @ p["inner"]) @ p["outer"]


NETWORKS = {"toy": toy, "lstm": lstm, "attention": attention}


def sigmoid(v):
    return 1 / (1 + np.exp(-np.asarray(v, np.float64)))


def distance(h, x, shift, spread=None):
    """mean_d (h(x + shift) - h(x))_d^2 / spread_d^2; without a spread, over mean(h(x)^2)."""
    state = np.asarray(h(x), np.float64)
    moved = np.asarray(h(x + shift), np.float64) - state
    if spread is None:
        return np.mean(moved**2) / np.mean(state**2)
    return np.mean(moved**2 / np.asarray(spread, np.float64) ** 2)


def published_objective(h, pull, x, ratio, noise, *, scale, rate, spread=None):
    """`Interpreter.forward` for one draw `noise [T, K]`, and its gradient by `ratio [T]`."""
    part = sigmoid(ratio)
    shift = scale * part[:, None] * noise
    loss = distance(h, x, shift, spread) - rate * np.mean(np.log(part))
    state = np.asarray(h(x), np.float64)
    moved = np.asarray(h(x + shift), np.float64) - state
    if spread is None:
        weight = 1 / np.mean(state**2)
    else:
        weight = 1 / np.asarray(spread, np.float64) ** 2
    by_shift = np.asarray(pull(x + shift, 2 * moved * weight / moved.size), np.float64)
    by_part = np.sum(by_shift * scale * noise, axis=1)
    gradient = by_part * part * (1 - part) - rate * (1 - part) / len(part)
    return loss, gradient


def paper_objective(h, x, sigma, noise, *, balance, spread):
    """Guan et al. 2019, eq. 7, for one draw: sum(-log sigma) + |h(x~) - h(x)|^2 / (K balance).

    The variance that divides the square is here one for each unit.
    """
    squares = distance(h, x, sigma[:, None] * noise, spread) * np.size(h(x))
    return -np.sum(np.log(sigma)) + squares / (x.shape[1] * balance)


def closed_form(jacobian, *, rate, spread):
    """The optimum `sigma [T]` where h is linear, of its Jacobian `[..., T, K]`, without a cap."""
    jacobian = np.asarray(jacobian, np.float64)
    words = jacobian.shape[-2]
    units = jacobian.shape[:-2]
    reach = (jacobian**2).sum(-1).reshape(-1, words)
    spread = np.broadcast_to(np.asarray(spread, np.float64), units).reshape(-1, 1)
    return np.sqrt(rate * len(reach) / (2 * words * (reach / spread**2).sum(0)))


def published_loop(objective, ratio, noises, *, learning_rate):
    """`Interpreter.optimize`: Adam, one draw a step; `objective(ratio, noise)` as above.

    Returns the parameters after the step whose loss, before it, was the lowest; and all losses.
    """
    ratio = np.asarray(ratio, np.float64).copy()
    first, second = np.zeros_like(ratio), np.zeros_like(ratio)
    lowest, kept, losses = None, None, []
    for step, noise in enumerate(np.asarray(noises, np.float64), 1):
        loss, gradient = objective(ratio, noise)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        size = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        ratio = ratio - learning_rate * first / (1 - 0.9**step) / size
        losses.append(loss)
        if lowest is None or lowest > loss:
            lowest, kept = loss, ratio.copy()
    return kept, np.array(losses)


def mean_spread(states):
    """`calculate_regularization` with its axis 0 reduced, of states `[T, D]` of any T: `[1, D]`."""
    return np.std([np.mean(s, axis=0, keepdims=True, dtype=np.float64) for s in states], axis=0)


def pooled_spread(states):
    """The deviation over the words of all states `[T, D]` together: `[1, D]`."""
    return np.std(np.concatenate(states, dtype=np.float64), axis=0, keepdims=True)
