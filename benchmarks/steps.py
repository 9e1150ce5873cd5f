"""What integrated gradients costs, in gradients: against `steps` bare value_and_grad calls.

Both sides get the same batch of sentences, padded to one length, on the same parameters; the bare
side is one compiled `vmap(value_and_grad)`, called `steps` times. `--model image` is a small
convolutional network of `length` x `length` images instead, with random weights.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxplain as jxp
from benchmarks.common import median_ratio, paired, parse, report
from jaxplain import bench, models

BOUND = 1.05


def image_task(batch: int, size: int) -> bench.Task:
    """Three convolutions, the last two with stride 2, and a linear layer, of random images."""
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 1, 16), (3, 3, 16, 32), (3, 3, 32, 32), (32, 10)]
    scaled = [rng.normal(size=s) * (2 / np.prod(s[:-1])) ** 0.5 for s in shapes]
    params = [jnp.asarray(w, jnp.float32) for w in scaled]
    x = jnp.asarray(rng.normal(size=(batch, size, size, 1)), jnp.float32)

    def score(params, x, mask):
        h = x[None]
        for kernel, stride in zip(params, (1, 2, 2), strict=False):
            axes = ("NHWC", "HWIO", "NHWC")
            h = jax.lax.conv_general_dilated(
                h, kernel, (stride, stride), "SAME", dimension_numbers=axes
            )
            h = jax.nn.relu(h)
        return (h.mean((1, 2)) @ params[-1])[0, 1]

    return bench.Task(score, None, params, x, jnp.ones((batch, size), bool))


def main() -> None:
    options = parse(__doc__ or "", model="transformer", batch=32, length=24, steps=32, repeats=7)
    if options.model == "image":
        task = image_task(options.batch, options.length)
    else:
        task = bench.text_task(models.load(options.model), options.batch, options.length)
    scalar, params, x, mask = task.score, task.params, task.x, task.mask

    def explain(params, x, mask):
        return jxp.integrated_gradients(
            partial(lambda x: scalar(params, x, mask)), x, steps=options.steps
        )

    gradient = jax.jit(jax.vmap(jax.value_and_grad(scalar, argnums=1), (None, 0, 0)))
    ours = jax.jit(jax.vmap(explain, (None, 0, 0)))

    def bare():
        for _ in range(options.steps):
            out = gradient(params, x, mask)
            jax.block_until_ready(out)
        return out

    a, b = paired([lambda: ours(params, x, mask), bare], options.repeats)
    ratio = median_ratio(a, b)
    report(
        "steps",
        f"ratio <= {BOUND}",
        ratio <= BOUND,
        model=options.model,
        batch=options.batch,
        length=options.length,
        steps=options.steps,
        integrated_gradients_s=float(np.median(a)),
        bare_gradients_s=float(np.median(b)),
        ratio=ratio,
    )


if __name__ == "__main__":
    main()
