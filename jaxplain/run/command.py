"""What a command asked for: enough to make its run again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxplain.run import data as datasets
from jaxplain.run import job as jobs
from jaxplain.run.fingerprint import jsonable
from jaxplain.run.job import Job
from jaxplain.run.own import is_reference
from jaxplain.types import PyTree


class Asked(NamedTuple):
    """The arguments of `jaxplain explain` that decide what is computed, as they were given."""

    model: str
    data: str | None
    format: str | None
    text_column: str | None
    label_column: str | None
    limit: int | None
    max_length: int | None
    method: str
    target: str
    tolerance: float | None
    background: int | None
    seed: int
    dtype: str
    options: dict[str, str]

    def origin(self) -> dict[str, Any]:
        """As run.json keeps it: paths that exist are made absolute."""
        made = self._asdict()
        for name in ("model", "data"):
            value = made[name]
            if value is not None and not is_reference(value) and Path(value).exists():
                made[name] = str(Path(value).resolve())
        return made


def bind(
    asked: Asked, place: Callable[[PyTree], PyTree] | None = None
) -> tuple[Job, dict[str, Any]]:
    """The job, and the configuration that its run records.

    `place` puts the model's parameters on devices; see `models.load`.

    Raises:
        JaxplainError: one line, on anything that does not fit.
    """
    path = None if asked.data is None else Path(asked.data)
    read = datasets.read(
        path,
        format=asked.format,
        text_column=asked.text_column,
        label_column=asked.label_column,
        limit=asked.limit,
    )
    job = jobs.prepare(
        asked.model,
        read,
        method=asked.method,
        options={name.replace("-", "_"): value for name, value in asked.options.items()},
        target=asked.target,
        max_length=asked.max_length,
        references=asked.background,
        tolerance=asked.tolerance,
        dtype=asked.dtype,
        place=place,
    )
    configuration = {
        "model": job.model.name,
        "data": job.data,
        "method": asked.method,
        "options": job.options,
        "target": asked.target,
        "max_length": job.source.max_length,
        "seed": asked.seed,
        "dtype": asked.dtype,
        "classes": job.model.labels,
    }
    configuration |= {"tolerance": asked.tolerance} if job.efforts else {}
    return job, jsonable(configuration | job.extra)
