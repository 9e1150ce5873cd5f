"""Guided backpropagation and deconvnets: a replica, published numbers, all ways to write a ReLU."""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxplain as jxp
from jaxplain import JaxplainError, cli
from jaxplain.interpret import backward
from tests import decomposed_models
from tests.helpers import close, quick_compile

METHODS = {"guided_backprop": jxp.guided_backprop, "deconvnet": jxp.deconvnet}
both = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def explained(f, x):
    """By both methods, and plain."""
    return jax.jit(lambda x: (jxp.guided_backprop(f, x), jxp.deconvnet(f, x), f(x)))(x)


# A network of the papers' parts, and the papers' backward pass through it in plain loops.

SHAPES = {"conv": (3, 3, 2, 3), "b": (3,), "a": (27, 6), "c": (6,), "d": (6, 3)}


def draw(seed=0):
    draw = np.random.default_rng(seed)
    params = {key: draw.normal(size=shape) for key, shape in SHAPES.items()}
    return params, draw.normal(size=(8, 8, 2))


def layers(p, x, relu=jax.nn.relu):
    """Hidden states of convolution, ReLU, max pooling, dense, ReLU, and the logits."""
    numbers = ("NHWC", "HWIO", "NHWC")
    z = lax.conv_general_dilated(x[None], p["conv"], (1, 1), "VALID", dimension_numbers=numbers)[0]
    first = relu(z + p["b"].reshape(1, 1, -1))
    pooled = nn.max_pool(first, (2, 2), (2, 2))
    second = relu(pooled.reshape(-1) @ p["a"] + p["c"])
    return first, pooled, second, second @ p["d"]


def score(p, x, relu=jax.nn.relu):
    return layers(p, x, relu)[-1][1]


def rectify(name, signal, state):
    """What a ReLU sends down, `state` being what it sent up."""
    if name == "deconvnet":
        return np.maximum(signal, 0)
    return signal * (signal > 0) * (state > 0)


def replica(name, p, x):
    """The papers' backward pass of `score`, one number at a time."""
    z = np.zeros((6, 6, 3))
    for i, j, k in np.ndindex(*z.shape):
        z[i, j, k] = np.sum(x[i : i + 3, j : j + 3] * p["conv"][..., k]) + p["b"][k]
    first = np.maximum(z, 0)
    switches, pooled = {}, np.zeros((3, 3, 3))
    for i, j, k in np.ndindex(*pooled.shape):
        window = first[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k]
        di, dj = np.unravel_index(window.argmax(), (2, 2))
        switches[i, j, k] = (2 * i + di, 2 * j + dj, k)
        pooled[i, j, k] = window.max()
    second = np.maximum(pooled.reshape(-1) @ p["a"] + p["c"], 0)

    signal = rectify(name, p["d"][:, 1], second)
    down = (p["a"] @ signal).reshape(pooled.shape)
    unpooled = np.zeros_like(first)
    for place, switch in switches.items():
        unpooled[switch] += down[place]
    signal = rectify(name, unpooled, first)
    scores = np.zeros_like(x)
    for i, j, k in np.ndindex(*z.shape):
        scores[i : i + 3, j : j + 3] += signal[i, j, k] * p["conv"][..., k]
    return scores


@both
def test_scores_are_the_papers(x64, name):
    explain = jax.jit(lambda p, x: (METHODS[name](partial(score, p), x), score(p, x)))
    gradient = jax.jit(jax.grad(score, 1))
    for seed in range(3):
        p, x = draw(seed)
        got, output = explain(p, x)
        want = replica(name, p, x)
        close(got.scores, want)
        close(got.output, output)
        assert np.isnan(got.gap)
        other = replica(next(m for m in METHODS if m != name), p, x)
        for wrong in (other, gradient(p, x)):  # so that the test can fail
            assert np.abs(want - wrong).max() > 0.1 * np.abs(want).max()


def test_a_hidden_unit_is_explained_from_there_down(x64):
    p, x = draw()
    h = lambda x: layers(p, x)[0]
    unit = np.unravel_index(np.argmax(h(x)), (6, 6, 3))
    i, j, k = map(int, unit)
    want = np.zeros_like(x)
    want[i : i + 3, j : j + 3] = p["conv"][..., k]
    guided, deconvolved, output = explained(jxp.unit_of(h, (i, j, k)), x)
    close(guided.scores, want)
    close(deconvolved.scores, want)
    close(deconvolved.output, output)
    assert output == h(x).max() == jxp.unit_of(h, (i - 6, j, k - 3))(x)


def test_numbers_of_captums_own_tests():
    """BasicModel_ConvNet_One_Conv, target 0: sums of whole numbers, so exactly."""
    weights = jnp.concatenate([jnp.ones((4, 5)), -jnp.ones((4, 3))], axis=1)
    bias = jnp.array([-50.0, -75.0]).reshape(1, 2, 1, 1)

    def f(x):
        z = lax.conv_general_dilated(x[None, None], jnp.ones((2, 1, 3, 3)), (1, 1), "VALID")
        return jax.nn.relu(weights @ jax.nn.relu(z + bias).reshape(-1))[0]

    x = jnp.arange(16.0).reshape(4, 4)
    want = [[0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1]]
    guided, deconvolved, _ = explained(f, x)
    assert guided.scores.tolist() == want
    want = [[2, 3, 3, 1], [3, 5, 5, 2], [3, 5, 5, 2], [1, 2, 2, 1]]
    assert deconvolved.scores.tolist() == want


LAYERS = ("Dense", "Dense_relu", "Conv2D", "Conv2D_relu", "MaxPooling2D", "AveragePooling2D")


@both
@pytest.mark.parametrize("layer", LAYERS)
def test_numbers_of_innvestigates_own_tests(name, layer):
    """Networks of one layer, which tell linear parts, pooling and the unit's own ReLU."""
    with np.load(Path(__file__).parent / "goldens" / "innvestigate_rectified.npz") as file:
        golden = {key: file[key] for key in file.files}
    weights, bias = (golden.get(f"{name}_{layer}_{n}", np.zeros(0)) for n in (0, 1))

    def network(x):
        if layer.startswith("Dense"):
            x = x @ weights + bias.reshape(1, 1, -1)
        elif layer.startswith("Conv2D"):
            numbers = ("NHWC", "HWIO", "NHWC")
            x = lax.conv_general_dilated(
                x[None], weights, (1, 1), "VALID", dimension_numbers=numbers
            )[0] + bias.reshape(1, 1, -1)
        else:
            pool = nn.max_pool if layer.startswith("Max") else nn.avg_pool
            x = pool(x, (2, 2), (2, 2))
        # The unit explained is above 0, so that a ReLU after a layer without one changes nothing.
        return jax.nn.relu(x).reshape(-1)

    def explain(x):
        unit = jnp.argmax(network(x))
        got = METHODS[name](lambda x: network(x)[unit], x)
        return got.scores * got.output  # they start from the unit's value, and we from 1

    # A product of two float32 and a sum of 27, in another order than theirs.
    got = jax.jit(jax.vmap(explain))(jnp.asarray(golden["x"]))
    np.testing.assert_allclose(got, golden[f"{name}_{layer}"], rtol=2e-6, atol=2e-7)


# Every way to write it.


@jax.custom_vjp
def own(x):
    return jnp.where(x > 0, x, 0)


own.defvjp(lambda x: (own(x), x), lambda x, g: (g * (x > 0),))


@jax.custom_jvp
def relu(x, slope):  # has the name of one, and is none
    return jnp.where(x > 0, x, slope * x)


relu.defjvps(lambda t, y, x, slope: jnp.where(x > 0, t, slope * t), None)
ZEROS = np.zeros(4, "f4")
WRITTEN = {
    "flax": nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum_right": lambda x: jnp.maximum(0.0, x),
    "zeros": lambda x: lax.max(x, jnp.zeros_like(x)),
    "closed_over": lambda x: jnp.maximum(x, ZEROS),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where_ge": lambda x: jnp.where(x >= 0, x, 0.0),
    "where_lt": lambda x: jnp.where(x < 0, jnp.zeros_like(x), x),
    "where_left": lambda x: jnp.where(0 < x, x, 0),
    "select": lambda x: lax.select(x > 0, x, jnp.zeros_like(x)),
    "clip": lambda x: jnp.clip(x, 0),
    "times": lambda x: x * (x > 0),
    "abs": lambda x: 0.5 * (x + jnp.abs(x)),
    "minimum": lambda x: -jnp.minimum(-x, 0),
    "own_derivative": own,
    "leaky_by_0": partial(jax.nn.leaky_relu, negative_slope=0.0),
    "straight_through": lambda x: x + lax.stop_gradient(jnp.maximum(x, 0) - x),
    "jit": jax.jit(lambda x: jnp.maximum(x, 0)),
    "checkpoint": jax.checkpoint(jax.nn.relu),
    "marked": jxp.named("relu", lambda x: jnp.max(jnp.stack([x, 0 * x]), axis=0)),
    "marked_of_two": lambda x: jxp.named("relu", lambda x, n: jnp.where(x > n, x, 0))(x, 0),
    "cond": lambda x: lax.cond(jnp.sum(x) > 100, jnp.tanh, jax.nn.relu, x),
    "loop": lambda x: lax.fori_loop(0, 2, lambda _, v: jax.nn.relu(v), x),
}
CLIPPED = {
    "relu6": jax.nn.relu6,
    "clip": lambda x: jnp.clip(x, 0, 6),
    "clamp": lambda x: lax.clamp(0.0, x, 6.0),
    "minimum": lambda x: jnp.minimum(jax.nn.relu(x), 6),
    "learned": lambda x, c=None: jax.jit(lambda c: jnp.clip(x, 0, c))(jnp.float32(6)),
}
# None at 0, where the papers' mask is 0 and autodiff of maximum says 1/2; and one at exactly 0.
X = jnp.array([1.5, -2.0, 7.0, 0.0])


def between(bend):
    """Signals of both signs from above, and a linear map below."""
    weights = jnp.array([2.0, 1.0, -3.0, 4.0])
    return lambda x: jnp.vdot(weights, bend(x)) + jnp.sum(bend(-x))


@pytest.mark.parametrize("written", WRITTEN)
def test_a_relu_is_one_however_it_is_written(written):
    f = between(WRITTEN[written])
    guided, deconvolved, want = explained(f, X)
    # By hand: 2, 1, -3, 4 and from -x, of which the signal is 1, where it is on.
    assert guided.scores.tolist() == [2, -1, 0, 0]
    # 2, 1, 0, 4 whatever is on, less 1 from -x.
    assert deconvolved.scores.tolist() == [1, 0, -1, 3]
    assert guided.output == deconvolved.output == want


@pytest.mark.parametrize("written", CLIPPED)
def test_nothing_passes_above_a_ceiling(written):
    f = between(CLIPPED[written])
    f = lambda x, f=f: f(x) + 4 * CLIPPED[written](x)[2]  # wanted, now, and above its ceiling
    guided, deconvolved, _ = explained(f, X)
    assert guided.scores.tolist() == [2, -1, 0, 0]
    assert deconvolved.scores.tolist() == [1, 0, -1, 3]


OTHERS = {
    **{name: getattr(jax.nn, name) for name in (
        "gelu", "sigmoid", "silu", "softplus", "elu", "celu", "selu", "mish", "leaky_relu",
        "hard_sigmoid", "hard_swish", "hard_tanh", "log_sigmoid", "sparse_plus", "sparse_sigmoid",
    )},
    "softplus_by_hand": lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))),
    "thresholds": lambda x: jnp.maximum(x, np.array([1.0, -1.0, 2.0, 3.0], "f4")),
    "step": lambda x: jnp.where(x > 0, 1.0, 0.0) * 2 + jnp.tanh(x),
    "normalized": lambda x: nn.LayerNorm(use_scale=False, use_bias=False).apply({}, x),
    "guarded": lambda x: x / jnp.sqrt(jnp.maximum(jnp.mean(x**2) - jnp.mean(x) ** 2, 0) + 1e-3),
    "name_only": lambda x: relu(x, 0.1),
    "padding": lambda x: jnp.where(np.array([True, False, True, True]), x, 0),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_a_function_without_a_relu_is_refused(other):
    f = between(OTHERS[other])
    for name, method in METHODS.items():
        with pytest.raises(JaxplainError, match=f"{name} changes the gradient at ReLUs, and none"):
            method(f, X)


def test_other_functions_keep_their_gradient_beside_a_relu():
    f = lambda x: sum(between(other)(x) for other in OTHERS.values())
    both = lambda x: jxp.guided_backprop(lambda x: f(x) + jnp.sum(jax.nn.relu(x)), x).scores
    got, want = jax.jit(lambda x: (both(x), jax.grad(f)(x)))(X)
    close(got - (X > 0), want)


def test_a_relu_beside_other_terms_of_the_same_value_is_seen():
    """x + relu(x) is a function of one value, too; but no smooth one."""
    for residual in (
        lambda x: x + jax.nn.relu(x),
        lambda x: x + jnp.maximum(x, 0),
        lambda x: x + jnp.where(x > 0, x, 0),
        lambda x: jnp.log(jnp.exp(x)) + jax.nn.relu(x),
    ):
        got = jxp.guided_backprop(lambda x, r=residual: -jnp.sum(r(x)), X)
        close(got.scores, -jnp.ones(4))
    got = jxp.guided_backprop(lambda x: -jnp.sum(jnp.log1p(jnp.maximum(x, 0))), X)
    assert not got.scores.any()


# Structure around it.


def count(f, x):
    keep = lambda f, inputs, outputs, cotangents: list(jax.vjp(f, *inputs)[1](tuple(cotangents)))
    changed = backward.modified(f, (x,), {"relu": keep})
    return changed.overridden.get("relu", 0), changed.run


@pytest.mark.parametrize(
    ("name", "relus"),
    [("relu_mlp", 2), ("cnn", 2), ("activations", 1), ("remat", 0), ("scanned", 0), ("norms", 0),
     ("lstm", 0), ("branch_on_data", 1), ("prenorm", 0), ("text_cnn", 1), ("text_transformer", 0)],
)  # fmt: skip
def test_relus_of_models_are_counted_and_nothing_else_changes(name, relus):
    model = decomposed_models.make(name)
    f = lambda x: jnp.ravel(model.f(x))[0]
    found, run = count(f, model.x)
    assert found == relus
    if not relus:
        return
    got, want = (jax.jit(jax.value_and_grad(g))(model.x) for g in (run, f))
    close(got, want)


def test_one_relu_that_serves_twice_is_two():
    p, x = draw()
    found, _ = count(partial(score, p), jnp.asarray(x, "f4"))
    assert found == 2


def recurrent(p, x, loop, relu=jax.nn.relu):
    """x `[T, 3]`."""
    step = lambda h, token: (relu(token @ p["a"] + h @ p["b"]), None)
    h = jnp.zeros(4)
    if loop:
        return jnp.vdot(p["c"], lax.scan(step, h, x)[0])
    for token in x:
        h, _ = step(h, token)
    return jnp.vdot(p["c"], h)


@both
@pytest.mark.parametrize("around", [lambda f: f, jax.checkpoint, jax.jit])
def test_a_relu_in_a_scan_is_one_in_each_round(name, around):
    draw = np.random.default_rng(3)
    p = {"a": draw.normal(size=(3, 4)), "b": draw.normal(size=(4, 4)), "c": draw.normal(size=4)}
    p = jax.tree.map(lambda v: jnp.asarray(v, "f4"), p)
    x = jnp.asarray(draw.normal(size=(5, 3)), "f4")
    relu = around(jax.nn.relu)
    got = jax.jit(partial(METHODS[name], around(partial(recurrent, p, loop=True, relu=relu))))(x)
    want = METHODS[name](partial(recurrent, p, loop=False), x)
    close(got, want)
    assert not np.allclose(got.scores, jax.grad(partial(recurrent, p, loop=False))(x))
    assert count(partial(recurrent, p, loop=True), x)[0] == 1
    assert count(partial(recurrent, p, loop=False), x)[0] == 5


@both
def test_jit_vmap_and_eight_devices_equal_eager(name):
    p, x = draw()
    p, x = jax.tree.map(lambda v: jnp.asarray(v, "f4"), (p, x))
    xs = jnp.stack([x + 0.1 * i for i in range(8)])
    explain = lambda p, x: METHODS[name](partial(score, p), x).scores
    one, batched = jax.jit(explain), jax.vmap(explain, (None, 0))
    want = jnp.stack([one(p, x) for x in xs])
    close(want[0], explain(p, x))
    close(jax.jit(batched)(p, xs), want)
    spread = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    got = jax.jit(batched, out_shardings=spread)(p, jax.device_put(xs, spread))
    assert len(got.addressable_shards) == 8
    close(got, want)


def test_inside_shard_map_and_around_it():
    p, x = jax.tree.map(lambda v: jnp.asarray(v, "f4"), draw(3))
    f = lambda x: jnp.vdot(p["d"][:, 1], jax.nn.relu(jnp.maximum(x, 0) @ p["a"][:8]))
    explain = lambda x: jxp.guided_backprop(f, x).scores
    mesh, spec = Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data")
    spread = lambda g: jax.shard_map(g, mesh=mesh, in_specs=spec, out_specs=spec)
    rows = x[..., 0]
    close(jax.jit(spread(jax.vmap(explain)))(rows), jax.jit(jax.vmap(explain))(rows))
    with pytest.raises(JaxplainError, match="no rule reaches into shard_map: explain inside"):
        jxp.guided_backprop(lambda x: jnp.sum(spread(jax.nn.relu)(x)), rows)


@both
def test_gradient_of_a_penalty_through_the_scores(x64, name):
    """Against finite differences: 1e-10 of truncation, 1e-16 / 1e-5 of rounding, some sums deep."""
    p, x = jax.tree.map(jnp.asarray, draw())
    loss = lambda p: jnp.sum(METHODS[name](partial(score, p), x).scores ** 2)
    slopes, step = jax.jit(jax.grad(loss))(p), 1e-5
    d = jax.tree.map(lambda v: jnp.cos(jnp.arange(v.size)).reshape(v.shape), p)
    at = lambda s: float(loss(jax.tree.map(lambda v, d: v + s * d, p, d)))
    want = (at(step) - at(-step)) / (2 * step)
    assert float(sum(map(jnp.vdot, slopes.values(), d.values()))) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_what_it_is(dtype):
    p, x = draw()
    x = jnp.asarray(x, dtype)
    half = jax.tree.map(lambda v: jnp.asarray(v, dtype), p)
    got = jax.eval_shape(lambda x: jxp.guided_backprop(partial(score, half), x), x)
    assert got.scores.dtype == got.output.dtype == dtype and got.gap.dtype == "float32"


def test_neither_is_linear_or_the_same_for_equal_functions():
    """As the registry does not claim: -x is relu(-x) - relu(x), and scores otherwise that way."""
    f = lambda x: jax.nn.relu(-x[0]) - jax.nn.relu(x[0]) - x[1]
    assert jxp.guided_backprop(f, jnp.ones(2)).scores.tolist() == [0, -1]
    assert jxp.deconvnet(f, jnp.ones(2)).scores.tolist() == [-1, -1]
    assert jxp.deconvnet(lambda x: -f(x), jnp.ones(2)).scores.tolist() == [1, 1]
    g = lambda x: -2 * jax.nn.relu(x[0])
    assert (
        jxp.deconvnet(lambda x: -g(x), jnp.ones(1)).scores != -jxp.deconvnet(g, jnp.ones(1)).scores
    )


def test_methods_compose():
    p, x = jax.tree.map(lambda v: jnp.asarray(v, "f4"), draw())
    explain = jxp.smooth(jxp.guided_backprop, samples=3, chunk=2, level=1e-6)
    got = jax.jit(lambda x, key: explain(partial(score, p), x, key=key))(x, key=jax.random.key(0))
    # Noise of 1e-6 of the spread turns no unit on or off here.
    close(got.scores, jxp.guided_backprop(partial(score, p), x).scores)


def test_the_command_line_says_that_a_model_has_no_relu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.call(["explain", "--method", "deconvnet", "--model", "lstm", "--limit", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: deconvnet changes the gradient at ReLUs, and none")
    assert len(err.strip().splitlines()) == 1 and not list(tmp_path.glob("**/run.json"))


# The rules under them.


def epsilon(f, inputs, outputs, cotangents):
    """Layer-wise relevance propagation."""
    (y,), (relevance,) = outputs, cotangents
    gradients = jax.vjp(f, *inputs)[1]((relevance / (y + 1e-9 * jnp.where(y >= 0, 1, -1)),))
    return list(map(jnp.multiply, inputs, gradients))


def keep(f, inputs, outputs, cotangents):
    return list(cotangents)


def test_a_table_for_relevance_conserves_it(x64):
    """Without biases, of a network whose dot products and ReLUs have rules."""
    p, x = jax.tree.map(jnp.asarray, draw())
    f = lambda x: (jax.nn.relu(x.reshape(-1)[:27] @ p["a"]) @ p["d"])[1]
    changed = backward.modified(f, (x,), {"dot_general": epsilon, "relu": keep})
    assert changed.overridden == {"dot_general": 2, "relu": 1}
    output, down = jax.vjp(changed.run, x)
    (relevance,) = down(output)
    close(jnp.sum(relevance), output, factor=1e5)  # 1e-9 of epsilon, where units nearly cancel
    close(relevance, x * jax.grad(f)(x), factor=1e5)


def test_a_table_by_module_path():
    x, w = jnp.arange(1.0, 4.0), jnp.ones((3, 3))

    def f(x):
        with jax.named_scope("net"):
            with jax.named_scope("first"):
                x = jax.nn.relu(w @ x)
            with jax.named_scope("head"):
                return jnp.vdot(w[0], x)

    nothing = lambda f, inputs, outputs, cotangents: [jnp.zeros_like(v) for v in inputs]
    for pattern in ("*/head", "*/h*"):
        changed = backward.modified(f, (x,), {pattern: {"dot_general": nothing}})
        assert changed.overridden == {"dot_general": 1}
        assert not jax.grad(changed.run)(x).any()
    assert backward.modified(f, (x,), {"*/other": {"dot_general": nothing}}).overridden == {}


def test_only_what_depends_on_x_has_a_rule():
    weights = jnp.array([1.0, -2.0])
    f = lambda x: jnp.vdot(jax.nn.relu(weights), x)
    assert count(f, X[:2])[0] == 0
    f = lambda x: jnp.vdot(jax.nn.relu(lax.stop_gradient(x)), x)
    assert count(f, X[:2])[0] == 0


# What is refused.


@jax.custom_vjp
def block(x):
    return jnp.sum(jax.nn.relu(x)) * x


block.defvjp(lambda x: (block(x), None), lambda _, g: (g,))


def bounded(c):
    return jxp.guided_backprop(lambda x: jnp.sum(jnp.maximum(x, c)), X).scores


def endless(x):
    return lax.while_loop(lambda v: jnp.sum(v) < 9, lambda v: jax.nn.relu(v) + 1, x)


H = lambda x: jax.nn.relu(x).reshape(2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jxp.deconvnet(jnp.sum, X), "none is between x and f.x.: take saliency"),
        (lambda: jxp.guided_backprop(lambda x: jnp.sum(block(x)), X), "the call block has a deri"),
        (lambda: jax.jit(bounded)(X), "max has a bound that is not known while tracing"),
        (lambda: jxp.deconvnet(lambda x: jnp.sum(endless(x)), X), "no rule reaches into while"),
        (lambda: jxp.deconvnet(H, X), "f must return one floating-point scalar"),
        (lambda: jxp.deconvnet(jnp.sum, jnp.arange(3)), "only floating-point inputs"),
        (lambda: jxp.unit_of(H, (2, 0))(X), r"h\(x\) has shape \[2, 2\] and no unit \[2, 0\]"),
        (lambda: jxp.unit_of(H, (0, -3))(X), r"no unit \[0, -3\]"),
        (lambda: jxp.unit_of(H, 0)(X), r"no unit \[0\]: give one index for each axis"),
        (lambda: jxp.unit_of(H, (0.5, 0))(X), "index must be whole numbers"),  # pyright: ignore
        (lambda: jxp.unit_of(lambda x: (x, x), 0)(X), "h must return one array"),  # pyright: ignore
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(JaxplainError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
