"""`run`: one call explains a dataset on every device of a mesh, and may be killed at any time."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxplain.run import fingerprint, packing, precision, restore, store
from jaxplain.run.begin import begin, check_arguments, now
from jaxplain.run.compile import check_mesh
from jaxplain.run.parts import Summary
from jaxplain.run.processes import Processes
from jaxplain.run.processes import check as check_processes
from jaxplain.run.progress import State, shown
from jaxplain.run.schedule import Job
from jaxplain.run.team import Team
from jaxplain.types import PyTree


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
    origin: Mapping[str, Any] | None = None,
    memory_limit: int | None = None,
    processes: Processes | None = None,
    overwrite: bool = False,
    retry: bool = False,
    progress: bool = True,
) -> Summary:
    """Explain every example of a source, and keep what comes out in a directory.

    The same call again resumes a run that ended early, however it ended: finished shards are read
    back and checked, damaged ones are computed anew, and a damaged run.json is restored. On the
    same devices the directory ends up bit for bit as if the run had never stopped. `B` rows of a
    batch, `T` an example's length.

    Args:
        explain: `(params, example, key) -> pytree`, a pure function of one example: any of
            jaxplain's methods inside any function of yours. It is mapped with `jax.vmap`.
        params: the model's parameters, an argument of the compiled program. Leaves that are
            sharded over `mesh` already stay so; others are copied to every device.
        examples: anything with `__len__` and `__getitem__` that gives a pytree of numeric arrays.
            Top-level fields of a dict that hold anything else (strings, None) go to no device and
            come back as `Record.notes`. A `__getitems__`, which gives a list of examples for a list
            of positions, is used where there is one. Memory does not grow with their number.
        out: the run directory; made if need be.
        key: a JAX random key. Each example's key is folded from it and a hash of the example's
            arrays, so it depends neither on batch nor on place.
        mesh: of local devices, with an axis `data`, over which batches are split; others, such as
            `model`, are for parameters that are sharded over them. Default: all local devices.
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
        origin: anything that JSON holds and that says how to make the run again, such as paths;
            kept in run.json, and not compared.
        memory_limit: bytes a device that a program may take; default 80% of what is free.
        processes: which of how many processes this is, `jaxplain.Processes(0, 2)`; default what
            JAX says. All are given the same call, on any machines that see the directory; each
            computes shards of its own on its own devices, and reads their examples alone, but for
            process 0, which plans, and so reads ragged examples for their length. A run may be
            resumed by another number of them. When one dies, the others end within `patience`.
        overwrite: remove the run that is in `out`, if it is another one; the same one is resumed.
        retry: compute what failed once more, such as what could not be read; otherwise failed
            examples stay so. Whole shards are computed anew, and where the lengths of ragged
            examples could not be read, up to all of their window of 8,192: the directory then ends
            up as if nothing had failed.
        progress: show a bar, or plain lines where there is no terminal, on stderr.

    Returns:
        `Summary`. The records: `jaxplain.load(out)`.

    Raises:
        JaxplainError: a directory that is another run's, not ours, in use or not writable; an
            empty source; explain's outputs of a shape that cannot be trimmed; another process that
            was given another call, or died. Examples that cannot
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
    precision.check(explain, tolerance, efforts)
    check_mesh(mesh)
    team = Team(out, check_processes(processes))
    with contextlib.suppress(store.NoRecord):
        store.read_info(out)  # before anything is made: a directory not ours stays untouched
    with (
        team.at_work(),
        store.lock(out) if team.leads else contextlib.nullcontext(),
        shown(progress and team.leads) as show,
    ):
        settings, info = begin(
            explain, params, examples, out, key=key, mesh=mesh, batch_size=batch_size,
            shard_size=shard_size, lengths=lengths, max_length=max_length, ragged=ragged,
            configuration=configuration, keep=keep, tolerance=tolerance, efforts=efforts,
            memory_limit=memory_limit, retry=retry,
        )  # fmt: skip
        old = replaced = None
        if team.leads:
            old = restore.recorded(out, info, settings.identity, overwrite)
            replaced = old is not None and overwrite and fingerprint.differences(old, info)
        if old is not None and not replaced:
            fingerprint.check_same(out, old, info)
            info["created"] = old.get("created", info["created"])
            fingerprint.keep_data(old, info)
        say = lambda doing: show(State(0, settings.count, 0, 0.0, 0.0, doing))
        agreed = team.join(info, fingerprint.identity(info), fingerprint.differences, say)
        job = Job(settings._replace(identity=agreed), examples, show, began, team)
        if not team.leads:
            return job.all()
        if replaced:  # only now, when nothing in the new run can be refused any more
            with store.writing(out):
                store.clear(out)
            old = None
        info |= {"origin": fingerprint.jsonable(origin)} if origin else {}
        with store.writing(out):
            store.write_info(out, info)  # first: a directory with a record in it is ours
            for folder in ("plans", "shards"):
                (out / folder).mkdir(exist_ok=True)
            store.sweep(out)
            if keep and not kept_whole(out):
                packing.write_kept(out, dict(keep))
        summary = job.all()
        info["status"] = "complete"
        earlier = (old or {}).get("totals", {}).get("seconds", 0.0)
        info["totals"] = {
            "done": summary.done,
            "failed": summary.failed,
            "seconds": round(earlier + summary.seconds, 3),
            "examples_per_second": round(summary.examples_per_second, 3),
            "padding": round(summary.padding, 4),
        }
        told = {n: getattr(summary, n) for n in ("gap", "precision", "standard_error", "failures")}
        info["totals"] |= {name: value for name, value in told.items() if value}
        if old is None or old.get("status") != "complete" or summary.resumed < summary.examples:
            info["finished"] = now()
        else:  # nothing was left to do: the record of when it was done stands
            pace = ("seconds", "examples_per_second", "padding")
            before = old.get("totals", {})
            info["totals"] |= {name: before[name] for name in pace if name in before}
            info |= {name: old[name] for name in ("finished", "devices") if name in old}
        with store.writing(out):
            store.write_info(out, info)
        return summary


def kept_whole(out: Path) -> bool:
    try:
        return packing.read_kept(out) is not None
    except store.Damaged:
        return False
