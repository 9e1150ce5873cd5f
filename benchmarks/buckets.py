"""What buckets of length save: against padding every sentence to the longest.

Both sides are runs of the engine on SST-2's development set; only `lengths` differs.
"""

import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np

import jaxplain as jxp
from benchmarks.common import median_ratio, parse, report, sst2, text_job
from jaxplain import models

BOUND = 1.5


def main() -> None:
    options = parse(__doc__ or "", model="transformer", steps=32, limit=872, repeats=3)
    model = models.load(options.model)
    source, explain = text_job(model, sst2(), options.steps, options.limit)
    longest = max(len(source[i]["ids"]) for i in range(len(source)))
    folder = Path(tempfile.mkdtemp())
    padding = {}

    def seconds(name: str, lengths) -> float:
        summary = jxp.run(
            explain, model.params, source, folder / name, key=jax.random.key(0),
            lengths=lengths, max_length=model.max_length, progress=False,
        )  # fmt: skip
        padding[str(lengths)] = summary.padding
        return summary.examples / summary.examples_per_second

    a, b = [], []
    for turn in range(options.repeats):
        a.append(seconds(f"longest{turn}", [longest]))
        b.append(seconds(f"buckets{turn}", "auto"))
    shutil.rmtree(folder)
    ratio = median_ratio(a, b)
    report(
        "buckets",
        f"ratio >= {BOUND}",
        ratio >= BOUND,
        model=model.name,
        examples=len(source),
        longest=longest,
        padded_to_longest_s=float(np.median(a)),
        buckets_s=float(np.median(b)),
        padding_longest=padding[str([longest])],
        padding_buckets=padding["auto"],
        ratio=ratio,
    )


if __name__ == "__main__":
    main()
