"""Parameters divided among devices: where they lie, and that explanations stay what they were."""

import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxplain as jxp
from jaxplain import cli, models
from jaxplain.models import checkpoint
from jaxplain.run import compile as compiler
from jaxplain.run import fingerprint, plan
from tests.helpers import refused

P = PartitionSpec
WIDTH, INNER, WORDS, LENGTH = 8, 16, 12, 5


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("JAXPLAIN_CACHE", "off")


def grid(data=2, model=4, types=AxisType.Auto) -> Mesh:
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(types,) * 2)


def parted(*names):
    return nn.with_partitioning(nn.initializers.lecun_normal(), names)


class Network(nn.Module):
    """A block of a Transformer over embedded words, ReLUs in it, divided as Megatron does."""

    def setup(self):
        column = lambda size: nn.Dense(size, kernel_init=parted(None, "model"))
        row = lambda size: nn.Dense(size, kernel_init=parted("model", None))
        self.embedding = nn.Embed(WORDS, WIDTH, embedding_init=parted("model", None))
        self.query, self.key, self.value = column(WIDTH), column(WIDTH), column(WIDTH)
        self.out, self.inner, self.outer = row(WIDTH), column(INNER), row(WIDTH)
        self.head = nn.Dense(3)

    def embed(self, ids):
        return self.embedding(ids)

    def state(self, x):
        split = lambda v: v.reshape(LENGTH, 2, WIDTH // 2)
        query, key, value = (split(part(x)) for part in (self.query, self.key, self.value))
        weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", query, key))
        x = x + self.out(jnp.einsum("hqk,khd->qhd", weights, value).reshape(LENGTH, WIDTH))
        return x + self.outer(jax.nn.relu(self.inner(x)))

    def projected(self, x):
        return self.out(self.query(x))

    def __call__(self, x):
        return self.head(self.state(x).mean(0))

    def whole(self, ids):
        return self(self.embed(ids))


@pytest.fixture(scope="module")
def variables():
    return Network().init(jax.random.key(0), jnp.zeros(LENGTH, jnp.int32), method="whole")


def apply(params, x, method="__call__"):
    return Network().apply(params, x, method=method)


ROWS = np.arange(LENGTH)[:, None]
FAMILIES = {
    "gradient": lambda f, h, x, key: jxp.saliency(f, x),
    "path": lambda f, h, x, key: jxp.integrated_gradients(f, x, steps=3),
    "shapley": lambda f, h, x, key: jxp.shapley_sampling(f, x, key=key, groups=ROWS, samples=4),
    "deep_lift": lambda f, h, x, key: jxp.deep_lift(f, x),
    "lrp": lambda f, h, x, key: jxp.lrp(f, x),
    "rectified": lambda f, h, x, key: jxp.guided_backprop(f, x),
    "contextual": lambda f, h, x, key: jxp.token_scores(f, x, rules=jxp.CD_TRANSFORMER),
    "information": lambda f, h, x, key: jxp.word_information(
        h, x, key=key, scale=3.0, steps=12, probes=2
    ),
}


def explain(params, example, key):
    x = apply(params, example["ids"], "embed")
    f, h = lambda x: apply(params, x)[1], lambda x: apply(params, x, "projected")
    return {name: one(f, h, x, key) for name, one in FAMILIES.items()}


def examples(count=8):
    ids = np.random.default_rng(0).integers(0, WORDS, (count, LENGTH))
    return [{"ids": row.astype(np.int32)} for row in ids]


@pytest.fixture(scope="module")
def both(variables):
    """What all families give with a copy of the parameters on each device, and with a part of one.

    On one mesh, so that it is traced once.
    """
    mesh = grid()
    rows = NamedSharding(mesh, P("data"))
    batch = {"ids": np.stack([e["ids"] for e in examples()])}
    inputs = jax.device_put((batch, jax.random.split(jax.random.key(0), 8)), rows)
    program = jax.jit(jax.vmap(explain, (None, 0, 0)), out_shardings=rows)
    divided = models.shard(variables, mesh)
    whole = jax.device_put(nn.meta.unbox(variables), NamedSharding(mesh, P()))
    assert {s.data.shape for s in divided["params"]["inner"]["kernel"].addressable_shards} == {
        (WIDTH, INNER // 4)
    }
    with jax.set_mesh(mesh):
        return tuple(jax.device_get(program(params, *inputs)) for params in (whole, divided))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_what_it_was(both, family):
    whole, divided = (one[family] for one in both)
    same(whole, divided)
    assert np.ptp(whole[0]) > 0


def same(want, got):
    """Every field to 1e-5 of its own or the scores' largest: float32 sums in another order."""
    scores = np.abs(np.asarray(want[0])).max()
    for name, a, b in zip(want._fields, want, got, strict=True):
        largest = max(scores, np.abs(np.nan_to_num(np.float64(a))).max())
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * largest, err_msg=name)


# ---- the engine


def go(params, out, mesh):
    """A run that explains two layers."""

    def few(params, example, key):
        x = apply(params, example["ids"], "embed")
        f = lambda x: jnp.tanh(jnp.asarray(apply(params, x, "projected"))).sum()
        return jxp.input_x_gradient(f, x)

    one = {"shard_size": 2, "batch_size": 2, "key": jax.random.key(0), "progress": False}
    return jxp.run(few, params, examples(), out, mesh=mesh, **one)


def test_a_run_with_whole_parameters_goes_on_with_divided_ones(variables, tmp_path):
    mesh, whole = grid(), nn.meta.unbox(variables)
    go(whole, tmp_path / "r", Mesh(np.asarray(jax.devices()[:2]), ("data",)))
    before = list(jxp.load(tmp_path / "r"))
    (tmp_path / "r" / "shards" / "00000-0001.msgpack").unlink()
    summary = go(models.shard(variables, mesh), tmp_path / "r", mesh)
    assert (summary.resumed, summary.done) == (6, 8)
    for one, two in zip(before, jxp.load(tmp_path / "r"), strict=True):
        same(one.result, two.result)


def test_fingerprints_do_not_depend_on_where_parameters_lie(variables):
    mesh, whole = grid(), nn.meta.unbox(variables)
    divided = models.shard(variables, mesh)
    assert fingerprint.of_params(divided) == fingerprint.of_params(whole)
    kernel = divided["params"]["inner"]["kernel"]
    divided["params"]["inner"]["kernel"] = kernel.at[0, -1].add(1e-3)
    assert fingerprint.of_params(divided) != fingerprint.of_params(whole)


def test_placing_keeps_parts_and_refuses_what_would_need_copies(variables):
    mesh, explicit = grid(), grid(types=AxisType.Explicit)
    divided = models.shard(variables, explicit)
    placed = compiler.place(divided, compiler.check_mesh(explicit))
    for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(divided), strict=True):
        assert a.sharding == b.sharding
        pairs = zip(a.addressable_shards, b.addressable_shards, strict=True)
        assert all(
            u.data.unsafe_buffer_pointer() == v.data.unsafe_buffer_pointer() for u, v in pairs
        )
    for other in (
        None,
        grid(4, 2),
        Mesh(np.asarray(jax.devices()[:4]).reshape(1, 4), mesh.axis_names),
    ):
        refused(
            lambda other=other: compiler.place(divided, compiler.check_mesh(other)),
            "divided over {'data': 2, 'model': 4}", "mesh=mesh",
        )  # fmt: skip


def test_no_device_ever_holds_a_whole_array():
    """Neither at rest nor in the program, whose own memory is told without the parameters' part."""
    size, mesh = 512, grid()
    draw = np.random.default_rng(0)
    params = {n: draw.normal(size=(size, size)).astype("f4") / size**0.5 for n in ("a", "b")}
    rule = lambda path, shape: P(None, "model") if path == "a" else P("model", None)
    divided = models.shard(params, mesh, rule)
    shapes = {s.data.shape for leaf in divided.values() for s in leaf.addressable_shards}
    assert shapes == {(size, size // 4), (size // 4, size)}

    def explain(params, example, key):
        f = lambda x: jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]).sum()
        return jxp.integrated_gradients(f, example["x"], steps=2)

    like, _ = plan.probe([{"x": np.ones(size, np.float32)}], "auto")
    key = jax.device_put(jax.random.key(0), NamedSharding(mesh, P()))
    program = compiler.compile_bucket(explain, divided, key, like, None, 2, mesh, memory=None)
    whole, inputs = params["a"].nbytes, 2 * 4 * size
    assert inputs < program.bytes < whole
    held = program.call.memory_analysis().argument_size_in_bytes  # type: ignore[attr-defined]
    assert 2 * whole / 4 < held < 2 * whole / 4 + 2 * inputs
    text = program.call.as_text()  # type: ignore[attr-defined]
    # Devices speak with those that hold the other parts of their copy, and of results alone.
    groups = re.findall(r"all-reduce\(.*replica_groups=([^ ]*), ", text)
    assert groups and set(groups) <= {"{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]"}, groups
    assert "all-gather" not in text


# ---- rules


def test_paths_and_shapes_reach_the_rule():
    seen = {}

    def rule(path, shape):
        seen[path] = shape
        return P()

    tree = {"layers": [{"kernel": np.ones((4, 8))}, {"kernel": np.ones(3)}], "scale": 2.0}
    got = models.shard(tree, grid(), rule)
    assert seen == {"layers/0/kernel": (4, 8), "layers/1/kernel": (3,), "scale": ()}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(got))


def test_largest_axis():
    rule = models.largest_axis(grid(), least=32)
    want = {(8, 16): P(None, "model"), (16, 8): P("model"), (8, 8): P(None, "model")}
    want |= {
        (7, 8): P(None, "model"),
        (7, 9): P(),
        (2, 8): P(),
        (): P(),
        (9, 8, 3): P(None, "model"),
    }
    want |= {(7, 9): P(), (2, 8): P(), (): P()}
    assert {shape: rule("w", shape) for shape in want} == want
    refused(
        lambda: models.largest_axis(Mesh(np.asarray(jax.devices()), ("data",))),
        "axes data", "none named 'model'",
    )  # fmt: skip


def test_rules_that_do_not_fit_are_refused():
    tree, mesh = {"w": np.ones((10, 8), np.float32)}, grid()
    bad = {
        P("model"): ("w [10, 8]", "axis 0", "10 is no multiple of the 4 devices of 'model'"),
        P(("data", "model")): ("the 8 devices of ('data', 'model')",),
        P(None, None, "model"): ("w [10, 8], which has 2 axes",),
        P(None, "heads"): ("along 'heads'", "axes data, model", "logical=[('heads', 'model')]"),
        P(P.UNCONSTRAINED): ("name an axis, or None",),
        None: ("gives None", "PartitionSpec()"),
        (None, "model"): ("gives (None, 'model')",),
    }
    for spec, words in bad.items():
        refused(lambda spec=spec: models.shard(tree, mesh, lambda path, shape: spec), *words)
    refused(lambda: models.shard(tree, mesh), "no sharding metadata", "largest_axis(mesh)")


# ---- metadata


def test_linen_metadata_by_shape_alone(variables):
    mesh = grid()
    inputs = jax.random.key(0), jnp.zeros(LENGTH, jnp.int32)
    shapes = jax.eval_shape(lambda *a: Network().init(*a, method="whole"), *inputs)
    like = models.abstract(shapes, mesh)
    assert jax.tree.structure(like) == jax.tree.structure(nn.meta.unbox(variables))
    assert like["params"]["query"]["kernel"].sharding == NamedSharding(mesh, P(None, "model"))
    assert like["params"]["query"]["bias"].sharding == NamedSharding(mesh, P())
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(like))
    real = models.shard(variables, mesh)
    for a, b in zip(jax.tree.leaves(like), jax.tree.leaves(real), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


def test_logical_axes():
    init = nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))
    shapes = jax.eval_shape(nn.Dense(8, kernel_init=init).init, jax.random.key(0), jnp.ones(4))
    rule = models.annotated(shapes, logical=[("embed", "model"), ("mlp", "model"), ("mlp", "data")])
    got = models.shardings(shapes, grid(), rule)["params"]  # each axis of the mesh once
    assert got["kernel"].spec == P("model", "data") and got["bias"].spec == P()
    refused(lambda: models.shardings(shapes, grid()), "along 'embed'", "logical=")
    refused(lambda: rule("params/other", (2,)), "params/other is not among", "params/bias")


class Stack(nnx.Module):
    def __init__(self, rngs):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        layer = lambda: nnx.Linear(8, 8, kernel_init=init, rngs=rngs)
        self.layers, self.drop = nnx.List([layer(), layer()]), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = self.drop(jnp.tanh(layer(x)))
        return x


def test_nnx_metadata(tmp_path):
    mesh, x = grid(), jnp.arange(8.0)
    with nnx.use_eager_sharding(False):
        module = Stack(nnx.Rngs(0))
    model = models.from_nnx(module)
    params = models.shard(model.params, mesh, models.annotated(module))
    assert params["layers"][1]["kernel"].sharding == NamedSharding(mesh, P(None, "model"))
    assert params["layers"][1]["bias"].is_fully_replicated
    want = model.f(model.params, x)
    # 8 terms of order 1, in another order
    np.testing.assert_allclose(jax.jit(model.f)(params, x), want, rtol=0, atol=1e-6)
    with jax.set_mesh(mesh):  # nnx itself divides what is made under a mesh
        own = models.from_nnx(Stack(nnx.Rngs(0))).params
    placed = compiler.place(own, mesh)
    assert placed["layers"][0]["kernel"].sharding == params["layers"][0]["kernel"].sharding
    with nnx.use_eager_sharding(False):
        shapes = nnx.state(nnx.eval_shape(lambda: Stack(nnx.Rngs(0))), nnx.Param)
    checkpoint.save(tmp_path / "p", params)
    back = checkpoint.restore(tmp_path / "p", models.abstract(shapes, mesh))
    for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert one.sharding == two.sharding
        np.testing.assert_array_equal(one, two)


# ---- restoring


def test_restoring_puts_only_parts_on_devices(tmp_path, monkeypatch):
    mesh, value = grid(), np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    checkpoint.save(tmp_path / "p", {"w": value, "b": np.ones(6, np.float32)})
    like = {"w": jax.ShapeDtypeStruct((64, 96), np.float32), "b": jax.ShapeDtypeStruct((6,), "f4")}
    like = models.abstract(like, mesh, models.largest_axis(mesh, least=32))
    put, moved = jax.device_put, []

    def watch(x, *args, **kwargs):
        moved.extend(np.shape(leaf) for leaf in jax.tree.leaves(x))
        return put(x, *args, **kwargs)

    monkeypatch.setattr(jax, "device_put", watch)
    before = {id(a) for a in jax.live_arrays()}
    got = checkpoint.restore(tmp_path / "p", like)
    assert moved and max(map(np.prod, moved)) == 64 * 96 // 4, moved
    monkeypatch.undo()
    assert {s.data.shape for s in got["w"].addressable_shards} == {(64, 24)}
    assert all(len(got[name].addressable_shards) == 8 for name in got)
    np.testing.assert_array_equal(got["w"], value)
    large = [a for a in jax.live_arrays() if id(a) not in before and a.is_fully_replicated]
    assert all(a.size < value.size for a in large)


# ---- the command line


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["explain", "--limit", "4", "--model", "cnn", "--method", "saliency", "--quiet"]
    assert cli.call([*line, "--out", "parts", "--model-axis", "4"]) == 0
    info = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert info["devices"]["mesh"] == {"data": 2, "model": 4}
    capsys.readouterr()
    assert cli.call(["verify", "parts", "--sample", "4", "--model-axis", "4"]) == 0
    assert "4 examples computed anew, seed 0: bit for bit" in capsys.readouterr().out
    for axis in ("3", "0"):
        assert cli.call([*line, "--out", "other", "--model-axis", axis]) == 2
        assert "8 devices can be divided into groups of 1, 2, 4, 8" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
