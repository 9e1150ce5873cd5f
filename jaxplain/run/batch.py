"""`batch_explainer`: the engine's work on one batch in memory, for engines of other kinds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxplain.run import batches, columns, packing, plan, rounds
from jaxplain.run import compile as compiler
from jaxplain.run.begin import begin, check_arguments
from jaxplain.run.columns import Index
from jaxplain.run.packing import Record
from jaxplain.run.trees import rebuild
from jaxplain.types import PyTree


def batch_explainer(
    explain: Callable[..., PyTree],
    params: PyTree,
    like: Any,
    *,
    key: jax.Array,
    ragged: Sequence[str] = (),
    lengths: Sequence[int] | str = "auto",
    max_length: int | None = None,
    batch_size: int | str = "auto",
    mesh: Mesh | None = None,
    memory_limit: int | None = None,
) -> Callable[[Any], list[Record]]:
    """Make a function that explains batches of examples in memory, for a worker of another engine.

    Make it once in each worker (an actor of Ray, a `DoFn` of Beam, a partition of Spark) and call
    it with any number of examples, as often as batches come. It pads, batches, trims and draws as
    `run` does, and gives the records that `run` would keep: bit for bit where an example is
    computed at the same length in a program of as many rows on the same devices, else to rounding,
    as sums take another order. It writes nothing but JAX's cache of programs.

    A program is compiled when its length is first met. Large calls are the faster ones: examples
    are sorted by length within one call. Hundreds of examples a call fill the programs; the records
    of one call are held in memory.

    Args:
        explain, params, key: as `run` takes them. An example's random key follows from `key` and
            its content, so it depends neither on the worker nor on the batch.
        like: one example. All others must have its names, dtypes and shapes.
        ragged: names of the fields whose leading axis is the example's length. Not "auto": what a
            first batch holds must not decide.
        lengths, max_length: as `run` takes them. "auto" is 8, 12, 16, 24, 32, 48 and so on,
            as in a run of more than 256 examples.
        batch_size: rows of a program over all devices. "auto" is as many as suit the length and
            fit the memory, and what is left of a call goes to programs of fewer rows.
        mesh: needs an axis `data`. Default: all local devices. A worker that shares a machine with
            others should see its own device alone, or say which: a mesh of one.
        memory_limit: bytes a device that a program may take; default 80% of what is free.

    Returns:
        `(examples) -> list[Record]`: one record an example, in their order; `index` is the place in
        the call. Takes anything with `__len__` and `__getitem__`. Examples that cannot be read, do
        not fit, or come out as NaN or infinity have an `error`, as in a run. It holds compiled
        programs, so it cannot be pickled, and is not safe to call from two threads at once.

    Raises:
        JaxplainError: as `run`, of arguments and of explain's outputs.

    Costs tracing `explain`, and hashing the parameters once; then what its programs cost.

    >>> import jax, jax.numpy as jnp, numpy as np, jaxplain as jxp
    >>> def explain(params, example, key):
    ...     return jxp.integrated_gradients(lambda x: jnp.tanh(x @ params), example["x"])
    >>> rows = [{"x": np.ones(3, np.float32) * i, "name": f"row {i}"} for i in range(4)]
    >>> worker = jxp.batch_explainer(explain, jnp.ones(3), rows[0], key=jax.random.key(0))
    >>> [record.notes["name"] for record in worker(rows[2:])]
    ['row 2', 'row 3']
    >>> jxp.export.to_table(worker(rows)).column_names[:3]
    ['index', 'name', 'scores']
    """
    check_arguments([like], batch_size, "auto", lengths, max_length)
    settings, _ = begin(
        explain, params, [like], Path(), key=key, mesh=mesh, batch_size=batch_size,
        shard_size="auto", lengths=lengths, max_length=max_length, ragged=tuple(ragged),
        configuration=None, keep=None, tolerance=None, efforts=None, memory_limit=memory_limit,
    )  # fmt: skip
    s = settings._replace(lengths=plan.grid(lengths, plan.FEW + 1))  # many are to come
    devices, platform = s.mesh.shape["data"], s.mesh.devices.flat[0].platform
    memory = s.memory if batch_size == "auto" else None
    programs: dict[tuple[int, int], compiler.Program] = {}
    sizes: dict[int, int] = {}

    def program(bucket: int, size: int) -> compiler.Program:
        if (bucket, size) not in programs:
            made = compiler.compile_bucket(
                s.explain, s.params, s.key, s.like, bucket or None, size, s.mesh, memory=memory
            )
            programs[bucket, size] = programs[bucket, made.size] = made
        return programs[bucket, size]

    def batches_of(bucket: int, group: Index) -> list[plan.Batch]:
        """Batches whose programs fit the memory."""
        if bucket not in sizes:
            most = plan.batch_size_for(1, True, bucket, devices, platform)
            sizes[bucket] = plan.round_up(
                most if batch_size == "auto" else int(batch_size), devices
            )
        while True:
            if batch_size == "auto":
                shards = rounds.cut({bucket: list(group)}, sizes, devices, len(group))
            else:
                shards = plan.cut({bucket: group}, {}, sizes, len(group))
            found = [batch for shard in shards for batch in shard]
            fits = program(bucket, found[0].size).size
            if fits == found[0].size:  # the largest comes first
                return found
            sizes[bucket] = fits

    def launched(reader: plan.Reader, groups: Mapping[int, Index]) -> Iterator[tuple]:
        """Batches on their way; the device does not wait for the host to have read the last."""
        rows = NamedSharding(s.mesh, PartitionSpec("data"))
        for bucket, group in groups.items():
            for batch in batches_of(bucket, group):
                work, result, good = batches.assemble(reader, s, 0, batch), None, None
                if work.arrays is not None:
                    given = jax.device_put((work.arrays, work.digests), rows)
                    result, good = program(bucket, batch.size).call(s.params, s.key, *given)
                yield work, result, good

    def explained(examples: Any) -> list[Record]:
        reader = plan.Reader(examples, s.like)
        every = range(len(examples))
        groups, errors = plan.sort_window(reader, every, s.lengths, s.max_length)
        found = {index: Record(index, None, {}, error) for index, error in errors.items()}

        def keep(work: Any, result: Any, good: Any) -> None:
            block = batches.block(work, result, good, s.outputs)
            for index, values, notes, error in columns.rows(block):
                made = None if values is None else rebuild(s.outputs.tree, iter(values))
                found[index] = Record(index, made, packing.noted(notes), error)

        before = None
        for item in launched(reader, groups) if len(examples) else ():
            if before is not None:
                keep(*before)
            before = item
        if before is not None:
            keep(*before)
        return [found[index] for index in every]

    return explained
