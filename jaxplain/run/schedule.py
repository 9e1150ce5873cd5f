"""What is to be done, in which order, and what it came to: by one process or by several."""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxplain.run import columns, gaps, packing, plan, rounds, store
from jaxplain.run.parts import Settings, Summary
from jaxplain.run.pipeline import Pipeline, Task
from jaxplain.run.progress import State
from jaxplain.run.rounds import Rounds
from jaxplain.run.team import POLL, Step, Team
from jaxplain.types import JaxplainError

REASONS = 20  # of failures, that are told
DIFFERENT = 10_000  # reasons that are counted, of which those are the most frequent
AHEAD = 4  # shards a process that are planned before process 0 gets to them


class Window:
    """A stretch of the source on its way.

    Attributes:
        number: which one.
        levels: its shards, as planned, for each round so far.
        waiting: numbers of the shards of the last round that are not on disk yet.
        rounds: in a run with a tolerance, what its rounds have come to.
    """

    def __init__(self, number: int, settings: Settings):
        self.number = number
        self.levels: list[plan.Shards] = []
        self.waiting: set[int] = set()
        self.rounds: Rounds | None = None
        if settings.efforts and settings.tolerance:
            self.rounds = Rounds(settings.out, number, settings.efforts, settings.tolerance)

    @property
    def level(self) -> int:
        return len(self.levels) - 1


class Job:
    """One call of `run`, or one process's part in it: plans, computes, counts."""

    def __init__(self, settings: Settings, source: Any, show: Callable, began: float, team: Team):
        self.s, self.show, self.began, self.team = settings, show, began, team
        self.count = settings.count
        self.pipeline = Pipeline(settings, source, self.report, self.team)
        self.done = self.failed = self.resumed = 0
        self.counted = 0  # of what other processes have finished
        self.gap = gaps.places(settings.outputs.names)
        self.gaps = gaps.Tally()
        self.reasons: Counter = Counter()  # why examples failed
        self.ended: Counter = Counter()  # how many examples ended after which round, and how
        self.doing = "explained"

    def all(self) -> Summary:
        try:
            totals = self.lead() if self.team.leads else self.follow()
        finally:
            self.pipeline.close()
        seconds = time.monotonic() - self.began
        return Summary(
            self.s.out, self.count, totals["done"], totals["failed"], totals["resumed"], seconds,
            self.pipeline.rate(), self.pipeline.padding(), totals["gap"], totals["precision"],
            totals["standard_error"], totals["failures"],
        )  # fmt: skip

    def report(self, doing: str | None = None) -> None:
        finished = self.done + self.failed
        finished += max(sum(self.team.others.values()) - self.counted, 0)
        rate, padding = self.pipeline.rate(), self.pipeline.padding()
        self.show(State(finished, self.count, self.failed, rate, padding, doing or self.doing))

    # ---- process 0, or the only one

    def lead(self) -> dict[str, Any]:
        """Plan windows, do what nobody else has taken, give rounds, until all is on disk."""
        later = iter(range(-(-self.count // self.s.window)))
        opened: dict[int, Window] = {}
        steps: deque[Step] = deque()
        more = True
        while more or opened:
            while more and self.short_of_work(steps, opened):
                number = next(later, None)
                more = number is not None
                if number is not None:
                    opened[number] = Window(number, self.s)
                    steps += self.open(opened[number])
            if steps:
                step = steps.popleft()
                window = opened.get(step.window)
                if window and window.level == step.level:  # else others were quicker
                    self.compute(window, step)
            moved = bool(steps)
            for window in [*opened.values()]:
                if self.look(window):
                    moved = True
                    following = self.refine(window)
                    steps += following
                    if not following and not window.waiting:
                        self.close(window)
                        del opened[window.number]
            if not moved and opened:
                self.report()
                self.team.check()
                time.sleep(POLL)
        self.report()
        totals = {
            "done": self.done,
            "failed": self.failed,
            "resumed": self.resumed,
            "gap": gaps.statistics(self.gaps) if self.gap and self.gap.gap is not None else {},
            "precision": rounds.totals(self.s.tolerance, self.s.efforts, self.ended)
            if self.s.tolerance
            else {},
            "standard_error": gaps.errors(self.gaps),
            "failures": dict(self.reasons.most_common(REASONS)),
        }
        self.team.publish_end(totals)
        return totals

    def short_of_work(self, steps: deque[Step], opened: dict[int, Window]) -> bool:
        """Whether another window is to be planned; alone, one is after the other."""
        if self.team.alone:
            return not opened
        most = AHEAD * self.team.me.num_processes
        return len(opened) <= most and sum(len(step.missing) for step in steps) < most

    def open(self, window: Window) -> list[Step]:
        self.report("planning")
        return self.begin(window, self.plan_window(window.number))

    def begin(self, window: Window, shards: plan.Shards) -> list[Step]:
        """Count what is there of a round, and say what is not."""
        window.levels.append(shards)
        missing = self.verify(window, range(len(shards)), resumed=True)
        window.waiting = set(missing)
        if not missing:
            return []
        step = Step(window.number, window.level, missing)
        self.team.publish(step)
        return [step]

    def look(self, window: Window) -> bool:
        """Count what others have written of a window; whether its round is complete."""
        written = sorted(window.waiting & self.team.on_disk(window.number, window.level))
        if written:
            damaged = self.verify(window, written)
            if damaged:
                path = store.shard_path(self.s.out, window.number, damaged[0], window.level)
                raise JaxplainError(f"{path} is damaged: run the same command again to resume")
            window.waiting -= set(written)
        return not window.waiting

    def refine(self, window: Window) -> list[Step]:
        """Give those that are not precise enough another round, until all are or rounds end."""
        while window.rounds and len(window.levels) < len(self.s.efforts):
            shards = window.levels[-1]
            groups = window.rounds.pending(window.level, shards)
            if not groups:
                break
            path = store.plan_path(self.s.out, window.number, len(window.levels))
            shards = []
            with contextlib.suppress(FileNotFoundError, store.Damaged):
                shards = plan.unpack(store.unpack(path))
            wanted = sorted(i for group in groups.values() for i in group)
            if sorted(i for shard in shards for b in shard for i in b.indices) != wanted:
                devices = self.s.mesh.shape["data"]
                shards = rounds.cut(groups, self.pipeline.sizes, devices, self.s.shard_size)
                self.keep_plan(path, shards)
            self.doing = f"explained, {len(wanted):,} of them again"
            steps = self.begin(window, shards)
            if steps:
                return steps
        return []

    def close(self, window: Window) -> None:
        if window.rounds:
            ended, found = window.rounds.tally(window.levels, self.gap)
            self.ended += ended
            self.gaps = gaps.add(self.gaps, found)
            self.doing = "explained"
        after = store.plan_path(self.s.out, window.number, len(window.levels))
        if self.s.retry or after.exists():
            with store.writing(self.s.out):
                store.prune(self.s.out, window.number, [len(level) for level in window.levels])
        if self.team.alone or self.pipeline.reader.room <= 0:
            self.pipeline.reader.forget()

    def plan_window(self, window: int) -> plan.Shards:
        """The shards of a window, as first planned: read back if they were, else cut and kept."""
        path = store.plan_path(self.s.out, window)
        content: Any = None
        with contextlib.suppress(FileNotFoundError, store.Damaged):
            content = store.unpack(path)
        if content is not None and self.s.retry and unread(plan.unpack(content)):
            content = None  # planned as if it were for the first time
        if content is None:
            start = window * self.s.window
            indices = range(start, min(start + self.s.window, self.count))
            groups, errors = plan.sort_window(
                self.pipeline.reader, indices, self.s.lengths, self.s.max_length
            )
            self.pipeline.settle_sizes(groups, more=indices.stop < self.count)
            shards = plan.cut(groups, errors, self.pipeline.sizes, self.s.shard_size)
            content = self.keep_plan(path, shards)
        self.pipeline.sizes |= {bucket: size for bucket, size in content["sizes"]}
        return plan.unpack(content)

    def keep_plan(self, path: Path, shards: plan.Shards) -> dict[str, Any]:
        content = {
            "shards": plan.pack(shards),
            "sizes": [list(item) for item in self.pipeline.sizes.items()],
        }
        with store.writing(self.s.out):
            store.write(path, store.pack(content))
        return content

    def verify(self, window: Window, numbers: Any, resumed: bool = False) -> list[int]:
        """Count which of these shards are on disk and whole; give the numbers of the others.

        They are of an earlier start if `resumed`, else of another process of this one.
        """
        missing, level = [], window.level
        for number in numbers:
            index = plan.index_of(window.levels[level][number])
            path = store.shard_path(self.s.out, window.number, number, level)
            content = packing.read_shard(path, index, self.s.identity)
            if content is None or (resumed and self.s.retry and content["failed"]):
                missing.append(number)
                continue
            self.count_in(level, len(index), content["failed"])
            self.resumed += len(index) if level == 0 and resumed else 0
            self.counted += 0 if resumed else len(index)
            if self.gap and not window.rounds:
                self.gaps = gaps.add(self.gaps, gaps.of_shard(content, self.gap))
        return missing

    # ---- every process

    def follow(self) -> dict[str, Any]:
        """Do what process 0 publishes and nobody else has taken; what the run came to."""
        for step in self.team.follow(self.report):
            if not isinstance(step, Step):
                return step
            window = Window(step.window, self.s)
            for level in range(step.level + 1):
                path = store.plan_path(self.s.out, window.number, level)
                window.levels.append(plan.unpack(store.unpack(path)))
            if window.rounds and step.level:
                window.rounds.pending(step.level - 1, window.levels[step.level - 1])
            self.compute(window, step)
        raise AssertionError("process 0 ended without a word")

    def compute(self, window: Window, step: Step) -> None:
        def written(number: int, block: columns.Block) -> None:
            window.waiting.discard(number)
            self.count_in(step.level, len(block.index), block.failed)
            if self.gap and not window.rounds:
                self.gaps = gaps.add(self.gaps, gaps.of_columns(block.columns, self.gap))

        shards = window.levels[step.level]
        self.pipeline.compute(
            Task(window.number, step.level, shards, step.missing, window.rounds, written)
        )

    def count_in(self, level: int, many: int, failed: Mapping[int, str]) -> None:
        """Count examples as done or failed; in later rounds, those that failed after all."""
        self.failed += len(failed)
        self.done += many - len(failed) if level == 0 else -len(failed)
        tell(self.reasons, failed)


def tell(reasons: Counter, failed: Mapping[int, str]) -> None:
    """Count why examples failed; reasons that come after many other ones are not counted."""
    for reason in failed.values():
        if reason in reasons or len(reasons) < DIFFERENT:
            reasons[reason] += 1


def unread(shards: plan.Shards) -> bool:
    """Whether a plan has examples that could not be read."""
    return any(batch.bucket == plan.FAILED for shard in shards for batch in shard)
