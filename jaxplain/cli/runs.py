"""What is done with runs that are there: `show`, `verify`, `export`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
from cyclopts import Parameter

from jaxplain import export, report
from jaxplain.cli.app import app
from jaxplain.report import api, proof
from jaxplain.report.compare import LIMIT
from jaxplain.report.view import Survey
from jaxplain.run import load, verify
from jaxplain.run.command import Asked, bind
from jaxplain.run.places import choose_devices, placing
from jaxplain.types import JaxplainError

EXPORTS = {
    ".parquet": export.to_parquet,
    ".pq": export.to_parquet,
    ".arrow": export.to_arrow,
    ".feather": export.to_arrow,
    ".npz": export.to_npz,
}


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
