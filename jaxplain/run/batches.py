"""Between the source, the devices and the disk: rows to batches, results to records."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.run import plan
from jaxplain.run.compile import Outputs
from jaxplain.run.parts import Settings, Work
from jaxplain.run.trees import MAY_BE_NAN, fit, stack
from jaxplain.types import JaxplainError


def assemble(reader: plan.Reader, settings: Settings, shard: int, batch: plan.Batch) -> Work:
    """Read a batch's rows and pad them; a row that cannot be read is told of, the rest goes on."""
    rows, lengths, notes, errors = [], [], [], dict(enumerate(batch.errors))
    good = []
    for row, index in enumerate(batch.indices):
        if row in errors:
            lengths.append(None)
            notes.append({})
            continue
        try:
            example = reader.read(index)
            length = fit(example, settings.like)
            bucket = plan.bucket_of(length, settings.lengths, settings.max_length)
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
    size = plan.round_up(batch.size, settings.mesh.shape["data"])
    # A row that could not be read is filled with one that could: nothing else moves.
    by_row = dict(zip(rows, good, strict=True))
    filled = [by_row.get(row, good[0]) for row in range(len(batch.indices))]
    arrays = stack(filled, settings.like, batch.bucket or None, size)
    digests = np.zeros((size, 2), np.uint32)
    digests[: len(filled)] = [e.digest for e in filled]
    digests[len(filled) :] = digests[:1]
    return Work(shard, batch, lengths, notes, errors, arrays, digests)


def records(work: Work, result: Any, good: Any, outputs: Outputs) -> Iterator[tuple]:
    """`(index, leaves, notes, error)` of each row, the padding trimmed."""
    leaves = []
    if result is not None:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
        good = np.asarray(good)
    for row, index in enumerate(work.batch.indices):
        error = work.errors.get(row)
        values = None
        if error is None:
            values = [
                leaf[row][tuple(slice(work.lengths[row]) if axis in ragged else slice(None)
                                for axis in range(leaf.ndim - 1))]
                for leaf, ragged in zip(leaves, outputs.ragged, strict=True)
            ]  # fmt: skip
            if not good[row]:
                values, error = None, not_finite(values, outputs)
        yield index, values, work.notes[row], error


def not_finite(values: list[np.ndarray], outputs: Outputs) -> str:
    bad = []
    for name, value in zip(outputs.names, values, strict=True):
        if jnp.issubdtype(value.dtype, jnp.inexact):
            if np.isinf(value).any():
                bad.append(f"infinity in {name}")
            elif np.isnan(value).any() and not MAY_BE_NAN & set(name.split(".")):
                bad.append(f"NaN in {name}")
    return ", ".join(bad) or "NaN or infinity in the padding"
