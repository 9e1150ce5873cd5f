"""The moving parts of a run: reader, devices and writer at work at once."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxplain.run import compile as compiler
from jaxplain.run import gaps, plan, store
from jaxplain.run.parts import Settings, Summary, Work
from jaxplain.run.progress import State
from jaxplain.run.trees import MAY_BE_NAN, fit, stack
from jaxplain.types import JaxplainError

AHEAD = 2  # batches that are read, and results that wait for the disk, at most


class Job:
    """The moving parts of one call of `run`: reader, device and writer work at once."""

    def __init__(self, settings: Settings, source: Any, show: Callable, began: float):
        self.s, self.source, self.show, self.began = settings, source, show, began
        self.reader = plan.Reader(source, settings.like)
        self.programs: dict[int, Future] = {}
        self.sizes: dict[int, int] = {}
        self.count = len(source)
        self.done = self.failed = self.resumed = 0
        self.real = self.computed = self.finished = 0
        self.gap = gaps.places(settings.outputs.names)
        self.gaps: gaps.Numbers = []
        self.first: float | None = None  # when the first program was ready
        self.stop = threading.Event()
        self.trouble: list[BaseException] = []

    def all(self) -> Summary:
        windows = range(-(-self.count // plan.WINDOW))
        # Two compilers: tracing holds Python's lock, XLA's own work does not.
        self.pool = ThreadPoolExecutor(2)
        try:
            for window in windows:
                self.report("planning")
                shards = self.plan_window(window)
                missing = self.verify(window, shards)
                if missing:
                    self.compute(window, shards, missing)
                self.reader.forget()
        finally:
            self.pool.shutdown(cancel_futures=True)
        self.report("explained")
        seconds = time.monotonic() - self.began
        return Summary(
            self.s.out, self.count, self.done, self.failed, self.resumed, seconds,
            self.rate(), self.padding(), gaps.statistics(self.gaps) if self.gap else {},
        )  # fmt: skip

    def rate(self) -> float:
        return self.finished / max(time.monotonic() - self.first, 1e-9) if self.first else 0.0

    def padding(self) -> float:
        return 1 - self.real / self.computed if self.computed else 0.0

    def report(self, doing: str) -> None:
        self.show(
            State(
                self.done + self.failed, self.count, self.failed, self.rate(), self.padding(), doing
            )
        )

    # ---- planning

    def plan_window(self, window: int) -> list[list[plan.Batch]]:
        """The shards of a window, as first planned: read back if they were, else cut and kept."""
        path = store.plan_path(self.s.out, window)
        content: Any = None
        with contextlib.suppress(FileNotFoundError, store.Damaged):
            content = store.unpack(path)
        if content is None:
            start = window * plan.WINDOW
            indices = range(start, min(start + plan.WINDOW, self.count))
            groups, errors = plan.sort_window(
                self.reader, indices, self.s.lengths, self.s.max_length
            )
            self.settle_sizes(groups, more=indices.stop < self.count)
            shards = plan.cut(groups, errors, self.sizes, self.s.shard_size)
            content = {
                "shards": [[list(b) for b in shard] for shard in shards],
                "sizes": [list(item) for item in self.sizes.items()],
            }
            with store.writing(self.s.out):
                store.write(path, store.pack(content))
        self.sizes |= {bucket: size for bucket, size in content["sizes"]}
        return [
            [plan.Batch(b[0], b[1], tuple(b[2]), tuple(b[3])) for b in shard]
            for shard in content["shards"]
        ]

    def settle_sizes(self, groups: dict[int, list[int]], more: bool) -> None:
        """Choose the batch of every bucket that has none yet; compile to know that it fits."""
        rows = self.s.mesh.shape["data"]
        for bucket, group in groups.items():
            if bucket not in self.sizes:
                asked, kind = self.s.batch_size, self.s.mesh.devices.flat[0].platform
                wanted = (
                    plan.batch_size_for(len(group), more, bucket, rows, kind)
                    if isinstance(asked, str)
                    else plan.round_up(asked, rows)
                )
                memory = self.s.memory if self.s.batch_size == "auto" else None
                self.program(bucket, wanted, memory)
                self.sizes[bucket] = wanted
        if self.s.batch_size == "auto":
            self.report("compiling")
            for bucket in groups:
                if bucket in self.programs:
                    self.sizes[bucket] = self.programs[bucket].result().size

    def program(self, bucket: int, size: int, memory: int | None = None) -> Future:
        """The program of a bucket; begun in the background when first asked for."""
        if bucket not in self.programs:
            size = plan.round_up(size, self.s.mesh.shape["data"])  # planned on another mesh
            self.programs[bucket] = self.pool.submit(
                compiler.compile_bucket, self.s.explain, self.s.params, self.s.key, self.s.like,
                bucket or None, size, self.s.mesh, memory=memory,
            )  # fmt: skip
        return self.programs[bucket]

    def verify(self, window: int, shards: list[list[plan.Batch]]) -> list[int]:
        """Count what is on disk and whole; give the numbers of the shards that are not."""
        missing = []
        for number, shard in enumerate(shards):
            planned = [i for batch in shard for i in batch.indices]
            try:
                content = store.unpack(store.shard_path(self.s.out, window, number))
                whole = content["index"] == planned
            except (FileNotFoundError, store.Damaged):
                whole = False
            if whole:
                failed = sum(error is not None for error in content["errors"])
                self.failed += failed
                self.done += len(planned) - failed
                self.resumed += len(planned)
                if self.gap:
                    self.gaps.append(gaps.of_shard(content, self.gap))
            else:
                missing.append(number)
        return missing

    # ---- computing

    def compute(self, window: int, shards: list[list[plan.Batch]], missing: list[int]) -> None:
        for number in missing:
            for batch in shards[number]:
                if batch.bucket != plan.FAILED:
                    self.program(batch.bucket, batch.size)
        ready: queue.Queue = queue.Queue(AHEAD)
        results: queue.Queue = queue.Queue(AHEAD)
        reader = threading.Thread(target=self.guard, args=(self.read, ready, shards, missing))
        writer = threading.Thread(target=self.guard, args=(self.write, results, window, shards))
        reader.start()
        writer.start()
        try:
            for work in self.items(ready):
                if not self.put(results, (work, *self.launch(work))):
                    break
            self.put(results, None)
            while writer.is_alive():
                writer.join(0.05)
                self.report("explained")
        except BaseException:
            self.stop.set()
            raise
        finally:
            if self.trouble:
                self.stop.set()
            reader.join()
            writer.join()
        if self.trouble:
            raise self.trouble[0]

    def guard(self, target: Callable, *args: Any) -> None:
        """Run a thread's work; keep what it raises for the main thread, and stop the others."""
        try:
            target(*args)
        except BaseException as error:
            self.trouble.append(error)
            self.stop.set()

    def put(self, line: queue.Queue, item: Any) -> bool:
        while not self.stop.is_set():
            try:
                line.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def items(self, line: queue.Queue) -> Iterator[Any]:
        while not self.stop.is_set():
            try:
                item = line.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is None:
                return
            yield item

    def read(self, ready: queue.Queue, shards: list[list[plan.Batch]], missing: list[int]) -> None:
        """Reader thread: rows to padded batches."""
        for number in missing:
            for batch in shards[number]:
                if not self.put(ready, self.assemble(number, batch)):
                    return
        self.put(ready, None)

    def assemble(self, shard: int, batch: plan.Batch) -> Work:
        rows, lengths, notes, errors = [], [], [], dict(enumerate(batch.errors))
        good = []
        for row, index in enumerate(batch.indices):
            if row in errors:
                lengths.append(None)
                notes.append({})
                continue
            try:
                example = self.reader.read(index)
                length = fit(example, self.s.like)
                bucket = plan.bucket_of(length, self.s.lengths, self.s.max_length)
                if bucket != batch.bucket:
                    raise JaxplainError("the source gave another length when it was read again")
                lengths.append(length)
                notes.append(example.notes)
                good.append(example)
                rows.append(row)
            except Exception as error:
                errors[row] = plan.reason(error)
                lengths.append(None)
                notes.append({})
        if not good:
            return Work(shard, batch, lengths, notes, errors, None, None)
        size = plan.round_up(batch.size, self.s.mesh.shape["data"])
        # A row that could not be read is filled with one that could: nothing else moves.
        by_row = dict(zip(rows, good, strict=True))
        filled = [by_row.get(row, good[0]) for row in range(len(batch.indices))]
        arrays = stack(filled, self.s.like, batch.bucket or None, size)
        digests = np.zeros((size, 2), np.uint32)
        digests[: len(filled)] = [e.digest for e in filled]
        digests[len(filled) :] = digests[:1]
        return Work(shard, batch, lengths, notes, errors, arrays, digests)

    def launch(self, work: Work) -> tuple[Any, Any]:
        """Start a batch on the devices; does not wait for it."""
        if work.arrays is None:
            return None, None
        future = self.program(work.batch.bucket, work.batch.size)
        if not future.done():
            self.report("compiling")
        program = future.result()
        if self.first is None:
            self.first = time.monotonic()
        rows = NamedSharding(self.s.mesh, PartitionSpec("data"))
        with computing():
            arrays, digests = jax.device_put((work.arrays, work.digests), rows)
            result, good = program.call(self.s.params, self.s.key, arrays, digests)
        length = work.batch.bucket or 1
        self.computed += program.size * length
        self.real += sum(
            n or length for row, n in enumerate(work.lengths) if row not in work.errors
        )
        self.report("explained")
        return result, good

    # ---- writing

    def write(self, results: queue.Queue, window: int, shards: list[list[plan.Batch]]) -> None:
        """Writer thread: results to records, records to shards."""
        records: list = []
        for work, result, good in self.items(results):
            records += self.records(work, result, good)
            if work.batch is shards[work.shard][-1]:
                path = store.shard_path(self.s.out, window, work.shard)
                with store.writing(self.s.out):
                    store.write(path, store.pack_records(self.s.outputs.tree, records))
                failed = sum(error is not None for *_, error in records)
                self.failed += failed
                self.done += len(records) - failed
                self.finished += len(records)
                if self.gap:
                    kept = (values for _, values, _, _ in records if values is not None)
                    self.gaps += [gaps.of_values(values, self.gap) for values in kept]
                records = []

    def records(self, work: Work, result: Any, good: Any) -> Iterator[tuple]:
        leaves = []
        if result is not None:
            with computing():
                leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
                good = np.asarray(good)
        for row, index in enumerate(work.batch.indices):
            error = work.errors.get(row)
            values = None
            if error is None:
                values = [
                    leaf[row][tuple(slice(work.lengths[row]) if axis in ragged else slice(None)
                                    for axis in range(leaf.ndim - 1))]
                    for leaf, ragged in zip(leaves, self.s.outputs.ragged, strict=True)
                ]  # fmt: skip
                if not good[row]:
                    values, error = None, self.not_finite(values)
            yield index, values, work.notes[row], error

    def not_finite(self, values: list[np.ndarray]) -> str:
        bad = []
        for name, value in zip(self.s.outputs.names, values, strict=True):
            if jnp.issubdtype(value.dtype, jnp.inexact):
                if np.isinf(value).any():
                    bad.append(f"infinity in {name}")
                elif np.isnan(value).any() and not MAY_BE_NAN & set(name.split(".")):
                    bad.append(f"NaN in {name}")
        return ", ".join(bad) or "NaN or infinity in the padding"


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Turn a device's failure into one line that says how to go on."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise JaxplainError(
            f"the device failed: {plan.reason(error)[:300]}. What is on disk is whole: run the "
            "same command again to resume; if memory ran out, begin anew with a smaller batch size"
        ) from error
