"""`run`: one call explains a dataset on every device of a mesh, and may be killed at any time."""

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxplain.run import compile as compiler
from jaxplain.run import fingerprint, plan, precision, store
from jaxplain.run.parts import Settings, Summary
from jaxplain.run.pipeline import Job
from jaxplain.run.progress import shown
from jaxplain.types import JaxplainError, PyTree


def run(
    explain: Callable[..., PyTree],
    params: PyTree,
    examples: Any,
    out: str | Path,
    *,
    key: jax.Array,
    mesh: Mesh | None = None,
    batch_size: int | str = "auto",
    shard_size: int | str = "auto",
    lengths: Sequence[int] | str = "auto",
    max_length: int | None = None,
    ragged: Sequence[str] | str = "auto",
    configuration: dict[str, Any] | None = None,
    keep: Mapping[str, PyTree] | None = None,
    tolerance: float | None = None,
    efforts: Sequence[precision.Effort] | None = None,
    memory_limit: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Summary:
    """Explain every example of a source, and keep what comes out in a directory.

    The same call again resumes a run that ended early, however it ended: finished shards are read
    back and checked, damaged ones are computed anew. On the same devices the directory ends up bit
    for bit as if the run had never stopped. `B` rows of a batch, `T` an example's length.

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
        shard_size: examples in a file, about, and the most that a kill can cost; "auto" is a 64th
            of the examples, between 64 and 4096.
        lengths: lengths that ragged examples are padded to, with zeros, or "auto": 8, 12, 16, 24,
            32, 48 and so on, and for up to 256 examples, which would not pay for compiling so many
            programs, 16, 64, 256. Which one an example gets depends on its own length alone.
        max_length: the longest that the model takes; longer examples are recorded as failed.
        ragged: names of the fields whose leading axis is the example's length `T`; "auto" takes
            those that differ among up to 256 evenly spaced examples. An example must say itself
            which positions are real: give it a mask of ones, which padding continues with zeros.
        configuration: anything that JSON holds; kept in run.json, and compared on resuming. So are
            the function, the parameters, the key, the number of examples and up to 256 of them.
        keep: arrays by name that belong to the run as a whole, such as what was measured on the
            data beforehand; kept in the directory, compared on resuming, and there again as
            `jaxplain.load(out).kept`. What `explain` needs of them goes into `params`, too.
        tolerance: the relative error that every result must keep: |gap| as a share of
            |f(x) - f(baseline)|, or the largest standard error as a share of the same, or, of a
            method that searches, its own flag. `explain` then takes a fourth argument `effort`, and
            examples that are not precise enough are given another round, and only they, until all
            are or the rounds end; those that are not are marked: `Record.converged`.
        efforts: the rounds, from `jaxplain.precision`: `nodes(16, 1024)`, the default, for
            `integrated_gradients(steps=effort)`; `draws(64, 4096)` for a number of samples;
            `restarts((500, 4000))` for searches, which begin anew with more steps.
        memory_limit: bytes a device that a program may take; default 80% of what is free.
        overwrite: remove the run that is in `out`, if it is another one; the same one is resumed.
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
    asked = precision.check(explain, tolerance, efforts)
    mesh = compiler.check_mesh(mesh)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    old = store.read_info(out)  # before anything is made: a directory not ours stays untouched
    with store.lock(out):
        old = store.read_info(out)
        compiler.use_cache()
        choice = "auto" if ragged == "auto" else tuple(ragged)
        like, probes = plan.probe(examples, choice)
        params = compiler.place(params, mesh)
        length = canonical_length(lengths, max_length)
        outputs, function = compiler.outputs(
            explain, params, key, like, length, **precision.arguments(asked, 0)
        )
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
            }
            | ({"tolerance": tolerance, "efforts": [e.count for e in asked]} if asked else {}),
            "versions": fingerprint.versions(),
            "fingerprints": {
                "function": function,
                "params": fingerprint.of_params(params),
                "data": fingerprint.of_data(len(examples), probes),
                "key": fingerprint.of_key(key),
            }
            | ({"kept": fingerprint.of_params(dict(keep))} if keep else {}),
        }
        if old is not None and overwrite and fingerprint.differences(old, info):
            # Only now, when nothing in the new run can be refused any more.
            store.clear(out)
            old = None
        if old is not None:
            fingerprint.check_same(out, old, info)
            info["created"] = old["created"]
        info["devices"] = devices(mesh)
        with store.writing(out):
            store.write_info(out, info)  # first: a directory with a record in it is ours
            for folder in ("plans", "shards"):
                (out / folder).mkdir(exist_ok=True)
            store.sweep(out)
            if keep and not kept_whole(out):
                store.write_kept(out, dict(keep))
        settings = Settings(
            explain, params, jax.device_put(key, NamedSharding(mesh, PartitionSpec())), like, out,
            mesh, batch_size, plan.shard_size_for(shard_size, len(examples)),
            plan.grid(lengths, len(examples)), max_length,
            memory_limit or int(compiler.MARGIN * compiler.free_memory(mesh)), outputs,
            tolerance, asked,
        )  # fmt: skip
        with shown(progress) as show:
            summary = Job(settings, examples, show, began).all()
        info["status"] = "complete"
        earlier = (old or {}).get("totals", {}).get("seconds", 0.0)
        info["totals"] = {
            "done": summary.done,
            "failed": summary.failed,
            "seconds": round(earlier + summary.seconds, 3),
            "examples_per_second": round(summary.examples_per_second, 3),
            "padding": round(summary.padding, 4),
        }
        info["totals"] |= {"gap": summary.gap} if summary.gap else {}
        info["totals"] |= {"precision": summary.precision} if summary.precision else {}
        if old is None or old.get("status") != "complete" or summary.resumed < summary.examples:
            info["finished"] = now()
        else:  # nothing was left to do: the record of what was done stands
            info |= {name: old[name] for name in ("totals", "finished", "devices") if name in old}
        with store.writing(out):
            store.write_info(out, info)
        return summary


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
    if shard_size != "auto" and not (isinstance(shard_size, int) and shard_size >= 1):
        raise JaxplainError(f"shard_size must be 'auto' or at least 1, not {shard_size!r}")
    if max_length is not None and not (isinstance(max_length, int) and max_length >= 1):
        raise JaxplainError(f"max_length must be at least 1, not {max_length!r}")
    if lengths != "auto" and (isinstance(lengths, str) or not lengths or min(lengths) < 1):
        raise JaxplainError(f"lengths must be 'auto' or numbers of at least 1, not {lengths!r}")


def kept_whole(out: Path) -> bool:
    try:
        return store.read_kept(out) is not None
    except store.Damaged:
        return False


def canonical_length(lengths: Any, max_length: int | None) -> int:
    """A length to trace at that is the same in every start of a run."""
    length = 16 if isinstance(lengths, str) else max(min(lengths), 2)
    return length if max_length is None else max(min(length, max_length), 2)


def devices(mesh: Mesh) -> dict[str, Any]:
    first = mesh.devices.flat[0]
    return {"platform": first.platform, "kind": first.device_kind, "mesh": dict(mesh.shape)}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
