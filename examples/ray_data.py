"""Explaining under another engine: Ray Data feeds two workers, and what comes out is Parquet.

    pip install 'jaxplain[ray]'
    JAXPLAIN_DATA=path/to/data python -m examples.ray_data --out runs/ray

The sentences are SST-2's development set, or without JAXPLAIN_DATA those that are bundled; the
model is the bundled transformer. `jxp.batch_explainer` is made once in each worker, where its
programs stay, and `jxp.export.to_table` turns its records into a table of the columns that SCHEMA
names. The same sentences then go through `jxp.run`, and the two are compared, score by score.

The same two calls serve any engine that keeps something alive between batches: a DoFn of Beam makes
the explainer in `setup`, a function for Spark's `mapInArrow` before it loops over its batches. Ray
brings other machines, and starts workers again that died. On one machine `jxp.run` needs no more
than one process, and its store says what proves the numbers: with 872 sentences on 2 CPU cores, and
programs in JAX's cache, the command above prints 29.3 s for Ray, 15.5 s for `run`, and a difference
of 0.0.
"""

import functools
import os
import time
from pathlib import Path
from typing import Any

import cyclopts
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

import jaxplain as jxp
from jaxplain import models
from jaxplain.run.sources import TextSource, read_texts
from jaxplain.run.text import explain_text

# What both sides pad to, and the rows of a program: three programs are compiled in each worker.
PLAN: Any = {"ragged": ("ids", "mask"), "lengths": (16, 32, 64), "batch_size": 32}
SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "text": pa.string(),
        "pieces": pa.list_(pa.string()),
        "attribution.scores": pa.list_(pa.float32()),
        "attribution.gap": pa.float32(),
        "logits": pa.list_(pa.float32()),
        "error": pa.string(),
    }
)


def method(model, steps):
    explainer = functools.partial(jxp.integrated_gradients, steps=steps)
    return explain_text(model, explainer, baseline="zeros")


class Worker:
    """What an actor keeps: a model, and the programs that were compiled for it."""

    def __init__(self, steps):
        self.model = models.load("transformer")
        like = TextSource(["a film"], None, self.model)[0]
        self.explain = jxp.batch_explainer(
            method(self.model, steps), self.model.params, like, key=jax.random.key(0),
            max_length=self.model.max_length, **PLAN,
        )  # fmt: skip

    def __call__(self, batch):
        began = time.monotonic()
        records = self.explain(TextSource(batch["sentence"].tolist(), None, self.model))
        table = jxp.export.to_table(records, schema=SCHEMA)
        table = table.set_column(0, "index", pa.array(batch["row"]))  # its place in all batches
        share = (time.monotonic() - began) / len(records)
        for name, value in (("worker", os.getpid()), ("seconds", share)):
            table = table.append_column(name, pa.array([value] * len(records)))
        return table


def texts(limit):
    folder = os.environ.get("JAXPLAIN_DATA")
    if folder is None:
        return [row["text"] for row in models.bundled_examples()][:limit]
    return read_texts(Path(folder) / "sst2" / "dev.tsv", limit=limit).texts


def under_ray(sentences, out, *, workers, steps):
    """Explain in actors of Ray, one CPU each; give the table, and how long it took."""
    import ray  # type: ignore[import-not-found]  # it takes seconds to import, and is no dependency of jaxplain

    rows = [{"row": row, "sentence": text} for row, text in enumerate(sentences)]
    environment = {"env_vars": {"JAX_PLATFORMS": "cpu"}}
    ray.init(
        num_cpus=workers, include_dashboard=False, log_to_driver=False, runtime_env=environment
    )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        began = time.monotonic()
        # A block is a call: large ones fill the programs, several keep all workers busy.
        count = min(4 * workers, len(rows))
        blocks = ray.data.from_items(rows, override_num_blocks=count)
        blocks.map_batches(
            Worker, fn_constructor_args=(steps,), batch_size=None, batch_format="numpy",
            num_cpus=1, compute=ray.data.ActorPoolStrategy(size=workers),
        ).write_parquet(str(out), mode="overwrite")  # fmt: skip
        seconds = time.monotonic() - began
    finally:
        ray.shutdown()
    return parquet.read_table(out).sort_by("index"), seconds


def main(
    *, out: Path = Path("runs/ray"), limit: int | None = None, workers: int = 2, steps: int = 32
):
    """Explain sentences in workers of Ray, and again by `jaxplain.run`; compare."""
    sentences = texts(limit)
    out = out.resolve()
    table, seconds = under_ray(sentences, out / "parquet", workers=workers, steps=steps)
    failed = table.num_rows - table["error"].null_count
    print(f"{table.num_rows} of {len(sentences)} sentences explained, {failed} failed")
    each = table.group_by("worker").aggregate([("seconds", "sum"), ("index", "count")]).to_pylist()
    for worker in each:
        rate = worker["index_count"] / worker["seconds_sum"]
        print(f"  a worker: {worker['index_count']} sentences, {rate:.1f}/s with compiling")
    rate = len(sentences) / seconds
    print(f"Ray Data: {seconds:.1f} s, {rate:.1f} sentences/s with starting workers and compiling")

    model = models.load("transformer")
    source = TextSource(sentences, None, model)
    began = time.monotonic()
    summary = jxp.run(
        method(model, steps), model.params, source, out / "run", key=jax.random.key(0),
        max_length=model.max_length, progress=False, **PLAN,
    )  # fmt: skip
    seconds = time.monotonic() - began
    print(
        f"jxp.run:  {seconds:.1f} s, {len(sentences) / seconds:.1f} sentences/s with compiling, "
        f"{summary.examples_per_second:.1f}/s without"
    )
    apart = 0.0
    for record, row in zip(jxp.load(out / "run"), table.to_pylist(), strict=True):
        assert row["index"] == record.index and row["error"] == record.error
        if record.error is None:
            scores = record.result["attribution"].scores
            away = np.abs(scores - np.asarray(row["attribution.scores"], np.float32)).max()
            apart = max(apart, float(away / np.abs(scores).max()))
    print(f"largest difference of a score, of its sentence's largest score: {apart:.1e}")
    print(f"Parquet: {out / 'parquet'}; run: {out / 'run'}")


if __name__ == "__main__":
    cyclopts.run(main)
