"""What units of a small CNN look for: their strongest activations, projected down to the image.

    JAXPLAIN_DATA=path/to/data python -m examples.deconvnet --out runs/deconvnet

trains three convolutions on 8,000 of the 10,000 MNIST images below JAXPLAIN_DATA
(`mnist/t10k-images-idx3-ubyte.gz`), or on scikit-learn's digits where it is not set. For each unit
it finds the nine images, of all, in which the unit is strongest somewhere, and sends each of these
activations down to the pixels with a deconvnet. It draws one figure a layer, projections beside the
pieces of the images that the units saw.

References:
    Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", 2014.
    https://arxiv.org/abs/1311.2901
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import cyclopts
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxplain as jxp
from examples.compare_figures import pyplot
from examples.hierarchies_images import digits

WIDTHS, POOL, TOP = (16, 32, 64), 2, 9
GREY = 0.85  # of a figure, and of what is beyond an image's edge


class CNN(nn.Module):
    """Three convolutions with ReLUs, maxima of 2 x 2 pixels after the first two."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, image):  # [H, W, 1] -> [10], and of each layer [h, w, units]
        states = []
        for features, size in zip(WIDTHS, self.sizes, strict=True):
            if states:
                image = nn.max_pool(image, (POOL, POOL), strides=(POOL, POOL))
            image = nn.relu(nn.Conv(features, (size, size))(image))
            states.append(image)
        return nn.Dense(10)(image.max((0, 1))), tuple(states)


class Field(NamedTuple):
    """The square of pixels that a unit at `(row, column)` sees: from `step * row + first` on."""

    step: int
    first: int
    size: int


def fields(sizes: tuple[int, ...]) -> list[Field]:
    """Of each layer."""
    found, field = [], Field(1, 0, 1)
    for size in sizes:
        if found:
            step, first, wide = field
            field = Field(POOL * step, first, wide + (POOL - 1) * step)
        step, first, wide = field
        field = Field(step, first - size // 2 * step, wide + (size - 1) * step)
        found.append(field)
    return found


def train(model, images, labels, *, epochs, batch=64):
    steps = epochs * (len(images) // batch)
    # Decay takes away what is left of the random start, which a picture of a filter would show.
    optimiser = optax.adamw(optax.cosine_decay_schedule(4e-3, steps), weight_decay=2.0)

    def loss(params, images, labels):
        logits = jax.vmap(model.apply, (None, 0))(params, images)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # A loop in Python: convolutions in a compiled one are many times slower on CPUs.
    @jax.jit
    def step(params, moments, images, labels):
        updates, moments = optimiser.update(jax.grad(loss)(params, images, labels), moments, params)
        return optax.apply_updates(params, updates), moments

    params = jax.jit(model.init)(jax.random.key(0), images[0])
    moments = optimiser.init(params)
    for epoch in range(epochs):
        rows = np.random.default_rng(epoch).permutation(len(images))
        for some in rows[: len(rows) // batch * batch].reshape(-1, batch):
            params, moments = step(params, moments, images[some], labels[some])
    return params


def strongest(model, params, images, *, batch=250):
    """Of each layer, the most that each unit reaches in each image `[N, units]`, and where
    `[N, units, 2]`; and the logits `[N, 10]`."""

    def one(params, image):
        logits, states = model.apply(params, image)
        best = []
        for state in states:
            flat = state.reshape(-1, state.shape[-1])
            place = jnp.unravel_index(flat.argmax(0), state.shape[:2])
            best.append((flat.max(0), jnp.stack(place, -1)))
        return logits, best

    run = jax.jit(jax.vmap(one, (None, 0)))
    # The last batch is filled up by its last image: one shape, one compilation.
    rows = np.minimum(np.arange(-(-len(images) // batch) * batch), len(images) - 1)
    parts = [run(params, images[some]) for some in rows.reshape(-1, batch)]
    together = lambda *parts: np.concatenate(parts)[: len(images)]
    return jax.tree.map(together, *parts)


def project(model, params, layer, images, units, places):
    """Down at the pixels `[K, H, W, 1]`, the activations of unit `units[k]` of a layer at
    `places[k]` in `images[k]`; and the activations `[K]`."""

    def one(params, image, unit, place):
        f = lambda image: model.apply(params, image)[1][layer][place[0], place[1], unit]
        found = jxp.deconvnet(f, image)
        return found.scores * found.output, found.output  # the paper starts from the unit's value

    return jax.jit(jax.vmap(one, (None, 0, 0, 0)))(params, images, units, places)


def crop(images, places, field):
    """The pixels `[K, size, size]` that units at `places` saw; NaN beyond the image's edge."""
    margin = field.size + abs(field.first)
    wide = np.pad(images[..., 0], [(0, 0), (margin,) * 2, (margin,) * 2], constant_values=np.nan)
    starts = places * field.step + field.first + margin
    return np.stack(
        [
            image[row : row + field.size, column : column + field.size]
            for image, (row, column) in zip(wide, starts, strict=True)
        ]
    )


def draw(path, title, projections, patches, names, *, across=3, dots=100):
    """Of each unit, nine projections `[9, s, s]` on one scale beside nine patches of images."""
    plt = pyplot()
    maps = [plt.get_cmap(name).with_extremes(bad=str(GREY)) for name in ("PuOr_r", "gray")]
    zoom = max(1, 56 // patches.shape[-1])  # pixels a side for one of an image: whole ones
    tile, top = zoom * patches.shape[-1] + 2, 30
    height, width = 3 * tile + 22, 6 * tile + 24
    canvas = np.full((top + -(-len(names) // across) * height, across * width, 4), GREY)
    canvas[..., 3] = 1
    figure = plt.figure(figsize=np.array(canvas.shape[1::-1]) / dots, dpi=dots)

    def write(x, y, text, size):
        figure.text(x / canvas.shape[1], 1 - y / len(canvas), text, size=size)

    write(8, 18, title, 8)
    for n, name in enumerate(names):
        row, column = top + n // across * height, 8 + n % across * width
        write(column, row + 10, name, 6)
        most = np.nanmax(np.abs(projections[n]))
        for side, pieces in enumerate((0.5 + projections[n] / (2 * most), patches[n])):
            for k, piece in enumerate(pieces):
                y = row + 14 + k // 3 * tile
                x = column + 6 * side + (3 * side + k % 3) * tile
                pixels = maps[side](np.ma.masked_invalid(piece)).repeat(zoom, 0).repeat(zoom, 1)
                canvas[y : y + tile - 2, x : x + tile - 2] = pixels
    figure.figimage(canvas)
    figure.savefig(path, dpi=dots, pil_kwargs={"optimize": True})
    plt.close(figure)


def main(
    *,
    out: Path = Path("runs/deconvnet"),
    units: int = 9,
    epochs: int | None = None,
    most: int = 8000,
) -> None:
    """Train, find the strongest activations, project them, and draw.

    Args:
        out: the folder for the figures.
        units: of a layer, at most: the first ones that are on in nine images.
        epochs: passes over the training images; 8 for MNIST, 30 for smaller images.
        most: images to train on.
    """
    name, images, labels = digits()
    small = images.shape[1] < 16
    sizes = (3, 3, 3) if small else (7, 5, 3)
    epochs = (30 if small else 8) if epochs is None else epochs
    rows = np.random.default_rng(0).permutation(len(images))
    test = rows[4 * len(rows) // 5 :]
    learn = rows[: 4 * len(rows) // 5][:most]
    began = time.monotonic()
    model: Any = CNN(sizes)
    params = jax.block_until_ready(train(model, images[learn], labels[learn], epochs=epochs))
    seconds = time.monotonic() - began
    logits, best = strongest(model, params, images)
    accuracy = np.mean(np.argmax(logits[test], -1) == labels[test])
    print(
        f"{name}: trained on {len(learn)} images in {seconds:.1f} s, "
        f"test accuracy {accuracy:.1%} on {len(test)}"
    )
    out.mkdir(parents=True, exist_ok=True)
    for layer, (field, (values, places)) in enumerate(zip(fields(sizes), best, strict=True)):
        order = np.argsort(-values, axis=0, kind="stable")[:TOP]  # [9, units]
        on = np.flatnonzero(np.take_along_axis(values, order, 0)[-1] > 0)[:units]
        chosen = order[:, on].T.reshape(-1)
        unit = np.repeat(on, TOP)
        where = places[chosen, unit]
        scores, _ = project(model, params, layer, images[chosen], unit, where)
        cut = lambda x, where=where, field=field: crop(x, where, field).reshape(
            -1, TOP, field.size, field.size
        )
        projections, patches = cut(np.asarray(scores)), cut(images[chosen])
        path = out / f"deconvnet_{layer + 1}.png"
        title = f"layer {layer + 1}: projections to {field.size} x {field.size} pixels, and images"
        draw(path, title, projections, patches, [f"unit {n}" for n in on])
        dead = np.sum(values.max(0) <= 0)
        print(f"layer {layer + 1}: {len(on)} of {values.shape[1]} units, {dead} never on: {path}")


if __name__ == "__main__":
    cyclopts.run(main)
