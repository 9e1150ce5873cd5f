"""`load`: the records of a run, read as they are asked for."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from jaxplain.run import shown, store
from jaxplain.run.store import Record
from jaxplain.types import JaxplainError, PyTree

KEPT = 64  # shards that stay in memory, at most
KEPT_BYTES = 2**30


class Records:
    """The records of one run, in the order of its source; see `load`.

    Attributes:
        path: the run directory.
        info: the content of run.json.
        kept: the arrays that `run` was asked to keep, by name; empty if none.
    """

    def __init__(
        self, path: Path, info: dict[str, Any], places: dict[int, tuple[int, int, int, int]]
    ):
        self.path, self.info = path, info
        self._places = places
        self._shards: OrderedDict[tuple[int, int, int], tuple[int, list[Record]]] = OrderedDict()

    @property
    def kept(self) -> Mapping[str, PyTree]:
        return store.read_kept(self.path) or {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in sorted(self._places))

    def __getitem__(self, index: int) -> Record:
        """The record of the example at position `index` of the source."""
        total = self.info["examples"]
        if not -total <= index < total:
            raise IndexError(f"the run has {total} examples, and {index} was asked for")
        index %= total
        if index not in self._places:
            raise JaxplainError(
                f"example {index} is not explained yet in {self.path}: run the same command again "
                "to resume"
            )
        *place, row = self._places[index]
        return self._shard(tuple(place))[row]

    def _shard(self, place: tuple) -> list[Record]:
        if place not in self._shards:
            path = store.shard_path(self.path, *place)
            self._shards[place] = path.stat().st_size, store.unpack_records(path)
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
    and `info["status"]` tells.

    Returns:
        `Records`: iterate over it, or index it by the example's position in the source.

    Raises:
        JaxplainError: if `out` is not a run, or, on reading a record, if its shard is damaged.
    """
    path = Path(out)
    info = store.read_info(path) if path.exists() else None
    if info is None:
        raise JaxplainError(f"{path} is not a run: there is no run.json in it")
    places = {}
    for window, level, plan in store.plans(path):
        for number, shard in enumerate(store.unpack(plan)["shards"]):
            if store.shard_path(path, window, number, level).exists():
                indices = [index for batch in shard for index in batch[2]]
                places |= {i: (window, number, level, row) for row, i in enumerate(indices)}
    return Records(path, info, places)
