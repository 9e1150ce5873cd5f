"""The rounds of a run with a tolerance: who is not precise enough yet, and what he has so far."""

from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from jaxplain.run import columns, gaps, packing, plan, store
from jaxplain.run.columns import Block
from jaxplain.run.precision import Effort, distance, join
from jaxplain.run.trees import rebuild, unbuild

KEPT = 16  # shards of the round before that stay in memory, at most
SMALLER = 4  # a program of a later round has this many times fewer rows, where few are left


class Rounds:
    """What the rounds of one window have come to, as far as the disk tells.

    Attributes:
        efforts: the rounds.
        tolerance: relative error that they are for.
    """

    def __init__(self, out: Path, window: int, efforts: tuple[Effort, ...], tolerance: float):
        self.out, self.window, self.efforts, self.tolerance = out, window, efforts, tolerance
        self.places: dict[int, tuple[int, int]] = {}  # of the round before: shard and row
        self.shards: OrderedDict[int, packing.Rows] = OrderedDict()
        self.level = 0

    def pending(self, level: int, shards: list[list[plan.Batch]]) -> dict[int, list[int]]:
        """Those of round `level` that are not precise enough, by bucket, in their order."""
        self.places, self.level = {}, level
        self.shards.clear()
        groups: dict[int, list[int]] = {}
        for number, shard in enumerate(shards):
            content = store.unpack(store.shard_path(self.out, self.window, number, level))
            row = 0
            for batch in shard:
                for index in batch.indices:
                    self.places[index] = number, row
                    if row not in content["failed"] and not content["converged"][row]:
                        groups.setdefault(batch.bucket, []).append(index)
                    row += 1
        return dict(sorted(groups.items()))

    def before(self, index: int) -> Any:
        """The result that an example had after the round before."""
        number, row = self.places[index]
        if number not in self.shards:
            path = store.shard_path(self.out, self.window, number, self.level)
            self.shards[number] = packing.unpack_records(path)
            while len(self.shards) > KEPT:
                self.shards.popitem(last=False)
        self.shards.move_to_end(number)
        return self.shards[number][row].result

    def settle(self, level: int, tree: Any, block: Block) -> tuple[Block, list[bool]]:
        """The rows of a round, joined to those before; and which are precise enough.

        Raises:
            JaxplainError: results that do not say.
        """
        done, converged = [], []
        for index, values, notes, error in columns.rows(block):
            near = False
            if values is not None:
                result = rebuild(tree, iter(values))
                if level:
                    result = join(self.before(index), result, self.efforts[level].share)
                    values = unbuild(tree, result)
                near = distance(result) <= self.tolerance
            done.append((index, values, notes, error))
            converged.append(bool(near))
        return columns.of_rows(done), converged

    def tally(
        self, levels: list[list[list[plan.Batch]]], gap: Any
    ) -> tuple[Counter, list[np.ndarray]]:
        """How many examples ended after which round, and whether there; and their gaps."""
        last: dict[int, tuple[int, bool]] = {}
        found: dict[int, np.ndarray] = {}
        for level, shards in enumerate(levels):
            for number in range(len(shards)):
                path = store.shard_path(self.out, self.window, number, level)
                content = store.unpack(path)
                index = columns.unpack_index(content["examples"])
                good = [row for row in range(len(index)) if row not in content["failed"]]
                for row in content["failed"]:
                    last.pop(index[row], None)  # failed in this round: what it had does not count
                    found.pop(index[row], None)
                for row in good:
                    last[index[row]] = level, content["converged"][row]
                if gap:
                    for row, numbers in zip(good, gaps.of_shard(content, gap), strict=True):
                        found[index[row]] = numbers
        return Counter(last.values()), list(found.values())


def cut(
    groups: dict[int, list[int]], sizes: dict[int, int], devices: int, shard_size: int
) -> list[list[plan.Batch]]:
    """Batches of a later round, in shards: full ones, and what is left in smaller programs."""
    batches = []
    for bucket, group in groups.items():
        start, size = 0, sizes[bucket]
        while start < len(group):
            left = len(group) - start
            while left <= size // SMALLER and size // SMALLER >= devices:
                size = plan.round_up(size // SMALLER, devices)
            batches.append(plan.Batch(bucket, size, tuple(group[start : start + size])))
            start += size
    return plan.gather(batches, shard_size)


def spent(efforts: tuple[Effort, ...], level: int) -> int:
    """Evaluations of an example that ended with round `level`, in all rounds."""
    return sum(effort.count for effort in efforts[: level + 1])


def totals(tolerance: float, efforts: tuple[Effort, ...], ended: Counter) -> dict[str, Any]:
    """What run.json says of a run's precision.

    `evaluations` are those of all examples, of every round; `efforts` says how many examples ended
    with how many each.
    """
    counts = {str(spent(efforts, level)): 0 for level, _ in sorted(ended)}
    for (level, _), many in ended.items():
        counts[str(spent(efforts, level))] += many
    return {
        "tolerance": tolerance,
        "converged": sum(many for (_, near), many in ended.items() if near),
        "not_converged": sum(many for (_, near), many in ended.items() if not near),
        "evaluations": sum(spent(efforts, level) * many for (level, _), many in ended.items()),
        "efforts": counts,
    }
