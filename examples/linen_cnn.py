"""A CNN as people write them in Flax linen, explained without a change to it.

    python -m examples.linen_cnn --out runs/linen_cnn

The model takes batches, has BatchNorm and dropout behind a `train` flag, and returns a dict. That
is four things between it and a function of one example; `from_linen` takes them away:

    model = jxp.models.from_linen(module, variables, select="logits", per_example=True, train=False)
    model.f(model.params, image)    # [8, 8, 1] -> [10]
    h, g = model.cut("body/conv2")  # in two, at a submodule: for methods of layers

Then it is a dataset's run, as with any function, and a few figures: the pixels' scores, and
Grad-CAM at the last convolution.
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


class Body(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        x = images
        for layer, features in ((1, 8), (2, 16)):
            x = nn.Conv(features, (3, 3), name=f"conv{layer}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"norm{layer}")(x))
        return nn.max_pool(x, (2, 2), strides=(2, 2))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):  # [B, 8, 8, 1] -> [B, 10] and [B, 32]
        x = Body(name="body")(images, train)
        x = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return {"logits": nn.Dense(10)(x), "features": x}


def train(module, images, labels, *, epochs, batch=64):
    """Variables of the trained module: parameters, and BatchNorm's statistics."""
    variables = jax.jit(lambda key: module.init(key, images[:1], train=False))(jax.random.key(0))
    optimiser = optax.adam(4e-3)

    def loss(params, statistics, rows, key):
        out, changed = module.apply(
            {"params": params, "batch_stats": statistics},
            images[rows],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(out["logits"], labels[rows])
        return losses.mean(), changed["batch_stats"]

    @jax.jit
    def step(params, statistics, moments, rows, key):
        slope, statistics = jax.grad(loss, has_aux=True)(params, statistics, rows, key)
        updates, moments = optimiser.update(slope, moments)
        return optax.apply_updates(params, updates), statistics, moments

    state = variables["params"], variables["batch_stats"], optimiser.init(variables["params"])
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(images))
        for number in range(len(order) // batch):
            rows = order[number * batch : (number + 1) * batch]
            state = step(*state, rows, jax.random.fold_in(jax.random.key(epoch), number))
    return {"params": state[0], "batch_stats": state[1]}


def main(*, out: Path = Path("runs/linen_cnn"), epochs: int = 12, limit: int = 500):
    """Train, explain the first LIMIT images of the test set, write a page and figures."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    test = np.arange(len(images)) % 4 == 3
    module: Any = CNN()
    variables = train(module, jnp.array(images[~test]), jnp.array(labels[~test]), epochs=epochs)

    # The model as a function of one image. Its parameters stay an argument.
    model = jxp.models.from_linen(module, variables, select="logits", per_example=True, train=False)
    logits = jax.jit(jax.vmap(model.f, (None, 0)))(model.params, images[test])
    accuracy = np.mean(np.argmax(logits, -1) == labels[test])
    print(f"test accuracy {accuracy:.1%} on {test.sum()} images")

    # In two at the last convolution: h gives its 16 maps, g goes on from there.
    h, g = model.cut("body/conv2")

    def explain(params, example, key):
        image = example["image"]
        logits = model.f(params, image)
        target, second = jnp.argsort(-logits)[:2]
        # Why this digit rather than the one that comes second?
        over = lambda logits: logits[target] - logits[second]
        return dict(
            attribution=jxp.integrated_gradients(lambda x: over(model.f(params, x)), image),
            cam=jxp.grad_cam(lambda a: over(g(params, a, image)), h(params, image)).scores,
            logits=logits,
            target=target,
            other=second,
            image=image,
        )

    examples = [
        {"image": x, "label": str(y)} for x, y in zip(images[test], labels[test], strict=True)
    ][:limit]
    about = {"data": "digits", "model": "linen CNN", "method": "integrated_gradients"}
    about |= {"classes": [str(n) for n in range(10)]}
    summary = jxp.run(
        explain, model.params, examples, out, key=jax.random.key(0), configuration=about
    )
    print(f"{summary.done} of {summary.examples} digits explained, {summary.failed} failed")

    # Do both see the same? Where Grad-CAM is high, and where the pixels' scores are large.
    records = [record for record in jxp.load(out) if record.result]
    alike = []
    for record in records:
        scores, cam = record.result["attribution"].scores[..., 0], record.result["cam"]
        if cam.any():  # its sum over maps can be below 0 everywhere
            alike.append(np.corrcoef(np.abs(scores).ravel(), cam.ravel())[0, 1])
    print(f"Grad-CAM and |scores|: mean correlation {np.mean(alike):.2f} over {len(alike)} digits")

    first = records[0]
    title = "{target} rather than {other}".format(**first.result)
    jxp.plot.image(first, title=title).savefig(out / "scores.png")
    jxp.plot.image(
        first.result["cam"], first.result["image"], overlay=0.7, sign="positive", title="Grad-CAM"
    ).savefig(out / "cam.png")
    print(f"figures: {out / 'scores.png'}, {out / 'cam.png'}; page: {report.page(out)}")


if __name__ == "__main__":
    cyclopts.run(main)
