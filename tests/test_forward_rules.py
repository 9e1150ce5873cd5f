"""What primitives do with the parts of a value, and how a table is addressed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain.methods.contextual import Parts, first, held
from jaxplain.types import JaxplainError

X = jnp.array([3.0, 1.0, 2.0])
MASK = np.array([True, False, True])


def relevant(f, rules=jxp.CD_SHAPLEY, x=X, mask=MASK):
    return np.asarray(jxp.contextual_decomposition(f, x, mask, rules=rules).relevant)


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (jnp.sort, [0, 2, 3]),
        (lambda x: x[jnp.argsort(-x)], [3, 2, 0]),
        (lambda x: jax.lax.top_k(x, 2)[0], [3, 2]),
        (lambda x: jnp.stack([x, -x]), [[3, 0, 2], [-3, 0, -2]]),
        (lambda x: jnp.tile(x, 2), [3, 0, 2, 3, 0, 2]),
        (jnp.cumsum, [3, 3, 5]),
        (lambda x: jnp.fft.irfft(jnp.fft.rfft(x), 3), [3, 0, 2]),
        (lambda x: jnp.max(x), 3),
        (lambda x: jnp.min(x), 0),
        (lambda x: jnp.median(x), 2),
        (lambda x: jnp.maximum(x, x[::-1]), [3, 0, 3]),
        (lambda x: jnp.take(x, jnp.argmax(x)), 3),
        (lambda x: jnp.where(x > 1.5, x, 0), [3, 0, 2]),
        (lambda x: jnp.clip(x, 0, 2.5), [2.5, 0, 2]),
        (lambda x: x.at[1].set(0.0), [3, 0, 2]),
        (lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (2,), (1,), "VALID"), [3, 2]),
        (lambda x: x[:2] / x[2], [1.5, 0]),
        (lambda x: jnp.linalg.norm(x), 13 / 14**0.5),  # of 14 = 9 + 1 + 4, the part of 9 and 4
        (lambda x: jnp.outer(x, x)[0], [9, 1.5, 6]),
        (lambda x: jax.lax.stop_gradient(x), [3, 0, 2]),
        (lambda x: jxp.hold(x) * x, [9, 0, 4]),
        # A gradient inside f adds with a primitive of its own: 2 x + 2 sum(x).
        (jax.grad(lambda x: jnp.sum(x) ** 2 + jnp.sum(x**2)), [16, 10, 14]),
        (lambda x: jxp.hold({"a": x})["a"].sum() * x[1], 0),
    ],
)
def test_primitives(f, expected):
    np.testing.assert_allclose(relevant(f), np.asarray(expected, "f4"), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "activation",
    [
        jax.nn.gelu,
        lambda x: jax.nn.gelu(x, approximate=False),
        jax.nn.silu,
        jax.nn.elu,
        jax.nn.selu,
        jax.nn.celu,
        jax.nn.leaky_relu,
        jax.nn.mish,
        jax.nn.soft_sign,
        jax.nn.hard_swish,
        jax.nn.hard_tanh,
        jax.nn.relu6,
        jax.nn.squareplus,
        jax.nn.softplus,
        jax.nn.log_sigmoid,
        lambda x: jnp.where(x > 0, x, 0.0),
        lambda x: x * (x > 0),
        lambda x: jnp.maximum(x, 0.1 * x) * jnp.sin(x),
        lambda x: jnp.abs(x) ** 3,
        lambda x: 1 / (1 + jnp.exp(-x)),
        lambda x: jnp.log(1 + jnp.exp(x)),
        lambda x: jnp.sqrt(1 + x**2),
        lambda x: x / jnp.sqrt(1 + x**2),
        lambda x: 1 / (1 + x**2),
    ],
)
def test_an_activation_is_one_function_however_it_is_written(activation):
    """Under `first`, of a value of mixed signs: φ(part) less φ(0), and the share of φ(0)."""
    x = jnp.array([[1.0, -3.0], [-2.0, 0.5], [1.5, 1.0]])
    mask = np.array([[True, False]] * 3)
    f = lambda x: activation(jnp.sum(x, axis=1))
    none = activation(jnp.zeros(3))
    part = activation(x[:, 0]) - none
    rest = activation(jnp.sum(x, axis=1)) - none - part
    expected = part + none * abs(part) / jnp.maximum(abs(part) + abs(rest), 1e-9)
    found = relevant(f, jxp.CD_ACD, x, mask)
    # A share of two sizes, one a difference of rounded numbers.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm")(nn.Dense(4, name="dense")(x))
        return nn.Dense(2, name="out")(jax.nn.gelu(x))


@pytest.fixture(scope="module")
def net():
    params = Net().init(jax.random.key(0), X)
    return lambda x: Net().apply(params, x)


def test_a_module_is_one_operation_by_its_path(net):
    seen = []

    def rule(op, x):
        seen.append(op.path)
        return first(op, x)

    by_module = relevant(net, {**jxp.CD_ACD, "*/norm": rule})
    assert seen == ["Net/norm"]
    assert not np.allclose(by_module, relevant(net, jxp.CD_ACD), atol=1e-3)
    assert np.all(relevant(net, {**jxp.CD_ACD, "Net/norm": held}) == 0)


def test_a_module_inside_a_loop_is_found():
    class Steps(nn.Module):
        @nn.compact
        def __call__(self, x):
            step = nn.scan(
                lambda module, carry, _: (nn.Dense(3, name="inner")(carry), None),
                variable_broadcast="params",
                split_rngs={"params": False},
                length=2,
            )
            return step(self, x, None)[0]

    params = Steps().init(jax.random.key(0), X)
    f = lambda x: Steps().apply(params, x)
    assert np.all(relevant(f, {**jxp.CD_ACD, "*/inner": held}) == 0)


def test_a_pattern_that_fits_no_module_is_an_error(net):
    with pytest.raises(JaxplainError, match=r"no module .* fits \*/nothing: .* Net/"):
        relevant(net, {**jxp.CD_ACD, "*/nothing": held})


def test_a_rule_for_a_primitive_goes_before_the_activation_it_is_in(net):
    seen = []

    def rule(op, x):
        seen.append(op.name)
        return first(op, x)

    relevant(net, {**jxp.CD_ACD, "tanh": rule})
    assert seen == ["tanh"]


def test_a_rule_for_a_product_gets_both_operands(net):
    seen = []

    def rule(op, a, b):
        seen.append((isinstance(a, Parts), isinstance(b, Parts)))
        return Parts(op(a.relevant, b), op(a.total, b))

    assert np.array_equal(
        relevant(net, {**jxp.CD_ACD, "dot_general": rule}), relevant(net, jxp.CD_ACD)
    )
    assert seen == [(True, False)] * 2


def test_a_named_function_follows_the_table():
    twice = jxp.named("twice", lambda x: x * x)
    rule = lambda op, x: Parts(jnp.zeros_like(x.relevant), op(x.total))
    assert np.array_equal(relevant(twice), relevant(lambda x: x * x))  # no rule: as it is written
    assert np.all(relevant(twice, {**jxp.CD_SHAPLEY, "twice": rule}) == 0)
    assert np.array_equal(jax.grad(lambda x: twice(x).sum())(X), 2 * X)


@pytest.mark.parametrize("name", ["hold", "gate", "softmax", "product", "bias", "size"])
def test_a_call_that_happens_to_have_a_name_of_the_tables_is_none(name):
    def fn(x):
        return x * 2 + 1

    fn.__name__ = name
    for rules in (jxp.CD_SHAPLEY, jxp.CD_LSTM):
        assert np.array_equal(relevant(jax.jit(fn), rules), relevant(fn, rules))


def test_rules_that_are_no_table_are_refused():
    with pytest.raises(JaxplainError, match="start from a table"):
        relevant(jnp.sort, {"sort": first})


def test_a_jitted_function_follows_a_rule_of_its_name():
    rule = lambda op, x: Parts(jnp.zeros_like(x.relevant), op(x.total))
    assert np.all(relevant(jax.nn.silu, {**jxp.CD_SHAPLEY, "silu": rule}) == 0)


def test_prints_are_no_obstacle(capsys):
    def f(x):
        jax.debug.print("total {x}", x=x)
        return x * 2

    assert relevant(f).tolist() == [6, 0, 4]
    jax.effects_barrier()
    assert "total [3. 1. 2.]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "f",
    [
        jnp.log,
        lambda x: x**2.5,
        jnp.prod,
        jax.nn.log_softmax,
        lambda x: jnp.log(x**2),  # one function of x, but none at 0
        lambda x: 1 / jnp.tanh(x),
    ],
)
def test_what_parts_cannot_go_through_is_refused(f):
    with pytest.raises(NotImplementedError, match="no rule for"):
        relevant(f)
    assert len(jxp.missing(f, X)) == 1


def test_pools_pick_where_the_total_is_largest():
    x = jnp.array([[1.0, 5.0, 2.0, 2.0], [4.0, 3.0, 2.0, 0.0]])[None, :, :, None]
    mask = np.array([[True, True, False, True], [True, True, True, True]])[None, :, :, None]
    f = lambda x: nn.max_pool(x, (2, 2), (2, 2))
    assert relevant(f, x=x, mask=mask).reshape(-1).tolist() == [5, 0]  # of equals, the first
    f = lambda x: nn.max_pool(x, (2, 2), (1, 1), "SAME")
    assert np.array_equal(relevant(f, x=x, mask=np.ones(x.shape)), f(x))
