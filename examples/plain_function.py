"""No library of layers at all: a model is a function and a pytree of parameters.

    python -m examples.plain_function --out runs/plain_function

Whatever makes a function `f(params, x)` will do. Equinox, for one, splits a module in two:

    params, rest = equinox.partition(module, equinox.is_array)
    f = lambda params, x: equinox.combine(params, rest)(x)

Here the function is twelve lines of `jax.numpy`, and its layers are functions as well: f = g after
h needs no hooks, it is how the function is written. The data are Friedman's: ten columns, of which
five do nothing, and the first two only matter together:

    y = 10 sin(pi x0 x1) + 20 (x2 - 1/2)^2 + 10 x3 + 5 x4 + noise

Three methods explain each row. The table that comes out says what proves each of them, how far they
agree, and how much of their scores lies on the columns that do nothing.
"""

from pathlib import Path

import cyclopts
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import make_friedman1

import jaxplain as jxp
from jaxplain import report


def initial(key, sizes=(10, 32, 32, 1)):
    """A list of layers, each a dict: any pytree will do."""
    keys = jax.random.split(key, len(sizes))
    return [
        {"w": jax.random.normal(k, (m, n)) * m**-0.5, "b": jnp.zeros(n)}
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]


def features(params, row):  # [10] -> [32]: h, the state of the last hidden layer
    for layer in params[:-1]:
        row = jax.nn.softplus(row @ layer["w"] + layer["b"])
    return row


def head(params, a):  # [32] -> []: g
    return (a @ params[-1]["w"] + params[-1]["b"])[0]


def predict(params, row):
    return head(params, features(params, row))


def train(rows, values, *, updates):
    params, optimiser = initial(jax.random.key(0)), optax.adam(5e-3)

    def loss(params):
        return jnp.mean((jax.vmap(predict, (None, 0))(params, rows) - values) ** 2)

    def step(state, _):
        change, moments = optimiser.update(jax.grad(loss)(state[0]), state[1], state[0])
        return (optax.apply_updates(state[0], change), moments), None

    state = params, optimiser.init(params)
    return jax.jit(lambda state: jax.lax.scan(step, state, length=updates)[0])(state)[0]


def main(*, out: Path = Path("runs/plain_function"), updates: int = 1000, samples: int = 256):
    """Train, explain every row that was left out in three ways, write a page and a figure."""
    rows, values = make_friedman1(1600, noise=0.5, random_state=0)
    rows, values = (rows - 0.5).astype(np.float32), values.astype(np.float32)
    centre, test = values.mean(), np.arange(len(rows)) % 4 == 3
    params = train(rows[~test], values[~test] - centre, updates=updates)
    predicted = jax.vmap(predict, (None, 0))(params, rows[test]) + centre
    explained = 1 - np.mean((predicted - values[test]) ** 2) / np.var(values[test])
    print(f"explains {explained:.0%} of the variance of {test.sum()} rows left out")

    def explain(params, example, key):
        f = lambda row: predict(params, row)
        row = example["row"]
        h, g = (lambda row: features(params, row)), (lambda a: head(params, a))
        return dict(
            attribution=jxp.deep_lift(f, row),  # against zeros: the middle of every column
            integrated=jxp.integrated_gradients(f, row),
            shapley=jxp.shapley_sampling(f, row, key=key, samples=samples),
            units=jxp.layer_conductance(h, g, row),
        )

    names = [f"x{n}" for n in range(rows.shape[1])]
    examples = [{"row": row, "names": names} for row in rows[test]]  # strings stay on disk
    about = {"data": "Friedman 1", "model": "plain function", "method": "deep_lift"}
    summary = jxp.run(explain, params, examples, out, key=jax.random.key(0), configuration=about)
    print(f"{summary.done} of {summary.examples} rows explained, {summary.failed} failed")

    results = [record.result for record in jxp.load(out) if record.result]
    told = {"attribution": "DeepLIFT", "integrated": "integrated gradients"}
    told |= {"shapley": "Shapley sampling", "units": "conductance of 32 units"}
    scores = {name: np.stack([r[name].scores for r in results]) for name in told}
    print(f"{'':<24}{'largest gap':>12}{'like Shapley values':>22}{'on x5 to x9':>14}")
    for name, method in told.items():
        line = f"{method:<24}{max(abs(float(r[name].gap)) for r in results):>12.1e}"
        if scores[name].shape == scores["shapley"].shape:
            alike = np.corrcoef(scores[name].ravel(), scores["shapley"].ravel())[0, 1]
            idle = np.abs(scores[name][:, 5:]).sum() / np.abs(scores[name]).sum()
            line += f"{alike:>22.3f}{idle:>14.1%}"
        print(line)
    error = np.median([r["shapley"].standard_error for r in results])
    print(f"a Shapley value's standard error: median {error:.3f}, of {samples} samples")

    figure = jxp.plot.bar(scores["attribution"], names, top=6, title="what moves the prediction")
    figure.savefig(out / "columns.png")
    print(f"figure: {out / 'columns.png'}; page: {report.page(out)}")


if __name__ == "__main__":
    cyclopts.run(main)
