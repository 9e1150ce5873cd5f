"""The command line: what a person types, what they see, and what they are told when it is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import cli
from jaxplain.hierarchy import Hierarchy, to_tree
from jaxplain.models import text, trained, words
from jaxplain.run import job
from jaxplain.run.options import METHODS

WORDS = [str(word) for word in "a b good bad film very plain not the and of".split()]
ROWS = "sentence\tlabel\na very good film\t1\nthe bad\t0\n"
ROWS += '" not plain\t1\nvery very bad film and of\t0\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small untrained classifier in a folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    vocabulary = words.count_words([WORDS])
    architecture = {
        "kind": "cnn", "vocabulary": len(vocabulary.words), "width": 4, "classes": 2,
        "pool": "max", "windows": [1, 2],
    }  # fmt: skip
    module = text.classifier(**architecture)
    params = module.init(jax.random.key(0), np.ones(3, np.int32), np.ones(3, bool))["params"]
    card = {
        "name": "tiny", "labels": ["negative", "positive"], "max_length": 5,
        "architecture": architecture,
    }  # fmt: skip
    trained.write(folder, params, vocabulary, card)
    return str(folder)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working directory with a data file in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "rows.tsv").write_text(ROWS)
    return tmp_path


@pytest.fixture
def type_in(desk, model, capsys):
    """Run a command line, `MODEL` standing for the small model; give code, stdout and stderr."""

    def run(line: str):
        code = cli.call(line.replace("MODEL", model).split())
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def refused(result, *facts: str, code: int = 2) -> None:
    """Nothing on stdout, and one line on stderr that says so much."""
    got, out, err = result
    assert got == code, err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for fact in facts:
        assert fact in lines[0], lines[0]


def test_explain_a_file(type_in, desk):
    code, out, err = type_in("explain --model MODEL --data rows.tsv --out R --steps 8")
    assert code == 0, err
    assert "4 of 4 examples explained" in out
    assert "examples/s" in out
    assert "completeness gap median" in out
    assert "0 failed · 1 truncated" in out
    assert f"page: {Path('R') / 'page.html'}" in out
    assert "#0 · predicted" in out
    page = (desk / "R" / "page.html").read_text(encoding="utf-8")
    assert "only the first 5 tokens were read" in page
    record = jxp.load(desk / "R")[0]
    assert record.notes["pieces"] == ["a", "very", "good", "film"]
    attribution = record.result["attribution"]
    assert attribution.scores.shape == (4,)
    assert attribution.output == record.result["logits"][record.result["target"]]
    configuration = jxp.load("R").info["configuration"]
    assert configuration["options"] == {"baseline": "zeros", "chunk": None, "steps": 8}
    assert configuration["data"]["name"] == "rows.tsv"
    assert configuration["data"]["text_column"] == "sentence"


def test_the_same_command_again_computes_nothing(type_in, desk):
    command = "explain --model MODEL --data rows.tsv --out R --method saliency"
    assert type_in(command)[0] == 0
    before = {p.name: p.read_bytes() for p in (desk / "R" / "shards").iterdir()}
    code, out, _ = type_in(command)
    assert code == 0
    assert "done before, nothing computed anew" in out
    assert before == {p.name: p.read_bytes() for p in (desk / "R" / "shards").iterdir()}
    assert before


def test_other_options_into_a_run_are_refused_by_name(type_in):
    command = "explain --model MODEL --data rows.tsv --out R"
    assert type_in(f"{command} --steps 4 --limit 2")[0] == 0
    refused(type_in(f"{command} --steps 5 --limit 2"), "options.steps is 4 there and 5 here")
    refused(type_in(f"{command} --steps 4 --limit 3"), "limit is 2 there and 3 here")
    refused(type_in(f"{command} --method saliency"), "method is integrated_gradients there")
    assert len(jxp.load("R")) == 2
    assert type_in(f"{command} --steps 5 --limit 2 --overwrite")[0] == 0
    assert jxp.load("R").info["configuration"]["options"]["steps"] == 5


def test_runs_without_a_name_never_meet(type_in, desk):
    command = "explain --model MODEL --data rows.tsv --method saliency --quiet"
    for options, where in [
        ("", "runs/tiny-saliency-rows"),
        ("--limit 2", "runs/tiny-saliency-rows-2"),
        ("", "runs/tiny-saliency-rows"),
        ("--limit 2", "runs/tiny-saliency-rows-2"),
        ("--limit 1 --overwrite", "runs/tiny-saliency-rows"),
    ]:
        code, out, err = type_in(f"{command} {options}")
        assert (code, err) == (0, "")
        assert re.search(f"^run: +{where}$", out, re.M), out
        assert "#0" not in out


@pytest.mark.parametrize("method", [m for m in METHODS if m != job.INFORMATION])
def test_every_method_scores_tokens(type_in, method):
    known, many = METHODS[method], 24 if method in ("kernel_shap", "lime") else 4
    options = f" --samples {many}" if "samples" in known.options else ""
    options += " --background 3" if known.needs_baselines else ""
    code, out, err = type_in(
        f"explain --model MODEL --data rows.tsv --method {method} --out R{options}"
    )
    assert code == 0, err
    assert ("completeness gap" in out) == known.complete
    assert ("conservation gap" in out) == known.conserving
    for record in jxp.load("R"):
        attribution = record.result["attribution"]
        assert np.isfinite(attribution.scores).all()
        if method in ("saliency", "smoothgrad", "smoothgrad_squared", "vargrad"):
            assert (attribution.scores >= 0).all()
        assert hasattr(attribution, "standard_error") == (known.needs_key or known.needs_baselines)
    assert jxp.load("R").info["configuration"]["options"].get("background", 3) == 3


def test_decompositions_say_which_rules_they_took(type_in, desk):
    command = "explain --model MODEL --data rows.tsv --method"
    code, out, err = type_in(f"{command} contextual_decomposition --out A")
    assert code == 0, err
    assert "[+" in out and re.search(r"parts sum to f\(x\) within \S+ ", out)
    first = jxp.load("A")
    assert first.info["configuration"]["options"] == {"chunk": 64, "rules": "acd"}  # it is a CNN
    attribution = first[0].result["attribution"]
    assert type(attribution) is jxp.DecomposedAttribution and attribution.residual < 1e-5
    assert "relevant + irrelevant" in (desk / "A" / "page.html").read_text(encoding="utf-8")
    assert type_in(f"{command} contextual_decomposition --rules shapley --out B --quiet")[0] == 0
    assert jxp.load("B").info["configuration"]["options"]["rules"] == "shapley"
    assert (jxp.load("B")[0].result["attribution"].scores != attribution.scores).any()


def test_relevance_in_an_lstm_holds_its_gates(type_in, desk):
    command = "explain --model lstm --data rows.tsv --method lrp --quiet --out"
    gaps = {}
    for out, rules in (("A", ""), ("B", "--rules attention")):
        assert type_in(f"{command} {out} {rules}")[0] == 0
        found = [r.result["attribution"] for r in jxp.load(out)]
        gaps[out] = np.median([abs(a.gap / a.output) for a in found])
    assert jxp.load("A").info["configuration"]["options"]["rules"] == "gates_held"
    assert gaps["A"] < gaps["B"], gaps


def test_trees_are_shown_and_kept(type_in, desk):
    command = "explain --model MODEL --data rows.tsv --method acd --out R"
    code, out, err = type_in(command)
    assert code == 0, err
    record = jxp.load("R")[0]
    tree = record.result["attribution"].hierarchy
    assert type(tree) is Hierarchy
    (root,) = to_tree(tree, record.notes["pieces"])["roots"]
    assert root["label"] == "a very good film"
    assert re.search(r"^[+−][\d.]+ a very good film$", out, re.M)
    assert re.search(r"^[├└] [+−][\d.]+ ", out, re.M)
    assert {record.result["target"].item(), record.result["other"].item()} == {0, 1}
    options = {"beforehand": False, "order": "paper", "percentile": None}
    options |= {"rules": "acd", "score": "difference"}
    assert jxp.load("R").info["configuration"]["options"] == options
    page = (desk / "R" / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and "of: a very good film" in page
    refused(
        type_in(f"{command} --order published"), "options.order is paper there and published here"
    )


def test_a_model_that_a_table_cannot_split_costs_nothing(type_in, desk, monkeypatch):
    loaded = job.models.load

    def curved(name, **settings):
        model = loaded(name, **settings)
        return model._replace(score=lambda *a: jax.nn.log_softmax(model.score(*a)), kind="")

    monkeypatch.setattr(job.models, "load", curved)
    command = "explain --model MODEL --data rows.tsv --method"
    refused(type_in(f"{command} contextual_decomposition"), "no rule for log")
    refused(type_in(f"{command} acd"), "no rule for log")
    assert not list(desk.glob("**/run.json"))


def test_the_seed_and_the_data_format_are_respected(type_in, desk):
    (desk / "rows.csv").write_text('body,gold\n"a good, good film",positive\nplain,odd\n')
    (desk / "rows.jsonl").write_text('{"text": "bad film", "label": 0}\n')
    command = "explain --model MODEL --method smoothgrad --samples 2 --out"
    csv = "--data rows.csv --text-column body --label-column gold"
    for place, seed in (("A", 0), ("B", 1)):
        code, out, err = type_in(f"{command} {place} {csv} --seed {seed}")
        assert code == 0, err
        assert " of 2 examples explained" in out
    one, other = (jxp.load(place)[0].result["attribution"].scores for place in "AB")
    assert (one != other).any()
    assert [record.notes["label"] for record in jxp.load("A")] == ["positive", "odd"]
    assert type_in(f"{command} C --data rows.jsonl")[0] == 0


def test_a_failed_sentence_is_counted_and_the_rest_goes_on(type_in, desk):
    (desk / "holes.tsv").write_text("text\tlabel\na good film\t1\n\t0\n  \t0\nbad\t0\n")
    code, out, err = type_in("explain --model MODEL --data holes.tsv --out R --method saliency")
    assert code == 0, err
    assert "2 of 4 examples explained" in out
    assert "2 failed" in out
    assert "failed: the sentence is empty" in out
    assert "the sentence is empty" in (desk / "R" / "page.html").read_text(encoding="utf-8")
    command = "explain --model MODEL --data holes.tsv --out R --method saliency --quiet"
    assert "nothing computed anew" in type_in(command)[1]
    again = type_in(f"{command} --retry")[1]
    assert "nothing computed anew" not in again and "2 failed" in again


def test_devices_are_counted(type_in):
    command = "explain --model MODEL --data rows.tsv --method saliency --quiet"
    assert type_in(f"{command} --devices 2 --out R")[0] == 0
    assert jxp.load("R").info["devices"]["mesh"] == {"data": 2}
    refused(type_in(f"{command} --devices 99"), "only 8", "JAX_NUM_CPU_DEVICES=99")
    refused(type_in(f"{command} --devices 0"), "at least 1")


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("explain --data none.tsv", ["none.tsv does not exist"]),
        ("explain --data empty.tsv", ["empty.tsv is empty"]),
        ("explain --data rows.tsv --text-column body", ["'body'", "sentence, label"]),
        ("explain --data rows.tsv --label-column gold", ["'gold'", "sentence, label"]),
        ("explain --data latin.csv", ["not UTF-8", "line 2"]),
        ("explain --data bad.jsonl", ["line 2 is not JSON"]),
        ("explain --data rows.doc", ["ends in .doc", "--format"]),
        ("explain --method saliencey", ["no method 'saliencey'", "saliency"]),
        ("explain --stepps 3", ["no option --stepps", "did you mean --steps", "--baseline"]),
        ("explain --batchsize 3", ["did you mean --batch-size"]),
        ("explain --method saliency --steps 3", ["it is an option of integrated_gradients"]),
        ("explain --method contextual_decomposition --rules lrp", ["rules must be one of", "lstm"]),
        ("explain --method acd --rules lrp", ["acd: rules must be one of", "'lrp'"]),
        ("explain --method acd --order odd", ["order must be paper or published, not 'odd'"]),
        ("explain --method acd --score x", ["score must be difference or logit, not 'x'"]),
        ("explain --method acd --percentile 101", ["percentile must be within 0 to 100"]),
        ("explain --steps 0", ["steps must be a whole number of at least 1"]),
        ("explain --steps many", ["steps must be a whole number", "many"]),
        ("explain --steps", ["--steps", "requires an argument"]),
        ("explain --batch-size 0", ["--batch-size must be auto or"]),
        ("explain --seed x", ["--seed", "jaxplain explain --help"]),
        ("explain --limit 0", ["--limit must be at least 1"]),
        ("explain --show -1", ["--show must be at least 0"]),
        ("explain rows.tsv", ["'rows.tsv'", "--data FILE"]),
        ("explain --model tinny", ["no model 'tinny'", "transformer"]),
        ("explain --model MODEL --data rows.tsv --target 7", ["'7' is no class of tiny"]),
        ("explain --model MODEL --data odd.tsv --target label", ["row 1", "'odd'"]),
        ("explain --model MODEL --data rows.tsv --baseline nil", ["'nil'", "token:WORD"]),
        ("explain --model MODEL --data rows.tsv --baseline mask", ["no mask token"]),
        ("explain --model MODEL --data rows.tsv --baseline token:xyz", ["token:xyz", "vocabulary"]),
        (
            "explain --model MODEL --data rows.tsv --baseline token:good,bad",
            ["good,bad", "3 tokens"],
        ),
        ("explain --model MODEL --data rows.tsv --max-length 6", ["between 1 and 5"]),
        ("explain --model MODEL --data rows.tsv --out notes", ["not a run"]),
        ("explain --model MODEL --data rows.tsv --out rows.tsv/R", ["part of its path is a file"]),
        ("explain --model MODEL --data blank.tsv", ["no example could be read", "empty"]),
        ("show notes", ["not a run"]),
        ("show nowhere", ["nowhere is not a run"]),
        ("show", ["RUN"]),
        ("exlpain", ["Did you mean", "explain"]),
    ],
)
def test_wrong_input_gets_one_line_and_costs_nothing(type_in, desk, line, facts):
    (desk / "empty.tsv").write_text("")
    (desk / "blank.tsv").write_text("text\tlabel\n \t0\n")
    (desk / "odd.tsv").write_text("text\tlabel\na film\todd\n")
    (desk / "latin.csv").write_bytes(b"text\nb\xe4d\n")
    (desk / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    (desk / "rows.doc").write_text(ROWS)
    (desk / "notes").mkdir()
    (desk / "notes" / "mine.txt").write_text("precious")
    refused(type_in(line), *facts)
    assert (desk / "notes" / "mine.txt").read_text() == "precious"
    assert not list(desk.glob("**/run.json"))


def test_a_hugging_face_directory_that_lacks_files_says_which(type_in, desk):
    (desk / "hf").mkdir()
    (desk / "hf" / "config.json").write_text('{"model_type": "bert"}')
    code, _, err = type_in("explain --model hf --data rows.tsv")
    assert code == 2
    assert re.fullmatch(r"error: .*hf.*(model\.safetensors|tokenizer\.json).*\n", err)


def test_a_page_that_cannot_be_written_is_a_failure_of_the_run(type_in):
    assert type_in("explain --model MODEL --data rows.tsv --out R --method saliency")[0] == 0
    refused(type_in("show R --page no/such/folder.html"), "No such file", code=1)


def test_show(type_in, desk):
    assert type_in("explain --model MODEL --data rows.tsv --out R --quiet")[0] == 0
    code, out, err = type_in("show R --limit 2")
    assert (code, err) == (0, "")
    assert "#1 · predicted" in out
    assert "#2" not in out
    assert "4 of 4 examples explained" in out
    code, out, _ = type_in("show R --page mine.html --limit 1")
    assert code == 0
    assert "page: mine.html" in out
    assert "The first 1 of 4" in (desk / "mine.html").read_text(encoding="utf-8")
    info = json.loads((desk / "R" / "run.json").read_text())
    (desk / "R" / "run.json").write_text(json.dumps(info | {"status": "running"}))
    assert "not complete" in type_in("show R")[1]


def test_lists_and_help_teach(type_in):
    code, out, _ = type_in("methods")
    assert code == 0
    for name in METHODS:
        assert re.search(rf"^{name}\b", out, re.M)
    assert re.search(r"^integrated_gradients +\(complete\)$", out, re.M)
    assert "--baseline zeros" in out
    assert "--steps 32" in out
    code, out, _ = type_in("explain --help")
    assert code == 0
    for fact in ("completeness gap", "--steps", "--baseline", "jaxplain explain --data", "TSV"):
        assert fact in out
    assert type_in("--version")[1].strip() == jxp.__version__
    assert "transformer" in type_in("models")[1]


def test_an_unexpected_error_is_one_line_and_resumes(type_in, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the device\nis gone")

    monkeypatch.setattr("jaxplain.cli.explain.run", broken)
    refused(
        type_in("explain --model MODEL --data rows.tsv"),
        "RuntimeError: the device is gone", "resumes", code=1,
    )  # fmt: skip
    monkeypatch.setenv("JAXPLAIN_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        type_in("explain --model MODEL --data rows.tsv")


def command(*arguments: str, env: Mapping[str, str] = MappingProxyType({})):
    """Start the command in a process of its own."""
    root = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "jaxplain", *arguments],
        env={**os.environ, "PYTHONPATH": root, "JAX_NUM_CPU_DEVICES": "1", **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_an_interrupt_says_how_to_go_on(desk, model):
    (desk / "many.tsv").write_text("text\n" + "a very good film\n" * 20000)
    options = "--data many.tsv --steps 512 --batch-size 8 --out R".split()
    # A test run in a shell's background ignores interrupts, and its children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = command("explain", "--model", model, *options)
    signal.signal(signal.SIGINT, before)
    end = time.monotonic() + 60
    while not list(desk.glob("R/shards/*.msgpack")) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1].startswith("interrupted: what is done is in R;")
    assert "Traceback" not in err
    assert 0 < len(jxp.load(desk / "R")) < 20000


def test_a_reader_that_leaves_is_no_error():
    process = command("methods", env={"PYTHONUNBUFFERED": "1"})
    process.stdout.close()  # type: ignore[union-attr]
    assert process.stderr.read() == ""  # type: ignore[union-attr]
    process.stderr.close()  # type: ignore[union-attr]
    assert process.wait(timeout=60) == 1
