"""What `information` times: the sentences, both sides, and the published loop once more in JAX."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import sst2
from jaxplain import models
from jaxplain.methods.information import published_loss, word_information
from jaxplain.methods.spread import hidden_spread
from jaxplain.run.sources import read_texts

RATE = 0.1
CHECKED, LARGEST = 20, 1e-3  # steps, and the difference of their float32 losses, of the loss


class Job(NamedTuple):
    """A model with its sentences: `h(params, mask)` maps x to the layer; `batch(place)`."""

    model: Any
    scale: float
    spread: Any
    h: Callable[..., Callable]
    batch: Callable[[float], tuple]


def directory(options: Any) -> Path:
    return Path(options.model) if options.model else sst2().parent.parent / "minilm-sst2"


def prepare(options: Any) -> Job:
    model = models.load(directory(options))
    tokens = sorted((model.tokenize(t).ids for t in read_texts(sst2()).texts), key=len)
    table = model.embed(model.params, jnp.arange(int(max(map(np.max, tokens))) + 1))
    h = lambda params, mask: lambda x: model.states(params, x, mask)[options.layer]

    def padded(rows: list) -> tuple:
        mask = np.arange(max(map(len, rows)))[None, :] < np.array([len(r) for r in rows])[:, None]
        ids = np.full(mask.shape, model.pad_id, np.int32)
        ids[mask] = np.concatenate(rows)
        return jax.vmap(model.embed, (None, 0))(model.params, ids), jnp.asarray(mask)

    def batch(place: float) -> tuple:
        start = int(place * (len(tokens) - options.batch))
        return padded(tokens[start : start + options.batch])

    x, mask = padded(tokens[:: max(1, len(tokens) // 200)])
    spread = jax.jit(
        lambda params, xs: hidden_spread(
            lambda one: h(params, one["mask"])(one["x"]),
            xs,
            counted=lambda one: one["mask"][:, None],
            axes=(0,),
        )
    )(model.params, {"x": x, "mask": mask})
    return Job(model, 10 * float(np.std(np.asarray(table))), spread, h, batch)


def explain(job: Job, take: Callable = lambda found: found, **settings: Any) -> Callable:
    """What `take` takes of the word information of a batch, jitted; parameters are an argument."""

    def one(params, x, mask, key):
        found = word_information(
            job.h(params, mask), x, key=key, scale=job.scale, rate=RATE, spread=job.spread,
            mask=mask, unit_mask=mask[:, None], **settings,
        )  # fmt: skip
        return take(found)

    batch = jax.jit(jax.vmap(one, (None, 0, 0, 0)))
    return lambda x, mask, seed=0: batch(
        job.model.params, x, mask, jax.random.split(jax.random.key(seed), len(x))
    )


class Published(NamedTuple):
    """The published code on transformers' BERT: `start(x)` is an Interpreter of one sentence."""

    start: Callable
    threads: int


def published(options: Any, job: Job) -> Published:
    try:
        import torch  # pyright: ignore
        from transformers import BertModel, logging  # pyright: ignore

        if importlib.util.find_spec("matplotlib") is None:  # which it imports, and we do not draw
            sys.modules |= {k: ModuleType(k) for k in ("matplotlib", "matplotlib.pyplot")}
        sys.path.insert(0, options.published)
        from Interpreter import Interpreter  # pyright: ignore
    except ImportError as error:
        sys.exit(
            f"{error}: pip install torch==2.13.0 transformers tqdm matplotlib, and give the folder "
            "that holds Interpreter.py as --published"
        )
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bert = BertModel.from_pretrained(
        directory(options), add_pooling_layer=False, dtype=torch.float32
    )
    bert.eval().requires_grad_(False)
    bert.encoder.layer = bert.encoder.layer[: options.layer]
    h = lambda x: bert.encoder(bert.embeddings(inputs_embeds=x[None])).last_hidden_state[0]
    regularization = np.asarray(job.spread)

    def start(x):
        return Interpreter(
            torch.tensor(np.asarray(x)), h, scale=job.scale, rate=RATE,
            regularization=regularization,
        )  # fmt: skip

    return Published(start, torch.get_num_threads())


def objective(job: Job, params: Any, x: Any, mask: Any) -> Callable:
    """The published loss of `(ratio [T], noise [T, K])` for one padded sentence."""
    return lambda ratio, noise: published_loss(
        job.h(params, mask), x, ratio, noise, scale=job.scale, rate=RATE, spread=job.spread,
        mask=mask, unit_mask=mask[:, None],
    )  # fmt: skip


def trajectory(
    job: Job, steps: int, rates: Any, *, schedule: Callable = lambda lr: lr, shift: float = 0.0
) -> Callable:
    """The published loop in JAX: losses `[R, B, S]`, and the sigma `[R, B, S, T]` it would return
    after each of S steps, and its last sigma `[R, B, T]`; of R learning rates and B sentences.
    `shift` is added to the parameters that it starts from.
    """

    def one(params, x, mask, key, rate):
        loss, optimizer = objective(job, params, x, mask), optax.adam(schedule(rate))
        first, rest = jax.random.split(key)

        def step(carry, key):
            ratio, state, lowest, kept = carry
            now, gradient = jax.value_and_grad(loss)(ratio, jax.random.normal(key, x.shape))
            update, state = optimizer.update(gradient, state)
            ratio = ratio + jnp.asarray(update)
            kept = jnp.where(now < lowest, ratio, kept)
            return (ratio, state, jnp.minimum(now, lowest), kept), (now, kept)

        ratio = jax.random.normal(first, x.shape[:1]) + shift
        carry = (ratio, optimizer.init(ratio), jnp.inf, ratio)
        (last, *_), (losses, kept) = jax.lax.scan(step, carry, jax.random.split(rest, steps))
        return losses, job.scale * jax.nn.sigmoid(kept), job.scale * jax.nn.sigmoid(last)

    sentences = jax.vmap(one, (None, 0, 0, 0, None))
    every = jax.jit(jax.vmap(sentences, (None, None, None, None, 0)))
    rates = jnp.asarray(rates, jnp.float32)
    return lambda x, mask, keys: every(job.model.params, x, mask, keys, rates)


def losses_at(job: Job, draws: int = 64) -> Callable:
    """The published objective of `sigma [B, T]`, a mean over draws that all calls share: `[B]`."""

    def one(params, x, mask, sigma):
        part = jnp.where(mask, sigma / job.scale, 0.5)
        ratio = jnp.log(part) - jnp.log1p(-jnp.minimum(part, 1 - 1e-6))

        loss = objective(job, params, x, mask)
        drawn = lambda key: loss(ratio, jax.random.normal(key, x.shape))
        return jax.lax.map(drawn, jax.random.split(jax.random.key(6), draws)).mean()

    batch = jax.jit(jax.vmap(one, (None, 0, 0, 0)))
    return lambda x, mask, sigma: batch(job.model.params, x, mask, sigma)


def check(job: Job, theirs: Published) -> float:
    """The largest difference of the two loops' losses for the same draws, of the loss."""
    import torch  # pyright: ignore

    x, mask = (v[:1] for v in job.batch(0.15))
    key, words = jax.random.key(3), int(mask[0].sum())
    first, rest = jax.random.split(key)
    draws = [jax.random.normal(first, x.shape[1:2])[:, None]]
    draws += [jax.random.normal(k, x.shape[1:]) for k in jax.random.split(rest, CHECKED)]
    left, losses = iter([torch.tensor(np.asarray(d)[:words]) for d in draws]), []
    with mock.patch.object(torch, "randn", lambda *shape: next(left)):
        one = theirs.start(x[0, :words])
        forward = one.forward
        one.forward = lambda: losses.append(forward()) or losses[-1]
        one.optimize(CHECKED, lr=0.1)
    want = np.array([loss.item() for loss in losses])
    got = np.asarray(trajectory(job, CHECKED, [0.1])(x, mask, key[None])[0][0, 0])
    error = float(np.abs(got / want - 1).max())
    if not error <= LARGEST:
        sys.exit(f"the two losses differ by {error:.1e}: nothing to compare")
    return error
