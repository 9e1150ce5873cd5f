"""What is in a result: its fields, its arrays, its word information."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def field(value: Any, name: str) -> Any:
    """A named tuple's or a dict's field, or None."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a tree of dicts and tuples, with its place in it."""
    if tree is None:
        return
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        items = zip(tree._fields, tree, strict=True)  # type: ignore[attr-defined]
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        yield path, np.asarray(tree)
        return
    for name, value in items:
        yield from leaves(value, f"{path}.{name}" if path else str(name))


def word_information(result: Any) -> Any:
    """The `WordInformation` of a result, with an axis of layers; None if none."""
    found = field(result, "information")
    found = result if found is None else found
    if field(found, "log_ratio") is None or field(found, "sigma") is None:
        return None
    if np.ndim(found.sigma) == 2:
        return found
    return type(found)(*(np.asarray(array)[None] for array in found))


def layer_numbers(configuration: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """The layers' numbers: as the run was configured, or else counted from 0."""
    options = configuration.get("options")
    layers = options.get("layers") if isinstance(options, Mapping) else None
    if isinstance(layers, list | tuple) and len(layers) == count:
        return tuple(int(layer) for layer in layers)
    return tuple(range(count))


def number(value: Any) -> float | None:
    """A scalar as a float; None where it is absent, not a scalar, or NaN."""
    if value is None or np.size(value) != 1:
        return None
    value = float(np.asarray(value).reshape(()))
    return None if np.isnan(value) else value
