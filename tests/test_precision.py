"""Runs with a tolerance: who gets more, that nobody else does, and that no claim is false."""

import json
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import precision
from jaxplain.methods.quadrature import nested
from jaxplain.registry import METHODS
from jaxplain.run import plan, store
from jaxplain.run.rounds import SMALLER
from jaxplain.types import Attribution, SampledAttribution
from tests.test_run import files, no_cache

__all__ = ["no_cache"]  # a fixture

TOLERANCE = 1e-3


def f(params, x):
    """Smooth, and the faster the larger x is."""
    return jnp.sum(jnp.tanh(x @ params) ** 2) + jnp.sin(12 * x[0])


def explain(params, example, key, effort):
    return {"a": jxp.integrated_gradients(lambda x: f(params, x), example["x"], steps=effort)}


@pytest.fixture(scope="module")
def params():
    return jax.random.normal(jax.random.key(0), (3, 4))


def rows(count=60):
    draw = np.random.default_rng(0)
    size = np.linspace(0.1, 9, count)[:, None]
    return [{"x": x} for x in (draw.normal(size=(count, 3)) * size).astype("f4")]


def go(params, out, examples=None, explain=explain, **options):
    given = {"tolerance": TOLERANCE, "efforts": precision.nodes(8, 64), "shard_size": 16}
    given |= {"batch_size": 16, "progress": False, "key": jax.random.key(0)} | options
    return jxp.run(explain, params, rows() if examples is None else examples, out, **given)


@pytest.fixture(scope="module")
def whole(params, tmp_path_factory):
    out = tmp_path_factory.mktemp("precision") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXPLAIN_CACHE", "off")
        return go(params, out), jxp.load(out), out


# ---- the rules of quadrature


@pytest.mark.parametrize("first", [2, 5, 16])
def test_every_prefix_of_the_nested_rules_is_a_trapezoidal_rule_with_ends(first):
    rules, place, weight = nested(first, 4), np.zeros(0), np.zeros(0)
    for level, rule in enumerate(rules):
        new = slice(0, int(rule.count))
        assert not np.any(np.asarray(rule.weight)[int(rule.count) :])
        share = 0.5 if level else 1
        place = np.concatenate([place, rule.place[new]])
        weight = np.concatenate([(1 - share) * weight, share * rule.weight[new]])
        n = first * 2**level
        assert weight.sum() == pytest.approx(1, abs=1e-14)
        got = Counter()
        for p, w in zip(np.round(place, 12), weight, strict=True):
            got[float(p)] += w
        t = np.arange(1, n) / n
        expected = dict(
            zip(np.round((1 - np.cos(np.pi * t)) / 2, 12), np.sin(np.pi * t), strict=True)
        )
        for p, w in expected.items():
            assert got[float(p)] == pytest.approx(np.pi / (2 * n) * w, abs=1e-14)
        assert len({p for p, w in got.items() if abs(w) > 1e-16}) == n + 1


def test_the_error_falls_with_the_fourth_power():
    """Of e^x on [0, 1]: doubling the nodes divides it by 16."""
    errors, total = [], 0.0
    for level, rule in enumerate(nested(8, 4)):
        found = float(np.sum(rule.weight * np.exp(rule.place)))
        total = found if level == 0 else (total + found) / 2
        errors.append(abs(total - (np.e - 1)))
    ratios = np.divide(errors[:-1], errors[1:])
    assert np.all((ratios > 15.5) & (ratios < 16.6))


@pytest.mark.parametrize("chunk", [1, 4])
def test_nodes_of_ones_own_and_a_traced_number_of_them(params, chunk):
    x = jnp.array([0.5, -1.0, 0.3])
    places, weights = np.polynomial.legendre.leggauss(8)
    padded = lambda v: np.pad(v, (0, 3))
    rule = jxp.Nodes(padded((places + 1) / 2), padded(weights / 2), 8)
    run = jax.jit(
        lambda r: jxp.integrated_gradients(lambda x: f(params, x), x, steps=r, chunk=chunk)
    )
    expected = jxp.integrated_gradients(lambda x: f(params, x), x, steps=8)
    np.testing.assert_allclose(run(rule).scores, expected.scores, rtol=2e-6)
    fewer = run(rule._replace(count=4))  # the same program
    assert abs(fewer.gap) > 100 * abs(run(rule).gap)
    assert run._cache_size() == 1  # type: ignore[attr-defined]


# ---- runs


def change(a):
    return a.scores.sum() - a.gap


def test_everybody_is_within_the_tolerance_or_marked(whole):
    summary, records, _ = whole
    assert summary.done == 60 and summary.failed == 0
    relative = np.array([abs(r.result["a"].gap / change(r.result["a"])) for r in records])
    converged = np.array([r.converged for r in records])
    assert np.all(relative[converged] <= TOLERANCE)
    assert np.all(relative[~converged] > TOLERANCE)
    assert np.any(converged) and not np.all(converged)
    assert {r.effort for r, c in zip(records, converged, strict=True) if not c} == {
        9 + 10 + 18 + 34
    }
    assert len({r.effort for r in records}) == 4


def test_no_claim_is_false_against_1000_nodes(whole, params):
    _, records, _ = whole
    long = jax.jit(lambda x: jxp.integrated_gradients(lambda x: f(params, x), x, steps=1000).scores)
    checked = 0
    for record, row in zip(records, rows(), strict=True):
        if record.converged:
            a = record.result["a"]
            total = float(np.asarray(long(row["x"])).sum())
            # The gap of the long sum itself: rounding of 1,000 float32 terms.
            assert abs(a.scores.sum() - total) <= (TOLERANCE + 1e-4) * abs(change(a))
            checked += 1
    assert checked > 20


def test_a_result_is_the_rule_of_all_its_nodes(whole, params):
    """And its gap is what its scores miss, after however many rounds."""
    _, records, _ = whole
    for effort, level in ((9, 0), (19, 1), (37, 2), (71, 3)):
        record = next(r for r in records if r.effort == effort)
        x, a = rows()[record.index]["x"], record.result["a"]
        n = 8 * 2**level
        t = np.arange(1, n) / n
        place, weight = (1 - np.cos(np.pi * t)) / 2, np.pi / (2 * n) * np.sin(np.pi * t)
        end = (1 - weight.sum()) / 2
        rule = jxp.Nodes(np.append(place, [0, 1]), np.append(weight, [end, end]), n + 1)
        expected = jxp.integrated_gradients(lambda x: f(params, x), x, steps=rule)
        np.testing.assert_allclose(a.scores, expected.scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            a.gap, a.scores.sum() - expected.output + f(params, 0 * x), atol=2e-6
        )


def test_the_record_of_a_run_says_what_it_took(whole):
    summary, records, out = whole
    counts = Counter(r.effort for r in records)
    info = json.loads((out / "run.json").read_text())
    told = info["totals"]["precision"]
    assert told == summary.precision
    assert told["efforts"] == {str(k): v for k, v in sorted(counts.items())}
    assert told["converged"] + told["not_converged"] == 60
    assert told["evaluations"] == sum(k * v for k, v in counts.items())
    assert info["plan"]["tolerance"] == TOLERANCE and info["plan"]["efforts"] == [9, 10, 18, 34]
    gaps = [abs(r.result["a"].gap) for r in records]
    assert summary.gap["claimed"] == 60
    assert summary.gap["largest"] == pytest.approx(max(gaps), rel=1e-3)  # told to 4 digits


def test_only_those_that_need_more_get_it(whole):
    _, records, out = whole
    efforts = [9, 19, 37, 71]
    for level in range(1, 4):
        inside = {
            index
            for shard in plan.unpack(store.unpack(store.plan_path(out, 0, level)))
            for batch in shard
            for index in batch[2]
        }
        assert inside == {r.index for r in records if r.effort >= efforts[level]}


def test_what_fails_in_a_later_round_is_counted_once(params, tmp_path):
    def failing(params, example, key, effort):
        found = explain(params, example, key, effort)["a"]
        bad = (effort.count == 18) & (example["x"][0] > 0)  # in the third round
        return {"a": found._replace(scores=jnp.where(bad, jnp.nan, found.scores))}

    summary = go(params, tmp_path / "r", explain=failing)
    told = summary.precision
    records = list(jxp.load(tmp_path / "r"))
    assert summary.failed == sum(r.error is not None for r in records) > 0
    assert told["converged"] + told["not_converged"] == summary.done == 60 - summary.failed
    assert summary.gap["claimed"] == summary.done
    assert summary.failures == {"NaN in a.scores": summary.failed}
    again = go(params, tmp_path / "r", explain=failing)
    assert (again.done, again.failed, again.precision) == (summary.done, summary.failed, told)


def test_few_that_are_left_get_a_small_program():
    from jaxplain.run import rounds

    shards = rounds.cut({5: list(range(70)), 7: [1, 2]}, {5: 64, 7: 16}, 2, 1000)
    sizes = [(b.bucket, b.size, len(b.indices)) for shard in shards for b in shard]
    assert sizes == [(5, 64, 64), (5, 16, 6), (7, 16 // SMALLER, 2)]


def test_killed_between_rounds_a_run_ends_with_the_same_bytes(whole, params, tmp_path, monkeypatch):
    _, _, out = whole
    killed, write, count = tmp_path / "killed", store.write, []

    def dying(path, payload):
        count.append(path)
        if len(count) in (4, 9, 12):
            raise KeyboardInterrupt
        write(path, payload)

    monkeypatch.setattr(store, "write", dying)
    interrupted = 0
    for _ in range(6):
        try:
            go(params, killed)
            break
        except KeyboardInterrupt:
            interrupted += 1
            jxp.load(killed) if (killed / "run.json").exists() else None
    assert interrupted == 3
    assert files(killed) == files(out)
    assert [r.effort for r in jxp.load(killed)] == [r.effort for r in jxp.load(out)]


def test_a_damaged_shard_of_any_round_is_computed_anew(whole, params, tmp_path):
    import shutil

    _, _, out = whole
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    for name in ("00000-0001.msgpack", "00000-0000.02.msgpack"):
        path = copy / "shards" / name
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(bytes(raw))
    (copy / "plans" / "00000.01.msgpack").write_bytes(b"")
    assert go(params, copy).done == 60
    assert files(copy) == files(out)


def test_other_tolerances_are_other_runs(whole, params):
    with pytest.raises(jxp.JaxplainError, match=r"tolerance is 0.001 there and 0.01 here"):
        go(params, whole[2], tolerance=0.01)


def test_eight_devices_say_the_same(whole, params, tmp_path):
    _, records, _ = whole
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]), ("data",))
    go(params, tmp_path / "mesh", mesh=mesh)
    for a, b in zip(records, jxp.load(tmp_path / "mesh"), strict=True):
        assert (a.effort, a.converged) == (b.effort, b.converged)
        np.testing.assert_allclose(a.result["a"].scores, b.result["a"].scores, rtol=1e-5, atol=1e-6)


def sampled(params, example, key, effort):
    zeros = jnp.zeros((1, 3))
    g = lambda x: f(params, x / 8)
    return jxp.expected_gradients(g, example["x"], key=key, baselines=zeros, samples=effort)


def test_sampling_goes_on_until_standard_errors_are_small(params, tmp_path):
    examples, tolerance = rows(24), 0.05
    efforts = precision.draws(32, 2048)
    go(params, tmp_path / "r", examples, sampled, tolerance=tolerance, efforts=efforts)
    kept, near = [], 0
    g = lambda x: f(params, x / 8)
    best = jax.jit(lambda x: jxp.integrated_gradients(g, x, steps=64).scores)
    for record, row in zip(jxp.load(tmp_path / "r"), examples, strict=True):
        a = record.result
        assert record.effort == a.samples
        worst = a.standard_error.max() / abs(change(a))
        assert record.converged == (worst <= tolerance)
        exact = best(row["x"])
        kept.append(np.asarray((a.scores - exact) / a.standard_error))
        near += bool(record.converged)
    z = np.concatenate(kept)
    # A score misses the exact one by its own standard error: 72 of them, root mean square 1.
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.4
    assert 3 < near < 24 and len({r.effort for r in jxp.load(tmp_path / "r")}) > 2


@pytest.mark.parametrize(
    ("name", "tolerance"), [("shapley_sampling", 0.01), ("kernel_shap", 1e-3), ("smoothgrad", 0.08)]
)
def test_every_way_to_sample_is_refined(params, tmp_path, name, tolerance):
    """By name, on more inputs than can be enumerated in so few samples."""
    method = METHODS[name]

    def play(params, example, key, effort):
        g = lambda x: jnp.sum(jnp.tanh(x.reshape(2, 3) @ params) ** 2) + jnp.prod(x[:3])
        return method.function(g, example["x"], key=key, **{method.refined_by: effort})

    pairs = np.stack([row["x"] for row in rows(12)]).reshape(6, 6)
    examples, efforts = [{"x": x / 4} for x in pairs], precision.draws(24, 96)
    summary = go(params, tmp_path / "r", examples, play, tolerance=tolerance, efforts=efforts)
    records = list(jxp.load(tmp_path / "r"))
    for record in records:
        a = record.result
        size = abs(change(a)) if np.isfinite(a.gap) else np.abs(a.scores).max()
        # All of 62 coalitions were evaluated, though 72 were asked for: nothing is left to err.
        exact = name == "kernel_shap" and record.effort == 96
        assert a.samples == (62 if exact else record.effort)
        assert not exact or not a.standard_error.any()
        assert record.converged == (a.standard_error.max() / size <= tolerance)
    assert 96 in {r.effort for r in records} <= {24, 96}
    told = summary.standard_error
    largest = sorted(float(r.result.standard_error.max()) for r in records)
    assert told["known"] == 6 and told["largest"] == pytest.approx(largest[-1], rel=1e-3)
    info = json.loads((tmp_path / "r" / "run.json").read_text())
    assert info["totals"]["standard_error"] == told


def test_searches_begin_anew_with_more_steps(params, tmp_path):
    def search(params, example, key, effort):
        found = jxp.word_information(
            lambda x: x @ params, example["x"][None], key=key, scale=1.0, rate=0.1, spread=1.0,
            steps=effort, samples=8, tolerance=0.1,
        )  # fmt: skip
        return {"information": found}

    examples = rows(6)
    efforts = precision.restarts((2, 1000))
    go(params, tmp_path / "r", examples, search, efforts=efforts)
    records = jxp.load(tmp_path / "r")
    assert all(r.converged for r in records)
    assert {r.effort for r in records} == {2, 1002}
    assert all((r.result["information"].steps > 2) == (r.effort == 1002) for r in records)


f32, i32 = partial(jnp.asarray, dtype=jnp.float32), partial(jnp.asarray, dtype=jnp.int32)


# ---- joining, and what says nothing


def test_joining_averages_scores_and_gaps_and_combines_standard_errors():
    row = lambda s, g, e, n: SampledAttribution(f32([s]), f32(9), f32(g), f32([e]), i32(n))
    both = precision.join({"a": row(1, 2, 3, 10), "y": 1}, {"a": row(5, 6, 4, 30), "y": 2}, 0.75)
    assert both["y"] == 2
    assert both["a"].scores == 4 and both["a"].gap == 5 and both["a"].samples == 40
    assert both["a"].standard_error == pytest.approx(np.hypot(0.25 * 3, 0.75 * 4))
    assert both["a"].output == 9


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Attribution(f32([3, 1]), f32(5), f32(-1)), 0.2),
        (Attribution(f32([0, 0]), f32(5), f32(0)), 0.0),
        (Attribution(f32([1, 1]), f32(5), f32(2)), np.inf),
        ([Attribution(f32([2]), f32(2), f32(1)), {"x": 1}], 1.0),
        (SampledAttribution(f32([4]), f32(4), f32(0), f32([1]), i32(2)), 0.25),
        (
            SampledAttribution(f32([-4, 1]), f32(4), f32(np.nan), f32([1, 2]), i32(2)),
            0.5,
        ),
        (SampledAttribution(f32([4]), f32(4), f32(0), f32([np.nan]), i32(2)), np.inf),
    ],
)
def test_distance(result, expected):
    assert precision.distance(result) == pytest.approx(expected)


@pytest.mark.parametrize("result", [{"y": np.ones(3)}, Attribution(f32([1]), f32(1), f32(np.nan))])
def test_what_says_nothing_is_refused(result):
    with pytest.raises(jxp.JaxplainError, match=r"says nothing of how far.*leave tolerance out"):
        precision.distance(result)


def test_a_run_whose_method_claims_nothing_ends_in_one_line(params, tmp_path):
    def nothing(params, example, key, effort):
        return jxp.saliency(lambda x: f(params, x), example["x"])

    with pytest.raises(jxp.JaxplainError, match="says nothing of how far"):
        go(params, tmp_path / "r", explain=nothing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0}, "tolerance must be a number above 0"),
        ({"tolerance": None}, "efforts are for runs with a tolerance"),
        ({"efforts": (8, 16)}, "efforts must be rounds"),
        ({"explain": lambda params, example, key: 0}, "let it take effort"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(params, tmp_path, options, message):
    with pytest.raises(jxp.JaxplainError, match=message) as error:
        go(params, tmp_path / "r", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists()
