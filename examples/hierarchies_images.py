"""Which strokes make a digit: hierarchies of 20 held-out digits under a small CNN.

    JAXPLAIN_DATA=path/to/data python -m examples.hierarchies_images
    python -m examples.hierarchies_images --tile 1

trains the CNN on 8,000 of the 10,000 MNIST images below JAXPLAIN_DATA
(`mnist/t10k-images-idx3-ubyte.gz`), or on scikit-learn's digits where it is not set, and joins
tiles of pixels to groups by agglomerative contextual decomposition: what each group adds to the
predicted digit's score over that of the runner-up. It prints a summary, and writes a page with
every level of every digit, and the trees in JSON.

References:
    Singh, Murdoch, Yu, "Hierarchical interpretations for neural network predictions", 2019.
    https://arxiv.org/abs/1806.05337
"""

import gzip
import json
import os
import sys
import time
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
from jaxplain.hierarchy import (
    agglomerate,
    class_difference,
    expand,
    members,
    to_tree,
    touching,
)
from jaxplain.report.levels import image_levels_html


class CNN(nn.Module):
    @nn.compact
    def __call__(self, image):  # [H, W, 1] -> [10]
        for features in (16, 32):
            image = nn.relu(nn.Conv(features, (3, 3))(image))
            image = nn.max_pool(image, (2, 2), strides=(2, 2))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(image.reshape(-1))))


def train(model, images, labels, *, epochs, batch=64):
    optimiser = optax.adam(2e-3)

    def loss(params, images, labels):
        logits = jax.vmap(model.apply, (None, 0))(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # A loop in Python: convolutions in a compiled one are many times slower on CPUs.
    @jax.jit
    def step(params, moments, images, labels):
        updates, moments = optimiser.update(jax.grad(loss)(params, images, labels), moments)
        return optax.apply_updates(params, updates), moments

    params = model.init(jax.random.key(0), images[0])
    moments = optimiser.init(params)
    for epoch in range(epochs):
        rows = np.random.default_rng(epoch).permutation(len(images))
        for some in rows[: len(rows) // batch * batch].reshape(-1, batch):
            params, moments = step(params, moments, images[some], labels[some])
    return params


def digits() -> tuple[str, np.ndarray, np.ndarray]:
    """Images `[N, H, W, 1]` from 0 to 1, and labels."""
    home = os.environ.get("JAXPLAIN_DATA")
    if not home:
        images, labels = load_digits(return_X_y=True)
        return "scikit-learn's digits", images.reshape(-1, 8, 8, 1).astype("f4") / 16, labels
    folder = Path(home) / "mnist"
    files = [folder / f"t10k-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    if absent := [str(file) for file in files if not file.is_file()]:
        sys.exit(f"not found: {', '.join(absent)}: unset JAXPLAIN_DATA to take smaller digits")
    images, labels = (  # after headers of 16 and 8 bytes
        np.frombuffer(gzip.decompress(file.read_bytes()), "u1", offset=offset)
        for file, offset in zip(files, (16, 8), strict=True)
    )
    return "MNIST", images.reshape(-1, 28, 28, 1).astype("f4") / 255, labels.astype(int)


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem}
h2{font-size:1rem;margin:2rem 0 .5rem}"""


def main(
    *,
    out: Path = Path("runs/hierarchies_images"),
    count: int = 20,
    tile: int | None = None,
    epochs: int | None = None,
    most: int = 8000,
    percentile: float = 95.0,
) -> None:
    """Train, make trees of held-out digits, and write a page.

    Args:
        out: the folder for the page and the trees.
        count: how many digits get a tree.
        tile: pixels a side of a unit; 2 for MNIST, 1 for smaller images.
        epochs: passes over the training images; 2 for MNIST, 20 for smaller images.
        most: images to train on.
        percentile: of the queue that a level selects.
    """
    name, images, labels = digits()
    size = images.shape[1]
    tile = (2 if size > 8 else 1) if tile is None else tile
    epochs = (2 if size > 8 else 20) if epochs is None else epochs
    began = time.monotonic()
    rows = np.random.default_rng(0).permutation(len(images))
    learn = min(most, 4 * len(rows) // 5)
    test = rows[4 * len(rows) // 5 :]
    model: Any = CNN()
    params = train(model, images[rows[:learn]], labels[rows[:learn]], epochs=epochs)
    jax.block_until_ready(params)
    seconds = time.monotonic() - began
    logits = jax.jit(jax.vmap(model.apply, (None, 0)))(params, images[test])
    accuracy = np.mean(np.argmax(logits, -1) == labels[test])
    print(
        f"{name}: trained on {learn} images in {seconds:.1f} s, "
        f"test accuracy {accuracy:.1%} on {len(test)}"
    )

    side = -(-size // tile)
    units = np.arange(side * side).reshape(side, side)
    units = units.repeat(tile, 0).repeat(tile, 1)[:size, :size]
    touch = touching(units)

    def explain(params, example, key):
        image = example["image"]
        f = lambda image: model.apply(params, image)
        logits = f(image)
        other, best = jnp.argsort(logits)[-2:]
        # Black tiles are zeros, which add nothing: they would all join at once.
        ink = jax.ops.segment_max(image.reshape(-1), units.reshape(-1), side * side) > 0

        def score(masks):
            masks = expand(masks, units[..., None])
            split = jxp.group_scores(f, image, masks, rules=jxp.CD_ACD)
            return class_difference(split.relevant, best, other)

        tree = agglomerate(score, touch, valid=ink, percentile=percentile, merge=True)
        classes = dict(best=best, other=other, logits=logits)
        return dict(tree=tree, image=image, ink=ink, whole=score(ink[None])[0], **classes)

    examples = [{"image": images[row], "label": str(labels[row])} for row in test[:count]]
    about = dict(data=name, tile=tile, epochs=epochs, most=most, percentile=percentile)
    summary = jxp.run(
        explain,
        params,
        examples,
        out,
        key=jax.random.key(0),
        configuration=about,
        overwrite=True,
    )

    body, written, groups, covered, gaps, rest = [], [], [], 0, [], []
    for record, example in zip(jxp.load(out), examples, strict=True):
        result, label = record.result, example["label"]
        tree, logits = result["tree"], result["logits"]
        best, other = int(result["best"]), int(result["other"])
        root = int(tree.count) - 1
        groups.append(int(tree.count))
        covered += bool(np.array_equal(members(tree)[root], result["ink"]))
        gaps.append(abs(float(tree.scores[root] - result["whole"])))
        rest.append(float(logits[best] - logits[other] - tree.scores[root]))
        pictures = image_levels_html(tree, units, image=example["image"])
        body.append(f"<h2>{best} rather than {other}, labelled {label}</h2>{pictures}")
        nodes = to_tree(tree)
        del nodes["left"]  # the black tiles
        note = dict(label=label, predicted=str(best), other=str(other), logits=logits.tolist())
        written.append(note | nodes)
    (out / "trees.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    head = f'<!doctype html><meta charset="utf-8"><title>Hierarchies</title><style>{STYLE}</style>'
    (out / "page.html").write_text(head + "\n".join(body), encoding="utf-8")
    print(
        f"{count} trees, {summary.seconds:.1f} s: {min(groups)} to {max(groups)} groups; one group "
        f"covers the ink in {covered}; its score is that of all the ink to {max(gaps):.1g}, and "
        f"the difference of the two logits to {max(map(abs, rest)):.1g}\n"
        f"page: {out / 'page.html'}, trees: {out / 'trees.json'}"
    )


if __name__ == "__main__":
    cyclopts.run(main)
