"""What a run of many tiny examples costs: a linear model of 8 numbers, and 10 million rows.

Each part has a process of its own: the run from source to shards on disk, the run again when it is
complete, again when the first, middle and last shard were removed, and `load` with 1,000 random
records. Rows are computed from their index, one at a time, or with `--block 1` many at a time
(`__getitems__`). Seconds are those of the calls, tracing and compilation included, imports apart.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import jaxplain as jxp
from benchmarks.common import parse, report

RATE, RESUME, GROWTH = 20_000, 5.0, 1.05
WIDTH = 8
POINTS = 10  # of the run, at which memory is looked at


def memory(name: str = "VmHWM") -> float:
    """MiB of this process: the most so far, or `VmRSS`, now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


class Rows:
    """Rows of `WIDTH` numbers, computed from their index; looks at memory on its way."""

    def __init__(self, count: int):
        self.count, self.every, self.peaks = count, max(count // POINTS, 1), {}
        self.waves = np.arange(1, WIDTH + 1, dtype=np.float64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index % self.every == 0:
            self.look(index)
        return {"x": np.sin(index * self.waves).astype(np.float32)}

    def look(self, index: int) -> None:
        if index >= self.every:
            self.peaks[index // self.every * self.every] = round(memory(), 1)


class Blocks(Rows):
    """The same rows, many at a time."""

    def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray]]:
        self.look(indices[0])
        block = np.sin(np.multiply.outer(indices, self.waves)).astype(np.float32)
        return [{"x": row} for row in block]


def explain(params, example, key):
    return jxp.integrated_gradients(lambda x: x @ params, example["x"], steps=4)


def run(out: str, count: int, block: int) -> dict:
    source = (Blocks if block else Rows)(count)
    params = jax.numpy.linspace(-1, 1, WIDTH)
    summary = jxp.run(explain, params, source, out, key=jax.random.key(0), progress=False)
    assert summary.done == count, summary
    return {
        "seconds": summary.seconds,
        "resumed": summary.resumed,
        "peak": memory(),
        "peaks": dict(sorted(source.peaks.items())),
    }


def load(out: str, count: int, block: int) -> dict:
    before, began = memory("VmRSS"), time.perf_counter()
    records = jxp.load(out)
    opened = time.perf_counter()
    total = len(records)
    counted = time.perf_counter()
    chosen = np.random.default_rng(0).integers(0, count, 1000).tolist()
    read = [records[index] for index in chosen]
    done, after = time.perf_counter(), memory()
    for index, record in zip(chosen, read, strict=True):
        x = Rows(count)[index]["x"]
        # float32 sums over 4 nodes
        np.testing.assert_allclose(record.result.scores, np.linspace(-1, 1, WIDTH) * x, atol=1e-6)
    assert total == count
    first = time.perf_counter()
    for seen, _ in enumerate(records):
        if seen == 100_000:
            break
    return {
        "open": opened - began,
        "len": counted - opened,
        "read": done - counted,
        "memory": after - before,
        "iterated_per_s": seen / (time.perf_counter() - first),
    }


def child(part: str, *values: object) -> dict:
    command = [sys.executable, "-m", "benchmarks.scale", "--child", json.dumps([part, *values])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    options = parse(__doc__ or "", examples=1_000_000, block=0, out="", child="")
    if options.child:
        part, *values = json.loads(options.child)
        print(json.dumps({"run": run, "load": load}[part](*values)))
        return
    folder = Path(options.out or tempfile.mkdtemp())
    given = str(folder / "run"), options.examples, options.block
    first = child("run", *given)
    disk = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
    again = child("run", *given)
    assert again["resumed"] == options.examples
    shards = sorted((folder / "run" / "shards").iterdir())
    for path in {shards[0], shards[len(shards) // 2], shards[-1]}:
        path.unlink()
    mended = child("run", *given)
    assert 0 < mended["resumed"] < options.examples
    loaded = child("load", *given)
    if not options.out:
        shutil.rmtree(folder)
    rate, early = options.examples / first["seconds"], next(iter(first["peaks"].values()))
    growth = first["peak"] / early
    report(
        "scale",
        f"examples/s >= {RATE:,}, peak / peak after a tenth <= {GROWTH}, resumed in < {RESUME} s",
        rate >= RATE and growth <= GROWTH and max(again["seconds"], mended["seconds"]) < RESUME,
        examples=options.examples,
        block=bool(options.block),
        examples_per_s=rate,
        seconds=first["seconds"],
        peak_mib=first["peak"],
        peaks_mib=first["peaks"],
        growth=growth,
        resume_s=again["seconds"],
        resume_peak_mib=again["peak"],
        mend_s=mended["seconds"],
        shards=len(shards),
        disk_mib=disk / 2**20,
        load_s=loaded["open"],
        len_s=loaded["len"],
        read_1000_s=loaded["read"],
        load_mib=loaded["memory"],
        iterated_per_s=loaded["iterated_per_s"],
    )


if __name__ == "__main__":
    main()
