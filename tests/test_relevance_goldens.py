"""Layer-wise relevance propagation against iNNvestigate's and Captum's numbers."""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxplain as jxp
from jaxplain.methods import relevance as r
from tests.helpers import close, quick_compile

GOLDENS = Path(__file__).parent / "goldens"
NUMBERS = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def lrp(f, x, **settings):
    return jax.jit(lambda x: r.lrp(f, x, **settings))(x)


def load(name):
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


# iNNvestigate: networks of one layer, without biases; the unit with the largest output.

E = 1e-7  # the stabiliser of its epsilon rule; 0.1 in its presets
BASE = r.LRP_ZERO
PRESET_A = {**BASE, "affine": r.alpha_beta(1, 0), "dot_general": r.epsilon(0.1)}
DEEP = {**r.deep_taylor(), "first": r.z_plus()}  # its first layer is like the others
TABLES = {
    "LRPZ": BASE,
    "LRPZIgnoreBias": {**BASE, "affine": r.zero(ignore_bias=True)},
    "LRPEpsilon": {**BASE, "affine": r.epsilon(E)},
    "LRPEpsilonIgnoreBias": {**BASE, "affine": r.epsilon(E, ignore_bias=True)},
    "LRPFlat": {**BASE, "affine": r.flat()},
    "LRPWSquare": {**BASE, "affine": r.w_square()},
    "LRPAlpha1Beta0": r.LRP_ALPHA1_BETA0,
    "LRPAlpha1Beta0IgnoreBias": {**BASE, "affine": r.alpha_beta(1, 0, ignore_bias=True)},
    "LRPAlpha2Beta1": r.LRP_ALPHA2_BETA1,
    "LRPAlpha2Beta1IgnoreBias": {**BASE, "affine": r.alpha_beta(2, 1, ignore_bias=True)},
    "LRPZPlus": {**BASE, "affine": r.z_plus()},
    "LRPZPlusFast": {**BASE, "affine": r.z_plus(signed=False)},
    "LRPZ_Flat_input_layer_rule": {**BASE, "first": r.flat()},
    "LRPZ_boxed_input_layer_rule": {**BASE, "first": r.z_box(-10, 10)},
    "LRPSequentialPresetA": PRESET_A,
    "LRPSequentialPresetAFlat": {**PRESET_A, "first": r.flat()},
    "LRPSequentialPresetB": r.epsilon_alpha2_beta1(0.1),
    "LRPSequentialPresetBFlat": r.epsilon_alpha2_beta1_flat(0.1),
    "DeepTaylor": DEEP,
    "BoundedDeepTaylor": r.deep_taylor(-128, 128),
}
GRADIENTS = {
    "Gradient": partial(jxp.saliency, absolute=False),
    "InputTimesGradient": jxp.input_x_gradient,
    # Its 64 steps are the nodes 0, 1/63, ... 1, each of the same weight.
    "IntegratedGradients": None,
}
LAYERS = ("Dense", "Dense_relu", "Conv2D", "Conv2D_relu", "MaxPooling2D", "AveragePooling2D")


def network(layer, weights, bias, x):
    """x `[10, 10, 3]` to all units `[units]`."""
    if layer.startswith("Dense"):
        x = x @ weights + bias.reshape(1, 1, -1)
    elif layer.startswith("Conv2D"):
        z = lax.conv_general_dilated(x[None], weights, (1, 1), "VALID", dimension_numbers=NUMBERS)
        x = z[0] + bias.reshape(1, 1, -1)
    else:
        pool = nn.max_pool if layer.startswith("Max") else nn.avg_pool
        x = pool(x, (2, 2), (2, 2))
    return (jax.nn.relu(x) if layer.endswith("relu") else x).reshape(-1)


def averaged(f, x):
    """Integrated gradients by iNNvestigate's rule for the integral."""
    nodes = jnp.linspace(0, 1, 64).reshape(-1, 1, 1, 1)
    scores = jnp.mean(jax.vmap(jax.grad(f))(nodes * x[None]), axis=0) * x
    return jxp.Attribution(scores, f(x), jnp.full((), jnp.nan))


@pytest.mark.parametrize("name", [*TABLES, *GRADIENTS])
def test_numbers_of_innvestigates_own_tests(name):
    golden = load("innvestigate_lrp")
    method = partial(r.lrp, rules=TABLES[name]) if name in TABLES else GRADIENTS[name] or averaged

    def explained(weights):
        def of(layer, x):
            f = partial(network, layer, *weights.get(layer, (None, None)))
            unit = jnp.argmax(f(x))
            return method(lambda x: f(x)[unit], x).scores

        return {layer: jax.vmap(partial(of, layer))(golden["x"]) for layer in LAYERS}

    weights = {la: tuple(golden[f"{name}_{la}_{n}"] for n in (0, 1)) for la in LAYERS[:4]}
    got = jax.jit(explained)(weights)
    for layer in LAYERS:
        want = golden[f"{name}_{layer}"]
        # float32 sums of 27 products in another order, divided by what may nearly cancel.
        np.testing.assert_allclose(got[layer], want, rtol=2e-5, atol=2e-6, err_msg=layer)


# Captum: dense layers and convolutions with biases, BatchNorm, pooling, a residual connection.


def captum_mlp(p, x):
    x = jax.nn.relu(p["0.weight"] @ x + p["0.bias"])
    x = jnp.tanh(p["2.weight"] @ x + p["2.bias"])
    return (p["4.weight"] @ x + p["4.bias"])[1]


def captum_cnn(p, x):
    """x `[2, 10, 10]`."""

    def conv(name, x, padding):
        z = lax.conv_general_dilated(x[None], p[f"{name}.weight"], (1, 1), padding)[0]
        return z + p[f"{name}.bias"].reshape(-1, 1, 1)

    pool = lambda fn, x: fn(jnp.moveaxis(x, 0, -1), (2, 2), (2, 2)).transpose(2, 0, 1)
    x = conv("first", x, "VALID")
    if "norm.weight" in p:
        mean, var, scale, offset = (
            p[f"norm.{n}"].reshape(-1, 1, 1)
            for n in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) * lax.rsqrt(var + 1e-5) * scale + offset
    x = pool(nn.max_pool, jax.nn.relu(x))
    x = pool(nn.avg_pool, x + jax.nn.relu(conv("block", x, "SAME")))
    return (p["head.weight"] @ x.reshape(-1) + p["head.bias"])[1]


def captum_case(name, rule, rules, signs=("signed", "positive")):
    """Captum's scores, and ours, of all examples: as they are drawn, and their magnitudes."""
    golden = load("captum_lrp")
    p = {k.split(":")[1]: jnp.asarray(v) for k, v in golden.items() if k.startswith(f"{name}:")}
    f = captum_mlp if name == "mlp" else captum_cnn
    x = jnp.concatenate([p["x"] if sign == "signed" else jnp.abs(p["x"]) for sign in signs])
    explain = lambda p, x: jax.vmap(lambda x: r.lrp(partial(f, p), x, rules=rules).scores)(x)
    want = np.concatenate([golden[f"{name}:{rule}:{sign}"] for sign in signs])
    return want, jax.jit(explain)(p, x)


T = 1e-9  # the stabiliser that Captum was given
PLAIN = {**r.LRP_EPSILON, "sum": r.epsilon(T), "pooling": r.epsilon(T), "affine": r.epsilon(T)}
UNBIASED = {
    "epsilon": PLAIN,
    "gamma_unbiased": {**PLAIN, "affine": r.gamma(signed=False, ignore_bias=True)},
    "alpha1beta0_unbiased": {**PLAIN, "affine": r.z_plus(signed=False)},
}


@pytest.mark.parametrize(
    ("name", "rule"),
    [(m, rule) for m in ("mlp", "cnn") for rule in UNBIASED] + [("cnn_norm", "epsilon")],
)
def test_scores_are_captums(x64, name, rule):
    want, got = captum_case(name, rule, UNBIASED[rule])
    # Both stabilise, at different places: 1e-9 against values that may be 1e-3.
    close(got, want, factor=1e6)


def captums(up):
    """Captum's rules by sign: weights change, biases stay as they are, and inputs have no sign."""

    def rule(layer, inputs, outputs, relevance):
        made, (x,) = layer.map(), inputs
        z, back = jax.vjp(lambda x: made.weighted(x, up, 1 if up > 1 else 0), x)
        z = z + made.offset
        return [x * back(made.aligned(relevance[0]) / (z + T * jnp.where(z >= 0, 1, -1)))[0]]

    return {**PLAIN, "affine": rule}


@pytest.mark.parametrize(
    ("key", "ours", "up", "apart"),
    [
        # Montavon et al. 2019 sum over biases, too, b + γ b⁺; Captum over b.
        ("mlp:gamma:positive", r.gamma(signed=False), 1.25, 0.01),
        ("cnn:gamma:positive", r.gamma(signed=False), 1.25, 0.01),
        # Bach et al. 2015 have b⁺ in the sum of what is positive; Captum b, so that it may be 0.
        ("mlp:alpha1beta0:positive", r.alpha_beta(1, 0), 1, 0.5),
        ("cnn:alpha1beta0:positive", r.alpha_beta(1, 0), 1, 0.05),
        # They have (x w)⁺ in it; Captum x w⁺, which for negative x is negative.
        ("mlp:alpha1beta0_unbiased:signed", r.alpha_beta(1, 0, ignore_bias=True), None, 0.5),
    ],
)
def test_where_captum_departs_from_the_papers(x64, key, ours, up, apart):
    name, rule, sign = key.split(":")
    want, got = captum_case(name, rule, {**PLAIN, "affine": ours}, (sign,))
    distance = np.abs(got - want).max() / np.abs(want).max()
    assert distance > apart
    if up is not None:
        close(captum_case(name, rule, captums(up), (sign,))[1], want, factor=1e6)


# Captum's own tests, by the numbers in them; exact, but for a stabiliser of 1e-9.


def both(x, first, second, w=2.0):
    """SimpleLRPModel: dense, ReLU, dense, with a rule for each."""
    weights = jnp.full((3, 3), 2.0).at[0, 0].set(w)

    def f(x):
        with jax.named_scope("net"):
            with jax.named_scope("first"):
                h = jax.nn.relu(weights @ x)
            with jax.named_scope("second"):
                return (jnp.full((1, 3), 3.0) @ h)[0]

    rules = {**PLAIN, "net/first": {"affine": first}, "net/second": {"affine": second}}
    return lrp(f, x, rules=rules).scores


def test_numbers_of_captums_own_tests(x64):
    x = jnp.array([1.0, 2.0, 3.0])
    e = r.epsilon(T)
    a1b0 = r.alpha_beta(1, 0)
    every = lambda x: [
        both(x, e, e),
        both(3 * x, e, e),
        both(x, r.gamma(1), r.gamma(), w=-2.0),
        both(x, a1b0, a1b0, w=-2.0),
        both(x, r.identity, e, w=-2.0),
    ]
    wants = [[18, 36, 54], [54, 108, 162], [28 / 3, 104 / 3, 52], [12, 33.6, 50.4], [24, 36, 36]]
    for got, want in zip(jax.jit(every)(x), wants, strict=True):
        close(got, jnp.asarray(want, float), factor=1e5)

    skip = lambda x: (jnp.full((2, 2), 5.0) @ x + x)[1]
    close(lrp(skip, x[1:], rules=PLAIN).scores, jnp.array([10.0, 18.0]), factor=1e5)
    tanh = lambda x: jnp.sum(0.1 * jnp.tanh(jnp.full((3, 3), 0.1) @ x))
    got = lrp(tanh, x, rules=PLAIN).scores
    np.testing.assert_allclose(got, [0.0269, 0.0537, 0.0806], atol=5e-5)  # as it is printed there


def test_numbers_of_captums_own_tests_of_convolutions(x64):
    """BasicModel_ConvNet_One_Conv, target 0."""
    weights = jnp.concatenate([jnp.ones((4, 5)), -jnp.ones((4, 3))], axis=1)
    bias = jnp.array([-50.0, -75.0]).reshape(1, 2, 1, 1)

    def f(x):
        z = lax.conv_general_dilated(x[None, None], jnp.ones((2, 1, 3, 3)), (1, 1), "VALID")
        return jax.nn.relu(weights @ jax.nn.relu(z + bias).reshape(-1))[0]

    got = lrp(f, jnp.arange(16.0).reshape(4, 4), rules=PLAIN)
    want = jnp.array([[0.0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11], [0, 0, 0, 0]])
    # One unit is 4, the sum of products 54: its share of 1e-9 is what the stabiliser takes.
    close(got.scores, want, factor=1e5)
    assert abs(got.gap) < 1e-9 * 54


def pooled(rank, x):
    window = (2,) * rank
    return nn.max_pool(x[None, ..., None], window, window)[0, ..., 0].reshape(-1)


def test_numbers_of_captums_own_tests_of_max_pooling():
    """The maximum takes all; of equal ones, the first."""
    x = jnp.array([[1.0, 2.0], [5.0, 6.0]])
    one = lambda x: jax.vmap(partial(pooled, 1))(x @ jnp.full((2, 2), 2.0))[1, 0]
    assert lrp(one, x, rules=r.LRP_ZERO).scores.tolist() == [[0, 0], [10, 12]]
    assert lrp(lambda x: pooled(2, x)[0], x).scores.tolist() == [[0, 0], [0, 6]]
    cube = jnp.stack([x, x + 2])
    got = lrp(lambda x: pooled(3, x)[0], cube).scores
    assert got.tolist() == [[[0, 0], [0, 0]], [[0, 0], [0, 8]]]


def test_captum_counts_a_sum_twice_that_is_no_module(x64):
    """BasicModel_MultiLayer of x and 3x: its own test has a delta of -104, of an output of 88."""

    def f(x):
        h = jax.nn.relu(jnp.sum(x[0] + x[1]) + jnp.array([-10.0, 1, 1, 1]))
        return jnp.ones(4) @ h - 1

    x = jnp.array([1.0, 2.0, 3.0])
    captum = np.array([16.0, 32, 48])  # to x, and as much to 3x
    got = lrp(f, (x, 3 * x), rules=PLAIN)
    close(got.scores, (captum / 4, captum * 3 / 4), factor=1e5)
    assert 2 * captum.sum() - got.output == 104
    close(got.gap, jnp.asarray(captum.sum() - 88), factor=1e6)  # biases, -8 in all
