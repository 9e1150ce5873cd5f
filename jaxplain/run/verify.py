"""`verify`: whether a run is what it says, file by file, and example by example."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxplain.run import batches, fingerprint, packing, plan, precision, store
from jaxplain.run import compile as compiler
from jaxplain.run.begin import begin
from jaxplain.run.columns import Index, pack_index, rows
from jaxplain.run.parts import Settings
from jaxplain.run.pipeline import computing
from jaxplain.run.precision import Effort, join
from jaxplain.run.records import Records
from jaxplain.run.trees import describe, rebuild, unbuild
from jaxplain.types import JaxplainError, PyTree

# Sums in another order, in float32: `run` promises 1e-5 on another mesh; this is what a result of
# many such sums may differ by, as a share of its largest number.
ROUNDING = 1e-4


class Verification(NamedTuple):
    """What `verify` found.

    Attributes:
        shards: how many were read.
        records: how many results and failures these hold.
        problems: what is wrong, a line each; empty if nothing is.
        compared: how many examples were computed anew; 0 where no model was given.
        seed: of the sample.
        exact: whether all of these came out bit for bit as recorded; None where none were.
        largest: the largest difference of a result, as a share of its largest number.
    """

    shards: int
    records: int
    problems: tuple[str, ...]
    compared: int
    seed: int
    exact: bool | None
    largest: float

    @property
    def agrees(self) -> bool:
        return not self.problems


def verify(
    out: str | Path,
    explain: Callable[..., PyTree] | None = None,
    params: PyTree = None,
    examples: Any = None,
    *,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    configuration: Mapping[str, Any] | None = None,
    keep: Mapping[str, PyTree] | None = None,
    efforts: Sequence[Effort] | None = None,
    sample: int = 16,
    seed: int = 0,
) -> Verification:
    """Read every file of a run again, and compute a sample of its examples anew.

    Of the files: each agrees with its checksum, holds the examples that the plan says, and belongs
    to this run with this configuration. Of the function, the parameters, the examples and the key,
    if they are given: they are those of the run. Of a random sample of examples: their results are
    those on disk, bit for bit on the same kind of devices and the same versions, and to rounding on
    others.

    Args:
        out: the run directory.
        explain, params, examples, key, configuration, keep, efforts: as `run` had them. Without
            `explain`, only files are read.
        mesh: as `run` takes it.
        sample: how many examples to compute anew, at least; the others of their batches come along.
        seed: of the sample.

    Returns:
        `Verification`; `problems` says in words what does not agree. Costs reading every file, and
        what the sample's batches cost.

    Raises:
        JaxplainError: a directory that is no run; `explain` without examples or key.
    """
    out = Path(out)
    info = store.read_info(out) if out.exists() else None
    if info is None:
        raise JaxplainError(f"{out} is not a run: there is no run.json in it")
    found = _files(out, info)
    problems = list(found.problems)
    if explain is None:
        return Verification(found.shards, found.records, tuple(problems), 0, seed, None, 0.0)
    if examples is None or key is None:
        raise JaxplainError("to compute examples anew, give explain, params, examples and key")
    recorded = info["plan"]
    settings, now = begin(
        explain, params, examples, out, key=key, mesh=mesh, batch_size=recorded["batch_size"],
        shard_size=recorded["shard_size"], lengths=recorded["lengths"],
        max_length=recorded["max_length"], ragged=recorded["ragged"], configuration=configuration,
        keep=keep, tolerance=recorded.get("tolerance"), efforts=efforts, memory_limit=None,
    )  # fmt: skip
    lines = fingerprint.differences(info, now)
    problems += [f"{out} holds another run: {line}" for line in lines]
    chosen = _sample(found.sound, seed, sample)
    if not chosen:
        return Verification(found.shards, found.records, tuple(problems), 0, seed, None, 0.0)
    compared, exact, largest, wrong = 0, True, 0.0, []
    recompute = _Recompute(settings, examples, found.sound)
    for index, result in recompute.batches_of(chosen):
        same, distance = _compare(found.sound[index].result, result)
        compared, exact, largest = compared + 1, exact and same, max(largest, distance)
        if not (same if _same_machine(info, now) else distance <= ROUNDING):
            wrong.append((index, distance))
    if wrong:
        index, distance = max(wrong, key=lambda pair: pair[1])
        problems.append(
            f"{len(wrong)} of {compared} examples computed anew come out otherwise, example {index}"
            f" by {distance:.1e} of its largest number"
        )
    return Verification(
        found.shards, found.records, tuple(problems), compared, seed, exact, largest
    )


class _Found(NamedTuple):
    """What the files of a run hold; its records, of the shards that nothing is wrong with."""

    shards: int
    records: int
    problems: list[str]
    sound: Records


def _files(out: Path, info: dict[str, Any]) -> _Found:
    """Read every file."""
    identity, complete = fingerprint.identity(info), info.get("status") == "complete"
    shards = records = 0
    problems: list[str] = []
    sound: store.Present = {}
    try:
        packing.read_kept(out)
    except store.Damaged as error:
        problems.append(str(error))
    for window, level, path in store.plans(out):
        try:
            every = plan.unpack(store.unpack(path))
        except store.Damaged as error:
            problems.append(str(error))
            continue
        for number, shard in enumerate(every):
            name, index = store.shard_path(out, window, number, level), plan.index_of(shard)
            try:
                content = store.unpack(name)
            except store.Damaged as error:
                problems.append(str(error))
                continue
            except FileNotFoundError:
                if complete:
                    problems.append(f"{name} is missing: run the same command again to compute it")
                continue
            shards += 1
            if content["examples"] != pack_index(index):
                problems.append(f"{name} holds other examples than its plan says: it was swapped")
                continue
            if content["run"] != identity:
                problems.append(
                    f"{name} belongs to another run, or run.json was altered since it was written"
                )
            if level == 0:
                records += len(index)
            sound.setdefault(window, set()).add((level, number))
    found = Records(out, info, sound)
    if complete and not problems and len(found) < info["examples"]:
        problems.append(
            f"{info['examples'] - len(found)} of {info['examples']} examples are absent"
        )
    return _Found(shards, records, problems, found)


def _sample(sound: Records, seed: int, sample: int) -> list[int]:
    """Random examples that have a result, `sample` of them where there are as many."""
    order = map(int, np.random.default_rng(seed).permutation(sound.info["examples"]))
    known = (index for index in order if _level(sound, index) is not None)
    return list(islice(known, max(sample, 0)))


def _level(sound: Records, index: int) -> int | None:
    """The round that an example's result is of; None where it has none."""
    place = sound.place(index)
    return None if place is None or sound[index].error is not None else place[1]


class _Recompute:
    """Batches as the run had them, computed anew."""

    def __init__(self, settings: Settings, examples: Any, sound: Records):
        self.s, self.sound = settings, sound
        self.reader = plan.Reader(examples, settings.like)
        self.programs: dict[tuple, compiler.Program] = {}
        self.plans: dict[tuple[int, int], plan.Shards] = {}
        self.done: dict[tuple[int, Index], dict[int, PyTree]] = {}

    def batch(self, index: int, level: int) -> plan.Batch:
        """The batch that an example was in, in a round."""
        key = index // self.s.window, level
        if key not in self.plans:
            self.plans[key] = plan.unpack(store.unpack(store.plan_path(self.s.out, *key)))
        return next(b for shard in self.plans[key] for b in shard if index in b.indices)

    def batches_of(self, chosen: list[int]) -> Iterator[tuple[int, PyTree]]:
        """`(index, result)` of the chosen examples; batch mates of theirs that ended in the same
        round come along."""
        told: set[int] = set()
        for index in chosen:
            level = _level(self.sound, index)
            assert level is not None
            for mate in self.batch(index, level).indices:
                if mate in told or _level(self.sound, mate) != level:
                    continue
                if mate != index and level:  # its earlier rounds were in other batches
                    continue
                told.add(mate)
                result = None
                for step in range(level + 1):
                    new = self.computed(mate, step)
                    if step:
                        new = join(result, new, self.s.efforts[step].share)
                    result = new
                yield mate, result

    def computed(self, index: int, level: int) -> PyTree:
        """One round's own result of an example."""
        batch = self.batch(index, level)
        key = level, batch.indices
        if key not in self.done:
            self.done[key] = self.run(batch, level)
        return self.done[key][index]

    def run(self, batch: plan.Batch, level: int) -> dict[int, PyTree]:
        work = batches.assemble(self.reader, self.s, 0, batch)
        if work.arrays is None:
            return dict.fromkeys(batch.indices)
        rounds = precision.arguments(self.s.efforts, level)
        settled = level if "settled" in rounds else 0
        name = batch.bucket, batch.size, settled
        if name not in self.programs:
            size = plan.round_up(batch.size, self.s.mesh.shape["data"])
            self.programs[name] = compiler.compile_bucket(
                self.s.explain, self.s.params, self.s.key, self.s.like, batch.bucket or None, size,
                self.s.mesh, memory=None, **rounds,
            )  # fmt: skip
        split = NamedSharding(self.s.mesh, PartitionSpec("data"))
        with computing():
            given = jax.device_put((work.arrays, work.digests), split)
            last = rounds.get("rounds", ())
            made = self.programs[name].call(self.s.params, self.s.key, *given, *last)
            rows_of = list(rows(batches.block(work, *made, self.s.outputs)))
        tree = self.s.outputs.tree
        return {
            index: None if values is None else rebuild(tree, iter(values))
            for index, values, _, _ in rows_of
        }


def _compare(before: PyTree, after: PyTree) -> tuple[bool, float]:
    """Whether two results are the same bit for bit, and how far apart they are."""
    if after is None:
        return False, np.inf
    exact, apart, size = True, 0.0, 0.0
    for a, b in zip(_leaves(before), _leaves(after), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            return False, np.inf
        exact = exact and a.tobytes() == b.tobytes()
        a, b = a.astype(np.float64), b.astype(np.float64)
        away = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b))
        apart = max(apart, float(np.nan_to_num(away, nan=np.inf).max(initial=0)))
        size = max(size, float(np.abs(np.nan_to_num(a)).max(initial=0)))
    return exact, apart / size if size else apart


def _leaves(result: PyTree) -> list[Any]:
    return unbuild(describe(result), result)


def _same_machine(info: dict[str, Any], now: dict[str, Any]) -> bool:
    return all(info.get(name) == now[name] for name in ("devices", "versions"))
