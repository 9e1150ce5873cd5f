"""Where a command's run is computed, and where it is kept."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxplain import models
from jaxplain.run.fingerprint import versions
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


def free_directory(
    base: Path, configuration: Mapping[str, Any], batch_size: int | str, overwrite: bool
) -> Path:
    """The first of `base`, `base-2`, ... that is free or holds this very run."""
    if overwrite:
        return base
    number, path = 1, base
    while path.exists():
        try:
            info = json.loads((path / "run.json").read_text(encoding="utf-8"))
            same = (info["configuration"], info["plan"]["batch_size"], info["versions"])
        except (OSError, ValueError, KeyError, TypeError):
            same = None
        if same == (configuration, batch_size, versions()):
            break
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
