"""The faults of `benchmarks.chaos`, each kind once or more; run alone it injects hundreds."""

import json
import subprocess
import sys

import pytest

from benchmarks.chaos_faults import FAULTS


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forks of a process that knows JAX")
def test_one_more_run_makes_all_whole():
    """In a process of its own: here JAX has started its threads, and forks would hang."""
    command = [sys.executable, "-m", "benchmarks.chaos", "--faults", "40", "--cases"]
    command += ["fixed,ragged,rounds"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    row = json.loads(done.stdout)
    assert (row["lost"], row["doubled"]) == (0, 0)
    assert row["survived"] == row["faults"] >= 40
    assert set(row["by_kind"]) >= set(FAULTS) - {"full", "readonly"}  # mounting may be refused
