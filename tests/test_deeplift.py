"""DeepLIFT against formulas, Captum, the cases that it is known for, and every kind of step."""

from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxplain as jxp
from jaxplain import JaxplainError, MissingRule
from jaxplain.methods.deeplift import Pair, rescale
from tests import small_models
from tests.helpers import close, quick_compile

DIMENSIONS = ("NCHW", "OIHW", "NCHW")


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    jax.config.update("jax_enable_x64", True)
    with quick_compile():
        yield
    jax.config.update("jax_enable_x64", False)


def lift(f, x, baseline, **settings):
    return jax.jit(lambda x, b: jxp.deep_lift(f, x, baseline=b, **settings))(x, baseline)


def complete(f, x, baseline, found=None, factor=1.0):
    """Assert that scores add up to the difference, computed here."""
    found = lift(f, x, baseline) if found is None else found
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(found.scores))
    both = jax.jit(lambda x, b: jnp.stack([f(x), f(b)]))(x, baseline)
    close(jnp.stack([found.output, found.output - total]), both, factor=factor)
    close(found.gap + both[0] - both[1], both[0] - both[1], factor=factor)
    return found


# Captum's networks, in jax.


def window_max(x, stride):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2), (1, stride, stride), "VALID")


def conv(p, name, x, padding):
    w, b = p[f"{name}.weight"], p[f"{name}.bias"]
    y = lax.conv_general_dilated(x[None], w, (1, 1), padding, dimension_numbers=DIMENSIONS)[0]
    return y + b[:, None, None]


def dense(p, name, x):
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def cnn(p, x, stride=2, row=False):
    h = conv(p, "a", x, "VALID")
    if row:
        h = window_max(jax.nn.relu(conv(p, "b", h, "SAME")), stride)
    else:
        h = window_max(conv(p, "b", jax.nn.relu(h), "SAME"), stride)
    h = jnp.tanh(dense(p, "c", h.ravel()))
    return dense(p, "e", jax.nn.sigmoid(dense(p, "d", h)))[0]


def mlp(p, x):
    h = jax.nn.softplus(dense(p, "b", jax.nn.elu(dense(p, "a", x))))
    return jax.nn.leaky_relu(dense(p, "c", h), 0.1)[0]


def norm(p, x):
    h = jax.nn.standardize(dense(p, "a", x), epsilon=1e-5) * p["norm.weight"] + p["norm.bias"]
    return dense(p, "b", jax.nn.gelu(h, approximate=False))[0]


def transformer(p, x):
    for n in range(2):
        d = lambda name, v, n=n: v @ p[f"blocks.{n}.{name}.weight"].T
        rms = lambda name, v, n=n: (
            v
            * lax.rsqrt(jnp.mean(v * v, -1, keepdims=True) + 1e-6)
            * p[f"blocks.{n}.{name}.weight"][None]
        )
        h = rms("one", x)
        q, k, v = d("q", h), d("k", h), d("v", h)
        seen = jnp.tril(jnp.ones((len(x), len(x)), bool))
        scores = jnp.where(seen, q @ k.T / q.shape[-1] ** 0.5, -1e9)
        x = x + d("o", jax.nn.softmax(scores, axis=-1) @ v)
        h = rms("two", x)
        x = x + d("down", jax.nn.silu(d("gate", h)) * d("up", h))
    return dense(p, "last", x[-1])[0]


NETWORKS = {
    "cnn": cnn,
    "mlp": mlp,
    "row": partial(cnn, row=True),
    "overlap": partial(cnn, stride=1),
    "functional": lambda p, x: dense(p, "b", jnp.maximum(dense(p, "a", x), 0))[0],
    "norm": norm,
    "gate": lambda p, x: dense(p, "c", jax.nn.sigmoid(dense(p, "a", x)) * dense(p, "b", x))[0],
    "softmax": lambda p, x: jax.nn.softmax(dense(p, "a", x))[1],
    "transformer": transformer,
}
RIGHT = ("cnn", "mlp")


@cache
def captum(name):
    with np.load(Path(__file__).parent / "goldens" / "deeplift.npz") as file:
        case = {
            n.split("/", 1)[1]: jnp.asarray(file[n]) for n in file.files if n.startswith(f"{name}/")
        }
    p = {n.removeprefix("p."): v for n, v in case.items() if n.startswith("p.")}
    return case, partial(NETWORKS[name], p)


@pytest.mark.parametrize("name", NETWORKS)
def test_captum_where_it_is_complete_and_complete_where_it_is_not(name):
    case, f = captum(name)
    x, starts = case["x"], case["baselines"]
    one = lambda b: jxp.deep_lift(f, x, baseline=b)
    both = lambda: (jax.vmap(one)(starts), jxp.deep_shap(f, x, baselines=starts, chunk=2))
    each, shap = jax.jit(both)()
    found = complete(f, x, starts[0], jax.tree.map(lambda v: v[0], each))
    close(
        jnp.stack([found.output, found.output - found.scores.sum()]), case["f"]
    )  # the same network
    close(shap.gap + found.output, found.output)
    close(shap.scores, each.scores.mean(0))
    close(shap.standard_error, each.scores.std(0, ddof=1) / 3**0.5)
    theirs = case["deep_lift"]
    difference = case["f"][0] - case["f"][1]
    if name in RIGHT:
        close(found.scores, theirs)
        close(shap.scores, case["deep_shap"])
    else:  # they lose, or make up, at least 5% of the difference that they are to explain
        assert abs(theirs.sum() - difference) > 0.05 * abs(difference)
        assert abs(found.scores.sum() - difference) < 1e-12


def test_rescale_by_its_formula_on_a_network_of_numpy():
    """Shrikumar et al., 3.3 and 3.5: multipliers of layers, one after another."""
    draw = np.random.default_rng(1)
    a, b, x, start = (draw.normal(size=s) for s in ((6, 9), (9, 5), 6, 6))
    c = draw.normal(size=5)
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    z, z0 = x @ a, start @ a
    h, h0 = np.maximum(z, 0), np.maximum(start @ a, 0)
    y, y0 = h @ b, h0 @ b
    outer = c * (sigmoid(y) - sigmoid(y0)) / (y - y0)
    inner = (b @ outer) * (h - h0) / (z - z0)
    want = (a @ inner) * (x - start)
    f = lambda x: jax.nn.sigmoid(jax.nn.relu(x @ a) @ b) @ c
    close(lift(f, jnp.asarray(x), jnp.asarray(start)).scores, jnp.asarray(want))


def test_a_product_gives_each_factor_its_change_times_the_others_average():
    f = lambda x: x[0] * x[1] + x[2] / x[3]
    x, start = jnp.array([3.0, 5.0, 7.0, 2.0]), jnp.array([1.0, 2.0, 1.0, 4.0])
    inverse, average = (1 / 2 + 1 / 4) / 2, 4.0
    want = [2 * 3.5, 3 * 2.0, 6 * inverse, average * (1 / 2 - 1 / 4)]
    close(lift(f, x, start).scores, jnp.array(want))


def test_numbers_of_captums_own_tests():
    """Its ReLU model, its model of layers, and its maximum of linear units."""
    f = lambda x: 2 * jax.nn.relu(x[0]) + 2 * jax.nn.relu(x[1] - 1.5)
    found = complete(f, jnp.array([1.0, 2.0]), jnp.zeros(2))
    assert found.scores.tolist() == [2, 1]  # multipliers 2 and 0.5

    def layer(x, factor):  # of two inputs of a model with a ReLU, explained at its input
        return jnp.sum(jax.nn.relu(x) * factor)

    hidden = jnp.array([-10.0 * 3 + 1 + 0, 2 * 3 + 3 * 3 + 0.0])
    for factor, want in ((1, [0, 15]), (3, [0, 45])):
        assert lift(partial(layer, factor=factor), hidden, jnp.zeros(2)).scores.tolist() == want

    def pooled(x):  # rows are channels
        return jnp.sum(lax.reduce_window(x, -jnp.inf, lax.max, (1, 4), (1, 4), "VALID"))

    start = jnp.array([[1.0, 2, 3, 9], [4, 8, 6, 7]])
    want = [[0, 0, 0, -8], [0, -7, 0, 0]]
    assert complete(pooled, jnp.ones((2, 4)), start).scores.tolist() == want
    assert lift(lambda x: jnp.max(x, 1).sum(), jnp.ones((2, 4)), start).scores.tolist() == want


def scanned(x):
    step = lambda c, v: ((jnp.tanh(c[0] * v + c[1]), c[1] + v), jax.nn.relu(c[0] - v))
    (a, b), out = lax.scan(step, (jnp.float64(0.3), jnp.float64(0)), x)
    return a * b + out.sum()


def remade(x):
    return jnp.sum(jax.checkpoint(lambda x: jnp.exp(-x) * x)(x))


@jax.custom_vjp
def swish(x):
    return x * jax.nn.sigmoid(x)


swish.defvjp(lambda x: (swish(x), x), lambda x, g: (g,))  # whatever its derivative says


def masked(x):
    return jnp.where(jnp.arange(6) < 4, x, -jnp.inf)


def attention(v):
    return nn.dot_product_attention(v, v, v)


STEPS = {
    "scan": scanned,
    "checkpoint": remade,
    "branch": lambda x: lax.cond(x.size > 2, jnp.tanh, jnp.sin, x).sum(),
    "traced branch": lambda x: lax.switch(jnp.int32(1), [jnp.sin, jnp.tanh], x).sum(),
    "own derivative": lambda x: jnp.sum(swish(x)),
    "stop gradient": lambda x: jnp.sum(lax.stop_gradient(x) * x),
    "log softmax": lambda x: jax.nn.log_softmax(x * 3)[2],
    "logsumexp": lambda x: jax.nn.logsumexp(x, where=jnp.arange(6) < 4),
    "infinite mask": lambda x: jax.nn.softmax(masked(x)) @ jnp.arange(6.0),
    "infinite mask by hand": lambda x: jnp.exp(masked(x)) @ x / jnp.exp(masked(x)).sum(),
    "masked maximum": lambda x: (
        jnp.max(masked(x)) + jnp.exp(jnp.max(masked(x)[2:].reshape(2, 2), 1)).sum()
    ),
    "softmax far apart": lambda x: jax.nn.softmax(x * 400) @ jnp.arange(6.0),
    "softmax over two axes": lambda x: jnp.max(jax.nn.softmax(x.reshape(2, 3), axis=(0, 1)), 0)[1],
    "maximum of two": lambda x: jnp.sum(jnp.maximum(x[:3] * 2, x[3:])),
    "minimum of two": lambda x: jnp.sum(jnp.minimum(x[:3], x[3:] ** 2)),
    "minimum": lambda x: jnp.min(x),
    "least of windows": lambda x: jnp.sum(
        lax.reduce_window(x, jnp.inf, lax.min, (3,), (1,), "SAME")
    ),
    "norm": lambda x: jnp.linalg.norm(x) + jnp.var(x) / jnp.std(x),
    "powers": lambda x: jnp.sum(x**3 + x**-2 + jnp.abs(x) ** 1.5 + jnp.cbrt(x)),
    "kinks": lambda x: jnp.sum(jax.nn.relu6(9 * x) + jax.nn.hard_tanh(x) + jnp.clip(x, -0.5, 0.3)),
    "steps": lambda x: jnp.sum(jnp.floor(3 * x) + jnp.sign(x) + (x > 0.2)),
    "written by hand": lambda x: jnp.sum(jnp.where(x > 0, x, 0.1 * jnp.expm1(x))),
    "structure": lambda x: jnp.concatenate([x[::-1], jnp.pad(x, 1)]).cumsum() @ jnp.arange(14.0),
    "convolution of two": lambda x: jnp.sum(jnp.convolve(x[:3], x[3:]) ** 2),
    "gather": lambda x: jnp.sum(x[jnp.array([1, 3, 3])] * x.at[2].set(x[4]).sum()),
    "integers beside": lambda x: jnp.sum(jnp.where(jnp.arange(6) > 2, x * jnp.arange(6), 0)),
    "fourier": lambda x: jnp.sum(jnp.real(jnp.fft.fft(x * x)) * jnp.arange(6.0)),
    "attention": lambda x: attention(jnp.outer(x, x)[None, :, None]).sum(),
}


@pytest.mark.parametrize("name", STEPS)
def test_nothing_is_lost_at_any_step(name):
    draw = np.random.default_rng(3)
    x, start = jnp.asarray(draw.normal(size=6)), jnp.asarray(draw.normal(size=6) * 0.7)
    found = complete(STEPS[name], x, start, factor=10)
    assert np.isfinite(found.scores).all() and np.any(found.scores)


def test_nothing_is_made_of_no_change_and_little_of_a_little():
    """The derivative where the ratio has lost its digits, in float32 too; 0 where f has none."""
    f = lambda x: jnp.sum(jnp.exp(x) + jnp.sqrt(jnp.abs(x)) + jax.nn.relu(x))
    x = jnp.array([0.0, 1.0, -2.0], "f4")
    still = lift(f, x, x)
    assert still.scores.tolist() == [0, 0, 0] and still.gap == 0
    for size in (1e-6, 1e-4, 1e-2):
        near = lift(f, x[1:] * (1 + size), x[1:])
        slope = near.scores / (x[1:] * size)
        want = jnp.exp(x[1:]) + 0.5 * jnp.sign(x[1:]) / jnp.sqrt(jnp.abs(x[1:])) + (x[1:] > 0)
        # x * (1 + size) is itself rounded, and slopes change by about size / 2.
        assert np.abs(slope / want - 1).max() < size + 2e-7 / size


def test_shifting_all_scores_of_a_softmax_gives_no_part():
    f = lambda x: jax.nn.softmax(jnp.array([0.3, 1.0, -1.0]) * x[0] + x[1])[0]
    found = complete(f, jnp.array([1.0, 5.0]), jnp.array([-1.0, 2.0]))
    assert abs(found.scores[1]) < 1e-14 < abs(found.scores[0])


class Residual(nn.Module):
    """Two blocks with BatchNorm in its running mode, and a shortcut."""

    @nn.compact
    def __call__(self, x):
        for n in range(2):
            h = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(3, (3, 3))(x)))
            x = nn.max_pool(h, (2, 2)) + nn.Conv(3, (1, 1), name=f"short_{n}")(x)[:-1, :-1]
        return nn.Dense(1)(nn.avg_pool(x, (2, 2), strides=(2, 2)).ravel())[0]


class Gated(nn.Module):
    """A GRU, or two LSTMs in both directions."""

    cell: str

    @nn.compact
    def __call__(self, x):
        if self.cell == "gru":
            return nn.Dense(1)(jnp.asarray(nn.RNN(nn.GRUCell(4, param_dtype=x.dtype))(x))[-1])[0]
        one, other = (nn.RNN(nn.LSTMCell(3, param_dtype=x.dtype)) for _ in range(2))
        return nn.Dense(1)(jnp.mean(jnp.asarray(nn.Bidirectional(one, other)(x)), 0))[0]


@pytest.mark.parametrize(
    ("module", "shape"),
    [(Residual(), (8, 8, 2)), (Gated("gru"), (7, 3)), (Gated("lstm"), (7, 3))],
    ids=["resnet", "gru", "bilstm"],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_complete_on_flax_modules(module, shape, dtype):
    draw = np.random.default_rng(0)
    x, start = (jnp.asarray(draw.normal(size=shape), dtype) for _ in range(2))
    params = jax.jit(module.init)(jax.random.key(0), x)
    noise = lambda v: jnp.asarray(v + 0.3 * np.abs(draw.normal(size=v.shape)), dtype)
    params = jax.tree.map(noise, params)
    found = complete(partial(module.apply, params), x, start)
    assert abs(found.gap) <= {"f4": 1e-5, "f8": 1e-12}[dtype] * abs(found.scores.sum())


def test_a_gradient_can_be_taken_of_it():
    model = small_models.make("attention", "f8")
    loss = lambda x: jnp.sum(jxp.deep_lift(model.f, x).scores ** 2)
    got = jax.jit(jax.grad(loss))(model.x)
    way = jnp.cos(jnp.arange(float(model.x.size))).reshape(model.x.shape)
    at = lambda step: jax.jit(loss)(model.x + step * way)
    # Central differences, of a function whose own slopes round at 1e-16 / 1e-5.
    want = (at(1e-5) - at(-1e-5)) / 2e-5
    assert abs(jnp.sum(got * way) / want - 1) < 1e-6


@pytest.mark.parametrize("tiny", [0, 1e-40, 1e-30, 1e-19, 3e-19, 1e-18])
def test_a_gradient_of_next_to_nothing_is_finite(tiny):
    """1 / move^2, which a ratio's derivative has, is infinite from 1e-19 down."""
    f = lambda x: jnp.sum(jnp.tanh(x) * x)
    loss = lambda x: jnp.sum(jxp.deep_lift(f, x).scores * jnp.array([1, 0], "f4"))
    x = jnp.array([tiny, 0.5], "f4")
    # The score is x tanh(x), of which this is the slope.
    np.testing.assert_allclose(jax.grad(loss)(x)[0], 2 * tiny, rtol=1e-5, atol=1e-30)


def test_a_baseline_that_all_examples_share_is_evaluated_once():
    """What does not depend on the example is no batch: one product of its own."""
    w = jnp.ones((8, 3))
    f = lambda x: jnp.sum(jnp.tanh(x @ w))
    batch = jax.vmap(lambda x: jxp.deep_lift(f, x, baseline=0.5))
    dots = [str(e) for e in jax.make_jaxpr(batch)(jnp.ones((5, 8))).eqns if "dot_general" in str(e)]
    assert sum("[3]" in line.split("=")[0] for line in dots) == 1


def test_rules_are_a_table():
    f = lambda x: jnp.sum(jnp.sort(x) * jnp.arange(3.0))

    def by_size(operation, x, *rest):
        order = jnp.argsort(x.value)
        return Pair(x.value[order], x.reference[order], x.change[order])

    x, start = jnp.array([3.0, 1.0, 2.0]), jnp.array([1.5, 0.5, 1.0])
    rules = {**jxp.DEEP_LIFT, "sort": by_size}
    complete(f, x, start, lift(f, x, start, rules=rules))

    mark = jxp.named("mine", lambda x: jnp.tanh(x) * 2)
    halved = lambda op, x: rescale(op, x)._replace(change=0.5 * rescale(op, x).change)
    g = lambda x: jnp.sum(mark(x)) + jnp.sum(jnp.sin(x))
    found = lift(g, x, start, rules={**jxp.DEEP_LIFT, "mine": halved})
    close(found.gap, -0.5 * jnp.sum(2 * (jnp.tanh(x) - jnp.tanh(start))))

    def module(x):
        with jax.named_scope("net/head"):
            return jnp.sum(jnp.tanh(x))

    whole = lambda op, x: Pair(op(x.value), op(x.reference), jnp.sum(x.change))
    found = lift(module, x, start, rules={**jxp.DEEP_LIFT, "net/*": whole})
    assert found.scores.tolist() == (x - start).tolist()


def loop(x):
    return lax.while_loop(lambda v: v.sum() < 9, lambda v: v * 2, x).sum()


ERRORS = [
    (lambda x: jnp.sort(x)[0], "no rule for sort: add one with rules={**rules, 'sort': rule}"),
    (loop, "no rule for while: write it as jax.lax.scan"),
    (lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x)[0], "which branch is taken depends on x"),
    (lambda x: jnp.where(x[0] > x[1], x[2], 1), "no rule for select_n: it goes by a comparison"),
    (lambda x: jnp.prod(x), "no rule for reduce_prod: add one"),
    (lambda x: jxp.named("softmax", jnp.tanh)(x)[0], "no rule for softmax: it has no sum"),
    (lambda x: x[jnp.argmax(x)], "it goes by a comparison or a whole number that depends on x"),
]


@pytest.mark.parametrize(("f", "message"), ERRORS)
def test_what_has_no_rule_is_one_line(f, message):
    with pytest.raises(MissingRule) as error:
        jxp.deep_lift(f, jnp.arange(1.0, 4.0))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_input_is_one_line():
    x = jnp.ones(3)
    with pytest.raises(JaxplainError, match=r"baseline has shape \[2\], which does not broadcast"):
        jxp.deep_lift(jnp.sum, x, baseline=jnp.ones(2))
    with pytest.raises(JaxplainError, match=r"no module on the way from x fits a/\*"):
        jxp.deep_lift(jnp.sum, x, rules={**jxp.DEEP_LIFT, "a/*": rescale})
    with pytest.raises(JaxplainError, match="one baseline: use deep_lift"):
        jxp.deep_shap(jnp.sum, x, baselines=x[None])
    with pytest.raises(JaxplainError, match=r"baselines has shape \[4, 2\], and needs \[K, 3\]"):
        jxp.deep_shap(jnp.sum, x, baselines=jnp.ones((4, 2)))
    with pytest.raises(JaxplainError, match="float"):
        jxp.deep_lift(jnp.sum, jnp.arange(3))
    dilated = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (1,), "VALID", (2,))[0]
    with pytest.raises(MissingRule, match="dilated max-pooling has no rule"):
        jxp.deep_lift(dilated, x)
