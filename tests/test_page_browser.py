"""The page in a real browser: what a person can do with it, and how fast it is."""

from typing import Any

import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import report
from jaxplain.report import packed, told, web
from jaxplain.report.corpus import corpus
from jaxplain.report.view import survey, view
from jaxplain.types import Attribution
from tests.browser import BROWSER, NAMES, Browser
from tests.made_runs import text_record, write_pages, write_run
from tests.test_report import CONFIGURATION, f32

pytestmark = pytest.mark.skipif(not BROWSER, reason=f"none of {', '.join(NAMES)} is installed")

SHOWN = '[...document.querySelectorAll("#list article")].map(a => +a.id.slice(1))'
MANY = 10_000
KINDS = ["texts", "tables", "images", "trees", "information", "pair"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def texts() -> list[jxp.Record]:
    rng = np.random.default_rng(0)
    return [text_record(k, rng) for k in range(240)]


@pytest.fixture(scope="module")
def pages(texts, tmp_path_factory) -> dict[str, str]:
    """A page of each kind, by name, as addresses."""
    return write_pages(tmp_path_factory.mktemp("pages"), texts)


def opened(browser: Browser, url: str, **settings: Any) -> float:
    """Open a page that asks for nothing but itself, and whose script does not fail."""
    seconds = browser.open(url, **settings)
    assert [r for r in browser.requests() if not r.startswith("data:")] == [url]
    assert not browser.complaints()
    return seconds


def choose(browser: Browser, **values: str) -> None:
    """Set controls as a person does, by what they keep; `sort` by its name."""
    for name, value in values.items():
        where = "#sort" if name == "sort" else f'[data-keep="{name}"]'
        browser(
            f"(c => {{ c.value = {value!r}; if (c.value !== {value!r}) throw Error('none');"
            "c.dispatchEvent(new Event('input', {bubbles: true})); })"
            f"(document.querySelector({where!r}))"
        )


def everything(browser: Browser) -> list[int]:
    """The examples that are kept, in their order, sheet by sheet."""
    found = browser(SHOWN)
    while not browser("document.getElementById('next').disabled"):
        browser("document.getElementById('next').click()")
        found += browser(SHOWN)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_what_is_drawn_later_looks_like_what_is_there_without_javascript(browser, pages, name):
    articles = '[...document.querySelectorAll("#list article")].map(a => a.outerHTML)'
    visible = '[...document.querySelectorAll("#tools, .sheets")].filter(e => e.offsetHeight).length'
    opened(browser, pages[name], script=False)
    static = browser(articles)
    assert len(static) == 50
    assert browser(visible) == 0
    assert browser("document.querySelector('noscript').textContent").startswith("The first 50 of ")
    opened(browser, pages[name])
    assert browser(articles) == static
    browser(
        "document.getElementById('list').textContent = ''; document.getElementById('reset').click()"
    )
    drawn = browser(articles)
    for before, after in zip(static, drawn, strict=True):
        assert after == before
    assert browser(visible) == 2


def test_the_page_sorts(browser, pages, texts):
    seen = [view(record, CONFIGURATION) for record in texts]
    gap = lambda v: None if v.relative_gap is None else told.rounded(v.relative_gap)
    orders = {
        "gap-": lambda v: None if gap(v) is None else -(gap(v) or 0),
        "gap+": gap,
        "p+": lambda v: v.probability,
        "p-": lambda v: v.probability and -v.probability,
        "ok+": lambda v: v.correct,
        "label+": lambda v: v.label,
        "predicted+": lambda v: v.prediction,
        "converged+": lambda v: v.converged,
        "effort-": lambda v: v.effort and -v.effort,
        "failed-": lambda v: 0 if v.error else None,
        "index+": lambda v: v.index,
    }
    opened(browser, pages["texts"])
    offered = browser("[...document.getElementById('sort').options].map(o => o.value)")
    assert sorted(offered) == sorted(orders)
    for name, key in orders.items():
        choose(browser, sort=name)
        keys = [(key(v) is None, 0 if key(v) is None else key(v), v.index) for v in seen]
        assert everything(browser) == [index for *_, index in sorted(keys)], name


def test_the_page_filters(browser, pages, texts):
    seen = [view(record, CONFIGURATION) for record in texts]
    gap = lambda v: -1 if v.relative_gap is None else v.relative_gap
    sure = lambda v: -1 if v.probability is None else v.probability
    cases = [
        ({"label": "negative"}, lambda v: v.label == "negative"),
        ({"predicted": "positive"}, lambda v: v.prediction == "positive"),
        ({"ok": "0"}, lambda v: v.correct is False),
        ({"ok": "1"}, lambda v: v.correct is True),
        ({"pmin": "70"}, lambda v: sure(v) >= 0.7),
        ({"pmax": "80"}, lambda v: 0 <= sure(v) <= 0.8),
        ({"gmin": "0.05"}, lambda v: gap(v) >= 0.0005),
        ({"gmax": "0.05"}, lambda v: 0 <= gap(v) <= 0.0005),
        ({"converged": "0"}, lambda v: v.converged is False),
        ({"converged": "1"}, lambda v: v.converged is True),
        ({"status": "failed"}, lambda v: v.error is not None),
        ({"status": "explained"}, lambda v: v.error is None),
        ({"cut": "1"}, lambda v: v.truncated and v.error is None),
        (
            {"label": "positive", "ok": "0", "gmax": "1"},
            lambda v: v.label == "positive" and v.correct is False and 0 <= gap(v) <= 0.01,
        ),
    ]
    opened(browser, pages["texts"])
    offered = browser("[...document.querySelectorAll('[data-keep]')].map(c => c.dataset.keep)")
    assert {name for values, _ in cases for name in values} | {"search"} == set(offered)
    for values, keep in cases:
        wanted = [v.index for v in seen if keep(v)]
        assert 0 < len(wanted) < len(seen), values
        choose(browser, **values)
        count = browser("document.getElementById('count').textContent")
        assert count == f"{len(wanted)} of {len(seen)}", values
        assert everything(browser) == wanted, values
        browser("document.getElementById('reset').click()")
    assert browser("document.getElementById('count').textContent") == "240 in all"


def test_the_page_finds_words(browser, pages, texts):
    spoken = {}
    for record in texts:
        pieces = record.notes.get("pieces", ())
        joined = "".join(p[2:] if p.startswith("##") else f" {p}" for p in pieces)
        spoken[record.index] = f"{joined} ".lower()
        if record.error:
            spoken[record.index] = f"{record.notes['text']} {record.error}".lower()
    opened(browser, pages["texts"])
    for typed, inside in (
        ("Unbear", "unbear"), ("film plot", "film plot"), ("<b>", "<b>"), ("it's", "it's"),
        ('"bad"', " bad "), ("empty", "empty"), ("<3>", "<3>"),
    ):  # fmt: skip
        choose(browser, search=typed)
        wanted = [index for index, text in spoken.items() if inside in text]
        assert wanted and everything(browser) == wanted, typed
    choose(browser, search="no such word")
    assert browser(SHOWN) == []
    assert browser("document.getElementById('at').textContent") == "none"


def test_examples_are_drawn_sheet_by_sheet_and_links_lead_to_them(browser, pages):
    opened(browser, pages["texts"])
    press = "document.getElementById('{}').click()"
    assert browser("document.getElementById('previous').disabled") is True
    browser(press.format("next"))
    assert browser(SHOWN) == list(range(50, 100))
    assert browser("document.getElementById('at').textContent") == "51–100"
    assert browser("Math.abs(document.getElementById('examples').getBoundingClientRect().top) < 80")
    choose(browser, ok="0")
    assert browser("document.getElementById('at').textContent").startswith("1–")
    place = "document.getElementById('e217').getBoundingClientRect().top"
    browser("location.hash = '#e217'")
    browser("new Promise(done => setTimeout(done, 50))")
    assert 0 <= browser(place) < 800  # it was filtered away, and on another sheet
    assert browser(SHOWN) == list(range(200, 240))
    browser.open(pages["texts"] + "#e120")
    assert browser(SHOWN) == list(range(100, 150))
    assert 0 <= browser("document.getElementById('e120').getBoundingClientRect().top") < 800


def test_the_corpus_view_lists_words_and_leads_to_them(browser, pages, texts):
    found = corpus(texts, configuration=CONFIGURATION)
    opened(browser, pages["texts"])
    row = "[...document.querySelectorAll('#corpus ~ .both')[0].querySelectorAll('tbody tr')]"
    rows = browser(f"{row}.map(r => [...r.children].map(c => c.textContent))")
    means = found.overall.positive + found.overall.negative
    assert [r[0] for r in rows] == [m.name for m in means]
    assert [int(r[3]) for r in rows] == [m.examples for m in means]
    for (_, _, cell, _), mean in zip(rows, means, strict=True):
        middle, half = (float(x.replace("−", "-")) for x in cell.split(" ± "))
        assert middle == pytest.approx(mean.mean, rel=6e-3)  # three digits
        assert half == pytest.approx(mean.half, rel=6e-2)  # two
    heads = browser("[...document.querySelectorAll('details summary')].map(s => s.textContent)")
    assert {"Where negative is explained", "Where positive is explained"} <= set(heads)
    browser(f"{row}[0].querySelector('a').click()")
    # A word of one example may stand in it more than once.
    assert len(everything(browser)) == means[0].examples
    opened(browser, pages["tables"])
    assert "Features of the whole run" in browser("document.body.textContent")
    assert browser(f"{row}.length") == 24
    opened(browser, pages["images"])
    assert browser("document.querySelectorAll('#corpus ~ .pictures img').length") == 3


def test_the_certificate_says_what_proves_the_numbers(browser, pages):
    opened(browser, pages["texts"])
    text = browser("document.getElementById('proof').parentNode.innerText")
    seen = text[text.index("What proves the numbers") :]
    for fact in (
        "completeness gap", "effort: nodes or samples", "converged to 1%", "12,345",
        "165 of 206; 41 did not", "16: 68 · 32: 69 · 64: 69", "Failed: 34", "the sentence is empty",
        "feedbeef", "f00d", "integrated_gradients",
    ):  # fmt: skip
        assert fact in seen, fact
    for hidden in ("9.8.7", "abacus", "2020-02-02"):  # folded away, and there
        assert hidden in browser("document.body.textContent")
    opened(browser, pages["tables"])
    assert "standard error" in browser("document.body.innerText")
    assert "effort" not in browser("document.querySelector('main').innerText")


def test_two_runs_are_compared_side_by_side(browser, pages):
    opened(browser, pages["pair"])
    facts = "[...document.querySelectorAll('#list article > .facts span')].map(s => s.textContent)"
    choose(browser, sort="agreement+")
    first = [f for f in browser(facts) if "over" in f]
    values = [float(f.split()[1].replace("−", "-")) for f in first]
    assert len(values) == 50 and values == sorted(values) and values[0] < 0
    side = "[...document.querySelector('#list article').querySelectorAll('.side')]"
    assert browser(f"{side}.every(s => s.querySelector('.tokens span'))")
    names = browser(f"{side}.map(s => s.querySelector('.run').textContent)")
    assert names == ["integrated_gradients · toy", "integrated_gradients · another"]
    choose(browser, same="0")
    different = everything(browser)
    browser("document.getElementById('reset').click()")
    choose(browser, same="1")
    alike = everything(browser)
    assert different and alike and len(different) + len(alike) == 206
    choose(browser, amin="0.5")
    assert 0 < len(everything(browser)) < len(alike)
    browser("document.getElementById('reset').click()")
    choose(browser, comparable="0")
    told = browser(facts)
    assert all("not known" in fact for fact in told) and len(told) >= 34
    assert "failed in one of the runs" in browser("document.body.innerText")
    assert browser("document.querySelectorAll('header figure rect').length") > 3


@pytest.mark.parametrize("name", KINDS)
def test_a_phone_shows_the_page_without_scrolling_sideways(browser, pages, name):
    opened(browser, pages[name], width=390)
    browser("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    outside = (
        "[...document.querySelectorAll('main *, header *')].filter(e => e.checkVisibility() && "
        "!e.closest('.wide, .tree') && e.getBoundingClientRect().right > 391).map(e => e.outerHTML)"
    )
    assert browser(outside) == []  # nor is anything cut off


def test_controls_are_reached_and_named_by_keyboard_alone(browser, pages):
    opened(browser, pages["texts"])
    named = "[...document.querySelectorAll('#tools *, .sheets *')]"
    named += ".filter(e => e.matches('input, select, button'))"
    assert browser(f"{named}.every(e => e.labels.length || e.ariaLabel || e.textContent.trim())")
    count = browser(f"{named}.filter(e => !e.disabled).length")
    browser("document.getElementById('search').focus()")
    for letter in "film":
        browser.press(letter, text=letter)
    assert browser("document.getElementById('count').textContent").endswith(" of 240")
    reached = set()
    for _ in range(count):
        reached.add(browser("document.activeElement.outerHTML"))
        browser.press("Tab", code=9)
    assert len(reached) == count
    browser("document.querySelector('.tokens span').focus()")
    browser.press("ArrowRight", code=39)
    assert browser("document.activeElement === document.querySelectorAll('.tokens span')[1]")


def test_long_examples_are_drawn_where_there_is_javascript(browser, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "STATIC_BYTES", 5000)
    found = survey(texts, CONFIGURATION, limit=1000)
    path = tmp_path / "page.html"
    path.write_text(web.render({"configuration": CONFIGURATION}, found), encoding="utf-8")
    opened(browser, path.as_uri(), script=False)
    few = len(browser(SHOWN))
    assert 1 < few < 20
    assert f"The first {few} of 240" in browser("document.body.textContent")
    opened(browser, path.as_uri())
    assert browser(SHOWN) == list(range(50))


def test_the_page_is_dark_where_the_reader_wants_it(browser, pages):
    paper = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    opened(browser, pages["texts"])
    light = browser(paper)
    opened(browser, pages["texts"], dark=True)
    assert max(browser(paper)) < 60 < 200 < min(light)


def test_ten_thousand_examples_are_quick(browser, tmp_path):
    """The limits are what a person should bear, not what the page needs: it is far below them."""
    rng = np.random.default_rng(2)
    vocabulary = [f"word{k}" for k in range(20_000)]
    records = []
    for index in range(MANY):
        pieces = [vocabulary[k] for k in rng.integers(0, len(vocabulary), 25)]
        result = {
            "attribution": Attribution(f32(rng.normal(size=25)), f32(1), f32(0.01)),
            "logits": f32(rng.normal(size=2)), "target": f32(1),
        }  # fmt: skip
        notes = {"text": " ".join(pieces), "pieces": pieces, "label": "positive"}
        records.append(jxp.Record(index, result, notes, None))
    write_run(tmp_path / "run", records)
    path = report.page(tmp_path / "run")
    size = path.stat().st_size
    assert size < 20e6
    seconds = opened(browser, path.as_uri())
    assert seconds < 3
    assert browser("document.getElementById('count').textContent") == "10,000 in all"
    assert browser("document.querySelectorAll('#list article').length") == 50
    took = browser(
        """(() => { const took = {}, act = (name, where, value) => {
          const began = performance.now(), c = document.querySelector(where); c.value = value;
          c.dispatchEvent(new Event("input", {bubbles: true})); document.body.offsetHeight;
          took[name] = performance.now() - began; };
        act("search", "#search", "word77"); act("again", "#search", "word7");
        act("filter", "[data-keep=ok]", "0"); act("number", "[data-keep=pmin]", "60");
        act("sort", "#sort", "p-"); return took; })()"""
    )
    print(f"{size / 1e6:.1f} MB, {seconds:.2f} s, {took}")
    assert max(took.values()) < 200, took
    wanted = [r for r in records if any("word7" in piece for piece in r.notes["pieces"])]
    wanted = [v for v in (view(r, CONFIGURATION) for r in wanted) if v.correct is False]
    wanted = [v for v in wanted if (v.probability or 0) >= 0.6]
    assert browser("document.getElementById('count').textContent") == f"{len(wanted):,} of 10,000"
