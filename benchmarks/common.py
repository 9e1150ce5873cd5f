"""What the benchmarks share: a model, its sentences, paired timing, and rows to print."""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxplain as jxp
from jaxplain import bench
from jaxplain.models import TextModel
from jaxplain.run.sources import TextSource, read_texts
from jaxplain.run.text import explain_text

WARM, TIMED = 0.3, 0.2  # seconds; OpenMP's threads wait actively for up to 0.2


def parse(description: str, **defaults: Any) -> argparse.Namespace:
    """Options of a benchmark; each default gives the option its type."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


def sst2() -> Path:
    """The official SST-2 development file, which is not ours to ship."""
    folder = os.environ.get("JAXPLAIN_DATA")
    if not folder:
        sys.exit("set JAXPLAIN_DATA to a folder that holds sst2/dev.tsv")
    return Path(folder) / "sst2" / "dev.tsv"


def padded(model: TextModel, rows: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and masks `[N, T]` of rows of tokens."""
    mask = np.arange(max(map(len, rows)))[None, :] < np.array([len(r) for r in rows])[:, None]
    ids = np.full(mask.shape, model.pad_id, np.int32)
    ids[mask] = np.concatenate(rows)
    return ids, mask


def middling(model: TextModel, count: int) -> tuple:
    """Embeddings `[N, T, D]` of SST-2 sentences of middling length, masks, predicted classes."""
    rows = sorted((model.tokenize(text).ids for text in read_texts(sst2()).texts), key=len)
    ids, mask = map(jax.numpy.asarray, padded(model, rows[(len(rows) - count) // 2 :][:count]))
    x = jax.vmap(model.embed, (None, 0))(model.params, ids)
    logits = jax.vmap(model.score, (None, 0, 0))(model.params, x, mask)
    return x, mask, logits.argmax(-1)


def text_job(model: TextModel, path: Path, steps: int, limit: int, copies: int = 1):
    """Source and explain function of integrated gradients on the predicted class's logit."""
    read = read_texts(path)
    source = TextSource(read.texts[:limit] * copies, None, model)
    method = partial(jxp.integrated_gradients, steps=steps)
    return source, explain_text(model, method, baseline="zeros")


def paired(
    sides: Sequence[Callable[[], Any]], repeats: int, sustained: bool = False
) -> list[list[float]]:
    """Seconds of each side, taken in turns so that a drift of the machine hits all alike.

    With `sustained`, a turn is calls for 0.3 s that do not count, and the average of those for
    another 0.2 s: another framework's threads keep a core busy for some time while they wait for
    work, caches are its own, and threads that slept are slow to wake.
    """
    for side in sides:
        jax.block_until_ready(side())
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, mine in zip(sides, seconds, strict=True):
            if sustained:
                bench.turn(side, WARM)
            mine.append(bench.turn(side, TIMED if sustained else 0))
    return seconds


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median over turns of a's time over b's time in the same turn."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def report(name: str, bound: str, ok: bool, **values: Any) -> None:
    """Print one JSON row; a figure that misses its bound ends the benchmark with status 1."""
    row = {"benchmark": name} | {
        k: float(f"{v:.5g}") if isinstance(v, float | np.floating) else v for k, v in values.items()
    }
    row |= {
        "bound": bound,
        "ok": bool(ok),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(row), flush=True)
    if not ok:
        sys.exit(1)
