"""Parameters divided among devices: each leaf by a rule, along the axes of a mesh."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxplain.types import JaxplainError, PyTree

Rule: TypeAlias = Callable[[str, tuple[int, ...]], PartitionSpec]
Logical: TypeAlias = Sequence[tuple[str, str | tuple[str, ...] | None]]

AXIS = "model"  # of a mesh, over which parameters are divided
LEAST = 2**14  # entries: dividing biases and norms saves no memory worth its messages


def shard(params: PyTree, mesh: Mesh, rule: Rule | None = None) -> PyTree:
    """Put parameters on a mesh, each leaf divided as a rule says.

    `jaxplain.run(..., mesh=mesh)` takes them as they are, and every method runs on them unchanged:
    a mesh of `D` times `M` devices, axes `data` and `model`, holds D copies of the parameters, and
    each device 1 / M of one.

    Args:
        params: a tree of arrays, Flax's boxes of metadata among them or not, or an `nnx.State`. A
            numpy array goes to each device in part; one that is on a device was there whole
            already, so read what does not fit one device by `restore(path, abstract(...))`.
        mesh: its axes are taken in Auto mode, as `run` does.
        rule: `(path, shape) -> PartitionSpec`: a function of yours, `largest_axis(mesh)` or
            `annotated(module)`; the path is of names, as in "params/encoder/layer_1/kernel".
            Default: the metadata of `params`.

    Returns:
        the tree without boxes, in plain dicts where it was a State; leaves are sharded arrays.

    Raises:
        JaxplainError: the mesh has not the axis that a rule names; a spec with another number of
            axes than the leaf, or an axis that does not divide; no rule, and no metadata.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from jax.sharding import Mesh, PartitionSpec
    >>> mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    >>> columns = lambda path, shape: PartitionSpec(*[None] * (len(shape) - 1), "model")
    >>> tuple(shard({"kernel": np.ones((4, 8))}, mesh, columns)["kernel"].sharding.spec)
    (None, 'model')
    """
    return jax.tree.map(jax.device_put, plain(params), shardings(params, mesh, rule))


def abstract(params: PyTree, mesh: Mesh, rule: Rule | None = None) -> PyTree:
    """What `shard` would give, by shape alone: `restore` then reads for each device its part.

        like = jax.eval_shape(module.init, key, x)
        params = jxp.models.restore(path, jxp.models.abstract(like, mesh))

    Args:
        params: as in `shard`, or what `jax.eval_shape` or `nnx.eval_shape` give: nothing is read.
        mesh: as in `shard`.
        rule: as in `shard`.

    Returns:
        a tree of `jax.ShapeDtypeStruct`s with shardings. Costs nothing on any device.

    Raises:
        JaxplainError: as `shard`.
    """

    def shape(leaf, sharding):
        return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf), sharding=sharding)

    return jax.tree.map(shape, plain(params), shardings(params, mesh, rule))


def shardings(params: PyTree, mesh: Mesh, rule: Rule | None = None) -> PyTree:
    """A `NamedSharding` for each leaf, as `shard` uses them, which also says of the arguments."""
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    rule = annotated(params) if rule is None else rule

    def of(keys, leaf):
        path, shape = joined(keys), tuple(np.shape(leaf))
        return NamedSharding(mesh, checked(path, shape, rule(path, shape), mesh))

    return jax.tree_util.tree_map_with_path(of, plain(params))


def largest_axis(mesh: Mesh, *, axis: str = AXIS, least: int = LEAST) -> Rule:
    """A rule for parameters without metadata: divide the largest axis that divides evenly.

    Of several that are as large, the last. Leaves with fewer than `least` entries, and those of
    which no axis divides, are copied to every device.

    Args:
        mesh: says among how many devices.
        axis: of the mesh.
        least: entries of the smallest leaf that is divided.

    Raises:
        JaxplainError: the mesh has no such axis.

    >>> import jax, numpy as np
    >>> from jax.sharding import Mesh
    >>> mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    >>> tuple(largest_axis(mesh)("encoder/kernel", (128, 512)))
    (None, 'model')
    """
    if axis not in mesh.axis_names:
        raise JaxplainError(
            f"the mesh has axes {', '.join(mesh.axis_names)} and none named {axis!r}: make one, as "
            f"in Mesh(devices.reshape(2, 4), ('data', '{axis}'))"
        )
    among = mesh.shape[axis]

    def rule(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        del path
        able = [(size, place) for place, size in enumerate(shape) if size % among == 0]
        if not able or np.prod(shape, dtype=np.int64) < least:
            return PartitionSpec()
        return PartitionSpec(*[None] * max(able)[1], axis)

    return rule


def annotated(tree: PyTree, *, logical: Logical = ()) -> Rule:
    """The rule that a model's own metadata is; a leaf without any is copied to every device.

    Args:
        tree: linen's variables with their boxes (`nn.with_partitioning`), also those of
            `jax.eval_shape(module.init, ...)`; or an nnx module or its state
            (`nnx.with_partitioning`). Paths are those of the parameters, so that
            `shard(from_nnx(module).params, mesh, annotated(module))` finds them.
        logical: pairs of a name in the metadata and an axis of the mesh, or None, as Flax's logical
            axis rules: earlier pairs first, no axis twice in a leaf. Other names are axes.

    Raises:
        JaxplainError: there is no metadata in `tree`; when it is used, a path that is not in it.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> kernel = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
    >>> module = nn.Dense(8, kernel_init=kernel)
    >>> variables = jax.eval_shape(module.init, jax.random.key(0), jnp.ones(4))
    >>> rule = annotated(variables, logical=[("embed", None), ("mlp", "model")])
    >>> tuple(rule("params/kernel", (4, 8)))
    (None, 'model')
    """
    tree = nnx.state(tree) if isinstance(tree, nnx.Module) else tree
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box)
    specs = {joined(keys): spec_of(leaf) for keys, leaf in found}
    if not any(specs.values()):
        raise JaxplainError(
            "there is no sharding metadata in these parameters: give a rule, such as "
            "jaxplain.models.largest_axis(mesh)"
        )

    def rule(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        del shape
        if path not in specs:
            raise JaxplainError(
                f"{path} is not among the parameters of the metadata ({', '.join([*specs][:3])}, "
                "...): take both from the same module"
            )
        named = {name for name, _ in logical}
        same = tuple((name, name) for name in names_of(specs[path]) if name not in named)
        if not named:
            return specs[path]
        return logical_to_mesh_axes(tuple(specs[path]), (*logical, *same)) or PartitionSpec()

    return rule


def is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata | nnx.Variable)


def spec_of(leaf: Any) -> PartitionSpec:
    """What a leaf's own metadata says, `PartitionSpec()` if it has none."""
    if isinstance(leaf, nnx.Variable):
        return nnx.get_partition_spec(leaf).get_value()
    return leaf.get_partition_spec() if is_box(leaf) else PartitionSpec()


def names_of(spec: PartitionSpec) -> list[str]:
    """The mesh axes in a spec, one after the other."""
    return [n for entry in spec if entry for n in ((entry,) if isinstance(entry, str) else entry)]


def plain(params: PyTree) -> PyTree:
    """The tree without boxes."""
    if isinstance(params, nnx.State):
        return nnx.to_pure_dict(params)

    def open_box(leaf):
        if isinstance(leaf, nnx.Variable):
            return leaf.get_value()
        if isinstance(leaf, nn.Partitioned):  # its own unbox moves arrays where a mesh is set
            return leaf.value
        return leaf.unbox() if is_box(leaf) else leaf

    return jax.tree.map(open_box, params, is_leaf=is_box)


def joined(keys: Any) -> str:
    """A path as a name: `layer_1/kernel`."""
    name = lambda key: next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a))
    return "/".join(str(name(key)) for key in keys)


def checked(path: str, shape: tuple[int, ...], spec: Any, mesh: Mesh) -> PartitionSpec:
    """`spec`, if it fits the leaf and the mesh."""
    where = f"{path} {list(shape)}"
    if not isinstance(spec, PartitionSpec):
        raise JaxplainError(
            f"the rule gives {spec!r} for {where}: return a PartitionSpec, PartitionSpec() for a "
            "copy on each device"
        )
    if PartitionSpec.UNCONSTRAINED in spec:
        raise JaxplainError(f"the rule gives {spec} for {where}: name an axis, or None, for each")
    if len(spec) > len(shape):
        raise JaxplainError(
            f"the rule gives {spec} for {where}, which has {len(shape)} axes: name no more"
        )
    names = names_of(spec)
    for name in names:
        if name not in mesh.axis_names:
            raise JaxplainError(
                f"{where} is to be divided along {name!r}, and the mesh has axes "
                f"{', '.join(mesh.axis_names)}: name one of them, or for Flax's logical axes give "
                f"rule=jaxplain.models.annotated(..., logical=[({name!r}, 'model')])"
            )
        if names.count(name) > 1:
            raise JaxplainError(f"the rule gives {spec} for {where}: name {name!r} once")
    for place, entry in enumerate(spec):
        among = int(np.prod([mesh.shape[n] for n in names_of(PartitionSpec(entry))], dtype=int))
        if shape[place] % among:
            raise JaxplainError(
                f"{where} cannot be divided along axis {place}: {shape[place]} is no multiple of "
                f"the {among} devices of {entry!r}; give another rule, or pad it"
            )
    return spec
