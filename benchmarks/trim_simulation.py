"""Which method finds the one frequency that matters? The simulation of transformation importance.

Signals of 100 independent values; the label says whether the magnitude of their Fourier
coefficient 12 is above its median. A network of 100 ReLUs learns it from the signals. Each method
then scores the 51 coefficients of 500 test signals, and errs where another coefficient than 12
comes out largest.

All methods are scored alike: the function explained is the logit of "above" minus that of "below",
and a coefficient's score is the signed sum of those of its two parts. A method errs where the
largest score is another's than coefficient 12 (which one speaks most for "above"?), the paper's
reading for contextual decomposition; and, in another column, where the largest magnitude is.

References: Singh, Ha, Lanusse, Boehm, Liu, Yu, Transformation Importance with Applications to
    Cosmology, 2020, https://arxiv.org/abs/2003.01926
Differs: the paper scores contextual decomposition by its sign on the logits, and the other methods
    by the magnitude of both parts on the probabilities; its network drops one value of each signal.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxplain as jxp
from benchmarks.common import parse, report
from jaxplain.transformed import fourier, in_domain, transformed

BOUND = 0.01
LENGTH, COEFFICIENT, HIDDEN = 100, 12, 100
COUNT = LENGTH // 2 + 1
DRAWS = {"normal": "normal", "uniform": "random"}
TRANSFORM = fourier(LENGTH)


def simulate(data: str, seed: int, examples: int):
    """Signals `[N, 100]` and labels `[N]` for training, and the same for testing (a quarter)."""
    x = getattr(np.random.default_rng(seed), DRAWS[data])(size=(examples, LENGTH))
    size = np.abs(np.fft.rfft(x)[:, COEFFICIENT])
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(size > np.median(size), jnp.int32)
    train = examples * 3 // 4
    return x[:train], y[:train], x[train:], y[train:]


def logits(params, x):
    """`[2]`."""
    return jax.nn.relu(x @ params["a"] + params["b"]) @ params["c"] + params["d"]


def initial(key):
    """Weights and biases uniform within 1 / sqrt(inputs)."""
    shapes = {"a": (LENGTH, HIDDEN), "b": (HIDDEN,), "c": (HIDDEN, 2), "d": (2,)}
    inputs = {"a": LENGTH, "b": LENGTH, "c": HIDDEN, "d": HIDDEN}
    keys = dict(zip(shapes, jax.random.split(key, 4), strict=True))
    uniform = lambda k: jax.random.uniform(keys[k], shapes[k], minval=-1.0, maxval=1.0)
    return {k: uniform(k) * inputs[k] ** -0.5 for k in shapes}


@partial(jax.jit, static_argnames=("epochs", "batch"))
def train(key, x, y, *, epochs: int, batch: int, rate: float):
    """Plain stochastic gradient descent on the cross entropy."""
    first, *keys = jax.random.split(key, epochs + 1)
    rows = len(x) // batch
    order = [jax.random.permutation(k, len(x))[: rows * batch].reshape(rows, batch) for k in keys]

    def loss(params, index):
        chances = jax.nn.log_softmax(jax.vmap(logits, (None, 0))(params, x[index]))
        return -jnp.mean(jnp.take_along_axis(chances, y[index][:, None], 1))

    def step(params, index):
        gradient = jax.grad(loss)(params, index)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), None

    return jax.lax.scan(step, initial(first), jnp.concatenate(order))[0]


def methods(baselines):
    """`score(f, x, key) -> [51]` of each method, by its name."""
    masks = jnp.eye(COUNT)[:, :, None]  # both parts of a coefficient

    def attribution(method, **options):
        explain = transformed(method, TRANSFORM)
        return lambda f, x, key: explain(f, x, key=key, **options).scores.sum(-1)

    def decomposition(rules):
        explain = transformed(jxp.group_scores, TRANSFORM)
        return lambda f, x, key: explain(f, x, masks, rules=rules).relevant

    def occlusion(f, x, key):
        g, s = in_domain(f, x, TRANSFORM)
        return g(s) - jax.vmap(lambda mask: g(s * (1 - mask)))(masks)

    def build_up(f, x, key):
        g, s = in_domain(f, x, TRANSFORM)
        return jax.vmap(lambda mask: g(s * mask))(masks) - g(0 * s)

    spectra = jax.vmap(TRANSFORM.forward)(baselines)
    return {
        "cd_acd": decomposition(jxp.CD_ACD),
        "cd_shapley": decomposition(jxp.CD_SHAPLEY),
        "integrated_gradients": attribution(jxp.integrated_gradients),
        "expected_gradients": attribution(jxp.expected_gradients, baselines=spectra),
        "input_x_gradient": attribution(jxp.input_x_gradient),
        "occlusion": occlusion,
        "build_up": build_up,
    }


@jax.jit
def accuracy(params, x, y):
    return jnp.mean(jnp.argmax(jax.vmap(logits, (None, 0))(params, x), -1) == y)


@jax.jit
def errors(params, x, baselines, key):
    """For each method the share of signals `[N, 100]` where it errs: by score and by magnitude."""

    def wrong(score):
        def one(x, key):
            scores = score(lambda x: jnp.dot(logits(params, x), jnp.array([-1.0, 1.0])), x, key)
            largest = [jnp.argmax(scores), jnp.argmax(jnp.abs(scores))]
            return jnp.stack(largest) != COEFFICIENT

        return jnp.mean(jax.vmap(one)(x, jax.random.split(key, len(x))), 0)

    return {k: wrong(score) for k, score in methods(baselines).items()}


def main() -> None:
    options = parse(
        __doc__ or "", seeds=3, examples=50000, points=500, epochs=12, batch=128, rate=0.1
    )
    began, tables = time.perf_counter(), {}
    for data in DRAWS:
        rows, accuracies = [], []
        for seed in range(options.seeds):
            x, y, test_x, test_y = simulate(data, seed, options.examples)
            key = jax.random.key(seed)
            params = train(key, x, y, epochs=options.epochs, batch=options.batch, rate=options.rate)
            rows.append(errors(params, test_x[: options.points], x[:100], key))
            accuracies.append(round(float(accuracy(params, test_x, test_y)), 4))
        found = {k: np.array([row[k] for row in rows], np.float64).round(4) for k in methods(x[:1])}
        tables[data] = found, accuracies
    seconds = time.perf_counter() - began

    columns = [f"{data}, by {what}" for data in DRAWS for what in ("score", "magnitude")]
    print(f"| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for k in methods(x[:1]):
        errs = np.concatenate([tables[data][0][k].mean(0) for data in DRAWS])
        print(f"| {k} | {' | '.join(f'{100 * v:.1f}%' for v in errs)} |")
    for data in reversed(DRAWS):  # the row with the bound comes last
        found, accuracies = tables[data]
        bounded = data == "normal"
        report(
            "trim_simulation",
            f"error of CD_ACD by score <= {BOUND}" if bounded else "none",
            not bounded or found["cd_acd"][:, 0].mean() <= BOUND,
            data=data,
            accuracy=accuracies,
            by_score={k: v[:, 0].tolist() for k, v in found.items()},
            by_magnitude={k: v[:, 1].tolist() for k, v in found.items()},
            seconds=seconds,
        )


if __name__ == "__main__":
    main()
