"""What rule-based methods cost, in gradients, and DeepLIFT beside Captum's.

    python -m benchmarks.rules [--only cost|captum]

`cost`: `deep_lift` (against embeddings of zeros) and `lrp` (by epsilon) of 64 SST-2 sentences, over
one `value_and_grad` of the model on the same batch, for the bundled models and a Hugging Face BERT
(minilm-sst2 below `JAXPLAIN_DATA` unless said). All compiled beforehand, in turns, medians.

`captum`: the same sentences under the bundled CNN and under the same weights in PyTorch, which
needs torch and captum in the same environment: `deep_lift` against Captum's `DeepLift`; the row has
how far both are from adding up to f(x) - f(baseline), relative to it, at the median sentence.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks import perturbation_peer as peer
from benchmarks.common import median_ratio, middling, paired, parse, report
from benchmarks.information_job import directory
from jaxplain import deep_lift, lrp, models

MOST, FASTER = {"deep_lift": 3, "lrp": 2}, 2


def ready(model: Any, examples: tuple, explain: Callable) -> Callable[[], Any]:
    """The batch explained, compiled."""

    def one(params, x, mask, target):
        return explain(lambda x: model.score(params, x, mask)[target], x)

    program = jax.jit(jax.vmap(one, (None, 0, 0, 0))).lower(model.params, *examples).compile()
    return lambda: program(model.params, *examples)


def cost(options: Any, name: str) -> None:
    model = models.load(directory(options) if name == "bert" else name)
    examples = middling(model, options.batch)
    sides = [
        ready(model, examples, lambda f, x: jax.value_and_grad(f)(x)),
        ready(model, examples, deep_lift),
        ready(model, examples, lrp),
    ]
    gradient, *others = paired(sides, options.repeats, sustained=True)
    ratios = dict(zip(MOST, (median_ratio(s, gradient) for s in others), strict=True))
    report(
        "rules cost",
        ", ".join(f"{method} <= {most}" for method, most in MOST.items()),
        all(ratios[method] <= most for method, most in MOST.items()),
        model=model.name,
        **ratios,
        value_and_grad_s=float(np.median(gradient)),
        batch=options.batch,
        tokens=examples[0].shape[1],
    )


def captum(options: Any) -> None:
    torch, attr = peer.need("torch", "captum.attr")
    torch.set_num_threads(options.threads)
    model = models.load("cnn")
    examples = middling(model, options.batch)
    network = peer.torch_network(model.params)
    x, mask = (torch.tensor(np.array(v)) for v in examples[:2])
    target = torch.tensor(np.array(examples[2])).long()

    def theirs():
        return attr.DeepLift(network).attribute(x, target=target, additional_forward_args=mask)

    ours = ready(model, examples, deep_lift)
    a, b = paired([ours, lambda: theirs().detach().numpy()], options.repeats, sustained=True)
    with torch.no_grad():
        pick = lambda v: network(v, mask).gather(1, target[:, None])[:, 0].numpy()
        difference = pick(x) - pick(torch.zeros_like(x))
    lost = lambda scores: float(np.median(np.abs(scores.sum((1, 2)) / difference - 1)))
    ratio = median_ratio(b, a)
    report(
        "rules captum",
        f"times the throughput >= {FASTER}",
        ratio >= FASTER,
        times_faster=ratio,
        jaxplain_s=float(np.median(a)),
        captum_s=float(np.median(b)),
        lost_median=lost(np.asarray(ours().scores)),
        captum_lost_median=lost(theirs().detach().numpy()),
        batch=options.batch,
        threads=options.threads,
    )


def main() -> None:
    options = parse(__doc__ or "", only="", model="", batch=64, repeats=15, threads=2)
    rows: list[tuple[str, Callable]] = [
        ("cost", partial(cost, options, name)) for name in (*models.BUNDLED, "bert")
    ]
    rows.append(("captum", partial(captum, options)))
    missed = False
    for name, row in rows:
        if options.only in ("", name):
            try:
                row()
            except SystemExit as end:  # the rows that follow are still worth having
                if end.code != 1:
                    raise
                missed = True
    sys.exit(missed)


if __name__ == "__main__":
    main()
