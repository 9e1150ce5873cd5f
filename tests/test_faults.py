"""What `benchmarks.chaos` found, one test a fault; `test_chaos.py` runs it itself."""

import threading

import jax
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain.run import store
from jaxplain.run.places import free_directory
from tests.test_resume import go
from tests.test_run import explain, files, no_cache, params, same, sentences

__all__ = ["no_cache", "params"]  # fixtures


class Dead(BaseException):
    """A process that stops here."""


def test_a_run_that_died_while_it_replaced_another(params, tmp_path, monkeypatch):
    """run.json goes last: what is left is a run of ours, and may be overwritten again."""
    out = tmp_path / "r"
    go(explain, jax.tree.map(lambda leaf: 2 * leaf, params), sentences(), out)

    def die(path):
        if path.name == "plans":
            raise Dead
        original(path)

    original = store.shutil.rmtree
    monkeypatch.setattr(store.shutil, "rmtree", die)
    with pytest.raises(Dead):
        go(explain, params, sentences(), out, overwrite=True)
    monkeypatch.undo()
    assert not (out / "shards").exists()
    with pytest.raises(jxp.JaxplainError, match="holds another run"):
        go(explain, params, sentences(), out)
    assert go(explain, params, sentences(), out, overwrite=True).done == 60


def test_run_json_is_restored(params, tmp_path):
    """Whatever became of it, the shards say whose they are; nothing is computed again."""
    out = tmp_path / "r"
    go(explain, params, sentences(), out)
    before, whole = files(out), (out / "run.json").read_text()
    for altered in (
        None, "", whole[: len(whole) // 2], whole.replace('"params": "', '"params": "0'),
        whole.replace(store.FORMAT, "another format"), whole.replace('"created"', '"creaded"'),
        whole.replace('"done": 60', '"done": 90'), "\xff",
    ):  # fmt: skip
        assert altered != whole
        (out / "run.json").unlink()
        if altered is not None:
            (out / "run.json").write_bytes(altered.encode("latin-1"))
        if altered is None or not altered:
            with pytest.raises(jxp.JaxplainError, match="the command that made it restores it"):
                jxp.load(out)
        summary = go(explain, params, sentences(), out)
        assert (summary.resumed, summary.done) == (60, 60)
        assert files(out) == before and jxp.load(out).info["totals"]["done"] == 60
        assert jxp.verify(out).agrees


def test_a_damaged_directory_is_not_passed_over(params, tmp_path):
    """Without --out, a command takes the directory whose record it may have to restore."""
    out = tmp_path / "r"
    go(explain, params, sentences(20), out)
    for content in ("", "{"):
        (out / "run.json").write_text(content)
        assert free_directory(out, {}, "auto", False) == out
    (out / "run.json").write_text("{}")
    (out / "shards" / "mine.txt").touch()
    assert free_directory(out, {}, "auto", False) == tmp_path / "r-2"


def test_a_lost_run_json_of_another_run(params, tmp_path):
    out = tmp_path / "r"
    go(explain, jax.tree.map(lambda leaf: 2 * leaf, params), sentences(), out)
    (out / "run.json").unlink()
    before = files(out)
    with pytest.raises(jxp.JaxplainError, match="is missing: the command that made it"):
        go(explain, params, sentences(), out)
    assert files(out) == before
    assert go(explain, params, sentences(), out, overwrite=True).done == 60
    (out / "run.json").unlink()
    for path in (out / "shards").iterdir():
        path.unlink()
    assert go(explain, params, sentences(), out).resumed == 0  # nothing was there to lose


class Rows(list):
    """Sentences, some of which go wrong after so many reads."""

    def __init__(self, rows, wrong=(), how=None, after=0):
        super().__init__(rows)
        self.wrong, self.how, self.after = wrong, how, after

    def __getitem__(self, index):
        self.after -= 1
        row = super().__getitem__(index)
        if index not in self.wrong or self.after >= 0:
            return row
        if self.how is None:
            raise OSError("a stale file handle")
        return row | {"ids": self.how(row["ids"])}


def test_what_could_not_be_read_is_not_another_run(params, tmp_path):
    """A source that fails at the first start, or at a later one, is still the same data."""
    whole, out = sentences(20), tmp_path / "r"
    first = go(explain, params, Rows(whole, {0, 7}), out)
    assert (first.done, first.failed) == (18, 2)
    again = go(explain, params, Rows(whole, {3}), out)
    assert (again.failed, again.resumed) == (2, 20)
    assert go(explain, params, whole, out).failed == 2  # and stays failed
    assert jxp.verify(out, explain, params, whole, key=jax.random.key(0)).agrees
    changed = Rows(whole, {5}, lambda ids: ids[::-1] + 1)
    with pytest.raises(jxp.JaxplainError, match="the examples differ"):
        go(explain, params, changed, out)


@pytest.mark.parametrize(
    "how", [None, lambda ids: ids.astype(np.float32), lambda ids: ids[:, None]]
)
def test_the_layout_is_that_of_most_examples(params, tmp_path, how):
    """The first one may be odd."""
    whole = sentences(20)
    summary = go(explain, params, Rows(whole, {0}, how), tmp_path / "r", ragged=("ids", "mask"))
    assert (summary.done, summary.failed) == (19, 1)


@pytest.mark.parametrize("after", [0, 20])
def test_retry_computes_what_failed(params, tmp_path, after):
    """As if nothing had failed: plans, shards and records; only the identity tells."""
    whole, out = sentences(20), tmp_path / "r"
    options = {"batch_size": 4, "shard_size": 8}
    go(explain, params, whole, tmp_path / "whole", **options)
    go(explain, params, Rows(whole, {2, 9, 15}, after=after), out, **options)
    assert go(explain, params, whole, out, **options).failed == 3
    summary = go(explain, params, whole, out, retry=True, **options)
    assert (summary.done, summary.failed) == (20, 0)
    assert files(out).keys() == files(tmp_path / "whole").keys()
    if after:
        assert files(out) == files(tmp_path / "whole")
    same(jxp.load(out), jxp.load(tmp_path / "whole"))
    assert jxp.verify(out).agrees
    assert go(explain, params, whole, out, retry=True, **options).resumed == 20


def test_a_source_that_grows_meanwhile(params, tmp_path):
    class Growing(Rows):
        def __len__(self):
            self.asked = getattr(self, "asked", 0) + 1
            return 20 if self.asked < 5 else 22

    go(explain, params, Growing(sentences(22)), tmp_path / "r")
    assert [r.index for r in jxp.load(tmp_path / "r")] == list(range(20))


def test_rounds_that_are_needed_no_more(tmp_path):
    """A later round's plan goes when the round before has none left for it."""
    out = tmp_path / "r"
    (out / "plans").mkdir(parents=True)
    (out / "shards").mkdir()
    named = [store.plan_path(out, 0), store.shard_path(out, 0, 0), store.plan_path(out, 1, 1)]
    stray = [
        store.plan_path(out, 0, 1),
        store.shard_path(out, 0, 1),
        store.shard_path(out, 0, 0, 1),
    ]
    for path in named + stray:
        path.touch()
    store.prune(out, 0, [1])
    assert [path.exists() for path in named + stray] == [True] * 3 + [False] * 3


def test_an_interrupt_between_the_starts_of_two_threads(params, tmp_path, monkeypatch):
    before, start, started = threading.active_count(), threading.Thread.start, []

    def interrupted(thread):
        if "guard" in str(getattr(thread, "_target", "")):
            started.append(thread)
            if len(started) == 2:
                raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(explain, params, sentences(20), tmp_path / "r", batch_size=1)
    assert threading.active_count() == before and len(started) == 2
