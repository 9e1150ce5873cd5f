"""Whether a run survives what can go wrong: after each fault, one more run makes all whole.

Every fault disturbs a small run of one of four kinds, sometimes several faults in a row. One more
call then has to end as an undisturbed run does: on the same devices every file bit for bit, on
others every record to rounding, each example exactly once. The seed and a trial's number make the
trial again: `--seed 0 --only 17`; where a moment of time decides, nearly. `--kind` and `--cases`
choose among them.
"""

import json
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from benchmarks.chaos_check import Broken, Verdict, judge
from benchmarks.chaos_faults import FAULTS, Lab, Skipped
from benchmarks.chaos_jobs import cases
from benchmarks.common import parse, report

IN_A_ROW = 3  # faults before one more run, at most


def trial(
    lab: Lab, number: int, seed: int, chosen: list[str], only: str
) -> tuple[list[str], Verdict]:
    """Faults, and one more run. Gives the kinds of faults, and what was not as it should be."""
    names, rng = list(FAULTS), np.random.default_rng([seed, number])
    odds = np.array([often for _, often, _ in FAULTS.values()], float)
    drawn = str(rng.choice(names, p=odds / odds.sum()))
    name = only or (names[number] if number < len(names) else drawn)  # each kind once at least
    many = int(rng.integers(1, IN_A_ROW + 1)) if FAULTS[name][2] and rng.random() < 0.3 else 1
    free = [n for n in names if FAULTS[n][2]]
    kinds = [str(n) for n in rng.choice(free, size=many - 1)] + [name]
    case, out = str(rng.choice(chosen)), lab.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    try:
        whole = lab.whole(case)
        for kind in kinds:
            mend = FAULTS[kind][0](lab, case, out, rng)
        verdict = judge(whole, out, lab.worker.ask(case, out, **mend.asked), mend.equal)
    except Broken as error:
        verdict = Verdict(0, 0, [str(error)])
        lab.close()  # a worker may not have answered yet
    if verdict.lost or verdict.doubled or verdict.problems:
        row = {"trial": number, "faults": kinds, "case": case} | verdict._asdict()
        print(json.dumps(row), file=sys.stderr, flush=True)
    return kinds, verdict


def main() -> None:
    options = parse(__doc__ or "", faults=500, seed=0, only=-1, kind="", cases="")
    chosen = options.cases.split(",") if options.cases else sorted(cases())
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the time
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    began, injected, survived, skipped = time.monotonic(), Counter(), Counter(), Counter()
    lost = doubled = broken = number = 0
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "programs"  # for workers that take a killed one's place
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        lab = Lab(Path(folder))
        try:
            while injected.total() < options.faults:
                number = max(number, options.only)
                try:
                    kinds, verdict = trial(lab, number, options.seed, chosen, options.kind)
                except Skipped as why:
                    if not skipped:
                        print(why, file=sys.stderr)
                    skipped["small disk"] += 1
                    number += 1
                    continue
                number += 1
                injected.update(kinds)
                whole = not (verdict.lost or verdict.doubled or verdict.problems)
                survived.update(kinds if whole else [])
                lost, doubled = lost + verdict.lost, doubled + verdict.doubled
                broken += not whole
                if options.only >= 0:
                    break
        finally:
            lab.close()
    report(
        "chaos",
        "every fault survived, nothing lost, nothing twice",
        not (broken or lost or doubled),
        seed=options.seed,
        trials=number,
        faults=injected.total(),
        survived=survived.total(),
        lost=lost,
        doubled=doubled,
        by_kind={name: [survived[name], injected[name]] for name in FAULTS if injected[name]},
        came_too_late=lab.late,
        skipped=dict(skipped),
        seconds=time.monotonic() - began,
    )


if __name__ == "__main__":
    main()
