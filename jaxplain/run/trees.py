"""What an example and a result are made of: numbers for the device, notes for people, padding."""

import hashlib
from collections import Counter, namedtuple
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.hierarchy import Agglomeration, Hierarchy
from jaxplain.methods.information import WordInformation
from jaxplain.methods.interactions import Interactions
from jaxplain.methods.lime import SurrogateAttribution
from jaxplain.types import (
    Attribution,
    DecomposedAttribution,
    JaxplainError,
    PyTree,
    SampledAttribution,
)

# NaN is an honest value in these fields of a result: "not claimed".
MAY_BE_NAN = {"gap", "standard_error", "r2"}
KINDS: tuple[Any, ...] = (
    Agglomeration,
    Attribution,
    DecomposedAttribution,
    Hierarchy,
    Interactions,
    SampledAttribution,
    SurrogateAttribution,
    WordInformation,
)
KNOWN = {kind.__name__: kind for kind in KINDS}


class Example(NamedTuple):
    """One example as the engine holds it.

    Attributes:
        arrays: the numeric part, numpy arrays in the dtypes that JAX computes with.
        notes: the top-level fields that hold anything else; they never reach a device.
        digest: two uint32 words of a hash of `arrays`; they make the example's random key.
    """

    arrays: PyTree
    notes: dict[str, Any]
    digest: tuple[int, int]


class Layout(NamedTuple):
    """What every example of a source has in common.

    Attributes:
        tree: structure of the numeric part.
        names: a name for each leaf, for messages.
        shapes: shape of each leaf; the leading axis of a ragged leaf is left out.
        dtypes: dtype of each leaf.
        ragged: whether the leading axis of each leaf varies between examples.
    """

    tree: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    ragged: tuple[bool, ...]


def numeric(leaf: Any) -> bool:
    """Whether a leaf can go to a device."""
    if isinstance(leaf, str | bytes):
        return False
    try:
        dtype = np.asarray(leaf).dtype
    except ValueError:  # a ragged list of lists
        return False
    return bool(jnp.issubdtype(dtype, np.number) or dtype == np.bool_)


def split(example: Any) -> Example:
    """Part an example into what is computed with and what is only noted."""
    notes = {}
    if isinstance(example, Mapping):
        kept = {}
        for name, value in example.items():
            leaves = jax.tree.leaves(value)
            if leaves and all(map(numeric, leaves)):
                kept[name] = value
            else:
                notes[name] = value
        example = kept

    def canonical(leaf):
        leaf = np.asarray(leaf)
        return np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))

    arrays = jax.tree.map(canonical, example)
    leaves = jax.tree.leaves(arrays)
    if not leaves:
        raise JaxplainError("the example holds no numeric array")
    digest = hashlib.blake2b(digest_size=8)
    for leaf in leaves:
        digest.update(heading(leaf.dtype, leaf.shape))
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    low, high = np.frombuffer(digest.digest(), np.uint32)
    return Example(arrays, notes, (int(low), int(high)))


def kind_of(example: Example) -> tuple:
    """What two examples of one source share, their length apart."""
    leaves = jax.tree.leaves(example.arrays)
    structure = jax.tree.structure(example.arrays)
    return structure, *((leaf.dtype, leaf.ndim, leaf.shape[1:]) for leaf in leaves)


def heading(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What the digest says of a leaf before its bytes."""
    return f"{dtype}{shape}".encode()


def layout(examples: list[Example], ragged: str | tuple[str, ...]) -> Layout:
    """Find the common layout of some examples, that of most of them; see `run` for `ragged`."""
    ((usual, _),) = Counter(map(kind_of, examples)).most_common(1)
    alike = [e.arrays for e in examples if kind_of(e) == usual]
    first = alike[0]
    tree = jax.tree.structure(first)
    paths = jax.tree_util.tree_leaves_with_path(first)
    names = tuple(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths)
    if ragged != "auto":
        unknown = sorted(set(ragged) - set(names))
        if unknown:
            raise JaxplainError(
                f"ragged names {', '.join(unknown)}, and the examples have {', '.join(names)}"
            )
    columns = zip(*map(jax.tree.leaves, alike), strict=True)
    shapes = [Counter(leaf.shape for leaf in column) for column in columns]
    varies = [
        len({shape[:1] for shape in found}) > 1 if ragged == "auto" else name in ragged
        for name, found in zip(names, shapes, strict=True)
    ]
    leaves = [leaf for _, leaf in paths]
    commonest = [found.most_common(1)[0][0] for found in shapes]
    return Layout(
        tree,
        names,
        tuple(s[1:] if r else s for s, r in zip(commonest, varies, strict=True)),
        tuple(a.dtype for a in leaves),
        tuple(varies),
    )


def fit(example: Example, like: Layout) -> int | None:
    """Check an example against the layout; give its length, or None where nothing is ragged.

    Raises:
        JaxplainError: saying how the example differs.
    """
    if jax.tree.structure(example.arrays) != like.tree:
        raise JaxplainError(
            f"the example's structure is {jax.tree.structure(example.arrays)}, and the others' "
            f"is {like.tree}"
        )
    length = None
    for leaf, name, shape, dtype, ragged in zip(
        jax.tree.leaves(example.arrays), *like[1:], strict=True
    ):
        if leaf.dtype != dtype:
            raise JaxplainError(f"{name} is {leaf.dtype}, and the other examples' is {dtype}")
        if (leaf.shape[1:] if ragged else leaf.shape) != shape or (ragged and not leaf.ndim):
            hint = "" if ragged else f"; if its length may vary, pass ragged=({name!r},)"
            expected = ["*", *shape] if ragged else list(shape)
            raise JaxplainError(
                f"{name} has shape {list(leaf.shape)}, and the other examples' is {expected}{hint}"
            )
        if ragged:
            if length not in (None, leaf.shape[0]):
                raise JaxplainError(
                    f"{name} has length {leaf.shape[0]}, and another ragged field of the same "
                    f"example has {length}: they must be equal"
                )
            length = leaf.shape[0]
    if length == 0:
        raise JaxplainError("the example is empty: its length is 0")
    return length


def stack(rows: list[Example], like: Layout, length: int | None, size: int) -> PyTree:
    """Stack rows into one batch of `size` rows, padded with zeros to `length`.

    Missing rows repeat the first one: real values keep the arithmetic of the batch finite.
    """
    leaves = zip(*(jax.tree.leaves(example.arrays) for example in rows), strict=True)
    columns = []
    for column, empty, ragged in zip(
        leaves, jax.tree.leaves(shaped(like, length, size)), like.ragged, strict=True
    ):
        batch = np.zeros(empty.shape, empty.dtype)
        for row, leaf in enumerate(column):
            if ragged:
                batch[row, : len(leaf)] = leaf
            else:
                batch[row] = leaf
        batch[len(rows) :] = batch[:1]
        columns.append(batch)
    return jax.tree.unflatten(like.tree, columns)


def fill(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows of one shape as a batch of `size`; see `stack` for the missing ones."""
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[:1], missing, axis=0)]) if missing else rows


def shaped(like: Layout, length: int | None, size: int) -> PyTree:
    """The shapes of a batch, without its values."""
    return jax.tree.unflatten(
        like.tree,
        [
            jax.ShapeDtypeStruct((size, *((length, *s) if r else s)), d)  # type: ignore[misc]
            for s, d, r in zip(like.shapes, like.dtypes, like.ragged, strict=True)
        ],
    )


def is_tuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def finite(result: PyTree) -> jax.Array:
    """Whether a result has no infinity, and no NaN but in a field where NaN says "not claimed"."""

    def good(leaf, nan_is_bad):
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.asarray(True)
        return jnp.all(jnp.isfinite(leaf) if nan_is_bad else ~jnp.isinf(leaf))

    def visit(node, nan_is_bad):
        if is_tuple(node):
            parts = [
                visit(value, nan_is_bad and field not in MAY_BE_NAN)
                for field, value in zip(node._fields, node, strict=True)
            ]
        elif isinstance(node, dict):
            parts = [visit(value, nan_is_bad) for value in node.values()]
        elif isinstance(node, list | tuple):
            parts = [visit(value, nan_is_bad) for value in node]
        else:
            parts = [good(leaf, nan_is_bad) for leaf in jax.tree.leaves(node)]
        return jnp.all(jnp.stack(parts)) if parts else jnp.asarray(True)

    return visit(result, True)


def describe(result: PyTree) -> Any:
    """A result's structure in lists and strings, leaves in the order of `jax.tree.leaves`."""
    if result is None:
        return ["none"]
    if is_tuple(result):
        return [
            "named",
            type(result).__name__,
            list(result._fields),
            [describe(value) for value in result],
        ]
    if isinstance(result, dict):
        names = sorted(result)
        return ["dict", names, [describe(result[name]) for name in names]]
    if isinstance(result, list | tuple):
        return [type(result).__name__, [describe(value) for value in result]]
    flat = jax.tree_util.tree_leaves_with_path(result)
    if len(flat) == 1 and not flat[0][0]:
        return ["leaf"]
    # Some other registered container: keep its leaves under their paths.
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat]
    return ["dict", names, [["leaf"] for _ in flat]]


@lru_cache(maxsize=256)
def named(name: str, fields: tuple[str, ...]) -> Any:
    kind = KNOWN.get(name)
    if kind is not None and kind._fields == fields:
        return kind
    return namedtuple(name, fields)


def rebuild(description: Any, leaves: Any) -> PyTree:
    """Inverse of `describe`: put the leaves of an iterator back into the structure."""
    kind, *rest = description
    if kind == "leaf":
        return next(leaves)
    if kind == "none":
        return None
    children = [rebuild(child, leaves) for child in rest[-1]]
    if kind == "dict":
        return dict(zip(rest[0], children, strict=True))
    if kind == "named":
        return named(rest[0], tuple(rest[1]))(*children)
    return tuple(children) if kind == "tuple" else children


def unbuild(description: Any, result: PyTree) -> list[Any]:
    """The leaves that `rebuild` was given."""
    kind, *rest = description
    if kind in ("leaf", "none"):
        return [result] if kind == "leaf" else []
    children = [result[name] for name in rest[0]] if kind == "dict" else list(result)
    pairs = zip(rest[-1], children, strict=True)
    return [leaf for child, value in pairs for leaf in unbuild(child, value)]


def leaf_names(result: PyTree) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator=".") or "the result"
        for path, _ in jax.tree_util.tree_leaves_with_path(result)
    ]
