"""Each row alone, and rows in trees: which groups they are, and what padding is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import JaxplainError
from jaxplain.hierarchy import PUBLISHED_TEXT, acd, agglomerate, chain, last_five
from jaxplain.methods.tokens import over_padding
from tests.helpers import close, quick_compile

W = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
# Rows of zeros: what they add to a bias is nothing, and a table has to share it by other means.
X = jnp.asarray([[1.0, -0.5, 0.3], [0.0, 0.0, 0.0], [-0.7, 0.9, 0.4], [0.2, -1.1, 0.8]])


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quick_compile():
        yield


def model(mask):
    def f(x):
        hidden = jnp.tanh(jnp.where(mask[:, None], x @ W + jnp.array([[0.3, -0.2, 0.5]]), 0))
        return jnp.sum(hidden[1:] * hidden[:-1]) + jnp.sum(jax.nn.relu(hidden @ W))

    return f


def padded(length):
    mask = jnp.arange(length) < 4
    return model(mask), jnp.concatenate([X, jnp.ones((length - 4, 3))]), mask


@pytest.mark.parametrize("rules", [jxp.CD_SHAPLEY, jxp.CD_ACD, jxp.CD_LSTM])
def test_scores_are_the_relevant_parts_of_rows_in_any_tree(rules):
    x = {"a": X, "b": (jnp.array([2.0, -1.0]), jnp.array(0.5))}
    f = lambda x: model(jnp.ones(4, bool))(x["a"] * x["b"][1]) * jnp.tanh(x["b"][0][1])

    @jax.jit
    def both(x):
        rows = jax.tree.map(jnp.zeros_like, x)
        second = rows | {"a": rows["a"].at[1].set(1)}
        last = rows | {"b": (rows["b"][0], jnp.ones(()))}
        part = lambda mask: jxp.contextual_decomposition(f, x, mask, rules=rules).relevant
        whole = jax.tree.map(jnp.ones_like, x)
        return (
            jxp.token_scores(f, x, rules=rules),
            jxp.token_scores(f, x, rules=rules, chunk=3),
            jnp.stack([part(second), part(last), part(whole)]),
        )

    at_once, chunked, want = both(x)
    assert jax.tree.map(jnp.shape, at_once.scores) == {"a": (4, 1), "b": ((2,), ())}
    got = jnp.stack([at_once.scores["a"][1, 0], at_once.scores["b"][1], at_once.whole])
    close(got, want)
    close(chunked._replace(residual=0.0, gap=0.0), at_once._replace(residual=0.0, gap=0.0))
    assert at_once.residual < 1e-5 and jnp.isnan(at_once.gap)


def test_padding_is_in_no_group_and_in_no_count():
    f, x, _ = padded(4)
    want = jax.jit(lambda: jxp.token_scores(f, x))()
    g, y, mask = padded(7)
    got, naive = jax.jit(
        lambda: (jxp.token_scores(g, y, where=mask), jxp.token_scores(g, y).scores)
    )()
    close(got.scores[:4], want.scores)
    assert not np.any(got.scores[4:])
    # Without it the second row, of zeros, has another share of the constants.
    assert abs(float((naive - got.scores)[1, 0])) > 1e-3
    share = over_padding(jnp.eye(7)[:2], mask)
    close(jnp.mean(share, axis=1), jnp.array([0.25, 0.25]))
    with pytest.raises(JaxplainError, match=r"where has \[3\] rows and x has \[7\]"):
        jxp.token_scores(g, y, where=jnp.ones(3, bool))


@pytest.mark.slow
def test_a_tree_is_that_of_its_groups_scores_whatever_the_padding():
    f, x, _ = padded(4)
    score = lambda masks: jxp.group_scores(f, x, masks[:, :, None]).relevant
    options = {**PUBLISHED_TEXT, "percentile": last_five(60.0)}
    want = jax.jit(lambda: agglomerate(score, chain(4), **options))()
    published = {"order": "published", "percentile": 60.0}
    for length, units in ((4, None), (7, None), (7, [True] * 4 + [False] * 3)):
        f, x, mask = padded(length)
        settings = {"where": mask, "units": None if units is None else jnp.array(units)}
        for beforehand in (False, True) if length == 4 else (False,):
            got = jax.jit(lambda f=f, x=x, s=settings, b=beforehand: acd(
                f, x, beforehand=b, **published, **s
            ))()  # fmt: skip
            close(jax.tree.map(lambda v: v[:4] if v.ndim else v, got.hierarchy), want)
            assert got.scores.shape == (length, 1) and not np.any(got.scores[4:])
            close(got.output, f(x))


def test_one_clear_line_each():
    f = lambda x: jnp.sum(x["a"]) + jnp.sum(x["b"])
    with pytest.raises(JaxplainError, match="share their first axis"):
        acd(f, {"a": jnp.ones(3), "b": jnp.ones((2, 2))})
    with pytest.raises(JaxplainError, match="within 0 to 100"):
        acd(jnp.sum, jnp.ones(3), percentile=101.0)
    with pytest.raises(NotImplementedError, match="no rule for log"):
        jxp.token_scores(lambda x: jnp.log(jnp.sum(x**2)), jnp.ones(3))
