"""Two processes on one run: killed at random moments, resumed, and compared with one process.

    JAXPLAIN_DATA=... python -m benchmarks.processes --model transformer --kills 20
    JAXPLAIN_DATA=... python -m benchmarks.processes --model .../minilm-sst2 --kills 20 --steps 8

SST-2's development sentences (`sst2/dev.tsv` below `JAXPLAIN_DATA`) through the command line, by
two processes of `--devices` virtual CPU devices each, until one of them, drawn at random, is killed
with -9 at a random moment between its first sign of life and the time that a whole run takes; then
the same again in the same directory, which one process of as many devices as both, or of one,
finishes now and then; a run that is complete gives place to a new one. All share JAX's cache of
compiled programs, so that kills meet work and not only compilation. In the end every record must
be there once, and equal to those of one undisturbed process of all devices, to float32's rounding.
The row also has how long the other process took to end, and whether a kill undid records.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import jaxplain as jxp
from benchmarks.common import parse, report, sst2
from jaxplain.run import signs, team

CLOSE = 1e-5  # relative to an example's largest score: sums in another order


def start(options: Any, out: Path, number: int, count: int, devices: int) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "jaxplain",
        "explain",
        "--data",
        str(sst2()),
        "--out",
        str(out),
    ]
    command += ["--model", options.model, "--steps", str(options.steps), "--quiet"]
    command += ["--limit", str(options.limit)] if options.limit else []
    command += ["--processes", str(count), "--process-id", str(number)] if count > 1 else []
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(out.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, error = process.communicate(timeout=1800)
    return process.returncode, error.strip().splitlines()[-1] if error.strip() else ""


def signed(out: Path, pair: list[subprocess.Popen]) -> bool:
    """Whether both have given a sign of life."""
    found = map(signs.read, (out / team.FOLDER).glob("[0-9]*.json"))
    return {p.pid for p in pair} <= {sign["pid"] for sign in found if sign}


def done(out: Path) -> int:
    try:
        return len(jxp.load(out))
    except jxp.JaxplainError:
        return 0


def compare(whole: Path, out: Path) -> tuple[int, int, float]:
    """How many records are lost, how many doubled, and how far the others are apart."""
    a, b = list(jxp.load(whole)), list(jxp.load(out))
    places = [record.index for record in b]
    lost = len(a) - len(set(places) & {record.index for record in a})
    apart = 0.0
    for one, other in zip(a, b, strict=False):
        if one.index != other.index or one.error != other.error or one.notes != other.notes:
            lost += 1
            continue
        x, y = (record.result["attribution"].scores for record in (one, other))
        apart = max(apart, float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30)))
    return lost, len(places) - len(set(places)), apart


def main() -> None:
    options = parse(
        __doc__ or "", model="transformer", kills=20, steps=32, devices=4, limit=0, seed=0
    )
    draw = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        assert finish(start(options, base / "whole", 0, 1, 2 * options.devices))[0] == 0
        for _ in range(2):  # the second finds all programs compiled
            shutil.rmtree(base / "both", ignore_errors=True)
            began = time.monotonic()
            pair = [start(options, base / "both", n, 2, options.devices) for n in (0, 1)]
            assert [finish(process)[0] for process in pair] == [0, 0]
            whole_takes = time.monotonic() - began
        total, out = done(base / "whole"), base / "out-0"
        runs, kills, late, cost, ends, lost, doubled, apart = 0, [0, 0], 0, 0, [], 0, 0, 0.0

        def whole_again() -> None:
            nonlocal lost, doubled, apart, runs, out
            found = compare(base / "whole", out)
            lost, doubled, apart = lost + found[0], doubled + found[1], max(apart, found[2])
            runs += 1
            out = base / f"out-{runs}"

        while sum(kills) < options.kills:
            pair = [start(options, out, number, 2, options.devices) for number in (0, 1)]
            victim = int(draw.integers(2))
            while not signed(out, pair):
                time.sleep(0.01)
            time.sleep(float(draw.uniform(0, 0.8)) * whole_takes)
            before = done(out)
            pair[victim].send_signal(signal.SIGKILL)
            struck, codes = time.monotonic(), [0, 0]
            codes[victim] = finish(pair[victim])[0]
            codes[1 - victim], told = finish(pair[1 - victim])
            if codes[victim] != -signal.SIGKILL:  # it had ended before
                late += 1
            elif codes[1 - victim]:
                kills[victim] += 1
                ends.append(time.monotonic() - struck)
                if not re.search(rf"process {victim} of 2 is gone.*resume", told):
                    sys.exit(f"the other process said: {told}")
                cost = max(cost, before - done(out))
                print(f"{sum(kills)} killed: {told}", file=sys.stderr, flush=True)
            if done(out) == total:
                whole_again()
            elif draw.random() < 0.3:  # on other devices
                devices = int(draw.choice([1, 2 * options.devices]))
                code, told = finish(start(options, out, 0, 1, devices))
                if code:
                    sys.exit(f"one process did not finish the run: {told}")
                whole_again()
        pair = [start(options, out, number, 2, options.devices) for number in (0, 1)]
        if [finish(process)[0] for process in pair] != [0, 0]:
            sys.exit("two processes did not finish the run")
        whole_again()
    report(
        "processes",
        f"no record lost or doubled, scores within {CLOSE}",
        not lost and not doubled and apart <= CLOSE,
        model=Path(options.model).name,
        examples=total,
        processes_by_devices=f"2x{options.devices}, 1x{2 * options.devices}, 1x1",
        killed=dict(enumerate(kills)),
        too_late=late,
        runs_finished=runs,
        lost=lost,
        doubled=doubled,
        apart=f"{apart:.1e}",
        records_undone_by_a_kill=cost,
        other_ended_after_s=max(ends),
        other_ended_after_s_median=float(np.median(ends)),
        two_undisturbed_take_s=whole_takes,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
