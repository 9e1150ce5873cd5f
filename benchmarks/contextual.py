"""Contextual decomposition against the published package, results equal in the same run.

    pip install torch==2.13.0 scipy scikit-image tqdm && pip install --no-deps acd==0.0.2

`tiles`: 196 tiles of 2 x 2 pixels of one digit, on the package's own MNIST network (weights from
acd/acd_mnist_oracle.npz below `JAXPLAIN_DATA`), by its `get_scores_2d`. `spans`: every span of a
sentence on an LSTM, by a loop over its `cd_text`. `hierarchy`: the agglomeration of that sentence,
by its `agg_1d.agglomerate`. A turn of ours is 8 calls. The published side runs without autograd's
graph, which it would build.

`tiles_cost` and `spans_cost`: many groups of one example at once, against a forward pass of as
many examples, both jitted.
"""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxplain as jxp
from benchmarks.common import median_ratio, paired, parse, report
from jaxplain.hierarchy import (
    PUBLISHED_TEXT,
    agglomerate,
    chain,
    class_difference,
    components_at,
)
from tests.contextual_networks import lstm, mnist

TIMES = {"tiles": 25, "spans": 25, "hierarchy": 20}
PASSES = 1.5
CALLS = 8  # of ours in a turn: theirs makes hundreds, of which the first ones, cold, count little
LARGEST = 1e-5  # difference of two float32 scores, of the largest score


def mnist_job() -> tuple[dict, np.ndarray, np.ndarray]:
    """The network's parameters, a digit `[1, 28, 28]` without ties, tiles `[196, 1, 28, 28]`."""
    folder = os.environ.get("JAXPLAIN_DATA")
    if not folder:
        sys.exit("set JAXPLAIN_DATA to a folder that holds acd/acd_mnist_oracle.npz")
    with np.load(Path(folder) / "acd" / "acd_mnist_oracle.npz") as file:
        params = {k.replace("__", "."): file[k] for k in file.files if "__" in k}
        x = file["x_noise"]
    tiles = np.kron(np.eye(196).reshape(196, 14, 14), np.ones((1, 2, 2)))
    return params, x, tiles[:, None] > 0


def lstm_job(words: int) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """Random parameters, a sentence `[T, 300]`, its spans `[G, 2]` and their masks `[G, T, 1]`."""
    hidden, embedding = 128, 300
    draw = np.random.RandomState(0)
    uniform = lambda *shape: (draw.uniform(-1, 1, shape) / hidden**0.5).astype("f4")
    params = {
        "weight_ih_l0": uniform(4 * hidden, embedding),
        "weight_hh_l0": uniform(4 * hidden, hidden),
        "bias_ih_l0": uniform(4 * hidden),
        "bias_hh_l0": uniform(4 * hidden),
        "out": 10 * uniform(2, hidden),
    }
    params["bias_ih_l0"][hidden : 2 * hidden] += 2  # a memory of some words
    x = draw.normal(size=(words, embedding)).astype("f4")
    spans = np.array([(i, j) for i in range(words) for j in range(i, words)])
    place = np.arange(words)
    masks = (spans[:, :1] <= place) & (place <= spans[:, 1:])
    return params, x, spans, masks[:, :, None]


def published_mnist(params: dict) -> Any:
    """The package's network: it looks layers up by their number."""
    import torch  # pyright: ignore
    from torch import nn  # pyright: ignore

    model = nn.Module()
    model.conv1, model.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
    model.conv2_drop = nn.Dropout2d()
    model.fc1, model.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)
    model.load_state_dict({k: torch.tensor(v) for k, v in params.items()})
    return model.eval()


def published_lstm(params: dict, x: np.ndarray) -> tuple[Any, Any]:
    """What `cd_text` and `agg_1d` read of a model and a batch; word 0 means "not in the group"."""
    import torch  # pyright: ignore
    from torch import nn  # pyright: ignore

    hidden, (words, embedding) = params["weight_hh_l0"].shape[1], x.shape
    model = nn.Module()
    model.hidden_dim = hidden
    model.lstm, model.hidden_to_label = nn.LSTM(embedding, hidden), nn.Linear(hidden, 2)
    model.embed = nn.Embedding.from_pretrained(torch.tensor(np.concatenate([0 * x[:1], x])))
    model.lstm.load_state_dict({k: torch.tensor(v) for k, v in params.items() if k != "out"})
    model.hidden_to_label.weight.data = torch.tensor(params["out"])
    return model.eval(), SimpleNamespace(text=torch.arange(1, words + 1)[:, None])


def differ(got: Any, want: Any) -> float:
    """The largest difference, in units of the largest number; ends the benchmark if it is large."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    error = float(np.abs(got - want).max() / np.abs(want).max())
    if not error <= LARGEST:
        sys.exit(f"the two sides differ by {error:.1e}: nothing to compare")
    return error


def against(name: str, ours: Callable, theirs: Callable, error: float, options: Any) -> None:
    import torch  # pyright: ignore

    a, b = paired([lambda: [ours() for _ in range(CALLS)], theirs], options.repeats)
    a = [seconds / CALLS for seconds in a]
    ratio = median_ratio(b, a)
    report(
        f"contextual {name}",
        f"times faster >= {TIMES[name]}",
        ratio >= TIMES[name],
        times_faster=ratio,
        jaxplain_s=float(np.median(a)),
        published_s=float(np.median(b)),
        largest_difference=f"{error:.1e}",
        torch_threads=torch.get_num_threads(),
    )


def scores(network: Callable, rules: Any, chunk: int) -> Callable:
    """Relevant scores `[G, C]` of many groups, jitted; parameters are an argument."""
    return jax.jit(
        lambda p, x, masks: (
            jxp.group_scores(
                lambda x: network(p, x), x, masks, rules=rules, chunk=chunk or len(masks)
            ).relevant
        )
    )


def tiles(options: Any) -> None:
    import torch  # pyright: ignore
    from acd.scores.score_funcs import get_scores_2d  # pyright: ignore

    params, x, masks = mnist_job()
    model, image = published_mnist(params), torch.tensor(x[None])
    grey = masks[:, 0].astype("f4")
    scored, p = scores(mnist, jxp.CD_ACD, options.chunk), jax.tree.map(jnp.asarray, params)
    ours = lambda: scored(p, x, masks)
    theirs = lambda: get_scores_2d(model, "cd", grey, image, model_type="mnist", device="cpu")
    against("tiles", ours, theirs, differ(ours(), theirs()), options)


def spans(options: Any) -> None:
    from acd.scores.cd import cd_text  # pyright: ignore

    params, x, ends, masks = lstm_job(options.words)
    model, batch = published_lstm(params, x)
    scored, p = scores(lstm, jxp.CD_LSTM, options.chunk), jax.tree.map(jnp.asarray, params)
    ours = lambda: scored(p, x, masks)
    theirs = lambda: np.stack([cd_text(batch, model, start, stop) for start, stop in ends])
    against("spans", ours, theirs, differ(ours(), theirs()), options)


def hierarchy(options: Any) -> None:
    import torch  # pyright: ignore
    from acd.agglomeration import agg_1d  # pyright: ignore

    params, x, _, _ = lstm_job(options.words)
    model, _ = published_lstm(params, x)
    p = jax.tree.map(jnp.asarray, params)
    touching = chain(options.words)

    @jax.jit
    def tree(p, x):
        def score(masks):
            f = lambda x: lstm(p, x)
            parts = jxp.group_scores(f, x, masks[:, :, None], rules=jxp.CD_LSTM)
            return class_difference(parts.relevant, 0, 1)

        return agglomerate(score, touching, **PUBLISHED_TEXT)

    def theirs() -> dict:
        batch = SimpleNamespace(text=torch.arange(1, options.words + 1)[:, None])
        return agg_1d.agglomerate(model, batch, 99.5, "cd", 1, 0, num_iters=25, device="cpu")

    ours = lambda: tree(p, x)
    against("hierarchy", ours, theirs, trees_differ(ours(), theirs()), options)


def trees_differ(h: Any, want: dict) -> float:
    """As `differ`, of the scores of all components at every level; the components must be equal."""
    mine, theirs = [], []
    levels = int(max(h.level.max(), h.unit_level.max()))
    if levels != len(want["comps_list"]) - 1:
        sys.exit(f"{levels} levels, and the published tree has {len(want['comps_list']) - 1}")
    for level in range(1, levels + 1):
        place, scores = components_at(h, level)
        numbers = {first: k for k, first in enumerate(np.unique(place[place >= 0]), 1)}
        found = [numbers.get(first, 0) for first in place]
        if found != list(want["comps_list"][level]):
            sys.exit(f"level {level} has other groups than the published tree")
        for number, score in want["comp_scores_list"][level].items():
            mine.append(scores[found.index(number)])
            theirs.append(score)
    return differ(mine, theirs)


def cost(name: str, network: Callable, rules: Any, job: tuple, repeats: int) -> None:
    params, x, masks = job
    ours, p = scores(network, rules, 0), jax.tree.map(jnp.asarray, params)
    batch = jnp.asarray(np.random.RandomState(1).normal(size=(len(masks), *x.shape)), x.dtype)
    forward = jax.jit(jax.vmap(network, (None, 0)))
    a, b = paired([lambda: ours(p, x, masks), lambda: forward(p, batch)], repeats)
    ratio = median_ratio(a, b)
    report(
        f"contextual {name}",
        f"forward passes <= {PASSES}",
        ratio <= PASSES,
        forward_passes=ratio,
        groups_s=float(np.median(a)),
        forward_s=float(np.median(b)),
        groups=len(masks),
    )


def tiles_cost(options: Any) -> None:
    cost("tiles_cost", mnist, jxp.CD_ACD, mnist_job(), 4 * options.repeats)


def spans_cost(options: Any) -> None:
    params, x, _, masks = lstm_job(options.words)
    cost("spans_cost", lstm, jxp.CD_LSTM, (params, x, masks), 4 * options.repeats)


TASKS = {f.__name__: f for f in (tiles, spans, hierarchy, tiles_cost, spans_cost)}


def prepare(threads: int) -> None:
    np.int = int  # pyright: ignore  # which numpy no longer has, and acd still uses
    try:
        import acd.agglomeration.agg_1d  # pyright: ignore  # noqa: F401
        import torch  # pyright: ignore
    except ImportError as error:
        sys.exit(
            f"{error}: pip install torch==2.13.0 scipy scikit-image tqdm, "
            "and pip install --no-deps acd==0.0.2"
        )
    torch.set_grad_enabled(False)
    if threads:
        torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", "All-NaN slice")  # the end of agg_1d, every time


def main() -> None:
    options = parse(__doc__ or "", task="all", words=20, chunk=64, threads=0, repeats=5)
    if options.task != "all" and options.task not in TASKS:
        sys.exit(f"--task is one of: all, {', '.join(TASKS)}")
    if not options.task.endswith("_cost"):
        prepare(options.threads)
    missed = False
    for name, task in TASKS.items():
        if options.task in ("all", name):
            try:
                task(options)
            except SystemExit as end:  # the rows that follow are still worth having
                if end.code != 1:
                    raise
                missed = True
    sys.exit(missed)


if __name__ == "__main__":
    main()
