"""Batches in memory: the records of a run, without a run."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

import jaxplain as jxp
from examples import ray_data
from jaxplain import models
from jaxplain.run import compile as compiler
from jaxplain.types import JaxplainError
from tests.test_run import WIDTH, explain, go, mesh, same, sentences

RAGGED = ("ids", "mask")
ROOT = Path(ray_data.__file__).parent.parent


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("JAXPLAIN_CACHE", "off")


@pytest.fixture(scope="module")
def weights():
    draw = np.random.default_rng(0).normal
    shapes = {"embedding": (40, WIDTH), "weight": (WIDTH, WIDTH)}
    return {name: jnp.asarray(draw(size=shape), jnp.float32) for name, shape in shapes.items()}


@pytest.fixture
def compiled(monkeypatch):
    """`(length, rows)` of every program that is compiled."""
    seen, compile_bucket = [], compiler.compile_bucket

    def noted(explain, params, key, like, length, size, *rest, **options):
        seen.append((length, size))
        return compile_bucket(explain, params, key, like, length, size, *rest, **options)

    monkeypatch.setattr(compiler, "compile_bucket", noted)
    return seen


def noisy(params, example, key):
    """Scores that depend on the key; of one sentence, infinity."""
    found = explain(params, example, key)
    noise = jax.random.key_data(key)[0] / 2.0**32
    spoiled = jnp.where(example["ids"][0] == 39, jnp.inf, 0)
    return {"found": found._replace(scores=found.scores + noise * example["mask"]), "s": spoiled}


class Source:
    """Sentences, some of which cannot be read, do not fit, or come out as infinity."""

    def __init__(self, count):
        self.rows = sentences(count, longest=14)
        for row in self.rows:
            row["ids"][0] %= 39
        self.rows[3]["ids"] = self.rows[3]["ids"].astype(np.float32)
        self.rows[5] |= {"ids": np.arange(20, dtype=np.int32), "mask": np.ones(20, bool)}
        self.rows[6]["ids"][0] = 39
        self.rows[7]["notes"] = {"tuple": (1, np.float32(2)), "of": np.str_("numpy")}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if index == 9:
            raise OSError("the line was cut")
        return self.rows[index]


def worker(explain, params, like, **options):
    options = {"key": jax.random.key(0), "ragged": RAGGED, "mesh": mesh(1)} | options
    return jxp.batch_explainer(explain, params, like, **options)


def test_the_records_of_a_run(weights, tmp_path, compiled):
    source, options = Source(40), {"lengths": (8, 16), "max_length": 16, "batch_size": 8}
    go(noisy, weights, source, tmp_path / "run", ragged=RAGGED, **options)
    wanted = list(jxp.load(tmp_path / "run"))
    programs = sorted(compiled)
    explained = worker(noisy, weights, source[0], **options)
    got = explained(source)
    assert sorted(compiled) == sorted(2 * programs) == [(8, 8)] * 2 + [(16, 8)] * 2
    same(got, wanted)  # the same batches: bit for bit, noise and reasons of failures too
    assert [record.index for record in got] == [record.index for record in wanted]
    assert [r.index for r in got if r.error] == [3, 5, 6, 9]
    assert got[7].notes["notes"] == {"tuple": [1, 2.0], "of": "numpy"}
    assert type(got[0].result["found"]) is jxp.Attribution

    # In other batches, of another order and with other mates: to rounding. Nothing is compiled.
    turned = [k for k in range(39, -1, -1) if k != 9]
    parts = [explained([source[k] for k in turned[start : start + 13]]) for start in (0, 13, 26)]
    again = [record for part in parts for record in part]
    assert [record.index for record in again] == [*range(13)] * 3
    same(again, [wanted[k] for k in turned], exact=False)
    assert len(compiled) == 4 and explained([]) == []


def test_fixed_shapes_and_programs_of_fewer_rows(tmp_path, compiled):
    """What is left of a call is computed in a program that wastes less."""
    rows = [{"x": np.full(3, i, np.float32), "name": str(i)} for i in range(70)]

    def square(params, example, key):
        return jxp.input_x_gradient(lambda x: jnp.sum(params * x**2), example["x"])

    three = jnp.array([1.0, 2.0, 3.0])
    explained = worker(square, three, rows[0], ragged=())
    found = explained(rows)
    assert compiled == [(None, 64), (None, 16)]
    explained(rows[:3])
    assert compiled[2:] == [(None, 4)]
    for i, record in enumerate(found):
        assert record.notes == {"name": str(i)} and record.index == i and record.error is None
        # f is a square: input times gradient is twice its terms, exactly so in float32.
        np.testing.assert_array_equal(record.result.scores, 2 * three * rows[i]["x"] ** 2)
    # On a mesh of all 8 devices, rows are a multiple of them.
    wide = worker(square, three, rows[0], ragged=(), mesh=None)
    same(wide(rows[:3]), found[:3])
    assert compiled[3:] == [(None, 8)]


def test_memory_bounds_the_rows(compiled):
    rows = [{"x": np.full((64, 64), i, np.float32)} for i in range(20)]

    def product(params, example, key):
        return example["x"] @ example["x"]

    free = worker(product, (), rows[0], ragged=(), batch_size=16)
    small = worker(product, (), rows[0], ragged=(), memory_limit=8 * 3 * 2 * 64 * 64 * 4)
    same(small(rows), free(rows), exact=False)
    assert max(size for _, size in compiled) == 64
    compiled.clear()
    small(rows)
    assert compiled == []


def test_what_is_refused(weights):
    like = sentences(1)[0]
    for options, message in (
        ({"batch_size": 0}, "batch_size"),
        ({"lengths": ()}, "lengths"),
        ({"ragged": ("nope",)}, "ragged names nope"),
    ):
        with pytest.raises(JaxplainError, match=message):
            worker(explain, weights, like, **options)
    # A field whose length varies, and that was not said to: each example says how to say it.
    found = worker(explain, weights, like, ragged=())(sentences(3, seed=1))
    assert all(r.result is None and "pass ragged=('ids',)" in (r.error or "") for r in found)


def test_what_a_worker_of_ray_does(monkeypatch):
    cnn = models.load("cnn")
    monkeypatch.setattr(models, "load", lambda name: cnn)  # the transformer takes long to compile
    batch = {"row": np.array([7, 8, 9]), "sentence": np.array(["a fine film", " ", "dull"], object)}
    table = ray_data.Worker(2)(batch)
    assert table.schema.names[:-2] == ray_data.SCHEMA.names
    assert table["index"].to_pylist() == [7, 8, 9]
    assert table["error"].to_pylist() == [None, "the sentence is empty", None]
    assert table["pieces"].to_pylist() == [["a", "fine", "film"], None, ["dull"]]
    scores = table["attribution.scores"].to_pylist()
    assert [s and len(s) for s in scores] == [3, None, 1]
    assert scores[0][1] != 0 and table["logits"].type == pa.list_(pa.float32())


def test_under_ray(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'jaxplain[ray]'")
    line = [sys.executable, "-m", "examples.ray_data", "--out", str(tmp_path), "--limit", "6"]
    line += ["--steps", "2"]
    found = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "6 of 6 sentences explained, 0 failed" in found.stdout
    assert "largest score: 0.0e+00" in found.stdout  # the same programs, so the same bits
    table = parquet.read_table(tmp_path / "parquet")
    assert table.num_rows == 6 and set(ray_data.SCHEMA.names) < set(table.column_names)
