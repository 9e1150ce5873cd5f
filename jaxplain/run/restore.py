"""What is computed outlives a damaged run.json: every shard says which run it belongs to."""

import contextlib
from pathlib import Path
from typing import Any

from jaxplain.run import fingerprint, store


def owner(out: Path) -> str | None:
    """The identity of the run that the first whole shard in a directory belongs to."""
    for path in sorted((out / "shards").glob("*.msgpack")):
        with contextlib.suppress(store.Damaged):
            return store.unpack(path).get("run")
    return None


def recorded(
    out: Path, info: dict[str, Any], identity: str, overwrite: bool
) -> dict[str, Any] | None:
    """The record of the run in `out`, None where there is none: as it stands in run.json, or, if
    that is absent or was altered and the shards are of the run with this `identity`, its own.

    Raises:
        NoRecord: if the shards do not say so either, and the run is not to be overwritten.
    """
    try:
        old = store.read_info(out)
    except store.NoRecord:
        if owner(out) == identity:
            return info
        if not overwrite and any((out / "shards").glob("*.msgpack")):
            raise
        with store.writing(out):
            store.clear(out)  # nothing was computed, or it is not wanted
        return None
    if old is not None and fingerprint.differences(old, info) and owner(out) == identity:
        return info
    return old
