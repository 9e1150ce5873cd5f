"""Layer-wise relevance propagation on programs: what is conserved, which step has which rule."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxplain as jxp
from jaxplain.interpret import redistribution
from jaxplain.methods import relevance as r
from tests import decomposed_models
from tests.helpers import close, quick_compile, total


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def unbiased(p, x):
    """x `[16]`: dense layers and ReLUs without constants."""
    return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]


def draw(seed=0, dtype="f8"):
    rng = np.random.default_rng(seed)
    shapes = {"a": (16, 12), "b": (12, 12), "c": (12,)}
    p = {k: jnp.asarray(rng.normal(size=s) * s[0] ** -0.5, dtype) for k, s in shapes.items()}
    return p, jnp.asarray(rng.normal(size=16), dtype)


# What is conserved.

RULES = {
    "zero": r.zero(),
    "epsilon": r.epsilon(),
    "gamma": r.gamma(),
    "gamma_of_positive": r.gamma(signed=False),
    "alpha2_beta1": r.alpha_beta(2, 1),
    "alpha1_beta0": r.alpha_beta(1, 0),
    "z_plus": r.z_plus(),
    "w_square": r.w_square(),
    "flat": r.flat(),
    "z_box": r.z_box(-4, 4),
}


def test_rules_conserve_what_no_constant_keeps():
    """In float32; of some units all products of one sign would be lost to αβ, and here none are."""
    p, x = draw(1, "f4")
    every = lambda x: {
        k: r.lrp(partial(unbiased, p), x, rules={**r.LRP_EPSILON, "first": rule, "affine": rule})
        for k, rule in RULES.items()
    }
    for name, got in jax.jit(every)(x).items():
        # z_box divides products that are larger than what they sum to, and 1e-6 is epsilon.
        assert abs(got.gap) < 1e-5 * max(1, abs(got.output)), name
        assert abs(total(got.scores) - got.output - got.gap) < 1e-5, name


def test_without_constants_and_stabilisers_it_is_input_times_gradient(x64):
    p, x = draw()
    f = partial(unbiased, p)
    stabilisers = (1e-4, 1e-6, 1e-8)
    tables = [r.LRP_ZERO, *({**r.LRP_ZERO, "affine": r.epsilon(e)} for e in stabilisers)]
    every = lambda x: (jxp.input_x_gradient(f, x), [r.lrp(f, x, rules=t) for t in tables])
    want, (exact, *found) = jax.jit(every)(x)
    close(exact.scores, want.scores, factor=10)
    for e, got in zip(stabilisers, found, strict=True):  # and comes to it as its stabiliser does
        # Of units that are 1e-3 on their way to 1, a share of 1e3 times epsilon is kept.
        assert np.abs(got.scores - want.scores).max() < 1e3 * e * np.abs(want.scores).max()
        assert abs(got.gap) < 1e3 * e


LIKE_OTHERS = ("bert", "lstm_optimized", "gru", "nnx_lstm", "nnx_lstm_optimized")
MODELS = [n for n in decomposed_models.NAMES if not n.startswith("text") and n not in LIKE_OTHERS]


def flow(f, x, rules):
    """Scores, f(x), and what each step keeps."""
    changed = redistribution.redistributed(f, (x,), rules)
    output, back = jax.vjp(changed.watched, jnp.zeros(len(changed.applied)), x)
    kept, scores = back(output)
    return scores, output, kept


@pytest.mark.parametrize("name", MODELS)
def test_relevance_is_accounted_for(x64, name):
    """Scores and what each step keeps sum to f(x), whatever the program is made of."""
    model = decomposed_models.make(name, "f8")
    f = lambda x: jnp.ravel(model.f(x))[0]
    tables = {"epsilon": r.LRP_EPSILON}
    if name in ("cnn", "scanned"):
        tables |= {"alpha2_beta1": r.LRP_ALPHA2_BETA1, "cp": r.CP_LRP, "zero": r.LRP_ZERO}
    every = lambda x: ({k: flow(f, x, t) for k, t in tables.items()}, f(x))
    got, want = jax.jit(every)(model.x)
    for kind, (scores, output, kept) in got.items():
        scale = 1e-12 * (1 + jnp.sum(jnp.abs(kept)))  # rounding of each, of any size
        assert np.isfinite(scale)
        assert abs(total(scores) + jnp.sum(kept) - output) < scale, kind
        close(output, want)


def without_constants(params):
    """The same parameters, but for biases and offsets of 0."""

    def leaf(path, p):
        return jnp.zeros_like(p) if "'bias'" in jax.tree_util.keystr(path) else p

    return jax.tree_util.tree_map_with_path(leaf, params)


@pytest.mark.parametrize("name", ["transformer", "prenorm"])
def test_a_transformer_without_biases_conserves_relevance(x64, name):
    """All but what a softmax keeps by AttnLRP: all, where attention is held."""
    model = decomposed_models.make(name, "f8")
    params = without_constants(model.params)
    f = lambda x: model.apply(params, x)[0]

    both = jax.jit(lambda x: [flow(f, x, rules) for rules in (r.CP_LRP, r.ATTN_LRP)])
    (scores, output, _), (_, _, kept) = both(model.x)
    # 1e-6 is the stabiliser, and values are 0.1 to 1.
    assert abs(total(scores) - output) < 1e-5
    steps = redistribution.redistributed(f, (model.x,), r.ATTN_LRP).applied
    others = sum(v for step, v in zip(steps, kept, strict=True) if step.kind != "softmax")
    assert abs(others) < 1e-5 < 1e-2 * abs(sum(kept))


# Which step has which rule.


def applied(f, x, rules=r.LRP_EPSILON):
    steps = redistribution.redistributed(f, (x,), rules).applied
    return {(step.name, step.path): (step.kind, step.rule, step.count) for step in steps}


def test_rules_by_module_path_of_a_linen_module(x64):
    model = decomposed_models.make("cnn", "f8")
    f = lambda x: model.f(x)[0]
    table = {"*/Conv_0": {"first": r.flat()}, "*/Dense_?": {"affine": r.zero()}, **r.LRP_GAMMA}
    got = applied(f, model.x, table)
    conv, relu = ("affine", "gamma(gamma=0.25)", 1), ("elementwise", "identity", 1)
    # Each convolution with its bias and the BatchNorm after it is one step, at its own path.
    assert got == {
        ("conv_general_dilated", "CNN/Conv_0"): ("affine", "flat()", 1),
        ("relu", "CNN"): (*relu[:2], 2),
        ("reduce_window_max", "CNN"): ("switch", "derivative", 1),
        ("conv_general_dilated", "CNN/Conv_1"): conv,
        ("add", "CNN"): ("sum", "epsilon(epsilon=1e-06)", 1),
        ("reduce_window_sum", "CNN"): ("pooling", "epsilon(epsilon=1e-06)", 1),
        ("div", "CNN"): ("scale", "identity", 1),
        ("dot_general", "CNN/Dense_0"): ("affine", "zero()", 1),
    }
    # A pattern's table comes before names, and names before kinds.
    by_kind = {**r.LRP_GAMMA, "first": r.flat(), "dot_general": r.zero()}
    both = jax.jit(lambda x: [r.lrp(f, x, rules=rules).scores for rules in (table, by_kind)])
    close(*both(model.x))


def test_rules_by_name_scope_of_an_nnx_module(x64):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.low = nnx.Linear(4, 8, rngs=rngs, param_dtype=jnp.float64)
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.head = nnx.Linear(8, 2, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, x):
            with jax.named_scope("low"):
                x = nnx.relu(self.norm(self.low(x)))
            with jax.named_scope("head"):
                return self.head(x)

    net = Net(nnx.Rngs(0))
    x = jnp.array([1.0, -2.0, 0.5, 3.0])
    f = lambda x: net(x)[0]
    table = {"/low": {"affine": r.w_square()}, "/h*": {"affine": r.gamma()}, **r.LRP_EPSILON}
    got = applied(f, x, table)
    assert got["dot_general", "low"] == ("affine", "w_square()", 1)
    assert got["dot_general", "head"] == ("affine", "gamma(gamma=0.25)", 1)
    assert len(got) == 3  # the norm is a part of the layer


FIRST = {
    "dense": (lambda x: jnp.sum((x[:2] @ jnp.ones((2, 3))) @ jnp.ones((3, 3))), 1),
    "after_a_scale_and_an_activation": (
        lambda x: jnp.sum(jnp.tanh(x / 2 - 1) @ jnp.ones((4, 3))),
        1,
    ),
    "two_ways": (lambda x: x @ jnp.ones(4) + x[:2] @ jnp.ones(2), 2),
    "around": (lambda x: jnp.sum((x + x @ jnp.ones((4, 4))) @ jnp.ones((4, 4))), 1),
    "in_a_checkpoint": (lambda x: jax.checkpoint(lambda x: x @ jnp.ones(4))(x), 1),
    "after_a_branch": (
        lambda x: lax.cond(x[0] > 0, lambda x: x @ jnp.ones((4, 4)), jnp.tanh, x) @ jnp.ones(4),
        1,
    ),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_layers_are_those_that_no_other_is_before(name):
    f, count = FIRST[name]
    table = {**r.LRP_EPSILON, "first": r.flat()}
    steps = redistribution.redistributed(f, (jnp.ones(4),), table).applied
    assert sum(step.count for step in steps if step.rule == "flat()") == count


def test_of_a_loop_the_input_layer_is_first_and_the_recurrent_one_is_not():
    f = lambda x: lax.scan(lambda h, t: (jnp.tanh(t @ A + h @ A), None), x[0] @ A, x)[0][0]
    A = jnp.eye(3)
    found = redistribution.redistributed(
        f, (jnp.ones((2, 3)),), {**r.LRP_EPSILON, "first": r.flat()}
    )
    assert [(s.rule, s.count) for s in found.applied if s.name == "dot_general"] == [
        ("flat()", 2),
        ("epsilon(epsilon=1e-06)", 1),
    ]


# An affine map is one step however it is written.

W, B = np.array([[1.0, -2.0], [3.0, 0.5]]), np.array([0.3, -0.7])
S = np.array([2.0, -1.5])
COLUMN = S.reshape(2, 1)


def convolved(x):
    kernel = jnp.asarray(W.T.reshape(2, 2, 1))
    z = lax.conv_general_dilated(x.reshape(1, 2, 1), kernel, (1,), "VALID")
    return (z[0, :, 0] + B) * S


WRITTEN = {
    "folded": lambda x: x @ (W * S) + B * S,
    "plain": lambda x: (x @ W + B) * S,
    "scaled_first": lambda x: (x @ W) * S + B * S,
    "other_side": lambda x: (B + W.T @ x) * S,
    "divided": lambda x: (x @ W - -B) / (1 / S),
    "turned_twice": lambda x: -((-B - x @ W) * S),
    "reshaped": lambda x: (((x @ W).reshape(1, 2).T + B.reshape(2, 1)) * COLUMN)[:, 0],
    "einsum": lambda x: jnp.einsum("i,io->o", x, W) * S + B * S,
    "jit": jax.jit(lambda x: (x @ W + B) * S),
    "convolution": convolved,
    "norm": lambda x: (x @ W - (1 - B)) * lax.rsqrt(1 / S**2) * np.sign(S) + S,
}


@pytest.mark.parametrize("written", WRITTEN)
def test_an_affine_map_is_one_step_however_it_is_written(x64, written):
    x = jnp.array([1.2, -0.4])
    of = lambda way: lambda x: jnp.sum(jnp.tanh(way(x)))
    rules = (r.alpha_beta(2, 1), r.z_box(-2, 2), r.w_square())

    def every(way, x):
        return [r.lrp(of(way), x, rules={**r.LRP_EPSILON, "affine": rule}).scores for rule in rules]

    ways = WRITTEN[written], WRITTEN["folded"]
    close(*jax.jit(lambda x: [every(way, x) for way in ways])(x), factor=10)
    assert applied(of(ways[0]), x).keys().isdisjoint({("mul", ""), ("add", ""), ("sub", "")})
