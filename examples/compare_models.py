"""Which words survive in which layer of BERT, a Transformer, an LSTM and a CNN, side by side.

    JAXPLAIN_DATA=path/to/data python -m examples.compare_models --bert path/to/bert

runs, for each model,

    jaxplain explain --model MODEL --data sst2/dev.tsv --method word_information --layers all

and reads what the runs hold: sentences with sentiment, `sst2/dev.tsv` (columns `sentence` and
`label`) below JAXPLAIN_DATA or the file of --data. Runs that were done before are not done again,
and one that was killed goes on where it stopped: give the same command. Lists of positive and
negative words come from the leaves of the sentiment trees in `sst-trees/train.txt` below
JAXPLAIN_DATA, or those of --trees. It prints a table of all layers of all models, what agrees and
what disagrees with seven findings of the paper, each with the numbers that decide it, and draws two
figures.

Everything is told in nats per dimension of a word that are kept: log(scale / sigma), 0 where the
word is forgotten; models whose words have different widths then compare. ± is one standard error
over sentences; a difference decides where it is twice that. Layers that did not converge are
counted; left out, sentence by sentence, are those of which a word is not known within `--within`.

The paper's sets of concepts, from DBpedia and the Microsoft Concept Graph, are not used here: the
concepts are positive words and negative words.

References:
    Guan, Wang, Zhang, Chen, He, Xie, "Towards a Deep and Unified Understanding of Deep Neural
    Models in NLP", ICML 2019. https://proceedings.mlr.press/v97/guan19a.html
    Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank",
    2013. https://aclanthology.org/D13-1170/
"""

import os
import sys
from pathlib import Path

import cyclopts
import numpy as np

import jaxplain as jxp
from examples.compare_figures import draw
from examples.compare_findings import concept_kept, judge
from examples.compare_reading import PLACES, Reading, read, sentiment_words
from examples.measures import average, mean_and_error, table
from jaxplain import cli, models

SENTENCE = "rare bird"  # how the paper's example begins


def numbers(by: dict[str, Reading]) -> list[list[str]]:
    """A line for each layer of each model."""
    shown = (
        "all words",
        "sentiment words",
        "function words",
        "[CLS]",
        "[SEP]",
        PLACES[0],
        PLACES[-1],
    )
    lines = [["model", "layer", *shown, "spread", "neighbours", "concept kept", "forgotten"]]
    lines[0] += ["not converged", "left out"]
    for name, r in by.items():
        share = concept_kept(r)
        for k in range(len(r.layers)):
            kept = [mean_and_error(r.kept[part][:, k], 3) for part in shown]
            line = [mean_and_error(r.spread[:, k], 3), mean_and_error(r.neighbours[:, k])]
            line += [
                f"{share[k]:.3g}",
                f"{r.censored[k]:.1%}",
                str(int(r.unconverged[k])),
                str(int(r.unknown[k])),
            ]
            lines.append([name, str(r.layers[k]), *kept, *line])
    return lines


def about_concepts(by: dict[str, Reading]) -> list[list[str]]:
    """A line for each concept in each layer of each model: medians over its words, in nats."""
    lines = [["model", "concept", "layer", "A_i", "A_c", "beyond", "forgotten", "places", "words"]]
    for name, r in by.items():
        for title, c in r.concepts.items():
            for k, layer in enumerate(r.layers):
                values = [v[k][np.isfinite(v[k])] for v in (c.word, c.concept, c.beyond)]
                line = [f"{np.median(v):.3g}" if len(v) else "-" for v in values]
                line.append(f"{c.censored[k].mean():.1%}" if c.censored.size else "-")
                line += [str(c.sigma.shape[1]), str(c.listed - c.unknown - c.several)]
                lines.append([name, title, str(layer), *line])
    return lines


def left_out(name: str, r: Reading) -> str:
    """Which of the listed words are no one token of the model's."""
    told = ", ".join(
        f"{c.unknown} unknown and {c.several} of several tokens of {c.listed} {title}"
        for title, c in r.concepts.items()
    )
    return f"Left out for {name}: {told}."


def answers(r: Reading) -> str:
    """The model's accuracy, and whether it keeps more where it is right."""
    right = average(r.right)
    kept = r.kept["all words"][:, -1]
    yes, no = (mean_and_error(kept[r.right == value], 3) for value in (1.0, 0.0))
    return f"{right:.1%} right; last layer keeps {yes} where right, {no} where wrong"


def main(
    *,
    bert: Path | None = None,
    model: tuple[str, ...] = models.BUNDLED,
    data: Path | None = None,
    trees: Path | None = None,
    limit: int | None = None,
    out: Path = Path("runs/compare"),
    state: str = "all",
    background: int | None = None,
    steps: int | None = None,
    samples: int | None = None,
    tolerance: float | None = None,
    per_word_rate: float | None = None,
    probes: int | None = None,
    within: float = 0.5,
    markdown: bool = False,
) -> None:
    """Explain every layer of several models, and hold the paper's findings against the numbers.

    Args:
        bert: a Hugging Face directory of a BERT classifier; without it, some findings are open.
        model: the other models.
        data: sentences and labels; SST-2's dev set below JAXPLAIN_DATA if not given.
        trees: sentiment trees; those of SST's training set below JAXPLAIN_DATA if not given.
        limit: only the first sentences.
        out: a folder for the runs, tables and figures.
        state: what of a layer is compared: all words' states, their mean, or the first one.
        background: sentences that a layer's spread is measured on.
        steps: the most that the search takes; more where layers are left out.
        samples: evaluations a step, likewise.
        tolerance: of log sigma; a layer that misses it counts as not converged.
        within: a layer of a sentence is left out where a word's standard error, or what is left of
            its gradient, is larger.
        per_word_rate: what a nat of noise is worth; the less, the smaller the noise.
        probes: backward passes for the start of the search.
        markdown: print in Markdown.
    """
    home = os.environ.get("JAXPLAIN_DATA")
    data = data or (Path(home) / "sst2" / "dev.tsv" if home else None)
    trees = trees or (Path(home) / "sst-trees" / "train.txt" if home else None)
    for path, option in ((data, "--data"), (trees, "--trees")):
        if path is None or not path.is_file():
            sys.exit(f"not found: {path or option}: give a file by {option}, or set JAXPLAIN_DATA")
    assert data is not None and trees is not None
    lists = sentiment_words(trees)
    given = dict(limit=limit, background=background, steps=steps, samples=samples)
    given |= dict(tolerance=tolerance, per_word_rate=per_word_rate, probes=probes)
    settings = [
        (f"--{name.replace('_', '-')}", str(value))
        for name, value in given.items()
        if value is not None
    ]
    by = {}
    for name in ([str(bert)] if bert else []) + list(model):
        loaded = models.load(name)
        title = "bert" if bert and name == str(bert) else name
        folder = out / title
        arguments = ["explain", "--model", name, "--data", str(data), "--out", str(folder)]
        arguments += ["--method", "word_information", "--layers", "all", "--state", state]
        arguments += [part for option in settings for part in option]
        if code := cli.call([*arguments, "--show", "0"]):
            sys.exit(code)
        by[title] = read(jxp.load(folder), loaded, lists, SENTENCE, within)
    heading = "## " if markdown else ""
    parts = [f"{heading}Layers: nats per dimension kept", table(numbers(by), markdown=markdown)]
    parts += [
        f"{heading}Concepts: nats, medians over places of their words",
        table(about_concepts(by), markdown=markdown),
        *(left_out(name, r) for name, r in by.items()),
    ]
    lines = [["finding", "", "numbers"]]
    for claim, agrees, told in judge(by):
        verdict = "not told" if agrees is None else "agrees" if agrees else "disagrees"
        lines.append([claim, verdict, told])
    if markdown:
        parts += [f"{heading}Findings", table(lines, markdown=True)]
    else:
        parts += ["Findings", *(f"{v}: {claim}\n    {told}" for claim, v, told in lines[1:])]
    parts += ["\n".join(f"{name}: {answers(r)}  " for name, r in by.items())]
    report = "\n\n".join(parts)
    print(f"\n{report}\n")
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(report + "\n", encoding="utf-8")
    shares = {name: concept_kept(r) for name, r in by.items()}
    for path in draw(out, by, shares):
        print(f"figure: {path}")


if __name__ == "__main__":
    cyclopts.run(main)
