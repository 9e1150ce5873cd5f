"""The engine: what it keeps, in what order, on which devices, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxplain as jxp
from jaxplain.run import compile as compiler
from jaxplain.run import plan, store

WIDTH = 6


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("JAXPLAIN_CACHE", "off")


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {
        "embedding": jnp.asarray(rng.normal(size=(40, WIDTH)), jnp.float32),
        "weight": jnp.asarray(rng.normal(size=(WIDTH, WIDTH)), jnp.float32),
    }


def sentences(count=60, seed=0, longest=30):
    rng = np.random.default_rng(seed)
    return [
        {
            "ids": rng.integers(0, 40, size=n).astype(np.int32),
            "mask": np.ones(n, bool),
            "text": f"sentence {i}",
        }
        for i, n in enumerate(rng.integers(1, longest, size=count))
    ]


def score(params, x, mask):
    hidden = jnp.tanh(x @ params["weight"]) * mask[:, None]
    return jnp.tanh(hidden.sum(0) / 3).sum()


def explain(params, example, key):
    x = params["embedding"][example["ids"]]
    output, gradient = jax.value_and_grad(lambda x: score(params, x, example["mask"]))(x)
    return jxp.Attribution((gradient * x).sum(-1), output, jnp.asarray(jnp.nan))


def go(explain, params, examples, out, **options):
    options = {"key": jax.random.key(0), "progress": False, "mesh": mesh(1)} | options
    return jxp.run(explain, params, examples, out, **options)


def mesh(devices):
    return Mesh(np.asarray(jax.devices()[:devices]), ("data",))


def files(out):
    """Every file of a run but its record, by content."""
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*.msgpack"))}


def same(a, b, exact=True):
    """Whether two lists of records hold the same results, notes and errors."""
    for one, two in zip(a, b, strict=True):
        assert one.notes == two.notes and one.error == two.error
        for u, v in zip(jax.tree.leaves(one.result), jax.tree.leaves(two.result), strict=True):
            assert u.dtype == v.dtype and u.shape == v.shape
            if exact:
                np.testing.assert_array_equal(u, v)
            else:
                # another batch shape reorders float32 sums of at most 30 terms of order 1
                np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6)


def test_records_equal_a_plain_loop(params, tmp_path):
    examples = sentences()
    summary = go(explain, params, examples, tmp_path / "r")
    assert (summary.done, summary.failed, summary.resumed) == (60, 0, 0)
    records = jxp.load(tmp_path / "r")
    assert len(records) == 60 and records.info["status"] == "complete"
    plain = jax.jit(explain)
    for n, (example, record) in enumerate(zip(examples, records, strict=True)):
        assert record.notes == {"text": example["text"]}
        assert record.result.scores.shape == example["ids"].shape
        if n % 5:  # the loop compiles for each length
            continue
        arrays = {name: example[name] for name in ("ids", "mask")}
        expected = plain(params, arrays, jax.random.key(0))
        np.testing.assert_allclose(record.result.scores, expected.scores, rtol=1e-5, atol=1e-6)
        assert isinstance(record.result, jxp.Attribution) and np.isnan(record.result.gap)
    assert records[-1].index == 59


def test_padding_is_reported(params, tmp_path):
    examples = sentences(longest=8)
    summary = go(explain, params, examples, tmp_path / "r", batch_size=60, lengths=[8, 32])
    real = sum(len(e["ids"]) for e in examples)
    assert summary.padding == pytest.approx(1 - real / (60 * 8))


def test_any_example_and_any_result(tmp_path):
    """Images and tables; results in dicts, lists, tuples of other names, several dtypes."""
    from typing import NamedTuple

    class Other(NamedTuple):
        a: jax.Array
        b: object

    def explain(params, example, key):
        image, row = example["image"], example["row"]
        return {
            "list": [image.sum(), (row * 2).astype(jnp.bfloat16)],
            "other": Other(row > 0, (jnp.argmax(row), None)),
            "noise": jax.random.normal(key, (2,)),
        }

    rng = np.random.default_rng(0)
    examples = [
        {"image": rng.normal(size=(4, 4, 1)), "row": rng.normal(size=3), "name": None, "id": "x"}
        for _ in range(10)
    ]
    go(explain, {}, examples, tmp_path / "r", batch_size=4)
    record = jxp.load(tmp_path / "r")[7]
    result = record.result
    np.testing.assert_allclose(result["list"][0], examples[7]["image"].sum(), rtol=1e-5)
    assert result["list"][1].dtype == jnp.bfloat16
    assert type(result["other"]).__name__ == "Other" and result["other"].b[1] is None
    np.testing.assert_array_equal(result["other"].a, examples[7]["row"] > 0)
    assert record.notes == {"name": None, "id": "x"}


def test_an_example_that_is_no_dict(tmp_path):
    go(lambda p, x, key: x[0] * p + x[1], 2.0, [(float(i), 1.0) for i in range(5)], tmp_path / "r")
    assert [float(r.result) for r in jxp.load(tmp_path / "r")] == [1, 3, 5, 7, 9]


def test_two_ragged_axes_are_trimmed(tmp_path):
    def explain(params, example, key):
        x = example["x"]
        return {"pairs": x[:, None] * x[None, :], "layers": jnp.stack([x, x]), "one": x.sum()}

    examples = [{"x": np.arange(1.0, n + 1)} for n in (3, 9, 20)]
    go(explain, {}, examples, tmp_path / "r")
    for example, record in zip(examples, jxp.load(tmp_path / "r"), strict=True):
        x = example["x"].astype(np.float32)
        np.testing.assert_array_equal(record.result["pairs"], np.outer(x, x))
        np.testing.assert_array_equal(record.result["layers"], np.stack([x, x]))


def test_an_output_that_cannot_be_trimmed(tmp_path):
    examples = [{"x": np.ones(n)} for n in (3, 9)]
    with pytest.raises(jxp.JaxplainError, match="axis of 32 for an example of length 16"):
        go(lambda p, e, k: jnp.concatenate([e["x"]] * 2), {}, examples, tmp_path / "r")


def test_no_result_depends_on_place_or_batch(params, tmp_path):
    """A shuffled source gives each example the same record, sampling included."""

    def noisy(params, example, key):
        x = params["embedding"][example["ids"]] + jax.random.normal(key, (1, WIDTH))
        return {"score": score(params, x, example["mask"]), "bits": jax.random.bits(key, (2,))}

    examples = sentences()
    order = np.random.default_rng(1).permutation(len(examples))
    go(noisy, params, examples, tmp_path / "a")
    go(noisy, params, [examples[i] for i in order], tmp_path / "b")
    go(noisy, params, examples, tmp_path / "c", batch_size=7)
    a, b, c = (list(jxp.load(tmp_path / name)) for name in "abc")
    # XLA may round a row at the end of a batch otherwise than one in its middle: not exact
    same([a[i] for i in order], b, exact=False)
    same(a, c, exact=False)
    for one, two, three in zip(a, [b[i] for i in np.argsort(order)], c, strict=True):
        np.testing.assert_array_equal(one.result["bits"], two.result["bits"])
        np.testing.assert_array_equal(one.result["bits"], three.result["bits"])
    keys = {r.result["bits"].tobytes() for r in a}
    assert len(keys) == len({e["ids"].tobytes() for e in examples}) > 50


def test_eight_devices_equal_one(params, tmp_path):
    examples = sentences()
    go(explain, params, examples, tmp_path / "one")
    go(explain, params, examples, tmp_path / "eight", mesh=None)
    info = jxp.load(tmp_path / "eight").info
    assert info["devices"]["mesh"] == {"data": 8}
    same(jxp.load(tmp_path / "one"), jxp.load(tmp_path / "eight"), exact=False)


def test_programs_have_no_collectives(params):
    like, _ = plan.probe(sentences(), "auto")
    on = compiler.check_mesh(None)
    placed = compiler.place(params, on)
    program = compiler.compile_bucket(
        explain, placed, jax.random.key(0), like, 8, 16, on, memory=None
    )
    text = program.call.as_text()  # type: ignore[attr-defined]
    assert "all-reduce" not in text and "all-gather" not in text and "all-to-all" not in text


def test_sharded_parameters_stay_sharded(params, tmp_path):
    both = jax.make_mesh((4, 2), ("data", "model"))
    spec = jax.sharding.NamedSharding(both, jax.P(None, "model"))
    split = params | {"weight": jax.device_put(params["weight"], spec)}
    placed = compiler.place(split, compiler.check_mesh(both))
    assert placed["weight"].sharding.spec == jax.P(None, "model")
    assert placed["embedding"].sharding.is_fully_replicated
    examples = sentences(20)
    go(explain, split, examples, tmp_path / "sharded", mesh=both)
    go(explain, params, examples, tmp_path / "plain")
    same(jxp.load(tmp_path / "sharded"), jxp.load(tmp_path / "plain"), exact=False)


def test_one_program_a_bucket(params, tmp_path, monkeypatch):
    compiled = []
    original = compiler.compile_bucket

    def counting(*args, **options):
        compiled.append(args[4])
        return original(*args, **options)

    monkeypatch.setattr(compiler, "compile_bucket", counting)
    examples = sentences(300)
    go(explain, params, examples, tmp_path / "r", batch_size=8)
    buckets = {plan.bucket_of(len(e["ids"]), plan.grid("auto", 300), None) for e in examples}
    assert sorted(compiled) == sorted(buckets) == [8, 12, 16, 24, 32]


def test_batch_size_follows_memory(tmp_path):
    """A program that is too large for its memory is compiled again with fewer rows."""

    def explain(params, example, key):
        x = example["x"]
        return jnp.linalg.norm(jnp.sin(x[:, None] * x[None, :]) @ jnp.cos(x))

    examples = [{"x": np.random.default_rng(i).normal(size=256)} for i in range(64)]
    roomy = go(explain, {}, examples, tmp_path / "a")
    tight = go(explain, {}, examples, tmp_path / "b", memory_limit=6 * 2**20)
    sizes = [store.unpack(tmp_path / d / "plans" / "00000.msgpack")["sizes"] for d in "ab"]
    assert sizes[0] == [[plan.FIXED, 64]] and 1 <= sizes[1][0][1] < 24
    assert roomy.done == tight.done == 64
    same(jxp.load(tmp_path / "a"), jxp.load(tmp_path / "b"), exact=False)
    with pytest.raises(jxp.JaxplainError, match="one example a device takes"):
        go(explain, {}, examples, tmp_path / "c", memory_limit=1000)


@pytest.mark.parametrize(
    ("length", "bucket"), [(1, 8), (8, 8), (9, 12), (13, 16), (17, 24), (25, 32), (49, 64)]
)
def test_buckets(length, bucket):
    many, own = plan.grid("auto", 1000), plan.grid([64, 10], 1000)
    assert plan.bucket_of(length, many, None) == bucket
    assert plan.bucket_of(length, many, 50) == min(bucket, 50)
    assert plan.bucket_of(length, own, None) == (10 if length <= 10 else 64)


def test_few_examples_get_few_programs():
    few = plan.grid("auto", 60)
    assert [plan.bucket_of(n, few, None) for n in (1, 16, 17, 64, 65)] == [16, 16, 64, 64, 256]


class Faulty:
    """A source with one of each fault."""

    def __init__(self):
        self.examples = sentences(40)

    def __len__(self):
        return 40

    def __getitem__(self, i):
        example = self.examples[i]
        if i == 3:
            raise OSError("the disk is gone")
        if i == 5:
            return example | {"ids": example["ids"].astype(np.float32)}
        if i == 7:
            return {"ids": example["ids"], "text": "no mask"}
        if i == 9:
            return example | {"mask": np.ones(len(example["ids"]) + 1, bool)}
        if i == 11:
            return example | {"ids": example["ids"][:0], "mask": example["mask"][:0]}
        if i == 13:
            return example | {"ids": np.full(99, 1, np.int32), "mask": np.ones(99, bool)}
        return example


def test_faulty_examples_are_recorded_and_the_rest_goes_on(params, tmp_path):
    def explain_or_nan(params, example, key):
        result = explain(params, example, key)
        broken = example["ids"][0] == sentences(40)[17]["ids"][0]
        return result._replace(scores=jnp.where(broken, jnp.nan, result.scores))

    summary = go(explain_or_nan, params, Faulty(), tmp_path / "r", max_length=64)
    records = list(jxp.load(tmp_path / "r"))
    errors = {r.index: r.error for r in records if r.error}
    assert errors[3] == "OSError: the disk is gone"
    assert errors[5] == "ids is float32, and the other examples' is int32"
    assert errors[7].startswith("the example's structure is")
    assert "they must be equal" in errors[9]
    assert errors[11] == "the example is empty: its length is 0"
    assert errors[13] == "the example has length 99, and max_length is 64"
    assert errors[17] == "NaN in scores"
    assert summary.failed == len(errors) and summary.done == 40 - len(errors)
    assert all(r.result is None for r in records if r.error)
    clean = {r.index: r for r in records if not r.error}
    for index in (0, 4, 39):
        expected = explain(params, sentences(40)[index], None)
        np.testing.assert_allclose(
            clean[index].result.scores, expected.scores, rtol=1e-5, atol=1e-6
        )


def test_a_fault_in_a_batch_of_images_leaves_its_neighbours_alone(tmp_path):
    class Source(list):
        def __getitem__(self, i):
            if i in (0, 6):
                raise ValueError(f"image {i} is broken")
            return {"x": np.full((2, 2), i, np.float32)}

    go(lambda p, e, k: e["x"].sum(), {}, Source(range(10)), tmp_path / "r", batch_size=4)
    records = list(jxp.load(tmp_path / "r"))
    assert [r.index for r in records if r.error] == [0, 6]
    assert records[0].error == "ValueError: image 0 is broken"
    assert [float(r.result) for r in records if not r.error] == [
        4 * i for i in (1, 2, 3, 4, 5, 7, 8, 9)
    ]


def test_infinity_fails_and_a_nan_gap_does_not(tmp_path):
    def explain(params, example, key):
        gap = jnp.where(example["x"] == 2, jnp.inf, jnp.nan)
        return jxp.Attribution(1 / example["x"], example["x"], gap)

    go(explain, {}, [{"x": float(i)} for i in range(4)], tmp_path / "r")
    errors = [r.error for r in jxp.load(tmp_path / "r")]
    assert errors == ["infinity in scores", None, "infinity in gap", None]


def test_an_example_that_only_later_shows_to_be_ragged(tmp_path):
    examples = [{"x": np.ones(4)} for _ in range(1000)]
    examples[998] = {"x": np.ones(5)}  # not among the probes
    go(lambda p, e, k: e["x"].sum(), {}, examples, tmp_path / "r")
    assert "pass ragged=('x',)" in str(jxp.load(tmp_path / "r")[998].error)
    go(lambda p, e, k: e["x"].sum(), {}, examples, tmp_path / "s", ragged=["x"])
    assert float(jxp.load(tmp_path / "s")[998].result) == 5


def test_errors_of_explain_pass_through(params, tmp_path):
    def broken(params, example, key):
        raise RuntimeError("a bug of the user's")

    with pytest.raises(RuntimeError, match="a bug of the user's"):
        go(broken, params, sentences(), tmp_path / "r")


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([], {}, "examples is empty"),
        (iter([1]), {}, "put an iterator into a list"),
        ([{"a": "text"}], {}, "no example could be read: the example holds no numeric array"),
        ([1.0], {"batch_size": 0}, "batch_size must be"),
        ([1.0], {"batch_size": "large"}, "batch_size must be"),
        ([1.0], {"shard_size": 0}, "shard_size must be"),
        ([1.0], {"lengths": [0, 4]}, "lengths must be"),
        ([{"x": 1.0}], {"ragged": ["y"]}, "ragged names y, and the examples have x"),
    ],
)
def test_bad_arguments(examples, options, message, tmp_path):
    with pytest.raises(jxp.JaxplainError, match=message):
        go(lambda p, e, k: 1.0, {}, examples, tmp_path / "r", **options)
    assert not (tmp_path / "r" / "run.json").exists()


def test_a_mesh_without_a_data_axis(tmp_path):
    other = Mesh(np.asarray(jax.devices()[:2]), ("batch",))
    with pytest.raises(jxp.JaxplainError, match="needs one named 'data'"):
        go(lambda p, e, k: e, {}, [1.0], tmp_path / "r", mesh=other)


def test_record_is_readable(params, tmp_path):
    go(explain, params, sentences(), tmp_path / "r", configuration={"method": "m", "steps": 3})
    info = json.loads((tmp_path / "r" / "run.json").read_text())
    assert info["configuration"] == {"method": "m", "steps": 3}
    assert info["totals"]["done"] == 60 and info["totals"]["failed"] == 0
    assert set(info["fingerprints"]) == {"function", "params", "data", "key"}
    assert info["versions"]["jax"] == jax.__version__


def test_record_says_how_nearly_scores_add_up(params, tmp_path):
    """The same after a resumption, which reads the shards that are there."""

    def with_gaps(params, example, key):
        found = explain(params, example, key)
        claimed = example["ids"][0] % 4 != 0
        gap = jnp.where(claimed, found.output * 1e-3 * (example["ids"][0] % 3), jnp.nan)
        return {"words": found._replace(gap=gap), "length": example["mask"].sum()}

    out, examples = tmp_path / "run", sentences()
    summary = go(with_gaps, params, examples, out, shard_size=20)
    results = [record.result["words"] for record in jxp.load(out)]
    gaps = np.abs([r.gap for r in results])
    sizes = np.abs([r.output for r in results])
    claimed = gaps[~np.isnan(gaps)]
    want = {
        "claimed": len(claimed),
        "not_claimed": len(gaps) - len(claimed),
        "median": np.median(claimed),
        "percentile_99": np.percentile(claimed, 99),
        "largest": claimed.max(),
        "largest_of_output": np.nanmax(gaps / sizes),
    }
    assert 0 < len(claimed) < len(gaps)
    assert list(summary.gap) == list(want)
    np.testing.assert_allclose(list(summary.gap.values()), list(want.values()), rtol=1e-3)
    next((out / "shards").iterdir()).unlink()
    assert go(with_gaps, params, examples, out, shard_size=20).gap == summary.gap
    assert json.loads((out / "run.json").read_text())["totals"]["gap"] == summary.gap
    plain = lambda params, example, key: explain(params, example, key).scores
    assert go(plain, params, examples[:2], tmp_path / "plain").gap == {}
