"""Word information of a corpus: the command line, the store, the page and the terminal."""

import json
import re

import jax
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import cli, models
from jaxplain.methods.information import WordInformation
from jaxplain.report import api, view, web
from jaxplain.report.curves import curves
from jaxplain.run import information, job, places, store
from jaxplain.run.sources import Texts
from jaxplain.types import JaxplainError

pytestmark = pytest.mark.slow

FAST = {"steps": "8", "samples": "2", "probes": "2", "tolerance": "0.9"}  # all converge at that
SENTENCES = ["a dull film", "I loved it .", "not bad at all", "a warm and funny film"]
LABELS = ["0", "1", "1", "0"]


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    """Programs that several tests need are compiled once."""
    patch = pytest.MonkeyPatch()
    patch.setenv("NO_COLOR", "1")
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    jax.config.update(names[0], str(tmp_path_factory.mktemp("cache")))
    jax.config.update(names[1], 0)
    jax.config.update(
        "jax_disable_most_optimizations", True
    )  # these programs take longer to compile than to run
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    patch.undo()


def prepared(sentences=SENTENCES, **options):
    texts = Texts(list(sentences), None, "text", None, "")
    return job.prepare("cnn", texts, method="word_information", options=FAST | options)


def go(out, work, *, examples=None, lengths=(16,)):
    params, keep = work.params(out, {})
    return jxp.run(
        work.explain, params, examples or work.source, out, key=jax.random.key(0), keep=keep,
        mesh=places.choose_devices(1), shard_size=2, batch_size=2, lengths=lengths,
        ragged=("ids", "mask"), progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert go(out, prepared()).done == len(SENTENCES)
    return out


def files(out):
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*.msgpack"))}
    assert {name.split("/")[0] for name in found} == {"kept.msgpack", "plans", "shards"}
    return found


def test_every_layer_and_word_has_a_sigma(whole):
    tokens = [len(models.load("cnn").tokenize(text).ids) for text in SENTENCES]
    for record, count in zip(jxp.load(whole), tokens, strict=True):
        found = record.result["information"]
        assert isinstance(found, WordInformation)
        for name in ("sigma", "entropy", "log_ratio", "censored", "standard_error"):
            assert getattr(found, name).shape == (2, count), name
        assert found.converged.shape == found.loss.shape == (2,)
        assert np.all(found.sigma > 0)
        # log_ratio is rounded once more than sigma
        scale = prepared().options["scale"]
        np.testing.assert_allclose(found.sigma, scale * np.exp(found.log_ratio), rtol=1e-5)
        assert record.result["target"] == np.argmax(record.result["logits"])


def test_a_run_that_broke_off_ends_up_the_same(whole, tmp_path, monkeypatch):
    out, write = tmp_path / "broken", store.write

    def dies(path, payload):
        if path.parent.name == "shards" and list(path.parent.glob("*.msgpack")):
            raise KeyboardInterrupt  # at the second shard
        write(path, payload)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "write", dies)
        go(out, prepared())
    assert len(list((out / "shards").glob("*.msgpack"))) == 1

    def measured_again(*args, **options):
        raise AssertionError("the spread is there already")

    with monkeypatch.context() as patch:
        patch.setattr(information, "layer_spreads", measured_again)
        summary = go(out, prepared())
    assert summary.resumed == 2
    assert summary.done == len(SENTENCES)
    assert files(out) == files(whole)

    (out / "kept.msgpack").write_bytes(b"JXP1 and nothing else")  # it is measured anew
    with pytest.raises(store.Damaged, match=r"kept\.msgpack is damaged"):
        _ = jxp.load(out).kept
    assert go(out, prepared()).resumed == len(SENTENCES)
    assert files(out) == files(whole)


def test_the_spread_of_another_state_is_not_taken_over(whole, tmp_path):
    kept = jxp.load(whole).kept["spread"]
    assert [array.shape for array in kept] == [(1, 64), (1, 64)]
    work = prepared(state="mean")
    params, keep = work.params(whole, {"state": "mean"})
    assert keep is not None
    assert params["spread"] is keep["spread"]
    assert not np.allclose(keep["spread"][1], kept[1], rtol=0.1)


def test_batch_mates_padding_and_other_layers_change_nothing(whole, tmp_path):
    work = prepared(layers="1")
    go(tmp_path / "alone", work, examples=[work.source[1]], lengths=(24,))
    got = jxp.load(tmp_path / "alone")[0].result["information"]
    expected = jxp.load(whole)[1].result["information"]
    assert got.sigma.shape == (1, expected.sigma.shape[1])
    # rounding in sums over padded arrays, followed through a few optimiser steps
    np.testing.assert_allclose(got.sigma[0], expected.sigma[1], rtol=1e-3)


def test_eight_devices_equal_one(tmp_path):
    """Each device searches through its own share of a batch."""
    work = prepared(
        [f"{word} {text}" for text in SENTENCES for word in "so very quite too".split()]
    )
    found = {}
    for devices in (1, 8):
        params, keep = work.params(tmp_path / str(devices), {})
        jxp.run(
            work.explain, params, work.source, tmp_path / str(devices), key=jax.random.key(0),
            keep=keep, mesh=places.choose_devices(devices), batch_size=16, lengths=(16,),
            ragged=("ids", "mask"), progress=False,
        )  # fmt: skip
        found[devices] = [r.result["information"] for r in jxp.load(tmp_path / str(devices))]
    for one, eight in zip(found[1], found[8], strict=True):
        np.testing.assert_array_equal(one.steps, eight.steps)
        # rounding in products of other sizes, followed through a few optimiser steps
        np.testing.assert_allclose(one.sigma, eight.sigma, rtol=1e-3)


def test_spread_is_that_of_the_words_alone():
    model, layers = models.load("cnn"), (0, 1)
    texts = ["a film", "a very long and rather dull film that does not end", "good"] * 13
    found = information.layer_spreads(model, texts, layers)
    words = []
    for text in texts[:3]:
        ids = model.tokenize(text).ids
        x = model.embed(model.params, ids)
        words.append(model.states(model.params, x, np.ones(len(ids), bool)))
    for layer in layers:
        expected = np.concatenate([np.asarray(states[layer]) for states in words]).std(axis=0)
        # float32 moments of units whose mean is up to some standard deviations
        np.testing.assert_allclose(found[layer][0], expected, rtol=1e-3, atol=1e-5)
    whole = information.layer_spreads(model, texts, layers, state="mean")
    means = np.stack([np.asarray(states[1]).mean(axis=0) for states in words])
    np.testing.assert_allclose(whole[1][0], means.std(axis=0), rtol=1e-3, atol=1e-5)


def test_automatic_scale_is_ten_deviations_of_the_embeddings():
    model = models.load("lstm")
    table = np.asarray(model.params["embedding"]["embedding"])
    assert information.read_scale("auto", model) == pytest.approx(10 * table.std(), rel=1e-5)
    with pytest.raises(JaxplainError, match="has no one table of word embeddings"):
        information.read_scale("auto", model._replace(embed=lambda params, ids: np.ones((1, 3))))


def test_layers_by_number():
    model = models.load("transformer")
    assert information.read_layers("all", model) == (0, 1, 2)
    assert information.read_layers("2, 0", model) == (2, 0)
    assert information.read_layers([1], model) == (1,)


def test_what_a_run_keeps_is_there_again_and_compared(tmp_path):
    def explain(params, example, key):
        return example["x"] * params

    rows = [{"x": np.ones(2)}]
    keep = {"spread": (np.arange(3.0), np.array([True])), "count": np.int64(4)}
    call = lambda keep: jxp.run(
        explain, 2.0, rows, tmp_path / "run", key=jax.random.key(0), keep=keep, progress=False
    )
    call(keep)
    assert jax.tree.map(np.array_equal, jxp.load(tmp_path / "run").kept, keep) == {
        "spread": (True, True),
        "count": True,
    }
    with pytest.raises(JaxplainError, match="the kept arrays differ"):
        call(keep | {"count": np.int64(5)})
    with pytest.raises(JaxplainError, match="the kept arrays differ"):
        call(None)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{text}\t{label}" for text, label in zip(SENTENCES, LABELS, strict=True)]
    (tmp_path / "rows.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return tmp_path


COMMAND = "explain --model cnn --data rows.tsv --out R --method word_information"
QUICK = " --devices 1 --batch-size 2 " + " ".join(f"--{k} {v}" for k, v in FAST.items())


def type_in(line, capsys):
    code = cli.call(line.split())
    got = capsys.readouterr()
    return code, got.out, got.err


def test_the_command_its_page_and_the_terminal(desk, capsys):
    code, out, err = type_in(COMMAND + QUICK + " --show 1", capsys)
    assert code == 0, err
    tokens = sum(len(record.notes["pieces"]) for record in jxp.load("R"))
    assert f"2 layers of {tokens} words" in out
    assert "100.0% of layers of sentences converged ·" in out
    assert "largest standard error of log σ" in out
    assert "a dull film" in out
    assert re.search(r"^layer 0\??  \S", out, re.MULTILINE)
    assert "explained " not in out.split("examples explained")[0]  # no class is
    configuration = jxp.load("R").info["configuration"]
    assert configuration["options"]["layers"] == [0, 1]
    assert configuration["options"]["scale"] == information.read_scale("auto", models.load("cnn"))
    assert configuration["options"]["background"] == 512
    page = (desk / "R" / "page.html").read_text(encoding="utf-8")
    assert "Dark = kept, pale = forgotten." in page
    assert "A larger σ means that less is kept of the word" in page
    assert page.count('class="map"') == len(SENTENCES)
    assert len(re.findall(r'<i class="k\d+[^>]*data-v="layer', page)) == 2 * tokens
    sigma = jxp.load("R")[0].result["information"].sigma[1, 2]
    assert f"σ {sigma:.3g} · entropy" in page
    assert page.count('<figure class="chart">') in (4, 5)  # with one of forgotten words, if any
    assert "kept, in nats per dimension, by layer" in out
    assert "content words" in page
    assert json.dumps(configuration["options"]["scale"]) in page
    again = type_in(COMMAND + QUICK, capsys)
    assert "done before, nothing computed anew" in again[1]


def test_layers_that_did_not_converge_are_told(whole):
    records = []
    for record in jxp.load(whole):
        found = record.result["information"]
        lost = found._replace(converged=np.array([True, record.index == 0]))
        records.append(record._replace(result=record.result | {"information": lost}))
    configuration = {"options": {"layers": [0, 1]}}
    found = view.survey(records, configuration, limit=10)
    found = found._replace(curves=curves(records, configuration=configuration))
    assert "62.5% of layers of sentences converged (3 not)" in api.sentence(found)
    told = "3 of 8 layers of sentences did not converge and are left out of the curves, by layer: 1"
    assert told in str(api.advice(found, configuration))
    page = web.render({"configuration": configuration, "status": "complete"}, found)
    assert told in page
    assert "<tr><th>sentences not converged</th><td>0</td><td>3</td></tr>" in page
    page = re.sub(r"<script.*?</script>", "", page, flags=re.S)  # which hold the same to be drawn
    assert page.count("<i>1?</i>") == 3
    words = sum(len(record.notes["pieces"]) for record in records[1:])
    assert page.count("· not converged") == words
    assert "   1?" in str(api.overview(found))


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ("--layers 5", "cnn has 2 layers, 0 to 1: layers must be all, or some of their numbers"),
        ("--layers one", "not 'one'"),
        ("--layers 1,1", "not '1,1'"),
        ("--scale -1", "scale must be auto or a number above 0, not '-1'"),
        ("--scale much", "scale must be auto or a number above 0, not 'much'"),
        ("--state last", "state must be all, mean or first, not 'last'"),
        ("--steps 0", "steps must be a whole number of at least 1, not 0"),
        ("--samples x", "samples must be a whole number, not 'x'"),
        ("--target positive", "word_information explains no class: leave --target positive out"),
        ("--background 1", "a layer's spread is measured over at least 2: raise --background"),
        ("--background 0", "--background must be at least 1, not 0"),
        ("--layer all", "did you mean --layers?"),
        ("--baseline zeros", "it is an option of integrated_gradients"),
    ],
)
def test_refusals_are_one_line(desk, capsys, options, fact):
    code, out, err = type_in(f"{COMMAND} {options}", capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert fact in err


def test_other_methods_have_no_layers(desk, capsys):
    line = "explain --model cnn --data rows.tsv --layers 0"
    assert "it is an option of word_information" in type_in(line, capsys)[2]
