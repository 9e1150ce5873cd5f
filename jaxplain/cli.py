"""The command line: explain a dataset, look at a run, list what there is.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 the run
broke off, 2 refused input, 130 interrupted.
"""

import inspect
import io
import os
import sys
from collections.abc import Mapping
from importlib import resources
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import jax
from cyclopts import App, Group, Parameter

import jaxplain
from jaxplain import bench, export, models, report
from jaxplain.models import trained
from jaxplain.report import api, proof
from jaxplain.report.compare import LIMIT
from jaxplain.report.view import Survey
from jaxplain.run import Summary, load, run, verify
from jaxplain.run import job as jobs
from jaxplain.run.command import Asked, bind
from jaxplain.run.job import METHODS, defaults, flag
from jaxplain.run.own import is_reference, short
from jaxplain.run.places import choose_devices, choose_process, free_directory, placing
from jaxplain.types import JaxplainError

EXPORTS = {
    ".parquet": export.to_parquet,
    ".pq": export.to_parquet,
    ".arrow": export.to_arrow,
    ".feather": export.to_arrow,
    ".npz": export.to_npz,
}
INPUT, METHOD = Group("Model and data", sort_key=1), Group("Explanation", sort_key=2)
RUN, SHOW = Group("Run", sort_key=3), Group("What is shown", sort_key=4)

app = App(
    name="jaxplain",
    help="Explain what a model looked at, for every example of a dataset, on every device.\n\n"
    "Start with `jaxplain explain`: it needs no argument and no network.",
    version=jaxplain.__version__,
    help_format="markdown",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)


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
    gap is what constants in the model keep.

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
    jobs.check_options(method, options, own)
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


@app.command(name="show")
def show_run(
    directory: Annotated[Path, Parameter(name="RUN")],
    /,
    *,
    page: Path | None = None,
    limit: int | None = None,
    against: Path | None = None,
) -> int:
    """Show a run that `jaxplain explain` or `jaxplain.run` made.

    Tokens for the explained class are orange, those against it blue. Where there are no colours,
    they are marked as [+good] and [--dull]. Trees have a line for each phrase, with its score.
    Below stands what proves the numbers: gaps, convergence, fingerprints, versions.

    **Examples**

    - `jaxplain show runs/transformer-integrated_gradients`
    - `jaxplain show runs/reviews --page reviews.html --limit 5000`
    - `jaxplain show runs/reviews --against runs/reviews-lstm --page both.html`

    Args:
        directory: the run's directory.
        page: write the run as one HTML file instead, which needs no network to be read.
        limit: how many examples to show. Default: 5 in the terminal; 10000 on a page, which stays
            under 20 MB and says how many it leaves out.
        against: another run on the same examples, of another method or model: say how nearly the
            scores of the two agree, and on the page show both for each example.
    """
    if limit is not None and limit < 0:
        raise JaxplainError(f"--limit must be at least 0, not {limit}")
    if against is not None:
        compared = report.compare(directory, against, page, limit=LIMIT if limit is None else limit)
        print(api.agreement(compared))
        print("--page FILE shows them side by side" if page is None else f"page: {page}")
        return 0
    if page is not None:
        path, info, found = api.publish(directory, page, limit=LIMIT if limit is None else limit)
        tell(info, found)
        print(f"page: {path}")
        return 0
    info, found = api.look(directory)
    report.terminal(directory, limit=5 if limit is None else limit)
    tell(info, found)
    print()
    for line in proof.lines(directory, info, found):
        print(line)
    if info.get("status") != "complete":
        print(
            f"not complete: {found.examples:,} of {info['examples']:,} examples are done; give the "
            "command that made it again to finish"
        )
    if (directory / "page.html").is_file():
        print(f"page: {directory / 'page.html'}")
    return 0


@app.command(name="verify")
def verify_run(
    directory: Annotated[Path, Parameter(name="RUN")],
    /,
    *,
    model: str | None = None,
    data: str | None = None,
    sample: int = 16,
    seed: int = 0,
    model_axis: int = 1,
) -> int:
    """Check that a run is what it says: every file, and a sample of examples computed anew.

    Every file is read and compared with its checksum, with the plan, and with run.json; model,
    data and options must be those of the run; a random sample of examples must come out as
    recorded, bit for bit on the same devices and versions. Exit code 1 if anything does not agree.

    **Examples**

    - `jaxplain verify runs/reviews`
    - `jaxplain verify runs/reviews --model models/where-it-is-now --sample 100`

    Args:
        directory: the run's directory.
        model: where the model is now. Default: where it was.
        data: where the data are now. Default: where they were.
        sample: how many examples to compute anew; 0: read the files alone.
        seed: which examples these are.
        model_axis: how many devices share a copy of the model.
    """
    if sample < 0:
        raise JaxplainError(f"--sample must be at least 0, not {sample}")
    info = load(directory).info
    origin = info.get("origin")
    if not isinstance(origin, dict) or set(origin) != set(Asked._fields):
        origin = None
    if not sample or origin is None:
        found = verify(directory)
    else:
        asked = Asked(**origin)
        asked = asked._replace(model=model or asked.model, data=data or asked.data)
        mesh = choose_devices(None, model_axis)
        job, configuration = bind(asked, placing(mesh))
        params, keep = job.params(directory, configuration)
        found = verify(
            directory,
            job.explain,
            params,
            job.source,
            key=jax.random.key(asked.seed),
            mesh=mesh,
            configuration=configuration,
            keep=keep,
            efforts=job.efforts,
            sample=sample,
            seed=seed,
        )
    print(f"files   {found.shards:,} shards, {found.records:,} examples")
    if found.compared:
        what = "bit for bit" if found.exact else f"within {found.largest:.1e} of the largest number"
        print(f"sample  {found.compared:,} examples computed anew, seed {found.seed}: {what}")
    elif sample and origin is not None:
        print("sample  none: there is no result that could be compared")
    elif sample:
        print(
            "sample  none: the run was made from Python, where jaxplain.verify(RUN, explain, "
            "params, examples, key=key) computes examples anew"
        )
    for problem in found.problems:
        print(f"error: {problem}", file=sys.stderr)
    print("verified" if found.agrees else f"not verified: {len(found.problems)} problems")
    return 0 if found.agrees else 1


@app.command(name="bench")
def run_bench(
    *,
    model: str = "transformer",
    batch: int = 32,
    length: int = 24,
    steps: int = bench.STEPS,
    repeats: int = 5,
    json: bool = False,
) -> int:
    """Time the methods on this machine: examples a second, and what each costs in gradients.

    The unit is one value_and_grad of the model on the same batch, timed in turns with the method;
    compilation is apart. Run it on an idle machine: ratios change less than seconds, and both
    change under load.

    Args:
        model: transformer, lstm, cnn, or a Hugging Face directory of a BERT classifier.
        batch: sentences at once, of random words.
        length: tokens of each.
        steps: of integrated gradients and word information, and orders of Shapley sampling.
        repeats: turns, of which the median counts.
        json: print one JSON row a method instead of the table.
    """
    if steps < 2 or steps % 2:
        raise JaxplainError(f"--steps must be an even number of at least 2, not {steps}")
    task = bench.text_task(models.load(model), batch, length)
    found = bench.costs(task, bench.methods(steps), repeats=repeats)
    about = {"model": short(model), "batch": batch, "length": length}
    about |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    if not json:
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        print(f"{'method':<34}{'examples/s':>12}{'gradients':>11}{'compile s':>11}{'MiB':>8}")
    for cost in found:
        if json:
            print(dumps(about | cost._asdict()), flush=True)
            continue
        row = f"{cost.method:<34}{cost.examples_per_second:>12,.0f}{cost.gradients:>11.2f}"
        print(f"{row}{cost.compile_seconds:>11.1f}{cost.mebibytes:>8.0f}", flush=True)
    return 0


@app.command(name="export")
def export_run(
    directory: Annotated[Path, Parameter(name="RUN")],
    file: Annotated[Path, Parameter(name="FILE")],
    /,
) -> int:
    """Write a run as a table that other tools read: Parquet, Arrow, or numpy's .npz.

    One row an example: its notes, each array of its result, its error. The file's metadata hold
    what run.json says. A run that is under way gives what is there.

    **Examples**

    - `jaxplain export runs/reviews reviews.parquet`
    - `jaxplain export runs/reviews reviews.arrow`
    - `jaxplain export runs/reviews reviews.npz`

    Args:
        directory: the run's directory.
        file: what to write: .parquet (or .pq), .arrow (or .feather), or .npz. One that is there is
            replaced.
    """
    ending = file.suffix.lower()
    if ending not in EXPORTS:
        raise JaxplainError(
            f"{file} ends in {ending or 'no extension'}: let it end in .parquet, .arrow or .npz"
        )
    done = EXPORTS[ending](directory, file)
    print(f"{done.rows:,} rows, {done.failed:,} of them failed, {len(done.columns)} columns")
    for remark in done.remarks:
        print(remark)
    if done.missing:
        print(
            f"not complete: {done.missing:,} examples are missing; give the command that made the "
            "run again to finish, and export again"
        )
    print(f"file: {done.path}")
    return 0


@app.command(name="methods")
def list_methods() -> int:
    """List the methods, what they promise, and their options with defaults.

    A complete method's scores add up to f(x) - f(baseline), and its gap says how nearly.
    """
    for name, method in METHODS.items():
        claims = (("complete", method.complete), ("conserving", method.conserving))
        marks = [mark for mark, yes in claims if yes]
        marks += ["samples: see --seed"] * method.needs_key
        marks += ["needs references: see --background"] * method.needs_baselines
        marks += ["needs a model with ReLUs"] * method.needs_relu
        print(name + (f"  ({'; '.join(marks)})" if marks else ""))
        print(f"    {method.summary}")
        settings = defaults(name, arrays=True)
        if settings:
            print("    " + "  ".join(f"{flag(k)} {spelled(v)}" for k, v in settings.items()))
    return 0


@app.command(name="models")
def list_models() -> int:
    """List the bundled models; `--model` also takes a Hugging Face directory."""
    for name in models.BUNDLED:
        with resources.as_file(resources.files(models) / "bundled" / name) as folder:
            card = trained.read_card(folder)
        print(
            f"{name:<12} {card['parameters']:>9,} parameters, {card['accuracy']['dev']:.1f}% right "
            f"on the dev set of {card['data']['name']}"
        )
        print(f"    {card['task']}: {', '.join(card['labels'])}")
    print("A directory with config.json, model.safetensors and tokenizer.json of a BERT classifier")
    print("works too: jaxplain explain --model DIRECTORY (needs pip install 'jaxplain[hf]')")
    print("Your own: jaxplain explain --model module:function --data module:function")
    return 0


def spelled(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def read_batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise JaxplainError(f"--batch-size must be auto or a whole number above 0, not {text!r}")
    return int(text)


def tell(
    info: Mapping[str, Any], found: Survey, speed: str | None = None, *, table: bool = True
) -> None:
    """Print a run in one line, and a second one where it is not as exact as it should be."""
    overview = api.overview(found)
    if table and overview:
        print(overview)
    print(api.sentence(found, speed))
    advice = api.advice(found, info.get("configuration") or {})
    if advice:
        print(advice)


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


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def usage(error: cyclopts.CycloptsError) -> str:
    """A parser's complaint, with what to do."""
    command = " ".join(("jaxplain", *(error.command_chain or ())))
    if isinstance(error, cyclopts.UnusedCliTokensError):
        extra = " ".join(error.unused_tokens or ())
        return f"{extra!r} stands alone: give a file as --data FILE; see {command} --help"
    return f"{one_line(error).rstrip('.')}; see {command} --help"


def fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def call(arguments: list[str] | None) -> int:
    """Run a command; give its exit code."""
    try:
        code = app(
            arguments,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except cyclopts.CycloptsError as error:
        return fail(usage(error), 2)
    except JaxplainError as error:
        return fail(one_line(error), 1 if isinstance(error.__cause__, OSError) else 2)
    except KeyboardInterrupt:
        return fail("interrupted before anything was computed", 130)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("JAXPLAIN_TRACEBACK"):
            raise
        return fail(
            f"{type(error).__name__}: {one_line(error)} (JAXPLAIN_TRACEBACK=1 shows where; what a "
            "run had finished is kept, and the same command resumes it)",
            1,
        )


def main() -> None:
    """The `jaxplain` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without "·" is no reason to fail
        sys.stdout.reconfigure(errors="replace")
    sys.exit(call(None))
