"""Layer-wise relevance propagation under transforms of JAX, at edges, and what it refuses."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxplain as jxp
from jaxplain import JaxplainError
from jaxplain.interpret import redistribution
from jaxplain.interpret.parts import MissingRule
from jaxplain.methods import relevance as r
from tests import decomposed_models, small_models
from tests.helpers import close, quick_compile


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def net(p, x):
    """x `[6]`: a layer used many times in a loop, recomputed; a branch; a normalisation."""
    layer = jax.checkpoint(lambda h, w: (jax.nn.relu(h @ w + 0.1), None))
    x = lax.scan(layer, x, p["loop"])[0]
    x = lax.cond(x[0] > 0.1, lambda x: x @ p["a"], lambda x: jnp.tanh(x @ p["b"]), x)
    x = (x - x.mean()) * lax.rsqrt(x.var() + 1e-5)
    return jax.nn.gelu(x) @ p["c"]


def straight(branch, p, x):
    """The same, written out; None for the state that decides."""
    for w in p["loop"]:
        x = jax.nn.relu(x @ w + 0.1)
    if branch is None:
        return x
    x = x @ p["a"] if branch else jnp.tanh(x @ p["b"])
    x = (x - x.mean()) * lax.rsqrt(x.var() + 1e-5)
    return jax.nn.gelu(x) @ p["c"]


def draw_net(dtype="f8"):
    rng = np.random.default_rng(2)
    shapes = {"loop": (3, 6, 6), "a": (6, 6), "b": (6, 6), "c": (6,)}
    p = {k: jnp.asarray(rng.normal(size=s) * 6**-0.5, dtype) for k, s in shapes.items()}
    return p, jnp.asarray(rng.normal(size=(4, 6)), dtype)


def test_loops_branches_and_checkpoints_are_those_written_out(x64):
    p, xs = draw_net()
    got = jax.jit(jax.vmap(lambda x: r.lrp(partial(net, p), x)))(xs)
    branches = [bool(straight(None, p, x)[0] > 0.1) for x in xs]
    assert set(branches) == {True, False}
    written = {b: jax.jit(lambda x, b=b: r.lrp(partial(straight, b, p), x)) for b in (True, False)}
    for n, (x, branch) in enumerate(zip(xs, branches, strict=True)):
        close(jax.tree.map(lambda v, n=n: v[n], got), written[branch](x), factor=10)


def test_jit_vmap_eager_and_both_precisions(x64):
    p, xs = draw_net()
    explain = lambda p, x: r.lrp(partial(net, p), x)
    batched = jax.jit(jax.vmap(explain, (None, 0)))
    got = batched(p, xs)
    close(jax.tree.map(lambda v: v[1], got), explain(p, xs[1]))
    single = batched(*jax.tree.map(lambda v: v.astype("f4"), (p, xs)))
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(single))
    # The steps are as many as in float64, and some of them divide by what nearly cancels.
    close(single, jax.tree.map(lambda v: v.astype("f4"), got), factor=10)


def test_gradients_of_scores_are_those_of_a_difference(x64):
    p, xs = draw_net()
    score = lambda p, x: jnp.sum(r.lrp(partial(net, p), x).scores[:3] ** 2)
    along = jax.tree.map(lambda v: jnp.sin(jnp.arange(v.size)).reshape(v.shape), (p, xs[0]))
    slope = jax.jit(
        lambda a: jax.grad(lambda t: score(*jax.tree.map(lambda v, d: v + t * d, a, along)))(0.0)
    )
    moved = lambda t: jax.tree.map(lambda v, d: v + t * d, (p, xs[0]), along)
    evaluate = jax.jit(score)
    want = (evaluate(*moved(1e-6)) - evaluate(*moved(-1e-6))) / 2e-6
    np.testing.assert_allclose(slope((p, xs[0])), want, rtol=1e-6)  # of the difference


def test_a_tree_of_inputs():
    model = small_models.make("tree")
    got = jax.jit(lambda x: r.lrp(model.f, x))(model.x)
    assert jax.tree.structure(got.scores) == jax.tree.structure(model.x)


# Numbers that are masked, and constants.


def test_masked_scores_and_weights_of_zero_get_nothing():
    mask = jnp.array([True, True, False])
    values = jnp.arange(9.0).reshape(3, 3)
    written = [
        way
        for low in (-jnp.inf, -1e30)
        for way in (
            lambda s, low=low: jnp.where(mask, s, low),
            lambda s, low=low: s + jnp.where(mask, 0, low),
        )
    ]
    of = lambda way: lambda s: (jax.nn.softmax(way(s)) @ values)[0]
    explain = jax.jit(lambda s: [r.lrp(of(way), s).scores for way in written])
    for scores in explain(jnp.array([1.0, 2.0, 3.0])):
        assert np.isfinite(scores).all() and scores[2] == 0 and scores[0] != 0
    kept = r.lrp(
        lambda x: jnp.sum((x * mask) @ jnp.ones((3, 2))),
        jnp.ones(3),
        rules={**r.LRP_EPSILON, "first": r.flat()},
    )
    assert kept.scores[2] == 0 and kept.scores[0] != 0


def test_what_is_behind_stop_gradient_keeps_its_part():
    got = r.lrp(lambda x: x[0] + lax.stop_gradient(x[1]), jnp.array([3.0, 1.0]), rules=r.LRP_ZERO)
    assert got.scores.tolist() == [3, 0] and got.gap == -1


def test_the_maximum_that_a_logsumexp_takes_off_keeps_nothing(x64):
    x = jnp.array([1.0, 2.0, -3.0, 2.5])
    log = lambda x: jax.nn.log_softmax(x)[0]
    both = lambda x: (r.lrp(jax.nn.logsumexp, x, rules=r.LRP_ZERO), r.lrp(log, x))
    whole, got = jax.jit(both)(x)
    close(whole.scores, jax.nn.softmax(x) * jax.nn.logsumexp(x))  # in proportion to exponentials
    assert abs(got.gap) < 1e-5 and jnp.all(got.scores < 0)


def test_attention_is_found_however_it_is_batched(x64):
    """`jax.nn.dot_product_attention` moves axes between a softmax's maximum and its shift."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))

    def plain(x):
        return jnp.sum(jax.nn.softmax(x @ x.T * 2**-0.5) @ x)

    def batched(x):
        x = x.reshape(1, 3, 1, 2)
        return jnp.sum(jax.nn.dot_product_attention(x, x, x))

    got, want = jax.jit(lambda x: [r.lrp(f, x) for f in (batched, plain)])(x)
    close(got.scores, want.scores, dtype="float32")  # in which it takes its softmax
    steps = redistribution.redistributed(batched, (x,), r.LRP_EPSILON).applied
    assert [s.name for s in steps if s.kind == "softmax"] == ["softmax"]
    assert "reduce_max" not in {s.name for s in steps}  # nothing comes to the maximum


@pytest.mark.parametrize(("name", "dtype"), [("prenorm", "bfloat16"), ("relu_mlp", "float16")])
def test_half_precision(name, dtype):
    model = decomposed_models.make(name)
    explain = lambda p, x: r.lrp(lambda x: model.apply(p, x)[0], x)
    explain = jax.jit(explain)
    want = explain(model.params, model.x)
    got = explain(*jax.tree.map(lambda v: v.astype(dtype), (model.params, model.x)))
    assert got.scores.dtype == dtype and got.gap.dtype == jnp.float32
    # Twice as deep as the models of other methods here: forward, and back.
    close(got.scores, want.scores, factor=2)


def test_a_model_of_text_with_activations_of_both_signs():
    """Where a rule divides by what may cancel, scores are thousands."""
    model = decomposed_models.make("bert")
    got = jax.jit(lambda x: r.lrp(lambda x: model.f(x)[0], x, rules=r.LRP_GAMMA))(model.x)
    assert np.abs(got.scores).max() < abs(got.output)
    assert not got.scores[-1].any()  # padding


def test_a_rule_of_ones_own_by_the_name_of_a_call():
    def half(layer, inputs, outputs, relevance):
        return [relevance[0] / 2]

    f = lambda x: jnp.sum(jxp.named("mine", lambda x: jnp.cumprod(x))(x))
    with pytest.raises(MissingRule, match="no rule for cumprod: add one with"):
        r.lrp(f, jnp.ones(3))
    got = r.lrp(f, jnp.ones(3), rules={**r.LRP_EPSILON, "mine": half})
    np.testing.assert_allclose(got.scores, 0.5, rtol=1e-5)
    steps = redistribution.redistributed(f, (jnp.ones(3),), {**r.LRP_EPSILON, "mine": half})
    assert next((s.name, s.rule) for s in steps.applied) == ("mine", "half")


# What is refused.


def endless(x):
    return lax.while_loop(lambda v: v[0] < 9, lambda v: v * 2 + 1, x)


X = jnp.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: r.lrp(lambda x: jnp.prod(x), X),
            r"no rule for reduce_prod: add one with rules={\*\*rules, 'reduce_prod': rule}",
        ),
        (lambda: r.lrp(lambda x: jnp.sum(jnp.arctan2(x, x[::-1])), X), "no rule for atan2"),
        (lambda: r.lrp(lambda x: jnp.sum(jnp.fft.fft(x).real), X), "no rule for"),
        (lambda: r.lrp(lambda x: endless(x)[0], X), "no rule reaches into while: write it as"),
        (lambda: r.lrp(jnp.sum, X, rules={}), "no rule for reduce_sum: add one"),
        (
            lambda: r.lrp(jnp.sum, X, rules={"*/no": {}, **r.LRP_EPSILON}),
            r"no module fits \*/no: paths",
        ),
        (lambda: r.lrp(jnp.sum, X, rules={"*/no": r.zero()}), "must be a table for the steps in"),
        (
            lambda: r.lrp(jnp.sum, X, rules={**r.LRP_ZERO, "pooling": r.gamma()}),
            "this rule is for products",
        ),
        (
            lambda: r.lrp(lambda x: x @ X, X, rules={**r.LRP_ZERO, "affine": r.identity}),
            "identity hands on",
        ),
        (lambda: r.lrp(lambda x: x, X), "f must return one floating-point scalar"),
        (lambda: r.lrp(jnp.sum, jnp.arange(3)), "only floating-point inputs"),
        (lambda: r.epsilon(0), "epsilon must be above 0, not 0: for 0, take zero"),
        (lambda: r.gamma(-1), "gamma must be 0 or more"),
        (lambda: r.alpha_beta(2, 2), "alpha - beta must be 1 and beta 0 or more, not 2 and 2"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(JaxplainError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_step_that_nothing_comes_to_needs_no_rule():
    f = lambda x: (
        jnp.sum(x) + lax.stop_gradient(jnp.prod(x)) + jnp.sum(x[jnp.argmax(jnp.cumprod(x))])
    )
    assert np.isfinite(r.lrp(f, X).gap)


def test_a_missing_rule_names_its_module():
    class Product(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.prod(nn.Dense(2, name="low")(x))

    module: Any = Product()
    params = module.init(jax.random.key(0), X)
    with pytest.raises(MissingRule, match="no rule for reduce_prod in Product: add one with"):
        r.lrp(lambda x: module.apply(params, x), X)
