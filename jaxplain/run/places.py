"""Where a command's run is computed, and where it is kept."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxplain.run import store
from jaxplain.run.fingerprint import versions
from jaxplain.types import JaxplainError


def choose_devices(count: int | None) -> Mesh | None:
    """A mesh over the first `count` local devices; None means all of them."""
    if count is None:
        return None
    there = jax.local_devices()
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
    return Mesh(np.asarray(there[:count]), ("data",), axis_types=(AxisType.Auto,))


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
            store.read_info(path)
            info = json.loads((path / "run.json").read_text(encoding="utf-8"))
            same = (info["configuration"], info["plan"]["batch_size"], info["versions"])
        except store.NoRecord:
            break
        except (JaxplainError, OSError, ValueError, KeyError, TypeError):
            same = None
        if same == (configuration, batch_size, versions()):
            break
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
