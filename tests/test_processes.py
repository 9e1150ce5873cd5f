"""Several processes on one run: each on devices of its own, in one directory."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain.run import processes, signs
from jaxplain.run import team as teamwork
from jaxplain.run.places import choose_process
from jaxplain.run.processes import Processes
from jaxplain.run.team import Step, Team
from tests.test_run import files

# One process of a slow run: 240 examples in shards of 16, by a model with a tolerance.
SCRIPT = textwrap.dedent(
    """
    import sys, time
    import jax, jax.numpy as jnp, numpy as np
    import jaxplain as jxp
    from jaxplain.run import processes, store

    out, pause = sys.argv[1], float(sys.argv[5])
    number, count, devices, port = (int(sys.argv[i]) for i in (2, 3, 4, 6))
    jax.config.update("jax_num_cpu_devices", devices)
    write = store.write

    def slowly(path, payload, **how):
        time.sleep(pause if how.get("lasting", True) else 0)
        write(path, payload, **how)

    store.write = slowly

    class Source(list):
        def __getitem__(self, i):
            rng = np.random.default_rng(i)
            return {"x": rng.normal(size=int(rng.integers(1, 40))), "name": f"row {i}"}

    def explain(params, example, key, effort):
        f = lambda x: jnp.tanh(x @ jnp.cos(jnp.arange(len(x))) * params)
        return jxp.integrated_gradients(f, example["x"], steps=effort)

    if __name__ == "__main__":
        part = jxp.Processes(number, count)
        if port:
            part = processes.meet(f"127.0.0.1:{port}", count, number)
        try:
            summary = jxp.run(
                explain, 2.0, Source(range(240)), out, key=jax.random.key(3), lengths=[64],
                shard_size=16, batch_size=8, progress=False, tolerance=1e-3,
                efforts=jxp.precision.nodes(2, 64),
                processes=part._replace(patience=10),
            )
        except jxp.JaxplainError as error:
            sys.exit(str(error))
        print(summary.done, summary.failed, summary.resumed, summary.precision["converged"])
    """
)


@pytest.fixture
def start(tmp_path):
    """Start process `number` of `count` on a number of devices; whoever is left over is killed."""
    script, begun = tmp_path / "part.py", []
    script.write_text(SCRIPT)

    def begin(out, number, count, devices=2, pause=0.0, port=0):
        arguments = map(str, (out, number, count, devices, pause, port))
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def ended(process):
    out, error = process.communicate(timeout=120)
    return process.returncode, out.strip(), error.strip()


def same(a, b):
    """Records of two runs, in order: nothing lost, nothing doubled, numbers equal to rounding."""
    a, b = list(jxp.load(a)), list(jxp.load(b))
    assert [r.index for r in a] == [r.index for r in b] == list(range(240))
    for one, other in zip(a, b, strict=True):
        assert (one.notes, one.effort, one.converged) == (
            other.notes,
            other.effort,
            other.converged,
        )
        # The same program on another number of rows a device: float32 sums in another order.
        np.testing.assert_allclose(one.result.scores, other.result.scores, rtol=1e-5, atol=1e-5)


def test_two_processes_make_the_records_of_one_and_survive_a_kill_of_either(start, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    alone = start(whole, 0, 1, 4)
    assert ended(alone)[:2] == (0, "240 0 0 240")
    written = lambda: len(list(out.glob("shards/*.msgpack")))
    seen = 0
    for victim in (1, 0):
        both = [start(out, number, 2, 2, pause=0.1) for number in (0, 1)]
        deadline = time.monotonic() + 90
        while written() <= seen + 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        both[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        code, said, error = ended(both[1 - victim])
        assert (code, said) == (1, "")
        assert f"process {victim} of 2 is gone" in error.splitlines()[-1]
        assert "start all of them again to resume" in error.splitlines()[-1]
        assert time.monotonic() - began < 10  # noticed at once, on one machine
        seen = written()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [start(out, number, 2, 2, port=port) for number in (0, 1)]  # JAX connects these
    said = {ended(process)[:2] for process in both}
    assert len(said) == 1 and said.pop()[1].endswith(" 240")
    same(out, whole)
    assert not (out / "processes").exists() and not list(out.rglob("*.tmp"))
    # Nothing is left to do for one process on other devices, and nothing is changed.
    before = files(out)
    assert ended(start(out, 0, 1, 1))[:2] == (0, "240 0 240 240")
    assert files(out) == before


def call(**changed):
    info = {"examples": 4, "configuration": {}, "plan": {}, "versions": {}, "fingerprints": {}}
    return info | changed


def differ(old, new):
    return [f"{name} differs" for name in new if old[name] != new[name]]


def together(out, calls, work, patience=3.0):
    """Run `work(team)` as each of several processes, in threads; what came of each."""
    found: list[Any] = [None] * len(calls)

    def one(number):
        team = Team(out, Processes(number, len(calls), patience))
        try:
            with team.at_work():
                team.join(calls[number], "run", differ, lambda doing: None)
                found[number] = work(team)
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=one, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(teamwork, "BEAT", 0.05)
    monkeypatch.setattr(teamwork, "JOIN", 5.0)


def test_every_shard_is_taken_once(quick, tmp_path):
    steps = [Step(0, 0, [0, 1, 2, 5]), Step(1, 0, [0]), Step(0, 1, [0, 1])]

    def work(team):
        if team.leads:
            for step in steps:
                team.publish(step)
            team.publish_end({"done": 7})
            published = [*steps, {"done": 7}]
        else:
            published = list(team.follow(lambda doing: None))
        taken = [
            (s.window, s.level, n)
            for s in published[:-1]
            for n in s.missing
            if team.take(s.window, s.level, n)
        ]
        return published, taken

    found = together(tmp_path / "run", [call()] * 3, work)
    assert [f[0] for f in found] == [[*steps, {"done": 7}]] * 3
    taken = sorted(t for f in found for t in f[1])
    assert taken == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 5), (0, 1, 0), (0, 1, 1), (1, 0, 0)]
    assert not (tmp_path / "run" / "processes").exists()


def test_another_call_is_refused_by_all(quick, tmp_path):
    calls = [call(), call(), call(plan={"batch_size": 3})]
    for error in together(tmp_path / "run", calls, lambda team: None):
        assert "process 2 was started otherwise: plan differs" in str(error)


def test_the_trouble_of_one_ends_all(quick, tmp_path):
    def work(team):
        if team.me.process_id == 1:
            raise OSError("no space left")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            team.check()
            time.sleep(0.01)

    first, second, third = together(tmp_path / "run", [call()] * 3, work)
    assert isinstance(second, OSError)
    told = "process 1 of 3 ended: OSError: no space left. What is on disk is whole: start all"
    assert str(first).startswith(told)
    assert f"process 0 of 3 ended: {told[:47]}" in str(third)


def test_silence_is_death(quick, tmp_path, monkeypatch):
    """Of a process elsewhere, which cannot be looked up; its clock does not matter."""
    monkeypatch.setattr(signs, "place", lambda: "")

    def work(team):
        if team.me.process_id == 1:
            monkeypatch.setattr(team, "beat", lambda: None)
            time.sleep(4)
            return "late"
        while True:
            team.check()
            time.sleep(0.01)

    first, _ = together(tmp_path / "run", [call()] * 2, work, patience=1.0)
    assert "process 1 of 2 has given no sign of life for 1 s" in str(first)


def test_nobody_waits_for_ever(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(teamwork, "JOIN", 0.5)
    for number, missing in ((0, "process 1 of 2 did not come"), (1, "process 0 of 2 did not come")):
        team = Team(tmp_path / "run", Processes(number, 2))
        with pytest.raises(jxp.JaxplainError, match=missing), team.at_work():
            team.join(call(), "run", differ, lambda doing: None)


def test_what_earlier_starts_left_behind_is_no_member(quick, tmp_path):
    """Signs of a start that was killed do not go on, and its claims are not valid."""
    folder = tmp_path / "run" / "processes"
    (folder / "old").mkdir(parents=True)
    (folder / "old" / "00000.00-0000").touch()
    sign = {"id": 1, "of": 2, "token": "dead", "beat": 7, "session": "", "state": "joining"}
    sign |= {"error": "", "finished": 0, "place": "", "pid": 1, "call": call(examples=9)}
    (folder / "1.dead.json").write_text(json.dumps(sign))
    taken = together(tmp_path / "run", [call()] * 2, lambda team: team.take(0, 0, 0))
    assert sorted(map(bool, taken)) == [False, True]


@pytest.mark.parametrize("earlier", [True, False])
def test_who_is_killed_before_joining_is_not_waited_for(quick, tmp_path, earlier):
    folder = tmp_path / "run" / "processes"
    folder.mkdir(parents=True)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    sign = {"id": 1, "of": 2, "token": "aa", "beat": 2, "session": "", "state": "starting"}
    sign |= {"error": "", "finished": 0, "place": signs.place(), "pid": child.pid}
    sign |= {"started": signs.started(child.pid)}

    def come_and_go():
        if not earlier:
            time.sleep(0.3)
        (folder / "1.aa.json").write_text(json.dumps(sign))
        time.sleep(0.3)
        child.kill()
        child.wait()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    if earlier:
        time.sleep(0.1)
    team = Team(tmp_path / "run", Processes(0, 2))
    with pytest.raises(jxp.JaxplainError, match="process 1 of 2 is gone"), team.at_work():
        team.join(call(), "run", differ, lambda doing: None)
    thread.join()
    # What it left behind does not trouble the next start.
    taken = together(tmp_path / "run", [call()] * 2, lambda team: team.take(0, 0, 0))
    assert sorted(map(bool, taken)) == [False, True]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Processes(2, 2), "process 2 of 2: processes are numbered from 0"),
        (Processes(-1, 2), "numbered from 0"),
        (Processes(0, 0), "numbered from 0"),
        (Processes(0, 2, 0.1), "patience must be more than 2 seconds"),
    ],
)
def test_processes_that_are_none(given, told):
    with pytest.raises(jxp.JaxplainError, match=told):
        processes.check(given)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("host:1", 2, None), "--coordinator HOST:PORT needs --processes and --process-id"),
        ((None, 2, None), "give both --processes and --process-id"),
        ((None, 2, 2), "process 2 of 2"),
    ],
)
def test_what_the_command_line_refuses(asked, told):
    with pytest.raises(jxp.JaxplainError, match=told):
        choose_process(*asked)
    assert choose_process(None, None, None) is None
    assert choose_process(None, 2, 1) == Processes(1, 2)


def test_a_mesh_of_other_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:4])
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
    with pytest.raises(jxp.JaxplainError, match="devices of other processes"):
        jxp.run(
            lambda params, example, key: example["x"], 0.0, [{"x": np.ones(2)}], tmp_path / "r",
            key=jax.random.key(0), mesh=mesh,
        )  # fmt: skip


def test_gone_looks_at_this_machine_only():
    sign = signs.here()
    assert sign["pid"] == os.getpid() and not signs.gone(sign)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    sign |= {"pid": child.pid, "started": signs.started(child.pid)}
    assert not signs.gone(sign)
    deadline = time.monotonic() + 20
    while not signs.gone(sign):  # ended, and not waited for
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()
    assert signs.gone(sign)
    assert not signs.gone(sign | {"place": "elsewhere"})
    assert signs.gone(signs.here() | {"started": "1"})  # another one, of the same number
