"""What methods cost over models, batches, lengths and steps, and how near that is to the limit.

    python -m benchmarks.throughput --models transformer,lstm,cnn
    python -m benchmarks.throughput --models minilm,bert_base,bert_large --batch 4 --length 128 --steps 8
    python -m benchmarks.throughput --models resnet50 --batch 4 --length 224 --steps 8
    python -m benchmarks.throughput --models bert_large --batch 64 --length 128 --dtype bfloat16

A row a method: examples per second, multiples of one value_and_grad on the same batch, seconds to
compile, and mebibytes of the program. Bundled models have their weights; the others have the sizes
of their names and random weights (`length` is the side of a ResNet's images). The share of the
limit is the gradient's floating-point operations, as XLA counts them, in the time of a gradient, or
in that of integrated gradients' `steps` of them, over what one large matrix product reaches in the
same process and number format. `--precision highest` keeps float32 products from being rounded to
fewer digits where a device would do so by default.
"""  # noqa: E501

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.common import parse, report
from jaxplain import bench, models
from jaxplain.models.bert_encoder import Bert, BertConfig

SIZES: Mapping[str, tuple[int, int, int, int]] = MappingProxyType(  # width, layers, heads, inner
    {
        "bert_mini": (256, 4, 4, 1024),
        "minilm": (384, 6, 12, 1536),
        "bert_base": (768, 12, 12, 3072),
        "bert_large": (1024, 24, 16, 4096),
    }
)
VOCABULARY = 1000  # rows of the table of words: it takes no part in what is timed
STAGES = (64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)  # of ResNet-50: width, blocks, stride


class Bottleneck(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.BatchNorm(use_running_average=True)
        y = nn.relu(norm()(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(nn.Conv(self.width, (3, 3), strides, use_bias=False)(y)))
        y = norm()(nn.Conv(4 * self.width, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm()(nn.Conv(4 * self.width, (1, 1), strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """He, Zhang, Ren, Sun, Deep Residual Learning, 2016, https://arxiv.org/abs/1512.03385"""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), (2, 2), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for width, blocks, stride in STAGES:
            for block in range(blocks):
                x = Bottleneck(width, stride if block == 0 else 1)(x)
        return nn.Dense(1000)(x.mean((-3, -2)))


def bert_task(name: str, batch: int, length: int) -> bench.Task:
    width, layers, heads, inner = SIZES[name]
    config = BertConfig(VOCABULARY, width, layers, heads, inner, "gelu", 1e-12, 512, 2, "mean", 2)
    x = jax.random.normal(jax.random.key(0), (batch, length, width))
    mask = jnp.ones((batch, length), bool)
    params = jax.jit(Bert(config).init)(jax.random.key(1), x[0], mask[0])["params"]
    part = lambda n: (
        lambda params, x, mask: jnp.asarray(
            Bert(config).apply({"params": params}, x, mask)[n][-1]  # logits, and states
        )
    )
    score, state = part(0), part(1)
    return bench.Task(score, state, params, x, mask)


def image_task(batch: int, side: int) -> bench.Task:
    x = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    variables = jax.jit(ResNet50().init)(jax.random.key(1), x[0])
    score = lambda variables, x, mask: jnp.asarray(ResNet50().apply(variables, x))[-1]
    return bench.Task(score, None, variables, x, jnp.ones((batch, side), bool))


def narrow(task: bench.Task, dtype: Any) -> bench.Task:
    """The same model with its parameters and what enters it in another format; scores float32."""
    cast = lambda tree: jax.tree.map(lambda v: v.astype(dtype), tree)
    score = lambda params, x, mask: task.score(params, x.astype(dtype), mask).astype(jnp.float32)
    return task._replace(score=score, state=None, params=cast(task.params))


def task_of(name: str, batch: int, length: int) -> bench.Task:
    if name in SIZES:
        return bert_task(name, batch, length)
    if name == "resnet50":
        return image_task(batch, length)
    return bench.text_task(models.load(name), batch, length)


def main() -> None:
    options = parse(
        __doc__ or "", models="transformer,lstm,cnn", batch=32, length=24, steps=32, repeats=5,
        methods="", dtype="float32", precision="default", chunk=1,
    )  # fmt: skip
    dtype = jnp.dtype(options.dtype)
    jax.config.update("jax_default_matmul_precision", options.precision)
    limit = bench.matrix_rate(dtype, repeats=options.repeats)
    for name in options.models.split(","):
        task = task_of(name, options.batch, options.length)
        if dtype != jnp.float32:
            task = narrow(task, dtype)
        wanted = [w for w in options.methods.split(",") if w]
        every = bench.methods(options.steps, chunk=options.chunk)
        chosen = {n: m for n, m in every.items() if not wanted or n.split(",")[0] in wanted}
        if wanted and not chosen:
            sys.exit(f"--methods takes: {'; '.join(every)}")
        operations = bench.operations(task)
        for cost in bench.costs(task, chosen, repeats=options.repeats):
            many = {
                bench.GRADIENT: 1,
                f"integrated_gradients, {options.steps} steps": options.steps,
            }
            share = None
            if operations and cost.method in many and name != "lstm":  # its loop is counted once
                share = operations * many[cost.method] / cost.seconds / limit
            report(
                "throughput",
                "none",
                True,
                model=name,
                parameters=int(sum(np.size(v) for v in jax.tree.leaves(task.params))),
                batch=options.batch,
                length=options.length,
                dtype=options.dtype,
                precision=options.precision,
                chunk=options.chunk,
                **cost._asdict(),
                gflop_per_gradient=None if operations is None else operations / 1e9,
                product_gflop_per_s=limit / 1e9,
                share_of_limit=share,
            )


if __name__ == "__main__":
    main()
