"""What the parts of a run hand to each other, and what it comes to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxplain.run.compile import Outputs
from jaxplain.run.plan import Batch
from jaxplain.run.precision import Effort
from jaxplain.run.trees import Layout
from jaxplain.types import PyTree


class Summary(NamedTuple):
    """What a run came to.

    Attributes:
        out: the run directory.
        examples: examples of the source.
        done: examples with a result on disk, those of earlier starts included.
        failed: examples recorded as failed, with their reason.
        resumed: examples that earlier starts had finished, failed ones included.
        seconds: wall time of this start, compilation included.
        examples_per_second: of this start, over the time after the first program was compiled.
        padding: share of the positions computed by this start that was padding.
        gap: of all results' completeness gaps, in f's units, without sign: how many are `claimed`
            and `not_claimed` (NaN), `median`, `percentile_99` and `largest`, and the
            `largest_of_output`, relative to |f(x)|; empty where results have no `gap`. Of more
            than 131,072 gaps the median and the percentile are known to 0.05%.
        precision: of a run with a tolerance: how many examples are `converged` and
            `not_converged`, `evaluations` of all, and how many ended with how many each, `efforts`.
        standard_error: of each result's largest one, in the scores' units: how many are `known`,
            `median`, `percentile_99` and `largest`; empty where results have none.
        failures: how many examples failed for each reason, most frequent first, 20 at most.
    """

    out: Path
    examples: int
    done: int
    failed: int
    resumed: int
    seconds: float
    examples_per_second: float
    padding: float
    gap: dict[str, float]
    precision: dict[str, Any] = {}  # noqa: RUF012
    standard_error: dict[str, float] = {}  # noqa: RUF012
    failures: dict[str, int] = {}  # noqa: RUF012


class Settings(NamedTuple):
    """The arguments of `run` that its parts share."""

    explain: Callable
    params: PyTree
    key: jax.Array
    like: Layout
    out: Path
    mesh: Mesh
    batch_size: int | str
    shard_size: int
    lengths: tuple[int, ...]
    max_length: int | None
    memory: int
    outputs: Outputs
    tolerance: float | None
    efforts: tuple[Effort, ...]
    identity: str
    count: int
    retry: bool
    window: int


class Work(NamedTuple):
    """One batch on its way to the device: where it belongs, and its rows as far as they exist."""

    shard: int
    batch: Batch
    lengths: list[int | None]
    notes: list[dict]  # empty where no row has any
    errors: dict[int, str]  # by row
    arrays: PyTree
    digests: np.ndarray | None
