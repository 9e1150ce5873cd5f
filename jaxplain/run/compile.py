"""One program a bucket, compiled ahead of time for a mesh, in a batch that fits its memory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxplain.run import fingerprint
from jaxplain.run.trees import Layout, describe, finite, leaf_names, shaped
from jaxplain.types import JaxplainError, PyTree

MARGIN = 0.8  # share of a device's free memory that one program may take
SMALL = 4 * 2**20  # bytes of a program that stays in a CPU's cache
IN_FLIGHT = 3  # batches whose inputs and outputs are on the device at once


class Outputs(NamedTuple):
    """What `explain` returns.

    Attributes:
        tree: its structure, as the store keeps it.
        names: a name for each leaf.
        ragged: for each leaf the axes that have the example's length.
    """

    tree: Any
    names: list[str]
    ragged: tuple[tuple[int, ...], ...]


class Program(NamedTuple):
    """A compiled program for `size` examples padded to one length."""

    call: Callable[..., tuple[PyTree, jax.Array]]
    size: int
    bytes: int


def default_mesh() -> Mesh:
    return Mesh(np.asarray(jax.local_devices()), ("data",), axis_types=(AxisType.Auto,))


def check_mesh(mesh: Mesh | None) -> Mesh:
    """The mesh to run on, its axes in Auto mode: Explicit axes break ordinary model code."""
    if mesh is None:
        return default_mesh()
    if "data" not in mesh.axis_names:
        raise JaxplainError(f"the mesh has axes {mesh.axis_names}: it needs one named 'data'")
    if set(mesh.devices.flat) - set(jax.local_devices()):
        raise JaxplainError(
            "the mesh holds devices of other processes: make it of jax.local_devices(); each "
            "process of a run computes shards of its own"
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def place(params: PyTree, mesh: Mesh) -> PyTree:
    """Put parameters on the mesh: as they are sharded already, or else a copy on each device.

    Raises:
        JaxplainError: a leaf is divided among devices, but not along axes of this mesh: a copy on
            each device may be more than that holds.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(path, leaf):
        sharding = getattr(leaf, "sharding", None)
        if sharding is None or sharding.is_fully_replicated:
            return jax.device_put(leaf, everywhere)
        if fits(sharding, mesh):
            return jax.device_put(leaf, NamedSharding(mesh, sharding.spec))
        over = dict(sharding.mesh.shape) if isinstance(sharding, NamedSharding) else sharding
        raise JaxplainError(
            f"params{jax.tree_util.keystr(path)} is divided over {over}, and this run's mesh is "
            f"{dict(mesh.shape)}: give the mesh that it is divided over, run(..., mesh=mesh)"
        )

    return jax.tree_util.tree_map_with_path(put, params)


def fits(sharding: Any, mesh: Mesh) -> bool:
    """Whether a leaf is divided along axes that `mesh` has, over the same devices."""
    if not isinstance(sharding, NamedSharding):
        return False
    there = [(name, sharding.mesh.shape[name]) for name in sharding.mesh.axis_names]
    same = set(sharding.device_set) == set(mesh.devices.flat)
    return same and there == [(name, mesh.shape[name]) for name in mesh.axis_names]


def batched(explain: Callable, settled: PyTree = None) -> Callable:
    """`explain` over a batch, each example under a key of its own, each result checked.

    With rounds, `(number, effort)` comes last; where the effort is `settled`, only the number is
    the program's argument. A round has keys of its own.
    """

    def one(params, key, example, digest, *rounds):
        key = jax.random.fold_in(jax.random.fold_in(key, digest[0]), digest[1])
        if rounds:
            number, effort = rounds
            key = jax.random.fold_in(key, number)
            result = explain(params, example, key, effort=effort if settled is None else settled)
        else:
            result = explain(params, example, key)
        return result, finite(result)

    def batch(params, key, examples, digests, *rounds):
        each = lambda example, digest: one(params, key, example, digest, *rounds)
        return jax.vmap(each)(examples, digests)

    return batch


def arguments(
    params: PyTree, key: jax.Array, like: Layout, length: int | None, size: int, rounds: tuple = ()
) -> tuple:
    def shape(leaf):
        return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))

    return (
        jax.tree.map(shape, params),
        jax.ShapeDtypeStruct(key.shape, key.dtype),
        shaped(like, length, size),
        jax.ShapeDtypeStruct((size, 2), np.uint32),
        *jax.tree.map(shape, rounds),
    )


def outputs(
    explain: Callable,
    params: PyTree,
    key: jax.Array,
    like: Layout,
    length: int,
    rounds: tuple = (),
    settled: PyTree = None,
):
    """Trace `explain` by shape: what it returns, and a fingerprint of what it computes.

    An output axis has the example's length if it is `length` long for examples of that length and
    one shorter for examples one shorter.

    Raises:
        JaxplainError: if an output depends on the length in another way.
    """
    function = batched(explain, settled)
    lowered = jax.jit(function).lower(*arguments(params, key, like, length, 2, rounds))
    result, _ = lowered.out_info
    if any(like.ragged):
        shorter, _ = jax.eval_shape(function, *arguments(params, key, like, length - 1, 2, rounds))
    else:
        shorter = result
    names, ragged = leaf_names(result), []
    for name, a, b in zip(names, jax.tree.leaves(result), jax.tree.leaves(shorter), strict=True):
        axes = tuple(i for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n)
        odd = [i for i in axes if (a.shape[i], b.shape[i]) != (length, length - 1)]
        if odd:
            raise JaxplainError(
                f"explain returns {name} with an axis of {a.shape[odd[0]]} for an example of "
                f"length {length} and {b.shape[odd[0]]} for {length - 1}: only axes as long as the "
                "example can be trimmed of their padding; reshape it inside explain"
            )
        ragged.append(tuple(i - 1 for i in axes))  # without the batch axis
    return Outputs(describe(result), names, tuple(ragged)), fingerprint.digest([lowered.as_text()])


def free_memory(mesh: Mesh) -> int:
    """Bytes that a device of the mesh has left; host memory is shared among CPU devices."""
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = [d.memory_stats() for d in local]
    if all(s and "bytes_limit" in s for s in stats):
        return min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if s)
    return host_memory() // len(local)


def host_memory() -> int:
    """Bytes of host memory that can still be taken, a container's limit included."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_PHYS_PAGES") * page // 2
    try:
        for text in Path("/proc/meminfo").read_text().splitlines():
            if text.startswith("MemAvailable:"):
                free = int(text.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            free = min(free, max(int(limit) - used, 0))
    except (OSError, ValueError):  # not Linux, or no limit there
        pass
    return free


def use_cache() -> None:
    """Keep compiled programs between processes, unless the user has said where or not to."""
    if os.environ.get("JAXPLAIN_CACHE") == "off" or getattr(
        jax.config, "jax_compilation_cache_dir", None
    ):
        return
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(Path(base) / "jaxplain" / "programs"))


def compile_bucket(
    explain: Callable,
    params: PyTree,
    key: jax.Array,
    like: Layout,
    length: int | None,
    size: int,
    mesh: Mesh,
    *,
    memory: int | None,
    usual: int | None = None,
    rounds: tuple = (),
    settled: PyTree = None,
) -> Program:
    """Compile for `size` rows, halving them until the program fits `memory` bytes a device.

    `memory` None compiles as asked: the size was settled before. More than `usual` rows are for
    programs of at most `SMALL` bytes.

    Raises:
        JaxplainError: if not even one example a device fits.
    """
    devices = mesh.shape["data"]
    rows = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    params_at = jax.tree.map(lambda leaf: leaf.sharding, params)
    function = jax.jit(
        batched(explain, settled),
        in_shardings=(params_at, everywhere, rows, rows, *(everywhere for _ in rounds)),
        out_shardings=rows,
    )
    while True:
        with jax.set_mesh(mesh):  # for what divides its own work among devices
            shapes = arguments(params, key, like, length, size, rounds)
            compiled = function.lower(*shapes).compile()
        taken = bytes_of(compiled, params, devices)
        if usual and size > usual and taken > SMALL:
            size = usual
            continue
        if memory is None or taken <= memory:
            return Program(compiled, size, taken)
        if size <= devices:
            raise JaxplainError(
                f"one example a device takes {taken / 2**20:.0f} MiB and {memory / 2**20:.0f} MiB "
                "are free: shorten the examples, or lower the method's chunk"
            )
        # Memory is all but proportional to the rows: go straight to what should fit.
        fitting = int(size * memory / taken) // devices * devices
        size = max(devices, min(fitting, size // 2 // devices * devices))


def bytes_of(compiled: Any, params: PyTree, devices: int) -> int:
    """Device memory that a program needs beside its parameters, with batches in flight."""
    stats = compiled.memory_analysis()
    if stats is None:
        return 0
    held = sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(params)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
    moving = max(stats.argument_size_in_bytes - int(held), 0) + stats.output_size_in_bytes
    return stats.temp_size_in_bytes + IN_FLIGHT * moving
