"""Which examples are computed together: buckets of length, batches, shards."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxplain.run.columns import Index, join_index, pack_index, unpack_index
from jaxplain.run.trees import Example, Layout, fit, layout, split
from jaxplain.types import JaxplainError

WINDOW = 8192  # examples that are sorted by length together
LONG = 16  # windows' worth of examples in one, where there is nothing to sort
FEW = 256  # examples that do not pay for many programs
PROBES = 256  # examples that are looked at before anything is planned
TINY = 16  # times as many rows in a batch, at most, of examples of few numbers
TINY_NUMBERS = 16_384  # in such a batch, at most
TOGETHER = 64  # examples that are read together for their length, where a source can
CACHE_BYTES = 512 * 2**20  # examples read for their length are kept up to this much
FAILED = -1  # the bucket of examples that could not be read
FIXED = 0  # the bucket of examples that all have one shape


class Batch(NamedTuple):
    """Examples that one call of a compiled program explains.

    Attributes:
        bucket: the length they are padded to; `FIXED` where nothing is ragged, `FAILED` where
            there is nothing to compute.
        size: rows of the program, the padding rows included.
        indices: positions in the source.
        errors: why each failed, for `FAILED` only.
    """

    bucket: int
    size: int
    indices: Index
    errors: tuple[str, ...] = ()


Shards = list[list[Batch]]


def pack(shards: Shards) -> list:
    """The shards of a window as a plan keeps them."""
    return [
        [[b.bucket, b.size, pack_index(b.indices), list(b.errors)] for b in shard]
        for shard in shards
    ]


def unpack(content: Any) -> Shards:
    """The shards of a plan that was read."""
    return [
        [
            Batch(bucket, size, unpack_index(index), tuple(errors))
            for bucket, size, index, errors in s
        ]
        for s in content["shards"]
    ]


def index_of(shard: list[Batch]) -> Index:
    """The positions of a shard's examples, in its order."""
    return join_index([batch.indices for batch in shard])


def window_size(like: Layout, rounds: bool) -> int:
    """Examples that are planned together; in rounds, what is pending is known one by one."""
    return WINDOW if rounds or any(like.ragged) else LONG * WINDOW


def reason(error: BaseException) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split())
    if isinstance(error, JaxplainError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def grid(lengths: Sequence[int] | str, count: int) -> tuple[int, ...]:
    """The lengths to pad to, for a source of `count` examples.

    The default is 8, 12, 16, 24, 32, 48 and so on: at most a third of a row is padding. Few
    examples take less time than a program takes to compile, so they get 16, 64, 256 and so on.
    """
    if not isinstance(lengths, str):
        return tuple(sorted(set(lengths)))
    if count <= FEW:
        return tuple(16 * 4**k for k in range(10))
    return tuple(size for k in range(3, 22) for size in (2**k, 3 * 2 ** (k - 1)))


def bucket_of(length: int | None, lengths: tuple[int, ...], max_length: int | None) -> int:
    """The length to pad to: a function of the example's own length and of nothing else."""
    if length is None:
        return FIXED
    if max_length is not None and length > max_length:
        raise JaxplainError(f"the example has length {length}, and max_length is {max_length}")
    for size in lengths:
        if length <= size:
            return size if max_length is None else min(size, max_length)
    raise JaxplainError(f"the example has length {length}, and the longest bucket {lengths[-1]}")


def probe(source: Any, ragged: str | tuple[str, ...]) -> tuple[Layout, list[Example | None]]:
    """Look at evenly spaced examples to learn what a source holds; None for one that cannot be
    read, or is not as most of them are.

    Raises:
        JaxplainError: if none of them can be read.
    """
    count = len(source)
    found: list[Example | None] = []
    first_error = None
    for k in range(min(PROBES, count)):
        try:
            found.append(split(source[k * count // min(PROBES, count)]))
        except Exception as error:
            first_error = first_error or error
            found.append(None)
    if not any(found):
        raise JaxplainError(f"no example could be read: {reason(first_error)}")  # type: ignore
    like = layout([example for example in found if example], ragged)
    return like, [example if example and fits(example, like) else None for example in found]


def fits(example: Example, like: Layout) -> bool:
    try:
        fit(example, like)
    except JaxplainError:
        return False
    return True


class Reader:
    """Reads examples and keeps the planned ones in memory while there is room."""

    def __init__(self, source: Any, like: Layout):
        self.source, self.like = source, like
        self.cache: dict[int, Example] = {}
        self.room = CACHE_BYTES

    def read(self, indices: Index) -> list[Any]:
        """What the source gives, or what it raises, for each; many at a time where it can.

        Raises:
            JaxplainError: a source whose `__getitems__` gives another number than was asked for.
        """
        if len(indices) > 1 and hasattr(self.source, "__getitems__"):
            found = None
            with contextlib.suppress(Exception):  # whose fault it was shows one by one
                found = self.source.__getitems__(list(indices))
            if found is not None and len(found) != len(indices):
                raise JaxplainError(
                    f"the source's __getitems__ gave {len(found)} examples for {len(indices)} "
                    "positions: it must give one for each, in their order"
                )
            if found is not None:
                return list(found)
        found = []
        for index in indices:
            try:
                found.append(self.source[index])
            except Exception as error:
                found.append(error)
        return found

    def examples(self, indices: Index, keep: bool = False) -> list[Example | Exception]:
        """Each example, split, or why there is none."""
        found: dict[int, Example | Exception]
        found = {index: self.cache.pop(index) for index in indices if index in self.cache}
        absent = [index for index in indices if index not in found]
        found |= dict(zip(absent, map(settled, self.read(absent)), strict=True))
        for index, example in found.items():
            if keep and isinstance(example, Example):
                self.room -= sum(leaf.nbytes for leaf in jax.tree.leaves(example.arrays)) + 512
                if self.room > 0:
                    self.cache[index] = example
        return [found[index] for index in indices]

    def forget(self) -> None:
        self.cache.clear()
        self.room = CACHE_BYTES


def settled(given: Any) -> Example | Exception:
    """`split`, of what a source gave; an error stays one."""
    try:
        return given if isinstance(given, Exception) else split(given)
    except Exception as error:
        return error


def sort_window(
    reader: Reader,
    indices: range,
    lengths: tuple[int, ...],
    max_length: int | None,
) -> tuple[Mapping[int, Index], dict[int, str]]:
    """Group a window's examples by bucket; give the unreadable ones with their reasons.

    Only ragged examples are read for it; examples of one shape need no look.
    """
    if not any(reader.like.ragged):
        return {FIXED: indices}, {}
    groups: dict[int, list[int]] = {}
    errors: dict[int, str] = {}
    many = TOGETHER if hasattr(reader.source, "__getitems__") else 1
    for start in range(0, len(indices), many):
        some = indices[start : start + many]
        for index, example in zip(some, reader.examples(some, keep=True), strict=True):
            try:
                if isinstance(example, Exception):
                    raise example
                length = fit(example, reader.like)
                groups.setdefault(bucket_of(length, lengths, max_length), []).append(index)
            except Exception as error:
                errors[index] = reason(error)
    return dict(sorted(groups.items())), errors


def cut(
    groups: Mapping[int, Index],
    errors: dict[int, str],
    sizes: dict[int, int],
    shard_size: int,
) -> Shards:
    """Cut a window into batches, and gather whole batches into shards of about `shard_size`."""
    batches = [
        Batch(bucket, sizes[bucket], group[start : start + sizes[bucket]])
        for bucket, group in groups.items()
        for start in range(0, len(group), sizes[bucket])
    ]
    shards = gather(batches, shard_size)
    if errors:
        failed = Batch(FAILED, 0, tuple(errors), tuple(errors.values()))
        if not shards:
            shards.append([])
        shards[-1].append(failed)
    return shards


def gather(batches: list[Batch], shard_size: int) -> list[list[Batch]]:
    """Whole batches in shards of about `shard_size` examples."""
    shards: list[list[Batch]] = []
    room = 0
    for batch in batches:
        if room < len(batch.indices) or not shards:
            shards.append([])
            room = shard_size
        shards[-1].append(batch)
        room -= len(batch.indices)
    return shards


def batch_size_for(count: int, more: bool, bucket: int, devices: int, platform: str) -> int:
    """Rows of a bucket's program over all devices, before memory has its say.

    Few examples are spread evenly over the fewest batches, so that the last one is not half empty;
    where more windows follow, the batch is the largest that one likes.
    """
    # On 2 CPU cores, at 24 positions, 16 rows were quickest for the Transformer, 32 to 64 for
    # MiniLM, 64 to 128 for the LSTM, and more was slower. Accelerators want more to do at once.
    positions, rows = (1024, 64) if platform == "cpu" else (8192, 256)
    most = max(8, min(rows, positions // bucket if bucket else rows)) * devices
    if more:
        return round_up(most, devices)
    batches = -(-count // most)
    return round_up(-(-count // batches), devices)


def tiny_batch_size(size: int, like: Layout, shard_size: int) -> int:
    """Rows of a program of many tiny examples, if it is small: a batch costs more than they do."""
    numbers = sum(int(np.prod(shape)) for shape in like.shapes)
    return max(size, min(TINY * size, TINY_NUMBERS // max(numbers, 1), shard_size) // size * size)


def shard_size_for(asked: int | str, count: int) -> int:
    """Examples in a shard, about: a kill costs a 64th of the run, or 4096 examples at most."""
    return min(max(count // 64, 64), 4096) if isinstance(asked, str) else asked


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
