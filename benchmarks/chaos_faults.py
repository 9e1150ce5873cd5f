"""The faults of `benchmarks.chaos`: each leaves a directory that one more run must make whole."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.chaos_check import Whole, changed, expect, indices, unlike
from benchmarks.chaos_jobs import ROWS, Worker
from jaxplain.run import restore

OVERWRITE = {"options": {"overwrite": True}}
RETRY = {"options": {"retry": True}}


class Mend(NamedTuple):
    """How the one run after a fault is asked for, and what it must come to.

    Attributes:
        asked: arguments of `chaos_jobs.explained`.
        equal: "files": every file but run.json bit for bit that of an undisturbed run; "records":
            every record bit for bit; "near": every record to rounding.
    """

    asked: dict[str, Any] = {}  # noqa: RUF012
    equal: str = "files"


class Skipped(Exception):
    """This machine does not let the fault happen."""


class Lab:
    """Where runs are disturbed: workers, undisturbed runs to compare with, a small disk."""

    def __init__(self, folder: Path):
        self.folder, self.worker, self.second = folder, Worker(), Worker()
        self.made: dict[tuple[str, float], Whole] = {}
        self.disk = folder / "disk"
        self.refused: str | None = None  # why there is no small disk
        self.late = 0  # disturbances that came when the run had ended already

    def whole(self, case: str, scale: float = 1.0) -> Whole:
        """What an undisturbed run comes to."""
        if (case, scale) not in self.made:
            out = self.folder / f"{case} {scale}"
            ended = self.worker.ask(case, out, scale=scale)
            if ended["ended"] != "done" or ended["done"] != ROWS:
                raise RuntimeError(f"undisturbed, {case}: {ended}")
            began = time.monotonic()
            steps = self.worker.ask(case, out / "again", scale=scale)["steps"]
            seconds = time.monotonic() - began
            shutil.rmtree(out / "again")
            self.made[case, scale] = Whole(out, steps, seconds)
        return self.made[case, scale]

    @contextlib.contextmanager
    def small_disk(self, size: str) -> Iterator[Path]:
        """A file system of its own."""
        self.disk.mkdir(exist_ok=True)
        self.mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
        try:
            yield self.disk
        finally:
            subprocess.run(["umount", "-l", self.disk], check=True)

    def mount(self, *options: str) -> None:
        if self.refused is None:
            command = ["mount", *options, str(self.disk)]
            try:
                made = subprocess.run(command, capture_output=True, text=True)
            except OSError as error:
                self.refused = str(error)
            else:
                self.refused = " ".join(made.stderr.split()) if made.returncode else None
        if self.refused is not None:
            raise Skipped(f"mount is not permitted here: {self.refused}")

    def disturbed(self, ended: dict[str, Any], ends: tuple[str, ...], what: str) -> None:
        """Check how a disturbed run ended; it may have been done before."""
        self.late += ended["ended"] == "done"
        expect(ended["ended"] in (*ends, "done"), f"{what}: {ended}")

    def close(self) -> None:
        self.worker.close()
        self.second.close()


Fault = Callable[[Lab, str, Path, np.random.Generator], Mend]


def moment(lab: Lab, case: str, rng: np.random.Generator) -> float:
    """Seconds after the start of a run that reads slowly, somewhere in it or shortly after."""
    return float(rng.uniform(0, 1.2 * (lab.whole(case).seconds + 2 * ROWS * PAUSE)))


PAUSE = 0.001  # seconds a read takes, where a moment is to be hit
SLOW = {"source": {"pause": PAUSE}}


def crash(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """The engine stops dead before a step of its file operations; a file may be half written."""
    at = int(rng.integers(lab.whole(case).steps))
    torn = float(rng.choice([1.0, 0.5, 0.0]))
    ended = lab.worker.ask(case, out, at=at, torn=torn)
    lab.disturbed(ended, ("stopped",), f"a stop at step {at}")
    return Mend()


def error(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """From a step of its file operations on, the system refuses to write."""
    at, how = int(rng.integers(lab.whole(case).steps)), str(rng.choice(["ENOSPC", "EROFS", "EIO"]))
    ended = lab.worker.ask(case, out, at=at, how=how)
    lab.disturbed(ended, ("refused",), f"{how} from step {at} on")
    if ended["ended"] == "refused":
        expect("cannot be written" in ended["line"], ended["line"])
        expect("\n" not in ended["line"], f"more than one line: {ended['line']}")
    return Mend()


def kill(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """SIGKILL, from outside at a random moment, or by itself before a step."""
    if rng.random() < 0.3:
        ended = lab.worker.ask(case, out, at=int(rng.integers(lab.whole(case).steps)), how="kill")
        lab.disturbed(ended, ("killed",), "a kill at a step")
        return Mend()
    return signalled(lab, case, out, rng, signal.SIGKILL, "killed")


def terminate(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """SIGTERM at a random moment."""
    return signalled(lab, case, out, rng, signal.SIGTERM, "killed")


def interrupt(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """Ctrl-C at a random moment, or before a random line of the engine."""
    if rng.random() < 0.2:
        return signalled(lab, case, out, rng, signal.SIGINT, "interrupted")
    ended = lab.worker.ask(case, out, line=int(10 ** rng.uniform(0, 4.5)))
    lab.disturbed(ended, ("interrupted",), "an interrupt at a line")
    expect(ended["threads"] == 0, f"threads go on after an interrupt: {ended}")
    return Mend()


def signalled(lab, case, out, rng, number: int, end: str) -> Mend:
    wait = moment(lab, case, rng)
    if lab.worker.process is None or not lab.worker.process.is_alive():
        wait += float(rng.uniform(0, 1))  # it has JAX to start, and programs to compile
    lab.worker.start(case, out, **SLOW)
    time.sleep(wait)
    ended = lab.worker.signal(number)
    lab.disturbed(ended, (end,), f"signal {number} after {wait:.3f} s")
    return Mend()


def some(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> None:
    """A directory with something in it: all of a run, or what was there at a crash."""
    if not (out / "run.json").exists():
        if rng.random() < 0.5:
            shutil.copytree(lab.whole(case).out, out, dirs_exist_ok=True)
        else:
            low = 6  # run.json and the plan are there
            lab.worker.ask(case, out, at=int(rng.integers(low, lab.whole(case).steps)))


def damage(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """Up to four shards, plans or kept arrays are cut short, altered, emptied or deleted."""
    some(lab, case, out, rng)
    files = sorted(out.rglob("*.msgpack"))
    rng.shuffle(files)  # type: ignore[arg-type]
    for path in files[: int(rng.integers(1, 5))]:
        spoil(path, rng)
    if rng.random() < 0.3:
        for folder in filter(Path.is_dir, (out, out / "plans", out / "shards")):
            left = folder / f".{rng.choice(['run.json', '00000.msgpack'])}.{os.getpid()}.tmp"
            left.write_bytes(rng.bytes(int(rng.integers(3))))
    wrong = unlike(lab.whole(case), out, missing=True)
    expect(not wrong, f"a damaged directory gives a wrong record: {wrong}")
    return Mend()


def record(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """run.json is cut short, altered, emptied or deleted."""
    some(lab, case, out, rng)
    if (out / "run.json").exists():
        spoil(out / "run.json", rng)
    # With no whole shard nothing is lost, and nothing says whose the run is: the user has to.
    return Mend(OVERWRITE if restore.owner(out) is None else {})


def spoil(path: Path, rng: np.random.Generator) -> None:
    content, how = path.read_bytes(), rng.integers(5)
    if how == 4:
        path.unlink()
        return
    place = int(rng.integers(len(content))) if content else 0
    flipped = bytearray(content)
    if content:
        flipped[place] ^= 1 << int(rng.integers(8))
    path.write_bytes([content[:place], content[: len(content) // 2], bytes(flipped), b""][how])


def full(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """A disk of a few pages, and a larger one afterwards."""
    pages = int(rng.integers(1, 14))
    with lab.small_disk(f"{4 * pages}k") as disk:
        ended = lab.worker.ask(case, disk / "out")
        lab.disturbed(ended, ("refused",), "a small disk")
        if ended["ended"] != "done":
            refused(ended, "No space left on device")
            left = list((disk / "out").rglob("*.tmp"))
            expect(not left, f"a full disk is left with {left}")
        lab.mount("-o", "remount,size=8m")
        shutil.copytree(disk / "out", out, dirs_exist_ok=True)
    return Mend()


def readonly(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """A directory that may only be read, for one start."""
    with lab.small_disk("8m") as disk:
        if rng.random() < 0.8:
            some(lab, case, disk / "out", rng)
        lab.mount("-o", "remount,ro")
        refused(lab.worker.ask(case, disk / "out"), "Read-only file system")
        if (disk / "out").exists():
            shutil.copytree(disk / "out", out, dirs_exist_ok=True)
    return Mend()


def limit(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """Files may not grow beyond a few hundred bytes."""
    ended = lab.worker.ask(case, out, size=int(10 ** rng.uniform(1.5, 4)))
    lab.disturbed(ended, ("refused",), "files that may not grow")
    if ended["ended"] != "done":
        refused(ended, "File too large")
    return Mend()


def source(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """Some rows raise, or have another shape or dtype, in the first run and not in the next."""
    wrong = rng.permutation(ROWS)[: int(rng.integers(1, 7))].tolist()
    after = int(rng.choice([0, ROWS, int(rng.integers(3 * ROWS))]))
    bad = {"wrong": wrong, "how": str(rng.choice(["raise", "shape", "dtype"])), "after": after}
    ended = lab.worker.ask(case, out, source=bad)
    expect(ended["ended"] == "done", f"a source with {bad}: {ended}")
    expect(ended["failed"] <= len(wrong), f"more failed than went wrong, with {bad}: {ended}")
    # With fewer examples, later rounds have other batches.
    failed = unlike(lab.whole(case), out, missing=True, near=True)
    expect({i for i, _ in failed} <= set(wrong), f"others suffer, with {bad}: {failed}")
    if not after:
        expect(ended["failed"] == len(wrong), f"of {bad}: {ended}")
    again = lab.worker.ask(case, out)
    expect(again["ended"] == "done", f"resumed after {bad}: {again}")
    expect(again["failed"] == ended["failed"], f"failed examples stay failed, after {bad}: {again}")
    # The identity that each shard holds is of the rows that could be read at first.
    return Mend(RETRY, "files" if after >= ROWS else "records")


def hang(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """A source that answers late, and a Ctrl-C or a kill while one waits for it."""
    slow = {"wrong": [int(rng.integers(ROWS))], "how": "sleep", "pause": 0.4}
    slow["after"] = int(rng.choice([0, ROWS]))
    lab.worker.start(case, out, source=slow)
    if rng.random() < 0.7:
        time.sleep(float(rng.uniform(0, 0.4)))
        ended = lab.worker.signal(int(rng.choice([signal.SIGINT, signal.SIGKILL])))
    else:
        ended = lab.worker.end()
    lab.disturbed(ended, ("interrupted", "killed"), "a source that hangs")
    expect(not ended.get("threads"), f"threads go on after an interrupt: {ended}")
    return Mend()


def length(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """A source that is longer or shorter at the next start, or from one call to the next."""
    other = int(ROWS + rng.choice([-3, -1, 1, 5]))
    if rng.random() < 0.5:
        some(lab, case, out, rng)
        before = changed(out)
        refused(lab.worker.ask(case, out, source={"lengths": [other]}), "the examples differ")
        expect(changed(out) == before, "a refused run changed the directory")
        return Mend()
    lengths = [ROWS] * int(rng.integers(1, 12)) + [other]
    ended = lab.worker.ask(case, out, source={"lengths": lengths})
    expect(ended["ended"] == "done", f"lengths {lengths}: {ended}")
    found, promised = indices(out)
    expect(sorted(found) == list(range(promised)), f"lengths {lengths}: {promised}, {found}")
    return Mend(OVERWRITE)


def nan(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """Parameters that are NaN; then the right ones."""
    ended = lab.worker.ask(case, out, scale=float("nan"))
    expect(ended["ended"] == "done", f"NaN parameters: {ended}")
    expect((ended["done"], ended["failed"]) == (0, ROWS), f"NaN parameters: {ended}")
    expect(all("NaN in" in reason for reason in ended["failures"]), f"no reason: {ended}")
    before = changed(out)
    refused(lab.worker.ask(case, out), "the parameters differ")
    expect(changed(out) == before, "a refused run changed the directory")
    return Mend(OVERWRITE)


def infinite(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """Some examples hold an infinity; the others do not suffer."""
    wrong = rng.permutation(ROWS)[: int(rng.integers(1, 7))].tolist()
    ended = lab.worker.ask(case, out, source={"wrong": wrong, "how": "infinite"})
    expect(ended["ended"] == "done" and ended["failed"] == len(wrong), f"infinities: {ended}")
    # With fewer examples, later rounds have other batches.
    failed = unlike(lab.whole(case), out, missing=True, near=True)
    expect({i for i, _ in failed} == set(wrong), f"infinities in {wrong}: {failed}")
    refused(lab.worker.ask(case, out), "the examples differ")
    return Mend(OVERWRITE)


def twice(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """Two runs in one directory at once."""
    told = lab.folder / "told"
    told.unlink(missing_ok=True)
    held = {"wrong": [int(rng.integers(ROWS))], "how": "sleep", "until": str(told)}
    held["after"] = int(rng.choice([0, ROWS]))
    lab.worker.start(case, out, source=held)
    deadline = time.monotonic() + 30
    while not (out / "run.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(float(rng.uniform(0.02, 0.1)))
    more = OVERWRITE if rng.random() < 0.5 else {}
    second = lab.second.ask(case, out, **more)
    told.touch()
    ended = lab.worker.end()
    refused(second, "in use by another run")
    expect(ended["ended"] == "done" and ended["done"] == ROWS, f"the first of two: {ended}")
    return Mend()


def clock(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """The clock leaps back and forth, and files come from another time."""
    jump = float(rng.choice([1, 3600, 1e8]))
    lab.worker.ask(case, out, at=int(rng.integers(lab.whole(case).steps)), jump=jump)
    for path in out.rglob("*") if out.exists() else ():
        when = time.time() + float(rng.uniform(-1e9, 1e9))
        os.utime(path, (when, when))
    return Mend({"jump": jump})


def devices(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """Another number of devices at every start; files are lost in between."""
    counts = [int(n) for n in rng.choice([1, 2, 4, 8], size=3)]
    lab.worker.ask(case, out, at=int(rng.integers(lab.whole(case).steps)), devices=counts[0])
    ended = lab.worker.ask(case, out, devices=counts[1])
    expect(ended["ended"] == "done", f"on {counts[:2]} devices: {ended}")
    for path in sorted((out / "shards").iterdir())[:: int(rng.integers(2, 4))]:
        path.unlink()
    return Mend({"devices": counts[2]}, "near")


def overwrite(lab: Lab, case: str, out: Path, rng: np.random.Generator) -> Mend:
    """Another run is replaced, and the process stops dead on the way."""
    shutil.copytree(lab.whole(case, 2.0).out, out, dirs_exist_ok=True)
    many = len(list(out.rglob("*.msgpack"))) + 8  # what is removed, and the first writes
    at, how = int(rng.integers(many)), str(rng.choice(["stop", "EIO"]))
    ended = lab.worker.ask(case, out, at=at, how=how, **OVERWRITE)
    lab.disturbed(ended, ("stopped", "refused"), f"overwriting, step {at}")
    return Mend(OVERWRITE)


def refused(ended: dict[str, Any], words: str) -> None:
    expect(ended["ended"] == "refused" and words in ended["line"], f"no {words!r}: {ended}")
    expect("\n" not in ended["line"], f"more than one line: {ended['line']}")


# By name: the fault, how often it happens, and whether others may come before it.
FAULTS: dict[str, tuple[Fault, int, bool]] = {
    "crash": (crash, 26, True),
    "error": (error, 6, True),
    "kill": (kill, 10, True),
    "terminate": (terminate, 2, True),
    "interrupt": (interrupt, 12, True),
    "damage": (damage, 16, True),
    "record": (record, 8, True),
    "full": (full, 2, False),
    "readonly": (readonly, 2, False),
    "limit": (limit, 2, True),
    "source": (source, 6, False),
    "hang": (hang, 2, True),
    "length": (length, 2, False),
    "nan": (nan, 1, False),
    "infinite": (infinite, 1, False),
    "twice": (twice, 1, False),
    "clock": (clock, 2, True),
    "devices": (devices, 4, False),
    "overwrite": (overwrite, 4, False),
}
