"""`load`: the records of a run, read as they are asked for."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxplain.run import packing, plan, shown, store
from jaxplain.run.columns import Index, runs
from jaxplain.run.packing import Record
from jaxplain.types import JaxplainError, PyTree

KEPT = 64  # shards that stay in memory, at most
KEPT_BYTES = 2**30
TABLES = 128  # windows of which it stays in memory where their examples are, at most


class Records:
    """The records of one run, in the order of its source; see `load`.

    Attributes:
        path: the run directory.
        info: the content of run.json.
        kept: the arrays that `run` was asked to keep, by name; empty if none.
    """

    def __init__(self, path: Path, info: dict[str, Any], present: store.Present):
        self.path, self.info = path, info
        self._present = present
        self._window = info["plan"]["window"]
        self._tables: OrderedDict[int, list[tuple[int, np.ndarray]]] = OrderedDict()
        self._shards: OrderedDict[tuple[int, int, int], tuple[int, packing.Rows]] = OrderedDict()

    @property
    def windows(self) -> list[int]:
        """Numbers of the windows of which there are shards; each is a stretch of the source."""
        return sorted(self._present)

    @property
    def kept(self) -> Mapping[str, PyTree]:
        return packing.read_kept(self.path) or {}

    @cached_property
    def _count(self) -> int:
        return sum(self._counted(window) for window in self.windows)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        for window in self.windows:
            yield from map(self.__getitem__, map(int, self._explained(window)))

    def __getitem__(self, index: int) -> Record:
        """The record of the example at position `index` of the source."""
        total = self.info["examples"]
        if not -total <= index < total:
            raise IndexError(f"the run has {total} examples, and {index} was asked for")
        place = self.place(index % total)
        if place is None:
            raise JaxplainError(
                f"example {index % total} is not explained yet in {self.path}: run the same command"
                " again to resume"
            )
        return self._read(*place)

    def place(self, index: int) -> tuple[int, int, int, int] | None:
        """Window, level, shard and row of an example; None where it is not explained yet."""
        window = index // self._window
        for level, parts in self._parts(window):  # the last round first
            found = int(np.searchsorted(parts[:, 0], index, side="right")) - 1
            start, stop, row, number = parts[found].tolist()
            if start <= index < stop:
                return window, level, number, row + index - start
        return None

    def shards(self, window: int) -> Iterator[tuple[int, int, Index]]:
        """`(level, number, positions)` of a window's shards that are there, last rounds last."""
        there = self._present.get(window, set())
        for level in sorted({level for level, _ in there}):
            try:
                shards = plan.unpack(store.unpack(store.plan_path(self.path, window, level)))
            except FileNotFoundError:  # what it planned cannot be found
                continue
            for number, shard in enumerate(shards):
                if (level, number) in there:
                    yield level, number, plan.index_of(shard)

    def _explained(self, window: int) -> np.ndarray:
        """A window's positions that are explained, in order."""
        found = [np.asarray(index, np.int64) for *_, index in self.shards(window)]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))

    def _counted(self, window: int) -> int:
        """How many these are; in the first round no position comes twice."""
        if any(level for level, _ in self._present[window]):
            return len(self._explained(window))
        return sum(len(index) for *_, index in self.shards(window))

    def _parts(self, window: int) -> list[tuple[int, np.ndarray]]:
        """By level, the last first: `[R, 4]` first position, end, first row and shard of each part
        of a shard whose positions follow one another, in their order."""
        if window not in self._tables:
            levels: dict[int, list[np.ndarray]] = {}
            for level, number, index in self.shards(window):
                parts = np.insert(runs(index), 3, number, axis=1)
                levels.setdefault(level, []).append(parts)
            joined = {level: np.concatenate(parts) for level, parts in levels.items()}
            self._tables[window] = [
                (level, joined[level][joined[level][:, 0].argsort()])
                for level in sorted(joined, reverse=True)
            ]
            while len(self._tables) > TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(window)
        return self._tables[window]

    def _read(self, window: int, level: int, number: int, row: int) -> Record:
        return self._shard((window, number, level))[row]

    def _shard(self, place: tuple[int, int, int]) -> packing.Rows:
        if place not in self._shards:
            path = store.shard_path(self.path, *place)
            self._shards[place] = path.stat().st_size, packing.unpack_records(path)
            while len(self._shards) > KEPT or (
                len(self._shards) > 1 and sum(n for n, _ in self._shards.values()) > KEPT_BYTES
            ):
                self._shards.popitem(last=False)
        self._shards.move_to_end(place)
        return self._shards[place][1]

    def __repr__(self) -> str:
        return f"Records({str(self.path)!r}, {len(self)} of {self.info['examples']} examples)"

    def _repr_html_(self) -> str:
        return shown.records_html(self.path, self.info, len(self), islice(self, shown.FIRST))


def load(out: str | Path) -> Records:
    """Open a run directory; its records are read when they are asked for.

    A run that is under way, or that ended early, gives what is on disk so far: `len` counts that,
    and `info["status"]` tells. Opening lists the files and reads none of them but run.json; `len`
    reads the plans, a record its shard. Memory does not grow with the run.

    Returns:
        `Records`: iterate over it, or index it by the example's position in the source.

    Raises:
        JaxplainError: if `out` is not a run, or, on reading a record, if its shard is damaged.
    """
    path = Path(out)
    info = store.read_info(path) if path.exists() else None
    if info is None:
        raise JaxplainError(f"{path} is not a run: there is no run.json in it")
    return Records(path, info, store.present(path))
