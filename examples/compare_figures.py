"""The figures of `examples.compare_models`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from examples.compare_reading import PLACES, Reading

MODELS = ("#1b6ca8", "#d9822b", "#3a8f5c", "#8e5ea2", "#666666")
GROUPS: Mapping[str, dict[str, Any]] = {
    "positive words": dict(color="#d9822b"),
    "negative words": dict(color="#1b6ca8"),
    "other words": dict(color="#666666"),
    "function words": dict(color="#3a8f5c"),
    "punctuation": dict(color="#b0a030"),
    "[CLS]": dict(color="#8e5ea2", linestyle="--"),
    "[SEP]": dict(color="#8e5ea2", linestyle=":"),
}


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")  # no window
    from matplotlib import pyplot as plt

    return plt


def line(axis: Any, x: Any, values: np.ndarray, **style: Any) -> None:
    """Mean over sentences of `[S, N]` where there are some, with bars of one standard error."""
    count = np.isfinite(values).sum(axis=0)
    there = count > 0
    if there.any():
        x, values = np.asarray(x)[there], values[:, there]
        error = np.nanstd(values, axis=0) / np.sqrt(count[there])
        center = np.nanmean(values, axis=0)
        axis.errorbar(x, center, error, marker="o", markersize=3, lw=1.3, **style)


def tidy(axis: Any, title: str, x: str, y: str = "") -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def overview(path: Path, by: Mapping[str, Reading], shares: Mapping[str, np.ndarray]) -> None:
    """Groups of words by layer for each model; place, evenness, and concepts of all models."""
    plt = pyplot()
    columns = max(len(by), 4)
    figure, axes = plt.subplots(
        2, columns, figsize=(2.7 * columns, 5.6), layout="constrained", squeeze=False
    )
    for axis, (name, r) in zip(axes[0], by.items(), strict=False):
        for group, style in GROUPS.items():
            line(axis, r.layers, r.kept[group], label=group, **style)
        axis.set_xticks(r.layers)
        tidy(axis, name, "layer", "kept, nats per dimension" if axis is axes[0, 0] else "")
    named = {
        name: handle
        for axis in axes[0, : len(by)]
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    style = dict(fontsize=8, frameon=False, ncols=len(GROUPS))
    figure.legend(named.values(), named.keys(), loc="outside upper center", **style)
    below = axes[1]
    for (name, r), color in zip(by.items(), MODELS, strict=False):
        look = dict(color=color, label=name)
        deep = np.array(r.layers) / max(r.layers[-1], 1)
        places = np.stack([r.kept[place][:, -1] for place in PLACES], axis=1)
        line(below[0], range(5), places - r.kept["all words"][:, -1:], **look)
        line(below[1], deep, r.spread, **look)
        line(below[2], deep, r.neighbours, **look)
        below[3].plot(deep, shares[name], marker="o", markersize=3, lw=1.3, **look)
    below[0].axhline(0, color="#999", lw=0.6)
    below[0].set_xticks(range(5), ["first", "", "middle", "", "last"])
    below[3].set_yscale("log")
    ticks = [k * 10.0**power for power in range(-6, 4) for k in (1, 2, 5)]
    low, high = below[3].get_ylim()
    shown = [tick for tick in ticks if low <= tick <= high]
    below[3].set_yticks(shown, [f"{tick:g}" for tick in shown])
    below[3].yaxis.set_minor_formatter("")
    tidy(
        below[0], "by place, last layer", "fifth of the sentence", "kept, less the sentence's mean"
    )
    share = "layer, as a share of all"
    tidy(below[1], "how targeted", share, "s.d. over a sentence's words, nats")
    tidy(below[2], "how alike neighbours are", share, "correlation of neighbouring words")
    tidy(below[3], "information about concepts", share, "share of the first layer's")
    figure.legend(*below[1].get_legend_handles_labels(), loc="outside lower center", **style)
    for axis in (*axes[0, len(by) :], *below[4:]):
        axis.set_visible(False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def sentence(path: Path, by: Mapping[str, Reading]) -> None:
    """One sentence's words by layers, for each model from its least to its most."""
    plt = pyplot()
    heights = [len(r.layers) + 1.5 for r in by.values()]
    figure, axes = plt.subplots(
        len(by), 1, figsize=(8, 0.36 * sum(heights)), layout="constrained", squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    for axis, (name, r) in zip(axes[:, 0], by.items(), strict=True):
        pieces, kept = r.example
        shown = axis.imshow(kept, cmap="Oranges", aspect="auto")
        axis.set_xticks(range(len(pieces)), pieces, fontsize=7.5)
        axis.set_yticks(range(len(r.layers)), list(map(str, r.layers)), fontsize=7)
        axis.set_ylabel(f"{name}: layer", fontsize=8)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        bar = figure.colorbar(shown, ax=axis, aspect=10, pad=0.01)
        bar.ax.tick_params(labelsize=6.5, length=2)
        bar.outline.set_visible(False)
    title = "kept of each word, nats per dimension, from each model's least to its most"
    axes[0, 0].set_title(title, fontsize=9)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw(
    out: Path, by: Mapping[str, Reading], shares: Mapping[str, np.ndarray]
) -> tuple[Path, Path]:
    """Write both figures."""
    paths = out / "models.png", out / "sentence.png"
    overview(paths[0], by, shares)
    sentence(paths[1], by)
    return paths
