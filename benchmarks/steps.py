"""What integrated gradients costs, in gradients: against `steps` bare value_and_grad calls.

Both sides get the same batch of sentences, padded to one length, on the same parameters; the bare
side is one compiled `vmap(value_and_grad)`, called `steps` times.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxplain as jxp
from benchmarks.common import median_ratio, paired, parse, report
from jaxplain import models

BOUND = 1.05


def main() -> None:
    options = parse(__doc__ or "", model="transformer", batch=32, length=24, steps=32, repeats=7)
    model = models.load(options.model)
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(5, 1000, (options.batch, options.length)), jnp.int32)
    mask = jnp.ones((options.batch, options.length), bool)
    x = jax.vmap(model.embed, (None, 0))(model.params, ids)

    def scalar(params, x, mask):
        return model.score(params, x, mask)[1]

    def explain(params, x, mask):
        return jxp.integrated_gradients(
            partial(lambda x: scalar(params, x, mask)), x, steps=options.steps
        )

    gradient = jax.jit(jax.vmap(jax.value_and_grad(scalar, argnums=1), (None, 0, 0)))
    ours = jax.jit(jax.vmap(explain, (None, 0, 0)))

    def bare():
        for _ in range(options.steps):
            out = gradient(model.params, x, mask)
            jax.block_until_ready(out)
        return out

    a, b = paired([lambda: ours(model.params, x, mask), bare], options.repeats)
    ratio = median_ratio(a, b)
    report(
        "steps",
        f"ratio <= {BOUND}",
        ratio <= BOUND,
        model=model.name,
        batch=options.batch,
        length=options.length,
        steps=options.steps,
        integrated_gradients_s=float(np.median(a)),
        bare_gradients_s=float(np.median(b)),
        ratio=ratio,
    )


if __name__ == "__main__":
    main()
