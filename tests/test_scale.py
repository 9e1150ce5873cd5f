"""Many tiny examples: read and written many at a time, counted and opened in little memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain.run import batches, columns, gaps, packing, plan, schedule, store
from jaxplain.run.alike import split_all
from jaxplain.run.trees import describe, fit, layout, split
from tests.test_run import Faulty, files, go, no_cache, params, same, sentences
from tests.test_run import explain as explain_sentence

__all__ = ["no_cache", "params"]  # fixtures


def explain(weight, example, key):
    output = example["x"] @ weight
    gap = jnp.where(example["label"] == 0, jnp.nan, 1e-3 * output)
    return jxp.Attribution(example["x"] * weight + jax.random.normal(key), output, gap)


def tables(count=600):
    x = np.random.default_rng(0).normal(size=(count, 3))
    return [{"x": row, "label": i % 3, "name": f"row {i}"} for i, row in enumerate(x)]


class Together(list):
    """A source that gives many examples at a time, and counts how often it is asked."""

    asked = 0

    def __getitems__(self, indices):
        Together.asked += 1
        assert isinstance(indices, list)
        return [self[i] for i in indices]


def run(examples, out, **options):
    return go(explain, jnp.arange(1.0, 4.0), examples, out, **{"batch_size": 64} | options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "WINDOW", 16)  # 256 examples a window, where none is ragged
        run(tables(), out, shard_size=100)
    return out


# ---- reading


@pytest.mark.parametrize(
    "rows",
    [
        [{"x": np.arange(3.0) + i, "y": np.full((2, 2), i, np.float32)} for i in range(5)],
        [{"x": np.arange(i, i + 3), "label": i, "text": str(i), "none": None} for i in range(5)],
        [{"score": 0.1 * i, "yes": i > 2, "one": np.float64(i)} for i in range(5)],
        [{"x": np.zeros(0), "big": 2**40 + i, "b": np.asarray(i, jnp.bfloat16)} for i in range(5)],
        [{"x": np.arange(6.0).reshape(2, 3).T + i} for i in range(5)],
    ],
)
def test_examples_split_together_are_those_split_alone(rows):
    alone = [split(row) for row in rows]
    like = layout(alone, "auto")
    together = split_all(rows, like)
    assert together is not None
    for place, leaf in enumerate(together.leaves):
        want = np.stack([jax.tree.leaves(e.arrays)[place] for e in alone])
        assert leaf.dtype == want.dtype
        np.testing.assert_array_equal(leaf, want)
    assert together.digests.tolist() == [list(e.digest) for e in alone]
    assert (together.notes or [{}] * 5) == [e.notes for e in alone]


@pytest.mark.parametrize(
    "odd",
    [
        {"x": np.ones(4), "n": 1},
        {"x": np.ones(3, np.int32), "n": 1},
        {"x": [1.0, 1.0, 1.0], "n": 1},
        {"x": np.ones(3), "n": 1.5},
        {"x": np.ones(3), "n": "one"},
        {"x": np.ones(3), "n": 2**80},
        {"x": np.ones(3)},
        {"x": np.ones(3), "n": 1, "more": np.ones(2)},
        {"x": np.ones(3), "n": 1, "pieces": ["a", "b"]},
        (np.ones(3), 1),
        ValueError("broken"),
    ],
)
def test_what_is_not_plainly_alike_is_split_alone(odd):
    rows = [{"x": np.ones(3), "n": i} for i in range(4)]
    like = layout([split(row) for row in rows], "auto")
    assert split_all(rows, like) is not None
    assert split_all([*rows, odd], like) is None


def test_nested_and_ragged_examples_are_split_alone():
    for rows in ([{"a": {"x": 1.0}}] * 3, [1.0] * 3, [{"x": np.ones(n)} for n in (1, 2)]):
        like = layout([split(row) for row in rows], "auto")
        assert split_all(rows, like) is None
        assert fit(split(rows[0]), like) in (None, 1)


def test_both_ways_to_read_write_the_same_bytes(made, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "WINDOW", 16)
    monkeypatch.setattr(batches, "split_all", lambda *args: None)
    run(tables(), tmp_path / "alone", shard_size=100)
    assert files(tmp_path / "alone") == files(made)


def test_sources_that_give_many_at_a_time(made, params, tmp_path, monkeypatch):
    Together.asked = 0
    go(explain_sentence, params, sentences(), tmp_path / "plain", lengths=[32])
    go(explain_sentence, params, Together(sentences()), tmp_path / "many", lengths=[32])
    assert files(tmp_path / "plain") == files(tmp_path / "many")
    assert Together.asked == 1  # for their lengths; batches are made of what was read for these
    monkeypatch.setattr(plan, "WINDOW", 16)
    run(Together(tables()), tmp_path / "tables", shard_size=100)
    assert files(tmp_path / "tables") == files(made)
    assert Together.asked == 1 + 10  # a batch each


def test_a_fault_among_many_is_found_one_by_one(params, tmp_path):
    class Many(Faulty):
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    for name, source in (("one", Faulty()), ("many", Many())):
        go(explain_sentence, params, source, tmp_path / name, lengths=[32, 64], max_length=64)
    assert files(tmp_path / "one") == files(tmp_path / "many")
    same(jxp.load(tmp_path / "one"), jxp.load(tmp_path / "many"))


def test_a_source_that_gives_another_number(tmp_path):
    class Short(Together):
        def __getitems__(self, indices):
            return super().__getitems__(indices)[1:]

    with pytest.raises(jxp.JaxplainError, match="gave 63 examples for 64 positions"):
        run(Short(tables(64)), tmp_path / "r")


@pytest.mark.usefixtures("optimized")
def test_tiny_examples_come_in_larger_batches(tmp_path, monkeypatch):
    """Where there are many, and the program is small."""

    def rows(*shape, shard_size=4096):
        like = layout([split({"x": np.ones(shape)})], ())
        return plan.tiny_batch_size(64, like, shard_size)

    assert [rows(8), rows(64), rows(28, 28), rows(224, 224, 3)] == [1024, 256, 64, 64]
    assert rows(8, shard_size=200) == 192 and rows(8, shard_size=16) == 64
    monkeypatch.setattr(plan, "WINDOW", 16)

    def sizes(out, examples=600, width=1):
        def explain(params, example, key):
            big = jnp.sin(example["x"].sum() * jnp.arange(float(width)))
            return jnp.sort(big)[0]

        rows = [{"x": np.ones(3)}] * examples
        go(explain, {}, rows, tmp_path / out, shard_size=200, batch_size="auto")
        return store.unpack(store.plan_path(tmp_path / out, 0))["sizes"]

    assert sizes("many") == [[plan.FIXED, 192]]
    assert sizes("heavy", width=2**14) == [[plan.FIXED, 64]]  # 64 KiB a row
    assert sizes("few", examples=200) == [[plan.FIXED, 50]]


# ---- writing


def test_plans_do_not_grow_with_the_examples(made):
    """Positions that follow one another are two numbers, in plans and in shards."""
    plans = sorted((made / "plans").iterdir())
    assert len(plans) == 3
    shards = plan.unpack(store.unpack(plans[1]))
    assert plan.index_of([b for shard in shards for b in shard]) == range(256, 512)
    content = store.unpack(store.shard_path(made, 1, 0))
    assert content["examples"] == [256, 320] and content["failed"] == {}


def test_blocks_keep_what_rows_say():
    rows = [
        (5, [np.float32(1), np.ones((2, 3)), jnp.ones(2, jnp.bfloat16)], {"text": "a"}, None),
        (7, None, {}, "broken"),
        (6, [np.float32(2), np.zeros((1, 3)), jnp.zeros(2, jnp.bfloat16)], {}, None),
    ]
    block = columns.of_rows(rows)
    for joined in (block, columns.join([columns.of_rows(rows[:1]), columns.of_rows(rows[1:])])):
        found = list(columns.rows(joined))
        assert [(i, n, e) for i, _, n, e in found] == [(i, n, e) for i, _, n, e in rows]
        for (_, got, _, _), (_, want, _, _) in zip(found, rows, strict=True):
            for g, w in zip(got or [], want or [], strict=True):
                assert np.shape(g) == np.shape(w)
                np.testing.assert_array_equal(np.asarray(g, "f4"), np.asarray(w, "f4"))


def test_a_column_reads_as_it_was_packed():
    for column in (np.zeros(3), np.zeros((3, 0)), np.ones((2, 4), np.int8), [np.ones(2)] * 2):
        got = columns.unpack_column(columns.pack_column(column), len(column))
        np.testing.assert_array_equal(got, column)
    ragged = [np.arange(n) for n in (2, 0, 3)]
    for got, want in zip(
        columns.unpack_column(columns.pack_column(ragged), 3), ragged, strict=True
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("index", [range(3, 9), (), (4, 2, 7), (2, 3, 4), (0, 1, 5, 4, 6, 7)])
def test_positions_read_as_they_were_packed(index):
    assert tuple(columns.unpack_index(columns.pack_index(index))) == tuple(index)
    parts = [(row, range(start, stop)) for start, stop, row in columns.runs(index).tolist()]
    assert [i for _, part in parts for i in part] == list(index)
    assert all(index[row] == part.start for row, part in parts)


def test_a_shard_is_no_shard_with_any_byte_flipped(tmp_path):
    result = {"scores": np.ones(2, "f4"), "gap": np.zeros(())}
    rows = [(i, jax.tree.leaves(result), {"name": "a"}, None) for i in range(3)]
    path = tmp_path / "shard"
    path.write_bytes(whole := packing.pack_records(describe(result), rows, run="me"))
    assert packing.read_shard(path, (0, 1, 2), "me") is not None
    assert packing.read_shard(path, (0, 1, 3), "me") is None
    assert packing.read_shard(path, (0, 1, 2), "you") is None
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert packing.read_shard(path, range(3), "me") is None
        path.write_bytes(whole[:place])
        assert packing.read_shard(path, range(3), "me") is None


def test_reasons_do_not_grow_with_failures():
    from collections import Counter

    found: Counter = Counter()
    schedule.tell(found, {i: f"image {i} is broken" for i in range(schedule.DIFFERENT + 5)})
    schedule.tell(found, {0: "image 3 is broken", 1: "and more"})
    assert len(found) == schedule.DIFFERENT and found.most_common(1) == [("image 3 is broken", 2)]


# ---- numbers of a run


def test_quantiles_of_few_are_exact_and_of_many_nearly(monkeypatch):
    values = np.random.default_rng(0).lognormal(-10, 4, size=5000)
    values[:100] = 0
    parts = np.split(values, [1, 700, 1500, 4000])

    def spread(parts):
        found = gaps.Spread()
        for part in parts:
            found = gaps.more(found, part)
        return found

    exact = spread(parts)
    assert [gaps.quantile(exact, q) for q in (0.5, 0.99)] == np.quantile(
        values, (0.5, 0.99)
    ).tolist()
    monkeypatch.setattr(gaps, "EXACT", 1000)
    many = spread(parts)
    assert many.kept <= 1000 and many.count == 5000 and many.largest == values.max()
    shares = (0, 0.01, 0.3, 0.5, 0.99, 1)
    got = [gaps.quantile(many, q) for q in shares]
    # a bucket is 2^-10 of its lower end wide, and its middle is told
    np.testing.assert_allclose(got, np.quantile(values, shares), rtol=2**-11)
    other = spread([values[::-1]])
    assert [gaps.quantile(other, q) for q in shares] == got  # whatever the order
    assert len(spread([values] * 20).keys) == len(gaps.counted(many).keys)  # and no larger


def test_gaps_of_columns_are_those_of_rows():
    rng = np.random.default_rng(0)
    gap, output = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    error = np.where(rng.random((5, 3)) < 0.5, np.nan, rng.random((5, 3)))
    error[0] = np.nan
    at = gaps.Places(1, 0, 2)
    whole = gaps.together(gaps.of_columns([output, gap, error], at))
    rows = gaps.together(gaps.of_columns([list(output), list(gap), list(error)], at))
    np.testing.assert_array_equal(whole, rows)
    np.testing.assert_array_equal(whole[:2], [np.abs(gap).ravel(), np.abs(output).ravel()])
    largest = [np.nan if np.isnan(row).all() else np.nanmax(row) for row in error]
    np.testing.assert_array_equal(whole[2, ::2], largest)
    assert np.isnan(whole[2, 1::2]).all()


def test_what_a_resumed_run_says_of_many_gaps(tmp_path, monkeypatch):
    monkeypatch.setattr(gaps, "EXACT", 50)
    first = run(tables(200), tmp_path / "r", shard_size=64)
    claimed = np.abs([r.result.gap for r in jxp.load(tmp_path / "r")])
    claimed = claimed[~np.isnan(claimed)]
    assert first.gap["claimed"] == len(claimed) and first.gap["not_claimed"] == 200 - len(claimed)
    # 0.05%, told to 4 digits
    assert first.gap["median"] == pytest.approx(np.median(claimed), rel=1e-3)
    store.shard_path(tmp_path / "r", 0, 1).unlink()
    again = run(tables(200), tmp_path / "r", shard_size=64)
    assert again.gap == first.gap and again.resumed == 136


# ---- opening


def test_opening_a_run_reads_nothing(made, monkeypatch):
    read, unpack = [], store.unpack

    def watched(path):
        read.append(path.parent.name)
        return unpack(path)

    monkeypatch.setattr(store, "unpack", watched)
    records = jxp.load(made)
    assert read == []
    assert records[300].notes == {"name": "row 300"}
    assert read == ["plans", "shards"]
    assert len(records) == 600
    assert read.count("shards") == 1 and read.count("plans") == 4
    everyone = list(records)
    assert [r.index for r in everyone] == list(range(600))
    assert read.count("shards") == len(list((made / "shards").iterdir()))
    for index in (0, 255, 256, -1):
        same([records[index]], [everyone[index]])
    with pytest.raises(IndexError, match="600 examples, and 600 was asked for"):
        records[600]


def test_a_run_with_holes(made, tmp_path):
    import shutil

    out = shutil.copytree(made, tmp_path / "r")
    store.shard_path(out, 1, 0).unlink()  # 256 to 319
    store.plan_path(out, 2).unlink()  # from 512
    records = jxp.load(out)
    there = [*range(256), *range(320, 512)]
    assert len(records) == len(there) and [r.index for r in records] == there
    for index in (256, 600 - 1):
        with pytest.raises(jxp.JaxplainError, match=f"example {index} is not explained yet"):
            records[index]
    found = jxp.verify(out)
    assert any("is missing" in line for line in found.problems)


def test_a_run_of_an_older_format_is_refused(made, tmp_path):
    info = json.loads((made / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(info | {"format": "jaxplain run 1"}))
    for call in (jxp.load, jxp.verify, lambda out: run(tables(), out)):
        with pytest.raises(jxp.JaxplainError, match="is in format 'jaxplain run 1'") as caught:
            call(tmp_path)
        assert "\n" not in str(caught.value)
