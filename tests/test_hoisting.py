"""First steps that run for many coalitions at once: the same values, and only where it is less."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxplain as jxp
from jaxplain.interpret import canonical_convolutions, compat, hoisting, walk
from jaxplain.interpret.reach import reached, shapes_of
from jaxplain.methods.coalitions import all_but_one, game
from jaxplain.methods.path import check_baseline
from jaxplain.methods.players import players
from tests import small_models
from tests.helpers import close


def text(params, x):
    """Windows over words, the maximum over those that are there."""
    mask = jnp.arange(len(x)) < len(x) - 2
    x = jnp.where(mask[:, None], x, 0)
    numbers = ("NHC", "HIO", "NHC")
    convolve = partial(lax.conv_general_dilated, window_strides=(1,), dimension_numbers=numbers)
    maps = [convolve(x[None], w, padding="SAME")[0] for w in params["windows"]]
    h = jnp.where(mask[:, None], jnp.concatenate(maps, -1) + params["bias"], -jnp.inf)
    return jax.nn.relu(h).max(0) @ params["head"]


def residual(params, x):
    """An affine value that goes on in three ways: through a ReLU, as it is, and to the output."""
    h = x @ params["a"] + params["b"]
    return jax.nn.relu(h).sum() + (h * jnp.arange(8.0)).sum() + jnp.tanh(x).sum() + h[0] * h[1]


def weights(*shapes):
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.normal(size=s), jnp.result_type(float)) for s in shapes]


def cases():
    """Each `(f, x, groups)`, in the default dtype."""
    dtype = jnp.result_type(float)
    small = {n: small_models.make(n, dtype) for n in small_models.SHAPES}
    *windows, bias, head, words = weights((1, 3, 8), (2, 3, 8), (3, 3, 8), (1, 24), (24,), (9, 3))
    params = {"windows": windows, "bias": bias, "head": head}
    a, b, row = weights((5, 8), (8,), (5,))
    tree = {"a": np.array([0, 1, -1]), "b": (np.array([[2], [3]]), 1)}
    tiles = np.arange(8)[:, None, None] // 3 * 3 + np.arange(8)[None, :, None] // 3
    return {
        "text": (partial(text, params), words, np.arange(9)[:, None]),
        "residual": (partial(residual, {"a": a, "b": b}), row, np.array([0, 1, 1, -1, 2])),
        "image": (small["cnn"].f, small["cnn"].x, tiles),
        "mlp": (small["mlp"].f, small["mlp"].x, None),
        "lstm": (small["lstm"].f, small["lstm"].x, np.array([[0], [1], [2], [2], [-1], [3]])),
        "attention": (small["attention"].f, small["attention"].x, np.arange(6)[:, None]),
        "tree": (small["tree"].f, small["tree"].x, tree),
    }


@pytest.fixture
def eager(monkeypatch):
    """Hoist all that can be, whether it pays or not."""
    monkeypatch.setattr(hoisting, "GAIN", 0)
    monkeypatch.setattr(hoisting, "SELECT", 0)


def worths(name, baselines=None):
    """Of some coalitions, of all but one player, and both by evaluating f; in one program."""
    f, x, groups = cases()[name]
    each = players(x, groups, 4)
    kept = np.random.default_rng(1).random((6, each.count)) < 0.5
    kept = jnp.asarray(np.concatenate([kept, np.eye(each.count, dtype=bool)]))

    @jax.jit
    def all_ways(x):
        other = check_baseline(lambda x: jax.tree.map(lambda v: 0.3 * jnp.cos(v), x), x)
        each = players(x, groups, 4)
        if baselines is None:
            table = game(f, x, groups=groups, baseline=other, chunk=4)
            worth = lambda k: f(each.keep(k, other))
        else:
            scales = jnp.asarray(baselines, jnp.result_type(float))
            others = jax.vmap(lambda s: jax.tree.map(lambda v: s * v, other))(scales)
            table = game(f, x, groups=groups, baselines=others, chunk=4)
            worth = lambda k: jnp.mean(jax.vmap(lambda o: f(each.keep(k, o)))(others))
        left = all_but_one(f, each, other)
        one_out = jax.vmap(lambda k: f(each.keep(k, other)))(~jnp.eye(each.count, dtype=bool))
        return (jax.vmap(table.worth)(kept), left), (jax.vmap(worth)(kept), one_out)

    return all_ways(x)


@pytest.mark.parametrize("name", [*cases()])
def test_worths_are_those_of_whole_evaluations(x64, eager, name):
    got, want = worths(name)
    close(got, want)


@pytest.mark.parametrize(("name", "baselines"), [("text", (1, -2)), ("residual", (1, 0, 2, 3, -1))])
def test_and_so_they_are_in_the_mean_over_baselines(x64, eager, name, baselines):
    """Two of them at once, and five, which is more than a chunk."""
    got, want = worths(name, baselines)
    close(got, want)


def test_in_float32_they_agree_to_rounding(eager):
    got, want = worths("text")
    close(got, want)


def halves(f, x, pieces):
    found = hoisting.affine(canonical_convolutions(f), x, pieces)
    return found and [v.shape for v in jax.eval_shape(found.first, x) or ()]


def test_what_is_hoisted_is_less_work():
    """Sums over M players of what a step gives, against the products of that step."""
    (w,) = weights((64, 8))
    f = lambda x: jnp.tanh(x @ w).sum()
    rows = lambda x: jnp.tanh(x @ w + x.mean() * w[:1]).sum()
    x = jnp.ones(64)
    assert halves(f, x, 32) == [(8,)] and halves(f, x, 33) is None
    assert halves(rows, jnp.ones((4, 64)), 8) == [(4, 8)]
    assert halves(lambda x: f(jnp.sin(x)), x, 2) is None
    assert halves(f, x.astype(jnp.bfloat16), 2) is None
    assert halves(lambda x: f(x.astype(jnp.float16).astype(jnp.float32)), x, 2) is None
    assert halves(lambda x: f(lax.stop_gradient(x)), x, 2) is None  # of slope 0, but not constant
    assert halves(lambda x: f(x * x), x, 2) is None
    assert halves(lambda x: jnp.sum((x @ w) ** 2), x, 2) == [(8,)]
    assert halves(lambda x: jnp.tanh(x * (w @ w.T @ w)[:, 0]).sum(), x, 2) is None  # none of x
    assert halves(lambda x: f(jnp.where(x > 0, x, 1)), x, 2) is None
    assert halves(lambda x: f(jnp.where(w[:, 0] > 0, x, 1)), x, 2) == [(8,)]


def test_models_that_have_no_such_steps_run_as_before():
    for name, players_of in (("attention", 6), ("lstm", 6), ("tree", 4), ("mlp", 5)):
        model = small_models.make(name)
        assert halves(model.f, model.x, players_of) is None, name


def test_effects_and_shardings_are_left_alone(capfd):
    (w,) = weights((64, 8))

    def f(x):
        jax.debug.print("seen")
        return jnp.tanh(x @ w).sum()

    assert halves(f, jnp.ones(64), 2) is None
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), "d")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = lambda x: jax.jit(lambda x: jnp.tanh(x @ w).sum(), in_shardings=rows)(x)
    assert halves(placed, jnp.ones(64), 2) is None


def test_words_of_a_convolution_share_passes(eager):
    f, x, _ = cases()["text"]
    local = hoisting.local(f, x, [np.eye(9, dtype=bool)[:, :, None]])
    assert local is not None
    # Windows of 3 words: three words apart, two have none in common.
    np.testing.assert_array_equal(local.colour, np.arange(9) % 3)
    # All steps before the maximum over words; what is masked is reached too, as far as shapes tell.
    (reach,) = local.reach
    assert reach.shape == (9, 9, 24) and reach.sum() == 8 * (9 + 2 * 9 - 1 + 3 * 9 - 2)


def reach_of(f, x, groups):
    program, _ = compat.trace(f, (x,), walk.whole_with_rule)
    found = reached(program, shapes_of(program, [x.shape]), [groups])
    out = program.outputs[0]
    return np.broadcast_to(found[out], (len(groups), *jax.eval_shape(f, x).shape))


def conv(x, kernel, **options):
    numbers = ("HCN", "IHO", "CNH")  # in an order of their own
    return lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options)


ONES = jnp.ones((3, 3, 4))
TIGHT = {
    "convolution": lambda x: conv(x, ONES, window_strides=(2,), padding=[(2, 1)]),
    "dilated": lambda x: conv(
        x, ONES, window_strides=(1,), padding=[(1, 0)], lhs_dilation=(3,), rhs_dilation=(2,)
    ),
    "product": lambda x: jnp.einsum("ijk,kl->jil", x, jnp.ones((2, 5))),
    "product from the right": lambda x: jnp.einsum("mi,ijk->kmj", jnp.ones((4, 6)), x),
    "product of both": lambda x: jnp.einsum("ijk,ljk->jli", x, x + 1),
    "moves": lambda x: jnp.flip(x.transpose(2, 0, 1).reshape(4, 3, 3)[1:, None], 3),
    "axes of one": lambda x: jnp.squeeze(x[:1], 0)[:, None, :, None].reshape(1, 3, 2, 1, 1),
    "pad": lambda x: lax.pad(x.sum(2), 0.0, [(-1, 2, 1), (2, -1, 0)]),
    "joined": lambda x: jnp.concatenate([x[:2], jnp.ones((1, 3, 2)), x[1:4, :1] + x[:3]], 0),
    "split": lambda x: jnp.split(x, 3)[1] * jnp.split(x, 3)[2],
    "windows": lambda x: lax.reduce_window(x, 0.0, lax.add, (3, 1, 2), (2, 1, 1), "SAME"),
    "sums": lambda x: x.sum(1) + jax.nn.softplus(x).sum(1),
    "broadcast": lambda x: jnp.ones((2, 6, 3)) * x.sum(2)[None] + x[:1, :1, :1],
    "call": lambda x: jax.nn.relu(x + 1) + jnp.clip(x, 0, 9),
}
LOOSE = {
    "gather": lambda x: x[jnp.array([3, 1])],
    "sorted": lambda x: jnp.sort(x, 0),
    "loop": lambda x: lax.scan(lambda c, r: (c + r, c * r), x[0], x)[1],
    "feature groups": lambda x: conv(
        x[:, :1], jnp.ones((1, 3, 6)), window_strides=(1,), padding="SAME"
    ),
    "running": lambda x: jnp.cumsum(x, 0),
}


@pytest.mark.parametrize("name", [*TIGHT, *LOOSE])
def test_reach_is_what_derivatives_say(name):
    """At positive numbers and weights nothing cancels: what is reached has a derivative."""
    f = (TIGHT | LOOSE)[name]
    x = 1 + jnp.arange(36.0).reshape(6, 3, 2) / 7
    groups = np.random.default_rng(0).integers(0, 3, x.shape) == np.arange(3)[:, None, None, None]
    groups &= np.asarray(x < 5)  # the last rows are in no group
    slopes = jax.jit(jax.jacrev(f))(x)
    each = groups.reshape(3, *(1,) * (slopes.ndim - 3), *x.shape)
    moved = np.any((np.asarray(slopes)[None] != 0) & each, (-1, -2, -3))
    got = reach_of(f, x, groups)
    if name in TIGHT:
        np.testing.assert_array_equal(got, moved)
    else:
        assert (got | ~np.asarray(moved)).all() and np.asarray(moved).any()


def test_too_large_a_table_is_not_written_out(monkeypatch):
    f, x, _ = cases()["text"]
    monkeypatch.setattr("jaxplain.interpret.reach.LARGEST", 100)
    assert hoisting.local(f, x, [np.eye(9, dtype=bool)[:, :, None]]) is None


def test_gradients_pass_through_pieces(x64, eager, monkeypatch):
    _, x, groups = cases()["text"]
    *windows, bias, head = weights((1, 3, 8), (2, 3, 8), (3, 3, 8), (1, 24), (24,))
    params = {"windows": windows, "bias": bias, "head": head}

    kept = jnp.arange(9) % 2 == 0

    def loss(params, x):
        f, other = partial(text, params), jnp.zeros_like(x)
        both = game(f, x, groups=groups, chunk=4).both(kept)
        return jnp.sum(both**2) + jnp.sum(all_but_one(f, players(x, groups, 4), other) ** 2)

    got = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    for name in ("affine", "local"):
        monkeypatch.setattr(hoisting, name, lambda *_: None)
    close(got, jax.jit(jax.grad(loss, (0, 1)))(params, x))


def test_methods_give_the_same_with_and_without(x64, eager, monkeypatch):
    f, x, groups = cases()["text"]
    key = jax.random.key(0)
    explain = lambda x: [
        jxp.feature_ablation(f, x, groups=groups).scores,
        jxp.occlusion(f, x, window=(2, 3), strides=(1, 3)).scores,
        jxp.kernel_shap(f, x, samples=36, groups=groups, key=key).scores,
    ]
    xs = jnp.stack([x, 2 * x])
    got = jax.jit(jax.vmap(explain))(xs)
    for name in ("affine", "local"):
        monkeypatch.setattr(hoisting, name, lambda *_: None)
    # A system of least squares, of condition below 100.
    close(got, jax.jit(jax.vmap(explain))(xs), factor=10)


def test_words_that_share_a_pass_do_not_spoil_one_another(eager):
    """Each is read from where it reaches, and of an infinite one others see nothing."""
    f, x, groups = cases()["text"]
    other = jnp.zeros_like(x).at[5, 0].set(jnp.inf)
    ablate = lambda x: jxp.feature_ablation(f, x, groups=groups, baseline=other).scores[:, 0]
    got = jax.jit(ablate)(x)
    np.testing.assert_array_equal(jnp.isfinite(got), np.arange(9) != 5)
