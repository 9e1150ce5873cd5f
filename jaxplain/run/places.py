"""Where a command's run is computed, and where it is kept."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxplain import models
from jaxplain.run import processes, store
from jaxplain.run.fingerprint import versions
from jaxplain.run.processes import Processes
from jaxplain.types import JaxplainError, PyTree


def choose_devices(count: int | None, model_axis: int = 1) -> Mesh | None:
    """A mesh over the first `count` local devices, None meaning all; `model_axis` share a copy."""
    if count is None and model_axis == 1:
        return None
    there = jax.local_devices()
    count = len(there) if count is None else count
    if count < 1:
        raise JaxplainError(f"--devices must be at least 1, not {count}")
    if count > len(there):
        hint = ""
        if there[0].platform == "cpu":
            hint = f"; for virtual CPU devices, set JAX_NUM_CPU_DEVICES={count} in the environment"
        raise JaxplainError(
            f"--devices {count}: there {'is' if len(there) == 1 else 'are'} only {len(there)} "
            f"({there[0].device_kind}){hint}"
        )
    if model_axis < 1 or count % model_axis:
        able = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise JaxplainError(
            f"--model-axis {model_axis}: {count} device{'s' * (count > 1)} can be divided into "
            f"groups of {able}"
        )
    names = ("data", "model") if model_axis > 1 else ("data",)
    devices = np.asarray(there[:count]).reshape(-1, *(model_axis,) * (model_axis > 1))
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def placing(mesh: Mesh | None) -> Callable[[PyTree], PyTree] | None:
    """How a model's parameters are put on a mesh; None where each device has them whole."""
    return None if mesh is None or "model" not in mesh.axis_names else partial(divided, mesh=mesh)


def divided(params: PyTree, mesh: Mesh) -> PyTree:
    """Parameters over the axis `model` of a mesh, those that are divided already as they are."""
    if any(isinstance(v, jax.Array) and not v.is_fully_replicated for v in jax.tree.leaves(params)):
        return params
    return models.shard(params, mesh, models.largest_axis(mesh))


def choose_process(
    coordinator: str | None, count: int | None, number: int | None
) -> Processes | None:
    """Which of how many processes this is, before any device is touched; None: the only one.

    With a coordinator JAX connects them, or finds out where they are ("auto"); without one they
    meet in the run's directory.
    """
    if coordinator is not None:
        auto = coordinator == "auto"
        if not auto and (count is None or number is None):
            raise JaxplainError("--coordinator HOST:PORT needs --processes and --process-id")
        return processes.meet(None if auto else coordinator, count, number)
    if (count is None) != (number is None):
        raise JaxplainError("give both --processes and --process-id, or neither")
    return None if count is None or number is None else processes.check(Processes(number, count))


def free_directory(
    base: Path, configuration: Mapping[str, Any], batch_size: int | str, overwrite: bool
) -> Path:
    """The first of `base`, `base-2`, ... that is free or holds this very run, or a run whose record
    is damaged: `run` tells whether it is this one."""
    if overwrite:
        return base
    number, path = 1, base
    while path.exists():
        try:
            info = store.read_info(path) or {}
            same = (info["configuration"], info["plan"]["batch_size"], info["versions"])
        except store.NoRecord:
            break
        except (JaxplainError, OSError, KeyError, TypeError):
            same = None
        if same == (configuration, batch_size, versions()):
            break
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
