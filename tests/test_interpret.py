"""Walking a traced function: it stays the function, and what has no rule is named."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain.interpret.walk import identity
from jaxplain.types import JaxplainError
from tests import decomposed_models
from tests.helpers import close, quick_compile

TABLES = {
    name: getattr(jxp, name)
    for name in ("CD_ACD", "CD_LSTM", "CD_TRANSFORMER", "CD_TRANSFORMER_QK", "CD_SHAPLEY")
}


# A walk.


@pytest.mark.parametrize("name", decomposed_models.NAMES)
def test_walking_changes_nothing(name):
    """A batch of values, and of gradients with respect to x, in one program."""
    model = decomposed_models.make(name)
    xs = jax.tree.map(lambda v: jnp.stack([v, v + 0.1]), model.x)

    def values(f):
        def weighed(x):
            y = f(x)
            return jnp.vdot(y, jnp.cos(jnp.arange(y.size))), y

        return jax.vmap(jax.value_and_grad(weighed, has_aux=True))

    @jax.jit
    def both(params, xs):
        plain = lambda x: model.apply(params, x)
        return [values(f)(xs) for f in (plain, identity(plain))]

    with quick_compile():
        want, got = both(model.params, xs)
    close(got, want)


@pytest.mark.parametrize("name", ["scanned", "branch_on_data", "activations"])
def test_gradients_with_respect_to_parameters_go_through_a_walk(name):
    model = decomposed_models.make(name)
    loss = lambda walk: lambda params: jnp.sum(walk(lambda x: model.apply(params, x))(model.x) ** 2)
    with quick_compile():
        got, want = (jax.jit(jax.grad(loss(w)))(model.params) for w in (identity, lambda f: f))
    close(got, want)


def test_a_walk_can_be_walked_and_traced():
    model = decomposed_models.make("lstm")
    close(identity(identity(model.f))(model.x), model.f(model.x))
    close(jax.linearize(identity(model.f), model.x)[0], model.f(model.x))


def test_a_walk_keeps_the_tree_of_a_result():
    f = lambda x: {"sum": x["a"] + x["b"][0], "kept": (x["a"], 3.0)}
    x = {"a": jnp.arange(2.0), "b": [jnp.ones(2)]}
    close(identity(f)(x), jax.tree.map(jnp.asarray, f(x)))


@jax.custom_jvp
def flat(x):
    return jnp.sin(x)


flat.defjvp(lambda x, t: (jnp.sin(x[0]), 7.0 * t[0]))


@jax.custom_vjp
def steep(x):
    return jnp.sin(x)


steep.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (9.0 * g,))


@pytest.mark.parametrize(
    ("f", "slope"),
    [(jax.nn.relu, 0.0), (jax.nn.relu6, 0.0), (flat, 7.0), (steep, 9.0)],
)
def test_a_walk_keeps_derivatives_that_a_function_brings(f, slope):
    for around in (f, jax.jit(f), jax.checkpoint(f)):
        assert jax.grad(identity(around))(0.0) == slope


def test_a_walk_keeps_loops_that_count_and_loops_that_do_not():
    @identity
    def halvings(x):
        return jax.lax.while_loop(lambda s: s[0] > 1, lambda s: (s[0] / 2, s[1] + 1), (x, 0))

    assert halvings(100.0)[1] == 7
    with_index = lambda x: jax.lax.fori_loop(0, 4, lambda i, s: s * x + i, x)
    close(identity(with_index)(1.5), with_index(1.5))


# Coverage.


@pytest.mark.parametrize("table", TABLES)
def test_every_model_is_covered(table):
    lacking = {}
    for name in decomposed_models.NAMES:
        model = decomposed_models.make(name)
        if found := jxp.missing(model.f, model.x, TABLES[table]):
            lacking[name] = found
    assert not lacking


class Odd(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jax.lax.lgamma(nn.Dense(3)(jax.lax.lgamma(nn.Dense(3)(x))))


class Holder(nn.Module):
    @nn.compact
    def __call__(self, x):
        square = jnp.outer(x, x) + 3 * jnp.eye(3)
        return Odd(name="strange")(x).sum() + jnp.linalg.cholesky(square).sum()


@pytest.fixture(scope="module")
def odd():
    module, x = Holder(), jnp.array([0.5, -1.0, 2.0])
    params = module.init(jax.random.key(0), x)
    return lambda x: module.apply(params, x), x


def test_missing_lists_what_lies_on_the_way(odd):
    f, x = odd
    found = {entry.name: entry for entry in jxp.missing(f, x, jxp.CD_SHAPLEY)}
    assert found["lgamma"].count == 2
    assert "strange" in found["lgamma"].path
    assert found["cholesky"].count == 1
    assert "strange" not in found["cholesky"].path
    assert jxp.missing(lambda x: x * jax.lax.lgamma(jnp.float32(2.5)), x, jxp.CD_SHAPLEY) == []


def test_missing_looks_into_loops_branches_and_calls():
    odd = jax.lax.lgamma
    looped = lambda x: jax.lax.scan(lambda c, v: (odd(c + v), v), x[0], x)[0]
    branched = lambda x: jax.lax.cond(x[0] > 0, lambda v: odd(v), lambda v: v, x)
    called = lambda x: jax.jit(jax.checkpoint(odd))(x)
    for f in (looped, branched, called):
        names = [entry.name for entry in jxp.missing(f, jnp.ones(3), jxp.CD_SHAPLEY)]
        assert names == ["lgamma"]


def test_missing_evaluates_nothing():
    def f(x):
        jax.debug.callback(lambda: pytest.fail("evaluated"))
        return x * 2

    jxp.missing(f, jnp.ones(3), jxp.CD_SHAPLEY)


# Refusals, one line each.


def refused(kind, *words, f=jnp.sum, x=None, mask=None, **options):
    x = jnp.ones(3) if x is None else x
    mask = jnp.ones(3) if mask is None else mask
    with pytest.raises(kind) as caught:
        jxp.contextual_decomposition(f, x, mask, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("table", TABLES)
def test_a_primitive_without_a_rule_is_named_with_its_place_and_the_cure(odd, table):
    f, x = odd
    refused(
        NotImplementedError,
        "lgamma",
        "strange",
        "'lgamma':",
        "rules",
        f=f,
        x=x,
        rules=TABLES[table],
    )


def test_an_unknown_primitive_in_a_loop_is_named():
    f = lambda x: jax.lax.scan(lambda c, v: (jax.lax.lgamma(c + v), v), x[0], x)[0]
    refused(NotImplementedError, "lgamma", f=f)


def test_an_unknown_primitive_off_the_way_is_not():
    f = lambda x: x.sum() * jax.lax.lgamma(jnp.float32(2.5))
    assert jxp.contextual_decomposition(f, jnp.ones(3), jnp.array([1, 0, 0])).relevant > 0


def test_a_loop_that_the_data_end_is_refused():
    halved = lambda x: jax.lax.while_loop(lambda v: v.sum() > 1, lambda v: v / 2, x).sum()
    refused((NotImplementedError, JaxplainError), "while", "scan", f=halved)
    counted = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, v: v / 2, x).sum())
    refused((NotImplementedError, JaxplainError), "while", f=lambda x: counted(x, 3))
    names = [entry.name for entry in jxp.missing(halved, jnp.ones(3), jxp.CD_SHAPLEY)]
    assert names == ["while"]


def test_a_loop_beside_the_way_is_served():
    start = jnp.float32(100)
    f = lambda x: x.sum() * jax.lax.while_loop(lambda v: v > 1, lambda v: v / 2, start)
    split = jxp.contextual_decomposition(f, jnp.ones(3), jnp.array([True, False, False]))
    close(split.relevant, jnp.float32(100 / 2**7))


def test_masks_that_do_not_fit_are_refused():
    refused(JaxplainError, "mask", "[4]", "[3]", mask=jnp.ones(4))
    refused(JaxplainError, "mask", "[2, 3]", mask=jnp.ones((2, 3)))
    refused(JaxplainError, "mask", mask={"a": jnp.ones(3)})
    x = {"a": jnp.ones(3), "b": jnp.ones(2)}
    refused(
        JaxplainError,
        "mask",
        "'b'",
        f=lambda x: x["a"].sum(),
        x=x,
        mask={"a": 1.0, "b": jnp.ones(3)},
    )


def test_groups_of_masks_that_do_not_fit_are_refused():
    x = {"a": jnp.ones(3), "b": jnp.ones(2)}
    f = lambda x: x["a"].sum() + x["b"].sum()
    for masks in (
        {"a": jnp.ones((4, 3)), "b": jnp.ones((5, 2))},
        {"a": jnp.ones((4, 2)), "b": jnp.ones((4, 2))},
        {"a": jnp.ones(()), "b": jnp.ones(())},
    ):
        with pytest.raises(JaxplainError, match=r"^mask") as caught:
            jxp.group_scores(f, x, masks)
        assert "\n" not in str(caught.value)
    chunks: tuple[Any, ...] = (0, -1, 2.5)
    for chunk in chunks:
        with pytest.raises(JaxplainError, match="chunk"):
            jxp.group_scores(f, x, {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 2))}, chunk=chunk)


def test_inputs_that_are_not_floats_are_refused():
    refused(JaxplainError, "int32", "float", x=jnp.arange(3))
    refused(JaxplainError, "x['b']", "bool", x={"b": np.array([True])}, mask={"b": 1.0})
    refused(JaxplainError, "x", x={}, mask={}, f=lambda x: jnp.float32(1))


def test_results_that_are_not_floats_are_refused():
    refused(JaxplainError, "int32", f=lambda x: jnp.argmax(x))
