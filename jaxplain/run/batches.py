"""Between the source, the devices and the disk: rows to batches, results to blocks of a shard."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.run import plan
from jaxplain.run.alike import split_all
from jaxplain.run.columns import Block, Column
from jaxplain.run.compile import Outputs
from jaxplain.run.parts import Settings, Work
from jaxplain.run.trees import MAY_BE_NAN, fill, fit, stack
from jaxplain.types import JaxplainError


def assemble(reader: plan.Reader, settings: Settings, shard: int, batch: plan.Batch) -> Work:
    """Read a batch's rows and pad them; a row that cannot be read is told of, the rest goes on."""
    count, errors = len(batch.indices), dict(enumerate(batch.errors))
    if errors:
        return Work(shard, batch, [None] * count, [], errors, None, None)
    size = plan.round_up(batch.size, settings.mesh.shape["data"])
    if batch.bucket == plan.FIXED:
        given = reader.read(batch.indices)
        together = split_all(given, settings.like)
        if together is not None:
            arrays = jax.tree.unflatten(
                settings.like.tree, [fill(leaf, size) for leaf in together.leaves]
            )
            digests = fill(together.digests, size)
            return Work(shard, batch, [None] * count, together.notes, {}, arrays, digests)
        examples = [plan.settled(example) for example in given]
    else:
        examples = reader.examples(batch.indices)
    lengths: list[int | None] = [None] * count
    notes: list[dict] = [{}] * count
    good = {}
    for row, example in enumerate(examples):
        try:
            if isinstance(example, Exception):
                raise example
            length = fit(example, settings.like)
            bucket = plan.bucket_of(length, settings.lengths, settings.max_length)
            if bucket != batch.bucket:
                raise JaxplainError("the source gave another length when it was read again")
            lengths[row], notes[row], good[row] = length, example.notes, example
        except Exception as error:
            errors[row] = plan.reason(error)
    if not good:
        return Work(shard, batch, lengths, notes, errors, None, None)
    # A row that could not be read is filled with one that could: nothing else moves.
    first = next(iter(good.values()))
    filled = [good.get(row, first) for row in range(count)]
    arrays = stack(filled, settings.like, batch.bucket or None, size)
    digests = fill(np.asarray([example.digest for example in filled], np.uint32), size)
    return Work(shard, batch, lengths, notes, errors, arrays, digests)


def block(work: Work, result: Any, good: Any, outputs: Outputs) -> Block:
    """A batch's rows, the padding trimmed."""
    failed = dict(work.errors)
    if result is None:
        return Block(work.batch.indices, [], work.notes, failed)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
    count = len(work.batch.indices)

    def trimmed(leaf: np.ndarray, axes: tuple[int, ...], row: int) -> np.ndarray:
        length = slice(work.lengths[row])
        return leaf[row][tuple(length if a in axes else slice(None) for a in range(leaf.ndim - 1))]

    for row in np.flatnonzero(~np.asarray(good)[:count]).tolist():
        if row not in failed:
            pairs = zip(leaves, outputs.ragged, strict=True)
            failed[row] = not_finite([trimmed(leaf, axes, row) for leaf, axes in pairs], outputs)
    rows = [row for row in range(count) if row not in failed]
    columns: list[Column] = [
        [trimmed(leaf, axes, row) for row in rows] if axes else leaf[rows]
        for leaf, axes in zip(leaves, outputs.ragged, strict=True)
    ]
    return Block(
        work.batch.indices, columns if rows else [], work.notes, dict(sorted(failed.items()))
    )


def not_finite(values: list[np.ndarray], outputs: Outputs) -> str:
    bad = []
    for name, value in zip(outputs.names, values, strict=True):
        if jnp.issubdtype(value.dtype, jnp.inexact):
            if np.isinf(value).any():
                bad.append(f"infinity in {name}")
            elif np.isnan(value).any() and not MAY_BE_NAN & set(name.split(".")):
                bad.append(f"NaN in {name}")
    return ", ".join(bad) or "NaN or infinity in the padding"
