"""Every method's claims, as `registry.METHODS` states them, on every model."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.registry import METHODS
from tests import small_models
from tests.helpers import TOLERANCE, close, quick_compile, within_errors

KEY = jax.random.key(5)
WEIGHTS = {"f": (1.0, 0.0, 0.0), "g": (0.0, 1.0, 0.0), "2f-3g": (2.0, -3.0, 0.0)}
WEIGHTS["f, computed otherwise"] = (0.0, 0.0, 1.0)


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def claiming(claim):
    methods = [m for m in METHODS.values() if getattr(m, claim)]
    pairs = [(m.name, model_name) for m in methods for model_name in models_of(m)]
    return pytest.mark.parametrize(("name", "model_name"), pairs)


def models_of(method):
    return list(small_models.WITH_RELU if method.needs_relu else small_models.SHAPES)


def explainer(name, x):
    """The method, with few samples and a set of baselines that f's symmetries leave alone."""
    method = METHODS[name]
    many = 640 if name in ("kernel_shap", "lime") else 64  # one system of all inputs
    options = {"samples": many} if "samples" in method.options else {}
    if "steps" in method.options:
        options["steps"] = 64
    if method.needs_baselines:
        spread = lambda v: jnp.stack([jnp.full_like(v, s) for s in (-0.5, 0.0, 1.0)])
        options["baselines"] = jax.tree.map(spread, x)
    return partial(method.function, **options)


def roundabout(f, x):
    """f by another way: every leaf of x is rotated, and rotated back."""

    def turn(leaf):
        n = leaf.size
        q = np.linalg.qr(np.cos(np.arange(1.0, n * n + 1)).reshape(n, n))[0]
        q = jnp.asarray(q, leaf.dtype)
        return (q.T @ (q @ leaf.reshape(-1))).reshape(leaf.shape)

    return jnp.log(jnp.exp(0.5 * f(x) + 0.5 * f(jax.tree.map(turn, x))))


@cache
def explained(name, model_name):
    """Attributions of the functions in WEIGHTS, by one key; x is a pair: used and ignored."""
    f, g = small_models.make(model_name), small_models.make(model_name, seed=1)
    x = (f.x, jnp.array([1.0, -2.0, 3.0]))
    other = METHODS[name].implementation_invariance  # its log has no rule to split it by

    def mixture(w, x):
        x, ignored = x
        total = w[0] * f.f(x) + w[1] * g.f(x) + 0 * ignored[0]
        return total + w[2] * roundabout(f.f, x) if other else total

    explain = lambda w: explainer(name, x)(partial(mixture, w), x, key=KEY)
    asked = list(WEIGHTS)[: None if other else -1]
    found = jax.jit(jax.vmap(explain))(jnp.array([WEIGHTS[k] for k in asked]))
    return {k: jax.tree.map(lambda v, i=i: v[i], found) for i, k in enumerate(asked)}


@claiming("complete")
def test_scores_sum_to_the_difference(name, model_name):
    model = small_models.make(model_name)
    if not METHODS[name].needs_key:
        got = explained(name, model_name)["f"]
        starts = explainer(name, model.x).keywords.get("baselines")
        if starts is None:
            starts = jax.tree.map(lambda v: jnp.zeros((1, *v.shape)), model.x)
        difference = model.f(model.x) - jnp.mean(jax.vmap(model.f)(starts))
        close(got.gap + difference, difference, factor=5)
        close(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(got.scores)), difference, factor=5)
        return
    # The gap's own spread, from runs by other keys, says how near to 0 their mean should be.
    gap = lambda key: explainer(name, model.x)(model.f, model.x, key=key).gap
    gaps = np.asarray(jax.jit(jax.vmap(gap))(jax.random.split(KEY, 64)), "f8")
    if np.abs(gaps).max() < 5 * TOLERANCE["float32"]:  # of numbers of size 1: complete every time
        return
    error = gaps.std(ddof=1) / 8
    assert 0 < abs(gaps.mean()) < 5 * error


@claiming("conserving")
def test_scores_sum_to_the_output_but_for_what_constants_keep(name, model_name):
    got, model = explained(name, model_name)["f"], small_models.make(model_name)
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(got.scores))
    close(got.gap + model.f(model.x), total, factor=5)
    if model_name == "attention":  # without its offset of variances, nothing in it is constant
        held = METHODS[name].rules["attention_held"]
        kept = METHODS[name].function(model.f, model.x, rules=held)
        close(kept.gap + model.f(model.x), model.f(model.x), factor=5)


@claiming("dummy")
def test_what_f_ignores_scores_zero(name, model_name):
    used, ignored = explained(name, model_name)["f"].scores
    assert not np.any(ignored)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(used))


@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if not m.dummy])
def test_what_f_ignores_scores_zero_but_for_rounding_and_sampling(name):
    found = explained(name, models_of(METHODS[name])[0])["f"]
    used, ignored = found.scores
    error = found.standard_error[1] if name in ("kernel_shap", "lime") else 0
    # Differences of equal activations, which a compiled program may round differently.
    assert np.all(np.abs(ignored) < 1e-6 * np.abs(used).max() + 5 * error)


@claiming("linearity")
def test_scores_of_a_sum_are_the_sum_of_scores(name, model_name):
    found = explained(name, model_name)
    want = jax.tree.map(lambda f, g: 2 * f - 3 * g, found["f"].scores[0], found["g"].scores[0])
    close(found["2f-3g"].scores[0], want, factor=5)


@claiming("implementation_invariance")
def test_scores_do_not_depend_on_how_f_is_computed(name, model_name):
    found = explained(name, model_name)
    # log(exp) and the rotations round some more; squares and variances double that.
    got, want = found["f, computed otherwise"].scores, found["f"].scores
    if not METHODS[name].dummy:  # the ignored input's scores are rounding, in units of the others
        got, want = (jnp.concatenate([v.ravel() for v in jax.tree.leaves(t)]) for t in (got, want))
    close(got, want, factor=20)


@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if m.symmetry])
def test_what_f_treats_alike_scores_alike(name):
    """x[0] and x[1] are equal, and f does not change when they are swapped."""
    x = jnp.array([0.7, 0.7, -1.3, 0.4])
    f = lambda x: jnp.tanh(x[0] * x[1] + x[2]) * jnp.exp(-((x[0] - x[1]) ** 2)) + x[0] + x[1] * 1.0
    got = jax.jit(lambda x: explainer(name, x)(f, x, key=KEY))(x)
    if not METHODS[name].needs_key or METHODS[name].needs_baselines:
        close(got.scores[0], got.scores[1])
    else:  # noise breaks the tie; its own error says by how much
        error = got.standard_error[:1] + got.standard_error[1:2]
        within_errors(got.scores[:1], got.scores[1:2], error)
    assert abs(float(got.scores[0] - got.scores[2])) > 0.01


def test_a_claim_not_made_is_caught_by_its_comparison():
    """So that the tests above can fail: magnitudes and variances are not linear."""
    for name in ("saliency", "smoothgrad_squared", "vargrad", "guided_backprop", "deconvnet"):
        assert not METHODS[name].linearity
        with pytest.raises(AssertionError):
            test_scores_of_a_sum_are_the_sum_of_scores(name, models_of(METHODS[name])[0])
    other = explained("saliency", "mlp")
    with pytest.raises(AssertionError):
        close(other["f"].scores, other["g"].scores, factor=20)
