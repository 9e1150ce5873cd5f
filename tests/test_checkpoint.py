"""Parameters through Orbax: what was saved comes back, where it was asked to be."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxplain.models import checkpoint
from tests.helpers import refused


class Pair(NamedTuple):
    a: Any
    b: Any


def tree():
    return {
        "dense": {"kernel": jnp.arange(32.0).reshape(8, 4), "bias": jnp.ones(4, jnp.bfloat16)},
        "rest": [Pair(jnp.arange(8), np.float32(2.5))],
    }


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "deep" / "params"
    checkpoint.save(path, tree())
    return path


def assert_same(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        np.testing.assert_array_equal(np.asarray(g), np.asarray(w))


def test_round_trip(saved):
    got = checkpoint.restore(saved)
    assert set(got) == {"dense", "rest"} and set(got["dense"]) == {"kernel", "bias"}
    assert_same(jax.tree.leaves(got), jax.tree.leaves(tree()))
    first = SingleDeviceSharding(jax.local_devices()[0])
    assert all(leaf.sharding == first for leaf in jax.tree.leaves(got))


def test_like_gives_containers_and_dtypes(saved):
    like = jax.eval_shape(tree)
    like["dense"]["bias"] = jax.ShapeDtypeStruct((4,), jnp.float32)
    got = checkpoint.restore(saved, like)
    assert isinstance(got["rest"][0], Pair)
    assert got["dense"]["bias"].dtype == jnp.float32
    assert jax.tree.structure(got) == jax.tree.structure(tree())


def test_each_leaf_lands_in_its_sharding(saved, mesh):
    def to(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    whole = checkpoint.restore(saved, sharding=to())
    assert all(leaf.sharding == to() for leaf in jax.tree.leaves(whole))
    assert_same(jax.tree.leaves(whole), jax.tree.leaves(tree()))

    each = {"dense": {"kernel": to("data", "model"), "bias": to("model")}, "rest": [to()]}
    got = checkpoint.restore(saved, tree(), each)
    assert got["dense"]["kernel"].sharding == to("data", "model")
    assert {s.data.shape for s in got["dense"]["kernel"].addressable_shards} == {(2, 2)}
    assert got["dense"]["bias"].sharding == to("model")
    assert got["rest"][0].a.sharding == got["rest"][0].b.sharding == to()
    assert_same(jax.tree.leaves(got), jax.tree.leaves(tree()))


def test_sharding_of_like_and_of_what_was_saved(tmp_path, mesh):
    rows = NamedSharding(mesh, PartitionSpec("data"))
    columns = NamedSharding(mesh, PartitionSpec(None, "model"))
    value = np.arange(32.0, dtype=np.float32).reshape(8, 4)
    checkpoint.save(tmp_path / "p", {"w": jax.device_put(value, rows)})  # saved from 8 devices
    like = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=columns)}
    got = checkpoint.restore(tmp_path / "p", like)["w"]
    assert got.sharding == columns
    np.testing.assert_array_equal(got, value)
    assert len(checkpoint.restore(tmp_path / "p")["w"].sharding.device_set) == 1


def test_bad_paths_are_refused(saved, tmp_path):
    refused(lambda: checkpoint.save(saved, tree()), str(saved), "exists")
    refused(lambda: checkpoint.restore(tmp_path / "none"), str(tmp_path / "none"), "is missing")
    refused(lambda: checkpoint.restore(tmp_path), str(tmp_path), "no whole")
    (tmp_path / "file").write_text("no directory")
    refused(lambda: checkpoint.restore(tmp_path / "file"), "no whole")
    refused(lambda: checkpoint.save(tmp_path / "file" / "below", tree()), "cannot be written")


def test_what_is_no_tree_of_arrays_is_refused(tmp_path):
    refused(lambda: checkpoint.save(tmp_path / "p", {"a": [1.0]}), "a/0 is a float")
    refused(lambda: checkpoint.save(tmp_path / "p", {}), "no arrays")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused(saved, mesh):
    other = tree()
    other["dense"]["kernel"] = jnp.zeros((4, 8))
    refused(lambda: checkpoint.restore(saved, other), "dense/kernel", "[8, 4]", "[4, 8]")
    other["more"] = jnp.zeros(2)
    refused(lambda: checkpoint.restore(saved, other), "like has more")
    del other["more"], other["rest"]
    refused(lambda: checkpoint.restore(saved, other), "has rest/0/a", "like has not")
    uneven = NamedSharding(mesh, PartitionSpec(("data", "model")))
    refused(lambda: checkpoint.restore(saved, tree(), uneven), "sharding does not fit")
    refused(lambda: checkpoint.restore(saved, tree(), {"dense": uneven}), "sharding does not fit")


def test_damage_is_refused(tmp_path):
    noise = np.random.default_rng(0).normal(size=(200, 200))  # too large to lie in the index
    checkpoint.save(tmp_path / "p", {"w": noise})
    largest = max((tmp_path / "p").rglob("*"), key=lambda f: f.stat().st_size if f.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[:1000])
    refused(lambda: checkpoint.restore(tmp_path / "p"), str(tmp_path / "p"), "cannot be restored")
