"""Run benchmarks one after the other, keep their rows, and write the table of throughput.

    python -m benchmarks                                # all that need nothing but jaxplain
    python -m benchmarks --only throughput,scale        # some
    python -m benchmarks --peers yes                    # also those beside Captum, SHAP and acd
    python -m benchmarks --from rows.jsonl              # only table and figure, of rows kept

Rows go to `--out` as JSON lines; what `throughput` says also to benchmarks/README.md, between its
marks, and to benchmarks/throughput.png. A benchmark that misses its bound, or cannot run, is told
of at the end, and makes the exit status 1. On an idle machine only: the rows hold the load.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARKS = "<!-- throughput -->\n", "<!-- end -->\n"
OWN = (
    "throughput --models transformer,lstm,cnn",
    "throughput --models minilm --batch 16 --length 32",
    "throughput --models bert_base,bert_large --batch 4 --length 32 --steps 8 --repeats 3",
    "throughput --models resnet50 --batch 2 --length 96 --steps 8 --repeats 3 "
    "--methods saliency,integrated_gradients,deep_lift,lrp,contextual_decomposition",
    "steps",
    "engine",
    "buckets",
    "memory",
    "rules --only cost",
    "scale",
    "processes",
    "trim_simulation",
)
PEERS = (
    "attention_peer",
    "contextual",
    "completeness",
    "perturbation",
    "rules --only captum",
    "precision --only captum",
)


def run(command: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of a benchmark, and what went wrong."""
    name, *options = command.split()
    print(f"== {command}", flush=True)
    done = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}", *options], stdout=subprocess.PIPE, text=True
    )
    rows = []
    assert done.stdout is not None
    for line in done.stdout:
        print(line, end="", flush=True)
        if line.startswith("{"):
            rows.append({"command": command} | json.loads(line))
    code = done.wait()
    return rows, "" if code == 0 else f"{command}: status {code}"


def table(rows: list[dict[str, Any]]) -> str:
    """The throughput rows as a table in Markdown."""
    lines = [
        "| model | batch, length | method | examples/s | gradients | compile s | MiB | of limit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        share = row.get("share_of_limit")
        cells = (
            f"{row['model']}, {row['parameters'] / 1e6:.3g} M"
            + ("" if row["dtype"] == "float32" else f", {row['dtype']}"),
            f"{row['batch']}, {row['length']}",
            row["method"],
            f"{row['examples_per_second']:,.0f}",
            f"{row['gradients']:.3g}",
            f"{row['compile_seconds']:.2g}",
            f"{row['mebibytes']:,.3g}",
            "" if share is None else f"{share:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    kinds = sorted({(r["device"], r["jax"], max(r["load"] for r in rows)) for r in rows})
    told = "; ".join(f"{device}, JAX {jax}, load at most {load}" for device, jax, load in kinds)
    commands = "; ".join(
        f"`python -m benchmarks.{c}`" for c in dict.fromkeys(r["command"] for r in rows)
    )
    rates = [r["product_gflop_per_s"] for r in rows]
    limit = f"One large product reaches {max(rates):.0f} GFLOP/s."
    lines += ["", "![Gradients that each method takes, by model](throughput.png)"]
    return "\n".join([*lines, "", f"{told}. {limit} {commands}.", ""])


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Gradients that each method takes, by model, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["method"] != "value_and_grad"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    methods = list(dict.fromkeys(row["method"].split(",")[0] for row in rows))
    drawing, axes = plt.subplots(figsize=(9, 0.32 * len(methods) * max(len(models), 2) / 2 + 1.5))
    height = 0.8 / len(models)
    for k, model in enumerate(models):
        mine = {r["method"].split(",")[0]: r["gradients"] for r in rows if r["model"] == model}
        places = [i for i, method in enumerate(methods) if method in mine]
        values = [mine[methods[i]] for i in places]
        bars = axes.barh([i + k * height for i in places], values, height, label=model)
        axes.bar_label(
            bars, [f"{v:.0f}" if v >= 10 else f"{v:.1f}" for v in values], fontsize=6, padding=2
        )
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(methods))], methods)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("time of one explanation, in value_and_grad of the model on the same batch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    drawing.tight_layout()
    drawing.savefig(path, dpi=140)


def publish(rows: list[dict[str, Any]]) -> None:
    timed = [row for row in rows if row["benchmark"] == "throughput"]
    if not timed:
        return
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    if not rest:
        sys.exit(f"{readme} has no line {MARKS[0].strip()}")
    written = f"{before}{MARKS[0]}{table(timed)}{MARKS[1]}{after}"
    readme.write_text(written, encoding="utf-8")
    figure(timed, HERE / "throughput.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--peers", default="no", choices=("no", "yes"))
    parser.add_argument("--out", default="rows.jsonl")
    parser.add_argument("--from", default="", dest="kept")
    options = parser.parse_args()
    if options.kept:
        lines = Path(options.kept).read_text(encoding="utf-8").splitlines()
        publish([json.loads(line) for line in lines])
        return
    wanted = [name for name in options.only.split(",") if name]
    every = [*OWN, *(PEERS if options.peers == "yes" or wanted else ())]
    chosen = [c for c in every if not wanted or c.split()[0] in wanted]
    if not chosen:
        sys.exit(f"--only takes: {', '.join(dict.fromkeys(c.split()[0] for c in every))}")
    rows, problems = [], []
    for command in chosen:
        found, problem = run(command)
        rows += found
        problems += [problem] if problem else []
        kept = "".join(json.dumps(row) + "\n" for row in rows)
        Path(options.out).write_text(kept, encoding="utf-8")
    publish(rows)
    for problem in problems:
        print(f"not as it should be: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
