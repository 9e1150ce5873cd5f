"""The certificate of rules: what they served, and where the score stayed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import JaxplainError
from jaxplain.methods.deeplift import rescale
from jaxplain.methods.relevance import LRP_EPSILON, LRP_ZERO, epsilon, lrp
from tests import small_models
from tests.helpers import close, quick_compile, total


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


@pytest.mark.parametrize("name", ["attention", "lstm", "relu"])
def test_scores_and_what_steps_keep_are_all_there_is(name):
    model = small_models.make(name)
    halved = lambda op, x: rescale(op, x)._replace(change=0.5 * rescale(op, x).change)
    tables = [jxp.DEEP_LIFT, {**jxp.DEEP_LIFT, "tanh": halved}]

    @jax.jit
    def run(x):
        certificates = [jxp.coverage(model.f, x)]
        certificates += [jxp.coverage(model.f, x, rules, baseline=0.3) for rules in tables]
        lifts = [jxp.deep_lift(model.f, x, baseline=0.3, rules=rules) for rules in tables]
        return [(c.kept, c.explained) for c in certificates], lrp(model.f, x), lifts, model.f(x)

    (first, *others), handed, lifts, output = run(model.x)
    close(total(handed.scores) + first[0].sum(), output, factor=10)
    close(first[1], output)
    for (kept, explained), got, whole in zip(others, lifts, (True, False), strict=True):
        close(total(got.scores) + kept.sum(), explained, factor=10)
        close(-kept.sum() + 1, got.gap + 1, factor=10)
        if name != "relu":  # which has no tanh
            assert whole == bool(np.abs(kept).max() < 1e-6)


def test_steps_are_named_counted_and_placed():
    """A dense layer twice in a loop, whose body counts once, and a head."""
    w = jnp.full((3, 3), 0.4)

    def f(x):
        def again(h, _):
            with jax.named_scope("layer"):
                return jax.nn.relu(h @ w + 0.5), None

        h = jax.lax.scan(again, x, length=2)[0]
        with jax.named_scope("head"):
            return jnp.tanh(h[0]) * h[1]

    x = jnp.array([1.0, 2.0, -1.0])
    found = jxp.coverage(f, x, LRP_ZERO)
    assert [(s.name, s.path, s.rule, s.count) for s in found.steps] == [
        ("dot_general", "layer", "zero()", 1),
        ("relu", "layer", "identity", 1),
        ("tanh", "head", "identity", 1),
        ("mul", "head", "uniform(epsilon=1e-06)", 1),
    ]
    assert found.kept[0] > 0.1 * found.explained  # the biases' part
    lines = str(found).splitlines()
    assert lines[0].split() == ["step", "module", "rule", "steps", "kept", "of", "all"]
    assert lines[1].split()[:2] == ["dot_general", "layer"] and len(lines) == 5

    found = jxp.coverage(f, x, jxp.DEEP_LIFT)
    assert [(s.name, s.path, s.rule, s.count) for s in found.steps] == [
        ("relu", "layer", "rescale", 1),
        ("tanh", "head", "rescale", 1),
        ("mul", "head", "midpoint", 1),
    ]
    close(found.explained, f(x) - f(jnp.zeros(3)))


def test_refused_in_one_line():
    f, x = (lambda x: jnp.sum(jnp.tanh(x))), jnp.ones(3)
    with pytest.raises(JaxplainError, match=r"jaxplain.missing\(f, x, rules\)"):
        jxp.coverage(f, x, jxp.CD_ACD)
    with pytest.raises(JaxplainError, match="lrp compares with nothing"):
        jxp.coverage(f, x, baseline=0.0)
    with pytest.raises(jxp.MissingRule, match="sort"):
        jxp.coverage(lambda x: jnp.sort(x)[0], x, jxp.DEEP_LIFT)
    assert "epsilon(epsilon=0.1)" in str(
        jxp.coverage(f, x @ jnp.eye(3), {**LRP_EPSILON, "elementwise": epsilon(0.1)})
    )
