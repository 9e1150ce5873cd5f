"""What `benchmarks.chaos` explains, and the process that does it while things go wrong.

The parent imports JAX and never starts a backend, so it can fork; a worker is such a fork, and
explains one directory after the other until it is killed. Its compiled programs are kept from run
to run: they are pure, and compiling is most of what a run on so few examples takes.
"""

import contextlib
import errno
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxplain as jxp
from jaxplain import precision
from jaxplain.run import compile as compiler
from jaxplain.run import engine

ROWS, WIDTH = 40, 5
PATIENCE = 60.0  # seconds that a run may take before it counts as hanging


class Case(NamedTuple):
    """A run that is disturbed."""

    explain: Callable
    ragged: tuple[str, ...]
    options: dict[str, Any]


def network(params, x):
    return jnp.tanh(jnp.tanh(x @ params["in"]) @ params["out"]).sum(-1)


def fixed(params, example, key):
    return jxp.integrated_gradients(lambda x: network(params, x), example["x"], steps=4)


def ragged(params, example, key):
    f = lambda x: (network(params, x) * example["mask"]).sum()
    return jxp.input_x_gradient(f, example["x"]), {"noise": jax.random.normal(key, (2,))}


def rounds(params, example, key, effort):
    f = lambda x: network(params, 4 * x)
    return jxp.integrated_gradients(f, example["x"], steps=effort)


def draws(params, example, key, effort):
    f = lambda x: (network(params, x) * example["mask"]).sum()
    zeros = jnp.zeros((1, *example["x"].shape))
    return jxp.expected_gradients(f, example["x"], key=key, baselines=zeros, samples=effort)


def cases() -> dict[str, Case]:
    tolerant = {"tolerance": 0.02, "efforts": precision.nodes(2, 16)}
    drawn = {"tolerance": 0.3, "efforts": precision.draws(4, 16)}
    kept = {"keep": {"spread": np.arange(6.0)}}
    return {
        "fixed": Case(fixed, (), kept),
        "ragged": Case(ragged, ("x", "mask"), {"lengths": [6, 12]}),
        "rounds": Case(rounds, (), tolerant),
        "draws": Case(draws, ("x", "mask"), {"lengths": [12]} | drawn),
    }


def examples(case: Case) -> list[dict[str, Any]]:
    found = []
    for number in range(ROWS):
        rng = np.random.default_rng(number)
        shape = (int(rng.integers(1, 13)), WIDTH) if case.ragged else (WIDTH,)
        row: dict[str, Any] = {"x": rng.normal(size=shape).astype(np.float32), "id": f"n{number}"}
        found.append(row | ({"mask": np.ones(shape[0], bool)} if case.ragged else {}))
    return found


class Source:
    """Rows, some of which go wrong.

    Attributes:
        wrong: the rows that do.
        how: raise, shape, dtype, infinite, or sleep once for `pause` seconds, or until there is the
            file `until`.
        after: reads that are answered well before; `ROWS` of them are the engine's first look.
        pause: seconds that every read takes.
        lengths: what `len` says, call by call; the last one stays.
    """

    def __init__(
        self, rows, *, wrong=(), how="raise", after=0, pause=0.0, lengths=(ROWS,), until=None
    ):
        self.rows, self.wrong, self.how, self.until = rows, set(wrong), how, until
        self.after, self.pause, self.lengths = after, pause, list(lengths)
        self.reads = 0

    def __len__(self):
        return self.lengths.pop(0) if len(self.lengths) > 1 else self.lengths[0]

    def __getitem__(self, index):
        self.reads += 1
        row = dict(self.rows[index % ROWS])
        if self.how == "sleep":
            if index in self.wrong and self.reads > self.after:
                self.wrong.clear()
                time.sleep(self.pause)
                while self.until and not Path(self.until).exists():
                    time.sleep(0.002)
            return row
        time.sleep(self.pause)
        if index not in self.wrong or self.reads <= self.after:
            return row
        if self.how == "raise":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        x = row["x"]
        row["x"] = {
            "shape": np.concatenate([x, x], -1),
            "dtype": np.ones(x.shape, np.int32),
            "infinite": np.where(np.arange(WIDTH) == 1, np.inf, x).astype(np.float32),
        }[self.how]
        return row


def parameters(scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {"in": (WIDTH, 4), "out": (4, 2)}
    return {
        name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()
    }


# ---- what goes wrong inside the process


class Killed(BaseException):
    """Nothing catches it, and nothing in the directory changes after it: as good as dead."""


class Steps:
    """Python tells of every file it opens to write, renames, removes; some of these do not happen.

    Attributes:
        out: the directory; None while nothing is disturbed.
        at: the step before which something happens.
        how: kill (the process dies), stop (`Killed` is raised), or a name of an errno, such as
            ENOSPC, with which this step and all later ones fail.
        torn: share of a file that is there when the step is its renaming.
        seen: the steps so far.
    """

    out: str | None = None
    at: int | None = None
    how, torn, seen = "stop", 1.0, 0

    def __call__(self, event: str, args: tuple) -> None:
        if self.out is None or event not in CHANGES or not self.ours(event, args):
            return
        self.seen += 1
        if self.at is None or self.seen <= self.at:
            return
        if event == "os.rename" and self.seen == self.at + 1 and self.torn < 1:
            os.truncate(args[0], int(os.path.getsize(args[0]) * self.torn))
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "stop":
            raise Killed
        if event != "os.remove":
            code = getattr(errno, self.how)
            raise OSError(code, os.strerror(code))

    def ours(self, event: str, args: tuple) -> bool:
        if event == "open" and not (
            set(args[1] or "") & set("wax+") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        ):
            return False
        if event in ("os.remove", "os.rmdir") and args[1] != -1:  # a name in an opened folder
            return True
        name = str(args[0])
        return name.startswith(str(self.out)) and not name.endswith(".lock")


CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
STEPS = Steps()
FOLDER = str(Path(engine.__file__).parent)


@contextlib.contextmanager
def interrupted(at: int | None) -> Iterator[None]:
    """Raise `KeyboardInterrupt` before the line of the engine that the main thread comes to next
    after `at` others."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            seen += 1
            if seen > (at or 0):
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    if at is not None:
        sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


@contextlib.contextmanager
def largest_file(size: int | None) -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextlib.contextmanager
def clock(jump: float) -> Iterator[None]:
    """`time.time` leaps by `jump` seconds at every call, forwards and backwards in turn."""
    real, calls = time.time, [0]

    def leaping():
        calls[0] += 1
        return real() + jump * (-1) ** calls[0]

    if jump:
        time.time = leaping
    try:
        yield
    finally:
        time.time = real


def explained(
    case: str,
    out: str,
    *,
    devices: int = 1,
    scale: float = 1.0,
    source: dict[str, Any] | None = None,
    at: int | None = None,
    how: str = "stop",
    torn: float = 1.0,
    line: int | None = None,
    size: int | None = None,
    jump: float = 0.0,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One run, and how it ended: done, refused, stopped, interrupted or raised."""
    chosen = cases()[case]
    given = Source(examples(chosen), **source or {})
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("data",))
    made = {"shard_size": 8, "batch_size": 4, "progress": False} | chosen.options
    before = threading.active_count()
    STEPS.at, STEPS.how, STEPS.torn, STEPS.seen, STEPS.out = at, how, torn, 0, out
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with interrupted(line), largest_file(size), clock(jump):
            summary = jxp.run(
                chosen.explain, parameters(scale), given, out, key=jax.random.key(5), mesh=mesh,
                ragged=chosen.ragged, **made | (options or {}),
            )  # fmt: skip
        ended: dict[str, Any] = {"ended": "done", "failures": summary.failures}
        ended |= {name: getattr(summary, name) for name in ("done", "failed", "resumed")}
    except jxp.JaxplainError as error:
        ended = {"ended": "refused", "line": str(error)}
    except (Killed, KeyboardInterrupt) as error:
        ended = {"ended": "stopped" if isinstance(error, Killed) else "interrupted"}
    except BaseException:
        ended = {"ended": "raised", "line": traceback.format_exc()}
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that comes too late
        STEPS.out = None
    return ended | {"steps": STEPS.seen, "threads": threading.active_count() - before}


# ---- the process


def remember(module: Any, name: str) -> None:
    """Keep what a pure function of the compiler gave, by what it was asked for but for values."""
    function, kept = getattr(module, name), {}
    shape = lambda leaf: (np.shape(leaf), str(jnp.result_type(leaf)))
    shapes = lambda tree: str(jax.tree.map(shape, tree))

    def remembered(explain, params, key, like, *rest, rounds=(), settled=None, **more):
        places = [r.shape if isinstance(r, Mesh) else r for r in rest]
        asked = repr((explain.__name__, shapes(params), like, places, shapes(rounds), settled))
        if asked not in kept:
            more |= {"rounds": rounds, "settled": settled}
            kept[asked] = function(explain, params, key, like, *rest, **more)
        return kept[asked]

    setattr(module, name, remembered)


def serve(line: Any) -> None:
    """Do what is asked for, one run after the other."""
    os.environ["JAXPLAIN_CACHE"] = "off"
    for name in ("compile_bucket", "outputs"):
        remember(compiler, name)
    sys.addaudithook(STEPS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    while True:
        while not line.poll(5):
            if os.getppid() != parent:  # nobody is left to ask
                return
        asked = json.loads(line.recv_bytes())
        line.send_bytes(json.dumps(explained(**asked)).encode())


class Worker:
    """A process that explains; another one takes its place when it dies."""

    def __init__(self):
        self.process: Any = None

    def start(self, case: str, out: Path, **asked: Any) -> None:
        """Start a run; does not wait for it. All runs start here."""
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("fork")
            self.line, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other,), daemon=True)
            self.process.start()
            other.close()
        self.line.send_bytes(json.dumps({"case": case, "out": str(out)} | asked).encode())

    def end(self) -> dict[str, Any]:
        """How the run ended."""
        try:
            if self.line.poll(PATIENCE):
                return json.loads(self.line.recv_bytes())
        except (EOFError, ConnectionError):
            self.process.join()
            return {"ended": "killed", "signal": -self.process.exitcode}
        self.process.kill()
        self.process.join()
        return {"ended": "hung"}

    def ask(self, case: str, out: Path, **asked: Any) -> dict[str, Any]:
        self.start(case, out, **asked)
        return self.end()

    def signal(self, number: int) -> dict[str, Any]:
        """Send the process a signal, and wait for how the run ends."""
        os.kill(self.process.pid, number)
        ended = self.end()
        if number != signal.SIGINT:
            self.process.join()  # it may have answered first
        return ended

    def close(self) -> None:
        if self.process is not None and self.process.is_alive():
            self.process.kill()
            self.process.join()
