"""Ablation and Shapley values against Captum and shap, on the CPU; results must agree.

    pip install torch==2.13.0 captum==0.9.0 shap==0.51.0
    python -m benchmarks.perturbation --only captum

`captum`: SST-2 sentences of middling length under the bundled CNN, and under the same weights in
PyTorch; players are tokens, what is absent is 0. `FeatureAblation` and `ShapleyValueSampling`
against `feature_ablation` and `shapley_sampling`, with as many orders on both sides; Captum gets
the best of several `perturbations_per_eval` and ours the best of several `chunk`, each tried first.
The row has what a bare forward pass costs on either side: their ratio is what is gained by the same
passes; the rest is by what coalitions share.

`shap`: `KernelExplainer` against `kernel_shap`, with as many samples and no regularisation; on a
table of 20 columns with a background set, and on the sentences with an absent token 0. The model
that it calls is the same one, jitted, on the best of several numbers of rows at once.

`memory`: what the compiled programs take beside their arguments, as samples grow.

Ablations must be equal, to rounding. Estimates come from several seeds on each side and must agree
within the errors that these runs show: `apart` is the root mean square, over tokens or columns, of
their difference in standard errors, about 1 where both mean the same number. `standard_error` is
that of one run, the root mean square likewise: sides that are as fast need not be as sure.

`--threads` are PyTorch's, and JAX takes the cores that the process has: give it as many. On a busy
machine PyTorch's threads wait for one another and its figures are worthless; one core is steadier
there, `taskset -c 0 python -m benchmarks.perturbation --threads 1`.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxplain as jxp
from benchmarks import perturbation_peer as peer
from benchmarks.common import median_ratio, paired, parse, report

FASTER = {"captum": 3, "shap": 5}
EQUAL, APART, FLAT = 1e-4, 1.6, 1.05
SEEDS = 10


def speed(bound: int, name: str, ours: Any, theirs: Any, agree: bool, options: Any, **row: Any):
    """Both sides in turns, and the row."""
    a, b = paired([ours, theirs], options.repeats, sustained=True)
    ratio = median_ratio(b, a)
    report(
        f"perturbation {name}",
        f"times the throughput >= {bound}, results agree",
        ratio >= bound and agree,
        times_faster=ratio,
        jaxplain_s=float(np.median(a)),
        peer_s=float(np.median(b)),
        agree=agree,
        threads=options.threads,
        **row,
    )


def agreement(mine: list[np.ndarray], theirs: list[np.ndarray]) -> tuple[bool, dict[str, Any]]:
    """Whether both sides say the same: one run of each to rounding, more within their errors."""
    if len(mine) == 1:
        differ = float(np.abs(mine[0] - theirs[0]).max())
        return differ <= EQUAL, {"largest_difference": f"{differ:.1e}"}
    apart, error, other = peer.apart(mine, theirs)
    row = {"apart": apart, "standard_error": error, "peer_standard_error": other}
    return apart <= APART, row


def forwards(batch: peer.Sentences, theirs: peer.Captum, options: Any) -> dict[str, float]:
    """Microseconds of a bare forward pass, in batches of 16 times the sentences."""
    score = jax.jit(jax.vmap(batch.model.score, (None, 0, 0)))
    x, mask = jnp.tile(batch.x, (16, 1, 1)), jnp.tile(batch.mask, (16, 1))
    ours = lambda: score(batch.model.params, x, mask)
    seconds = paired([ours, theirs.forward], 3 * options.repeats, sustained=True)
    mine, other = (1e6 * float(np.median(s)) / len(x) for s in seconds)
    return {"jax_forward_us": mine, "torch_forward_us": other}


def against_captum(options: Any, name: str, method: Any, peer_name: str, orders: int | None):
    """A row: both sides at their best settings, with as many orders where there are any."""
    batch = peer.sentences(options.batch)
    theirs = peer.captum(batch, options.threads)
    job, (_, tokens) = batch.job(), batch.mask.shape
    sizes = sorted({min(n, tokens) for n in (1, 4, 16)} | {2 * tokens - 2})
    given, others = ({}, {}) if orders is None else ({"samples": orders}, {"n_samples": orders})
    mine = {n: peer.explain(job, method, chunk=n, **given) for n in sizes}
    call = lambda n: lambda: theirs.attribute(peer_name, perturbations_per_eval=n, **others)
    chunk, size = peer.best(mine), peer.best({n: call(n) for n in sizes})
    ours, other = mine[chunk], call(size)

    def seeded(seed):
        theirs.seed(seed)
        return other()

    seeds = range(1 if orders is None else SEEDS)
    scores = [np.asarray(ours(seed).scores)[..., 0] for seed in seeds]
    agree, row = agreement(scores, [seeded(seed) for seed in seeds])
    speed(
        FASTER["captum"], name, ours, other, agree, options, **row,
        batch=options.batch, tokens=tokens, chunk=chunk, perturbations_per_eval=size,
        passes=tokens + 1 if orders is None else orders * (tokens - 1) + 2,
        peer_passes=tokens + 1 if orders is None else orders * tokens + 1,
        logits_differ=f"{theirs.difference:.1e}", **forwards(batch, theirs, options),
    )  # fmt: skip


def ablation(options: Any) -> None:
    against_captum(options, "ablation", jxp.feature_ablation, "FeatureAblation", None)


def shapley(options: Any) -> None:
    name = "ShapleyValueSampling"
    against_captum(options, "shapley", jxp.shapley_sampling, name, options.orders)


def against_shap(options: Any, name: str, job: peer.Job, others: np.ndarray, baselines: Any):
    samples = 2 * others.shape[1] + 2048  # the default of both sides
    mine = {
        n: peer.explain(job, jxp.kernel_shap, baselines=baselines, samples=samples, chunk=n)
        for n in (len(others) * n for n in (1, 4, 16, 64))
    }
    theirs = {
        n: peer.shap_explainer(job, others, samples, n) for n in (512, 4096, samples * len(others))
    }
    chunk, at_once = peer.best(mine), peer.best(theirs)
    ours, other = mine[chunk], theirs[at_once]
    values = lambda scores: np.asarray(scores).reshape(options.few, -1)
    scores = [values(ours(seed).scores) for seed in range(SEEDS)]
    agree, row = agreement(scores, [values(other(seed)) for seed in range(SEEDS)])
    speed(
        FASTER["shap"], name, ours, other, agree, options, **row, samples=samples,
        background=len(others), columns=others.shape[1], batch=options.few, chunk=chunk,
        peer_rows_at_once=at_once,
    )  # fmt: skip


def table(options: Any) -> None:
    job, background = peer.table(options.few, options.background, options.hidden)
    against_shap(options, "kernel table", job, background, background)


def text(options: Any) -> None:
    job = peer.sentences(options.few).job()
    against_shap(options, "kernel text", job, np.zeros((1, job.x.shape[1])), None)


def memory(options: Any) -> None:
    """Compiled, not run."""
    job = peer.sentences(options.batch).job()
    tokens = job.x.shape[1]

    def mebibytes(method, samples):
        stats = peer.compiled(job, method, samples=samples).memory_analysis()
        assert stats is not None
        return (stats.temp_size_in_bytes + stats.output_size_in_bytes) / 2**20

    counts = 64, 512, 4096
    kernel_counts = 4 * tokens, 512, 4096  # the fewest that it takes
    sampling = [mebibytes(jxp.shapley_sampling, n) for n in counts]
    kernel = [mebibytes(jxp.kernel_shap, n) for n in kernel_counts]
    report(
        "perturbation memory",
        f"shapley_sampling at {counts[-1]} samples over {counts[0]} <= {FLAT}",
        sampling[-1] <= FLAT * sampling[0],
        ratio=sampling[-1] / sampling[0],
        samples=counts,
        shapley_sampling_mib=np.round(sampling, 3).tolist(),
        kernel_shap_samples=kernel_counts,
        kernel_shap_mib=np.round(kernel, 3).tolist(),
        batch=options.batch,
        tokens=tokens,
    )


TASKS = {"captum": (ablation, shapley), "shap": (table, text), "memory": (memory,)}


def main() -> None:
    options = parse(
        __doc__ or "", only="all", batch=64, few=8, orders=32, background=100, hidden=64,
        threads=2, repeats=5,
    )  # fmt: skip
    if options.only != "all" and options.only not in TASKS:
        sys.exit(f"--only is one of: {', '.join(TASKS)}")
    missed = False
    for task in (task for name in TASKS if options.only in ("all", name) for task in TASKS[name]):
        try:
            task(options)
        except SystemExit as end:  # the rows that follow are still worth having
            if end.code != 1:
                raise
            missed = True
    sys.exit(missed)


if __name__ == "__main__":
    main()
