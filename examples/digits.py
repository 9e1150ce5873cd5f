"""Train a small Flax CNN on scikit-learn's digits, then explain all 1,797 of them.

    python -m examples.digits --out runs/digits
    python -m examples.digits --out runs/smooth --method smoothgrad

Open the page that it names at the end: orange pixels speak for the predicted digit, blue ones
against it. The same command again finds the run done; killed half way, it goes on from there.
"""

from pathlib import Path
from typing import Any

import cyclopts
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxplain as jxp
from jaxplain import report


class CNN(nn.Module):
    @nn.compact
    def __call__(self, image):  # [8, 8, 1] -> [10]: one image, as everywhere below
        for features in (16, 32):
            image = nn.relu(nn.Conv(features, (3, 3))(image))
        image = nn.max_pool(image, (2, 2), strides=(2, 2))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(image.reshape(-1))))


def train(model, images, labels, *, epochs, batch=64):
    def loss(params, rows):
        logits = jax.vmap(model.apply, (None, 0))(params, images[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(state, rows):
        updates, moments = optimiser.update(jax.grad(loss)(state[0], rows), state[1])
        return (optax.apply_updates(state[0], updates), moments), None

    orders = [np.random.default_rng(n).permutation(len(images)) for n in range(epochs)]
    rows = np.stack([order[: len(order) // batch * batch] for order in orders])
    params, optimiser = model.init(jax.random.key(0), images[0]), optax.adam(2e-3)
    state = params, optimiser.init(params)
    return jax.jit(lambda state: jax.lax.scan(step, state, rows.reshape(-1, batch))[0])(state)[0]


def main(*, out: Path = Path("runs/digits"), method="integrated_gradients", steps=32, epochs=20):
    """Train, explain, and write a page; STEPS is for methods that take steps."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    test = np.arange(len(images)) % 4 == 3
    model: Any = CNN()
    params = train(model, jnp.array(images[~test]), jnp.array(labels[~test]), epochs=epochs)
    logits = jax.jit(jax.vmap(model.apply, (None, 0)))(params, images[test])
    accuracy = np.mean(np.argmax(logits, -1) == labels[test])
    print(f"test accuracy {accuracy:.1%} on {test.sum()} images")

    options = {"steps": steps} if "steps" in jxp.METHODS[method].options else {}
    explainer = jxp.configure(method, options)

    def explain(params, example, key):  # a pure function of one example: all that `run` asks for
        logits = model.apply(params, example["image"])
        target = jnp.argmax(logits)
        f = lambda image: model.apply(params, image)[target]
        attribution = explainer(f, example["image"], key=key)
        return dict(attribution=attribution, logits=logits, target=target, image=example["image"])

    # A string goes to no device: it comes back as a note of the record.
    examples = [{"image": x, "label": str(y)} for x, y in zip(images, labels, strict=True)]
    about = {"data": "digits", "model": "CNN", "method": method, **options}
    about["classes"] = [str(n) for n in range(10)]
    summary = jxp.run(explain, params, examples, out, key=jax.random.key(0), configuration=about)
    print(f"{summary.done} of {summary.examples} digits explained, {summary.failed} failed")
    print(f"page: {report.page(out, limit=len(examples))}")


if __name__ == "__main__":
    cyclopts.run(main)
