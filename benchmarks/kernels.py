"""Where the time of integrated gradients goes on a device: its kernels, by kind and one by one.

    python -m benchmarks.kernels --models bert_large --batch 64 --length 128 --dtype bfloat16 --steps 8

A row per model: the share of the device's busy time in matrix products, in reductions, in copies
and transposes, and in the rest; how much of the call the device was busy; the longest kernels.
Read from JAX's profiler, one call. Names are XLA's.
"""  # noqa: E501

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.common import parse, report
from benchmarks.throughput import narrow, task_of
from jaxplain import bench

PRODUCTS = "ynn_fusion gemm cutlass nvjet xmma cublas triton_dot dot convolution conv_general"
KINDS = {  # by what a kernel's name contains; the first that fits
    "products": PRODUCTS.split(),
    "attention": ("flash", "fmha", "cudnn"),
    "copies": ("copy", "transpose", "memcpy", "memset"),
    "reductions": ("reduce", "softmax"),
}
HOLDERS = "while", "call", "conditional", "end: "  # on a CPU: of operations that are listed too


def kind_of(name: str) -> str:
    name = name.lower()
    return next((k for k, parts in KINDS.items() if any(p in name for p in parts)), "others")


def kernels(folder: Path) -> Iterator[tuple[str, float]]:
    """Name and seconds of each kernel that ran on an accelerator; on a CPU, of each operation."""
    data = jax.profiler.ProfileData.from_file(str(next(folder.rglob("*.xplane.pb"))))
    on_device = [p for p in data.planes if p.name.startswith("/device:")]
    for plane in on_device or data.planes:
        for line in plane.lines:
            if "Stream" in line.name or "XLAEigen" in line.name or "XLAPjRt" in line.name:
                for event in line.events:
                    if on_device or not ("::" in event.name or event.name.startswith(HOLDERS)):
                        yield event.name, event.duration_ns * 1e-9


def longest(spent: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(spent.items(), key=lambda pair: -pair[1])


def main() -> None:
    options = parse(
        __doc__ or "", models="transformer", batch=32, length=24, steps=8, dtype="float32",
        precision="default", chunk=1, longest=12,
    )  # fmt: skip
    jax.config.update("jax_default_matmul_precision", options.precision)
    chosen = bench.methods(options.steps, chunk=options.chunk)
    explain = chosen[f"integrated_gradients, {options.steps} steps"]
    for name in options.models.split(","):
        task = task_of(name, options.batch, options.length)
        if options.dtype != "float32":
            task = narrow(task, jnp.dtype(options.dtype))
        keys = jax.random.split(jax.random.key(0), options.batch)
        each = jax.vmap(partial(explain, task), (None, 0, 0, 0))
        batch = task.params, task.x, task.mask, keys
        program, _, _ = bench.compiled(each, *batch)
        call = partial(program, *batch)
        jax.block_until_ready((call(), call()))
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                began = time.perf_counter()
                jax.block_until_ready(call())
                seconds = time.perf_counter() - began
            spent: dict[str, float] = {}
            count = Counter()
            for kernel, took in kernels(Path(folder)):
                spent[kernel] = spent.get(kernel, 0.0) + took
                count[kernel] += 1
        busy = sum(spent.values())
        kinds: dict[str, float] = {}
        for kernel, took in spent.items():
            kind = kind_of(kernel)
            kinds[kind] = kinds.get(kind, 0.0) + took
        report(
            "kernels",
            "none",
            True,
            model=name,
            **{n: getattr(options, n) for n in ("batch", "length", "steps", "dtype", "precision")},
            chunk=options.chunk,
            seconds=seconds,
            busy=busy / seconds,
            shares={k: round(v / busy, 3) for k, v in longest(kinds)},
            longest={
                k[:90]: f"{v / busy:.1%} in {count[k]}"
                for k, v in longest(spent)[: options.longest]
            },
        )


if __name__ == "__main__":
    main()
