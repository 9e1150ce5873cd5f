"""`jaxplain explain`."""

import inspect
import sys
from pathlib import Path
from typing import Annotated

import jax
from cyclopts import Group, Parameter

from jaxplain import report
from jaxplain.cli.app import app
from jaxplain.cli.runs import tell
from jaxplain.report import api
from jaxplain.run import Summary, run
from jaxplain.run.command import Asked, bind
from jaxplain.run.options import check_options
from jaxplain.run.own import is_reference, short
from jaxplain.run.places import choose_devices, choose_process, free_directory, placing
from jaxplain.types import JaxplainError

INPUT, METHOD = Group("Model and data", sort_key=1), Group("Explanation", sort_key=2)
RUN, SHOW = Group("Run", sort_key=3), Group("What is shown", sort_key=4)


@app.command
def explain(
    *,
    model: Annotated[str, Parameter(group=INPUT)] = "transformer",
    data: Annotated[Path | None, Parameter(group=INPUT)] = None,
    format: Annotated[str | None, Parameter(group=INPUT)] = None,
    text_column: Annotated[str | None, Parameter(group=INPUT)] = None,
    label_column: Annotated[str | None, Parameter(group=INPUT)] = None,
    limit: Annotated[int | None, Parameter(group=INPUT)] = None,
    max_length: Annotated[int | None, Parameter(group=INPUT)] = None,
    method: Annotated[str, Parameter(group=METHOD)] = "integrated_gradients",
    target: Annotated[str, Parameter(group=METHOD)] = "predicted",
    tolerance: Annotated[float | None, Parameter(group=METHOD)] = None,
    background: Annotated[int | None, Parameter(group=METHOD)] = None,
    seed: Annotated[int, Parameter(group=METHOD)] = 0,
    dtype: Annotated[str, Parameter(group=METHOD)] = "float32",
    out: Annotated[Path | None, Parameter(group=RUN)] = None,
    overwrite: Annotated[bool, Parameter(group=RUN, show_default=False)] = False,
    retry: Annotated[bool, Parameter(group=RUN, show_default=False)] = False,
    batch_size: Annotated[str, Parameter(group=RUN)] = "auto",
    devices: Annotated[int | None, Parameter(group=RUN)] = None,
    model_axis: Annotated[int, Parameter(group=RUN)] = 1,
    processes: Annotated[int | None, Parameter(group=RUN)] = None,
    process_id: Annotated[int | None, Parameter(group=RUN)] = None,
    coordinator: Annotated[str | None, Parameter(group=RUN)] = None,
    show: Annotated[int, Parameter(group=SHOW)] = 5,
    quiet: Annotated[bool, Parameter(group=SHOW, show_default=False)] = False,
    **options: Annotated[str, Parameter(group=METHOD)],
) -> int:
    """Explain every sentence of a file: how much each token moved the model's answer.

    Without arguments it explains bundled sentences with a bundled model; `--model` and `--data` may
    name functions of your own, `module:function`, for texts, images and rows of tables. A run that
    was killed goes on where it stopped when the same command is given again; `jaxplain show RUN`
    shows it later.

    **The completeness gap.** Integrated gradients and expected gradients promise that an example's
    scores add up to f(x) - f(baseline): what the model says of the sentence, less what it says of
    an empty one. The gap is what the sum misses, as a share of that difference. It is the
    explanation's own error estimate: below 1% is good, and more `--steps` (more gradients along
    the way from the baseline to the sentence; time grows with them) make it smaller. DeepLIFT's
    (`deep_lift`, `deep_shap`) is rounding alone. `lrp` hands down f(x) itself, and its conservation
    gap is what constants in the model keep; `--rules` auto is gates_held for LSTMs, attention for
    transformers, epsilon for others.

    **Contextual decomposition.** `--method contextual_decomposition` splits every value inside the
    model into what came from one token and the rest; `--method acd` does so for whole phrases, and
    joins words to phrases to a tree of the sentence, so that "not good" may speak against what
    "good" speaks for. `--rules` says how values split: auto takes what was published for the kind
    of model (lstm, acd for CNNs, transformer), and shapley for others. Single tokens do not add up
    to f(x), so there is no completeness gap: each one's relevant and irrelevant part do, and the
    largest difference is told.

    **Word information.** `--method word_information` asks how much of each word every layer keeps:
    sigma is the largest noise that can be added to the word's vector while the layer stays as it
    is. A larger sigma means that the word matters less; at the cap, `--scale`, it is forgotten.
    `--layers 0,3,6` takes some layers, `--state` all words' states, their mean, or the first one.

    **Examples**

    - `jaxplain explain`
    - `jaxplain explain --method acd --model lstm`
    - `jaxplain explain --method word_information --model lstm --layers all`
    - `jaxplain explain --data reviews.tsv --method contextual_decomposition --rules shapley`
    - `jaxplain explain --data reviews.tsv --out runs/reviews`
    - `jaxplain explain --data reviews.csv --model lstm --method integrated_gradients --steps 128`
    - `jaxplain explain --data r.jsonl --text-column body --target positive --baseline token:the`
    - `jaxplain explain --model path/to/huggingface/bert --data reviews.tsv --method saliency`
    - `jaxplain explain --model mine.models:cnn --data photos/ --method kernel_shap --patch 16`
    - `jaxplain explain --data reviews.tsv --out runs/reviews --processes 2 --process-id 0`

    Args:
        model: transformer, lstm, cnn, a Hugging Face directory of a BERT classifier, or
            module:function of your own, which returns a jaxplain.models.Model or TextModel.
        data: a TSV, CSV or JSONL file in UTF-8 (TSV and CSV begin with column names), a Parquet or
            Arrow file, a folder of images, or module:function of your own, which returns a sequence
            of dicts with text or x, and label. Default: the bundled sentences.
        format: tsv, csv, jsonl, parquet or arrow, where the file's extension does not say it.
        text_column: the column of the sentences. Default: one named sentence, text, review, ...
        label_column: the column of the true classes, by name or number; only used to say which
            predictions are right. Default: one named label, class, sentiment, ...
        limit: explain only so many rows, from the top.
        max_length: cut longer sentences to so many tokens. Default: the most the model takes.
        method: how to explain; `jaxplain methods` lists them with their options.
        target: the class to explain: predicted, label, or a class by name or number.
        tolerance: how exact every result must be, such as 0.01: the completeness gap, or the
            largest standard error, as a share of f(x) - f(baseline). Examples that are not get more
            nodes or samples, and only they, up to --steps (1024) or --samples (64 times the
            default); those that are not then are marked. Of word_information: how well log sigma
            must be known.
        background: how many sentences of the data serve as reference inputs (expected_gradients:
            32), or as the sample on which layers are measured (word_information: 512).
        seed: of the random draws, for methods that sample.
        dtype: what the model computes in: float32, as it is, or bfloat16, for less memory; scores
            are summed in float32 either way. A gap is then what rounding leaves of the model's
            answers: about 1% of a logit.
        out: the run's directory. Default: runs/MODEL-METHOD, numbered if that holds another run.
        overwrite: replace another run that is in the directory.
        retry: compute examples that failed once more; otherwise they stay so.
        batch_size: sentences computed at once, over all devices; auto: as many as memory allows.
        devices: how many devices to use. Default: all.
        model_axis: how many devices share a copy of the model, each with a part of every large
            array, for models that are larger than a device.
        processes: how many processes, on one machine or many, are given this command to work on
            one run. They need to see the same --out, and nothing else of each other.
        process_id: which of them this is, from 0. Only process 0 prints results.
        coordinator: HOST:PORT of process 0, for JAX to connect them, or auto, to learn all three
            from the cluster (SLURM, MPI, Kubernetes, Cloud TPU).
        show: how many sentences to print.
        quiet: print nothing but the summary and the page's path.
        options: the method's own options, such as --steps 64 or --baseline zeros (the reference
            input: zeros, mean, pad, mask, unk, or token:WORD). Of acd: --order paper or published,
            --percentile of the candidates that a level joins, --score difference (the class's logit
            less that of the strongest other) or logit. Of methods that take parts of an image
            away: --patch, pixels a side. Arrays have baselines zeros, mean, blur, or a number.
    """
    own = [name for name in inspect.signature(explain).parameters if name != "options"]
    check_options(method, options, own)
    size = read_batch_size(batch_size)
    part = choose_process(coordinator, processes, process_id)
    mesh = choose_devices(devices, model_axis)
    if part and part.num_processes > 1 and out is None:
        raise JaxplainError("several processes share a directory: give all of them the same --out")
    if show < 0:
        raise JaxplainError(f"--show must be at least 0, not {show}")
    asked = Asked(
        model, None if data is None else str(data), format, text_column, label_column, limit,
        max_length, method, target, tolerance, background, seed, dtype, options,
    )  # fmt: skip
    job, configuration = bind(asked, placing(mesh))
    if out is None:
        names = [short(job.model.name), method]
        names += [] if data is None else [short(str(data)) if is_reference(data) else data.stem]
        out = free_directory(Path("runs") / "-".join(names), configuration, size, overwrite)
    try:
        params, keep = job.params(out, configuration)
        summary = run(
            job.explain,
            params,
            job.source,
            out,
            key=jax.random.key(seed),
            mesh=mesh,
            batch_size=size,
            max_length=job.source.max_length,
            ragged=job.ragged,
            configuration=configuration,
            keep=keep,
            tolerance=tolerance if job.efforts else None,
            efforts=job.efforts,
            origin=asked.origin(),
            processes=part,
            overwrite=overwrite,
            retry=retry,
            progress=not quiet,
        )
    except KeyboardInterrupt:
        print(
            f"interrupted: what is done is in {out}; run the same command again to resume",
            file=sys.stderr,
        )
        return 130
    if part and part.process_id:
        return 0  # process 0 tells
    return finish(summary, show=0 if quiet else show)


def read_batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise JaxplainError(f"--batch-size must be auto or a whole number above 0, not {text!r}")
    return int(text)


def finish(summary: Summary, *, show: int) -> int:
    """Show what a run came to, and write its page."""
    path, info, found = api.publish(summary.out)
    if show:
        report.terminal(summary.out, limit=show)
    if summary.resumed == summary.examples:
        speed = "done before, nothing computed anew"
    else:
        speed = f"{summary.seconds:.1f} s, {summary.examples_per_second:.0f} examples/s"
        if summary.resumed:
            speed += f", {summary.resumed:,} done before"
    tell(info, found, speed, table=show > 0)
    print(f"run:  {summary.out}")
    print(f"page: {path}")
    if not summary.done:
        reason = next(iter(found.reasons))
        print(f"error: no example could be explained: {reason}", file=sys.stderr)
        return 1
    return 0
