"""How far a run is: a bar in a terminal, plain lines elsewhere, nothing when asked for nothing."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

EVERY = 10.0  # seconds between plain lines


class State(NamedTuple):
    """What is shown.

    Attributes:
        done: examples that are on disk, the failed ones included.
        total: examples of the run.
        failed: failed ones among them.
        rate: examples per second, of this process.
        padding: share of the computed positions that was padding.
        doing: what is under way, in a word or two.
    """

    done: int
    total: int
    failed: int
    rate: float
    padding: float
    doing: str


def line(state: State) -> str:
    left = (state.total - state.done) / state.rate if state.rate else float("inf")
    clock = f"{left:.0f} s left" if left < 1e7 else "time left unknown"
    return (
        f"{state.done}/{state.total} {state.doing} · {state.rate:.1f} examples/s · "
        f"padding {state.padding:.0%} · {clock} · {state.failed} failed"
    )


@contextlib.contextmanager
def shown(progress: bool | str) -> Iterator[Callable[[State], None]]:
    """Give a function that shows a `State`."""
    if progress is False:
        yield lambda state: None
        return
    if not sys.stderr.isatty():
        last = [time.monotonic(), ""]

        def plain(state: State) -> None:
            now = time.monotonic()
            finished = state.done == state.total and state.doing != last[1]
            if now - last[0] >= EVERY or finished:
                print(line(state), file=sys.stderr, flush=True)
                last[:] = [now, state.doing]

        yield plain
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("reading", total=None, text="")

        def draw(state: State) -> None:
            text = (
                f"{state.rate:.1f} examples/s · padding {state.padding:.0%} · {state.failed} failed"
            )
            bar.update(
                task,
                description=state.doing,
                completed=state.done,
                total=state.total,
                text=text,
            )

        yield draw
