"""What `perturbation` times: sentences and a table, both sides of each comparison."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import middling, paired
from jaxplain import models
from jaxplain.models import TextModel

FORWARD = 1e-5  # by how much the float32 logits of both sides may differ


class Job(NamedTuple):
    """A batch, one score of each example, and who plays."""

    score: Callable[[Any, Any, Any], Any]  # params, what is known of an example, x -> []
    params: Any
    known: Any  # [B, ...] each leaf
    x: Any  # [B, ...]
    groups: np.ndarray | None


class Sentences(NamedTuple):
    model: TextModel
    x: Any  # [B, T, D]
    mask: Any  # [B, T]
    target: Any  # [B]

    def job(self) -> Job:
        score = lambda params, known, x: self.model.score(params, x, known[0])[known[1]]
        groups = np.arange(self.x.shape[1])[:, None]
        return Job(score, self.model.params, (self.mask, self.target), self.x, groups)


def sentences(count: int) -> Sentences:
    """Sentences of middling length under the bundled CNN, padded to the longest of them."""
    model = models.load("cnn")
    return Sentences(model, *middling(model, count))


def table(count: int, background: int, hidden: int) -> tuple[Job, np.ndarray]:
    """A network of two hidden layers with random weights, 20 columns, and a background set."""
    draw = np.random.default_rng(0)
    shapes = (20, hidden), (hidden, hidden), (hidden, 1)
    params = [jnp.asarray(draw.normal(size=s) * (2 / s[0]) ** 0.5, jnp.float32) for s in shapes]

    def score(params, known, x):
        for kernel in params[:-1]:
            x = jax.nn.relu(x @ kernel)
        return (x @ params[-1])[0]

    rows = draw.normal(size=(count + background, 20)).astype("f4")
    return Job(score, params, (), rows[:count], None), rows[count:]


def program(job: Job, method: Callable, **settings: Any) -> Callable:
    """`(params, baselines, known, x, key) -> attribution` of the batch, jitted."""

    def one(params, baselines, known, x, key):
        given = settings if baselines is None else settings | {"baselines": baselines}
        f = lambda x: job.score(params, known, x)
        return method(f, x, key=key, groups=job.groups, **given)

    return jax.jit(jax.vmap(one, (None, None, 0, 0, 0)))


def arguments(job: Job, baselines: Any = None, seed: int = 0) -> tuple:
    keys = jax.random.split(jax.random.key(seed), len(job.x))
    return job.params, baselines, job.known, job.x, keys


def explain(job: Job, method: Callable, *, baselines: Any = None, **settings: Any) -> Callable:
    """The batch explained, as a function of a seed."""
    batch = program(job, method, **settings)
    return lambda seed=0: batch(*arguments(job, baselines, seed))


def compiled(job: Job, method: Callable, **settings: Any) -> Any:
    return program(job, method, **settings).lower(*arguments(job)).compile()


def need(*names: str) -> list[Any]:
    """Modules of the other side."""
    try:
        return [__import__(name, fromlist=["_"]) for name in names]
    except ImportError as error:
        sys.exit(f"{error}: pip install torch==2.13.0 captum==0.9.0 shap==0.51.0")


def torch_network(params: Any) -> Any:
    """The bundled CNN with its weights: `(x [N, T, D], mask [N, T]) -> [N, C]`."""
    (torch,) = need("torch")
    tensor = lambda value: torch.tensor(np.array(value))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.windows = torch.nn.ModuleList()
            for name, one in sorted(params["encoder"].items()):
                size, width, filters = one["kernel"].shape
                conv = torch.nn.Conv1d(width, filters, size)
                conv.weight.data = tensor(one["kernel"].transpose(2, 1, 0))
                conv.bias.data = tensor(one["bias"])
                assert name == f"window_{size}"
                self.windows.append(conv)
            self.head = torch.nn.Linear(*params["head"]["kernel"].shape)
            self.head.weight.data = tensor(params["head"]["kernel"].T)
            self.head.bias.data = tensor(params["head"]["bias"])

        def forward(self, x, mask):
            x = (x * mask[:, :, None]).transpose(1, 2)
            maps = []
            for conv in self.windows:
                (size,) = conv.kernel_size
                maps.append(conv(torch.nn.functional.pad(x, ((size - 1) // 2, size // 2))))
            last = torch.relu(torch.cat(maps, dim=1))
            return self.head(last.masked_fill(~mask[:, None], -torch.inf).amax(-1))

    return Network().eval()


class Captum(NamedTuple):
    """Its side of a batch: `forward()`, and `attribute(name, **settings)`, scores `[B, T]`."""

    forward: Callable[[], Any]
    attribute: Callable[..., Any]
    seed: Callable[[int], Any]
    threads: int
    difference: float  # of its logits to ours


def captum(batch: Sentences, threads: int) -> Captum:
    torch, attr = need("torch", "captum.attr")
    torch.set_num_threads(threads)
    network = torch_network(batch.model.params)
    x, mask = torch.tensor(np.array(batch.x)), torch.tensor(np.array(batch.mask))
    target = torch.tensor(np.array(batch.target)).long()
    # It broadcasts, which makes what is added up after each call smaller.
    groups = torch.arange(x.shape[1])[None, :, None]

    def attribute(name: str, **settings: Any) -> Any:
        method = getattr(attr, name)(network)
        found = method.attribute(
            x, target=target, additional_forward_args=mask, feature_mask=groups, **settings
        )
        return found[:, :, 0].numpy()

    def forward():
        with torch.inference_mode():
            return network(x.repeat(16, 1, 1), mask.repeat(16, 1)).numpy()

    ours = jax.vmap(batch.model.score, (None, 0, 0))(batch.model.params, batch.x, batch.mask)
    difference = float(np.abs(forward()[: len(x)] - np.asarray(ours)).max())
    if not difference <= FORWARD:
        sys.exit(f"the two sides' logits differ by {difference:.1e}: nothing to compare")
    return Captum(forward, attribute, torch.manual_seed, torch.get_num_threads(), difference)


def shap_explainer(job: Job, background: np.ndarray, samples: int, rows: int) -> Callable:
    """Its values `[B, M]` as a function of a seed; the model is jitted, `rows` of them at once.

    With groups, its features are whether each group is there, and what is not there is 0.
    """
    (shap,) = need("shap")
    sizes = 1, len(background), samples * len(background)  # of the calls that it makes, at most
    x = np.asarray(job.x)

    @jax.jit
    def score(params, known, x, inputs):
        def one(z):
            given = z if job.groups is None else x * z[job.groups]
            return job.score(params, known, given)

        return jax.lax.map(one, inputs, batch_size=min(rows, len(inputs)))

    def values(row: int) -> np.ndarray:
        known = jax.tree.map(lambda v: v[row], job.known)

        def model(inputs):
            size = min(n for n in sizes if n >= len(inputs))
            filled = np.zeros((size, inputs.shape[1]), np.float32)
            filled[: len(inputs)] = inputs
            return np.asarray(score(job.params, known, x[row], filled))[: len(inputs)]

        explained = x[row] if job.groups is None else np.ones(len(job.groups))
        found = shap.KernelExplainer(model, background)
        return found.shap_values(explained, nsamples=samples, l1_reg=False, silent=True)

    def batch(seed: int = 0) -> np.ndarray:
        np.random.seed(seed)  # which is where it takes its numbers from
        return np.stack([values(row) for row in range(len(x))])

    return batch


def best(calls: Mapping[Any, Callable[[], Any]]) -> Any:
    """The setting whose calls take the least time."""
    sides = list(calls.values())
    medians = [float(np.median(seconds)) for seconds in paired(sides, 3, sustained=True)]
    return list(calls)[int(np.argmin(medians))]


def apart(mine: list[np.ndarray], theirs: list[np.ndarray]) -> tuple[float, float, float]:
    """From runs with several seeds, root mean squares: of the difference of both means in standard
    errors, which is about 1 where both sides mean the same; and of each side's error of one run.
    Infinite where nothing varies with its seed, or what does not vary differs."""
    means = [np.mean(runs, axis=0, dtype=np.float64) for runs in (mine, theirs)]
    spread = [np.var(runs, axis=0, ddof=1, dtype=np.float64) for runs in (mine, theirs)]
    # 1e-6 for rounding, where nothing is random: padding, or a player that adds the same to all.
    error = np.sqrt(spread[0] / len(mine) + spread[1] / len(theirs) + 1e-12)
    away = (means[0] - means[1]) / error
    counted = error > 2e-6
    if not counted.any() or np.abs(away[~counted]).max(initial=0) > 10:
        away, counted = np.full(1, np.inf), np.ones(1, bool)
    one, other = (float(np.sqrt(s.mean())) for s in spread)
    return float(np.sqrt(np.mean(away[counted] ** 2))), one, other
