"""Two runs on the same examples, side by side: where they agree, and where not."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxplain.report import against, web
from jaxplain.report.agreement import Agreement, Comparison, agreement, reason_of
from jaxplain.report.view import View, survey, view
from jaxplain.run.packing import Record
from jaxplain.run.records import Records, load
from jaxplain.types import JaxplainError

LIMIT = 10_000  # examples on a page


def compare(
    run_a: str | Path, run_b: str | Path, path: str | Path | None = None, *, limit: int = LIMIT
) -> Comparison:
    """Compare two methods, or two models, on the same examples.

    Examples are matched by their position. Words are matched by their letters, without case,
    accents and spaces: where the models' tokenisers part words differently, the shortest stretches
    that begin and end in both are ranked. Cost: two passes over each run's records.

    Args:
        run_a: a directory that `run` wrote.
        run_b: another.
        path: write both as one HTML file, which needs no network; None writes nothing.
        limit: how many examples to show, at most: the page stays under 20 MB, and says how many it
            leaves out. The numbers are of all.

    Raises:
        JaxplainError: one is not a run, or they are not of the same examples: their number, their
            texts or, where there are none, the fingerprints of their data differ; one run is of
            word information, which has no scores to rank; the file cannot be written.
    """
    a, b = load(run_a), load(run_b)
    check_same_data(a, b)
    configurations = [run.info.get("configuration") or {} for run in (a, b)]
    surveys = [survey(run, c, limit=0) for run, c in zip((a, b), configurations, strict=True)]
    for run, seen in zip((a, b), surveys, strict=True):
        if seen.informed:
            raise JaxplainError(
                f"{run.path} is of word information, which has no scores to rank: compare runs of "
                "other methods"
            )
    pairs: list[tuple[View, View]] = []
    found: list[Agreement] = []
    signs, alike = [False, False], []
    for records in both(a, b):
        seen = [view(record, c) for record, c in zip(records, configurations, strict=True)]
        found.append(agreement(*seen))
        signs = [sign or web.two_sided([v]) for sign, v in zip(signs, seen, strict=True)]
        alike.append(None in (seen[0].target, seen[1].target) or seen[0].target == seen[1].target)
        if path is not None and len(pairs) < limit:
            pairs.append((seen[0], seen[1]))
    magnitudes = not all(signs)
    values = np.array([each.sizes if magnitudes else each.signed for each in found])
    unknown: dict[str, int] = {}
    for each, value in zip(found, values, strict=True):
        if np.isnan(value):
            reason = reason_of(each)
            unknown[reason] = unknown.get(reason, 0) + 1
    result = Comparison(
        names=named(a, b),
        agreements=values,
        units=np.array([each.units for each in found]),
        unit=next((each.unit for each in found if each.reason is None), "scores"),
        magnitudes=magnitudes,
        unknown=dict(sorted(unknown.items(), key=lambda item: -item[1])),
        alike=np.array(alike, bool),
    )
    if path is not None:
        text = against.render((a, b), (surveys[0], surveys[1]), result, pairs, found)
        try:
            web.write(Path(path), text)
        except OSError as error:
            raise JaxplainError(
                f"{path} cannot be written: {error.strerror or error}; give another --page FILE"
            ) from error
    return result


def both(a: Records, b: Records) -> Iterator[tuple[Record, Record]]:
    """The pairs of records, whose texts must agree."""
    for first, second in zip(a, b, strict=True):
        texts = [(record.notes or {}).get("text") for record in (first, second)]
        if None not in texts and texts[0] != texts[1]:
            raise JaxplainError(
                f"{a.path} and {b.path} are not of the same texts: example {first.index} differs; "
                "compare runs of the same data"
            )
        yield first, second


def check_same_data(a: Records, b: Records) -> None:
    """Refuse what can be seen not to be the same examples before any of them is read."""
    counts = [run.info["examples"] for run in (a, b)]
    if counts[0] != counts[1]:
        raise JaxplainError(
            f"{a.path} is of {counts[0]:,} examples and {b.path} of {counts[1]:,}: compare runs of "
            "the same data"
        )
    for run in (a, b):
        if len(run) != run.info["examples"]:
            raise JaxplainError(
                f"{run.path} is not complete: give the command that made it again to finish it"
            )
    prints = [(run.info.get("fingerprints") or {}).get("data") for run in (a, b)]
    told = [(next(iter(run)).notes or {}).get("text") is not None for run in (a, b)]
    # Texts are compared one by one; as arrays they differ between models, as tokenisers do.
    if not all(told) and prints[0] != prints[1]:
        raise JaxplainError(
            f"{a.path} and {b.path} are not of the same examples: the fingerprints of their data "
            "differ; compare runs of the same data"
        )


def named(a: Records, b: Records) -> tuple[str, str]:
    """The runs' titles; with the directories' names where these are the same."""
    titles = [web.names(run.info)[0] for run in (a, b)]
    if titles[0] == titles[1]:
        folders = [run.path.resolve().name for run in (a, b)]
        if folders[0] == folders[1]:
            folders = [str(run.path) for run in (a, b)]
        titles = [f"{title} ({folder})" for title, folder in zip(titles, folders, strict=True)]
    return titles[0], titles[1]
