"""Every method under every transformation that JAX has for it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxplain as jxp
from jaxplain import baselines
from jaxplain.registry import METHODS
from tests import small_models
from tests.helpers import close, quick_compile

KEY = jax.random.key(2)
FIELDS = ("scores", "output", "standard_error")


def batch_case(name, model_name="mlp", batch=8):
    """`explain(params, x, key)` of one example, and a batch of examples and keys."""
    method = METHODS[name]
    model = small_models.make("relu" if method.needs_relu else model_name)
    many = 24 if name in ("kernel_shap", "lime") else 6  # one system of all inputs
    options = {"samples": many} if "samples" in method.options else {}
    if method.needs_baselines:
        options["baselines"] = jax.tree.map(lambda v: jnp.stack([v * 0, v * 0 + 1]), model.x)

    def explain(params, x, key):
        found = method.function(partial(model.apply, params), x, key=key, **options)
        return {field: getattr(found, field) for field in FIELDS if hasattr(found, field)}

    xs = jax.tree.map(lambda v: jnp.stack([v + 0.1 * i for i in range(batch)]), model.x)
    return explain, model.params, xs, jax.random.split(KEY, batch)


def row(tree, i):
    return jax.tree.map(lambda v: v[i], tree)


@pytest.mark.parametrize("name", METHODS)
def test_jit_vmap_pmap_and_shards_all_equal_eager(name):
    explain, params, xs, keys = batch_case(name)
    one = jax.jit(explain)
    close(one(params, row(xs, 3), keys[3]), explain(params, row(xs, 3), keys[3]))
    loop = [one(params, row(xs, i), keys[i]) for i in range(8)]
    loop = jax.tree.map(lambda *v: jnp.stack(v), *loop)

    batched = jax.vmap(explain, in_axes=(None, 0, 0))
    close(jax.jit(batched)(params, xs, keys), loop)

    close(jax.pmap(explain, in_axes=(None, 0, 0))(params, xs, keys), loop)

    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    program = jax.jit(batched, out_shardings=spread)
    inputs = jax.device_put((xs, keys), spread)
    sharded = program(jax.device_put(params, NamedSharding(mesh, PartitionSpec())), *inputs)
    assert len(sharded["output"].addressable_shards) == 8
    close(sharded, loop)


@pytest.fixture
def compiled():
    """A list with True for each program that XLA compiles."""
    found = []
    listen = lambda event, *_, **__: found.append(event.endswith("backend_compile_duration"))
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize("name", METHODS)
def test_one_compilation_a_shape(name, compiled):
    explain, params, xs, keys = batch_case(name)
    others, fewer = jax.block_until_ready(((xs + 1, keys[::-1]), row((xs, keys), slice(0, 4))))
    program = jax.jit(jax.vmap(explain, in_axes=(None, 0, 0)))
    counts = []
    for args in ((xs, keys), others, fewer):
        compiled.clear()
        with quick_compile():
            jax.block_until_ready(program(params, *args))
        counts.append(sum(compiled))
    assert counts == [1, 0, 1]


def penalty(explain, model, params):
    return jnp.sum(jnp.square(explain(partial(model.apply, params), model.x, key=KEY).scores))


@pytest.mark.parametrize(
    ("name", "model_name"),
    [("integrated_gradients", name) for name in ("mlp", "attention", "lstm")]
    + [("expected_gradients", "mlp")],
)
def test_gradient_through_an_explanation(x64, name, model_name):
    """Of a penalty on the scores with respect to the parameters, against finite differences."""
    model = small_models.make(model_name, "f8")
    method = METHODS[name]
    few = {"steps": 3} if name == "integrated_gradients" else {}
    if method.needs_baselines:
        few = {"samples": 3, "baselines": jnp.stack([model.x * 0, model.x * 0 + 1])}
    loss = jax.jit(partial(penalty, partial(method.function, **few), model))
    with quick_compile():
        gradient = jax.jit(jax.grad(loss))(model.params)
        loss(model.params)
    direction = jax.tree.map(lambda v: jnp.cos(jnp.arange(v.size)).reshape(v.shape), model.params)
    step = 1e-5
    at = lambda s: float(loss(jax.tree.map(lambda v, d: v + s * d, model.params, direction)))
    # Central differences: step^2 = 1e-10 of truncation times third derivatives of some 100, and
    # 1e-16 / 1e-5 of rounding.
    slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    assert float(slope) == pytest.approx((at(step) - at(-step)) / (2 * step), rel=1e-6)


def test_remat_changes_nothing():
    model = small_models.make("mlp")
    apply = jax.checkpoint(model.apply)
    plain = partial(jxp.integrated_gradients, steps=4)

    def loss(apply, params):
        return jnp.sum(plain(partial(apply, params), model.x).scores ** 2)

    close(*(jax.jit(jax.grad(partial(loss, a)))(model.params) for a in (apply, model.apply)))
    one = jax.jit(jax.checkpoint(lambda x: plain(model.f, x).scores))(model.x)
    close(one, plain(model.f, model.x).scores)


def temporary_bytes(function, *args):
    analysis = jax.jit(function).lower(*args).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize(
    ("name", "through"),
    [
        ("integrated_gradients", "forward"),
        ("integrated_gradients", "gradient"),
        ("expected_gradients", "forward"),
        ("smoothgrad", "forward"),
    ],
)
def test_memory_does_not_grow_with_terms(name, through):
    model = small_models.make("attention")
    x = jnp.tile(model.x, (20, 1))
    method = METHODS[name]
    sets = {"baselines": jnp.stack([x * 0, x * 0 + 1])} if method.needs_baselines else {}

    def case(n):
        count = {"samples": n} if "samples" in method.options else {"steps": n}
        run = lambda x: method.function(model.f, x, key=KEY, **count, **sets).scores
        return run if through == "forward" else jax.grad(lambda x: jnp.sum(run(x) ** 2))

    few, many = (temporary_bytes(case(n), x) for n in (32, 512))
    # The scan's own inputs, a few numbers a term, are less than what one gradient holds.
    assert many <= 1.05 * few


def test_more_steps_in_one_chunk_do_take_memory():
    """So that the test above can fail."""
    model = small_models.make("attention")
    x = jnp.tile(model.x, (20, 1))
    run = lambda n: lambda x: jxp.integrated_gradients(model.f, x, steps=n, chunk=n).scores
    assert temporary_bytes(run(512), x) > 2 * temporary_bytes(run(32), x)


@pytest.mark.parametrize(
    "baseline",
    [
        baselines.zeros,
        partial(baselines.mean, axes=0),
        partial(baselines.blur, sigma=1.0, axes=(0,)),
        partial(baselines.token, embedding=jnp.arange(4.0)),
    ],
)
def test_baselines_under_vmap_and_jit(baseline):
    _, _, xs, _ = batch_case("saliency", "attention")
    want = jnp.stack([baseline(x) for x in xs])
    close(jax.jit(jax.vmap(baseline))(xs), want)
    assert want.shape == xs.shape and want.dtype == xs.dtype
