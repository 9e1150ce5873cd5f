"""Which phrases speak for a sentence's class: trees of 50 sentences, and negations that turn words.

    JAXPLAIN_DATA=path/to/data python -m examples.hierarchies_text
    python -m examples.hierarchies_text --data reviews.tsv --rules CD_SHAPLEY

reads tables with columns `sentence` and `label`: `sst2/dev.tsv` and `sst2/test.tsv` below
JAXPLAIN_DATA, or the bundled sentences where it is not set. Of the first table's first sentences it
makes trees, by agglomerative contextual decomposition of the bundled LSTM: what each word and each
phrase adds to the positive class's score over the negative one's. It then goes through all
sentences for phrases from a negator to the strongest word after it, "not very good", whose score
has the other sign than the sum of their words' scores: what the model read there, it read in the
phrase. It prints the clearest of them, and writes a page, pictures and trees in JSON.

References:
    Singh, Murdoch, Yu, "Hierarchical interpretations for neural network predictions", 2019.
    https://arxiv.org/abs/1806.05337
"""

import html
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cyclopts
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import jaxplain as jxp
from examples.train_text_classifiers import read
from jaxplain import models
from jaxplain.hierarchy import (
    Hierarchy,
    acd,
    members,
    to_tree,
)
from jaxplain.methods.tokens import over_padding
from jaxplain.report.trees import sentence_tree_html, sentence_tree_svg, sentence_tree_text

NEGATORS = frozenset(
    "not n't never no nor neither none nobody nothing without hardly barely rarely".split()
)
LONGEST = 6  # words of a phrase, from the negator on
LENGTHS = (16, 32, 64, 128)
CLEAR = 0.1  # of a difference of logits
ENDS = ("negative", "positive")


class Negation(NamedTuple):
    """A phrase `start` to `stop`, not included, of a text, whose sign is not that of its words."""

    text: dict[str, Any]
    start: int
    stop: int
    phrase: float
    words: float

    @property
    def strength(self) -> float:
        return min(abs(self.phrase), abs(self.words))


def texts(data: Path | None, model) -> list[list[dict[str, Any]]]:
    """Each table's sentences as examples of `jxp.run`."""
    home = os.environ.get("JAXPLAIN_DATA")
    paths = [Path(home) / "sst2" / f"{split}.tsv" for split in ("dev", "test")] if home else []
    if data is not None:
        paths = [data]
    if absent := [str(path) for path in paths if not path.is_file()]:
        sys.exit(f"not found: {', '.join(absent)}: give a table by --data, or unset JAXPLAIN_DATA")
    tables = [(path.stem, *read(path)) for path in paths]
    if not tables:
        rows = models.bundled_examples()
        tables = [("bundled", [r["text"] for r in rows], [r["label"] for r in rows])]
    found = []
    for name, sentences, labels in tables:
        found.append([])
        for line, (sentence, label) in enumerate(zip(sentences, labels, strict=True)):
            tokens = model.tokenize(sentence)
            mask = np.ones(len(tokens.ids), bool)
            note = dict(text=sentence, pieces=tokens.pieces, label=ENDS[label], table=name)
            found[-1].append(dict(ids=tokens.ids, mask=mask, valid=mask, line=line, **note))
    return found


def explainers(model, rules):
    """The two functions of one text that `jxp.run` maps over all."""

    def f(params, example):  # what speaks for positive and against negative
        return lambda x: jnp.diff(model.score(params, x, example["mask"]))[0]

    def trees(params, example, key):
        g, x = f(params, example), model.embed(params, example["ids"])
        real, valid = example["mask"], example["valid"]
        tree = acd(g, x, rules=rules, where=real, units=valid).hierarchy
        every = over_padding(valid[None], real)[0][:, None]
        whole = jxp.contextual_decomposition(g, x, every, rules=rules).relevant
        return dict(tree=tree, whole=whole, output=g(x))

    def phrases(params, example, key):
        place, k = jnp.arange(len(example["ids"]))[None], jnp.arange(LONGEST + 1)[:, None]
        words = place == example["start"] + k
        spans = (place >= example["start"]) & (place <= example["after"] + k[:-2])
        masks = over_padding(jnp.concatenate([words, spans]), example["mask"])[:, :, None]
        x = model.embed(params, example["ids"])
        scores = jxp.group_scores(f(params, example), x, masks, rules=rules).relevant
        return dict(words=scores[: len(words)], phrases=scores[len(words) :])

    return trees, phrases


def negated(text: dict[str, Any]) -> list[dict[str, Any]]:
    """A text once for each negator in it, with where the negator and what follows it start."""
    pieces = text["pieces"]
    return [
        # "n't" is part of the word before it.
        dict(text, start=np.int32(k - (piece == "n't" and k > 0)), after=np.int32(k + 1))
        for k, piece in enumerate(pieces)
        if piece in NEGATORS and k + 1 < len(pieces)
    ]


def search(candidates, records) -> tuple[list[Negation], int, int]:
    """Negations whose phrase has not the sign of its words' sum, the clearest first, one a text.

    Also counts the phrases, and those without the sign of their strongest word after the negator.
    """
    found: dict[tuple[str, int], Negation] = {}
    phrases = turned = 0
    for text, record in zip(candidates, records, strict=True):
        words, scores = record.result["words"], record.result["phrases"].tolist()
        start, after = int(text["start"]), int(text["after"])
        for k, score in enumerate(scores[: len(text["pieces"]) - after]):
            stop = after + k + 1
            inside = words[: stop - start]
            if np.argmax(np.abs(inside[after - start :])) != k:
                continue  # it would not end with its strongest word
            phrases += 1
            turned += score * inside[-1] < 0
            new = Negation(text, start, stop, score, float(inside.sum()))
            where = text["table"], text["line"]
            if score * new.words < 0 and (
                where not in found or new.strength > found[where].strength
            ):
                found[where] = new
    order = sorted(found.values(), key=lambda n: -n.strength)
    return order, phrases, turned


def cut(tree: Hierarchy, start: int, stop: int) -> Hierarchy:
    """The tree of the only valid units."""
    units, groups = slice(start, stop), slice(stop - start)
    return Hierarchy(
        tree.unit_scores[units],
        tree.unit_parent[units],
        tree.unit_level[units],
        tree.scores[groups],
        tree.parent[groups],
        tree.level[groups],
        tree.count,
    )


def said(result, text) -> str:
    odds = 1 / (1 + np.exp(-float(result["output"])))
    name = ENDS[int(odds > 0.5)]
    return f"predicted {name} ({max(odds, 1 - odds):.0%}), labelled {text['label']}"


def whole(tree: Hierarchy) -> tuple[bool, bool, float]:
    """Whether all words are in the tree, whether a root covers them, and the root's score."""
    if len(tree.unit_scores) == 1:
        return True, True, float(tree.unit_scores[0])
    top = int(tree.count) - 1
    covers = bool(top >= 0 and members(tree)[top].all())
    return bool((tree.unit_level > 0).all()), covers, float(tree.scores[top])


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
figure{margin:1.2rem 0 2rem}figcaption{color:#5d6167}"""


def main(
    *,
    out: Path = Path("runs/hierarchies_text"),
    data: Path | None = None,
    limit: int = 50,
    show: int = 8,
    search_in: int | None = None,
    rules: Literal["CD_LSTM", "CD_SHAPLEY", "CD_ACD"] = "CD_LSTM",
) -> None:
    """Make trees of sentences under the bundled LSTM, and find negations.

    Args:
        out: the folder for the page, pictures and trees.
        data: a table of sentences; SST-2 below JAXPLAIN_DATA, or bundled sentences, if not given.
        limit: how many sentences get a tree.
        show: how many negations to show.
        search_in: sentences of each table to look for negations in; all if not given.
        rules: the table of contextual decomposition.
    """
    model = models.load("lstm")
    tables = texts(data, model)
    trees, phrases = explainers(model, getattr(jxp, rules))
    candidates = [n for table in tables for text in table[:search_in] for n in negated(text)]
    explain = lambda function, examples, folder: jxp.run(
        function,
        model.params,
        examples,
        out / folder,
        key=jax.random.key(0),
        lengths=LENGTHS,
        ragged=("ids", "mask", "valid"),
        configuration=dict(model=model.name, rules=rules),
        overwrite=True,
    )
    if not candidates:
        sys.exit(f"no sentence has a negator ({', '.join(sorted(NEGATORS))}): give other data")
    summary = explain(phrases, candidates, "phrases")
    records = jxp.load(out / "phrases")
    found, count, turned = search(candidates, records)
    sentences = len({(text["table"], text["line"]) for text in candidates})
    print(
        f"{count} phrases from a negator to its strongest word, in {sentences} sentences, "
        f"{summary.seconds:.1f} s: {turned} have not the sign of that word, "
        f"and in {len(found)} sentences one has not the sign of its words' sum "
        f"({sum(n.strength > CLEAR for n in found)} by more than {CLEAR:g} on both sides)"
    )

    chosen, shown = tables[0][:limit], found[:show]
    examples = list(chosen)
    for n in shown:  # the sentence, and the phrase in it
        place = np.arange(len(n.text["ids"]))
        inside = (place >= n.start) & (place < n.stop)
        for valid in (n.text["mask"], inside):
            kept = {k: v for k, v in n.text.items() if k not in ("start", "after")}
            examples.append(dict(kept, valid=valid))
    summary = explain(trees, examples, "trees")
    results = [record.result for record in jxp.load(out / "trees")]

    body, console = ["<h1>Negations</h1>"], Console(highlight=False, soft_wrap=True)
    for rank, n in enumerate(shown):
        sentence, part = results[len(chosen) + 2 * rank : len(chosen) + 2 * rank + 2]
        pieces = n.text["pieces"][n.start : n.stop]
        tree = cut(part["tree"], n.start, n.stop)
        line = f"“{n.text['text'].strip()}” {said(sentence, n.text)}"
        scores = f"phrase {n.phrase:+.2f}, sum of its words {n.words:+.2f}"
        console.print(f"\n{line} ({n.text['table']}, sentence {n.text['line'] + 1})\n{scores}")
        console.print(sentence_tree_text(tree, pieces))
        picture = sentence_tree_svg(tree, pieces, ends=ENDS)
        (out / f"negation{rank + 1}.svg").write_text(picture, encoding="utf-8")
        body.append(f"<figure>{picture}<figcaption>{html.escape(line)}: {scores}</figcaption>")
        body.append(sentence_tree_html(sentence["tree"], n.text["pieces"]) + "</figure>")

    body.append("<h1>Sentences</h1>")
    written, everywhere, covered, gaps = [], 0, 0, []
    for text, result in zip(chosen, results[: len(chosen)], strict=True):
        every, covers, score = whole(result["tree"])
        everywhere, covered = everywhere + every, covered + covers
        gaps.append(abs(score - float(result["whole"])))
        caption = html.escape(said(result, text))
        tree = sentence_tree_html(result["tree"], text["pieces"])
        body.append(f"<figure>{tree}<figcaption>{caption}</figcaption></figure>")
        nodes = to_tree(result["tree"], text["pieces"])
        note = dict(text=text["text"], label=text["label"], output=float(result["output"]))
        written.append(note | nodes)
    (out / "trees.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    head = f'<!doctype html><meta charset="utf-8"><title>Hierarchies</title><style>{STYLE}</style>'
    (out / "page.html").write_text(head + "\n".join(body), encoding="utf-8")
    print(
        f"\n{len(chosen)} trees, {summary.seconds:.1f} s: every word is in the tree in "
        f"{everywhere}, one group covers the sentence in {covered}; its score is that of the whole "
        f"sentence to {max(gaps):.1g}\n"
        f"page: {out / 'page.html'}, trees: {out / 'trees.json'}"
    )


if __name__ == "__main__":
    cyclopts.run(main)
