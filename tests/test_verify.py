"""`verify`: a changed parameter, byte, shard or option does not pass; what is whole does."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import cli, precision
from jaxplain.report import api, proof
from jaxplain.run import store
from tests.test_precision import explain, f, go, rows
from tests.test_run import no_cache

__all__ = ["no_cache"]  # a fixture

EFFORTS = precision.nodes(8, 32)


def fixed(params, example, key):
    noise = jax.random.normal(key, (3,))
    return jxp.integrated_gradients(lambda x: f(params, x), example["x"] + 0.1 * noise, steps=8)


@pytest.fixture(scope="module")
def params():
    return jax.random.normal(jax.random.key(0), (3, 4))


def make(out, params, explain=fixed, **options):
    plain = {} if explain is not fixed else {"tolerance": None, "efforts": None}
    return go(params, out, explain=explain, configuration={"option": 8}, **plain | options)


def check(out, params, explain=fixed, examples=None, key=0, configuration=None, **options):
    examples = rows() if examples is None else examples
    configuration = {"option": 8} if configuration is None else configuration
    return jxp.verify(
        out, explain, params, examples, key=jax.random.key(key), configuration=configuration,
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(params, tmp_path_factory):
    """A plain run, one of other parameters, and one with a tolerance."""
    base = tmp_path_factory.mktemp("verify")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXPLAIN_CACHE", "off")
        make(base / "plain", params)
        make(base / "other", params + 1)
        make(base / "tolerant", params, explain, efforts=EFFORTS)
    return base


@pytest.fixture
def run(runs, tmp_path):
    return lambda name: shutil.copytree(runs / name, tmp_path / name)


def test_what_is_whole_agrees_bit_for_bit(runs, params):
    found = check(runs / "plain", params)
    assert found.agrees and found.exact and found.largest == 0
    assert (found.shards, found.records) == (4, 60)
    assert found.compared >= 16
    assert check(runs / "plain", params, sample=1000).compared == 60


def test_rounds_are_joined_again(runs, params):
    efforts = {r.index: r.effort for r in jxp.load(runs / "tolerant")}
    assert len(set(efforts.values())) == 3
    found = check(runs / "tolerant", params, explain, efforts=EFFORTS, sample=60)
    assert found.agrees and found.exact and found.compared == 60


def test_files_alone_need_no_model(runs):
    found = jxp.verify(runs / "plain")
    assert found.agrees and found.compared == 0 and found.exact is None


def test_a_changed_parameter(runs, params):
    found = check(runs / "plain", params.at[0, 0].add(1e-6))
    assert any("the parameters differ" in line for line in found.problems)
    found = check(runs / "plain", params.at[0, 0].add(1e-2))
    assert any("come out otherwise" in line for line in found.problems)


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("name", ["shards/00000-0001.msgpack", "plans/00000.msgpack"])
def test_a_changed_byte(run, name):
    out = run("plain")
    flip(out / name)
    found = jxp.verify(out)
    assert any(f"{name} is damaged" in line for line in found.problems)


def test_a_swapped_shard(run):
    out = run("plain")
    first, second = (store.shard_path(out, 0, number) for number in (0, 1))
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    found = jxp.verify(out)
    assert sum("it was swapped" in line for line in found.problems) == 2


def test_a_shard_of_another_run(run, runs):
    out = run("plain")
    shutil.copy(store.shard_path(runs / "other", 0, 1), store.shard_path(out, 0, 1))
    found = jxp.verify(out)
    assert [line for line in found.problems if "belongs to another run" in line]
    assert len(found.problems) == 1


def test_a_shard_of_another_run_is_computed_anew(run, runs, params):
    out = run("plain")
    shutil.copy(store.shard_path(runs / "other", 0, 1), store.shard_path(out, 0, 1))
    assert make(out, params).resumed < 60
    assert jxp.verify(out).agrees


def test_a_changed_option_of_the_record(run):
    out = run("plain")
    info = json.loads((out / "run.json").read_text())
    info["configuration"]["option"] = 16
    (out / "run.json").write_text(json.dumps(info))
    found = jxp.verify(out)
    assert len(found.problems) == 4 and all("run.json was altered" in p for p in found.problems)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"configuration": {"option": 16}}, "option is 8 there and 16 here"),
        ({"key": 1}, "the random key differs"),
        ({"examples": rows(61)}, "the examples differ"),
    ],
)
def test_changed_options(runs, params, options, line):
    found = check(runs / "plain", params, sample=1, **options)
    assert any(line in problem for problem in found.problems)


def test_a_missing_shard(run):
    out = run("plain")
    store.shard_path(out, 0, 2).unlink()
    assert any("is missing" in line for line in jxp.verify(out).problems)


def test_altered_results_with_a_right_checksum(run, params):
    """Whoever writes a whole shard anew is found by computing."""
    out = run("plain")
    for number in range(4):
        path = store.shard_path(out, 0, number)
        content = store.unpack(path)
        for column in content["columns"]:
            column["data"] = (np.frombuffer(column["data"], "f4") * np.float32(1.001)).tobytes()
        path.write_bytes(store.pack(content))
    assert jxp.verify(out).agrees
    found = check(out, params, sample=1)
    assert any("come out otherwise" in line for line in found.problems)


def test_other_devices_agree_to_rounding(runs, params):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]), ("data",))
    found = check(runs / "plain", params, mesh=mesh)
    assert found.agrees and found.largest < 1e-5


def test_the_proof_of_a_run_takes_ten_lines(runs):
    info, found = api.look(runs / "tolerant")
    lines = proof.lines(runs / "tolerant", info, found)
    said = info["totals"]["precision"]
    assert len(lines) <= 10 and max(map(len, lines)) < 160
    text = "\n".join(lines)
    assert f"{said['converged']} converged to 0.1%, {said['not_converged']} did not" in text
    assert f"{said['evaluations']:,} in all" in text
    assert info["fingerprints"]["params"][:8] in text and info["versions"]["jax"] in text
    assert lines[0].endswith("60 of 60 explained, 0 failed")
    assert lines[-1].endswith(f"jaxplain verify {runs / 'tolerant'}")
    plain = "\n".join(proof.lines(runs / "plain", *api.look(runs / "plain")))
    assert "converged" not in plain and "completeness gap" in plain


def test_what_is_no_run_is_refused(tmp_path, runs):
    with pytest.raises(jxp.JaxplainError, match="is not a run"):
        jxp.verify(tmp_path / "none")
    with pytest.raises(jxp.JaxplainError, match="give explain, params, examples and key"):
        jxp.verify(runs / "plain", fixed, jnp.ones((3, 4)))


def test_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "r"
    data = tmp_path / "d.tsv"
    data.write_text("sentence\tlabel\na fine film\t1\na bad film\t0\n")
    given = ["--model", "cnn", "--data", str(data), "--out", str(out), "--quiet"]
    assert cli.call(["explain", *given]) == 0
    assert cli.call(["show", str(out)]) == 0
    assert f"to check    jaxplain verify {out}\n" in capsys.readouterr().out
    assert cli.call(["verify", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 examples computed anew, seed 0: bit for bit\nverified\n" in said
    data.write_text("sentence\tlabel\na fine film\t1\na bad movie\t0\n")
    assert cli.call(["verify", str(out)]) == 1
    assert "the examples differ" in capsys.readouterr().err
    assert cli.call(["verify", str(out), "--sample", "0"]) == 0
    assert cli.call(["verify", str(out), "--sample", "-1"]) == 2
    flip(store.shard_path(out, 0, 0))
    assert cli.call(["verify", str(out)]) == 1
    assert "there is no result that could be compared" in capsys.readouterr().out
