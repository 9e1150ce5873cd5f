"""The moving parts of a run: reader, devices and writer at work at once."""

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxplain.run import batches, columns, gaps, plan, precision, rounds, store
from jaxplain.run import compile as compiler
from jaxplain.run.parts import Settings, Summary, Work
from jaxplain.run.progress import State
from jaxplain.run.rounds import Rounds
from jaxplain.types import JaxplainError

REASONS = 20  # of failures, that are told
DIFFERENT = 10_000  # reasons that are counted, of which those are the most frequent
AHEAD = 2  # batches that are read, and results that wait for the disk, at most


class Job:
    """The moving parts of one call of `run`: reader, device and writer work at once."""

    def __init__(self, settings: Settings, source: Any, show: Callable, began: float):
        self.s, self.source, self.show, self.began = settings, source, show, began
        self.reader = plan.Reader(source, settings.like)
        # By bucket, rows, and the round where that is compiled in.
        self.programs: dict[tuple[int, int, int], Future] = {}
        self.sizes: dict[int, int] = {}
        self.count = len(source)
        self.done = self.failed = self.resumed = 0
        self.real = self.computed = self.finished = 0
        self.gap = gaps.places(settings.outputs.names)
        self.gaps = gaps.Tally()
        self.rounds: Rounds | None = None  # of the window, in a run with a tolerance
        self.reasons: Counter = Counter()  # why examples failed
        self.ended: Counter = Counter()  # how many examples ended after which round, and how
        self.doing = "explained"
        self.first: float | None = None  # when the first program was ready
        self.stop = threading.Event()
        self.trouble: list[BaseException] = []

    def all(self) -> Summary:
        windows = range(-(-self.count // self.s.window))
        # Two compilers: tracing holds Python's lock, XLA's own work does not.
        self.pool = ThreadPoolExecutor(2)
        try:
            for window in windows:
                self.report("planning")
                if self.s.efforts and self.s.tolerance:
                    self.rounds = Rounds(self.s.out, window, self.s.efforts, self.s.tolerance)
                shards = self.plan_window(window)
                missing = self.verify(window, shards)
                if missing:
                    self.compute(window, shards, missing)
                if self.rounds:
                    self.refine(window, shards, self.rounds)
                self.reader.forget()
        finally:
            self.pool.shutdown(cancel_futures=True)
        self.report(self.doing)
        seconds = time.monotonic() - self.began
        return Summary(
            self.s.out, self.count, self.done, self.failed, self.resumed, seconds,
            self.rate(), self.padding(),
            gaps.statistics(self.gaps) if self.gap and self.gap.gap is not None else {},
            rounds.totals(self.s.tolerance, self.s.efforts, self.ended) if self.s.tolerance else {},
            gaps.errors(self.gaps), dict(self.reasons.most_common(REASONS)),
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
            start = window * self.s.window
            indices = range(start, min(start + self.s.window, self.count))
            groups, errors = plan.sort_window(
                self.reader, indices, self.s.lengths, self.s.max_length
            )
            self.settle_sizes(groups, more=indices.stop < self.count)
            shards = plan.cut(groups, errors, self.sizes, self.s.shard_size)
            content = self.keep_plan(path, shards)
        self.sizes |= {bucket: size for bucket, size in content["sizes"]}
        return plan.unpack(content)

    def keep_plan(self, path: Path, shards: list[list[plan.Batch]]) -> dict[str, Any]:
        content = {
            "shards": plan.pack(shards),
            "sizes": [list(item) for item in self.sizes.items()],
        }
        with store.writing(self.s.out):
            store.write(path, store.pack(content))
        return content

    def refine(self, window: int, shards: list[list[plan.Batch]], rounds_of: Rounds) -> None:
        """Give those that are not precise enough another round, until all are or rounds end."""
        levels = [shards]
        for level in range(1, len(self.s.efforts)):
            groups = rounds_of.pending(level - 1, shards)
            if not groups:
                break
            path = store.plan_path(self.s.out, window, level)
            shards = []
            with contextlib.suppress(FileNotFoundError, store.Damaged):
                shards = plan.unpack(store.unpack(path))
            wanted = sorted(i for group in groups.values() for i in group)
            if sorted(i for shard in shards for b in shard for i in b.indices) != wanted:
                devices = self.s.mesh.shape["data"]
                shards = rounds.cut(groups, self.sizes, devices, self.s.shard_size)
                self.keep_plan(path, shards)
            self.doing = f"explained, {len(wanted):,} of them again"
            missing = self.verify(window, shards, level)
            if missing:
                self.compute(window, shards, missing, level)
            levels.append(shards)
        ended, found = rounds_of.tally(levels, self.gap)
        self.ended += ended
        self.gaps = gaps.add(self.gaps, found)
        self.doing = "explained"

    def settle_sizes(self, groups: Mapping[int, columns.Index], more: bool) -> None:
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
                usual = None
                if asked == "auto" and more and bucket == plan.FIXED:
                    usual = wanted
                    wanted = plan.tiny_batch_size(usual, self.s.like, self.s.shard_size)
                self.program(bucket, wanted, memory, usual=usual)
                self.sizes[bucket] = wanted
        if self.s.batch_size == "auto":
            self.report("compiling")
            for bucket in groups:
                key = bucket, plan.round_up(self.sizes[bucket], rows), 0
                if key in self.programs:
                    program = self.programs[key]
                    self.sizes[bucket] = size = program.result().size
                    self.programs[bucket, size, 0] = program

    def program(
        self,
        bucket: int,
        size: int,
        memory: int | None = None,
        level: int = 0,
        usual: int | None = None,
    ) -> Future:
        """The program of a bucket; begun in the background when first asked for."""
        size = plan.round_up(size, self.s.mesh.shape["data"])  # planned on another mesh
        settled = bool(self.s.efforts) and precision.static(self.s.efforts[level])
        key = bucket, size, level if settled else 0
        if key not in self.programs:
            self.programs[key] = self.pool.submit(
                compiler.compile_bucket, self.s.explain, self.s.params, self.s.key, self.s.like,
                bucket or None, size, self.s.mesh, memory=memory, usual=usual,
                **precision.arguments(self.s.efforts, level),
            )  # fmt: skip
        return self.programs[key]

    def verify(self, window: int, shards: list[list[plan.Batch]], level: int = 0) -> list[int]:
        """Count what is on disk and whole; give the numbers of the shards that are not."""
        missing = []
        for number, shard in enumerate(shards):
            index = plan.index_of(shard)
            path = store.shard_path(self.s.out, window, number, level)
            content = store.read_shard(path, index, self.s.identity)
            if content is None:
                missing.append(number)
                continue
            self.count_in(level, len(index), len(content["failed"]))
            tell(self.reasons, content["failed"])
            self.resumed += len(index) if level == 0 else 0
            if self.gap and not self.rounds:
                self.gaps = gaps.add(self.gaps, gaps.of_shard(content, self.gap))
        return missing

    def count_in(self, level: int, many: int, failed: int) -> None:
        """Count examples as done or failed; in later rounds, those that failed after all."""
        self.failed += failed
        self.done += many - failed if level == 0 else -failed

    # ---- computing

    def compute(
        self, window: int, shards: list[list[plan.Batch]], missing: list[int], level: int = 0
    ) -> None:
        for number in missing:
            for batch in shards[number]:
                if batch.bucket != plan.FAILED:
                    self.program(batch.bucket, batch.size, level=level)
        ready: queue.Queue = queue.Queue(AHEAD)
        results: queue.Queue = queue.Queue(AHEAD)
        reader = threading.Thread(target=self.guard, args=(self.read, ready, shards, missing))
        writer = threading.Thread(
            target=self.guard, args=(self.write, results, window, shards, level)
        )
        reader.start()
        writer.start()
        try:
            for work in self.items(ready):
                if not self.put(results, (work, *self.launch(work, level))):
                    break
            self.put(results, None)
            while writer.is_alive():
                writer.join(0.05)
                self.report(self.doing)
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
                if not self.put(ready, batches.assemble(self.reader, self.s, number, batch)):
                    return
        self.put(ready, None)

    def launch(self, work: Work, level: int) -> tuple[Any, Any]:
        """Start a batch on the devices; does not wait for it."""
        if work.arrays is None:
            return None, None
        future = self.program(work.batch.bucket, work.batch.size, level=level)
        if not future.done():
            self.report("compiling")
        program = future.result()
        if self.first is None:
            self.first = time.monotonic()
        rows = NamedSharding(self.s.mesh, PartitionSpec("data"))
        with computing():
            arrays, digests = jax.device_put((work.arrays, work.digests), rows)
            last = precision.arguments(self.s.efforts, level).get("rounds", ())
            result, good = program.call(self.s.params, self.s.key, arrays, digests, *last)
        length = work.batch.bucket or 1
        self.computed += program.size * length
        self.real += sum(
            n or length for row, n in enumerate(work.lengths) if row not in work.errors
        )
        self.report(self.doing)
        return result, good

    # ---- writing

    def write(
        self, results: queue.Queue, window: int, shards: list[list[plan.Batch]], level: int
    ) -> None:
        """Writer thread: results to blocks, blocks to shards."""
        blocks: list[columns.Block] = []
        for work, result, good in self.items(results):
            with computing():
                blocks.append(batches.block(work, result, good, self.s.outputs))
            if work.batch is shards[work.shard][-1]:
                block, blocks = columns.join(blocks), []
                more: dict[str, Any] = {"run": self.s.identity}
                if self.rounds:
                    block, near = self.rounds.settle(level, self.s.outputs.tree, block)
                    more |= {"effort": rounds.spent(self.s.efforts, level), "converged": near}
                path = store.shard_path(self.s.out, window, work.shard, level)
                with store.writing(self.s.out):
                    store.write(path, store.pack_block(self.s.outputs.tree, block, **more))
                self.count_in(level, len(block.index), len(block.failed))
                tell(self.reasons, block.failed)
                self.finished += len(block.index)
                if self.gap and not self.rounds:
                    self.gaps = gaps.add(self.gaps, gaps.of_columns(block.columns, self.gap))


def tell(reasons: Counter, failed: Mapping[int, str]) -> None:
    """Count why examples failed; reasons that come after many other ones are not counted."""
    for reason in failed.values():
        if reason in reasons or len(reasons) < DIFFERENT:
            reasons[reason] += 1


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
