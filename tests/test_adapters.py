"""Adapters: the user's own Flax model as a function, and in two at one of its layers."""

from functools import cache
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxplain as jxp
from jaxplain import models
from jaxplain.models import from_linen, from_nnx, per_example
from tests.helpers import close, quick_compile

X = jnp.linspace(-1.0, 2.0, 10).reshape(2, 5)  # a batch of two
ROW = X[1]


class Pair(NamedTuple):
    logits: Any
    hidden: Any


@flax.struct.dataclass
class Fields:
    logits: Any
    hidden: Any


OUTPUTS = {
    "array": lambda a, b: a,
    "tuple": lambda a, b: (a, b),
    "dict": lambda a, b: {"logits": a, "hidden": b},
    "pair": Pair,
    "dataclass": Fields,
}


def logits_of(output):
    if isinstance(output, dict | tuple):
        return output["logits"] if isinstance(output, dict) else output[0]
    return output


@pytest.fixture(autouse=True, scope="module")
def quickly():
    with quick_compile():
        yield


class LinenBlock(nn.Module):
    """A skip connection around `inner`."""

    output: str = "array"

    @nn.compact
    def __call__(self, x):
        out = nn.tanh(nn.Dense(4, name="inner")(x))
        return OUTPUTS[self.output](x + out, out)


class Linen(nn.Module):
    """Dropout, BatchNorm, a skip connection, a block that serves twice, several outputs."""

    output: str = "array"
    times: int = 1
    lift: Any = lambda kind: kind
    inside: str = "array"

    def setup(self):
        self.first = nn.Dense(4)
        self.norm = nn.BatchNorm()
        self.dropout = nn.Dropout(0.5)
        self.block = self.lift(LinenBlock)(self.inside)
        self.aside = nn.Dense(3)
        self.last = nn.Dense(2)

    def body(self, x, train):
        x = self.norm(self.first(x), use_running_average=not train)
        return self.dropout(x, deterministic=not train)

    def __call__(self, x, scale=None, *, train):
        x = self.body(x, train)
        for _ in range(self.times):
            x = self.block(x)
            x = logits_of(x)
        hidden = self.aside(x)
        logits = self.last(x)
        return OUTPUTS[self.output](logits if scale is None else logits * scale, hidden)


class NnxBlock(nnx.Module):
    def __init__(self, output, rngs):
        self.inner, self.output = nnx.Linear(4, 4, rngs=rngs), output

    def __call__(self, x):
        out = nnx.tanh(self.inner(x))
        return OUTPUTS[self.output](x + out, out)


class Nnx(nnx.Module):
    """The same."""

    def __init__(self, output="array", times=1, lift=None, inside="array", rngs=None):
        rngs = nnx.Rngs(3) if rngs is None else rngs
        self.first = nnx.Linear(5, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(inside, rngs)])
        self.aside = nnx.Linear(4, 3, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)
        self.output, self.times, self.lift = output, times, lift

    def body(self, x, train=None):
        x = self.norm(self.first(x), use_running_average=None if train is None else not train)
        return self.dropout(x)

    def __call__(self, x, scale=None, *, train=None):
        x = self.body(x, train)
        for _ in range(self.times):
            run = lambda block, x: block(x)
            x = run(self.blocks[0], x) if self.lift is None else self.lift(run)(self.blocks[0], x)
            x = logits_of(x)
        hidden = self.aside(x)
        logits = self.last(x)
        return OUTPUTS[self.output](logits if scale is None else logits * scale, hidden)


def drawn(tree):
    """Arrays for shapes, which costs less than a program that draws them: no zeros or ones."""
    draw = np.random.default_rng(0)

    def leaf(shape):
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jax.random.key(3)
        if len(shape.shape) == 2:
            return jnp.asarray(draw.normal(size=shape.shape) * 0.6, shape.dtype)
        return jnp.asarray(draw.uniform(0.2, 0.9, shape.shape), shape.dtype)

    return jax.tree.map(leaf, tree)


@cache
def linen(per_example=False, select=None, method=None, **options):
    module: Any = Linen(**options)
    variables = drawn(
        jax.eval_shape(lambda key: module.init(key, X, train=False), jax.random.key(0))
    )
    return from_linen(
        module, variables, train=False, select=select, per_example=per_example, method=method
    )


def nnx_module(kind, *args, **options):
    graph, state = nnx.split(nnx.eval_shape(lambda: kind(*args, **options)))
    return nnx.merge(graph, drawn(state))


@cache
def flax_nnx(per_example=False, select=None, method=None, **options):
    module = nnx_module(Nnx, **options)
    return from_nnx(module, select=select, per_example=per_example, method=method)


BOTH = pytest.mark.parametrize("make", [linen, flax_nnx])


def block(make):
    return "block" if make is linen else "blocks/0"


def plain(make, params, x, times=1):
    """What both models compute in evaluation, written out."""
    if make is linen:
        statistics, params = params["batch_stats"]["norm"], params["params"]
        norm, inner = {**params["norm"], **statistics}, params["block"]["inner"]
    else:
        norm, inner = params["norm"], params["blocks"][0]["inner"]
    dense = lambda p, x: (
        jnp.dot(x, p["kernel"]) + jnp.broadcast_to(p["bias"], (len(x), len(p["bias"])))
    )
    x = dense(params["first"], x)
    wide = {name: jnp.broadcast_to(value, x.shape) for name, value in norm.items()}
    x = (x - wide["mean"]) / jnp.sqrt(wide["var"] + 1e-5) * wide["scale"] + wide["bias"]
    for _ in range(times):
        x = x + jnp.tanh(dense(inner, x))
    return dense(params["last"], x), x


@BOTH
def test_values_and_gradients(make):
    model = make()
    close(jax.jit(model.f)(model.params, X), plain(make, model.params, X)[0])
    score = lambda f: lambda params, x: jnp.sum(f(params, x) ** 2)
    got = jax.jit(jax.grad(score(model.f), (0, 1)))(model.params, X)
    want = jax.grad(score(lambda p, x: plain(make, p, x)[0]), (0, 1))(model.params, X)
    # The parameters of what reaches no output have gradients of zero in both.
    close(got, want)


@BOTH
def test_parameters_are_an_argument(make):
    model = make()
    program = jax.make_jaxpr(model.f)(model.params, X)
    assert not program.consts
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.params))
    zero = jax.tree.map(jnp.zeros_like, model.params)
    assert not np.any(model.f(zero, X))


def test_values_equal_apply():
    module: Any = Linen(output="dict")
    variables = linen().params
    model = from_linen(module, variables, select="logits", train=False)
    np.testing.assert_array_equal(
        model.f(model.params, X, scale=3.0), module.apply(variables, X, 3.0, train=False)["logits"]
    )
    assert model.params is variables


def test_the_nnx_module_stays_as_it_is():
    module = nnx_module(Nnx)
    before = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState)))
    model = from_nnx(module)
    assert not module.dropout.deterministic and not module.norm.use_running_average
    assert type(module.blocks[0]) is NnxBlock
    h, g = model.cut("blocks/0")
    g(model.params, h(model.params, X), X)
    assert type(module.blocks[0]) is NnxBlock and not hasattr(module.blocks[0], "jaxplain_calls")
    close(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))), before)
    module.eval()
    np.testing.assert_array_equal(model.f(model.params, X), module(X))


@BOTH
@pytest.mark.parametrize(
    ("output", "select"),
    [
        ("tuple", 0),
        ("tuple", -2),
        ("dict", "logits"),
        ("pair", "logits"),
        ("pair", 0),
        ("dataclass", "logits"),
        ("dict", lambda found: found["logits"]),
    ],
)
def test_one_output_of_several(make, output, select):
    model = make(output=output, select=select)
    close(model.f(model.params, X), plain(make, model.params, X)[0])


@BOTH
def test_outputs_that_are_not_one_array(make):
    model = make(output="tuple")
    with pytest.raises(jxp.JaxplainError, match=r"returns a tuple of 0, 1, .* select=0$"):
        model.f(model.params, X)
    model = make(output="pair")
    with pytest.raises(jxp.JaxplainError, match=r"'logits', 'hidden', .* select='logits'$"):
        model.f(model.params, X)
    model = make(output="dict", select="logit")
    with pytest.raises(jxp.JaxplainError, match=r"has no 'logit': it holds 'logits', 'hidden'"):
        model.f(model.params, X)
    model = make(output="tuple", select=2)
    with pytest.raises(jxp.JaxplainError, match="has no 2: it holds 0, 1"):
        model.f(model.params, X)
    model = make(select="logits")
    with pytest.raises(jxp.JaxplainError, match="has no 'logits': it is no tuple"):
        model.f(model.params, X)


@BOTH
def test_one_example_of_a_model_of_batches(make):
    model, whole = make(per_example=True), make()
    close(model.f(model.params, ROW), whole.f(whole.params, X)[1])
    scaled = model.f(model.params, ROW, scale=jnp.array([2.0, 3.0]))  # [C], and [1, C] in the model
    close(scaled, whole.f(whole.params, X)[1] * jnp.array([2.0, 3.0]))
    h, g = model.cut(block(make))
    a = h(model.params, ROW)
    assert a.shape == (4,)
    close(g(model.params, a, ROW), model.f(model.params, ROW))
    # Explained as any function of one example: twice in a batch, under jit.
    f = lambda x: model.f(model.params, x)[0]
    found = jax.jit(jax.vmap(lambda x: jxp.integrated_gradients(f, x, steps=8)))(X)
    close(found.output, whole.f(whole.params, X)[:, 0])
    assert np.abs(found.gap).max() < 1e-3  # 8 nodes of one tanh


def test_per_example_of_any_function():
    def batch(params, x, *, mask):  # x {"a": [B, 3], "b": [B]}
        assert x["a"].ndim == 2 and mask.shape == x["a"].shape
        return {"out": jnp.where(mask, x["a"], 0) @ params + x["b"]}

    x = {"a": jnp.array([1.0, 2.0, 3.0]), "b": 0.5}
    out = per_example(batch)(jnp.array([1.0, 10.0, 100.0]), x, mask=np.array([True, False, True]))
    assert out["out"].shape == () and out["out"] == 301.5
    with pytest.raises(jxp.JaxplainError, match=r"f gives \[3\] for a batch of one"):
        per_example(lambda params, x: x[0])(None, x["a"])


def test_another_method():
    for model in (linen(method="body"), flax_nnx(method="body"), flax_nnx(method=Nnx.body)):
        assert model.f(model.params, X).shape == (2, 4)


# --- cuts ---


@BOTH
def test_a_cut_with_a_skip_connection(make):
    """f = g after h; where a path leads around the layer, g still has it from x."""
    model = make()
    f, params = model.f, model.params
    for layer in ("first", block(make), f"{block(make)}/inner"):
        h, g = model.cut(layer)
        a = jax.jit(h)(params, X)
        close(jax.jit(g)(params, a, X), f(params, X))
        assert np.abs(g(params, a + 1, X) - f(params, X)).max() > 0.1
    # The block's own output, and the rest by hand: all of it passes there.
    h, g = model.cut(block(make))
    close(h(params, X), plain(make, params, X)[1])
    last = (params["params"] if make is linen else params)["last"]
    close(jax.grad(lambda a: g(params, a, X)[0, 1])(h(params, X))[0], last["kernel"][:, 1])
    close(jax.grad(lambda x: g(params, h(params, X), x)[0, 0])(X), X * 0)
    # Around `inner` there is a path from x to the output, and what is around it comes from x.
    h, g = model.cut(f"{block(make)}/inner")
    a = h(params, X)
    through = jax.jvp(lambda x: g(params, h(params, x), X), (X,), (X,))[1]
    around = jax.jvp(lambda x: g(params, a, x), (X,), (X,))[1]
    assert np.abs(around).max() > 0.1 and np.abs(through).max() > 0.1
    close(through + around, jax.jvp(lambda x: f(params, x), (X,), (X,))[1])


@BOTH
def test_methods_of_layers(make):
    model = make(per_example=True)
    params, layer = model.params, f"{block(make)}/inner"
    h, g = model.cut(layer)
    # Both ways at once: what goes through the layer and what goes around it add up to f's change.
    state = lambda x: (h(params, x), x)
    rest = lambda s: g(params, *s)[1]
    found = jax.jit(lambda x: jxp.layer_conductance(state, rest, x, steps=16))(ROW)
    close(found.output, model.f(params, ROW)[1])
    change = model.f(params, ROW)[1] - model.f(params, 0 * ROW)[1]
    total = sum(float(np.sum(leaf)) for leaf in jax.tree.leaves(found.scores))
    assert abs(total - change) < 1e-4  # 16 nodes of a tanh
    assert abs(np.sum(found.scores[0])) > 0.01 and abs(np.sum(found.scores[1])) > 0.01
    # A unit of the layer is a function, too.
    unit = jxp.unit_of(lambda x: h(params, x), 2)
    close(jxp.saliency(unit, ROW).output, h(params, ROW)[2])
    attributions = jax.vmap(
        lambda x: jxp.input_x_gradient(lambda a: g(params, a, x)[0], h(params, x))
    )
    assert attributions(X).scores.shape == (2, 4)


@BOTH
def test_a_layer_that_serves_twice(make):
    model = make(times=2)
    params, layer = model.params, block(make)
    close(model.f(params, X), plain(make, params, X, times=2)[0])
    with pytest.raises(jxp.JaxplainError, match=r"is called 2 times: .* call=0 to 1"):
        model.cut(layer).h(params, X)
    with pytest.raises(jxp.JaxplainError, match="is called 2 times"):
        model.cut(f"{layer}/inner").g(params, jnp.zeros((2, 4)), X)
    with pytest.raises(jxp.JaxplainError, match="call=2 asked for"):
        model.cut(layer, call=2).h(params, X)
    for call in (0, 1):
        h, g = model.cut(layer, call=call)
        close(h(params, X), plain(make, params, X, times=call + 1)[1])
        close(g(params, h(params, X), X), model.f(params, X))
    # At the second call, the first is computed with the block itself.
    h, g = model.cut(f"{layer}/inner", call=1)
    assert np.abs(h(params, X) - model.cut(f"{layer}/inner", call=0).h(params, X)).max() > 0.1
    close(g(params, h(params, X), X), model.f(params, X))


@BOTH
@pytest.mark.parametrize("lift", ["remat", "jit"])
def test_layers_that_flax_transforms(make, lift):
    model = make(lift=getattr(nn if make is linen else nnx, lift))
    params, plainly = model.params, model.f(model.params, X)
    for layer in (block(make), f"{block(make)}/inner"):
        h, g = model.cut(layer)
        a = h(params, X)
        close(g(params, a, X), plainly)
        assert np.abs(g(params, a + 1, X) - plainly).max() > 0.1
        assert np.abs(jax.grad(lambda a, g=g: g(params, a, X)[0, 0])(a)).max() > 0.1
    close(model.f(params, X), plainly)  # no program kept from the cut is met here


class LinenStack(nn.Module):
    @nn.compact
    def __call__(self, x):
        step = lambda block, x, _: (block(x), None)
        split: Any = {"params": True}
        scan = nn.scan(step, variable_axes={"params": 0}, split_rngs=split, length=3)
        return scan(LinenBlock(name="block"), nn.Dense(4, name="first")(x), None)[0]


class NnxStack(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 4, rngs=rngs)
        make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: NnxBlock("array", rngs)))
        self.block = make(rngs)

    def __call__(self, x):
        scan = nnx.scan(lambda x, m: m(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return scan(self.first(x), self.block)


def test_layers_in_a_scan():
    module: Any = LinenStack()
    ours = from_linen(module, drawn(jax.eval_shape(module.init, jax.random.key(0), X)))
    for model in (ours, from_nnx(nnx_module(lambda: NnxStack(nnx.Rngs(0))))):
        h, g = model.cut("first")
        close(g(model.params, h(model.params, X), X), model.f(model.params, X))
        for layer in ("block", "block/inner"):
            with pytest.raises(jxp.JaxplainError, match="scan or vmap of the model"):
                model.cut(layer).h(model.params, X)


@BOTH
@pytest.mark.parametrize(
    ("inside", "part", "other"),
    [("tuple", 0, 1), ("pair", "logits", "hidden"), ("dict", "logits", "hidden")],
)
def test_a_layer_that_returns_several(make, inside, part, other):
    model = make(inside=inside)
    params = model.params
    with pytest.raises(jxp.JaxplainError, match="and one array is needed: choose it, as by part="):
        model.cut(block(make)).h(params, X)
    h, g = model.cut(block(make), part=part)
    a = h(params, X)
    close(a, plain(make, params, X)[1])
    close(g(params, a, X), model.f(params, X))
    assert np.abs(g(params, a + 1, X) - model.f(params, X)).max() > 0.1
    with pytest.raises(jxp.JaxplainError, match="reaches the output"):
        model.cut(block(make), part=other).g(params, a, X)


@BOTH
def test_refused_cuts(make):
    model = make()
    params = model.params
    with pytest.raises(jxp.JaxplainError, match=r"no submodule 'frist' is called; there are first"):
        model.cut("frist").h(params, X)
    with pytest.raises(jxp.JaxplainError, match=r"no submodule 'zzzzz'.* aside, block"):
        model.cut("zzzzz").g(params, jnp.zeros((2, 4)), X)
    with pytest.raises(jxp.JaxplainError, match="say which method= of it"):
        model.cut("first", method="attend").h(params, X)
    h, g = model.cut("first")
    with pytest.raises(jxp.JaxplainError, match=r"puts out \[2, 4\], and a is \[2, 3\]"):
        g(params, jnp.zeros((2, 3)), X)
    with pytest.raises(jxp.JaxplainError, match="nothing of 'aside' reaches the output"):
        model.cut("aside").g(params, jnp.zeros((2, 3)), X)
    # The model's own errors stay.
    with pytest.raises((TypeError, flax.errors.ScopeParamShapeError), match="shape"):
        h(params, X[:, :3])


# --- training ---


def test_a_linen_module_that_trains():
    module: Any = Linen()
    variables = linen().params
    model = from_linen(module, variables, train=True)
    with pytest.raises(jxp.JaxplainError, match=r"as in training.*train=False"):
        model.f(model.params, X)
    model = from_linen(nn.Dropout(0.5, deterministic=False), {})
    with pytest.raises(jxp.JaxplainError, match="draws random numbers"):
        model.f({}, X)
    for lacking in ({"params": variables["params"]}, variables["params"]):
        model = from_linen(module, lacking, train=False)
        with pytest.raises(jxp.JaxplainError, match="lacks variables: give all that"):
            model.f(model.params, X)


def test_an_nnx_module_that_trains():
    model = from_nnx(nnx_module(Nnx), train=True)
    with pytest.raises(jxp.JaxplainError, match="changes its BatchStat, as in training"):
        model.f(model.params, X)

    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.rngs = rngs

        def __call__(self, x):
            return x + jax.random.normal(self.rngs.noise(), x.shape)

    model = from_nnx(Noisy(nnx.Rngs(0)))
    with pytest.raises(jxp.JaxplainError, match="draws random numbers, as in training"):
        model.f(model.params, X)


@BOTH
def test_a_run(make, tmp_path):
    """Its parameters are those of the run."""
    model = make(per_example=True)

    def explain(params, example, key):
        return jxp.saliency(lambda x: model.f(params, x)[0], example["x"])

    examples = [{"x": np.asarray(x)} for x in X]
    jxp.run(explain, model.params, examples, tmp_path / "run", key=jax.random.key(0))
    slope = jax.grad(lambda x: jnp.sum(model.f(model.params, x)[0]))
    for record, x in zip(jxp.load(tmp_path / "run"), X, strict=True):
        close(record.result.scores, np.abs(slope(x)))


def test_names_come_lazily():
    assert models.from_linen is from_linen and models.from_nnx is from_nnx
    with pytest.raises(AttributeError):
        _ = models.from_torch
