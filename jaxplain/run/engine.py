"""`run`: one call explains a dataset, on every device of a mesh, and can be killed at any moment."""

import datetime
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxplain.run import compile as compiler
from jaxplain.run import fingerprint, plan, progress as progress_, store
from jaxplain.run.trees import Layout, fit, stack
from jaxplain.types import JaxplainError, PyTree

AHEAD = 2  # batches that are read, and results that wait for the disk, at most


class Summary(NamedTuple):
    """What a run came to.

    Attributes:
        out: the run directory.
        examples: examples of the source.
        done: examples with a result on disk, those of earlier starts included.
        failed: examples recorded as failed, with their reason.
        resumed: examples that earlier starts had finished, failed ones included.
        seconds: wall time of this start, compilation included.
        examples_per_second: of this start, over the time after the first program was compiled.
        padding: share of the positions computed by this start that was padding.
    """

    out: Path
    examples: int
    done: int
    failed: int
    resumed: int
    seconds: float
    examples_per_second: float
    padding: float


class Settings(NamedTuple):
    """The arguments of `run` that its parts share."""

    explain: Callable
    params: PyTree
    key: jax.Array
    like: Layout
    out: Path
    mesh: Mesh
    batch_size: int | str
    shard_size: int
    lengths: Any
    max_length: int | None
    memory: int
    outputs: compiler.Outputs


class Work(NamedTuple):
    """One batch on its way to the device: where it belongs, and its rows as far as they exist."""

    shard: int
    batch: plan.Batch
    lengths: list[int | None]
    notes: list[dict]
    errors: dict[int, str]  # by row
    arrays: PyTree
    digests: np.ndarray | None


def run(
    explain: Callable[[PyTree, PyTree, jax.Array], PyTree],
    params: PyTree,
    examples: Any,
    out: str | Path,
    *,
    key: jax.Array,
    mesh: Mesh | None = None,
    batch_size: int | str = "auto",
    shard_size: int = 256,
    lengths: Sequence[int] | str = "auto",
    max_length: int | None = None,
    ragged: Sequence[str] | str = "auto",
    configuration: dict[str, Any] | None = None,
    memory_limit: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Summary:
    """Explain every example of a source, and keep what comes out in a directory.

    The same call again resumes a run that ended early, however it ended: finished shards are read
    back and checked, damaged ones are computed anew. On the same devices the directory ends up bit
    for bit as if the run had never stopped. Let `B` be the rows of a batch, `T` an example's length.

    Args:
        explain: `(params, example, key) -> pytree`, a pure function of one example: any of
            jaxplain's methods inside any function of yours. It is mapped with `jax.vmap`.
        params: the model's parameters, an argument of the compiled program. Leaves that are
            sharded over `mesh` already stay so; others are copied to every device.
        examples: anything with `__len__` and `__getitem__` that gives a pytree of numeric arrays.
            Top-level fields of a dict that hold anything else (strings, None) go to no device and
            come back as `Record.notes`.
        out: the run directory; made if need be.
        key: a JAX random key. Each example's key is folded from it and a hash of the example's
            arrays, so it depends neither on batch nor on place.
        mesh: needs an axis `data`, over which batches are split. Default: all local devices.
        batch_size: rows `B` of a program over all devices; "auto" starts from a size that suits the
            length and shrinks until the compiled program's own memory analysis fits.
        shard_size: examples in a file, about; the most that a kill can cost.
        lengths: lengths that ragged examples are padded to, with zeros; "auto" is 8, 12, 16, 24,
            32, 48 and so on. A function of the example's length alone.
        max_length: the longest that the model takes; longer examples are recorded as failed.
        ragged: names of the fields whose leading axis is the example's length `T`; "auto" takes
            those that differ among up to 256 evenly spaced examples. An example must say itself
            which positions are real: give it a mask of ones, which padding continues with zeros.
        configuration: anything that JSON holds; kept in run.json, and compared on resuming.
        memory_limit: bytes a device that a program may take; default 80% of what is free.
        overwrite: remove the run that is in `out`, if another one is there.
        progress: show a bar, or plain lines where there is no terminal, on stderr.

    Returns:
        `Summary`. The records: `jaxplain.load(out)`.

    Raises:
        JaxplainError: a directory that is another run's, not ours, in use or not writable; an
            empty source; explain's outputs of a shape that cannot be trimmed. Examples that cannot
            be read, that do not fit, or that come out as NaN or infinity do not raise: they are
            recorded as failed with their reason. Errors of `explain` itself pass through.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, jaxplain as jxp, tempfile
        >>> def explain(params, example, key):
        ...     return jxp.integrated_gradients(lambda x: jnp.tanh(x @ params), example["x"])
        >>> rows = [{"x": np.ones(3, np.float32) * i, "name": f"row {i}"} for i in range(4)]
        >>> out = tempfile.mkdtemp() + "/first"
        >>> params = jnp.array([1.0, 2.0, -1.0])
        >>> summary = jxp.run(explain, params, rows, out, key=jax.random.key(0), progress=False)
        >>> summary.done, summary.failed
        (4, 0)
        >>> record = jxp.load(out)[2]
        >>> record.notes["name"], record.result.scores.shape
        ('row 2', (3,))
    """
    began = time.monotonic()
    out = Path(out)
    check_arguments(examples, batch_size, shard_size, lengths, max_length)
    mesh = compiler.check_mesh(mesh)
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    old = store.read_info(out)  # before anything is made: a directory not ours stays untouched
    with store.lock(out):
        old = store.read_info(out)
        if overwrite and old is not None:
            store.clear(out)
            old = None
        compiler.use_cache()
        choice = "auto" if ragged == "auto" else tuple(ragged)
        like, probes = plan.probe(examples, choice)
        params = compiler.place(params, mesh)
        length = canonical_length(lengths, max_length)
        outputs, function = compiler.outputs(explain, params, key, like, length)
        info = {
            "format": store.FORMAT,
            "created": now(),
            "status": "running",
            "examples": len(examples),
            "configuration": fingerprint.jsonable(configuration or {}),
            "plan": {
                "batch_size": batch_size,
                "shard_size": shard_size,
                "lengths": lengths if isinstance(lengths, str) else list(lengths),
                "max_length": max_length,
                "ragged": [n for n, r in zip(like.names, like.ragged, strict=True) if r],
            },
            "versions": fingerprint.versions(),
            "fingerprints": {
                "function": function,
                "params": fingerprint.of_params(params),
                "data": fingerprint.of_data(len(examples), probes),
                "key": fingerprint.of_key(key),
            },
        }
        if old is not None:
            fingerprint.check_same(out, old, info)
            info["created"] = old["created"]
        info["devices"] = devices(mesh)
        with writing(out):
            for folder in ("plans", "shards"):
                (out / folder).mkdir(exist_ok=True)
            store.write_info(out, info)
        settings = Settings(
            explain, params, jax.device_put(key, NamedSharding(mesh, PartitionSpec())), like, out,
            mesh, batch_size, shard_size, lengths, max_length,
            memory_limit or int(compiler.MARGIN * compiler.free_memory(mesh)), outputs,
        )  # fmt: skip
        with progress_.shown(progress) as show:
            summary = Run(settings, examples, show, began).all()
        info["status"] = "complete"
        earlier = (old or {}).get("totals", {}).get("seconds", 0.0)
        info["totals"] = {
            "done": summary.done,
            "failed": summary.failed,
            "seconds": round(earlier + summary.seconds, 3),
            "examples_per_second": round(summary.examples_per_second, 3),
            "padding": round(summary.padding, 4),
        }
        if old is None or old.get("status") != "complete" or summary.resumed < summary.examples:
            info["finished"] = now()
        else:  # nothing was left to do: the record of what was done stands
            info |= {name: old[name] for name in ("totals", "finished", "devices") if name in old}
        with writing(out):
            store.write_info(out, info)
        return summary


class Run:
    """The moving parts of one call of `run`: reader, device and writer work at once."""

    def __init__(self, settings: Settings, source: Any, show: Callable, began: float):
        self.s, self.source, self.show, self.began = settings, source, show, began
        self.reader = plan.Reader(source, settings.like)
        self.programs: dict[int, Future] = {}
        self.sizes: dict[int, int] = {}
        self.count = len(source)
        self.done = self.failed = self.resumed = 0
        self.real = self.computed = self.finished = 0
        self.first: float | None = None  # when the first program was ready
        self.stop = threading.Event()
        self.trouble: list[BaseException] = []

    def all(self) -> Summary:
        windows = range(-(-self.count // plan.WINDOW))
        # Two compilers: tracing holds Python's lock, XLA's own work does not.
        with ThreadPoolExecutor(2) as self.pool:
            for window in windows:
                self.report("planning")
                shards = self.plan_window(window)
                missing = self.verify(window, shards)
                if missing:
                    self.compute(window, shards, missing)
                self.reader.forget()
        self.report("explained")
        seconds = time.monotonic() - self.began
        return Summary(
            self.s.out, self.count, self.done, self.failed, self.resumed, seconds,
            self.rate(), self.padding(),
        )  # fmt: skip

    def rate(self) -> float:
        return self.finished / max(time.monotonic() - self.first, 1e-9) if self.first else 0.0

    def padding(self) -> float:
        return 1 - self.real / self.computed if self.computed else 0.0

    def report(self, doing: str) -> None:
        self.show(
            progress_.State(
                self.done + self.failed, self.count, self.failed, self.rate(), self.padding(), doing
            )
        )

    # ---- planning

    def plan_window(self, window: int) -> list[list[plan.Batch]]:
        """The shards of a window, as first planned: read back if they were, else cut and kept."""
        path = store.plan_path(self.s.out, window)
        try:
            content = store.unpack(path)
        except (FileNotFoundError, store.Damaged):
            content = None
        if content is None:
            start = window * plan.WINDOW
            indices = range(start, min(start + plan.WINDOW, self.count))
            groups, errors = plan.sort_window(
                self.reader, indices, self.s.lengths, self.s.max_length
            )
            self.settle_sizes(groups, more=indices.stop < self.count)
            shards = plan.cut(groups, errors, self.sizes, self.s.shard_size)
            content = {"shards": [[list(b) for b in shard] for shard in shards]}
            content["sizes"] = list(self.sizes.items())
            with writing(self.s.out):
                store.write(path, store.pack(content))
        self.sizes.update(dict(map(tuple, content["sizes"])))
        return [
            [plan.Batch(b[0], b[1], tuple(b[2]), tuple(b[3])) for b in shard]
            for shard in content["shards"]
        ]

    def settle_sizes(self, groups: dict[int, list[int]], more: bool) -> None:
        """Choose the batch of every bucket that has none yet; compile to know that it fits."""
        rows = self.s.mesh.shape["data"]
        for bucket, group in groups.items():
            if bucket not in self.sizes:
                wanted = plan.batch_size_for(
                    len(group), more, bucket, rows, self.s.batch_size, self.s.shard_size
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
                writer.join(0.2)
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
        arrays, digests = jax.device_put((work.arrays, work.digests), rows)
        result, good = program.call(self.s.params, self.s.key, arrays, digests)
        length = work.batch.bucket or 1
        self.computed += program.size * length
        self.real += sum(n or length for row, n in enumerate(work.lengths) if row not in work.errors)
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
                with writing(self.s.out):
                    store.write(path, store.pack_records(self.s.outputs.tree, records))
                failed = sum(error is not None for *_, error in records)
                self.failed += failed
                self.done += len(records) - failed
                self.finished += len(records)
                records = []

    def records(self, work: Work, result: Any, good: Any) -> Iterator[tuple]:
        leaves = []
        if result is not None:
            try:
                leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
                good = np.asarray(good)
            except jax.errors.JaxRuntimeError as error:
                raise JaxplainError(
                    f"the device failed: {plan.reason(error)[:300]}. What is on disk is whole: run "
                    "the same command again to resume, with a smaller batch size if memory ran out"
                ) from error
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
        bad = [
            f"{'NaN' if np.isnan(value).any() else 'infinity'} in {name}"
            for name, value in zip(self.s.outputs.names, values, strict=True)
            if np.issubdtype(value.dtype, np.inexact) and not np.isfinite(value).all()
        ]
        return ", ".join(bad) or "NaN or infinity in the padding"


def check_arguments(examples, batch_size, shard_size, lengths, max_length) -> None:
    if not hasattr(examples, "__len__") or not hasattr(examples, "__getitem__"):
        raise JaxplainError(
            f"examples is a {type(examples).__name__}: it must have __len__ and __getitem__, as a "
            "list has; put an iterator into a list"
        )
    if not len(examples):
        raise JaxplainError("examples is empty: there is nothing to explain")
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
        raise JaxplainError(f"batch_size must be 'auto' or at least 1, not {batch_size!r}")
    for name, value in (("shard_size", shard_size), ("max_length", max_length)):
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise JaxplainError(f"{name} must be at least 1, not {value!r}")
    if lengths != "auto" and (isinstance(lengths, str) or not lengths or min(lengths) < 1):
        raise JaxplainError(f"lengths must be 'auto' or numbers of at least 1, not {lengths!r}")


def canonical_length(lengths: Any, max_length: int | None) -> int:
    """A length to trace at that is the same in every start of a run."""
    length = 16 if isinstance(lengths, str) else max(min(lengths), 2)
    return length if max_length is None else max(min(length, max_length), 1)


def devices(mesh: Mesh) -> dict[str, Any]:
    first = mesh.devices.flat[0]
    return {"platform": first.platform, "kind": first.device_kind, "mesh": dict(mesh.shape)}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class writing:
    """Turn a failed write into one line that says how to go on."""

    def __init__(self, out: Path):
        self.out = out

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, OSError):
            raise JaxplainError(
                f"{self.out} cannot be written: {error.strerror or error}. What is already there "
                "is whole: mend that, and run the same command again to resume"
            ) from error
