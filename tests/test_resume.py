"""Killed, damaged, refused: what a run directory goes through, and how it ends up."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain.run import fingerprint, plan, store
from jaxplain.run.pipeline import Pipeline, computing
from tests.test_run import Faulty, explain, files, no_cache, params, same, sentences
from tests.test_run import go as go_

__all__ = ["no_cache", "params"]  # fixtures

# A slow run, for a process of its own that a test can kill: 240 examples in shards of 16.
SLOW = textwrap.dedent(
    """
    import sys, time
    import jax, numpy as np
    import jaxplain as jxp
    from jaxplain.run import store

    write = store.write

    def slowly(path, payload):
        time.sleep(0.1)
        write(path, payload)

    store.write = slowly

    class Source(list):
        def __getitem__(self, i):
            rng = np.random.default_rng(i)
            return {"x": rng.normal(size=int(rng.integers(1, 40)))}

    def explain(params, example, key):
        return {"y": example["x"] * params, "noise": jax.random.normal(key, (3,))}

    if __name__ == "__main__":
        jxp.run(explain, 2.0, Source(range(240)), sys.argv[1], key=jax.random.key(3),
                shard_size=16, batch_size=8, progress=False)
    """
)


def go(explain, params, examples, out, **options):
    """A run with one bucket, so with one program to compile."""
    return go_(explain, params, examples, out, **{"lengths": [32]} | options)


def child(script, out):
    return subprocess.Popen([sys.executable, str(script), str(out)])


def test_kill_9_at_any_moment_costs_at_most_a_shard(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    with child(script, tmp_path / "whole") as whole:
        assert whole.wait() == 0
    out, rng, kills = tmp_path / "killed", np.random.default_rng(0), 0
    seen = 0
    for delay in rng.uniform(0, 0.3, size=3):
        with child(script, out) as process:
            deadline = time.monotonic() + 60
            # until this start has written something, and then a random moment longer
            while len(list(out.glob("shards/*.msgpack"))) <= seen and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        seen = len(list(out.glob("shards/*.msgpack")))
        assert len(jxp.load(out)) >= 8 * seen  # what is there can be read, unfinished as it is
    assert kills == 3
    with child(script, out) as final:
        assert final.wait() == 0
    assert files(out) == files(tmp_path / "whole")
    assert jxp.load(out).info["status"] == "complete"
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied", "deleted"])
@pytest.mark.parametrize("kind", ["shards", "plans"])
def test_damage_is_noticed_and_mended(params, tmp_path, damage, kind):
    out = tmp_path / "r"
    go(explain, params, sentences(), out, shard_size=16, batch_size=8)
    before = files(out)
    victim = sorted((out / kind).iterdir())[-1]
    content = victim.read_bytes()
    if damage == "deleted":
        victim.unlink()
    else:
        middle = len(content) // 2
        victim.write_bytes(
            {
                "truncated": content[:middle],
                "altered": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "emptied": b"",
            }[damage]
        )
        with pytest.raises(jxp.JaxplainError, match=r"is damaged: run the same command again"):
            list(jxp.load(out))
    summary = go(explain, params, sentences(), out, shard_size=16, batch_size=8)
    assert files(out) == before
    if kind == "shards":
        assert 60 - 24 <= summary.resumed < 60  # only the damaged shard was computed anew


def test_a_complete_run_is_not_touched(params, tmp_path):
    out = tmp_path / "r"
    go(explain, params, sentences(), out)
    before, info = files(out), jxp.load(out).info
    summary = go(explain, params, sentences(), out)
    assert (summary.resumed, summary.done) == (60, 60)
    assert files(out) == before and jxp.load(out).info == info


def test_resumes_on_another_number_of_devices(params, tmp_path):
    out = tmp_path / "r"
    go(explain, params, sentences(), out, batch_size=6, shard_size=12)
    plans, records = files(out / "plans"), list(jxp.load(out))
    for path in sorted((out / "shards").iterdir())[::2]:
        path.unlink()
    again = go(explain, params, sentences(), out, batch_size=6, shard_size=12, mesh=None)
    assert 0 < again.resumed < 60 and again.done == 60  # the rest was computed on 8 devices
    assert files(out / "plans") == plans
    same(records, jxp.load(out), exact=False)


def test_overwriting_spares_what_it_need_not_remove(params, tmp_path):
    """The same run is resumed, and one that is refused leaves the old one whole."""
    out = tmp_path / "r"
    go(explain, params, sentences(), out)
    before = files(out)
    assert go(explain, params, sentences(), out, overwrite=True).resumed == 60
    with pytest.raises(jxp.JaxplainError, match="no example could be read"):
        go(explain, params, [{"text": "nothing numeric"}], out, overwrite=True)
    assert files(out) == before and len(jxp.load(out)) == 60


def other(params, example, key):
    return explain(params, example, key)._replace(output=jnp.float32(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configuration": {"steps": 64}}, "steps is 32 there and 64 here"),
        ({"configuration": {"steps": 32, "more": 1}}, "more is unset there and 1 here"),
        ({"key": jax.random.key(1)}, "the random key differs"),
        ({"shard_size": 8}, "shard_size is 16 there and 8 here"),
        ({"lengths": [16, 32]}, "lengths is \\[32\\] there and \\[16, 32\\] here"),
        ({"batch_size": 8}, "batch_size is auto there and 8 here"),
        ({"max_length": 50}, "max_length is None there and 50 here"),
        ({"params": {"scale": 2}}, "the parameters differ"),
        ({"examples": sentences(59)}, "the examples differ"),
        ({"examples": sentences(seed=1)}, "the examples differ"),
        ({"explain": other}, "the explain function differs"),
    ],
)
def test_another_run_is_refused(params, tmp_path, change, message):
    change = dict(change)
    options = {"configuration": {"steps": 32}, "shard_size": 16}
    go(explain, params, sentences(), tmp_path / "r", **options)
    before = files(tmp_path / "r")
    scale = change.pop("params", {"scale": 1})["scale"]
    changed = jax.tree.map(lambda leaf: leaf * scale, params)
    function, examples = change.pop("explain", explain), change.pop("examples", sentences())
    with pytest.raises(jxp.JaxplainError, match=message) as caught:
        go(function, changed, examples, tmp_path / "r", **options | change)
    assert "\n" not in str(caught.value)
    assert files(tmp_path / "r") == before
    options |= {"overwrite": True} | change
    assert go(function, changed, examples, tmp_path / "r", **options).resumed == 0


def test_a_closed_over_constant_is_part_of_the_function(tmp_path):
    def closing(constant):
        return lambda params, example, key: example * constant

    go(closing(jnp.arange(3.0)), {}, [np.ones(3)] * 4, tmp_path / "r")
    with pytest.raises(jxp.JaxplainError, match="the explain function differs"):
        go(closing(jnp.arange(3.0) + 1), {}, [np.ones(3)] * 4, tmp_path / "r")
    go(closing(jnp.arange(3.0)), {}, [np.ones(3)] * 4, tmp_path / "r")


def test_versions_are_compared(params, tmp_path, monkeypatch):
    older = fingerprint.versions() | {"jax": "0.0.1"}
    monkeypatch.setattr(fingerprint, "versions", lambda: older)
    go(explain, params, sentences(), tmp_path / "r")
    monkeypatch.undo()
    with pytest.raises(jxp.JaxplainError, match=f"jax is 0.0.1 there and {jax.__version__} here"):
        go(explain, params, sentences(), tmp_path / "r")


def test_a_source_tree_that_was_not_installed_can_run(params, tmp_path, monkeypatch):
    installed = fingerprint.importlib.metadata.version

    def version(name):
        if name == "jaxplain":
            raise fingerprint.importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(fingerprint.importlib.metadata, "version", version)
    go(explain, params, sentences(), tmp_path / "r")
    assert jxp.load(tmp_path / "r").info["versions"]["jaxplain"] == "not installed"


def test_a_directory_that_is_not_ours(params, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(jxp.JaxplainError, match="it is not a run of jaxplain"):
            go(explain, params, sentences(), tmp_path, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "run.json").write_text('{"name": "someone else\'s"}')
    with pytest.raises(jxp.JaxplainError, match="is not the record of a jaxplain run"):
        go(explain, params, sentences(), tmp_path / "json", overwrite=True)
    with pytest.raises(jxp.JaxplainError, match="is not a run: there is no run"):
        jxp.load(tmp_path / "nowhere")


def test_a_directory_that_a_live_run_is_using(params, tmp_path):
    with (
        store.lock(tmp_path / "r"),
        pytest.raises(jxp.JaxplainError, match="in use by another run"),
    ):
        go(explain, params, sentences(), tmp_path / "r")
    go(explain, params, sentences(), tmp_path / "r")


@pytest.mark.parametrize("where", ["file/below", "/proc/jaxplain"])
def test_a_directory_that_cannot_be_written(params, tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(jxp.JaxplainError, match="cannot be"):
        go(explain, params, sentences(), tmp_path / where)


def test_a_full_disk_ends_the_run_and_loses_nothing(params, tmp_path, monkeypatch):
    out = tmp_path / "r"
    go(explain, params, sentences(), tmp_path / "whole", shard_size=16, batch_size=8)
    original, written = os.replace, []

    def replace(source, target):
        if "shards" in str(target) and len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "shards" in str(target):
            written.append(target)
        return original(source, target)

    monkeypatch.setattr(store.os, "replace", replace)
    with pytest.raises(jxp.JaxplainError, match=r"No space left on device.*to resume"):
        go(explain, params, sentences(), out, shard_size=16, batch_size=8)
    monkeypatch.undo()
    assert len(list((out / "shards").iterdir())) == 2
    assert len(jxp.load(out)) >= 16 and jxp.load(out).info["status"] == "running"
    go(explain, params, sentences(), out, shard_size=16, batch_size=8)
    assert files(out) == files(tmp_path / "whole")


def test_an_interrupt_ends_every_thread(params, tmp_path, monkeypatch):
    import threading

    def interrupted(self, work, level):
        raise KeyboardInterrupt

    before = threading.active_count()
    monkeypatch.setattr(Pipeline, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(explain, params, sentences(), tmp_path / "r")
    assert threading.active_count() == before
    monkeypatch.undo()
    assert go(explain, params, sentences(), tmp_path / "r").done == 60


def test_failed_examples_stay_failed_on_resuming(params, tmp_path):
    first = go(explain, params, Faulty(), tmp_path / "r")
    again = go(explain, params, Faulty(), tmp_path / "r")
    assert (again.failed, again.done, again.resumed) == (first.failed, first.done, 40)


def test_a_directory_whose_run_died_at_its_first_write(params, tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    (out / "run.lock").touch()
    (out / ".run.json.1.tmp").write_text("{")
    assert go(explain, params, sentences(), out).done == 60
    assert {p.name for p in out.iterdir()} <= {"run.json", "run.lock", "plans", "shards"}


def test_a_device_that_fails_says_how_to_go_on(params, tmp_path, monkeypatch):
    def failing(result):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore lines")

    original = Pipeline.launch

    def launch(self, work, level):
        with computing():
            failing(original(self, work, level))

    monkeypatch.setattr(Pipeline, "launch", launch)
    with pytest.raises(jxp.JaxplainError, match=r"the device failed.*more lines.*to resume") as e:
        go(explain, params, sentences(), tmp_path / "r")
    assert "\n" not in str(e.value)


def test_windows(params, tmp_path, monkeypatch):
    """More examples than one window holds: planned, computed and resumed window by window."""
    go(explain, params, sentences(), tmp_path / "one", batch_size=4, shard_size=8)
    monkeypatch.setattr(plan, "WINDOW", 25)
    out = tmp_path / "three"
    go(explain, params, sentences(), out, batch_size=4, shard_size=8)
    assert len(list((out / "plans").iterdir())) == 3
    for a, b in zip(jxp.load(tmp_path / "one"), jxp.load(out), strict=True):
        np.testing.assert_array_equal(a.result.scores, b.result.scores)
    before = files(out)
    store.shard_path(out, 1, 0).unlink()
    assert 60 - 12 <= go(
        explain, params, sentences(), out, batch_size=4, shard_size=8
    ).resumed < 60  # fmt: skip
    assert files(out) == before
