"""What `benchmarks.chaos` holds a directory against: an undisturbed run."""

import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxplain as jxp
from jaxplain.run import columns, store

# What says when, how fast and where a run was made; all else in run.json must be equal.
TIMES = {"created", "finished", "devices"}
PACE = {"seconds", "examples_per_second", "padding"}


class Broken(Exception):
    """A promise that was not kept."""


def expect(kept: Any, text: str) -> None:
    if not kept:
        raise Broken(text)


class Whole:
    """An undisturbed run.

    Attributes:
        out: its directory.
        steps: how many file operations it took.
        seconds: how long it takes once everything is compiled.
    """

    def __init__(self, out: Path, steps: int, seconds: float):
        self.out, self.steps, self.seconds = out, steps, seconds

    @cached_property
    def records(self) -> list[jxp.Record]:
        return list(jxp.load(self.out))

    @cached_property
    def files(self) -> dict[Path, bytes]:
        return files(self.out)

    @cached_property
    def info(self) -> dict[str, Any]:
        return lasting(self.out)


class Verdict(NamedTuple):
    """What one more run came to: examples that are absent, that are there twice, and what else is
    not as it should be."""

    lost: int
    doubled: int
    problems: list[str]


def files(out: Path) -> dict[Path, bytes]:
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*.msgpack"))}


def changed(out: Path) -> dict[str, bytes]:
    """Every file of a directory, to see whether it changes."""
    return {str(p): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "run.lock"}


def lasting(out: Path) -> dict[str, Any]:
    info = json.loads((out / "run.json").read_text())
    totals = {n: v for n, v in info.pop("totals", {}).items() if n not in PACE}
    return {n: v for n, v in info.items() if n not in TIMES} | {"totals": totals}


def indices(out: Path) -> tuple[Counter, int]:
    """How often each example is in the first round's shards, and how many there should be."""
    found: Counter = Counter()
    for window, level, path in store.plans(out):
        for number in range(len(store.unpack(path)["shards"])):
            if not level:
                shard = store.unpack(store.shard_path(out, window, number))
                found.update(columns.unpack_index(shard["examples"]))
    return found, json.loads((out / "run.json").read_text())["examples"]


def same(a: Any, b: Any, near: bool) -> bool:
    """Whether two results are equal, bit for bit or to rounding."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if u.dtype != v.dtype or u.shape != v.shape:
            return False
        # Another batch shape reorders float32 sums of at most 60 terms of order 1.
        if near and not np.allclose(u, v, rtol=1e-5, atol=1e-5, equal_nan=True):
            return False
        if not near and u.tobytes() != v.tobytes():
            return False
    return True


def unlike(
    whole: Whole, out: Path, *, missing: bool = False, near: bool = False
) -> list[tuple[int, str]]:
    """Examples whose record is not the undisturbed one, and why; with `missing`, what cannot be
    read, or is not there, counts for nothing."""
    found = []
    try:
        records = jxp.load(out)
    except jxp.JaxplainError as error:
        return [] if missing else [(-1, str(error))]
    for expected in whole.records:
        try:
            record = records[expected.index]
        except jxp.JaxplainError as error:
            found += [] if missing else [(expected.index, str(error))]
            continue
        if record.error is not None:
            found.append((expected.index, record.error))
        elif missing and (record.effort or 0) < (expected.effort or 0):
            continue  # of an earlier round
        elif record.index != expected.index or not same(record.result, expected.result, near):
            found.append((expected.index, "another result"))
        elif (record.notes, record.effort, record.converged) != (
            expected.notes, expected.effort, expected.converged
        ):  # fmt: skip
            found.append((expected.index, "other notes, effort or convergence"))
    return found


def judge(whole: Whole, out: Path, ended: dict[str, Any], equal: str) -> Verdict:
    """Compare what the one run after a fault has come to with the undisturbed run."""
    total = len(whole.records)
    if ended["ended"] != "done":
        return Verdict(0, 0, [f"one more run: {ended}"])
    problems = []
    if (ended["done"], ended["failed"]) != (total, 0):
        problems.append(f"{ended['done']} done and {ended['failed']} failed: {ended['failures']}")
    found, _ = indices(out)
    lost = total - len(set(found) & set(range(total)))
    doubled = sum(found.values()) - len(found)
    problems += [f"example {i}: {why}" for i, why in unlike(whole, out, near=equal == "near")]
    problems += [f"left over: {path.name}" for path in out.rglob("*.tmp")]
    problems += list(jxp.verify(out).problems)
    if equal == "files":
        mine = files(out)
        for name in sorted({*mine, *whole.files}):
            if mine.get(name) != whole.files.get(name):
                what = "altered" if name in mine and name in whole.files else "there or absent"
                problems.append(f"{name} is {what}")
        if lasting(out) != whole.info:
            problems.append(f"run.json says {lasting(out)} and not {whole.info}")
    return Verdict(lost, doubled, problems)
