"""Runs for tests of what shows them: records made up, and written as a run writes its own."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxplain as jxp
from jaxplain import report
from jaxplain.methods.information import WordInformation
from jaxplain.report import web
from jaxplain.report.corpus import corpus
from jaxplain.report.view import survey
from jaxplain.run import packing, plan, store
from jaxplain.run.trees import describe
from jaxplain.types import Attribution, SampledAttribution
from tests.test_report import CONFIGURATION, f32, tree_record

VOCABULARY = ["good", "Bad", "un", "##bear", "##able", "film", "plot", "<b>", "not", "it's", "."]


def text_record(index: int, rng: np.random.Generator, **more: Any) -> jxp.Record:
    """A sentence of 3 to 12 pieces, every seventh of which failed."""
    if index % 7 == 3:
        error = ["the sentence is empty", "the scores are NaN"][index % 2]
        return jxp.Record(index, None, {"text": f"broken <{index}>"}, error)
    count = int(rng.integers(3, 13))
    pieces = ["[CLS]", *(VOCABULARY[k] for k in rng.integers(0, len(VOCABULARY), count)), "[SEP]"]
    scores = f32(rng.normal(size=count + 2) * 10.0 ** rng.integers(-6, 5))
    scores[1] = 0
    logits = f32(rng.normal(size=2))
    gap = f32(scores.sum() * 0.1 ** (index % 9))
    result = {
        "attribution": Attribution(scores, f32(rng.normal()), gap),
        "logits": logits,
        "target": f32(logits.argmax()),
    }
    notes: dict[str, Any] = {"text": " ".join(pieces[1:-1]), "pieces": pieces}
    notes["label"] = ["negative", "positive"][index % 2]
    if index % 10 == 0:
        notes["truncated"] = "only the first 12 tokens were read"
    return jxp.Record(index, result, notes, None, 16 << index % 3, bool(index % 5), **more)


def bars_record(index: int, rng: np.random.Generator, features: int = 24) -> jxp.Record:
    scores = f32(rng.normal(size=features))
    found = SampledAttribution(scores, f32(1), f32(0), np.abs(scores) / 10, f32(9))
    names = [f"a feature with a long name <{k}>" for k in range(features)]
    return jxp.Record(
        index, {"attribution": found, "target": f32(index % 2)}, {"names": names}, None
    )


def image_record(index: int, rng: np.random.Generator, side: int = 8) -> jxp.Record:
    found = Attribution(f32(rng.normal(size=(side, side))), f32(1), f32(0.1))
    result = {
        "attribution": found,
        "image": f32(rng.random((side, side))),
        "target": f32(index % 3),
    }
    return jxp.Record(index, result, {}, None)


def information_record(index: int, rng: np.random.Generator, layers: int = 3) -> jxp.Record:
    ratio = -f32(rng.integers(0, 4, (layers, 4)))
    known = {
        "sigma": np.exp(ratio), "entropy": ratio, "log_ratio": ratio, "censored": ratio == 0,
        "standard_error": f32(np.full((layers, 4), 0.01)), "converged": rng.random(layers) > 0.2,
    }  # fmt: skip
    rest = np.zeros(layers)  # what no page shows
    found = WordInformation(*(known.get(name, rest) for name in WordInformation._fields))
    notes = {"pieces": ["[CLS]", "a", "fi", "##lm"], "label": "positive"}
    return jxp.Record(index, {"information": found, "logits": f32([0, 1])}, notes, None)


def write_run(path: Path, records: list[jxp.Record], **info: Any) -> None:
    """Write records as a run does, without computing them."""
    (path / "plans").mkdir(parents=True)
    (path / "shards").mkdir()
    count = len(records)
    kept = {"configuration": CONFIGURATION, "fingerprints": {"data": "d0", "params": "p0"}}
    kept |= {"totals": {"done": count}, "plan": {"window": count}, **info}
    store.write_info(
        path, {"format": store.FORMAT, "status": "complete", "examples": count, **kept}
    )
    # One batch a shard, and effort and convergence are those of a shard.
    indices = [tuple(r.index for r in records[k : k + 1000]) for k in range(0, count, 1000)]
    shards = [[plan.Batch(0, 0, index)] for index in indices]
    store.write(store.plan_path(path, 0), store.pack({"shards": plan.pack(shards)}))
    for k in range(0, count, 1000):
        rows = records[k : k + 1000]
        tree = describe(next(r.result for r in rows if r.error is None))
        packed = [
            (r.index, None if r.result is None else jax.tree.leaves(r.result), r.notes, r.error)
            for r in rows
        ]
        store.write(store.shard_path(path, 0, k // 1000), packing.pack_records(tree, packed))


def joined(record: jxp.Record, rng: np.random.Generator) -> jxp.Record:
    """The same text, by another model: no word is in pieces, scores are others."""
    if record.result is None:
        return record
    pieces: list[str] = []
    for piece in record.notes["pieces"][1:-1]:
        if piece.startswith("##") and pieces:
            pieces[-1] += piece[2:]
        else:
            pieces.append(piece.removeprefix("##"))
    scores = f32(rng.normal(size=len(pieces)))
    target = f32(record.index % 2)
    result = record.result | {"attribution": Attribution(scores, f32(1), f32(0)), "target": target}
    return record._replace(result=result, notes=record.notes | {"pieces": pieces})


def write_pages(out: Path, texts: list[jxp.Record]) -> dict[str, str]:
    """Write a page of each kind, and one of two runs; give their addresses by name."""
    rng = np.random.default_rng(1)
    kinds = {
        "texts": texts,
        "tables": [bars_record(k, rng) for k in range(70)],
        "images": [image_record(k, rng) for k in range(60)],
        "trees": [tree_record()._replace(index=k) for k in range(60)],
        "information": [information_record(k, rng) for k in range(60)],
    }
    precision = {"tolerance": 0.01, "converged": 7, "not_converged": 3, "evaluations": 12345}
    info = {
        "configuration": CONFIGURATION, "status": "complete", "created": "2020-02-02",
        "versions": {"jax": "9.8.7"}, "devices": {"platform": "abacus"},
        "fingerprints": {"params": "feedbeef", "function": "f00d"},
        "totals": {"precision": precision},
    }  # fmt: skip
    for name, records in kinds.items():
        found = survey(records, CONFIGURATION, limit=1000)
        text = web.render(info, found, corpus(records, configuration=CONFIGURATION))
        (out / f"{name}.html").write_text(text, encoding="utf-8")
    other = [joined(record, rng) for record in texts]
    write_run(out / "a", texts)
    write_run(out / "b", other, configuration={**CONFIGURATION, "model": "another"})
    report.compare(out / "a", out / "b", out / "pair.html")
    return {name: (out / f"{name}.html").as_uri() for name in (*kinds, "pair")}
