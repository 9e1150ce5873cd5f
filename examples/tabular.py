"""Train a Flax MLP on a table, scikit-learn's breast cancer data, then explain every row.

    python -m examples.tabular --out runs/tabular

The columns are standardised, so the baseline of zeros is the average patient, and a score says what
it changed that this patient is not average there. The last lines read the run back, and rank
the columns by how much they moved the model over all patients.
"""

from pathlib import Path
from typing import Any

import cyclopts
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

import jaxplain as jxp
from jaxplain import report


class MLP(nn.Module):
    @nn.compact
    def __call__(self, row):  # [30] -> [2]: one patient
        return nn.Dense(2)(nn.gelu(nn.Dense(32)(nn.gelu(nn.Dense(32)(row)))))


def train(model, rows, labels, *, updates):
    optimiser = optax.adamw(3e-3, weight_decay=1e-2)

    def loss(params):
        logits = model.apply(params, rows)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state, _):
        change, moments = optimiser.update(jax.grad(loss)(state[0]), state[1], state[0])
        return (optax.apply_updates(state[0], change), moments), None

    params = model.init(jax.random.key(0), rows[0])
    state = params, optimiser.init(params)
    return jax.jit(lambda state: jax.lax.scan(step, state, length=updates)[0])(state)[0]


def main(*, out: Path = Path("runs/tabular"), steps: int = 32, updates: int = 200):
    """Train, explain every row, write a page, and print the columns that matter most."""
    table: Any = load_breast_cancer()
    test = np.arange(len(table.data)) % 4 == 3
    mean, deviation = table.data[~test].mean(0), table.data[~test].std(0)
    rows, labels = ((table.data - mean) / deviation).astype(np.float32), table.target
    model: Any = MLP()
    params = train(model, rows[~test], labels[~test], updates=updates)
    right = model.apply(params, rows[test]).argmax(-1) == labels[test]
    print(f"test accuracy {right.mean():.1%} of {test.sum()} patients")

    def explain(params, example, key):
        logits = model.apply(params, example["row"])
        # What speaks for malignant (class 0) and against benign (class 1), whoever the patient is.
        f = lambda row: model.apply(params, row) @ jnp.array([1.0, -1.0])
        attribution = jxp.integrated_gradients(f, example["row"], steps=steps)
        return dict(attribution=attribution, logits=logits, target=jnp.int32(0))

    names, classes = [str(n) for n in table.feature_names], [str(n) for n in table.target_names]
    notes = [{"names": names, "label": classes[label]} for label in labels]  # strings stay on disk
    examples = [{"row": row, **note} for row, note in zip(rows, notes, strict=True)]
    about = {"data": "breast cancer", "model": "MLP", "method": "integrated_gradients"}
    about |= {"steps": steps, "classes": classes}
    summary = jxp.run(explain, params, examples, out, key=jax.random.key(0), configuration=about)
    print(f"{summary.done} of {summary.examples} patients explained, {summary.failed} failed")

    scores = np.stack([r.result["attribution"].scores for r in jxp.load(out) if r.result])
    importance = np.abs(scores).mean(0)
    for column in np.argsort(-importance)[:5]:
        print(f"{importance[column]:8.3f}  {names[column]}")
    print(f"page: {report.page(out)}")


if __name__ == "__main__":
    cyclopts.run(main)
