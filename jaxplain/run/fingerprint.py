"""What makes two runs the same run, and how to say in one line in what they differ."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.run.trees import Example
from jaxplain.types import JaxplainError, PyTree

LABELS = {
    "function": "the explain function",
    "params": "the parameters",
    "data": "the examples",
    "key": "the random key",
    "kept": "the kept arrays",
}


def digest(parts: Any) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part if isinstance(part, bytes | memoryview) else str(part).encode())
        state.update(b"\0")
    return state.hexdigest()


def of_params(params: PyTree) -> str:
    """Of every parameter's path, dtype, shape and value, however it lies on devices."""

    def parts() -> Iterator[Any]:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
                leaf = leaf.copy()  # an array keeps what numpy made of it; the copy goes with it
            leaf = np.ascontiguousarray(np.asarray(leaf))
            yield f"{jax.tree_util.keystr(path)}{leaf.dtype}{leaf.shape}"
            yield leaf.reshape(-1).view(np.uint8).data if leaf.size else b""

    return digest(parts())


def of_data(count: int, probes: list[Example | None]) -> str:
    """Of the number of examples and of the evenly spaced ones that were probed."""
    return digest([count, *(f"{e.digest}{sorted(e.notes)}" for e in probes if e)])


def of_probes(probes: list[Example | None]) -> str:
    """Of each example that was probed, in eight digits; `-` for one that could not be read."""
    return " ".join(digest([e.digest, sorted(e.notes)])[:8] if e else "-" for e in probes)


def same_data(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two records are of the same data: where examples could not be read at one of the two
    starts, the others say."""
    if old.get("fingerprints", {}).get("data") == new["fingerprints"]["data"]:
        return True
    before, after = (str(info.get("probes", "")).split() for info in (old, new))
    if len(before) != len(after) or old.get("examples") != new["examples"]:
        return False
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if "-" not in (a, b)]
    return bool(pairs) and all(a == b for a, b in pairs)


def keep_data(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Make a record say of the data what that of the first start says, for shards hold it; what
    could be read then or now is compared from now on."""
    if old.get("fingerprints", {}).get("data") != new["fingerprints"]["data"]:
        pairs = zip(old["probes"].split(), new["probes"].split(), strict=True)
        new["probes"] = " ".join(b if a == "-" else a for a, b in pairs)
        new["fingerprints"]["data"] = old["fingerprints"]["data"]


def of_key(key: jax.Array) -> str:
    return digest([str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tobytes()])


def versions() -> dict[str, str]:
    """Of jaxplain, jax and jaxlib; a source tree that was not installed says so."""
    found = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    try:
        return {"jaxplain": importlib.metadata.version("jaxplain")} | found
    except importlib.metadata.PackageNotFoundError:
        return {"jaxplain": "not installed"} | found


def identity(info: dict[str, Any]) -> str:
    """Of all that makes a run this run; each of its shards holds it."""
    names = ("examples", "configuration", "plan", "versions", "fingerprints")
    return digest([json.dumps(jsonable({n: info.get(n) for n in names}), sort_keys=True)])


def flat(options: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(options, dict):
        return {prefix: options}
    out: dict[str, Any] = {}
    for name, value in options.items():
        out |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return out


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Each difference between two records, the most telling first, in words."""
    lines = []
    before, after = flat(old.get("configuration")), flat(jsonable(new["configuration"]))
    for name in [*after, *(n for n in before if n not in after)]:
        a, b = before.get(name, "unset"), after.get(name, "unset")
        if a != b:
            lines.append(f"{name} is {a} there and {b} here")
    for group in ("plan", "versions"):
        before, after = flat(old.get(group)), flat(jsonable(new[group]))
        lines += [
            f"{name} is {before.get(name, 'unset')} there and {after[name]} here"
            for name in after
            if before.get(name, "unset") != after[name]
        ]
    for name, label in LABELS.items():
        if name == "function" and lines:
            continue  # another option, or another version, is another function: no news
        if name == "data" and same_data(old, new):
            continue
        if old.get("fingerprints", {}).get(name) != new["fingerprints"].get(name):
            lines.append(f"{label} differ{'' if label.endswith('s') else 's'}")
    return lines


def check_same(out: Any, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise if the run in `out` is another run than the one that is asked for."""
    lines = differences(old, new)
    if lines:
        raise JaxplainError(
            f"{out} holds another run: {'; '.join(lines)}. Give another directory, or "
            "overwrite it (overwrite=True, --overwrite)"
        )


def jsonable(value: Any) -> Any:
    """A configuration as JSON keeps it, so that it compares equal after a round trip."""
    return json.loads(json.dumps(value, default=str))
