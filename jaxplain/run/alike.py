"""Examples of one shape, taken apart many at a time: what is done for each is hashing alone."""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxplain.run.trees import Layout, heading, numeric


class Stacked(NamedTuple):
    """Examples of one shape, leaf by leaf.

    Attributes:
        leaves: `[N, ...]` each, in the layout's order and dtypes.
        notes: of each example; empty where none has any.
        digests: `uint32[N, 2]`, equal to those of `split`.
    """

    leaves: list[np.ndarray]
    notes: list[dict[str, Any]]
    digests: np.ndarray


def split_all(examples: list[Any], like: Layout) -> Stacked | None:
    """`split` and `fit` of many examples at once, where that is plain to see; None otherwise.

    It is where each is a dict of the layout's fields, of arrays or numbers of one type, with
    nothing beside them but strings and None.
    """
    names = like.names
    if any(like.ragged) or jax.tree.structure(dict.fromkeys(names, 0)) != like.tree:
        return None
    if set(map(type, examples)) != {dict}:
        return None
    leaves = []
    for name, shape, dtype in zip(names, like.shapes, like.dtypes, strict=True):
        column = [example.get(name) for example in examples]
        kinds = set(map(type, column))
        if kinds == {np.ndarray}:
            if {(leaf.dtype, leaf.shape) for leaf in column} != {(column[0].dtype, shape)}:
                return None
        elif len(kinds) > 1 or not issubclass(kinds.pop(), int | float | np.number | np.bool_):
            return None
        stacked = np.asarray(column)
        if stacked.shape[1:] != shape or not numeric(stacked):
            return None
        if jax.dtypes.canonicalize_dtype(stacked.dtype) != dtype:
            return None
        leaves.append(np.ascontiguousarray(stacked, dtype))
    notes = []
    if set(map(len, examples)) != {len(names)}:
        notes = [{n: v for n, v in example.items() if n not in names} for example in examples]
        if not {type(v) for note in notes for v in note.values()} <= {str, type(None)}:
            return None
    parts = [
        (heading(leaf.dtype, leaf.shape[1:]), leaf.tobytes(), leaf.nbytes // len(leaf))
        for leaf in leaves
    ]
    digests = b"".join(
        hashlib.blake2b(
            b"".join([piece for text, data, size in parts
                      for piece in (text, data[row * size : (row + 1) * size])]),
            digest_size=8,
        ).digest()
        for row in range(len(examples))
    )  # fmt: skip
    return Stacked(leaves, notes, np.frombuffer(digests, np.uint32).reshape(-1, 2))
