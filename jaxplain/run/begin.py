"""What a run is, before anything of it is computed: its settings, and what makes it this run."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxplain.run import compile as compiler
from jaxplain.run import fingerprint, plan, precision, store
from jaxplain.run.parts import Settings
from jaxplain.types import JaxplainError, PyTree

ENDLESS = 2**40  # a source that says it holds more repeats for ever


def begin(
    explain: Callable[..., PyTree],
    params: PyTree,
    examples: Any,
    out: Path,
    *,
    key: jax.Array,
    mesh: Mesh | None,
    batch_size: int | str,
    shard_size: int | str,
    lengths: Sequence[int] | str,
    max_length: int | None,
    ragged: Sequence[str] | str,
    configuration: Mapping[str, Any] | None,
    keep: Mapping[str, PyTree] | None,
    tolerance: float | None,
    efforts: Sequence[precision.Effort] | None,
    memory_limit: int | None,
    retry: bool = False,
) -> tuple[Settings, dict[str, Any]]:
    """The settings of a run, and the record of what it is; see `run` for the arguments.

    Traces `explain` by shape, and looks at some examples; computes nothing, writes nothing.
    """
    asked = precision.check(explain, tolerance, efforts)
    mesh = compiler.check_mesh(mesh)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    compiler.use_cache()
    count = len(examples)  # asked once: a source may grow meanwhile
    like, probes = plan.probe(examples, "auto" if ragged == "auto" else tuple(ragged))
    params = compiler.place(params, mesh)
    window = plan.window_size(like, rounds=bool(asked))
    length = canonical_length(lengths, max_length)
    outputs, function = compiler.outputs(
        explain, params, key, like, length, **precision.arguments(asked, 0)
    )
    info = {
        "format": store.FORMAT,
        "created": now(),
        "status": "running",
        "examples": count,
        "configuration": fingerprint.jsonable(configuration or {}),
        "plan": {
            "batch_size": batch_size,
            "shard_size": shard_size,
            "lengths": lengths if isinstance(lengths, str) else list(lengths),
            "max_length": max_length,
            "window": window,
            "ragged": [n for n, r in zip(like.names, like.ragged, strict=True) if r],
        }
        | ({"tolerance": tolerance, "efforts": [e.count for e in asked]} if asked else {}),
        "versions": fingerprint.versions(),
        "fingerprints": {
            "function": function,
            "params": fingerprint.of_params(params),
            "data": fingerprint.of_data(count, probes),
            "key": fingerprint.of_key(key),
        }
        | ({"kept": fingerprint.of_params(dict(keep))} if keep else {}),
        "probes": fingerprint.of_probes(probes),
        "devices": devices(mesh),
    }
    settings = Settings(
        explain, params, jax.device_put(key, NamedSharding(mesh, PartitionSpec())), like, out,
        mesh, batch_size, plan.shard_size_for(shard_size, count), plan.grid(lengths, count),
        max_length, memory_limit or int(compiler.MARGIN * compiler.free_memory(mesh)), outputs,
        tolerance, asked, fingerprint.identity(info), count, retry, window,
    )  # fmt: skip
    return settings, info


def check_arguments(examples, batch_size, shard_size, lengths, max_length) -> None:
    if not hasattr(examples, "__len__") or not hasattr(examples, "__getitem__"):
        raise JaxplainError(
            f"examples is a {type(examples).__name__}: it must have __len__ and __getitem__, as a "
            "list has; put an iterator into a list"
        )
    if not len(examples):
        raise JaxplainError("examples is empty: there is nothing to explain")
    if len(examples) > ENDLESS:
        raise JaxplainError("examples never end: leave out the source's repeat()")
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
        raise JaxplainError(f"batch_size must be 'auto' or at least 1, not {batch_size!r}")
    if shard_size != "auto" and not (isinstance(shard_size, int) and shard_size >= 1):
        raise JaxplainError(f"shard_size must be 'auto' or at least 1, not {shard_size!r}")
    if max_length is not None and not (isinstance(max_length, int) and max_length >= 1):
        raise JaxplainError(f"max_length must be at least 1, not {max_length!r}")
    if lengths != "auto" and (isinstance(lengths, str) or not lengths or min(lengths) < 1):
        raise JaxplainError(f"lengths must be 'auto' or numbers of at least 1, not {lengths!r}")


def canonical_length(lengths: Any, max_length: int | None) -> int:
    """A length to trace at that is the same in every start of a run."""
    length = 16 if isinstance(lengths, str) else max(min(lengths), 2)
    return length if max_length is None else max(min(length, max_length), 2)


def devices(mesh: Mesh) -> dict[str, Any]:
    first = mesh.devices.flat[0]
    return {"platform": first.platform, "kind": first.device_kind, "mesh": dict(mesh.shape)}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
