"""What a page carries for its script, and what it says of the run's exactness."""

import functools
import itertools
import json
import re

import numpy as np
from markupsafe import Markup

import jaxplain as jxp
from jaxplain.report import certificate, information, packed, view, web
from jaxplain.types import Attribution, SampledAttribution
from tests.test_report import CONFIGURATION, INFO, Page, f32, failed_record, render, text_record


def test_a_page_of_many_examples_stays_small():
    pieces = tuple(f"word{i}" for i in range(20))
    record = text_record(pieces=pieces, scores=np.linspace(-1, 1, 20))
    source = render(itertools.repeat(record, 1000))
    assert len(source.encode()) < 2e6


def test_a_page_leaves_out_what_does_not_fit_and_says_so(monkeypatch):
    rng = np.random.default_rng(0)
    images = [
        jxp.Record(k, Attribution(rng.normal(size=(16, 16)), f32(1), f32(0)), {}, None)
        for k in range(60)
    ]
    views = view.survey(images, {}, limit=100).views
    whole = packed.pack(views, information.Range(0, 0))
    assert whole.count == 60
    few = packed.pack(views, information.Range(0, 0), budget=len(whole.data) // 2)
    assert 20 < few.count < 40
    assert 0.4 < len(few.data) / len(whole.data) <= 0.5
    assert packed.pack(views, information.Range(0, 0), budget=1).count == 1
    budget = len(render(images)) // 2
    monkeypatch.setattr(web, "pack", functools.partial(packed.pack, budget=budget))
    source = render(images)
    page = Page(source)
    told = re.search(r"The first (\d+) of 60 explained examples are shown, so that", page.text)
    assert told and "stays under 20 MB" in page.text
    assert 0 < page.tags.count("article") == int(told[1]) < 50
    fixed = len(render(images[:1]))  # what does not grow with the run
    assert len(source.encode()) < budget + fixed


def test_long_examples_are_fewer_without_javascript(monkeypatch):
    articles = [Markup("x" * 1000)] * 80
    assert len(packed.first(articles)) == 50
    monkeypatch.setattr(packed, "STATIC_BYTES", 7500)
    assert len(packed.first(articles)) == 7
    monkeypatch.setattr(packed, "STATIC_BYTES", 10)
    assert len(packed.first(articles)) == 1
    views = view.survey([text_record(k) for k in range(60)], CONFIGURATION, limit=100).views
    colours = information.Range(0, 0)
    size = len(packed.pack(views, colours).data) + 2000
    assert packed.pack(views, colours, budget=size).count == 60
    assert packed.pack(views, colours, beside=["x" * 2000, "y" * 1000], budget=size).count < 60


def test_numbers_are_packed_short_and_read_back():
    values = [0.1, -1234567.0, 1e-9, 0.0, float("nan"), float("inf"), -float("inf")]
    short = packed.numbers(values)
    assert short == "[0.1,-1.235e+06,1e-09,0,null,1e999,-1e999]"
    assert json.loads(short)[5:] == [float("inf"), -float("inf")]


def test_the_certificate_holds_what_the_run_says_and_nothing_else():
    sampled = SampledAttribution(f32([1, -2, 0]), f32(1), f32(0), f32([0.1, 0.4, 0]), f32(9))
    records = [
        text_record(0, gap=0.004)._replace(effort=16, converged=True),
        text_record(1, gap=0.04)._replace(effort=64, converged=False),
        text_record(2)._replace(result={"attribution": sampled}, effort=16, converged=True),
        failed_record(3), failed_record(4, "NaN"), failed_record(5),
    ]  # fmt: skip
    precision = {"tolerance": 0.02, "evaluations": 1234, "efforts": {"16": 2, "64": 1}}
    info = INFO | {"totals": {"precision": precision, "done": 3}, "fingerprints": {"data": "d"}}
    found = certificate.certificate(info, view.survey(records, CONFIGURATION, limit=0))
    facts = dict(found.facts)
    assert facts["converged to 2%"] == "2 of 3; 1 did not"
    assert facts["evaluations in all"] == "1,234"
    assert facts["examples with a gap below"] == "0.01%: 1 · 0.1%: 1 · 1%: 1 · 10%: 2"
    assert found.efforts == [(16, 2), (64, 1)]
    assert found.failures == [("the sentence is empty", 2, [3, 5]), ("NaN", 1, [4])]
    spread = dict(found.spread)
    assert spread["|completeness gap|, in f's units"] == ["4.0e−03", *["4.0e−02"] * 3]
    assert spread["effort: nodes or samples"] == ["16", "64", "64", "64"]
    error = "largest standard error, as a share of the example's largest |score|"
    assert spread[error] == ["20%"] * 4
    assert dict(found.record["totals"]) == {"done": "3"}
    assert dict(found.record["fingerprints"]) == {"data": "d"}
    bare = certificate.certificate({}, view.survey([text_record(gap=np.nan)], {}, limit=0))
    assert bare.spread == [] and bare.efforts == [] and bare.failures == [] and bare.record == {}
    assert [name for name, _ in bare.facts] == ["completeness", "failed"]
    of_run = certificate.certificate(info, view.survey([text_record()], CONFIGURATION, limit=0))
    assert of_run.efforts == [(16, 2), (64, 1)]  # where records do not say it
