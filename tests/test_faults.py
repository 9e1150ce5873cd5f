"""What `benchmarks.chaos` found, one test a fault; `test_chaos.py` runs it itself."""

import jax
import pytest

import jaxplain as jxp
from jaxplain.run import store
from tests.test_resume import go
from tests.test_run import explain, files, no_cache, params, sentences

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
        whole.replace("jaxplain run 1", "jaxplain run 3"), whole.replace('"created"', '"creaded"'),
        whole.replace('"done": 60', '"done": 90'), "\xff",
    ):  # fmt: skip
        (out / "run.json").unlink()
        if altered is not None:
            (out / "run.json").write_bytes(altered.encode("latin-1"))
        if altered is None or not altered:
            with pytest.raises(jxp.JaxplainError, match="run the same command again to restore it"):
                jxp.load(out)
        summary = go(explain, params, sentences(), out)
        assert (summary.resumed, summary.done) == (60, 60)
        assert files(out) == before and jxp.load(out).info["totals"]["done"] == 60
        assert jxp.verify(out).agrees


def test_a_lost_run_json_of_another_run(params, tmp_path):
    out = tmp_path / "r"
    go(explain, jax.tree.map(lambda leaf: 2 * leaf, params), sentences(), out)
    (out / "run.json").unlink()
    before = files(out)
    with pytest.raises(jxp.JaxplainError, match="is missing: run the same"):
        go(explain, params, sentences(), out)
    assert files(out) == before
    assert go(explain, params, sentences(), out, overwrite=True).done == 60
    (out / "run.json").unlink()
    for path in (out / "shards").iterdir():
        path.unlink()
    assert go(explain, params, sentences(), out).resumed == 0  # nothing was there to lose
