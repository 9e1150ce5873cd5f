"""Explanations of a layer: Captum's published numbers, its results on random networks, and sums."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.methods.layers import (
    grad_cam,
    guided_grad_cam,
    internal_influence,
    layer_conductance,
    neuron_conductance,
)
from jaxplain.methods.path import integrated_gradients
from jaxplain.types import JaxplainError
from tests import small_models
from tests.helpers import close, quick_compile, total

GOLDENS = Path(__file__).parent / "goldens"
# The share of a path that a node of 2,000 answers for, pi / 4,000, by which a kink can be missed.
FINE = {"steps": 2000, "chunk": 500}
NODE = np.pi / 4000


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def compiled(method, *parts, **options):
    """The last part is the example."""
    return jax.jit(lambda x: method(*parts[:-1], x, **options))(parts[-1])


# Captum's BasicModel_MultiLayer, its first output, cut before and after each of its layers.
IDENTITY = lambda x: x
LINEAR1 = lambda x: jnp.sum(x) + jnp.array([-10.0, 1.0, 1.0, 1.0])
RELU = lambda x: jax.nn.relu(LINEAR1(x))
LINEAR2 = lambda x: jnp.sum(RELU(x)) + jnp.array([-1.0, 1.0])
AFTER_LINEAR1 = lambda y: jnp.sum(jax.nn.relu(y)) - 1
AFTER_RELU = lambda y: jnp.sum(y) - 1
FIRST = lambda y: y[0]
WHOLE = lambda x: AFTER_LINEAR1(LINEAR1(x))
X = jnp.array([0.0, 100.0, 0.0])


@pytest.mark.parametrize(
    ("h", "g", "want"),
    [
        (IDENTITY, WHOLE, [0, 390, 0]),
        (LINEAR1, AFTER_LINEAR1, [90, 100, 100, 100]),
        (RELU, AFTER_RELU, [90, 100, 100, 100]),
        (LINEAR2, FIRST, [390, 0]),
    ],
)
def test_conductance_of_captums_tests(h, g, want):
    got = compiled(layer_conductance, h, g, X, **FINE)
    np.testing.assert_allclose(got.scores, want, atol=100 * NODE, rtol=1e-6)
    assert float(got.gap) == pytest.approx(total(got.scores) - 390, abs=1e-3)


def test_neuron_conductance_of_captums_tests():
    got = compiled(neuron_conductance, LINEAR1, AFTER_LINEAR1, X, unit=0, **FINE)
    np.testing.assert_allclose(got.scores, [0, 90, 0], atol=100 * NODE)


@pytest.mark.parametrize(
    ("h", "g", "x", "start", "want"),
    [
        (IDENTITY, WHOLE, X, 0.0, [3.9] * 3),
        (LINEAR1, AFTER_LINEAR1, X, 0.0, [0.9, 1, 1, 1]),
        # Captum's own test has .8 with a tolerance of .01; units are on from .19 of the path.
        (LINEAR1, AFTER_LINEAR1, 0.8 * X, jnp.array([0.0, -20, 0]), [0.7, 0.81, 0.81, 0.81]),
    ],
)
def test_influence_of_captums_tests(h, g, x, start, want):
    got = compiled(internal_influence, h, g, x, baseline=start, **FINE)
    np.testing.assert_allclose(got.scores, want, atol=NODE)
    assert np.isnan(got.gap)


def test_a_layers_deeplift_of_captums_tests_is_any_complete_method_of_a_linear_rest():
    h = lambda x: jax.nn.relu(
        jnp.stack([x[0] @ jnp.array([3.0, 1, 0]), x[1] @ jnp.array([2, 3.0, 0])])
    )
    x = jnp.array([[-10.0, 1, -5], [3, 3, 1]])
    for times in (1, 3):
        g = lambda y, times=times: times * jnp.sum(y)
        got = compiled(integrated_gradients, g, h(x), baseline=h(jnp.zeros_like(x)), steps=1)
        np.testing.assert_allclose(got.scores, [0, 15 * times], rtol=1e-6)


# Captum's BasicModel_ConvNet_One_Conv; a state is [C, H, W], as there.
IMAGE = jnp.arange(16.0).reshape(4, 4)
SUMS = jnp.stack([IMAGE[i : i + 2, j : j + 2] for i in range(3) for j in range(3)]).sum(0)
CONV = jnp.stack([SUMS - 50, SUMS - 75])
HEAD = lambda y: jax.nn.relu(y.ravel() @ jnp.array([1.0] * 5 + [-1] * 3))
AFTER_CONV = lambda y: HEAD(jax.nn.relu(y))


@pytest.mark.parametrize(
    ("g", "a", "want"),
    [
        (AFTER_CONV, CONV, [[11.25, 13.5], [20.25, 22.5]]),
        (HEAD, jax.nn.relu(CONV), [[0, 4], [28, 32.5]]),
    ],
)
def test_grad_cam_of_captums_tests(g, a, want):
    got = grad_cam(g, a, relu=False, channel_axis=0)
    np.testing.assert_array_equal(got.scores, want)
    np.testing.assert_array_equal(got.output, g(a))
    last = grad_cam(lambda a: g(jnp.moveaxis(a, -1, 0)), jnp.moveaxis(a, 0, -1), relu=False)
    np.testing.assert_array_equal(last.scores, want)


def test_channels_of_grad_cam_add_up():
    """Captum's split by channel: each with the others held."""
    wants = [[[-3.75, 3], [23.25, 30]], [[15, 10.5], [-3, -7.5]]]
    for channel, want in enumerate(wants):
        alone = lambda a, channel=channel: AFTER_CONV(CONV.at[channel].set(a[0]))
        got = grad_cam(alone, CONV[channel][None], relu=False, channel_axis=0)
        np.testing.assert_array_equal(got.scores, want)
        kept = grad_cam(alone, CONV[channel][None], channel_axis=0)
        np.testing.assert_array_equal(kept.scores, np.maximum(want, 0))


@pytest.fixture
def golden():
    with np.load(GOLDENS / "layers.npz") as stored:
        return {k: stored[k] for k in stored.files}


def random_cnn(golden):
    """h, to the pooled state [4, 4, 4], and g; images are [C, H, W] as in Captum."""
    p = {k[10:]: jnp.asarray(v) for k, v in golden.items() if k.startswith("cnn_param_")}

    def conv(x, layer, padding):
        found = jax.lax.conv_general_dilated(x[None], p[f"{layer}.weight"], (1, 1), padding)
        return jax.nn.relu(found[0] + p[f"{layer}.bias"][:, None, None])

    def h(x):
        return conv(x, 0, "SAME").reshape(4, 4, 2, 4, 2).mean((2, 4))

    g = lambda a: p["6.weight"][0] @ conv(a, 3, "VALID").ravel() + p["6.bias"][0]
    return h, g


def random_mlp(golden, name):
    p = {k: jnp.asarray(v) for k, v in golden.items() if k.startswith(f"{name}_param_")}
    layer = lambda n, x: p[f"{name}_param_{n}.weight"] @ x + p[f"{name}_param_{n}.bias"]
    if name == "linear":
        return partial(layer, 0), lambda y: layer(2, y)[0]
    return lambda x: jnp.tanh(layer(0, x)), lambda y: layer(4, jnp.tanh(layer(2, y)))[0]


# Captum keeps step sizes in float32: its nodes are off by as much as rounding there.
SINGLE = 1e-6 / 1e-12


def test_captum_goldens_of_a_cnn(x64, golden):
    h, g = random_cnn(golden)
    x = jnp.asarray(golden["cnn_x"])
    cam = grad_cam(g, h(x), relu=False, channel_axis=0)
    close(cam.scores, golden["cnn_grad_cam"])
    assert cam.scores.min() < 0 < cam.scores.max()
    guided = compiled(guided_grad_cam, h, g, x, channel_axis=0, interpolation="nearest")
    close(guided.scores, golden["cnn_guided_grad_cam"])
    smooth = compiled(guided_grad_cam, h, g, x, channel_axis=0)
    assert np.abs(smooth.scores - guided.scores).max() > 0.01 * np.abs(guided.scores).max()
    influence = compiled(internal_influence, h, g, x, steps=20)
    close(influence.scores, golden["cnn_influence"], factor=SINGLE)


def test_captum_goldens_of_an_mlp(x64, golden):
    h, g = random_mlp(golden, "mlp")
    x, start = jnp.asarray(golden["mlp_x"]), jnp.asarray(golden["mlp_baseline"])
    options = {"baseline": start, "steps": 20}
    influence = compiled(internal_influence, h, g, x, **options)
    close(influence.scores, golden["mlp_influence"], factor=SINGLE)
    neuron = compiled(neuron_conductance, h, g, x, unit=int(golden["unit"]), **options)
    close(neuron.scores, golden["mlp_neuron"], factor=SINGLE)

    layer = compiled(layer_conductance, h, g, x, **options)
    assert abs(float(layer.gap)) < 1e-12  # 20 nodes of a smooth path
    coarse, fine = golden["mlp_conductance_1000"], golden["mlp_conductance_2000"]
    # Captum's differences err by 1 / steps, and in what is left by its square.
    np.testing.assert_allclose(coarse - layer.scores, 2 * (fine - layer.scores), rtol=0.01)
    np.testing.assert_allclose(2 * fine - coarse, layer.scores, atol=1e-6, rtol=0)
    assert abs(golden["mlp_conductance_1000"] - layer.scores).max() > 1e-5


def test_captums_default_for_a_neuron_is_too_small_by_a_step(x64, golden):
    """riemann_trapezoid of 50 steps: .98 of the exact values, which a linear network shows."""
    h, g = random_mlp(golden, "linear")
    x, start = jnp.asarray(golden["linear_x"]), jnp.asarray(golden["linear_baseline"])
    unit = int(golden["unit"])
    got = compiled(neuron_conductance, h, g, x, unit=unit, baseline=start, steps=1)
    first, last = golden["linear_param_0.weight"], golden["linear_param_2.weight"]
    close(got.scores, (x - start) * first[unit] * last[0, unit])
    close(0.98 * got.scores, golden["linear_neuron_default"], factor=SINGLE)


def test_parts_of_neurons_and_of_inputs_add_up():
    model = small_models.make("mlp")
    p, start = model.params, jnp.full(5, 0.3)
    h = lambda x: jax.nn.gelu(x @ p["a"] + p["b"], approximate=False)
    g = lambda y: jnp.tanh(y @ p["c"] + p["d"]) @ p["e"]
    options = {"baseline": start, "steps": 24}

    # A rest that reads two units, whose parts are then all of it.
    ends = jnp.array([0, 7])
    of_two = lambda y: g(jnp.zeros(8).at[ends].set(y[ends]))

    @jax.jit
    def explain(x):
        units = [neuron_conductance(h, of_two, x, unit=n, **options).scores for n in (0, -1)]
        whole = integrated_gradients(lambda x: of_two(h(x)), x, **options).scores
        layers = [layer_conductance(h, rest, x, **options) for rest in (of_two, g)]
        return jnp.stack(units), whole, layers

    units, whole, (pair, layer) = explain(model.x)
    close(jnp.sum(units, 1), pair.scores[ends])
    close(jnp.sum(units, 0), whole)
    assert np.abs(units).min() > 1e-4
    assert layer.gap == pytest.approx(0, abs=1e-5)
    assert total(layer.scores) == pytest.approx(float(model.f(model.x) - model.f(start)), abs=1e-5)


def test_a_state_may_be_a_tree_and_carry_what_bypasses_a_layer():
    h = lambda x: {"layer": jnp.tanh(x), "rest": (x[:1],)}
    g = lambda y: jnp.prod(y["layer"]) * y["rest"][0][0]
    x = jnp.array([0.5, 1.0, -2.0])
    layer, influence = (compiled(m, h, g, x) for m in (layer_conductance, internal_influence))
    assert jax.tree.structure(layer.scores) == jax.tree.structure(h(x))
    close(jax.tree.map(jnp.shape, influence.scores), jax.tree.map(jnp.shape, h(x)))
    assert layer.gap == pytest.approx(0, abs=1e-6)
    # A neuron of a layer that f reads once, through a tree of inputs.
    tree = {"a": x, "b": jnp.float32(2.0)}
    got = compiled(
        neuron_conductance, lambda x: x["a"] * x["b"], lambda y: y @ y, tree, unit=(1,), steps=4
    )
    assert got.scores["a"][0] == 0
    assert total(got.scores) == pytest.approx(4, rel=1e-5)  # the unit is 2, and its square 4


def test_chunks_change_nothing():
    h, g, x = jnp.tanh, lambda y: jnp.prod(y), jnp.array([0.5, 1.0, -2.0])
    methods = (layer_conductance, internal_influence, partial(neuron_conductance, unit=1))

    @partial(jax.jit, static_argnums=0)
    def explain(chunk, x):
        return [method(h, g, x, steps=10, chunk=chunk).scores for method in methods]

    want = explain(None, x)
    for chunk in (3, 100):
        close(explain(chunk, x), want)


def test_memory_does_not_grow_with_steps():
    model = small_models.make("cnn")
    h, g = lambda x: jnp.tanh(x), model.f

    def taken(method, steps):
        explain = jax.jit(lambda x: method(h, g, x, steps=steps).scores)
        stats = explain.lower(model.x).compile().memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes

    for method in (layer_conductance, partial(neuron_conductance, unit=(1, 1, 1))):
        assert taken(method, 300) < 1.1 * taken(method, 30) + 8 * 300  # the nodes themselves


def test_batches_and_gradients_pass_through():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    weights = jax.random.normal(jax.random.key(1), (2, 3))

    def explain(weights, x):
        h = lambda x: jax.nn.relu(x @ weights)
        g = lambda y: jnp.sum(jnp.mean(y, (0, 1)) ** 2)
        return (
            grad_cam(g, h(x)).scores,
            guided_grad_cam(h, g, x).scores,
            layer_conductance(h, g, x, steps=4).scores,
            internal_influence(h, g, x, steps=4).scores,
            neuron_conductance(h, g, x, unit=[0, 1, 2], steps=4).scores,
        )

    batch = jax.jit(jax.vmap(explain, (None, 0)))(weights, x)
    alone = jax.jit(explain)
    for i in range(2):
        close(jax.tree.map(lambda v, i=i: v[i], batch), alone(weights, x[i]))
    loss = lambda w: sum(jnp.sum(v**2) for v in explain(w, x[0]))
    slope = jax.jit(jax.grad(loss))(weights)
    assert np.isfinite(slope).all() and np.any(slope)


def test_scores_of_low_precision_are_summed_in_float32():
    x = jnp.array([0.5, 1.0, -2.0], jnp.bfloat16)
    got = compiled(layer_conductance, jnp.tanh, lambda y: jnp.sum(y**2), x)
    assert got.scores.dtype == jnp.float32 and got.output.dtype == jnp.bfloat16
    exact = jnp.tanh(x.astype("f4")) ** 2
    close(got.scores, exact, dtype="bfloat16")


ONES: Any = jnp.ones((3, 3))
TUPLE: Any = lambda x: (x,)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: grad_cam(jnp.sum, jnp.ones(3)), r"channel_axis -1, not \[3\]"),
        (lambda: grad_cam(jnp.sum, ONES, channel_axis=2), r"channel_axis 2, not \[3, 3\]"),
        (lambda: grad_cam(lambda a: jnp.sum(a[0]), TUPLE(ONES)), "a must be one array"),
        (lambda: grad_cam(lambda a: a, ONES), "f must return one"),
        (
            lambda: guided_grad_cam(lambda x: jax.nn.relu(x)[0], jnp.sum, ONES[None]),
            r"h\(x\) has shape \[3, 3\] and x \[1, 3, 3\]",
        ),
        (lambda: guided_grad_cam(jnp.tanh, jnp.sum, ONES), "changes the gradient at ReLUs"),
        (lambda: layer_conductance(jnp.tanh, jnp.sum, ONES, baseline=jnp.ones(2)), "baseline has"),
        (lambda: layer_conductance(jnp.tanh, jnp.sum, ONES, steps=0), "steps must be"),
        (lambda: internal_influence(jnp.tanh, jnp.sum, ONES, chunk=0), "chunk must be"),
        (lambda: internal_influence(jnp.tanh, jnp.cos, ONES), "f must return one"),
        (
            lambda: internal_influence(lambda x: (x, jnp.argmax(x)), lambda y: jnp.sum(y[0]), ONES),
            r"h\(x\)\[1\] is int32",
        ),
        (lambda: neuron_conductance(jnp.tanh, jnp.sum, ONES, unit=1), r"no unit \[1\]"),
        (
            lambda: neuron_conductance(TUPLE, lambda y: jnp.sum(y[0]), ONES, unit=1),
            "one array",
        ),
    ],
)
def test_refused_in_one_line(call, words):
    with pytest.raises(JaxplainError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
