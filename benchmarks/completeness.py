"""How nearly DeepLIFT's scores add up to f(x) - f(baseline): ours, Captum's and SHAP's.

    python -m benchmarks.completeness

Networks of random weights, the same in both frameworks, 64 inputs and baselines each: what every
table of modules knows (an MLP, a CNN), and what it does not (an activation that is no module or is
used twice, a layer norm, a gate, recurrent layers, a residual network, attention). A row gives the
median and the largest |sum of scores - (f(x) - f(baseline))| / |f(x) - f(baseline)|; for the peers
in float64, for ours in float64 and float32. Beside that, ours relative to the larger of |f(x)|,
|f(baseline)| and |f(x) - f(baseline)|: where the difference is a small part of f(x), float32 does
not hold it to more digits than that. How few it holds is in the row, too: `f32_function_worst` is
how far f(x) - f(baseline) in float32 is from itself in float64, of the latter, without any scores.

Then the bundled text models and a Hugging Face BERT (minilm-sst2 below `JAXPLAIN_DATA` unless
said), on 100 SST-2 sentences, against embeddings of zeros; left out without `JAXPLAIN_DATA`.

Peers need torch, captum and shap in the same environment, and are left out where those are not.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import completeness_networks as networks
from benchmarks.common import padded, parse, report, sst2
from benchmarks.information_job import directory
from jaxplain import deep_lift, models
from jaxplain.run.sources import read_texts

BOUND = {"float32": 1e-5, "float64": 1e-12}


def errors(found: Any) -> dict[str, np.ndarray]:
    """Of each example, what is missing, relative to the difference and to the larger numbers; and
    the difference.
    """
    gap, output = np.abs(np.asarray(found.gap)), np.asarray(found.output)
    difference = np.asarray(found.scores.sum(range(1, found.scores.ndim)) - found.gap)
    start = output - difference
    return {
        "difference": difference,
        "of_difference": gap / np.abs(difference),
        "of_largest": gap
        / np.maximum(np.maximum(np.abs(output), np.abs(start)), np.abs(difference)),
    }


def ours(one: Callable, params: Any, *args: Any) -> tuple[dict[str, Any], bool]:
    """Figures of `one(params, *example) -> Attribution` on a batch, in both precisions."""
    row, ok, differences = {}, True, []
    batch = jax.jit(jax.vmap(one, (None, *(0 for _ in args))))

    def cast(value: Any, dtype: str) -> jax.Array:
        value = jnp.asarray(value)
        return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value

    for dtype, bound in BOUND.items():
        error = errors(batch(*jax.tree.map(partial(cast, dtype=dtype), (params, *args))))
        short = "f" + dtype.removeprefix("float")
        row |= {
            f"{short}_median": float(np.median(error["of_difference"])),
            f"{short}_worst": float(error["of_difference"].max()),
            f"{short}_worst_of_largest": float(error["of_largest"].max()),
            f"{short}_above_bound": int((error["of_difference"] > bound).sum()),
        }
        ok &= bool(error["of_largest"].max() <= bound)
        differences.append(error["difference"])
    rounding = np.abs(differences[0] / differences[1] - 1)
    row |= {
        "f32_function_worst": float(rounding.max()),
        "f32_function_above_bound": int((rounding > BOUND["float32"]).sum()),
    }
    return row, ok


def compare(name: str, count: int) -> tuple[dict[str, Any], bool]:
    """One network, by us and by the peers."""
    network = networks.NETWORKS[name]
    params = networks.weights(name)
    draw = np.random.default_rng(1)
    x, start = (draw.normal(size=(count, *network.shape)) for _ in range(2))
    one = lambda p, x, b: deep_lift(partial(network.jax, p), x, baseline=b)
    row, ok = ours(one, params, x, start)
    return row | networks.peers(name, params, x, start), ok


def text_model(options: Any, name: str) -> tuple[dict[str, Any], bool]:
    """A text classifier on sentences, against embeddings of zeros: the predicted class's logit."""
    model = models.load(directory(options) if name == "bert" else name)
    texts = read_texts(sst2()).texts
    texts = [texts[i] for i in np.linspace(0, len(texts) - 1, options.sentences).astype(int)]
    ids, mask = padded(model, [model.tokenize(text).ids for text in texts])

    def one(params, ids, mask):
        x = model.embed(params, ids)
        best = jnp.argmax(model.score(params, x, mask))
        return deep_lift(lambda x: model.score(params, x, mask)[best], x)

    return ours(one, model.params, ids, mask)


def main() -> None:
    options = parse(__doc__ or "", model="", only="", count=64, sentences=100)
    jax.config.update("jax_enable_x64", True)
    rows: list[tuple[str, Callable]] = [
        (name, partial(compare, name, options.count)) for name in networks.NETWORKS
    ]
    if os.environ.get("JAXPLAIN_DATA"):
        rows += [(n, partial(text_model, options, n)) for n in (*models.BUNDLED, "bert")]
    else:
        print("text models left out: JAXPLAIN_DATA is not set", file=sys.stderr)
    missed = False
    for name, measure in rows:
        if options.only not in ("", name):
            continue
        row, ok = measure()
        try:
            report(
                "completeness",
                "f32_worst_of_largest <= 1e-5, f64_worst_of_largest <= 1e-12",
                ok,
                network=name,
                **row,
            )
        except SystemExit:  # the rows that follow are still worth having
            missed = True
    sys.exit(missed)


if __name__ == "__main__":
    main()
