"""Several processes on one run: which of how many this is, and how it is known."""

from typing import NamedTuple

import jax
from jax.extend.backend import clear_backends

from jaxplain.run.plan import reason
from jaxplain.types import JaxplainError

LEAST = 2.0  # seconds of patience: signs of life come every second


class Processes(NamedTuple):
    """Which of how many processes this is, all of which are given the same call of `run`.

    Attributes:
        process_id: from 0; process 0 plans, counts and writes the record.
        num_processes: how many there are.
        patience: seconds without a sign of life after which a process counts as dead, and the
            others end. One that is gone from the same machine is noticed within a second or two.
            They end when the batch or compilation at hand is done.
    """

    process_id: int = 0
    num_processes: int = 1
    patience: float = 30.0


def check(processes: Processes | None) -> Processes:
    """The processes that were given, or those that JAX knows of."""
    if processes is None:
        return Processes(jax.process_index() if jax.process_count() > 1 else 0, jax.process_count())
    number, count, patience = processes
    if count < 1 or not 0 <= number < count:
        raise JaxplainError(
            f"process {number} of {count}: processes are numbered from 0 to one less than they are"
        )
    if not patience > LEAST:
        raise JaxplainError(f"patience must be more than {LEAST:g} seconds, not {patience}")
    return Processes(number, count, patience)


def meet(coordinator: str | None, count: int | None, number: int | None) -> Processes:
    """Learn from JAX's coordination service which of how many processes this is.

    To be called before anything is computed. On CPUs the processes part again: a run needs no
    service, and with one, JAX would end a process without a word when another dies.

    Args:
        coordinator: address `host:port` of process 0; None asks the cluster's environment (SLURM,
            MPI, Kubernetes, Cloud TPU).
        count, number: how many processes, and which this is; None asks the environment.

    Raises:
        JaxplainError: no such environment; processes that do not find each other.
    """
    try:
        jax.distributed.initialize(coordinator, count, number)
        found = Processes(jax.process_index(), jax.process_count())
    except (ValueError, RuntimeError) as error:
        raise JaxplainError(
            f"the processes did not find each other: {reason(error)[:300]}; give --coordinator "
            "HOST:PORT, --processes and --process-id to each, or leave the coordinator out: they "
            "need no more than the same run directory"
        ) from error
    if jax.default_backend() == "cpu":
        jax.distributed.shutdown()
        clear_backends()
    return found
