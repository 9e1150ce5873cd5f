"""The moving parts of a run: reader, devices and writer at work at once."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxplain.run import batches, columns, packing, plan, precision, rounds, store
from jaxplain.run import compile as compiler
from jaxplain.run.parts import Settings, Work
from jaxplain.run.rounds import Rounds
from jaxplain.run.team import Team
from jaxplain.types import JaxplainError

AHEAD = 2  # batches that are read, and results that wait for the disk, at most


class Task(NamedTuple):
    """Shards of a window to compute in a round.

    Attributes:
        window: number of the window.
        level: number of the round.
        shards: all of them, as planned.
        missing: numbers of those that are not on disk.
        rounds: in a run with a tolerance, what the window has so far.
        written: told the number and the block of each shard that is on disk now.
    """

    window: int
    level: int
    shards: plan.Shards
    missing: list[int]
    rounds: Rounds | None
    written: Callable[[int, columns.Block], None]


class Pipeline:
    """Reader, devices and writer, which work at once; with the programs that were compiled."""

    def __init__(self, settings: Settings, source: Any, report: Callable, team: Team):
        self.s, self.report, self.team = settings, report, team
        self.reader = plan.Reader(source, settings.like)
        # By bucket, rows, and the round where that is compiled in.
        self.programs: dict[tuple[int, int, int], Future] = {}
        self.sizes: dict[int, int] = {}
        # Two compilers: tracing holds Python's lock, XLA's own work does not.
        self.pool = ThreadPoolExecutor(2)
        self.real = self.computed = self.finished = 0
        self.first: float | None = None  # when the first program was ready
        self.stop = threading.Event()
        self.trouble: list[BaseException] = []

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def rate(self) -> float:
        """Examples per second, of all processes."""
        finished = self.finished + sum(self.team.others.values())
        return finished / max(time.monotonic() - self.first, 1e-9) if self.first else 0.0

    def padding(self) -> float:
        return 1 - self.real / self.computed if self.computed else 0.0

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

    # ---- computing

    def compute(self, task: Task) -> None:
        """Compute those of the missing shards that no other process has taken."""
        if self.team.alone:  # all will be needed
            for number in task.missing:
                for batch in task.shards[number]:
                    if batch.bucket != plan.FAILED:
                        self.program(batch.bucket, batch.size, level=task.level)
        ready: queue.Queue = queue.Queue(AHEAD)
        results: queue.Queue = queue.Queue(AHEAD)
        reader = threading.Thread(target=self.guard, args=(self.read, ready, task))
        writer = threading.Thread(target=self.guard, args=(self.write, results, task))
        try:
            reader.start()
            writer.start()
            for work in self.items(ready):
                if not self.put(results, (work, *self.launch(work, task.level))):
                    break
            self.put(results, None)
            while writer.is_alive():
                writer.join(0.05)
                self.report()
        except BaseException:
            self.stop.set()
            raise
        finally:
            if self.trouble:
                self.stop.set()
            for thread in (reader, writer):
                if thread.ident is not None:  # else an interrupt came before it started
                    thread.join()
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
            self.team.check()
            try:
                item = line.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is None:
                return
            yield item

    def read(self, ready: queue.Queue, task: Task) -> None:
        """Reader thread: rows to padded batches."""
        for number in task.missing:
            if not self.team.take(task.window, task.level, number):
                continue
            for batch in task.shards[number]:
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
        self.report()
        return result, good

    # ---- writing

    def write(self, results: queue.Queue, task: Task) -> None:
        """Writer thread: results to blocks, blocks to shards."""
        blocks: list[columns.Block] = []
        for work, result, good in self.items(results):
            with computing():
                blocks.append(batches.block(work, result, good, self.s.outputs))
            if work.batch is task.shards[work.shard][-1]:
                block, blocks = columns.join(blocks), []
                more: dict[str, Any] = {"run": self.s.identity}
                if task.rounds:
                    block, near = task.rounds.settle(task.level, self.s.outputs.tree, block)
                    more |= {"effort": rounds.spent(self.s.efforts, task.level), "converged": near}
                path = store.shard_path(self.s.out, task.window, work.shard, task.level)
                with store.writing(self.s.out):
                    store.write(path, packing.pack_block(self.s.outputs.tree, block, **more))
                self.finished += len(block.index)
                self.team.put_down(task.window, task.level, work.shard, len(block.index))
                task.written(work.shard, block)


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
