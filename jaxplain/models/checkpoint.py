"""Parameters on disk through Orbax, read straight into the sharding they are to have."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxplain.types import JaxplainError, PyTree


def save(path: str | Path, params: PyTree) -> None:
    """Write a tree of arrays as an Orbax checkpoint, and return when it is on disk.

    The directory appears under its name only when it is whole. In a job of several processes all
    of them call this, and each writes the shards that it holds.

    Args:
        path: directory to make; all processes must see the same one.
        params: arrays, sharded or not.

    Raises:
        JaxplainError: `path` exists or cannot be written, or a leaf is no array.
    """
    path = Path(path).absolute()
    if path.exists():
        raise JaxplainError(f"{path} exists: choose another name, or remove it")
    leaves = _leaves(params)
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise JaxplainError(f"{name} is a {type(leaf).__name__}: save arrays alone")
    if not leaves:
        raise JaxplainError("params has no arrays in it: there is nothing to save")
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path, params)
    except (OSError, ValueError, TypeError) as error:
        raise JaxplainError(f"{path} cannot be written: {_line(error)}") from error


def restore(
    path: str | Path, like: PyTree = None, sharding: jax.sharding.Sharding | PyTree = None
) -> PyTree:
    """Read what `save` wrote; no device holds more than its own shards at any time.

    Args:
        path: the checkpoint's directory.
        like: tree of arrays or `jax.ShapeDtypeStruct`s: the checkpoint is checked against its
            shapes, converted to its dtypes, and comes back in its containers. Without it the
            tree is of dicts and lists, as it was saved.
        sharding: one for all leaves, or a tree of them, which may stop early: a sharding in place
            of a subtree serves all its leaves. Default: like's own, as `models.abstract` gives
            them, and where it has none, whole on this process's first device.

    Raises:
        JaxplainError: `path` is missing or is no whole checkpoint, `like` has other leaves or
            shapes, or `sharding` does not fit the tree or a shape.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise JaxplainError(f"{path} is missing: give the directory that save(path, params) wrote")
    with _checkpointer() as checkpointer:
        try:
            found = checkpointer.metadata(path).item_metadata
        except (OSError, ValueError) as error:
            raise JaxplainError(f"{path} is no whole checkpoint: {_line(error)}") from error
        if found is None:
            raise JaxplainError(
                f"{path} is no whole Orbax checkpoint: give what save(path, params) made"
            )
        saved = found.tree
        if like is None:
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)
        _check(path, saved, like)
        try:
            return checkpointer.restore(path, _placed(like, sharding))
        except JaxplainError:
            raise
        except Exception as error:  # array storage raises its own kinds
            raise JaxplainError(f"{path} cannot be restored: {_line(error)}") from error


def _checkpointer() -> ocp.Checkpointer:
    # The synchronous one: an error of the disk is raised here, not in a thread that is waited for.
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _check(path: Path, saved: PyTree, like: PyTree) -> None:
    """Raise unless `like` has the leaves and shapes that were saved."""
    has, wants = _leaves(saved), _leaves(like)
    for name in sorted(has.keys() ^ wants.keys()):
        where, other = (path, "like") if name in has else ("like", path)
        raise JaxplainError(f"{where} has {name}, and {other} has not: restore the same tree")
    for name, leaf in wants.items():
        if leaf.shape != has[name].shape:
            raise JaxplainError(
                f"{name} has shape {list(has[name].shape)} in {path} and {list(leaf.shape)} in "
                "like: restore the model that was saved"
            )


def _leaves(tree: PyTree) -> dict[str, PyTree]:
    """Flatten to names; Orbax saves a NamedTuple as a dict, so a field is named as a key is."""

    def name(key) -> str:
        return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(name, keys)) or "the array": leaf for keys, leaf in leaves}


def _placed(like: PyTree, sharding: PyTree) -> PyTree:
    """Give each leaf of `like` the sharding that it is to be read into."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(where, leaf):
        where = getattr(leaf, "sharding", None) if where is None else where
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where or default)

    def spread(where, part):
        return jax.tree.map(lambda leaf: place(where, leaf), part)

    try:
        return jax.tree.map(spread, sharding, like, is_leaf=lambda where: where is None)
    except (ValueError, TypeError) as error:
        raise JaxplainError(
            f"sharding does not fit the tree of parameters: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
