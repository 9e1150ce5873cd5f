"""What precision on demand takes, and what a fixed number of nodes would.

    JAXPLAIN_DATA=... python -m benchmarks.precision --only dev
    pip install torch==2.13.0 captum==0.9.0 transformers==5.23.0
    JAXPLAIN_DATA=... python -m benchmarks.precision --only captum

Integrated gradients of the predicted class's logit, from a baseline of zeros, of SST-2 development
sentences under minilm-sst2, both below `JAXPLAIN_DATA`; a tolerance of 0.01.

`dev`: all sentences through the engine. How many ended within the tolerance, with how many
gradients; how many a fixed Gauss-Legendre rule would take, the first of `COUNTS` that leaves each
of the `--hardest` converged sentences (those that took most) and of `--others` more with a gap
within 1%: all of them may need more, so the ratio is a lower bound. And whether a claim is false:
`--check` converged sentences (0: all of them, an hour and more) through the engine at 1,000
Gauss-Legendre nodes; `sum_differs` is the largest difference of a sum of scores, and
`scores_differ` that of a score, as shares of f(x) - f(baseline) and of the largest score;
`scores_differ_above`, in how many sentences scores do by more than 5% and 10%. With `--keep FOLDER`
both runs stay there, and the same command goes on where it was stopped. On a GPU, where a program
takes long to compile and little to run, give both runs few lengths and large batches:
`--lengths 24,40,72 --batch-size 128`; products are of whole float32 numbers everywhere.

`captum`: `--sentences` of them, in batches of one length, under the same weights in transformers'
BERT, whose attention and threads are PyTorch's own choice. Captum's IntegratedGradients with 50
Gauss-Legendre nodes and with the count that these sentences need, at its best of several internal
batch sizes; ours by the engine, and by the engine at that same fixed count. Sentences per second
without compilation: the engine's own rate of a second run, whose programs come from the cache, and
of one round of the fixed count by the same programs.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxplain as jxp
from benchmarks.common import parse, report, sst2
from benchmarks.information_job import directory
from jaxplain import models, precision
from jaxplain.methods.path import mean_along
from jaxplain.methods.quadrature import Nodes, gauss_legendre
from jaxplain.run.sources import TextSource, read_texts
from jaxplain.run.text import explain_text

TOLERANCE, FEWER = 0.01, 3
COUNTS = 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024
ROWS = 16
CHECKED_AT = 1000
SHARES = 0.05, 0.1
FINE = tuple(range(8, 73, 4))  # lengths of the long run: little padding


def engine(
    model: Any, texts: list[str], out: Path, count: int | None = None, **settings: Any
) -> jxp.Summary:
    """A run to the tolerance, or one round of so many Gauss-Legendre nodes by the same programs."""
    explain = explain_text(model, jxp.integrated_gradients, baseline="zeros", refined_by="steps")
    efforts = precision.nodes(16, 1024)
    if count:
        width = max(count, len(efforts[0].value.place))
        efforts = (precision.Effort(rule(count, width), count, 1.0),)
    source = TextSource(texts, None, model)
    return jxp.run(
        explain, model.params, source, out, key=jax.random.key(0), ragged=("ids", "mask"),
        max_length=source.max_length, tolerance=TOLERANCE, efforts=efforts, **settings,
    )  # fmt: skip


def rule(count: int, width: int = 1024) -> Nodes:
    places, weights = gauss_legendre(count)
    fill = lambda v: np.pad(v, (0, width - count))
    return Nodes(fill(places), fill(weights), count)


class Fixed:
    """Sentences at a fixed number of nodes; one program a length serves every number."""

    def __init__(self, model: Any, texts: list[str]):
        self.model = model
        self.ids = [model.tokenize(text).ids for text in texts]
        self.sums = jax.jit(jax.vmap(self.one_sum, (None, 0, 0, 0, None)))

    def f(self, params: Any, ids: Any, mask: Any, target: Any) -> Any:
        embedded = self.model.embed(params, ids)
        x = jnp.where(mask[:, None], embedded, embedded[:1])
        return lambda x: self.model.score(params, x, mask)[target], x

    def one_sum(self, params: Any, ids: Any, mask: Any, target: Any, nodes: Nodes) -> Any:
        """What scores sum to, and should: slopes along the path need no gradient."""
        f, x = self.f(params, ids, mask, target)
        slope = lambda point, change: jax.jvp(f, (point,), (change,))[1]
        zeros = jnp.zeros_like(x)
        return mean_along(slope, x, zeros, nodes, None), f(x) - f(zeros)

    def batches(self, chosen: list[int], targets: Any) -> Iterator[tuple[list[int], tuple]]:
        waiting: dict[int, list[int]] = {}
        for index in chosen:  # in their order: the hardest come first
            length = -(-len(self.ids[index]) // 16) * 16
            group = waiting.setdefault(length, [])
            group.append(index)
            if len(group) == ROWS:
                yield self.batch(waiting.pop(length), length, targets)
        for length, group in waiting.items():
            yield self.batch(group, length, targets)

    def batch(self, rows: list[int], length: int, targets: Any) -> tuple[list[int], tuple]:
        ids = np.full((ROWS, length), self.model.pad_id, np.int32)
        mask = np.zeros((ROWS, length), bool)
        for row in range(ROWS):
            tokens = self.ids[rows[min(row, len(rows) - 1)]]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        at = [targets[rows[min(row, len(rows) - 1)]] for row in range(ROWS)]
        return rows, (ids, mask, np.asarray(at, np.int32))

    def gaps(self, chosen: list[int], targets: Any, count: int) -> Iterator[float]:
        """Relative gaps at so many nodes."""
        for rows, batch in self.batches(chosen, targets):
            found, change = map(np.asarray, self.sums(self.model.params, *batch, rule(count)))
            yield from np.abs((found - change) / change)[: len(rows)].tolist()

    def needed(self, chosen: list[int], targets: Any) -> int | None:
        """The first of `COUNTS` that leaves every one of these within the tolerance."""
        for count in COUNTS:
            if all(gap <= TOLERANCE for gap in self.gaps(chosen, targets, count)):
                return count
        return None


def relative(record: Any) -> float:
    found = record.result["attribution"]
    return abs(float(found.gap) / (float(found.scores.sum()) - float(found.gap)))


def dev(options: Any) -> None:
    model, texts = models.load(directory(options)), read_texts(sst2()).texts
    texts = texts[: options.limit or None]
    with tempfile.TemporaryDirectory() as name:
        dev_in(Path(options.keep or name), options, model, texts)


def dev_in(folder: Path, options: Any, model: Any, texts: list[str]) -> None:
    given = {"batch_size": options.batch_size} if options.batch_size else {}
    if options.lengths:
        given["lengths"] = tuple(map(int, options.lengths.split(",")))
    began = time.perf_counter()
    summary = engine(model, texts, folder / "precise", **given)
    seconds = time.perf_counter() - began
    records = list(jxp.load(folder / "precise"))
    targets = [int(r.result["target"]) for r in records]
    effort = np.array([r.effort for r in records])
    near = [r.index for r in records if r.converged]
    assert all(relative(records[i]) <= TOLERANCE for i in near)
    assert all(relative(r) > TOLERANCE for r in records if not r.converged)
    draw = np.random.default_rng(0)
    order = sorted(near, key=lambda i: -effort[i])
    hardest, rest = order[: options.hardest], order[options.hardest :]
    fixed = Fixed(model, texts)
    chosen = [*hardest, *draw.permutation(rest)[: options.others].tolist()]
    needed = fixed.needed(chosen, targets)
    checked = draw.permutation(near)[: options.check or None].tolist()
    sums, scores, false = [], [], 0
    at_1000 = folder / f"at_{CHECKED_AT}"
    given = {"lengths": FINE, "shard_size": 16} | given
    engine(model, [texts[i] for i in checked], at_1000, CHECKED_AT, **given)
    for index, record in zip(checked, jxp.load(at_1000), strict=True):
        mine, theirs = (r.result["attribution"] for r in (records[index], record))
        change = float(theirs.scores.sum() - theirs.gap)
        sums.append(abs(float(mine.scores.sum() - theirs.scores.sum()) / change))
        scores.append(
            float(np.abs(mine.scores - theirs.scores).max() / np.abs(theirs.scores).max())
        )
        assert record.result["target"] == targets[index]
        # Beyond what 1,000 nodes miss themselves.
        false += sums[-1] > TOLERANCE + abs(float(theirs.gap) / change)
    mean = float(effort[near].mean())
    report(
        "precision dev",
        f"{FEWER} times fewer gradients than the fixed count, no false claim",
        bool(needed is not None and needed >= FEWER * mean and not false),
        sentences=len(texts),
        tolerance=TOLERANCE,
        converged=len(near),
        not_converged=len(texts) - len(near),
        efforts=summary.precision["efforts"],
        gradients_of_converged=mean,
        gradients_of_all=float(effort.mean()),
        fixed_count_at_least=needed,
        ratio_at_least=None if needed is None else needed / mean,
        fixed_checked_on=len(chosen),
        checked_at_1000_nodes=len(checked),
        false_claims=false,
        sum_differs=max(sums, default=0.0),
        scores_differ_median=float(np.median(scores)) if scores else 0.0,
        scores_differ=max(scores, default=0.0),
        scores_differ_above=[sum(s > share for s in scores) for share in SHARES],
        seconds=seconds,
    )


def captum(options: Any) -> None:
    from benchmarks import precision_peer as peer

    folder = directory(options)
    model, every = models.load(folder), read_texts(sst2()).texts
    texts = [every[i] for i in np.linspace(0, len(every) - 1, options.sentences).astype(int)]
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        engine(model, texts, base / "first")
        ours = engine(model, texts, base / "ours")
        records = list(jxp.load(base / "ours"))
        targets = [int(r.result["target"]) for r in records]
        near = [r.index for r in records if r.converged]
        fixed = Fixed(model, texts)
        needed = fixed.needed(near, targets) or COUNTS[-1]
        same = engine(model, texts, base / "same", needed)
    worst = lambda gaps: float(max(gaps[i] for i in near))
    theirs = peer.bert(folder, options.threads)
    rows = list(fixed.batches(list(range(len(texts))), targets))
    differ = peer.difference(theirs, rows, records)
    size = peer.best(theirs, *rows[0], 50)
    fifty = peer.explain(theirs, rows, 50, size)
    enough = peer.explain(theirs, rows, needed, size)
    report(
        "precision captum",
        f"every converged sentence within {TOLERANCE}, faster than the fixed count on both sides",
        bool(ours.examples_per_second > max(enough.rate, same.examples_per_second)),
        sentences=len(texts),
        converged=len(near),
        gradients=float(np.mean([r.effort or 0 for r in records])),
        per_second=ours.examples_per_second,
        worst_gap=worst([relative(r) for r in records]),
        captum_50_per_second=fifty.rate,
        captum_50_worst_gap=worst(fifty.gaps),
        captum_50_above=sum(fifty.gaps[i] > TOLERANCE for i in near),
        count_needed=needed,
        captum_needed_per_second=enough.rate,
        captum_needed_worst_gap=worst(enough.gaps),
        ours_at_count_per_second=same.examples_per_second,
        times_captum_at_50=ours.examples_per_second / fifty.rate,
        times_captum_needed=ours.examples_per_second / enough.rate,
        times_ours_at_count=ours.examples_per_second / same.examples_per_second,
        internal_batch_size=size,
        logits_differ=f"{differ:.1e}",
        threads=options.threads,
    )


TASKS = {"dev": dev, "captum": captum}


def main() -> None:
    options = parse(
        __doc__ or "", only="dev", model="", limit=0, hardest=128, others=64, check=128,
        sentences=32, threads=2, keep="", lengths="", batch_size=0,
    )  # fmt: skip
    jax.config.update("jax_default_matmul_precision", "highest")
    if options.only not in TASKS:
        sys.exit(f"--only is one of: {', '.join(TASKS)}")
    TASKS[options.only](options)


if __name__ == "__main__":
    main()
