"""Several processes on one run: who does what, and who is still alive.

They share the run directory, and nothing else: each works through shards of its own on its own
devices, so that no program waits for another process. In the directory, while they work:

    processes/0.1f3a.json          a process's sign of life, written anew every second
    processes/session.json         who works together, written by process 0
    processes/5d2c/step-000000.json   what is to be done, by window and round, in order
    processes/5d2c/00000.00-0003   a shard that somebody has taken
    processes/5d2c/00000.00-0003.done   and that is on disk
"""

import contextlib
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxplain.run import signs, store
from jaxplain.run.plan import reason
from jaxplain.run.processes import Processes
from jaxplain.types import JaxplainError

FOLDER = "processes"
BEAT = 1.0  # seconds between signs of life
POLL = 0.05  # seconds between looks at what others have done
JOIN = 600.0  # seconds that processes wait for each other at the start
CALL = "examples", "configuration", "plan", "versions", "fingerprints", "probes"
DONE = ".done"
RESUME = ". What is on disk is whole: start all of them again to resume"


class Step(NamedTuple):
    """What is to be done: the shards of a window in a round that are not on disk."""

    window: int
    level: int
    missing: list[int]


def at_work(path: Path) -> bool:
    """Whether a file is the sign of a process of this machine that is alive, and not done."""
    sign = None if path.is_dir() else signs.read(path)
    if not sign or sign.get("state") in (None, "ended", "failed"):
        return False
    return signs.of_this_machine(sign) and not signs.gone(sign)


class Team:
    """The processes of one start of a run, as seen by one of them.

    A team of one is always whole, takes every shard, and writes nothing.
    """

    def __init__(self, out: Path, me: Processes):
        self.folder, self.me = out / FOLDER, me
        self.alone, self.leads = me.num_processes == 1, me.process_id == 0
        self.token = secrets.token_hex(4)
        self.session = ""
        self.members: dict[int, str] = {}  # who is watched, by number: its token
        self.seen: dict[int, tuple[Any, float]] = {}  # its last sign of life, and when it came
        self.others: dict[int, int] = {}  # how many examples each of them has finished
        self.finished = 0  # examples, here
        self.steps = 0
        self.beats = 0
        self.state, self.error = "starting", ""
        self.older: set[str] = set()  # signs that were there before, and may be relics
        self.relics: dict[Path, int] = {}  # beats that signs had when first seen
        self.call: dict[str, Any] = {}
        self.lost: JaxplainError | None = None
        self.stopped = threading.Event()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Give signs of life, and at the end say how it came."""
        if self.alone:
            yield
            return
        with store.writing(self.folder.parent):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.older = {path.name for path in self.folder.iterdir() if not at_work(path)}
        self.beat()
        beating = threading.Thread(target=self.keep_beating, daemon=True)
        beating.start()
        try:
            yield
        except BaseException as error:
            self.state, self.error = "failed", reason(error)[:500]
            raise
        else:
            self.state = "ended"
        finally:
            self.stopped.set()
            beating.join()
            self.beat()
            if self.leads and self.state == "ended":
                self.tidy()

    # ---- joining

    def join(
        self, info: dict[str, Any], identity: str, differences: Callable, say: Callable
    ) -> str:
        """Wait for all others to be there, with the same call; the identity of their run.

        Args:
            info: the record of this call.
            identity: of the run, as this process knows it; that of process 0 holds.
            differences: of two records, in words.
            say: told what is waited for.

        Raises:
            JaxplainError: another call; somebody who ended, or does not come.
        """
        if self.alone:
            return identity
        self.call, self.state = {n: info[n] for n in CALL if n in info}, "joining"
        if self.leads:
            self.gather(identity, differences, say)
        else:
            identity = self.be_taken(say)
        self.state = "working"
        return identity

    def look_at(self, number: int) -> Iterator[dict[str, Any]]:
        """Signs of process `number` that are no relic of an earlier start: they go on.

        Raises:
            JaxplainError: it has ended, or is gone.
        """
        for path in self.folder.glob(f"{number}.*.json"):
            sign = signs.read(path)
            if not sign:
                continue
            waits = sign["state"] != "ended" and not sign["session"]
            if path.name not in self.older and waits:
                if sign["state"] == "failed":
                    raise JaxplainError(f"process {number} of {sign['of']} ended: {sign['error']}")
                if signs.gone(sign):
                    raise JaxplainError(f"process {number} of {sign['of']} is gone{RESUME}")
            if self.relics.setdefault(path, sign["beat"]) != sign["beat"]:
                self.older.discard(path.name)
                yield sign

    def gather(self, identity: str, differences: Callable, say: Callable) -> None:
        count, found = self.me.num_processes, {}
        deadline = time.monotonic() + JOIN
        while len(found) < count - 1:
            waited = [n for n in range(1, count) if n not in found]
            say(f"waiting for process {', '.join(map(str, waited[:8]))}")
            if time.monotonic() > deadline:
                raise JaxplainError(
                    f"process {waited[0]} of {count} did not come within {JOIN:.0f} s: start "
                    f"processes 0 to {count - 1} with the same command and run directory"
                )
            time.sleep(POLL)
            for number in waited:
                for sign in self.look_at(number):
                    if sign["state"] == "joining":
                        found[number] = sign
        session = secrets.token_hex(4)
        tokens = {number: sign["token"] for number, sign in found.items()}
        problem = ""
        for number, sign in sorted(found.items()):
            lines = differences(sign["call"], self.call)
            if sign["of"] != count:
                lines = [f"it is one of {sign['of']}, and process 0 one of {count}"]
            if lines:
                problem = f"process {number} was started otherwise: {'; '.join(lines)}"
                break
        self.sweep({self.token, *tokens.values()})
        (self.folder / session).mkdir()
        signs.give(
            self.folder / "session.json",
            {
                "session": session,
                "tokens": {0: self.token} | tokens,
                "identity": identity,
                "problem": problem,
            },
        )
        if problem:
            raise JaxplainError(f"{problem}. Give all of them the same command")
        self.meet_others(session, tokens)

    def be_taken(self, say: Callable) -> str:
        deadline = time.monotonic() + JOIN
        while True:
            say("waiting for process 0")
            session = signs.read(self.folder / "session.json") or {"tokens": {}}
            if session["tokens"].get(str(self.me.process_id)) == self.token:
                break
            for _ in self.look_at(0):
                pass
            if time.monotonic() > deadline:
                raise JaxplainError(
                    f"process 0 of {self.me.num_processes} did not come within {JOIN:.0f} s: "
                    "start it with the same command and run directory"
                )
            time.sleep(POLL)
        if session["problem"]:
            raise JaxplainError(f"{session['problem']}. Give all of them the same command")
        self.meet_others(session["session"], {0: session["tokens"]["0"]})
        return session["identity"]

    def meet_others(self, session: str, members: dict[int, str]) -> None:
        self.session = session
        self.seen = {number: (None, time.monotonic()) for number in members}
        self.members = members  # last: from now on they are watched

    def sweep(self, tokens: set[str]) -> None:
        """Remove what earlier starts left behind."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.split(".")[1] not in tokens:
                path.unlink(missing_ok=True)

    # ---- signs of life

    def beat(self) -> None:
        self.beats += 1
        sign = {
            "id": self.me.process_id,
            "of": self.me.num_processes,
            "token": self.token,
            "beat": self.beats,
            "session": self.session,
            "state": self.state,
            "error": self.error,
            "finished": self.finished,
            **signs.here(),
        }
        if self.state == "joining":
            sign["call"] = self.call
        with contextlib.suppress(OSError):  # the disk's trouble is told where results are written
            signs.give(self.folder / f"{self.me.process_id}.{self.token}.json", sign)

    def keep_beating(self) -> None:
        while not self.stopped.wait(BEAT):
            try:
                self.beat()
                self.watch()
            except Exception as error:  # nobody would notice that nobody is watched any more
                self.lost = JaxplainError(f"watching other processes failed: {reason(error)}")

    def watch(self) -> None:
        """Notice who ended or gives no sign of life."""
        for number, token in self.members.items():
            before, since = self.seen[number]
            sign = signs.read(self.folder / f"{number}.{token}.json")
            silent = time.monotonic() - since
            if sign and sign["beat"] != (before or {}).get("beat"):
                self.seen[number] = sign, time.monotonic()
                self.others[number] = sign["finished"]
                if sign["state"] == "failed":
                    self.lose(number, f"ended: {sign['error'].removesuffix(RESUME)}")
            elif before and before["state"] == "ended":
                pass
            elif before and signs.gone(before):
                self.lose(number, "is gone")
            elif silent > self.me.patience:
                self.lose(number, f"has given no sign of life for {silent:.0f} s")

    def lose(self, number: int, what: str) -> None:
        told = f"process {number} of {self.me.num_processes} {what}"
        self.lost = self.lost or JaxplainError(f"{told}{RESUME}")

    def check(self) -> None:
        """Raise if somebody was lost."""
        if self.lost:  # the run broke off; its input was not at fault
            raise self.lost from ConnectionError("another process was lost")

    # ---- work

    def publish(self, step: Step) -> None:
        """Say what is to be done next."""
        if not self.alone:
            signs.give(self.folder / self.session / f"step-{self.steps:06d}.json", step._asdict())
            self.steps += 1

    def publish_end(self, totals: dict[str, Any]) -> None:
        if not self.alone:
            signs.give(self.folder / self.session / f"step-{self.steps:06d}.json", {"end": totals})

    def follow(self, say: Callable) -> Iterator[Step | dict[str, Any]]:
        """What process 0 publishes, as it comes; at last, what the run came to."""
        while True:
            path = self.folder / self.session / f"step-{self.steps:06d}.json"
            content = signs.read(path)
            if content is None:
                say("waiting for process 0")
                self.check()
                time.sleep(POLL)
                continue
            self.steps += 1
            if "end" in content:
                yield content["end"]
                return
            yield Step(**content)

    def take(self, window: int, level: int, shard: int) -> bool:
        """Whether a shard is this process's: it is if nobody else has taken it before."""
        if self.alone:
            return True
        self.check()
        try:
            self.claim(window, level, shard).touch(exist_ok=False)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise JaxplainError(
                "this run was started anew while this process was at work: it ends here"
            ) from None
        return True

    def put_down(self, window: int, level: int, shard: int, count: int) -> None:
        """Tell that a shard with so many examples is on disk."""
        self.finished += count
        if not self.alone:
            path = self.claim(window, level, shard)
            path.with_name(f"{path.name}{DONE}").touch()

    def on_disk(self, window: int, level: int) -> set[int]:
        """Shards of a window's round that any process has put down since this start."""
        if self.alone:
            return set()
        found = self.claim(window, level, 0).name.rpartition("-")[0]
        paths = (self.folder / self.session).glob(f"{found}-*{DONE}")
        return {int(path.stem.rpartition("-")[2]) for path in paths}

    def claim(self, window: int, level: int, shard: int) -> Path:
        return self.folder / self.session / f"{window:05d}.{level:02d}-{shard:04d}"

    def tidy(self) -> None:
        """Remove what is of no use any more, when all others have read how the run ended."""
        deadline = time.monotonic() + self.me.patience
        ended = lambda sign: sign and (sign["state"] in ("ended", "failed") or signs.gone(sign))
        while time.monotonic() < deadline and not all(ended(s) for s, _ in self.seen.values()):
            time.sleep(POLL)
            self.watch()
        shutil.rmtree(self.folder, ignore_errors=True)
