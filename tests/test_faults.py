"""What `benchmarks.chaos` found, one test a fault; `test_chaos.py` runs it itself."""

import jax
import numpy as np
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
    go(explain, params, sentences(), tmp_path / "whole")
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    for victim in ("plans", "kept.msgpack", "run.json"):
        out = tmp_path / victim
        go(explain, doubled, sentences(), out, keep={"a": np.ones(2)})

        def die(path, *args, victim=victim, **options):
            if path.name == victim:
                raise Dead
            return original(path, *args, **options)

        target = (store.shutil, "rmtree") if victim == "plans" else (store.Path, "unlink")
        original = getattr(*target)
        monkeypatch.setattr(*target, die)
        with pytest.raises(Dead):
            go(explain, params, sentences(), out, overwrite=True)
        monkeypatch.undo()
        with pytest.raises(jxp.JaxplainError, match="holds another run"):
            go(explain, params, sentences(), out)
        assert go(explain, params, sentences(), out, overwrite=True).done == 60
        assert files(out) == files(tmp_path / "whole")
