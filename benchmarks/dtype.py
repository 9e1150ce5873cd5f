"""What a model in bfloat16 costs each method in precision.

    JAXPLAIN_DATA=... python -m benchmarks.dtype [--methods lrp,deep_lift]
    JAXPLAIN_DATA=... python -m benchmarks.dtype --model minilm-sst2 --methods integrated_gradients

Evenly spaced SST-2 development sentences, explained as `jaxplain explain` does, by the model as it
is and by the same model with `--dtype bfloat16`, both for the class that the former predicts. A row
for each method: the largest error of a sentence's token scores, relative to the largest of them in
float32; Spearman's rank correlation of the scores; the gap in both, without sign, in units of the
logit. Of word information, which is a search, the scores are log sigma of the last layer, and the
error is not relative; of fewer sentences. XLA is told to round wherever the program does, which it
otherwise need not. No speed is measured.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import padded, parse, report, sst2
from jaxplain.report.agreement import spearman
from jaxplain.run import data as datasets
from jaxplain.run import job as jobs

MEDIAN = 0.05
STRICT = "--xla_allow_excess_precision=false"
METHODS = (
    "saliency", "input_x_gradient", "integrated_gradients", "expected_gradients", "deep_lift",
    "lrp", "shapley_sampling", "feature_ablation", "contextual_decomposition", "word_information",
)  # fmt: skip
OPTIONS = {"word_information": {"layers": "2", "steps": 300}}
FEWER = 12  # sentences, where a method searches
ROWS = 16  # sentences at once


def explained(
    options: Any, method: str, dtype: str, targets: list[int] | None = None
) -> list[tuple[np.ndarray, Any]]:
    """Of each sentence, its scores without padding and the whole result."""
    read = datasets.read(sst2())
    every = read.examples.texts
    count = FEWER if method == "word_information" else options.sentences
    chosen = np.linspace(0, len(every) - 1, count).astype(int)
    name = str(sst2().parent.parent / options.model)
    name = name if Path(name).is_dir() else options.model
    job = jobs.prepare(name, read, method=method, options=OPTIONS.get(method, {}), dtype=dtype)
    params, _ = job.params(Path("none"), {})
    examples = [job.source[int(i)] for i in chosen]
    ids, mask = padded(job.model, [e["ids"] for e in examples])  # type: ignore[arg-type]
    batch = {"ids": ids, "mask": mask, "target": np.full(count, -1, np.int32)}
    if targets is not None:
        batch["target"] = np.asarray(targets, np.int32)
    keys = jax.random.split(jax.random.key(0), count)
    fill = lambda leaf: jnp.concatenate([leaf, leaf[: -count % ROWS]]) if count % ROWS else leaf
    batch, keys = jax.tree.map(fill, (batch, keys))
    program = jax.jit(lambda p, b, k: jax.lax.map(lambda row: job.explain(p, *row), (b, k)))
    if method == "word_information":  # its searches leave lanes to each other
        program = jax.jit(jax.vmap(job.explain, (None, 0, 0)))
    rows = lambda start, stop: jax.tree.map(lambda leaf: leaf[start:stop], (batch, keys))
    parts = [
        jax.device_get(program(params, *rows(start, start + ROWS)))
        for start in range(0, len(keys), ROWS)
    ]
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    found = [jax.tree.map(lambda leaf, i=i: leaf[i], whole) for i in range(count)]
    return [(scores_of(one, int(mask[i].sum())), one) for i, one in enumerate(found)]


def scores_of(result: Any, length: int) -> np.ndarray:
    if "information" in result:
        return np.log(np.asarray(result["information"].sigma, np.float64)[0, :length])
    return np.asarray(result["attribution"].scores, np.float64)[:length]


def compare(options: Any, method: str) -> None:
    exact = explained(options, method, "float32")
    rounded = explained(options, method, "bfloat16", [int(r["target"]) for _, r in exact])
    errors, ranks, others = [], [], 0
    for (a, one), (b, two) in zip(exact, rounded, strict=True):
        largest = 1.0 if method == "word_information" else np.abs(a).max()
        errors.append(np.abs(a - b).max() / largest)
        ranks.append(spearman(a, b))
        others += int(one["logits"].argmax() != two["logits"].argmax())
    gaps = {}
    for name, side in (("float32", exact), ("bfloat16", rounded)):
        if method != "word_information":
            gap = np.abs([float(r["attribution"].gap) for _, r in side])
            gaps |= {f"gap_{name}": np.median(gap), f"worst_gap_{name}": gap.max()}
    report(
        "dtype",
        f"median error at most {MEDIAN:.0%}",
        float(np.median(errors)) <= MEDIAN,
        model=options.model,
        method=method,
        sentences=len(exact),
        median_error=float(np.median(errors)),
        worst_error=float(np.max(errors)),
        median_rank=float(np.nanmedian(ranks)),
        worst_rank=float(np.nanmin(ranks)),
        **{n: None if np.isnan(v) else float(v) for n, v in gaps.items()},
        predicts_another_class=others,
    )


def main() -> None:
    options = parse(__doc__ or "", model="transformer", methods=",".join(METHODS), sentences=64)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {STRICT}"  # before any program
    for method in options.methods.split(","):
        compare(options, method)


if __name__ == "__main__":
    main()
