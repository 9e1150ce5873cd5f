"""What the engine costs: against a hand-written loop of the same compiled work.

The hand-written side has its batches ready in memory (tokenised, padded, stacked), calls one
`jit(vmap(explain))` a length and waits for the results; it writes nothing. The engine reads,
tokenises, pads, checks, and writes every record to disk. Compilation counts on neither side; but
both call programs that were just compiled, since the first call of a program takes longer than the
next ones (on CPUs by about a tenth of a second). `warm` is the same loop a second time; with
`--copies 8` of the data the first calls weigh little, and both shares come together.
"""

import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import jaxplain as jxp
from benchmarks.common import median_ratio, parse, report, sst2, text_job
from jaxplain import models
from jaxplain.run import plan, store
from jaxplain.run.trees import split, stack

BOUND = 0.97


def main() -> None:
    options = parse(__doc__ or "", model="transformer", steps=32, limit=872, copies=1, repeats=5)
    model = models.load(options.model)
    source, explain = text_job(model, sst2(), options.steps, options.limit, options.copies)
    key = jax.random.key(0)
    folder = Path(tempfile.mkdtemp())

    def engine(name: str):
        summary = jxp.run(
            explain, model.params, source, folder / name, key=key,
            max_length=model.max_length, progress=False,
        )  # fmt: skip
        return summary.examples / summary.examples_per_second

    # The hand-written loop gets the very batches that the engine chose.
    engine("plan")
    content = store.unpack(store.plan_path(folder / "plan", 0))
    like, _ = plan.probe(source, "auto")
    batches = []
    for bucket, size, indices, _ in (b for shard in plan.unpack(content) for b in shard):
        rows = [split(source[i]) for i in indices]
        batches.append((bucket, stack(rows, like, bucket, size)))
    keys = {}
    for _, arrays in batches:
        size = len(arrays["ids"])
        keys[size] = jax.random.split(key, size)

    def compiled():
        function = jax.jit(jax.vmap(lambda *args: explain(*args), (None, 0, 0)))
        return {
            bucket: function.lower(model.params, arrays, keys[len(arrays["ids"])]).compile()
            for bucket, arrays in dict(batches).items()
        }

    def by_hand(programs) -> float:
        began = time.perf_counter()
        pending = []
        for bucket, arrays in batches:
            pending.append(programs[bucket](model.params, arrays, keys[len(arrays["ids"])]))
            if len(pending) > 2:
                jax.block_until_ready(pending.pop(0))
        jax.block_until_ready(pending)
        return time.perf_counter() - began

    a, b, warm = [], [], []
    for turn in range(options.repeats):
        a.append(engine(f"run{turn}"))
        programs = compiled()
        b.append(by_hand(programs))
        warm.append(by_hand(programs))
    shutil.rmtree(folder)
    share = 1 / median_ratio(a, b)
    report(
        "engine",
        f"throughput share >= {BOUND}",
        share >= BOUND,
        model=model.name,
        examples=len(source),
        steps=options.steps,
        engine_examples_per_s=len(source) / float(np.median(a)),
        loop_examples_per_s=len(source) / float(np.median(b)),
        warm_loop_examples_per_s=len(source) / float(np.median(warm)),
        throughput_share=share,
        share_of_warm_loop=1 / median_ratio(a, warm),
    )


if __name__ == "__main__":
    main()
